"""What a probe observes of a model, looked up again only where the model has changed its layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from latewood.errors import RequestError, invalid
from latewood.spectra.layer_pairs import LayerPair, as_layer_pair
from latewood.spectra.matrices.named_matrices import MatrixView, Views
from latewood.spectra.pair_inference import infer_pairs
from latewood.spectra.pair_operands import Operands, fits, pair_operands

__all__ = ["ObservedPart", "ObservedView", "ResolvedMatrices"]


@dataclass(frozen=True)
class ObservedView:
    """One matrix that an observation measures.

    Args:
        view: the matrix.
        in_snapshot: whether its spectrum goes into the snapshot; others only serve alignments.
    """

    view: MatrixView
    in_snapshot: bool


@dataclass(frozen=True)
class ObservedPart:
    """What one observation covers.

    Args:
        views: its matrices.
        operands: those of its pairs of layers, by the name of the pair.
        names: of all matrices, also those that other observations cover.
    """

    views: list[ObservedView]
    operands: dict[str, Operands]
    names: frozenset[str]


class ResolvedMatrices:
    """The matrices of a model and the operands of its pairs, as they are at each observation.

    Finding them in a model of many small layers takes longer than decomposing them.

    Args:
        model: any module, not wrapped.
        views: which matrices to observe, and how.
        pairs: consecutive layers; "auto" for ``infer_pairs(model, example_inputs)``; None for none.
        example_inputs: what the model is called with, for "auto".

    Raises:
        RequestError: globs that match nothing, or pairs that do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        views: Views,
        pairs: Sequence[LayerPair | tuple[str, str]] | Literal["auto"] | None,
        example_inputs: Any = None,
    ) -> None:
        self.model = model
        self.example_inputs = example_inputs
        self.views = views
        views.of(model)
        self.pairs: list[LayerPair] | Literal["auto"] = "auto"
        if pairs != "auto":
            self.pairs = [as_layer_pair(pair) for pair in pairs or ()]
            _require_fitting(model, self.pairs)
        self._layout: tuple[list[nn.Module], list[object]] | None = None
        self._resolved: tuple[list[MatrixView], dict[str, Operands]] = ([], {})

    def __deepcopy__(self, memo: dict[int, Any]) -> ResolvedMatrices:
        copied = copy.copy(self)
        memo[id(self)] = copied
        copied.model = copy.deepcopy(self.model, memo)
        # Views read through functions, which a copy would share, and with them the old model.
        copied._layout, copied._resolved = None, ([], {})
        return copied

    def part(self, turn: int | None, parts: int) -> ObservedPart:
        """One of so many parts of what there is now.

        Args:
            turn: which, modulo the number of parts; None for everything.
            parts: how many take turns.
        """
        views, operands = self.now()
        names = frozenset(observed.view.name for observed in _observed(views, operands))
        if turn is not None:
            parts = min(parts, len(views) or 1)
            first = turn % parts
            views, operands = views[first::parts], dict([*operands.items()][first::parts])
        return ObservedPart(_observed(views, operands), operands, names)

    def now(self) -> tuple[list[MatrixView], dict[str, Operands]]:
        """The matrices, and the operands by the names of the pairs, without what has gone."""
        layers = list(self.model.modules())
        weights: list[object] = [(p.shape, p.dtype) for p in self.model.parameters()]
        if self._layout is None or not _same(self._layout[0], layers) or weights != self._layout[1]:
            self._layout = layers, weights
            self._resolved = self.views.again(self.model), self._operands()
        return self._resolved

    def _operands(self) -> dict[str, Operands]:
        pairs = self.pairs
        if pairs == "auto":
            pairs = infer_pairs(self.model, self.example_inputs)
        fitting = [pair for pair in pairs if _still_fits(self.model, pair)]
        return {pair.name: pair_operands(self.model, pair) for pair in fitting}


def _observed(views: Sequence[MatrixView], operands: Mapping[str, Operands]) -> list[ObservedView]:
    """The matrices, then what only the pairs need, each name once."""
    observed = {view.name: ObservedView(view, in_snapshot=True) for view in views}
    for operand in (operand for both in operands.values() for operand in both):
        only_aligned = ObservedView(operand.view, in_snapshot=False)
        observed.setdefault(operand.view.name, only_aligned)
    return list(observed.values())


def _same(before: Sequence[nn.Module], after: Sequence[nn.Module]) -> bool:
    return len(before) == len(after) and all(map(lambda a, b: a is b, before, after))


def _require_fitting(model: nn.Module, pairs: Sequence[LayerPair]) -> None:
    for pair in pairs:
        if not fits(model, pair):
            raise invalid("pairs", pair.name, "layers that fit each other, without groups")
        pair_operands(model, pair)


def _still_fits(model: nn.Module, pair: LayerPair) -> bool:
    # Layers may grow or go during the training, which a probe must survive.
    try:
        return fits(model, pair)
    except RequestError:
        return False
