"""The update rules on a GPU: all tensors in one launch, found through a table of addresses."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from latewood.kernels.dispatch import tensors_are_virtual
from latewood.kernels.optimizers.fitting import (
    TYPES,
    Fit,
    fits,
    gradient_like,
    has_own_memory,
)
from latewood.kernels.optimizers.reference_steps import (
    Number,
    Rates,
    Scalars,
    StepTensors,
    UpdateRule,
    working_dtype,
)

__all__ = ["exists", "rate_sums_triton", "step_triton"]

_RULES = {"momentum": 0, "delayed": 1, "bounded": 2}
_RATES = {"none": 0, "old": 1, "new": 2}
# Elements a program works on; one sum of squared rates comes from each.
_BLOCK = 1024


def exists(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the Triton form can run for this device and precision."""
    return device.type == "cuda" and dtype in TYPES and _kernels() is not None


@functools.cache
def _kernels() -> ModuleType | None:
    # Not before a GPU tensor asks for it: Triton takes long to import.
    try:
        return importlib.import_module("latewood.kernels.optimizers.triton_programs")
    except ImportError:
        return None


def step_triton(
    rule: UpdateRule, tensors: StepTensors, scalars: Sequence[Scalars], rates: Rates = "none"
) -> list[Number]:
    """`step_reference` of every parameter, in place; see there. Never waits for the device.

    Args:
        rule: the update rule.
        tensors: those that `latewood.kernels.optimizers.plan_step` leaves to the Triton form.
        scalars: the numbers of each parameter.
        rates: which second moments a delayed step sums the squared rates of.

    Returns:
        One sum per parameter, a 0-dim float64 tensor: blocks of 1024 elements are added in float64
        in a fixed order.

    Raises:
        ValueError: tensors of one entry that do not fit each other; nothing was written.
    """
    _check(rule, tensors)
    sums: list[Number] = [0.0] * len(scalars)
    kinds: dict[object, list[int]] = {}
    columns = (tensors.parameters, tensors.exp_avgs, tensors.max_exp_avg_sqs)
    for index, (stored, first, peak) in enumerate(zip(*columns, strict=True)):
        key = (stored.device, stored.dtype, first is None, peak is None)
        kinds.setdefault(key, []).append(index)
    for indices in kinds.values():
        numbers = [scalars[index] for index in indices]
        totals = _step(rule, tensors.select(indices), numbers, rates)
        for index, total in zip(indices, totals, strict=True):
            sums[index] = total
    return sums


def _check(rule: UpdateRule, tensors: StepTensors) -> None:
    """The last look before addresses leave: a program reads as far as its parameter is long."""
    if Fit.NOT_AT_ALL in (fits(tensors) or ()):
        raise ValueError("a tensor does not fit its parameter")
    first, second, _ = tensors.moments()
    if rule != "momentum" and any(moment is None for moment in (*first, *second)):
        raise ValueError(f"the rule {rule!r} needs both moments of every parameter")


def _step(
    rule: UpdateRule, tensors: StepTensors, scalars: list[Scalars], rates: Rates
) -> Sequence[Number]:
    parameters = tensors.parameters
    device = parameters[0].device
    # A copied gradient lives until the launch is queued; its memory is not reused before it ran.
    gradients = list(map(gradient_like, tensors.gradients, parameters))
    rows: dict[int, int] = {}
    addresses = [
        [
            parameter.data_ptr(),
            gradient.data_ptr(),
            *(0 if moment is None else moment.data_ptr() for moment in moments),
            rows.setdefault(id(numbers), len(rows)),
            -1 if key is None else int(key),
        ]
        for parameter, gradient, *moments, numbers, key in zip(
            parameters, gradients, *tensors.moments(), scalars, tensors.rounding_keys(), strict=True
        )
    ]
    distinct = {id(numbers): numbers for numbers in scalars}
    blocks = _blocks(tuple(parameter.numel() for parameter in parameters), device)
    sums = torch.empty(len(blocks.tensors), dtype=torch.float64, device=device)
    if len(sums):
        _launch().step_kernel[(len(sums),)](
            _table(addresses, torch.int64, device),
            blocks.sizes,
            blocks.tensors,
            blocks.offsets,
            _numbers([distinct[key] for key in rows], device),
            sums,
            RULE=_RULES[rule],
            RATES=_RATES[rates],
            HAS_MOMENT=tensors.exp_avgs[0] is not None,
            HAS_PEAK=tensors.max_exp_avg_sqs[0] is not None,
            AT_RANDOM=any(row[-1] >= 0 for row in addresses),
            STORED=_triton_type(parameters[0].dtype),
            WORKING=_triton_type(working_dtype(parameters[0].dtype)),
            BLOCK=_BLOCK,
        )
    torch.autograd.graph.increment_version(parameters)
    return [0.0] * len(parameters) if rates == "none" else _totals(blocks, sums)


