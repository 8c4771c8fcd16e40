"""Whole packed networks: what they compute, how large their files are, and damaged files."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_networks import finished, small_network
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from warm_python import run

from latewood.errors import RequestError, WorkError
from latewood.precision import PackedLinear, PackedModel, load_packed, pack, packed_file
from latewood.precision.packed_graph import NetworkGraph

INPUTS = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def packed() -> PackedModel:
    return pack(small_network(), INPUTS)


def test_the_packed_network_computes_the_same(packed: PackedModel) -> None:
    expected = small_network()(INPUTS)
    assert torch.allclose(packed.run(INPUTS), expected, atol=1e-5)
    assert packed.difference is not None and packed.difference < 1e-5
    assert torch.allclose(packed.run(INPUTS[:1]), expected[:1], atol=1e-5)
    assert sorted(packed.layers) == ["1+batch_norm", "4", "7"]
    assert [(layer.name, layer.weights) for layer in packed.left] == [("0", 6 * 27)]


def test_the_model_stays_as_it_was() -> None:
    network = small_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    pack(network, INPUTS)
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_file_holds_the_network_without_its_code(packed: PackedModel, tmp_path: Path) -> None:
    path = tmp_path / "packed.safetensors"
    packed.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    loaded = load_packed(path)
    assert torch.equal(loaded.run(INPUTS), packed.run(INPUTS))
    assert loaded.left == packed.left
    program = (
        "import torch; from latewood.precision import load_packed;"
        f"print(load_packed({str(path)!r}).run(torch.ones(1, 3, 8, 8)).tolist())"
    )
    done = run(["-c", program], env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == packed.run(torch.ones(1, 3, 8, 8)).tolist()


def test_the_file_is_hardly_larger_than_its_bits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bits = torch.tensor([1, 1, 2, 4])[torch.randint(4, (256,))]
    blocks = [finished(nn.Linear(256, 256), bits, input_bits=bits) for _ in range(8)]
    network = nn.Sequential(*blocks)
    packed = pack(network, torch.randn(2, 256))
    packed.save(tmp_path / "x.safetensors")
    floats = 4 * sum(layer.weight_scale.numel() + 256 + 1 for layer in packed.layers.values())
    assert (tmp_path / "x.safetensors").stat().st_size <= 1.02 * (packed.stored_bits / 8 + floats)


def test_truncation_makes_another_network(packed: PackedModel) -> None:
    before = packed.run(INPUTS)
    lower = packed.truncate(1)
    assert all(int(layer.weight_bits.max()) == 1 for layer in lower.layers.values())
    assert lower.stored_bits < packed.stored_bits
    assert torch.equal(packed.run(INPUTS), before)
    assert torch.equal(packed.truncate(8).run(INPUTS), before)
    with pytest.raises(RequestError, match="bits: got 9"):
        packed.truncate(9)


def written(packed: PackedModel, path: Path) -> bytes:
    packed.save(path)
    return path.read_bytes()


def test_damaged_files_are_refused_by_name(packed: PackedModel, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    content = written(packed, path)
    for cut in (0, 5, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(WorkError, match=r"x\.safetensors"):
            load_packed(path)
    for place in range(len(content) - 400, len(content), 57):
        changed = bytearray(content)
        changed[place] ^= 4
        path.write_bytes(bytes(changed))
        with pytest.raises(WorkError, match="changed"):
            load_packed(path)


def test_files_of_others_and_of_later_versions(packed: PackedModel, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(RequestError, match="path: "):
        load_packed(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(WorkError, match="not a packed network"):
        load_packed(path)
    written(packed, path)
    with safe_open(path, framework="pt") as file:
        parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        marks = file.metadata()
    save_file(parts, path, metadata={**marks, "format": "latewood packed 3"})
    with pytest.raises(RequestError, match="got format 3"):
        load_packed(path)


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the description of a packed file and gives it a digest that fits."""
    with safe_open(path, framework="pt") as file:
        parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        marks = file.metadata()
    description = json.loads(zlib.decompress(parts["description"].numpy().tobytes()))
    change(description)
    text = zlib.compress(json.dumps(description).encode())
    parts["description"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    save_file(parts, path, metadata={**marks, "sha256": packed_file._digest(parts)})


def node(place: int, *parts: Any) -> Callable[[dict[str, Any]], object]:
    return lambda description: description["nodes"].__setitem__(place, list(parts))


def layer(place: int, part: int, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda description: description["layers"][place].__setitem__(part, value)


EVIL = "self=__import__('pathlib').Path('ran').touch(), q"
NONSENSE: dict[str, Callable[[dict[str, Any]], object]] = {
    "code for a name": node(5, "call", "aten.relu.default", [], {EVIL: None}),
    "a keyword for a name": node(5, "call", "aten.relu.default", [{"node": 4}], {"if": 1}),
    "a file": node(5, "call", "aten.from_file.default", ["ran", True, 4], {}),
    "a resize": node(5, "call", "aten.resize.default", [{"node": 4}, [9]], {}),
    "no operation": node(5, 1, 2, 3),
    "an unknown kind": node(5, "jump", "", [], {}),
    "an argument that comes later": node(5, "call", "aten.relu.default", [{"node": 6}], {}),
    "an argument from behind": node(5, "call", "aten.relu.default", [{"node": -1}], {}),
    "no argument": node(5, "call", "aten.relu.default", [], {}),
    "another type": node(5, "call", "aten.relu.default", ["text"], {}),
    "a number for a tensor": node(5, "call", "operator.add", [1, 1], {}),
    "a sum of unlike shapes": node(5, "call", "aten.add.Tensor", [{"node": 4}, {"node": 1}], {}),
    "a division by zero": node(5, "call", "operator.floordiv", [1, 0], {}),
    "a layer that is not there": node(4, "layer", "nobody", [{"node": 3}], {}),
    "a layer of two inputs": node(4, "layer", "4", [{"node": 3}, {"node": 3}], {}),
    "a layer of a wrong input": node(4, "layer", "7", [{"node": 3}], {}),
    "no nodes": lambda description: description.pop("nodes"),
    "no output": lambda description: description.update(output=None),
    "a strange output": lambda description: description.update(output=[{"set": ["*"]}, []]),
    "too few outputs": lambda description: description.update(output=["*", []]),
    "strange inputs": lambda description: description.update(inputs=[["float32", ["x"]]]),
    "a negative size": layer(0, 1, [10, -6, 3, 3]),
    "a boolean size": layer(0, 1, [10, True, 3, 3]),
    "a fraction": layer(0, 1, [10, 6.0, 3, 3]),
    "a huge size": layer(0, 1, [10, 2**40, 3, 3]),
    "a huge empty layer": lambda description: (
        layer(1, 1, [7, 2**50, 3, 3])(description),
        layer(1, 4, 0)(description),
    ),
    "no stride": layer(0, 2, [0, 1, 1, 1, 1, 1, 1, 1]),
    "a negative padding": layer(0, 2, [1, 1, -1, 1, 1, 1, 1, 1]),
    "no groups": layer(0, 2, [1, 1, 1, 1, 1, 1, 1, 1, 0]),
    "groups that do not divide": layer(0, 2, [1, 1, 1, 1, 1, 1, 1, 1, 4]),
    "nine bits": layer(1, 4, 9),
    "a flag too many": layer(0, 3, 64),
    "flags in words": layer(0, 3, "all"),
    "a tensor of nothing": lambda description: description["tensors"][0].__setitem__(1, "nn"),
    "a tensor of a negative size": lambda description: description["tensors"][0].__setitem__(
        2, [-6, 3, 3, 3]
    ),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_with_a_digest_that_fits_is_named(
    packed: PackedModel, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.safetensors"
    packed.save(path)
    rewritten(path, NONSENSE[name])
    with pytest.raises(WorkError):
        load_packed(path).run(INPUTS)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_sums_beyond_int32_in_a_file_are_named(tmp_path: Path) -> None:
    bits = torch.full((70,), 8)
    layer = PackedLinear(
        torch.zeros(1, 70, dtype=torch.uint8),
        bits.to(torch.uint8),
        torch.ones(1),
        input_bits=bits.to(torch.uint8),
    )
    graph = NetworkGraph([["input", "", [], {}], ["layer", "a", [{"node": 0}], {}]], {"a": layer})
    graph.output = ["*", [{"node": 1}]]
    path = tmp_path / "x.safetensors"
    PackedModel(graph).save(path)
    assert load_packed(path).run(torch.ones(1, 70)).shape == (1, 1)
    wide = 40_000  # times 255 times 255
    layer.shape = (1, wide)
    for name in ("input_bits", "weight_bits"):
        setattr(layer, name, torch.full((wide,), 8, dtype=torch.uint8))
    layer.packed_codes = torch.zeros(wide, dtype=torch.uint8)
    PackedModel(graph).save(path)
    with pytest.raises(WorkError, match="within int32"):
        load_packed(path)


def test_wrong_inputs_are_named(packed: PackedModel) -> None:
    call: Any = packed.run
    with pytest.raises(RequestError, match="inputs: got '0 tensors'; expected 1 tensors"):
        call()
    with pytest.raises(RequestError, match="inputs: got '2 tensors'"):
        call(INPUTS, INPUTS)
    with pytest.raises(RequestError, match=r"inputs: got \['str'\]"):
        call("images")
    with pytest.raises(RequestError, match=r"\[\['float32', \[3, 2, 8, 8\]\]\].*like"):
        call(INPUTS[:, :2])
    with pytest.raises(RequestError, match=r"\[\['int64'"):
        call(INPUTS.long())
    with pytest.raises(RequestError, match="model: got 'str'"):
        pack("network", INPUTS)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="path: got 3"):
        load_packed(3)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="path: got None"):
        packed.save(None)  # type: ignore[arg-type]


def test_a_file_that_cannot_be_written_leaves_nothing(packed: PackedModel, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="cannot be written"):
        packed.save(tmp_path / "none" / "x.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(WorkError, match="cannot be written"):
        packed.save(tmp_path / "folder")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_operations_of_a_file_are_torch_operators_alone(packed: PackedModel) -> None:
    from latewood.precision.packed_graph import NetworkGraph, graph_module

    for target in (
        "os.system",
        "aten.__class__.mro",
        "operator.attrgetter",
        "aten.nothing.default",
    ):
        graph = NetworkGraph([["input", "", [], {}], ["call", target, [{"node": 0}], {}]])
        graph.output = ["*", [{"node": 1}]]
        with pytest.raises(WorkError, match="which this version of torch has not"):
            graph_module(graph)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = finished(nn.Linear(4, 4), torch.ones(4), input_bits=torch.ones(4))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs)
        return outputs if float(outputs.sum()) > 0 else -outputs


def test_what_cannot_be_packed_is_named() -> None:
    with pytest.raises(RequestError, match=r"torch\.export refuses it"):
        pack(Branching(), torch.randn(2, 4))
    with pytest.raises(RequestError, match="a layer that can be packed"):
        pack(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4))
    with pytest.raises(RequestError, match="example_inputs"):
        pack(small_network(), ())


class Twice(nn.Module):
    """One layer used twice, outputs in a dict, and a sum over both."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = finished(nn.Linear(6, 6), torch.full((6,), 4), input_bits=torch.full((6,), 4))
        self.norm = nn.LayerNorm(6)

    def forward(self, inputs: Tensor, others: Tensor) -> dict[str, Tensor]:
        first = self.norm(self.layer(inputs))
        return {"first": first, "second": self.layer(first) + others}


def test_shared_layers_and_nested_outputs(tmp_path: Path) -> None:
    torch.manual_seed(4)
    network, inputs = Twice().eval(), (torch.randn(3, 6), torch.randn(3, 6))
    packed = pack(network, inputs)
    packed.save(tmp_path / "x.safetensors")
    for model in (packed, load_packed(tmp_path / "x.safetensors")):
        outputs, expected = model.run(*inputs), network(*inputs)
        assert outputs.keys() == expected.keys()
        assert all(torch.allclose(outputs[name], expected[name], atol=1e-5) for name in outputs)
    assert list(packed.layers) == ["layer"]


class Reshaped(nn.Module):
    """Reads the number of its images in one way or another."""

    def __init__(self, view: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = finished(nn.Conv2d(2, 4, 3), torch.ones(2), input_bits=torch.ones(2))
        self.view = view

    def forward(self, images: Tensor) -> Tensor:
        return self.view(self.layer(images))


@pytest.mark.parametrize(
    ("view", "images"),
    [(lambda x: x.reshape(len(x), -1), 2), (lambda x: x.reshape(x.size(0), -1), 1)],
)
def test_a_number_of_images_within_the_operations_allows_no_other(
    view: Callable[[Tensor], Tensor], images: int, tmp_path: Path
) -> None:
    example = torch.randn(images, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    packed = pack(Reshaped(view).eval(), example)
    packed.save(tmp_path / "packed.safetensors")
    for model in (packed, load_packed(tmp_path / "packed.safetensors"), packed.truncate(1)):
        assert model.run(example).shape == (images, 36)
        for other in (6, 0):
            for call in (model.run, model):
                with pytest.raises(RequestError, match=rf"expected {images} along the first axis"):
                    call(torch.randn(other, 2, 5, 5))


def test_one_image_as_the_example_allows_more_where_no_operation_counts_them() -> None:
    torch.manual_seed(0)
    network = Reshaped(lambda x: x.flatten(1)).eval()
    packed = pack(network, torch.randn(1, 2, 5, 5))
    images = torch.randn(3, 2, 5, 5)
    assert torch.allclose(packed.run(images), network(images), atol=1e-5)
