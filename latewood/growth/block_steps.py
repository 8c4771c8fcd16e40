"""Optimizer steps in which parts of a parameter have a learning rate and a step count of their own.

Where an optimizer updates entry by entry, the parts take part in its own step as parameters: a twin
of the optimizer, with the same state in the same memory, holds them. Nothing is copied, so this
costs next to nothing. Other optimizers step first, and the parts are then blended with what they
were before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["Part", "SplitStep", "blend", "remember"]


@dataclass
class Part:
    """A rectangle of a parameter.

    Args:
        index: one slice an axis.
        factor: what multiplies the learning rate.
        tensor: the rectangle, in the parameter's memory.
        state: of the rectangle, in the memory of the parameter's state.
    """

    index: tuple[slice, ...]
    factor: float
    tensor: Tensor
    state: dict[str, Any]


class SplitStep:
    """One step of an optimizer to which the parts of parameters are parameters.

    Args:
        optimizer: updates entry by entry; it stays as it is until ``merge``.
        parts: by parameter, rectangles that cover it.
    """

    def __init__(self, optimizer: Optimizer, parts: Mapping[Tensor, Sequence[Part]]) -> None:
        self._optimizer, self._parts = optimizer, parts
        self.twin: Optimizer = object.__new__(type(optimizer))
        """Takes the step; its tensors share the memory of the original's."""
        self.twin.__dict__.update(optimizer.__dict__)
        state = _SharedState(optimizer.state)
        self._whole: list[dict[str, Any]] = []
        rated: list[dict[str, Any]] = []
        for group in optimizer.param_groups:
            self._whole.append(
                _subgroup(group, [p for p in enumerate(group["params"]) if p[1] not in parts])
            )
            by_factor: dict[float, list[tuple[int, Tensor]]] = {}
            for place, parameter in enumerate(group["params"]):
                for part in parts.get(parameter, ()):
                    part.tensor.grad = parameter.grad[part.index]
                    state[part.tensor] = part.state
                    by_factor.setdefault(part.factor, []).append((place, part.tensor))
            for factor, tensors in by_factor.items():
                rated.append(_subgroup(group, tensors) | {"lr": group["lr"] * factor})
                if group.get("fused"):
                    # Fused kernels take a rectangle for memory without gaps.
                    rated[-1]["fused"] = False
        self.twin.__dict__["state"] = state
        self.twin.__dict__["param_groups"] = [*self._whole, *rated]

    def merge(self) -> None:
        """Gives the original what the step has made anew: a first state, changed options."""
        for group, stepped in zip(self._optimizer.param_groups, self._whole, strict=True):
            for name, value in stepped.items():
                if name not in ("params", "param_names") and value is not group.get(name):
                    group[name] = value
        for parameter, parts in self._parts.items():
            for part in parts:
                part.tensor.grad = None
            first = parts[0]
            # A parameter without a state must not get an empty one.
            state = self._optimizer.state[parameter] if first.state else {}
            for name, value in first.state.items():
                if isinstance(value, Tensor) and value.shape == first.tensor.shape:
                    if state.get(name) is None:
                        state[name] = _assembled(parameter, parts, name, value)
                elif value is not state.get(name):
                    state[name] = value


def remember(parts: Sequence[Part]) -> list[Tensor]:
    """Copies of the parts whose rate differs, for ``blend``."""
    return [part.tensor.clone() for part in parts if part.factor != 1.0]


@torch.no_grad()
def blend(parts: Sequence[Part], before: Sequence[Tensor]) -> None:
    r"""Changes a step that was taken into one with the parts' rates.

    .. math:: W \leftarrow W_{old} + f\,(W - W_{old})

    Args:
        parts: rectangles, as given to ``remember``.
        before: what it returned before the step.
    """
    rated = [part for part in parts if part.factor != 1.0]
    if rated:
        weights = [1.0 - part.factor for part in rated]
        torch._foreach_lerp_([part.tensor for part in rated], list(before), weights)


class _SharedState(defaultdict[Tensor, Any]):
    """State of parts; that of whole parameters is the original's."""

    def __init__(self, original: defaultdict[Tensor, Any]) -> None:
        super().__init__()
        self.original = original

    def __missing__(self, key: Tensor) -> Any:
        return self.original[key]


def _subgroup(group: dict[str, Any], chosen: Sequence[tuple[int, Tensor]]) -> dict[str, Any]:
    """The group with other tensors, each with the place of the parameter that it is (part of)."""
    names = group.get("param_names")
    named = {} if names is None else {"param_names": [names[place] for place, _ in chosen]}
    return {**group, **named, "params": [tensor for _, tensor in chosen]}


def _assembled(parameter: Tensor, parts: Sequence[Part], name: str, like: Tensor) -> Tensor:
    whole = torch.zeros_like(parameter, dtype=like.dtype, memory_format=torch.preserve_format)
    for part in parts:
        whole[part.index] = part.state[name]
    return whole
