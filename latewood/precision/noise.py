"""Keys by which noise is a function of seed, step and name: no generator, nothing to store."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

__all__ = ["noise_key"]


def noise_key(seed: int, step: int, name: str, *, device: torch.device | None = None) -> Tensor:
    """The key of the noise of one tensor at one step.

    Args:
        seed: of the run, the same on all processes.
        step: updates so far.
        name: of the tensor.
        device: of the result.

    Returns:
        0-dim int64.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{name}".encode(), digest_size=8).digest()
    return torch.tensor(int.from_bytes(digest, "little", signed=True), device=device)
