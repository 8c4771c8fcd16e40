"""Chooses between compiled kernels and their plain-torch references, so that callers never do."""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from latewood.errors import invalid

__all__ = ["native", "native_for"]

_VARIABLE = "LATEWOOD_KERNELS"


def native() -> ModuleType | None:
    """The module of compiled kernels, or None where the references have to do the work.

    The environment variable ``LATEWOOD_KERNELS=reference`` asks for the references. A module that
    cannot be loaded is reported by one warning per process.

    Raises:
        RequestError: if ``LATEWOOD_KERNELS`` has an unknown value.
    """
    choice = os.environ.get(_VARIABLE, "")
    if choice == "reference":
        return None
    if choice not in ("", "native"):
        raise invalid(_VARIABLE, choice, "'reference', 'native', or the variable unset")
    return _load()


@functools.cache
def _load() -> ModuleType | None:
    try:
        return importlib.import_module("latewood.kernels._native")
    except ImportError as error:
        warnings.warn(
            f"the compiled kernels cannot be loaded ({error}); the reference kernels run instead: "
            "same results, slower. Reinstall with a C++17 compiler to get them, or set "
            f"{_VARIABLE}=reference to silence this",
            RuntimeWarning,
            stacklevel=3,
        )
        return None


def native_for(*tensors: Tensor) -> ModuleType | None:
    """The compiled kernels if they can work on these tensors' memory now, else None.

    They need float32 on the CPU, one common dense layout, and real memory: not while torch.compile
    traces (the compiler fuses the reference itself), nor inside torch.func transforms or dispatch
    modes, whose tensors have no memory of their own.

    Args:
        tensors: the inputs, all of the same shape.
    """
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return None
    if torch._C._are_functorch_transforms_active() or is_in_torch_dispatch_mode():
        return None
    first = tensors[0]
    for tensor in tensors:
        if (
            tensor.dtype is not torch.float32
            or type(tensor) not in (Tensor, Parameter)
            or tensor.device.type != "cpu"
            or tensor.stride() != first.stride()
        ):
            return None
    return native() if _is_dense(first) else None


def _is_dense(tensor: Tensor) -> bool:
    if tensor.is_contiguous():
        return True
    if tensor.dim() == 4:
        return tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor.dim() == 5 and tensor.is_contiguous(memory_format=torch.channels_last_3d)
