"""The demo: one small network, dense, grown and masked as in ``demo.toml``, grown to a budget, and
with learned bits, packed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from latewood.core.threads import threads
from latewood.errors import Interrupted, RequestError, WorkError
from latewood.report import write_report
from latewood.report.formatting import SPACE, bytes_text
from latewood.report.summary_table import summary_rows
from latewood.studies.packed_run import pack_run
from latewood.terminal.tables import Row
from latewood.training.recipe import Recipe, load_recipe, read_recipe
from latewood.training.run import train
from latewood.training.run_folder import RunFolder

__all__ = ["BASELINE", "COMPOSED", "GROWN", "PACKED", "DemoResult", "run_demo"]

BASELINE, COMPOSED, GROWN, PACKED = "dense", "latewood", "grown", "packed"
"""The runs: the full network without methods, the recipe, which grows to it, one that grows from a
seed to a budget, and one whose weights and inputs learn few bits."""

GROWTH = 4
"""How many times its channels the recipe's network grows to; the others have so many at once."""

GROW = "methods=[{name='structured_sparsification', budget={macs=0.2}}]"
"""The method of the third run: it grows from one channel a layer to a fifth of the operations."""

GROWN_EPOCHS = "epochs=60"
"""The third run's epochs, unless the user sets others: those of its own recipe."""

LEARN_BITS = (
    "methods=[{name='learned_precision', target_bits=2.0, activations=true, "
    "noise={scale='fan_in'}}]"
)
"""The method of the fourth run: 2 bits on average between the first and the last layer."""

PACKED_EPOCHS = "epochs=40"
"""The fourth run's epochs, likewise."""

SHOWN = (
    ("packed file bytes", "File, packed", bytes_text),
    ("packed us", "Latency, packed", lambda us: f"{us:.0f} µs"),
    ("float us", "Latency, the same unpacked", lambda us: f"{us:.0f} µs"),
)
"""What is said of the packed network: its name among the figures, in the table, and how."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo came to.

    Args:
        rows: the before/after table, see ``summary_rows``.
        report: the HTML page.
        seconds: how long it took, wall-clock.
        trained: how many of the four runs were trained now rather than found finished.
    """

    rows: list[Row]
    report: Path
    seconds: float
    trained: int


def run_demo(
    folder: str | Path,
    *,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    show_progress: bool | None = None,
) -> DemoResult:
    """Trains the four runs, packs the last, compares them and writes ``report.html``.

    A demo that was stopped goes on, and one that had been finished only writes its report again.

    Args:
        folder: gets a run folder for each run, and the report.
        overrides: changes of the recipe, "key.path=value".
        overwrite: train again what is there already.
        show_progress: None shows it when it takes longer than two seconds; False never.

    Raises:
        RequestError: a wrong override, or a folder with runs of another recipe.
        WorkError: a training failed, or a file cannot be written.
        Interrupted: Ctrl-C; the same call goes on.
    """
    start = time.monotonic()
    folder = Path(folder)
    with as_file(files("latewood.studies").joinpath("demo.toml")) as path:
        composed = load_recipe(path, overrides)
        full = [*overrides, *_full_size(composed)]
        recipes = {
            BASELINE: load_recipe(path, [*full, "methods=[]"]),
            COMPOSED: composed,
            GROWN: load_recipe(path, [GROWN_EPOCHS, *full, GROW]),
            PACKED: load_recipe(path, [PACKED_EPOCHS, *full, LEARN_BITS]),
        }
    runs = {name: RunFolder(folder / name) for name in recipes}
    for name, run in runs.items():
        if run.exists and not overwrite and _differ(read_recipe(run.recipe_path), recipes[name]):
            raise RequestError(
                f"folder: got '{folder}', which holds a demo with other settings; expected a new "
                "folder, or --overwrite to replace that one"
            )
    trained = 0
    for name, recipe in recipes.items():
        # So small a network gains nothing from a second thread, and beside other work two threads
        # wait for each other most of the time.
        try:
            with threads(1):
                done = train(
                    recipe,
                    folder=runs[name].path,
                    resume=runs[name].exists and not overwrite,
                    overwrite=overwrite,
                    show_progress=show_progress,
                )
        except Interrupted:
            again = "the same command without --overwrite" if overwrite else "the same command"
            raise Interrupted(f"stopped; {again} goes on") from None
        trained += done.model is not None
    report = write_report(list(runs.values()), folder / "report.html")
    rows = summary_rows(runs) + _packed_rows(folder)
    return DemoResult(rows, report, time.monotonic() - start, trained)


def _packed_rows(folder: Path) -> list[Row]:
    """Packs the fourth run where it is not packed yet, and says what that came to."""
    run, file, note = folder / PACKED, folder / "packed.safetensors", folder / "packed.json"
    figures = _noted(note) if _newer(file, RunFolder(run).model_path) else None
    if figures is None:
        with threads(1):
            figures = pack_run(run, out=file, overwrite=True).summary
        try:
            note.write_text(json.dumps(figures) + "\n", encoding="utf-8")
        except OSError as error:
            raise WorkError(f"{note}: cannot be written: {error.strerror or error}") from error
    # As the other rows: a narrow space is none that every terminal shows.
    return [{"": name, PACKED: text(figures[key]).replace(SPACE, " ")} for key, name, text in SHOWN]


def _newer(file: Path, model: Path) -> bool:
    return file.is_file() and file.stat().st_mtime >= model.stat().st_mtime


def _noted(note: Path) -> dict[str, float] | None:
    """The figures of an earlier call; None where they cannot be read."""
    try:
        figures = json.loads(note.read_text(encoding="utf-8"))
        values = {key: float(figures[key]) for key, _, _ in SHOWN}
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return values if all(math.isfinite(value) for value in values.values()) else None


def _full_size(recipe: Recipe) -> list[str]:
    """What makes the recipe's network as wide at once as it grows to be."""
    model = recipe.model
    channels = model.get("channels") if isinstance(model, dict) else None
    return [] if channels is None else [f"model.channels={[GROWTH * c for c in channels]}"]


def _differ(one: Recipe, other: Recipe) -> bool:
    # The folders that modules are looked for in may differ; they are no part of the recipe.
    return one.model_dump() != other.model_dump()
