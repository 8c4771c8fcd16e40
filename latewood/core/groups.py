"""Optimizer parameter groups of a model together with the methods that act on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from torch import nn
from torch.nn.utils import parametrize

from latewood.core.protocols import Method
from latewood.errors import RequestError

__all__ = ["parameter_groups"]

_NORMS: Final = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def parameter_groups(
    model: nn.Module,
    methods: Sequence[Method] = (),
    *,
    weight_decay: float | None = None,
    lr: float | None = None,
    decay_all: bool = False,
) -> list[dict[str, Any]]:
    """Splits the trainable parameters into groups for an optimizer, each exactly once.

    First the decayed weights (embeddings included), then what must not decay (norms, biases, every
    tensor with fewer than two axes) with weight decay 0, then the groups of each method with
    weight decay 0 unless the method says otherwise. A parameter that a method lists, and every
    parameter of a weight transformation, comes only from a method's groups. Empty groups are left
    out.

    Args:
        model: the model, after its methods were built on it.
        methods: the methods; their parameters keep the learning rates the methods ask for.
        weight_decay: decay of the first group; None leaves it to the optimizer.
        lr: learning rate of the first two groups; None leaves it to the optimizer.
        decay_all: decay norms, biases and vectors like the weights, as some papers do.

    Returns:
        Groups as ``torch.optim`` takes them.

    Raises:
        RequestError: two groups hold one parameter, or the model carries transformations with
            parameters of their own and no method is given.
    """
    of_methods = [
        _trainable_group(group) for method in methods for group in method.parameter_groups()
    ]
    claimed = _claimed_once(of_methods)
    transformations = set(_transformation_parameters(model)) - claimed
    if transformations and not methods:
        raise RequestError(
            "methods: the model carries weight transformations with trainable parameters; expected "
            "the methods that own them, as in parameter_groups(model, [method])"
        )
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    spared = set() if decay_all else set(_undecayed_parameters(model))
    for parameter in model.parameters():
        if not parameter.requires_grad or id(parameter) in claimed | transformations:
            continue
        (undecayed if id(parameter) in spared else decayed).append(parameter)
    base: list[dict[str, Any]] = [
        {"params": decayed} | ({} if weight_decay is None else {"weight_decay": weight_decay}),
        {"params": undecayed, "weight_decay": 0.0},
    ]
    if lr is not None:
        for group in base:
            group["lr"] = lr
    return [group for group in [*base, *of_methods] if group["params"]]


def _trainable_group(group: dict[str, Any]) -> dict[str, Any]:
    params = group["params"]
    listed = [params] if isinstance(params, nn.Parameter) else list(params)
    trainable = [parameter for parameter in listed if parameter.requires_grad]
    return {"weight_decay": 0.0} | group | {"params": trainable}


def _claimed_once(groups: Iterable[dict[str, Any]]) -> set[int]:
    claimed: set[int] = set()
    for group in groups:
        for parameter in group["params"]:
            if id(parameter) in claimed:
                raise RequestError(
                    f"methods: a parameter of shape {tuple(parameter.shape)} is in two groups of "
                    "the methods; expected each parameter in one"
                )
            claimed.add(id(parameter))
    return claimed


def _transformation_parameters(model: nn.Module) -> Iterator[int]:
    """Parameters inside the project's transformations, which carry a stacking order."""
    for module in model.modules():
        if isinstance(module, parametrize.ParametrizationList):
            for transformation in module:
                if hasattr(transformation, "order"):
                    for parameter in transformation.parameters():
                        if parameter.requires_grad:
                            yield id(parameter)


def _undecayed_parameters(model: nn.Module) -> Iterator[int]:
    for module_name, module in model.named_modules():
        parts = module_name.split(".")
        # Under a parametrization the stored tensor is called "original"; its own name is above it.
        owner_name = parts[-1] if isinstance(module, parametrize.ParametrizationList) else ""
        for name, parameter in module.named_parameters(recurse=False):
            tensor_name = owner_name or name
            if (
                isinstance(module, _NORMS)
                or parameter.ndim < 2
                or tensor_name.startswith("bias")
                or tensor_name.endswith("bias")
            ):
                yield id(parameter)
