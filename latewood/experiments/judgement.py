"""Whether measured means support a statement, do not, or leave it open at this number of seeds."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from latewood.core.statistics import half_width
from latewood.experiments.registry import Results

__all__ = ["Judgement", "Outcome", "judge"]

Outcome = Literal["holds", "does not hold", "undecided"]

_MOST_ANSWERS: Final = 512
"""Combinations of answers to open comparisons that are tried; an all() over k of them has k + 1."""


@dataclass(frozen=True)
class Judgement:
    """What a check says of some results.

    Args:
        outcome: "undecided" where a comparison on which it depends could go either way.
        margin: of that comparison, the difference of its sides and the half-width of the
            difference's 95 % interval; None where the outcome is decided.
    """

    outcome: Outcome
    margin: tuple[float, float] | None = None


def judge(check: Callable[[Results], bool], results: Results) -> Judgement:
    r"""Evaluates a check on means that know how far they can be trusted.

    A comparison of means is open where the 95 % interval of the difference of its sides contains
    zero (Student's t over the seeds). Quantities of one run share their seeds, so the difference is
    taken seed by seed; through products and quotients it is followed to first order. The check is
    undecided if it comes out differently for some answers to its open comparisons. What it asks of
    single seeds ("in every trunk") and of quantities with one value is decided as it stands.

    Args:
        check: of a claim; what it gets answers ``mean`` and ``difference`` with such means.
        results: what was measured.

    Raises:
        KeyError: the check needs a quantity that was not measured.
    """
    first = _Answers()
    outcome = bool(check(_JudgedResults(results.measurements, results.settings, first)))
    waiting = _alternatives((), first)
    tried = 1
    while waiting and tried < _MOST_ANSWERS:
        given = waiting.pop()
        answers = _Answers(given)
        tried += 1
        if bool(check(_JudgedResults(results.measurements, results.settings, answers))) != outcome:
            return Judgement("undecided", answers.margins[len(given) - 1])
        waiting += _alternatives(given, answers)
    return Judgement("holds" if outcome else "does not hold")


class _Answers:
    """The answers to open comparisons in the order in which a check asks them.

    Args:
        given: the first answers; those after them are what the means say.
    """

    def __init__(self, given: Sequence[bool] = ()) -> None:
        self._given = given
        self.answers: list[bool] = []
        self.margins: list[tuple[float, float]] = []

    def answer(self, measured: bool, margin: tuple[float, float]) -> bool:
        """The answer to the next open comparison."""
        place = len(self.answers)
        answer = self._given[place] if place < len(self._given) else measured
        self.answers.append(answer)
        self.margins.append(margin)
        return answer


def _alternatives(given: Sequence[bool], answers: _Answers) -> list[tuple[bool, ...]]:
    """Beginnings of answers that differ in the last from those of a run."""
    asked = answers.answers
    return [(*asked[:place], not asked[place]) for place in range(len(given), len(asked))]


@dataclass(frozen=True)
class _JudgedResults(Results):
    """Results whose means are estimates."""

    answers: _Answers = field(default_factory=_Answers)

    def mean(self, name: str) -> float:
        """Mean over the seeds."""
        values, mean = self.values(name), super().mean(name)
        return _Estimate(mean, {len(values): tuple(v - mean for v in values)}, self.answers)

    def difference(self, first: str, second: str) -> float:
        """Mean over the seeds of ``first - second``, paired by seed."""
        return self.mean(first) - self.mean(second)


class _Estimate(float):
    """A number computed from means over seeds.

    Args:
        value: the number.
        deviations: by how much each seed moves it, by number of seeds: quantities with as many
            values share their seeds, others are independent.
        answers: of the check under way.
    """

    deviations: Mapping[int, tuple[float, ...]]
    answers: _Answers

    def __new__(
        cls, value: float, deviations: Mapping[int, tuple[float, ...]], answers: _Answers
    ) -> _Estimate:
        estimate = super().__new__(cls, value)
        estimate.deviations, estimate.answers = deviations, answers
        return estimate

    @property
    def half_width(self) -> float:
        """Of its 95 % interval; nan where there is one seed, or a value is not finite."""
        return math.hypot(*map(half_width, self.deviations.values()))

    def _with(self, value: float, slope: float, other: object = 0.0, by: float = 0.0) -> _Estimate:
        """A function of this and another number, from its slopes along both."""
        moved = {count: [slope * d for d in part] for count, part in self.deviations.items()}
        if isinstance(other, _Estimate):
            for count, part in other.deviations.items():
                before = moved.get(count, [0.0] * count)
                moved[count] = [d + by * theirs for d, theirs in zip(before, part, strict=True)]
        return _Estimate(value, {n: tuple(part) for n, part in moved.items()}, self.answers)

    def __add__(self, other: float) -> float:
        return self._with(float(self) + float(other), 1.0, other, 1.0)

    __radd__ = __add__

    def __sub__(self, other: float) -> float:
        return self._with(float(self) - float(other), 1.0, other, -1.0)

    def __rsub__(self, other: float) -> float:
        return self._with(float(other) - float(self), -1.0, other, 1.0)

    def __mul__(self, other: float) -> float:
        return self._with(float(self) * float(other), float(other), other, float(self))

    __rmul__ = __mul__

    def __truediv__(self, other: float) -> float:
        ratio = float(self) / float(other)
        return self._with(ratio, 1.0 / float(other), other, -ratio / float(other))

    def __rtruediv__(self, other: float) -> float:
        ratio = float(other) / float(self)
        return self._with(ratio, -ratio / float(self), other, 1.0 / float(self))

    def __neg__(self) -> float:
        return self._with(-float(self), -1.0)

    def __abs__(self) -> float:
        return self._with(abs(float(self)), math.copysign(1.0, self))

    def _compared(self, other: float, comparison: Callable[[float, float], bool]) -> bool:
        measured = comparison(float(self), float(other))
        difference = self - other
        assert isinstance(difference, _Estimate)
        width = difference.half_width
        # Also False for nan, of which no interval is known.
        if width > 0 and abs(float(difference)) <= width:
            return self.answers.answer(measured, (float(difference), width))
        return measured

    def __lt__(self, other: float) -> bool:
        return self._compared(other, operator.lt)

    def __le__(self, other: float) -> bool:
        return self._compared(other, operator.le)

    def __gt__(self, other: float) -> bool:
        return self._compared(other, operator.gt)

    def __ge__(self, other: float) -> bool:
        return self._compared(other, operator.ge)
