"""The out x in matrix behind a parameter of every kind of layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latewood.core.selection import is_hugging_face_conv1d

__all__ = [
    "CONVOLUTIONS",
    "as_matrix",
    "conv_matrix",
    "conv_transpose_matrix",
    "expert_matrices",
    "has_taps",
    "matrix_parameter",
    "parameter_matrix",
    "tap_matrices",
]

_DIRECT = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (*_DIRECT, *_TRANSPOSED)
_EXPERTS = ("num_experts", "n_experts", "num_local_experts", "n_routed_experts")


def as_matrix(weight: Tensor) -> Tensor:
    """A weight whose first dimension is the output, with all others flattened into the input.

    Leading dimensions of size one before the last two say nothing and are dropped.

    Args:
        weight: (out, ...) with at least two dimensions.

    Returns:
        (out, in).
    """
    while weight.ndim > 2 and weight.shape[0] == 1:
        weight = weight[0]
    return weight.flatten(1)


def conv_matrix(weight: Tensor, groups: int = 1) -> Tensor:
    """A convolution's kernel as one matrix per group.

    Args:
        weight: (out, in / groups, *kernel).
        groups: number of groups.

    Returns:
        (out, in * taps), or (groups, out / groups, in / groups * taps) for several groups.
    """
    matrix: Tensor = weight.flatten(1).unflatten(0, (groups, -1))
    return matrix[0] if groups == 1 else matrix


def conv_transpose_matrix(weight: Tensor, groups: int = 1) -> Tensor:
    """A transposed convolution's kernel as one matrix per group, outputs first.

    Args:
        weight: (in, out / groups, *kernel).
        groups: number of groups.

    Returns:
        (out, in * taps), or (groups, out / groups, in / groups * taps) for several groups.
    """
    matrix: Tensor = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2)
    return matrix[0] if groups == 1 else matrix


def parameter_matrix(module: nn.Module, name: str, weight: Tensor) -> Tensor:
    """The matrix of a layer's parameter, by the kind of the layer.

    Recurrent layers give the stacked gates, attention its fused projection, embeddings the table.
    Hugging Face's ``Conv1D`` keeps (in, out) and is transposed. A stack of experts, (experts, out,
    in) in a module whose class or number of experts says so, gives one matrix per expert.

    Args:
        module: the layer that owns the parameter (it may be parametrized).
        name: the parameter's name in the layer.
        weight: the value to view: the parameter itself or a transformed one of its shape.

    Returns:
        (out, in), or (groups, out, in) for a grouped convolution or a stack of experts.

    Source: arXiv 2408.11804, section 3, and its released code.
    """
    if name == "weight" and isinstance(module, _DIRECT):
        return conv_matrix(weight, module.groups)
    if name == "weight" and isinstance(module, _TRANSPOSED):
        return conv_transpose_matrix(weight, module.groups)
    if name == "weight" and is_hugging_face_conv1d(module):
        return weight.transpose(0, 1)
    if weight.ndim == 3 and _holds_experts(module, len(weight)):
        return weight
    return as_matrix(weight)


def expert_matrices(name: str, weight: Tensor) -> Tensor | None:
    """A tensor of a checkpoint as one matrix per expert, where its name says that it holds some.

    Args:
        name: its name in the file.
        weight: (experts, out, in) for a stack.

    Returns:
        The stack as it is; None if this is none.
    """
    return weight if weight.ndim == 3 and "expert" in name.lower() else None


def has_taps(module: nn.Module, name: str) -> bool:
    """Whether a parameter is the kernel of a convolution."""
    return name == "weight" and isinstance(module, CONVOLUTIONS)


def tap_matrices(module: nn.Module, weight: Tensor) -> Tensor:
    """A convolution's kernel as one matrix per tap and group, as WeightWatcher sees it.

    Args:
        module: the convolution, plain or transposed.
        weight: its kernel.

    Returns:
        (groups * taps, out / groups, in / groups).
    """
    matrix = parameter_matrix(module, "weight", weight)
    taps = weight[0, 0].numel()
    stacked: Tensor = matrix.reshape(-1, *matrix.shape[-2:]).unflatten(-1, (-1, taps))
    return stacked.movedim(-1, 1).flatten(0, 1)


def _holds_experts(module: nn.Module, count: int) -> bool:
    named = any("expert" in kind.__name__.lower() for kind in type(module).__mro__)
    return named or any(getattr(module, name, None) == count for name in _EXPERTS)


def matrix_parameter(
    module: nn.Module, name: str, matrix: Tensor, shape: torch.Size | tuple[int, ...]
) -> Tensor:
    """The layer's parameter behind a matrix: what ``parameter_matrix`` takes apart, put together.

    Args:
        module: the layer that owns the parameter.
        name: the parameter's name in the layer.
        matrix: (out, in), or (groups, out, in), as ``parameter_matrix`` gives it.
        shape: of the parameter.

    Returns:
        The tensor of that shape.
    """
    if name == "weight" and isinstance(module, _TRANSPOSED):
        inputs = shape[0] // module.groups
        blocks: Tensor = matrix.reshape(module.groups, shape[1], inputs, *shape[2:])
        return blocks.transpose(1, 2).reshape(shape)
    if name == "weight" and is_hugging_face_conv1d(module):
        return matrix.transpose(0, 1)
    return matrix.reshape(shape)
