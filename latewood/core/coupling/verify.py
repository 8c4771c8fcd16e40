"""Checks a channel plan against the model itself: by removing channels, and by adding some."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from latewood.core.copies import copy_of
from latewood.core.coupling.head_size import scale_queries, switch_off_queries
from latewood.core.coupling.model_runs import DOUBLE_OVER_SINGLE, ModelRuns
from latewood.core.coupling.plan import ChannelGroup, ChannelPlan
from latewood.core.coupling.resize import slice_channels
from latewood.core.coupling.trace import layer_tensors
from latewood.core.coupling.widening import NORMALISED, can_widen, widen_channels
from latewood.core.devices import require_values
from latewood.core.selection import parametrization_list, stored_tensor
from latewood.core.transforms import bake, transformations
from latewood.errors import RequestError, WorkError

__all__ = ["VERIFIED_SIZE", "verify_plan", "verify_small_plan"]

VERIFIED_SIZE: Final = 1_000_000
"""Parameters up to which methods verify a plan on their own before they change a model by it."""
_TRAINING_SCALE: Final = 1e-3
"""Of errors in training mode: the variance of two alike values magnifies rounding so much."""
_ALIGNED: Final = 8
"""Numbers of channels are multiples of this where they are larger: some kernels insist."""
_REMOVING, _ADDING = "removing unread channels", "adding channels that nothing should notice"


def verify_plan(
    model: nn.Module,
    plan: ChannelPlan,
    example_inputs: Tensor | Sequence[Any] | dict[str, Any],
    *,
    tolerance: float = 1e-12,
    groups: Collection[str] | None = None,
) -> float:
    """Removes channels from a copy of a model and adds others, and compares the outputs.

    First what reads a random choice of channels of every free group is set to zero; then removing
    them must not change the output. Then every group that can becomes wider by ``widen_channels``
    with ``fill="pair"``, padding included, which must not change it either. Code that the trace
    could not see through (a size written as a number) shows here.

    Both are done in evaluation mode, and in training mode (statistics of the batch, without
    dropout) where the model runs in it on the example and draws no random numbers of the shape of
    its channels. Errors in training mode count a thousandth, or less where the network
    magnifies a change of its inputs by more than that, since statistics of the few values of an
    example magnify rounding. Operations compute in float64, also where the code casts to
    float32; in the model's own precision where they have no such form (the error is then scaled
    down by 1e-7, what separates the two; so it is for padding of more than VERIFIED_SIZE numbers,
    whose means are rounded). The copy shares the model's weights; only what changes takes memory,
    in the model's own precision.

    Args:
        model: the model that was traced; it stays as it is.
        plan: its plan.
        example_inputs: what the model is called with, as for ``trace_channels``.
        tolerance: largest change allowed, relative to the largest output.
        groups: names of those to check; all if left out.

    Returns:
        The largest relative change.

    Raises:
        RequestError: tensors without values, on the meta device.
        WorkError: the outputs differ; the message names the groups that fail on their own.
    """
    require_values(model)
    chosen = [
        group.name
        for group in plan
        if (groups is None or group.name in groups) and (can_widen(group) or _removable(group))
    ]
    try:
        worst = _changes(model, plan, chosen, example_inputs, tolerance)
        together = "no group on its own, only several together"
    except RequestError:
        raise
    except Exception as raised:
        # Whatever the model raises when its sizes no longer fit: the groups at fault are named.
        worst = _Change(float("inf"), getattr(raised, "action", _REMOVING))
        together = f"only several groups together ({_first_line(raised)})"
    if worst.error <= tolerance:
        return worst.error
    verdicts = {name: _verdict(model, plan, name, example_inputs, tolerance) for name in chosen}
    named = [f"{name} ({verdict})" for name, verdict in verdicts.items() if verdict]
    raise WorkError(
        f"channel plan: {worst.action} changes the output by {worst.error:.1e}; at fault: "
        + (", ".join(named) or together)
    )


def verify_small_plan(
    model: nn.Module, plan: ChannelPlan, example_inputs: Any, *, groups: Collection[str]
) -> None:
    """Verifies what a method is about to change, in models of at most VERIFIED_SIZE parameters.

    Args:
        model: the model that was traced; it stays as it is.
        plan: its plan.
        example_inputs: what the model is called with.
        groups: names of those that will change.

    Raises:
        WorkError: as ``verify_plan``.
    """
    if sum(parameter.numel() for parameter in model.parameters()) <= VERIFIED_SIZE:
        verify_plan(model, plan, example_inputs, groups=groups)


@dataclass(frozen=True)
class _Change:
    """How far outputs moved, relative to the largest, and by what."""

    error: float
    action: str


def _removable(group: ChannelGroup) -> bool:
    return not group.barriers and group.width > 1


def _verdict(
    model: nn.Module, plan: ChannelPlan, name: str, inputs: Any, tolerance: float
) -> str | None:
    try:
        error = _changes(model, plan, [name], inputs, tolerance).error
    except Exception as reason:
        return _first_line(reason)
    return None if error <= tolerance else f"changes by {error:.1e}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _changes(
    model: nn.Module, plan: ChannelPlan, names: Sequence[str], inputs: Any, tolerance: float
) -> _Change:
    """The larger of what removal and widening do; the first of them that is beyond tolerance."""
    twin = _baked_copy(model)
    runs = ModelRuns.of(twin, inputs)
    places = dict(layer_tensors(twin))
    wanted = [plan[name] for name in names]
    removable = [g for g in wanted if _removable(g) and _has_weights(g, places)]
    keep = _zero_readers(twin, removable, places)
    exact = runs.outputs()
    magnified = runs.magnification(exact)
    # Less where a network magnifies the rounding of its inputs more than that.
    scale = min(_TRAINING_SCALE, 1.0 / magnified) if magnified else _TRAINING_SCALE
    smaller = slice_channels(twin, plan, keep)
    for name, channels in keep.items():
        if plan[name].score_scale == "size":
            if runs.double:
                # The factor would be rounded to the model's own precision.
                for queries in smaller[name].queries:
                    tensor = stored_tensor(*places[queries.tensor])
                    tensor.data = tensor.detach().double()
            scale_queries(twin, smaller[name], (len(channels) / plan[name].width) ** 0.5)
    removed = _Change(runs.difference(exact, training_scale=scale), _REMOVING)
    if not removed.error <= tolerance:
        return removed
    worst = removed
    # The whole model once more: a depthwise layer cut to one channel looks like any other.
    twin = _baked_copy(model)
    runs = replace(runs, model=twin)
    places = dict(layer_tensors(twin))
    exact = runs.outputs()
    for padded in (False, True):
        added = {
            name: math.lcm(plan[name].multiple_of, _ALIGNED if plan[name].width >= _ALIGNED else 2)
            for name in names
            if (plan[name].padding is not None) is padded
            and can_widen(plan[name])
            and _has_weights(plan[name], places)
        }
        touched = [plan[name] for name in added]
        fine = not padded or (runs.double and _stored_in_double(touched, places))
        plan = widen_channels(twin, plan, added, fill="pair", allow=NORMALISED)
        try:
            error = runs.difference(exact, training_scale=scale) * (
                1.0 if fine else DOUBLE_OVER_SINGLE
            )
        except Exception as raised:
            raise _Unfit(_first_line(raised)) from raised
        worst = max(worst, _Change(error, _ADDING), key=lambda change: change.error)
    return worst


def _baked_copy(model: nn.Module) -> nn.Module:
    """A copy on the same memory, with the transformations that can be folded in folded in."""
    twin = _sharing_copy(model)
    for module, name in dict(layer_tensors(twin)).values():
        if not parametrize.is_parametrized(module, name) or _is_stored(module, name):
            for transformation in transformations(module, name):
                bake(module, name, transformation)
    return twin


def _stored_in_double(
    groups: Sequence[ChannelGroup], places: dict[str, tuple[nn.Module, str]]
) -> bool:
    """Whether tensors are in float64, and makes them so where they are few.

    Pairs cancel in any precision; means and scales are only as good as the numbers they are kept
    in.
    """
    names = {member.tensor for group in groups for member in group.members}
    tensors = [stored_tensor(*places[name]) for name in names]
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    if sum(tensor.numel() for tensor in floating) > VERIFIED_SIZE:
        return all(tensor.dtype is torch.float64 for tensor in floating)
    for tensor in floating:
        tensor.data = tensor.detach().double()
    return True


class _Unfit(Exception):
    """A model that does not run any more once channels were added."""

    action = _ADDING


def _sharing_copy(model: nn.Module) -> nn.Module:
    """A copy whose parameters are new objects on the same memory.

    Nothing may write into them in place. Tensors under transformations, and buffers, which a run
    may write into, are copied.
    """
    shared: dict[int, Any] = {}
    for module in model.modules():
        if parametrize.is_parametrized(module) or isinstance(
            module, (parametrize.ParametrizationList, torch.jit.ScriptModule)
        ):
            continue
        for parameter in module._parameters.values():
            if type(parameter) is nn.Parameter:
                other = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
                shared[id(parameter)] = other
    for module in model.modules():
        if parametrize.is_parametrized(module) or isinstance(
            module, parametrize.ParametrizationList
        ):
            for parameter in module.parameters():
                shared.pop(id(parameter), None)
    return copy_of(model, shared)


def _zero_readers(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    places: dict[str, tuple[nn.Module, str]],
) -> dict[str, Tensor]:
    """Sets to zero what reads the channels that are to go; returns those that stay."""
    keep = {}
    for number, group in enumerate(groups):
        # A choice of its own for each: the same one would hide groups that belong together.
        generator = torch.Generator().manual_seed(number)
        order = torch.randperm(group.width, generator=generator)
        count = int(torch.randint(1, group.width, (), generator=generator))
        unit = math.lcm(group.multiple_of, _ALIGNED if group.width > _ALIGNED else 1)
        count = min(max(unit, count - count % unit), group.width)
        keep[group.name] = order[:count]
        for member in group.having("consumer"):
            tensor = stored_tensor(*places[member.tensor])
            removed = member.indices[order[count:]].flatten().to(tensor.device)
            # Not in place: the memory may be the model's.
            tensor.data = tensor.detach().index_fill(member.axis, removed, 0)
        switch_off_queries(model, group, order[count:])
    return keep


def _has_weights(group: ChannelGroup, places: dict[str, tuple[nn.Module, str]]) -> bool:
    """Whether what reads the channels can be set to zero, as an index of positions cannot."""
    return all(
        stored_tensor(*places[member.tensor]).is_floating_point()
        for member in group.having("consumer")
    )


def _is_stored(module: nn.Module, name: str) -> bool:
    return parametrization_list(module, name).is_tensor
