"""Finding where a number stopped being finite: the first layer, forwards and then backwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["first_break"]


def first_break(
    model: nn.Module, loss: Callable[[], Tensor], inputs: tuple[Tensor, ...]
) -> str | None:
    """Where a step that ends in NaN or Inf first goes wrong, in words.

    Looks at the inputs, the parameters, then the outputs of the layers in the order in which they
    are computed, then the gradients in the order in which they are. Parameters, gradients and
    buffers of the model are left as they were.

    Args:
        model: the model, with the parameters from before the step.
        loss: computes the step's loss anew, from the same random numbers.
        inputs: the batch.

    Returns:
        for example "the output of layer 'conv2'" or "the gradient of 'conv2.weight'"; None if
        nothing goes wrong this time.
    """
    for index, tensor in enumerate(inputs):
        if not _finite(tensor):
            return f"tensor {index} of the batch"
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"the parameter {name!r}, which the step before left so,"
    breaks: list[str] = []
    with _kept(model), _watching(model, breaks):
        value = loss()
        if not breaks and not _finite(value):
            return "the loss, from finite outputs of every layer,"
        if not breaks:
            value.backward()
    return breaks[0] if breaks else None


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


@contextmanager
def _watching(model: nn.Module, breaks: list[str]) -> Iterator[None]:
    """Notes what is not finite, in the order in which it is computed."""
    handles: list[Any] = []

    def note(tensor: Tensor, what: str) -> None:
        if not _finite(tensor):
            breaks.append(what)

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            for tensor in _tensors(output):
                note(tensor, f"the output of layer {name!r}")
                if tensor.requires_grad:
                    what = f"the gradient at the output of layer {name!r}"
                    tensor.register_hook(lambda gradient, what=what: note(gradient, what))

        return hook

    for name, module in model.named_modules():
        # A parametrized layer has children, yet computes something itself.
        if not list(module.children()) or hasattr(module, "parametrizations"):
            handles.append(module.register_forward_hook(after(name)))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            what = f"the gradient of {name!r}"
            handles.append(
                parameter.register_hook(lambda gradient, what=what: note(gradient, what))
            )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
