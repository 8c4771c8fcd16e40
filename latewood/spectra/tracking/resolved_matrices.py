"""What a probe finds in a model, looked up again only where the model has changed its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from latewood.errors import RequestError, invalid
from latewood.spectra.layer_pairs import Pair, as_pair, infer_pairs
from latewood.spectra.matrices.named_matrices import MatrixView, Views
from latewood.spectra.pair_operands import Side, fits, pair_sides

__all__ = ["Resolved", "Share"]

Sides = dict[str, tuple[Side, Side]]


@dataclass(frozen=True)
class Share:
    """What one look takes.

    Args:
        views: by name, each with whether its spectrum is kept; others only serve alignments.
        pairs: the sides by the name of the pair.
        names: of all views, also those that other looks take.
    """

    views: dict[str, tuple[MatrixView, bool]]
    pairs: Sides
    names: frozenset[str]


class Resolved:
    """The matrices of a model and the sides of its pairs, as they are at each look.

    Finding them in a model of many small layers takes longer than decomposing them.

    Args:
        model: any module, not wrapped.
        views: which matrices to look at, and how.
        pairs: consecutive layers; "auto" for ``infer_pairs(model)``; None for none.

    Raises:
        RequestError: globs that match nothing, or pairs that do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        views: Views,
        pairs: Sequence[Pair | tuple[str, str]] | Literal["auto"] | None,
    ) -> None:
        self.model = model
        self.views = views
        self.pairs = pairs if pairs is None or pairs == "auto" else [as_pair(p) for p in pairs]
        views.of(model)
        if isinstance(self.pairs, list):
            _require_fitting(model, self.pairs)
        self._layout: tuple[list[nn.Module], list[object]] | None = None
        self._found: tuple[list[MatrixView], Sides] = ([], {})

    def share(self, look: int | None, parts: int) -> Share:
        """The next of so many parts of what there is now.

        Args:
            look: number of the look; None for one that takes everything.
            parts: how many looks take turns.
        """
        found, pairs = self.now()
        names = frozenset(_by_name(found, pairs))
        if look is not None:
            parts = min(parts, len(found) or 1)
            turn = look % parts
            found, pairs = found[turn::parts], dict([*pairs.items()][turn::parts])
        return Share(_by_name(found, pairs), pairs, names)

    def now(self) -> tuple[list[MatrixView], Sides]:
        """The matrices, and the sides by the names of the pairs, without what has gone."""
        layers = list(self.model.modules())
        weights: list[object] = [(p.shape, p.dtype) for p in self.model.parameters()]
        if self._layout is None or not _same(self._layout[0], layers) or weights != self._layout[1]:
            self._layout = layers, weights
            self._found = self.views.again(self.model), self._sides()
        return self._found

    def _sides(self) -> Sides:
        if self.pairs is None:
            return {}
        chosen = self.pairs if isinstance(self.pairs, list) else infer_pairs(self.model)
        return {p.name: pair_sides(self.model, p) for p in chosen if _still_fits(self.model, p)}


def _by_name(
    found: Sequence[MatrixView], pairs: Mapping[str, tuple[Side, Side]]
) -> dict[str, tuple[MatrixView, bool]]:
    views = {view.name: (view, True) for view in found}
    for side in (side for both in pairs.values() for side in both):
        views.setdefault(side.view.name, (side.view, False))
    return views


def _same(before: Sequence[nn.Module], after: Sequence[nn.Module]) -> bool:
    return len(before) == len(after) and all(map(lambda a, b: a is b, before, after))


def _require_fitting(model: nn.Module, pairs: Sequence[Pair]) -> None:
    for pair in pairs:
        if not fits(model, pair):
            raise invalid("pairs", pair.name, "layers that fit each other, without groups")
        pair_sides(model, pair)


def _still_fits(model: nn.Module, pair: Pair) -> bool:
    # Layers may grow or go during the training, which a probe must survive.
    try:
        return fits(model, pair)
    except RequestError:
        return False
