"""Diagonal networks trained: gradient flow by an ODE solver, and gradient descent with its step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from latewood.errors import Diverged, RequestError, WorkError, invalid, require_count
from latewood.regimes.interpolation import linear_problem
from latewood.regimes.potentials import Link, Numbers, numbers, start_shape

__all__ = ["Trained", "diagonal_kernel", "gradient_descent", "gradient_flow"]


@dataclass(frozen=True)
class Trained:
    """A diagonal network at the end of its training; of a sweep, its shape comes first.

    Args:
        beta: (..., d), the predictor.
        plus: (..., d), the weights w_+.
        minus: (..., d), the weights w_-.
        residual: (...), the size of X beta - y relative to y.
        time: (...), of gradient flow, or steps of gradient descent.
    """

    beta: Tensor
    plus: Tensor
    minus: Tensor
    residual: Tensor
    time: Tensor


def gradient_flow(
    inputs: Tensor,
    targets: Tensor,
    *,
    depth: float = 2.0,
    alpha: float = 1.0,
    shape: Numbers = 1.0,
    plus: Tensor | None = None,
    minus: Tensor | None = None,
    coordinates: Literal["weights", "dual"] = "weights",
    tolerance: float = 1e-11,
    until: float = 1e12,
) -> Trained:
    r"""Integrates gradient flow on a diagonal network until its data is fitted.

    .. math:: \dot w = -\nabla_w \sum_n (\langle w_+^D - w_-^D, x_n \rangle - y_n)^2

    It knows nothing of the potentials, so it checks ``limit``. In dual coordinates, of which there
    are N, it is far cheaper where features are many, but takes the unbiased start for granted.

    Args:
        inputs: (N, d), X.
        targets: (N,), y.
        depth: D, at least 2.
        alpha: scale of the unbiased start.
        shape: its shape.
        plus: (d,), the weights w_+ at the start, above 0, in place of alpha * shape.
        minus: (d,), the weights w_- likewise; with ``plus``.
        coordinates: "weights" integrates all weights, "dual" the N dual variables.
        tolerance: size of X beta - y at which it stops.
        until: latest time.

    Returns:
        The network at the end.

    Raises:
        RequestError: no predictor interpolates the data, or a value out of range.
        WorkError: the solver failed, or the time was over before the data was fitted; says the
            residual that it reached.

    Source: COLT 2020 (arXiv 2002.09277); the dual form is derived.
    """
    problem = linear_problem(inputs, targets)
    x, y = problem.inputs.numpy(), problem.targets.numpy()
    size = x.shape[1]
    d = _single("depth", depth, 2, open_end=False)
    scale = _single("alpha", alpha, 0, open_end=True)
    _single("tolerance", tolerance, 0, open_end=True)
    _single("until", until, 0, open_end=True)
    if coordinates not in ("weights", "dual"):
        raise invalid("coordinates", coordinates, "'weights' or 'dual'")
    weights = start_shape(shape, size)
    link = Link.of(weights.new_full((1, 1), d), weights.new_full((1, 1), scale), weights)
    start = [(scale * weights).numpy(), (scale * weights).numpy()]
    for side, (name, given) in enumerate((("plus", plus), ("minus", minus))):
        if given is not None:
            start[side] = start_shape(_vector(name, given, size), size).numpy()
    if (plus is None) != (minus is None) or (plus is not None and coordinates == "dual"):
        raise RequestError("plus, minus: expected both, with coordinates='weights', or neither")

    def predictor(state: Any) -> Any:
        if coordinates == "dual":
            z = torch.from_numpy(state @ x)[None]
            return link.predictor(z)[0][0].numpy()
        return state[:size] ** d - state[size:] ** d

    def velocity(_: float, state: Any) -> Any:
        residual = x @ predictor(state) - y
        if coordinates == "dual":
            return -(8 if d == 2 else 2 * d * (d - 2) * scale ** (d - 2)) * residual
        pull = 2 * d * (x.T @ residual)
        return numpy.concatenate([-pull * state[:size] ** (d - 1), pull * state[size:] ** (d - 1)])

    def unfitted(_: float, state: Any) -> float:
        return float(numpy.linalg.norm(x @ predictor(state) - y)) - tolerance

    unfitted.terminal = True  # type: ignore[attr-defined]
    state = numpy.concatenate(start) if coordinates == "weights" else numpy.zeros(len(y))
    clock = 0.0
    if unfitted(0.0, state) > 0:
        solved = solve_ivp(
            velocity,
            (0.0, until),
            state,
            method="LSODA",
            events=unfitted,
            rtol=1e-12,
            atol=1e-15 * min(1.0, scale),
        )
        state, clock = solved.y[:, -1], float(solved.t[-1])
        if solved.status != 1:
            raise WorkError(
                f"gradient flow stopped at time {clock:.3g} with a residual of "
                f"{unfitted(clock, state) + tolerance:.2g}, above {tolerance:g}"
                f"{'' if solved.status == 0 else f' ({solved.message})'}; try a later until, a "
                "larger tolerance, or limit(), which needs no time"
            )
    beta = torch.from_numpy(numpy.array(predictor(state)))
    if coordinates == "dual":
        ends = [part[0] for part in link.final_weights(beta[None])]
    else:
        ends = [torch.from_numpy(numpy.array(part)) for part in numpy.split(state, 2)]
    return Trained(beta, ends[0], ends[1], problem.residual(beta), beta.new_tensor(clock))


def gradient_descent(
    inputs: Tensor,
    targets: Tensor,
    *,
    depth: Numbers = 2.0,
    alpha: Numbers,
    lr: Numbers,
    shape: Numbers = 1.0,
    tolerance: float = 1e-9,
    most_steps: int = 100_000,
) -> Trained:
    r"""Gradient descent on a diagonal network with a step of finite size, of a whole sweep at once.

    .. math:: w \leftarrow w - \eta \nabla_w \sum_n (\langle w_+^D - w_-^D, x_n \rangle - y_n)^2

    Its distance to the limit of gradient flow is of first order in the step.

    Args:
        inputs: (N, d), X.
        targets: (N,), y.
        depth: D, at least 2, or several.
        alpha: scale of the unbiased start, or several.
        lr: size of the step, or several; all three broadcast.
        shape: shape of the start, one number or (d,), above 0.
        tolerance: residual relative to the targets at which a network stops.
        most_steps: number of steps after which what has not stopped is an error.

    Returns:
        The networks at the end; ``time`` is the number of steps of each.

    Raises:
        RequestError: no predictor interpolates the data, or a value out of range.
        Diverged: a step was too large; names it.
        WorkError: the steps were over before the data was fitted; says the residual.
    """
    problem = linear_problem(inputs, targets)
    x, y = problem.inputs, problem.targets
    require_count("most_steps", most_steps)
    _single("tolerance", tolerance, 0, open_end=True)
    sweep_of = {
        "depth": numbers("depth", depth, least=2),
        "alpha": numbers("alpha", alpha, least=0, open_end=True),
        "lr": numbers("lr", lr, least=0, open_end=True),
    }
    try:
        shapes = torch.broadcast_shapes(*(value.shape for value in sweep_of.values()))
    except RuntimeError as error:
        shown = {name: tuple(value.shape) for name, value in sweep_of.items()}
        raise invalid("alpha", shown, "depth, alpha and lr that broadcast") from error
    d, scale, step = (value.expand(shapes).reshape(-1, 1) for value in sweep_of.values())
    plus = scale * start_shape(shape, x.shape[1])
    minus = plus.clone()
    taken = torch.zeros(len(d), dtype=torch.int64)
    size = torch.linalg.vector_norm(y).clamp_min(1e-300)
    active = torch.arange(len(d))
    for _ in range(most_steps + 1):
        up, down, power = plus[active], minus[active], d[active]
        residual = (up**power - down**power) @ x.T - y
        misfit = torch.linalg.vector_norm(residual, dim=-1) / size
        if not bool(torch.isfinite(misfit).all()):
            raise _too_large(step, scale, d, int(active[~torch.isfinite(misfit)][0]))
        go = misfit > tolerance
        active = active[go]
        if not len(active):
            break
        pull = 2 * power[go] * step[active] * (residual[go] @ x)
        up, down, power = up[go], down[go], power[go]
        plus[active] = up - pull * up ** (power - 1)
        minus[active] = down + pull * down ** (power - 1)
        taken[active] += 1
        # Gradient flow never takes a weight through zero, where a broken depth has no power.
        crossed = ~((plus[active] > 0) & (minus[active] > 0)).all(-1)
        if bool(crossed.any()):
            raise _too_large(step, scale, d, int(active[crossed][0]))
    if len(active):
        raise WorkError(
            f"gradient descent with lr {float(step[active[0], 0]):g} at alpha "
            f"{float(scale[active[0], 0]):g} left a residual of {float(misfit.max()):.2g} of the "
            f"targets after {most_steps} steps; try more steps, a larger lr or a larger alpha"
        )
    beta = plus**d - minus**d
    parts = (beta, plus, minus, problem.residual(beta), taken)
    return Trained(*(part.reshape(shapes + part.shape[1:]) for part in parts))


def diagonal_kernel(
    inputs: Tensor, plus: Tensor, minus: Tensor, *, depth: float = 2.0, other: Tensor | None = None
) -> Tensor:
    r"""The tangent kernel of a diagonal network in closed form.

    .. math:: K(x, x') = D^2 \langle x \circ (w_+^{2D-2} + w_-^{2D-2}), x' \rangle

    Args:
        inputs: (N1, d).
        plus: (..., d), the weights w_+.
        minus: (..., d), the weights w_-.
        depth: D, at least 2.
        other: (N2, d); the inputs if None.

    Returns:
        (..., N1, N2), float64.

    Source: COLT 2020 (arXiv 2002.09277) for D = 2; the general form is derived.
    """
    d = _single("depth", depth, 2, open_end=False)
    left = torch.as_tensor(inputs, dtype=torch.float64)
    right = left if other is None else torch.as_tensor(other, dtype=torch.float64)
    gains = plus.double() ** (2 * d - 2) + minus.double() ** (2 * d - 2)
    return d * d * (left * gains[..., None, :]) @ right.T


def _too_large(lr: Tensor, alpha: Tensor, depth: Tensor, index: int) -> Diverged:
    return Diverged(
        f"gradient descent with lr {float(lr[index, 0]):g} at alpha {float(alpha[index, 0]):g} and "
        f"depth {float(depth[index, 0]):g} took a weight through zero or out of the finite "
        "numbers, as gradient flow does not; try a smaller lr"
    )


def _vector(name: str, given: Tensor, size: int) -> Tensor:
    values = numbers(name, given, least=0, open_end=True)
    if values.shape != (size,):
        raise invalid(name, tuple(values.shape), f"({size},)")
    return values


def _single(name: str, value: float, least: float, *, open_end: bool) -> float:
    given = numbers(name, value, least=least, open_end=open_end)
    if given.ndim or not math.isfinite(float(given)):
        raise invalid(name, tuple(given.shape), "one number")
    return float(given)
