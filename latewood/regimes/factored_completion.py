"""Matrices completed by gradient descent on two factors, of any width at the same cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latewood.errors import Diverged, WorkError, invalid, require_count
from latewood.regimes.potentials import Numbers, finite_matrix, numbers
from latewood.regimes.width import random_gram, whole_gram

__all__ = ["Completion", "matrix_completion"]


@dataclass(frozen=True)
class Completion:
    """Completed matrices; the shape of the sweep comes first in every tensor.

    Args:
        matrix: (..., m, n), U V^T at the end.
        start: (..., m, n), U V^T at the start.
        excess_nuclear_norm: (...), how far its nuclear norm is above that of the target.
        movement: (...), root mean square change of the entries that were not observed; NaN where
            all were.
        error: (...), root mean square error of those entries; NaN likewise.
        residual: (...), misfit of the observed entries relative to them.
        steps: (...), steps taken.
    """

    matrix: Tensor
    start: Tensor
    excess_nuclear_norm: Tensor
    movement: Tensor
    error: Tensor
    residual: Tensor
    steps: Tensor


def matrix_completion(
    target: Tensor,
    observed: Tensor,
    *,
    alpha: Numbers,
    width: int | Sequence[int],
    seed: int | Sequence[int] = 0,
    lr: float | None = None,
    tolerance: float = 1e-4,
    most_steps: int = 200_000,
) -> Completion:
    r"""Fits the observed entries of a matrix by gradient descent on U and V, from random ones.

    .. math:: \min_{U, V} \sum_{(i, j)\ \mathrm{observed}} ((U V^\top)_{ij} - Y_{ij})^2,
        \qquad U, V \sim N(0, \alpha^2)

    Every step multiplies [U; V] by a matrix from the left, so their products G = [U; V][U; V]^T
    follow an iteration of their own, :math:`G \leftarrow S G S`. That is exact, and costs the same
    at every width.

    Args:
        target: (m, n), Y.
        observed: (m, n), bool.
        alpha: standard deviation of a weight at the start, above 0, or several.
        width: columns k of both factors, or several.
        seed: of the weights, or several; all three broadcast, as tensors do.
        lr: size of a step; 0.25 / (4 max(\|Y\|_*, alpha^2 k)) if None.
        tolerance: relative misfit of the observed entries at which it stops.
        most_steps: number of steps after which what has not stopped is an error.

    Returns:
        The matrices and how they differ from start and target.

    Raises:
        RequestError: nothing observed, shapes that do not fit, or a value out of range.
        Diverged: a step was too large.
        WorkError: the steps were over before the data was fitted; says the residual.

    Source: the set-up is that of COLT 2020 (arXiv 2002.09277), section 5 and figure 5; the
    iteration on G and the default step are ours.
    """
    y = finite_matrix("target", target, 2)
    mask = torch.as_tensor(observed).cpu()
    if mask.dtype != torch.bool or mask.shape != y.shape or not bool(mask.any()):
        raise invalid(
            "observed",
            (tuple(mask.shape), mask.dtype),
            f"a bool mask of shape {tuple(y.shape)} with at least one entry",
        )
    require_count("most_steps", most_steps)
    numbers("tolerance", tolerance, least=0, open_end=True)
    alphas = numbers("alpha", alpha, least=0, open_end=True)
    widths, seeds = _whole("width", width, least=1), _whole("seed", seed, least=0)
    try:
        alphas, widths, seeds = torch.broadcast_tensors(alphas, widths, seeds)
    except RuntimeError as error:
        shown = [tuple(value.shape) for value in (alphas, widths, seeds)]
        raise invalid("alpha", shown, "alpha, width and seed that broadcast") from error
    sweep = alphas.shape
    cases = zip(alphas.reshape(-1), widths.reshape(-1), seeds.reshape(-1), strict=True)
    gram = torch.stack(
        [
            random_gram((y.shape[0], y.shape[1]), int(k), float(a), seed=int(s), entries=whole_gram)
            for a, k, s in cases
        ]
    )
    nuclear = torch.linalg.matrix_norm(y, "nuc")
    if lr is None:
        largest = torch.maximum(nuclear, (alphas**2 * widths).reshape(-1))
        rates = 0.25 / (4 * largest)
    else:
        rates = numbers("lr", lr, least=0, open_end=True).expand(len(gram))
    start = gram[:, : len(y), len(y) :].clone()
    gram, steps, residual = _descended(gram, y, mask, rates, tolerance, most_steps)
    end = gram[:, : len(y), len(y) :]
    hidden = ~mask
    shaped = {
        "matrix": end,
        "start": start,
        "excess_nuclear_norm": torch.linalg.matrix_norm(end, "nuc") - nuclear,
        "movement": (end - start)[:, hidden].square().mean(-1).sqrt(),
        "error": (end - y)[:, hidden].square().mean(-1).sqrt(),
        "residual": residual,
        "steps": steps,
    }
    return Completion(
        **{name: part.reshape(sweep + part.shape[1:]) for name, part in shaped.items()}
    )


def _descended(
    gram: Tensor, target: Tensor, mask: Tensor, rates: Tensor, tolerance: float, most_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The products of factors when the observed entries are fitted, the steps, the misfits."""
    rows = len(target)
    gram = gram.clone()
    size = torch.linalg.vector_norm(target[mask]).clamp_min(1e-300)
    steps = torch.zeros(len(gram), dtype=torch.int64)
    misfits = torch.zeros(len(gram), dtype=gram.dtype)
    active = torch.arange(len(gram))
    factor = torch.eye(gram.shape[-1], dtype=gram.dtype).repeat(len(gram), 1, 1)
    current = gram
    for _ in range(most_steps + 1):
        residual = (current[:, :rows, rows:] - target) * mask
        misfit = torch.linalg.vector_norm(residual, dim=(-2, -1)) / size
        if not bool(torch.isfinite(misfit).all()):
            raise Diverged(
                f"matrix completion with lr {float(rates[active].max()):.3g} left the finite "
                "numbers; try a smaller lr"
            )
        go = misfit > tolerance
        if not bool(go.all()):
            gram[active] = current
            misfits[active] = misfit
            active, current, residual, factor = active[go], current[go], residual[go], factor[go]
            if not len(active):
                return gram, steps, misfits
        move = 2 * rates[active][:, None, None] * residual
        factor[:, :rows, rows:] = -move
        factor[:, rows:, :rows] = -move.mT
        current = factor @ current @ factor
        steps[active] += 1
    raise WorkError(
        f"matrix completion left a residual of {float(misfit.max()):.2g} of the observed entries "
        f"after {most_steps} steps; try more steps or a larger alpha"
    )


def _whole(name: str, value: int | Sequence[int], *, least: int) -> Tensor:
    several = list(value) if isinstance(value, Sequence) else [value]
    if not several or any(
        not isinstance(each, int) or isinstance(each, bool) or each < least for each in several
    ):
        raise invalid(name, value, f"a whole number of at least {least}, or several")
    return torch.tensor(several[0] if isinstance(value, int) else several)
