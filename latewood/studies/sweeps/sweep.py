"""Many runs of one recipe: on this machine's cores or on a cluster, resumed where they stopped."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import torch

from latewood.core.threads import threads as limited
from latewood.errors import Diverged, Interrupted, LatewoodError, RequestError, WorkError, invalid
from latewood.optim import RateStudy
from latewood.report.summary_table import final_evaluation
from latewood.studies.sweeps.grid_points import Point, folder_name, grid_points, settings
from latewood.studies.sweeps.rate_eps import RATE, rate_eps_study
from latewood.studies.sweeps.sweep_page import write_sweep_page
from latewood.studies.workers import Backend, completed, require_backend
from latewood.terminal.progress import one_line_warnings, progress
from latewood.terminal.tables import Row, write_table
from latewood.training.folder_lock import FolderLock, holds_nothing
from latewood.training.recipe import Recipe, environment, load_recipe, read_recipe
from latewood.training.run_folder import RunFolder, write_atomically

__all__ = ["Backend", "SweepResult", "sweep"]

RECIPE_NAME = "sweep.toml"
"""The recipe that all runs of a sweep start from; in the sweep's folder."""

DIVERGENCE_NAME = "diverged.json"
"""What is left of a run of a sweep over learning rates that diverged; in the run's folder."""


@dataclass(frozen=True)
class SweepResult:
    """What a sweep came to.

    Args:
        rows: one for each run, best headline first, failed ones last: "run", a column for each
            key that was swept, the headline, sizes, "seconds", "status" ("done", "diverged" or
            "failed") and "error".
        headline: the column that the rows are sorted by.
        folder: where everything is; ``sweep.csv``, ``sweep.json`` and ``sweep.html`` in it.
        study: what the matrix says where the two keys are the optimizer's lr and eps.
    """

    rows: list[Row]
    headline: str
    folder: Path
    study: RateStudy | None = None

    @property
    def failed(self) -> list[Row]:
        """The rows of the runs that did not come to a result; that one diverged is one."""
        return [row for row in self.rows if row["status"] == "failed"]


def sweep(
    recipe: str | Path,
    grid: Mapping[str, Sequence[object]] | None = None,
    *,
    points: Sequence[Point] = (),
    overrides: Sequence[str] = (),
    folder: str | Path,
    jobs: int | None = None,
    threads: int = 1,
    backend: Backend = "loky",
    overwrite: bool = False,
    trust: bool = False,
    show_progress: bool | None = None,
) -> SweepResult:
    """Trains a recipe at every point; what a run of the same sweep finished is not done again.

    Each run has the same number of threads however many run at once, so that its result, to the
    last bit, depends on its point alone. A run that fails is recorded, and the others go on; one
    whose process dies goes on from its last checkpoint in a new one, once. Where learning rates are
    swept, that a run diverged is a result like another. The folder is locked.

    Args:
        recipe: a TOML file, or the name of a recipe that ships with the package.
        grid: key path -> values; all combinations are run.
        points: further points, or the only ones.
        overrides: changes of the recipe for all runs.
        folder: the sweep's folder; each point's run folder is in it.
        jobs: runs at the same time; if None, as many as the cores have room for, one on a GPU. With
            1 and "loky" they run in this process, which dies with a run that is killed.
        threads: threads of each run; more than one only pays when there are fewer runs than cores.
        backend: "loky" for processes of this machine, "ray" or "dask" for a cluster whose machines
            share the folder.
        overwrite: replace the earlier sweep in the folder, all its runs included.
        trust: import and call modules that a run's recipe names (see ``load_recipe``).
        show_progress: None shows it when the sweep takes longer than two seconds.

    Raises:
        RequestError: a wrong recipe, point, backend or folder, or a folder that another process
            writes to; nothing was started.
        Interrupted: Ctrl-C; the same call goes on.
    """
    folder = Path(folder)
    settings = [*grid_points(grid or {}), *map(tuple, points)]
    if not settings or len(set(settings)) < len(settings):
        raise invalid("grid, points", [*map(list, settings)], "one point or more, each once")
    for name, value in (("jobs", jobs), ("threads", threads)):
        if value is not None and value < 1:
            raise invalid(name, value, "1 or more")
    require_backend(backend)
    base = load_recipe(recipe, overrides, trust=trust)
    recipes = {point: load_recipe(recipe, [*overrides, *point], trust=trust) for point in settings}
    _require_free(folder, base, overwrite)
    with FolderLock(folder):
        _prepare(folder, base, overwrite)
        names = {point: folder_name(point) for point in settings}
        missing = [point for point in settings if not _has_result(folder / names[point])]
        here = jobs == 1 and backend == "loky"
        jobs = min(jobs or _default_jobs(threads), max(1, len(missing)))
        errors: dict[Point, str] = {}
        tasks = [(recipes[point], point, folder / names[point], threads) for point in missing]
        try:
            finished = len(settings) - len(missing)
            title = f"sweep {folder.name}"
            with progress(title, len(settings), done=finished, show=show_progress) as advance:
                for point, error in _run(tasks, jobs, backend, here=here):
                    advance(note=", ".join(point))
                    if error:
                        errors[point] = error
        except (Interrupted, KeyboardInterrupt):
            done = sum(RunFolder(folder / name).finished for name in names.values())
            raise Interrupted(
                f"stopped with {done} of {len(settings)} runs done; the same command goes on with "
                "the rest"
            ) from None
        return _summarise(folder, recipes, errors)


