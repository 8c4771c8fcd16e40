"""A run's model made slim: what is written, what is refused, and the fresh process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from warm_python import run

from latewood import models
from latewood.core import read_tensors
from latewood.errors import RequestError, WorkError
from latewood.slim import CsrLinear, load_slim
from latewood.slim.saved_files import repeat_edits
from latewood.studies.slim_run import slim_run
from latewood.training import open_run
from latewood.training.recipe import load_recipe
from latewood.training.run import train

RECIPE = """
task = "digits"
model = {name = "mlp", hidden = [24, 12]}
steps = 6
batch_size = 32
checkpoint_every = 3
optimizer = {name = "sgd", lr = 0.1}
"""
METHOD = """
[[methods]]
name = "continuous_sparsification"
initial_logit = 0.1
final_temperature = 1e4
"""
ARGUMENTS = {"in_features": 64, "hidden": [24, 12], "num_classes": 10}


def trained(folder: Path, text: str) -> Path:
    (folder / "small.toml").write_text(text)
    recipe = load_recipe(folder / "small.toml")
    train(recipe, folder=folder / "small", show_progress=False)
    return folder / "small"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A plain run, and one that learned masks, of which half the first layer's units are off."""
    plain = trained(tmp_path_factory.mktemp("plain"), RECIPE)
    masked = trained(tmp_path_factory.mktemp("masked"), RECIPE + METHOD)
    tensors = read_tensors(masked / "model.safetensors")
    from safetensors.torch import save_file

    tensors["linear2.weight"][:, ::2] = 0
    save_file(tensors, masked / "model.safetensors")
    return plain, masked


@pytest.fixture
def plain(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs[0], tmp_path / "plain"))


@pytest.fixture
def masked(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs[1], tmp_path / "masked"))


def column(rows: list[dict[str, float]], form: str) -> dict[str, float]:
    return {str(row[""]): row[form] for row in rows}


def test_the_table_counts_each_form(masked: Path) -> None:
    done = slim_run(masked, mode="slim", batch=5)
    dense, slim = column(done.rows, "dense"), column(done.rows, "slim")
    assert dense["parameters"] == 64 * 24 + 24 + 24 * 12 + 12 + 12 * 10 + 10
    assert slim["parameters"] <= 64 * 12 + 12 + 12 * 12 + 12 + 12 * 10 + 10
    assert dense["MACs"] == 5 * (64 * 24 + 24 * 12 + 12 * 10)
    assert slim["MACs"] <= 5 * (64 * 12 + 12 * 12 + 12 * 10)
    assert dense["nonzero"] >= slim["nonzero"] > 0
    assert dense["file bytes"] > slim["file bytes"]
    assert dense["latency ms"] > 0 < slim["latency ms"]
    assert dense["largest output difference"] == 0 <= slim["largest output difference"] <= 1e-5
    assert done.folder == masked.with_name("masked-slim")


def test_compressed_rows_count_what_they_hold(masked: Path, tmp_path: Path) -> None:
    done = slim_run(masked, mode="csr", out=tmp_path / "out", batch=3)
    dense, csr = column(done.rows, "dense"), column(done.rows, "csr")
    weights = [t for n, t in read_tensors(masked / "model.safetensors").items() if "weight" in n]
    nonzero = sum(int(each.count_nonzero()) for each in weights)
    assert csr["parameters"] == nonzero + 24 + 12 + 10
    assert csr["nonzero"] == dense["nonzero"]
    assert csr["MACs"] == 3 * nonzero
    model = load_slim(tmp_path / "out" / "model", trust=True)
    assert all(
        isinstance(each, CsrLinear) for name, each in model.named_children() if "lin" in name
    )


def test_a_fresh_process_makes_the_model_again(masked: Path, tmp_path: Path) -> None:
    done = slim_run(masked, out=tmp_path / "out")
    assert sorted(each.name for each in done.folder.iterdir()) == [
        "model.json",
        "model.safetensors",
        "slim.json",
    ]
    assert json.loads((done.folder / "slim.json").read_text()) == json.loads(
        json.dumps(done.report)
    )
    script = (
        "import sys, torch; from latewood.slim import load_slim; "
        "model = load_slim(sys.argv[1], trust=True); "
        "print(model(torch.ones(2, 1, 8, 8)).double().tolist())"
    )
    found = run(["-c", script, str(done.folder / "model")])
    assert found.returncode == 0, found.stderr
    full = models.mlp(in_features=64, hidden=(24, 12), num_classes=10).eval()
    full.load_state_dict(read_tensors(masked / "model.safetensors"))
    expected = full(torch.ones(2, 1, 8, 8)).double()
    torch.testing.assert_close(torch.tensor(json.loads(found.stdout)), expected.float())


def test_checkpoints_of_a_run_without_methods(plain: Path, tmp_path: Path) -> None:
    (plain / "summary.json").unlink()
    with pytest.raises(RequestError, match="expected a run that is finished"):
        slim_run(plain)
    for number, path in enumerate(
        (
            plain / "checkpoints" / "step-00000003",
            plain / "checkpoints" / "step-00000006" / "model.safetensors",
        )
    ):
        done = slim_run(path, mode="dense", out=tmp_path / str(number))
        again = load_slim(done.folder / "model", trust=True)
        stored = read_tensors(path if path.is_file() else path / "model.safetensors")
        assert all(torch.equal(again.state_dict()[name], each) for name, each in stored.items())


