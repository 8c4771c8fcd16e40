"""Packed layers as ONNX nodes: onnxruntime computes the same to the bit, in few bits a weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor

from latewood.errors import RequestError
from latewood.precision import PackedConv2d, PackedGroupedConv2d, PackedLinear
from latewood.precision.exports.onnx_layers import MICROSOFT, QONNX, OnnxForm, add_layer
from latewood.precision.exports.onnx_nodes import OnnxNodes
from latewood.precision.packed_groups import unfolded
from latewood.precision.packed_layers import PackedLayer

WIDTHS = {
    "1": [1],
    "2": [2],
    "4": [4],
    "8": [8],
    "mixed": [1, 2, 4],
    "three": [3, 1],
    "some left": [0, 4, 1],
    "none left": [0],
}


class Quant(OpRun):  # type: ignore[misc]
    """QONNX's operator, from its description: scale, clamp, round, scale back."""

    op_domain = QONNX

    def _run(
        self,
        x: Any,
        scale: Any,
        zero: Any,
        bits: Any,
        signed: int = 1,
        narrow: int = 0,
        rounding_mode: str = "ROUND",
    ) -> tuple[Any]:
        assert np.ndim(bits) == 0 and bits > 1 and signed and not narrow
        assert rounding_mode == "FLOOR"
        cells = np.clip(x / scale + zero, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return (((np.floor(cells) - zero) * scale).astype(np.float32),)


class BipolarQuant(OpRun):  # type: ignore[misc]
    """Its signs."""

    op_domain = QONNX

    def _run(self, x: Any, scale: Any) -> tuple[Any]:
        return (np.where(x >= 0, scale, -scale).astype(np.float32),)


def made(
    widths: list[int],
    *,
    conv: bool = False,
    quantised: bool = True,
    never_negative: bool = False,
    masked: bool = False,
    channels: int = 37,
    outputs: int = 11,
) -> PackedLayer:
    generator = torch.Generator().manual_seed(len(widths) + channels)
    bits = torch.tensor(widths, dtype=torch.uint8).repeat(channels)[:channels]
    shape = (outputs, channels, 3, 2) if conv else (outputs, channels)
    axes = (1, -1, *(1,) * (len(shape) - 2))
    codes = torch.randint(0, 256, shape, generator=generator) % (1 << bits.int()).reshape(axes)
    others: dict[str, Any] = {
        "input_bits": bits if quantised else None,
        "input_scale": 0.37,
        "never_negative": never_negative,
        "mask": torch.rand(shape, generator=generator) < 0.6 if masked else None,
        "bias": torch.randn(outputs, generator=generator),
    }
    scale = torch.randn(outputs, generator=generator)
    if conv:
        others |= {"stride": (2, 1), "padding": "valid", "dilation": (1, 2)}
        return PackedConv2d(codes.to(torch.uint8), bits, scale, **others)
    return PackedLinear(codes.to(torch.uint8), bits, scale, **others)


def model_of(layer: PackedLayer, form: OnnxForm, rank: int) -> tuple[onnx.ModelProto, str]:
    nodes = OnnxNodes("layer")
    output, stored = add_layer(nodes, layer, "layer", "x", form)
    graph = helper.make_graph(
        nodes.nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * rank)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * rank)],
        nodes.tensors,
    )
    sets = [helper.make_opsetid("", 21), *(helper.make_opsetid(d, 1) for d in (MICROSOFT, QONNX))]
    model = helper.make_model(graph, opset_imports=sets, ir_version=10)
    onnx.checker.check_model(model)
    return model, stored


def run(model: onnx.ModelProto, form: OnnxForm, inputs: Tensor) -> Tensor:
    feed = {"x": inputs.numpy()}
    if form == "qonnx":
        # Its products in float64: their sums are exact in float32 too.
        return torch.from_numpy(
            ReferenceEvaluator(model, new_ops=[Quant, BipolarQuant]).run(None, feed)[0]
        )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return torch.from_numpy(session.run(None, feed)[0])


def inputs_for(layer: PackedLayer) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    shape = (3, layer.shape[1], 6, 7) if isinstance(layer, PackedConv2d) else (2, 5, layer.shape[1])
    inputs = torch.randn(shape, generator=generator)
    # Borders of cells, and what is far outside.
    flat = inputs.view(-1)
    flat[::7] = torch.randint(-16, 16, flat[::7].shape, generator=generator) * 0.37 / 4
    flat[0], flat[1], flat[2] = float("inf"), -float("inf"), 0.0
    return inputs


