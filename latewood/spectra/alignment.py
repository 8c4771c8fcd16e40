"""Whether what one layer writes most is what the next layer reads most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from latewood.errors import RequestError, invalid
from latewood.spectra.baselines import random_cosine
from latewood.spectra.solvers.leading_vectors import factors

__all__ = [
    "Alignment",
    "alignment",
    "attention_projections",
    "gate_directions",
    "query_key_alignment",
    "tap_directions",
    "value_output_alignment",
]


@dataclass(frozen=True)
class Alignment:
    """Which output directions of one layer are input directions of the next.

    Args:
        matrix: (..., j, k), entry (j, k) for output direction j and input direction k.
        diagonal: (..., min(j, k)).
        score: (...), the mean of the diagonal's first entries.
        baseline: what independent random directions give on average.
    """

    matrix: Tensor
    diagonal: Tensor
    score: Tensor
    baseline: float

    def mean(self) -> Alignment:
        """The average over all leading dimensions, those of attention heads."""
        return Alignment(
            self.matrix.flatten(0, -3).mean(0) if self.matrix.ndim > 2 else self.matrix,
            self.diagonal.flatten(0, -2).mean(0) if self.diagonal.ndim > 1 else self.diagonal,
            self.score.mean(),
            self.baseline,
        )


def alignment(outputs: Tensor, inputs: Tensor, *, top: int = 10) -> Alignment:
    r"""The alignment of two consecutive layers from their singular vectors.

    .. math:: A_{jk} = |\langle u_j(W_i), v_k(W_{i+1}) \rangle|

    For two linear layers ``alignment(factors(first).left, factors(second).right)``; other layers
    select their part of the vectors first, with ``tap_directions`` or ``gate_directions``.

    Args:
        outputs: (..., d, j), the left vectors of the layer that writes, as columns.
        inputs: (..., d, k), the right vectors of the layer that reads.
        top: entries of the diagonal that the score averages; all, if there are fewer.

    Returns:
        Matrix, diagonal and score in float64, entries in [0, 1]; NaN where a vector is.

    Raises:
        RequestError: the layers do not fit, or ``top`` is below 1.

    Source: arXiv 2408.11804, equations 3 and 4.
    """
    if outputs.shape[-2] != inputs.shape[-2]:
        raise RequestError(
            f"inputs: got directions of {inputs.shape[-2]} entries; expected the "
            f"{outputs.shape[-2]} of outputs"
        )
    if top < 1:
        raise invalid("top", top, "an integer of at least 1")
    matrix = (outputs.double().mT @ inputs.double()).abs()
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    baseline = random_cosine(outputs.shape[-2])
    return Alignment(matrix, diagonal, diagonal[..., :top].mean(-1), baseline)


def tap_directions(
    right: Tensor, kernel: Sequence[int], *, tap: Sequence[int] | None = None
) -> Tensor:
    """The input directions of a convolution at one tap of its kernel, as they are.

    The part is not normalised again: with the energy spread evenly over t taps, an alignment is at
    most 1 / sqrt(t).

    Args:
        right: (..., channels * taps, R), right vectors of the flattened kernel.
        kernel: its spatial shape.
        tap: which entry of the kernel; the centre, ``size // 2``, if None.

    Returns:
        (..., channels, R).

    Raises:
        RequestError: the kernel does not divide the vectors, or has no such tap.

    Source: arXiv 2408.11804, section 3, and its released code.
    """
    sizes = tuple(kernel)
    if right.shape[-2] % math.prod(sizes):
        raise invalid("kernel", sizes, f"sizes whose product divides {right.shape[-2]}")
    chosen = tuple(size // 2 for size in sizes) if tap is None else tuple(tap)
    if len(chosen) != len(sizes) or any(
        not 0 <= t < s for t, s in zip(chosen, sizes, strict=False)
    ):
        raise invalid("tap", chosen, f"one index per side of the kernel {sizes}")
    flat = 0
    for index, size in zip(chosen, sizes, strict=True):
        flat = flat * size + index
    part: Tensor = right.unflatten(-2, (-1, math.prod(sizes)))[..., flat, :]
    return part


def gate_directions(left: Tensor, *, gate: int = 2, gates: int = 4) -> Tensor:
    """The output directions of a recurrent layer at one of its gates, as they are.

    Args:
        left: (..., gates * hidden, R), left vectors of the stacked gates.
        gate: which gate; in torch's order, i f g o, 2 is the LSTM's cell input.
        gates: 4 for an LSTM, 3 for a GRU, 1 for a plain recurrence.

    Returns:
        (..., hidden, R).

    Raises:
        RequestError: the gates do not divide the vectors, or there is no such gate.

    Source: arXiv 2408.11804, released code.
    """
    if gates < 1 or left.shape[-2] % gates:
        raise invalid("gates", gates, f"a divisor of {left.shape[-2]}")
    if not 0 <= gate < gates:
        raise invalid("gate", gate, f"an index below {gates}")
    part: Tensor = left.unflatten(-2, (gates, -1))[..., gate, :, :]
    return part


def attention_projections(
    in_proj: Tensor, heads: int | None = None, *, kv_heads: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The query, key and value projections of a fused one.

    Args:
        in_proj: ((H + 2 G) h, n), the rows of the queries, the keys, then the values, for H heads
            of h rows; G = H unless several heads share their keys and values.
        heads: None for whole matrices of equal size; a number H for one matrix per head.
        kv_heads: the number G of heads of keys and values; H if None.

    Returns:
        Queries, keys, values: each (d, n), or (H, h, n) and twice (G, h, n).

    Raises:
        RequestError: the rows cannot be split that way, or G does not divide H.
    """
    if heads is not None and heads < 1:
        raise invalid("heads", heads, "an integer of at least 1, or None")
    if kv_heads is not None and (heads is None or kv_heads < 1 or heads % kv_heads):
        raise invalid("kv_heads", kv_heads, f"a divisor of heads ({heads}), or None")
    query_heads, key_heads = heads or 1, kv_heads or heads or 1
    blocks = query_heads + 2 * key_heads
    if in_proj.shape[0] % blocks:
        raise invalid("in_proj", tuple(in_proj.shape), f"{blocks} x an integer rows")
    size = in_proj.shape[0] // blocks
    query, key, value = in_proj.split([query_heads * size, key_heads * size, key_heads * size])
    if heads is None:
        return query, key, value
    key, value = (rows.unflatten(0, (key_heads, -1)) for rows in (key, value))
    return query.unflatten(0, (query_heads, -1)), key, value


