"""Modes for a while: evaluation, no traces, attention in single steps; all is put back after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from latewood.core.devices import device_of

__all__ = ["evaluated", "undisturbed", "unfused"]


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
    """Evaluation mode without gradients; modes and random generators are put back afterwards.

    Args:
        model: any module.
    """
    device = device_of(model)
    on_host = device.type in ("cpu", "meta")
    with (
        evaluated(model),
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
