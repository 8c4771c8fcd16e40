"""The registers that a layer needs under very many pattern sets at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from latewood.errors import RequestError, invalid
from latewood.precision.patterns import PATTERNS, fit_counts
from latewood.precision.simd.choice_search import ChoiceSearch, choices

__all__ = ["UNFIT", "SetFits", "SetSearch", "fit_sets", "pattern_sets"]

EXHAUSTIVE_VECTORS: Final = 24
"""Up to so many registers every choice of patterns is tried; beyond, those near the relaxation."""

UNFIT: Final = np.iinfo(np.int64).max
"""Number of registers where a set has no slots wide enough."""

_MARGIN: Final = 3
_CHUNK: Final = 1 << 14
_TOLERANCE: Final = 1e-9


@dataclass(frozen=True)
class SetFits:
    """How one layer's elements lie in registers under each of n pattern sets.

    Args:
        vectors: (n,) registers; ``UNFIT`` where a set has no slots wide enough.
        promoted: (n,) elements in a slot wider than they need.
        uses: (n, size) registers of each pattern of the set.
    """

    vectors: NDArray[np.int64]
    promoted: NDArray[np.int64]
    uses: NDArray[np.int64]


def pattern_sets(size: int, candidates: Sequence[int] = range(45)) -> NDArray[np.int64]:
    """All sets of so many patterns, (n, size) ascending indices; 148,995 of four.

    Args:
        size: patterns in a set.
        candidates: indices to choose from.
    """
    ordered = sorted(set(candidates))
    if size > len(ordered):
        raise invalid("size", size, f"at most {len(ordered)}, the number of candidates")
    chosen = itertools.chain.from_iterable(itertools.combinations(ordered, size))
    return np.fromiter(chosen, dtype=np.int64).reshape(-1, size)


def fit_sets(sets: NDArray[np.integer], counts: tuple[int, int, int]) -> SetFits:
    """Fits a layer to sets of any size, one after the other, by ``fit_counts``.

    Args:
        sets: (n, size) indices of patterns.
        counts: (n4, n2, n1) elements.
    """
    fits = SetFits(
        np.full(len(sets), UNFIT, dtype=np.int64),
        np.zeros(len(sets), dtype=np.int64),
        np.zeros(sets.shape, dtype=np.int64),
    )
    for place, members in enumerate(sets.tolist()):
        try:
            fit = fit_counts(counts, members)
        except RequestError:
            continue
        uses = dict(fit.uses)
        fits.vectors[place], fits.promoted[place] = fit.vectors, fit.promoted
        fits.uses[place] = [uses.get(index, 0) for index in members]
    return fits


class SetSearch:
    """Fits layers to n pattern sets of one size.

    A set either leaves a pattern unused, and then has the fit of a smaller set, or uses each of its
    patterns. Those choices are tried for all sets together, from the number of registers that the
    linear relaxation needs to that of the smaller sets, in the order of their indices, so that ties
    are broken as in ``fit_counts``. Where more than ``EXHAUSTIVE_VECTORS`` are needed, all but a
    dozen registers or so follow the relaxation's solution; then the result is one that fits, though
    in about one case of twenty not the best.

    Args:
        sets: (n, size) indices of up to four patterns, each row ascending.
    """

    def __init__(self, sets: NDArray[np.integer]) -> None:
        if sets.ndim != 2 or not 1 <= sets.shape[1] <= 4:
            raise invalid("sets", sets.shape, "a shape of (number of sets, 1 to 4 patterns)")
        self.sets = sets.astype(np.int64)
        granules = np.array(PATTERNS, dtype=np.int64)
        self._g4, self._g2 = granules[self.sets, 0], granules[self.sets, 1]
        size = self.sets.shape[1]
        self._subsets = [_Subsets(self.sets, number) for number in range(1, min(3, size) + 1)]
        self._known: dict[tuple[int, int, int], SetFits] = {}
        self._without: list[tuple[int, NDArray[np.int64]]] = []
        if size > 1:
            parts = self._subsets[size - 2]
            self._smaller = SetSearch(parts.unique)
            # The smaller sets leave out the last pattern first.
            self._without = [(size - 1 - i, parts.of_set[:, i]) for i in range(size)]

    def fit(self, counts: tuple[int, int, int]) -> SetFits:
        """The fit of a layer's elements under each set; equal counts are searched once.

        Args:
            counts: (n4, n2, n1) elements.
        """
        if counts not in self._known:
            self._known[counts] = self._fit(counts)
        return self._known[counts]

    def _fit(self, counts: tuple[int, int, int]) -> SetFits:
        number, size = self.sets.shape
        if not any(counts):
            nothing = np.zeros(number, dtype=np.int64)
            return SetFits(nothing, nothing.copy(), 0 * self.sets)
        if size == 1:
            return self._of_one(counts)
        best = self._best_of_smaller(counts)
        bound, base = self._relaxed(counts)
        fits = np.isfinite(bound)
        tried = np.zeros(number, dtype=np.int64)
        tried[fits] = np.ceil(bound[fits] * (1 - 1e-12) - _TOLERANCE).astype(np.int64)
        based = base.sum(axis=1)
        # Every pattern is used: no fewer registers than the base has.
        tried = np.maximum(tried, based)
        waiting = np.flatnonzero(fits & (tried <= best.vectors))
        while len(waiting):
            # Those that need the same number of registers beyond their base go together.
            free = tried[waiting] - based[waiting]
            for rest in np.unique(free):
                group = waiting[free == rest]
                for start in range(0, len(group), _CHUNK):
                    part = group[start : start + _CHUNK]
                    self._improve(best, counts, part, tried[part], base[part], int(rest))
            tried[waiting] += 1
            waiting = waiting[tried[waiting] <= best.vectors[waiting]]
        return best

    def _of_one(self, counts: tuple[int, int, int]) -> SetFits:
        """Sets of one pattern: as many registers as its scarcest slots ask for."""
        g4, g2 = self._g4[:, 0], self._g2[:, 0]
        gives = np.stack([g4, g4 + 2 * g2, 32 - 3 * g4 - 2 * g2])
        needs = _needs(counts).astype(np.int64)[:, None]
        unfit = ((gives == 0) & (needs > 0)).any(axis=0)
        vectors = np.where(unfit, 0, (-(-needs // np.maximum(gives, 1))).max(axis=0))
        left2 = np.maximum(0, counts[1] - 8 * g2 * vectors)
        left1 = np.maximum(0, counts[2] - 16 * (8 - g4 - g2) * vectors)
        return SetFits(
            np.where(unfit, UNFIT, vectors),
            np.where(unfit, 0, left2 + left1),
            vectors[:, None],
        )

    def _best_of_smaller(self, counts: tuple[int, int, int]) -> SetFits:
        """The best fit that leaves a pattern of the set unused."""
        fits = self._smaller.fit(counts)
        number, size = self.sets.shape
        vectors = np.full(number, UNFIT, dtype=np.int64)
        promoted = np.zeros(number, dtype=np.int64)
        uses = np.zeros((number, size), dtype=np.int64)
        for missing, of_set in self._without:
            used = np.insert(fits.uses[of_set], missing, 0, axis=1)
            others = SetFits(fits.vectors[of_set], fits.promoted[of_set], used)
            better = (others.vectors < vectors) | (
                (others.vectors == vectors)
                & (
                    (others.promoted < promoted)
                    | ((others.promoted == promoted) & _comes_first(used, uses))
                )
            )
            vectors[better] = others.vectors[better]
            promoted[better] = others.promoted[better]
            uses[better] = used[better]
        return SetFits(vectors, promoted, uses)

    def _improve(
        self,
        best: SetFits,
        counts: tuple[int, int, int],
        part: NDArray[np.int64],
        vectors: NDArray[np.int64],
        base: NDArray[np.int64],
        free: int,
    ) -> None:
        """Tries all choices of ``free`` registers beyond the base, and keeps what is better."""
        g4, g2 = self._g4[part], self._g2[part]
        start = _room(counts, (base * g4).sum(axis=1), (base * g2).sum(axis=1), base.sum(axis=1))
        # What one register of each pattern adds to the room: (size, 5, n).
        steps = np.stack([_room((0, 0, 0), g4[:, i], g2[:, i], 1) for i in range(g4.shape[1])])
        extent = max(int(np.abs(start).max()), 1) + free * max(int(np.abs(steps).max()), 1)
        dtype = np.int16 if extent < 1 << 13 else np.int32 if extent < 1 << 29 else np.int64
        # Equally many promotions are looked at too: the order of the patterns then decides.
        same = vectors == best.vectors[part]
        limit = np.where(same, best.promoted[part] + 1, np.iinfo(dtype).max // 2)
        search = ChoiceSearch(start.astype(dtype), steps.astype(dtype), limit.astype(dtype))
        search.visit(0, free, search.start, 0)
        found = np.flatnonzero(search.choice >= 0)
        uses = base[found] + choices(free, g4.shape[1])[search.choice[found]]
        promoted = search.least[found].astype(np.int64)
        places = part[found]
        tied = same[found] & (promoted == best.promoted[places])
        better = ~tied | _comes_first(uses, best.uses[places])
        places = places[better]
        best.vectors[places] = vectors[found][better]
        best.promoted[places] = promoted[better]
        best.uses[places] = uses[better]

    def _relaxed(
        self, counts: tuple[int, int, int]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Least real number of registers for each set, and the whole ones from which to try."""
        needs = _needs(counts)
        bounds = [subsets.bounds(needs) for subsets in self._subsets]
        # (n, subsets): the least bound of a set is that of its best subset.
        table = np.concatenate(
            [
                bound[subsets.of_set]
                for subsets, (bound, _) in zip(self._subsets, bounds, strict=True)
            ],
            axis=1,
        )
        best = table.argmin(axis=1)
        least = table[np.arange(len(table)), best]
        base = np.ones(self.sets.shape, dtype=np.int64)
        large = np.flatnonzero(np.isfinite(least) & (least > EXHAUSTIVE_VECTORS))
        first = 0
        for subsets, (_, solution) in zip(self._subsets, bounds, strict=True):
            count = subsets.of_set.shape[1]
            for place in range(count):
                mine = large[best[large] == first + place]
                amounts = solution[subsets.of_set[mine, place]]
                for position, member in enumerate(subsets.members[place]):
                    whole = np.floor(amounts[:, position] + _TOLERANCE).astype(np.int64)
                    base[mine, member] = np.maximum(1, whole - _MARGIN)
            first += count
        return least, base