@pytest.mark.parametrize("form", ["low_bit", "dequantized", "qonnx"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("never_negative", [False, True], ids=["signed", "positive"])
@pytest.mark.parametrize("conv", [False, True], ids=["linear", "conv"])
@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
def test_quantised_layers_are_equal_to_the_bit(
    widths: list[int], conv: bool, never_negative: bool, masked: bool, form: OnnxForm
) -> None:
    layer = made(widths, conv=conv, never_negative=never_negative, masked=masked)
    inputs = inputs_for(layer)
    model, _ = model_of(layer, form, inputs.dim())
    assert torch.equal(run(model, form, inputs), layer(inputs))


@pytest.mark.parametrize("form", ["low_bit", "dequantized", "qonnx"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("groups", [2, 6])
@pytest.mark.parametrize("widths", [[1], [4], [2, 4, 0]])
def test_convolutions_in_groups(
    widths: list[int], groups: int, masked: bool, form: OnnxForm
) -> None:
    generator = torch.Generator().manual_seed(groups)
    bits = torch.tensor(widths, dtype=torch.uint8).repeat(6)[:6]
    levels = (1 << bits.int()).reshape(1, 6, 1, 1)
    codes = (torch.randint(0, 256, (2, 6, 3, 3), generator=generator) % levels).to(torch.uint8)
    codes = unfolded(codes, groups)
    mask = torch.rand(codes.shape, generator=generator) < 0.6 if masked else None
    layer = PackedGroupedConv2d(
        *(codes, bits, torch.randn(2 * groups, generator=generator)),
        groups=groups,
        input_bits=bits,
        mask=mask,
        padding=1,
    )
    inputs = torch.randn(2, 6, 5, 6, generator=generator)
    if form == "qonnx" and len(widths) > 1:
        with pytest.raises(RequestError, match="several widths in groups"):
            model_of(layer, form, 4)
        return
    model, _ = model_of(layer, form, 4)
    assert torch.equal(run(model, form, inputs), layer(inputs))


@pytest.mark.parametrize("form", ["low_bit", "dequantized", "qonnx"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("conv", [False, True], ids=["linear", "conv"])
def test_layers_with_inputs_as_they_are(conv: bool, masked: bool, form: OnnxForm) -> None:
    layer = made([4, 0, 2], conv=conv, quantised=False, masked=masked)
    inputs = inputs_for(layer).clamp(-5, 5)
    model, _ = model_of(layer, form, inputs.dim())
    assert torch.allclose(run(model, form, inputs), layer(inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("widths", "conv", "masked", "stored"),
    [
        ([1], False, False, "MatMulNBits, 2 bits, block 32"),
        ([2], False, False, "MatMulNBits, 2 bits, block 32"),
        ([1, 4], False, False, "MatMulNBits, 4 bits, block 32"),
        ([5], False, False, "MatMulNBits, 8 bits, block 32"),
        ([1], False, True, "MatMulNBits, 2 bits, block 32"),
        ([2], False, True, "MatMulNBits, 4 bits, block 32"),
        ([8], False, True, "int16"),
        ([1, 4], True, False, "int4"),
        ([4], True, True, "int8"),
        ([8], True, False, "int8"),
    ],
)
def test_weights_take_the_fewest_bits_that_hold_them(
    widths: list[int], conv: bool, masked: bool, stored: str
) -> None:
    model, said = model_of(made(widths, conv=conv, masked=masked), "low_bit", 4 if conv else 2)
    assert said == stored
    types = {tensor.data_type for tensor in model.graph.initializer}
    kinds = {"int4": TensorProto.INT4, "int8": TensorProto.INT8, "int16": TensorProto.INT16}
    if stored in kinds:
        assert kinds[stored] in types
    else:
        (node,) = (node for node in model.graph.node if node.op_type == "MatMulNBits")
        said_bits = {entry.name: entry.i for entry in node.attribute}["bits"]
        assert stored.split()[1] == str(said_bits)


def test_two_bits_are_hardly_more_than_a_sixteenth_of_float() -> None:
    layer = made([2], channels=512, outputs=256)
    sizes = {
        form: model_of(layer, form, 2)[0].ByteSize()  # type: ignore[arg-type]
        for form in ("low_bit", "dequantized")
    }
    assert sizes["low_bit"] < sizes["dequantized"] / 14


def test_an_empty_layer_is_refused() -> None:
    layer = PackedLinear(
        torch.zeros(0, 3, dtype=torch.uint8), torch.ones(3, dtype=torch.uint8), torch.zeros(0)
    )
    with pytest.raises(RequestError, match="'layer' of shape"):
        add_layer(OnnxNodes("x"), layer, "layer", "x", "low_bit")
