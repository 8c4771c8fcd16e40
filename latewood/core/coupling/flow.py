"""Records, while a model runs, which operations stand between its weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from latewood.core.coupling.label_layout import compact
from latewood.core.coupling.labels import Labels, Used
from latewood.core.coupling.layer import UNKNOWN
from latewood.core.coupling.operation_kinds import (
    ACTIVATIONS,
    ELEMENTWISE,
    GATES,
    MULTIPLICATIONS,
    NORMS,
    REDUCTIONS,
    SELF_GATES,
    SPLITS,
)
from latewood.core.coupling.traced_call import Call, tensors_in

__all__ = ["Flow", "Node", "WeightUse"]

NodeKind = Literal["layer", "activation", "norm", "sum", "linear"]


@dataclass(frozen=True)
class WeightUse:
    """A weight in one operation.

    Args:
        weight: its name.
        inputs: the axis that is summed over, if there is one.
        outputs: the axis of what it makes.
        rows: labels of the outputs.
        fan_in: products in one output.
        lookup: whether nothing is read: rows are looked up, or it is a table of activations.
    """

    weight: str
    inputs: int | None
    outputs: int | None
    rows: Tensor | None
    fan_in: int
    lookup: bool = False


class Node:
    """What one operation made.

    Args:
        index: place in the order of the run.
        kind: what the operation does to what it reads; "linear" also for products of activations,
            each of which they are linear in.
        name: of the function of an activation.
        parents: what it was made from.
        use: the weight of a layer.
        covers: labels of the part that was taken; None where nothing was left out.

    Attributes:
        base: the node of which each element is a function of one element; itself if there is none.
        functions: names of the nonlinearities since ``base``.
        statistic: the node whose elements it sums or averages, through functions of one element.
        reduction: the operation that summed.
    """

    __slots__ = (
        *("base", "covers", "functions", "index", "kind", "name", "parents", "reduction"),
        *("statistic", "use"),
    )

    def __init__(
        self,
        index: int,
        kind: NodeKind,
        parents: Sequence[Node] = (),
        name: str = "",
        use: WeightUse | None = None,
        covers: Tensor | None = None,
    ) -> None:
        self.index, self.kind, self.name, self.use, self.covers = index, kind, name, use, covers
        self.parents = tuple(parents)
        self.base = self
        self.functions: frozenset[str] = frozenset()
        self.statistic: Node | None = None
        self.reduction = ""


class Flow:
    """The operations of a run and what each read.

    Args:
        labels: of the same run.
        parameters: names of the tensors that are no buffers.
    """

    def __init__(self, labels: Labels, parameters: Iterable[str]) -> None:
        self.nodes: list[Node] = []
        self._labels = labels
        self._parameters = set(parameters)
        self._of = WeakIdKeyDictionary()
        self._tables: dict[str, Node] = {}

    def of(self, tensor: Tensor) -> Node | None:
        """What made a tensor; None for data and for weights."""
        node: Node | None = self._of.get(tensor)
        return node

    def record(self, call: Call, used: Sequence[Used], *, known: bool = True) -> None:
        """Notes an operation.

        Args:
            call: the operation.
            used: what its rule took for axes of weights.
            known: whether its name tells what it does.
        """
        given = list(tensors_in((call.positional, call.named)))
        reads = [node for node in map(self.of, given) if node is not None]
        weights = _weights(used)
        if not reads and not weights and not any(self._labels.source(x) for x in given):
            return
        if call.name in GATES:
            self._recurrence(call, used)
        elif call.name == "multi_head_attention_forward":
            self._torch_attention(call, used)
        elif weights:
            node = self._chain(call, weights, reads)
            self._put(call.output, node)
        else:
            reads += self._bare(call, given, reads)
            if reads:
                self._operation(call, reads, known)

    def _new(self, kind: NodeKind, parents: Sequence[Node] = (), **facts: Any) -> Node:
        node = Node(len(self.nodes), kind, parents, **facts)
        self.nodes.append(node)
        return node

    def _put(self, output: Any, node: Node) -> None:
        for tensor in tensors_in(output):
            if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool:
                self._of[tensor] = node

    def _chain(self, call: Call, weights: dict[str, list[Used]], reads: Sequence[Node]) -> Node:
        """The layers of one operation, one behind the other."""
        node = None
        for name, axes in weights.items():
            parents = reads if node is None else [node]
            node = self._new("layer", parents, use=_weight_use(call, name, axes))
        assert node is not None
        return node

    def _bare(self, call: Call, given: Sequence[Tensor], reads: Sequence[Node]) -> list[Node]:
        """Nodes for parameters that are added to activations or joined with them: tables."""
        if reads and call.name in MULTIPLICATIONS:
            return []
        if any(self._labels.source(output) for output in tensors_in(call.output)):
            return []
        names = dict.fromkeys(
            name
            for tensor in given
            if (name := self._labels.source(tensor)) in self._parameters
            and sum(size > 1 for size in self._labels.shapes[name]) > 1
        )
        return [self._table(name) for name in names if name is not None]

    def _table(self, name: str) -> Node:
        if name not in self._tables:
            shape = self._labels.shapes[name]
            use = WeightUse(name, None, len(shape) - 1, None, 1, lookup=True)
            self._tables[name] = self._new("layer", use=use)
        return self._tables[name]

    def _operation(self, call: Call, reads: Sequence[Node], known: bool) -> None:
        name = call.name
        parents = list(dict.fromkeys(reads))
        if not known:
            node = self._new("activation", parents, name=UNKNOWN)
        elif name in NORMS:
            node = self._new("norm", parents[:1])
        elif name == "scaled_dot_product_attention":
            node = self._attention(call, parents)
        elif name == "glu":
            node = self._halves(call, parents)
        elif name in ACTIVATIONS:
            node = self._activation(name, parents)
        elif name in SPLITS:
            self._split(call, parents)
            return
        elif name in MULTIPLICATIONS and len(reads) > 1:
            node = self._product(name, reads)
        else:
            node = self._linear(name, parents)
        if name == "setitem":
            self._put(call.positional[0], node)
            return
        self._put(call.output, node)
        if call.in_place:
            self._overwrite(call.output, node)

    def _overwrite(self, tensor: Any, node: Node) -> None:
        """What was written in place is also in the tensor that it is a part of."""
        whole = tensor._base if isinstance(tensor, Tensor) else None
        before = None if whole is None else self.of(whole)
        if whole is not None and before is not node:
            self._of[whole] = node if before is None else self._new("linear", [before, node])

    def _activation(self, name: str, parents: Sequence[Node]) -> Node:
        node = self._new("activation", parents, name=name)
        bases = {parent.base for parent in parents}
        if len(bases) == 1 and name in ELEMENTWISE:
            node.base = parents[0].base
            node.functions = frozenset({name}).union(*(parent.functions for parent in parents))
            node.statistic, node.reduction = parents[0].statistic, parents[0].reduction
        return node

    def _linear(self, name: str, parents: Sequence[Node]) -> Node:
        bases = {parent.base for parent in parents}
        first = parents[0]
        if name in REDUCTIONS:
            linear = name in ("mean", "sum")
            node = self._new("linear" if linear else "activation", parents, name=name)
            node.statistic, node.reduction = first.base, name
            return node
        centred = [p for p in parents if p.statistic is not None and p.statistic in bases]
        kind: NodeKind = "linear"
        if name in ELEMENTWISE and len(parents) == 2 and len(bases) == 2 and not centred:
            kind = "sum"
        node = self._new(kind, parents)
        rest = {parent.base for parent in parents if parent not in centred}
        if name in ELEMENTWISE and len(rest) == 1:
            # Also what is left of a mean of it: each element is still one of its own.
            node.base = rest.pop()
            node.functions = frozenset().union(*(parent.functions for parent in parents))
        statistics = {parent.statistic for parent in parents}
        if len(statistics) == 1:
            node.statistic, node.reduction = first.statistic, first.reduction
        return node

    def _product(self, name: str, reads: Sequence[Node]) -> Node:
        left, right = reads[:2]
        for one, other in ((left, right), (right, left)):
            if other.statistic is not None and other.statistic is one.base:
                if "exp" in one.functions and other.reduction == "sum":
                    return self._new("activation", [one.base], name="softmax")
                return self._new("norm", [one])
        if left.base is not right.base:
            return self._linear(name, [left, right])
        # A function of one element written out, such as x * sigmoid(x).
        functions = left.functions | right.functions
        function = SELF_GATES.get(functions, UNKNOWN)
        node = self._new("activation", [left.base], name=function)
        node.base, node.functions = left.base, functions | {function}
        return node

    def _split(self, call: Call, parents: Sequence[Node]) -> None:
        """Each part of its own, with the labels in it where it lacks some."""
        whole = next(iter(tensors_in((call.positional, call.named))))
        size = compact(self._labels.of(whole)).numel()
        for output in tensors_in(call.output):
            few = compact(self._labels.of(output))
            covers = few.flatten() if few.numel() < size else None
            self._put(output, self._new("linear", parents, covers=covers))

    def _halves(self, call: Call, parents: Sequence[Node]) -> Node:
        """``glu``: one half times the sigmoid of the other."""
        inputs, dim = call.argument(0, "input"), call.argument(1, "dim", -1)
        values, gates = self._labels.of(inputs).chunk(2, dim)
        value = self._new("linear", parents, covers=compact(values).flatten())
        gate = self._new("activation", parents, name="sigmoid", covers=compact(gates).flatten())
        return self._new("linear", [value, gate])

    def _attention(self, call: Call, parents: Sequence[Node]) -> Node:
        queries, keys, values, mask = (
            None if tensor is None else self.of(tensor)
            for tensor in call.arguments("query", "key", "value", "attn_mask")
        )
        scored = [node for node in (queries, keys, mask) if node is not None]
        weights = self._new("activation", scored, name="softmax")
        return self._new("linear", [weights, *([values] if values is not None else [])])

    def _torch_attention(self, call: Call, used: Sequence[Used]) -> None:
        """Queries, keys and values, fused or not, and the projection behind them."""
        streams = [self.of(tensor) for tensor in call.arguments("query", "key", "value")]
        weights = _weights(used)
        out = self._labels.source(call.argument(11, "out_proj_weight"))
        parts: list[Node] = []
        for name, axes in weights.items():
            if name == out:
                continue
            use = _weight_use(call, name, axes)
            fused = use.rows is not None and len(weights) == 2
            reads = streams if fused else [streams[len(parts)]]
            made = self._new("layer", [node for node in reads if node is not None], use=use)
            if fused and use.rows is not None:
                thirds = use.rows.chunk(3)
                parts += [self._new("linear", [made], covers=third) for third in thirds]
            else:
                parts.append(made)
        scores = self._new("activation", parts[:2], name="softmax")
        mixed = self._new("linear", [scores, parts[2]])
        if out is not None:
            mixed = self._new("layer", [mixed], use=_weight_use(call, out, weights[out]))
        self._put(call.output[0], mixed)
        if call.output[1] is not None:
            self._put(call.output[1], scores)

    def _recurrence(self, call: Call, used: Sequence[Used]) -> None:
        """Rows of each gate stand in front of that gate's function."""
        gates = GATES[call.name]
        given = tensors_in(call.positional[:2])
        entering = [node for node in map(self.of, given) if node is not None]
        for name, axes in _weights(used).items():
            use = _weight_use(call, name, axes)
            layer = self._new("layer", entering, use=use)
            # A projection of the units, which has no gates, is as wide as what reads it.
            gated = use.rows is not None and "weight_hr" not in name.rpartition(".")[2]
            if not gated or use.rows is None:
                entering = [layer]
                continue
            entering = [
                self._new("activation", [layer], name=function, covers=rows)
                for function, rows in zip(gates, use.rows.chunk(len(gates)), strict=True)
            ]
        # The states of a step are read by the next one.
        self._new("layer", entering)
        self._put(call.output, self._new("linear", entering))


