"""Labels that follow channels through a model: every element of a tensor knows its channel.

An axis of a parameter gets one label an entry. Data movement moves labels as it moves data;
elementwise operations and contractions couple labels. Coupled labels are one channel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from latewood.core.coupling.block_boundaries import BlockBoundaries
from latewood.core.coupling.code_numbers import Extent, NumberUse
from latewood.core.coupling.label_components import NONE, Components
from latewood.core.coupling.label_layout import compact, compact_together
from latewood.core.coupling.plan import Barrier, BarrierKind, Role
from latewood.core.coupling.tensor_table import TensorTable

__all__ = [
    "NONE",
    "Alignment",
    "Constancy",
    "Division",
    "Labels",
    "Parts",
    "Used",
    "WeightView",
    "varies_along",
]


_MANY: Final = 4096
"""Labels of one tensor beyond which it pays to look for dimensions along which they agree."""


@dataclass(frozen=True)
class WeightView:
    """A tensor whose elements are those of a parameter, in another order or some of them.

    Args:
        name: of the parameter.
        positions: for each axis of the parameter, where on it each element is, shaped like the
            tensor.
    """

    name: str
    positions: tuple[Tensor, ...]


@dataclass(frozen=True)
class Division:
    """A shape that the code gives to a tensor.

    Args:
        labels: labels in that shape.
        sizes: the code's number for each dimension; None where it leaves the size open.
        new: dimensions that were not there before.
        where: the operation in words.
    """

    labels: Tensor
    sizes: tuple[int | None, ...]
    new: tuple[int, ...]
    where: str


@dataclass(frozen=True)
class Parts:
    """Positions that the code takes along a dimension.

    Args:
        labels: labels of what they are taken from.
        dim: the dimension.
        bounds: where parts begin and end, as numbers of the code; None where positions are listed.
        sections: sizes of parts that the code holds, each with where its part begins now.
        equal: number of parts of one size that the taken ones belong to; 0 if there is none.
        where: the operation in words.
    """

    labels: Tensor
    dim: int
    bounds: tuple[int, ...] | None
    sections: tuple[tuple[int, int], ...]
    equal: int
    where: str


@dataclass(frozen=True)
class Used:
    """An axis of a weight that an operation used.

    Args:
        name: of the weight.
        ndim: how many axes the weight has.
        axis: the axis.
        role: what the operation does with it.
        labels: of the entries that it used.
    """

    name: str
    ndim: int
    axis: int
    role: Role
    labels: Tensor


@dataclass(frozen=True)
class Alignment:
    """A number of positions that an operation insists on.

    Args:
        labels: along a dimension, (size,).
        multiple: what the size must be a multiple of.
        reason: the operation in words.
    """

    labels: Tensor
    multiple: int
    reason: str


@dataclass
class Constancy:
    """What bars the labels of a tensor if their channels differ along a dimension.

    Args:
        labels: of the tensor.
        dim: the dimension.
        kind: of the barrier.
        reason: the operation in words.
    """

    labels: Tensor
    dim: int
    kind: BarrierKind
    reason: str


class Labels:
    """The labels of all tensors met while a model runs, and what was learned about them.

    Args:
        tensors: the parameters and buffers by name, as their layers compute with them.
        others: further tensors that are some of those to the layers that compute with them.
        by_head_size: whether entries of all heads are the channels of attention, not heads.

    Attributes:
        allocated: the code's numbers for the sizes of tensors that were made without data.
        statistics: of tensors that are a mean over channels or made of one, what it demands.
        used: axes that operations took since the list was last emptied.
        number_uses: what the code did with numbers, and where.
        scores: of queries and keys, what each product of both sums over, where it is channels.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        others: Sequence[tuple[str, Tensor]] = (),
        *,
        by_head_size: bool = False,
    ) -> None:
        self.by_head_size = by_head_size
        self.scores: list[Tensor] = []
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.axes: dict[tuple[str, int], Tensor] = {}
        self.roles: dict[tuple[str, int], list[Role]] = {}
        self.elements: dict[str, Tensor] = {}
        self.barriers: list[tuple[Tensor, Barrier]] = []
        self.opaque: dict[str, Barrier] = {}
        self.constancies: list[Constancy] = []
        self.divisions: list[Division] = []
        self.parts: list[Parts] = []
        self.alignments: list[Alignment] = []
        self.shared: list[tuple[Tensor, Tensor]] = []
        self.components = Components()
        self.boundaries = BlockBoundaries()
        self.allocated: TensorTable[tuple[int, ...]] = TensorTable()
        self.statistics: TensorTable[Constancy] = TensorTable()
        self.used: list[Used] = []
        self.number_uses: list[tuple[NumberUse, str]] = []
        # Held, since an id may be another tensor's once its own is gone.
        self._named = [*others, *tensors.items()]
        self._names = {id(tensor): name for name, tensor in self._named}
        self._of: TensorTable[Tensor] = TensorTable()
        self._labelled: TensorTable[None] = TensorTable()
        self._views: TensorTable[WeightView] = TensorTable()

    def name(self, tensor: Any) -> str | None:
        """The name of a parameter or buffer; None for other tensors."""
        return self._names.get(id(tensor))

    def source(self, tensor: Any) -> str | None:
        """The name of the parameter or buffer that a tensor is, or holds elements of."""
        name = self.name(tensor)
        if name is not None or not isinstance(tensor, Tensor):
            return name
        view: WeightView | None = self._views.get(tensor)
        return None if view is None else view.name

    def of(self, tensor: Tensor) -> Tensor:
        """Labels of a tensor, shaped like it.

        A parameter or buffer met outside a layer's own operation gets one label an element.
        """
        labels: Tensor | None = self._of.get(tensor)
        if labels is not None and labels.shape == tensor.shape:
            return labels
        view = self.view(tensor)
        if view is None or tensor.ndim == 0:
            return torch.full((), NONE).expand(tensor.shape)
        return self._elements(view.name)[view.positions]

    def put(self, tensor: Tensor, labels: Tensor) -> None:
        """Remembers the labels of a tensor."""
        labels = labels.expand(tensor.shape)
        if compact(labels).numel() > _MANY:
            labels = self._collapsed(labels)
        self._of[tensor] = labels
        if bool((compact(labels) != NONE).any()):
            self._labelled[tensor] = None
        else:
            self._labelled.pop(tensor)

    def _collapsed(self, labels: Tensor) -> Tensor:
        """Labels repeated along the dimensions in which they turned out to be the same channels."""
        few = compact(self.channels(labels))
        for dim in range(few.ndim):
            if few.shape[dim] > 1 and not varies_along(few, dim):
                few = few.narrow(dim, 0, 1)
        return few.expand(labels.shape)

    def overwrite(self, tensor: Tensor, labels: Tensor) -> None:
        """Remembers the labels of a tensor that was written in place, and of what it is part of."""
        before = compact(self.of(tensor))
        self.put(tensor, labels)
        whole = tensor._base
        if whole is not None and whole.is_contiguous() and bool((before == NONE).any()):
            every = self.of(whole).clone(memory_format=torch.contiguous_format)
            start = tensor.storage_offset() - whole.storage_offset()
            part = every.as_strided(tensor.shape, tensor.stride(), start)
            part.copy_(torch.where(part != NONE, part, labels.expand(tensor.shape)))
            self.put(whole, every)

    def view(self, tensor: Tensor) -> WeightView | None:
        """Which elements of which parameter or buffer a tensor holds; None if it is none."""
        view: WeightView | None = self._views.get(tensor)
        name = self.name(tensor)
        if view is None and name is not None:
            grid = torch.meshgrid(*map(torch.arange, self.shapes[name]), indexing="ij")
            view = WeightView(name, grid)
            self._views[tensor] = view
        return view

    def put_view(self, tensor: Tensor, view: WeightView) -> None:
        """Remembers that a tensor holds elements of a parameter."""
        self._views[tensor] = view

    def touches(self, tensor: Tensor) -> bool:
        """Whether an element of the tensor belongs to a channel, as far as is known."""
        if id(tensor) in self._names or tensor in self._views or tensor in self.statistics:
            return True
        return tensor in self._labelled

    def axis(self, tensor: Tensor, dim: int, role: Role) -> Tensor:
        """Labels along a dimension of a weight; NONE where they cannot be told.

        Args:
            tensor: what a layer computes with: a parameter, a buffer, or a part of one.
            dim: the dimension.
            role: what the layer does with it.
        """
        name, dim = self.name(tensor), dim % tensor.ndim
        if name is not None:
            return self._use(name, dim, role)
        view = self.view(tensor)
        if view is not None:
            few = [compact(positions) for positions in view.positions]
            moving = [axis for axis, places in enumerate(few) if places.shape[dim] > 1]
            if len(moving) == 1 and few[moving[0]].numel() == tensor.shape[dim]:
                return self._use(view.name, moving[0], role, few[moving[0]].flatten())
            self.bar_all_axes(tensor, "unknown", f"{view.name} is used in a form nobody taught")
        return torch.full((tensor.shape[dim],), NONE)

    def couple(self, left: Tensor, right: Tensor) -> None:
        """Declares labels at the same (broadcast) place to be one channel."""
        if left.shape != right.shape:
            left, right = torch.broadcast_tensors(left, right)
        # Their numpy forms cost half as much where labels are few, as they mostly are.
        one, other = (labels.numpy() for labels in compact_together(left, right))
        different = (one != other) & (one != NONE) & (other != NONE)
        if different.any():
            self.components.join(one[different], other[different])

    def alike_in_front(self, labels: Tensor) -> Tensor:
        """Couples labels along all dimensions but the last; returns those left (1, ..., size)."""
        first = labels[(slice(0, 1),) * (labels.ndim - 1)]
        self.couple(labels, first.expand(labels.shape))
        return first

    def contract_by_entry(self, queries: Tensor, keys: Tensor, where: str) -> None:
        """Couples labels (..., size) of queries and keys, entry by entry, for all heads alike.

        Args:
            queries: labels.
            keys: labels.
            where: the operation in words.
        """
        one, other = (self.alike_in_front(labels).flatten() for labels in (queries, keys))
        self.couple(one, other)
        for labels, beside in ((one, other), (other, one)):
            self.bar(labels[beside == NONE], "fixed", f"{where} meets data of fixed size")
        self.scores.append(one)

    def meet(self, left: Tensor, right: Tensor) -> Tensor:
        """Couples labels of one shape, but waits where one is the same for channels of the other.

        Returns:
            The labels of what both make together.
        """
        for many, few in ((left, right), (right, left)):
            dims = [dim for dim in range(many.ndim) if varies_along(many, dim)]
            distinct = all(varies_along(few, dim) or not self.vary(many, dim) for dim in dims)
            if not distinct and bool((compact(few) != NONE).any()):
                self.shared.append((many, few))
                return many
        return self.merge(left, right)

    def merge(self, left: Tensor, right: Tensor) -> Tensor:
        """Couples labels of one shape, and returns those of the first, or of the second if none."""
        self.couple(left, right)
        few = compact_together(left, right)
        return torch.where(few[0] != NONE, few[0], few[1]).expand(left.shape)

    def bar(self, labels: Tensor, kind: BarrierKind, reason: str) -> None:
        """Declares that the channels of some labels cannot change."""
        barred = compact(labels).unique()
        barred = barred[barred != NONE]
        if len(barred):
            self.barriers.append((barred, Barrier(kind, reason)))

    def bar_all_axes(self, tensor: Tensor, kind: BarrierKind, reason: str) -> None:
        """Declares that no axis of a parameter or buffer can change."""
        view = self._views.get(tensor)
        name = self.name(tensor) if view is None else view.name
        if name is not None:
            self.opaque.setdefault(name, Barrier(kind, reason))

    def must_not_vary(
        self, labels: Tensor, dim: int, kind: BarrierKind, reason: str
    ) -> Constancy | None:
        """Bars the labels if, when all is known, their channels differ along a dimension."""
        if not varies_along(labels, dim):
            return None
        self.constancies.append(Constancy(labels, dim, kind, reason))
        return self.constancies[-1]

    def vary(self, labels: Tensor, dim: int) -> bool:
        """Whether channels differ along a dimension, as far as is known."""
        return varies_along(labels, dim) and varies_along(self.channels(labels), dim)

    def channels(self, labels: Tensor) -> Tensor:
        """The channel of each label: coupled labels share one."""
        return self.components.roots(compact(labels)).expand(labels.shape)

    def extent(self, tensor: Tensor, dim: int) -> Extent:
        """The size of a dimension, as a number whose origin is known."""
        labels = self.of(tensor)
        if not varies_along(labels, dim):
            return Extent(torch.empty(0, dtype=torch.long), tensor.shape[dim])
        size = tensor.shape[dim]
        return Extent(compact(labels).movedim(dim, 0).reshape(size, -1)[:, 0], size)

    def _use(self, name: str, axis: int, role: Role, places: Tensor | None = None) -> Tensor:
        """Labels of an axis, or of some places on it, for an operation that uses them."""
        labels = self._axis(name, axis, role)
        labels = labels if places is None else labels[places]
        self.used.append(Used(name, len(self.shapes[name]), axis, role, labels))
        return labels

    def _axis(self, name: str, axis: int, role: Role) -> Tensor:
        key = (name, axis)
        if key not in self.axes:
            self.axes[key] = self.components.grow(self.shapes[name][axis])
            self.roles[key] = []
        if role not in self.roles[key]:
            self.roles[key].append(role)
        return self.axes[key]

    def _elements(self, name: str) -> Tensor:
        shape = self.shapes[name]
        if len(shape) == 1:
            return self._axis(name, 0, "per_channel")
        if name not in self.elements:
            self.elements[name] = self.components.grow(math.prod(shape)).view(shape)
        return self.elements[name]

    def counted(self, labels: Tensor) -> Tensor:
        """Which labels have a say: not the entries of a parameter that met no other tensor.

        Those are, for example, the rows of a position table beyond the example's length.
        """
        alone = self.components.sizes(self.channels(labels)) < 2
        entry = torch.zeros_like(alone)
        for elements in self.elements.values():
            first = int(elements.flatten()[0])
            entry |= (labels >= first) & (labels < first + elements.numel())
        return (labels != NONE) & ~(alone & entry)


def varies_along(labels: Tensor, dim: int) -> bool:
    """Whether labels differ along a dimension."""
    if labels.shape[dim] < 2 or labels.stride(dim) == 0 or labels.numel() == 0:
        return False
    few = compact(labels)
    return bool((few != few.narrow(dim, 0, 1)).any())
