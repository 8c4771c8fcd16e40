"""A run in progress: everything that a recipe builds, and the state that a checkpoint keeps."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from latewood.core.epochs import Epochs
from latewood.core.protocols import Method, Probe, Restructuring
from latewood.core.schedules import Schedule
from latewood.errors import RequestError
from latewood.tasks import Batch
from latewood.terminal.progress import Advance, unseen
from latewood.training.checkpoints import Checkpoint, load_into, split_points
from latewood.training.fit import set_rates, total_penalty, unclaimed
from latewood.training.processes import Processes
from latewood.training.randomness import (
    derive,
    host_random_state,
    restore_host_random_state,
    seed_torch,
)
from latewood.training.recipe import Recipe
from latewood.training.run_context import RunContext
from latewood.training.run_folder import RunFolder

__all__ = ["Session", "TrainingMeter", "distributed"]


@dataclass
class TrainingMeter:
    """Means of the training metrics since they were last written."""

    steps: int = 0
    loss: float = 0.0
    penalty: float = 0.0
    norm: float = 0.0

    def add(self, loss: float, penalty: float, norm: float) -> None:
        """Takes in one step; with fp16 a step may be skipped for its infinite gradient."""
        self.steps += 1
        self.loss += loss
        self.penalty += penalty
        self.norm += norm if math.isfinite(norm) else 0.0

    def totals(self, processes: Processes) -> dict[str, float]:
        """The sums of all processes; losses are shares of the global mean, so they are averaged."""
        loss = processes.sum([self.loss / processes.count])[0]
        return {"steps": self.steps, "loss": loss, "penalty": self.penalty, "norm": self.norm}


@dataclass
class Session(RunContext):
    """What the loop and its observers work on.

    Args:
        recipe: what to do.
        folder: where it is written.
        processes: who does it.
        task: the data and the objective.
        model: the bare model, whose state is saved and which methods and probes see.
        network: what the loss is computed with: the model, distributed and compiled as asked.
        optimizer: built on the model's and the methods' parameters.
        methods: by the prefix of their metrics.
        probes: what looks at the model.
        schedule: factor on the learning rates by progress.
        schedule_per_epoch: whether the factor moves between epochs only.
        epochs: the passes over the data, and the steps of each.
        total_steps: optimizer steps of the whole run.
        step: optimizer steps done.
        meter: training metrics not yet written.
        advance: shows how far the run is.
        note: what is shown beside the steps.
        scores: of the last validation in this process.
        keeps_failures: whether the state before a step that is not finite is written.
    """

    folder: RunFolder
    model: nn.Module
    network: nn.Module
    optimizer: torch.optim.Optimizer
    methods: dict[str, Method]
    probes: list[Probe]
    schedule: Schedule
    schedule_per_epoch: bool
    epochs: Epochs
    total_steps: int
    step: int = 0
    meter: TrainingMeter = field(default_factory=TrainingMeter)
    advance: Advance = unseen
    note: str = ""
    scores: dict[str, float] | None = None
    keeps_failures: bool = True

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        self.saved_step = -1
        self.saved_at = self.started
        self.trained: list[nn.Parameter] = []
        self.clipped: list[nn.Parameter] = []
        self._list_parameters()
        splits = split_points(self.epochs) if self.recipe.split_points else ()
        self.kept_steps = frozenset({*self.recipe.keep_at, *splits})
        self._waited_for = self._with_gradients()
        self.objective_noise = torch.Generator(self.processes.device)
        self.augment_noise = torch.Generator()

    def _list_parameters(self) -> None:
        """Notes what is trained, and of what the gradient is clipped: the model's own."""
        for group in self.optimizer.param_groups:
            # Where torch's own schedules keep it: methods may change it, checkpoints hold it.
            group.setdefault("initial_lr", group["lr"])
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.clipped = unclaimed(self.trained, self.methods.values())

    @property
    def epoch(self) -> float:
        """Passes over the training data so far."""
        return float(self.epochs.passes(self.step))

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of work, those before an interruption included."""
        return time.monotonic() - self.started

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.total_steps

    def due(self, every: int | None) -> bool:
        """Whether something done every so many steps, or every epoch, is due now."""
        due = self.epochs.begins(self.step) if every is None else self.step % every == 0
        return self.finished or due

    def begin_epoch(self) -> None:
        """Lets methods change the model's shapes; what was built around it is built anew."""
        changed = [
            method.restructure(self.optimizer)
            for method in self.methods.values()
            if isinstance(method, Restructuring) and self.epochs.begins(self.step)
        ]
        # What averages the gradients would wait for those of a mask that has been fixed.
        waited_for, self._waited_for = self._waited_for, self._with_gradients()
        if any(changed) or (self.processes.count > 1 and waited_for != self._waited_for):
            self._wrap_anew()

    def _with_gradients(self) -> list[bool]:
        return [parameter.requires_grad for parameter in self.model.parameters()]

    def _wrap_anew(self) -> None:
        # What averages the gradients has hooks on the parameters as they were, until it is gone.
        self.network = self.model
        gc.collect()
        self.network = distributed(self.recipe, self.processes, self.model)
        self._list_parameters()

    def begin_step(self) -> None:
        """Sets the learning rates and seeds everything that this step draws from.

        Randomness is a function of the seed, the step and the rank, so that a resumed run, a
        re-run of a failing step and a run with other probes all draw the same numbers.
        """
        done = (
            self.epochs.start(self.epochs.of(self.step)) if self.schedule_per_epoch else self.step
        )
        set_rates(self.optimizer, self.schedule(self.epochs.progress(done)))
        seed, rank = self.recipe.seed, self.processes.rank
        seed_torch(derive(seed, "model", self.step, rank), self.processes.device)
        self.objective_noise.manual_seed(derive(seed, "objective", self.step, rank))

    def prepared(self, batch: Batch) -> Batch:
        """The batch augmented, on the device, in the memory format asked for."""
        if self.task.augment is not None:
            seed = derive(self.recipe.seed, "augment", self.step, self.processes.rank)
            batch = self.task.augment(batch, self.augment_noise.manual_seed(seed))
        return self.placed(batch)

    def loss(self, network: nn.Module, batch: Batch, weight: float) -> tuple[Tensor, Tensor | None]:
        """The loss to differentiate, and the methods' part of it."""
        with self.processes.autocast():
            loss = self.task.objective.loss(network, batch, self.objective_noise)
            if weight != 1.0:
                loss = loss * weight
            penalty = total_penalty(self.methods.values())
        return (loss if penalty is None else loss + penalty), penalty

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs beyond the model's own state."""
        scaler = self.processes.scaler
        return {
            "step": self.step,
            "seconds": self.seconds,
            "meter": self.meter.totals(self.processes),
            "optimizer": self.optimizer.state_dict(),
            "methods": [method.state_dict() for method in self.methods.values()],
            "scaler": None if scaler is None else scaler.state_dict(),
            "host_random": host_random_state(),
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes back to a checkpoint.

        Raises:
            RequestError: it is of another model.
        """
        state = checkpoint.state()
        self._reshape(checkpoint, state)
        load_into(self.model, checkpoint.model_state(), str(checkpoint.path))
        own_rates = [group["initial_lr"] for group in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            for group, rate in zip(self.optimizer.param_groups, own_rates, strict=True):
                # Checkpoints of earlier versions have none: the recipe's rate is what it was.
                group.setdefault("initial_lr", rate)
            for method, method_state in zip(self.methods.values(), state["methods"], strict=True):
                method.load_state_dict(method_state)
        except (KeyError, ValueError) as error:
            raise RequestError(
                f"{checkpoint.path}: does not fit the recipe's optimizer and methods: {error}"
            ) from error
        if self.processes.scaler is not None and state["scaler"] is not None:
            self.processes.scaler.load_state_dict(state["scaler"])
        restore_host_random_state(state["host_random"])
        meter = state["meter"] if self.processes.is_main else {**state["meter"], "loss": 0.0}
        meter["loss"] *= self.processes.count
        self.meter = TrainingMeter(**meter)
        self.step = self.saved_step = checkpoint.step
        self.started = time.monotonic() - state["seconds"]

    def _reshape(self, checkpoint: Checkpoint, state: Mapping[str, Any]) -> None:
        changing = [method for method in self.methods.values() if isinstance(method, Restructuring)]
        if not changing:
            return
        try:
            for method, method_state in zip(self.methods.values(), state["methods"], strict=True):
                if isinstance(method, Restructuring):
                    method.reshape(method_state, self.optimizer)
        except (KeyError, ValueError) as error:
            raise RequestError(
                f"{checkpoint.path}: does not fit the recipe's methods: {error}"
            ) from error
        self._wrap_anew()


def distributed(recipe: Recipe, processes: Processes, model: nn.Module) -> nn.Module:
    """What the loss is computed with: the model, distributed and compiled as asked."""
    network = processes.distribute(model)
    if recipe.compile:
        # Graphs of earlier shapes count towards the limit after which torch compiles no more.
        torch.compiler.reset()
        compiled: Callable[..., Any] = torch.compile(network)
        assert isinstance(compiled, nn.Module)
        return compiled
    return network
