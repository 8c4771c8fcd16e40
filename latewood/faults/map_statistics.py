"""What many maps say of a network: mean, interval, quantiles, and the share that is good enough."""

from __future__ import annotations

from dataclasses import dataclass

import numpy
from scipy.special import betaincinv

from latewood.core.statistics import half_width, mean
from latewood.errors import invalid

__all__ = ["MonteCarlo"]


@dataclass(frozen=True)
class MonteCarlo:
    """Scores of a network on many devices, each with a map of stuck cells of its own.

    Args:
        scores: one a map, in the order of the maps.
        changed: share of weights that are read as another integer, one a map.
        rounded: score on crossbars without faults, which shows what rounding costs.
        plain: score of the network as it is.
        seed: of the maps.
        confidence: of intervals.
        higher_is_better: of the score.
    """

    scores: tuple[float, ...]
    changed: tuple[float, ...]
    rounded: float
    plain: float
    seed: int
    confidence: float = 0.95
    higher_is_better: bool = True

    @property
    def maps(self) -> int:
        """Number of maps."""
        return len(self.scores)

    @property
    def mean(self) -> float:
        """Mean score."""
        return mean(self.scores)

    @property
    def std(self) -> float:
        """Standard deviation over maps; nan for one map."""
        return float(numpy.std(self.scores, ddof=1)) if self.maps > 1 else float("nan")

    @property
    def half_width(self) -> float:
        """Half-width of the confidence interval of the mean, by Student's t; nan for one map."""
        return half_width(self.scores, confidence=self.confidence)

    @property
    def interval(self) -> tuple[float, float]:
        """Confidence interval of the mean."""
        return self.mean - self.half_width, self.mean + self.half_width

    @property
    def effective_rate(self) -> float:
        """Mean share of weights that are read as another integer."""
        return mean(self.changed)

    def quantile(self, q: float) -> float:
        """The score below which a share of the maps lies, linear between two maps.

        Args:
            q: share, in [0, 1].

        Raises:
            RequestError: a share out of range.
        """
        if not 0.0 <= q <= 1.0:
            raise invalid("q", q, "a number in [0, 1]")
        return float(numpy.quantile(self.scores, q))

    @property
    def worst(self) -> float:
        """The score of the worst device."""
        return min(self.scores) if self.higher_is_better else max(self.scores)

    @property
    def nearly_worst(self) -> float:
        """The score that 95 % of the devices reach."""
        return self.quantile(0.05 if self.higher_is_better else 0.95)

    def yield_at(self, bound: float) -> float:
        """The share of devices whose score is at least so good.

        Args:
            bound: in the units of the score.
        """
        return self._good(bound) / self.maps

    def yield_interval(self, bound: float) -> tuple[float, float]:
        """Confidence interval of the share of devices whose score is at least so good.

        By Clopper and Pearson, so that it holds at least as often as it says.

        Args:
            bound: in the units of the score.
        """
        good, n = self._good(bound), self.maps
        tail = (1 - self.confidence) / 2
        low = 0.0 if good == 0 else float(betaincinv(good, n - good + 1, tail))
        high = 1.0 if good == n else float(betaincinv(good + 1, n - good, 1 - tail))
        return low, high

    def summary(self) -> dict[str, float]:
        """The figures of a report by name."""
        low, high = self.interval
        return {
            "plain": self.plain,
            "rounded": self.rounded,
            "mean": self.mean,
            "low": low,
            "high": high,
            "std": self.std,
            "median": self.quantile(0.5),
            "nearly_worst": self.nearly_worst,
            "worst": self.worst,
            "maps": self.maps,
            "effective_rate": self.effective_rate,
        }

    def _good(self, bound: float) -> int:
        if self.higher_is_better:
            return sum(score >= bound for score in self.scores)
        return sum(score <= bound for score in self.scores)
