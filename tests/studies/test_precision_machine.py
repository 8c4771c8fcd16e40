"""Exploring and simulating from the command line: runs, models and files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from latewood.cli import main
from latewood.errors import RequestError, WorkError
from latewood.precision import pack
from latewood.precision.simd import replay
from latewood.studies.machine_simulation import read_layer_file, simulate_layer
from latewood.studies.pattern_exploration import constants_from, counted_network, shares_from
from latewood.training import open_run

LAYERS = [
    {"name": "first", "counts": [18, 36, 90], "outputs": 16, "positions": 64},
    {"name": "second", "counts": [4, 20, 40], "outputs": 10},
]


def called(capsys, *words):
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    printed = capsys.readouterr()
    return left.value.code, printed.out, printed.err


@pytest.fixture
def layer_file(tmp_path):
    generator = np.random.default_rng(0)
    bits = np.array([4, 2, 1, 1], dtype=np.uint8)
    codes = generator.integers(0, 1 << bits[:, None, None].astype(int), size=(3, 4, 3, 3))
    mask = generator.integers(0, 2, size=codes.shape)
    tensors = {"weight_codes": codes.astype(np.uint8), "bits": bits, "mask": mask.astype(np.uint8)}
    path = tmp_path / "layer.safetensors"
    save_file(tensors, path, metadata={"padding": "1", "stride": "[2, 1]", "signed": "false"})
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    shorter = ("epochs=1", "model.channels=[8,8,8]", "methods.0.target_bits=1.5")
    with pytest.raises(SystemExit) as left:
        main(["train", "digits-learned-precision", "--out", str(folder), "--set", *shorter])
    assert left.value.code == 0
    return folder


def test_explore_a_file(capsys, tmp_path):
    path = tmp_path / "layers.json"
    path.write_text(json.dumps(LAYERS))
    page, table = tmp_path / "page.html", tmp_path / "table.json"
    code, out, _ = called(capsys, "explore", path, "--size", 2, "--page", page, "--table", table)
    assert code == 0
    assert out.startswith("990 sets of 2 tried, 36 of them without slots wide enough; ")
    assert "all 45 patterns" in out
    chosen = json.loads(out.splitlines()[-1].removeprefix("patterns = "))
    assert len(chosen) == 2 and all(sum(pattern) == 8 for pattern in chosen)
    assert json.loads(table.read_text())[0]["vectors"] > 0
    assert "Promoted weights" in page.read_text()


def test_explore_a_model(capsys):
    shares = "4:0.125,2:0.25,1:0.625"
    words = ("explore", "convnet", "--bits", shares, "--shape", "1x8x8", "--size", 1)
    code, out, _ = called(capsys, *words)
    assert code == 0 and f"bits: given shares ({shares}), not learned ones" in out
    model = counted_network("convnet", shares=shares_from(shares), shape=(1, 8, 8))
    assert model.layers[0].counts == (36, 72, 180)
    assert set(model.left_out) == {"conv1", "head"}


@pytest.mark.filterwarnings("ignore")
def test_a_run_is_explored_and_simulated(capsys, run, tmp_path):
    code, out, _ = called(capsys, "explore", run, "--size", 1)
    assert code == 0 and "conv1" in out.partition("Left out")[2]
    trace = tmp_path / "trace.txt"
    code, out, _ = called(capsys, "simulate", run, "--trace", trace, "--outputs", 2, "--image", 4)
    assert code == 0 and "32 accumulators, all equal to plain sums" in out
    assert replay(trace) == int(out.rpartition("(")[2].split()[0].replace(",", ""))
    opened = open_run(run)
    path = tmp_path / "network.safetensors"
    pack(opened.model, opened.task.example_inputs).save(path)
    code, out, _ = called(capsys, "simulate", path, "--layer", "conv3")
    assert code == 0 and out.startswith("conv3") and "all equal to plain sums" in out
    code, _, error = called(capsys, "simulate", path, "--layer", "nothing")
    assert code == 2 and "expected one of conv2" in error
    code, _, error = called(capsys, "simulate", run, "--layer", "nothing")
    assert code == 2 and "expected one of conv2, conv3" in error


def test_simulate_a_file(capsys, layer_file):
    code, out, _ = called(capsys, "simulate", layer_file)
    assert code == 0 and "mp.vmacm" in out
    layer, inputs = read_layer_file(layer_file)
    assert (layer.stride, layer.padding, layer.signed) == ((2, 1), (1, 1), False)
    assert inputs.shape == (1, 4, 7, 7)
    done = simulate_layer(layer_file, outputs=0, image=0)
    assert done.checked == 3 * 4 * 7
    few = simulate_layer(layer_file, outputs=1, image=3, patterns=[0, 8, 44])
    assert few.checked == 2 * 3


def test_constants():
    constants = constants_from(["mac_rate=2", "tile_outputs=8"])
    assert (constants.mac_rate, constants.tile_outputs) == (2.0, 8)
    assert constants_from([]).mac_rate == 1.0


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda p: constants_from(["mac_rat=2"]), RequestError, "did you mean 'mac_rate'"),
        (lambda p: constants_from(["mac_rate=x"]), RequestError, "mac_rate=a number"),
        (lambda p: constants_from(["mac_rate=0"]), RequestError, "mac_rate: got 0.0"),
        (lambda p: shares_from("4:0.5"), RequestError, "add up to 1"),
        (lambda p: shares_from("3:1"), RequestError, "add up to 1"),
        (lambda p: shares_from("4:nan"), RequestError, "add up to 1"),
        (lambda p: shares_from("4"), RequestError, "--bits: got '4'"),
        (
            lambda p: counted_network("resnet21", shares=None, shape=(3,)),
            RequestError,
            "did you mean 'resnet",
        ),
        (
            lambda p: counted_network("convnet", shares={1: 1.0}, shape=(3, 8, 8)),
            RequestError,
            "convnet cannot compute inputs",
        ),
        (lambda p: counted_network(str(p), shares={1: 1.0}, shape=(3,)), RequestError, "--bits"),
        (lambda p: simulate_layer(p / "no.safetensors"), RequestError, "an existing safetensors"),
        (lambda p: simulate_layer(p / "no.safetensors", outputs=-1), RequestError, "--outputs"),
    ],
)
def test_bad_requests(call, error, named, tmp_path):
    with pytest.raises(error, match=named):
        call(tmp_path)


def test_damaged_files(tmp_path):
    path = tmp_path / "layer.safetensors"
    path.write_bytes(b"\x08\0\0\0\0\0\0\0{}      "[:9])
    with pytest.raises(WorkError, match="not a readable file of a layer"):
        read_layer_file(path)
    save_file({"bits": np.zeros(3, dtype=np.uint8)}, path)
    with pytest.raises(RequestError, match="tensors weight_codes in the file"):
        read_layer_file(path)
    codes = np.zeros((2, 3), dtype=np.uint8)
    save_file({"bits": np.ones(3, dtype=np.uint8), "weight_codes": codes}, path, {"stride": "["})
    with pytest.raises(WorkError, match="not a readable file of a layer"):
        read_layer_file(path)
