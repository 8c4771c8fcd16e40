"""Which idle modules a stand-in can take the place of: some code looks for modules of a class."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

from torch import Tensor, nn

from latewood.core.coupling.trace import outputs_of
from latewood.slim.idle_blocks import Idleness, replace_modules

__all__ = ["replaceable_modules"]

Emptied = Callable[[Collection[str]], AbstractContextManager[None]]

_TOLERANCE: Final = 1e-4
"""Of the largest output, for whatever order the two runs sum in."""


def replaceable_modules(
    model: nn.Module,
    idle: Mapping[str, Idleness],
    run: Callable[[], object],
    emptied: Emptied | None = None,
) -> dict[str, Idleness]:
    """Those of a model's idle modules that stand-ins can replace without a change of the outputs.

    A network that collects what its layers of a class return would miss some. All are tried
    together; if the outputs then differ, each alone and with those before it.

    Args:
        model: in evaluation mode, as before afterwards.
        idle: what each module does, by name.
        run: calls the model without gradients.
        emptied: makes modules of some names idle for a while; None where they all are.
    """

    def replaceable(names: Iterable[str]) -> bool:
        modules = {name: idle[name] for name in names}
        with emptied(modules) if emptied is not None else nullcontext():
            return _same(model, modules, run)

    if not idle or replaceable(idle):
        return {**idle}
    chosen: dict[str, Idleness] = {}
    for name, kind in idle.items():
        if replaceable([name]) and (not chosen or replaceable([*chosen, name])):
            chosen[name] = kind
    return chosen


def _same(model: nn.Module, modules: Mapping[str, Idleness], run: Callable[[], object]) -> bool:
    exact = _outputs(run)
    with _replaced(model, modules):
        try:
            outputs = _outputs(run)
        except Exception:
            # Whatever the code around a module raises when it does not find it.
            return False
    return len(outputs) == len(exact) and all(map(_close, outputs, exact))


def _outputs(run: Callable[[], object]) -> list[Tensor]:
    return [output.detach().clone() for output in outputs_of(run()) if output.is_floating_point()]


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    difference = (one - other).abs().nan_to_num(posinf=0.0)
    largest = float(other.abs().nan_to_num(posinf=0.0).max()) if other.numel() else 0.0
    return not other.numel() or float(difference.max()) <= _TOLERANCE * (largest or 1.0)


@contextmanager
def _replaced(model: nn.Module, modules: Mapping[str, Idleness]) -> Iterator[None]:
    before = {name: model.get_submodule(name) for name in modules}
    replace_modules(model, modules)
    try:
        yield
    finally:
        for name, module in before.items():
            model.set_submodule(name, module)
