"""Checks a channel plan against the model itself, by removing channels that nothing reads."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from latewood.core.coupling.head_size import scale_queries, switch_off_queries
from latewood.core.coupling.plan import ChannelGroup, ChannelPlan
from latewood.core.coupling.resize import slice_channels
from latewood.core.coupling.trace import layer_tensors, outputs_of, run_model
from latewood.core.modes import attributes_restored
from latewood.core.selection import parametrization_list, stored_tensor
from latewood.core.transforms import bake, transformations
from latewood.errors import WorkError

__all__ = ["verify_plan"]

_ALIGNED: Final = 8
"""Numbers of channels are multiples of this where they are larger: some kernels insist."""
_DOUBLE_OVER_SINGLE: Final = 1e-7
"""How much finer the grid of float64 is; errors in float32 are judged by it."""


def verify_plan(
    model: nn.Module,
    plan: ChannelPlan,
    example_inputs: Tensor | Sequence[Any] | dict[str, Any],
    *,
    tolerance: float = 1e-12,
) -> float:
    """Removes a random choice of channels of every free group from a copy and compares the outputs.

    On a float64 copy in evaluation mode (in the model's own precision where it cannot compute in
    float64; the error is then scaled down by 1e-7, what separates the two), what reads the channels
    to be removed is set to zero; then removing them must not change the output. Code that the trace
    could not see through (a size written as a number) shows here.

    Args:
        model: the model that was traced; it stays as it is.
        plan: its plan.
        example_inputs: what the model is called with, as for ``trace_channels``.
        tolerance: largest change allowed, relative to the largest output.

    Returns:
        The largest relative change.

    Raises:
        WorkError: the outputs differ; the message names the groups that fail on their own.
    """
    places = dict(layer_tensors(model))
    free = [group for group in plan.free if group.width > 1 and _has_weights(group, places)]
    together = "no group on its own, only several together"
    try:
        error = _change(model, plan, free, example_inputs)
    except Exception as raised:
        # Whatever the model raises when its sizes no longer fit: the groups at fault are named.
        error, together = float("inf"), f"only several groups together ({_first_line(raised)})"
    if error <= tolerance:
        return error
    verdicts = {
        group.name: _verdict(model, plan, group, example_inputs, tolerance) for group in free
    }
    named = [f"{name} ({verdict})" for name, verdict in verdicts.items() if verdict]
    raise WorkError(
        f"channel plan: removing unread channels changes the output by {error:.1e}; at fault: "
        + (", ".join(named) or together)
    )


def _has_weights(group: ChannelGroup, places: dict[str, tuple[nn.Module, str]]) -> bool:
    """Whether what reads the channels can be set to zero, as an index of positions cannot."""
    return all(
        stored_tensor(*places[member.tensor]).is_floating_point()
        for member in group.having("consumer")
    )


def _verdict(
    model: nn.Module, plan: ChannelPlan, group: ChannelGroup, inputs: Any, tolerance: float
) -> str | None:
    try:
        error = _change(model, plan, [group], inputs)
    except Exception as reason:
        return _first_line(reason)
    return None if error <= tolerance else f"changes by {error:.1e}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _change(
    model: nn.Module, plan: ChannelPlan, groups: Iterable[ChannelGroup], inputs: Any
) -> float:
    twin = copy.deepcopy(model).eval()
    places = dict(layer_tensors(twin))
    for module, name in places.values():
        if not parametrize.is_parametrized(module, name) or _is_stored(module, name):
            for transformation in transformations(module, name):
                bake(module, name, transformation)
    if _runs_in_double(twin, inputs):
        twin, inputs = twin.double(), _double(inputs)
    keep = {}
    with torch.no_grad():
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
                removed = member.indices[order[count:]].flatten()
                tensor.index_fill_(member.axis, removed.to(tensor.device), 0)
            switch_off_queries(twin, group, order[count:])
        exact = _outputs(twin, inputs)
        smaller = slice_channels(twin, plan, keep)
        for name, channels in keep.items():
            if plan[name].score_scale == "size":
                scale_queries(twin, smaller[name], (len(channels) / plan[name].width) ** 0.5)
        sliced = _outputs(twin, inputs)
    largest = max((float(each.abs().max()) for each in exact if each.numel()), default=0.0)
    error = max(
        (float((one - two).abs().max()) for one, two in zip(exact, sliced, strict=True)),
        default=0.0,
    ) / (largest or 1.0)
    single = exact and exact[0].dtype is not torch.float64
    return error * (_DOUBLE_OVER_SINGLE if single else 1.0)


def _is_stored(module: nn.Module, name: str) -> bool:
    return parametrization_list(module, name).is_tensor


def _runs_in_double(model: nn.Module, inputs: Any) -> bool:
    """Whether a model can compute in float64: some kernels cannot."""
    trial = copy.deepcopy(model).double()
    try:
        _outputs(trial, _double(inputs))
    except RuntimeError:
        return False
    return True


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """What a model computes, with the same noise in every run."""
    with torch.no_grad(), attributes_restored(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        outputs = outputs_of(run_model(model, inputs))
    return [output for output in outputs if output.is_floating_point()]


def _double(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.double() if tree.is_floating_point() else tree
    if isinstance(tree, (tuple, list)):
        return [_double(item) for item in tree]
    if isinstance(tree, dict):
        return {name: _double(item) for name, item in tree.items()}
    return tree
