"""Checkpoints: written whole or not at all, checked before use, the last good one never at risk."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from latewood.core.epochs import Epochs
from latewood.core.state import load_state, save_state
from latewood.errors import RequestError, WorkError, invalid

__all__ = [
    "WEIGHTS",
    "Checkpoint",
    "at_step",
    "discard_after",
    "discard_oldest",
    "latest",
    "load_into",
    "save",
    "shapes",
    "split_points",
    "step_of",
    "steps",
    "write_model",
]

WEIGHTS = "model.safetensors"
"""The file with the model's state in a checkpoint."""

_MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """One verified checkpoint.

    Args:
        path: its folder.
        step: number of updates that led to it.
    """

    path: Path
    step: int

    @property
    def weights(self) -> Path:
        """The file with the model's state."""
        return self.path / WEIGHTS

    def model_state(self) -> dict[str, Tensor]:
        """The model's state dict, on the CPU."""
        return load_file(self.weights)

    def state(self) -> dict[str, Any]:
        """Everything else that was saved: optimizer, methods, metrics under way."""
        state: dict[str, Any] = load_state(self.path / "state")
        return state


def save(
    folder: str | Path,
    step: int,
    model_state: Mapping[str, Tensor],
    state: Mapping[str, Any],
    *,
    keep: int = 2,
    spare: Collection[int] = (),
) -> Path:
    """Writes ``folder/step-N`` under a temporary name, syncs it to disk, then renames it.

    Args:
        folder: where the checkpoints of one run lie; it is made if it is missing.
        step: number of updates so far.
        model_state: the model's state dict.
        state: nested dicts, lists and tuples of tensors and scalars.
        keep: number of checkpoints that stay, this one included.
        spare: steps whose checkpoints stay besides.

    Returns:
        the new checkpoint's folder.

    Raises:
        WorkError: it could not be written; the earlier ones are as they were.
    """
    folder = Path(folder)
    final = folder / f"step-{step:08d}"
    temporary = folder / f".step-{step:08d}.{os.getpid()}.tmp"
    try:
        _sweep(folder)
        temporary.mkdir(parents=True)
        write_model(temporary / WEIGHTS, model_state)
        save_state(temporary / "state", dict(state))
        files = sorted(temporary.iterdir())
        manifest = {"step": step, "files": {file.name: _fingerprint(file) for file in files}}
        (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        _replace(temporary, final)
        _sync(folder)
    except (OSError, WorkError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        earlier = steps(folder) if folder.is_dir() else []
        last = (
            f"the last good one is of step {earlier[-1]}" if earlier else "there is no earlier one"
        )
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise WorkError(
            f"the checkpoint of step {step} could not be written to {folder} ({reason}); {last}"
        ) from error
    discard_oldest(folder, keep, spare)
    return final


def discard_oldest(folder: str | Path, keep: int, spare: Collection[int] = ()) -> None:
    """Removes all but the last checkpoints.

    Args:
        folder: where they lie.
        keep: how many stay.
        spare: steps whose checkpoints stay besides.
    """
    for old in [number for number in steps(folder) if number not in spare][:-keep]:
        shutil.rmtree(Path(folder) / f"step-{old:08d}", ignore_errors=True)


def steps(folder: str | Path) -> list[int]:
    """The steps of which a folder holds checkpoints, sound or not, ascending."""
    if not Path(folder).is_dir():
        return []
    matches = (_NAME.fullmatch(entry.name) for entry in Path(folder).iterdir() if entry.is_dir())
    return sorted(int(match[1]) for match in matches if match)


def step_of(path: Path) -> int | None:
    """The step that the name of a checkpoint's folder says; None for another name."""
    match = _NAME.fullmatch(path.name)
    return None if match is None else int(match[1])


def latest(folder: str | Path) -> Checkpoint | None:
    """The last checkpoint that is sound; None if there is none at all.

    A torn or corrupted one is passed over with a warning.

    Raises:
        WorkError: there are checkpoints, and all are damaged.
    """
    there = steps(folder)
    for step in reversed(there):
        path = Path(folder) / f"step-{step:08d}"
        damage = _damage(path, step)
        if damage is None:
            return Checkpoint(path=path, step=step)
        warnings.warn(f"{path}: {damage}; the checkpoint before it is used", stacklevel=2)
    if there:
        raise WorkError(f"{folder}: all {len(there)} checkpoints are damaged")
    return None


def at_step(folder: str | Path, step: int) -> Checkpoint:
    """The checkpoint of one step.

    Raises:
        RequestError: there is none; the message lists those that are there.
        WorkError: it is damaged.
    """
    there = steps(folder)
    if step not in there:
        listed = ", ".join(map(str, there)) or "none"
        raise invalid("step", step, f"a step with a checkpoint in '{folder}' ({listed})")
    path = Path(folder) / f"step-{step:08d}"
    damage = _damage(path, step)
    if damage is not None:
        raise WorkError(f"{path}: {damage}")
    return Checkpoint(path=path, step=step)


def split_points(epochs: Epochs) -> tuple[int, ...]:
    """The steps from which a run is branched: ten, most of them early, as most changes then.

    Args:
        epochs: of the run; the first has S steps.

    Returns:
        0, four multiples of S // 5 within the first epoch, and the ends of the first five epochs.

    Source: released code of arXiv 2408.11804.
    """
    within = {part * (epochs.length(0) // 5) for part in range(5)}
    return tuple(sorted(within | {epochs.start(epoch) for epoch in range(1, 6)}))


def discard_after(folder: str | Path, step: int) -> None:
    """Removes the checkpoints after ``step``, which a run that resumes there makes anew."""
    for later in steps(folder):
        if later > step:
            shutil.rmtree(Path(folder) / f"step-{later:08d}")


def load_into(model: nn.Module, model_state: Mapping[str, Tensor], source: str) -> None:
    """Loads a state dict into a model it fits exactly.

    Args:
        model: the model, with the weight transformations it had when it was saved.
        model_state: tensors by name.
        source: where they come from, for errors.

    Raises:
        RequestError: other keys or shapes; all that differ are listed.
    """
    expected, given = shapes(model.state_dict()), shapes(model_state)
    differences = [
        *(f"{name} is missing" for name in expected if name not in given),
        *(f"{name} is not in the model" for name in given if name not in expected),
        *(
            f"{name} has shape {given[name]}, the model's has {expected[name]}"
            for name in expected
            if name in given and expected[name] != given[name]
        ),
    ]
    if differences and not _takes(copy.deepcopy(model), model_state):
        listed = "\n  ".join(differences)
        raise RequestError(f"{source}: is of another model; these keys differ:\n  {listed}")
    model.load_state_dict(dict(model_state))


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of every entry of a state dict."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _takes(model: nn.Module, model_state: Mapping[str, Tensor]) -> bool:
    """Whether a model's own loading makes room: a mask that is fixed has one entry more."""
    try:
        model.load_state_dict(dict(model_state))
    except RuntimeError:
        return False
    return True


def write_model(path: Path, model_state: Mapping[str, Tensor]) -> None:
    """Writes a state dict as safetensors.

    Raises:
        WorkError: the file cannot be written.
    """
    # Each tensor gets storage of its own: tied weights share one, which the format refuses.
    plain = {
        name: tensor.detach().cpu().clone().contiguous() for name, tensor in model_state.items()
    }
    try:
        save_file(plain, path, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise WorkError(f"{path}: cannot be written ({error})") from error


def _damage(path: Path, step: int) -> str | None:
    """What is wrong with a checkpoint; None if it is sound."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["step"] != step:
            return f"its manifest is of step {manifest['step']}"
        for name, expected in manifest["files"].items():
            if _fingerprint(path / name) != expected:
                return f"{name} is corrupted"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"its manifest cannot be read ({error!r:.200})"
    return None


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _sync(path: Path) -> None:
    with _opened(path) as descriptor:
        os.fsync(descriptor)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _replace(temporary: Path, final: Path) -> None:
    if final.exists():  # a damaged one, or the same step reached again after resuming
        old = final.with_name(f".{final.name}.{os.getpid()}.old.tmp")
        final.rename(old)
        temporary.rename(final)
        if old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
        else:  # a file that was only called like a checkpoint
            old.unlink(missing_ok=True)
    else:
        temporary.rename(final)


def _sweep(folder: Path) -> None:
    """Removes what a killed process left half-written."""
    if folder.is_dir():
        for entry in folder.glob(".step-*.tmp"):
            shutil.rmtree(entry, ignore_errors=True)
