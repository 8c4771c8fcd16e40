"""What stays on a plain layer where a number format was: its bits, scales and how to read them.

A finished layer computes as always with its weight, which lies on its grid. Beside it stand
buffers that say which grid: ``weight_bits`` and ``weight_scale`` (for a tensor of another name,
``<name>_bits`` and ``<name>_scale``), and where its inputs are quantised ``input_bits``,
``input_scale`` and ``input_signed``, which a forward pre-hook, ``QuantizeInput``, applies. They are
part of the layer's state dict; ``restore_formats`` lets a fresh model take such a state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from latewood.core.format_buffers import BITS, SCALE, format_buffers
from latewood.core.selection import is_hugging_face_conv1d, stored_tensor
from latewood.errors import RequestError, invalid
from latewood.precision.number_format import MOST_BITS, code, quantize_unchecked

__all__ = [
    "InputFormat",
    "QuantizeInput",
    "WeightFormat",
    "channel_axis",
    "input_format",
    "leave_input_format",
    "leave_weight_format",
    "quantize_input",
    "quantized_layers",
    "remove_formats",
    "restore_formats",
    "weight_format",
]

_INPUT: Final = ("input_bits", "input_scale", "input_signed")


@dataclass(frozen=True)
class WeightFormat:
    """The grid that a finished weight lies on: ``weight = scale * quantize(weight / scale, bits)``.

    Args:
        bits: uint8, broadcasts to the weight: one number a weight, an input channel or a tensor. 0
            means that these weights are gone and exactly 0.
        scale: (alpha) floating, positive, broadcasts to the weight: one number, or one an output
            channel.
    """

    bits: Tensor
    scale: Tensor

    def kept(self, weight: Tensor) -> Tensor:
        """Which weights are there: bool, shape of the weight; the grid has no 0, so 0 is pruned."""
        return (weight != 0) & (self.bits > 0)

    def codes(self, weight: Tensor) -> Tensor:
        """The codes of a finished weight: uint8, shape of the weight; 0 where nothing is kept.

        Args:
            weight: of the layer that has this format.
        """
        wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        codes = code(wide / self.scale.to(wide.dtype), self.bits.clamp(min=1))
        return codes.masked_fill(~self.kept(weight), 0)

    def holds(self, weight: Tensor) -> bool:
        """Whether a weight lies on this grid, up to roundings to half precision.

        Args:
            weight: of the layer that has this format.
        """
        wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        scale, bits = self.scale.to(wide.dtype), self.bits.clamp(min=1)
        grid = scale * quantize_unchecked(wide / scale, bits)
        cell = scale * torch.exp2(2.0 - bits.to(wide.dtype))
        near = (wide - grid).abs() <= 0.1 * cell + 2.0**-6 * wide.abs()
        return bool((near & (self.bits > 0) | (wide == 0)).all())


@dataclass(frozen=True)
class InputFormat:
    r"""How a layer quantises its input x, channel by channel.

    .. math:: \hat x = \alpha (Q_p(x / \alpha - o) + o)

    with o = 0 for signed inputs and o = 2 for those that are never negative, whose grid is
    :math:`(2u + 1) 2^{1-p}` between 0 and 4.

    Args:
        bits: uint8, of one element or one an input channel; a channel of 0 bits is not read.
        scale: (alpha) floating, 0-dim, positive.
        signed: bool, 0-dim.
        axis: of the input's channels, counted from the end.
    """

    bits: Tensor
    scale: Tensor
    signed: Tensor
    axis: int

    @property
    def offset(self) -> float:
        """(o) 0 or 2."""
        return 0.0 if bool(self.signed) else 2.0


def quantize_input(
    inputs: Tensor, bits: Tensor, scale: Tensor, signed: Tensor, axis: int
) -> Tensor:
    """The input on its grid, as ``InputFormat`` says; channels of 0 bits become 0.

    Args:
        inputs: floating, any shape with the channels at ``axis``.
        bits: uint8, one element or one a channel.
        scale: 0-dim.
        signed: bool, 0-dim.
        axis: negative.

    Returns:
        Numbers of the shape and dtype of ``inputs``.
    """
    width = along(bits, axis)
    factor = scale.to(inputs.dtype)
    offset = torch.where(signed, 0.0, 2.0).to(inputs.dtype)
    # No check of the bits' values here, so that no pass waits for the device.
    grid = quantize_unchecked(inputs / factor - offset, width.clamp(min=1))
    return torch.where(width > 0, (grid + offset) * factor, 0.0)


def along(bits: Tensor, axis: int) -> Tensor:
    """Bits of channels in the shape that broadcasts to inputs with the channels at an axis."""
    return bits.reshape(-1, *(1,) * (-1 - axis)) if bits.ndim else bits


class QuantizeInput:
    """Forward pre-hook of a finished layer: its first input goes on the grid of its buffers."""

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The layer's arguments with the first one quantised."""

        def placed(inputs: Tensor) -> Tensor:
            bits, scale, signed = (module._buffers[name] for name in _INPUT)
            assert bits is not None and scale is not None and signed is not None
            return quantize_input(inputs, bits, scale, signed, self.axis)

        return with_first(args, kwargs, placed)


