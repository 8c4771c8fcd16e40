"""A run that learned precisions becomes one packed file, through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from latewood.cli import main
from latewood.errors import RequestError
from latewood.precision import load_packed
from latewood.slim import export, save_slim
from latewood.studies.packable_models import packable
from latewood.training import open_run
from latewood.training.recipe import load_recipe
from latewood.training.run import train

RECIPE = """
task = "digits"
model = {name = "mlp", hidden = [24, 12]}
steps = 8
batch_size = 32
checkpoint_every = 4
optimizer = {name = "sgd", lr = 0.1}
"""
METHOD = """
[[methods]]
name = "learned_precision"
target_bits = 2.0
"""


def trained(folder: Path, text: str) -> Path:
    (folder / "small.toml").write_text(text)
    train(load_recipe(folder / "small.toml"), folder=folder / "small", show_progress=False)
    return folder / "small"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("precision"), RECIPE + METHOD)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def called(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([*map(str, words)])
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return called


def test_pack_writes_what_the_run_computes(
    run: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    path = tmp_path / "packed.safetensors"
    other = tmp_path / "network.onnx"
    header = tmp_path / "network.h"
    code, out, _ = call(
        *("pack", run, "--out", path, "--json"),
        *("--onnx", other, "--c", header, "--c-name", "digits"),
    )
    report = json.loads(out)
    assert report["C header file"] == str(header) and "int digits_run(" in header.read_text()
    assert f"flash: {report['C flash bytes']:.0f} bytes" in header.read_text()
    assert report["ONNX file"] == str(other)
    assert report["ONNX file bytes"] == other.stat().st_size > 1000
    assert code == 0 and report["file"] == str(path)
    assert len(report["layers"]) == 3 and report["packed file bytes"] == path.stat().st_size
    opened = open_run(run)
    (inputs,) = opened.task.example_inputs
    with torch.no_grad():
        expected = opened.model(inputs)
    assert torch.allclose(load_packed(path).run(inputs), expected, atol=1e-4)
    code, out, _ = call("bench-packed", path, "--shape", *inputs.shape, "--seconds", 0.01)
    assert code == 0 and "packed" in out


def test_bad_requests_are_one_line(
    run: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"something else")
    for words, code, message in (
        (("pack", run, "--out", path), 2, "which exists"),
        (("pack", run, "--out", tmp_path / "no" / "x"), 2, "--out"),
        (("pack", run, "--onnx", tmp_path / "no" / "x"), 2, "--onnx: got"),
        (("pack", run, "--out", tmp_path / "new", "--onnx", path), 2, "--onnx: got"),
        (("pack", run, "--onnx-form", "int3"), 2, "int3"),
        (("pack", run, "--c", tmp_path / "no" / "x"), 2, "--c: got"),
        (("pack", tmp_path), 2, "run: got"),
        (("bench-packed", path, "--shape", 1, 64), 1, "not a readable safetensors file"),
        (("bench-packed", tmp_path / "y", "--shape", 1, 64), 2, "path: got"),
        (("bench-packed", path, "--shape", 0, 64), 2, "--shape: got"),
        (("bench-packed", path, "--shape", 1, 64, "--seconds", "nan"), 2, "--seconds: got"),
    ):
        ended, _, error = call(*words)
        assert (ended, len(error.splitlines())) == (code, 1)
        assert message in error
    assert path.read_bytes() == b"something else"


def test_a_run_without_formats_is_refused(
    tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    plain = trained(tmp_path, RECIPE)
    code, _, error = call("pack", plain)
    assert code == 2 and "a layer that can be packed" in error
    assert not list(tmp_path.glob("*.safetensors"))


def test_what_slim_wrote_is_packed(
    run: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    slim, path = tmp_path / "slim", tmp_path / "packed.safetensors"
    code, _, error = call("slim", run, "--out", slim, "--mode", "slim")
    assert code == 0, error
    code, out, error = call("pack", slim, "--out", path, "--json")
    assert code == 0, error
    assert len(json.loads(out)["layers"]) == 3
    opened = open_run(run)
    (inputs,) = opened.task.example_inputs
    with torch.no_grad():
        expected = opened.model(inputs)
    assert torch.allclose(load_packed(path).run(inputs), expected, atol=1e-4)
    code, _, error = call("pack", slim / "model.safetensors", "--out", path, "--overwrite")
    assert code == 0, error
    # A factory of others is neither imported nor called.
    text = (slim / "model.json").read_text()
    assert text.count("latewood.models:mlp") == 1
    (slim / "model.json").write_text(text.replace("latewood.models:mlp", "os:system"))
    code, _, error = call("pack", slim, "--out", path, "--overwrite")
    assert code == 1 and "does not belong" in error
    (slim / "model.json").unlink()
    code, _, error = call("pack", slim, "--out", path, "--overwrite")
    assert code == 1 and "model.json" in error


def test_a_slim_model_of_others_needs_trust(tmp_path: Path) -> None:
    layer = nn.Linear(4, 2)
    model = export(nn.Sequential(layer, nn.ReLU()), torch.randn(3, 4), mode="slim")[0]
    save_slim(model, tmp_path / "model", factory="os:system")
    with pytest.raises(RequestError, match="trust=True to import and call 'os:system'"):
        packable(tmp_path / "model.json")
