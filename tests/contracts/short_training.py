"""A few steps of a small network with one registered entry in it."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from entries import BESIDE, Case
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core import Epochs, Restructuring, StepsPerEpoch, finalize, parameter_groups
from latewood.models import lstm_classifier
from latewood.training.checkpoints import load_into
from latewood.training.components import build

TOTAL_STEPS = 12
STEPS_PER_EPOCH = 3
CLASSES = 4


class Attention(nn.Module):
    """One layer of attention with three heads of two values."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.into, self.out = 3, nn.Linear(5, 18), nn.Linear(6, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        split = self.into(inputs).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*split)
        return self.out(mixed.transpose(1, 2).flatten(2)).mean(1)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, CLASSES)
    )


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )


def lstm() -> nn.Module:
    return lstm_classifier(features=5, hidden=8, num_classes=CLASSES)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (6,)),
    "convnet": (convnet, (1, 6, 6)),
    "lstm": (lstm, (3, 5)),
    "attention": (Attention, (3, 5)),
}
"""By name: what makes the network, and the shape of one sample."""


def networks_of(case: Case) -> list[str]:
    """The networks to train an entry on: an optimizer sees tensors, whatever layers they are of."""
    return ["mlp", "convnet"] if case.kind == "optimizer" else list(NETWORKS)


