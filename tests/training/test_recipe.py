"""Recipes: reading, overriding, refusing, and writing what reads back as the same recipe."""

import math
import tomllib

import pytest

from latewood.errors import RequestError
from latewood.training.recipe import Recipe, environment, load_recipe, parse_recipe

BASE = {"task": "digits", "epochs": 2}
TEXT = """
task = "digits"
epochs = 2
[optimizer]
name = "sgd"
lr = 0.1
[[methods]]
name = "continuous_sparsification"
final_temperature = 200
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(TEXT)
    return path


def refused(**changes):
    document = {key: value for key, value in {**BASE, **changes}.items() if value is not None}
    with pytest.raises(RequestError) as caught:
        parse_recipe(document)
    return str(caught.value)


def test_a_bare_name_is_a_section_without_arguments():
    recipe = parse_recipe({**BASE, "methods": ["continuous_sparsification"]})
    assert recipe.task == {"name": "digits"}
    assert recipe.methods == [{"name": "continuous_sparsification"}]


@pytest.mark.parametrize(
    "override, read",
    [
        ("seed=7", lambda r: r.seed == 7),
        ("optimizer.lr=0.5", lambda r: r.optimizer["lr"] == 0.5),
        ("methods.0.final_temperature=20", lambda r: r.methods[0]["final_temperature"] == 20),
        ("methods[0].final_temperature=20", lambda r: r.methods[0]["final_temperature"] == 20),
        ("methods[1]=continuous_sparsification", lambda r: len(r.methods) == 2),
        ("probes[0].name=spectral", lambda r: r.probes == [{"name": "spectral", "every": 3}]),
        (
            "task.label_smoothing=0.1",
            lambda r: r.task == {"name": "digits", "label_smoothing": 0.1},
        ),
        ("model=mlp", lambda r: r.model == {"name": "mlp"}),
        ('model="mlp"', lambda r: r.model == {"name": "mlp"}),
        ("methods=[]", lambda r: r.methods == []),
        ("steps=30", lambda r: r.steps == 30 and r.epochs is None),
        ("schedule.warmup=0.1", lambda r: r.schedule == {"name": "cosine", "warmup": 0.1}),
        ("clip_norm = 1.5", lambda r: r.clip_norm == 1.5),
    ],
)
def test_an_override_takes_the_place_of_what_the_file_says(path, override, read):
    more = ["probes[0].every=3"] if "probes" in override else []
    more += ["schedule.name=cosine"] if "schedule" in override else []
    assert read(load_recipe(path, [*more, override]))


@pytest.mark.parametrize(
    "override", ["seed", "=3", "methods.x.name=3", "epochs.a=1", "methods.5=a"]
)
def test_an_override_that_names_nothing_is_refused(path, override):
    with pytest.raises(RequestError, match=r"^--set: got"):
        load_recipe(path, [override])


@pytest.mark.parametrize(
    "changes, start, words",
    [
        ({"epoch": 3}, "epoch: got 3", "did you mean 'epochs'?"),
        ({"epochs": "x"}, "epochs: got 'x'", "an integer"),
        ({"epochs": 0}, "epochs: got 0", "greater than 0"),
        ({"batch_size": 1.5}, "batch_size: got 1.5", "an integer"),
        ({"batch_size": [[1, 8], [2]]}, "batch_size: got [[1, 8], [2]]", "[epochs, samples]"),
        ({"batch_size": [[1, 0]]}, "batch_size: got [[1, 0]]", "greater than 0"),
        ({"batch_size": []}, "batch_size: got []", "[epochs, samples]"),
        ({"batch_size": True}, "batch_size: got True", "an integer"),
        ({"drop_last": "yes"}, "drop_last: got 'yes'", "true or false"),
        ({"task": None}, "task: missing", "a name"),
        ({"task": 3}, "task: got 3", "a name, or a table with a name"),
        ({"task": {"nam": "digits"}}, "task.name: missing", "name of a component"),
        ({"task": "digit"}, "task.name: got 'digit'", "did you mean 'digits'?"),
        ({"methods": [3]}, "methods[0]: got 3", "a name"),
        ({"methods": "x"}, "methods: got 'x'", "a list"),
        ({"device": "gpu"}, "device: got 'gpu'", "'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'"),
        ({"trackers": ["tensorbord"]}, "trackers[0]: got 'tensorbord'", "'tensorboard'"),
        ({"seed": -1}, "seed: got -1", "greater than or equal to 0"),
        ({"schedule": {"name": "cosine", "per": "day"}}, "schedule.per: got 'day'", "'epoch'"),
        ({"schedule": {"name": "cosine", "warmup": 1}}, "schedule.warmup: got 1", "[0, 1)"),
        ({"schedule": {"name": "cosine", "floor": 1}}, "schedule.floor: got 1", "start, end"),
        ({"optimizer": {"name": "sgd", "lr": "x"}}, "optimizer.lr: got 'x'", "a number"),
        ({"optimizer": {"name": "sgd", "lr": math.nan}}, "optimizer.lr: got nan", "a number"),
    ],
)
def test_a_wrong_key_or_value_is_refused_with_its_path(changes, start, words):
    message = refused(**changes)
    assert message.startswith(start)
    assert words in message


def test_the_path_of_a_methods_argument_is_that_of_the_recipe():
    method = {"name": "continuous_sparsification", "final_temperature": "x"}
    message = refused(methods=[method])
    assert message == "methods[0].final_temperature: got 'x'; expected a number"


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"steps": 3}, "epochs, steps: got both"),
        ({"epochs": None}, "epochs, steps: got neither"),
        ({"precision": "fp16", "device": "cpu"}, "precision: got 'fp16' with device 'cpu'"),
        ({"batch_size": [[1, 8], [3, 4]]}, "batch_size: got sizes of 4 epochs for a run of "),
        ({"trackers": ["wandb", "wandb"]}, "trackers: "),
        ({"methods": ["continuous_sparsification"] * 2}, "methods[1]: "),
    ],
)
def test_impossible_combinations_are_refused(changes, words):
    assert refused(**changes).startswith(words)


def test_several_errors_are_all_reported():
    assert len(refused(epochs="x", batch_size="y").splitlines()) == 2


def test_a_missing_or_broken_file_is_a_wrong_request(tmp_path):
    with pytest.raises(RequestError, match="cannot be read"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("task = ")
    with pytest.raises(RequestError, match="is not valid TOML"):
        load_recipe(tmp_path / "broken.toml")


def test_a_written_recipe_reads_back_the_same_and_its_environment_is_ignored(path, tmp_path):
    recipe = load_recipe(path, ["seed=3", "methods[0].include=['conv*']", "clip_norm=1e-8"])
    written = tmp_path / "run" / "recipe.toml"
    written.parent.mkdir()
    written.write_text(recipe.to_toml(**environment(recipe, device="cpu")))
    again = load_recipe(written)
    assert again.model_dump() == recipe.model_dump()
    recorded = tomllib.loads(written.read_text())["environment"]
    assert {"python", "torch", "latewood", "seed", "platform", "device"} <= set(recorded)
    assert recorded["seed"] == 3


def test_modules_are_found_beside_the_recipe_also_from_a_run_folder(tmp_path):
    home, run = tmp_path / "home", tmp_path / "run"
    home.mkdir()
    run.mkdir()
    (home / "beside_the_recipe.py").write_text("def make(*, width: int):\n    return width\n")
    (home / "recipe.toml").write_text(
        'task = "digits"\nepochs = 1\n[model]\nname = "beside_the_recipe:make"\nwidth = 3\n'
    )
    recipe = load_recipe(home / "recipe.toml")
    (run / "recipe.toml").write_text(recipe.to_toml(**environment(recipe)))
    with pytest.raises(RequestError, match="--trust"):
        load_recipe(run / "recipe.toml")
    again = load_recipe(run / "recipe.toml", trust=True)
    assert again.folders[0] == home


def test_a_recipe_is_checked_without_importing_torch():
    import subprocess
    import sys

    code = (
        "import sys\n"
        "from latewood.training import parse_recipe\n"
        "try: parse_recipe({'task': 'digits', 'epoch': 1})\n"
        "except ValueError: pass\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_defaults_are_what_the_documentation_says():
    recipe = Recipe.model_validate(BASE)
    assert (recipe.batch_size, recipe.seed, recipe.keep_checkpoints) == (128, 0, 2)
