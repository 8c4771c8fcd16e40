"""Gamma, the number that normalises AvaGrad's rates: 1 over their root mean square."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor

from latewood.kernels.optim import Number

__all__ = ["normaliser", "over_shards", "untouched_dominate"]


def normaliser(
    sums: Sequence[Number],
    sizes: Sequence[int],
    active: Sequence[bool | Tensor],
    process_group: ProcessGroup | None = None,
) -> Number:
    r"""One normaliser for a set of tensors.

    .. math::
        \gamma = \sqrt{d / \textstyle\sum_i \eta_i^2} = 1 / \mathrm{RMS}(\eta)

    Args:
        sums: sum of squared rates of each tensor.
        sizes: its number of elements.
        active: whether it counts; where none does, all do.
        process_group: processes that hold other tensors and count together with this one.

    Returns:
        gamma; a tensor if any of ``sums`` or ``active`` is one.

    Source: arXiv 1912.01823, Algorithm 2.
    """
    some_sum: Number = 0.0
    some_size: Number = 0.0
    every_sum: Number = 0.0
    every_size: Number = 0.0
    for total, size, counts in zip(sums, sizes, active, strict=True):
        some_sum, some_size = some_sum + total * counts, some_size + size * counts
        every_sum, every_size = every_sum + total, every_size + size
    if process_group is not None:
        values = (some_sum, some_size, every_sum, every_size)
        some_sum, some_size, every_sum, every_size = _all_reduce(values, process_group)
    if isinstance(some_size, Tensor):
        some_sum = torch.where(some_size > 0, some_sum, every_sum)
        some_size = torch.where(some_size > 0, some_size, every_size)
    elif some_size == 0:
        some_sum, some_size = every_sum, every_size
    gamma: Number = (some_size / some_sum) ** 0.5
    return gamma


def over_shards(parameters: Sequence[Tensor], sums: Sequence[Number]) -> list[Number]:
    """Turns sums over this process's shards into sums over whole tensors.

    Replicated dimensions count once. Processes whose shard is empty take part with 0.

    Args:
        parameters: plain tensors or DTensors; all processes pass the same list.
        sums: one number per parameter, over its local elements.

    Returns:
        One number per parameter, equal on all processes that share it.
    """
    totals = list(sums)
    places: dict[tuple[object, tuple[int, ...]], list[int]] = {}
    for index, parameter in enumerate(parameters):
        if isinstance(parameter, DTensor):
            split = tuple(d for d, p in enumerate(parameter.placements) if not p.is_replicate())
            places.setdefault((parameter.device_mesh, split), []).append(index)
    for (_, split), indices in places.items():
        values: tuple[Number, ...] = tuple(totals[index] for index in indices)
        parameter = parameters[indices[0]]
        assert isinstance(parameter, DTensor)
        for dimension in split:
            group = parameter.device_mesh.get_group(dimension)
            values = _all_reduce(values, group, parameter.to_local().device)
        for index, value in zip(indices, values, strict=True):
            totals[index] = value
    return totals


def untouched_dominate(
    moments: Sequence[Tensor], sums: Sequence[Number], eps: Sequence[float]
) -> bool:
    """Whether coordinates that never had a gradient pull gamma below a tenth of what it would be.

    Args:
        moments: second moments, one tensor each.
        sums: sum of squared rates of each.
        eps: of each.
    """
    zeros = [int((moment == 0).sum()) for moment in moments]
    touched = sum(moment.numel() for moment in moments) - sum(zeros)
    total = sum(float(value) for value in sums)
    others = total - sum(count / e**2 for count, e in zip(zeros, eps, strict=True))
    if touched == 0 or not any(zeros):
        return False
    share = (touched + sum(zeros)) / total
    # Rounding can leave nothing of a small rest; the collapse is then beyond doubt.
    return others <= 0.0 or share < 0.01 * touched / others


def _all_reduce(
    values: Sequence[Number], group: ProcessGroup, device: torch.device | None = None
) -> tuple[Number, ...]:
    tensors = [value for value in values if isinstance(value, Tensor)]
    if device is None:
        device = tensors[0].device if tensors else torch.device("cpu")
    packed = torch.stack(
        [torch.as_tensor(value, dtype=torch.float64, device=device) for value in values]
    )
    dist.all_reduce(packed, group=group)
    return tuple(packed.unbind()) if tensors else tuple(packed.tolist())
