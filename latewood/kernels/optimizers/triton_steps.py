"""The update rules on a GPU: all tensors in one launch, found through a table of addresses."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from latewood.kernels.optimizers.reference_steps import (
    Number,
    Rates,
    Rule,
    Scalars,
    StepTensors,
    working_dtype,
)

__all__ = ["accepted", "exists", "rate_sums_triton", "step_triton"]

_RULES = {"momentum": 0, "delayed": 1, "bounded": 2}
_RATES = {"none": 0, "old": 1, "new": 2}
_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Elements a program works on; one sum of squared rates comes from each.
_BLOCK = 1024


def exists(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the Triton form can run for this device and precision."""
    return device.type == "cuda" and dtype in _TYPES and _kernels() is not None


@functools.cache
def _kernels() -> ModuleType | None:
    # Not before a GPU tensor asks for it: Triton takes long to import.
    try:
        return importlib.import_module("latewood.kernels.optimizers.triton_programs")
    except ImportError:
        return None


def accepted(entries: Sequence[StepTensors]) -> list[int]:
    """Indices of the entries whose memory the Triton form can work on."""
    return [index for index, entry in enumerate(entries) if _accepts(entry)]


def _accepts(entry: StepTensors) -> bool:
    parameter = entry.parameter
    moments = (entry.exp_avg, entry.exp_avg_sq, entry.max_exp_avg_sq)
    return (
        exists(parameter.device, parameter.dtype)
        and type(parameter) in (Tensor, Parameter)
        and torch.ops.aten.is_non_overlapping_and_dense.default(parameter)
        and all(m is None or m.stride() == parameter.stride() for m in moments)
    )


def step_triton(rule: Rule, entries: Sequence[StepTensors], rates: Rates = "none") -> list[Number]:
    """`step_reference` of every entry, in place; see there. Never waits for the device.

    Args:
        rule: the update rule.
        entries: those that `accepted` names.
        rates: which second moments a delayed step sums the squared rates of.

    Returns:
        One sum per entry, a 0-dim float64 tensor: blocks of 1024 elements are added in float64 in a
        fixed order.
    """
    sums: list[Number] = [0.0] * len(entries)
    kinds: dict[object, list[int]] = {}
    for index, entry in enumerate(entries):
        stored = entry.parameter
        key = (stored.device, stored.dtype, entry.exp_avg is None, entry.max_exp_avg_sq is None)
        kinds.setdefault(key, []).append(index)
    for indices in kinds.values():
        totals = _step(rule, [entries[index] for index in indices], rates)
        for index, total in zip(indices, totals, strict=True):
            sums[index] = total
    return sums


def _step(rule: Rule, entries: list[StepTensors], rates: Rates) -> Sequence[Number]:
    device = entries[0].parameter.device
    parameters = [entry.parameter for entry in entries]
    # A copied gradient lives until the launch is queued; its memory is not reused before it ran.
    gradients = [_like(entry.gradient, entry.parameter) for entry in entries]
    rows: dict[int, int] = {}
    addresses = []
    for entry, gradient in zip(entries, gradients, strict=True):
        moments = (entry.exp_avg, entry.exp_avg_sq, entry.max_exp_avg_sq)
        addresses.append(
            [
                entry.parameter.data_ptr(),
                gradient.data_ptr(),
                *(0 if moment is None else moment.data_ptr() for moment in moments),
                rows.setdefault(id(entry.scalars), len(rows)),
            ]
        )
    distinct = {id(entry.scalars): entry.scalars for entry in entries}
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
            HAS_MOMENT=entries[0].exp_avg is not None,
            HAS_PEAK=entries[0].max_exp_avg_sq is not None,
            STORED=_triton_type(parameters[0].dtype),
            WORKING=_triton_type(working_dtype(parameters[0])),
            BLOCK=_BLOCK,
        )
    torch.autograd.graph.increment_version(parameters)
    return [0.0] * len(entries) if rates == "none" else _totals(blocks, sums)


def rate_sums_triton(
    moments: Sequence[Tensor], corrections: Sequence[Number], eps: Sequence[float]
) -> list[Number] | None:
    """`rate_sum_reference` of every tensor, rounded as `step_triton` rounds; None if it cannot.

    Args:
        moments: second moments.
        corrections: 1/sqrt of the bias correction of each.
        eps: of each.
    """
    alike = {(moment.device, moment.dtype) for moment in moments}
    numeric = not any(isinstance(correction, Tensor) for correction in corrections)
    if len(alike) != 1 or not numeric or not exists(*next(iter(alike))):
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


def _like(gradient: Tensor, parameter: Tensor) -> Tensor:
    if gradient.dtype == parameter.dtype and gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter, requires_grad=False).copy_(gradient)


def _launch() -> ModuleType:
    kernels = _kernels()
    assert kernels is not None
    return kernels


def _triton_type(dtype: torch.dtype) -> Any:
    return getattr(_launch().tl, str(dtype).removeprefix("torch."))
