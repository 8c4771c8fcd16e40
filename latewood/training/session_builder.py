"""Building a run from its recipe: model, methods, optimizer, probes and schedule."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from latewood.core.epochs import Epochs, StepsPerEpoch
from latewood.core.groups import parameter_groups
from latewood.core.protocols import Method, Probe
from latewood.core.schedules import Schedule, with_warmup
from latewood.errors import RequestError, invalid
from latewood.growth import Stages
from latewood.tasks import Task, batch_count
from latewood.training import components
from latewood.training.event_loss import loss_meter
from latewood.training.processes import Processes
from latewood.training.randomness import derive, seed_everything, seed_torch
from latewood.training.recipe import Recipe, split_schedule
from latewood.training.run_context import RunContext
from latewood.training.run_folder import RunFolder
from latewood.training.session import Session, distributed

__all__ = ["build_model", "open_session"]

MOST_PROBED: Final = 256
"""Training samples that a probe which looks at inputs is given."""


def open_session(recipe: Recipe, folder: RunFolder, processes: Processes, task: Task) -> Session:
    """Builds what the recipe asks for.

    Args:
        recipe: a checked recipe.
        folder: the run's folder; nothing is written to it here.
        processes: device and ranks.
        task: the recipe's task.

    Raises:
        RequestError: what only shows with the data and the model at hand: more processes than
            samples, a batch size that leaves no full batch, a model that cannot take the task's
            inputs, arguments that a component refuses.
    """
    seed = recipe.seed
    _require_samples(recipe, processes, task)
    steps_per_epoch = _steps_per_epoch(recipe, task)
    total_steps = recipe.steps or _sum_of_epochs(recipe, steps_per_epoch)
    epochs = Epochs(steps_per_epoch, total_steps)
    if max(recipe.keep_at, default=0) > total_steps:
        raise invalid("keep_at", recipe.keep_at, f"steps up to the last one, {total_steps}")
    model = build_model(recipe, task, processes.device)
    context = RunContext(recipe, processes, task)
    context.place_model(model)
    _require_fit(model, str((recipe.model or {"name": task.model})["name"]), processes, task)
    methods: dict[str, Method] = {}
    for index, section in enumerate(recipe.methods):
        seed_torch(derive(seed, "method", index), processes.device)
        method = components.build(
            "method",
            section,
            f"methods[{index}]",
            model=model,
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
            example_inputs=task.example_inputs,
            seed=derive(seed, "method seed", index),
            measure_loss=loss_meter(context),
        )
        _require_members(method, Method, f"methods[{index}]")
        methods[_prefix(section, methods)] = method
    seed_everything(derive(seed, "start", processes.rank), processes.device)
    model.train()
    schedule, per_epoch = _schedule(recipe.schedule)
    probes = [
        components.build(
            "probe",
            section,
            f"probes[{index}]",
            offered={"worker": "auto", "shard": processes.count > 1},
            model=model,
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
            folder=folder.spectra_folder,
            stages=_stages(methods.values()),
            **_samples(section, task, processes.device),
        )
        for index, section in enumerate(recipe.probes)
    ]
    for index, probe in enumerate(probes):
        _require_members(probe, Probe, f"probes[{index}]")
    return Session(
        recipe=recipe,
        folder=folder,
        processes=processes,
        task=task,
        model=model,
        network=distributed(recipe, processes, model),
        optimizer=_optimizer(recipe, model, methods),
        methods=methods,
        probes=probes,
        schedule=schedule,
        schedule_per_epoch=per_epoch,
        epochs=epochs,
        total_steps=total_steps,
    )


def build_model(recipe: Recipe, task: Task, device: torch.device) -> nn.Module:
    """The recipe's model with its initial weights, on the CPU; global generators are seeded.

    Args:
        recipe: names the model; the task's own if it does not.
        task: says what the data fixes about the model.
        device: whose generators are seeded.

    Raises:
        RequestError: the model cannot be built here.
    """
    section = recipe.model or {"name": task.model}
    seed_torch(derive(recipe.seed, "initial weights"), device)
    model = components.build("model", section, "model", offered=dict(task.model_arguments))
    if not isinstance(model, nn.Module):
        raise RequestError(f"model: {section['name']!r} returned no nn.Module but {type(model)}")
    return model


def _optimizer(
    recipe: Recipe, model: nn.Module, methods: Mapping[str, Method]
) -> torch.optim.Optimizer:
    section = recipe.optimizer
    groups = parameter_groups(
        model,
        list(methods.values()),
        weight_decay=section.get("weight_decay"),
        decay_all=recipe.decay_all,
    )
    optimizer = components.build("optimizer", section, "optimizer", params=groups)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise RequestError(f"optimizer: {section['name']!r} returned no torch optimizer")
    return optimizer


def _schedule(section: Mapping[str, Any]) -> tuple[Schedule, bool]:
    arguments, options = split_schedule(section)
    schedule: Schedule = components.build("schedule", arguments, "schedule")
    if options.get("warmup"):
        schedule = with_warmup(schedule, options["warmup"], options.get("warmup_start", 0.0))
    return schedule, options.get("per", "step") == "epoch"


def _stages(methods: Iterable[Method]) -> Stages | None:
    """Those of the method that makes the model grow, for probes that ask; None without one."""
    growing = (getattr(method, "stages", None) for method in methods)
    return next((stages for stages in growing if isinstance(stages, Stages)), None)


def _samples(
    section: Mapping[str, Any], task: Task, device: torch.device
) -> dict[str, Tensor | tuple[Tensor, ...] | None]:
    """The first training samples, for probes that ask for inputs and targets."""
    probe = components.resolve("probe", section["name"], "probes")
    if "inputs" not in inspect.signature(probe).parameters:
        return {}
    batch = task.train.gather(torch.arange(min(MOST_PROBED, len(task.train))))
    fields = [tensor.to(device) for tensor in batch]
    count = len(task.example_inputs)
    return {
        "inputs": tuple(fields[:count]),
        "targets": fields[count] if len(fields) == count + 1 else None,
    }


def _prefix(section: Mapping[str, Any], taken: Mapping[str, Any]) -> str:
    name = str(section["name"]).rpartition(":")[2]
    number = 2
    prefix = name
    while prefix in taken:
        prefix, number = f"{name}_{number}", number + 1
    return prefix


def _require_members(built: object, protocol: type, path: str) -> None:
    """Refuses a method or a probe of the user's own that lacks what the loop will ask of it."""
    members = {**vars(protocol), **getattr(protocol, "__annotations__", {})}
    missing = [name for name in members if not name.startswith("_") and not hasattr(built, name)]
    if missing:
        raise RequestError(
            f"{path}: a {type(built).__name__} without {', '.join(missing)}; expected what "
            f"latewood.core.{protocol.__name__} describes"
        )


