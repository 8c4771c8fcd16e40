"""Chooses between compiled kernels and their plain-torch references, so that callers never do."""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from latewood.errors import invalid

__all__ = ["native", "native_for", "tensors_are_virtual"]

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
        module = importlib.import_module("latewood.kernels._native")
        module.attach(Tensor, Parameter, _tensor_functions())
    except (ImportError, OSError, AttributeError) as error:
        warnings.warn(
            f"the compiled kernels cannot be loaded ({error}); the reference kernels run instead: "
            "same results, slower. Reinstall with a C++17 compiler to get them, or set "
            f"{_VARIABLE}=reference to silence this",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    return module


def _tensor_functions() -> dict[str, int]:
    """Addresses of the C functions through which torch tells what a tensor is."""
    name = {"darwin": "libtorch_cpu.dylib", "win32": "torch_cpu.dll"}.get(
        sys.platform, "libtorch_cpu.so"
    )
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))
    addresses = {}
    for function in _TENSOR_FUNCTIONS:
        pointer = ctypes.cast(getattr(library, f"aoti_torch_{function}"), ctypes.c_void_p)
        addresses[function] = pointer.value or 0
    return addresses


_TENSOR_FUNCTIONS = (
    *("get_data_ptr", "get_dim", "get_numel", "get_storage_offset", "get_storage_size"),
    *("get_sizes", "get_strides", "get_dtype", "get_device_type", "get_device_index"),
    *("get_layout",),
    *("device_type_cpu", "layout_strided", "dtype_float32", "dtype_float64", "dtype_bfloat16"),
    *("dtype_float16", "dtype_int64", "dtype_int32", "dtype_uint8", "dtype_bool"),
)


def tensors_are_virtual() -> bool:
    """Whether tensors may stand for others now, or carry more than their memory shows.

    They are traced, transformed, seen by a dispatch mode, or may have tangents.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or is_in_torch_dispatch_mode()
        or forward_ad._current_level >= 0
    )


def native_for(*tensors: Tensor) -> ModuleType | None:
    """The compiled kernels if they can work on these tensors' memory now, else None.

    They need float32 on the CPU, one shape, one common dense layout, and real memory: not while
    torch.compile traces (the compiler fuses the reference itself), nor inside torch.func transforms
    or dispatch modes, whose tensors have no memory of their own, nor where tensors have tangents.

    Args:
        tensors: the inputs.
    """
    if tensors_are_virtual():
        return None
    module = native()
    return module if module is not None and module.alike(*tensors) else None
