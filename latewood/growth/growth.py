"""Growth: a network that starts narrow and widens at the start of some epochs, while it trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latewood.core import SHAPES, EndsOnce, EpochCounter, Epochs, StepsPerEpoch, trace_channels
from latewood.core.coupling import verify_small_plan
from latewood.core.coupling.owners import claim_shapes, release_shapes, require_unclaimed
from latewood.errors import RequestError, invalid
from latewood.growth.block_summary import block_summary
from latewood.growth.growing_widths import growing_widths
from latewood.growth.growth_event import GrowthEvent, event_seed
from latewood.growth.growth_metrics import growth_metrics
from latewood.growth.growth_schedule import GrowthSchedule, growth_schedule
from latewood.growth.initialisations import Init
from latewood.growth.learning_rates import StageRates
from latewood.growth.model_copies import averaged_models, require_alike
from latewood.growth.phase_costs import phase_costs
from latewood.growth.plateau_watch import PlateauWatch
from latewood.growth.stages import Stages
from latewood.growth.variance_transfer import Rescale
from latewood.growth.weight_scale import bake_scales
from latewood.growth.widen import WideningSettings, widen, with_loss
from latewood.slim.comparison import Examples
from latewood.slim.edits import Widened, remember

__all__ = ["Growth"]


class Growth(EndsOnce):
    r"""Trains a network that starts narrow and widens at the start of some epochs.

    The model is built with the widths of the first phase. Each event adds channels in pairs that
    leave its function as it is, carries the optimizer's state along, may rescale the old weights to
    what a network of the new width starts with, and gives every part of a weight a learning rate
    that fits its age,

    .. math:: \eta_k = \eta \, \|W_{Dk}\|_F / \|W_{D0}\|_F .

    In a loop of your own call ``restructure(optimizer)`` before the first step of every epoch.

    Args:
        model: any module that ``core.trace_channels`` can follow, at the widths it begins with.
        example_inputs: what it is called with: a tensor, a sequence of positional arguments, or a
            dict of keyword arguments.
        schedule: when and how far: a ``GrowthSchedule``, or as a recipe writes one, a table with
            the name of one of ``GROWTH_SCHEDULES`` and its arguments, such as ``{"name": "phased",
            "end": 4.0}``.
        total_steps: optimizer steps of the run.
        steps_per_epoch: optimizer steps of every epoch, or of each.
        init: what new channels begin with (``widen``).
        rescale: what happens to old weights (``widen``): "vt" is the paper's, "none" keeps the
            function, and "vt_exact" keeps it too.
        state: what becomes of the optimizer's state of what grows (``WideningSettings``).
        gain: of new weights (``WideningSettings``).
        rates: "norm" as above, "constant" for one rate for all.
        rates_every: steps after which the norms are taken anew; 0 for at events only.
        rate_floor: least ratio of rates, in (0, 1].
        rate_ceiling: largest ratio of rates, 1 or more.
        warmup: steps over which the rates of newborn channels rise after an event; 0 for none.
        exclude: patterns on names of groups and layers that keep their widths.
        copies: further models of the same structure that grow alike, such as moving averages
            (torch's ``AveragedModel`` too).
        measure_loss: of the model as it is, for the journal and for schedules that follow the loss;
            it changes nothing.
        loss: of the model on a batch, differentiable, for ``init="gradmax"`` and "firefly"; called
            in evaluation mode.
        seed: of the new channels, the same on all processes.

    Raises:
        RequestError: an argument out of range, a schedule that ends before the run does or after
            it, a group that cannot have the widths asked for, or one whose shapes another method
            changes already; nothing has changed then.
        WorkError: in a model of at most ``core.coupling.VERIFIED_SIZE`` parameters, a trial shows
            that channels do not belong together as its trace has it.

    Source: Yuan, Savarese and Maire, "Accelerated Training via Incrementally Growing Neural
    Networks using Variance Transfer and Learning Rate Adaptation", NeurIPS 2023 (arXiv 2306.12700),
    as recalled and as secondary sources describe it. Growth by the loss, the limits of the rates
    and their warm-up are ours or from elsewhere, as their own pages say.
    """

    order = SHAPES

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Examples,
        *,
        schedule: GrowthSchedule | Mapping[str, Any] | str,
        total_steps: int,
        steps_per_epoch: StepsPerEpoch,
        init: Init = "pair",
        rescale: Rescale = "vt",
        state: Literal["carry", "zero", "drop"] = "carry",
        gain: float | None = None,
        rates: Literal["norm", "constant"] = "norm",
        rates_every: int = 50,
        rate_floor: float = 0.05,
        rate_ceiling: float = 20.0,
        warmup: int = 0,
        exclude: Sequence[str] = (),
        copies: Sequence[nn.Module] = (),
        measure_loss: Callable[[nn.Module], float] | None = None,
        loss: Callable[[nn.Module], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        if not 0.0 < rate_floor <= 1.0:
            raise invalid("rate_floor", rate_floor, "a ratio of rates in (0, 1]")
        if not 1.0 <= rate_ceiling < math.inf:
            raise invalid("rate_ceiling", rate_ceiling, "a finite ratio of rates, 1 or more")
        self.schedule = growth_schedule(schedule)
        self._counter = EpochCounter(Epochs(steps_per_epoch, total_steps))
        self.starts = self.schedule.starts(self._counter.epochs.count)
        """The epochs at which phases begin, at the latest."""
        if self.schedule.plateau is not None and measure_loss is None:
            raise invalid(
                "measure_loss", None, "a function of the model, as the schedule follows it"
            )
        self._model, self._examples = model, example_inputs
        self._copies, self._measure, self._loss_of = averaged_models(copies), measure_loss, loss
        require_alike([model, *self._copies])
        if gain is not None and not 0.0 < gain < math.inf:
            raise invalid("gain", gain, "a positive finite number, or None")
        self._init: Init = init
        self._rescale: Rescale = rescale
        self._widening = WideningSettings(state=state, gain=gain)
        self._seed = seed
        self.exclude = tuple(exclude)
        """Patterns on names of groups that keep their widths."""
        plan = trace_channels(model, example_inputs)
        self.widths = growing_widths(plan, self.schedule, exclude)
        """Of each group that grows, its width in every phase."""
        grown = [plan[name] for name in self.widths]
        tensors = {member.tensor for group in grown for member in group.members}
        require_unclaimed(model, tensors, self)
        verify_small_plan(model, plan, example_inputs, groups=list(self.widths))
        self._plan = plan
        self.costs = phase_costs(
            model,
            example_inputs,
            self.widths,
            init=init,
            rescale=rescale,
            settings=self._widening,
            loss=loss,
            plan=plan,
        )
        """Of the network in every phase."""
        self.stages = Stages()
        """In which event every channel was born, for ``NewbornProbe``."""
        self._rates = StageRates(
            model,
            self.stages,
            rule=rates,
            every=rates_every,
            warmup=warmup,
            limits=(rate_floor, rate_ceiling),
        )
        watched = self.schedule.plateau
        self._watch = None if watched is None else PlateauWatch(watched)
        self._widenings = len({*zip(*self.widths.values(), strict=True)})
        self._events: list[GrowthEvent] = []
        self._optimizers: tuple[Optimizer, ...] = ()
        self._spent = 0
        self._final_metrics: dict[str, float] | None = None
        claim_shapes(model, tensors, self)

    @property
    def phase(self) -> int:
        """The phase that the network is in, from 0."""
        return self._events[-1].phase if self._events else 0

    @property
    def events(self) -> tuple[GrowthEvent, ...]:
        """The widenings so far."""
        return tuple(self._events)

    @property
    def epoch(self) -> int:
        """The epoch of the step to come, from 0."""
        return self._counter.epoch

    def parameter_groups(self) -> list[dict[str, Any]]:
        """[]: it has no parameters of its own.

        Raises:
            RequestError: after ``finalize``.
        """
        self.require_active("parameter_groups")
        return []

    def penalty(self) -> Tensor:
        """0.

        Returns:
            0-dim tensor.

        Raises:
            RequestError: after ``finalize``.
        """
        self.require_active("penalty")
        # Before every step of the optimizer, and a deep copy of one has lost what hangs on it.
        self._rates.follow(self._optimizers)
        first = next(self._model.parameters())
        return torch.zeros((), device=first.device)

    def restructure(self, optimizer: Optimizer, *others: Optimizer) -> bool:
        """Widens the network if a phase begins; call it before the first step of each epoch.

        Args:
            optimizer: of the loop; its state follows the parameters, and its steps take the rates
                of the stages.
            others: further ones, where each updates some of the parameters.

        Returns:
            Whether anything changed: what was built around the model must then be built anew.

        Raises:
            RequestError: in the middle of an epoch, after ``finalize``, or the optimizer lacks
                parameters or is one whose state nobody knows how to carry along.
        """
        self.require_active("restructure")
        if not self._counter.is_due():
            return False
        self._optimizers = (optimizer, *others)
        self._rates.follow(self._optimizers)
        due, loss = self._asked() if self.phase < self.schedule.phases - 1 else (False, None)
        changed = due and self._grow(loss)
        self._counter.begin()
        return changed

    def step(self) -> None:
        """Counts the step and what it cost; called once after every ``optimizer.step()``.

        Raises:
            RequestError: after ``finalize``, or the epoch began without ``restructure``.
        """
        self.require_active("step")
        self._counter.count()
        self._spent += self.costs[self.phase].macs

    def finalize(self) -> nn.Module:
        """Ends the growth; the network keeps the widths that it has.

        Returns:
            The model, in place.

        Raises:
            RequestError: a second call.
        """
        self.require_active("finalize")
        self._final_metrics = self.metrics()
        self.finalized = True
        self._rates.detach()
        release_shapes(self)
        if self._events:
            bake_scales(self._model)
            fill: Literal["pair", "copy"] = "pair" if self._init == "pair" else "copy"
            edits = [Widened(dict(event.widths), fill) for event in self._events]
            remember(self._model, edits, self._examples)
        return self._model

    def metrics(self) -> dict[str, float]:
        """Widths, cost, and how the parts of different ages stand to each other.

        Returns:
            "phase"; "width/<group>"; "parameters" and "macs" of the network now, "cost" (its MACs
            over those of the last phase); "training/macs" (sum over the steps of the MACs of a
            forward pass on the example) and "training/share" (that over the last phase's);
            "event/step" of the last event, and where the loss is measured "event/before" and
            "event/after", the loss around it; all 0 before the first;
            by stage "norm/<stage>" (of all its entries in weights that have grown) and
            "rate/<stage>" (mean over these weights of its learning rate relative to the oldest
            entries'), 0 while there is nothing of it.
        """
        if self._final_metrics is not None:
            return dict(self._final_metrics)
        return {
            **growth_metrics(
                self.widths,
                self.costs,
                phase=self.phase,
                steps=self._counter.step,
                spent=self._spent,
                event=self._events[-1] if self._events else None,
                measured=self._measure is not None,
            ),
            **block_summary(self._model, self.stages, self._rates.ratios, self._widenings),
        }

    def state_dict(self) -> dict[str, Any]:
        """What the model's own state does not hold: the journal, stages, rates and counts."""
        return {
            "step": self._counter.step,
            "ready": self._counter.begun,
            "spent": self._spent,
            "events": [event.packed() for event in self._events],
            "stages": self.stages.state_dict(),
            "rates": self._rates.state_dict(),
            "watch": None if self._watch is None else self._watch.state_dict(),
        }

    def reshape(self, state: dict[str, Any], optimizer: Optimizer | None = None) -> None:
        """Gives the model, still narrow, the shapes that it had when ``state_dict`` was called.

        Args:
            state: as ``state_dict`` returned it.
            optimizer: of the loop, which has no state yet; None if the next step comes after a
                ``restructure``.

        Raises:
            RequestError: a state of another kind, the model has grown already, or after
                ``finalize``.
        """
        self.require_active("reshape")
        self._check(state)
        if self._events:
            raise RequestError("reshape: the model has grown already; build it and the method anew")
        # What new channels hold is read afterwards, so no loss has to choose it again.
        init: Init = "random" if self._init in ("gradmax", "firefly") else self._init
        for stored in state["events"]:
            self._widen(GrowthEvent.unpacked(stored), (), init)
        if optimizer is not None:
            self._optimizers = (optimizer,)
            self._rates.follow(self._optimizers)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned, after ``reshape`` and the model's own state.

        Raises:
            RequestError: a state of another kind, a network of other widths, or after
                ``finalize``.
        """
        self.require_active("load_state_dict")
        self._check(state)
        events = [GrowthEvent.unpacked(stored) for stored in state["events"]]
        if [event.widths for event in events] != [event.widths for event in self._events]:
            raise invalid("state", f"{len(events)} events", "a network on which reshape was called")
        self._events = events
        self._counter.step, self._counter.begun = state["step"], state["ready"]
        self._spent = state["spent"]
        self.stages.load_state_dict(state["stages"])
        self._rates.load_state_dict(state["rates"])
        if self._watch is not None:
            self._watch.load_state_dict(state["watch"])

    def _asked(self) -> tuple[bool, float | None]:
        """Whether the next phase begins with the coming epoch, and the loss if it was measured."""
        latest = self.epoch >= self.starts[self.phase + 1]
        if self._watch is None or self.epoch == 0:
            return latest, self._loss() if latest else None
        loss = self._loss()
        assert loss is not None
        return self._watch.stalled(loss) or latest, loss

    def _grow(self, before: float | None) -> bool:
        phase = self.phase + 1
        event = GrowthEvent(
            step=self._counter.step,
            phase=phase,
            widths={
                name: of[phase] for name, of in self.widths.items() if of[phase] > of[phase - 1]
            },
            seed=event_seed(self._seed, phase),
        )
        self._widen(event, self._optimizers, self._init)
        after = self._loss() if event.widths else before
        measured = {"loss_before": before, "loss_after": after}
        self._events[-1] = GrowthEvent(**{**event.packed(), **measured})
        if self._watch is not None:
            self._watch.restart()
        return bool(event.widths)

    def _widen(self, event: GrowthEvent, optimizers: Sequence[Optimizer], init: Init) -> None:
        if event.widths:
            # Those of the step before, which has been taken.
            for parameter in self._model.parameters():
                parameter.grad = None
            done = widen(
                self._model,
                self._examples,
                event.widths,
                optimizers=optimizers,
                copies=self._copies,
                init=init,
                rescale=self._rescale,
                seed=event.seed,
                plan=self._plan,
                stages=self.stages,
                settings=with_loss(self._widening, self._loss_of, self._model),
            )
            self._plan = done.plan
        self._events.append(event)

    def _loss(self) -> float | None:
        return None if self._measure is None else float(self._measure(self._model))

    def _check(self, state: dict[str, Any]) -> None:
        if state.keys() != self.state_dict().keys():
            raise invalid("state", sorted(state), "what Growth.state_dict() returned")
