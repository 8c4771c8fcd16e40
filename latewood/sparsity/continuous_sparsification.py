"""Continuous sparsification: a soft mask on every weight, sharpened until it is binary."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from latewood.core import MASK, EndsOnce, Selected, StepsPerEpoch
from latewood.core.attached_masks import AttachedMasks
from latewood.errors import RequestError, invalid, listed
from latewood.sparsity.density import largest_logits, largest_only, require_reachable
from latewood.sparsity.maskable_weights import maskable
from latewood.sparsity.momentum import MomentumReset
from latewood.sparsity.soft_mask import DECIDED, MOST_UNDECIDED, SoftMask, unit_scale
from latewood.sparsity.temperature_schedule import TemperatureSchedule

__all__ = ["ContinuousSparsification"]

_LARGEST_LOGIT: Final = 16.0


class ContinuousSparsification(EndsOnce):
    """Learns which weights to keep, in the one run that trains them.

    Each weight w owns a logit s and acts as ``w * c * sigmoid(beta * s)``. The loss gains
    ``penalty_weight * sum(c * sigmoid(beta * s))``, and the temperature beta rises from 1 to
    ``final_temperature``, ``beta = final_temperature ** progress``, so that the mask ends as the
    binary H(s) = (s > 0). ``harden`` fixes that mask, ``finalize`` folds it into the weights.

    Args:
        model: its selected weight matrices are masked in place; biases, norms and embeddings never.
            A tied tensor is masked in all its uses.
        total_steps: optimizer steps of the run; the last one runs at ``final_temperature``.
        steps_per_epoch: None raises beta every step; the length of all epochs or of each raises it
            at every epoch's start, as the authors' code does.
        rounds: (R) equal parts of the run. At the end of each but the last the binary masks are
            kept in ``tickets``, then s becomes min(beta_T s, s0) and beta starts again at 1: what
            was pruned stays so, the rest has to be earned again. Each round is sparser.
        carry_momentum: keep an optimizer's momentum of the logits over the end of a round, as the
            authors' code does; False clears it.
        freeze_weights: train the logits only (a supermask): everything else in the model keeps its
            initial value until ``finalize``.
        initial_logit: (s0) of every weight, in [-16, 16]; lower is sparser, though not monotonely
            in short runs. Useful values lie within about 0.3 of 0.
        final_temperature: (beta_T), at least 1.
        harden_at: fraction of the last round, in (0, 1], after which the masks are fixed and the
            weights train on alone; beta reaches its end there. 1 keeps the masks soft to the end,
            as the authors' code does. Our addition: a learning rate that decays stops the logits
            while they are still undecided, so that fixing them where it first drops, or before,
            leaves the weights time to settle under the binary mask.
        density: keep exactly this fraction of the masked weights, in (0, 1], when the masks are
            fixed (see ``density_target``); None keeps what is above 0. Our addition too.
        penalty_weight: (lambda), 0 or more; the authors' 1e-8 is nearly inert.
        scale: "code" is the authors' code, c = 1 / sigmoid(s0): attaching leaves the network's
            function as it was. "none" is c = 1, the paper's formula.
        mask_lr: learning rate of the logits; None takes the optimizer's.
        include: patterns on layer or parameter names (``core.select_parameters``).
        exclude: patterns of the same form. None keeps the last layer in registration order dense,
            as the authors' code does its classifier, and what is shared with an embedding, unless
            ``include`` is given or nothing else is there; () excludes nothing.

    Raises:
        RequestError: an argument out of range, a pattern that matches nothing, a weight that
            already has a mask or a foreign parametrization, or that has no data or no real dtype.

    Source: Savarese, Silva, Maire, "Winning the Lottery with Continuous Sparsification",
    NeurIPS 2020 (arXiv 1912.04427), and its authors' code for the scale and the schedule.
    """

    order = MASK

    def __init__(
        self,
        model: nn.Module,
        *,
        total_steps: int,
        steps_per_epoch: StepsPerEpoch | None = None,
        rounds: int = 1,
        carry_momentum: bool = False,
        freeze_weights: bool = False,
        initial_logit: float = 0.0,
        final_temperature: float = 200.0,
        harden_at: float = 1.0,
        density: float | None = None,
        penalty_weight: float = 1e-8,
        scale: Literal["code", "none"] = "code",
        mask_lr: float | None = None,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] | None = None,
    ) -> None:
        temperatures = TemperatureSchedule(
            total_steps=total_steps,
            rounds=rounds,
            steps_per_epoch=steps_per_epoch,
            final_temperature=final_temperature,
            harden_at=harden_at,
        )
        if not abs(initial_logit) <= _LARGEST_LOGIT:
            raise invalid(
                "initial_logit",
                initial_logit,
                "a number in [-16, 16]; beyond, a float32 sigmoid has no gradient",
            )
        if not 0.0 <= penalty_weight < math.inf:
            raise invalid("penalty_weight", penalty_weight, "a finite number, 0 or more")
        if scale not in ("code", "none"):
            raise invalid("scale", scale, "'code' or 'none'")
        if mask_lr is not None and not 0.0 < mask_lr < math.inf:
            raise invalid("mask_lr", mask_lr, "a positive finite number, or None")
        chosen = maskable(model, include, exclude)
        if density is not None:
            require_reachable(density, [weight.stored.numel() for weight in chosen])

        self.total_steps = total_steps
        self.rounds = rounds
        self.carry_momentum = carry_momentum
        self.initial_logit = initial_logit
        self.penalty_weight = penalty_weight
        self.mask_lr = mask_lr
        self.density = density
        self._temperatures = temperatures
        self._model = model
        self._step = 0
        self._tickets: list[dict[str, Tensor]] = []
        self._momentum_reset: MomentumReset | None = None
        self._final_metrics: dict[str, float] | None = None

        def make(weight: Selected) -> SoftMask:
            factor = unit_scale(initial_logit, weight.stored) if scale == "code" else 1.0
            mask = SoftMask(weight.stored, initial_logit=initial_logit, scale=factor)
            mask.fixed_from = temperatures.harden_step or total_steps
            return mask

        self._attached = AttachedMasks(model, chosen, make)
        self._masks = self._attached.masks
        logits = {id(parameter) for parameter in self.mask_parameters()}
        self._frozen = [
            parameter
            for parameter in (model.parameters() if freeze_weights else ())
            if parameter.requires_grad and id(parameter) not in logits
        ]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        self._set_temperature()

    @property
    def temperature(self) -> float:
        """The temperature (beta) of the step to come."""
        return self._temperatures.temperature(self._step)

    @property
    def round(self) -> int:
        """The round of the step to come, from 1 to ``rounds``."""
        return self._temperatures.round(self._step)

    @property
    def tickets(self) -> list[dict[str, Tensor]]:
        """The binary masks (as ``masks``) of each finished round, then those of now.

        Those of now mean something at the end of a round only: right after a reset with s0 < 0 no
        logit is above 0.
        """
        return [
            *({name: mask.clone() for name, mask in ticket.items()} for ticket in self._tickets),
            self.masks(),
        ]

    @property
    def scales(self) -> dict[str, float]:
        """The scale (c) of each mask by parameter name."""
        return {name: mask.scale for name, mask in self._masks.items()}

    @property
    def hardened(self) -> bool:
        """Whether the masks are fixed."""
        return all(mask.frozen for mask in self._masks.values())

    def mask_parameters(self) -> list[nn.Parameter]:
        """The logits, in the model's order.

        Whoever builds optimizer groups by hand gives these weight decay 0, since decay pulls every
        logit to 0, the undecided point, and clips their gradients apart from the weights'.
        """
        return [mask.mask_logits for mask in self._masks.values()]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The logits as one optimizer group without weight decay, with ``mask_lr`` if given.

        Raises:
            RequestError: after ``finalize``.
        """
        self.require_active("parameter_groups")
        group: dict[str, Any] = {"params": self.mask_parameters(), "weight_decay": 0.0}
        if self.mask_lr is not None:
            group["lr"] = self.mask_lr
        return [group]

    def penalty(self) -> Tensor:
        """``penalty_weight * sum(c * sigmoid(beta * s))`` over all masked weights.

        Returns:
            0-dim tensor, differentiable in the logits; 0 once the masks are fixed.

        Raises:
            RequestError: after ``finalize``.
        """
        self.require_active("penalty")
        first = next(iter(self._masks.values())).mask_logits
        total = torch.zeros((), dtype=first.dtype, device=first.device)
        if self.penalty_weight == 0.0 or self.hardened:
            return total
        for mask in self._masks.values():
            total = total + mask.total().to(total)
        return self.penalty_weight * total

    def step(self) -> None:
        """Moves the temperature; called once after every ``optimizer.step()``.

        The last step of a round but the last keeps its masks and resets the logits; the step that
        ends the part of the last round up to ``harden_at`` fixes the masks.

        Raises:
            RequestError: after ``finalize``.
        """
        self.require_active("step")
        if self._momentum_reset is not None and not self._momentum_reset.pending:
            self._keep_momentum()
        before = self.round
        self._step += 1
        if self.round > before and not self.hardened:
            self._start_round()
        self._set_temperature()
        if self._step == self._temperatures.harden_step:
            self.harden()

    def masks(self) -> dict[str, Tensor]:
        """The binary masks by parameter name: bool, shape of the weight, True where kept."""
        return self._attached.read(lambda mask: mask.binary().clone())

    @contextlib.contextmanager
    def hard(self) -> Iterator[nn.Module]:
        """Runs the model with its binary masks inside a ``with`` block, and soft again after it.

        Evaluating inside and outside measures the soft-hard gap before anything is fixed. The
        statistics of batch norms are still those of the soft network.
        """
        self.require_active("hard")
        before = [mask.hard for mask in self._masks.values()]
        for mask in self._masks.values():
            mask.hard = True
        try:
            yield self._model
        finally:
            for mask, was in zip(self._masks.values(), before, strict=True):
                mask.hard = was

    def harden(self) -> None:
        """Fixes the masks at H(s), or at the exact ``density`` if one was asked for.

        They keep multiplying: fine-tuning cannot revive an entry.

        A layer whose logits are all 0 or less keeps its largest one, with a warning; so does a
        warning come when more than 1 % of the entries are undecided (|beta s| < 4).

        Raises:
            RequestError: after ``finalize``.
        """
        self.require_active("harden")
        if self.hardened:
            return
        undecided, _ = self._attached.fractions(SoftMask.undecided)
        if undecided > MOST_UNDECIDED:
            warnings.warn(
                f"{undecided:.1%} of the masked weights are undecided (|temperature * logit| < "
                f"{DECIDED:g}): the hard network may differ from the soft one; a higher "
                "final_temperature, more steps or a lower initial_logit decide more",
                UserWarning,
                stacklevel=2,
            )
        if self.density is not None:
            self.density_target(self.density)
            return
        empty = [name for name, mask in self._masks.items() if not mask.binary().any()]
        if empty:
            warnings.warn(
                f"{listed(empty)}: no logit is above 0; the largest one of each is kept, "
                "because a layer without weights makes the network constant",
                UserWarning,
                stacklevel=2,
            )
        for name, mask in self._masks.items():
            mask.freeze(largest_only(mask.mask_logits) if name in empty else mask.binary())

    def density_target(self, density: float) -> None:
        """Fixes the masks at the largest logits so that exactly the asked density is kept.

        ``round(density * n)`` of all n masked entries stay: the largest logit of every layer, then
        the largest of the rest; of equal logits the earlier entry in the model's order.

        Args:
            density: fraction kept, in (0, 1].

        Raises:
            RequestError: a density that leaves some layer without a weight, masks already fixed,
                or after ``finalize``.
        """
        self.require_active("density_target")
        if self.hardened:
            raise RequestError("density_target: the masks are already fixed")
        masks = list(self._masks.values())
        chosen = largest_logits([mask.mask_logits.detach() for mask in masks], density)
        for mask, hard_mask in zip(masks, chosen, strict=True):
            mask.freeze(hard_mask)

    def finalize(self) -> nn.Module:
        """Folds the binary masks into the weights, ``w <- w * c * H(s)``, and removes them.

        The masks are hardened first if they are not. Training on with momentum or decay revives
        pruned entries of the plain model: fine-tune between ``harden`` and ``finalize``. Batch
        norms keep the statistics of the soft network: ``core.recalibrate_batch_norm``.

        Returns:
            The model, with plain weights; only this method's transformations are gone.

        Raises:
            RequestError: a second call, or a number format inside the masks is not baked yet.
        """
        self.require_active("finalize")
        self.harden()
        final_metrics = self.metrics()
        self._attached.fold()
        for weight in self._frozen:
            weight.requires_grad_(True)
        self._keep_momentum()
        self._final_metrics = final_metrics
        self.finalized = True
        return self._model

    def metrics(self) -> dict[str, float]:
        """Densities by H(s), never by the soft mask, and how far the masks are.

        Returns:
            "density" (fraction kept of all masked weights), "undecided" (fraction with
            |beta s| < 4), "temperature" (beta), with several rounds "round", and
            "density/<layer>" and "undecided/<layer>"; after ``finalize`` the final values.
        """
        if self._final_metrics is not None:
            return dict(self._final_metrics)
        density, by_layer = self._attached.fractions(SoftMask.binary)
        undecided, undecided_by_layer = self._attached.fractions(SoftMask.undecided)
        return {
            "density": density,
            "undecided": undecided,
            "temperature": self.temperature,
            **({"round": float(self.round)} if self.rounds > 1 else {}),
            **{f"density/{layer}": fraction for layer, fraction in by_layer.items()},
            **{f"undecided/{layer}": fraction for layer, fraction in undecided_by_layer.items()},
        }

    def state_dict(self) -> dict[str, Any]:
        """What the model's state does not hold: the step, and the tickets if there are rounds.

        Logits and masks are the model's.
        """
        state: dict[str, Any] = {"step": self._step}
        if self.rounds > 1:
            state["tickets"] = self.tickets[:-1]
            reset = self._momentum_reset
            state["momentum_is_stale"] = reset is not None and reset.pending
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned; the model's own state is loaded beside it.

        Raises:
            RequestError: a state of another kind, or after ``finalize``.
        """
        self.require_active("load_state_dict")
        step = state.get("step")
        if set(state) != set(self.state_dict()) or not isinstance(step, int) or step < 0:
            raise invalid("state", state, "what ContinuousSparsification.state_dict() returned")
        self._step = step
        self._tickets = [
            {name: mask.clone() for name, mask in ticket.items()}
            for ticket in state.get("tickets", ())
        ]
        self._keep_momentum()
        if state.get("momentum_is_stale"):
            self._momentum_reset = MomentumReset(self.mask_parameters())
        self._set_temperature()

    @torch.no_grad()
    def _start_round(self) -> None:
        """Takes the ticket, then resets: s <- min(beta s, s0). After it H(s) means nothing."""
        self._tickets.append(self.masks())
        for mask in self._masks.values():
            reset = (mask.temperature * mask.mask_logits).clamp_max_(self.initial_logit)
            mask.mask_logits.copy_(reset)
        if not self.carry_momentum:
            self._keep_momentum()
            self._momentum_reset = MomentumReset(self.mask_parameters())

    def _keep_momentum(self) -> None:
        if self._momentum_reset is not None:
            self._momentum_reset.remove()
            self._momentum_reset = None

    def _set_temperature(self) -> None:
        temperature = self.temperature
        for mask in self._masks.values():
            mask.temperature.fill_(temperature)