def with_first(
    args: tuple[Any, ...], kwargs: dict[str, Any], function: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments with a function applied to the input, by place or by name."""
    if args:
        return (function(args[0]), *args[1:]), kwargs
    name = next((name for name in ("input", "x") if name in kwargs), None)
    if name is None:
        raise RequestError("input: a layer with quantised inputs was called without one")
    return args, {**kwargs, name: function(kwargs[name])}


def channel_axis(layer: nn.Module) -> int:
    """The axis of a layer's input that holds its channels, counted from the end.

    Args:
        layer: linear (Hugging Face's ``Conv1D`` too) or convolutional.

    Raises:
        RequestError: another layer.
    """
    for dimensions, kinds in enumerate(
        (
            (nn.Linear,),
            (nn.Conv1d, nn.ConvTranspose1d),
            (nn.Conv2d, nn.ConvTranspose2d),
            (nn.Conv3d, nn.ConvTranspose3d),
        )
    ):
        if isinstance(layer, kinds):
            return -1 - dimensions
    if is_hugging_face_conv1d(layer):
        return -1
    raise invalid("layer", type(layer).__name__, "a linear or convolutional layer")


def leave_weight_format(
    layer: nn.Module, bits: Tensor, scale: Tensor, *, parameter_name: str = "weight"
) -> None:
    """Notes on a plain layer which grid its weight lies on.

    Args:
        layer: with a parameter of that name.
        bits: uint8, broadcasts to the weight.
        scale: floating, broadcasts to the weight.
        parameter_name: the tensor's name in the layer.

    Raises:
        RequestError: no such tensor, or shapes that do not fit it.
    """
    known = parametrize.is_parametrized(layer, parameter_name)
    if not known and layer._parameters.get(parameter_name) is None:
        raise invalid("parameter_name", parameter_name, f"a parameter of {type(layer).__name__}")
    bits, scale = bits.detach().to(torch.uint8).clone(), scale.detach().clone()
    # Under a mask that is not baked yet there is no plain parameter.
    _require_fit(parameter_name, stored_tensor(layer, parameter_name), bits, scale)
    layer.register_buffer(parameter_name + BITS, bits)
    layer.register_buffer(parameter_name + SCALE, scale)


def leave_input_format(layer: nn.Module, bits: Tensor, scale: Tensor, signed: Tensor) -> None:
    """Has a plain layer quantise its input, by buffers and a hook.

    Args:
        layer: linear or convolutional.
        bits: uint8, one element or one an input channel.
        scale: floating, 0-dim.
        signed: bool, 0-dim.

    Raises:
        RequestError: a layer of another kind.
    """
    hook = QuantizeInput(channel_axis(layer))
    for name, tensor in zip(_INPUT, (bits.to(torch.uint8), scale, signed), strict=True):
        layer.register_buffer(name, tensor.detach().clone())
    layer.register_forward_pre_hook(hook, with_kwargs=True)


def weight_format(layer: nn.Module, parameter_name: str = "weight") -> WeightFormat | None:
    """The format of a finished layer's weight; None if it has none.

    Args:
        layer: any module.
        parameter_name: the tensor's name in the layer.

    Raises:
        RequestError: the weight has another shape than when the format was left.
    """
    parts = format_buffers(layer, parameter_name)
    if parts is None:
        return None
    _require_fit(parameter_name, getattr(layer, parameter_name), *parts)
    return WeightFormat(*parts)


def input_format(layer: nn.Module) -> InputFormat | None:
    """The format of a finished layer's input; None if it takes any numbers.

    Args:
        layer: any module.
    """
    bits, scale, signed = (layer._buffers.get(name) for name in _INPUT)
    hooks = [hook for hook in layer._forward_pre_hooks.values() if isinstance(hook, QuantizeInput)]
    if bits is None or scale is None or signed is None or not hooks:
        return None
    return InputFormat(bits, scale, signed, hooks[0].axis)


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """The weights of a finished model that have a format.

    Args:
        model: any module.

    Yields:
        Name of the layer, the layer, name of its parameter.
    """
    for name, module in model.named_modules():
        for parameter_name in list(module._parameters):
            if weight_format(module, parameter_name) is not None:
                yield name, module, parameter_name


def remove_formats(model: nn.Module) -> nn.Module:
    """Takes buffers and hooks of formats off; weights keep their values, inputs theirs.

    Args:
        model: changed in place.

    Returns:
        The model.
    """
    for module in model.modules():
        for parameter_name in list(module._parameters):
            for suffix in (BITS, SCALE):
                module._buffers.pop(parameter_name + suffix, None)
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, QuantizeInput):
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
                for name in _INPUT:
                    module._buffers.pop(name, None)
    return model


def restore_formats(model: nn.Module, state: Mapping[str, Tensor]) -> int:
    """Gives a fresh model the formats that a state dict speaks of, so that it takes this state.

    Args:
        model: of the layers that the state is of, changed in place; what has a format keeps it.
        state: tensors by name; nothing but formats is read.

    Returns:
        How many layers have got a format of a weight or of inputs.

    Raises:
        RequestError: a format that does not fit its layer, or of a layer that cannot have one;
            nothing has changed then.
    """
    due = [
        (module, parameter_name, f"{name}.{parameter_name}" if name else parameter_name)
        for name, module in model.named_modules()
        for parameter_name, parameter in module._parameters.items()
        if parameter is not None
    ]
    weights = []
    for module, parameter_name, key in due:
        bits, scale = state.get(key + BITS), state.get(key + SCALE)
        if bits is None or scale is None or parameter_name + BITS in module._buffers:
            continue
        _require_bits(key, bits)
        _require_fit(key, module._parameters[parameter_name], bits, scale)
        weights.append((module, parameter_name, bits, scale))
    inputs = []
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        bits, scale, signed = (state.get(prefix + part) for part in _INPUT)
        if bits is None or scale is None or signed is None or "input_bits" in module._buffers:
            continue
        _require_bits(prefix + "input", bits)
        channel_axis(module)
        inputs.append((module, bits, scale, signed))
    for module, parameter_name, bits, scale in weights:
        device = module._parameters[parameter_name].device
        leave_weight_format(
            module, bits.to(device), scale.to(device), parameter_name=parameter_name
        )
    for module, bits, scale, signed in inputs:
        device = next(module.parameters()).device
        leave_input_format(module, bits.to(device), scale.to(device), signed.to(device))
    return len({id(module) for module, *_ in [*weights, *inputs]})


def _require_bits(name: str, bits: Tensor) -> None:
    if bits.dtype != torch.uint8 or (bits.numel() and int(bits.max()) > MOST_BITS):
        raise invalid(f"{name}{BITS}", f"{bits.dtype}", f"uint8 numbers from 0 to {MOST_BITS}")


def _require_fit(name: str, weight: Tensor | None, bits: Tensor, scale: Tensor) -> None:
    assert weight is not None
    for part, tensor in ((BITS, bits), (SCALE, scale)):
        try:
            fits = torch.broadcast_shapes(tensor.shape, weight.shape) == weight.shape
        except RuntimeError:
            fits = False
        if not fits:
            raise invalid(
                f"{name}{part}",
                f"shape {tuple(tensor.shape)}",
                f"a shape for the weight's {tuple(weight.shape)}; change shapes before formats",
            )
