"""Linear predictors that interpolate data, and the ones of least norm among them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import torch
from scipy.optimize import linprog
from torch import Tensor

from latewood.errors import RequestError, WorkError, invalid
from latewood.regimes.potentials import Numbers, finite_matrix, start_shape

__all__ = ["LinearProblem", "linear_problem", "minimum_l1", "minimum_l2"]

_MOST_MISFIT = 1e-9
_SUPPORT = 1e-8
_MARGIN = 1e-6


@dataclass(frozen=True)
class LinearProblem:
    """The interpolants of linear data, as those of orthonormal rows.

    Args:
        inputs: (N, d), X.
        targets: (N,), y.
        rows: (r, d), an orthonormal basis of the row space.
        values: (r,), what the predictor must give on each of them.
        to_dual: (N, r), takes dual variables of the rows to those of the examples; of least norm
            where the examples are linearly dependent.
    """

    inputs: Tensor
    targets: Tensor
    rows: Tensor
    values: Tensor
    to_dual: Tensor

    @property
    def rank(self) -> int:
        """Rank r of the data."""
        return self.rows.shape[0]

    def residual(self, beta: Tensor) -> Tensor:
        """(...), the size of X beta - y relative to y, for beta (..., d)."""
        misfit = torch.linalg.vector_norm(beta @ self.inputs.T - self.targets, dim=-1)
        size = torch.linalg.vector_norm(self.targets)
        relative: Tensor = misfit / size if size > 0 else misfit
        return relative


def linear_problem(inputs: Tensor, targets: Tensor) -> LinearProblem:
    """Data prepared for solvers, refused where no linear predictor interpolates it.

    Args:
        inputs: (N, d).
        targets: (N,).

    Raises:
        RequestError: shapes that do not fit, values that are not finite, or no interpolant.
    """
    x = finite_matrix("inputs", inputs, 2)
    y = finite_matrix("targets", targets, 1)
    if len(y) != len(x):
        raise invalid("targets", tuple(y.shape), f"one number for each of {len(x)} inputs")
    left, singular, right = torch.linalg.svd(x, full_matrices=False)
    rank = int((singular > singular[0] * max(x.shape) * torch.finfo(x.dtype).eps).sum())
    left, singular, right = left[:, :rank], singular[:rank], right[:rank]
    inner = left.T @ y
    misfit = torch.linalg.vector_norm(y - left @ inner)
    if misfit > _MOST_MISFIT * torch.linalg.vector_norm(y):
        relative = float(misfit / torch.linalg.vector_norm(y))
        raise RequestError(
            f"targets: no linear predictor interpolates them: the best one leaves {relative:.2g} "
            f"of their norm, since {len(x)} examples of {x.shape[1]} features have rank {rank}; "
            "expected targets in the column space of inputs"
        )
    return LinearProblem(x, y, right, inner / singular, left / singular)


def minimum_l2(inputs: Tensor, targets: Tensor, *, weights: Numbers = 1.0) -> Tensor:
    r"""The interpolant of least weighted l2 norm, the limit of a large start.

    .. math:: \arg\min_\beta \sum_i v_i \beta_i^2 \quad\text{such that}\quad X \beta = y

    Args:
        inputs: (N, d), X.
        targets: (N,), y.
        weights: v, one number or (d,), above 0.

    Returns:
        (d,), float64.

    Raises:
        RequestError: no predictor interpolates, or a value out of range.
    """
    problem = linear_problem(inputs, targets)
    root = start_shape(weights, problem.inputs.shape[1]).rsqrt()
    # Weighted rows have the rank of the rows, which are orthonormal.
    scaled = torch.linalg.lstsq(problem.rows * root, problem.values[:, None], driver="gelsd")
    beta: Tensor = scaled.solution[:, 0] * root
    return beta


def minimum_l1(
    inputs: Tensor, targets: Tensor, *, weights: Numbers = 1.0, unique: bool = False
) -> Tensor:
    r"""An interpolant of least weighted l1 norm, the limit of a small start.

    .. math:: \arg\min_\beta \sum_i v_i |\beta_i| \quad\text{such that}\quad X \beta = y

    Args:
        inputs: (N, d), X.
        targets: (N,), y.
        weights: v, one number or (d,), above 0.
        unique: refuse where the dual solution leaves room for several.

    Returns:
        (d,), float64.

    Raises:
        RequestError: no predictor interpolates, or a value out of range.
        WorkError: the linear program was not solved, or has several solutions.
    """
    problem = linear_problem(inputs, targets)
    return least_l1(problem, start_shape(weights, problem.inputs.shape[1]), unique=unique)[0]


def least_l1(problem: LinearProblem, weights: Tensor, *, unique: bool) -> tuple[Tensor, Tensor]:
    """The solution (d,) of least weighted l1 norm and its dual variables (r,) of the rows."""
    beta, dual = _linear_program(problem, weights)
    if unique:
        # Of several solutions, the one with other weights wins once those are a little cheaper.
        support = beta.abs() > _SUPPORT * beta.abs().max()
        cheaper = torch.where(support, weights, weights * (1 - _MARGIN))
        other, dual = _linear_program(problem, cheaper)
        if bool((other - beta).abs().max() > _SUPPORT * beta.abs().max()):
            raise WorkError(
                "several interpolants share the least l1 norm, or nearly so, and the norm does not "
                "say to which of them a start this small leads; try a larger alpha"
            )
    return beta, dual


def _linear_program(problem: LinearProblem, weights: Tensor) -> tuple[Tensor, Tensor]:
    size = problem.inputs.shape[1]
    scale = float(problem.values.abs().max())
    if scale == 0:
        return problem.inputs.new_zeros(size), torch.zeros_like(problem.values)
    rows = problem.rows.numpy()
    solved = linprog(
        numpy.concatenate([weights.numpy(), weights.numpy()]),
        A_eq=numpy.concatenate([rows, -rows], 1),
        b_eq=problem.values.numpy() / scale,
        method="highs-ds",
    )
    if not solved.success:
        raise WorkError(f"the linear program of least l1 norm was not solved: {solved.message}")
    beta = torch.from_numpy(solved.x[:size] - solved.x[size:])
    support = beta.abs() > _SUPPORT * beta.abs().max()
    # What the solver leaves of the equations, to its tolerance, the support's columns can fit.
    columns = problem.rows[:, support]
    fitted = torch.linalg.lstsq(columns, problem.values[:, None] / scale, driver="gelsd").solution
    exact = torch.zeros_like(beta).masked_scatter(support, fitted[:, 0])
    near = bool(torch.allclose(exact, beta, atol=1e-6 * float(beta.abs().max())))
    dual = torch.from_numpy(numpy.array(solved.eqlin.marginals))
    return (exact if near else beta) * scale, dual