class _Subsets:
    """Subsets of up to three patterns of many sets, and their linear relaxations.

    Args:
        sets: (n, k) indices.
        size: patterns of a subset.
    """

    def __init__(self, sets: NDArray[np.int64], size: int) -> None:
        self.members = list(itertools.combinations(range(sets.shape[1]), size))
        powers = 45 ** np.arange(size)
        keys = np.stack([sets[:, list(member)] @ powers for member in self.members], axis=1)
        unique, places = np.unique(keys, return_inverse=True)
        self.of_set: NDArray[np.int64] = places.reshape(keys.shape)
        self.unique: NDArray[np.int64] = (unique[:, None] // powers) % 45
        granules = np.array(PATTERNS)[self.unique]
        g4, g2, g1 = granules[..., 0], granules[..., 1], granules[..., 2]
        # (subsets, 3 needs, size): what a register gives to each need.
        gives = np.stack([g4, g4 + 2 * g2, g4 + 2 * g2 + 4 * g1], axis=1)
        self._gives: NDArray[np.float64] = gives.astype(np.float64)

    def bounds(self, needs: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Least real number of registers, inf if nothing fits, and the solution (subsets, size)."""
        number, _, size = self._gives.shape
        least = np.full(number, np.inf)
        solution = np.zeros((number, size))
        for tight in itertools.combinations(range(3), size):
            amounts = _solved(self._gives[:, list(tight)], needs[list(tight)])
            given = np.einsum("sij,sj->si", self._gives, amounts)
            fits = (amounts >= -_TOLERANCE).all(axis=1) & (
                given >= needs * (1 - _TOLERANCE) - _TOLERANCE
            ).all(axis=1)
            total = np.where(fits, amounts.sum(axis=1), np.inf)
            better = total < least
            least[better] = total[better]
            solution[better] = amounts[better]
        return least, solution


def _solved(matrices: NDArray[np.float64], needs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solutions (n, size) of small square systems; NaN, which fits nothing, for singular ones."""
    determinants = np.linalg.det(matrices)
    # Determinants of integers: below one half they are 0.
    regular = np.abs(determinants) > 0.5
    amounts = np.full(matrices.shape[:2], np.nan)
    right = np.broadcast_to(needs[:, None], (int(regular.sum()), len(needs), 1))
    amounts[regular] = np.linalg.solve(matrices[regular], right)[..., 0]
    return amounts


def _needs(counts: tuple[int, int, int]) -> NDArray[np.float64]:
    """Granules of four elements needed: for those of 4 bits, of 4 and 2 bits, for all."""
    n4, n2, n1 = counts
    return np.array([-(-n4 // 4), -(-(n4 + n2) // 4), -(-(n4 + n2 + n1) // 4)], dtype=np.float64)


def _room(
    counts: tuple[int, int, int],
    g4: NDArray[np.int64],
    g2: NDArray[np.int64],
    vectors: NDArray[np.int64] | int,
) -> NDArray[np.int64]:
    """(5, n) what granules leave of the needs, and the elements without a slot of their width."""
    _, n2, n1 = counts
    first, second, third = _needs(counts).astype(np.int64)
    g1 = 8 * vectors - g4 - g2
    return np.stack(
        [
            g4 - first,
            g4 + 2 * g2 - second,
            g4 + 2 * g2 + 4 * g1 - third,
            n2 - 8 * g2,
            n1 - 16 * g1,
        ]
    )


def _comes_first(uses: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where the sorted list of indices comes first: more of the first pattern that differs."""
    first = np.zeros(len(uses), dtype=np.bool_)
    equal = np.ones(len(uses), dtype=np.bool_)
    for one, other in zip(uses.T, others.T, strict=True):
        first |= equal & (one > other)
        equal &= one == other
    return first