@cache
def _initial(name: str, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[name][0]().train()


def network_of(name: str, *, seed: int = 0) -> nn.Module:
    """A network with the initial weights of a seed; leaves torch's generator alone."""
    return copy.deepcopy(_initial(name, seed))


def batch(name: str, step: int, *, samples: int = 8) -> tuple[Tensor, Tensor]:
    """The samples and labels of a step."""
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(samples, *NETWORKS[name][1], generator=generator)
    return inputs, torch.randint(0, CLASSES, (samples,), generator=generator)


Beginning = tuple[nn.Module, list[Any], torch.optim.Optimizer]
_BEGINNINGS: dict[tuple[Any, ...], Beginning] = {}


def _beginning(
    case: Case,
    network: str,
    seed: int,
    dtype: torch.dtype,
    steps_per_epoch: StepsPerEpoch,
    beside: dict[str, Any] | None,
) -> Beginning:
    """Model, methods and optimizer of a training before its first step."""
    model = network_of(network, seed=seed).to(dtype)
    methods: list[Any] = []
    section = case.section if case.kind == "method" else beside
    if section is not None:
        example = batch(network, 0, samples=1)[0].to(dtype)
        provided = {"total_steps": TOTAL_STEPS, "steps_per_epoch": steps_per_epoch, "seed": 3}
        methods.append(
            build(
                "method", section, "methods[0]", model=model, example_inputs=(example,), **provided
            )
        )
    sgd = {"name": "sgd", "lr": 0.05, "momentum": 0.9}
    section = case.section if case.kind == "optimizer" else sgd
    groups = parameter_groups(model, methods, weight_decay=1e-3)
    return model, methods, build("optimizer", section, "optimizer", params=groups)


class Training:
    """A network, its method or probe if the case is one, and its optimizer, step by step.

    Args:
        case: the entry that takes part.
        network: name of the network.
        seed: of the initial weights.
        dtype: of the model.
        folder: where a probe may write.
        wrap: makes of the model what computes the loss, as a compiler does.
        steps_per_epoch: of all epochs, or of each.
        beside: section of a method beside the entry; the one that a probe needs if left out.
        fresh: builds everything anew. Else model, method and optimizer are a deep copy of those
            that the first such training of this process began with: to trace a network takes
            longer than to train it, and test_deepcopy.py holds that a copy is as good.
    """

    def __init__(
        self,
        case: Case,
        network: str,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        folder: Path | None = None,
        wrap: Callable[[nn.Module], Any] | None = None,
        steps_per_epoch: StepsPerEpoch = STEPS_PER_EPOCH,
        beside: dict[str, Any] | None = None,
        fresh: bool = False,
    ) -> None:
        self.network = network
        self.dtype = dtype
        self.epochs = Epochs(steps_per_epoch, TOTAL_STEPS)
        beside = beside or BESIDE.get(case.name)
        key = (str(case), network, seed, dtype, str(steps_per_epoch), str(beside))
        begun = None if fresh else _BEGINNINGS.get(key)
        if begun is None:
            begun = _beginning(case, network, seed, dtype, steps_per_epoch, beside)
        if not fresh:
            begun = copy.deepcopy(_BEGINNINGS.setdefault(key, begun))
        self.model, self.methods, self.optimizer = begun
        self.probes: list[Any] = []
        if case.kind == "probe":
            stages = getattr(self.methods[0], "stages", None) if self.methods else None
            inputs, targets = batch(network, 0)
            self.probes.append(
                build(
                    "probe",
                    case.section,
                    "probes[0]",
                    folder=folder,
                    stages=stages,
                    model=self.model,
                    inputs=inputs.to(dtype),
                    targets=targets,
                    total_steps=TOTAL_STEPS,
                    steps_per_epoch=steps_per_epoch,
                )
            )
        self.wrap = wrap
        self.wrapped = wrap(self.model) if wrap else self.model
        self.steps = 0
        self.seen: dict[int, dict[str, float]] = {}

    @property
    def method(self) -> Any:
        """The method under test."""
        (method,) = self.methods
        return method

    def begin(self) -> None:
        """What comes before a step: new shapes at an epoch's start, and the first observation."""
        if self.epochs.begins(self.steps):
            changing = [method for method in self.methods if isinstance(method, Restructuring)]
            changed = [method.restructure(self.optimizer) for method in changing]
            if any(changed) and self.wrap:
                # Whatever has hooks on the parameters as they were must be gone before.
                self.wrapped = None
                gc.collect()
                self.wrapped = self.wrap(self.model)
        if self.steps == 0:
            self.observe()

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The task's loss and the penalties."""
        loss = F.cross_entropy(self.wrapped(inputs.to(self.dtype)), labels)
        for method in self.methods:
            loss = loss + method.penalty()
        return loss

    def samples(self) -> tuple[Tensor, Tensor]:
        """The batch of the step to come."""
        return batch(self.network, self.steps)

    def backward(self) -> Tensor:
        """Fills the gradients for one step; returns the loss."""
        self.optimizer.zero_grad()
        loss = self.loss(*self.samples())
        loss.backward()
        return loss.detach()

    def update(self) -> None:
        """What comes after the gradients: optimizer, methods, probes."""
        self.optimizer.step()
        for method in self.methods:
            method.step()
        self.steps += 1
        self.observe()

    def step(self) -> Tensor:
        """One step; returns its loss."""
        self.begin()
        loss = self.backward()
        self.update()
        return loss

    def run(self, until: int = TOTAL_STEPS) -> Training:
        """Takes steps until there were so many."""
        while self.steps < until:
            self.step()
        return self

    def observe(self) -> None:
        """Lets the probes look."""
        for probe in self.probes:
            self._note(probe.observe(self.steps))

    def finish_probes(self) -> None:
        """What comes before a checkpoint."""
        for probe in self.probes:
            self._note(probe.finish())

    def finish(self) -> nn.Module:
        """Ends the probes and the methods; returns the model."""
        self.finish_probes()
        return finalize(self.model, self.methods)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "methods": [method.state_dict() for method in self.methods],
            "steps": self.steps,
        }

    def restore(self, state: dict[str, Any]) -> Training:
        """Goes on from a checkpoint, in the order that the protocols ask for."""
        for method, own in zip(self.methods, state["methods"], strict=True):
            if isinstance(method, Restructuring):
                method.reshape(own, self.optimizer)
        load_into(self.model, state["model"], "state")
        self.optimizer.load_state_dict(state["optimizer"])
        for method, own in zip(self.methods, state["methods"], strict=True):
            method.load_state_dict(own)
        self.steps = state["steps"]
        self.wrapped = self.wrap(self.model) if self.wrap else self.model
        return self

    def snapshot(self) -> dict[str, Any]:
        """A copy of everything that must agree between two trainings that are the same."""
        metrics = [method.metrics() for method in self.methods]
        return copy.deepcopy(self.state() | {"metrics": metrics})

    def _note(self, observations: list[Any]) -> None:
        for observation in observations:
            self.seen.setdefault(observation.step, {}).update(observation.values)


def assert_same(one: Any, other: Any, where: str = "state") -> None:
    """Fails where two trees of dicts, lists, tensors and plain values differ in type or bits."""
    assert type(one) is type(other), where
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype and one.shape == other.shape, where
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_same(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert one == other, f"{where}: {one!r}, {other!r}"
