"""New channels that leave a model's function as it is: identical pairs, or padding under a norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from latewood.core.coupling.additions import Addition
from latewood.core.coupling.norm_recognition import padded_scale
from latewood.core.coupling.plan import ChannelGroup, Padding

__all__ = [
    "Draws",
    "Spread",
    "deviations",
    "fill_tensor",
    "normal",
    "tied_obstacle",
    "usual_deviation",
]

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


@dataclass(frozen=True)
class Draws:
    """Where new random entries of a tensor come from.

    Args:
        asked: their standard deviation as the caller wants it; None where they did not say.
        usual: that of what is random in any case.
        generator: of the random numbers.
    """

    asked: float | None
    usual: float
    generator: torch.Generator

    @property
    def deviation(self) -> float:
        """That of what is random in any case, as the caller wants it where they said so."""
        return self.usual if self.asked is None else self.asked


def fill_tensor(
    name: str,
    copies: Sequence[tuple[nn.Module, Tensor]],
    added: Sequence[Addition],
    groups: Mapping[str, ChannelGroup],
    draws: Draws,
) -> None:
    """Writes the new entries of one tensor, the same random numbers into every copy of the model.

    In groups without norms: what reads the channels gets random entries Z and then -Z; what makes
    them random entries V twice, over all columns, new ones too; what has an entry a channel keeps
    that of the channel it copies, except for norms and biases. In groups that are padded: what
    makes the channels gets zeros or the means of the old entries, what reads them is free.

    Args:
        name: of the tensor.
        copies: its module and the wider tensor, in each copy of the model.
        added: its axes with new channels.
        groups: those that became wider, as they were before.
        draws: where random entries come from.
    """
    padded = {group: of.padding for group, of in groups.items() if of.padding is not None}
    tied = [addition for addition in added if {"consumer"} < addition.roles]
    readers = [addition for addition in added if addition.roles == {"consumer"}]
    makers = [addition for addition in added if "consumer" not in addition.roles]
    paired = [addition for addition in makers if addition.group not in padded]
    for addition in readers:
        padding = padded.get(addition.group)
        if padding is None:
            _draw_pairs(copies, addition, draws, sign=-1.0)
        else:
            _draw_free(copies, addition, draws, padding, name)
    module = copies[0][0]
    for addition in paired:
        start = _start(module, name, addition)
        if "producer" in addition.roles or draws.asked is not None:
            _draw_pairs(copies, addition, draws, sign=1.0)
        elif start is not None:
            _put(copies, addition, start)
    # Last, since means are taken over what the other axes got, and copies are copies of it.
    for addition in [*makers, *tied]:
        padding = padded.get(addition.group)
        if padding is not None:
            _pad(copies, addition, groups[addition.group], padding, name)
    for addition in paired:
        for _, tensor in copies:
            first, second = _halves(addition, tensor)
            tensor.index_copy_(addition.axis, second, tensor.index_select(addition.axis, first))
    for addition in tied:
        if addition.group not in padded:
            _put(copies, addition, 0.0)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        for addition in paired:
            if addition.axis == 1:
                _clear_row(copies, addition, module.padding_idx)


def _pad(
    copies: Sequence[tuple[nn.Module, Tensor]],
    addition: Addition,
    group: ChannelGroup,
    padding: Padding,
    name: str,
) -> None:
    """Zeros or means where channels are made; norms keep what they gave old channels."""
    start = _start(copies[0][0], name, addition)
    for norm in group.norms:
        if norm.kind == "group":
            continue
        if name == norm.weight:
            ratio = len(addition.old) / (len(addition.old) + len(addition.new))
            for _, tensor in copies:
                old = addition.old.flatten().to(tensor.device)
                scale = tensor.index_select(addition.axis, old)
                scaled = padded_scale(scale, norm.offset, ratio)
                tensor.index_copy_(addition.axis, old, scaled)
            _put(copies, addition, 1.0 - norm.offset)
            return
        if name == norm.bias:
            _put(copies, addition, 0.0)
            return
    if name.rpartition(".")[2] in _NORM_STARTS and _is_norm(copies[0][0]) and start is not None:
        _put(copies, addition, start)
    elif padding.kind == "mean":
        for _, tensor in copies:
            _put_means(tensor, addition)
    elif name not in padding.factors:
        _put(copies, addition, 0.0)


def _put_means(tensor: Tensor, addition: Addition) -> None:
    """The mean of a channel's entries over the old channels, for each of its positions."""
    axis = addition.axis
    for position in range(addition.old.shape[1]):
        old = tensor.index_select(axis, addition.old[:, position].to(tensor.device))
        mean = old.double().mean(axis, keepdim=True).to(tensor)
        new = addition.new[:, position].to(tensor.device)
        shape = [len(new) if dim == axis else -1 for dim in range(tensor.ndim)]
        tensor.index_copy_(axis, new, mean.expand(shape))


