"""Evaluation mode for a while, with every module's own mode restored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluated"]


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Puts a module and all inside it into evaluation mode, and each back into its own mode.

    Args:
        model: any module.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
