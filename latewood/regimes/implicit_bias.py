"""Where gradient flow on diagonal networks ends: Newton's method on the dual problem."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latewood.errors import WorkError, invalid
from latewood.regimes.interpolation import LinearProblem, least_l1, linear_problem
from latewood.regimes.potentials import Link, Numbers, numbers, start_shape

__all__ = ["Limit", "biased_limit", "limit"]

_MOST_ITERATIONS = 200
_MOST_RESIDUAL = 1e-8
_GROWTH = 2.0
"""Logarithm of the factor by which a step may change a weight: Newton's model holds about there."""
_LEAST_GAP = 1e-6
"""Where a dual variable comes this close to its bound, too little of the difference is left."""


@dataclass(frozen=True)
class Limit:
    """The predictor that gradient flow reaches; of a sweep, its shape comes first in every tensor.

    Args:
        beta: (..., d), the predictor.
        dual: (..., N), nu: the potential's gradient at beta is X^T nu. Of least norm where the
            examples are linearly dependent.
        potential: (...), the potential at beta.
        residual: (...), the size of X beta - y relative to y.
        plus: (..., d), the network's weights w_+ at the end.
        minus: (..., d), its weights w_-.
        iterations: (...), Newton steps; 0 where the solution is that of least l1 norm, to which
            a start this small comes closer than the dual variables can say.
        rank: rank of the data.
    """

    beta: Tensor
    dual: Tensor
    potential: Tensor
    residual: Tensor
    plus: Tensor
    minus: Tensor
    iterations: Tensor
    rank: int


