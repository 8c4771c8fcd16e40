"""The parameters of one step, and what belongs to each: gradient, count of steps, moments."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from latewood.errors import WorkError
from latewood.kernels.misfits import is_plain
from latewood.kernels.optimizers import StepTensors, working_dtype

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = [
    "MOMENTS",
    "ParameterBatch",
    "is_sharded",
    "local",
    "new_state",
    "restored",
    "with_gradients",
]

_layout = attrgetter("layout")

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
"""The names that moments have in a state, in the order in which kernels take them."""


@dataclass(slots=True)
class ParameterBatch:
    """The parameters of one group that take part in this step; entry k of all lists is one's.

    Args:
        group: the group.
        parameters, gradients: each at least one.
        steps: counts of the steps before this one; empty where the group counts none.
        moments: by name, those that the group keeps.
    """

    group: dict[str, Any]
    parameters: list[Tensor]
    gradients: list[Tensor]
    steps: list[Tensor]
    moments: dict[str, list[Tensor]]

    def tensors(self) -> StepTensors:
        """What the kernels work on: real numbers on this process, None for no moment."""
        absent = [None] * len(self.parameters)
        columns: list[Any] = [
            self.parameters, self.gradients, *(self.moments.get(name, absent) for name in MOMENTS)
        ]  # fmt: skip
        if not is_plain(*self.parameters) or any(map(Tensor.is_complex, self.parameters)):
            # That a gradient is to be conjugated may only stand beside its values.
            columns[1] = [gradient.resolve_conj() for gradient in self.gradients]
            columns = [[None if t is None else local(t) for t in column] for column in columns]
        return StepTensors(*columns)


def with_gradients(
    parameters: Iterable[Tensor], describe: Callable[[Tensor], str]
) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters that have a gradient, and their gradients.

    Args:
        parameters: of one group.
        describe: how an error calls a parameter's gradient.

    Raises:
        WorkError: a gradient that is sparse.
    """
    pairs = [(p, gradient) for p in parameters if (gradient := p.grad) is not None]
    gradients = [gradient for _, gradient in pairs]
    if set(map(_layout, gradients)) - {torch.strided}:
        for parameter, gradient in pairs:
            if gradient.layout != torch.strided:
                raise WorkError(
                    f"{describe(parameter)} is sparse; only dense gradients are supported "
                    "(embeddings: sparse=False)"
                )
    return [parameter for parameter, _ in pairs], gradients


def new_state(parameter: Tensor, moments: Iterable[str], *, on_device: bool) -> dict[str, Tensor]:
    """The state of a parameter before its first step: a count and moments, all 0.

    Args:
        parameter: of any kind.
        moments: their names.
        on_device: keep the count where the parameter is, not on the CPU.
    """
    # What is made in inference mode could not be changed outside of it.
    with torch.inference_mode(parameter.is_inference()):
        place = parameter.device if on_device else torch.device("cpu")
        count = torch.zeros((), dtype=torch.float32, device=place)
        dtype = working_dtype(parameter.dtype)
        zeros = {
            name: torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)
            for name in moments
        }
    return {"step": count, **zeros}


def restored(parameter: Tensor, name: str, value: Any, *, on_device: bool) -> Any:
    """A value of a loaded state, copied, in the precision that its name asks for."""
    if name == "step":
        place = parameter.device if on_device else torch.device("cpu")
        return torch.as_tensor(value, dtype=torch.float32).detach().to(place, copy=True)
    if not isinstance(value, Tensor):
        return value
    dtype = working_dtype(parameter.dtype) if name in MOMENTS else value.dtype
    return value.detach().to(parameter.device, dtype, copy=True)


def local(tensor: Tensor) -> Tensor:
    """The real numbers of a tensor that lie on this process; shares memory with it."""
    if is_sharded(tensor):
        tensor = tensor.to_local()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is a DTensor; does not import what defines them, which takes a second."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)
