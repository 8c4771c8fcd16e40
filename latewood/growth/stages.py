"""In which growth event every channel of every tensor was born, kept as one vector an axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from latewood.core import ChannelGroup, ChannelPlan
from latewood.errors import RequestError, invalid

__all__ = ["Stages", "new_positions"]


class Stages:
    """The stage of every position on the axes that have grown; stage 0 is the seed.

    The stage of an entry is the largest of its positions' on all axes: an old row's entry in a new
    column is as young as the column. No map of a whole tensor is ever built.

    Args:
        latest: number of growth events so far.
        vectors: by tensor and axis, int64 (size of the axis,).
    """

    def __init__(
        self, latest: int = 0, vectors: Mapping[tuple[str, int], Tensor] | None = None
    ) -> None:
        self.latest = latest
        self._vectors = dict(vectors or {})

    def widen(self, before: ChannelPlan, after: ChannelPlan) -> int:
        """Notes a growth event: positions that the wider plan adds belong to a new stage.

        Args:
            before: plan of the model as it was.
            after: plan that widening it returned; new channels stand behind the old ones.

        Returns:
            The new stage; the present one if nothing grew.
        """
        added = new_positions(before, after)
        if not added:
            return self.latest
        self.latest += 1
        for (tensor, axis), (positions, size) in added.items():
            old = self._vectors.get((tensor, axis))
            if old is None:
                old = torch.zeros(size - len(positions), dtype=torch.long)
            if len(old) != size - len(positions):
                raise RequestError(
                    f"stages: {tensor} has {size - len(positions)} positions on axis {axis} in the "
                    f"plan before the event, and {len(old)} in the stages; expected the plan that "
                    "the last event returned"
                )
            is_old = torch.ones(size, dtype=torch.bool)
            is_old[positions] = False
            born = torch.full((size,), self.latest, dtype=torch.long)
            # Widening only ever puts positions between the old ones.
            born[is_old] = old
            self._vectors[tensor, axis] = born
        return self.latest

    def slice(self, plan: ChannelPlan, keep: Mapping[str, Sequence[int] | Tensor]) -> None:
        """Follows ``core.slice_channels``.

        Args:
            plan: plan of the model before channels were removed.
            keep: for a group's name, the channels that stayed.
        """
        gone: dict[tuple[str, int], list[int]] = {}
        for name, channels in keep.items():
            group = plan[name]
            kept = {int(channel) for channel in channels}
            removed = [channel for channel in range(group.width) if channel not in kept]
            for key, indices in _axes(group).items():
                gone.setdefault(key, []).extend(indices[removed].flatten().tolist())
        for key, positions in gone.items():
            if key in self._vectors:
                stays = torch.ones(len(self._vectors[key]), dtype=torch.bool)
                stays[positions] = False
                self._vectors[key] = self._vectors[key][stays]

    def of(self, tensor: str) -> dict[int, Tensor]:
        """The stage vectors of a tensor by axis, without axes that are all seed.

        Args:
            tensor: name of the parameter or buffer, without the names of transformations on it.
        """
        return {
            axis: born
            for (name, axis), born in sorted(self._vectors.items())
            if name == tensor and bool(born.any())
        }

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors that have entries younger than the seed."""
        grown = (name for (name, _), born in self._vectors.items() if bool(born.any()))
        return tuple(dict.fromkeys(grown))

    def state_dict(self) -> dict[str, Any]:
        """The stages as plain tensors and numbers."""
        vectors = [[name, axis, born.clone()] for (name, axis), born in self._vectors.items()]
        return {"latest": self.latest, "vectors": vectors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned.

        Raises:
            RequestError: it is none.
        """
        if not {"latest", "vectors"} <= state.keys():
            raise invalid("state", sorted(map(str, state)), "what Stages.state_dict returned")
        self.latest = int(state["latest"])
        self._vectors = {(name, axis): born.clone() for name, axis, born in state["vectors"]}


def new_positions(
    before: ChannelPlan, after: ChannelPlan
) -> dict[tuple[str, int], tuple[Tensor, int]]:
    """Where a widening put new entries.

    Args:
        before: plan of the model as it was.
        after: plan that widening it returned.

    Returns:
        By tensor and axis: positions of the new entries, and the size of the axis.
    """
    added: dict[tuple[str, int], list[int]] = {}
    known: dict[tuple[str, int], int] = {}
    for old, new in zip(before, after, strict=True):
        for key, indices in _axes(new).items():
            known[key] = max(known.get(key, 0), int(indices.max()) + 1 if indices.numel() else 0)
            if new.width > old.width:
                added.setdefault(key, []).extend(indices[old.width :].flatten().tolist())
    return {key: (torch.tensor(sorted(positions)), known[key]) for key, positions in added.items()}


def _axes(group: ChannelGroup) -> dict[tuple[str, int], Tensor]:
    """Where the channels sit, each axis once: a tied tensor is a member in several roles."""
    return {(member.tensor, member.axis): member.indices for member in group.members}
