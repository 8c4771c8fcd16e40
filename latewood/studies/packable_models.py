"""What latewood pack takes: the model of a run, or one that latewood slim has written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from latewood.errors import invalid
from latewood.precision import restore_formats
from latewood.slim import load_slim, slim_recipe
from latewood.slim.saved_files import slim_factory
from latewood.studies.slim_run import is_slim_run
from latewood.training import components
from latewood.training.opened_run import open_run, run_of

__all__ = ["Packable", "packable"]

_MODEL = "model"


@dataclass(frozen=True)
class Packable:
    """A finished model and what it is called with.

    Args:
        model: in evaluation mode on the CPU.
        inputs: what it is called with.
        folder: that it came from.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...]
    folder: Path


def packable(path: Path, *, trust: bool = False) -> Packable:
    """Opens a run or a slim model.

    Args:
        path: the folder of a run, a checkpoint in one, the folder that ``latewood slim`` wrote, or
            either file of its model.
        trust: import and call what the recipe, or the slim model, names.

    Raises:
        RequestError: nothing of that kind there, or a slim model that names a factory of others
            without trust.
        WorkError: a file is damaged.
    """
    slim = _slim_path(path)
    if slim is None:
        opened = open_run(path, trust=trust)
        return Packable(opened.model, tuple(opened.task.example_inputs), opened.folder.path)
    # Models that ship with this package are made without trust; nothing else is imported.
    own = trust or slim_factory(slim) in components.MODELS.values()
    model = load_slim(slim, trust=own, restore=lambda module, state: restore_formats(module, state))
    examples = slim_recipe(model).examples
    inputs = (examples,) if isinstance(examples, Tensor) else examples
    if not isinstance(inputs, (tuple, list)) or not all(isinstance(x, Tensor) for x in inputs):
        raise invalid("run", str(path), "a slim model that is called with tensors alone")
    return Packable(model.eval(), tuple(x.detach().cpu() for x in inputs), slim.parent)


def _slim_path(path: Path) -> Path | None:
    """The path of a slim model without suffix; None if there is none."""
    if path.is_dir():
        return path / _MODEL if is_slim_run(path) else None
    if path.suffix not in (".json", ".safetensors") or run_of(path) is not None:
        return None
    stem = path.with_suffix("")
    both = (stem.with_name(f"{stem.name}{suffix}") for suffix in (".json", ".safetensors"))
    return stem if all(file.is_file() for file in both) else None
