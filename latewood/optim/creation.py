"""An optimizer by name, on a whole model, with weight decay where it belongs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from latewood.core import Method, parameter_groups
from latewood.errors import invalid, nearest
from latewood.optim.adabound import AdaBound, AMSBound
from latewood.optim.avagrad import AvaGrad, AvaGradW
from latewood.optim.csgd import CSGD
from latewood.optim.delayed_adam import DelayedAdam

__all__ = ["create_optimizer"]

_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "avagrad": AvaGrad,
    "avagradw": AvaGradW,
    "delayed_adam": DelayedAdam,
    "adabound": AdaBound,
    "amsbound": AMSBound,
    "csgd": CSGD,
}


def create_optimizer(
    name: str | type[torch.optim.Optimizer],
    model: nn.Module,
    methods: Sequence[Method] = (),
    *,
    decay_all: bool = False,
    **options: Any,
) -> torch.optim.Optimizer:
    """An optimizer of a model's trainable parameters, as a recipe's section makes it.

    Weights decay; norms, biases and every tensor with fewer than two axes do not, and the
    parameters of methods as these ask (see ``latewood.core.parameter_groups``).

    Args:
        name: "avagrad", "avagradw", "delayed_adam", "adabound", "amsbound", "csgd", "sgd", "adam"
            or "adamw"; or a class.
        model: the model, after its methods were built on it.
        methods: the methods.
        decay_all: decay norms, biases and vectors like the weights.
        options: of the optimizer, by keyword: ``lr``, ``weight_decay`` and so on.

    Raises:
        RequestError: an unknown name or option, an option out of its range, or a model without
            trainable parameters.
    """
    if isinstance(name, str):
        if name not in _OPTIMIZERS:
            expected = f"one of {', '.join(_OPTIMIZERS)}, or a class" + nearest(name, _OPTIMIZERS)
            raise invalid("name", name, expected)
        made = _OPTIMIZERS[name]
    elif isinstance(name, type) and issubclass(name, torch.optim.Optimizer):
        made = name
    else:
        raise invalid("name", name, "a name or an optimizer's class")
    signature = inspect.signature(made).parameters
    known = [option for option in signature if option != "params"]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.values())
    for option in options:
        if option not in known and not open_ended:
            expected = f"an option of {made.__name__}: {', '.join(known)}" + nearest(option, known)
            raise invalid("options", option, expected)
    groups = parameter_groups(model, methods, decay_all=decay_all)
    if not groups:
        raise invalid("model", type(model).__name__, "a model with parameters that can be trained")
    return made(groups, **options)
