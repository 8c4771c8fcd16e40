"""A parameter with entries of several stages, as the rectangles that a step treats apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from latewood.growth.block_steps import Part
from latewood.growth.stage_blocks import blocks, runs, stages_present
from latewood.kernels.staged_steps import AxisRuns

__all__ = ["StageTreatment", "StagedWeight"]

_MOST_PIECES: Final = 64


@dataclass(frozen=True, slots=True)
class StageTreatment:
    """How a step treats the entries of a weight.

    Args:
        factors: of the learning rate, by stage.
        counts: own counts of steps, by stage; None for that of the whole.
        alone: whether the rectangles may take part in the step as parameters.
    """

    factors: Mapping[int, float]
    counts: Mapping[int, int | None]
    alone: bool

    @property
    def has_own_counts(self) -> bool:
        """Whether a stage has a count of its own."""
        return any(count is not None for count in self.counts.values())

    @property
    def is_plain(self) -> bool:
        """Whether it is what the optimizer would do without it."""
        return not self.has_own_counts and all(f == 1.0 for f in self.factors.values())


class StagedWeight:
    """A grown parameter.

    Args:
        name: of the parameter, without the names of transformations on it.
        parameter: as the optimizer has it.
        vectors: by axis, the stage of each position.
    """

    def __init__(self, name: str, parameter: Tensor, vectors: Mapping[int, Tensor]) -> None:
        self.name, self.parameter, self.vectors = name, parameter, dict(vectors)
        self.stages = stages_present(vectors)
        """Those that entries have, ascending."""
        count = len(blocks(parameter.shape, vectors, {stage: stage for stage in self.stages}))
        self.is_in_few_pieces = count <= _MOST_PIECES
        """Whether the optimizer is to take the rectangles as parameters of their own."""
        self.settled: StageTreatment | None = None
        """How steps treat it once no count or warm-up matters."""
        self._shape = parameter.shape
        self._key: Any = None
        self._parts: list[Part] = []
        self._labels: list[int] = []

    @property
    def is_stale(self) -> bool:
        """Whether the parameter has changed shape since."""
        return self.parameter.shape != self._shape

    @cached_property
    def axis_runs(self) -> tuple[AxisRuns, AxisRuns] | None:
        """Runs along the first and the second axis, by the ranks of their stages; None if another
        axis has grown."""
        if not self.vectors.keys() <= {0, 1} or not self._shape:
            return None
        rank = {stage: position for position, stage in enumerate(self.stages)}

        def of(axis: int) -> AxisRuns:
            size = self._shape[axis] if axis < len(self._shape) else 1
            born = self.vectors.get(axis)
            found = [(0, 0, size)] if born is None else runs(born.tolist())
            return [end for _, _, end in found], [rank.get(stage, 0) for stage, _, _ in found]

        return of(0), of(1)

    def _places(self, state: Mapping[str, Any]) -> list[Any]:
        return [self.parameter.data_ptr(), *state, *map(_where, state.values())]

    def empty(self, state: Mapping[str, Any], names: Iterable[str], stages: Iterable[int]) -> None:
        """Sets the state of some stages' entries to zero.

        Args:
            state: of the parameter.
            names: of the tensors in it.
            stages: whose entries.
        """
        chosen = {stage: int(stage in set(stages)) for stage in self.stages}
        found = [b.index for b in blocks(self._shape, self.vectors, chosen) if b.label]
        for name in names:
            value = state.get(name)
            if isinstance(value, Tensor) and value.shape == self._shape:
                for index in found:
                    value[index] = 0

    def parts(self, state: Mapping[str, Any], treatment: StageTreatment) -> list[Part]:
        """Rectangles of equal rate and step count; the first has the count of the whole.

        Args:
            state: of the parameter; the parts' lies in its memory.
            treatment: of the coming step.

        Returns:
            The rectangles, the same objects as before where nothing but rates has changed.
        """
        factors, counts = treatment.factors, treatment.counts
        treatments = [
            (counts[stage] is not None and stage, factors[stage]) for stage in self.stages
        ]
        # Rates that move from step to step (a warm-up) must not make new rectangles each time.
        kinds = {kind: number for number, kind in enumerate(dict.fromkeys(treatments))}
        labels = [kinds[kind] for kind in treatments]
        key = (labels, self._places(state))
        if key != self._key:
            self._key = key
            self._parts = self._cut(state, dict(zip(self.stages, labels, strict=True)), counts)
        by_label = {label: factors[stage] for label, stage in zip(labels, self.stages, strict=True)}
        for part, label in zip(self._parts, self._labels, strict=True):
            part.factor = by_label[label]
        return self._parts

    def _cut(
        self,
        state: Mapping[str, Any],
        labels: Mapping[int, int],
        counts: Mapping[int, int | None],
    ) -> list[Part]:
        count_of = {label: counts[stage] for stage, label in labels.items()}
        found = blocks(self._shape, self.vectors, labels)
        # Whatever is no tensor of the parameter's shape lives on in the first part.
        found.sort(key=lambda block: count_of[block.label] is not None)
        self._labels = [block.label for block in found]
        parts = []
        for place, block in enumerate(found):
            count = count_of[block.label]
            own = {
                name: value[block.index]
                if isinstance(value, Tensor) and value.shape == self._shape
                else _counted(name, value, count)
                if place
                else value
                for name, value in state.items()
                if value is not None
            }
            tensor = self.parameter.detach()[block.index]
            parts.append(Part(block.index, 1.0, tensor, own))
        return parts


def _counted(name: str, value: Any, count: int | None) -> Any:
    if name == "step" and count is not None:
        return torch.full_like(value, count) if isinstance(value, Tensor) else type(value)(count)
    return value.clone() if isinstance(value, Tensor) else value


def _where(value: Any) -> object:
    """What tells whether a value of the state is still the one that was seen."""
    if not isinstance(value, Tensor):
        return None
    return value.data_ptr() if value.ndim else id(value)
