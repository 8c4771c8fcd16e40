"""Every command that takes a run, on runs whose network shrank while it was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from latewood import models
from latewood.cli import main
from latewood.core import read_tensors
from latewood.training import checkpoints, load_recipe, open_run, train

CHANNELS = [8, 8, 8]
GROWING, FIXED, LAST = 10, 30, 40
"""Steps: five an epoch, and the shapes are fixed from the middle on."""
DIGITS = """
task = "digits"
model = {name = "convnet", channels = [8, 8, 8]}
epochs = 8
batch_size = 256
recalibration_batches = 2
optimizer = {name = "sgd", lr = 0.1, momentum = 0.9}
keep_at = [10, 30]
device = "cpu"

[[methods]]
name = "structured_sparsification"
budget = {macs = 0.3}

[[probes]]
name = "spectral"
every = 20
worker = false
"""
FOREGROUND = """
task = {name = "foreground", folder = "FOLDER", size = 16, preset = "fast"}
model = {name = "segmentation_unet", channels = [4, 8]}
epochs = 4
batch_size = 4
optimizer = {name = "adam", lr = 0.01}
device = "cpu"

[[methods]]
name = "structured_sparsification"
budget = {macs = 0.5}
"""


def trained(folder: Path, text: str, *changes: str) -> Path:
    folder.mkdir()
    (folder / "recipe.toml").write_text(text)
    train(load_recipe(folder / "recipe.toml", changes), folder=folder / "run", show_progress=False)
    return folder / "run"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("shrunk")
    return folder


@pytest.fixture(scope="module")
def digits(home: Path) -> Path:
    run = trained(home / "digits", DIGITS)
    full = models.convnet(channels=CHANNELS).state_dict()
    stored = read_tensors(run)
    assert any(stored[name].shape != tensor.shape for name, tensor in full.items())
    return run


@pytest.fixture(scope="module")
def foreground(home: Path) -> tuple[Path, Path]:
    """A run of a segmentation network, whose images are gone since, and a new image."""
    images = home / "images"
    images.mkdir()
    generator = torch.Generator().manual_seed(0)
    y, x = torch.arange(40)[:, None], torch.arange(40)
    for number in range(9):
        disc = (y - 20) ** 2 + (x - 18 - number % 5) ** 2 <= 11**2
        image = torch.where(disc, torch.tensor([0.8, 0.5, 0.2])[:, None, None], 0.25)
        image = (image + 0.03 * torch.randn(3, 40, 40, generator=generator)).clamp(0, 1)
        pixels = (image * 255).to(torch.uint8).movedim(0, -1).numpy()
        Image.fromarray(pixels).save(images / f"image{number}.png")
    run = trained(home / "foreground", FOREGROUND.replace("FOLDER", str(images)))
    full = models.segmentation_unet(in_channels=3, channels=(4, 8)).state_dict()
    stored = read_tensors(run)
    assert any(stored[name].shape != tensor.shape for name, tensor in full.items())
    new = home / "new.png"
    shutil.move(images / "image0.png", new)
    shutil.rmtree(images)
    return run, new


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]):
    def start(*words: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out + shown.err

    return start


def step(run: Path, number: int) -> Path:
    return run / "checkpoints" / f"step-{number:08d}"


@pytest.mark.parametrize("form", ["slim", "dense"])
def test_slim(digits: Path, call, tmp_path: Path, form: str) -> None:
    for number, path in enumerate((digits, step(digits, GROWING), step(digits, LAST))):
        code, shown = call("slim", path, "--mode", form, "--out", tmp_path / str(number))
        assert code == 0, shown
    ended, last = (
        json.loads((tmp_path / name / "slim.json").read_text())["table"] for name in "02"
    )
    assert ended[0] == last[0] and ended[0]["measure"] == "parameters"


def test_slim_names_a_folder_that_cannot_be_made(digits: Path, call, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, shown = call("slim", digits, "--mode", "dense", "--out", tmp_path / "file" / "slim")
    assert code == 1 and "slim: cannot be written (Not a directory)" in shown


def test_inspect(digits: Path, call) -> None:
    code, shown = call("inspect", digits, step(digits, GROWING))
    assert code == 0, shown
    assert "conv1.weight" in shown


def test_inspect_of_a_killed_run_reads_its_last_checkpoint(
    digits: Path, call, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    shutil.copytree(digits, killed)
    for name in ("summary.json", "model.safetensors"):
        (killed / name).unlink()
    code, shown = call("inspect", killed)
    assert code == 0, shown
    last = call("inspect", step(killed, LAST))[1]
    assert shown.splitlines()[1:] == last.splitlines()[1:]


def test_inspect_of_a_slim_model_shows_its_weights_and_nothing_else(
    digits: Path, call, tmp_path: Path
) -> None:
    code, shown = call("slim", digits, "--mode", "dense", "--out", tmp_path / "slim")
    assert code == 0, shown
    code, shown = call("inspect", tmp_path / "slim")
    assert code == 0, shown
    assert sorted(shown.splitlines()[2:]) == sorted(call("inspect", digits)[1].splitlines()[2:])


@pytest.mark.parametrize("within", [".", "model.safetensors"])
def test_inspect_refuses_a_checkpoint_with_a_changed_byte(
    digits: Path, call, tmp_path: Path, within: str
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(digits, damaged)
    weights = step(damaged, GROWING) / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    code, shown = call("inspect", step(damaged, GROWING) / within)
    assert code == 1 and "model.safetensors is corrupted" in shown


def test_spectra(digits: Path, call, tmp_path: Path) -> None:
    table = tmp_path / "agreement.json"
    words = ("--reference", "final", "--out", tmp_path / "a.html", "--table", table)
    code, shown = call("spectra", digits, *words)
    assert code == 0, shown
    first = [row for row in json.loads(table.read_text()) if row["step"] == 0]
    # Of another shape than at the end, there is nothing to compare.
    assert first and all(row["agreement"] is None for row in first)


def test_report(digits: Path, call, tmp_path: Path) -> None:
    code, shown = call("report", digits, "--out", tmp_path / "report.html")
    assert code == 0, shown
    assert "structured_sparsification" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_connect_with_itself(digits: Path, call, tmp_path: Path) -> None:
    table = tmp_path / "line.json"
    words = ("--points", 3, "--samples", 100, "--permute", "--truncate", 0.5)
    code, shown = call("connect", digits, digits, *words, "--table", table)
    assert code == 0, shown
    rows = json.loads(table.read_text(encoding="utf-8"))
    heights = [r["value"] for r in rows if r["kind"] == "barrier" and r["spectra"] == "whole"]
    assert heights and max(heights) == pytest.approx(0.0, abs=1e-5)
    # As trained, under the method: nothing but the network itself, where it is in between.
    for checkpoint in (step(digits, GROWING), step(digits, LAST)):
        code, shown = call("connect", checkpoint, checkpoint, "--points", 2, "--samples", 100)
        assert code == 0, shown


def test_connect_scores_the_networks_at_the_ends(digits: Path, call, tmp_path: Path) -> None:
    table = tmp_path / "line.json"
    code, shown = call("connect", digits, digits, "--points", 2, "--table", table)
    assert code == 0, shown
    rows = json.loads(table.read_text(encoding="utf-8"))
    (error,) = [
        row["value"]
        for row in rows
        if (row["kind"], row["name"], row["alpha"]) == ("score", "validation error", 0.0)
    ]
    accuracy = json.loads((digits / "summary.json").read_text())["evaluations"]["recalibrated"]
    assert 1 - error == pytest.approx(accuracy["accuracy"])


def test_connect_of_two_shapes_is_refused(digits: Path, home: Path, call) -> None:
    other = trained(home / "smaller", DIGITS, "methods.0.budget.macs=0.1", "epochs=5", "keep_at=[]")
    shapes = [tuple(read_tensors(run)["conv2.weight"].shape) for run in (digits, other)]
    assert shapes[0] != shapes[1]
    code, shown = call("connect", digits, other)
    assert code == 2 and len(shown.splitlines()) == 1
    assert f"conv2.weight has shape {shapes[1]}, that of the first {shapes[0]}" in shown
    assert "no line connects them" in shown and str(digits) in shown and str(other) in shown
    code, shown = call("connect", step(digits, GROWING), digits)
    assert code == 2 and "no line connects them" in shown


def test_branch_and_connect_the_branches(digits: Path, call) -> None:
    code, shown = call("branch", digits, "--at", FIXED, "--seeds", 1, 2)
    assert code == 0, shown
    folder = digits / "branches" / f"step-{FIXED}"
    shapes = [
        {name: tensor.shape for name, tensor in read_tensors(folder / f"order-{seed}").items()}
        for seed in (1, 2)
    ]
    assert shapes[0] == shapes[1] == {n: t.shape for n, t in read_tensors(digits).items()}
    ends = (folder / "order-1", folder / "order-2")
    code, shown = call("connect", *ends, "--points", 3, "--samples", 100)
    assert code == 0, shown


@pytest.mark.parametrize("number", [GROWING, FIXED])
def test_branch_with_a_perturbation(digits: Path, call, tmp_path: Path, number: int) -> None:
    words = ("--at", number, "--seeds", 3, "--perturb", 0.1, "--out", tmp_path / "branches")
    code, shown = call("branch", digits, *words)
    if number == GROWING:  # still under the method's factors
        assert code == 2 and "transformation" in shown
        return
    assert code == 0, shown
    start = checkpoints.at_step(tmp_path / "branches" / "order-3" / "checkpoints", number)
    before = checkpoints.at_step(digits / "checkpoints", number).model_state()
    after = start.model_state()
    assert {n: t.shape for n, t in before.items()} == {n: t.shape for n, t in after.items()}
    assert not torch.equal(before["conv2.weight"], after["conv2.weight"])


def test_segment(foreground: tuple[Path, Path], call, tmp_path: Path) -> None:
    run, image = foreground
    code, shown = call("segment", image, "--network", run, "--out", tmp_path / "masks")
    assert code == 0, shown
    assert "masks: 1" in shown
    with Image.open(tmp_path / "masks" / "new.png") as mask:
        assert mask.size == (40, 40)


def test_the_model_is_the_one_the_run_ended_with(digits: Path) -> None:
    stored = read_tensors(digits)
    for path in (digits, digits / "model.safetensors", step(digits, LAST)):
        model = open_run(path).model
        assert model.state_dict().keys() == stored.keys()
        assert all(torch.equal(model.state_dict()[name], stored[name]) for name in stored)
