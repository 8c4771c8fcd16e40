"""State of optimizers when parameters grow or are rescaled: what is kept, divided and filled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latewood.core import StateRule, state_rule
from latewood.core.coupling.resize import replace_data
from latewood.core.state_rules import unwrapped_optimizer
from latewood.errors import RequestError

__all__ = [
    "copy_state",
    "divide_state",
    "drop_state",
    "fill_state",
    "require_known_state",
    "require_no_gradients",
    "require_owners",
]


def require_known_state(optimizers: Iterable[Optimizer], parameters: Mapping[str, Tensor]) -> None:
    """Refuses optimizers that nothing is known of, and states that their rules do not name.

    Args:
        optimizers: any.
        parameters: that are to change, by name.

    Raises:
        RequestError: what is unknown, and how to register it.
    """
    for optimizer in optimizers:
        inner, rule = unwrapped_optimizer(optimizer), state_rule(optimizer)
        for name, parameter in parameters.items():
            for key, value in inner.state.get(parameter, {}).items():
                shaped = isinstance(value, Tensor) and value.shape == parameter.shape
                if shaped and value.ndim and key != "step" and key not in rule.powers:
                    kind = type(inner).__name__
                    raise RequestError(
                        f"optimizers: {kind} holds {key!r} for {name}, of which its rule says "
                        f"nothing; expected latewood.core.register_state_rule({kind}, ...) with it"
                    )


def require_owners(optimizers: Sequence[Optimizer], parameters: Mapping[str, Tensor]) -> None:
    """Refuses parameters that no optimizer has: they would grow and stay as they were born.

    Args:
        optimizers: those of the training; without any nothing is asked.
        parameters: that are to grow, by name.

    Raises:
        RequestError: the parameters that are missing.
    """
    held = {
        id(parameter)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    missing = [name for name, p in parameters.items() if p.requires_grad and id(p) not in held]
    if optimizers and missing:
        raise RequestError(
            f"optimizers: none has {', '.join(missing[:4])}"
            + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
            + "; expected every trainable parameter that grows in one of them"
        )


def require_no_gradients(parameters: Mapping[str, Tensor]) -> None:
    """Refuses gradients that were accumulated: those of a smaller model fit the larger no more.

    Args:
        parameters: that are to change, by name.

    Raises:
        RequestError: the first parameter with a gradient that is not all zeros.
    """
    for name, parameter in parameters.items():
        if parameter.grad is not None and bool(parameter.grad.ne(0).any()):
            raise RequestError(
                f"model: {name} has a gradient; expected none: step the optimizer and call "
                "zero_grad() before channels are added"
            )


def divide_state(optimizers: Iterable[Optimizer], parameter: Tensor, factor: float) -> None:
    r"""Makes the state that of a parameter multiplied by c whose function is compensated elsewhere.

    Its gradient is g / c from then on: a momentum is divided by c, a second moment by c^2.

    Args:
        optimizers: that may hold the parameter.
        parameter: that was multiplied.
        factor: c.
    """
    for state, rule in _states(optimizers, parameter):
        for name, power in rule.powers.items():
            value = state.get(name)
            if isinstance(value, Tensor) and power:
                replace_data(value, value / factor**power)


def fill_state(
    optimizers: Iterable[Optimizer], parameter: Tensor, new: Mapping[int, Tensor]
) -> None:
    """Starts second moments of new entries with the mean of the old ones of their tensor.

    Zero would let them take steps of up to 6.57 times the learning rate under the step count of the
    old entries; with the mean, entries whose gradients are like the old ones' take steps that rise
    from 0.1 to 1 times the rate.

    Args:
        optimizers: that may hold the parameter.
        parameter: grown, its state with it.
        new: by axis, the positions that are new.
    """
    for state, rule in _states(optimizers, parameter):
        for name in rule.filled:
            value = state.get(name)
            if not isinstance(value, Tensor) or value.shape != parameter.shape:
                continue
            old = value
            for axis, positions in new.items():
                old = old.index_select(axis, _others(value.shape[axis], positions).to(old.device))
            mean = float(old.double().mean()) if old.numel() else 0.0
            for axis, positions in new.items():
                value.index_fill_(axis, positions.to(value.device), mean)


def copy_state(
    optimizers: Iterable[Optimizer],
    parameter: Tensor,
    axis: int,
    pairs: tuple[Tensor, Tensor],
    divisors: Tensor | None,
) -> None:
    """Gives copies of channels the state of what they copy.

    Args:
        optimizers: that may hold the parameter.
        parameter: grown, its state with it.
        axis: along which channels were copied.
        pairs: positions of the copies, and of what each copies.
        divisors: (size of the axis,) by which gradients of entries become less, since others share
            in what they did; None for 1.
    """
    for state, rule in _states(optimizers, parameter):
        for name, power in rule.powers.items():
            value = state.get(name)
            if not isinstance(value, Tensor) or value.shape != parameter.shape:
                continue
            copies, sources = (positions.to(value.device) for positions in pairs)
            value.index_copy_(axis, copies, value.index_select(axis, sources))
            if divisors is not None and power:
                shape = [-1 if dim == axis else 1 for dim in range(value.ndim)]
                value.div_(divisors.to(value).pow(power).view(shape))


def drop_state(optimizers: Iterable[Optimizer], parameter: Tensor) -> None:
    """Forgets a parameter's state, step count and all.

    Args:
        optimizers: that may hold the parameter.
        parameter: as a new one from then on.
    """
    for optimizer in optimizers:
        unwrapped_optimizer(optimizer).state.pop(parameter, None)


def _states(
    optimizers: Iterable[Optimizer], parameter: Tensor
) -> Iterator[tuple[dict[str, Any], StateRule]]:
    for optimizer in optimizers:
        inner = unwrapped_optimizer(optimizer)
        if isinstance(parameter, nn.Parameter) and parameter in inner.state:
            with torch.no_grad():
                yield inner.state[parameter], state_rule(inner)


def _others(size: int, positions: Tensor) -> Tensor:
    others = torch.ones(size, dtype=torch.bool)
    others[positions] = False
    return others.nonzero().flatten()
