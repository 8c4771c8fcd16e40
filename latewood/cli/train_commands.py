"""Commands that train: demo, train, sweep and tickets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from latewood.cli.app import Flag, Many, Trust, app
from latewood.errors import RequestError, WorkError


@app.command
def demo(
    *,
    out: Path = Path("runs/demo"),
    set: Annotated[Sequence[str], Many] = (),
    overwrite: Annotated[bool, Flag] = False,
) -> None:
    """Train a small network on scikit-learn's digits dense, sparser, to a budget, in few bits.

    Takes about two minutes on two cores, prints a table and writes report.html. The network of few
    bits is packed and timed.

    Parameters
    ----------
    out
        Folder for the runs and the report.
    set
        key=value: change the recipe of all runs, for example epochs=5.
    overwrite
        Replace what an earlier demo left in the folder.
    """
    from latewood.studies.demo import BASELINE, COMPOSED, GROWN, PACKED, run_demo
    from latewood.terminal.progress import duration
    from latewood.terminal.tables import print_table

    done = run_demo(out, overrides=set, overwrite=overwrite)
    columns = ("", BASELINE, COMPOSED, GROWN, PACKED)
    print_table(done.rows, title="Before and after", columns=columns, right=columns[1:])
    if done.trained < 4:
        print(f"{4 - done.trained} of 4 runs were finished before; --overwrite trains again")
    print(f"report: {done.report}")
    print(f"took {duration(done.seconds)}")


@app.command
def train(
    recipe: Path | None = None,
    /,
    *,
    set: Annotated[Sequence[str], Many] = (),
    resume: Path | None = None,
    out: Path | None = None,
    overwrite: Annotated[bool, Flag] = False,
    trust: Annotated[bool, Trust] = False,
) -> None:
    """Train what a recipe describes, go on with a run that was stopped, or make a run longer.

    Longer: --resume RUN --out NEW --set epochs=N, which leaves RUN as it is.

    Several processes: accelerate launch -m latewood train RECIPE, or torchrun.

    Parameters
    ----------
    recipe
        A TOML file, or a name that latewood recipes lists. Not needed with --resume: a run keeps
        its recipe.
    set
        key=value: change the recipe, for example optimizer.lr=0.1. May be repeated.
    resume
        The folder of the run to go on with.
    out
        Folder of the new run; runs/RECIPE if not given. With --resume, of the longer run.
    overwrite
        Replace the run that is already there.
    """
    if resume is not None and overwrite:
        raise RequestError("--resume: replaces no run; drop --overwrite")
    if resume is not None and out is not None and recipe is not None:
        raise RequestError("RECIPE: a run that is made longer keeps its own; drop it")
    if recipe is None and resume is None:
        raise RequestError("RECIPE: missing; expected a recipe, or --resume with a run's folder")

    from latewood.report import write_report
    from latewood.report.summary_table import summary_rows
    from latewood.terminal.tables import print_table
    from latewood.training.longer_run import train_longer
    from latewood.training.recipe import load_recipe
    from latewood.training.run import train as run_training
    from latewood.training.run_folder import RunFolder

    folder = resume or out or Path("runs") / (recipe or Path()).stem
    if resume is not None and not RunFolder(resume).exists:
        raise RequestError(f"--resume: got '{resume}'; expected the folder of a run")
    source = recipe or RunFolder(folder).recipe_path
    was_finished = resume is not None and out is None and RunFolder(folder).finished
    if resume is not None and out is not None:
        run = train_longer(resume, set, folder=out, trust=trust).folder
    else:
        run = run_training(
            load_recipe(source, set, trust=trust),
            folder=folder,
            resume=resume is not None,
            overwrite=overwrite,
        ).folder
    if os.environ.get("RANK", "0") == "0":
        if was_finished:
            print(f"nothing was trained: {folder} had finished after {run.summary['steps']} steps")
        columns = ("", run.name)
        print_table(summary_rows({run.name: run}), columns=columns, right=columns[1:])
        print(f"report: {write_report([run], run.report_path)}")


@app.command
def sweep(
    recipe: Path,
    /,
    *,
    grid: Annotated[Sequence[str], Many] = (),
    list: Path | None = None,
    set: Annotated[Sequence[str], Many] = (),
    out: Path | None = None,
    jobs: int | None = None,
    threads: int = 1,
    backend: Literal["loky", "ray", "dask"] = "loky",
    overwrite: Annotated[bool, Flag] = False,
    trust: Annotated[bool, Trust] = False,
) -> None:
    """Train a recipe at many settings; run again, it does only what is missing or unfinished.

    Parameters
    ----------
    recipe
        A TOML file, or a name that latewood recipes lists.
    grid
        key=a,b,c: the values of one key. With several keys, all combinations are run.
    list
        A text file with one run a line, written as key=value key=value.
    set
        key=value: change the recipe of all runs.
    out
        Folder of the sweep, one folder a run; runs/RECIPE-sweep if not given.
    jobs
        How many runs at the same time; if not given, as many as the cores have room for.
    threads
        How many threads each run has; its result does not depend on --jobs.
    backend
        What runs them: this machine's processes (loky), or a Ray or Dask cluster.
    overwrite
        Replace the sweep that is already there.
    """
    from latewood.studies.sweeps.grid_points import listed_points, parse_grid
    from latewood.studies.sweeps.sweep import sweep as run_sweep
    from latewood.terminal.tables import print_table

    done = run_sweep(
        recipe,
        parse_grid(grid),
        points=listed_points(list) if list else (),
        overrides=set,
        folder=out or Path("runs") / f"{recipe.stem}-sweep",
        jobs=jobs,
        threads=threads,
        backend=backend,
        overwrite=overwrite,
        trust=trust,
    )
    columns = [column for column in done.rows[0] if column not in ("run", "error")]
    print_table(done.rows, title=f"By {done.headline}, best first", columns=columns)
    for line in done.study.lines() if done.study else ():
        print(line)
    for row in done.failed:
        print(f"{row['run']}: {row['error']}")
    print(f"tables and page: {done.folder}")
    if done.failed:
        names = ", ".join(str(row["run"]) for row in done.failed)
        raise WorkError(f"{len(done.failed)} of {len(done.rows)} runs failed: {names}")


@app.command
def tickets(
    recipe: Path,
    /,
    *,
    logits: Annotated[Sequence[float], Many] = (-0.1,),
    rounds: int = 1,
    baselines: Annotated[Sequence[str], Many] = ("shuffled", "magnitude", "gradual"),
    iterations: int = 20,
    rewind: int = 2,
    seeds: int = 1,
    everything: Annotated[bool, Flag] = False,
    set: Annotated[Sequence[str], Many] = (),
    out: Path | None = None,
    jobs: int = 1,
    overwrite: Annotated[bool, Flag] = False,
    trust: Annotated[bool, Trust] = False,
) -> None:
    """Find small networks inside a large one, and compare them with other ways to prune.

    Prints density, quality and search cost; writes report.html, tables and tickets to a folder.

    Parameters
    ----------
    recipe
        The recipe of one training, without methods: a TOML file, or a name that latewood recipes
        lists.
    logits
        Initial logits of continuous sparsification, one search each; lower is sparser.
    rounds
        Rounds of each search, each as long as one training.
    baselines
        Some of: shuffled magnitude one_shot gradual iterative iterative_layerwise
        iterative_continued supermask. Shown are the defaults; "all" is all of them.
    iterations
        Rounds of the iterative baselines, each removing a fifth.
    rewind
        The epoch from whose start tickets are trained again.
    seeds
        Repeat everything with this many seeds, beginning with the recipe's.
    everything
        Prune the last layer too.
    set
        key=value: change the recipe, for example epochs=10.
    out
        Folder of the search; runs/RECIPE-tickets if not given.
    jobs
        How many trainings at the same time.
    overwrite
        Replace the search that is already there.
    """
    from latewood.studies.tickets import BASELINES, search_tickets
    from latewood.terminal.tables import print_table
    from latewood.training.recipe import load_recipe

    loaded = load_recipe(recipe, set, trust=trust)
    table = search_tickets(
        loaded,
        folder=out or Path("runs") / f"{recipe.stem}-tickets",
        initial_logits=logits,
        rounds=rounds,
        baselines=BASELINES if tuple(baselines) == ("all",) else baselines,
        seeds=range(loaded.seed, loaded.seed + seeds),
        rewind_epoch=rewind,
        iterations=iterations,
        exclude=() if everything else None,
        jobs=jobs,
        overwrite=overwrite,
    )
    print_table(table.summary(), title=f"{recipe.stem}: {table.headline} by density and cost")
    print(f"report: {table.folder / 'report.html'}")
    print(f"tables and tickets: {table.folder}")
