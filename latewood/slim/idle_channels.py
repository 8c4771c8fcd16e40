"""Finds the channels that change nothing, and removes them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from latewood.core.coupling import ChannelGroup, ChannelPlan, slice_channels, trace_channels
from latewood.core.coupling.dependence import Dependence, Reads
from latewood.core.coupling.operation_table import dependence_rule
from latewood.core.coupling.trace import layer_tensors, prepared, run_model
from latewood.core.coupling.watched_run import watched
from latewood.core.selection import stored_tensor
from latewood.core.transforms import transformations
from latewood.errors import RequestError, invalid
from latewood.slim.comparison import Examples

__all__ = ["Limits", "thin", "weight_reads"]


@dataclass(frozen=True)
class Limits:
    """What must stay although it changes nothing.

    Args:
        wanted: for a group's name, the channels that are to stay and no others; None is no wish.
        round_to: numbers of channels that are reduced stay multiples of this.
        by_group: multiples for single groups, instead of ``round_to``.
        inner: whether channels that several layers write all stay.
    """

    wanted: Mapping[str, Sequence[int]] | None = None
    round_to: int = 1
    by_group: Mapping[str, int] = field(default_factory=dict)
    inner: bool = False

    def retained(self, group: ChannelGroup, gone: set[int]) -> set[int]:
        """Those of the channels to be removed from a group that must stay."""
        makers = {member.tensor.rpartition(".")[0] for member in group.having("producer")}
        # Queries, keys and values are made by several layers too, but not added.
        if self.inner and len(makers) > 1 and not group.resized:
            return gone
        multiple = self.by_group.get(group.name, 1 if group.resized else self.round_to)
        multiple = math.lcm(multiple, group.multiple_of)
        left = group.width - len(gone)
        rounded = min(group.width, max(1, -(-left // multiple)) * multiple)
        return set(sorted(gone)[: rounded - left])


def thin(
    model: nn.Module, example_inputs: Examples, limits: Limits, reads: Reads | None = None
) -> dict[str, list[int]]:
    """Removes the channels that change nothing from a model, in place.

    Args:
        model: a model without masks.
        example_inputs: what it is called with.
        limits: what must stay.
        reads: what the model's weights read, if that is known.

    Returns:
        The kept channels by the name of their group, for the groups that lost some.

    Raises:
        RequestError: channels are to be removed that change something, or that are not there.
    """
    plan = trace_channels(model, example_inputs)
    wanted = None if limits.wanted is None else _wanted(plan, limits.wanted)
    widths = {group.name: group.width for group in plan.free}
    kept = {name: list(range(width)) for name, width in widths.items()}
    reads = reads or weight_reads(model, example_inputs)
    while removed := _removable(model, plan, kept, wanted, limits, reads):
        chosen = {
            name: [channel for channel in range(plan[name].width) if channel not in gone]
            for name, gone in removed.items()
        }
        plan = slice_channels(model, plan, chosen)
        for name, staying in chosen.items():
            kept[name] = [kept[name][channel] for channel in staying]
        reads = weight_reads(model, example_inputs)
    if wanted is not None:
        _refuse_the_rest(kept, wanted)
    return {name: indices for name, indices in kept.items() if len(indices) < widths[name]}


def weight_reads(model: nn.Module, example_inputs: Examples) -> Reads:
    """Runs a model once in evaluation mode and says what its weights read whatever the input is.

    Args:
        model: any module.
        example_inputs: what it is called with.
    """
    with prepared(model) as tensors:
        dependence = Dependence(tensors, dependence_rule)
        with watched(model, dependence):
            run_model(model, example_inputs)
    return dependence.reads.settled()


def _wanted(plan: ChannelPlan, keep: Mapping[str, Sequence[int]]) -> dict[str, set[int]]:
    """Channels to keep by group, checked; groups that are not named keep all."""
    if not isinstance(keep, Mapping):
        raise invalid("keep", keep, "a dict of the channels to keep by the name of their group")
    wanted: dict[str, set[int]] = {}
    for name, listed in keep.items():
        if not isinstance(listed, Iterable):
            raise invalid(f"keep[{name!r}]", listed, "a list of channels")
        group, indices = plan[name], list(listed)
        fits = all(type(index) is int and 0 <= index < group.width for index in indices)
        if not indices or not fits or len(set(indices)) < len(indices):
            expected = f"distinct channels from 0 to {group.width - 1}, at least one"
            raise invalid(f"keep[{name!r}]", indices, expected)
        group.require_width(len(indices), "keep")
        if group.barriers and len(indices) < group.width:
            reasons = "; ".join(dict.fromkeys(barrier.reason for barrier in group.barriers))
            raise RequestError(f"keep[{name!r}]: its channels cannot change: {reasons}")
        wanted[name] = set(indices)
    return wanted


def _refuse_the_rest(kept: dict[str, list[int]], wanted: dict[str, set[int]]) -> None:
    for name, staying in wanted.items():
        rest = [channel for channel in kept.get(name, ()) if channel not in staying]
        if rest:
            raise RequestError(
                f"keep[{name!r}]: channels {rest} are to be removed, but what reads them does not "
                "meet exact zeros. A mask in front of a batch norm leaves a constant: zero the "
                "norm's weight and bias as well, or the weights that read the channel"
            )


def _removable(
    model: nn.Module,
    plan: ChannelPlan,
    kept: dict[str, list[int]],
    wanted: dict[str, set[int]] | None,
    limits: Limits,
    reads: Reads,
) -> dict[str, set[int]]:
    """The channels of each group that can go now; what they add to biases is folded in."""
    owners = dict(layer_tensors(model))
    clean, foldable = _clean(owners, plan, reads)
    removed: dict[str, set[int]] = {}
    for group in plan.free:
        gone = _all_clean(group, clean)
        if wanted is not None:
            staying = wanted.get(group.name)
            gone = {
                channel
                for channel in gone
                if staying is not None and kept[group.name][channel] not in staying
            }
        gone -= limits.retained(group, gone)
        if gone:
            removed[group.name] = gone
    _fold(owners, plan, reads, foldable, removed)
    return removed


def _all_clean(group: ChannelGroup, clean: dict[str, Tensor]) -> set[int]:
    """The channels of which everything that reads them gets nothing."""
    every = torch.ones(group.width, dtype=torch.bool)
    for member in group.having("consumer"):
        every &= clean[member.tensor][member.indices].all(1)
    return set(every.nonzero().flatten().tolist())


_Owners = dict[str, tuple[nn.Module, str]]


def _clean(
    owners: _Owners, plan: ChannelPlan, reads: Reads
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """For every weight that reads: which positions read nothing, and which a constant to fold."""
    clean: dict[str, Tensor] = {}
    foldable: dict[str, Tensor] = {}
    for group in plan.free:
        for member in group.having("consumer"):
            if member.tensor in clean:
                continue
            module, name = owners[member.tensor]
            weight = getattr(module, name).detach().movedim(member.axis, 0)
            # A Scatter reads with the owners in the stream, where 0 is a place like others.
            empty = (weight == 0).reshape(len(weight), -1).all(1) & weight.is_floating_point()
            zeros = reads.zeros.get(member.tensor, torch.zeros_like(empty)).to(empty.device)
            nothing = empty | zeros
            fold = reads.folds.get(member.tensor)
            if fold is not None and not any(
                transformations(*owners[name]) for name in (member.tensor, fold.bias)
            ):
                foldable[member.tensor] = ~nothing & ~fold.values.isnan()
                nothing = nothing | foldable[member.tensor]
            clean[member.tensor] = nothing.cpu()
    return clean, foldable


def _fold(
    owners: _Owners,
    plan: ChannelPlan,
    reads: Reads,
    foldable: dict[str, Tensor],
    removed: dict[str, set[int]],
) -> None:
    """Adds to the biases what the weights that go away read from constants."""
    folded: dict[str, set[int]] = {}
    for name, gone in removed.items():
        for member in plan[name].having("consumer"):
            positions = member.indices[sorted(gone)].flatten().tolist()
            folded.setdefault(member.tensor, set()).update(positions)
    for tensor, constant in foldable.items():
        fold = reads.folds[tensor]
        positions = [position for position in folded.get(tensor, ()) if constant[position]]
        # Only linear layers and convolutions fold, and they read along axis 1.
        columns = stored_tensor(*owners[tensor]).detach()[:, positions]
        weights = columns if columns.ndim == 2 else columns.flatten(2).sum(2)
        with torch.no_grad():
            stored_tensor(*owners[fold.bias]).add_(weights @ fold.values[positions])
