"""The two ideas that everything touching training shares: a Method changes it, a Probe looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["Method", "Observation", "Probe", "Restructuring"]


@runtime_checkable
class Method(Protocol):
    """Changes how a model trains. Built on a model (it registers what it needs), used in any loop.

    A loop adds ``penalty()`` to its loss, calls ``step()`` once after every ``optimizer.step()``,
    and ``core.finalize(model, methods)`` at the end. ``state_dict`` holds what the model's own does
    not. After ``finalize()``, ``metrics`` and ``state_dict`` answer as at the end, and every other
    call raises a RequestError (``core.EndsOnce`` does).
    """

    @property
    def order(self) -> int | None:
        """When it finishes: by the transformations that it puts on weights (``core.PRECISION``,
        MASK or FAULTS), SHAPES if it changes shapes, None if it does neither."""
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Its own parameters as optimizer groups with their learning rates; [] if it has none."""
        ...

    def penalty(self) -> Tensor:
        """Differentiable scalar to add to the task loss; 0 if there is none."""
        ...

    def step(self) -> None:
        """Moves the method's schedules; called once after every ``optimizer.step()``."""
        ...

    def finalize(self) -> nn.Module:
        """Bakes the outcome into plain modules and returns the model; the method is over.

        The model is the one it was built on, or a new one around the same layers.
        """
        ...

    def metrics(self) -> dict[str, float]:
        """Named scalars that describe the method's state now."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs beyond the model's own state dict."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""
        ...


@runtime_checkable
class Restructuring(Protocol):
    """A method that also changes the shapes of the model, between epochs.

    A loop calls ``restructure`` before the first step of every epoch, the very first included. What
    was built around the model (distributed wrappers, compiled graphs) must be built anew when it
    returns True; Parameter objects, and with them optimizers and lists of parameters, stay as they
    are. A resumed run calls ``reshape`` before it loads any state.
    """

    def restructure(self, optimizer: Optimizer) -> bool:
        """Changes the model in place, the optimizer's state with it; True if anything changed."""
        ...

    def reshape(self, state: dict[str, Any], optimizer: Optimizer) -> None:
        """Gives the model the shapes it had when ``state_dict`` returned ``state``.

        ``optimizer`` is the resumed run's, which has no state yet.
        """
        ...


@dataclass(frozen=True)
class Observation:
    """What a probe has seen of the model at one step.

    Args:
        step: number of updates of the model that was looked at.
        values: named scalars.
    """

    step: int
    values: dict[str, float]


@runtime_checkable
class Probe(Protocol):
    """Only looks. Never changes a parameter, a gradient, a buffer or a random generator.

    A loop calls ``observe`` before the first step and after every one, and ``finish`` at the end
    and before each checkpoint, since a run that goes on from there looks at nothing before it.
    """

    @property
    def every_process(self) -> bool:
        """Whether all processes of a distributed run must call it, not only the first."""
        ...

    def observe(self, step: int) -> list[Observation]:
        """Looks after ``step`` updates, where that is due.

        Returns:
            What is known by now and was not returned before: of this step, or of an earlier one
            where the probe works beside the training; [] if there is nothing.
        """
        ...

    def finish(self) -> list[Observation]:
        """Waits for what is under way, and returns it, oldest first."""
        ...
