"""Adds channels to a model in place: copies, or new ones that keep the model's function."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latewood.core.coupling.additions import Addition, additions
from latewood.core.coupling.plan import BarrierKind, ChannelGroup, ChannelPlan
from latewood.core.coupling.preserving_fill import (
    Draws,
    Spread,
    deviations,
    fill_tensor,
    tied_obstacle,
    usual_deviation,
)
from latewood.core.coupling.resize import Indices, Resizing, changeable, valid_indices
from latewood.core.coupling.trace import layer_tensors
from latewood.core.devices import require_values
from latewood.core.selection import stored_tensor
from latewood.core.transforms import transformations
from latewood.errors import RequestError, invalid, listed

__all__ = ["NORMALISED", "Fill", "can_widen", "widen_channels"]

NORMALISED: Final[tuple[BarrierKind, ...]] = ("normalised",)
"""The barrier that padding gets a group through."""
Fill = Literal["copy", "pair"]
"""What new channels are filled with."""


def widen_channels(
    model: nn.Module,
    plan: ChannelPlan,
    copies: Mapping[str, Indices | int],
    *,
    fill: Fill = "copy",
    std: Spread = None,
    generator: torch.Generator | None = None,
    twins: Iterable[nn.Module] = (),
    optimizers: Iterable[Optimizer] = (),
    allow: Collection[BarrierKind] = (),
) -> ChannelPlan:
    """Adds channels behind those of some groups, in place.

    The counterpart of ``slice_channels``. With ``fill="copy"`` new entries hold their source's
    values, for the caller to overwrite. With ``fill="pair"`` the model computes what it did: k new
    channels come twice, in the order 1 .. k, 1 .. k. What makes them gets rows V twice, what reads
    them columns Z and then -Z (each reader its own), and what has an entry a channel the same one
    twice, so that each reader sees Z v - Z v = 0. Rows run over all columns, the new ones too.

    Groups that a norm holds, which ``allow=("normalised",)`` lets through, are padded instead, by
    any number of channels: their new channels hold the mean of the old ones under layer norms and 0
    under RMS norms, scales of the norms become sqrt(C / C') of what they were and their eps C / C'
    (C channels before, C' after), and what reads the channels behind a norm gets random columns.
    ``ChannelGroup.padding`` says whether that can be done, and what stands against it. Of the
    groups of ``trace_head_sizes`` the pairs of queries and keys do not cancel in the scores by
    themselves: ``growth.widen`` turns the signs of the second queries.

    Tensors of transformations get what their ``follows`` says; optimizer state is zero. In the
    returned plan the new channels of a group have the indices from its old width on; ``additions``
    lists where they are.

    Args:
        model: the model that was traced.
        plan: its plan.
        copies: for a group's name, the channel that each new one copies, in order, or how many new
            ones there are, which then copy the first ones in turn. For pairs the number is even,
            and the second half of a list repeats the first.
        fill: "copy" or "pair".
        std: for "pair", the standard deviation of random entries: a number for all that makes or
            reads channels, numbers by tensor name, or a function of name and old tensor, asked for
            what has at least two axes. What it names is drawn at random, whatever it is. A tensor
            left out, or None from the function, stands for the default: what makes or reads
            channels gets the deviation of its old entries (1 / sqrt(fan-in) where those are all
            alike); a norm's scale and variance start at 1, its shift and mean and other biases at
            0, and what else has an entry a channel, a depthwise kernel say, copies its source's.
        generator: of the random numbers; one seeded with 0 if left out.
        twins: further models of the same structure, such as a moving average or a teacher, that get
            the same new channels.
        optimizers: whose state is to follow, for parameters of any of the models.
        allow: kinds of barriers that the caller takes care of.

    Returns:
        The plan of the wider model.

    Raises:
        RequestError: as for ``slice_channels``; a group of one channel that owns several positions,
            whose layout cannot be told; what cannot come in pairs or be padded; a twin of other
            shapes. Nothing has changed then.

    Source:
        Pairs with opposite signs: Yuan, Savarese and Maire, arXiv 2306.12700, as secondary sources
        describe them. Padding is not theirs.
    """
    if fill not in get_args(Fill):
        raise invalid("fill", fill, f"one of {', '.join(get_args(Fill))}")
    preserving = fill == "pair"
    chosen: dict[str, list[int]] = {}
    for name, sources in copies.items():
        group = changeable(plan, name, allow)
        indices = _sources(sources, group, preserving and group.padding is None)
        group.require_blocks()
        if preserving and (obstacle := _obstacle(group)):
            raise RequestError(f"{name}: cannot become wider: {obstacle}")
        group.require_width(group.width + len(indices), "copies")
        chosen[name] = [*range(group.width), *indices]
    models = [model, *twins]
    if preserving:
        for network in models:
            require_values(network)
    places = [dict(layer_tensors(network)) for network in models]
    names = _touched(plan, chosen)
    tensors = [
        {name: stored_tensor(*of_model[name]) for name in names if name in of_model}
        for of_model in places
    ]
    _require_alike(tensors, names)
    if preserving:
        if isinstance(std, Mapping) and (unknown := std.keys() - places[0].keys()):
            raise invalid("std", min(unknown), f"names of tensors, such as {listed(names)}")
        asked, usual = _spreads(plan, chosen, std, tensors[0])
        for of_model in places:
            _require_bare(plan, chosen, of_model)
    followed = list(optimizers)
    resizings = [Resizing.of(network, plan, chosen, followed) for network in models]
    # All that can be refused was refused above; from here on everything changes.
    wider, *_ = [resizing.apply() for resizing in resizings]
    if preserving:
        generator = generator or torch.Generator().manual_seed(0)
        by_tensor: dict[str, list[Addition]] = {}
        for addition in additions(plan, wider):
            by_tensor.setdefault(addition.tensor, []).append(addition)
        groups = {name: plan[name] for name in chosen}
        with torch.no_grad():
            for name in usual:
                filled = [
                    (of_model[name][0], stored[name])
                    for of_model, stored in zip(places, tensors, strict=True)
                ]
                draws = Draws(asked[name], usual[name], generator)
                fill_tensor(name, filled, by_tensor[name], groups, draws)
        for network in models:
            _scale_eps(network, groups, wider)
    return wider


def can_widen(group: ChannelGroup) -> bool:
    """Whether a group can become wider by ``fill="pair"``, by pairs or by padding.

    Args:
        group: of a plan; a norm that holds it has to be allowed when it becomes wider.
    """
    positions = max((member.multiplicity for member in group.members), default=1)
    return (
        # Products of queries and keys would count pairs twice; growth turns the signs.
        not group.queries
        and {barrier.kind for barrier in group.barriers} <= {"normalised"}
        and (group.width > 1 or positions == 1)
        and _obstacle(group) is None
    )


def _obstacle(group: ChannelGroup) -> str | None:
    return tied_obstacle(group) if group.padding is None else group.padding.obstacle or None


def _require_bare(
    plan: ChannelPlan, chosen: Mapping[str, object], places: Mapping[str, tuple[nn.Module, str]]
) -> None:
    """Refuses means of weights under transformations: those of what is stored are others."""
    for group in plan:
        if group.name not in chosen or group.padding is None or group.padding.kind != "mean":
            continue
        for member in group.members:
            placed = transformations(*places[member.tensor])
            if not all(getattr(transformation, "uniform", False) for transformation in placed):
                raise RequestError(
                    f"{group.name}: cannot become wider: {member.tensor} has a transformation, and "
                    "new channels would be the mean of what it makes"
                )


def _scale_eps(model: nn.Module, groups: Mapping[str, ChannelGroup], wider: ChannelPlan) -> None:
    """Makes the eps of norms less by as much as the mean squares that it is added to."""
    for name, group in groups.items():
        ratio = group.width / wider[name].width
        for norm in group.norms if group.padding is not None else ():
            if norm.eps is not None and norm.kind != "group":
                module = model.get_submodule(norm.module)
                eps = getattr(module, norm.eps)
                setattr(module, norm.eps, eps * (math.sqrt(ratio) if norm.on_root else ratio))


def _sources(sources: Indices | int, group: ChannelGroup, paired: bool) -> list[int]:
    argument = f"copies[{group.name!r}]"
    if isinstance(sources, int) and not isinstance(sources, bool):
        if sources < 1 or (paired and sources % 2):
            kind = "a positive even number" if paired else "a positive number"
            raise invalid(argument, sources, f"{kind} of new channels")
        in_turn = [number % group.width for number in range(sources // 2 if paired else sources)]
        return in_turn * 2 if paired else in_turn
    if isinstance(sources, bool):
        raise invalid(argument, sources, "channels, or a number of new ones")
    indices = valid_indices(sources, group, "copies")
    half = len(indices) // 2
    if paired and (len(indices) % 2 or indices[:half] != indices[half:]):
        raise invalid(argument, indices, "an even number of channels, the second half as the first")
    return indices


def _touched(plan: ChannelPlan, chosen: Mapping[str, object]) -> list[str]:
    """Names of the tensors that change, in the plan's order."""
    return list(
        dict.fromkeys(
            member.tensor for group in plan if group.name in chosen for member in group.members
        )
    )


def _require_alike(tensors: list[dict[str, Tensor]], names: list[str]) -> None:
    once: set[int] = set()
    for number, of_model in enumerate(tensors):
        for name, tensor in of_model.items():
            if id(tensor) in once:
                raise invalid(
                    f"twins[{number - 1}]", f"a model that shares {name}", "one of its own"
                )
            once.add(id(tensor))
    for number, others in enumerate(tensors[1:]):
        for name in names:
            shape = others[name].shape if name in others else None
            if shape != tensors[0][name].shape:
                raise invalid(
                    f"twins[{number}]",
                    f"{name} of shape {None if shape is None else tuple(shape)}",
                    f"{name} of shape {tuple(tensors[0][name].shape)}",
                )


def _spreads(
    plan: ChannelPlan, chosen: Mapping[str, object], std: Spread, tensors: dict[str, Tensor]
) -> tuple[dict[str, float | None], dict[str, float]]:
    weights = set()
    for group in plan:
        for member in group.members if group.name in chosen else ():
            if member.role != "per_channel":
                weights.add(member.tensor)
            if member.role == "consumer" and not tensors[member.tensor].is_floating_point():
                raise RequestError(
                    f"{group.name}: cannot become wider: {member.tensor} reads the channels and "
                    f"holds {tensors[member.tensor].dtype}, which has no opposite signs"
                )
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    asked = deviations(std, floating, weights)
    for name, deviation in asked.items():
        if deviation is not None and not 0 < deviation < float("inf"):
            raise invalid(f"std of {name}", deviation, "a positive number")
    # Measured only where nobody said: it reads all entries.
    usual = {
        name: usual_deviation(tensor) if (said := asked[name]) is None else said
        for name, tensor in floating.items()
    }
    return asked, usual
