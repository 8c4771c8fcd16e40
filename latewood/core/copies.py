"""Copies of models, also of those whose weights hooks compute."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

from latewood.errors import RequestError

__all__ = ["copy_of"]

_Model = TypeVar("_Model", bound=nn.Module)


def copy_of(model: _Model, memo: dict[int, Any] | None = None) -> _Model:
    """A deep copy of a model; what a hook computed of its parameters is copied as plain data.

    Torch's own ``weight_norm`` and ``prune`` of the hook form leave such tensors on their layers,
    and ``copy.deepcopy`` refuses them.

    Args:
        model: any module.
        memo: what stands for some objects in the copy, by their ids.

    Raises:
        RequestError: it holds what cannot be copied.
    """
    memo = {} if memo is None else memo
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo.setdefault(id(value), value.detach().clone())
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        # Whatever something that the model holds says to it: a scripted function, a lock, a file.
        raise RequestError(
            f"model: {type(model).__name__} holds what cannot be copied ({error}); expected one "
            "that copy.deepcopy takes"
        ) from error
