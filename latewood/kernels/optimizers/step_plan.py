"""Whether the tensors of a step fit together, and which form carries each parameter's step out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from latewood.kernels.misfits import Misfit, memory_misfit
from latewood.kernels.optimizers import native_steps, triton_steps
from latewood.kernels.optimizers.fitting import Fit, fits
from latewood.kernels.optimizers.reference_steps import StepTensors, working_dtype

__all__ = ["Carrier", "Form", "StepPlan", "StepRequest", "parameter_name", "plan_step"]

Form = Literal["auto", "single", "foreach", "fused"]
Carrier = Literal["native", "triton", "single", "foreach"]

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
class StepRequest:
    """The step of one group of parameters, before anybody has looked at its tensors.

    Args:
        tensors, form, name: as `plan_step` takes them.
        counts: of the steps before this one, 0-dim float32 tensors to be counted up; or none.
    """

    tensors: StepTensors
    form: Form = "auto"
    name: Callable[[int], str] = parameter_name
    counts: list[Tensor] = field(default_factory=list)


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
    fused = form in ("auto", "fused")
    # Parameters are many and small next to a call: all of them are looked at in one.
    codes = fits(tensors) if fused else [Fit.NOT_AT_ALL] * count
    if codes is None and native_steps.exists():
        return StepPlan(tensors, ["native"] * count)
    carriers: list[Carrier] = []
    fastest: dict[tuple[torch.device, torch.dtype], Carrier | None] = {}
    for index, code in enumerate(codes or [Fit.FULLY] * count):
        if code != Fit.FULLY:
            _refuse_misfits(tensors, index, name)
        parameter, gradient = tensors.parameters[index], tensors.gradients[index]
        kind = (parameter.device, parameter.dtype)
        if kind not in fastest:
            fastest[kind] = _fused_carrier(*kind)
        # A copy in the precision of a narrower parameter would round the gradient once more.
        usable = code != Fit.NOT_AT_ALL and gradient.dtype == parameter.dtype
        carrier = fastest[kind] if usable else None
        carriers.append(carrier or _plain_carrier(parameter, form))
    return StepPlan(tensors, carriers)


def _fused_carrier(device: torch.device, dtype: torch.dtype) -> Carrier | None:
    if triton_steps.exists(device, dtype):
        return "triton"
    return "native" if device.type == "cpu" and native_steps.exists() else None


def _plain_carrier(parameter: Tensor, form: Form) -> Carrier:
    # Lists pay where launches cost: on the CPU they only add passes over memory.
    lists = form == "foreach" or (form == "auto" and parameter.is_cuda)
    return "foreach" if lists else "single"


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
