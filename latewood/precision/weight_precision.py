"""The weight transformation of learned precision: noise that stands for bits, then a grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from latewood.core import PRECISION, Follows
from latewood.kernels.noise import noisy
from latewood.precision.number_format import MOST_BITS, bits_of, quantize_unchecked, s_of
from latewood.precision.quantizable_weights import Axes
from latewood.precision.snapping import nearest_levels

__all__ = ["LARGEST_S", "Scale", "Sharing", "WeightPrecision", "straight_through"]

Sharing = Literal["input_channel", "weight", "layer"]
Scale = Literal["max", "fan_in"]

LARGEST_S: Final = 8.0
"""1.0005 bits: beyond, the logistic function has no gradient worth following [I]."""
LEAST_S: Final = float(s_of(float(MOST_BITS)))
RANGE: Final = 1.875
"""The largest number of the 4-bit grid."""
_OF_S: Final = ("s_before", "mean", "square", "slope", "weight_of_slope")
"""Buffers of the shape of s: what it was before the loop's optimizer touched it, the moments of the
method's own, and sums for the estimate of curvature."""
_HALF_PRECISION: Final = (torch.float16, torch.bfloat16)


class WeightPrecision(nn.Module):
    r"""What stands between a stored weight and its layer while bits are learned and after.

    In training :math:`W + \alpha \sigma(s) \epsilon` with noise :math:`\epsilon` of [-1, 1], and
    once snapped :math:`\alpha Q_p(W / \alpha)` with a gradient of 1 inside :math:`\pm 2 \alpha` and
    0 outside. In evaluation always the latter, with the level next to the learned bits as long as
    nothing is snapped. A weight whose bits are not learned has no s: it stays as it is until it is
    snapped.

    Args:
        weight: the stored tensor.
        axes: how it is laid out.
        per: what shares one s.
        levels: widths for evaluation before snapping, ascending.
        initial_bits: of every s; None for a weight whose bits are fixed.
        scale: of the grid: "max" is :math:`\max |W_o| / 1.875` of each output channel, "fan_in"
            is :math:`1 / \sqrt{\text{fan-in}}`.
        nested: once snapped, training uses the bits in ``drawn``.

    Source: SMOL, reconstructed [R]; the scales and the border of the gradient are inferred [I].
    """

    order = PRECISION
    is_format = True
    scale: Tensor
    bits: Tensor
    drawn: Tensor
    key: Tensor
    snapped: Tensor
    s_before: Tensor
    mean: Tensor
    square: Tensor
    slope: Tensor
    weight_of_slope: Tensor

    def __init__(
        self,
        weight: Tensor,
        axes: Axes,
        *,
        per: Sharing,
        levels: tuple[int, ...],
        initial_bits: float | None,
        scale: Scale,
        nested: bool = False,
    ) -> None:
        super().__init__()
        dtype = torch.promote_types(weight.dtype, torch.float32)
        shape, spread = _shape_of_s(weight, axes, per)
        self.levels = levels
        self.weights = weight.numel()
        self.is_snapped = False
        self.s: nn.Parameter | None = None
        self.is_nested = nested and initial_bits is not None
        self._expanded = spread
        self._outputs = axes.outputs
        self._output_groups = axes.groups

        def filled(value: float, kind: torch.dtype = dtype) -> Tensor:
            return torch.full(shape, value, dtype=kind, device=weight.device)

        if initial_bits is not None:
            start = min(float(s_of(float(initial_bits))), LARGEST_S)
            self.s = nn.Parameter(filled(start), requires_grad=True)
            # Of an Adam of our own, and of the estimate of curvature.
            for name in _OF_S:
                self.register_buffer(name, filled(start if name == "s_before" else 0.0))
        self.register_buffer("bits", filled(MOST_BITS, torch.uint8))
        self.register_buffer("scale", self._scale_of(weight, scale).to(dtype))
        self.fit_scale(weight)
        self.register_buffer(
            "key", torch.zeros((), dtype=torch.int64, device=weight.device), persistent=False
        )
        if nested and initial_bits is not None:
            self.register_buffer("drawn", filled(MOST_BITS, torch.uint8), persistent=False)
        self.register_buffer("snapped", torch.zeros((), dtype=torch.bool, device=weight.device))
        self.follows = {"scale": Follows(axes.outputs)}
        if self.bits.numel() > 1:
            axis = axes.inputs if shape[axes.inputs] > 1 else axes.outputs
            like_s = Follows(None if per == "weight" else axis)
            self.follows |= dict.fromkeys(("s", "bits", "drawn", *_OF_S), like_s)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the layer computes with, of the shape and dtype of ``weight``."""
        if self.training and not self.is_snapped:
            if self.s is None:
                return weight
            return noisy(weight, self.scale * self.expanded(torch.sigmoid(self.s)), self.key)
        return straight_through(weight, self.scale, self.expanded(self.current_bits()))

    def current_bits(self) -> Tensor:
        """Bits once snapped, and before that the level next to the learned ones: uint8."""
        if self.is_snapped or self.s is None:
            return self.drawn if self.training and self.is_nested else self.bits
        near = nearest_levels(bits_of(self.s.detach()), self.levels)
        # By the tensor, since an average of the weights takes over tensors, and nothing else.
        return torch.where(self.snapped, self.bits, near)

    def grid(self) -> tuple[Tensor, Tensor] | None:
        """Bits and scale of the grid that weights are on; None as long as it is not fixed.

        What ``core.integer_codes`` asks for.
        """
        return (self.expanded(self.current_bits()), self.scale) if self.is_snapped else None

    def stored_bits(self, weight: Tensor) -> float:
        """Bits of a whole weight, as evaluated; what ``core.bits`` asks for."""
        return float(self.expanded(self.current_bits()).expand(weight.shape).sum())

    def real_bits(self) -> Tensor:
        """Bits as real numbers, of the shape of s."""
        if self.is_snapped or self.s is None:
            return self.bits.to(self.scale.dtype)
        return bits_of(self.s.detach())

    def expanded(self, shared: Tensor) -> Tensor:
        """What is of the shape of s in a shape that broadcasts to the weight."""
        if self._expanded is None:
            return shared
        groups, per_group = self._expanded
        # (groups, 1, inputs, ...) becomes (outputs, inputs, ...).
        spread = shared.expand(groups, per_group, *shared.shape[2:])
        return spread.reshape(groups * per_group, *shared.shape[2:])

    def reduced(self, values: Tensor) -> Tensor:
        """The sum of a tensor of the weight's shape over what shares one s."""
        target = self.bits.shape
        if self._expanded is not None:
            groups, per_group = self._expanded
            values = values.reshape(groups, per_group, *values.shape[1:])
        axes = [axis for axis, size in enumerate(target) if size == 1 and values.shape[axis] > 1]
        return values.sum(axes, keepdim=True) if axes else values

    def bound(self) -> Tensor:
        """The largest size of a stored weight, broadcasts to it."""
        if self.is_snapped or self.s is None:
            return 2 * self.scale
        return self.scale * (2 - self.expanded(torch.sigmoid(self.s.detach())))

    def draw(self, generator: torch.Generator) -> None:
        """Draws the bits of nested training: learned ones, half of them, or 1, at random."""
        choice = torch.randint(0, 3, self.bits.shape, generator=generator).to(self.bits.device)
        half = (self.bits // 2).clamp(min=1)
        drawn = torch.where(choice == 0, self.bits, torch.where(choice == 1, half, 1))
        # What is gone stays so.
        self.drawn.copy_(torch.where(self.bits > 0, drawn, 0))

    @torch.no_grad()
    def fit_scale(self, weight: Tensor) -> None:
        """Has the grid of a weight of fixed bits reach as far as its channels; others stay.

        A scale that is kept, and not looked up in each evaluation, lets growth between two steps
        leave the rounded network what it was.

        Args:
            weight: the stored tensor.
        """
        if self.s is None and not self.is_snapped:
            self.scale.copy_(self._peak_scale(weight))

    @torch.no_grad()
    def snap(self, bits: Tensor | None, weight: Tensor) -> None:
        """Fixes the bits; s trains no more.

        Args:
            bits: uint8 of the shape of s; None for a weight of fixed bits.
            weight: the stored tensor.
        """
        self.fit_scale(weight)
        if bits is not None:
            self.bits.copy_(bits)
        self.snapped.fill_(True)
        self.fix()

    def fix(self) -> None:
        """Says that the bits are fixed by now, as ``snapped`` and ``bits`` hold."""
        self.is_snapped = True
        if self.s is not None:
            self.s.requires_grad_(False)
            self.s.grad = None

    def release(self) -> None:
        """Says that bits are still to be learned, as before ``fix``."""
        self.is_snapped = False
        if self.s is not None:
            self.s.requires_grad_(True)

    def extra_repr(self) -> str:
        """The state in words."""
        state = "snapped" if self.is_snapped else "fixed" if self.s is None else "learning"
        return f"{tuple(self.bits.shape)}, {state}"

    def _scale_of(self, weight: Tensor, scale: Scale) -> Tensor:
        fan_in = max(weight[:1].numel() if self._outputs == 0 else weight[:, :1].numel(), 1)
        start = torch.full((), fan_in**-0.5, dtype=torch.float32, device=weight.device)
        peaks = _peaks(weight, self._outputs)
        if scale == "fan_in":
            return start.expand(peaks.shape).clone()
        # An output channel that starts with zeros may still learn weights.
        return torch.where(peaks > 0, peaks / RANGE, start)

    def _peak_scale(self, weight: Tensor) -> Tensor:
        peaks = _peaks(weight, self._outputs).to(self.scale.dtype)
        return torch.where(peaks > 0, peaks / (2 - 2.0 ** (1 - MOST_BITS)), self.scale)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WeightPrecision:
        """Moves with the model but stays in float32 when the model goes to half precision."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            half = tensor.is_floating_point() and moved.dtype in _HALF_PRECISION
            return tensor.to(moved.device) if half else moved

        super()._apply(move, recurse)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        """Becomes snapped or learning as the state is."""
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        snapped = state_dict.get(prefix + "snapped")
        if snapped is not None:
            (self.fix if bool(snapped) else self.release)()


def straight_through(weight: Tensor, scale: Tensor, bits: Tensor) -> Tensor:
    r"""The grid's number :math:`\alpha Q_p(w / \alpha)`, with the gradient of a clipped identity.

    Args:
        weight: any shape.
        scale: (alpha) positive, broadcasts to it.
        bits: uint8 from 0 to 8, broadcasts to it; 0 bits give 0.

    Returns:
        Of the shape and dtype of ``weight``; the gradient is 1 where :math:`|w| \le 2 \alpha`, and
        0 elsewhere and where there are no bits.
    """
    wide = weight.to(torch.promote_types(weight.dtype, scale.dtype))
    normal = wide / scale
    grid = quantize_unchecked(normal.detach(), bits.clamp(min=1))
    inside = normal.clamp(-2, 2)
    # The last two cancel to the bit and carry the gradient.
    rounded = scale * (grid + (inside - inside.detach()))
    return torch.where(bits > 0, rounded, 0.0).to(weight.dtype)


def _peaks(weight: Tensor, outputs: int) -> Tensor:
    """The largest size of each output channel, in a shape that broadcasts to the weight."""
    others = [axis for axis in range(weight.ndim) if axis != outputs]
    return weight.detach().float().abs().amax(others, keepdim=True)


def _shape_of_s(
    weight: Tensor, axes: Axes, per: Sharing
) -> tuple[tuple[int, ...], tuple[int, int] | None]:
    """The shape of s, and for grouped convolutions how many groups and outputs a group."""
    if per == "weight":
        return tuple(weight.shape), None
    ones = [1] * weight.ndim
    if per == "layer":
        return tuple(ones), None
    if axes.groups == 1:
        ones[axes.inputs] = weight.shape[axes.inputs]
        return tuple(ones), None
    outputs, inputs = weight.shape[:2]
    if inputs == 1 and outputs == axes.groups:
        return (outputs, *ones[1:]), None
    return (axes.groups, 1, inputs, *ones[2:]), (axes.groups, outputs // axes.groups)
