"""Head size as an axis of its own: entries of all heads as channels, and the factor on scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from latewood.core.copies import copy_of
from latewood.core.coupling.flow import Flow, Node, Scores
from latewood.core.coupling.layer_facts import covered_rows
from latewood.core.coupling.plan import Barrier, ChannelGroup, ChannelPlan, Queries, ScoreScale
from latewood.core.coupling.trace import Axis, layer_tensors, traced
from latewood.core.coupling.traced_call import Rule
from latewood.core.coupling.widening import widen_channels
from latewood.core.selection import stored_tensor
from latewood.errors import invalid

__all__ = ["scale_queries", "switch_off_queries", "trace_head_sizes"]

_NO_RULES: Final[Mapping[Any, Rule]] = {}
_CLOSE: Final = 1e-5


def trace_head_sizes(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Any] | dict[str, Any],
    *,
    rules: Mapping[Any, Rule] = _NO_RULES,
    tie: Iterable[Sequence[Axis]] = (),
    freeze: Iterable[str] = (),
) -> ChannelPlan:
    """The channel plan in which an entry of all heads is a channel, where a head is one otherwise.

    Entries of queries and keys make a group, and those of values another, unless code holds all
    three by one number. The scores of d entries are multiplied by a factor, often d^(-1/2): whether
    it goes with the size is measured, on a copy of the model with larger heads, and stands on the
    group as ``score_scale``. Where it does, ``scale_queries`` by sqrt(d'/d) keeps the scores when
    d' - d entries are added that give nothing. All other groups are as in ``trace_channels``.

    Args:
        model: any module, with or without transformations attached.
        example_inputs: what the model is called with, as for ``trace_channels``.
        rules: how channels pass through operations of your own.
        tie: sets of axes that must change together.
        freeze: patterns on names of tensors whose axes stay as they are.

    Returns:
        The groups; those of queries and keys whose factor cannot be told, or whose queries are made
        by nothing that can be scaled, have a barrier.

    Raises:
        RequestError: as for ``trace_channels``.
    """
    ties = [list(axes) for axes in tie]
    names = list(freeze)
    options: dict[str, Any] = {"rules": rules, "tie": ties, "freeze": names, "by_head_size": True}
    plan, flow = traced(model, example_inputs, **options)
    scored = {group.name: _scores_of(group, flow) for group in plan}
    wider = {
        group.name: [0] * group.multiple_of
        for group in plan
        if scored[group.name] and {barrier.kind for barrier in group.barriers} <= {"normalised"}
    }
    after = _wider_scores(model, plan, wider, example_inputs, options) if wider else []
    before = _factors(flow)
    groups = []
    for group in plan:
        numbers = scored[group.name]
        if group.name not in wider:
            groups.append(group)
            continue
        kinds = {
            _kind(before[number], after[number]) if len(after) == len(before) else None
            for number in numbers
        }
        queries = _queries(group, [flow.scores[number] for number in numbers], flow)
        groups.append(_judged(group, kinds, queries))
    return replace(plan, groups=tuple(groups))


def scale_queries(model: nn.Module, group: ChannelGroup, factor: float) -> None:
    """Multiplies what makes the queries, in place.

    Args:
        model: that was traced, before or after the group was resized.
        group: of the plan of the model as it is now, with ``queries``.
        factor: sqrt(d'/d) where heads had d entries and have d'.

    Raises:
        RequestError: a group without queries.
    """
    if not group.queries:
        raise invalid("group", group.name, "entries of queries and keys, of trace_head_sizes")
    for tensor, axis, positions in _places(model, group, range(group.width)):
        with torch.no_grad():
            scaled = tensor.index_select(axis, positions) * factor
            # A new tensor: the memory may be another model's too.
            tensor.data = tensor.detach().index_copy(axis, positions, scaled)


def switch_off_queries(
    model: nn.Module, group: ChannelGroup, entries: Sequence[int] | Tensor
) -> None:
    """Sets some entries of the queries to zero, in place, so that they give nothing to the scores.

    Args:
        model: as for ``scale_queries``.
        group: of the plan of the model as it is now; without queries nothing happens.
        entries: channels of the group.
    """
    for tensor, axis, positions in _places(model, group, entries):
        with torch.no_grad():
            tensor.data = tensor.detach().index_fill(axis, positions, 0)


def _places(
    model: nn.Module, group: ChannelGroup, entries: Sequence[int] | Tensor
) -> Iterator[tuple[Tensor, int, Tensor]]:
    """Tensors that make the queries of some entries, with the axis and the positions."""
    places = dict(layer_tensors(model)) if group.queries else {}
    chosen = torch.as_tensor(entries)
    for queries in group.queries:
        tensor = stored_tensor(*places[queries.tensor])
        member = next(
            member
            for member in group.members
            if (member.tensor, member.axis) == (queries.tensor, queries.axis)
        )
        positions = member.indices[chosen][:, list(queries.columns)].flatten()
        yield tensor, queries.axis, positions.to(tensor.device)


def _scores_of(group: ChannelGroup, flow: Flow) -> list[int]:
    """Numbers of the products that sum over a group."""
    channels: set[int] = set()
    for member in group.members:
        along = flow.labels.axes[member.tensor, member.axis]
        channels.update(flow.labels.channels(along[member.indices[:, 0]]).tolist())
        break
    return [
        number
        for number, scores in enumerate(flow.scores)
        if channels.intersection(flow.labels.channels(scores.entries).tolist())
    ]


def _factors(flow: Flow) -> list[tuple[float, int]]:
    """The factor on each product, and how many entries it sums over."""
    readers: dict[int, list[Node]] = {}
    for node in flow.nodes:
        for parent in node.parents:
            readers.setdefault(parent.index, []).append(node)
    factors = []
    for scores in flow.scores:
        factor = scores.factor
        for side in (scores.queries, scores.keys):
            factor *= math.prod(node.scalar for node in _linear_past(side))
        factor *= scores.node.scalar
        waiting, seen = list(readers.get(scores.node.index, ())), set()
        while scores.node.kind == "linear" and waiting:
            node = waiting.pop()
            if node.kind in ("linear", "sum") and node.index not in seen:
                seen.add(node.index)
                factor *= node.scalar
                waiting += readers.get(node.index, ())
        factors.append((factor, len(scores.entries)))
    return factors


def _linear_past(node: Node | None) -> Iterator[Node]:
    """The nodes from which a node is made linearly, and those at which that ends."""
    waiting, seen = [] if node is None else [node], set()
    while waiting:
        place = waiting.pop()
        if place.index in seen:
            continue
        seen.add(place.index)
        yield place
        if place.kind in ("linear", "sum"):
            waiting += place.parents


def _kind(before: tuple[float, int], after: tuple[float, int]) -> ScoreScale | None:
    ratio, root = after[0] / before[0] if before[0] else math.nan, (before[1] / after[1]) ** 0.5
    if abs(ratio - 1) < _CLOSE:
        return "fixed"
    return "size" if abs(ratio - root) < _CLOSE else None


def _wider_scores(
    model: nn.Module,
    plan: ChannelPlan,
    wider: Mapping[str, list[int]],
    example_inputs: Any,
    options: dict[str, Any],
) -> list[tuple[float, int]]:
    """The factors in a copy of the model whose heads have more entries; [] if there is none."""
    try:
        twin = copy_of(model)
        widen_channels(twin, plan, wider, allow={"normalised"})
        return _factors(traced(twin, example_inputs, **options)[1])
    except Exception:
        # Whatever the model raises when its sizes do not fit: then nothing can be told.
        return []


def _queries(group: ChannelGroup, products: Sequence[Scores], flow: Flow) -> tuple[Queries, ...]:
    """What makes the queries of all products; () if it cannot be scaled apart from the keys."""
    queries: dict[tuple[str, int], set[int]] = {}
    keys: dict[tuple[str, int], set[int]] = {}
    for scores in products:
        for side, made in ((scores.queries, queries), (scores.keys, keys)):
            if side is None:
                return ()
            for place, columns in _columns(group, side, flow):
                if columns is None:
                    return ()
                made.setdefault(place, set()).update(columns)
    if any(columns & keys.get(place, set()) for place, columns in queries.items()):
        return ()
    return tuple(Queries(*place, tuple(sorted(columns))) for place, columns in queries.items())


def _columns(
    group: ChannelGroup, made: Node, flow: Flow
) -> Iterator[tuple[tuple[str, int], set[int] | None]]:
    """Columns of the group's members in the weights and biases from which something is made."""
    covers = [node.covers for node in _linear_past(made) if node.covers is not None]
    for node in _linear_past(made):
        if node.kind not in ("linear", "sum", "layer") or node.shifted:
            # A norm or a function between, or an added vector: scaling the weight is not enough.
            yield ("", 0), None
        if node.use is None:
            continue
        rows = covered_rows(node.use.rows, covers, flow.labels)
        if rows is None or node.use.outputs is None:
            yield ("", 0), None
            continue
        places = [(node.use.weight, node.use.outputs, 0)]
        places += [(name, 0, start) for name, start in node.use.biases]
        for name, axis, start in places:
            for member in group.members:
                if (member.tensor, member.axis) == (name, axis) and member.role != "consumer":
                    yield (name, axis), _whole_columns(member.indices - start, rows)


def _whole_columns(indices: Tensor, rows: set[int]) -> set[int] | None:
    inside = torch.isin(indices, torch.tensor(sorted(rows)))
    if bool((inside.any(0) != inside.all(0)).any()):
        return None
    return set(inside.all(0).nonzero().flatten().tolist())


def _judged(
    group: ChannelGroup, kinds: set[ScoreScale | None], queries: tuple[Queries, ...]
) -> ChannelGroup:
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None:
        reason = "the factor on the scores follows neither the size nor stays"
    elif kind == "size" and not queries:
        reason = "the factor on the scores follows the size, and no weights make the queries alone"
    else:
        return replace(group, score_scale=kind, queries=queries)
    barriers = (*group.barriers, Barrier("fixed", f"{group.name}: {reason}"))
    return replace(group, barriers=barriers)
