"""Structured continuous sparsification: a network that grows from a seed and prunes itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latewood.core import SHAPES, EndsOnce
from latewood.errors import RequestError, invalid
from latewood.slim.edits import remember
from latewood.sparsity.soft_mask import DECIDED
from latewood.sparsity.structured.budget import Budget
from latewood.sparsity.structured.controller import Controller
from latewood.sparsity.structured.cost_meter import Meter
from latewood.sparsity.structured.costs import multiply_accumulates
from latewood.sparsity.structured.gates import Estimator, Gate
from latewood.sparsity.structured.live_structure import Anatomy
from latewood.sparsity.structured.logit_dynamics import growth_ratio
from latewood.sparsity.structured.logit_rates import (
    ADAPTIVE_LR,
    PLAIN_LR,
    is_adaptive,
    logit_group,
    starting_logits,
)
from latewood.sparsity.structured.new_weight_init import Birth
from latewood.sparsity.structured.presets import Ranking, checked, preset_having
from latewood.sparsity.structured.saliency import saliencies
from latewood.sparsity.structured.structure_age import Clocks
from latewood.sparsity.structured.structure_selection import capped, floored, largest_within
from latewood.sparsity.structured.structure_spec import Skeleton

__all__ = ["StructuredSparsification"]


class StructuredSparsification(EndsOnce):
    """Grows a network from one channel per layer and prunes it to a budget, while it trains.

    Each structure (a coupled group's channel, a removable residual block) owns a logit s. It is
    part of the network in an epoch with probability sigmoid(beta s), and scaled by that factor,
    behind its norm and activation, while it is. All logits feel a penalty

    ``lambda1 sum sigmoid(beta s of channels) + lambda2 sum sigmoid(beta s of blocks)``

    whose weight is negative while the network is smaller than it shall become and positive while it
    is larger (``growth.penalty_weight``). The temperature beta = gamma ** t of a structure rises
    with the epochs t in which it was there. At the freeze the blocks of the largest logits and the
    channels of the largest weights that fit the budget are fixed, the factors are folded into the
    weights, and the weights alone train on.

    What is absent is cut out of the parameters, the buffers and the optimizer's state at the start
    of an epoch, so it costs no computation; channels are remembered on the CPU and cost none of the
    device's memory, blocks stay in it. All come back bit for bit; what was never there is drawn
    anew. In a loop of your own call ``restructure(optimizer)`` before each epoch's first step.

    Args:
        model: any module that ``core.trace_channels`` can follow, without transformations.
        example_inputs: what it is called with: a tensor or positional tensors.
        budget: one of {"parameters": n} (all of them), {"macs": n} (of a forward pass on the
            example), {"latency_ms": t}, {"latency": share}; of the first two a number up to 1 is a
            share of the full model. The final network never exceeds it. A latency is measured once,
            layer by layer, and interpolated: it holds by that table, on this machine.
        total_steps: optimizer steps of the run.
        steps_per_epoch: optimizer steps of an epoch, between two samples of the structures.
        preset: defaults of what follows: "recommended", ours, or "paper", the plain algorithm.
        estimator: "soft" scales what is present by sigmoid(beta s); "ste" does not, and passes the
            gradient on.
        temperature: "per_structure", or "global": beta = gamma ** epoch for all.
        final_temperature: beta of a structure that is there in all epochs.
        penalty: (lambda_base) of channels.
        layer_penalty: (lambda_base) of blocks; None takes ``penalty``.
        normalised: divide lambda by 1 - u, the budget's share.
        seed_width: channels of each group that are there at the start.
        seed_logit: of those.
        growth_logit: of all others; None is the logit from which the penalty alone reaches 0 within
            ``growth_time`` (``growth.growth_logit``).
        growth_time: as a share of the run.
        freeze: share of the run after which the structures are fixed; 1 leaves it to ``finalize``.
        ranking: what channels are chosen by at the freeze: "norms" of all weights that make and
            read them (``saliency.saliencies``), or "logits".
        floor: least width of a group at the freeze, as a share of its width in a network of the
            budget whose groups are all narrowed alike; the rest goes by the ranking.
        overshoot: how many times the budget the network grows to before the freeze, up to the full
            one; 1 grows to the budget, so that the freeze has little to choose from, and is the
            default where ``freeze`` is 1.
        capped: keep also the samples before the freeze within the budget times ``overshoot``.
        logit_lr: learning rate of the logits; None is 0.1 for optimizers with momentum alone, and
            0.01 for those like Adam, whose steps are of the size of the learning rate.
        logit_decay: weight decay of the logits, which drags them towards 0, undecided.
        birth: scale of newly born weights: "initial" is the deviation of the full model's initial
            values, "kaiming" that of Kaiming's initialisation with the full layer's fan-in.
        layers: whether residual blocks may be removed as well.
        exclude: patterns on names of groups and blocks that stay whole.
        seed: of the samples and the newly born values, the same on all processes.

    Raises:
        RequestError: an argument out of range, a budget that not even one channel per group meets,
            or a model without anything to remove.

    Source: Yuan, Savarese, Maire, "Growing Efficient Deep Networks by Structured Continuous
    Sparsification", ICLR 2021 (arXiv 2007.15353). The closed form, the normalised penalty, the
    capped samples, the overshoot, the freeze, the selection under the budget and the scale at birth
    are ours.
    """

    order = SHAPES

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Tensor | Sequence[Tensor],
        *,
        budget: Mapping[str, float],
        total_steps: int,
        steps_per_epoch: int,
        preset: Literal["recommended", "paper"] = "recommended",
        estimator: Estimator = "soft",
        temperature: Literal["per_structure", "global"] = "per_structure",
        final_temperature: float = 100.0,
        penalty: float = 0.5,
        layer_penalty: float | None = None,
        normalised: bool | None = None,
        seed_width: int = 1,
        seed_logit: float = 3.0,
        growth_logit: float | None = None,
        growth_time: float | None = None,
        freeze: float | None = None,
        ranking: Ranking | None = None,
        floor: float | None = None,
        overshoot: float | None = None,
        capped: bool | None = None,
        logit_lr: float | None = None,
        logit_decay: float | None = None,
        birth: Birth | None = None,
        layers: bool = True,
        exclude: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        settings = preset_having(
            preset,
            normalised=normalised,
            growth_logit=growth_logit,
            growth_time=growth_time,
            freeze=freeze,
            ranking=ranking,
            floor=floor,
            overshoot=overshoot,
            capped=capped,
            logit_decay=logit_decay,
            birth=birth,
        )
        checked(
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
            seed_width=seed_width,
            seed_logit=seed_logit,
            estimator=estimator,
            temperature=temperature,
            final_temperature=final_temperature,
            penalty=penalty,
            layer_penalty=layer_penalty,
            logit_lr=logit_lr,
        )
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self.epochs = math.ceil(total_steps / steps_per_epoch)
        self.settings = settings
        self.logit_lr = logit_lr
        self._seed_width, self._seed_logit = seed_width, seed_logit
        self._model = model
        self._examples = _as_sequence(example_inputs)
        skeleton = Skeleton(model, self._examples, exclude=exclude, layers=layers)
        macs = multiply_accumulates(model, skeleton, self._examples)
        self.budget = Budget.of(budget, model, skeleton, macs, self._examples)
        self._generator = torch.Generator().manual_seed(seed)
        self._anatomy = Anatomy(
            model,
            skeleton,
            estimator=estimator,
            birth=settings.birth,
            generator=self._generator,
        )
        self._meter = Meter(macs, self._anatomy)
        self._clocks = Clocks(
            self._gates,
            ratio=growth_ratio(final_temperature, self.epochs),
            shared=temperature == "global",
        )
        self._controller = Controller(
            (penalty, penalty if layer_penalty is None else layer_penalty),
            normalised=settings.normalised,
        )
        self._step = 0
        self._ready = -1

    @property
    def _gates(self) -> list[Gate]:
        layer_gate = self._anatomy.layer_gate
        return [*self._anatomy.gates, *([layer_gate] if layer_gate is not None else [])]

    @property
    def _growing(self) -> Budget:
        return self.budget.times(self.settings.overshoot)

    @property
    def epoch(self) -> int:
        """The epoch of the step to come, from 0."""
        return self._step // self.steps_per_epoch

    @property
    def frozen(self) -> bool:
        """Whether the structures are fixed."""
        return self._anatomy.folded

    @property
    def freeze_epoch(self) -> int:
        """The epoch whose start fixes the structures, after the seed's and one that was sampled.

        That after the last if ``finalize`` does.
        """
        return max(2, math.ceil(self.settings.freeze * self.epochs))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The logits of all structures in one group.

        Raises:
            RequestError: after ``finalize``.
        """
        self.require_active("parameter_groups")
        return [
            {
                "params": [gate.logits for gate in self._gates],
                "lr": PLAIN_LR if self.logit_lr is None else self.logit_lr,
                "weight_decay": self.settings.logit_decay,
            }
        ]

    def penalty(self) -> Tensor:
        """``lambda1 sum sigmoid(beta s)`` over channels, and with lambda2 over blocks.

        Channels inside an absent block feel none.

        Returns:
            0-dim tensor, differentiable in the logits; 0 once the structures are fixed.

        Raises:
            RequestError: after ``finalize``.
        """
        self.require_active("penalty")
        return self._controller.penalty(self._anatomy)

    def restructure(self, optimizer: Optimizer) -> bool:
        """Makes the network of the coming epoch; call it before the first step of each.

        The first call leaves the seed, the later ones a sample, that at the freeze the final
        network.

        Args:
            optimizer: of the loop, with this method's group; its state follows the parameters.

        Returns:
            Whether anything changed: what was built around the model must then be built anew.

        Raises:
            RequestError: in the middle of an epoch, after ``finalize``, or the optimizer lacks the
                logits.
        """
        self.require_active("restructure")
        if self._step % self.steps_per_epoch:
            raise RequestError(
                f"restructure: called {self._step % self.steps_per_epoch} steps into an epoch of "
                f"{self.steps_per_epoch}; expected before its first step"
            )
        if self._ready == self.epoch:
            return False
        first, self._ready = self._ready < 0, self.epoch
        if self.frozen:
            return False
        if self.epoch >= self.freeze_epoch and not first:
            self._freeze(optimizer)
            changed = True
        else:
            changed = self._plant(optimizer) if first else self._sample(optimizer)
            self._clocks.show(self.epoch)
        self._meter.look()
        return changed

    def step(self) -> None:
        """Counts the step and what it cost; called once after every ``optimizer.step()``.

        Raises:
            RequestError: after ``finalize``, or the epoch began without ``restructure``.
        """
        self.require_active("step")
        if self._ready != self.epoch:
            raise RequestError(
                "step: call restructure(optimizer) before the first step of each epoch"
            )
        self._meter.count()
        self._step += 1

    def finalize(self) -> nn.Module:
        """Fixes the structures if that is still to do, and returns the slim model.

        Plain layers, without factors; ``slim.save_slim`` writes it to a file that rebuilds.
        When this call is what fixes the structures, batch norms want ``recalibrate_batch_norm``.

        Returns:
            The model, smaller, in place.

        Raises:
            RequestError: a second call.
        """
        self.require_active("finalize")
        if not self.frozen:
            self._freeze(None)
        self.finalized = True
        remember(self._model, self._anatomy.edits(), self._examples)
        return self._model

    def metrics(self) -> dict[str, float]:
        """Size against budget, what is there, and what training has cost.

        Returns:
            "budget/used" (cost now over budget), "budget/share" (cost now over the full model's),
            "parameters" and "macs" of the network now, "kept/<group>" (channels), "layers" (blocks
            that are there, if any can go), "penalty_weight" (lambda1), "undecided" (share of
            structures with |beta s| < 4; 0 once fixed), "training/macs" (sum over the steps of the
            MACs of a forward pass on the example; times 3 and the batch size for a training step)
            and "training/share" (that over the full model's).
        """
        return {
            **self._meter.metrics(self.budget, self._step),
            "penalty_weight": 0.0 if self.frozen else self._controller.weights[0],
            "undecided": self._undecided(),
        }

    def state_dict(self) -> dict[str, Any]:
        """What the model's own state does not hold: structures, clocks, what is detached."""
        return {
            "step": self._step,
            "ready": self._ready,
            "spent": self._meter.spent,
            "budget": self.budget.table(),
            "weights": self._controller.weights,
            "clocks": list(self._clocks.ages),
            "logits": [gate.logits.detach().clone() for gate in self._gates],
            "anatomy": self._anatomy.state(),
            "generator": self._generator.get_state(),
        }

    def reshape(self, state: dict[str, Any]) -> None:
        """Gives the model, still full, the shapes that it had when ``state_dict`` was called.

        Raises:
            RequestError: a state of another kind, the model is no longer full, or after
                ``finalize``.
        """
        self.require_active("reshape")
        self._check(state)
        if state["ready"] >= 0:
            self._anatomy.reshape(state["anatomy"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned, after ``reshape`` and the model's own state.

        Raises:
            RequestError: a state of another kind, or after ``finalize``.
        """
        self.require_active("load_state_dict")
        self._check(state)
        self.budget = self.budget.having(state["budget"], self._anatomy.skeleton)
        self._step, self._ready = state["step"], state["ready"]
        self._meter.spent, self._controller.weights = state["spent"], tuple(state["weights"])
        self._clocks.restore(state["clocks"])
        self._anatomy.load(state["anatomy"])
        with torch.no_grad():
            for gate, logits in zip(self._gates, state["logits"], strict=True):
                gate.logits.copy_(logits)
        self._generator.set_state(state["generator"])
        self._clocks.show(self.epoch)
        self._meter.look()

    def _plant(self, optimizer: Optimizer) -> bool:
        """Cuts the model down to the seed and sets the logits by the optimizer's rate."""
        present = [torch.zeros_like(each) for each in self._anatomy.present]
        for each in present:
            each[: self._seed_width] = True
        blocks = torch.zeros_like(self._anatomy.blocks)
        changed = self._anatomy.become(present, blocks, optimizer, remember=False)
        self._controller.follow(self._growing, present, blocks)
        off = self._growth_logits(optimizer)
        with torch.no_grad():
            for gate, each in zip(self._anatomy.gates, present, strict=True):
                gate.logits.fill_(off[0])
                gate.logits[each.to(gate.logits.device)] = self._seed_logit
            if self._anatomy.layer_gate is not None:
                self._anatomy.layer_gate.logits.fill_(off[1])
        return changed

    def _sample(self, optimizer: Optimizer) -> bool:
        """Draws the structures of an epoch; those drawn grow older."""
        anatomy = self._anatomy
        chances = [gate.chances().detach().cpu() for gate in self._gates]
        drawn = [
            torch.rand(len(each), generator=self._generator, dtype=torch.float64) < each.double()
            for each in chances
        ]
        blocks = drawn.pop() if anatomy.layer_gate is not None else anatomy.blocks
        scores, block_scores = self._scores()
        present = [floored(each, score) for each, score in zip(drawn, scores, strict=True)]
        # The penalty follows the sample as drawn: behind the cap it would never be too large.
        self._controller.follow(self._growing, present, blocks)
        if self.settings.capped:
            cost, limit = self._growing.cost, self._growing.limit
            present, blocks = capped(present, scores, blocks, block_scores, cost, limit)
        changed = anatomy.become(present, blocks, optimizer)
        for group, there in enumerate(anatomy.present):
            if anatomy.visible(group):
                self._clocks.advance(group, there)
        if anatomy.layer_gate is not None:
            self._clocks.advance(-1, blocks)
        return changed

    def _freeze(self, optimizer: Optimizer | None) -> None:
        """Fixes the structures of the largest scores within the budget; folds the factors."""
        anatomy = self._anatomy
        scores, layers = self._scores()
        if self.settings.ranking == "norms":
            scores = saliencies(anatomy.skeleton, anatomy.gates, anatomy.present)
        present, blocks = largest_within(
            scores, layers, self.budget.cost, self.budget.limit, floor=self.settings.floor
        )
        anatomy.become(present, blocks, optimizer)
        anatomy.fold(optimizer)
        for gate in self._gates:
            gate.logits.grad = None

    def _scores(self) -> tuple[list[Tensor], Tensor]:
        """The logits on the CPU: of each group's channels, and of the blocks."""
        scores = [gate.logits.detach().cpu() for gate in self._anatomy.gates]
        layer_gate = self._anatomy.layer_gate
        return scores, torch.zeros(0) if layer_gate is None else layer_gate.logits.detach().cpu()

    def _growth_logits(self, optimizer: Optimizer) -> tuple[float, ...]:
        group = logit_group(optimizer, self._gates[0].logits)
        if self.logit_lr is None and is_adaptive(group):
            group["lr"] = group["initial_lr"] = ADAPTIVE_LR
        if self.settings.growth_logit is not None:
            return (self.settings.growth_logit,) * 2
        return starting_logits(
            group, self._controller.weights, self.settings.growth_time * self.total_steps
        )

    def _undecided(self) -> float:
        if self.frozen:
            return 0.0
        far = [gate.temperature * gate.logits.detach() for gate in self._gates]
        return float(torch.cat(far).abs().lt(DECIDED).double().mean())

    def _check(self, state: dict[str, Any]) -> None:
        own = self.state_dict()
        if set(state) != set(own) or [len(each) for each in state["logits"]] != [
            len(each) for each in own["logits"]
        ]:
            raise invalid(
                "state", sorted(state), "what StructuredSparsification.state_dict() returned"
            )


def _as_sequence(example_inputs: Any) -> tuple[Tensor, ...]:
    found = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    if not found or not all(isinstance(each, Tensor) for each in found):
        raise invalid("example_inputs", type(example_inputs).__name__, "a tensor or tensors")
    return found
