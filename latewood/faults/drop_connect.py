"""Drop-connect: a network trained with weights knocked out as a device's stuck cells would."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

from latewood.core import (
    FAULTS,
    PRECISION,
    EndsOnce,
    Epochs,
    Selected,
    StepsPerEpoch,
    attach,
    detach,
    transformations,
)
from latewood.errors import RequestError, invalid
from latewood.faults.crossbar import Crossbar
from latewood.faults.drop_rates import Rate, checked_rate, rate_at
from latewood.faults.dropped_weights import Emulation, StuckWeight, transformation_of
from latewood.faults.faultable_weights import Faultable, faultable
from latewood.faults.simulation import require_map
from latewood.faults.stuck_at import StuckAt, warn_of_misalignment
from latewood.kernels.faults import Stream

__all__ = ["DropConnect"]


class DropConnect(EndsOnce):
    r"""Trains a network for any device of a fault rate, by knocking weights out at random.

    Each step computes with :math:`\tilde W = M \odot W`, with an M of zeros at the rate of stuck
    cells, drawn anew and shared by the batch, and not rescaled: nothing rescales what is left on a
    chip. The gradient of what is out is 0; the optimizer moves the stored weights. In evaluation
    nothing is out. For pairs of cells it is the same in law as cells stuck in the high-resistance
    state.

    Args:
        model: its weights are transformed in place, those of the first and last layer too; biases,
            norms and embeddings are left alone. A tied tensor has one mask in all its uses.
        rate: of what is stuck: a number in [0, 1], two between which each draw takes one, a
            ``RateRamp``, or a function of the progress in [0, 1].
        total_steps: optimizer steps of the run, for rates that change with progress.
        steps_per_epoch: length of all epochs, or of each, for ``resample="epoch"``.
        emulate: "zero" (stuck in the high-resistance state), "zero+max" (those in the low one are
            plus or minus the largest weight, without a gradient), or "cells" (the weight is
            written to a crossbar and read back, with gradients straight through).
        hrs_share: share of the rate in the high-resistance state, in [0, 1]; for "zero" 1.
        crossbar: of the cells for "cells"; the default one if None.
        resample: draw anew every "step" or "epoch", or keep one map ("fixed": a device that is
            known, the baseline that does not transfer).
        map: for "fixed", the device; it has the faults that ``injected`` gives it with the same
            seed, at the level of weights, or of cells for "cells".
        scale: "none", or "inverted" for the 1 / (1 - rate) of dropout, which a chip lacks.
        start_step: steps of plain training before the first draw.
        include: patterns on layer or parameter names (``core.select_parameters``).
        exclude: patterns of the same form.
        seed: of the draws, the same on all processes, as all imitate one device.

    Raises:
        RequestError: an argument out of range, what does not go together, or weights that cannot
            be on a crossbar.

    Source: "Towards RRAM fault tolerance by drop-connect training" (arXiv 2404.15498). Only its
    abstract was at hand: random subsets of weights take the value of the fault they imitate, at its
    rate [P]; everything else is ours.
    """

    order = FAULTS

    def __init__(
        self,
        model: nn.Module,
        *,
        rate: Rate = 0.1,
        total_steps: int | None = None,
        steps_per_epoch: StepsPerEpoch | None = None,
        emulate: Emulation = "zero",
        hrs_share: float = 1.0,
        crossbar: Crossbar | None = None,
        resample: Literal["step", "epoch", "fixed"] = "step",
        map: int = 0,
        scale: Literal["none", "inverted"] = "none",
        start_step: int = 0,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        StuckAt.total(0.0, hrs_share=hrs_share)  # refuses what is no share
        lengths = steps_per_epoch if steps_per_epoch is not None else total_steps or 1
        self._epochs = Epochs(lengths, total_steps)
        self._rate = checked_rate(rate, self._epochs)
        _require_choice("emulate", emulate, ("zero", "zero+max", "cells"))
        _require_choice("resample", resample, ("step", "epoch", "fixed"))
        _require_choice("scale", scale, ("none", "inverted"))
        if resample == "epoch" and steps_per_epoch is None:
            raise invalid("steps_per_epoch", None, "the length of an epoch for resample='epoch'")
        if emulate == "zero" and hrs_share != 1.0:
            expected = "1 for emulate='zero', which has no other kind; or 'zero+max' or 'cells'"
            raise invalid("hrs_share", hrs_share, expected)
        if emulate == "cells" and scale == "inverted":
            raise invalid("scale", scale, "'none' for emulate='cells', which reads what cells hold")
        if crossbar is not None and not isinstance(crossbar, Crossbar):
            raise invalid("crossbar", crossbar, "a faults.Crossbar, or None for the default one")
        if crossbar is not None and emulate != "cells":
            raise invalid("crossbar", crossbar, "None unless emulate='cells'")
        if crossbar is not None and crossbar.is_analog:
            raise invalid("crossbar", crossbar, "a scheme of digits; for pairs emulate='zero+max'")
        require_map(map, seed)
        if not isinstance(start_step, int) or isinstance(start_step, bool) or start_step < 0:
            raise invalid("start_step", start_step, "a whole number of steps, 0 or more")
        self._resample, self._map, self._seed = resample, map, seed
        self._share, self._start = hrs_share, start_step
        self._model, self._step, self._drawn = model, 0, -2  # not even that there is none
        self._current = 0.0
        held_by = crossbar or Crossbar()
        if emulate == "cells" and hrs_share < 1.0:
            warn_of_misalignment(held_by, StuckAt(lrs=0.1))
        chosen = faultable(model, include, exclude)
        for held in chosen:
            _require_no_faults(held.weight)
        self._held: list[Faultable] = chosen
        self._stuck: list[StuckWeight] = []
        for held in chosen:
            formats = [
                transformation
                for transformation in transformations(
                    held.weight.module, held.weight.parameter_name
                )
                if getattr(transformation, "order", None) == PRECISION
            ]
            stuck = transformation_of(held, emulate, held_by, formats, inverted=scale == "inverted")
            self._stuck.append(stuck)
        with ExitStack() as undone:  # a failure, in the first draw too, leaves the model alone
            for held, stuck in zip(chosen, self._stuck, strict=True):
                for use in held.uses:
                    attach(use.module, use.parameter_name, stuck)
                    undone.callback(detach, use.module, use.parameter_name, stuck)
                stuck.train(held.weight.module.training)
            self._draw()
            undone.pop_all()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """None: nothing is learned beside the weights.

        Raises:
            RequestError: after ``finalize``.
        """
        self.require_active("parameter_groups")
        return []

    def penalty(self) -> Tensor:
        """0, a 0-dim tensor.

        Raises:
            RequestError: after ``finalize``.
        """
        self.require_active("penalty")
        return torch.zeros(())

    def step(self) -> None:
        """Draws what is out in the next step; call it after every ``optimizer.step()``.

        Between two calls nothing changes, so that all parts of a batch meet the same weights.

        Raises:
            RequestError: after ``finalize``.
        """
        self.require_active("step")
        self._step += 1
        self._draw()

    def finalize(self) -> nn.Module:
        """Takes the faults off; the stored weights are the network's.

        Returns:
            The model.

        Raises:
            RequestError: a second call.
        """
        self.require_active("finalize")
        for held, stuck in zip(self._held, self._stuck, strict=True):
            for use in held.uses:
                detach(use.module, use.parameter_name, stuck)
        self.finalized = True
        return self._model

    def metrics(self) -> dict[str, float]:
        """ "rate" (of what is stuck now) and, of weights, "dropped" (the share that is)."""
        stuck, total = 0, 0
        for transformation in self._stuck:
            some, of = transformation.dropped()
            stuck, total = stuck + some, total + of
        measured = {"rate": self._current}
        return measured | ({"dropped": stuck / total} if total else {})

    def state_dict(self) -> dict[str, Any]:
        """The step; masks follow from it."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what ``state_dict`` returned.

        Raises:
            RequestError: a state of another kind, or after ``finalize``.
        """
        self.require_active("load_state_dict")
        if set(state) != {"step"} or not isinstance(state["step"], int) or state["step"] < 0:
            raise invalid("state", state, "what DropConnect.state_dict() returned")
        self._step, self._drawn = state["step"], -2
        self._draw()

    @torch.no_grad()
    def _draw(self) -> None:
        """Draws if it is due."""
        started = self._step >= self._start
        number = self._number() if started else -1
        changing = self._resample == "fixed" and not isinstance(self._rate, float)
        if number == self._drawn and not changing:
            return
        self._drawn, rate = number, 0.0
        if started:
            # A run that goes on within an epoch finds the rate that the epoch began with.
            first = self._epochs.start(number) if self._resample == "epoch" else self._step
            # The name of the stream is no layer's.
            rate = rate_at(self._rate, first, self._epochs, Stream(self._seed, number, "/rate"))
        self._current, number = rate, max(number, 0)
        hrs, lrs = rate * self._share, rate * (1.0 - self._share)
        for held, stuck in zip(self._held, self._stuck, strict=True):
            stuck.draw([self._stream(part.name, number) for part in held.parts], hrs, lrs)

    def _number(self) -> int:
        if self._resample == "fixed":
            return self._map
        return self._step if self._resample == "step" else self._epochs.of(self._step)

    def _stream(self, name: str, number: int) -> Stream:
        # A network is judged on other maps than those it was trained on, unless it is to know one.
        return Stream(self._seed, number, name if self._resample == "fixed" else f"{name}/training")


def _require_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise invalid(name, value, f"one of {', '.join(map(repr, allowed))}")


def _require_no_faults(weight: Selected) -> None:
    for transformation in transformations(weight.module, weight.parameter_name):
        if getattr(transformation, "order", None) == FAULTS:
            raise RequestError(
                f"model: {weight.name} has faults already "
                f"({type(transformation).__name__}); finalize or leave them first"
            )
