"""The orders of a network's channels that compute the same function, and how to change them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from latewood.core.coupling import Barrier, BarrierKind, ChannelGroup, trace_channels
from latewood.errors import RequestError, invalid

__all__ = ["ChannelSymmetries", "Permutations", "permuted_entry"]

Permutations = dict[str, Tensor]
"""By name of a channel group, (width,) int64: which old channel comes to each place."""

_HARMLESS: Final[tuple[BarrierKind, ...]] = ("normalised",)
"""A norm over channels keeps their number, but does not care for their order."""
_NOT_STORED: Final = "not stored"
_ONE_CHANNEL: Final = "one channel"


class ChannelSymmetries:
    """The channel groups of a model whose order is arbitrary.

    Hidden units, feature maps, whole streams behind residual additions, units of recurrent cells
    and attention heads may come in any order, as long as all tensors that hold them agree.

    Args:
        model: any module without transformations on its weights; it is left as it is.
        example_inputs: what it is called with, as for ``latewood.core.coupling.trace_channels``.

    Raises:
        RequestError: a weight under a transformation, or an example that reaches no weight.

    Attributes:
        groups: the groups that may be permuted, by name.
        fixed_groups: why the others may not, by name.
    """

    groups: dict[str, ChannelGroup]
    fixed_groups: dict[str, str]

    def __init__(
        self, model: nn.Module, example_inputs: Tensor | Sequence[Any] | dict[str, Any]
    ) -> None:
        for name, module in model.named_modules():
            if parametrize.is_parametrized(module):
                raise RequestError(
                    f"model: {name or 'the model'} is under a transformation; expected plain "
                    "weights: finalize the method that put it there first"
                )
        self.groups, self.fixed_groups = {}, {}
        self._by_kind: dict[str, dict[str, str]] = {}
        entries = model.state_dict(keep_vars=True)
        self.parameters = frozenset(name for name, _ in model.named_parameters())
        self._shapes = {name: entry.shape for name, entry in entries.items()}
        first: dict[int, str] = {}
        for name, entry in entries.items():
            first.setdefault(id(entry), name)
        self._known_as = {name: first[id(entry)] for name, entry in entries.items()}
        for group in trace_channels(model, example_inputs):
            held: list[tuple[str, str]] = [
                (barrier.kind, barrier.reason) for barrier in _of_order(group)
            ]
            held += [
                (_NOT_STORED, f"{member.tensor} is not in the state dict")
                for member in group.members
                if member.tensor not in entries
            ]
            if held:
                self.fixed_groups[group.name] = "; ".join(dict.fromkeys(why for _, why in held))
            elif group.width > 1:
                self.groups[group.name] = group
            else:
                held = [(_ONE_CHANNEL, "it has no other order")]
            for kind, reason in held:
                self._by_kind.setdefault(kind, {}).setdefault(group.name, reason)

    def barriers(self) -> str:
        """What holds the order of channels, kind by kind, each with a group as an example."""
        clauses = []
        for kind, reasons in self._by_kind.items():
            name, reason = next(iter(reasons.items()))
            count = "1 group" if len(reasons) == 1 else f"{len(reasons)} groups, such as"
            clauses.append(f"{kind} ({count} {name}: {reason})")
        return ", ".join(clauses)

    def random(self, *, seed: int) -> Permutations:
        """An order drawn at random for every group."""
        generator = torch.Generator().manual_seed(seed)
        return {
            name: torch.randperm(group.width, generator=generator)
            for name, group in self.groups.items()
        }

    def permuted(
        self, state: Mapping[str, Tensor], permutations: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """A state dict with its channels in another order; the function stays the same.

        Args:
            state: of the traced model: parameters and buffers by name.
            permutations: for some of the groups, the old channel at each new place.

        Returns:
            New tensors under the same names; running statistics are permuted too.

        Raises:
            RequestError: an unknown group, or what is no permutation of its channels.
        """
        sources = self.sources(permutations)
        return {
            name: permuted_entry(entry, sources.get(self._known_as.get(name, name), {}))
            for name, entry in state.items()
        }

    def sources(
        self, permutations: Mapping[str, Tensor], tensors: Collection[str] | None = None
    ) -> dict[str, dict[int, Tensor]]:
        """The old position at each new position, by tensor and axis.

        Args:
            permutations: as for ``permuted``.
            tensors: names of those wanted; all if None.

        Raises:
            RequestError: as ``permuted``.
        """
        sources: dict[str, dict[int, Tensor]] = {}
        for name, order in permutations.items():
            for member in self._group(name, order).members:
                if tensors is not None and member.tensor not in tensors:
                    continue
                of_tensor = sources.setdefault(member.tensor, {})
                if member.axis not in of_tensor:
                    size = self._shapes[member.tensor][member.axis]
                    of_tensor[member.axis] = torch.arange(size)
                of_tensor[member.axis][member.indices] = member.indices[order]
        return sources

    def _group(self, name: str, order: Tensor) -> ChannelGroup:
        if name not in self.groups:
            why = f" ({self.fixed_groups[name]})" if name in self.fixed_groups else ""
            raise invalid("group", name, f"one of {', '.join(self.groups)}{why}")
        group = self.groups[name]
        if not torch.equal(order.sort().values, torch.arange(group.width)):
            shown = order.tolist()
            raise invalid(f"permutations[{name!r}]", shown, f"0 to {group.width - 1}, each once")
        return group


def _of_order(group: ChannelGroup) -> list[Barrier]:
    """The barriers that forbid another order, not only another number."""
    return [barrier for barrier in group.barriers if barrier.kind not in _HARMLESS]


def permuted_entry(entry: Tensor, sources: Mapping[int, Tensor]) -> Tensor:
    """A new tensor with the positions of some axes in another order.

    Args:
        entry: any tensor.
        sources: by axis, the old position at each new one.
    """
    result = entry.detach().clone()
    for axis, source in sources.items():
        result = result.index_select(axis, source.to(result.device))
    return result
