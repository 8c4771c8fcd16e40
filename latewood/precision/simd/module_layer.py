"""A finished layer of a network on the machine: its codes, and those of the inputs that it met."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latewood.core.modes import evaluated
from latewood.core.selection import is_hugging_face_conv1d
from latewood.errors import RequestError, invalid, listed
from latewood.precision.formats import along, input_format, quantized_layers, weight_format
from latewood.precision.number_format import code
from latewood.precision.packed_layers import PackedConv2d, PackedLayer
from latewood.precision.patterns import Pattern
from latewood.precision.simd.machine_layer import MachineLayer, lay_out

__all__ = ["input_codes", "lay_out_module", "lay_out_packed", "simulated_layers"]


def simulated_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a finished model that the machine can compute, by name."""
    layers = {}
    for name, module, parameter_name in quantized_layers(model):
        if parameter_name != "weight":
            continue
        try:
            _channel_bits(module)
        except RequestError:
            continue
        layers[name] = module
    return layers


def lay_out_module(module: nn.Module, patterns: int | Iterable[int | Pattern] = 4) -> MachineLayer:
    """The codes of a finished linear layer or 2-d convolution in the machine's registers.

    Weights that are 0 are masked out, since the grid has no 0.

    Args:
        module: with a number format of 1, 2 or 4 bits a channel.
        patterns: of the machine, as in ``pattern_set``.

    Raises:
        RequestError: a layer without such a format, of another kind or with groups, or no patterns
            with slots for it.
    """
    bits = _channel_bits(module)
    written = weight_format(module)
    assert written is not None
    weight = module.get_parameter("weight")
    codes, kept = written.codes(weight), written.kept(weight)
    if is_hugging_face_conv1d(module):
        codes, kept = codes.T, kept.T
    inputs = input_format(module)
    geometry: dict[str, Any] = {}
    if isinstance(module, nn.Conv2d):
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            raise invalid("padding", module.padding, "numbers of zeros")
        geometry = {
            "stride": module.stride,
            "padding": module.padding,
            "dilation": module.dilation,
        }
    read = kept.reshape(kept.shape[0], kept.shape[1], -1).any(dim=-1).any(dim=0)
    width = torch.where(read, bits, 0)
    complete = bool((kept | (width == 0).reshape(-1, *(1,) * (kept.ndim - 2))).all())
    return lay_out(
        codes.numpy(),
        width.numpy(),
        patterns,
        mask=None if complete else kept.numpy(),
        signed=inputs is None or bool(inputs.signed),
        **geometry,
    )


def lay_out_packed(layer: PackedLayer, patterns: int | Iterable[int | Pattern] = 4) -> MachineLayer:
    """A packed layer in the machine's registers.

    Args:
        layer: whose inputs have the bits of its weights.
        patterns: of the machine, as in ``pattern_set``.

    Raises:
        RequestError: bits that are not 1, 2 or 4, inputs of other bits or without a format, unlike
            padding on two sides, groups, or no patterns with slots for the layer.
    """
    bits = layer.weight_bits
    if not layer.quantises_inputs or not torch.equal(layer.input_bits, bits):
        raise invalid("layer", "inputs of other bits than the weights", "the same in a channel")
    if layer.groups > 1:
        raise invalid("layer", f"{layer.groups} groups", "one that is not in groups")
    geometry: dict[str, Any] = {}
    if isinstance(layer, PackedConv2d):
        taps = layer.taps
        if taps.padding != taps.after:
            raise invalid("padding", (taps.padding, taps.after), "the same on both sides")
        geometry = {"stride": taps.stride, "padding": taps.padding, "dilation": taps.dilation}
    mask = layer.mask()
    if mask is not None:
        # Channels that are not read have no place in the mask.
        mask = mask | (bits == 0).reshape(-1, *(1,) * (mask.ndim - 2))
    return lay_out(
        layer.codes().numpy(),
        bits.numpy(),
        patterns,
        mask=None if mask is None else mask.numpy(),
        signed=not layer.never_negative,
        **geometry,
    )


def input_codes(
    model: nn.Module, name: str, layer: MachineLayer, example_inputs: tuple[Tensor, ...]
) -> NDArray[np.uint8]:
    """Codes of what a layer of a model read, for some inputs of the model.

    Where its inputs have no format, they are scaled so that the largest of them is 1.875.

    Args:
        model: finished.
        name: of the layer in it.
        layer: the same, laid out.
        example_inputs: of the model.

    Returns:
        (samples, channels) or (samples, channels, height, width), of the bits of the channels.

    Raises:
        RequestError: the layer is not computed, or its inputs have other bits than its weights.
    """
    module = model.get_submodule(name)
    written = input_format(module)
    seen: list[Tensor] = []

    def remember(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0].detach())

    # After the hook that quantises inputs: what is on the grid has the same code again.
    hook = module.register_forward_pre_hook(remember)
    try:
        with evaluated(model), torch.no_grad():
            model(*example_inputs)
    finally:
        hook.remove()
    if not seen:
        raise invalid("layer", name, "one that the model computes")
    numbers = seen[0].double().cpu()
    if not layer.kernel:
        numbers = numbers.reshape(-1, numbers.shape[-1])
    width = torch.from_numpy(layer.bits.astype(np.int64))
    if written is None:
        scale, offset = float(numbers.abs().max()) / 1.875 or 1.0, 0.0
    else:
        bits = written.bits.cpu().to(torch.int64).expand(len(width))
        if bool(((bits != width) & (width > 0)).any()):
            raise invalid(
                f"inputs of {name}", "other bits than the weights", "the same in a channel"
            )
        scale, offset = float(written.scale), written.offset
    axis = -3 if layer.kernel else -1
    return code(numbers / scale - offset, along(width.clamp(min=1), axis)).numpy() * (
        along(width, axis).numpy() > 0
    )


def _channel_bits(module: nn.Module) -> Tensor:
    """Bits of each input channel, int64."""
    kind = type(module).__name__
    written = weight_format(module)
    if written is None:
        raise invalid("layer", kind, "a finished layer with a number format")
    linear = isinstance(module, nn.Linear) or is_hugging_face_conv1d(module)
    if not linear and not (isinstance(module, nn.Conv2d) and module.groups == 1):
        raise invalid("layer", kind, "a linear layer, or a 2-d convolution without groups")
    axis = 0 if is_hugging_face_conv1d(module) else 1
    weight = module.get_parameter("weight")
    shape = written.bits.shape
    if written.bits.ndim and any(s != 1 for place, s in enumerate(shape) if place != axis):
        raise invalid("layer", kind, "one number of bits for each input channel")
    bits = written.bits.flatten().to(torch.int64).expand(weight.shape[axis])
    if not bool(torch.isin(bits, torch.tensor([0, 1, 2, 4])).all()):
        raise invalid("layer", f"bits {listed(map(str, bits.unique().tolist()))}", "1, 2 or 4 bits")
    return bits
