"""How the noise parameters s move: their own Adam, the curvature they meet, and the penalty."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from latewood.errors import invalid, is_number
from latewood.precision.number_format import MOST_BITS, bits_of
from latewood.precision.water_filling import largest_average, price_of_average
from latewood.precision.weight_precision import LARGEST_S, LEAST_S, Scale, WeightPrecision

__all__ = [
    "TRAVEL",
    "Groups",
    "NoiseSettings",
    "Penalty",
    "count_of",
    "curvatures",
    "learned_groups",
    "move_s",
    "noise_rate",
]

_LN2: Final = math.log(2.0)
_BETAS: Final = (0.9, 0.999)
_FORGET: Final = 0.02
"""Part of the running sums for the curvature that each step replaces."""
TRAVEL: Final = 6.0
"""Way of s from 8 bits to the region of 1 bit."""
PAPER_RATE: Final = 1e-3


@dataclass(frozen=True, kw_only=True)
class NoiseSettings:
    """How the noise phase starts and learns.

    Args:
        lr: learning rate of s, whose steps are Adam's whatever the loop's optimizer; the paper's is
            1e-3. None is that, or in short runs so much that s can go four times the way from 8
            bits to 1 (ours).
        initial_bits: of everything whose bits are learned, in (1, 8].
        scale: unit of the grid (``WeightPrecision``): "max" for weights that are trained already,
            "fan_in" for a training from scratch, which leaves them room to grow.

    Raises:
        RequestError: a value out of range.
    """

    lr: float | None = None
    initial_bits: float = 8.0
    scale: Scale = "max"

    def __post_init__(self) -> None:
        if self.lr is not None and not (is_number(self.lr) and 0.0 < self.lr < math.inf):
            raise invalid("lr", self.lr, "a positive finite number, or None")
        if not is_number(self.initial_bits) or not 1.0 < self.initial_bits <= MOST_BITS:
            raise invalid("initial_bits", self.initial_bits, f"a number in (1, {MOST_BITS}]")
        if self.scale not in ("max", "fan_in"):
            raise invalid("scale", self.scale, "'max' or 'fan_in'")


def noise_rate(lr: float | None, steps: int) -> float:
    """The learning rate of s in a noise phase of so many steps.

    Args:
        lr: as asked for; None for the paper's, or more where the phase is short.
        steps: of the phase.
    """
    return lr if lr is not None else max(PAPER_RATE, 4 * TRAVEL / max(steps, 1))


@torch.no_grad()
def move_s(precision: WeightPrecision, *, lr: float, taken: int, price: float) -> None:
    """One step of Adam on s, from where it was before the loop's optimizer touched it.

    Args:
        precision: of a weight whose bits are learned; its gradient is there.
        lr: learning rate.
        taken: steps before this one.
        price: of a bit of one weight, as it was in the loss.
    """
    s = precision.s
    assert s is not None
    before, mean, square = precision.s_before, precision.mean, precision.square
    slope, weight = precision.slope, precision.weight_of_slope
    s.copy_(before)
    gradient = s.grad
    # fp16's scaler skips such a step, and so does s.
    if gradient is None or not bool(gradient.isfinite().all()):
        return
    sigma = torch.sigmoid(s)
    # Least squares for h in gradient = n h sigma^2 (1 - sigma) / 3, whose noise goes with sigma.
    of_loss = gradient + price * count_of(precision) * (1 - sigma) / _LN2
    slope.lerp_(of_loss / (3 * (1 - sigma)), _FORGET)
    weight.lerp_(sigma.square() / 9, _FORGET)
    mean.lerp_(gradient, 1 - _BETAS[0])
    square.lerp_(gradient.square(), 1 - _BETAS[1])
    unbiased = mean / (1 - _BETAS[0] ** (taken + 1))
    size = (square / (1 - _BETAS[1] ** (taken + 1))).sqrt_()
    s.sub_(lr * unbiased / (size + torch.finfo(size.dtype).tiny))
    s.clamp_(LEAST_S, LARGEST_S)
    before.copy_(s)


def curvatures(precision: WeightPrecision) -> Tensor:
    r"""Second derivative of the loss by a weight of each group, on the grid's scale; 0 or more.

    The expected loss rises by :math:`n h \sigma^2 / 6`, so that its slope by s tells h; no
    second backward pass is needed.

    Args:
        precision: of a weight whose bits are learned.

    Returns:
        Of the shape of s.

    Source: ours [I], from the closed form of 4.4 there.
    """
    total = precision.slope / precision.weight_of_slope.clamp_min(torch.finfo().tiny)
    return total.clamp_min(0) / count_of(precision)


def count_of(precision: WeightPrecision) -> int:
    """Number of weights that share one s."""
    return precision.weights // precision.bits.numel()


class Penalty:
    """The price of a bit: fixed, or such that the average of the bits goes where it is asked to.

    While the average goes down, the price is at least what moves most s against the noise of their
    gradients; at the end of that way it is the closed form's of the curvature met so far
    (``price_of_average``), which needs no search.

    Args:
        fixed: the factor (lambda) of the mean number of bits beyond the first; None follows
            ``target``.
        target: average at the end of the noise phase.
        start: average at its start.
        steps: of the phase.

    Source: the closed form is inferred [I], the way down is ours.
    """

    def __init__(
        self, *, fixed: float | None, target: float | None, start: float, steps: int
    ) -> None:
        self.fixed, self.target, self.start = fixed, target, start
        self.steps = steps
        self.weight = 0.0 if fixed is None else fixed
        """The factor (lambda) now."""

    def planned(self, step: int) -> float:
        """The average that is asked for after so many steps, above 1, which no finite s has."""
        assert self.target is not None
        way = min(1.0, step / max(_DESCENT * self.steps, 1.0))
        end = max(self.target, _LEAST_AVERAGE)
        return self.start + (end - self.start) * way

    @torch.no_grad()
    def update(self, precisions: Collection[WeightPrecision], step: int) -> None:
        """Sets the price for the steps to come.

        Args:
            precisions: of all weights whose bits are learned.
            step: steps taken, 1 or more.
        """
        if self.fixed is not None or (step > _EVERY and step % _EVERY):
            return
        groups = learned_groups(precisions)
        total = float(groups.counts.sum())
        now = float((groups.bits * groups.counts).sum()) / total
        # Beyond what noise of 8 bits can tell there is nothing to plan with.
        planned = min(self.planned(step + 1), MOST_BITS - 0.01)
        price = 0.0
        if planned < largest_average(groups.curvature, groups.counts):
            price = price_of_average(groups.curvature, groups.counts, planned)
        # At this price as many bits fall as rise by chance: half of s feel it more than the noise.
        noise = groups.square.sqrt() / (1 - _BETAS[1] ** step) ** 0.5
        moving = float((noise * _LN2 / (groups.counts * (1 - groups.sigma))).median())
        self.weight = total * max(price, moving * min(1.0, max(0.0, now - planned)))


_DESCENT: Final = 0.7
"""Part of the noise phase in which the average goes down; in the rest bits are traded at it."""
_LEAST_AVERAGE: Final = 1.02
_EVERY: Final = 5
"""Steps between two prices."""
_MOST_GROUPS: Final = 20_000
"""Of more groups than that a part is looked at, evenly spread."""


@dataclass(frozen=True)
class Groups:
    """What is known of all that shares an s, in one vector each, float64.

    Args:
        bits: learned so far.
        counts: weights.
        curvature: by one weight.
        square: second moment of the gradient by s.
        sigma: half-width of the noise.
    """

    bits: Tensor
    counts: Tensor
    curvature: Tensor
    square: Tensor
    sigma: Tensor


def learned_groups(precisions: Collection[WeightPrecision], *, all_of: bool = False) -> Groups:
    """The groups of all weights whose bits are learned, in order.

    Args:
        precisions: of these weights, each with its s.
        all_of: every group, also of very many.
    """
    columns: list[list[Tensor]] = [[], [], [], [], []]
    number = sum(precision.bits.numel() for precision in precisions)
    stride = 1 if all_of else max(1, number // _MOST_GROUPS)
    for precision in precisions:
        s = precision.s
        assert s is not None
        values = (
            bits_of(s.detach()),
            torch.full_like(s.detach(), count_of(precision)),
            curvatures(precision),
            precision.square,
            torch.sigmoid(s.detach()),
        )
        for column, tensor in zip(columns, values, strict=True):
            column.append(tensor.flatten()[::stride].double())
    return Groups(*(torch.cat(column) for column in columns))
