"""A run of a model under watch: every operation and every module, each seen before and after."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Final

from torch import Tensor, nn
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode,
    _pop_mode_temporarily,
)

from latewood.core.coupling.traced_call import Operation
from latewood.core.module_calls import ModuleCall, module_calls

__all__ = ["Running", "Watcher", "is_watching", "watched"]

_FACTS: Final = frozenset(
    (
        Tensor.dim,
        Tensor.is_complex,
        Tensor.is_floating_point,
        *(
            getattr(Tensor, name).__get__
            for name in ("device", "dtype", "is_cuda", "layout", "ndim", "requires_grad")
        ),
    )
)
"""Asked of a tensor, they say nothing about its entries or sizes, and pass unseen."""

Running = list[tuple[str, nn.Module]]
"""Names and modules being called, outermost first."""


class Watcher:
    """Sees what happens in a run; what watchers compute themselves is not seen."""

    def before(self, operation: Operation) -> None:
        """Called before an operation runs: in place it overwrites what it was given."""

    def after(self, operation: Operation) -> Any:
        """Called when an operation has run; returns what the model's code gets as its output."""
        return operation.output

    def entered(self, call: ModuleCall) -> None:
        """Called when a module is called."""

    def left(self, call: ModuleCall, output: Any) -> None:
        """Called when a module has returned; where it raised, its output is None."""


@contextmanager
def watched(model: nn.Module, *watchers: Watcher) -> Iterator[Running]:
    """Has watchers see every operation and every module of what runs meanwhile, in their order.

    Args:
        model: whose modules are seen.
        watchers: who see them.

    Yields:
        The modules being called, kept up to date.
    """
    running: Running = []
    operations = _Operations(watchers, running)

    def entered(call: ModuleCall) -> None:
        if operations.is_paused:
            return
        running.append((call.name, call.module))
        with operations.paused():
            for watcher in watchers:
                watcher.entered(call)

    def left(call: ModuleCall, output: Any) -> None:
        if operations.is_paused:
            return
        try:
            with operations.paused():
                for watcher in watchers:
                    watcher.left(call, output)
        finally:
            running.pop()

    with module_calls(dict(model.named_modules()), entered, left), operations:
        yield running


class _Operations(TorchFunctionMode):
    def __init__(self, watchers: Sequence[Watcher], running: Running) -> None:
        super().__init__()
        self._watchers = watchers
        self._running = running
        self._pauses = 0

    @property
    def is_paused(self) -> bool:
        """Whether what happens now is a watcher's own doing."""
        return self._pauses > 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Has operations pass unseen: in a hook, a watcher's own would be taken for the model's."""
        self._pauses += 1
        # Out of the way it costs nothing; below another mode of the model's it lets them pass.
        on_top = _get_current_function_mode() is self
        try:
            with _pop_mode_temporarily() if on_top else nullcontext():
                yield
        finally:
            self._pauses -= 1

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if self._pauses or function in _FACTS:
            return function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "").strip("_")
        named, modules = kwargs or {}, tuple(self._running)
        operation = Operation(function, name, args, named, modules)
        tensors = operation.tensors
        versions = [(tensor, _version(tensor)) for tensor in tensors]
        for watcher in self._watchers:
            watcher.before(operation)
        output = function(*args, **named)
        changed = tuple(tensor for tensor, before in versions if _version(tensor) > before)
        operation = Operation(function, name, args, named, modules, output, changed)
        vars(operation)["tensors"] = tensors
        for watcher in self._watchers:
            seen = watcher.after(operation)
            if seen is not operation.output:
                operation = dataclasses.replace(operation, output=seen)
        return operation.output


def is_watching() -> bool:
    """Whether the code that runs now is the model's, not that of an operation or of a watcher."""
    return isinstance(_get_current_function_mode(), _Operations)


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; 0 for those of inference mode, which do not say."""
    return 0 if tensor.is_inference() else tensor._version
