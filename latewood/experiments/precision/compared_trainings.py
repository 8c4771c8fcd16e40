"""One network trained in float, with learned bits, with uniform bits and by two relatives.

All trainings of a seed start from the same weights and see the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from latewood.core import finalize, parameter_groups, select_parameters
from latewood.core.modes import evaluated
from latewood.core.schedules import cosine, progress
from latewood.experiments.precision.reference_quantizers import (
    LearnedStep,
    NoisyStep,
    average_bits,
    settle,
)
from latewood.experiments.registry import Claim, Results
from latewood.precision import LearnedPrecision, NoiseSettings, allocate
from latewood.tasks import Batch, Task, batches
from latewood.training.fit import fit
from latewood.training.randomness import derive, seed_torch

__all__ = ["ComparedTrainings", "above", "averages_met", "comparisons"]

_SCORED_AT_ONCE: Final = 500
_ONE_STEP: Final = 1e-9
"""Noise phase of uniform bits: straight-through training begins after one step of it."""


@dataclass(frozen=True, kw_only=True)
class ComparedTrainings:
    """What the trainings of one seed have in common.

    Args:
        task: the data, and how a batch is judged.
        network: the untrained network, from torch's generator.
        optimizer: of its parameter groups; the rate falls to 0 as a cosine.
        steps: of each training.
        batch_size: samples of a step.
        seed: of weights, batches and noise.
        noise: how the noise phase starts and learns.
        snap_at: fraction of the steps before bits are fixed, of both that learn them.
        include: the layers whose weights are rounded; all others stay in float everywhere.
        noisy_price: of a bit above the asked average, for the relative that learns bits.
    """

    task: Task
    network: Callable[[], nn.Module]
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    steps: int
    batch_size: int
    seed: int
    noise: NoiseSettings
    snap_at: float
    include: tuple[str, ...] = ("*",)
    noisy_price: float = 1.0

    def measure(
        self, learned: Mapping[str, Mapping[str, Any]], *, allocations: Sequence[int] = ()
    ) -> dict[str, float]:
        """Scores of all trainings, at 2 bits where nothing else is said.

        Args:
            learned: arguments of ``LearnedPrecision`` by the name of the training.
            allocations: bits to which the network trained in float is rounded as well: on average
                by curvature ("allocated"), and everywhere ("rounded").
        """
        model = self.in_float()
        measured = {"float": self.score(model)}
        for bits in allocations:
            measured[f"allocated {bits}"] = self.allocated(deepcopy(model), bits)
            measured[f"rounded {bits}"] = self.allocated(deepcopy(model), bits, palette=(bits,))
        for name, arguments in learned.items():
            measured[name], measured[f"{name} bits"] = self.learned(**arguments)
        measured["uniform 2"] = self.uniform(2)
        measured["uniform 2 with inputs"] = self.uniform(2, activations=True)
        measured["steps 2"] = self.learned_steps(2)
        measured["noisy steps 2"], measured["noisy steps 2 bits"] = self.noisy_steps(2.0)
        return measured

    def in_float(self) -> nn.Module:
        """The network trained in float."""
        model = self._built()
        self._train(model)
        return model

    def learned(self, **arguments: Any) -> tuple[float, float]:
        """Score with learned bits, and their average.

        Args:
            arguments: of ``LearnedPrecision``.
        """
        return self._with_bits(self.snap_at, arguments)

    def uniform(self, bits: int, **arguments: Any) -> float:
        """Score of a straight-through training with the same bits everywhere.

        Args:
            bits: of all weights.
            arguments: of ``LearnedPrecision``, for what is rounded besides.
        """
        return self._with_bits(_ONE_STEP, {"penalty": 0.0, "palette": (bits,), **arguments})[0]

    def learned_steps(self, bits: int) -> float:
        """Score of uniform bits with learned steps (``LearnedStep``)."""
        model = self._built()
        for layer in self._layers(model):
            quantizer = LearnedStep(layer.weight, bits)
            parametrize.register_parametrization(layer, "weight", quantizer)
        self._train(model)
        return self.score(model)

    def noisy_steps(self, average: float) -> tuple[float, float]:
        """Score with bits learned by noise of a step (``NoisyStep``), and their average."""
        model = self._built()
        layers = self._layers(model)
        quantizers = [
            NoisyStep(layer.weight, seed=derive(self.seed, "noise", number))
            for number, layer in enumerate(layers)
        ]
        for layer, quantizer in zip(layers, quantizers, strict=True):
            parametrize.register_parametrization(layer, "weight", quantizer)
        settled: list[float] = []
        snap = max(1, round(self.snap_at * self.steps))

        def price() -> Tensor:
            if settled:
                return torch.zeros(())
            return self.noisy_price * (average_bits(quantizers) - average).clamp(min=0)

        def after(step: int) -> None:
            if step == snap:
                settled.append(settle(quantizers, average))

        self._train(model, extra=price, after_step=after)
        return self.score(model), settled[0]

    def allocated(self, trained: nn.Module, average: float, **arguments: Any) -> float:
        """Score of a trained network whose bits follow from curvature, without more training.

        Args:
            trained: in float; it is rounded in place.
            average: of its bits.
            arguments: of ``allocate``.
        """
        (batch, _), noise = next(self._batches()), torch.Generator()
        with evaluated(trained):
            allocation = allocate(
                trained,
                target_bits=average,
                loss=lambda model: self.task.objective.loss(model, batch, noise),
                include=self.include,
                exclude=(),
                seed=self.seed,
                **arguments,
            )
        allocation.apply(trained)
        return self.score(trained)

    def score(self, model: nn.Module) -> float:
        """The task's headline on what is held out."""
        held_out, noise, total = self.task.validation, torch.Generator(), 0.0
        with evaluated(model):
            for places in torch.arange(len(held_out)).split(_SCORED_AT_ONCE):
                noise.manual_seed(self.seed)
                scores = self.task.objective.evaluate(model, held_out.gather(places), noise)
                total += float(scores[self.task.headline].double().mean()) * len(places)
        return total / len(held_out)

    def _with_bits(self, snap_at: float, arguments: Mapping[str, Any]) -> tuple[float, float]:
        model = self._built()
        method = LearnedPrecision(
            model,
            total_steps=self.steps,
            snap_at=snap_at,
            noise=self.noise,
            include=self.include,
            exclude=(),
            seed=self.seed,
            **arguments,
        )
        self._train(model, method)
        finalize(model, [method])
        return self.score(model), method.metrics()["bits"]

    def _built(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            seed_torch(derive(self.seed, "precision"), torch.device("cpu"))
            return self.network().train()

    def _layers(self, model: nn.Module) -> list[Any]:
        return [weight.module for weight in select_parameters(model, include=self.include)]

    def _batches(self) -> Iterator[tuple[Batch, float]]:
        epoch = 0
        while True:
            yield from batches(
                self.task.train,
                batch_size=self.batch_size,
                seed=self.seed,
                epoch=epoch,
                drop_last=True,
            )
            epoch += 1

    def _train(
        self,
        model: nn.Module,
        method: LearnedPrecision | None = None,
        *,
        extra: Callable[[], Tensor] | None = None,
        after_step: Callable[[int], None] | None = None,
    ) -> None:
        methods = [] if method is None else [method]
        decay, noise = cosine(), torch.Generator().manual_seed(derive(self.seed, "augment"))

        def objective(network: nn.Module, batch: Batch) -> Tensor:
            if self.task.augment is not None:
                batch = self.task.augment(batch, noise)
            value = self.task.objective.loss(network, batch, noise)
            return value if extra is None else value + extra()

        fit(
            model,
            (batch for (batch, _), _ in zip(self._batches(), range(self.steps), strict=False)),
            objective,
            self.optimizer(parameter_groups(model, methods)),
            methods=methods,
            rate_factor=lambda step: decay(progress(step, self.steps)),
            after_step=after_step,
        )


def above(
    name: str,
    statement: str,
    source: str,
    better: str,
    worse: str,
    *,
    margin: float = 0.0,
    of_scores: bool = True,
) -> Claim:
    """The claim that one training scores at least as high as another.

    Args:
        name: of the claim.
        statement: in words.
        source: label and place.
        better: measurement that is claimed to be ahead.
        worse: the other.
        margin: by how much it may be behind.
        of_scores: shares of hits, of which more is better; else bits per character.
    """

    def measured(results: Results) -> str:
        scale, unit, difference = (100, "%", "points") if of_scores else (1, "bits", "bits")
        gap = results.difference_text(better, worse, scale=scale, unit=difference)
        return f"{results.texts(better, worse, scale=scale, unit=unit)}, difference {gap}"

    def holds(results: Results) -> bool:
        if of_scores:
            return results.difference(better, worse) >= -margin
        return results.difference(worse, better) >= -margin

    return Claim(name, statement, source, "none for this setting", measured, holds, scales=("cpu",))


def averages_met(targets: Mapping[str, float]) -> Claim:
    """The claim that bits end at the averages asked for.

    Args:
        targets: by the name of the training.
    """
    names = [f"{name} bits" for name in targets]
    return Claim(
        "the-average-asked-for",
        "Bits end at most at the average that was asked for, and within 0.1 of it.",
        "[I] a budget in place of a search for the penalty",
        "none (ours)",
        lambda r: r.texts(*names),
        lambda r: all(
            target - 0.1 <= value <= target + 1e-9
            for name, target in targets.items()
            for value in r.values(f"{name} bits")
        ),
    )


def comparisons(*, within: float, of_scores: bool) -> tuple[Claim, ...]:
    """What is claimed of every network at 2 bits.

    Args:
        within: how far behind float counts as a match.
        of_scores: as for ``above``.
    """
    unit = "bits" if not of_scores else "point" if within == 0.01 else "points"
    behind = f"{100 * within if of_scores else within:g} {unit}"
    return (
        above(
            "full-precision",
            f"Weights of 2 bits on average, learned for each, are at most {behind} behind float.",
            "[P] abstract: heterogeneous precision matches full precision",
            "weight 2",
            "float",
            margin=within,
            of_scores=of_scores,
        ),
        above(
            "above-uniform",
            "Bits learned for each input channel, 2 on average, are above uniform 2 bits.",
            "[P] abstract of SMOL: better trade-offs than uniform precision",
            "channel 2",
            "uniform 2",
            of_scores=of_scores,
        ),
        above(
            "above-learned-steps",
            "Bits learned for each weight, 2 on average, are above uniform 2 bits with learned "
            "steps in the style of LSQ.",
            "[I] a comparison of the specification",
            "weight 2",
            "steps 2",
            of_scores=of_scores,
        ),
        above(
            "above-noisy-steps",
            "Bits learned for each input channel, 2 on average, are above bits learned in the "
            "style of DiffQ at the same average.",
            "[I] a comparison of the specification",
            "channel 2",
            "noisy steps 2",
            of_scores=of_scores,
        ),
        above(
            "inputs-above-uniform",
            "With inputs rounded too, learned bits, 2 on average, are above uniform 2 bits.",
            "[P] precisions of activations are learned with those of weights",
            "inputs 2",
            "uniform 2 with inputs",
            of_scores=of_scores,
        ),
    )
