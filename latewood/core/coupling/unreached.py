"""Modules of a list that the example does not reach, such as an expert without tokens.

Where others of the list have the same class and shapes, and all of them read and write the same
channels, one that is not reached is taken to be what they are, with channels of its own inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from latewood.core.coupling.labels import NONE, Labels
from latewood.core.coupling.plan import ChannelGroup, ChannelPlan, Norm, Padding, Resized

__all__ = ["Counterpart", "follow_unreached", "with_unreached"]


@dataclass(frozen=True)
class Counterpart:
    """A module that the example does not reach, and one that it does in the same place.

    Args:
        reached: qualified name of the one.
        unreached: qualified name of the other.
    """

    reached: str
    unreached: str

    def renamed(self, name: str) -> str | None:
        """The other's name for a module or tensor of the one; None for what is not in it."""
        inside = name == self.reached or name.startswith(f"{self.reached}.")
        return f"{self.unreached}{name[len(self.reached) :]}" if inside else None


def follow_unreached(model: nn.Module, labels: Labels) -> list[Counterpart]:
    """Gives tensors of modules that a run did not reach the labels of those that stand for them.

    Args:
        model: that ran.
        labels: of the run.

    Returns:
        The modules. Where the entries of heads are the channels they are barred instead.
    """
    pairs = [pair for alike in _alike(model, labels) for pair in _paired(alike, labels)]
    # Lists inside of others first, so that the outer ones take over what the inner ones add.
    pairs.sort(key=lambda pair: -pair.unreached.count("."))
    for pair in pairs:
        for name, axis in list(labels.axes):
            other = pair.renamed(name)
            if other is not None:
                labels.axes[other, axis] = labels.axes[name, axis]
                labels.roles[other, axis] = list(labels.roles[name, axis])
                if labels.by_head_size:
                    reason = f"the example does not reach {pair.unreached}"
                    labels.bar(labels.axes[name, axis], "unknown", reason)
        for of_tensor in (labels.elements, labels.opaque):
            _take_over(of_tensor, pair)
    return pairs


def _take_over(of_name: dict[str, Any], pair: Counterpart) -> None:
    for name in list(of_name):
        other = pair.renamed(name)
        if other is not None:
            of_name[other] = of_name[name]


def _alike(model: nn.Module, labels: Labels) -> Iterator[dict[str, dict[str, tuple[int, ...]]]]:
    """Modules of one list, of one class and with tensors of the same shapes: these by name."""
    for name, several in model.named_modules():
        if not isinstance(several, (nn.ModuleList, nn.ModuleDict)):
            continue
        sets: dict[object, dict[str, dict[str, tuple[int, ...]]]] = {}
        for key, module in several.named_children():
            path = f"{name}.{key}" if name else key
            shapes = {
                tensor[len(path) :]: shape
                for tensor, shape in labels.shapes.items()
                if tensor.startswith(f"{path}.")
            }
            if shapes:
                sets.setdefault((type(module), *shapes.items()), {})[path] = shapes
        yield from (alike for alike in sets.values() if len(alike) > 1)


def _paired(alike: dict[str, dict[str, tuple[int, ...]]], labels: Labels) -> Iterator[Counterpart]:
    met = {name for name, _ in labels.axes} | labels.elements.keys()
    reached = [
        path for path, shapes in alike.items() if any(f"{path}{name}" in met for name in shapes)
    ]
    if not reached or len(reached) == len(alike):
        return
    ends = [_outer_channels(path, labels) for path in reached]
    if all(_agree(ends[0], others) for others in ends[1:]):
        yield from (Counterpart(reached[0], path) for path in alike if path not in reached)


def _outer_channels(path: str, labels: Labels) -> dict[tuple[str, int], Tensor]:
    """Channels on the axes of a module's tensors, by what follows its name; NONE for its own."""
    rows = {axis: labels.channels(row) for axis, row in labels.axes.items()}
    outside = [row for (name, _), row in rows.items() if not name.startswith(f"{path}.")]
    others = torch.cat(outside) if outside else torch.empty(0, dtype=torch.long)
    return {
        (name[len(path) :], axis): row.masked_fill(~torch.isin(row, others), NONE)
        for (name, axis), row in rows.items()
        if name.startswith(f"{path}.")
    }


