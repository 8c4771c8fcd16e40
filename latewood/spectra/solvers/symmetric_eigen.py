"""Symmetric eigenvalue problems in scipy's LAPACK: without Python's lock, on threads of their own.

scipy's own wrappers of these routines keep Python's lock, so that a worker thread would stop the
training it runs beside; called through their addresses they do not.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

__all__ = [
    "LapackError",
    "add_lower_product",
    "blas_threads",
    "symmetric_spectrum",
    "write_product",
]

Array = NDArray[np.float64]

# One letter per argument: c for a text, i for integers, d for numbers in float64.
_ARGUMENTS = {
    "dsyrk": "cciiddiddi",
    "dgemm": "cciiiddididdi",
    "dsytrd": "cididdddii",
    "dsterf": "iddi",
    "dstemr": "cciddddiiiddiiiidiiii",
    "dormtr": "ccciididdidii",
}


class LapackError(RuntimeError):
    """A routine of LAPACK that is not there, or that did not converge."""


def add_lower_product(result: Array, stored: Array, *, transposed: bool) -> None:
    r"""Adds the lower triangle of :math:`X^T X`, with half of a product's multiplications.

    Args:
        result: (n, n) in Fortran's order; entries above the diagonal are left alone.
        stored: C-contiguous; X, or its transpose.
        transposed: whether X is ``stored.T``.

    Raises:
        LapackError: scipy was built in a way that hides the routine.
    """
    # What is C-contiguous here is its transpose to Fortran.
    columns, rows = stored.shape[::-1]
    size, depth = (rows, columns) if transposed else (columns, rows)
    operation = b"T" if transposed else b"N"
    lead = max(1, columns)
    _call("dsyrk", b"L", operation, size, depth, 1.0, stored, lead, 1.0, result, max(1, size))


def write_product(result: Array, stored: Array, vectors: Array, *, transposed: bool) -> None:
    r"""Writes :math:`X V` into some rows of a matrix.

    Args:
        result: (m, k), rows of a matrix in Fortran's order.
        stored: C-contiguous; X (m, n), or its transpose.
        vectors: V, (n, k) in Fortran's order.
        transposed: whether X is ``stored.T``.

    Raises:
        LapackError: scipy was built in a way that hides the routine.
    """
    (rows, count), size = result.shape, len(vectors)
    operation = b"N" if transposed else b"T"
    lead, stride = max(1, stored.shape[1]), max(rows, result.strides[1] // result.itemsize)
    _call(
        *("dgemm", operation, b"N", rows, count, size, 1.0, stored, lead, vectors, size),
        *(0.0, result, stride),
    )


def symmetric_spectrum(lower: Array, count: int) -> tuple[Array, Array]:
    """All eigenvalues of a symmetric matrix, and the eigenvectors of the largest ones.

    One reduction to a tridiagonal matrix serves both; of the vectors only those asked for are made.

    Args:
        lower: (n, n) in Fortran's order, of which the lower triangle is read; it is overwritten.
        count: how many vectors, from 0 to n.

    Returns:
        Eigenvalues (n,) and vectors (n, count), both by descending eigenvalue.

    Raises:
        LapackError: no convergence, or scipy hides the routines.
    """
    size = len(lower)
    if size == 1:
        return lower[0].copy(), np.ones((1, count))
    diagonal, below, scales = np.empty(size), np.zeros(size), np.empty(size)
    work = np.empty(64 * size)
    _call("dsytrd", b"L", size, lower, size, diagonal, below, scales, work, len(work), _Info())
    values, others = diagonal.copy(), below.copy()
    _call("dsterf", size, values, others, _Info())
    if count == 0:
        return values[::-1], np.empty((size, 0))
    vectors = np.empty((size, count), order="F")
    converged, support = np.zeros(1, np.intc), np.empty(2 * size, np.intc)
    short, shorter = np.empty(18 * size), np.empty(10 * size, np.intc)
    _call(
        *("dstemr", b"V", b"I", size, diagonal, below, 0.0, 0.0, size - count + 1, size, converged),
        *(np.empty(size), vectors, size, count, support, np.ones(1, np.intc)),
        *(short, len(short), shorter, len(shorter), _Info()),
    )
    _call(
        *("dormtr", b"L", b"L", b"N", size, count, lower, size, scales, vectors, size),
        *(work, len(work), _Info()),
    )
    return values[::-1], vectors[:, ::-1]


@contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """Runs scipy's BLAS on so many threads, without touching those of torch or of numpy.

    Args:
        count: number of threads.
    """
    with _scipy_blas().limit(limits=count):
        yield


@cache
def _scipy_blas() -> ThreadpoolController:
    _routines()  # loads the library that is looked for
    # A library that scipy shares with numpy belongs to others as well, and keeps its threads.
    libraries = ThreadpoolController()
    paths = [library["filepath"] for library in libraries.info()]
    return libraries.select(filepath=[path for path in paths if "scipy.libs" in path])


class _Info(ctypes.c_int):
    """What a routine says about its success; 0 is good."""


def _call(name: str, *arguments: Any) -> None:
    routine, kinds = _routine(name), _ARGUMENTS[name]
    passed: list[Any] = []
    info = None
    for kind, value in zip(kinds, arguments, strict=True):
        if isinstance(value, np.ndarray):
            passed.append(ctypes.c_void_p(value.ctypes.data))
        elif isinstance(value, _Info):
            info = value
            passed.append(ctypes.byref(value))
        elif kind == "c":
            passed.append(ctypes.c_char_p(value))
        else:
            number = ctypes.c_int(value) if kind == "i" else ctypes.c_double(value)
            passed.append(ctypes.byref(number))
    routine(*passed)
    if info is not None and info.value != 0:
        raise LapackError(f"{name}: info {info.value}")


@cache
def _routines() -> dict[str, object]:
    """scipy's BLAS and LAPACK by name."""
    # Here, since importing them takes longer than most users of spectra ever need them.
    from scipy.linalg import cython_blas, cython_lapack

    return {**cython_blas.__pyx_capi__, **cython_lapack.__pyx_capi__}


@cache
def _routine(name: str) -> Callable[..., None]:
    capsule = _routines().get(name)
    text = b"" if capsule is None else _CAPSULE_NAME(capsule)
    match = re.search(r"\((.*)\)", text.decode())
    kinds = {"char *": "c", "int *": "i"}
    declared = match[1].split(", ") if match else []
    if "".join(kinds.get(type_, type_[-3:-2]) for type_ in declared) != _ARGUMENTS[name]:
        raise LapackError(f"{name}: this scipy offers {text.decode() or 'nothing'}")
    prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(declared))
    address: int = _CAPSULE_POINTER(capsule, text)
    return prototype(address)


_CAPSULE_NAME = ctypes.pythonapi.PyCapsule_GetName
_CAPSULE_NAME.restype = ctypes.c_char_p
_CAPSULE_NAME.argtypes = [ctypes.py_object]
_CAPSULE_POINTER = ctypes.pythonapi.PyCapsule_GetPointer
_CAPSULE_POINTER.restype = ctypes.c_void_p
_CAPSULE_POINTER.argtypes = [ctypes.py_object, ctypes.c_char_p]
