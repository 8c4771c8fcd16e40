"""The epochs of a run, equally long or not, and how far a run has come in samples."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

from latewood.errors import RequestError, invalid, require_count

__all__ = ["EpochCounter", "Epochs", "StepsPerEpoch"]

StepsPerEpoch = int | Sequence[int]
"""The length of every epoch in optimizer steps, or the lengths of all, in order."""


class Epochs:
    """Which step lies in which epoch, where epochs may have different lengths.

    An epoch is one pass over the data, however large its batches: a step in an epoch of n steps is
    1/n of a pass. Progress therefore counts samples, not steps, also where the batch size changes
    between epochs. With one length for all it is ``step / total_steps``, to the bit.

    Args:
        steps_per_epoch: optimizer steps of every epoch, or of each. The end of the run may cut the
            last one short. Steps beyond the listed epochs lie in more of the last one's length.
        total_steps: optimizer steps of the run; None is as many as are listed, or no end.

    Raises:
        RequestError: a length below 1, or lengths that do not end where the run does.
    """

    def __init__(self, steps_per_epoch: StepsPerEpoch, total_steps: int | None = None) -> None:
        if total_steps is not None:
            require_count("total_steps", total_steps)
        self.total_steps = total_steps
        lengths: tuple[int, ...]
        if isinstance(steps_per_epoch, list | tuple):
            lengths = tuple(steps_per_epoch)
            for number, length in enumerate(lengths):
                require_count(f"steps_per_epoch[{number}]", length)
            listed = sum(lengths)
            if self.total_steps is None:
                self.total_steps = listed or None
            if not listed or not listed - lengths[-1] < (self.total_steps or 0) <= listed:
                raise invalid(
                    "steps_per_epoch",
                    f"{len(lengths)} epochs of {listed} steps in all",
                    f"epochs that end where the run does, after {total_steps or 'some'} steps",
                )
        else:
            if not isinstance(steps_per_epoch, int) or isinstance(steps_per_epoch, bool):
                raise invalid(
                    "steps_per_epoch", steps_per_epoch, "a whole number, or a list of them"
                )
            require_count("steps_per_epoch", steps_per_epoch)
            lengths = (steps_per_epoch,)
        self._lengths = lengths
        self._starts = [0, *itertools.accumulate(lengths)]

    @property
    def equal(self) -> bool:
        """Whether all have the same length."""
        return len(set(self._lengths)) == 1

    @property
    def count(self) -> int:
        """Epochs that the run begins.

        Raises:
            RequestError: nobody knows when the run ends.
        """
        return self.of(self._end() - 1) + 1

    def of(self, step: int) -> int:
        """The epoch of the step to come, from 0, after ``step`` steps."""
        if step < self._starts[-1]:
            return bisect.bisect_right(self._starts, step) - 1
        return len(self._lengths) + (step - self._starts[-1]) // self._lengths[-1]

    def start(self, epoch: int) -> int:
        """Steps done when an epoch begins."""
        if epoch < len(self._starts):
            return self._starts[epoch]
        return self._starts[-1] + (epoch - len(self._lengths)) * self._lengths[-1]

    def length(self, epoch: int) -> int:
        """Steps of an epoch, were it not cut short by the end of the run."""
        return self._lengths[min(epoch, len(self._lengths) - 1)]

    def begins(self, step: int) -> bool:
        """Whether the step to come is the first of an epoch."""
        return self.start(self.of(step)) == step

    def passes(self, step: int) -> Fraction:
        """Passes over the data in ``step`` steps."""
        epoch = self.of(step)
        return epoch + Fraction(step - self.start(epoch), self.length(epoch))

    def progress(self, step: int) -> float:
        """Samples seen after ``step`` steps over those of the run, in [0, 1].

        Raises:
            RequestError: nobody knows when the run ends.
        """
        # Correctly rounded, as step / total_steps is: the same bits where the lengths are equal.
        return min(1.0, float(self.passes(step) / self.passes(self._end())))

    def steps_within(self, share: float) -> float:
        """Steps in which the run comes as far as this share of its samples, from 0 to 1.

        Raises:
            RequestError: nobody knows when the run ends.
        """
        if self.equal:
            return share * self._end()
        passes = share * float(self.passes(self._end()))
        epoch = math.floor(passes)
        return self.start(epoch) + (passes - epoch) * self.length(epoch)

    def _end(self) -> int:
        if self.total_steps is None:
            raise invalid("total_steps", None, "the number of steps of the run")
        return self.total_steps


class EpochCounter:
    """Counts the steps of a method that acts before the first step of every epoch.

    Args:
        epochs: of the run.
    """

    def __init__(self, epochs: Epochs) -> None:
        self.epochs = epochs
        self.step = 0
        """Steps that have been taken."""
        self.begun = -1
        """The latest epoch that ``begin`` was called in."""

    @property
    def epoch(self) -> int:
        """The epoch of the step to come, from 0."""
        return self.epochs.of(self.step)

    def is_due(self) -> bool:
        """Whether the coming epoch is still to begin.

        Raises:
            RequestError: in the middle of an epoch.
        """
        within = self.step - self.epochs.start(self.epoch)
        if within:
            raise RequestError(
                f"restructure: called {within} steps into an epoch of "
                f"{self.epochs.length(self.epoch)}; expected before its first step"
            )
        return self.begun != self.epoch

    def begin(self) -> None:
        """Notes that what comes before the epoch's first step is done."""
        self.begun = self.epoch

    def count(self) -> None:
        """Counts a step.

        Raises:
            RequestError: its epoch has not begun.
        """
        if self.begun != self.epoch:
            raise RequestError(
                "step: call restructure(optimizer) before the first step of each epoch"
            )
        self.step += 1
