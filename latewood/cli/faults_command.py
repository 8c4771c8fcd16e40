"""The command that evaluates a network on devices with stuck cells: faults."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from latewood.cli.app import Flag, Many, Trust, app, require_table


@app.command
def faults(
    run: Path,
    /,
    *,
    rates: Annotated[Sequence[float], Many] = (0.01, 0.05, 0.1, 0.2, 0.3),
    hrs_share: float = 1.0,
    weight_bits: int = 7,
    bits_per_cell: int = 2,
    scheme: Literal["differential", "offset", "twos", "pair"] = "differential",
    level: Literal["cell", "weight"] = "cell",
    maps: int = 100,
    half_width: float | None = None,
    seed: int = 0,
    least: float | None = None,
    calibrate: Annotated[bool, Flag] = False,
    include: Annotated[Sequence[str], Many] = ("*",),
    exclude: Annotated[Sequence[str], Many] = (),
    jobs: int = 1,
    out: Path | None = None,
    table: Path | None = None,
    json: Annotated[bool, Flag] = False,
    trust: Annotated[bool, Trust] = False,
) -> None:
    """Evaluate a trained model on RRAM crossbars with stuck cells, on many devices for each rate.

    Writes faults.json to the run's folder; latewood report then shows it.

    Parameters
    ----------
    run
        The folder of a run, or a checkpoint in one; of a run with methods these are finalized in a
        copy, as if the run had ended there.
    rates
        Shares of cells that are stuck.
    hrs_share
        Share of them in the high-resistance state (level 0); the others are in the low one.
    weight_bits
        Bits of a weight with its sign.
    bits_per_cell
        Bits of a cell.
    scheme
        How a signed weight is held.
    level
        cell draws every cell; weight draws every weight, as drop-connect does.
    maps
        Devices for each rate, at most.
    half_width
        Stop at a rate once the 95 % interval of its mean is as narrow as plus or minus this.
    seed
        Of the maps; the same devices are used at every rate.
    least
        Score that a device must reach: the table then has the yield.
    calibrate
        Measure batch norms anew on every device: a defence that needs a pass for each chip.
    include
        Patterns on the layers that are on crossbars.
    exclude
        Patterns on those that are not.
    jobs
        Processes.
    out
        File to write in place of faults.json in the run's folder.
    table
        File for the table; its ending says how: .csv, .json or .parquet.
    json
        Print the table as JSON.
    """
    import json as encoder

    require_table(table)

    from latewood.faults import Crossbar
    from latewood.studies.faulted_run import evaluate_under_faults
    from latewood.terminal.tables import print_table, write_table

    done = evaluate_under_faults(
        run,
        rates=rates,
        hrs_share=hrs_share,
        crossbar=Crossbar(weight_bits, bits_per_cell, scheme),
        level=level,
        maps=maps,
        half_width=half_width,
        seed=seed,
        least=least,
        calibrate=calibrate,
        include=include,
        exclude=exclude,
        jobs=jobs,
        out=out,
        trust=trust,
    )
    if table is not None:
        write_table(done.rows, table)
    if json:
        print(encoder.dumps(done.rows, indent=1))
        return
    first = done.results[0]
    title = f"{run}: {done.headline} {first.plain:.4g}, on crossbars without faults "
    print_table(done.rows, title=f"{title}{first.rounded:.4g}")
    print(f"scores: {done.path}")