def query_key_alignment(
    in_proj: Tensor,
    heads: int,
    *,
    kv_heads: int | None = None,
    k: int | None = 100,
    top: int = 10,
) -> Alignment:
    """Whether the queries and keys of each head have the same directions.

    Their output sides are contracted with each other, as attention does.

    Args:
        in_proj: ((H + 2 G) h, n), as ``attention_projections`` takes it.
        heads: number of heads H.
        kv_heads: number G of heads of keys, each compared with its H / G heads of queries.
        k: number of vectors per head; None for all.
        top: entries of the diagonal that the score averages.

    Returns:
        Matrix (H, R, R) with R = min(h, n, k), diagonal (H, R), score (H).

    Raises:
        RequestError: the rows cannot be split that way.

    Source: arXiv 2408.11804, released code.
    """
    query, key, _ = attention_projections(in_proj, heads, kv_heads=kv_heads)
    shared = factors(key, k).left.repeat_interleave(len(query) // len(key), dim=0)
    return alignment(factors(query, k).left, shared, top=top)


def value_output_alignment(
    in_proj: Tensor,
    out_proj: Tensor,
    heads: int | None = None,
    *,
    k: int | None = 100,
    top: int = 10,
) -> Alignment:
    """Whether the output projection of attention reads what its values write.

    Args:
        in_proj: (3 d, n).
        out_proj: (m, d).
        heads: None compares the whole matrices, as the released code does; a number H compares
            head by head, as the paper says.
        k: number of vectors; None for all.
        top: entries of the diagonal that the score averages.

    Returns:
        Matrix (R, R'), diagonal and scalar score, or one of each per head.

    Raises:
        RequestError: the projections do not fit.

    Source: arXiv 2408.11804.
    """
    value = attention_projections(in_proj, heads)[2]
    if 3 * out_proj.shape[1] != in_proj.shape[0]:
        raise invalid("out_proj", tuple(out_proj.shape), f"{in_proj.shape[0] // 3} columns")
    if heads is not None:
        out_proj = out_proj.unflatten(1, (heads, -1)).transpose(0, 1)
    return alignment(factors(value, k).left, factors(out_proj, k).right, top=top)
