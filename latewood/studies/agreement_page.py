"""When the singular vectors of a run's weights settled: a table and a page, from its snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from latewood.errors import RequestError, invalid
from latewood.report import Group, Run, Section, write_report
from latewood.report.figures import heat_figure
from latewood.report.sampling import evenly
from latewood.spectra import AgreementOverTime, agreement_over_time
from latewood.terminal.tables import Row
from latewood.training.run_folder import RunFolder

__all__ = ["agreement_rows", "run_agreement", "score_rows", "write_agreement_page"]

_LEAD = (
    "Agreement is the mean of |u·u'| |v·v'| over the first ten pairs of singular vectors of a "
    "weight and of its reference: 1 when they are the same, near 0 when they are unrelated."
)


def run_agreement(
    run: RunFolder, reference: str = "final", *, against: RunFolder | None = None
) -> AgreementOverTime:
    """The agreement of a run's snapshots with a reference.

    Args:
        run: the run.
        reference: "final", "initial", "previous", "same", or a step in digits.
        against: the run to compare with; the run itself if None.

    Raises:
        RequestError: a folder without a run, an unknown reference or step, or "same" without
            another run.
        WorkError: no snapshots with vectors, or ones of other weights.
    """
    for name, folder in (("run", run), ("against", against)):
        if folder is not None and not folder.exists:
            raise invalid(name, str(folder.path), "the folder of a run")
    if reference == "same" and against is None:
        raise RequestError('against: got None with reference "same"; expected another run')
    other = None if against is None else against.spectra_folder
    chosen = int(reference) if reference.isdecimal() else reference
    return agreement_over_time(run.spectra_folder, chosen, against=other)  # type: ignore[arg-type]


def score_rows(agreement: AgreementOverTime, *, columns: int = 6) -> list[Row]:
    """One row per weight, its scores at some of the steps, the first and the last among them."""
    chosen = evenly(len(agreement.steps), columns)
    return [
        {
            "weight": name,
            "random": agreement.baselines[name],
            **{f"step {agreement.steps[i]}": round(scores[i].item(), 4) for i in chosen},
        }
        for name, scores in agreement.scores.items()
    ]


def agreement_rows(agreement: AgreementOverTime) -> list[Row]:
    """One row per weight, snapshot and pair of singular vectors."""
    return [
        {
            "weight": name,
            "step": step,
            "reference": reference,
            "index": index,
            "agreement": value,
            "random": agreement.baselines[name],
        }
        for name, diagonals in agreement.diagonals.items()
        for step, reference, diagonal in zip(
            agreement.steps, agreement.references, diagonals.tolist(), strict=True
        )
        for index, value in enumerate(diagonal)
    ]


def write_agreement_page(
    run: RunFolder, agreement: AgreementOverTime, path: Path, about: str
) -> Path:
    """Writes a self-contained page with the agreement of all weights over depth and time.

    Args:
        run: the run.
        agreement: its agreement.
        path: the HTML file.
        about: what it was compared with, in words.

    Returns:
        ``path``.

    Raises:
        WorkError: the file cannot be written.
    """
    names = list(agreement.scores)
    scores = np.stack([agreement.scores[name].numpy() for name in names])

    def section(runs: Sequence[Run]) -> Section:
        overview, numbered = (
            heat_figure(
                f"Agreement with {about} over depth and {'snapshots' if by_snapshot else 'time'}",
                names,
                agreement.steps,
                scores,
                quantity="agreement",
                snapshots=2 * runs[0].detail.snapshots,
                random=[agreement.baselines[name] for name in names],
                by_snapshot=by_snapshot,
            )
            for by_snapshot in (False, True)
        )
        single = [
            heat_figure(
                name,
                [f"pair {index + 1}" for index in range(diagonals.shape[1])],
                agreement.steps,
                diagonals.numpy().T,
                quantity="agreement",
                snapshots=runs[0].detail.snapshots,
                size="half",
                random=[agreement.baselines[name]] * diagonals.shape[1],
            )
            for name, diagonals in agreement.diagonals.items()
        ]
        lines = ", ".join(f"{name} {agreement.baselines[name]:.3f}" for name in names)
        return Section(
            title="Agreement of singular vectors",
            lead=_LEAD,
            groups=[
                Group(figures=[overview]),
                Group(title="By number of the snapshot", figures=[numbered], opened=False),
                Group(title="Each pair of vectors", figures=single, opened=len(single) <= 6),
            ],
            notes=[f"Unrelated matrices of these shapes have on average: {lines}."],
        )

    return write_report([run], path, sections=[section])