def _agree(ours: dict[tuple[str, int], Tensor], theirs: dict[tuple[str, int], Tensor]) -> bool:
    return all(torch.equal(ours[axis], theirs[axis]) for axis in ours.keys() & theirs.keys())


def with_unreached(plan: ChannelPlan, pairs: Sequence[Counterpart]) -> ChannelPlan:
    """A plan in which attributes, norms and layers of unreached modules are as their counterparts'.

    Args:
        plan: whose members are already those of both.
        pairs: the modules.
    """
    if not pairs:
        return plan
    layers = dict(plan.layers)
    for pair in pairs:
        for name, layer in plan.layers.items():
            other = pair.renamed(name)
            if other is not None:
                layers[other] = replace(layer, weight=other)
    groups: list[ChannelGroup] = []
    for group in plan:
        inner = [pair for pair in pairs if _is_inside(group, pair.reached, pairs)]
        others = [pair for pair in pairs if pair not in inner]
        outside = _without(group, [pair.unreached for pair in inner])
        groups.append(_with_facts(outside, others))
        groups += [_moved(group, pair) for pair in inner]
    return ChannelPlan(tuple(groups), layers)


def _is_inside(group: ChannelGroup, path: str, pairs: Sequence[Counterpart]) -> bool:
    """Whether a group has members in a module and its counterparts only."""
    paths = [path, *(pair.unreached for pair in pairs if pair.reached == path)]
    return all(
        any(member.tensor.startswith(f"{inside}.") for inside in paths) for member in group.members
    )


def _without(group: ChannelGroup, paths: Sequence[str]) -> ChannelGroup:
    members = (
        member
        for member in group.members
        if not any(member.tensor.startswith(f"{path}.") for path in paths)
    )
    return replace(group, members=tuple(members))


def _moved(group: ChannelGroup, pair: Counterpart) -> ChannelGroup:
    """The group of the same channels in a module that was not reached."""
    return replace(
        group,
        name=pair.renamed(group.name) or group.name,
        members=tuple(
            replace(member, tensor=other)
            for member in group.members
            if (other := pair.renamed(member.tensor)) is not None
        ),
        resized=tuple(_renamed_numbers(group, pair)),
        norms=tuple(_renamed_norms(group, pair)),
        padding=_renamed_padding(group, pair),
    )


def _with_facts(group: ChannelGroup, pairs: Sequence[Counterpart]) -> ChannelGroup:
    """A group that goes on outside, with attributes and norms of modules that were not reached."""
    resized, norms, padding = list(group.resized), list(group.norms), group.padding
    for pair in pairs:
        resized += _renamed_numbers(group, pair)
        norms += _renamed_norms(group, pair)
        more = _renamed_padding(group, pair)
        if padding is not None and more is not None:
            factors, silent = padding.factors | more.factors, padding.silent | more.silent
            padding = replace(padding, factors=factors, silent=silent)
    return replace(group, resized=tuple(resized), norms=tuple(norms), padding=padding)


def _renamed_numbers(group: ChannelGroup, pair: Counterpart) -> Iterator[Resized]:
    for number in group.resized:
        module = pair.renamed(number.module)
        if module is not None:
            yield replace(number, module=module)


def _renamed_norms(group: ChannelGroup, pair: Counterpart) -> Iterator[Norm]:
    for norm in group.norms:
        module = pair.renamed(norm.module)
        if module is not None:
            weight = norm.weight and (pair.renamed(norm.weight) or norm.weight)
            bias = norm.bias and (pair.renamed(norm.bias) or norm.bias)
            yield replace(norm, module=module, weight=weight, bias=bias)


def _renamed_padding(group: ChannelGroup, pair: Counterpart) -> Padding | None:
    if group.padding is None:
        return None
    factors, silent = (
        frozenset(other for name in names if (other := pair.renamed(name)) is not None)
        for names in (group.padding.factors, group.padding.silent)
    )
    return replace(group.padding, factors=factors, silent=silent)
