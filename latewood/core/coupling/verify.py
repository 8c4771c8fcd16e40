"""Checks a channel plan against the model itself, by removing channels that nothing reads."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from latewood.core.coupling.plan import ChannelGroup, ChannelPlan
from latewood.core.coupling.resize import slice_channels
from latewood.core.coupling.trace import layer_tensors, outputs_of, run_model
from latewood.core.selection import stored_tensor
from latewood.core.transforms import bake, transformations
from latewood.errors import WorkError

__all__ = ["verify_plan"]


def verify_plan(
    model: nn.Module,
    plan: ChannelPlan,
    example_inputs: Tensor | Sequence[Any] | dict[str, Any],
    *,
    tolerance: float = 1e-12,
) -> float:
    """Removes a random choice of channels of every free group from a copy and compares the outputs.

    On a float64 copy in evaluation mode, what reads the channels to be removed is set to zero; then
    removing them must not change the output. Code that the trace could not see through (a size
    written as a number) shows here.

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
    try:
        error = _change(model, plan, free, example_inputs)
    except Exception:
        # Whatever the model raises when its sizes no longer fit: the groups at fault are named.
        error = float("inf")
    if error <= tolerance:
        return error
    verdicts = {
        group.name: _verdict(model, plan, group, example_inputs, tolerance) for group in free
    }
    named = [f"{name} ({verdict})" for name, verdict in verdicts.items() if verdict]
    raise WorkError(
        f"channel plan: removing unread channels changes the output by {error:.1e}; at fault: "
        + (", ".join(named) or "no group on its own, only several together")
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
        return (str(reason).strip().splitlines() or [type(reason).__name__])[0]
    return None if error <= tolerance else f"changes by {error:.1e}"


def _change(
    model: nn.Module, plan: ChannelPlan, groups: Iterable[ChannelGroup], inputs: Any
) -> float:
    twin = copy.deepcopy(model).double().eval()
    places = dict(layer_tensors(twin))
    for module, name in places.values():
        for transformation in transformations(module, name):
            bake(module, name, transformation)
    keep = {}
    with torch.no_grad():
        for number, group in enumerate(groups):
            # A choice of its own for each: the same one would hide groups that belong together.
            generator = torch.Generator().manual_seed(number)
            order = torch.randperm(group.width, generator=generator)
            count = int(torch.randint(1, group.width, (), generator=generator))
            keep[group.name] = order[:count]
            for member in group.having("consumer"):
                tensor = stored_tensor(*places[member.tensor])
                removed = member.indices[order[count:]].flatten()
                tensor.index_fill_(member.axis, removed.to(tensor.device), 0)
        exact = _outputs(twin, inputs)
        slice_channels(twin, plan, keep)
        sliced = _outputs(twin, inputs)
    largest = max((float(each.abs().max()) for each in exact if each.numel()), default=0.0)
    return max(
        (float((one - two).abs().max()) for one, two in zip(exact, sliced, strict=True)),
        default=0.0,
    ) / (largest or 1.0)


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    outputs = outputs_of(run_model(model, _double(inputs)))
    return [each for each in outputs if each.is_floating_point()]


def _double(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.double() if tree.is_floating_point() else tree
    if isinstance(tree, (tuple, list)):
        return [_double(item) for item in tree]
    if isinstance(tree, dict):
        return {name: _double(item) for name, item in tree.items()}
    return tree
