"""The model of a run, from its folder or one of its checkpoints, as trained or finalized."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from latewood.core import read_tensors
from latewood.core.finalize import finalize
from latewood.core.protocols import Method
from latewood.errors import RequestError, invalid
from latewood.precision import restore_formats
from latewood.slim.saved_files import repeat_edits
from latewood.tasks import Task
from latewood.training import checkpoints, components
from latewood.training.checkpoints import Checkpoint, load_into
from latewood.training.evaluation import recalibrate
from latewood.training.processes import alone
from latewood.training.randomness import caller_unchanged, derive, seed_torch
from latewood.training.recipe import Recipe, load_recipe
from latewood.training.run_context import build_task
from latewood.training.run_folder import RunFolder
from latewood.training.session import Session
from latewood.training.session_builder import build_model, open_session

__all__ = ["OpenedRun", "model_of_state", "open_run", "run_of"]

_EXPECTED = "the folder of a run, or a checkpoint in one"


@dataclass(frozen=True)
class OpenedRun:
    """A run's model and what belongs to it.

    Args:
        model: in evaluation mode on the CPU.
        recipe: of the run.
        task: its data and objective.
        folder: the run's folder.
        weights: the file that the values came from.
        methods: those still at work in the model, by the prefix of their metrics; {} once they
            are finalized.
    """

    model: nn.Module
    recipe: Recipe
    task: Task
    folder: RunFolder
    weights: Path
    methods: Mapping[str, Method]


def open_run(
    path: str | Path,
    *,
    finalized: bool = True,
    recipe: Recipe | None = None,
    task: Task | None = None,
    trust: bool = False,
) -> OpenedRun:
    """Opens any run, one whose network grew or shrank too.

    Nothing is written, and the caller's random generators, default dtype and thread count are left
    as they were. Nothing of the run's maker is executed, unless it is trusted.

    Args:
        path: the folder of a run, which stands for the model it ended with, or for its last
            checkpoint where it has not finished; a checkpoint in it (``RUN/checkpoints/step-N``);
            or a file of weights in it.
        finalized: bake the methods of a checkpoint into plain layers, in a copy, and renew batch
            norms, as if the run had ended there. False gives the model as it was trained, with its
            methods, and a finished run then stands for its last checkpoint.
        recipe: in place of the run's own, for example with another ``task.folder``.
        task: in place of building the recipe's. A finished model and a checkpoint without methods
            need no more of it than ``model_arguments``.
        trust: import and call modules that the run's recipe names (see ``load_recipe``).

    Returns:
        The model with recipe and task; at the last checkpoint of a run on the CPU its finalized
        model is, bit for bit, the one that the run ended with.

    Raises:
        RequestError: no run or no such step there, a recipe that cannot be built here or names
            modules without trust, or weights that do not fit it, with the entries that differ.
        WorkError: a file is damaged.
    """
    path = Path(path)
    run = run_of(path)
    if run is None:
        missing = "which is in no run's folder" if path.exists() else "which does not exist"
        raise RequestError(f"run: got '{path}', {missing}; expected {_EXPECTED}")
    source = _source(run, path, finalized=finalized)
    try:
        recipe = recipe or load_recipe(run.recipe_path, trust=trust)
        with _undisturbed(recipe):
            return _opened(run, source, recipe, task, finalized=finalized)
    except RequestError as error:
        raise RequestError(f"run: '{path}' cannot be opened here: {error}") from error


def run_of(path: str | Path) -> RunFolder | None:
    """The run whose folder a path is or lies in; None if there is none."""
    if RunFolder(path).exists:
        return RunFolder(path)
    folders = map(RunFolder, Path(path).resolve().parents)
    return next((folder for folder in folders if folder.exists), None)


def model_of_state(
    recipe: Recipe, task: Task, state: Mapping[str, Tensor], source: str
) -> tuple[nn.Module, Mapping[str, Method]]:
    """A recipe's model with the values of a state dict, under the methods where these are in it.

    Args:
        recipe: names model and methods.
        task: says what the data fixes about the model.
        state: tensors by name.
        source: where they come from, for errors.

    Returns:
        The model in evaluation mode on the CPU, and the methods at work in it by their prefixes.

    Raises:
        RequestError: the recipe cannot be built here, or the state is of another model.
    """
    methods: Mapping[str, Method] = {}
    with _undisturbed(recipe):
        model = build_model(recipe, task, torch.device("cpu"))
        if recipe.methods and model.state_dict().keys() != state.keys():
            session = _session(recipe, RunFolder(Path()), task)
            if session.model.state_dict().keys() == state.keys():
                model, methods = session.model, session.methods
        restore_formats(model, state)
        load_into(model, state, source)
    return model.eval(), methods


def _source(run: RunFolder, path: Path, *, finalized: bool) -> Checkpoint | Path:
    """Where the values are: in a checkpoint, or in a file without a method's state."""
    if path.resolve() == run.path.resolve():
        if run.finished and finalized:
            return run.model_path
        latest = checkpoints.latest(run.checkpoints)
        if latest is None:
            raise invalid("run", str(path), "a run with a model or a checkpoint")
        return latest
    folder = (path.parent if path.name == checkpoints.WEIGHTS else path).resolve()
    step = checkpoints.step_of(folder)
    if step is not None and folder.parent in _with_checkpoints(run):
        return checkpoints.at_step(folder.parent, step)
    weights = path / checkpoints.WEIGHTS if path.is_dir() else path
    if not path.exists():
        raise RequestError(f"run: got '{path}', which does not exist; expected {_EXPECTED}")
    if not weights.exists():
        raise RequestError(f"run: got '{path}', which holds no weights; expected {_EXPECTED}")
    return run.model_path if weights.resolve() == run.model_path.resolve() else weights


