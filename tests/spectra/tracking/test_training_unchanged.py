"""A probe in a real training leaves every weight, metric and checkpoint bitwise as without it."""

import pytest
from safetensors.torch import load_file

from latewood.spectra import agreement_over_time, snapshot_paths
from latewood.training import checkpoints, train
from latewood.training.recipe import load_recipe
from latewood.training.run_folder import RunFolder

RECIPE = """
steps = 26
batch_size = 128
log_every = 5
device = "cpu"
task = "digits"
model = "convnet"
checkpoint_every = 26

[optimizer]
name = "adamw"
lr = 0.01

[[methods]]
name = "continuous_sparsification"
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    def start(every, *lines):
        folder = tmp_path_factory.mktemp("run")
        probes = ["[[probes]]", 'name = "spectral"', f"every = {every}", *lines, ""]
        probes = "\n".join(probes) if every else ""
        recipe = folder / "recipe.toml"
        recipe.write_text(RECIPE + probes, encoding="utf-8")
        return train(load_recipe(recipe), folder=folder / "run", show_progress=False).folder

    return start


@pytest.fixture(scope="module")
def without(run):
    return run(None)


def tensors(folder):
    """All weights and all optimizer and generator state, as bytes."""
    return {
        (path.relative_to(folder.path), name): (tensor.dtype, tensor.numpy().tobytes())
        for path in (folder.model_path, *folder.checkpoints.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def rows(folder):
    return [
        {key: value for key, value in row.items() if key != "seconds"}
        for row in folder.read_metrics()
        if row["kind"] != "probe"
    ]


@pytest.mark.filterwarnings("ignore:.*are undecided:UserWarning")
@pytest.mark.parametrize(
    ("every", "lines"),
    [
        ("3", ["worker = false"]),
        ("3", ["worker = true", 'pairs = "auto"', "full_every = 2"]),
        ('"epoch"', []),
        ('"auto"', ["worker = true"]),
    ],
)
def test_training_is_bitwise_the_same(run, without, every, lines):
    probed = run(every, *lines)
    assert len({path for path, _ in tensors(probed)}) == 3
    assert tensors(probed) == tensors(without)
    assert repr(rows(probed)) == repr(rows(without))
    steps = list(snapshot_paths(probed.spectra_folder))
    seen = [row["step"] for row in probed.read_metrics() if row["kind"] == "probe"]
    assert seen == steps
    assert steps[0] == 0
    if every == "3":
        assert steps == list(range(0, 26, 3))
    if every == '"epoch"':
        assert steps == [0, 10, 20]
    if every == '"auto"':
        assert steps[-1] == 26
    found = agreement_over_time(probed.spectra_folder)
    assert all(score[-1] > 0.99 for score in found.scores.values())


@pytest.mark.filterwarnings("ignore:.*are undecided:UserWarning")
def test_a_checkpoint_leaves_no_look_behind(tmp_path, monkeypatch):
    """A killed run resumes from it and never looks at the steps before it again."""
    saved = checkpoints.save
    covered = {}

    def save(folder, step, *args, **options):
        run = RunFolder(folder.parent)
        rows = [row["step"] for row in run.read_metrics() if row["kind"] == "probe"]
        covered[step] = (list(snapshot_paths(run.spectra_folder)), rows)
        return saved(folder, step, *args, **options)

    monkeypatch.setattr(checkpoints, "save", save)
    text = RECIPE.replace("checkpoint_every = 26", "checkpoint_every = 10")
    probe = '[[probes]]\nname = "spectral"\nevery = 2\nworker = true\nqueue = 3\n'
    (tmp_path / "recipe.toml").write_text(text + probe, encoding="utf-8")
    train(load_recipe(tmp_path / "recipe.toml"), folder=tmp_path / "run", show_progress=False)
    assert list(covered) == [10, 20, 26]
    for step, (looks, rows) in covered.items():
        assert looks == rows == list(range(0, step + 1, 2))