def _require_fit(model: nn.Module, name: str, processes: Processes, task: Task) -> None:
    """Runs the model on one sample, so that one made for other inputs is refused before a start."""
    inputs = [tensor.to(processes.device) for tensor in task.example_inputs]
    try:
        with torch.no_grad():
            model.eval()(*inputs)
    except Exception as error:  # a model's forward may raise anything
        shapes = ", ".join(f"{x.dtype} of shape {tuple(x.shape)}" for x in inputs)
        raise RequestError(
            f"model: got {name!r}, which fails on the example inputs of the task {task.name!r} "
            f"({shapes.replace('torch.', '')}): {type(error).__name__}: {error}"
        ) from error
    model.train()


def _require_samples(recipe: Recipe, processes: Processes, task: Task) -> None:
    for name, dataset in (("training", task.train), ("validation", task.validation)):
        if len(dataset) < processes.count:
            raise RequestError(
                f"processes: got {processes.count} for {len(dataset)} {name} samples; "
                f"expected at most {len(dataset)}, one sample each"
            )
    largest = max(size for _, size in recipe.batch_size_stretches)
    if recipe.drop_last and largest > len(task.train):
        raise RequestError(
            f"batch_size: got {largest} with drop_last; expected at most the "
            f"{len(task.train)} training samples"
        )


def _steps_per_epoch(recipe: Recipe, task: Task) -> StepsPerEpoch:
    """The length of all epochs, or of each where the batch size changes."""

    def steps(batch_size: int) -> int:
        return batch_count(len(task.train), batch_size, recipe.drop_last)

    if isinstance(recipe.batch_size, int):
        return steps(recipe.batch_size)
    recipe.check_batch_sizes()
    return [steps(recipe.batch_size_of(epoch)) for epoch in range(recipe.epochs or 0)]


def _sum_of_epochs(recipe: Recipe, steps_per_epoch: StepsPerEpoch) -> int:
    if isinstance(steps_per_epoch, int):
        return (recipe.epochs or 0) * steps_per_epoch
    return sum(steps_per_epoch)
