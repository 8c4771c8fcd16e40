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
from latewood.spectra.tracking.snapshots import read_snapshot, snapshot_paths
from latewood.spectra.tracking.spectrum import Spectrum

__all__ = ["AgreementOverTime", "Reference", "agreement_over_time"]

NamedReference = Literal["final", "initial", "previous", "same"]
Reference = int | NamedReference


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
    paths = snapshot_paths(Path(folder))
    references = paths if against is None else snapshot_paths(Path(against))
    for place, snapshots in ((folder, paths), (against or folder, references)):
        if not snapshots:
            raise WorkError(f"{place}: no snapshots; expected a folder that a SpectralProbe wrote")
    partners = _partners(list(paths), list(references), reference)
    if not partners:
        raise WorkError(f"{folder}: too few snapshots for the reference {reference!r}")
    # Two at a time: a step's own vectors, and those of its reference, perhaps the step before.
    load = lru_cache(maxsize=2)(_factors)
    compared = [
        _compared(load(paths[step]), load(references[partner]), top)
        for step, partner in partners.items()
    ]
    names = list(dict.fromkeys(name for agreements in compared for name in agreements))
    if not names:
        raise WorkError(f"{folder}: other weights than in {against or folder}, or other shapes")
    return AgreementOverTime(
        tuple(partners),
        tuple(partners.values()),
        {name: _rows([agreements.get(name) for agreements in compared]) for name in names},
        {name: _scores([agreements.get(name) for agreements in compared]) for name in names},
        {name: next(e[name].baseline for e in reversed(compared) if name in e) for name in names},
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


def _rows(agreements: Sequence[Agreement | None]) -> Tensor:
    """(steps, k) diagonals, the mean over groups; NaN where there is none."""
    diagonals = [
        None if entry is None else entry.diagonal.reshape(-1, entry.diagonal.shape[-1]).mean(0)
        for entry in agreements
    ]
    count = max(len(diagonal) for diagonal in diagonals if diagonal is not None)
    rows = torch.full((len(diagonals), count), torch.nan, dtype=torch.float64)
    for row, diagonal in zip(rows, diagonals, strict=True):
        if diagonal is not None:
            row[: len(diagonal)] = diagonal
    return rows


def _scores(agreements: Sequence[Agreement | None]) -> Tensor:
    return torch.tensor(
        [math.nan if entry is None else entry.score.mean().item() for entry in agreements],
        dtype=torch.float64,
    )


def _partners(steps: list[int], references: list[int], reference: Reference) -> dict[int, int]:
    if reference == "final":
        return dict.fromkeys(steps, references[-1])
    if reference == "initial":
        return dict.fromkeys(steps, references[0])
    if reference == "same":
        return {step: step for step in steps if step in references}
    if reference == "previous":
        earlier = {step: [before for before in references if before < step] for step in steps}
        return {step: before[-1] for step, before in earlier.items() if before}
    if reference not in references:
        known = (
            f"{references[0]} to {references[-1]}"
            if len(references) > 20
            else ", ".join(map(str, references))
        )
        expected = f'"final", "initial", "previous", "same" or one of the steps {known}'
        raise invalid("reference", reference, expected)
    return dict.fromkeys(steps, reference)


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
