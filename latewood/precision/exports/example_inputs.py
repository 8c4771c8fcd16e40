"""What a packed network is called with."""

from __future__ import annotations

import torch
from torch import Tensor

from latewood.errors import invalid
from latewood.precision.packed_graph import NetworkGraph

__all__ = ["example_tensors"]


def example_tensors(
    graph: NetworkGraph, example_inputs: Tensor | tuple[Tensor, ...] | None
) -> tuple[Tensor, ...]:
    """What a network is called with: as given, or zeros of the shapes that it remembers.

    Args:
        graph: of a packed network.
        example_inputs: None for those of ``pack``.

    Raises:
        RequestError: something else than tensors, or None for a network that remembers nothing.
    """
    if example_inputs is None:
        if not graph.inputs:
            raise invalid("example_inputs", None, "tensors: this file does not say what it takes")
        return tuple(torch.zeros(shape, dtype=_dtype(name)) for name, shape in graph.inputs)
    given = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    if not isinstance(given, (tuple, list)) or not all(isinstance(x, Tensor) for x in given):
        raise invalid("example_inputs", type(example_inputs).__name__, "tensors, one or more")
    takes = sum(kind == "input" for kind, *_ in graph.nodes)
    if len(given) != takes:
        raise invalid("example_inputs", f"{len(given)} tensors", f"{takes}, as the network takes")
    return tuple(given)


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise invalid("example_inputs", None, f"tensors: this file names the unknown type {name!r}")
    return dtype
