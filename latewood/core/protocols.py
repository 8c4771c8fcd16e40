"""The two ideas that everything touching training shares: a Method changes it, a Probe looks."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["Method", "Probe", "Restructuring"]


@runtime_checkable
class Method(Protocol):
    """Changes how a model trains. Built on a model (it registers what it needs), used in any loop.

    A loop adds ``penalty()`` to its loss, calls ``step()`` once after every ``optimizer.step()``,
    and ``finalize()`` at the end. ``state_dict`` holds what the model's own does not.
    """

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
        """Bakes the outcome into plain modules and returns the model; the method is over."""
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

    def reshape(self, state: dict[str, Any]) -> None:
        """Gives the model the shapes it had when ``state_dict`` returned ``state``."""
        ...


@runtime_checkable
class Probe(Protocol):
    """Only looks. Never changes a parameter, a gradient, a buffer or a random generator."""

    def observe(self, step: int) -> dict[str, float]:
        """Named scalars seen after ``step`` updates; {} when nothing is due at this step."""
        ...