def _with_checkpoints(run: RunFolder) -> tuple[Path, Path]:
    return run.checkpoints.resolve(), run.failure_folder.resolve()


def _opened(
    run: RunFolder, source: Checkpoint | Path, recipe: Recipe, task: Task | None, *, finalized: bool
) -> OpenedRun:
    task = task or build_task(recipe, alone())
    weights = source.weights if isinstance(source, Checkpoint) else source
    methods: Mapping[str, Method] = {}
    if isinstance(source, Checkpoint) and recipe.methods:
        session = _session(recipe, run, task)
        session.restore(source)
        if finalized:
            model = _finalized(session)
        else:
            model, methods = session.model, session.methods
    elif weights == run.model_path:
        model = build_model(recipe, task, torch.device("cpu"))
        if run.edits_path.with_suffix(".json").exists():
            # Smaller than what the recipe makes: a method has removed channels.
            model = repeat_edits(model, run.edits_path)
        state = read_tensors(weights)
        restore_formats(model, state)
        load_into(model, state, str(weights))
    else:
        model, methods = model_of_state(recipe, task, read_tensors(weights), str(weights))
        if methods and finalized:
            raise invalid("weights", str(weights), "a checkpoint, since methods are finalized")
    return OpenedRun(model.eval(), recipe, task, run, weights, methods)


def _session(recipe: Recipe, run: RunFolder, task: Task) -> Session:
    here = {"device": "cpu", "precision": "no", "compile": False, "probes": [], "trackers": []}
    return open_session(recipe.model_copy(update=here), run, alone(), task)


def _finalized(session: Session) -> nn.Module:
    """What the run's end would have made of the model."""
    seed_torch(derive(session.recipe.seed, "finish"), session.processes.device)
    model = finalize(session.model, list(session.methods.values()))
    recalibrate(session, model)
    return model


@contextmanager
def _undisturbed(recipe: Recipe) -> Iterator[None]:
    """The recipe's own modules can be imported; the caller's global state is left as it was."""
    with (
        caller_unchanged(cuda=False),
        torch.enable_grad(),
        components.importable(*recipe.import_folders),
    ):
        yield
