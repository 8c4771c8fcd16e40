"""New channels in identical pairs that every reader takes with opposite signs: nothing changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from latewood.core.coupling.additions import Addition
from latewood.core.coupling.plan import ChannelGroup

__all__ = ["Spread", "deviations", "fill_pairs", "tied_obstacle"]

Spread = float | Mapping[str, float] | Callable[[str, Tensor], float | None] | None
"""Standard deviations of new random entries: one, by name of tensor, or of name and old tensor."""

_NORM_STARTS: Final = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
"""What a new channel of a norm with statistics of its own starts with."""


def tied_obstacle(group: ChannelGroup) -> str | None:
    """Why what is both written and read by one tensor keeps a group from growing in pairs.

    New entries of such a tensor are 0. If nothing else reads the channels they never learn.
    """
    roles: dict[tuple[str, int], set[str]] = {}
    for member in group.members:
        roles.setdefault((member.tensor, member.axis), set()).add(member.role)
    tied = [name for (name, _), several in roles.items() if {"consumer"} < several]
    free = any(several == {"consumer"} for several in roles.values())
    if tied and not free:
        return f"{tied[0]} makes the channels and is all that reads them: new ones could not learn"
    return None


def deviations(
    spread: Spread, tensors: Mapping[str, Tensor], weights: Collection[str]
) -> dict[str, float | None]:
    """The standard deviation of new random entries of every tensor; None where none was given.

    Args:
        spread: as the caller says it.
        tensors: by name, before they become wider.
        weights: names of those that make or read the channels.
    """
    given: dict[str, float | None] = {}
    for name, tensor in tensors.items():
        if callable(spread):
            given[name] = spread(name, tensor) if tensor.ndim > 1 else None
        elif isinstance(spread, Mapping):
            given[name] = spread.get(name)
        else:
            given[name] = spread if name in weights else None
    return given


def usual_deviation(tensor: Tensor) -> float:
    """That of a tensor's entries; 1 / sqrt(fan-in) where they are all alike, as zeros are."""
    entries = tensor.detach().double()
    deviation = float(entries.std(correction=0)) if entries.numel() else 0.0
    if deviation > 0 and math.isfinite(deviation):
        return deviation
    return 1 / math.sqrt(max(1, math.prod(tensor.shape[1:])))


def fill_pairs(
    name: str,
    tensors: Sequence[tuple[nn.Module, Tensor]],
    added: Sequence[Addition],
    deviation: float | None,
    usual: float,
    generator: torch.Generator,
) -> None:
    """Writes the new entries of one tensor, the same into every copy of the model.

    What reads the channels gets random entries Z and then -Z; what makes them random entries V
    twice, over all columns, new ones too. What has an entry a channel keeps that of the channel
    it copies, except for norms and biases; a deviation that was asked for makes it random as well.

    Args:
        name: the tensor's own name in its module.
        tensors: the module and the wider tensor, in each copy of the model.
        added: its axes with new channels, an even number on each.
        deviation: that was asked for.
        usual: deviation of what is random in any case.
        generator: of the random numbers.
    """
    readers = [addition for addition in added if "consumer" in addition.roles]
    makers = [addition for addition in added if "consumer" not in addition.roles]
    random_usual = usual if deviation is None else deviation
    for addition in readers:
        _draw(tensors, addition, random_usual, generator, sign=-1.0)
    for addition in makers:
        start = _start(tensors[0][0], name, addition)
        if "producer" in addition.roles or deviation is not None:
            _draw(tensors, addition, random_usual, generator, sign=1.0)
        elif start is not None:
            for _, tensor in tensors:
                _put(tensor, addition.axis, addition.new.flatten(), start)
    for addition in makers:
        # What another axis filled at random is made the same in both copies.
        for _, tensor in tensors:
            first, second = _copies(addition, tensor)
            tensor.index_copy_(addition.axis, second, tensor.index_select(addition.axis, first))
    for addition in readers:
        if len(addition.roles) > 1:
            for _, tensor in tensors:
                _put(tensor, addition.axis, addition.new.flatten(), 0.0)


def _copies(addition: Addition, tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of the first copies and of the second, in the order V1 .. Vk V1 .. Vk."""
    first, second = addition.new.to(tensor.device).chunk(2)
    return first.flatten(), second.flatten()


def _draw(
    tensors: Sequence[tuple[nn.Module, Tensor]],
    addition: Addition,
    deviation: float,
    generator: torch.Generator,
    sign: float,
) -> None:
    shape = list(tensors[0][1].shape)
    shape[addition.axis] = addition.new.numel() // 2
    # In float64 on the generator's device, so that copies in another precision get the same.
    drawn = torch.randn(
        shape, generator=generator, device=generator.device, dtype=torch.float64
    ).mul_(deviation)
    for _, tensor in tensors:
        first, second = _copies(addition, tensor)
        values = drawn.to(tensor)
        tensor.index_copy_(addition.axis, first, values)
        tensor.index_copy_(addition.axis, second, values * sign)


def _put(tensor: Tensor, axis: int, positions: Tensor, value: float) -> None:
    tensor.index_fill_(axis, positions.to(tensor.device), value)


def _start(module: nn.Module, name: str, addition: Addition) -> float | None:
    """What a new channel's entry starts with where it is not the copied channel's."""
    if isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm)):
        return _NORM_STARTS.get(name)
    return 0.0 if name == "bias" and "weight" in module._parameters else None
