"""Commands about runs that part and meet: branch and connect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from latewood.cli.app import Flag, Many, Trust, app, require_table


@app.command
def branch(
    run: Path,
    /,
    *,
    at: int,
    seeds: Annotated[Sequence[int], Many] = (1, 2, 3),
    perturb: float = 0.0,
    out: Path | None = None,
    trust: Annotated[bool, Trust] = False,
) -> None:
    """Train a run to its end again from one of its checkpoints, with the data in other orders.

    The recipe's keys keep_at and split_points say which checkpoints a run keeps. Run again, it does
    only what is missing or unfinished.

    Parameters
    ----------
    run
        A run folder.
    at
        The step of the checkpoint: optimizer steps before the split.
    seeds
        Of the order of the data after the split, one branch each; 1 2 3 if not given.
    perturb
        Move every weight matrix at the split, by a random step of this length relative to it.
    out
        Folder of the branches; branches/step-AT in the run's folder if not given, with
        -perturbed-LENGTH behind it where they are.
    """
    from latewood.studies.connectivity.branching import branch_run
    from latewood.terminal.tables import print_table
    from latewood.training.run_folder import RunFolder

    apart = f"-perturbed-{perturb:g}" if perturb else ""
    folder = out or run / "branches" / f"step-{at}{apart}"
    results = branch_run(
        RunFolder(run), at, seeds=seeds, folder=folder, perturb=perturb, trust=trust
    )
    rows = [
        {"branch": result.folder.name, **result.summary["evaluations"]["trained"]}
        for result in results
    ]
    print_table(rows, title=f"Branches of {run} from step {at}")
    print(f"branches: {folder}")


@app.command
def connect(
    first: Path,
    second: Path,
    /,
    *,
    recipe: Path | None = None,
    points: int = 11,
    permute: Annotated[bool, Flag] = False,
    truncate: float | None = None,
    samples: int | None = None,
    out: Path | None = None,
    table: Path | None = None,
    trust: Annotated[bool, Trust] = False,
) -> None:
    """Walk the straight line between two trained networks: losses, barriers, agreement.

    Batch norms are measured anew at every point, on training data without augmentation.

    Parameters
    ----------
    first
        A run folder, a folder RUN/checkpoints/step-N, or a file with a state dict.
    second
        Likewise.
    recipe
        The recipe of the model and its data, a TOML file or a name that latewood recipes lists; not
        needed if one of the two belongs to a run.
    points
        Points on the line, both ends included.
    permute
        Walk again with the second network's channels in the order closest to the first's.
    truncate
        Walk again with every network truncated to this share of its singular values, such as 0.5.
    samples
        Score only so many training and validation samples; all if not given.
    out
        Also write a page with the curves and agreements.
    table
        Also write everything to this file, as one long table.
        Its ending says how: .csv, .json or .parquet.
    """
    require_table(table)

    from latewood.studies.connectivity.connecting import connect_files
    from latewood.studies.connectivity.connectivity_page import write_connection_page
    from latewood.terminal.tables import print_table, write_table
    from latewood.training.recipe import load_recipe

    connected = connect_files(
        first,
        second,
        recipe=None if recipe is None else load_recipe(recipe, trust=trust),
        points=points,
        permute=permute,
        truncate=truncate,
        samples=samples,
        trust=trust,
    )
    print_table(connected.path_rows(), title=f"From {first} to {second}")
    print_table(connected.barrier_rows(), title="Barriers")
    print_table(connected.agreement_rows(), title="Agreement of singular vectors")
    if out is not None:
        print(f"page: {write_connection_page(connected, out)}")
    if table is not None:
        print(f"table: {write_table(connected.rows(), table)}")
