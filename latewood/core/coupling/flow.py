"""Records, while a model runs, which operations stand between its weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

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
from latewood.core.coupling.tensor_table import TensorTable
from latewood.core.coupling.traced_call import Call, tensors_in
from latewood.core.coupling.weight_uses import WeightUse, weight_uses

__all__ = ["Flow", "Node", "Scores"]

NodeKind = Literal["layer", "activation", "norm", "sum", "linear"]


@dataclass(frozen=True)
class Scores:
    """A product of queries and keys whose channels are the entries of a head.

    Args:
        queries: node of one factor, if a weight made it.
        keys: of the other.
        node: of the product.
        entries: labels (size,) of what it sums over.
        factor: that the operation itself puts on it.
    """

    queries: Node | None
    keys: Node | None
    node: Node
    entries: Tensor
    factor: float = 1.0


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
        scalar: a number of the code that it multiplies with.
        shifted: whether a parameter of its own is added.
    """

    __slots__ = (
        *("base", "covers", "functions", "index", "kind", "name", "parents", "reduction"),
        *("scalar", "shifted", "statistic", "use"),
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
        self.scalar = 1.0
        self.shifted = False


class Flow:
    """The operations of a run and what each read.

    Args:
        labels: of the same run.
        parameters: names of the tensors that are no buffers.

    Attributes:
        nodes: what the operations made, in order.
        scores: of queries and keys, where the entries of a head are channels.
    """

    def __init__(self, labels: Labels, parameters: Iterable[str]) -> None:
        self.nodes: list[Node] = []
        self.scores: list[Scores] = []
        self.labels = labels
        self._parameters = set(parameters)
        self._of: TensorTable[Node] = TensorTable()
        self._tables: dict[str, Node] = {}

    def of(self, tensor: Tensor) -> Node | None:
        """What made a tensor; None for data and for weights."""
        node: Node | None = self._of.get(tensor)
        return node

    def record(
        self, call: Call, given: Sequence[Tensor], used: Sequence[Used], *, known: bool = True
    ) -> None:
        """Notes an operation.

        Args:
            call: the operation.
            given: its tensors.
            used: what its rule took for axes of weights.
            known: whether its name tells what it does.
        """
        nodes = [self.of(tensor) for tensor in given]
        reads = [node for node in nodes if node is not None]
        weights = any(axis.ndim > 1 and axis.role != "per_channel" for axis in used)
        weights |= call.name.startswith("conv") and bool(used)
        sources = dict.fromkeys(
            name
            for tensor, node in zip(given, nodes, strict=True)
            if node is None and (name := self.labels.source(tensor) or "") in self._parameters
        )
        if not reads and not weights and not sources:
            return
        if call.name in GATES:
            self._recurrence(call, used)
        elif call.name == "multi_head_attention_forward":
            self._torch_attention(call, used)
        elif weights:
            node = self._chain(call, used, reads)
            self._put(call.output, node)
        else:
            if sources and not (reads and call.name in MULTIPLICATIONS):
                reads += self._tables_in(call, sources)
            if reads:
                self._operation(call, reads, known, shifted=bool(sources))
        while len(self.labels.scores) > len(self.scores):
            # A product whose factors nothing here made: nothing can be scaled.
            self._note_scores(None, None, self._new("linear"))

    def _new(self, kind: NodeKind, parents: Sequence[Node] = (), **facts: Any) -> Node:
        node = Node(len(self.nodes), kind, parents, **facts)
        self.nodes.append(node)
        return node

    def _put(self, output: Any, node: Node) -> None:
        for tensor in tensors_in(output):
            if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool:
                self._of[tensor] = node

    def _chain(self, call: Call, used: Sequence[Used], reads: Sequence[Node]) -> Node:
        """The layers of one operation, one behind the other."""
        node = None
        for use in weight_uses(call, used):
            node = self._new("layer", reads if node is None else [node], use=use)
        # Weights of which only a vector is a parameter: others are computed on the way.
        return node or self._new("activation", list(dict.fromkeys(reads)), name=UNKNOWN)

    def _tables_in(self, call: Call, sources: Iterable[str]) -> list[Node]:
        """Nodes for parameters that are added to activations or joined with them."""
        if any(self.labels.source(output) for output in tensors_in(call.output)):
            return []
        shapes = self.labels.shapes
        return [self._table(name) for name in sources if sum(size > 1 for size in shapes[name]) > 1]

    def _table(self, name: str) -> Node:
        if name not in self._tables:
            shape = self.labels.shapes[name]
            use = WeightUse(name, None, len(shape) - 1, None, 1, lookup=True)
            self._tables[name] = self._new("layer", use=use)
        return self._tables[name]

    def _operation(self, call: Call, reads: Sequence[Node], known: bool, *, shifted: bool) -> None:
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
        elif name in ("rdiv", "rtruediv"):
            node = self._activation("reciprocal", parents)
        elif name in ACTIVATIONS:
            node = self._activation(name, parents)
        elif name in SPLITS:
            self._split(call, parents)
            return
        elif name in MULTIPLICATIONS and len(reads) > 1:
            node = self._product(name, reads)
        else:
            node = self._linear(name, parents)
            node.scalar = _scalar(call)
            node.shifted = shifted and name in ELEMENTWISE and name not in MULTIPLICATIONS
        if len(self.labels.scores) > len(self.scores) and name != "scaled_dot_product_attention":
            one, other = _factors(call)
            self._note_scores(self.of(one), self.of(other), node)
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
        size = compact(self.labels.of(whole)).numel()
        for output in tensors_in(call.output):
            few = compact(self.labels.of(output))
            covers = few.flatten() if few.numel() < size else None
            self._put(output, self._new("linear", parents, covers=covers))

    def _halves(self, call: Call, parents: Sequence[Node]) -> Node:
        """``glu``: one half times the sigmoid of the other."""
        inputs, dim = call.argument(0, "input"), call.argument(1, "dim", -1)
        values, gates = self.labels.of(inputs).chunk(2, dim)
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
        if len(self.labels.scores) > len(self.scores):
            size = call.argument(0, "query").shape[-1]
            scale = call.argument(6, "scale", call.named.get("scale"))
            factor = size**-0.5 if scale is None else float(scale)
            self._note_scores(queries, keys, weights, factor)
        return self._new("linear", [weights, *([values] if values is not None else [])])

    def _note_scores(
        self, queries: Node | None, keys: Node | None, node: Node, factor: float = 1.0
    ) -> None:
        entries = self.labels.scores[len(self.scores)]
        self.scores.append(Scores(queries, keys, node, entries, factor))

    def _torch_attention(self, call: Call, used: Sequence[Used]) -> None:
        """Queries, keys and values, fused or not, and the projection behind them."""
        streams = [self.of(tensor) for tensor in call.arguments("query", "key", "value")]
        uses = {use.weight: use for use in weight_uses(call, used)}
        out = uses.pop(str(self.labels.source(call.argument(11, "out_proj_weight"))), None)
        packed_bias = self.labels.source(call.argument(6, "in_proj_bias"))
        parts: list[Node] = []
        for use in uses.values():
            fused = use.rows is not None and len(uses) == 1
            start = 0 if use.rows is None else len(parts) * len(use.rows)
            biases = () if packed_bias is None else ((packed_bias, start),)
            use = replace(use, biases=biases)
            reads = streams if fused else [streams[len(parts)]]
            made = self._new("layer", [node for node in reads if node is not None], use=use)
            if fused and use.rows is not None:
                thirds = use.rows.chunk(3)
                parts += [self._new("linear", [made], covers=third) for third in thirds]
            else:
                parts.append(made)
        while len(parts) < 3:
            # A weight that was computed on the way.
            parts.append(self._new("activation", name=UNKNOWN))
        scores = self._new("activation", parts[:2], name="softmax")
        if len(self.labels.scores) > len(self.scores):
            size = len(self.labels.scores[-1])
            self._note_scores(parts[0], parts[1], scores, size**-0.5)
        mixed = self._new("linear", [scores, parts[2]])
        if out is not None:
            mixed = self._new("layer", [mixed], use=out)
        self._put(call.output[0], mixed)
        if call.output[1] is not None:
            self._put(call.output[1], scores)

    def _recurrence(self, call: Call, used: Sequence[Used]) -> None:
        """Rows of each gate stand in front of that gate's function."""
        gates = GATES[call.name]
        given = tensors_in(call.positional[:2])
        entering = [node for node in map(self.of, given) if node is not None]
        for use in weight_uses(call, used):
            layer = self._new("layer", entering, use=use)
            # A projection of the units, which has no gates, is as wide as what reads it.
            gated = use.rows is not None and "weight_hr" not in use.weight.rpartition(".")[2]
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


def _factors(call: Call) -> Sequence[Tensor]:
    """The two tensors of a product of activations."""
    given = [tensor for tensor in tensors_in((call.positional, call.named)) if tensor.ndim > 1]
    return given[-2:]


def _scalar(call: Call) -> float:
    """The number of the code by which an operation multiplies; 1 if there is none."""
    if call.name == "baddbmm":
        return float(call.named.get("alpha", 1.0))
    if call.name not in MULTIPLICATIONS:
        return 1.0
    divides = "div" in call.name
    for number, operand in enumerate((*call.positional, *call.named.values())):
        if isinstance(operand, Tensor) and operand.ndim == 0 and not operand.is_meta:
            operand = operand.item()
        if isinstance(operand, (int, float)) and not isinstance(operand, bool) and number < 2:
            return 1 / operand if divides and operand else float(operand)
    return 1.0
