"""Clipped values with noise on the CPU, and their gradients with the same noise drawn again."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latewood.kernels.dispatch import native, native_for
from latewood.kernels.misfits import has_memory, require_memory
from latewood.kernels.noise.uniform import uniform_noise

__all__ = ["NoisyValues", "Runs", "runs_of"]


class Runs(NamedTuple):
    """A tensor as the native form goes through it: ``outer`` times ``channels`` times ``inner``.

    Args:
        outer: stretches of all channels.
        channels: that have a width of their own.
        inner: elements of one channel in a stretch.
        channels_last: whether the channels of the second axis lie side by side in memory.
    """

    outer: int
    channels: int
    inner: int
    channels_last: bool


def runs_of(values: Tensor, shape: Sequence[int]) -> Runs | None:
    """How the native form goes through values of which each channel has a width.

    Args:
        values: one element or more.
        shape: of the widths, which broadcasts to them.

    Returns:
        None where it cannot: the axes that the widths take are not side by side, or the memory is
        laid out in another way.
    """
    return _runs(tuple(values.shape), values.stride(), tuple(shape))


@functools.lru_cache(maxsize=4096)
def _runs(sizes: tuple[int, ...], strides: tuple[int, ...], shape: tuple[int, ...]) -> Runs | None:
    before = len(sizes) - len(shape)
    taken = [before + axis for axis, size in enumerate(shape) if size != 1]
    first, last = (taken[0], taken[-1] + 1) if taken else (0, 0)
    if shape[max(first - before, 0) : last - before] != sizes[first:last]:
        return None
    axes = list(range(len(sizes)))
    if _in_order(sizes, strides, axes):
        own = math.prod(sizes[first:last])
        return Runs(math.prod(sizes[:first]), own, math.prod(sizes[last:]), False)
    if len(sizes) < 3 or taken != [1] or not _in_order(sizes, strides, [0, *axes[2:], 1]):
        return None
    return Runs(sizes[0], sizes[1], math.prod(sizes[2:]), True)


def _in_order(sizes: tuple[int, ...], strides: tuple[int, ...], axes: list[int]) -> bool:
    """Whether memory holds all elements one after another, the last of the axes the fastest."""
    expected = 1
    for axis in reversed(axes):
        if sizes[axis] != 1 and strides[axis] != expected:
            return False
        expected *= sizes[axis]
    return True


class NoisyValues(torch.autograd.Function):
    """``noisy`` of float32 tensors on the CPU for which there are ``Runs``."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        width: Tensor,
        limits: tuple[float, float] | None,
        key: int,
        runs: Runs,
    ) -> Tensor:
        noisy = torch.empty_like(values)
        layout = (*runs, key)
        _compiled().noise_forward(values, width, limits, noisy, layout, torch.get_num_threads())
        ctx.save_for_backward(width if limits is None else values, width)
        ctx.limits, ctx.runs, ctx.key, ctx.shape = limits, runs, key, values.shape
        return noisy

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, width = ctx.saved_tensors
        runs: Runs = ctx.runs
        clips = ctx.limits is not None
        # Gradients are wanted of this backward, or it is traced, or somebody replaced the data of
        # a saved tensor, or the gradient is sparse or a batch: only plain torch deals with that.
        if (
            torch.is_grad_enabled()
            or not has_memory(gradient)
            or gradient.shape != ctx.shape
            or native_for(values) is None
            or native_for(width) is None
            or width.numel() != runs.channels
        ):
            return _plain_gradients(ctx, gradient, values, width)
        if runs_of(gradient, width.shape) != runs or native_for(gradient) is None:
            gradient = _laid_out(gradient, runs)
        if clips and runs_of(values, width.shape) != runs:
            return _plain_gradients(ctx, gradient, values, width)
        of_values = None
        if ctx.needs_input_grad[0]:
            of_values = torch.empty_like(gradient) if clips else gradient
        of_width = torch.empty_like(width)
        _compiled().noise_backward(
            values if clips else None,
            width,
            ctx.limits,
            gradient,
            of_values if clips else None,
            of_width,
            (*runs, ctx.key),
            torch.get_num_threads(),
        )
        return of_values, of_width, None, None, None


def _laid_out(gradient: Tensor, runs: Runs) -> Tensor:
    """A copy in the layout of the values."""
    if runs.channels_last:
        return gradient.movedim(1, -1).contiguous().movedim(-1, 1)
    return gradient.contiguous()


def _plain_gradients(
    ctx: Any, gradient: Tensor, values: Tensor, width: Tensor
) -> tuple[Tensor | None, ...]:
    """The same gradients, differentiable again."""
    slope = uniform_noise(torch.empty(ctx.shape), torch.tensor(ctx.key))
    of_values = gradient
    if ctx.limits is not None:
        require_memory(values=values)
        low, high = ctx.limits
        below = values < low + width
        above = ~below & (values > high - width)
        slope = slope + below.to(slope.dtype) - above.to(slope.dtype)
        of_values = torch.where(below | above, 0.0, gradient)
    of_width = (gradient * slope).sum_to_size(width.shape)
    return of_values, of_width, None, None, None


def _compiled() -> Any:
    return native()
