"""How groups that norms hold can be padded: with zeros or means, or why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Literal

from latewood.core.coupling.norm_recognition import MetNorm
from latewood.core.coupling.padded_values import Padded, PaddedValues
from latewood.core.coupling.plan import ChannelGroup, Padding

__all__ = ["with_padding"]

_KINDS: Final[dict[str, Literal["mean", "zero"]]] = {"layer": "mean", "rms": "zero"}


def with_padding(
    group: ChannelGroup, norms: Sequence[MetNorm], values: PaddedValues
) -> ChannelGroup:
    """The group with its norms, and how it can become wider if those hold it.

    Args:
        group: as gathered.
        norms: that go over some of its channels.
        values: what new channels would hold.
    """
    group = replace(group, norms=tuple(dict.fromkeys(met.norm for met in norms)))
    if not any(barrier.kind == "normalised" for barrier in group.barriers):
        return group
    met = [norm for norm in norms if norm.norm.kind != "group"]
    kinds = {norm.norm.kind for norm in met}
    kind = _KINDS.get(kinds.pop()) if len(kinds) == 1 else None
    if kind is None:
        return replace(group, padding=Padding("", _unknown(group, met)))
    tensors = {member.tensor for member in group.members}
    silent = frozenset(
        member.tensor
        for member in group.having("consumer")
        if (read := values.read.get(member.tensor)) and all(_held(r, kind) == "zero" for r in read)
    )
    obstacle = _of_norms(group, met, kind) or _of_readers(group, silent, kind)
    factors = frozenset(tensors & values.factors - values.summands)
    return replace(group, padding=Padding(kind, obstacle, factors, silent))


def _held(value: Padded, kind: str) -> str:
    return value.zeros if kind == "zero" else value.means


def _unknown(group: ChannelGroup, met: Sequence[MetNorm]) -> str:
    for norm in met:
        if norm.norm.kind == "unknown":
            where = norm.norm.module or "the model"
            return (
                f"{where} computes no layer norm or RMS norm that could be told apart as a module"
            )
    if met:
        names = ", ".join(f"{norm.norm.module} ({norm.norm.kind})" for norm in met[:4])
        return f"layer norms need means where RMS norms need zeros: {names}"
    return next(barrier.reason for barrier in group.barriers if barrier.kind == "normalised")


def _of_norms(group: ChannelGroup, met: Sequence[MetNorm], kind: Literal["mean", "zero"]) -> str:
    for seen in met:
        norm = seen.norm
        if len(seen.labels) != group.width:
            return (
                f"{norm.module} normalises {len(seen.labels)} channels, of which {group.width} "
                "are the group's"
            )
        if norm.weight is None:
            return f"{norm.module} has no scale that could make up for the number of channels"
        if norm.eps is None:
            return f"{norm.module} has no attribute that its eps could be changed by"
        for padded in seen.inputs:
            if _held(padded, kind) != kind:
                reason = padded.reason or "it normalises channels that a norm has made"
                wanted = "the mean of the others" if kind == "mean" else "0"
                return f"new channels would not be {wanted} in {norm.module}: {reason}"
    return ""


def _of_readers(group: ChannelGroup, silent: frozenset[str], kind: str) -> str:
    roles: dict[str, set[str]] = {}
    for member in group.members:
        roles.setdefault(member.tensor, set()).add(member.role)
    readers = {name for name, several in roles.items() if "consumer" in several}
    tied = {name for name in readers if len(roles[name]) > 1}
    if kind == "mean" and tied - silent:
        return f"{min(tied - silent)} makes the channels and reads them without a norm between"
    if kind == "zero" and readers and not silent - tied:
        return "nothing reads the channels behind a norm: new ones could not learn"
    return ""
