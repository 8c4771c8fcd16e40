"""How much of a trained network each channel carries: the norms of its weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latewood.sparsity.structured.gates import Gate
from latewood.sparsity.structured.structure_spec import OwnedAxis, StructureSpec

__all__ = ["saliencies"]


def saliencies(
    spec: StructureSpec, gates: Sequence[Gate], present: Sequence[Tensor]
) -> list[Tensor]:
    """Squared norms of all that makes and reads a channel, over their mean in its group.

    ``sum |w_made|^2 + f^2 sum |w_read|^2`` with the channel's factor f, over the weight matrices.
    What is absent has no part in it: it comes after all that is there, by its logit.

    Args:
        spec: the tensors, as they are now.
        gates: of the groups.
        present: for each group which channels are there, bool (width,).

    Returns:
        For each group float32 (width,) on the CPU: 0 or more for what is there, below 0 for what is
        not.
    """
    totals = [torch.zeros(len(channels)) for channels in present]
    factors = [gate.factors().detach().float().cpu() for gate in gates]
    for tensor in spec.tensors.values():
        if not tensor.is_parameter or len(tensor.shape) < 2:
            continue
        squares = tensor.stored.detach().float().square()
        for axis in tensor.axes:
            for group, sums in _sums_by_channel(squares, axis, present):
                totals[group] += sums * factors[group] ** 2 if axis.reads else sums
    scores = []
    for gate, total, there in zip(gates, totals, present, strict=True):
        mean = total[there].mean().clamp_min(torch.finfo(total.dtype).tiny)
        behind = gate.logits.detach().float().cpu().sigmoid() - 1.0
        scores.append(torch.where(there, total / mean, behind))
    return scores


def _sums_by_channel(
    squares: Tensor, axis: OwnedAxis, present: Sequence[Tensor]
) -> list[tuple[int, Tensor]]:
    """The sums over all other axes, by group and channel; 0 for what is absent."""
    others = [other for other in range(squares.ndim) if other != axis.axis]
    sums = torch.zeros(axis.size)
    sums[axis.positions(present)] = squares.sum(others).cpu()
    return [(group, sums[indices].sum(1)) for group, indices in axis.owners]
