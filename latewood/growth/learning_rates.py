"""Learning rates by stage: what was born late in a growing network learns at a rate of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latewood.core import StateRule, state_rule
from latewood.core.coupling.trace import layer_tensors
from latewood.core.selection import stored_tensor
from latewood.core.state_rules import unwrapped_optimizer
from latewood.errors import RequestError, invalid
from latewood.growth.block_steps import BlendedParts, Part, SplitStep
from latewood.growth.stage_blocks import block_norms, stages_present
from latewood.growth.staged_weights import StagedWeight, StageTreatment
from latewood.growth.stages import Stages
from latewood.growth.whole_steps import whole_step
from latewood.kernels.staged_steps import StagedStep, take_steps

__all__ = ["StageRates", "norm_ratios"]

_LARGE: Final = 2**20
"""Entries from which on taking rectangles for parameters costs less than blending after a step,
where no compiled step knows the optimizer."""
_HORIZONS: Final = 8
"""Times 1 / (1 - beta) after which a count of steps has no more influence (3e-4)."""


def norm_ratios(
    weight: Tensor, vectors: Mapping[int, Tensor], limits: tuple[float, float] = (0.05, 20.0)
) -> dict[int, float]:
    r"""Learning rates of a weight's stages relative to the oldest.

    .. math:: f_k = \|W_{Dk}\|_F / \|W_{D0}\|_F

    Args:
        weight: (out, in, ...).
        vectors: by axis, the stage of each position (``Stages.of``).
        limits: the least and the largest ratio; what is beyond becomes it (ours).

    Returns:
        The ratio by stage; 1 where a norm is 0 or not finite (ours).

    Source: learning-rate adaptation of Yuan, Savarese and Maire (arXiv 2306.12700), recalled.
    """
    norms = block_norms(weight, vectors)
    seed = norms[min(norms)]
    ratios = {}
    for stage, norm in norms.items():
        usable = 0.0 < seed < math.inf and 0.0 < norm < math.inf
        ratios[stage] = min(max(norm / seed, limits[0]), limits[1]) if usable else 1.0
    return ratios


class StageRates:
    r"""Learning rates by stage, and step counts by stage, in the steps of any optimizer.

    .. math:: \eta_k = \eta \, \frac{\|W_{Dk}\|_F}{\|W_{D0}\|_F} \, \min(1, a_k / w)

    for the entries of stage k (``Stages``), a_k steps after their event, in every weight of two or
    more axes; biases and norms have ratio 1. With ``counters``, optimizers that correct their
    moments for starting at zero (Adam's kin) start newborn entries with an empty state and a step
    count of their own, until counts have no more influence, so that no first step is longer than
    the rate. Optimizers whose entries depend on each other (Muon, AvaGrad), and weights whose
    stages lie in many small pieces, keep the counts of the whole.

    ``attach`` it to the optimizer before the event, or load its state: what it meets first in a
    step counts as newborn. Under a gradient scaler, the parameters of grown weights must not be in
    groups with ``fused=True``.

    Args:
        model: the model that grows.
        stages: of its channels; followed as they change.
        rule: "norm" as above, "constant" for ratios of 1.
        every: steps after which norms are taken anew; 0 for at events only. At events they always
            are.
        warmup: steps over which the rate of newborn entries rises to its value (w); 0 for none.
        counters: whether newborn entries have step counts of their own.
        limits: of the ratios.

    Raises:
        RequestError: an argument out of its range.

    Source: the ratios are those of Yuan, Savarese and Maire (arXiv 2306.12700) as recalled;
    how often to renew them, limits, counters and warm-up are ours, the warm-up of newborn units
    after arXiv 2602.02472.
    """

    def __init__(
        self,
        model: nn.Module,
        stages: Stages,
        *,
        rule: Literal["norm", "constant"] = "norm",
        every: int = 50,
        warmup: int = 0,
        counters: bool = True,
        limits: tuple[float, float] = (0.05, 20.0),
    ) -> None:
        if rule not in ("norm", "constant"):
            raise invalid("rule", rule, "'norm' or 'constant'")
        for name, value in (("every", every), ("warmup", warmup)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise invalid(name, value, "an integer of at least 0")
        if len(limits) != 2 or not 0.0 < limits[0] <= 1.0 <= limits[1] < math.inf:
            raise invalid("limits", limits, "two positive numbers, one on each side of 1")
        self.model, self.stages = model, stages
        self.rule, self.every, self.warmup, self.counters = rule, every, warmup, counters
        self.limits = limits
        self.steps = 0
        self._ratios: dict[str, dict[int, float]] = {}
        self._ages: dict[str, dict[int, int]] = {}
        self._weights: dict[str, StagedWeight] = {}
        self._hooks: list[Any] = []
        self._followed: tuple[Optimizer, ...] = ()
        self._seen = -1

    @property
    def ratios(self) -> dict[str, dict[int, float]]:
        """Learning rate relative to the oldest entries', by weight and stage, without warm-up."""
        self._follow()
        return {name: dict(ratios) for name, ratios in self._ratios.items()}

    def attach(self, *optimizers: Optimizer) -> None:
        """Makes the optimizers' steps use the rates, until ``detach``.

        Args:
            optimizers: each updates other parameters of the model.

        Raises:
            RequestError: an optimizer of which nothing says what its state means; a parameter in
                pieces on several devices; ``differentiable=True``.
        """
        inner = [unwrapped_optimizer(optimizer) for optimizer in optimizers]
        for optimizer in inner:
            state_rule(optimizer)
            for group in optimizer.param_groups:
                if group.get("differentiable"):
                    raise invalid("differentiable", True, "False: rates act in place")
                for parameter in group["params"]:
                    if hasattr(parameter, "to_local"):
                        raise RequestError(
                            "optimizers: a parameter is sharded; expected whole parameters, since "
                            "stages are positions in them"
                        )
        for optimizer in inner:
            step = _Step(self, state_rule(optimizer))
            self._hooks += [
                optimizer.register_step_pre_hook(step.before),
                optimizer.register_step_post_hook(step.after),
            ]

    def follow(self, optimizers: Sequence[Optimizer]) -> None:
        """Attaches to these optimizers alone, where that is still to do.

        Args:
            optimizers: as for ``attach``.

        Raises:
            RequestError: as ``attach`` does.
        """
        if list(map(id, optimizers)) != list(map(id, self._followed)):
            self.detach()
            self._followed = tuple(optimizers)
        self.attach(*(optimizer for optimizer in optimizers if not self.attached(optimizer)))

    def attached(self, optimizer: Optimizer) -> bool:
        """Whether the optimizer's steps use the rates; those of a deep copy of it do not."""
        hooks = unwrapped_optimizer(optimizer)._optimizer_step_pre_hooks.values()
        steps = [getattr(hook, "__self__", None) for hook in hooks]
        return any(isinstance(step, _Step) and step._rates is self for step in steps)

    def detach(self) -> None:
        """Leaves the optimizers as they were before ``attach``."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def refresh(self) -> None:
        """Takes the norms of all grown weights anew."""
        self._seen = self.stages.latest
        places = dict(layer_tensors(self.model))
        self._weights, ratios = {}, {}
        for name in self.stages.tensors:
            if name not in places:
                continue
            tensor, vectors = stored_tensor(*places[name]), self.stages.of(name)
            if not isinstance(tensor, nn.Parameter):
                continue
            self._weights[name] = StagedWeight(name, tensor, vectors)
            if self.rule == "norm" and tensor.ndim > 1:
                ratios[name] = norm_ratios(tensor, vectors, self.limits)
            else:
                ratios[name] = dict.fromkeys(stages_present(vectors), 1.0)
        self._ratios = ratios

    def state_dict(self) -> dict[str, Any]:
        """Ratios and counts, as plain numbers; the stages have a state of their own."""
        return {
            "steps": self.steps,
            "seen": self._seen,
            "ratios": {name: list(map(list, of.items())) for name, of in self._ratios.items()},
            "ages": {name: list(map(list, of.items())) for name, of in self._ages.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned, after stages and model have been restored.

        Raises:
            RequestError: it is none.
        """
        if not {"steps", "seen", "ratios", "ages"} <= state.keys():
            raise invalid("state", sorted(map(str, state)), "what StageRates.state_dict returned")
        self.refresh()
        self.steps, self._seen = int(state["steps"]), int(state["seen"])
        self._ratios |= {
            name: {int(stage): float(ratio) for stage, ratio in of}
            for name, of in state["ratios"].items()
        }
        self._ages = {
            name: {int(stage): int(age) for stage, age in of} for name, of in state["ages"].items()
        }

    def _follow(self) -> None:
        if self._seen != self.stages.latest or any(w.is_stale for w in self._weights.values()):
            self.refresh()

    def _weights_in(self, optimizer: Optimizer) -> list[tuple[StagedWeight, dict[str, Any]]]:
        """The grown weights that an optimizer is about to update, with the groups they are in."""
        self._follow()
        by_id = {id(weight.parameter): weight for weight in self._weights.values()}
        return [
            (by_id[id(parameter)], group)
            for group in optimizer.param_groups
            for parameter in group["params"]
            if id(parameter) in by_id
            and parameter.grad is not None
            and parameter.grad.layout is torch.strided
        ]

    def _treatment(
        self, weight: StagedWeight, group: dict[str, Any], state: dict[str, Any], rule: StateRule
    ) -> StageTreatment:
        """How the coming step treats a weight; newborn entries start as such."""
        if weight.settled is not None:
            return weight.settled
        ages, (oldest, *younger) = self._ages.setdefault(weight.name, {}), weight.stages
        alone = rule.entrywise and weight.is_in_few_pieces
        counted = self.counters and rule.counted and alone
        newborn = [stage for stage in weight.stages if stage not in ages]
        if counted and newborn:
            weight.empty(state, rule.powers, [stage for stage in newborn if stage != oldest])
        ages.update(dict.fromkeys(newborn, 0))
        ratios = self._ratios[weight.name]
        factors = {oldest: ratios[oldest]}
        counts: dict[int, int | None] = {oldest: None}
        settled = _HORIZONS / (1.0 - max(group.get("betas", (group.get("momentum", 0.0),))))
        changing = bool(newborn)
        for stage in younger:
            warmth = min(1.0, (ages[stage] + 1) / self.warmup) if self.warmup else 1.0
            changing |= warmth < 1.0
            factors[stage] = ratios[stage] * warmth
            counts[stage] = ages[stage] if counted and ages[stage] < settled else None
        treatment = StageTreatment(factors, counts, alone)
        weight.settled = None if changing or treatment.has_own_counts else treatment
        return treatment

    def _advance(self, weights: Iterable[StagedWeight]) -> None:
        self.steps += 1
        for weight in weights:
            ages = self._ages[weight.name]
            for stage in ages:
                ages[stage] += 1
        if self.every and self.steps % self.every == 0 and self._weights:
            self.refresh()


class _Step:
    """The two hooks around the steps of one optimizer."""

    def __init__(self, rates: StageRates, rule: StateRule) -> None:
        self._rates, self._rule = rates, rule
        self._split: SplitStep | None = None
        self._weights: list[StagedWeight] = []
        self._blended = BlendedParts()
        self._whole: list[StagedStep] = []

    def before(self, optimizer: Optimizer, args: Any, named: Any) -> tuple[Any, Any] | None:
        """Hands the step to a twin that knows the parts, or remembers what they are."""
        if self._split is not None and optimizer is self._split.twin:
            return None  # a step that calls the step of the class above it
        self._split = None
        if self._rule.entrywise:
            args, named = _evaluated(args, named)
        weights = self._rates._weights_in(optimizer)
        self._weights = [weight for weight, _ in weights]
        self._whole.clear()
        apart: dict[Tensor, list[Part]] = {}
        blended: list[Part] = []
        for weight, group in weights:
            parameter = weight.parameter
            state = optimizer.state.get(parameter, {})
            treatment = self._rates._treatment(weight, group, state, self._rule)
            if treatment.is_plain:
                continue
            step = whole_step(optimizer, weight, group, state, treatment)
            if step is not None:
                self._whole.append(step)
                apart[parameter] = []
                continue
            parts = weight.parts(state, treatment)
            large = parameter.numel() >= _LARGE
            if treatment.alone and len(parts) > 1 and (treatment.has_own_counts or large):
                apart[parameter] = parts
            else:
                blended += parts
        self._blended.remember(blended)
        if apart:
            if getattr(optimizer, "grad_scale", None) is not None:
                raise invalid(
                    "fused", True, "False while a gradient scaler and StageRates are used"
                )
            self._split = SplitStep(optimizer, apart)
            optimizer = self._split.twin
        return ((optimizer, *args[1:]), named) if self._rule.entrywise else None

    def after(self, optimizer: Optimizer, args: Any, named: Any) -> None:
        """Takes over what the twin has made, or blends."""
        if self._split is not None:
            if optimizer is self._split.twin:
                return
            self._split.merge()
        if self._whole:
            take_steps(self._whole)
            self._whole.clear()
        self._blended.blend()
        if self._weights:
            self._rates._advance(self._weights)
        self._split, self._weights = None, []


def _evaluated(args: Any, named: Any) -> tuple[Any, Any]:
    """The arguments of a step with a closure that has been called: parts need its gradients."""
    closure = named.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        return args, named
    with torch.enable_grad():
        loss = closure()
    if "closure" in named:
        return args, {**named, "closure": lambda: loss}
    return (args[0], lambda: loss, *args[2:]), named
