"""What a run's model comes to when it is made slim and given the form that runs fastest."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from latewood.core import read_tensors
from latewood.core.measure import file_bytes, macs, nonzero_count, parameter_count
from latewood.core.timing import least_times
from latewood.errors import RequestError, invalid
from latewood.slim import CsrLinear, ExportForm, ExportReport, export, save_slim
from latewood.slim.saved_files import repeat_edits
from latewood.tasks.task import Task
from latewood.terminal.progress import Track
from latewood.terminal.tables import Row
from latewood.training import checkpoints, components
from latewood.training.finalizing import finalized
from latewood.training.randomness import caller_unchanged
from latewood.training.recipe import environment, load_recipe
from latewood.training.run_folder import RunFolder, write_atomically

__all__ = ["SlimRun", "slim_run"]

MODES: Final[tuple[ExportForm, ...]] = ("auto", "slim", "csr", "dense")
_MODEL: Final = "model"
_REPORT: Final = "slim.json"
_FORMAT: Final = "latewood slim run 1"


@dataclass(frozen=True)
class SlimRun:
    """What was made of a run's model.

    Args:
        folder: where it was written.
        rows: one row a measure, one column a form.
        report: the contents of ``slim.json``.
    """

    folder: Path
    rows: list[Row]
    report: dict[str, Any]


@dataclass(frozen=True)
class _Source:
    """A trained model, and how it is made anew."""

    model: nn.Module
    factory: str
    arguments: dict[str, Any]
    inputs: tuple[Tensor, ...]
    weights: Path
    about: dict[str, Any]


def slim_run(
    path: Path,
    *,
    mode: ExportForm = "auto",
    out: Path | None = None,
    batch: int = 1,
    overwrite: bool = False,
    track: Track | None = None,
) -> SlimRun:
    """Exports the model of a run, and writes it with a report of what that gained.

    The folder gets ``model.safetensors`` and ``model.json``, from which ``load_slim`` makes the
    module in a fresh process, and ``slim.json`` with the table and the choice for each layer.

    Args:
        path: the folder of a finished run, or a checkpoint in a run, whose methods are then
            finalized in a copy, as if the run had ended there.
        mode: "auto", "slim", "csr" or "dense", as for ``latewood.slim.export``.
        out: the folder to write; the run's name with "-slim" behind it if None.
        batch: samples that the model is measured with.
        overwrite: replace what an earlier call wrote there.
        track: shows progress over the forms.

    Returns:
        The folder, the table dense vs slim vs the mode's form, and the report.

    Raises:
        RequestError: no run there, one that is not finished, a mode or a batch that is not allowed,
            or a folder that holds something else.
        WorkError: the weights are damaged, or a form differs from the model.
    """
    if mode not in MODES:
        raise invalid("mode", mode, f"one of {', '.join(MODES)}")
    if batch < 1:
        raise invalid("batch", batch, "1 or more")
    run, weights = _found(path)
    folder = out or run.path.with_name(f"{run.name}-slim")
    _require_free(folder, overwrite=overwrite)
    with caller_unchanged(cuda=False):
        source = _loaded(run, weights, batch)
        wanted: list[ExportForm] = list(dict.fromkeys(("dense", "slim", mode)))
        made: dict[ExportForm, tuple[nn.Module, ExportReport]] = {}
        for each in track(wanted, f"forms of {run.name}", len(wanted)) if track else wanted:
            made[each] = export(source.model, source.inputs, mode=each)
        rows = _table(made, source.inputs)
    report = {
        "format": _FORMAT,
        "run": run.name,
        "weights": weights.name,
        "mode": mode,
        "form": made[mode][1].form,
        "batch": batch,
        "threads": torch.get_num_threads(),
        "table": [{"measure": row[""], **{form: row[form] for form in wanted}} for row in rows],
        "whole_us": made[mode][1].us,
        "layers": [asdict(layer) for layer in made[mode][1].layers],
        "environment": source.about,
    }
    folder.mkdir(parents=True, exist_ok=True)
    # First, since it marks the folder as one that may be replaced.
    write_atomically(folder / _REPORT, json.dumps(report, indent=1) + "\n")
    save_slim(
        made[mode][0],
        folder / _MODEL,
        factory=source.factory,
        arguments=source.arguments,
    )
    return SlimRun(folder, rows, report)


def _found(path: Path) -> tuple[RunFolder, Path]:
    """The run that a path means, and the file with its weights."""
    expected = "the folder of a finished run, or a checkpoint in one"
    if not path.exists():
        raise RequestError(f"RUN: got '{path}', which does not exist; expected {expected}")
    run = RunFolder(path)
    if run.exists:
        if not run.finished:
            raise RequestError(
                f"RUN: got '{path}', a run that is not finished; expected a finished one "
                "(latewood train --resume goes on with it) or one of its checkpoints"
            )
        return run, run.model_path
    for parent in path.resolve().parents:
        run = RunFolder(parent)
        if run.exists:
            weights = path / "model.safetensors" if path.is_dir() else path
            if not weights.exists():
                raise RequestError(
                    f"RUN: got '{path}', which holds no weights; expected {expected}"
                )
            return run, weights
    raise RequestError(f"RUN: got '{path}', which is in no run's folder; expected {expected}")


def _require_free(folder: Path, *, overwrite: bool) -> None:
    if folder.is_file():
        raise RequestError(f"--out: got '{folder}', which is a file; expected a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    try:
        ours = json.loads((folder / _REPORT).read_text(encoding="utf-8")).get("format") == _FORMAT
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        raise RequestError(
            f"--out: got '{folder}', which is not empty and holds no slim model; expected a new or "
            "an empty folder"
        )
    if not overwrite:
        raise RequestError(
            f"--out: got '{folder}', which holds a slim model already; expected a new folder, or "
            "--overwrite to replace it"
        )


def _loaded(run: RunFolder, weights: Path, batch: int) -> _Source:
    recipe = load_recipe(run.recipe_path, ())
    final = weights.resolve() == run.model_path.resolve()
    with components.importable(*recipe.folders):
        task = components.build("task", recipe.task, "task")
        section = recipe.model or {"name": task.model}
        model: nn.Module = components.build(
            "model", section, "model", offered=dict(task.model_arguments)
        )
        factory, arguments = _factory(section, task)
    if recipe.methods and not final:
        model = finalized(recipe, run, _checkpoint(run, weights))
    else:
        if final and run.edits_path.with_suffix(".json").exists():
            # The run itself has removed channels.
            model = repeat_edits(model, run.edits_path)
        checkpoints.load_into(model, read_tensors(weights), str(weights))
    inputs = tuple(torch.cat([each] * batch) for each in task.example_inputs)
    return _Source(model.eval(), factory, arguments, inputs, weights, environment(recipe))


def _checkpoint(run: RunFolder, weights: Path) -> checkpoints.Checkpoint:
    folder = weights.resolve().parent
    for step in checkpoints.steps(run.checkpoints):
        if folder == run.checkpoints.resolve() / f"step-{step:08d}":
            return checkpoints.at_step(run.checkpoints, step)
    raise RequestError(
        f"RUN: got '{weights}', which is no checkpoint of a run whose methods are to be finalized; "
        f"expected a folder step-N in '{run.checkpoints}'"
    )


def _factory(section: dict[str, Any], task: Task) -> tuple[str, dict[str, Any]]:
    """What makes the model anew, as "module:function" with its arguments."""
    name = str(section["name"])
    own = components.check("model", section, "model", offered=dict(task.model_arguments))
    named = inspect.signature(components.resolve("model", name)).parameters
    offered = {key: value for key, value in task.model_arguments.items() if key in named}
    return components.MODELS.get(name, name), {**offered, **own}


def _table(
    made: dict[ExportForm, tuple[nn.Module, ExportReport]], inputs: tuple[Tensor, ...]
) -> list[Row]:
    models = {form: model for form, (model, _) in made.items()}
    calls: dict[str, Callable[[], object]] = {
        form: partial(model, *inputs) for form, model in models.items()
    }
    times = least_times(calls, torch.device("cpu"), steady=25, seconds=3.0)
    measures: dict[str, Callable[[ExportForm], object]] = {
        "parameters": lambda form: _values(models[form])[0],
        "nonzero": lambda form: _values(models[form])[1],
        "MACs": lambda form: _macs(models[form], inputs),
        "file bytes": lambda form: file_bytes(models[form]),
        "latency ms": lambda form: times[form] / 1e3,
        "largest output difference": lambda form: made[form][1].difference,
    }
    return [{"": name} | {form: of(form) for form in models} for name, of in measures.items()]


def _values(model: nn.Module) -> tuple[int, int]:
    """Number of values that a model computes with, and of those that are not zero."""
    rows = [
        tensor
        for module in model.modules()
        if isinstance(module, CsrLinear)
        for tensor in (module.values, module.bias)
        if tensor is not None
    ]
    total = parameter_count(model) + sum(each.numel() for each in rows)
    return total, nonzero_count(model) + sum(int(each.count_nonzero()) for each in rows)


def _macs(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Multiply-accumulates, of compressed rows only those with weights that are there."""
    saved: list[int] = []
    handles = []
    for module in model.modules():
        if isinstance(module, CsrLinear):

            def note(layer: CsrLinear, given: tuple[Tensor, ...]) -> None:
                rows = given[0].numel() // layer.in_features
                saved.append(rows * (layer.in_features * layer.out_features - len(layer.values)))

            handles.append(module.register_forward_pre_hook(note))
    try:
        return macs(model, inputs) - sum(saved)
    finally:
        for handle in handles:
            handle.remove()
