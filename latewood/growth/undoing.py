"""All or nothing: a model and its optimizers are put back if a change does not come to its end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from latewood.core import transformations
from latewood.core.coupling.resize import replace_data
from latewood.core.state_rules import unwrapped_optimizer
from latewood.core.transforms import detach
from latewood.growth.stages import Stages

__all__ = ["all_or_nothing"]


@contextmanager
def all_or_nothing(
    models: Iterable[nn.Module],
    optimizers: Iterable[Optimizer] = (),
    stages: Stages | None = None,
) -> Iterator[None]:
    """Puts everything back as it was, to the bit, if what happens inside raises or is interrupted.

    Nothing is copied: what changes must be given new data (``core.coupling.resize.replace_data``),
    never be written in place before it was.

    Args:
        models: whose tensors, attributes and transformations may change.
        optimizers: whose states may change.
        stages: that may note an event.
    """
    listed = list(models)
    inner = [unwrapped_optimizer(optimizer) for optimizer in optimizers]
    tensors = {
        id(tensor): _Tensor(tensor)
        for model in listed
        for tensor in (*model.parameters(), *model.buffers())
    }
    stacks = [
        (module, name, transformations(module, name))
        for model in listed
        for module in model.modules()
        for name in _transformable(module)
    ]
    states = [
        (optimizer, {parameter: _State(state) for parameter, state in optimizer.state.items()})
        for optimizer in inner
    ]
    attributes = [_attributes(model) for model in listed]
    noted = None if stages is None else stages.state_dict()
    try:
        yield
    except BaseException:
        if stages is not None and noted is not None:
            stages.load_state_dict(noted)
        for module, name, before in stacks:
            for transformation in transformations(module, name):
                if transformation not in before:
                    detach(module, name, transformation)
        for tensor in tensors.values():
            tensor.restore()
        for optimizer, saved in states:
            optimizer.state.clear()
            for parameter, state in saved.items():
                optimizer.state[parameter] = state.restored()
        for of_model in attributes:
            for module, values in of_model:
                for name, value in values.items():
                    setattr(module, name, value)
                if isinstance(module, nn.RNNBase):
                    module._init_flat_weights()
        raise


class _Tensor:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.data, self.gradient = tensor, tensor.detach(), tensor.grad

    def restore(self) -> None:
        if self.tensor.data_ptr() != self.data.data_ptr() or self.tensor.shape != self.data.shape:
            replace_data(self.tensor, self.data)
        self.tensor.grad = self.gradient


class _State:
    def __init__(self, state: dict[str, Any]) -> None:
        self._items = [
            (name, value, value.detach() if isinstance(value, Tensor) else None)
            for name, value in state.items()
        ]
        self._state = state

    def restored(self) -> dict[str, Any]:
        self._state.clear()
        for name, value, data in self._items:
            if data is not None:
                with torch.no_grad():
                    value.data = data
            self._state[name] = value
        return self._state


def _transformable(module: nn.Module) -> list[str]:
    names = list(module._parameters)
    if parametrize.is_parametrized(module):
        names += list(cast(nn.ModuleDict, module.parametrizations))
    return names


def _attributes(model: nn.Module) -> list[tuple[nn.Module, dict[str, Any]]]:
    """Plain numbers and tuples that modules hold: sizes, counts, eps."""
    kinds = (bool, int, float, str, tuple, type(None))
    return [
        (module, {name: value for name, value in vars(module).items() if type(value) in kinds})
        for module in model.modules()
    ]
