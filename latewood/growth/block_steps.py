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

__all__ = ["BlendedParts", "Part", "SplitStep"]


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
        parts: by parameter, rectangles that cover it; none for one that the step leaves alone.
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
            if not parts:
                continue
            first = parts[0]
            # A parameter without a state must not get an empty one.
            state = self._optimizer.state[parameter] if first.state else {}
            for name, value in first.state.items():
                if isinstance(value, Tensor) and value.shape == first.tensor.shape:
                    if state.get(name) is None:
                        state[name] = _assembled(parameter, parts, name, value)
                elif value is not state.get(name):
                    state[name] = value


class BlendedParts:
    r"""Parts whose rate differs, as they were before a step, and blended with what it made of them.

    .. math:: W \leftarrow W_{old} + f\,(W - W_{old})

    The copies stay in memory from step to step: to allocate them anew costs more than to fill them.
    """

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._weights: list[float] = []

    @torch.no_grad()
    def remember(self, parts: Sequence[Part]) -> None:
        """Copies the parts whose rate differs, before the step.

        Args:
            parts: rectangles of parameters.
        """
        rated = [part for part in parts if part.factor != 1.0]
        tensors = [part.tensor for part in rated]
        # The same objects as long as nothing but rates has changed (``StagedWeight.parts``).
        if list(map(id, tensors)) != list(map(id, self._tensors)):
            self._copies = [torch.empty_like(tensor) for tensor in tensors]
            self._tensors = tensors
        self._weights = [1.0 - part.factor for part in rated]
        if tensors:
            torch._foreach_copy_(self._copies, tensors)

    @torch.no_grad()
    def blend(self) -> None:
        """Changes the step that was taken into one with the parts' rates."""
        if self._tensors:
            torch._foreach_lerp_(self._tensors, self._copies, self._weights)


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
