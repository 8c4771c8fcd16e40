"""Gamma, the number that normalises AvaGrad's rates: 1 over their root mean square."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import compress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latewood.errors import WorkError
from latewood.kernels.misfits import is_plain
from latewood.kernels.optimizers import Number
from latewood.optim.parameter_batch import is_sharded

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

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
        gamma; a tensor if any of ``sums`` or ``active`` is one; 1 where no tensor has an element.

    Raises:
        WorkError: the sum is 0, as the rates are too small for their precision.

    Source: arXiv 1912.01823, Algorithm 2.
    """
    some, every = _pair(sums, sizes, active), _pair(sums, sizes, None)
    if process_group is not None:
        values = _all_reduce((*some, *every), process_group)
        some, every = (values[0], values[1]), (values[2], values[3])
    if isinstance(some[1], Tensor):
        moving = some[1] > 0
        rates = torch.where(moving, some[0], every[0])
        counted = torch.where(moving, some[1], every[1])
        return torch.where(counted > 0, counted / rates, 1.0).sqrt()
    total, size = some if some[1] > 0 else every
    if size == 0.0:
        # Only tensors without elements, which no factor moves.
        return 1.0
    # A compiled graph does not know the number yet, and would end here.
    if not torch.compiler.is_compiling() and total == 0.0:
        raise WorkError(
            "AvaGrad: every squared rate is 0 in this precision; eps or the gradients are too large"
        )
    gamma: Number = (size / total) ** 0.5
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
    if is_plain(*parameters):
        return totals
    places: dict[tuple[object, tuple[int, ...]], list[int]] = {}
    for index, parameter in enumerate(parameters):
        if is_sharded(parameter):
            split = tuple(d for d, p in enumerate(parameter.placements) if not p.is_replicate())
            places.setdefault((parameter.device_mesh, split), []).append(index)
    for (_, split), indices in places.items():
        values: tuple[Number, ...] = tuple(totals[index] for index in indices)
        parameter = parameters[indices[0]]
        assert is_sharded(parameter)
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
    if touched == 0 or not any(zeros):
        return False
    if math.isinf(total):
        # Squares of 1/eps were too large for float32, and gamma is 0.
        return True
    others = total - sum(count / e**2 for count, e in zip(zeros, eps, strict=True))
    share = (touched + sum(zeros)) / total
    # Rounding can leave nothing of a small rest; the collapse is then beyond doubt.
    return others <= 0.0 or share < 0.01 * touched / others


def _pair(
    sums: Sequence[Number], sizes: Sequence[int], active: Sequence[bool | Tensor] | None
) -> tuple[Number, Number]:
    """Sum of squared rates and number of elements of the active tensors, by default of all."""
    if active is None or all(flag is True for flag in active):
        return _add(sums), float(sum(sizes))
    flags = [flag for flag in active if isinstance(flag, Tensor)]
    if not flags:
        return _add(list(compress(sums, active))), float(sum(compress(sizes, active)))
    weights = torch.stack(flags).double()
    counts = torch.tensor(sizes, dtype=torch.float64, device=weights.device)
    totals = torch.stack([torch.as_tensor(t, device=weights.device) for t in sums])
    return (totals * weights).sum(), (counts * weights).sum()


def _add(values: Sequence[Number]) -> Number:
    if set(map(type, values)) <= {float, int}:
        return float(sum(values))
    tensors = [value for value in values if isinstance(value, Tensor)]
    # One launch for all of them; a model may be spread over several devices.
    device = tensors[0].device
    return torch.stack([torch.as_tensor(value, device=device) for value in values]).double().sum()


def _all_reduce(
    values: Sequence[Number], group: ProcessGroup, device: torch.device | None = None
) -> tuple[Number, ...]:
    tensors = [value for value in values if isinstance(value, Tensor)]
    if device is None:
        device = tensors[0].device if tensors else torch.device("cpu")
    packed = torch.stack(
        [torch.as_tensor(value, dtype=torch.float64, device=device) for value in values]
    )
    torch.distributed.all_reduce(packed, group=group)
    return tuple(packed.unbind()) if tensors else tuple(packed.tolist())
