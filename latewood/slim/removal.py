"""Turns channels that change nothing into a smaller module of ordinary layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import nn

from latewood.core.copies import copy_of
from latewood.core.coupling.trace import run_model
from latewood.core.devices import require_values
from latewood.core.modes import evaluated
from latewood.errors import RequestError, invalid
from latewood.slim.comparison import Examples, bake_masks, compare
from latewood.slim.dead_rows import clear_dead_rows
from latewood.slim.edits import (
    Channels,
    Edit,
    Scattered,
    Skipped,
    Unpacked,
    apply_edit,
    remember,
)
from latewood.slim.head_attention import replaceable_attention
from latewood.slim.idle_blocks import idle_modules_and_reads
from latewood.slim.idle_channels import Limits, thin
from latewood.slim.replaceable_modules import replaceable_modules
from latewood.slim.residual_branches import Scatter, branch_ends

__all__ = ["Residual", "slim", "slimmed"]

Residual = Literal["coupled", "inner", "scatter"]
"""What happens to the channels that residual connections add up, see ``slim``."""


def slim(
    model: nn.Module,
    example_inputs: Examples,
    *,
    keep: Mapping[str, Sequence[int]] | None = None,
    residual: Residual = "coupled",
    round_to: int = 1,
    tolerance: float | None = None,
) -> nn.Module:
    """Removes the channels that change nothing and returns a smaller module of ordinary layers.

    A channel goes if in evaluation mode everything that reads it meets exact zeros, whatever the
    input is, or has only zero weights for it, in all members of its coupled group: a batch norm
    with weight and bias zero after the activation, say, an LSTM unit without rows, or an attention
    head whose values or whose columns of the output projection are zero. Masks alone in front of a
    batch norm leave a constant, which is not zero; constants go into the bias of what reads them
    where that is exact (linear layers, convolutions without padding, whose bias nothing else uses),
    and stay otherwise. The last channel of a group stays. Blocks that return their input, since
    their branch is zero, and branches of several layers that are zero are taken out whole.

    Masks on the weights are folded in; other transformations stay. The model itself does not
    change. Every call compares the two modules on the example and on random inputs.

    Args:
        model: any module that ``latewood.core.coupling.trace_channels`` can follow.
        example_inputs: what the model is called with: a tensor, a sequence of positional
            arguments, or a dict of keyword arguments.
        keep: for a group's name (``trace_channels(model, example_inputs).table()`` lists them), the
            channels to keep, distinct, at least one; None removes all that can go, also blocks.
        residual: "coupled" removes a channel of a residual stream where all that write to it drop
            it; "inner" keeps the channels that several layers write; "scatter" is "coupled", and
            layers that write to only some channels of a stream lose the others, with a ``Scatter``
            behind them.
        round_to: numbers of channels that are reduced stay multiples of this; heads stay free.
        tolerance: largest difference allowed, relative to the largest output; None is 1e-12 in
            float64, 1e-5 in float32, 2e-2 in half precision.

    Returns:
        The slim module. What was done, for ``save_slim``, is in ``slim_recipe(module)``.

    Raises:
        RequestError: an unknown group, channels that are not there, or a channel to be removed
            that is not exactly without effect; another ``residual``, a ``round_to`` below 1, or
            one of them together with ``keep``.
        WorkError: the slim module differs from the model.
    """
    _check(keep, residual, round_to)
    limits = Limits(wanted=keep, round_to=round_to, inner=residual == "inner")
    twin, edits = slimmed(model, example_inputs, limits, scatter=residual == "scatter")
    compare(model, twin, example_inputs, tolerance)
    remember(twin, edits, example_inputs)
    return twin


def slimmed(
    model: nn.Module, example_inputs: Examples, limits: Limits, *, scatter: bool = False
) -> tuple[nn.Module, list[Edit]]:
    """The smaller copy of a model, not yet compared with it, and what was done to it.

    Args:
        model: the model, which stays as it is.
        example_inputs: what it is called with.
        limits: what must stay.
        scatter: whether branches may write to some channels of a stream only.
    """
    require_values(model)
    twin = copy_of(model)
    bake_masks(twin)
    clear_dead_rows(twin, example_inputs)
    if limits.wanted is not None:
        return twin, [Channels(thin(twin, example_inputs, limits))]
    layers = replaceable_attention(twin, example_inputs)
    if layers:
        # Kept if only that lets something go, since torch's own layer may be faster.
        trial, edits = _done(copy_of(twin), Unpacked(layers), [], example_inputs)
        heads = [trial.get_submodule(name) for name in layers]
        sizes = [_parameter_count(head) for head in heads]
        trial, edits = _reduced(trial, edits, example_inputs, limits, scatter)
        there = set(trial.modules())
        if any(
            head not in there or _parameter_count(head) < size
            for head, size in zip(heads, sizes, strict=True)
        ):
            return trial, edits
    return _reduced(twin, [], example_inputs, limits, scatter)


def _reduced(
    model: nn.Module, edits: list[Edit], example_inputs: Examples, limits: Limits, scatter: bool
) -> tuple[nn.Module, list[Edit]]:
    idle, known = idle_modules_and_reads(model, example_inputs)
    with evaluated(model), torch.no_grad():
        idle = replaceable_modules(model, idle, lambda: run_model(model, example_inputs))
    if idle:
        model, edits = _done(model, Skipped({**idle}), edits, example_inputs)
    # Without those modules the weights read something else.
    reads = None if idle else known
    edits = [*edits, Channels(thin(model, example_inputs, limits, reads))]
    if not scatter:
        return model, edits
    return _with_scattered_branches(model, edits, example_inputs, limits)


def _done(
    model: nn.Module, edit: Edit, edits: list[Edit], example_inputs: Examples
) -> tuple[nn.Module, list[Edit]]:
    return apply_edit(model, edit, example_inputs), [*edits, edit]


def _check(keep: Mapping[str, Sequence[int]] | None, residual: str, round_to: int) -> None:
    if residual not in get_args(Residual):
        raise invalid("residual", residual, f"one of {', '.join(get_args(Residual))}")
    if type(round_to) is not int or round_to < 1:
        raise invalid("round_to", round_to, "a whole number from 1 on")
    if keep is not None and (residual, round_to) != ("coupled", 1):
        raise RequestError(
            f"keep: got it with residual={residual!r} and round_to={round_to}, which choose "
            "channels themselves; expected keep alone"
        )


def _parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _with_scattered_branches(
    model: nn.Module, edits: list[Edit], example_inputs: Examples, limits: Limits
) -> tuple[nn.Module, list[Edit]]:
    """A model whose branches write to some channels of a stream only, where they are zero else."""
    ends = {name: [*end] for name, end in branch_ends(model, example_inputs).items()}
    while ends:
        scatter = Scattered(ends)
        trial, done = _done(copy_of(model), scatter, edits, example_inputs)
        step = thin(trial, example_inputs, limits)
        useful = {name: end for name, end in ends.items() if _is_narrow(trial, name)}
        if len(useful) == len(ends):
            return trial, [*done, Channels(step)]
        # One that keeps every channel only costs; without it others may be named anew.
        ends = useful
    return model, edits


def _is_narrow(model: nn.Module, name: str) -> bool:
    scatter = model.get_submodule(f"{name}.1")
    return isinstance(scatter, Scatter) and len(scatter.kept) < scatter.width
