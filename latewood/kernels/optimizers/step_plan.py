"""Whether the tensors of a step fit together, and which form carries each parameter's step out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from types import NoneType
from typing import Any, Literal

import torch
from torch import Tensor

from latewood.kernels.dispatch import tensors_are_virtual
from latewood.kernels.misfits import Misfit, is_plain, memory_misfit
from latewood.kernels.optimizers import native_steps, triton_steps
from latewood.kernels.optimizers.reference_steps import StepTensors, working_dtype

__all__ = ["Carrier", "Form", "StepPlan", "parameter_name", "plan_step"]

Form = Literal["auto", "single", "foreach", "fused"]
Carrier = Literal["native", "triton", "single", "foreach"]

_dtype, _device, _bytes = attrgetter("dtype"), attrgetter("device"), attrgetter("nbytes")
_NAMES = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
_CONVERTED = (
    "now; if the model was converted between two steps, "
    "optimizer.load_state_dict(optimizer.state_dict()) converts the state too"
)
_REPLACED = "was the parameter replaced, or the state loaded from another layer?"


def parameter_name(index: int) -> str:
    """What errors call the parameter of an entry that nobody has named."""
    return f"parameter {index}"


@dataclass(slots=True)
class StepPlan:
    """Tensors that fit together, and who carries out the step of each parameter."""

    tensors: StepTensors
    carriers: list[Carrier]


def plan_step(
    tensors: StepTensors, form: Form = "auto", name: Callable[[int], str] = parameter_name
) -> StepPlan:
    """Looks at every tensor of a step before anything is written.

    Args:
        tensors: what the step reads and writes.
        form: "auto" takes the fastest form that each tensor allows; "fused" does too, but falls
            back on single tensors; "single" and "foreach" are plain torch.
        name: what errors call the parameter of an entry.

    Returns:
        The plan, for the step that follows at once.

    Raises:
        RequestError: a gradient or a moment that does not belong to its parameter (shape, device,
            precision), elements that share memory, memory that is not there.
    """
    count = len(tensors.parameters)
    if torch.compiler.is_compiling():
        return StepPlan(tensors, ["single"] * count)
    native = form in ("auto", "fused") and native_steps.exists()
    # Parameters are many and small next to a call: all of them are looked at in one.
    fits = native_steps.fits_native(tensors) if native else [False] * count
    if fits is None:
        return StepPlan(tensors, ["native"] * count)
    plain = _all_plain(tensors)
    if not plain:
        for index in range(count):
            _refuse_misfits(tensors, index, name)
    carriers = [
        "native" if fit else _carrier(tensors, index, form, plain) for index, fit in enumerate(fits)
    ]
    return StepPlan(tensors, carriers)


def _carrier(tensors: StepTensors, index: int, form: Form, plain: bool) -> Carrier:
    parameter = tensors.parameters[index]
    if form in ("auto", "fused") and triton_steps.exists(parameter.device, parameter.dtype):
        moments = [column[index] for column in tensors.moments()]
        if plain or triton_steps.fits_triton(parameter, tensors.gradients[index], moments):
            return "triton"
    # Lists pay where launches cost: on the CPU they only add passes over memory.
    lists = form == "foreach" or (form == "auto" and parameter.is_cuda)
    return "foreach" if lists else "single"


def _all_plain(tensors: StepTensors) -> bool:
    """Whether everything is of the common kind, which fits; asked once for all, as that is quick.

    The common kind: contiguous tensors of one device that fill their storage, in the shape and the
    precision that belong to the parameter.
    """
    moments = [column for column in tensors.moments() if set(map(type, column)) != {NoneType}]
    columns: list[Any] = [tensors.parameters, tensors.gradients, *moments]
    everything = list(chain.from_iterable(columns))
    if tensors_are_virtual() or not is_plain(*everything):
        return False
    dtypes = list(map(_dtype, tensors.parameters))
    wide = list(map(working_dtype, dtypes))
    try:
        shapes = list(map(Tensor.size, tensors.parameters))
        held = list(map(torch.UntypedStorage.nbytes, map(Tensor.untyped_storage, everything)))
        return (
            all(list(map(Tensor.size, column)) == shapes for column in columns)
            and list(map(_dtype, tensors.gradients)) == dtypes
            and all(list(map(_dtype, column)) == wide for column in moments)
            and len(set(map(_device, everything))) == 1
            and all(map(Tensor.is_contiguous, everything))
            and held == list(map(_bytes, everything))
            and not any(map(Tensor.storage_offset, everything))
        )
    except RuntimeError:
        # What is sparse, nested or opaque has no sizes or no storage.
        return False


def _refuse_misfits(tensors: StepTensors, index: int, name: Callable[[int], str]) -> None:
    parameter, gradient = tensors.parameters[index], tensors.gradients[index]
    misfit = memory_misfit(parameter) or _sharing_misfit(parameter)
    if misfit is not None:
        raise misfit.error(name(index))
    misfit = _misfit(gradient, parameter)
    if misfit is None and gradient.is_complex() and not parameter.is_complex():
        misfit = Misfit("dtype", gradient.dtype, "real numbers, as its parameter has")
    if misfit is not None:
        raise misfit.error(f"gradient of {name(index)}")
    dtype = working_dtype(parameter.dtype)
    for key, moments in zip(_NAMES, tensors.moments(), strict=True):
        moment = moments[index]
        if moment is None:
            continue
        misfit = _misfit(moment, parameter)
        if misfit is None and moment.dtype != dtype:
            misfit = Misfit("dtype", moment.dtype, f"{dtype}, as its parameter has {_CONVERTED}")
        misfit = misfit or _sharing_misfit(moment)
        if misfit is not None:
            raise misfit.error(f"state of {name(index)} ({key!r})")


def _misfit(tensor: object, parameter: Tensor) -> Misfit | None:
    """Why a gradient or a moment does not belong to its parameter, if it does not."""
    if not isinstance(tensor, Tensor):
        return Misfit("value", tensor, "a tensor of the shape of its parameter")
    if tensor.shape != parameter.shape:
        shape = tuple(parameter.shape)
        return Misfit("shape", tuple(tensor.shape), f"that of its parameter, {shape}; {_REPLACED}")
    if tensor.device != parameter.device:
        return Misfit("device", str(tensor.device), f"that of its parameter, {parameter.device}")
    return memory_misfit(tensor)


def _sharing_misfit(tensor: Tensor) -> Misfit | None:
    strides = tuple(tensor.stride())
    if any(n > 1 and stride == 0 for n, stride in zip(tensor.shape, strides, strict=True)):
        return Misfit("strides", strides, "a place in memory for each element; clone() it")
    return None
