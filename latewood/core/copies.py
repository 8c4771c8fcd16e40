"""Copies of models, also of those whose weights hooks compute."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

from latewood.errors import RequestError

__all__ = ["copy_of", "own_objects"]

_Model = TypeVar("_Model", bound=nn.Module)
_UNCHANGED: Final = (Tensor, nn.Module, int, float, complex, str, bytes, type(None), torch.dtype)
"""What a call does not change, or may not."""


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


def own_objects(tree: Any) -> Any:
    """Arguments with copies of the objects among them that a call may change, such as caches.

    Args:
        tree: tensors, which stay the same, and objects in nested tuples, lists and dicts.
    """
    if isinstance(tree, _UNCHANGED):
        return tree
    if type(tree) in (tuple, list):
        return type(tree)(own_objects(item) for item in tree)
    if type(tree) in (dict, OrderedDict):
        return {name: own_objects(item) for name, item in tree.items()}
    try:
        # A watched run does not see it.
        with torch._C.DisableTorchFunction():
            return copy.deepcopy(tree)
    except Exception:
        # What cannot be copied is given as it is.
        return tree
