"""The command that checks the papers' claims: reproduce."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from latewood.cli.app import Flag, app
from latewood.errors import WorkError


@app.command
def reproduce(
    names: Annotated[Sequence[str], Parameter(negative=())] = (),
    /,
    *,
    scale: Literal["quick", "cpu", "full"] = "quick",
    list: Annotated[bool, Flag] = False,
    out: Path = Path("runs/reproduce"),
    claims: Path | None = None,
    run: bool = True,
) -> None:
    """Run experiments and say of each claim of the papers whether it holds here.

    Parameters
    ----------
    names
        Which experiments; all of them if none is named.
    scale
        quick takes seconds, cpu minutes, full the papers' own protocols and a GPU.
    list
        Only list the experiments and their claims.
    out
        Folder for the results, one JSON file for each experiment and scale.
    claims
        Write all results in that folder as this Markdown page.
    run
        With --no-run nothing is measured: the page is rewritten from the results.
    """
    from latewood.experiments import experiments
    from latewood.experiments.claims import write_claims
    from latewood.experiments.runner import run_experiment, select, verdicts
    from latewood.terminal.progress import duration, track
    from latewood.terminal.tables import print_table

    chosen = select(names)
    if list:
        for experiment in chosen:
            scales = ", ".join(experiment.scales)
            print(f"{experiment.name} ({scales}): {experiment.title}. {experiment.paper}")
            for claim in experiment.claims:
                print(f"  {claim.name}: {claim.statement} {claim.source}")
        return
    failed = []
    for experiment in chosen if run else ():
        if scale not in experiment.scales and not names:
            print(f"{experiment.name}: has no scale {scale}")
            continue
        record = run_experiment(experiment, scale, out, track=track)
        path = record.save(out)
        rows = [
            {
                "claim": verdict.claim,
                "the source's figure": verdict.paper_figure,
                "measured": verdict.measured,
                "verdict": verdict.text,
            }
            for verdict in verdicts(experiment, record)
        ]
        print_table(rows, title=f"{experiment.title} ({scale}, {duration(record.seconds)})")
        print(f"results: {path}")
        if record.error:
            failed.append(f"{experiment.name}: {record.error}")
    if claims is not None:
        print(f"claims: {write_claims(claims, out, experiments())}")
    if failed:
        raise WorkError("; ".join(failed))
