"""The command line: reads arguments, hands them to the package, and turns errors into one line.

Nothing heavy is imported before a command runs, so that help and mistakes answer at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from latewood import __version__
from latewood.errors import LatewoodError, RequestError, WorkError

__all__ = ["app", "main"]

Many = Parameter(consume_multiple=True, negative=(), show_default=False)
Flag = Parameter(negative=(), show_default=False)

app = App(
    name="latewood",
    help="Grows, thins, quantises and hardens neural networks, and shows why it works.",
    help_epilogue="--debug with any command shows the full traceback of an error.",
    version=__version__,
    # Markdown would load its parser for every help text.
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)


@app.command
def demo(
    *,
    out: Path = Path("runs/demo"),
    set: Annotated[Sequence[str], Many] = (),
    overwrite: Annotated[bool, Flag] = False,
) -> None:
    """Train a small network on scikit-learn's digits, dense and sparse, and compare the two.

    Takes about two minutes on two cores, prints a table and writes report.html.

    Parameters
    ----------
    out
        Folder for the runs and the report.
    set
        key=value: change the recipe of both runs, for example epochs=5.
    overwrite
        Replace what an earlier demo left in the folder.
    """
    from latewood.training.demo import BASELINE, COMPOSED, run_demo
    from latewood.training.progress import duration
    from latewood.training.tables import print_table

    done = run_demo(out, overrides=set, overwrite=overwrite)
    columns = ("", BASELINE, COMPOSED)
    print_table(done.rows, title="Before and after", columns=columns, right=columns[1:])
    if done.trained < 2:
        print(f"{2 - done.trained} of 2 runs were finished before; --overwrite trains again")
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
) -> None:
    """Train what a recipe describes, or go on with a run that was stopped.

    Several processes: accelerate launch -m latewood train RECIPE.toml, or torchrun.

    Parameters
    ----------
    recipe
        The recipe, a TOML file. Not needed with --resume: a run keeps its recipe.
    set
        key=value: change the recipe, for example optimizer.lr=0.1. May be repeated.
    resume
        The folder of the run to go on with.
    out
        Folder of the new run; runs/RECIPE if not given.
    overwrite
        Replace the run that is already there.
    """
    if resume is not None and (out is not None or overwrite):
        raise RequestError("--resume: goes on in the run's own folder; drop --out and --overwrite")
    if recipe is None and resume is None:
        raise RequestError("RECIPE: missing; expected a recipe, or --resume with a run's folder")

    from latewood.training.loop import train as run_training
    from latewood.training.outcome import outcome
    from latewood.training.recipe import load_recipe
    from latewood.training.report import write_report
    from latewood.training.run_folder import RunFolder
    from latewood.training.tables import print_table

    folder = resume or out or Path("runs") / (recipe or Path()).stem
    if resume is not None and not RunFolder(resume).exists:
        raise RequestError(f"--resume: got '{resume}'; expected the folder of a run")
    source = recipe or RunFolder(folder).recipe_path
    run = run_training(
        load_recipe(source, set),
        folder=folder,
        resume=resume is not None,
        overwrite=overwrite,
    ).folder
    if os.environ.get("RANK", "0") == "0":
        columns = ("", run.name)
        print_table(outcome({run.name: run}), columns=columns, right=columns[1:])
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
) -> None:
    """Train a recipe at many settings; run again, it does only what is missing or unfinished.

    Parameters
    ----------
    recipe
        The recipe, a TOML file.
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
    from latewood.training.points import listed_points, parse_grid
    from latewood.training.sweep import sweep as run_sweep
    from latewood.training.tables import print_table

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
) -> None:
    """Find small networks inside a large one, and compare them with other ways to prune.

    Prints density, quality and search cost; writes tables and each ticket to a folder.

    Parameters
    ----------
    recipe
        The recipe of one training, a TOML file without methods.
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
    from latewood.training.recipe import load_recipe
    from latewood.training.tables import print_table
    from latewood.training.tickets import BASELINES, search_tickets

    loaded = load_recipe(recipe, set)
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
    print(f"tables and tickets: {table.folder}")


@app.command
def inspect(
    files: Annotated[Sequence[Path], Parameter(negative=())],
    /,
    *,
    csv: Path | None = None,
    json: Path | None = None,
    parquet: Path | None = None,
) -> None:
    """Show the spectra of any checkpoint's weight matrices, without the code that made it.

    Parameters
    ----------
    files
        safetensors or torch files, run folders, or Hugging Face model folders.
    csv
        Also write the table to this file.
    json
        Also write the table to this file.
    parquet
        Also write the table to this file.
    """
    endings = {".csv": csv, ".json": json, ".parquet": parquet}
    _require_endings(endings)

    from latewood.training.inspection import inspect_checkpoint
    from latewood.training.progress import track
    from latewood.training.tables import print_table, write_table

    rows = []
    for file in files:
        found = inspect_checkpoint(file, track=track)
        print_table(found, title=str(file))
        rows += [{"file": str(file), **row} for row in found]
    for path in endings.values():
        if path is not None:
            print(f"table: {write_table(rows, path)}")


@app.command
def spectra(
    run: Path,
    /,
    *,
    reference: str = "final",
    against: Path | None = None,
    out: Path | None = None,
    csv: Path | None = None,
    json: Path | None = None,
    parquet: Path | None = None,
) -> None:
    """Show when the singular vectors of a run's weights took their direction, and draw it.

    Needs the snapshots of a probe named spectral, and no checkpoints.

    Parameters
    ----------
    run
        A run folder.
    reference
        What to compare with: final, initial, previous, a step, or (with --against) same.
    against
        Compare with the snapshots of this run instead.
    out
        The page; agreement.html in the run's folder if not given.
    csv
        Also write every single agreement to this file.
    json
        Also write every single agreement to this file.
    parquet
        Also write every single agreement to this file.
    """
    endings = {".csv": csv, ".json": json, ".parquet": parquet}
    _require_endings(endings)

    from latewood.training.agreement_page import (
        agreement_rows,
        run_agreement,
        score_rows,
        write_agreement_page,
    )
    from latewood.training.run_folder import RunFolder
    from latewood.training.tables import print_table, write_table

    folder, other = RunFolder(run), None if against is None else RunFolder(against)
    found = run_agreement(folder, reference, against=other)
    about = f"step {reference}" if reference.isdecimal() else f"the {reference} snapshot"
    if other is not None:
        about += f" of {other.name}"
    print_table(score_rows(found), title=f"Agreement with {about}")
    print(f"page: {write_agreement_page(folder, found, out or run / 'agreement.html', about)}")
    for path in endings.values():
        if path is not None:
            print(f"table: {write_table(agreement_rows(found), path)}")


@app.command
def segment(
    images: Annotated[Sequence[Path], Parameter(negative=())],
    /,
    *,
    out: Path = Path("segmented"),
    overlay: Annotated[bool, Flag] = False,
    evaluate: Path | None = None,
    preset: Literal["paper", "robust", "fast"] = "robust",
    size: int | None = None,
    network: Path | None = None,
) -> None:
    """Split images into foreground and background, without labels or weights.

    Writes a mask for every image, segmentation.json, and index.html to look at them all.

    Parameters
    ----------
    images
        Image files, or folders of them.
    out
        Folder of the results.
    overlay
        Also write each image with its background darkened and the outline drawn.
    evaluate
        A folder with true masks, called NAME.png or NAME_mask.png, to compare with.
    preset
        paper is the published algorithm; robust finds better masks; fast works at half the size.
    size
        Larger images are searched with this shorter side, in pixels, and their masks brought
        back to full size along the edges; 128 if not given, 64 for fast.
    network
        Instead of searching, ask the network that a run on the task foreground has trained.
    """
    from functools import partial

    from latewood.segmentation import PRESETS, segment
    from latewood.segmentation.folder import means, segment_files
    from latewood.segmentation.settings import settings_of
    from latewood.segmentation.sheet import write_sheet
    from latewood.training.foreground_network import trained_segmenter
    from latewood.training.progress import track
    from latewood.training.run_folder import RunFolder
    from latewood.training.tables import print_table

    settings = settings_of(preset, {"size": size or PRESETS[preset].size or 128})
    search = partial(segment, preset=settings)
    segmenter = search if network is None else trained_segmenter(RunFolder(network))
    done = segment_files(images, out, segmenter, overlays=overlay, truth=evaluate, track=track)
    scores = means(done)
    if scores:
        rows = [
            {"measure": name, "better polarity": scores[name], "as it is": scores[f"{name}_fixed"]}
            for name in ("accuracy", "iou", "miou", "dice")
        ]
        print_table([*rows, {"measure": "empty masks", "as it is": scores["empty"]}])
    failed = [one for one in done if one.error]
    print(f"masks: {len(done) - len(failed)} in {out}")
    print(f"page: {write_sheet(done, out / 'index.html')}")
    if failed:
        # One line says it all; the page and segmentation.json hold the reasons of the rest.
        shown = "; ".join(one.error for one in failed[:5])
        more = f"; and {len(failed) - 5} more, see {out / 'index.html'}" if len(failed) > 5 else ""
        raise WorkError(f"{len(failed)} of {len(done)} images failed: {shown}{more}")


@app.command
def report(
    runs: Annotated[Sequence[Path], Parameter(negative=())],
    /,
    *,
    out: Path | None = None,
) -> None:
    """Write one self-contained HTML page about a run, or comparing several.

    Parameters
    ----------
    runs
        Run folders.
    out
        The page; report.html in the folder of the first run if not given.
    """
    from latewood.training.report import write_report
    from latewood.training.run_folder import RunFolder

    folders = [RunFolder(path) for path in runs]
    print(f"report: {write_report(folders, out or folders[0].report_path)}")


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
    from latewood.training.progress import duration, track
    from latewood.training.tables import print_table

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
                "verdict": verdict.word,
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 success, 1 the work failed, 2 the request was wrong."""
    words = [*(sys.argv[1:] if arguments is None else arguments)]
    debug = "--debug" in words
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A letter that the terminal lacks is no reason to fail.
            stream.reconfigure(errors="replace")
    if not debug:
        warnings.showwarning = _show_warning
    words = [word for word in words if word != "--debug"]
    try:
        code = _run(words, debug)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has gone; what is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    raise SystemExit(code)


