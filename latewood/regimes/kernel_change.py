"""How far apart two tangent kernels are, in size and in direction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latewood.errors import invalid

__all__ = ["KernelDistance", "kernel_distance", "target_alignment"]


@dataclass(frozen=True)
class KernelDistance:
    """Two distances of a kernel from another.

    Args:
        relative: relK, the size of the difference relative to the first kernel.
        cosine: cosd, 1 minus their cosine: what scaling does not change.
    """

    relative: Tensor
    cosine: Tensor


def kernel_distance(start: Tensor, end: Tensor) -> KernelDistance:
    r"""How far a kernel has moved.

    .. math::
        \mathrm{relK} = \frac{|K_T - K_0|_F}{|K_0|_F}, \qquad
        \mathrm{cosd} = 1 - \frac{\langle K_0, K_T \rangle}{|K_0|_F |K_T|_F}

    In float64, and cosd from the difference of the normalised kernels, so that it does not cancel.
    Kernels computed in float32 are themselves good to about 1e-6 of relK and 1e-12 of cosd.

    Args:
        start: (..., N1, N2), K_0.
        end: the same shape, K_T.

    Returns:
        Both distances, (...), float64; NaN where a kernel is zero.

    Raises:
        RequestError: shapes that differ or have fewer than two dimensions.
    """
    if start.shape != end.shape or start.ndim < 2:
        raise invalid("end", tuple(end.shape), f"the shape of start, {tuple(start.shape)}, of 2-d")
    before, after = start.double().flatten(-2), end.double().flatten(-2)
    size_before = torch.linalg.vector_norm(before, dim=-1)
    size_after = torch.linalg.vector_norm(after, dim=-1)
    relative = torch.linalg.vector_norm(after - before, dim=-1) / size_before
    apart = before / size_before[..., None] - after / size_after[..., None]
    return KernelDistance(relative, apart.square().sum(-1) / 2)


def target_alignment(kernel: Tensor, targets: Tensor) -> Tensor:
    r"""How much of a kernel points at the targets: :math:`\langle Y Y^T, K \rangle / |YY^T| |K|`.

    Args:
        kernel: (..., N, N).
        targets: (N,) or (N, C), Y.

    Returns:
        (...), float64, at most 1.

    Raises:
        RequestError: shapes that do not fit.
    """
    columns = targets.double()[:, None] if targets.ndim == 1 else targets.double()
    if columns.ndim != 2 or kernel.shape[-2:] != (len(columns), len(columns)):
        raise invalid(
            "targets", tuple(targets.shape), f"(N,) or (N, C) for a kernel {tuple(kernel.shape)}"
        )
    matrix = kernel.double()
    along = (columns * (matrix @ columns)).sum((-2, -1))
    own = torch.linalg.matrix_norm(columns.T @ columns)
    alignment: Tensor = along / (own * torch.linalg.matrix_norm(matrix))
    return alignment
