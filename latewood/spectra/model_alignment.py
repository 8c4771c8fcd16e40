"""The alignment of every pair of consecutive layers of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from latewood.spectra.alignment import Alignment
from latewood.spectra.layer_pairs import LayerPair, as_layer_pair
from latewood.spectra.pair_inference import infer_pairs
from latewood.spectra.pair_operands import operands_alignment, pair_operands
from latewood.spectra.solvers.leading_vectors import Factors, factors

__all__ = ["model_alignment"]


def model_alignment(
    model: nn.Module,
    pairs: Sequence[LayerPair | tuple[str, str]] | None = None,
    *,
    example_inputs: Tensor | Sequence[Any] | dict[str, Any] | None = None,
    k: int | None = 100,
    gate: int = 2,
    per_head: bool = False,
    top: int = 10,
) -> dict[str, Alignment]:
    """The alignment of every pair of consecutive layers, each by the rule of its kind.

    Convolutions are read at the centre tap, recurrent layers written at one gate, embeddings
    written by their columns; query and key are compared per head and averaged.

    Args:
        model: any module, with or without transformations on its weights.
        pairs: which; ``infer_pairs(model, example_inputs)`` if None. A tuple is (outputs, inputs).
        example_inputs: what the model is called with, to see which layer reads which.
        k: number of vectors; None for all.
        gate: which gate of recurrent layers, see ``gate_directions``.
        per_head: compare values and output projections head by head and average.
        top: entries of the diagonal that the score averages.

    Returns:
        Alignments by ``LayerPair.name``, without leading dimensions.

    Raises:
        RequestError: no pair of names, a name that is not a matrix of the model, layers that do not
            fit, or a grouped convolution.
    """
    chosen = (
        infer_pairs(model, example_inputs)
        if pairs is None
        else [as_layer_pair(pair) for pair in pairs]
    )
    decomposed: dict[str, Factors] = {}
    alignments: dict[str, Alignment] = {}
    for pair in chosen:
        operands = pair_operands(model, pair, gate=gate, per_head=per_head)
        for operand in operands:
            if operand.view.name not in decomposed:
                decomposed[operand.view.name] = factors(operand.view.read(), k)
        alignments[pair.name] = operands_alignment(operands, decomposed, top=top)
    return alignments
