"""Which method changes the shapes of which tensors: one at a time."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

from torch import nn

from latewood.core.coupling.trace import layer_tensors
from latewood.errors import RequestError, listed

__all__ = ["claim_shapes", "release_shapes"]

# By layer and name of its tensor. A method that is gone, and a copy of a model, own nothing.
_OWNERS: weakref.WeakKeyDictionary[nn.Module, dict[str, weakref.ref[object]]] = (
    weakref.WeakKeyDictionary()
)


def claim_shapes(model: nn.Module, tensors: Iterable[str], owner: object) -> None:
    """Notes that from now on one method changes the shapes of some tensors.

    Args:
        model: the model.
        tensors: names of parameters and buffers, as a channel plan has them.
        owner: the method.

    Raises:
        RequestError: another method that is not finalized changes the shape of one; then nothing is
            noted.
    """
    places = dict(layer_tensors(model))
    wanted = [(name, *places[name]) for name in tensors]
    taken: dict[str, list[str]] = {}
    for name, module, attribute in wanted:
        other = _owner(module, attribute)
        if other is not None and other is not owner:
            taken.setdefault(type(other).__name__, []).append(name)
    for kind, names in taken.items():
        raise RequestError(
            f"{type(owner).__name__}: {kind} already changes the shapes of {listed(names)}; "
            f"expected tensors of its own: exclude their groups in one of the two, or build "
            f"{type(owner).__name__} after {kind} is finalized"
        )
    for _, module, attribute in wanted:
        _OWNERS.setdefault(module, {})[attribute] = weakref.ref(owner)


def release_shapes(owner: object) -> None:
    """Forgets what a method has claimed."""
    for owners in _OWNERS.values():
        for attribute in [name for name, other in owners.items() if other() is owner]:
            del owners[attribute]


def _owner(module: nn.Module, attribute: str) -> object | None:
    reference = _OWNERS.get(module, {}).get(attribute)
    return None if reference is None else reference()
