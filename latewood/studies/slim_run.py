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

from latewood.core.macs import macs
from latewood.core.measure import file_bytes, nonzero_count, parameter_count
from latewood.core.module_calls import ModuleCall, module_calls
from latewood.core.timing import least_times
from latewood.errors import RequestError, WorkError, invalid
from latewood.slim import CsrLinear, ExportForm, ExportReport, export, save_slim
from latewood.tasks import Task
from latewood.terminal.progress import Track
from latewood.terminal.tables import Row
from latewood.training import components
from latewood.training.opened_run import open_run, run_of
from latewood.training.randomness import caller_unchanged
from latewood.training.recipe import Recipe, environment
from latewood.training.run_folder import RunFolder, write_atomically

__all__ = ["SlimRun", "is_slim_run", "slim_run"]

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


def slim_run(
    path: Path,
    *,
    mode: ExportForm = "auto",
    out: Path | None = None,
    batch: int = 1,
    overwrite: bool = False,
    trust: bool = False,
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
        trust: import and call modules that the run's recipe names.
        track: shows progress over the forms.

    Returns:
        The folder, the table dense vs slim vs the mode's form, and the report.

    Raises:
        RequestError: no run there, one that is not finished, a mode or a batch that is not allowed,
            or a folder that holds something else.
        WorkError: the weights are damaged, a form differs from the model, or the folder cannot be
            written.
    """
    if mode not in MODES:
        raise invalid("mode", mode, f"one of {', '.join(MODES)}")
    if batch < 1:
        raise invalid("batch", batch, "1 or more")
    run = run_of(path)
    if run is not None:
        if RunFolder(path).exists and not run.finished:
            raise invalid(
                "run",
                str(path),
                "a run that is finished (latewood train --resume goes on with it), or one of its "
                "checkpoints",
            )
        folder = out or run.path.with_name(f"{run.name}-slim")
        _require_free(folder, overwrite=overwrite)
    opened = open_run(path, trust=trust)
    folder = out or opened.folder.path.with_name(f"{opened.folder.name}-slim")
    inputs = tuple(torch.cat([example] * batch) for example in opened.task.example_inputs)
    forms: list[ExportForm] = list(dict.fromkeys(("dense", "slim", mode)))
    exports: dict[ExportForm, tuple[nn.Module, ExportReport]] = {}
    with caller_unchanged(cuda=False):
        title = f"forms of {opened.folder.name}"
        for form in track(forms, title, len(forms)) if track else forms:
            exports[form] = export(opened.model, inputs, mode=form)
        rows = _table(exports, inputs)
    model, chosen = exports[mode]
    report = {
        "format": _FORMAT,
        "run": opened.folder.name,
        "weights": opened.weights.name,
        "mode": mode,
        "form": chosen.form,
        "batch": batch,
        "threads": torch.get_num_threads(),
        "table": [{"measure": row[""], **{form: row[form] for form in forms}} for row in rows],
        "whole_us": chosen.us,
        "layers": [asdict(layer) for layer in chosen.layers],
        "environment": environment(opened.recipe),
    }
    factory, arguments = _factory(opened.recipe, opened.task)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkError(f"{folder}: cannot be written ({error.strerror})") from error
    # First, since it marks the folder as one that may be replaced.
    write_atomically(folder / _REPORT, json.dumps(report, indent=1) + "\n")
    save_slim(model, folder / _MODEL, factory=factory, arguments=arguments)
    return SlimRun(folder, rows, report)


def is_slim_run(folder: Path) -> bool:
    """Whether ``slim_run`` wrote this folder."""
    try:
        report = json.loads((folder / _REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(report, dict) and report.get("format") == _FORMAT


def _require_free(folder: Path, *, overwrite: bool) -> None:
    if folder.is_file():
        raise RequestError(f"--out: got '{folder}', which is a file; expected a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not is_slim_run(folder):
        raise RequestError(
            f"--out: got '{folder}', which is not empty and holds no slim model; expected a new or "
            "an empty folder"
        )
    if not overwrite:
        raise RequestError(
            f"--out: got '{folder}', which holds a slim model already; expected a new folder, or "
            "--overwrite to replace it"
        )


def _factory(recipe: Recipe, task: Task) -> tuple[str, dict[str, Any]]:
    """What makes the model anew, as "module:function" with its arguments."""
    section = recipe.model or {"name": task.model}
    name = str(section["name"])
    with components.importable(*recipe.import_folders):
        chosen = components.check("model", section, "model", offered=dict(task.model_arguments))
        parameters = inspect.signature(components.resolve("model", name)).parameters
    offered = {key: value for key, value in task.model_arguments.items() if key in parameters}
    return components.MODELS.get(name, name), {**offered, **chosen}


def _table(
    exports: dict[ExportForm, tuple[nn.Module, ExportReport]], inputs: tuple[Tensor, ...]
) -> list[Row]:
    models = {form: model for form, (model, _) in exports.items()}
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
        "largest output difference": lambda form: exports[form][1].difference,
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
    total = parameter_count(model) + sum(tensor.numel() for tensor in rows)
    return total, nonzero_count(model) + sum(int(tensor.count_nonzero()) for tensor in rows)


def _macs(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Multiply-accumulates, of compressed rows only those with weights that are there."""
    saved: list[int] = []

    def note(call: ModuleCall) -> None:
        layer, given = call.module, call.first
        if isinstance(layer, CsrLinear) and given is not None:
            rows = given.numel() // layer.in_features
            saved.append(rows * (layer.in_features * layer.out_features - len(layer.values)))

    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, CsrLinear)}
    with module_calls(layers, note):
        return macs(model, inputs) - sum(saved)
