"""Which cells of a device are stuck, and at what: rates, and how faults lie together."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal

from latewood.errors import RequestError, invalid
from latewood.faults.crossbar import Crossbar
from latewood.kernels.faults import LanePrecision, Limits, limits_of

__all__ = ["ArrayBeta", "Gaussian", "LineFaults", "StuckAt", "warn_of_misalignment"]

Convention = Literal["paper", "sa1_lrs"]


@dataclass(frozen=True)
class ArrayBeta:
    r"""Every array has a fault rate of its own, from a beta distribution around the mean rate.

    The rate is Beta(a, b) with :math:`a = p (1/\rho - 1)`, :math:`b = (1-p)(1/\rho - 1)`; the
    number of faults among N cells has variance :math:`N p (1-p) (1 + (N-1) \rho)`.

    Args:
        rho: correlation of two cells of an array, in (0, 1).

    Source: ours; the paper's spatial model is not known.
    """

    rho: float

    def __post_init__(self) -> None:
        if not _is_number(self.rho) or not 0.0 < self.rho < 1.0:
            raise invalid("rho", self.rho, "a number in (0, 1)")


@dataclass(frozen=True)
class Gaussian:
    r"""Faults lie together in patches: thresholds on a smooth random field.

    White noise of each array is blurred by a periodic Gaussian kernel and rescaled, so that cells
    at distance h have the correlation :math:`\exp(-h^2 / 4 \sigma^2)` before the threshold.

    Args:
        sigma: width of the kernel in cells, 0.5 or more.

    Source: ours; the paper's spatial model is not known.
    """

    sigma: float

    def __post_init__(self) -> None:
        if not _is_number(self.sigma) or not 0.5 <= self.sigma < math.inf:
            raise invalid("sigma", self.sigma, "a finite number of cells, 0.5 or more")


@dataclass(frozen=True)
class LineFaults:
    """Whole rows or columns of arrays that are stuck, whatever their cells are.

    Args:
        row: probability that a row of an array is stuck.
        column: the same of a column.
        at: "hrs" for an open line, "lrs" for a short one.
    """

    row: float = 0.0
    column: float = 0.0
    at: Literal["hrs", "lrs"] = "hrs"

    def __post_init__(self) -> None:
        _require_rate("row", self.row)
        _require_rate("column", self.column)
        if self.at not in ("hrs", "lrs"):
            raise invalid("at", self.at, "'hrs' (open) or 'lrs' (short)")


@dataclass(frozen=True)
class StuckAt:
    """Permanent faults of cells: stuck in the high- or in the low-resistance state.

    Args:
        hrs: (p0) probability of a cell stuck in the high-resistance state, level 0.
        lrs: (p1) of one stuck in the low-resistance state, the highest level; hrs + lrs is at most
            1, as no cell is both.
        level: "cell" draws every cell; "weight" draws every weight once, and has it 0 (hrs) or the
            largest, of the sign of the array that is stuck (lrs): what drop-connect imitates.
        mode: "bernoulli" draws each on its own; "exact" has exactly round(p n) of the n cells of a
            tensor stuck.
        clusters: how faults lie together; None has them independent.
        lines: rows and columns that are stuck as a whole, on top of cells.
        precision: bits of the number that is drawn for a cell, 16 or 32: rates are met to 2^-17 or
            2^-33.

    Raises:
        RequestError: rates out of range, or what does not go together.

    Warns:
        UserWarning: a rate above 0 that the precision turns into 0.

    Source: the physical names follow MNSIM; SA0 and SA1 mean either one in the literature, so they
    are only taken with a convention (``from_sa``).
    """

    hrs: float = 0.0
    lrs: float = 0.0
    level: Literal["cell", "weight"] = "cell"
    mode: Literal["bernoulli", "exact"] = "bernoulli"
    clusters: ArrayBeta | Gaussian | None = None
    lines: LineFaults | None = None
    precision: LanePrecision = 16

    def __post_init__(self) -> None:
        _require_rate("hrs", self.hrs)
        _require_rate("lrs", self.lrs)
        # Sums like 0.7 + 0.3 may round to more than 1.
        if self.hrs + self.lrs > 1.0 + 1e-12:
            expected = "rates that add up to at most 1: no cell is stuck at both"
            raise invalid("hrs, lrs", (self.hrs, self.lrs), expected)
        if self.level not in ("cell", "weight"):
            raise invalid("level", self.level, "'cell' or 'weight'")
        if self.mode not in ("bernoulli", "exact"):
            raise invalid("mode", self.mode, "'bernoulli' or 'exact'")
        if self.precision not in (16, 32):
            raise invalid("precision", self.precision, "16 or 32 bits")
        if self.clusters is not None and not isinstance(self.clusters, ArrayBeta | Gaussian):
            raise invalid("clusters", self.clusters, "ArrayBeta(rho), Gaussian(sigma) or None")
        if self.lines is not None and not isinstance(self.lines, LineFaults):
            raise invalid("lines", self.lines, "LineFaults(row, column) or None")
        if self.level == "weight" and (self.clusters is not None or self.lines is not None):
            raise invalid("level", "weight", "'cell' for clusters and lines, which are of cells")
        if self.mode == "exact" and self.clusters is not None:
            raise invalid("mode", "exact", "'bernoulli' for clusters, whose counts vary")
        if self.mode == "bernoulli" and self.clusters is None:
            self._warn_of_lost_rates()

    def _warn_of_lost_rates(self) -> None:
        least = 2.0 ** -(self.precision + 1)
        # What rounding leaves of a share of 0 is no rate.
        lost = [rate for rate in (self.hrs, self.lrs) if 1e-12 < rate <= least]
        if lost:
            more = "precision=32 or " if self.precision == 16 else ""
            warnings.warn(
                f"faults: a rate of {lost[0]:.3g} is less than numbers of {self.precision} bits "
                f"can meet, so that no cell is stuck so; {more}mode='exact' meets it",
                UserWarning,
                stacklevel=4,
            )

    @property
    def rate(self) -> float:
        """(p) Probability that a cell is stuck, lines not counted."""
        return self.hrs + self.lrs

    @property
    def limits(self) -> Limits:
        """What the numbers that are drawn for cells are compared with."""
        return limits_of(self.hrs, self.lrs, self.precision)

    @property
    def independent(self) -> bool:
        """Whether every cell is drawn on its own."""
        return self.mode == "bernoulli" and self.clusters is None and self.lines is None

    @classmethod
    def total(cls, rate: float, *, hrs_share: float = 1.0) -> StuckAt:
        """Faults of both kinds by their sum.

        Args:
            rate: (p) probability that a cell is stuck.
            hrs_share: (r) of which in the high-resistance state, in [0, 1].

        Raises:
            RequestError: a number out of range.
        """
        _require_rate("rate", rate)
        _require_rate("hrs_share", hrs_share)
        return cls(hrs=rate * hrs_share, lrs=rate * (1.0 - hrs_share))

    @classmethod
    def from_sa(
        cls, *, sa0: float = 0.0, sa1: float = 0.0, convention: Convention | None = None
    ) -> StuckAt:
        """Faults by the names SA0 and SA1, which papers use with both meanings.

        Args:
            sa0: probability of a cell stuck at 0.
            sa1: of one stuck at 1.
            convention: "paper" (arXiv 2404.15498: SA1 is the high-resistance state, which zeroing
                a weight imitates) or "sa1_lrs" (arXiv 2401.11664: SA1 is the low one).

        Raises:
            RequestError: no convention, or rates out of range.
        """
        if convention == "paper":
            return cls(hrs=sa1, lrs=sa0)
        if convention == "sa1_lrs":
            return cls(hrs=sa0, lrs=sa1)
        expected = "'paper' (SA1 is the high-resistance state) or 'sa1_lrs' (SA1 is the low one)"
        raise invalid("convention", convention, expected)


def warn_of_misalignment(crossbar: Crossbar, faults: StuckAt) -> None:
    """Warns where a highest digit stuck at its highest level counts more than any weight.

    Args:
        crossbar: how weights are held.
        faults: of its cells.
    """
    shorts = faults.lines is not None and faults.lines.at == "lrs"
    misread = faults.lrs > 0 or shorts
    if crossbar.aligned or not misread or faults.level == "weight":
        return
    if crossbar.top_slice == "clamped":
        return
    bits, width = crossbar.bits_per_cell, crossbar.digit_bits
    sign = crossbar.weight_bits - width
    nearest = sorted({width - width % bits or bits, width + bits - width % bits})
    choices = " or ".join(f"weight_bits={number + sign}" for number in nearest)
    warnings.warn(
        f"crossbar: {width} bits in digits of {bits} leave levels of the highest digit unused, and "
        "a cell stuck in the low-resistance state reads the highest of them, which counts more "
        f"than any weight; {choices}, or top_slice='clamped', is far more robust",
        UserWarning,
        stacklevel=3,
    )


def _require_rate(name: str, value: object) -> None:
    if not _is_number(value) or not 0.0 <= value <= 1.0:  # type: ignore[operator]
        raise invalid(name, value, "a number in [0, 1]")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def require_types(crossbar: object, faults: object) -> None:
    """Refuses arguments of other classes, whose errors would come late.

    Raises:
        RequestError: they are.
    """
    if not isinstance(crossbar, Crossbar):
        raise RequestError(f"crossbar: got {type(crossbar).__name__}; expected a faults.Crossbar")
    if not isinstance(faults, StuckAt):
        raise RequestError(f"faults: got {type(faults).__name__}; expected a faults.StuckAt")