def _draw_free(
    copies: Sequence[tuple[nn.Module, Tensor]],
    addition: Addition,
    draws: Draws,
    padding: Padding,
    name: str,
) -> None:
    """Any entries where new channels are 0; entries of sum 0 where they are all the same."""
    if padding.kind == "zero" and name not in padding.silent:
        _put(copies, addition, 0.0)
        return
    drawn = _normal(copies, addition, addition.new.numel(), draws)
    if name not in padding.silent:
        by_channel = drawn.unflatten(addition.axis, tuple(addition.new.shape))
        by_channel -= by_channel.mean(addition.axis, keepdim=True)
    for _, tensor in copies:
        new = addition.new.flatten().to(tensor.device)
        tensor.index_copy_(addition.axis, new, drawn.to(tensor))


def _halves(addition: Addition, tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of the first copies and of the second, in the order V1 .. Vk V1 .. Vk."""
    first, second = addition.new.to(tensor.device).chunk(2)
    return first.flatten(), second.flatten()


def _draw_pairs(
    copies: Sequence[tuple[nn.Module, Tensor]], addition: Addition, draws: Draws, sign: float
) -> None:
    drawn = _normal(copies, addition, addition.new.numel() // 2, draws)
    for _, tensor in copies:
        first, second = _halves(addition, tensor)
        values = drawn.to(tensor)
        tensor.index_copy_(addition.axis, first, values)
        tensor.index_copy_(addition.axis, second, values * sign)


def _normal(
    copies: Sequence[tuple[nn.Module, Tensor]], addition: Addition, size: int, draws: Draws
) -> Tensor:
    """Random entries (..., size, ...), the same for all copies."""
    shape = list(copies[0][1].shape)
    shape[addition.axis] = size
    return normal(shape, [tensor for _, tensor in copies], draws.deviation, draws.generator)


def normal(
    shape: Sequence[int], tensors: Sequence[Tensor], deviation: float, generator: torch.Generator
) -> Tensor:
    """Normal random numbers that are rounded to the precisions of several tensors.

    Args:
        shape: of the numbers.
        tensors: that will hold them.
        deviation: their standard deviation.
        generator: draws them.

    Returns:
        float32, or float64 if one of the tensors has more bits, which takes six times as long.
    """
    fine = any(tensor.dtype in (torch.float64, torch.complex128) for tensor in tensors)
    drawn = torch.randn(
        shape,
        generator=generator,
        device=generator.device,
        dtype=torch.float64 if fine else torch.float32,
    )
    return drawn.mul_(deviation)


def _put(copies: Sequence[tuple[nn.Module, Tensor]], addition: Addition, value: float) -> None:
    for _, tensor in copies:
        tensor.index_fill_(addition.axis, addition.new.flatten().to(tensor.device), value)


def _clear_row(copies: Sequence[tuple[nn.Module, Tensor]], addition: Addition, row: int) -> None:
    """The row of an embedding that stands for nothing, and that no gradient reaches, stays 0."""
    for _, tensor in copies:
        tensor[row, addition.new.flatten().to(tensor.device)] = 0.0


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm))


def _start(module: nn.Module, name: str, addition: Addition) -> float | None:
    """What a new channel's entry starts with where it is not the copied channel's."""
    own_name = name.rpartition(".")[2]
    if _is_norm(module):
        return _NORM_STARTS.get(own_name)
    return 0.0 if own_name == "bias" and "weight" in module._parameters else None