def _run(words: Sequence[str], debug: bool) -> int:
    try:
        app(words, exit_on_error=False, print_error=False, result_action="return_value")
        return 0
    except CycloptsError as error:
        error.verbose = False
        command = " ".join(["latewood", *(error.command_chain or ())])
        return _failed(f"{' '.join(str(error).split())} See {command} --help.", 2)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return _failed("stopped. A training run goes on with: latewood train --resume RUN", 1)
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        return _explain(error, debug)


def _explain(error: Exception, debug: bool) -> int:
    if isinstance(error, RequestError):
        return _failed(str(error), 2)
    if isinstance(error, LatewoodError):
        return _failed(str(error), 1)
    hint = "" if debug else " (--debug shows where)"
    return _failed(f"unexpected {type(error).__name__}: {error}{hint}", 1)


def _show_warning(message: Warning | str, *rest: object, **more: object) -> None:
    _failed(f"warning: {message}", 0)


def _require_endings(paths: Mapping[str, Path | None]) -> None:
    for ending, path in paths.items():
        if path is not None and path.suffix != ending:
            raise RequestError(f"--{ending[1:]}: got '{path}'; expected a name ending in {ending}")


def _failed(message: str, code: int) -> int:
    print("latewood: " + " ".join(message.split()), file=sys.stderr)
    return code
