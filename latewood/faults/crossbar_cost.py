"""What a network on crossbars costs: arrays, energy, latency and area, layer by layer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latewood.core import select_parameters
from latewood.core.devices import on_device
from latewood.core.macs import macs_by_module
from latewood.core.modes import undisturbed
from latewood.core.module_calls import ModuleCall, module_calls
from latewood.errors import RequestError, invalid, listed
from latewood.faults.crossbar import Crossbar
from latewood.faults.device_constants import ISAAC, DeviceConstants
from latewood.faults.faultable_weights import Faultable, Part, faultable
from latewood.faults.placement import WeightAxes

__all__ = ["CrossbarCost", "LayerCost", "cost"]


@dataclass(frozen=True)
class LayerCost:
    """What one weight matrix costs.

    Args:
        name: of its stream.
        rows: of the matrix, inputs of an output.
        columns: of cells.
        crossbars: arrays that hold it.
        utilisation: share of their cells that hold it.
        products: matrix-vector products of the forward pass.
        energy_nj: of the forward pass, nanojoules.
        latency_us: of the forward pass, microseconds, its products one after the other.
        area_mm2: of the arrays with their periphery.
        adc_bits: that convert a column without loss.
    """

    name: str
    rows: int
    columns: int
    crossbars: int
    utilisation: float
    products: int
    energy_nj: float
    latency_us: float
    area_mm2: float
    adc_bits: int


@dataclass(frozen=True)
class CrossbarCost:
    """What a network costs; layers run one after the other.

    Args:
        layers: every weight matrix on crossbars.
    """

    layers: tuple[LayerCost, ...]

    @property
    def crossbars(self) -> int:
        """Arrays in all."""
        return sum(layer.crossbars for layer in self.layers)

    @property
    def energy_nj(self) -> float:
        """Energy of the forward pass, nanojoules."""
        return math.fsum(layer.energy_nj for layer in self.layers)

    @property
    def latency_us(self) -> float:
        """Time of the forward pass, microseconds."""
        return math.fsum(layer.latency_us for layer in self.layers)

    @property
    def area_mm2(self) -> float:
        """Area of all arrays with their periphery."""
        return math.fsum(layer.area_mm2 for layer in self.layers)


def cost(
    model: nn.Module,
    example_inputs: Sequence[Any],
    crossbar: Crossbar | None = None,
    *,
    input_bits: int = 8,
    constants: DeviceConstants = ISAAC,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> CrossbarCost:
    r"""Counts the crossbars of a network, and what a forward pass on them costs.

    A matrix of R rows takes :math:`\lceil R / X_r \rceil \lceil O c / X_c \rceil` arrays, with c
    cells a weight; an input of so many bits is fed a bit a cycle. Not counted are buffers, buses,
    digital layers, and the two products of attention that have no stored matrix. Training with
    drop-connect changes none of it. All weights count with the bits of the crossbar, also those
    with a number format of their own.

    Args:
        model: any module.
        example_inputs: the positional arguments of the forward pass; batch size 1 gives the cost of
            a sample.
        crossbar: how weights are held; the default one if None.
        input_bits: of the inputs of every layer, 1 to 16.
        constants: of the device.
        include: patterns on layer or parameter names (``core.select_parameters``).
        exclude: patterns of the same form.

    Raises:
        RequestError: no weights for crossbars, bits out of range, or arguments of other kinds.

    Warns:
        UserWarning: weights whose products were not seen.

    Source: constants as ``device_constants`` cites them; the composition is ours.
    """
    crossbar = Crossbar() if crossbar is None else crossbar
    _require_kinds(crossbar, constants, example_inputs)
    if not isinstance(input_bits, int) or isinstance(input_bits, bool) or not 1 <= input_bits <= 16:
        raise invalid("input_bits", input_bits, "a whole number from 1 to 16")
    held = faultable(model, include, exclude)
    products = _products(model, example_inputs, held)
    layers = []
    for weight in held:
        for number, part in enumerate(weight.parts):
            count = products.get(_key(weight, number), 0)
            layers.append(_layer(weight, part, crossbar, input_bits, constants, count))
    unseen = [layer.name for layer in layers if layer.products == 0]
    if unseen:
        warnings.warn(
            f"cost: no products of {listed(unseen)} were seen in the forward pass, so that their "
            "energy and latency are counted as 0: their layers were not called, or their weights "
            "are used by other modules",
            UserWarning,
            stacklevel=2,
        )
    return CrossbarCost(tuple(layers))


def _require_kinds(crossbar: object, constants: object, example_inputs: object) -> None:
    if not isinstance(crossbar, Crossbar):
        raise RequestError(f"crossbar: got {type(crossbar).__name__}; expected a faults.Crossbar")
    if not isinstance(constants, DeviceConstants):
        kind = type(constants).__name__
        raise RequestError(f"constants: got {kind}; expected faults.DeviceConstants")
    if not isinstance(example_inputs, tuple | list):
        # A tensor would be taken apart along its first axis, a dict into its keys.
        kind = type(example_inputs).__name__
        raise RequestError(
            f"example_inputs: got {kind}; expected a tuple or list of the forward pass's arguments"
        )


def _layer(
    held: Faultable,
    part: Part,
    crossbar: Crossbar,
    input_bits: int,
    constants: DeviceConstants,
    products: int,
) -> LayerCost:
    weight = held.weight.stored[part.rows or slice(None)]
    outputs = weight.shape[held.axes.outputs]
    rows = weight.numel() // outputs
    columns = outputs * crossbar.cells_per_weight
    crossbars = _arrays(rows, columns, held.axes, crossbar)
    height, width = crossbar.tile
    energy = crossbars * products * input_bits * constants.energy_pj(height, width)
    return LayerCost(
        part.name,
        rows,
        columns,
        crossbars,
        rows * columns / (crossbars * height * width),
        products,
        energy / 1e3,
        products * input_bits * constants.cycle_ns / 1e3,
        crossbars * constants.area_mm2(height, width),
        math.ceil(math.log2(height * (crossbar.levels - 1) + 1)),
    )


def _arrays(rows: int, columns: int, axes: WeightAxes, crossbar: Crossbar) -> int:
    """Arrays that hold a part of the matrix; groups lie on the diagonal."""
    height, width = crossbar.tile
    if axes.groups == 1:
        return math.ceil(rows / height) * math.ceil(columns / width)
    each = columns // axes.groups
    tiles = {
        (down, across)
        for group in range(axes.groups)
        for down in range(group * rows // height, ((group + 1) * rows - 1) // height + 1)
        for across in range(group * each // width, ((group + 1) * each - 1) // width + 1)
    }
    return len(tiles)


def _products(
    model: nn.Module, example_inputs: Sequence[Any], held: Sequence[Faultable]
) -> dict[str, int]:
    """Matrix-vector products by part: multiply-accumulates over the entries of the matrix.

    Those of attention, which has products without a matrix too, by the lengths of its inputs.
    """
    inputs = on_device(model, tuple(example_inputs))
    with undisturbed(model):
        counted = macs_by_module(model, *inputs)
    attention = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
    }
    lengths = _attention_lengths(model, inputs, attention)
    products: dict[str, int] = {}
    for weight in held:
        for use in weight.uses:
            name = use.module_name
            parent = name.rpartition(".")[0]
            if name in attention:
                several = len(weight.parts) > 1
                place = "qkv".find(use.parameter_name[0]) if not several else 0
                for number in range(len(weight.parts)):
                    which = number if several else max(place, 0)
                    _add(products, _key(weight, number), lengths[name][which])
            elif parent in attention and name.endswith("out_proj"):
                _add(products, _key(weight, 0), lengths[parent][0])
            else:
                entries = sum(parameter.numel() for parameter in _matrices(use.module))
                _add(products, _key(weight, 0), counted.get(name, 0) // max(entries, 1))
    return products


def _attention_lengths(
    model: nn.Module, inputs: Sequence[Any], attention: Mapping[str, nn.Module]
) -> dict[str, list[int]]:
    """Vectors among the queries, keys and values of each attention layer."""
    lengths: dict[str, list[int]] = {name: [0, 0, 0] for name in attention}

    def entered(call: ModuleCall) -> None:
        names = ("query", "key", "value")
        for place, name in enumerate(names):
            given = call.positional[place] if place < len(call.positional) else call.named.get(name)
            if isinstance(given, Tensor):
                lengths[call.name][place] += given.numel() // given.shape[-1]

    if attention:
        with undisturbed(model), torch.no_grad(), module_calls(attention, entered):
            model(*inputs)
    return lengths


def _matrices(module: nn.Module) -> list[Tensor]:
    return [weight.stored for weight in select_parameters(module) if weight.module is module]


def _key(weight: Faultable, number: int) -> str:
    return f"{weight.weight.name}/{number}"


def _add(products: dict[str, int], key: str, count: int) -> None:
    products[key] = products.get(key, 0) + count
