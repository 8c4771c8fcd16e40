"""Runs whose network grows: opened, resumed, with changing batches, beside other methods."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from warm_python import run_ranks

from latewood.errors import RequestError
from latewood.slim import load_slim, save_slim, slim
from latewood.training import load_recipe, open_run, parse_recipe, train
from latewood.training.recipe import Recipe
from latewood.training.run_folder import RunFolder

SCHEDULE = {"name": "explicit", "widths": {"linear1": [6, 8, 12]}, "epochs": [1, 1, 2]}


def recipe(**changes) -> Recipe:
    base = {
        "task": "digits",
        "model": {"name": "mlp", "hidden": [6]},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "schedule": "cosine",
        "methods": [{"name": "growth", "schedule": SCHEDULE}],
        "epochs": 4,
        "batch_size": 256,
        "checkpoint_every": 5,
        "keep_checkpoints": 9,
        "device": "cpu",
    }
    return parse_recipe({**base, **changes})


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    return train(recipe(), folder=tmp_path_factory.mktemp("grown") / "run").folder


def test_a_run_grows_and_says_so(grown):
    rows = [row for row in grown.read_metrics() if row["kind"] == "method"]
    assert [row["growth/width/linear1"] for row in rows] == [6, 6, 8, 12, 12]
    assert rows[2]["growth/event/before"] > 0
    weights = load_file(grown.model_path)
    assert weights["linear1.weight"].shape == (12, 64)
    assert grown.summary["size"]["parameters"] == 12 * 64 + 12 + 12 * 10 + 10
    assert grown.edits_path.with_suffix(".json").exists()


def test_its_model_opens(grown):
    opened = open_run(grown.path)
    weights = load_file(grown.model_path)
    assert all(torch.equal(weights[name], v) for name, v in opened.model.state_dict().items())
    last = open_run(sorted(grown.checkpoints.iterdir())[-1])
    assert all(torch.equal(weights[name], v) for name, v in last.model.state_dict().items())


def test_its_checkpoints_open_at_the_width_they_have(grown):
    widths = {}
    for folder in sorted(grown.checkpoints.iterdir()):
        opened = open_run(folder, finalized=False)
        assert opened.methods["growth"].metrics()["width/linear1"] == (
            opened.model.linear1.out_features
        )
        widths[folder.name] = opened.model.linear1.out_features
    # Epochs of 5 steps; what begins an epoch comes after the checkpoint of the one before.
    assert list(widths.values()) == [6, 8, 12, 12]


def test_a_run_resumes_from_any_checkpoint_to_the_same_bits(grown, tmp_path):
    names = [folder.name for folder in sorted(grown.checkpoints.iterdir())]
    for number, name in enumerate(names[:-1]):
        folder = shutil.copytree(grown.path, tmp_path / name)
        for later in names[number + 1 :]:
            shutil.rmtree(folder / "checkpoints" / later)
        (folder / "summary.json").unlink()
        again = train(None, folder=folder, resume=True)
        ours, theirs = load_file(again.folder.model_path), load_file(grown.model_path)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_grown_run_becomes_slim_and_loads(grown, tmp_path):
    model = open_run(grown.path).model
    with torch.no_grad():
        model.linear1.weight[:4] = 0
        model.linear1.bias[:4] = 0
    slimmed = slim(model, (torch.zeros(1, 64),))
    save_slim(slimmed, tmp_path / "slim")
    again = load_slim(tmp_path / "slim", lambda: open_recipe_model())
    x = torch.randn(3, 64)
    assert torch.equal(again(x), slimmed(x)) and slimmed.linear1.out_features == 8


def open_recipe_model():
    from latewood.models import mlp

    return mlp(in_features=64, hidden=(6,), num_classes=10)


def test_two_processes_grow_alike(tmp_path):
    (tmp_path / "recipe.toml").write_text(recipe().to_toml())
    words = ["-m", "latewood", "train", "recipe.toml", "--out", "two"]
    for done in run_ranks(words, 2, cwd=tmp_path):
        assert done.returncode == 0, done.stderr
    one = train(recipe(), folder=tmp_path / "one").folder
    ours, theirs = load_file(RunFolder(tmp_path / "two").model_path), load_file(one.model_path)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)


def test_batch_sizes_and_widths_change_together(tmp_path):
    asked = recipe(batch_size=[[1, 512], [1, 300], [2, 256]], log_every=1)
    run = train(asked, folder=tmp_path / "run").folder
    rows = [row for row in run.read_metrics() if row["kind"] == "method"]
    assert [row["step"] for row in rows] == [0, 3, 8, 13, 18]
    assert [row["growth/width/linear1"] for row in rows] == [6, 6, 8, 12, 12]


def test_it_grows_under_masks(tmp_path):
    masks = {"name": "continuous_sparsification", "final_temperature": 1e3, "density": 0.5}
    methods = [masks, {"name": "growth", "schedule": SCHEDULE, "rescale": "none"}]
    run = train(recipe(methods=methods), folder=tmp_path / "run").folder
    weights = load_file(run.model_path)
    assert weights["linear1.weight"].shape == (12, 64)
    assert int(weights["linear1.weight"].count_nonzero()) == 12 * 64 // 2
    assert open_run(run.path).model.linear1.out_features == 12


def test_growth_and_structured_sparsification_of_one_network_are_refused(tmp_path):
    pruning = {"name": "structured_sparsification", "budget": {"macs": 0.5}}
    asked = recipe(methods=[{"name": "growth", "schedule": SCHEDULE}, pruning])
    with pytest.raises(RequestError, match=r"methods\[1\]: StructuredSparsification: Growth alre"):
        train(asked, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 3}, r"methods\[0\].*schedule.epochs: .* ends after the run does"),
        ({"epochs": 5}, r"methods\[0\].*schedule.epochs: .* ends before the run does"),
        (
            {"methods": [{"name": "growth", "schedule": {"name": "late", "ends": 2.0}}]},
            r"methods\[0\].*schedule late: got",
        ),
        (
            {"methods": [{"name": "growth", "schedule": {**SCHEDULE, "widths": {"a": [1, 1, 3]}}}]},
            r"methods\[0\].*widths: got 'a'; expected a group or a layer",
        ),
    ],
)
def test_a_schedule_that_fits_no_run_is_refused_before_anything_is_written(
    changes, message, tmp_path
):
    with pytest.raises(RequestError, match=message):
        train(recipe(**changes), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_it_grows_when_the_loss_of_the_run_stops_falling(tmp_path):
    schedule = {"name": "plateau", "end": 2.0, "phases": 3, "patience": 1, "threshold": 0.9}
    asked = recipe(epochs=6, methods=[{"name": "growth", "schedule": schedule}])
    run = train(asked, folder=tmp_path / "run").folder
    widths = [row["growth/width/linear1"] for row in run.read_metrics() if row["kind"] == "method"]
    assert widths[0] == 6 and widths[-1] == 12 and len(set(widths)) == 3


def test_the_recipe_that_ships_grows_fourfold():
    shipped = load_recipe("digits-growing-mlp")
    assert shipped.model["hidden"] == [64, 64] and shipped.methods[0]["schedule"]["end"] == 4.0


def test_a_probe_of_newborn_units_takes_its_stages_from_the_method(tmp_path):
    probes = [{"name": "newborn", "every": 2}]
    run = train(recipe(probes=probes), folder=tmp_path / "run").folder
    rows = [row for row in run.read_metrics() if row["kind"] == "probe"]
    per_epoch = run.summary["steps"] // 4
    assert rows and all(row["step"] > per_epoch for row in rows)
    assert any(row["newborn_update_ratio"] > 0 for row in rows if "newborn_update_ratio" in row)
    with pytest.raises(RequestError, match=r"probes\[0\].stages: got None; .*add 'growth'"):
        train(recipe(probes=probes, methods=[]), folder=tmp_path / "other")
    assert not (tmp_path / "other").exists()
