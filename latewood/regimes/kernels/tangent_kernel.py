"""The tangent kernel of any model, in blocks of examples under a limit of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, get_args

import torch
from torch import Tensor, nn

from latewood.errors import invalid
from latewood.regimes.kernels.example_gradients import (
    ChangedWay,
    ExampleGradients,
    Inputs,
    ParameterMethod,
    examples_of,
    part_of,
)
from latewood.regimes.kernels.gradient_pieces import Mode, Piece, contract

__all__ = ["layer_kernels", "tangent_kernel", "tangent_methods"]

MEMORY: Final = 2**30


def tangent_kernel(
    model: nn.Module,
    inputs: Inputs,
    other: Inputs | None = None,
    *,
    mode: Mode = "full",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    memory: int = MEMORY,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
) -> Tensor:
    r"""The empirical tangent kernel of a model.

    .. math:: K_{cd}(x, x') = \langle \nabla_w f_c(x), \nabla_w f_d(x') \rangle

    Layer by layer, from what each reads and the gradients of the outputs in what it returns, so
    that the Jacobian is never formed: linear layers, convolutions, norms, embeddings, products and
    sums with a parameter, and weights that several of them share. Other parameters take a slow
    way, see ``tangent_methods``. The model runs in the mode that it is in, and nothing of it
    changes.

    Args:
        model: gives (N, C) of N examples.
        inputs: N1 examples: a tensor, or a tuple or dict of positional or keyword arguments, every
            tensor with the examples along its first axis.
        other: N2 examples; the same if None.
        mode: "full"; "trace", the sum over c = d; "diagonal", all c = d; "sum", the kernel of the
            sum of all outputs.
        include: globs on names of parameters to cover; only those that are trained.
        exclude: globs on names of parameters to leave out.
        dtype: in which to compute; the model's own if None.
        memory: bytes for gradients and what layers read, beside the kernel itself and one run of
            the model on one example.
        forward: how to run the model on inputs, where its output is not (N, C).

    Returns:
        (N1, N2, C, C) for "full", (N1, N2, C) for "diagonal", (N1, N2) for "trace" and "sum".

    Raises:
        RequestError: a batch norm or dropout in training mode, a model whose examples depend on
            each other or on chance, outputs that are not (N, C), or an argument out of range.

    Source: Jacot et al. 2018 (arXiv 1806.07572) for the kernel; by layers it is ours.
    """
    total: Tensor | None = None
    for kernel in _kernels(
        model, inputs, other, mode, include, exclude, dtype, memory, forward, each=False
    ).values():
        total = kernel
    assert total is not None
    return total


def layer_kernels(
    model: nn.Module,
    inputs: Inputs,
    other: Inputs | None = None,
    *,
    mode: Mode = "trace",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    memory: int = MEMORY,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
) -> dict[str, Tensor]:
    """The parts of ``tangent_kernel`` by parameter; their sum is the kernel.

    Args:
        model: as in ``tangent_kernel``, like all others.
        inputs: N1 examples.
        other: N2 examples; the same if None.
        mode: as there.
        include: as there.
        exclude: as there.
        dtype: as there.
        memory: as there; the parts come on top.
        forward: as there.

    Returns:
        {name of a parameter: its kernel}.

    Raises:
        RequestError: as ``tangent_kernel``.
    """
    return _kernels(model, inputs, other, mode, include, exclude, dtype, memory, forward, each=True)


def tangent_methods(
    model: nn.Module,
    inputs: Inputs,
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
) -> list[ParameterMethod]:
    """How ``tangent_kernel`` finds the gradient of each parameter: by its layer, or slowly and why.

    Args:
        model: as there.
        inputs: a few examples are enough.
        include: as there.
        exclude: as there.
        forward: as there.

    Raises:
        RequestError: as ``tangent_kernel``.
    """
    return ExampleGradients(
        model, inputs, mode="full", include=include, exclude=exclude, forward=forward
    ).methods


def _kernels(
    model: nn.Module,
    inputs: Inputs,
    other: Inputs | None,
    mode: Mode,
    include: Sequence[str],
    exclude: Sequence[str],
    dtype: torch.dtype | None,
    memory: int,
    forward: Callable[[nn.Module, Any], Tensor] | None,
    *,
    each: bool,
) -> dict[str, Tensor]:
    """The kernel of every parameter, or of all under the name ""."""
    if mode not in get_args(Mode):
        raise invalid("mode", mode, "one of " + ", ".join(map(repr, get_args(Mode))))
    if isinstance(memory, bool) or not isinstance(memory, int) or memory < 2**20:
        raise invalid("memory", memory, "a number of bytes of at least 2 ** 20")
    if dtype not in (None, torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise invalid("dtype", dtype, "a real floating type, or None")
    rows = examples_of(inputs)
    columns = rows if other is None else examples_of(other, "other")
    gradients = ExampleGradients(
        model, inputs, mode=mode, include=include, exclude=exclude, dtype=dtype, forward=forward
    )
    while True:
        try:
            result = _computed(gradients, inputs, other, (rows, columns), mode, memory, each=each)
        except ChangedWay:
            # At most once for every parameter.
            continue
        if not result:
            raise invalid("model", type(model).__name__, "outputs that depend on its parameters")
        return result


def _computed(
    gradients: ExampleGradients,
    inputs: Inputs,
    other: Inputs | None,
    size: tuple[int, int],
    mode: Mode,
    memory: int,
    *,
    each: bool,
) -> dict[str, Tensor]:
    rows, columns = size
    # Of the memory, two blocks of gradients take half, and dense parts of them the rest.
    block = max(1, memory // 4 // max(1, gradients.bytes_per_example))
    result: dict[str, Tensor] = {}
    for low, left in _blocks(gradients, inputs, rows, block):
        high = min(low + block, rows)
        if other is None:
            _add(result, left, left, (low, high), (low, high), (rows, rows), mode, memory, each)
            start = high
        else:
            start = 0
        source = inputs if other is None else other
        for first in range(start, columns, block):
            last = min(first + block, columns)
            right = gradients.pieces(part_of(source, slice(first, last)))
            _add(
                result, left, right, (low, high), (first, last), (rows, columns), mode, memory, each
            )
            if other is None:
                for kernel in result.values():
                    upper = kernel[low:high, first:last].transpose(0, 1)
                    kernel[first:last, low:high] = upper.mT if mode == "full" else upper
    return result


def _blocks(
    gradients: ExampleGradients, inputs: Inputs, count: int, block: int
) -> Iterator[tuple[int, dict[str, list[Piece]]]]:
    for low in range(0, count, block):
        yield low, gradients.pieces(part_of(inputs, slice(low, low + block)))


def _add(
    result: dict[str, Tensor],
    left: dict[str, list[Piece]],
    right: dict[str, list[Piece]],
    rows: tuple[int, int],
    columns: tuple[int, int],
    size: tuple[int, int],
    mode: Mode,
    memory: int,
    each: bool,
) -> None:
    """Adds the kernel of a pair of blocks at its place."""
    # In the order of the model's parameters: that of a set changes sums and names from run to run.
    for name in [name for name in left if name in right]:
        part = contract(left[name], right[name], mode, memory // 4)
        key = name if each else ""
        if key not in result:
            result[key] = part.new_zeros(*size, *part.shape[2:])
        result[key][rows[0] : rows[1], columns[0] : columns[1]] += part
