"""When the singular vectors of a run's weights took their direction, from its snapshots alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from latewood.errors import WorkError, invalid
from latewood.spectra.agreement import Agreement, agreement
from latewood.spectra.solvers.leading_vectors import Factors
from latewood.spectra.tracking.snapshots import Spectrum, read_snapshot, snapshot_paths

__all__ = ["AgreementOverTime", "Reference", "agreement_over_time"]

Named = Literal["final", "initial", "previous", "same"]
Reference = int | Named


@dataclass(frozen=True)
class AgreementOverTime:
    """The agreement of each weight's singular vectors with those of a reference, step by step.

    Args:
        steps: the steps compared, ascending.
        references: the step that each was compared with.
        diagonals: by parameter, (steps, k) in float64, averaged over the groups of a convolution;
            NaN where the weight has another shape than in the reference, or is not there.
        scores: by parameter, (steps,), the mean of the diagonal's first entries, NaN alike.
        baselines: by parameter, what unrelated matrices give on average.
    """

    steps: tuple[int, ...]
    references: tuple[int, ...]
    diagonals: dict[str, Tensor]
    scores: dict[str, Tensor]
    baselines: dict[str, float]


def agreement_over_time(
    folder: Path | str,
    reference: Reference = "final",
    *,
    against: Path | str | None = None,
    top: int = 10,
) -> AgreementOverTime:
    """Compares the singular vectors in a folder's snapshots with a reference among them.

    Half-precision vectors change an agreement by less than 0.001.

    Args:
        folder: where a ``SpectralProbe`` wrote its snapshots, a run's ``spectra``.
        reference: "final" or "initial" snapshot, the "previous" one (the first has none and is
            left out), the "same" step of another run (steps that only one has are left out), or a
            step.
        against: folder of the snapshots to compare with; ``folder`` itself if None.
        top: entries of the diagonal that the score averages; all, if there are fewer.

    Returns:
        Agreements of all snapshots.

    Raises:
        RequestError: an unknown reference or step.
        WorkError: no snapshots there, damaged ones, ones without vectors, or no weight in common.

    Source: arXiv 2408.11804, section 3.4, figures 9 to 13.
    """
    own = snapshot_paths(Path(folder))
    other = own if against is None else snapshot_paths(Path(against))
    for place, found in ((folder, own), (against or folder, other)):
        if not found:
            raise WorkError(f"{place}: no snapshots; expected a folder that a SpectralProbe wrote")
    partners = _partners(list(own), list(other), reference)
    if not partners:
        raise WorkError(f"{folder}: too few snapshots for the reference {reference!r}")
    # Two at a time: a step's own vectors, and those of its reference, perhaps the step before.
    load = lru_cache(maxsize=2)(_factors)
    shared = [_compared(load(own[step]), load(other[at]), top) for step, at in partners.items()]
    names = list(dict.fromkeys(name for each in shared for name in each))
    if not names:
        raise WorkError(f"{folder}: other weights than in {against or folder}, or other shapes")
    return AgreementOverTime(
        tuple(partners),
        tuple(partners.values()),
        {name: _rows([each.get(name) for each in shared]) for name in names},
        {name: _scores([each.get(name) for each in shared]) for name in names},
        {name: next(e[name].baseline for e in reversed(shared) if name in e) for name in names},
    )


def _compared(
    first: dict[str, Factors], second: dict[str, Factors], top: int
) -> dict[str, Agreement]:
    """The agreements of the weights that both have in one shape."""
    return {
        name: agreement(mine, second[name], top=top)
        for name, mine in first.items()
        if name in second and mine.shape == second[name].shape
    }


def _rows(found: Sequence[Agreement | None]) -> Tensor:
    """(steps, k) diagonals, the mean over groups; NaN where there is none."""
    parts = [
        None if each is None else each.diagonal.reshape(-1, each.diagonal.shape[-1]).mean(0)
        for each in found
    ]
    count = max(len(part) for part in parts if part is not None)
    rows = torch.full((len(parts), count), torch.nan, dtype=torch.float64)
    for row, part in zip(rows, parts, strict=True):
        if part is not None:
            row[: len(part)] = part
    return rows


def _scores(found: Sequence[Agreement | None]) -> Tensor:
    return torch.tensor(
        [math.nan if each is None else each.score.mean().item() for each in found],
        dtype=torch.float64,
    )


def _partners(own: list[int], other: list[int], reference: Reference) -> dict[int, int]:
    if reference == "final":
        return dict.fromkeys(own, other[-1])
    if reference == "initial":
        return dict.fromkeys(own, other[0])
    if reference == "same":
        return {step: step for step in own if step in other}
    if reference == "previous":
        earlier = {step: [known for known in other if known < step] for step in own}
        return {step: known[-1] for step, known in earlier.items() if known}
    if reference not in other:
        steps = f"{other[0]} to {other[-1]}" if len(other) > 20 else ", ".join(map(str, other))
        expected = f'"final", "initial", "previous", "same" or one of the steps {steps}'
        raise invalid("reference", reference, expected)
    return dict.fromkeys(own, reference)


def _factors(path: Path) -> dict[str, Factors]:
    spectra = read_snapshot(path, vectors=True)
    if not spectra or spectra[0].left is None:
        raise WorkError(f"{path}: no singular vectors; expected a probe with vectors of at least 1")
    return {spectrum.name: _as_factors(spectrum) for spectrum in spectra}


def _as_factors(spectrum: Spectrum) -> Factors:
    values, left, right = (
        torch.tensor(part) for part in (spectrum.values, spectrum.left, spectrum.right)
    )
    return Factors(values, left, right)
