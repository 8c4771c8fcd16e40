"""Structured continuous sparsification: a network that grows from a seed and prunes itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latewood.core import SHAPES, EndsOnce, EpochCounter, Epochs, StepsPerEpoch
from latewood.core.coupling.owners import claim_shapes, release_shapes, require_unclaimed
from latewood.core.coupling.traced_call import tensors_in
from latewood.core.devices import require_values
from latewood.errors import invalid
from latewood.slim.comparison import Examples
from latewood.slim.edits import remember
from latewood.sparsity.soft_mask import DECIDED
from latewood.sparsity.structured.budget import Budget
from latewood.sparsity.structured.cost_meter import CostMeter
from latewood.sparsity.structured.costs import multiply_accumulates
from latewood.sparsity.structured.gates import Estimator
from latewood.sparsity.structured.live_structure import LiveStructure
from latewood.sparsity.structured.logit_dynamics import growth_ratio
from latewood.sparsity.structured.logit_rates import PLAIN_LR
from latewood.sparsity.structured.new_weight_init import NewWeightScale
from latewood.sparsity.structured.penalty_controller import PenaltyController
from latewood.sparsity.structured.presets import PresetName, settings_of
from latewood.sparsity.structured.structure_age import StructureAges
from latewood.sparsity.structured.structure_sampler import StructureSampler
from latewood.sparsity.structured.structure_spec import StructureSpec
from latewood.sparsity.structured.structured_settings import Ranking

__all__ = ["StructuredSparsification"]


class StructuredSparsification(EndsOnce):
    """Grows a network from one channel per layer and prunes it to a budget, while it trains.

    Each structure (a coupled group's channel, a removable residual block) owns a logit s. It is
    part of the network in an epoch with probability sigmoid(beta s), and scaled by that factor,
    behind its norm and activation, while it is. All logits feel a penalty

    ``lambda1 sum sigmoid(beta s of channels) + lambda2 sum sigmoid(beta s of blocks)``

    whose weight is negative while the network is smaller than it shall become and positive while it
    is larger (``logit_dynamics.penalty_weight``). The temperature beta = gamma ** t of a structure
    rises with the epochs t in which it was there. At the freeze the blocks of the largest logits
    and the channels of the largest weights that fit the budget are fixed, the factors are folded
    into the weights, and the weights alone train on.

    What is absent is cut out of the parameters, the buffers and the optimizer's state at the start
    of an epoch, so it costs no computation; channels are remembered on the CPU and cost none of the
    device's memory, blocks stay in it. All come back bit for bit; what was never there is drawn
    anew. In a loop of your own call ``restructure(optimizer)`` before each epoch's first step.

    Args:
        model: any module that ``core.trace_channels`` can follow, without transformations.
        example_inputs: what it is called with: a tensor, a sequence of positional arguments, or a
            dict of keyword arguments.
        budget: one of {"parameters": n} (all of them), {"macs": n} (of a forward pass on the
            example), {"latency_ms": t}, {"latency": share}; of the first two a number up to 1 is a
            share of the full model. The final network never exceeds it. A latency is measured once,
            layer by layer, and interpolated: it holds by that table, on this machine.
        total_steps: optimizer steps of the run.
        steps_per_epoch: optimizer steps of every epoch, or of each, between two samples of the
            structures.
        preset: "recommended", ours, or "paper", the plain algorithm: decides what is None below.
        estimator: "soft" or "ste", of the factors (``GateSettings``).
        temperature: "per_structure" or "global".
        final_temperature: beta of a structure that is there in all epochs.
        penalty: (lambda_base) of channels (``PenaltySettings``).
        layer_penalty: (lambda_base) of blocks; None takes ``penalty``.
        normalised: divide lambda by the budget's share of the full model.
        seed_width: channels of each group at the start (``GrowthSettings``).
        seed_logit: of those.
        growth_logit: of all others; None follows ``growth_time``.
        growth_time: share of the run in which the penalty alone brings them to 0.
        freeze: share of the run after which the structures are fixed (``FreezeSettings``).
        ranking: "norms" or "logits", by which channels are chosen then.
        floor: least width of a group then, as a share of groups narrowed alike.
        overshoot: how many times the budget the network grows to before.
        capped: keep also the samples within that.
        logit_lr: learning rate of the logits; None follows the optimizer (``LogitSettings``).
        logit_decay: weight decay of the logits.
        birth: scale of new weights, "initial" or "kaiming".
        layers: whether residual blocks may be removed as well.
        exclude: patterns on names of groups and blocks that stay whole.
        seed: of the samples and the newly born values, the same on all processes.

    Raises:
        RequestError: an argument out of range, a budget that not even one channel per group meets,
            a model without anything to remove, or tensors whose shapes another method changes.

    Source: Yuan, Savarese, Maire, "Growing Efficient Deep Networks by Structured Continuous
    Sparsification", ICLR 2021 (arXiv 2007.15353). The closed form, the normalised penalty, the
    capped samples, the overshoot, the freeze, the selection under the budget and the scale at birth
    are ours.
    """

    order = SHAPES

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Examples,
        *,
        budget: Mapping[str, float],
        total_steps: int,
        steps_per_epoch: StepsPerEpoch,
        preset: PresetName = "recommended",
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
        birth: NewWeightScale | None = None,
        layers: bool = True,
        exclude: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        epochs = Epochs(steps_per_epoch, total_steps)
        self.settings = settings = settings_of(
            preset,
            estimator=estimator,
            temperature=temperature,
            final_temperature=final_temperature,
            penalty=penalty,
            layer_penalty=layer_penalty,
            normalised=normalised,
            seed_width=seed_width,
            seed_logit=seed_logit,
            growth_logit=growth_logit,
            growth_time=growth_time,
            freeze=freeze,
            ranking=ranking,
            floor=floor,
            overshoot=overshoot,
            capped=capped,
            logit_lr=logit_lr,
            logit_decay=logit_decay,
            birth=birth,
        )
        """The arguments in groups, with the preset's values for those that were None."""
        self.steps_per_epoch = steps_per_epoch
        self.epochs = epochs.count
        self._model = model
        self._examples = _checked(example_inputs)
        require_values(model)
        spec = StructureSpec(model, self._examples, exclude=exclude, layers=layers)
        macs = multiply_accumulates(model, spec, self._examples)
        self.budget = Budget.of(budget, model, spec, macs, self._examples)
        tensors = [tensor.name for tensor in spec.tensors.values() if tensor.axes]
        require_unclaimed(model, tensors, self)
        self._generator = torch.Generator().manual_seed(seed)
        self._structure = LiveStructure(
            model,
            spec,
            estimator=settings.gates.estimator,
            birth=settings.growth.birth,
            generator=self._generator,
        )
        self._ages = StructureAges(
            self._structure.all_gates,
            ratio=growth_ratio(settings.gates.final_temperature, self.epochs),
            shared=settings.gates.temperature == "global",
        )
        self._controller = PenaltyController(settings.penalty)
        self._sampler = StructureSampler(
            self._structure,
            self._ages,
            self._controller,
            settings,
            growth_steps=epochs.steps_within(settings.growth.growth_time),
            generator=self._generator,
        )
        self._meter = CostMeter(macs, self._structure)
        self._counter = EpochCounter(epochs)
        claim_shapes(model, tensors, self)

    @property
    def epoch(self) -> int:
        """The epoch of the step to come, from 0."""
        return self._counter.epoch

    @property
    def frozen(self) -> bool:
        """Whether the structures are fixed."""
        return self._structure.folded

    @property
    def freeze_epoch(self) -> int:
        """The epoch whose start fixes the structures, after the seed's and one that was sampled.

        That after the last if ``finalize`` does.
        """
        return max(2, math.ceil(self.settings.freeze.freeze * self.epochs))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The logits of all structures in one group.

        Raises:
            RequestError: after ``finalize``.
        """
        self.require_active("parameter_groups")
        logits = self.settings.logits
        return [
            {
                "params": [gate.logits for gate in self._structure.all_gates],
                "lr": PLAIN_LR if logits.logit_lr is None else logits.logit_lr,
                "weight_decay": logits.logit_decay,
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
        return self._controller.penalty(self._structure)

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
        if not self._counter.is_due():
            return False
        first = self._counter.begun < 0
        self._counter.begin()
        if self.frozen:
            return False
        if first:
            changed = self._sampler.plant(optimizer, self.budget)
        elif self.epoch < self.freeze_epoch:
            changed = self._sampler.sample(optimizer, self.budget)
        else:
            self._sampler.freeze(optimizer, self.budget)
            changed = True
        if not self.frozen:
            self._ages.set_temperatures(self.epoch)
        self._meter.refresh()
        return changed

    def step(self) -> None:
        """Counts the step and what it cost; called once after every ``optimizer.step()``.

        Raises:
            RequestError: after ``finalize``, or the epoch began without ``restructure``.
        """
        self.require_active("step")
        self._counter.count()
        self._meter.count_step()

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
            self._sampler.freeze(None, self.budget)
        self.finalized = True
        release_shapes(self)
        self._structure.finalize()
        remember(self._model, self._structure.edits(), self._examples)
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
            **self._meter.metrics(self.budget, self._counter.step),
            "penalty_weight": 0.0 if self.frozen else self._controller.weights[0],
            "undecided": self._undecided(),
        }

    def state_dict(self) -> dict[str, Any]:
        """What the model's own state does not hold: structures, their ages, what is detached."""
        # The keys are those of checkpoints that are there already.
        return {
            "step": self._counter.step,
            "ready": self._counter.begun,
            "spent": self._meter.spent,
            "budget": self.budget.table(),
            "weights": self._controller.weights,
            "clocks": list(self._ages.epochs),
            "logits": [gate.logits.detach().clone() for gate in self._structure.all_gates],
            "anatomy": self._structure.state(),
            "generator": self._generator.get_state(),
        }

    def reshape(self, state: dict[str, Any], optimizer: Optimizer | None = None) -> None:
        """Gives the model, still full, the shapes that it had when ``state_dict`` was called.

        Args:
            state: as ``state_dict`` returned it.
            optimizer: of the loop; it has no state yet, so nothing of it changes.

        Raises:
            RequestError: a state of another kind, the model is no longer full, or after
                ``finalize``.
        """
        self.require_active("reshape")
        self._check(state)
        if state["ready"] >= 0:
            self._structure.reshape(state["anatomy"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned, after ``reshape`` and the model's own state.

        Raises:
            RequestError: a state of another kind, or after ``finalize``.
        """
        self.require_active("load_state_dict")
        self._check(state)
        self.budget = self.budget.having(state["budget"], self._structure.spec)
        self._counter.step, self._counter.begun = state["step"], state["ready"]
        self._meter.spent, self._controller.weights = state["spent"], tuple(state["weights"])
        self._ages.restore(state["clocks"])
        self._structure.load(state["anatomy"])
        with torch.no_grad():
            for gate, logits in zip(self._structure.all_gates, state["logits"], strict=True):
                gate.logits.copy_(logits)
        self._generator.set_state(state["generator"])
        self._ages.set_temperatures(self.epoch)
        self._meter.refresh()

    def _undecided(self) -> float:
        if self.frozen:
            return 0.0
        gates = self._structure.all_gates
        scaled = torch.cat([gate.temperature * gate.logits.detach() for gate in gates])
        return float(scaled.abs().lt(DECIDED).double().mean())

    def _check(self, state: dict[str, Any]) -> None:
        expected = self.state_dict()
        sizes = [len(logits) for logits in expected["logits"]]
        if state.keys() != expected.keys() or [len(part) for part in state["logits"]] != sizes:
            raise invalid(
                "state", sorted(state), "what StructuredSparsification.state_dict() returned"
            )


def _checked(example_inputs: Any) -> Any:
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    if not isinstance(inputs, (Sequence, dict)) or not any(
        True for _ in tensors_in(list(inputs) if isinstance(inputs, Sequence) else inputs)
    ):
        raise invalid(
            "example_inputs",
            type(example_inputs).__name__,
            "a tensor, or positional or keyword arguments with a tensor",
        )
    return inputs
