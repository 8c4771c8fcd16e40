"""What the weight matrices of a checkpoint look like, from the file alone, without its code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from latewood.core import read_tensors
from latewood.errors import RequestError
from latewood.slim.saved_files import read_slim_values
from latewood.spectra import analyze
from latewood.spectra.analyze import COLUMNS
from latewood.spectra.matrices.named_matrices import Conv, Lora, Split
from latewood.studies.slim_run import is_slim_run
from latewood.terminal.progress import Track
from latewood.terminal.tables import Row
from latewood.training import checkpoints
from latewood.training.opened_run import run_of
from latewood.training.run_folder import RunFolder

__all__ = ["COLUMNS", "inspect_checkpoint"]


def inspect_checkpoint(
    path: Path,
    *,
    split: Split = "fused",
    conv: Conv = "flatten",
    lora: Lora = "factors",
    track: Track | None = None,
) -> list[Row]:
    """Measures every weight matrix of a checkpoint.

    Args:
        path: a safetensors or torch file, a Hugging Face model folder, a run folder, which stands
            for its last checkpoint where the run has not finished, a checkpoint in a run, or the
            folder of a slim model, whose compressed rows are left out.
        split: see ``analyze``, as ``conv`` and ``lora``.
        conv: see ``analyze``.
        lora: see ``analyze``.
        track: shows progress over the tensors.

    Returns:
        One row for each floating-point tensor with at least two dimensions, in the file's order.

    Raises:
        RequestError: nothing to read there, it holds no matrix, or a choice that is not allowed.
        WorkError: the file is torn or corrupted, or not the one that a checkpoint was written with.
    """
    tensors = _tensors(path)

    def shown(items: Iterable[Any], total: int) -> Iterator[Any]:
        assert track is not None
        return track(items, f"spectra of {path.name}", total)

    measured = partial(analyze, tensors, split=split, conv=conv, lora=lora)
    rows = measured(track=None if track is None else shown)
    if not rows:
        raise RequestError(
            f"{path}: got {len(tensors)} tensors, none of them a matrix; expected floating-point "
            "tensors with two or more dimensions"
        )
    return list(rows)


def _tensors(path: Path) -> dict[str, Tensor]:
    if is_slim_run(path):
        # Its files number the tensors, and hold inputs as well, which are no weights.
        return read_slim_values(path / "model")
    return read_tensors(_weights(path))


def _weights(path: Path) -> Path:
    """The file or folder to read: of a run under way its last sound checkpoint, verified."""
    run = RunFolder(path)
    if run.exists and not run.finished:
        latest = checkpoints.latest(run.checkpoints)
        return path if latest is None else latest.weights
    folder = (path.parent if path.name == checkpoints.WEIGHTS else path).resolve()
    step = checkpoints.step_of(folder)
    if step is None or run_of(folder) is None:
        return path
    return checkpoints.at_step(folder.parent, step).weights
