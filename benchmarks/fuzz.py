"""Damaged and hostile files and texts for everything that reads one: each ends in a clear error."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks._fuzz_cases import damaged_bytes, damaged_json, damaged_text, words
from benchmarks._fuzz_files import SoundFiles
from latewood.core.state import load_state
from latewood.core.tensor_files import read_tensors
from latewood.errors import LatewoodError
from latewood.models import mlp
from latewood.report.run_data import load_runs
from latewood.report.sampling import DETAILS
from latewood.report.summary_table import summary_rows
from latewood.segmentation.image_files import read_image, read_mask
from latewood.slim import load_slim
from latewood.spectra import analyze, read_alignments, read_snapshot
from latewood.studies.sweeps.grid_points import folder_name, grid_points, listed_points, parse_grid
from latewood.training import checkpoints, folder_lock, load_recipe
from latewood.training.folder_lock import FolderLock
from latewood.training.run_folder import RunFolder

__all__ = ["READERS", "Outcome", "examine", "main"]


@dataclass(frozen=True)
class Reader:
    """Something that reads what others wrote.

    Args:
        cases: makes the strategy of its inputs from sound files.
        read: reads one case in a folder of its own.
    """

    cases: Callable[[SoundFiles], st.SearchStrategy[Any]]
    read: Callable[[Any, Path, SoundFiles], object]


@dataclass
class Outcome:
    """How the cases of one reader ended.

    Args:
        counts: "read", "refused" (an error of Latewood's) and "unforeseen".
        unforeseen: a case by the error and the place that it came from.
    """

    counts: Counter[str] = field(default_factory=Counter)
    unforeseen: dict[str, str] = field(default_factory=dict)


def examine(name: str, files: SoundFiles, *, cases: int, derandomize: bool = False) -> Outcome:
    """Reads many cases with one reader.

    Args:
        name: of the reader.
        files: what damaged cases are made from.
        cases: how many.
        derandomize: always the same cases.
    """
    reader, outcome = READERS[name], Outcome()

    def one(case: Any) -> None:
        folder = Path(tempfile.mkdtemp(dir=files.folder))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reader.read(case, folder, files)
            outcome.counts["read"] += 1
        except LatewoodError:
            outcome.counts["refused"] += 1
        except Exception as error:
            outcome.counts["unforeseen"] += 1
            outcome.unforeseen.setdefault(_signature(error), f"{case!r:.300}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    options = settings(
        max_examples=cases,
        database=None,
        deadline=None,
        derandomize=derandomize,
        suppress_health_check=list(HealthCheck),
    )
    options(given(reader.cases(files))(one))()
    return outcome


def _signature(error: BaseException) -> str:
    trace = error.__traceback__
    place = ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if "latewood" in code.co_filename:
            place = f"{Path(code.co_filename).name}:{trace.tb_lineno} {code.co_name}"
        trace = trace.tb_next
    return f"{type(error).__name__} at {place}: {str(error)[:120]}"


def _recipe(text: str, folder: Path, files: SoundFiles) -> None:
    (folder / "r.toml").write_text(text, encoding="utf-8", errors="surrogatepass")
    load_recipe(folder / "r.toml")


def _recipe_bytes(content: bytes, folder: Path, files: SoundFiles) -> None:
    (folder / "r.toml").write_bytes(content)
    load_recipe(folder / "r.toml")


def _override(text: str, folder: Path, files: SoundFiles) -> None:
    load_recipe("digits-mlp", [text])


def _grid(texts: list[str], folder: Path, files: SoundFiles) -> None:
    for point in grid_points(parse_grid(texts)):
        assert Path(folder_name(point)).name == folder_name(point)


def _list(content: bytes, folder: Path, files: SoundFiles) -> None:
    (folder / "l.txt").write_bytes(content)
    listed_points(folder / "l.txt")


def _run_file(name: str) -> Callable[[bytes, Path, SoundFiles], None]:
    def read(content: bytes, folder: Path, files: SoundFiles) -> None:
        run = RunFolder(files.copied_run(folder, but=("checkpoints", "spectra")))
        (run.path / name).write_bytes(content)
        errors: list[LatewoodError] = []
        for use in (
            lambda: summary_rows({"run": run}),
            lambda: [
                shown.series(kind, scalar)
                for shown in load_runs([run], DETAILS[0])
                for kind in ("train", "validation")
                for scalar in shown.names(kind)
            ],
            lambda: run.truncate_metrics(2),
            run.read_metrics,
        ):
            try:
                use()
            except LatewoodError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    return read


def _checkpoint(damage: tuple[str, bytes], folder: Path, files: SoundFiles) -> None:
    name, content = damage
    run = RunFolder(files.copied_run(folder, but=("spectra",)))
    step = checkpoints.steps(run.checkpoints)[-1]
    (run.checkpoints / f"step-{step:08d}" / name).write_bytes(content)
    latest = checkpoints.latest(run.checkpoints)
    if latest is not None:
        latest.state()
        latest.model_state()


def _state(content: bytes, folder: Path, files: SoundFiles) -> None:
    files.write_state(folder / "state", content)
    load_state(folder / "state")


def _slim(content: bytes, folder: Path, files: SoundFiles) -> None:
    files.write_state(folder / "model", content, like=files.slim)
    load_slim(folder / "model", mlp)


def _tensors(suffix: str) -> Callable[[bytes, Path, SoundFiles], None]:
    def read(content: bytes, folder: Path, files: SoundFiles) -> None:
        (folder / f"weights{suffix}").write_bytes(content)
        analyze(read_tensors(folder / f"weights{suffix}"))

    return read


def _index(content: bytes, folder: Path, files: SoundFiles) -> None:
    (folder / "model.safetensors.index.json").write_bytes(content)
    (folder / "model.safetensors").write_bytes(files.safetensors)
    read_tensors(folder)


def _snapshot(content: bytes, folder: Path, files: SoundFiles) -> None:
    (folder / files.snapshot_name).write_bytes(content)
    read_snapshot(folder / files.snapshot_name, vectors=True)
    read_alignments(folder / files.snapshot_name)


def _image(content: bytes, folder: Path, files: SoundFiles) -> None:
    (folder / "image.png").write_bytes(content)
    read_image(folder / "image.png")
    read_mask(folder / "image.png")


def _lock(content: bytes, folder: Path, files: SoundFiles) -> None:
    (folder / ".lock").write_bytes(content)
    os.utime(folder / ".lock", (1, 1))  # else it would be waited for
    patience, folder_lock.STALE_SECONDS = folder_lock.STALE_SECONDS, 0.03
    try:
        with FolderLock(folder):
            (folder / ".lock").write_bytes(content)
            FolderLock(folder).acquire()
    finally:
        folder_lock.STALE_SECONDS = patience


READERS: Mapping[str, Reader] = {
    "recipe": Reader(lambda files: damaged_text(files.recipe), _recipe),
    "recipe bytes": Reader(lambda files: damaged_bytes(files.recipe.encode()), _recipe_bytes),
    "--set": Reader(lambda files: words(files.recipe), _override),
    "--grid": Reader(lambda files: st.lists(words(files.recipe), max_size=3), _grid),
    "sweep list": Reader(lambda files: damaged_bytes(b"seed=1 model.hidden=[8]\n# x\n"), _list),
    "metrics": Reader(
        lambda files: damaged_json(files.metrics, lines=True), _run_file("metrics.jsonl")
    ),
    "summary": Reader(lambda files: damaged_json(files.summary), _run_file("summary.json")),
    "recorded recipe": Reader(
        lambda files: damaged_bytes(files.recipe.encode()), _run_file("recipe.toml")
    ),
    "checkpoint": Reader(
        lambda files: st.one_of(
            *(
                st.tuples(st.just(name), damaged_bytes(content))
                for name, content in files.checkpoint.items()
            ),
            st.tuples(st.just("manifest.json"), damaged_json(files.checkpoint["manifest.json"])),
        ),
        _checkpoint,
    ),
    "state": Reader(lambda files: damaged_json(files.checkpoint["state.json"]), _state),
    "slim": Reader(lambda files: damaged_json(files.slim_json), _slim),
    "safetensors": Reader(lambda files: damaged_bytes(files.safetensors), _tensors(".safetensors")),
    "torch file": Reader(lambda files: damaged_bytes(files.torch_file), _tensors(".pt")),
    "torch file, old form": Reader(
        lambda files: damaged_bytes(files.old_torch_file), _tensors(".bin")
    ),
    "weight index": Reader(lambda files: damaged_json(files.index), _index),
    "snapshot": Reader(lambda files: damaged_bytes(files.snapshot), _snapshot),
    "image": Reader(lambda files: damaged_bytes(files.image), _image),
    "lock": Reader(lambda files: damaged_json(files.lock), _lock),
}
"""Everything that reads what others wrote, by name."""


def main(arguments: list[str]) -> None:
    """Prints how the cases of every reader ended, and every error that nobody foresaw.

    Args:
        arguments: the number of cases a reader, 10000 if left out; then readers, all if none.
    """
    cases = int(arguments[0]) if arguments else 10_000
    names = arguments[1:] or list(READERS)
    failed = False
    print(f"{'reader':<22} {'cases':>7} {'read':>7} {'refused':>8} {'unforeseen':>10} {'s':>6}")
    with tempfile.TemporaryDirectory() as folder:
        files = SoundFiles(Path(folder))
        for name in names:
            start = time.monotonic()
            outcome = examine(name, files, cases=cases)
            counts = outcome.counts
            shown = f"{counts['read']:>7} {counts['refused']:>8} {counts['unforeseen']:>10}"
            seconds = time.monotonic() - start
            print(f"{name:<22} {counts.total():>7} {shown} {seconds:>6.0f}", flush=True)
            for error, case in outcome.unforeseen.items():
                failed = True
                print(f"  {error}\n    {case}", flush=True)
    if failed:
        sys.exit(1)
