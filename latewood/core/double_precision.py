"""Runs any code in float64, whatever precision its weights have and whatever it casts to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["in_float64"]

_LOWER: Final = frozenset({torch.float32, torch.float16, torch.bfloat16})
_CASTS: Final = frozenset({"float", "half", "bfloat16"})
_DTYPE_GETTER: Final = torch.Tensor.dtype.__get__  # type: ignore[attr-defined]


@contextmanager
def in_float64() -> Iterator[None]:
    """Has every operation compute in float64, for a while.

    Tensors of a lower precision are cast as they enter an operation, and so is what it returns; so
    weights stay as they are, no copy of a model is made, and code that casts to float32 on its own,
    as norms and softmaxes of language models do, computes in float64 as well. What an operation
    writes into a tensor of a lower precision, such as the statistics of a batch norm, is lost.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64():
            yield
    finally:
        torch.set_default_dtype(before)


class _Float64(TorchFunctionMode):
    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name == "__get__":
            # Shapes and the like need no cast of what they are asked of.
            value = function(*args, **(kwargs or {}))
            return (
                torch.float64 if function == _DTYPE_GETTER and value in _LOWER else _raised(value)
            )
        if name in _CASTS:
            function = torch.Tensor.double
        output = function(*_raised(args), **_raised(kwargs or {}))
        return _raised(output)


def _raised(tree: Any) -> Any:
    """Tensors and types of lower precision, within tuples, lists and dicts, as float64."""
    if isinstance(tree, Tensor):
        return tree.double() if tree.dtype in _LOWER else tree
    if isinstance(tree, torch.dtype):
        return torch.float64 if tree in _LOWER else tree
    if type(tree) is tuple:
        return tuple(_raised(item) for item in tree)
    if type(tree) is list:
        return [_raised(item) for item in tree]
    if type(tree) is dict:
        return {key: _raised(item) for key, item in tree.items()}
    return tree
