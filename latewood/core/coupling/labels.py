"""Labels that follow channels through a model: every element of a tensor knows its channel.

An axis of a parameter gets one label an entry. Data movement moves labels as it moves data;
elementwise operations and contractions couple labels. Coupled labels are one channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latewood.core.coupling.plan import Barrier, BarrierKind, Resized, Role

__all__ = ["NONE", "Labels", "narrowed", "varies_along"]

NONE = -1
"""The label of an element that belongs to no channel."""


@dataclass(frozen=True)
class _Split:
    """Labels after a reshape that made new dimensions."""

    labels: Tensor
    new: tuple[int, ...]
    spelled: tuple[int, ...]
    reason: str
    sizes: dict[int, Resized]


class Labels:
    """The labels of all tensors met while a model runs, and what was learned about them."""

    def __init__(self, names: dict[int, str]) -> None:
        """Starts with the named tensors of a model.

        Args:
            names: name by id of each parameter and buffer, as its layer computes with it.
        """
        self.names = names
        self.axes: dict[tuple[str, int], Tensor] = {}
        self.roles: dict[tuple[str, int], list[Role]] = {}
        self.elements: dict[str, Tensor] = {}
        self.barriers: list[tuple[Tensor, Barrier]] = []
        self.opaque: dict[str, Barrier] = {}
        self._count = 0
        self._pairs: list[Tensor] = []
        self._of: dict[int, tuple[Tensor, Tensor]] = {}
        self._constant: list[tuple[Tensor, int, Barrier]] = []
        self._splits: list[_Split] = []
        self._roots: Tensor | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """Labels of a tensor, shaped like it.

        A parameter or buffer met outside a layer's own operation gets one label an element.
        """
        found = self._of.get(id(tensor))
        if found is not None and found[1].shape == tensor.shape:
            return found[1]
        name = self.names.get(id(tensor))
        if name is None or tensor.ndim == 0:
            return torch.full((), NONE).expand(tensor.shape)
        if tensor.ndim == 1:
            return self.axis(tensor, 0, "per_channel")
        if name not in self.elements:
            self.elements[name] = self._fresh(tensor.numel()).view(tensor.shape)
        return self.elements[name]

    def put(self, tensor: Tensor, labels: Tensor) -> None:
        """Remembers the labels of a tensor."""
        # The tensor is kept alive, since an id is only unique among living objects.
        self._of[id(tensor)] = (tensor, labels.expand(tensor.shape))

    def has_any(self, tensor: Tensor) -> bool:
        """Whether an element of the tensor belongs to a channel, as far as is known."""
        found = self._of.get(id(tensor))
        return found is not None and bool((narrowed(found[1]) != NONE).any())

    def axis(self, tensor: Tensor, axis: int, role: Role) -> Tensor:
        """Labels of one axis of a parameter or buffer; no labels if it is neither.

        Args:
            tensor: the tensor a layer computes with.
            axis: the axis.
            role: what the layer does with the axis.
        """
        name = self.names.get(id(tensor))
        if name is None:
            return torch.full((tensor.shape[axis],), NONE)
        key = (name, axis)
        if key not in self.axes:
            self.axes[key] = self._fresh(tensor.shape[axis])
            self.roles[key] = []
        if role not in self.roles[key]:
            self.roles[key].append(role)
        return self.axes[key]

    def couple(self, left: Tensor, right: Tensor) -> None:
        """Declares labels at the same (broadcast) place to be one channel."""
        left, right = _narrowed_together(*torch.broadcast_tensors(left, right))
        different = (left != right) & (left != NONE) & (right != NONE)
        if different.any():
            self._pairs.append(torch.stack([left[different], right[different]]))
            self._roots = None

    def bar(self, labels: Tensor, kind: BarrierKind, reason: str) -> None:
        """Declares that the channels of some labels cannot change."""
        found = narrowed(labels).unique()
        found = found[found != NONE]
        if len(found):
            self.barriers.append((found, Barrier(kind, reason)))

    def bar_all_axes(self, tensor: Tensor, kind: BarrierKind, reason: str) -> None:
        """Declares that no axis of a parameter or buffer can change."""
        if id(tensor) in self.names:
            self.opaque[self.names[id(tensor)]] = Barrier(kind, reason)

    def must_not_vary(self, labels: Tensor, dim: int, kind: BarrierKind, reason: str) -> None:
        """Bars the labels if, when all is known, their channels differ along a dimension."""
        if varies_along(labels, dim):
            self._constant.append((labels, dim, Barrier(kind, reason)))

    def must_follow(
        self,
        labels: Tensor,
        new: tuple[int, ...],
        spelled: tuple[int, ...],
        reason: str,
        sizes: dict[int, Resized],
    ) -> None:
        """Bars labels that a reshape spreads over several dimensions, or over one of a given size.

        Args:
            labels: labels after the reshape.
            new: dimensions that the reshape made.
            spelled: those of them whose size is a number in the code.
            reason: the reshape in words.
            sizes: for a spelled dimension, what would have to change with it.
        """
        if new:
            self._splits.append(_Split(labels, new, spelled, reason, sizes))

    def vary(self, labels: Tensor, dim: int) -> bool:
        """Whether channels differ along a dimension, as far as is known."""
        return varies_along(labels, dim) and varies_along(self.channels(labels), dim)

    def channels(self, labels: Tensor) -> Tensor:
        """The channel of each label: coupled labels share one."""
        if self._roots is None:
            # Here, because importing it takes longer than most users of core ever need it.
            from scipy.sparse import coo_array
            from scipy.sparse.csgraph import connected_components

            pairs = torch.cat(self._pairs, 1).numpy() if self._pairs else np.zeros((2, 0), int)
            graph = coo_array(
                (np.ones(pairs.shape[1], dtype=np.int8), (pairs[0], pairs[1])),
                shape=(self._count, self._count),
            )
            roots = connected_components(graph, directed=False)[1]
            self._roots = torch.cat([torch.from_numpy(roots).long(), torch.tensor([NONE])])
        # The last entry answers for NONE, which is -1.
        return self._roots[labels]

    def shared(self, labels: Tensor) -> Tensor:
        """Whether the channel of each label has other labels too."""
        every = self.channels(torch.arange(self._count))
        return (torch.bincount(every)[self.channels(labels)] > 1) & (labels != NONE)

    def settle(self) -> dict[int, list[Resized]]:
        """Evaluates what had to wait, into barriers; returns what must follow a channel's group."""
        for labels, dim, barrier in self._constant:
            if self._shared_vary(labels, dim):
                self.bar(labels, barrier.kind, barrier.reason)
        for (name, _), atoms in self.axes.items():
            if name in self.opaque:
                self.bar(atoms, self.opaque[name].kind, self.opaque[name].reason)
        follows: dict[int, list[Resized]] = {}
        for split in self._splits:
            channels = self.channels(split.labels)
            moving = [dim for dim in split.new if varies_along(channels, dim)]
            held = [dim for dim in moving if dim in split.spelled and dim not in split.sizes]
            if held or len(moving) > 1:
                self.bar(split.labels, "fixed", split.reason)
            elif moving and moving[0] in split.sizes:
                for channel in channels.unique().tolist():
                    follows.setdefault(channel, []).append(split.sizes[moving[0]])
        return follows

    def _shared_vary(self, labels: Tensor, dim: int) -> bool:
        """Whether channels differ along a dimension, apart from those of one label only.

        Those are entries that met no other tensor, such as the rows of a position table beyond the
        example's length.
        """
        few = narrowed(labels.movedim(dim, -1))
        rows, shared = self.channels(few), self.shared(few)
        first = rows.gather(-1, shared.int().argmax(-1, keepdim=True))
        return bool(((rows != first) & shared).any())

    def _fresh(self, count: int) -> Tensor:
        self._roots = None
        self._count += count
        return torch.arange(self._count - count, self._count)


def varies_along(labels: Tensor, dim: int) -> bool:
    """Whether labels differ along a dimension."""
    if labels.shape[dim] < 2 or labels.stride(dim) == 0 or labels.numel() == 0:
        return False
    few = narrowed(labels)
    return bool((few != few.narrow(dim, 0, 1)).any())


def narrowed(labels: Tensor) -> Tensor:
    """Labels without the repetitions that expanding made."""
    return _narrowed_together(labels, labels)[0]


def _narrowed_together(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Labels of one shape without the repetitions that they have in common."""
    for dim in range(left.ndim):
        if left.shape[dim] > 1 and left.stride(dim) == 0 and right.stride(dim) == 0:
            left, right = left.narrow(dim, 0, 1), right.narrow(dim, 0, 1)
    return left, right
