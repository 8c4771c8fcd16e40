"""A packed layer as nodes of ONNX: its inputs on their grid, its product, its scale and bias."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from latewood.precision.exports.grid_layers import (
    GridLayer,
    StoredWeights,
    grid_layer,
    stored_weights,
)
from latewood.precision.exports.onnx_nodes import OnnxNodes
from latewood.precision.packed_layers import PackedLayer

__all__ = ["MICROSOFT", "QONNX", "OnnxForm", "add_layer"]

OnnxForm = Literal["low_bit", "dequantized", "qonnx"]
MICROSOFT: Final = "com.microsoft"
QONNX: Final = "qonnx.custom_op.general"
_BLOCK: Final = 32


def add_layer(
    nodes: OnnxNodes, layer: PackedLayer, name: str, inputs: str, form: OnnxForm
) -> tuple[str, str]:
    """Adds the nodes of a packed layer.

    Sums of products are numbers of the grid, which float32 holds exactly up to 2^24 steps; scale
    and bias follow, as in the packed layer itself.

    Args:
        nodes: to which they are added.
        layer: the layer.
        name: its name, for messages.
        inputs: name of what it reads.
        form: of its weights.

    Returns:
        The name of the output, and how the weights are stored.
    """
    grid = grid_layer(layer, name, by_width=form == "qonnx")
    linear = grid.codes.ndim == 2
    if form == "qonnx":
        x = _qonnx_inputs(nodes, grid, inputs)
        sums, stored = _float_product(nodes, grid, x, _qonnx_weights(nodes, grid)), "Quant"
    elif form == "dequantized":
        x = _grid_inputs(nodes, grid, inputs, np.ones(len(grid.channels), np.float32))
        weight = nodes.tensor(grid.laid_out(grid.grid()))
        sums, stored = _float_product(nodes, grid, x, weight), "float32"
    else:
        weights = stored_weights(grid, least=_fewest_bits() if linear else 4)
        x = _grid_inputs(nodes, grid, inputs, weights.step)
        if linear and weights.bits <= 8:
            sums = _blocked_product(nodes, weights, x)
            stored = f"MatMulNBits, {weights.bits} bits, block {_BLOCK}"
        else:
            sums = _float_product(nodes, grid, x, _integer_weights(nodes, grid, weights))
            stored = f"int{weights.bits}"
    return _scaled(nodes, grid, sums), stored


def _grid_inputs(nodes: OnnxNodes, layer: GridLayer, inputs: str, step: NDArray[np.float32]) -> str:
    """Inputs as numbers of their grid times the steps of the weights they meet."""
    if layer.input_bits is None:
        x = _gathered(nodes, layer, inputs, layer.channels)
        return x if (step == 1).all() else nodes.add("Mul", x, _by_channel(nodes, layer, step))
    x = _gathered(nodes, layer, _shifted(nodes, layer, inputs), layer.channels)
    half = 2.0 ** (layer.input_bits - 1)
    x = nodes.add("Floor", nodes.add("Mul", x, _by_channel(nodes, layer, half / 2)))
    x = nodes.add("Max", x, _by_channel(nodes, layer, -half))
    x = nodes.add("Min", x, _by_channel(nodes, layer, half - 1))
    middle = half + 0.5 if layer.never_negative else np.full_like(half, 0.5)
    x = nodes.add("Add", x, _by_channel(nodes, layer, middle))
    return nodes.add("Mul", x, _by_channel(nodes, layer, step * 2 / half))


def _shifted(nodes: OnnxNodes, layer: GridLayer, inputs: str) -> str:
    """Inputs on the scale of [-2, 2], rounded as in the packed layer."""
    x = inputs
    if layer.input_scale != 1:
        x = nodes.add("Div", x, nodes.tensor(layer.input_scale))
    return nodes.add("Sub", x, nodes.tensor(2)) if layer.never_negative else x


def _gathered(nodes: OnnxNodes, layer: GridLayer, inputs: str, channels: NDArray[np.int64]) -> str:
    if layer.all_channels and len(channels) == len(layer.channels):
        return inputs
    axis = -1 if layer.codes.ndim == 2 else 1
    return nodes.add("Gather", inputs, nodes.tensor(channels, np.int64), axis=axis)


def _by_channel(nodes: OnnxNodes, layer: GridLayer, values: NDArray[np.floating[Any]]) -> str:
    """One number if all are alike."""
    if (values == values[0]).all():
        return nodes.tensor(values[0])
    return nodes.tensor(values.reshape(-1, *(1,) * (layer.codes.ndim - 2)))


def _float_product(nodes: OnnxNodes, layer: GridLayer, x: str, weight: str) -> str:
    if layer.codes.ndim == 2:
        return nodes.add("MatMul", x, weight)
    t = layer.taps
    return nodes.add(
        *("Conv", x, weight),
        kernel_shape=list(layer.codes.shape[2:]),
        strides=t[0:2],
        pads=t[2:6],
        dilations=t[6:8],
        group=layer.groups,
    )


def _integer_weights(nodes: OnnxNodes, layer: GridLayer, weights: StoredWeights) -> str:
    stored = nodes.integers(layer.laid_out(weights.numbers), weights.bits)
    weight = nodes.add("DequantizeLinear", stored, nodes.tensor(1))
    return nodes.add("Add", weight, nodes.tensor(weights.half)) if weights.half else weight


def _blocked_product(nodes: OnnxNodes, weights: StoredWeights, x: str) -> str:
    outputs, channels = weights.numbers.shape
    blocks = -(-channels // _BLOCK)
    middle = 2 ** (weights.bits - 1)
    codes = np.full((outputs, blocks * _BLOCK), middle, np.uint8)
    codes[:, :channels] = weights.numbers + middle
    each = 8 // weights.bits
    parts = codes.reshape(outputs, blocks, _BLOCK // each, each)
    packed = np.zeros(parts.shape[:3], np.uint8)
    for place in range(each):
        packed |= parts[..., place] << (weights.bits * place)
    # All are 1, so the file need not hold them.
    ones = nodes.add(
        "ConstantOfShape", nodes.tensor([outputs * blocks], np.int64), value=_one_tensor()
    )
    sums = nodes.add(
        *("MatMulNBits", x, nodes.tensor(packed, np.uint8), ones),
        domain=MICROSOFT,
        K=channels,
        N=outputs,
        bits=weights.bits,
        block_size=_BLOCK,
    )
    if not weights.half:
        return sums
    total = nodes.add("ReduceSum", x, nodes.tensor([-1], np.int64), keepdims=1)
    return nodes.add("Add", sums, nodes.add("Mul", total, nodes.tensor(weights.half)))


def _scaled(nodes: OnnxNodes, layer: GridLayer, sums: str) -> str:
    shape = (-1, *(1,) * (layer.codes.ndim - 2))
    y = nodes.add("Mul", sums, nodes.tensor(layer.scale.reshape(shape)))
    return nodes.add("Add", y, nodes.tensor(layer.bias.reshape(shape))) if layer.bias.any() else y


def _qonnx_inputs(nodes: OnnxNodes, layer: GridLayer, inputs: str) -> str:
    if layer.input_bits is None:
        return _gathered(nodes, layer, inputs, layer.channels)
    x = _shifted(nodes, layer, inputs)
    parts = []
    for bits, part in _runs(layer.input_bits):
        y = _quant(nodes, _gathered(nodes, layer, x, layer.channels[part]), bits)
        # Back from [-2, 2].
        parts.append(nodes.add("Add", y, nodes.tensor(2)) if layer.never_negative else y)
    return _joined(nodes, layer, parts, -1 if layer.codes.ndim == 2 else 1)


def _qonnx_weights(nodes: OnnxNodes, layer: GridLayer) -> str:
    linear = layer.codes.ndim == 2
    grid = layer.grid()
    # Where there is no weight any number will do: it is multiplied by 0.
    grid, present = np.where(layer.present, grid, 1), layer.present.astype(np.float32)
    parts = []
    for bits, part in _runs(layer.bits):
        weight = nodes.tensor(layer.laid_out(grid[:, part]))
        parts.append(_quant(nodes, weight, bits))
    whole = _joined(nodes, layer, parts, 0 if linear else 1)
    if present.all():
        return whole
    return nodes.add("Mul", whole, nodes.tensor(layer.laid_out(present)))


def _quant(nodes: OnnxNodes, inputs: str, bits: int) -> str:
    """Numbers on the grid: rounding down gives the lower end of a cell, half a step its middle."""
    if bits == 1:
        return nodes.add("BipolarQuant", inputs, nodes.tensor(1), domain=QONNX)
    step = 2.0 ** (2 - bits)
    numbers = (nodes.tensor(step), nodes.tensor(0), nodes.tensor(bits))
    y = nodes.add(
        *("Quant", inputs, *numbers), domain=QONNX, signed=1, narrow=0, rounding_mode="FLOOR"
    )
    return nodes.add("Add", y, nodes.tensor(step / 2))


def _joined(nodes: OnnxNodes, layer: GridLayer, parts: list[str], axis: int) -> str:
    return parts[0] if len(parts) == 1 else nodes.add("Concat", *parts, axis=axis)


def _runs(bits: NDArray[np.int64]) -> Iterator[tuple[int, slice]]:
    """Where neighbours have the same bits."""
    borders = [0, *(np.flatnonzero(np.diff(bits)) + 1).tolist(), len(bits)]
    for start, end in itertools.pairwise(borders):
        yield int(bits[start]), slice(start, end)


def _one_tensor() -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.ones(1, np.float32))


@functools.cache
def _fewest_bits() -> int:
    """2 where the runtime that is installed multiplies with such weights, else 4, which all do."""
    from onnx import TensorProto, helper

    nodes = OnnxNodes("probe")
    numbers = np.zeros((1, _BLOCK), np.int64)
    output = _blocked_product(
        nodes, StoredWeights(numbers, 0.0, np.ones(_BLOCK, np.float32), 2), "x"
    )
    value = functools.partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT)
    graph = helper.make_graph(
        *(nodes.nodes, "probe", [value("x", shape=[1, _BLOCK])], [value(output, shape=[1, 1])]),
        nodes.tensors,
    )
    sets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=10)
    try:
        from onnxruntime import InferenceSession

        session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        session.run(None, {"x": np.zeros((1, _BLOCK), np.float32)})
    except Exception:
        # No runtime, or one that does not know them; it specifies no errors.
        return 4
    return 2
