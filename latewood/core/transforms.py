"""Weight transformations: what a method puts between a stored weight and the layer that uses it.

They are torch parametrizations kept in one stacking order, so that methods compose in any order of
construction. Recurrent layers, which hold their weights in a second list, are made to see them.

A transformation is an ``nn.Module`` that maps a tensor to one of its shape and dtype. Its class has

- ``order``, the place in the stack: PRECISION, MASK or FAULTS;
- ``uniform``, true where it multiplies all entries by one number;
- ``follows``, where its tensors have more than one entry: how they change shape with the weight;
- ``fixed_from``, where it is a mask that is soft at first: the steps after which it is binary, so
  that a number format under it can wait for that;
- ``commutes_with``, where it is no mask but may be baked before what is inside it: the orders of
  those transformations. Masks multiply entry by entry, so they commute with masks and need none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from latewood.core.selection import parametrization_list, stored_tensor
from latewood.errors import RequestError, invalid

__all__ = [
    "FAULTS",
    "MASK",
    "PRECISION",
    "Follows",
    "attach",
    "bake",
    "detach",
    "require_bakeable",
    "transformations",
]

PRECISION: Final = 0
"""Stacking order of number formats, which act on the stored weight: their grids need no zero."""
MASK: Final = 1
"""Stacking order of masks, which multiply what the number format gives: what is pruned is 0."""
FAULTS: Final = 2
"""Stacking order of hardware faults, which happen to what is stored in the cells."""

_LISTED: Final = "_order_before_transformations"
_FOREIGN: Final = -1
"""Place of what another package has put on a weight: innermost."""
_ORDERS: Final = {PRECISION: "precision", MASK: "mask", FAULTS: "faults"}


@dataclass(frozen=True)
class Follows:
    """How a tensor of a transformation changes shape with the weight, in the dict ``follows``.

    Args:
        axis: None for a tensor of the weight's shape, else the only axis of the weight that it has
            entries for (0 is that of the outputs in a linear or convolutional layer).
        start: value of the new entries of a weight that becomes wider; None copies the entries of
            the channel that is copied.
    """

    axis: int | None = None
    start: float | None = None


def attach(module: nn.Module, parameter_name: str, transformation: nn.Module) -> None:
    """Makes a layer compute with transformation(weight), in the stacking order of its class.

    The effective weight is faults(mask(precision(stored))), whatever the order of attachment;
    transformations of one order apply in order of attachment. The stored tensor stays the same
    Parameter, now at ``parametrizations.<name>.original``. The transformation is called at least
    once here, to check that it keeps shape and dtype.

    Args:
        module: the layer that owns the tensor.
        parameter_name: the tensor's name in the layer.
        transformation: module mapping a tensor to one of the same shape and dtype, whose class has
            an integer attribute ``order`` (PRECISION, MASK or FAULTS).

    Raises:
        RequestError: no such tensor, no order, or a transformation that changes shape or dtype.
    """
    order = getattr(transformation, "order", None)
    if order not in _ORDERS:
        allowed = ", ".join(f"{order} ({name})" for order, name in _ORDERS.items())
        raise invalid(f"{type(transformation).__name__}.order", order, f"one of {allowed}")
    if not parametrize.is_parametrized(module, parameter_name) and not isinstance(
        module._parameters.get(parameter_name), nn.Parameter
    ):
        raise invalid("parameter_name", parameter_name, f"a parameter of {type(module).__name__}")
    stored_tensor(module, parameter_name)  # refuses tensors that another parametrization splits
    _own_class(module)
    listed = getattr(type(module), _LISTED, tuple(module._parameters))
    try:
        parametrize.register_parametrization(module, parameter_name, transformation)
    except ValueError as error:
        raise RequestError(
            f"transformation: {type(transformation).__name__} on {parameter_name}: {error}"
        ) from error
    setattr(type(module), _LISTED, listed)
    # Stable, so that equal orders keep their order.
    attached = transformations(module, parameter_name)
    _restack(module, parameter_name, sorted(attached, key=_order))
    if isinstance(module, nn.RNNBase):
        _own_class(module)
        module._init_flat_weights()


def bake(module: nn.Module, parameter_name: str, transformation: nn.Module) -> None:
    """Folds one transformation into the stored tensor and removes it; the others stay in place.

    stored <- transformation(stored), on the same Parameter object. That keeps the layer's function
    if the transformation is the innermost, or commutes with all inside it. So bake number formats
    before masks; what commutes does so up to rounding.

    Args:
        module: the layer that owns the tensor.
        parameter_name: the tensor's name in the layer.
        transformation: the very object that was attached.

    Raises:
        RequestError: as ``require_bakeable``.
    """
    require_bakeable(module, parameter_name, transformation)
    stored = stored_tensor(module, parameter_name)
    with torch.no_grad():
        stored.copy_(transformation(stored))
    detach(module, parameter_name, transformation)


def detach(module: nn.Module, parameter_name: str, transformation: nn.Module) -> None:
    """Removes one transformation; the stored tensor and the others stay as they are.

    Args:
        module: the layer that owns the tensor.
        parameter_name: the tensor's name in the layer.
        transformation: the very object that was attached.

    Raises:
        RequestError: the transformation is not attached to this tensor.
    """
    attached = _attached(module, parameter_name, transformation)
    remaining = [other for other in attached if other is not transformation]
    _own_class(module)
    if remaining:
        _restack(module, parameter_name, remaining)
    else:
        listed = getattr(type(module), _LISTED, ())
        parametrize.remove_parametrizations(module, parameter_name, leave_parametrized=False)
        # Back in its place, so that a plain model with this state lists its parameters alike.
        for name in listed:
            if name in module._parameters:
                module._parameters[name] = module._parameters.pop(name)
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()


def require_bakeable(module: nn.Module, parameter_name: str, transformation: nn.Module) -> None:
    """Refuses what ``bake`` cannot fold without changing what the layer computes.

    Args:
        module: the layer that owns the tensor.
        parameter_name: the tensor's name in the layer.
        transformation: the very object that was attached.

    Raises:
        RequestError: the transformation is not attached to this tensor, or does not commute with
            one inside it.
    """
    attached = _attached(module, parameter_name, transformation)
    for inner in attached[: attached.index(transformation)]:
        if not _commutes(transformation, inner):
            outer_name, inner_name = type(transformation).__name__, type(inner).__name__
            raise RequestError(
                f"transformation: {outer_name} on {parameter_name} does not commute with "
                f"{inner_name} inside it; expected {inner_name} to be baked first, then "
                f"{outer_name}"
            )


def transformations(module: nn.Module, parameter_name: str) -> list[nn.Module]:
    """The transformations on a tensor, innermost first; [] if there are none."""
    if not parametrize.is_parametrized(module, parameter_name):
        return []
    return list(parametrization_list(module, parameter_name))


def _attached(module: nn.Module, parameter_name: str, transformation: nn.Module) -> list[nn.Module]:
    attached = transformations(module, parameter_name)
    if transformation not in attached:
        names = [type(other).__name__ for other in attached]
        raise invalid(
            "transformation",
            type(transformation).__name__,
            f"one attached to {parameter_name} (there: {', '.join(names) or 'none'})",
        )
    return attached


def _order(transformation: nn.Module) -> int:
    order: int = getattr(transformation, "order", _FOREIGN)
    return order


def _commutes(outer: nn.Module, inner: nn.Module) -> bool:
    by_default = (MASK,) if _order(outer) == MASK else ()
    return _order(inner) in getattr(outer, "commutes_with", by_default)


def _restack(module: nn.Module, parameter_name: str, modules: list[nn.Module]) -> None:
    stack = parametrization_list(module, parameter_name)
    del stack[len(modules) :]
    for position, transformation in enumerate(modules):
        stack[position] = transformation


def _own_class(module: nn.Module) -> None:
    """Gives a parametrized module a class of its own.

    torch puts the tensor's property on a class made for the module, and a deep copy shares it:
    without this, baking a copy would take the weight away from the original.
    """
    if parametrize.is_parametrized(module):
        shared = type(module)
        members = {
            name: member
            for name, member in vars(shared).items()
            if name not in ("__dict__", "__weakref__")
        }
        if isinstance(module, nn.RNNBase):
            members |= _RECURRENT_MEMBERS
        module.__class__ = type(shared.__name__, shared.__bases__, members)


def _recurrent_forward(module: nn.RNNBase, *inputs: Any, **named_inputs: Any) -> Any:
    """Runs the layer with its list of weights transformed for the length of the call.

    Outside a call the list holds stored tensors, so that copying a layer never meets a graph.
    """
    module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
    plain_layer = cast(type[nn.RNNBase], type(module).__bases__[0])
    try:
        return plain_layer.forward(module, *inputs, **named_inputs)
    finally:
        module._flat_weights = _stored_weights(module)


def _list_stored_weights(module: nn.RNNBase) -> None:
    module._flat_weights = _stored_weights(module)
    module._flat_weight_refs = []
    module.flatten_parameters()


def _keep_listed_weights(module: nn.RNNBase) -> None:
    """Stands in for torch's check for a stale list, which evaluates every transformation again."""


def _stored_weights(module: nn.RNNBase) -> list[Any]:
    return [stored_tensor(module, name) for name in module._flat_weights_names]


_RECURRENT_MEMBERS: Final[dict[str, Any]] = {
    "forward": _recurrent_forward,
    "_init_flat_weights": _list_stored_weights,
    "_update_flat_weights": _keep_listed_weights,
}
