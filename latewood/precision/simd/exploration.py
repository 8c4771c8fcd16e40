"""Which patterns a machine should have for a network: all sets of four, and larger ones by beam."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from latewood.errors import invalid, listed
from latewood.precision.patterns import PATTERNS, Pattern, fit_counts, pattern_set
from latewood.precision.simd.layer_records import as_layers
from latewood.precision.simd.machine_costs import (
    DEFAULT_CONSTANTS,
    LayerCounts,
    MachineConstants,
    area,
    baseline_cost,
)
from latewood.precision.simd.pareto import pareto_front
from latewood.precision.simd.set_search import UNFIT, SetSearch, fit_sets, pattern_sets
from latewood.precision.simd.set_totals import SetTotals

__all__ = ["Exploration", "PatternChoice", "explore"]

Objective = Literal["energy_delay", "vectors", "cycles", "energy", "promoted"]

LARGEST_EXHAUSTIVE: Final = 4
LARGEST_SET: Final = 8
MOST_MACS: Final = 1 << 56
"""More than that would overflow counts of 64 bits."""

_UJ: Final = 1e-6


@dataclass(frozen=True)
class PatternChoice:
    """One set of patterns with what a network takes on a machine that has it.

    Args:
        patterns: triples (g4, g2, g1), as ``LearnedPrecision(patterns=...)`` takes them.
        indices: of the patterns, ascending.
        vectors: dot products of registers for one sample.
        cycles: for one sample.
        compute_uj: energy of the dot products for one sample, uJ.
        memory_uj: energy of loads, and of reading each weight once, uJ.
        promoted: weights in a slot wider than they need.
        weight_bits: of all weights, promoted ones as wide as their slots.
        error: accuracy proxy, the sum of ``h sigma^2 / 6`` over the weights, with promotions.
        area: proxy of the unit's area (``area``).
    """

    patterns: tuple[Pattern, ...]
    indices: tuple[int, ...]
    vectors: int
    cycles: float
    compute_uj: float
    memory_uj: float
    promoted: int
    weight_bits: int
    error: float
    area: int

    @property
    def energy_uj(self) -> float:
        """Of computing and of memory together."""
        return self.compute_uj + self.memory_uj

    def row(self) -> dict[str, object]:
        """For a table."""
        return {
            "patterns": " ".join(f"({g4},{g2},{g1})" for g4, g2, g1 in self.patterns),
            "vectors": self.vectors,
            "cycles": self.cycles,
            "compute uJ": self.compute_uj,
            "memory uJ": self.memory_uj,
            "promoted": self.promoted,
            "bits a weight": None,
            "error proxy": self.error,
            "area": self.area,
        }


@dataclass(frozen=True)
class Exploration:
    """All sets that were tried, with what the network takes under each.

    Args:
        layers: of the network.
        constants: of the machine.
        sets: (n, size) indices of patterns.
        vectors: (n,) dot products of registers for one sample.
        cycles: (n,) for one sample.
        compute_uj: (n,) energy of the dot products.
        memory_uj: (n,) energy of loads and weights.
        promoted: (n,) weights in wider slots.
        weight_bits: (n,) of all weights.
        error: (n,) accuracy proxy.
        unfit: sets that have no slots wide enough and are left out.
        exhaustive: whether these are all sets of this size.
    """

    layers: tuple[LayerCounts, ...]
    constants: MachineConstants
    sets: NDArray[np.int64] = field(repr=False)
    vectors: NDArray[np.int64] = field(repr=False)
    cycles: NDArray[np.float64] = field(repr=False)
    compute_uj: NDArray[np.float64] = field(repr=False)
    memory_uj: NDArray[np.float64] = field(repr=False)
    promoted: NDArray[np.int64] = field(repr=False)
    weight_bits: NDArray[np.int64] = field(repr=False)
    error: NDArray[np.float64] = field(repr=False)
    unfit: int = 0
    exhaustive: bool = True

    @cached_property
    def pareto(self) -> NDArray[np.int64]:
        """Places of the sets that no other one beats in vectors, energy and promoted weights.

        Sets that are equal in all three are represented by the first; by vectors, then energy.
        """
        energy = self.compute_uj + self.memory_uj
        return pareto_front(np.stack([self.vectors, energy, self.promoted], axis=1))

    def choice(self, place: int) -> PatternChoice:
        """The set at a place of the arrays."""
        indices = tuple(int(index) for index in self.sets[place])
        return PatternChoice(
            patterns=tuple(PATTERNS[index] for index in indices),
            indices=indices,
            vectors=int(self.vectors[place]),
            cycles=float(self.cycles[place]),
            compute_uj=float(self.compute_uj[place]),
            memory_uj=float(self.memory_uj[place]),
            promoted=int(self.promoted[place]),
            weight_bits=int(self.weight_bits[place]),
            error=float(self.error[place]),
            area=area(indices),
        )

    def best(self, by: Objective = "energy_delay") -> PatternChoice:
        """The set that is best by one measure; ties go to fewer promotions, then lower indices.

        Args:
            by: "energy_delay" (energy times cycles), "vectors", "cycles", "energy" or "promoted".

        Raises:
            RequestError: another measure.
        """
        return self.choice(int(self.ranked(by)[0]))

    def ranked(self, by: Objective = "energy_delay") -> NDArray[np.int64]:
        """Places of all sets, the best first.

        Args:
            by: as in ``best``.

        Raises:
            RequestError: another measure.
        """
        energy = self.compute_uj + self.memory_uj
        measures = {
            "energy_delay": energy * self.cycles,
            "vectors": self.vectors,
            "cycles": self.cycles,
            "energy": energy,
            "promoted": self.promoted,
        }
        if by not in measures:
            raise invalid("by", by, f"one of {', '.join(measures)}")
        # Sums in another order differ by rounding: what is equal but for that is a tie.
        measure = np.asarray(measures[by], dtype=np.float64)
        rounded = np.array([float(f"{value:.10g}") for value in np.unique(measure)])
        places = np.searchsorted(np.unique(measure), measure)
        return np.lexsort((energy, self.promoted, rounded[places]))

    def table(self, most: int = 20) -> list[dict[str, object]]:
        """Rows of the Pareto set, by vectors.

        Args:
            most: rows; of more, evenly chosen ones with both ends.
        """
        front = self.pareto
        if len(front) > most:
            front = front[np.unique(np.linspace(0, len(front) - 1, most).round().astype(int))]
        return [self._row(self.choice(int(place))) for place in front]

    def baselines(self) -> list[dict[str, object]]:
        """Rows of float32 and int8 on the same machine, the three uniform patterns, and all 45."""
        kinds: tuple[Literal["float32", "int8"], ...] = ("float32", "int8")
        rows: list[dict[str, object]] = []
        for kind in kinds:
            costs = [baseline_cost(layer, kind, self.constants) for layer in self.layers]
            rows.append(
                {
                    "machine": kind,
                    "vectors": sum(cost.instructions for cost in costs),
                    "cycles": sum(cost.cycles for cost in costs),
                    "compute uJ": _UJ * sum(cost.compute_pj for cost in costs),
                    "memory uJ": _UJ * sum(cost.load_pj + cost.weight_pj for cost in costs),
                    "promoted": 0,
                    "bits a weight": 32.0 if kind == "float32" else 8.0,
                }
            )
        for name, patterns in (("uniform patterns", (0, 8, 44)), ("all 45 patterns", range(45))):
            choice = evaluate_set(self.layers, tuple(patterns), self.constants)
            row = self._row(choice)
            del row["patterns"], row["error proxy"], row["area"]
            rows.append({"machine": name, **row})
        return rows

    def _row(self, choice: PatternChoice) -> dict[str, object]:
        weights = sum(layer.elements * layer.outputs for layer in self.layers)
        bits = choice.weight_bits / weights if weights else 0.0
        return choice.row() | {"bits a weight": bits}


def explore(
    network: nn.Module | Iterable[LayerCounts | dict[str, Any]],
    *,
    size: int = 4,
    example_inputs: Any = None,
    bits: Any = None,
    candidates: int | Iterable[int | Pattern] = 45,
    constants: MachineConstants = DEFAULT_CONSTANTS,
    curvature: float | Sequence[float] = 1.0,
    beam: int = 8,
    track: Callable[[Sequence[LayerCounts]], Iterable[LayerCounts]] | None = None,
) -> Exploration:
    """Finds what a network takes on machines with different sets of patterns.

    For up to four patterns all sets are tried (148,995 of four); larger ones grow from the best
    sets of four by one pattern at a time. Costs are those of one sample.

    Args:
        network: layers as ``LayerCounts`` or as dicts with its fields; or a module, whose
            convolutions and linear layers are then counted.
        size: patterns in a set, 1 to 8.
        example_inputs: of a module, to see how often each layer is computed.
        bits: of a module's layers (``count_layers``); read from finished layers if not given.
        candidates: patterns to choose from, as in ``pattern_set``.
        constants: of the machine.
        curvature: (h) of the loss, one number or one for each layer; for the accuracy proxy.
        beam: sets that are kept at each size above four.
        track: shows progress; yields the layers that it is given.

    Raises:
        RequestError: no layers, layers that are none or too large, a size out of range, or
            candidates without slots that are wide enough.
    """
    layers = as_layers(network, example_inputs, bits)
    macs = sum(layer.macs + layer.elements * layer.outputs for layer in layers)
    if macs > MOST_MACS:
        raise invalid("network", f"{macs:,} multiply-accumulates", f"at most {MOST_MACS:,}")
    indices = pattern_set(candidates)
    size = _checked_size(size, len(indices))
    if isinstance(curvature, int | float):
        curvatures = [float(curvature)] * len(layers)
    else:
        curvatures = [float(value) for value in curvature]
    if len(curvatures) != len(layers) or not all(0 <= value < np.inf for value in curvatures):
        raise invalid("curvature", curvature, f"a number, or one for each of {len(layers)} layers")
    if beam < 1:
        raise invalid("beam", beam, "1 or more")
    sets = pattern_sets(min(size, LARGEST_EXHAUSTIVE), indices)
    done = _evaluated(layers, sets, constants, curvatures, track)
    while done.sets.shape[1] < size:
        kept = done.sets[done.ranked()[:beam]]
        grown = {
            tuple(sorted({*map(int, members), index}))
            for members in kept
            for index in indices
            if index not in members
        }
        sets = np.array(sorted(grown), dtype=np.int64)
        done = _evaluated(layers, sets, constants, curvatures, track, exhaustive=False)
    return done


def evaluate_set(
    layers: Sequence[LayerCounts],
    patterns: int | Iterable[int | Pattern],
    constants: MachineConstants = DEFAULT_CONSTANTS,
) -> PatternChoice:
    """What a network takes on a machine with one set of patterns, of any number.

    Args:
        layers: of the network.
        patterns: as in ``pattern_set``.
        constants: of the machine.

    Raises:
        RequestError: patterns without slots that are wide enough.
    """
    indices = pattern_set(patterns)
    total = SetTotals(1, constants)
    for layer in layers:
        fit = fit_counts(layer.counts, indices)
        g4, g2 = fit.slots[0] // 4, fit.slots[1] // 8
        vectors = np.array([fit.vectors], dtype=np.int64)
        total.add(layer, vectors, np.array([g4]), np.array([g2]), 1.0)
    return _exploration(total, layers, np.array([indices]), constants).choice(0)


def _evaluated(
    layers: tuple[LayerCounts, ...],
    sets: NDArray[np.int64],
    constants: MachineConstants,
    curvatures: Sequence[float],
    track: Callable[[Sequence[LayerCounts]], Iterable[LayerCounts]] | None,
    *,
    exhaustive: bool = True,
) -> Exploration:
    # Sets of five and more are few, and have very many smaller ones.
    one_by_one = sets.shape[1] > LARGEST_EXHAUSTIVE
    fit = partial(fit_sets, sets) if one_by_one else SetSearch(sets).fit
    granules = np.array(PATTERNS, dtype=np.int64)[sets]
    fits = np.ones(len(sets), dtype=np.bool_)
    total = SetTotals(len(sets), constants)
    shown = layers if track is None else track(layers)
    for layer, curvature in zip(shown, curvatures, strict=True):
        done = fit(layer.counts)
        fits &= done.vectors != UNFIT
        vectors = np.where(done.vectors == UNFIT, 0, done.vectors)
        g4, g2 = ((done.uses * granules[..., place]).sum(axis=1) for place in range(2))
        total.add(layer, vectors, g4, g2, curvature)
    if not fits.any():
        wide = listed([layer.name for layer in layers if layer.counts[0]])
        raise invalid("candidates", f"{len(sets)} sets", f"slots of 4 bits for {wide or 'layers'}")
    return _exploration(total, layers, sets, constants, fits=fits, exhaustive=exhaustive)


def _exploration(
    total: SetTotals,
    layers: Sequence[LayerCounts],
    sets: NDArray[np.int64],
    constants: MachineConstants,
    *,
    fits: NDArray[np.bool_] | None = None,
    exhaustive: bool = False,
) -> Exploration:
    kept = np.ones(len(sets), dtype=np.bool_) if fits is None else fits
    return Exploration(
        layers=tuple(layers),
        constants=constants,
        sets=sets[kept],
        vectors=total.vectors[kept],
        cycles=total.cycles[kept],
        compute_uj=total.compute_uj[kept],
        memory_uj=total.memory_uj[kept],
        promoted=total.promoted[kept],
        weight_bits=total.weight_bits[kept],
        error=total.error[kept],
        unfit=int((~kept).sum()),
        exhaustive=exhaustive,
    )


def _checked_size(size: int, candidates: int) -> int:
    most = min(LARGEST_SET, candidates)
    try:
        number = operator.index(size)
    except TypeError:
        number = 0
    if isinstance(size, bool) or not 1 <= number <= most:
        raise invalid("size", size, f"a whole number from 1 to {most}")
    return number
