"""Whole packed networks as ONNX files, run by onnxruntime; what cannot be written is refused."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from packed_networks import finished, small_network
from torch import Tensor, nn

from latewood.errors import RequestError, WorkError
from latewood.precision import PackedModel, export_onnx, load_packed, pack
from latewood.precision.exports import onnx_export
from latewood.precision.exports.example_inputs import example_tensors
from latewood.precision.exports.onnx_layers import QONNX, OnnxForm
from latewood.precision.exports.onnx_outline import onnx_outline

INPUTS = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(5))
MORE = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(6))


ONNX_FORMS: tuple[OnnxForm, ...] = ("low_bit", "dequantized")


def by_runtime(path: Path, *inputs: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {f"input_{place}": x.numpy() for place, x in enumerate(inputs)}
    (output,) = session.run(None, feed)
    return torch.from_numpy(output)


@pytest.fixture(scope="module")
def packed() -> PackedModel:
    return pack(small_network(), INPUTS)


@pytest.fixture(scope="module")
def outline(packed: PackedModel) -> onnx.ModelProto:
    return onnx_outline(packed.graph, example_tensors(packed.graph, None))


@pytest.fixture
def outlined(outline: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares each test the seconds that torch's exporter takes."""
    monkeypatch.setattr(onnx_export, "onnx_outline", lambda *_: outline)


@pytest.mark.usefixtures("outlined")
@pytest.mark.parametrize("form", ["low_bit", "dequantized"])
def test_the_runtime_computes_the_same(packed: PackedModel, tmp_path: Path, form: OnnxForm) -> None:
    path = tmp_path / "network.onnx"
    done = export_onnx(packed, path, form)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert done.bytes == path.stat().st_size and done.form == form
    assert list(done.weights) == ["1+batch_norm", "4", "7"]
    for inputs in (INPUTS, MORE):  # packed with one image, of any number now
        assert torch.allclose(by_runtime(path, inputs), packed.run(inputs), atol=1e-5)


@pytest.mark.usefixtures("outlined")
def test_few_bits_make_a_smaller_file(packed: PackedModel, tmp_path: Path) -> None:
    sizes = {form: export_onnx(packed, tmp_path / form, form).bytes for form in ONNX_FORMS}
    weights = sum(layer.codes().numel() for layer in packed.layers.values())
    # At most 8 bits a weight in place of 32.
    assert sizes["low_bit"] < sizes["dequantized"] - 2.5 * weights


@pytest.mark.usefixtures("outlined")
def test_qonnx_has_a_quantiser_a_width(packed: PackedModel, tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    export_onnx(packed, str(path), "qonnx")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=False)
    assert {entry.domain for entry in model.opset_import} == {"", QONNX}
    constants = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
    }
    quantisers = [node for node in model.graph.node if node.domain == QONNX]
    widths = [
        1 if node.op_type == "BipolarQuant" else int(constants[node.input[3]])
        for node in quantisers
    ]
    # Inputs and weights of 1, 2 and 4 bits; both of 1; weights of 8 whose inputs stay as they are.
    assert sorted(widths) == [1, 1, 1, 1, 2, 2, 4, 4, 8]
    read = {name for node in model.graph.node for name in node.input}
    written = {name for node in model.graph.node for name in node.output}
    assert read <= written | set(constants) | {"input_0"}


@pytest.mark.usefixtures("outlined")
def test_what_is_wrong_is_named_and_nothing_is_written(
    packed: PackedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "network.onnx"
    call: Any = export_onnx
    with pytest.raises(RequestError, match=r"packed: got 'Sequential'; expected a PackedModel"):
        call(small_network(), path)
    with pytest.raises(RequestError, match="form: got 'int3'; expected one of low_bit"):
        call(packed, path, "int3")
    with pytest.raises(RequestError, match="path: got 7"):
        call(packed, 7)
    with pytest.raises(RequestError, match="in a folder there is"):
        call(packed, tmp_path / "no" / "network.onnx")
    with pytest.raises(RequestError, match="in a folder there is"):
        call(packed, tmp_path)
    with pytest.raises(RequestError, match="example_inputs: got '2 tensors'; expected 1"):
        call(packed, path, example_inputs=(INPUTS, INPUTS))
    with pytest.raises(RequestError, match="example_inputs: got 'str'"):
        call(packed, path, example_inputs="ones")

    def missing(name: str, *others: Any, **named: Any) -> Any:
        if name == "onnxscript":
            raise ImportError(name=name)
        return real(name, *others, **named)

    real = builtins.__import__
    with monkeypatch.context() as patched:
        patched.setattr(builtins, "__import__", missing)
        with pytest.raises(RequestError, match="'onnxscript' is missing"):
            call(packed, path)
    path.write_text("old")

    def full(self: Path, _: bytes) -> int:
        raise OSError(28, "no space")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WorkError, match="no space"):
        call(packed, path)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_file_remembers_what_the_network_takes(packed: PackedModel, tmp_path: Path) -> None:
    packed.save(tmp_path / "network.safetensors")
    loaded = load_packed(tmp_path / "network.safetensors")
    assert loaded.graph.inputs == [["float32", [1, 3, 8, 8]]]
    assert loaded.truncate(2).graph.inputs == loaded.graph.inputs
    loaded.graph.inputs = []  # as in files of before
    with pytest.raises(RequestError, match="example_inputs: got None; expected tensors"):
        export_onnx(loaded, tmp_path / "network.onnx")


def test_inputs_that_the_network_does_not_take_are_refused(
    packed: PackedModel, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=r"example_inputs: got \[\(1, 4, 8, 8\)\]"):
        export_onnx(packed, tmp_path / "network.onnx", example_inputs=torch.ones(1, 4, 8, 8))
    half = finished(nn.Linear(4, 4).double(), torch.full((4,), 2), input_bits=torch.full((4,), 2))
    wide = pack(nn.Sequential(half), torch.ones(2, 4, dtype=torch.float64))
    with pytest.raises(RequestError, match=r"torch.float64.*float32 at the layer '0'"):
        export_onnx(wide, tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())


class _Gamma(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        bits = torch.full((4,), 2)
        self.layer = finished(nn.Linear(4, 4), bits, input_bits=bits)

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.polygamma(1, self.layer(x).abs() + 1)


def test_an_operation_without_a_form_is_named(tmp_path: Path) -> None:
    packed = pack(_Gamma(), torch.randn(2, 4))
    with pytest.raises(RequestError, match=r"no form in ONNX.*polygamma"):
        export_onnx(packed, tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())
