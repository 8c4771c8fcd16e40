"""The two ideas that everything touching training shares: a Method changes it, a Probe looks."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

__all__ = ["Method", "Probe"]


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
class Probe(Protocol):
    """Only looks. Never changes a parameter, a gradient, a buffer or a random generator."""

    def observe(self, step: int) -> dict[str, float]:
        """Named scalars seen after ``step`` updates; {} when nothing is due at this step."""
        ...