def limit(
    inputs: Tensor,
    targets: Tensor,
    *,
    depth: Numbers = 2.0,
    alpha: Numbers,
    shape: Numbers = 1.0,
) -> Limit:
    r"""The limit of gradient flow on a diagonal network from the unbiased start alpha * shape.

    .. math:: \arg\min_\beta Q(\beta) \quad\text{such that}\quad X \beta = y

    with Q as in ``potential``, by damped Newton steps on the dual variables, and one on beta at the
    end, which meets the constraint to rounding.

    Args:
        inputs: (N, d), X.
        targets: (N,), y.
        depth: D, any real number of at least 2, or several.
        alpha: scale of the start, or several; broadcast with ``depth`` and solved together.
        shape: its shape, one number or (d,), above 0.

    Returns:
        The predictor and what belongs to it.

    Raises:
        RequestError: no predictor interpolates the data, or a value out of range.
        WorkError: it did not converge; says the residual that it reached.

    Source: COLT 2020 (arXiv 2002.09277), theorems 1 and 3; the solver is derived.
    """
    problem = linear_problem(inputs, targets)
    size = problem.inputs.shape[1]
    depths, alphas = (
        numbers("depth", depth, least=2),
        numbers("alpha", alpha, least=0, open_end=True),
    )
    weights = start_shape(shape, size)
    try:
        sweep = torch.broadcast_shapes(depths.shape, alphas.shape)
    except RuntimeError as error:
        raise invalid(
            "alpha", tuple(alphas.shape), f"a shape that broadcasts with {tuple(depths.shape)}"
        ) from error
    flat_depths, flat_alphas = depths.expand(sweep).reshape(-1), alphas.expand(sweep).reshape(-1)
    parts: dict[int, Limit] = {}
    shallow = flat_depths == 2
    sparse = _beyond_dual(problem, flat_depths, flat_alphas, weights)
    for group, solver in (
        (shallow, _solved),
        (~shallow & ~sparse, _solved),
        (~shallow & sparse, _least_norm),
    ):
        members = group.nonzero()[:, 0]
        if not len(members):
            continue
        # In blocks: every problem holds a weighted copy of the data.
        for block in members.split(max(1, 2**24 // problem.rows.numel())):
            link = Link.of(flat_depths[block][:, None], flat_alphas[block][:, None], weights)
            solved = solver(problem, link)
            for position, index in enumerate(block.tolist()):
                parts[index] = _row(solved, position)
    return _stacked([parts[index] for index in range(math.prod(sweep))], sweep)


def biased_limit(inputs: Tensor, targets: Tensor, plus: Tensor, minus: Tensor) -> Limit:
    r"""The limit of gradient flow on a diagonal network of depth 2 from a start with any bias.

    .. math:: \beta_i = A_i e^{z_i} - B_i e^{-z_i}, \qquad z = X^T \nu

    A network of k parallel copies, :math:`\beta_i = \langle U_i, V_i \rangle`, is one with
    :math:`A, B = (|U_i|^2 + |V_i|^2)/4 \pm \langle U_i, V_i \rangle / 2`, see ``wide_start``.

    Args:
        inputs: (N, d), X.
        targets: (N,), y.
        plus: (..., d), A, the start of the positive part :math:`w_+^2`, above 0.
        minus: (..., d), B, that of the negative part :math:`w_-^2`, above 0.

    Returns:
        The predictor and what belongs to it, for every start.

    Raises:
        RequestError: no predictor interpolates the data, or a value out of range.
        WorkError: it did not converge; says the residual that it reached.

    Source: derived from COLT 2020 (arXiv 2002.09277), theorems 1 and 4.
    """
    problem = linear_problem(inputs, targets)
    parts = []
    for name, given in (("plus", plus), ("minus", minus)):
        values = numbers(name, given, least=0, open_end=True)
        if values.ndim == 0 or values.shape[-1] != problem.inputs.shape[1]:
            raise invalid(name, tuple(values.shape), f"(..., {problem.inputs.shape[1]})")
        parts.append(values)
    positive, negative = torch.broadcast_tensors(*parts)
    sweep = positive.shape[:-1]
    a, b = positive.reshape(-1, positive.shape[-1]), negative.reshape(-1, positive.shape[-1])
    link = Link(
        torch.full((len(a), 1), 2.0, dtype=a.dtype),
        a.sqrt() * b.sqrt(),
        torch.ones_like(a),
        (a.log() - b.log()) / 2,
    )
    solved = _solved(problem, link)
    return _stacked([_row(solved, index) for index in range(len(a))], sweep)


def _beyond_dual(problem: LinearProblem, depth: Tensor, alpha: Tensor, shape: Tensor) -> Tensor:
    """(m,), where 1 - |z| of the largest weights would be lost in rounding."""
    scale = (problem.values @ problem.rows).abs().max().clamp_min(1e-300)
    gap = (depth - 2) * (alpha * shape.min()).log() - (depth - 2) / depth * scale.log()
    return gap < math.log(_LEAST_GAP)


def _solved(problem: LinearProblem, link: Link) -> Limit:
    """The limits of m problems of one kind of depth, by damped Newton steps from zero."""
    rows, values = problem.rows, problem.values
    count = len(link.depth)
    target_size = torch.linalg.vector_norm(values).clamp_min(1e-300)
    nu = rows.new_zeros(count, len(values))
    best = rows.new_full((count,), math.inf)
    stalled = torch.zeros(count, dtype=torch.int64)
    iterations = torch.zeros(count, dtype=torch.int64)
    active = torch.arange(count)
    for _ in range(_MOST_ITERATIONS):
        part = link.take(active)
        z = nu[active] @ rows
        beta, slope = part.predictor(z)
        residual = beta @ rows.T - values
        size = torch.linalg.vector_norm(residual, dim=-1) / target_size
        improved = size < 0.5 * best[active]
        stalled[active] = torch.where(improved, 0, stalled[active] + 1)
        best[active] = torch.minimum(best[active], size)
        # The residual may rise on the way; close to the end, three steps without gain are rounding.
        ended = (size <= 1e-15) | ((stalled[active] >= 3) & (size < _MOST_RESIDUAL))
        if bool(ended.all()):
            break
        go = ~ended
        active, part, z = active[go], part.take(go), z[go]
        residual, slope = residual[go], slope[go]
        step = -_newton_step(rows, slope, residual)
        nu[active] += step * _accepted(part, rows, values, z, step, residual)[:, None]
        iterations[active] += 1
    return _finished(problem, link, nu, iterations)


def _newton_step(rows: Tensor, slope: Tensor, residual: Tensor) -> Tensor:
    """Solves (R diag(slope) R^T) step = residual for (m, r) by the QR of its weighted rows.

    The product would square a condition number that small starts make large. Rows of a QR of very
    different size keep its accuracy if the largest come first.
    """
    order = slope.argsort(dim=-1, descending=True)
    weighted = rows.T[order] * slope.gather(-1, order).sqrt()[..., None]
    upper = torch.linalg.qr(weighted, mode="r").R
    smallest = upper.diagonal(dim1=-2, dim2=-1).abs().amin(-1)
    if not bool((smallest > 0).all()):
        raise WorkError(
            "the dual problem is singular in float64: some examples are fitted by weights that are "
            "still zero; try a larger alpha"
        )
    half = torch.linalg.solve_triangular(upper.mT, residual[..., None], upper=False)
    step: Tensor = torch.linalg.solve_triangular(upper, half, upper=True)[..., 0]
    return step


def _accepted(
    link: Link, rows: Tensor, values: Tensor, z: Tensor, step: Tensor, residual: Tensor
) -> Tensor:
    """(m,), the part of each step to take: the residual falls, or the dual still descends."""
    along = step @ rows
    part = link.longest_step(z, along, _GROWTH)
    before = torch.linalg.vector_norm(residual, dim=-1)
    for _ in range(40):
        after = link.predictor(z + part[:, None] * along)[0] @ rows.T - values
        fell = torch.linalg.vector_norm(after, dim=-1) < before
        descends = (after * step).sum(-1) <= 0
        good = fell | descends
        if bool(good.all()):
            break
        part = torch.where(good, part, part / 2)
    return part


def _finished(problem: LinearProblem, link: Link, nu: Tensor, iterations: Tensor) -> Limit:
    """The limits at dual variables, with a last step on the weights themselves."""
    rows = problem.rows
    beta, slope = link.predictor(nu @ rows)
    off = beta @ rows.T - problem.values
    reached = problem.residual(beta)
    if bool((~(reached <= _MOST_RESIDUAL)).any()):
        worst = int((~(reached <= _MOST_RESIDUAL)).nonzero()[0, 0])
        raise WorkError(
            f"no convergence for depth {float(link.depth[worst, 0]):g} and a start of scale "
            f"{float(link.scale[worst].max() ** (1 / link.depth[worst, 0])):.3g}: the residual "
            f"reached {float(reached[worst]):.2g} of the targets in {int(iterations[worst])} "
            "steps; try an alpha closer to 1, or data of better condition"
        )
    # Linear in the weights, so the constraint holds to rounding where the dual loses digits.
    step = _newton_step(rows, slope, off)
    beta = beta - slope * (step @ rows)
    nu = nu - step
    return _assembled(problem, link, beta, nu, iterations)


def _least_norm(problem: LinearProblem, link: Link) -> Limit:
    """The interpolants of least weighted l1 norm, for starts that are too small for the dual."""
    weights = 1 / link.tilt
    solutions = [least_l1(problem, row, unique=True) for row in weights]
    beta = torch.stack([solution for solution, _ in solutions])
    nu = torch.stack([dual for _, dual in solutions])
    return _assembled(problem, link, beta, nu, torch.zeros(len(beta), dtype=torch.int64))


def _assembled(
    problem: LinearProblem, link: Link, beta: Tensor, nu: Tensor, iterations: Tensor
) -> Limit:
    plus, minus = link.final_weights(beta)
    return Limit(
        beta=beta,
        dual=nu @ problem.to_dual.T,
        potential=link.potential(beta),
        residual=problem.residual(beta),
        plus=plus,
        minus=minus,
        iterations=iterations,
        rank=problem.rank,
    )


_TENSORS = ("beta", "dual", "potential", "residual", "plus", "minus", "iterations")


def _row(solved: Limit, index: int) -> Limit:
    return Limit(**{name: getattr(solved, name)[index] for name in _TENSORS}, rank=solved.rank)


def _stacked(parts: list[Limit], sweep: torch.Size) -> Limit:
    joined = {name: torch.stack([getattr(part, name) for part in parts]) for name in _TENSORS}
    shaped = {name: value.reshape(sweep + value.shape[1:]) for name, value in joined.items()}
    return Limit(**shaped, rank=parts[0].rank)