def _weights(used: Sequence[Used]) -> dict[str, list[Used]]:
    """By name, what was used of weights of two or more axes."""
    weights: dict[str, list[Used]] = {}
    for axis in used:
        if axis.ndim > 1:
            weights.setdefault(axis.name, []).append(axis)
    return weights


def _weight_use(call: Call, name: str, axes: Sequence[Used]) -> WeightUse:
    inputs = next((axis for axis in axes if axis.role == "consumer"), None)
    outputs = next((axis for axis in axes if axis.role != "consumer"), None)
    out = None if outputs is None else outputs.axis
    rows = None if outputs is None else outputs.labels
    if call.name == "embedding":
        return WeightUse(name, None, out, rows, 1, lookup=True)
    if call.name.startswith("conv"):
        return _convolution(call, name, inputs, outputs)
    fan_in = 1 if inputs is None else len(inputs.labels)
    return WeightUse(name, None if inputs is None else inputs.axis, out, rows, fan_in)


def _convolution(call: Call, name: str, inputs: Used | None, outputs: Used | None) -> WeightUse:
    weight, groups = call.argument(1, "weight"), call.argument(6, "groups", 1)
    fan_in = math.prod(weight.shape[1:])
    axis = None if outputs is None else outputs.axis
    if "transpose" in call.name:
        # Of the kernel's places one in as many as the stride reaches each output.
        stride = call.argument(3, "stride", 1)
        spatial = weight.ndim - 2
        strides = [stride] * spatial if isinstance(stride, int) else list(stride) * spatial
        area = math.prod(weight.shape[2:]) / math.prod(strides[:spatial])
        fan_in = math.ceil(weight.shape[0] // groups * area)
        axis = 1
    rows = None if outputs is None or groups != 1 else outputs.labels
    return WeightUse(name, None if inputs is None else inputs.axis, axis, rows, int(fan_in))
