"""Inputs of layers under learned precision: statistics, noise, and the grid."""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from latewood.core.selection import is_hugging_face_conv1d
from latewood.kernels.noise import extent, noisy
from latewood.precision.formats import along, with_first
from latewood.precision.number_format import MOST_BITS, quantize_unchecked
from latewood.precision.weight_precision import WeightPrecision

__all__ = ["InputHook", "InputPrecision", "attach_input", "can_read", "detach_input"]

_READERS: Final = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NAME: Final = "input_precision"
_MOMENTUM: Final = 0.1


def can_read(layer: nn.Module) -> bool:
    """Whether the input of a layer can have a format."""
    if isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False  # attention takes its weight and never calls it
    return isinstance(layer, _READERS) or is_hugging_face_conv1d(layer)


class InputPrecision(nn.Module):
    r"""What stands between a layer and its input while bits are learned and after.

    With :math:`z = x / \alpha - o`, clipped to :math:`\pm (2 - \sigma)`, the layer reads
    :math:`\alpha (z + \sigma \epsilon + o)` in training, and :math:`\alpha (Q_p(z) + o)` once
    snapped and in evaluation; o is 2 for inputs that have never been negative, else 0. The scale
    :math:`\alpha` is the running root mean square, so that the clipping is at two of them for
    signed inputs; with fixed 8 bits it is that of the largest size, and nothing is clipped.

    Args:
        axis: of the input's channels, counted from the end.
        learned: whether s and bits are those of the weight; else the input has 8 bits.

    Source: one width a channel for the weight and what meets it is the papers' [P]; offset and
    scales are inferred [I].
    """

    running_square: Tensor
    running_peak: Tensor
    running_least: Tensor
    running_batches: Tensor
    scale: Tensor
    signed: Tensor
    key: Tensor

    def __init__(self, axis: int, *, learned: bool, like: Tensor) -> None:
        super().__init__()
        self.axis, self.learned = axis, learned
        self.is_snapped = False
        for name in ("running_square", "running_peak", "running_least", "running_batches", "scale"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float32, device=like.device))
        self.register_buffer("signed", torch.ones((), dtype=torch.bool, device=like.device))
        self.register_buffer(
            "key", torch.zeros((), dtype=torch.int64, device=like.device), persistent=False
        )

    def forward(self, inputs: Tensor, weight: WeightPrecision) -> Tensor:
        """What the layer reads, of the shape and dtype of ``inputs``."""
        if self.is_snapped:
            return self._on_grid(inputs, weight, self.scale, self.signed)
        if self.training:
            self._look(inputs.detach())
        scale, signed = self.current()
        if not self.training:
            placed = self._on_grid(inputs, weight, scale, signed)
            return torch.where(self.running_batches > 0, placed, inputs)
        if not self.learned or weight.s is None:
            return inputs
        sigma = along(torch.sigmoid(weight.s).reshape(-1), self.axis)
        offset = torch.where(signed, 0.0, 2.0)
        # In units of the inputs, of which none that stays inside is rounded on the way.
        low, high = scale * (offset - 2), scale * (offset + 2)
        return noisy(inputs, scale * sigma, self.key, low=low, high=high)

    def current(self) -> tuple[Tensor, Tensor]:
        """Scale and sign by what has been seen so far."""
        signed = self.running_least < 0
        if self.learned:
            scale = self.running_square.sqrt()
        else:
            reach = torch.where(signed, 2.0, 4.0) - 2.0 ** (1 - MOST_BITS)
            scale = self.running_peak / reach
        return torch.where(scale > 0, scale, 1.0), signed

    @property
    def seen(self) -> bool:
        """Whether the layer has read anything in training."""
        return bool(self.running_batches > 0)

    @torch.no_grad()
    def snap(self, *, together: bool) -> None:
        """Fixes scale and sign.

        Args:
            together: all processes of a run do so now, and then agree.
        """
        statistics = torch.stack([self.running_square, self.running_peak, -self.running_least])
        if together and dist.is_available() and dist.is_initialized():
            dist.all_reduce(statistics, dist.ReduceOp.MAX)
        self.running_square.copy_(statistics[0])
        self.running_peak.copy_(statistics[1])
        self.running_least.copy_(-statistics[2])
        scale, signed = self.current()
        self.scale.copy_(scale)
        self.signed.copy_(signed)
        self.is_snapped = True

    def bits(self, weight: WeightPrecision) -> Tensor:
        """Of every channel, or one number for all: uint8."""
        if not self.learned:
            return torch.full((1,), MOST_BITS, dtype=torch.uint8, device=self.scale.device)
        return weight.current_bits().reshape(-1)

    def extra_repr(self) -> str:
        """The state in words."""
        return f"axis={self.axis}, {'snapped' if self.is_snapped else 'learning'}"

    def _on_grid(
        self, inputs: Tensor, weight: WeightPrecision, scale: Tensor, signed: Tensor
    ) -> Tensor:
        width = along(self.bits(weight), self.axis)
        offset = torch.where(signed, 0.0, 2.0)
        factor, shift = scale.to(inputs.dtype), offset.to(inputs.dtype)
        normal = inputs / factor - shift
        grid = quantize_unchecked(normal.detach(), width.clamp(min=1))
        inside = normal.clamp(-2, 2)
        return torch.where(width > 0, (grid + shift + (inside - inside.detach())) * factor, 0.0)

    @torch.no_grad()
    def _look(self, inputs: Tensor) -> None:
        if inputs.numel() == 0:
            return
        square, least, largest = extent(inputs).float().unbind()
        self.running_batches += 1
        part = torch.clamp(1 / self.running_batches, min=_MOMENTUM)
        self.running_square.lerp_(square, part)
        peak = torch.maximum(largest, -least)
        self.running_peak.copy_(torch.maximum(self.running_peak, peak))
        self.running_least.copy_(torch.minimum(self.running_least, least))


class InputHook:
    """Forward pre-hook of a layer in training: its first input passes through its precision."""

    def __init__(self, parameter_name: str) -> None:
        self.parameter_name = parameter_name

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The layer's arguments with the first one as the layer reads it."""
        inputs = module._modules[_NAME]
        assert isinstance(inputs, InputPrecision)
        weight = precision_of(module, self.parameter_name)
        return with_first(args, kwargs, lambda given: inputs(given, weight))


def precision_of(layer: nn.Module, parameter_name: str) -> WeightPrecision:
    """The ``WeightPrecision`` on a weight that has one."""
    stack = layer.parametrizations[parameter_name]  # type: ignore[index]
    return next(part for part in stack if isinstance(part, WeightPrecision))


def attach_input(layer: nn.Module, axis: int, *, learned: bool) -> InputPrecision:
    """Has a layer with a ``WeightPrecision`` on its weight read its input through one too.

    Args:
        layer: linear or convolutional.
        axis: of the input's channels, counted from the end.
        learned: see ``InputPrecision``.
    """
    like = next(layer.parameters())
    inputs = InputPrecision(axis, learned=learned, like=like)
    inputs.train(layer.training)
    layer.add_module(_NAME, inputs)
    layer.register_forward_pre_hook(InputHook("weight"), with_kwargs=True)
    return inputs


def detach_input(layer: nn.Module) -> None:
    """Takes off what ``attach_input`` has put on."""
    for key, hook in list(layer._forward_pre_hooks.items()):
        if isinstance(hook, InputHook):
            del layer._forward_pre_hooks[key]
            layer._forward_pre_hooks_with_kwargs.pop(key, None)
    del layer._modules[_NAME]
