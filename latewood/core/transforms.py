"""Weight transformations: what a method puts between a stored weight and the layer that uses it.

They are torch parametrizations kept in one stacking order, so that methods compose in any order of
construction. Recurrent layers, which hold their weights in a second list, are made to see them.
"""

from __future__ import annotations

from typing import Any, Final, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from latewood.core.selection import parametrization_list, stored_tensor
from latewood.errors import RequestError, invalid

__all__ = ["FAULTS", "MASK", "PRECISION", "attach", "bake", "transformations"]

MASK: Final = 0
"""Stacking order of masks, which act on the stored weight."""
PRECISION: Final = 1
"""Stacking order of number formats, which act on the masked weight."""
FAULTS: Final = 2
"""Stacking order of hardware faults, which act on what the number format left."""

_LISTED: Final = "_order_before_transformations"
_ORDERS: Final = {MASK: "mask", PRECISION: "precision", FAULTS: "faults"}


def attach(module: nn.Module, parameter_name: str, transformation: nn.Module) -> None:
    """Makes a layer compute with transformation(weight), in the stacking order of its class.

    The effective weight is faults(precision(mask(stored))), whatever the order of attachment;
    transformations of one order apply in order of attachment. The stored tensor stays the same
    Parameter, now at ``parametrizations.<name>.original``. The transformation is called at least
    once here, to check that it keeps shape and dtype.

    Args:
        module: the layer that owns the tensor.
        parameter_name: the tensor's name in the layer.
        transformation: module mapping a tensor to one of the same shape and dtype, whose class has
            an integer attribute ``order`` (MASK, PRECISION or FAULTS).

    Raises:
        RequestError: no such tensor, no order, or a transformation that changes shape or dtype.
    """
    if getattr(transformation, "order", None) not in _ORDERS:
        allowed = ", ".join(f"{order} ({name})" for order, name in _ORDERS.items())
        raise invalid(
            f"{type(transformation).__name__}.order",
            getattr(transformation, "order", None),
            f"one of {allowed}",
        )
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
    # Stable, so that equal orders keep their order; foreign parametrizations stay innermost.
    attached = transformations(module, parameter_name)
    _restack(module, parameter_name, sorted(attached, key=lambda each: getattr(each, "order", -1)))
    if isinstance(module, nn.RNNBase):
        _own_class(module)
        module._init_flat_weights()


def bake(module: nn.Module, parameter_name: str, transformation: nn.Module) -> None:
    """Folds one transformation into the stored tensor and removes it; the others stay in place.

    stored <- transformation(stored), on the same Parameter object. The layer's function is kept
    exactly when the transformation is the innermost, or commutes with those inside it: bake masks
    before number formats, and those before faults.

    Args:
        module: the layer that owns the tensor.
        parameter_name: the tensor's name in the layer.
        transformation: the very object that was attached.

    Raises:
        RequestError: the transformation is not attached to this tensor.
    """
    attached = transformations(module, parameter_name)
    if not any(each is transformation for each in attached):
        names = [type(each).__name__ for each in attached]
        raise invalid(
            "transformation",
            type(transformation).__name__,
            f"one attached to {parameter_name} (there: {', '.join(names) or 'none'})",
        )
    stored = stored_tensor(module, parameter_name)
    with torch.no_grad():
        stored.copy_(transformation(stored))
    remaining = [each for each in attached if each is not transformation]
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


def transformations(module: nn.Module, parameter_name: str) -> list[nn.Module]:
    """The transformations on a tensor, innermost first; [] if there are none."""
    if not parametrize.is_parametrized(module, parameter_name):
        return []
    return list(parametrization_list(module, parameter_name))


def _restack(module: nn.Module, parameter_name: str, modules: list[nn.Module]) -> None:
    stack = parametrization_list(module, parameter_name)
    del stack[len(modules) :]
    for position, each in enumerate(modules):
        stack[position] = each


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
