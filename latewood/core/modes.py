"""Modes for a while: evaluation, and attention in single steps; all is put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["evaluated", "unfused"]


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
def unfused() -> Iterator[None]:
    """Has torch's attention layers compute in steps that can be watched, not in one operator."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