def rate_sums_triton(
    moments: Sequence[Tensor], corrections: Sequence[Number], eps: Sequence[float]
) -> list[Number] | None:
    """`rate_sum_reference` of every tensor, rounded as `step_triton` rounds; None if it cannot.

    Args:
        moments: second moments.
        corrections: 1/sqrt of the bias correction of each.
        eps: of each.
    """
    if not all(map(has_own_memory, moments)):
        return None
    alike = {(moment.device, moment.dtype) for moment in moments}
    numeric = not any(isinstance(correction, Tensor) for correction in corrections)
    if len(alike) != 1 or not numeric or tensors_are_virtual():
        return None
    device, dtype = next(iter(alike))
    if dtype not in (torch.float32, torch.float64) or not exists(device, dtype):
        return None
    return list(_rate_sums(moments, corrections, eps))


def _rate_sums(
    moments: Sequence[Tensor], corrections: Sequence[Number], eps: Sequence[float]
) -> Sequence[Tensor]:
    device, dtype = moments[0].device, moments[0].dtype
    blocks = _blocks(tuple(moment.numel() for moment in moments), device)
    sums = torch.empty(len(blocks.tensors), dtype=torch.float64, device=device)
    if len(sums):
        numbers = [[float(c), float(e)] for c, e in zip(corrections, eps, strict=True)]
        _launch().rates_kernel[(len(sums),)](
            _table([moment.data_ptr() for moment in moments], torch.int64, device),
            blocks.sizes,
            blocks.tensors,
            blocks.offsets,
            _table(numbers, torch.float64, device),
            sums,
            WORKING=_triton_type(dtype),
            BLOCK=_BLOCK,
        )
    return _totals(blocks, sums)


class _Blocks:
    """Which tensor, and which elements of it, each program of a launch works on."""

    def __init__(self, sizes: tuple[int, ...], device: torch.device) -> None:
        counts = torch.tensor([-(-size // _BLOCK) for size in sizes])
        ends = counts.cumsum(0)
        tensors = torch.arange(len(sizes)).repeat_interleave(counts)
        offsets = (torch.arange(int(counts.sum())) - (ends - counts)[tensors]) * _BLOCK
        self.count = len(sizes)
        self.longest = int(counts.max()) if len(sizes) else 0
        self.sizes = torch.tensor(sizes, dtype=torch.int64).to(device)
        self.tensors, self.offsets = tensors.to(device), offsets.to(device)
        self.starts, self.counts = (ends - counts).to(device), counts.to(device)


@functools.lru_cache(maxsize=16)
def _blocks(sizes: tuple[int, ...], device: torch.device) -> _Blocks:
    return _Blocks(sizes, device)


def _totals(blocks: _Blocks, sums: Tensor) -> Sequence[Tensor]:
    totals = torch.zeros(blocks.count, dtype=torch.float64, device=sums.device)
    if blocks.longest:
        kernel = _launch().total_kernel[(blocks.count,)]
        rounds = -(-blocks.longest // _BLOCK)
        kernel(sums, blocks.starts, blocks.counts, totals, LONGEST=rounds, BLOCK=_BLOCK)
    return totals.unbind()


def _numbers(distinct: list[Scalars], device: torch.device) -> Tensor:
    # Numbers that already are on the device are copied there, not read back.
    plain = [[0.0 if isinstance(n, Tensor) else float(n) for n in row] for row in distinct]
    table = _table(plain, torch.float64, device)
    for row, scalars in enumerate(distinct):
        for column, value in enumerate(scalars):
            if isinstance(value, Tensor):
                table[row, column] = value
    return table


def _table(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    on_gpu = device.type == "cuda"
    return torch.tensor(values, dtype=dtype, pin_memory=on_gpu).to(device, non_blocking=True)


def _launch() -> ModuleType:
    kernels = _kernels()
    assert kernels is not None
    return kernels


def _triton_type(dtype: torch.dtype) -> Any:
    return getattr(_launch().tl, str(dtype).removeprefix("torch."))
