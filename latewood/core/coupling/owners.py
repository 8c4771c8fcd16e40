"""Which method changes the shapes of which tensors: one at a time."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

from torch import nn

from latewood.core.coupling.trace import layer_tensors
from latewood.errors import RequestError, listed

__all__ = ["claim_shapes", "release_shapes", "require_unclaimed"]

# By layer and name of its tensor. A method that is gone, and a copy of a model, own nothing.
_OWNERS: weakref.WeakKeyDictionary[nn.Module, dict[str, weakref.ref[object]]] = (
    weakref.WeakKeyDictionary()
)


def require_unclaimed(model: nn.Module, tensors: Iterable[str], owner: object) -> None:
    """Refuses tensors whose shapes another method changes.

    Args:
        model: the model.
        tensors: names of parameters and buffers, as a channel plan has them.
        owner: the method that wants to change them.

    Raises:
        RequestError: another method that is not finalized changes the shape of one.
    """
    places = dict(layer_tensors(model))
    taken: dict[str, list[str]] = {}
    for name in tensors:
        other = _owner(*places[name])
        if other is not None and other is not owner:
            taken.setdefault(type(other).__name__, []).append(name)
    for kind, names in taken.items():
        claimant = type(owner).__name__
        raise RequestError(
            f"{claimant}: {kind} already changes the shapes of {listed(sorted(names))}; expected "
            "tensors of its own: exclude their groups in one of the two, or build "
            f"{claimant} after {kind} is finalized"
        )


def claim_shapes(model: nn.Module, tensors: Iterable[str], owner: object) -> None:
    """Notes that from now on a method changes the shapes of some tensors.

    Args:
        model: the model.
        tensors: names of parameters and buffers, as a channel plan has them.
        owner: the method.

    Raises:
        RequestError: as ``require_unclaimed``; then nothing is noted.
    """
    wanted = list(tensors)
    require_unclaimed(model, wanted, owner)
    places = dict(layer_tensors(model))
    for module, attribute in (places[name] for name in wanted):
        _OWNERS.setdefault(module, {})[attribute] = weakref.ref(owner)


def release_shapes(owner: object) -> None:
    """Forgets what a method has claimed."""
    for owners in _OWNERS.values():
        for attribute in [name for name, other in owners.items() if other() is owner]:
            del owners[attribute]


def _owner(module: nn.Module, attribute: str) -> object | None:
    reference = _OWNERS.get(module, {}).get(attribute)
    return None if reference is None else reference()