def _require_free(folder: Path, base: Recipe, overwrite: bool) -> None:
    """Refuses a folder that holds something else than this sweep."""
    path = folder / RECIPE_NAME
    if path.exists() and not overwrite:
        # The folders that modules are looked for in differ, and are no part of the recipe.
        if read_recipe(path).model_dump() != base.model_dump():
            raise RequestError(
                f"folder: got '{folder}', which holds a sweep of another recipe; expected a new "
                "folder, or the same recipe to go on, or --overwrite to replace it"
            )
    elif folder.is_dir() and not path.exists() and not holds_nothing(folder):
        raise RequestError(
            f"folder: got '{folder}', which is not empty and holds no sweep; expected a new or an "
            "empty folder"
        )


def _prepare(folder: Path, base: Recipe, overwrite: bool) -> None:
    """Writes the sweep's recipe, unless its sweep goes on."""
    path = folder / RECIPE_NAME
    if path.exists() and not overwrite:
        return
    try:
        for entry in folder.iterdir():
            # Left behind, a run of the earlier sweep would pass for a finished one of this.
            run = RunFolder(entry)
            if run.exists:
                with run.lock:
                    shutil.rmtree(entry)
        write_atomically(path, base.to_toml(**environment(base)))
    except (OSError, WorkError) as error:
        raise RequestError(
            f"folder: got '{folder}', which cannot be written to ({error})"
        ) from error


def _default_jobs(threads: int) -> int:
    return 1 if torch.cuda.is_available() else max(1, int(joblib.cpu_count()) // threads)


def _run(
    tasks: Sequence[tuple[Recipe, Point, Path, int]], jobs: int, backend: Backend, *, here: bool
) -> Iterator[tuple[Point, str]]:
    """Yields each point when its run has ended, with its error or ""."""
    if here:
        yield from (_train_point(*task) for task in tasks)
        return
    threads = tasks[0][-1] if tasks else 1
    ended = completed(_train_point, tasks, jobs=jobs, backend=backend, threads=threads)
    for number, outcome in ended:
        yield (tasks[number][1], str(outcome)) if isinstance(outcome, WorkError) else outcome


def _train_point(recipe: Recipe, point: Point, folder: Path, threads: int) -> tuple[Point, str]:
    """Trains one point to its end; runs in a worker, so that errors travel as text."""
    from latewood.training.run import train

    is_result = RATE in settings(point)
    try:
        with one_line_warnings(folder.name), limited(threads):
            train(
                recipe,
                folder=folder,
                resume=RunFolder(folder).exists,
                keep_failure=not is_result,
                show_progress=False,
            )
    except Interrupted:
        raise
    except Diverged as error:
        if is_result:
            write_atomically(folder / DIVERGENCE_NAME, json.dumps({"error": str(error)}))
        return point, str(error)
    except LatewoodError as error:
        return point, str(error)
    except Exception as error:
        # One broken run must not take the others with it, whatever broke it.
        return point, f"{type(error).__name__}: {error}"
    return point, ""


def _summarise(
    folder: Path, recipes: Mapping[Point, Recipe], errors: Mapping[Point, str]
) -> SweepResult:
    """Collects the runs' summaries into one table and writes it as CSV and JSON."""
    points = list(recipes)
    runs = [(point, RunFolder(folder / folder_name(point))) for point in points]
    summaries = [run.summary for _, run in runs]
    headline = next((summary["headline"] for summary in summaries if summary), "headline")
    higher = all(summary.get("higher_is_better", True) for summary in summaries)
    rows: list[dict[str, Any]] = []
    for (point, run), summary in zip(runs, summaries, strict=True):
        row: dict[str, Any] = {"run": run.name, **settings(point)}
        row[headline] = final_evaluation(summary).get(headline) if summary else None
        row |= {key: summary.get("size", {}).get(key) for key in ("parameters", "density", "bits")}
        row["seconds"] = summary.get("seconds")
        divergence = "" if summary else _divergence(run.path)
        row["status"] = "done" if summary else "diverged" if divergence else "failed"
        missing = errors.get(point, "it has no summary")
        row["error"] = "" if summary else divergence or missing
        rows.append(row)
    order = sorted(range(len(rows)), key=lambda i: _rank(rows[i][headline], higher))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    filled: list[Row] = [{key: rows[i].get(key) for key in columns} for i in order]
    write_table(filled, folder / "sweep.csv", columns=columns)
    write_table(filled, folder / "sweep.json", columns=columns)
    keys = list(dict.fromkeys(key for point in points for key in settings(point)))
    study = rate_eps_study(filled, keys, headline, higher_is_better=higher)
    if summaries[order[0]]:
        write_sweep_page(
            filled,
            keys,
            headline,
            runs[order[0]][1],
            folder / "sweep.html",
            methods=[_methods(recipes[points[i]]) for i in order],
            notes=study.lines() if study else (),
        )
    return SweepResult(filled, headline, folder, study)


def _has_result(run: Path) -> bool:
    return RunFolder(run).finished or bool(_divergence(run))


def _divergence(run: Path) -> str:
    """What is recorded of a run that diverged; "" of any other."""
    try:
        return str(json.loads((run / DIVERGENCE_NAME).read_bytes())["error"])
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def _methods(recipe: Recipe) -> str:
    return " and ".join(section["name"] for section in recipe.methods)


def _rank(value: Any, higher: bool) -> tuple[bool, float]:
    known = isinstance(value, int | float) and not math.isnan(value)
    return (not known, (-value if higher else value) if known else 0.0)
