"""Tensors of transformations and of baked number formats that change shape with the weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from latewood.core.format_buffers import format_buffers
from latewood.core.selection import stored_tensor
from latewood.core.transforms import Follows, transformations
from latewood.errors import RequestError

__all__ = ["followers"]


def followers(
    module: nn.Module, attribute: str, axis: int, name: str
) -> Iterator[tuple[Tensor, int, float | None]]:
    """The tensors of a weight's transformations and baked format that change with one of its axes.

    Each comes with the axis of its own that changes, and with what new entries start with.

    Args:
        module: the layer.
        attribute: of the weight in the layer.
        axis: of the weight.
        name: of the weight, qualified, for the error.

    Raises:
        RequestError: nothing says how a tensor follows, or it has another shape than is said.
    """
    shape = stored_tensor(module, attribute).shape
    for transformation in transformations(module, attribute):
        declared: Mapping[str, Follows] = getattr(transformation, "follows", {})
        tensors = [*transformation.named_parameters(), *transformation.named_buffers()]
        for tensor_name, tensor in tensors:
            follows = declared.get(tensor_name)
            if follows is None and tensor.numel() <= 1:
                continue
            if follows is None or (axes := _axes_in(tensor, shape, follows)) is None:
                kind = type(transformation).__name__
                raise RequestError(
                    f"{name}: {kind} holds {tensor_name} of shape {tuple(tensor.shape)} for a "
                    f"weight of shape {tuple(shape)}; expected {kind}.follows to say how it follows"
                )
            if axis in axes:
                yield tensor, axes[axis], follows.start
    for tensor in format_buffers(module, attribute) or ():
        place = axis - (len(shape) - tensor.ndim)
        # Of one entry it stands for all.
        if place >= 0 and tensor.shape[place] > 1:
            yield tensor, place, None


def _axes_in(tensor: Tensor, shape: torch.Size, follows: Follows) -> dict[int, int] | None:
    """The tensor's own axis by that of the weight; None if it does not have the shape it says."""
    if follows.axis is None:
        return {axis: axis for axis in range(len(shape))} if tensor.shape == shape else None
    if not -len(shape) <= follows.axis < len(shape):
        return None
    axis = follows.axis % len(shape)
    if tensor.shape == shape[axis : axis + 1]:
        return {axis: 0}
    broadcast = [size if position == axis else 1 for position, size in enumerate(shape)]
    return {axis: axis} if list(tensor.shape) == broadcast else None