def test_what_is_no_finished_run_is_refused(masked: Path, plain: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        slim_run(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="in no run's folder"):
        slim_run(tmp_path / "empty")
    with pytest.raises(RequestError, match="holds no weights"):
        slim_run(plain / "checkpoints")
    shutil.copy(
        masked / "checkpoints" / "step-00000003" / "model.safetensors", masked / "other.safetensors"
    )
    with pytest.raises(RequestError, match="expected a checkpoint, since methods are finalized"):
        slim_run(masked / "other.safetensors")
    with pytest.raises(RequestError, match="auto, slim, csr, dense"):
        slim_run(plain, mode="masked")
    with pytest.raises(RequestError, match="batch"):
        slim_run(plain, batch=0)
    shutil.copy(masked / "model.safetensors", plain / "other.safetensors")
    slim_run(plain / "other.safetensors", mode="dense")


def test_nothing_is_overwritten_unasked(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("important")
    for overwrite in (False, True):
        with pytest.raises(RequestError, match="holds no slim model"):
            slim_run(plain, mode="dense", out=tmp_path / "mine", overwrite=overwrite)
    with pytest.raises(RequestError, match="is a file"):
        slim_run(plain, mode="dense", out=tmp_path / "mine" / "thesis.txt")
    slim_run(plain, mode="dense", out=tmp_path / "out")
    with pytest.raises(RequestError, match="--overwrite"):
        slim_run(plain, mode="dense", out=tmp_path / "out")
    assert (
        slim_run(plain, mode="slim", out=tmp_path / "out", overwrite=True).report["mode"] == "slim"
    )


def test_a_checkpoint_under_masks_is_finalized_in_a_copy(masked: Path, tmp_path: Path) -> None:
    before = {each: each.stat().st_mtime_ns for each in masked.rglob("*")}
    (masked / "summary.json").unlink()
    path = masked / "checkpoints" / "step-00000003"
    done = slim_run(path, mode="dense", out=tmp_path / "out")
    stored = read_tensors(path / "model.safetensors")
    again = load_slim(done.folder / "model", trust=True).state_dict()
    weight = "linear1.parametrizations.weight"
    assert again.keys() == models.mlp(**ARGUMENTS).state_dict().keys()
    kept = stored[f"{weight}.0.mask_logits"] > 0
    assert torch.equal(again["linear1.weight"] != 0, kept)
    assert not torch.equal(again["linear1.weight"], stored[f"{weight}.original"])
    assert {each: each.stat().st_mtime_ns for each in masked.rglob("*")}.items() <= before.items()
    (path / "state.json").write_text("{}")
    with pytest.raises(WorkError, match="corrupted"):
        slim_run(path, out=tmp_path / "other")


GROWING = """
task = "digits"
model = {name = "convnet", channels = [8, 8, 8]}
epochs = 3
batch_size = 256
optimizer = {name = "sgd", lr = 0.05}

[[methods]]
name = "structured_sparsification"
budget = {macs = 0.3}
"""

GROWING_KEPT = GROWING.replace(
    "epochs = 3", "epochs = 3\ncheckpoint_every = 6\nkeep_checkpoints = 9"
)
RECIPE_WITH_NORMS = (RECIPE + METHOD).replace(
    '{name = "mlp", hidden = [24, 12]}', '{name = "convnet", channels = [8, 8, 8]}'
)


def test_a_run_that_removed_channels_itself(tmp_path: Path) -> None:
    run = trained(tmp_path, GROWING)
    stored = read_tensors(run / "model.safetensors")
    made = models.convnet(channels=(8, 8, 8))
    assert any(stored[name].shape != each.shape for name, each in made.state_dict().items())
    done = slim_run(run, mode="slim")
    dense = column(done.rows, "dense")
    parameters = {name for name, _ in made.named_parameters()}
    assert dense["parameters"] == sum(t.numel() for n, t in stored.items() if n in parameters)
    again = load_slim(done.folder / "model", trust=True)
    own = repeat_edits(made, run / "edits")
    own.load_state_dict(stored)
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(again(images), own(images))
    with pytest.raises(WorkError, match="not the edits"):
        repeat_edits(models.convnet(), done.folder / "model")


@pytest.mark.parametrize("text", [RECIPE + METHOD, RECIPE_WITH_NORMS, GROWING_KEPT])
def test_the_last_checkpoint_gives_what_the_run_ended_with(tmp_path: Path, text: str) -> None:
    run = trained(tmp_path, text)
    last = sorted((run / "checkpoints").iterdir())[-1]
    model = open_run(last).model
    ended = read_tensors(run / "model.safetensors")
    assert model.state_dict().keys() == ended.keys()
    assert all(torch.equal(model.state_dict()[name], each) for name, each in ended.items())
    middle = sorted((run / "checkpoints").iterdir())[0]
    done = slim_run(middle, mode="slim", out=tmp_path / "out")
    again = load_slim(done.folder / "model", trust=True)
    assert again(torch.rand(2, 1, 8, 8)).isfinite().all()
