"""Randomness as a function of the seed: every stream of every step starts where its name says."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = [
    "caller_unchanged",
    "derive",
    "host_random_state",
    "restore_host_random_state",
    "seed_everything",
    "seed_torch",
]


def derive(seed: int, *names: str | int) -> int:
    """A seed of its own for every stream, unrelated to those of other names.

    Args:
        seed: the run's seed.
        names: what the stream is for, and of which step and process.

    Returns:
        an integer in [0, 2**63).
    """
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_torch(seed: int, device: torch.device) -> None:
    """Seeds torch's global generators of the CPU and of one device.

    Dropout and the like draw from these. ``torch.manual_seed`` would do as well, but without an
    initialised CUDA it records a stack trace at every call, which is far too slow for every step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.init()
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def seed_everything(seed: int, device: torch.device) -> None:
    """Seeds torch's, Python's and numpy's global generators."""
    seed_torch(seed, device)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002


def host_random_state() -> dict[str, Any]:
    """The states of Python's and numpy's global generators, which a user's transforms may use."""
    legacy = np.random.get_state(legacy=False)  # noqa: NPY002
    assert isinstance(legacy, dict)
    inner = legacy["state"]
    return {
        "python": random.getstate(),
        "numpy": {
            "key": torch.from_numpy(inner["key"].astype(np.int64)),
            "pos": int(inner["pos"]),
            "has_gauss": int(legacy["has_gauss"]),
            "gauss": float(legacy["gauss"]),
        },
    }


def restore_host_random_state(state: Mapping[str, Any]) -> None:
    """Restores what ``host_random_state`` returned."""
    random.setstate(state["python"])
    saved = state["numpy"]
    np.random.set_state(  # noqa: NPY002
        {
            "bit_generator": "MT19937",
            "state": {"key": saved["key"].numpy().astype(np.uint32), "pos": saved["pos"]},
            "has_gauss": saved["has_gauss"],
            "gauss": saved["gauss"],
        }
    )


@contextmanager
def caller_unchanged(*, cuda: bool = False) -> Iterator[None]:
    """Gives the caller's global generators, default dtype and thread count back as they were.

    Args:
        cuda: whether the generators of CUDA devices, if there are any, may be touched.
    """
    devices = list(range(torch.cuda.device_count())) if cuda else []
    host, dtype, threads = host_random_state(), torch.get_default_dtype(), torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=devices):
            torch.set_default_dtype(torch.float32)
            yield
    finally:
        restore_host_random_state(host)
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
