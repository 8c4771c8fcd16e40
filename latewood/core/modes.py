"""Modes for a while: evaluation, no traces, attention in single steps; all is put back after."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import torch
from torch import nn

from latewood.core.devices import device_of

__all__ = [
    "attributes_restored",
    "buffers_restored",
    "evaluated",
    "uncompiled",
    "undisturbed",
    "unfused",
]

_CONTENTS: Final = frozenset({"_parameters", "_buffers", "_modules", "training"})
"""What of a module is no attribute of its own."""


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Puts a module and all inside it into evaluation mode, and each back into its own mode.

    Args:
        model: any module.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; modes, buffers and generators are put back.

    Args:
        model: any module.
    """
    device = device_of(model)
    on_host = device.type in ("cpu", "meta")
    with (
        evaluated(model),
        buffers_restored(model),
        uncompiled(),
        torch.no_grad(),
        torch.random.fork_rng(
            devices=[] if on_host else [device], device_type="cuda" if on_host else device.type
        ),
    ):
        yield


@contextmanager
def unfused() -> Iterator[None]:
    """Has torch's attention layers compute in steps that can be watched, not in one operator."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Has what ``torch.compile`` made run as the code that it was made of."""
    # Nothing can be compiled before the compiler is loaded, which takes longer than many a trace.
    loaded = "torch._dynamo" in sys.modules
    with torch.compiler.set_stance("force_eager") if loaded else nullcontext():
        yield


@contextmanager
def attributes_restored(model: nn.Module) -> Iterator[None]:
    """Puts attributes and hooks of all modules back: what a run keeps for the next is forgotten.

    Args:
        model: any module; parameters, buffers and submodules stay as they are.
    """
    before = [(module, _attributes(module)) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            now = vars(module)
            for name in now.keys() - _CONTENTS - attributes.keys():
                del now[name]
            for name, (value, items) in attributes.items():
                now[name] = value
                if items is not None:
                    value.clear()
                    value.update(items)


def _attributes(module: nn.Module) -> dict[str, tuple[Any, dict[Any, Any] | None]]:
    """A module's attributes; of those that are dicts (caches, hooks) what they hold as well."""
    return {
        name: (value, dict(value) if type(value) in (dict, OrderedDict) else None)
        for name, value in vars(module).items()
        if name not in _CONTENTS
    }


@contextmanager
def buffers_restored(model: nn.Module) -> Iterator[None]:
    """Puts the buffers of all modules back, whether a run writes into them or puts others there.

    Args:
        model: any module.
    """
    listed = [(module, dict(module._buffers.items())) for module in model.modules()]
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for module, buffers in listed:
            now = module._buffers
            if any(now.get(name) is not buffer for name, buffer in buffers.items()):
                now.update(buffers)
            for name in now.keys() - buffers.keys():
                del now[name]
        with torch.no_grad():
            for buffer, values in before:
                # What was not written stays untouched, for graphs that have saved it.
                if not buffer.is_meta and not torch.equal(buffer, values):
                    buffer.copy_(values)
