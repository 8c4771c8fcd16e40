"""A training loop for those who need no run folder, and the parts that all loops have in common."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from latewood.core.protocols import Method
from latewood.errors import invalid

__all__ = ["compute_gradients", "fit", "set_rates", "total_penalty", "unclaimed", "update"]

Samples = TypeVar("Samples")


def fit(
    model: nn.Module,
    batches: Iterable[Samples],
    loss: Callable[[nn.Module, Samples], Tensor],
    optimizer: Optimizer,
    *,
    methods: Sequence[Method] = (),
    rate_factor: Callable[[int], float] | None = None,
    clip_norm: float | None = None,
    before_step: Callable[[int], None] | None = None,
    after_step: Callable[[int], None] | None = None,
) -> None:
    """Takes one optimizer step per batch.

    A step is, in this order: ``before_step``, learning rates, ``loss(model, batch)`` and the
    methods' penalties, gradients, clipping, the optimizer's step, the methods' steps,
    ``after_step``. The model stays in the mode it is in, and nothing is seeded.

    Args:
        model: what is trained, in place.
        batches: whatever ``loss`` takes; as many as steps are wanted.
        loss: a differentiable scalar of the model and a batch, without penalties.
        optimizer: of the parameters of the model and the methods (``core.parameter_groups``).
        methods: built on the model. One that changes shapes is told of an epoch's start by the
            caller, in ``before_step``.
        rate_factor: factor on each group's initial learning rate, by the number of steps taken;
            None leaves the rates alone. The initial rate is the group's ``initial_lr``, which is
            noted at the first step where it is missing.
        clip_norm: largest norm of the gradient of the model's parameters that no method lists;
            None does not clip.
        before_step: called with the number of steps taken, 0 first.
        after_step: called with the number of steps taken, 1 first.

    Raises:
        RequestError: ``clip_norm`` is not positive, the loss is no differentiable scalar, the
            optimizer needs a closure, or it lacks a parameter of a method.
    """
    if clip_norm is not None and not clip_norm > 0.0:
        raise invalid("clip_norm", clip_norm, "a positive number, or None")
    _require_step(optimizer, methods)
    clipped = unclaimed(model.parameters(), methods)
    for step, batch in enumerate(batches):
        if before_step is not None:
            before_step(step)
        if rate_factor is not None:
            set_rates(optimizer, rate_factor(step))
        value = loss(model, batch)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            shown = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise invalid("loss", shown, "a differentiable tensor with one element")
        penalty = total_penalty(methods)
        compute_gradients(value if penalty is None else value + penalty, optimizer)
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(clipped, clip_norm)
        update(optimizer, methods)
        if after_step is not None:
            after_step(step + 1)


def _require_step(optimizer: Optimizer, methods: Sequence[Method]) -> None:
    """Refuses an optimizer that could not take the steps of ``fit``."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise invalid("optimizer", type(optimizer).__name__, "one whose step needs no closure")
    updated = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for method in methods:
        for group in method.parameter_groups():
            for parameter in group["params"]:
                if parameter.requires_grad and id(parameter) not in updated:
                    raise invalid(
                        "optimizer",
                        f"one without a parameter of {type(method).__name__}",
                        "an optimizer of core.parameter_groups(model, methods)",
                    )


def compute_gradients(loss: Tensor, optimizer: Optimizer, scaler: Any = None) -> None:
    """Gradients of a loss, penalties included; with fp16's ``scaler`` they end unscaled."""
    optimizer.zero_grad()
    if scaler is None:
        loss.backward()
    else:
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)


def update(optimizer: Optimizer, methods: Iterable[Method], scaler: Any = None) -> None:
    """The optimizer's step, which fp16's ``scaler`` may skip, and then the methods' steps."""
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    for method in methods:
        method.step()


def set_rates(optimizer: Optimizer, factor: float) -> None:
    """Sets each group's learning rate to its initial one times a factor."""
    for group in optimizer.param_groups:
        # Where torch's own schedules keep it: methods may change it, checkpoints hold it.
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def total_penalty(methods: Iterable[Method]) -> Tensor | None:
    """The sum of the methods' penalties; None without a method."""
    total: Tensor | None = None
    for method in methods:
        penalty = method.penalty()
        total = penalty if total is None else total + penalty
    return total


def unclaimed(parameters: Iterable[nn.Parameter], methods: Iterable[Method]) -> list[nn.Parameter]:
    """The parameters that no method lists, in their order.

    Masks and other parameters of methods have gradients of another scale: these must not shrink
    the weights' steps when gradients are clipped, nor be shrunk by theirs.
    """
    claimed = {
        id(parameter)
        for method in methods
        for group in method.parameter_groups()
        for parameter in group["params"]
    }
    return [parameter for parameter in parameters if id(parameter) not in claimed]
