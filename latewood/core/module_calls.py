"""Tells of the calls of a model's modules while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ModuleCall", "module_calls"]


@dataclass(frozen=True, eq=False)
class ModuleCall:
    """A call of a module; of two calls of one module each is itself.

    Args:
        name: qualified name of the module; "" is the model itself.
        module: the module.
        positional: its positional arguments.
        named: its keyword arguments.
    """

    name: str
    module: nn.Module
    positional: tuple[Any, ...]
    named: dict[str, Any]

    @property
    def first(self) -> Tensor | None:
        """The first positional argument, if it is a tensor."""
        given = self.positional[0] if self.positional else None
        return given if isinstance(given, Tensor) else None


@contextmanager
def module_calls(
    modules: Mapping[str, nn.Module],
    entered: Callable[[ModuleCall], None],
    left: Callable[[ModuleCall, Any], None] | None = None,
) -> Iterator[None]:
    """Reports the calls of modules while it lasts.

    Args:
        modules: by the names under which they are reported.
        entered: is told of a call, when it begins.
        left: is told of the same call and of what it returned; None where it raised.
    """
    calls: list[ModuleCall] = []
    handles = []
    for name, module in modules.items():

        def enter(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            call = ModuleCall(name, module, args, kwargs)
            calls.append(call)
            entered(call)

        def leave(module: nn.Module, _: Any, __: Any, output: Any) -> None:
            call = calls.pop()
            # Calls whose hooks somebody took away meanwhile never leave.
            while call.module is not module:
                call = calls.pop()
            if left is not None:
                left(call, output)

        if isinstance(module, torch.jit.ScriptModule):
            continue
        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        # One that raises leaves too, since its caller may go on.
        handles.append(module.register_forward_hook(leave, with_kwargs=True, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
