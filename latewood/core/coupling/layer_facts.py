"""What stands behind each weight, read off the operations of a run from its end to its start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from latewood.core.coupling.flow import Node
from latewood.core.coupling.labels import Labels
from latewood.core.coupling.layer import UNKNOWN, Layer, LayerPart, LayerRole, LayerUse
from latewood.core.coupling.operation_kinds import BOUNDED
from latewood.core.coupling.weight_uses import WeightUse

__all__ = ["covered_rows", "layer_facts"]

Way = tuple[str | None, bool, bool]
"""A way to the next weight or to the output: its first nonlinearity, whether a norm stands on it,
and whether it ends at a weight."""

Ways = dict[Way, list[Tensor] | None]
"""Ways, each with the labels of the parts that go it; None for all."""

_TO_WEIGHT: Final[Way] = (None, False, True)
_TO_OUTPUT: Final[Way] = (None, False, False)


def layer_facts(
    nodes: Sequence[Node], outputs: Iterable[Node], labels: Labels
) -> Mapping[str, Layer]:
    """What a run says about its weights.

    Args:
        nodes: the operations in order.
        outputs: those that made the model's outputs.
        labels: of the same run.

    Returns:
        The layers by name of the weight.
    """
    readers: list[list[Node]] = [[] for _ in nodes]
    behind_weight = [False] * len(nodes)
    for node in nodes:
        for parent in node.parents:
            readers[parent.index].append(node)
            behind_weight[node.index] |= parent.kind == "layer" or behind_weight[parent.index]
    ends = {node.index for node in outputs}
    joins = {node.index for node in nodes if node.kind == "sum" and _joins_stream(node)}
    ways: list[Ways] = [{} for _ in nodes]
    enters = [False] * len(nodes)
    for node in reversed(nodes):
        behind = readers[node.index]
        ways[node.index] = _ways(behind, ways, node.index in ends)
        enters[node.index] = any(
            reader.index in joins or (_keeps_scale(reader) and enters[reader.index])
            for reader in behind
        )
    calls: dict[str, dict[tuple[int | None, int | None, bool], list[Node]]] = {}
    for node in nodes:
        if node.use is not None:
            form = (node.use.inputs, node.use.outputs, node.use.lookup)
            calls.setdefault(node.use.weight, {}).setdefault(form, []).append(node)
    return {
        weight: Layer(
            weight,
            tuple(
                _use(alike, ways, behind_weight, any(enters[node.index] for node in alike), labels)
                for alike in forms.values()
            ),
        )
        for weight, forms in calls.items()
    }


def _ways(readers: Sequence[Node], ways: Sequence[Ways], ends_here: bool) -> Ways:
    gathered: Ways = {_TO_OUTPUT: None} if ends_here else {}
    for reader in readers:
        if reader.kind == "layer":
            gathered[_TO_WEIGHT] = None
            continue
        for (activation, normalised, at_weight), covers in ways[reader.index].items():
            if reader.kind == "activation":
                activation = reader.name
            way = (activation, normalised or reader.kind == "norm", at_weight)
            part = [reader.covers] if covers is None and reader.covers is not None else covers
            before = gathered.get(way, [])
            gathered[way] = None if before is None or part is None else [*before, *part]
    return gathered


def _keeps_scale(node: Node) -> bool:
    if node.kind == "activation":
        return node.name not in BOUNDED
    return node.kind in ("linear", "sum")


def _joins_stream(node: Node) -> bool:
    """Whether one side of an addition was made from the other through a weight."""
    left, right = node.parents
    return _made_from(left, _origin(right)) or _made_from(right, _origin(left))


def _origin(node: Node) -> Node:
    """What a node only moves or scales."""
    while node.kind == "linear" and len(node.parents) == 1 and node.covers is None:
        node = node.parents[0]
    return node


def _made_from(node: Node, origin: Node) -> bool:
    """Whether a weight stands on a way from an earlier node to this one."""
    waiting, seen = [(node, False)], set()
    while waiting:
        place, weighted = waiting.pop()
        if place is origin:
            if weighted:
                return True
            continue
        if place.index < origin.index or (place.index, weighted) in seen:
            continue
        seen.add((place.index, weighted))
        weighted = weighted or place.kind == "layer"
        waiting += [(parent, weighted) for parent in place.parents]
    return False


def _use(
    calls: Sequence[Node],
    ways: Sequence[Ways],
    behind_weight: Sequence[bool],
    writes_stream: bool,
    labels: Labels,
) -> LayerUse:
    uses = [node.use for node in calls if node.use is not None]
    first = uses[0]
    parts = _merged_parts(
        [(use, ways[node.index]) for use, node in zip(uses, calls, strict=True)], labels
    )
    at_weight = [way[2] for node in calls for way in ways[node.index]]
    reads = {
        use.lookup or not behind_weight[node.index] for use, node in zip(uses, calls, strict=True)
    }
    role: LayerRole | None = None
    if reads == {True}:
        role = "input"
    elif reads == {False} and at_weight:
        role = "hidden" if any(at_weight) else "output"
    return LayerUse(role, first.inputs, first.outputs, first.fan_in, parts, writes_stream)


def _merged_parts(calls: Sequence[tuple[WeightUse, Ways]], labels: Labels) -> tuple[LayerPart, ...]:
    """Parts of the rows, where not all go the same ways in all calls."""
    covered: dict[Way, set[int] | None] = {}
    count = max((0 if use.rows is None else len(use.rows) for use, _ in calls), default=0)
    for use, ways in calls:
        for way, covers in ways.items():
            rows = None if covers is None else covered_rows(use.rows, covers, labels)
            before = covered.get(way, set())
            covered[way] = None if before is None or rows is None else before | rows
    whole = frozenset(way for way, rows in covered.items() if rows is None)
    if len(whole) == len(covered):
        return (_part(None, whole),)
    alike: dict[frozenset[Way], list[int]] = {}
    for row in range(count):
        taken = whole.union(
            way for way, rows in covered.items() if rows is not None and row in rows
        )
        alike.setdefault(taken, []).append(row)
    if len(alike) == 1:
        return (_part(None, next(iter(alike))),)
    by_facts: dict[tuple[str | None, bool | None], list[int]] = {}
    for taken, places in alike.items():
        part = _part(None, taken)
        by_facts.setdefault((part.activation, part.normalised), []).extend(places)
    if len(by_facts) == 1:
        return (LayerPart(None, *next(iter(by_facts))),)
    return tuple(LayerPart(tuple(sorted(places)), *facts) for facts, places in by_facts.items())


def covered_rows(rows: Tensor | None, covers: Sequence[Tensor], labels: Labels) -> set[int] | None:
    """Places of the rows that parts hold; None where the labels do not tell.

    Args:
        rows: labels of a layer's outputs.
        covers: labels of the parts; none of them for all.
        labels: of the run.
    """
    if rows is None:
        return None
    if not covers:
        return set(range(len(rows)))
    covered = torch.cat(list(covers)).unique()
    inside = torch.isin(rows, covered)
    if not bool(inside.any()):
        inside = torch.isin(labels.channels(rows), labels.channels(covered))
    return set(inside.nonzero().flatten().tolist())


def _part(rows: tuple[int, ...] | None, ways: Iterable[Way]) -> LayerPart:
    ways = list(ways)
    activations = {activation for activation, _, _ in ways}
    norms = {normalised for _, normalised, _ in ways}
    return LayerPart(
        rows,
        activations.pop() if len(activations) == 1 else UNKNOWN,
        norms.pop() if len(norms) == 1 else None,
    )
