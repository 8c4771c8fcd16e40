"""Bound functions for AdaBound, and the condition under which its regret is O(sqrt T)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import Protocol

from latewood.errors import invalid
from latewood.kernels.optimizers import Number

__all__ = [
    "Bounds",
    "CorrectedBounds",
    "HyperbolicBounds",
    "SwitchedBounds",
    "regret_bound",
    "regret_constant",
    "regret_difference",
]


class Bounds(Protocol):
    """Lower and upper bound of the elementwise step size, as multiples of the final rate.

    Both take the step t >= 1, a float (or a 0-dim tensor under torch.compile), and satisfy
    0 <= lower(t) <= upper(t).
    """

    def lower(self, step: Number) -> Number: ...

    def upper(self, step: Number) -> Number: ...


@dataclass(frozen=True)
class HyperbolicBounds:
    r"""The original bounds: both approach 1, so that AdaBound approaches SGD.

    .. math::
        l(t) = 1 - \frac{1}{\gamma t + 1}, \qquad u(t) = 1 + \frac{1}{\gamma t}

    Args:
        gamma: speed of the approach, at least 0; 0 never clips.

    Raises:
        RequestError: if gamma is negative.

    Source: Luo et al., "Adaptive Gradient Methods with Dynamic Bound of Learning Rate"; restated
    in arXiv 1908.04457.
    """

    gamma: float = 1e-3

    def __post_init__(self) -> None:
        if not _is_number(self.gamma) or not 0.0 <= self.gamma < float("inf"):
            raise invalid("gamma", self.gamma, "a finite number of at least 0")

    def lower(self, step: Number) -> Number:
        return 1.0 - 1.0 / (self.gamma * step + 1.0)

    def upper(self, step: Number) -> Number:
        if self.gamma == 0.0:
            return step * float("inf")
        return 1.0 + 1.0 / (self.gamma * step)


@dataclass(frozen=True)
class SwitchedBounds:
    """Bounds that are loose up to a step and meet the lower one after it.

    With lower = alpha/C and upper = alpha/sqrt(1-beta2) they are the bounds for which AdaBound
    follows Adam, away from the optimum, for as long as one likes.

    Args:
        lower_rate: lower bound at all times, above 0.
        early_upper: upper bound up to and including ``last_loose_step``.
        last_loose_step: K.

    Raises:
        RequestError: if the bounds cross.

    Source: arXiv 1908.04457, Theorem 2.
    """

    lower_rate: float
    early_upper: float
    last_loose_step: int

    def __post_init__(self) -> None:
        for name in ("lower_rate", "early_upper", "last_loose_step"):
            if not _is_number(getattr(self, name)):
                raise invalid(name, getattr(self, name), "a number")
        if not 0.0 < self.lower_rate <= self.early_upper:
            raise invalid("lower_rate", self.lower_rate, f"above 0, at most {self.early_upper:g}")

    def lower(self, step: Number) -> Number:
        return step * 0.0 + self.lower_rate

    def upper(self, step: Number) -> Number:
        loose = 1.0 * (step <= self.last_loose_step)
        return self.lower_rate + loose * (self.early_upper - self.lower_rate)


@dataclass(frozen=True)
class CorrectedBounds:
    r"""The loosest lower bound that keeps the regret O(sqrt T), under a given upper bound.

    .. math::
        l(t) = \frac{t}{M + (t-1)/u(t-1)}

    makes t/l(t) - (t-1)/u(t-1) equal to M at every step, where the original bounds may exceed any
    constant for any length of time.

    Args:
        upper_bounds: where the upper bound u comes from.
        constant: M, at least t/u(t) - (t-1)/u(t-1) at every t, so that l <= u; 1 suffices for
            `HyperbolicBounds`.

    Raises:
        RequestError: if the constant is so small that the bounds cross.

    Source: the condition of arXiv 1908.04457, Theorem 3, solved for l.
    """

    upper_bounds: Bounds = field(default_factory=lambda: HyperbolicBounds(1.0))
    constant: float = 3.0

    def __post_init__(self) -> None:
        if not _is_number(self.constant) or not 0.0 < self.constant < float("inf"):
            raise invalid("constant", self.constant, "a finite number above 0")
        steps = [2.0**k for k in range(25)]
        needed = max(step / self.upper(step) - _ratio(self.upper_bounds, step) for step in steps)
        # The last digits of a difference of large numbers mean nothing.
        if self.constant < needed * (1.0 - 1e-6):
            raise invalid(
                "constant", self.constant, f"at least {float(needed):g} with this upper bound"
            )

    def lower(self, step: Number) -> Number:
        return step / (self.constant + _ratio(self.upper_bounds, step))

    def upper(self, step: Number) -> Number:
        return self.upper_bounds.upper(step)


def regret_difference(bounds: Bounds, step: int) -> float:
    r"""The quantity whose supremum over t is the constant M of the regret bound.

    .. math::
        \frac{t}{l(t)} - \frac{t-1}{u(t-1)}

    Args:
        bounds: the bound functions.
        step: t, from 1.

    Source: arXiv 1908.04457, Theorem 3.
    """
    return step / float(bounds.lower(float(step))) - float(_ratio(bounds, float(step)))


def regret_constant(bounds: Bounds, steps: int) -> float:
    """The smallest M for which the condition of Theorem 3 holds up to ``steps``.

    For `HyperbolicBounds(gamma)` it increases to 1 + 2/gamma.

    Args:
        bounds: the bound functions.
        steps: T, at least 1.
    """
    return max(regret_difference(bounds, step) for step in range(1, steps + 1))


def regret_bound(
    bounds: Bounds,
    steps: int,
    *,
    dimension: int,
    diameter: float,
    gradient: float,
    final_rate: float = 1.0,
    beta1: float = 0.0,
) -> float:
    r"""Upper bound on the regret after T steps, with beta1_t = beta1/t.

    .. math::
        R_T \le \frac{D^2}{2(1-\beta_1)} \Big[ 2 d M (\sqrt T - 1) + \sum_i \Big(
        \frac{1}{\eta_{1,i}} + \sum_t \frac{\beta_{1,t}}{\eta_{t,i}} \Big) \Big]
        + \frac{(2 \sqrt T - 1) R G^2}{1-\beta_1}

    The step sizes eta are taken at their smallest, l(t)/sqrt(t); R is the largest u(t).

    Args:
        bounds: the bound functions, as multiples of the final rate.
        steps: T.
        dimension: d, number of coordinates.
        diameter: D, largest distance along one coordinate.
        gradient: G, bound on the gradient's Euclidean norm.
        final_rate: what the bounds are multiplied with (alpha*).
        beta1: decay of the first moment at t = 1, in [0, 1).

    Returns:
        The bound on the sum over T steps of f_t(x_t) - f_t(x*), for convex f_t.

    Source: arXiv 1908.04457, Theorem 3.
    """
    constant = regret_constant(bounds, steps) / final_rate
    lowers = [final_rate * float(bounds.lower(float(t))) for t in range(1, steps + 1)]
    largest = final_rate * max(float(bounds.upper(float(t))) for t in range(1, steps + 1))
    momentum = sum(beta1 / (math.sqrt(t) * lower) for t, lower in enumerate(lowers, start=1))
    root = math.sqrt(steps)
    distance = 2.0 * dimension * constant * (root - 1.0) + dimension * (1.0 / lowers[0] + momentum)
    return diameter**2 / (2.0 * (1.0 - beta1)) * distance + (
        2.0 * root - 1.0
    ) * largest * gradient**2 / (1.0 - beta1)


def _is_number(value: object) -> bool:
    return isinstance(value, Real)


def _ratio(bounds: Bounds, step: Number) -> Number:
    # (t-1)/u(t-1), which is 0 at t = 1 though u(0) may be infinite.
    before = step - 1.0
    if isinstance(step, float) and before == 0.0:
        return 0.0
    return before / bounds.upper(before)
