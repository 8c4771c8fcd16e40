"""Trunks and branches on the digits: the setting of connectivity and of rewound tickets."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latewood.core.schedules import cosine
from latewood.experiments.spectra.digits_setting import (
    Digits,
    fit_part,
    load,
    network,
    scores,
    steps_per_epoch,
)
from latewood.spectra import Connection, branch, connect, endpoint_agreement

__all__ = ["EPOCHS", "BranchedTraining", "EndpointComparison", "State", "Training"]

EPOCHS = 30
BATCH_SIZE = 32
LR = 0.1
MOMENTUM = 0.9

State = Mapping[str, Tensor]
Training = tuple[nn.Module, torch.optim.Optimizer]
"""A training under way: the model and its optimizer."""


@dataclass(frozen=True)
class EndpointComparison:
    """Two ends and what lies between them.

    Args:
        barrier: of the training loss, ends included.
        error_barrier: of the training error.
        agreement: mean score over all matrices.
        hidden: mean score over all matrices but the head.
    """

    barrier: float
    error_barrier: float
    agreement: float
    hidden: float


class BranchedTraining:
    """Perceptrons 64-128-128-128-10, each kept at some steps and continued from there.

    Args:
        splits: epochs, or parts of the first one, after which every trunk is kept.
    """

    def __init__(self, splits: Sequence[float]) -> None:
        self.data: Digits = load()
        self.per_epoch = steps_per_epoch(self.data, BATCH_SIZE)
        self.splits = tuple(splits)
        self._split_states: dict[int, dict[int, Training]] = {}
        self._ends: dict[tuple[int, float, int], State] = {}

    def step(self, split: float) -> int:
        """Optimizer steps before a split."""
        return round(split * self.per_epoch)

    def at(self, trunk: int, split: float) -> Training:
        """A trunk at a split; not to be changed."""
        if trunk not in self._split_states:
            self._split_states[trunk] = self._train_trunk(trunk)
        return self._split_states[trunk][self.step(split)]

    def end(self, trunk: int, split: float, seed: int) -> State:
        """The end of one branch of a trunk, with the data in another order after the split."""
        key = (trunk, split, seed)
        if key not in self._ends:
            self._ends[key] = self.finish(self.at(trunk, split), split, seeds=[seed])[seed]
        return self._ends[key]

    def finish(
        self,
        start: Training,
        split: float,
        *,
        seeds: Sequence[int],
        before: Callable[[nn.Module, int], None] | None = None,
        observe: Callable[[nn.Module, int], None] | None = None,
    ) -> dict[int, State]:
        """Continues a training from a split to the end, once per order of the data.

        Args:
            start: the model and its optimizer; copied.
            split: epochs done before.
            seeds: of the orders.
            before: ``before(model, seed)`` changes each branch's model before its first step.
            observe: ``observe(model, steps done)``, before the first step and after each.
        """

        def train(copied: Training, seed: int) -> State:
            model, optimizer = copied
            if before is not None:
                before(model, seed)
            observe_step = None if observe is None else lambda step: observe(model, step)
            self._fit(model, optimizer, seed=seed, start=self.step(split), observe=observe_step)
            return model.state_dict()

        return branch(start, train, seeds=seeds)

    def compare(self, first: State, second: State, *, permute: bool = False) -> EndpointComparison:
        """Barriers on the line from one end to the other, and the agreement of the ends."""
        connection = self._connect(first, second, permute=permute)
        agreements = endpoint_agreement(network(seed=0), first, second)
        values = [agreement.score.item() for agreement in agreements.values()]
        return EndpointComparison(
            connection.barrier(),
            connection.barrier("error"),
            sum(values) / len(values),
            sum(values[:-1]) / (len(values) - 1),
        )

    def top_barrier(self, first: State, second: State) -> float:
        """That of the loss, with every network on the line cut to the top half of its spectra."""
        return self._connect(first, second, truncate=0.5).barrier()

    def _connect(
        self, first: State, second: State, *, permute: bool = False, truncate: float | None = None
    ) -> Connection:
        train = self.data.train
        return connect(
            network(seed=0),
            first,
            second,
            lambda net: scores(net, train),
            permute=permute,
            example_inputs=train.tensors[0][:1],
            truncate=truncate,
        )

    def _train_trunk(self, trunk: int) -> dict[int, Training]:
        model = network(seed=trunk)
        optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
        splits = {self.step(split) for split in self.splits}
        split_states: dict[int, Training] = {}

        def copy_at_split(step: int) -> None:
            if step in splits:
                split_states[step] = copy.deepcopy((model, optimizer))

        self._fit(model, optimizer, seed=trunk, start=0, observe=copy_at_split, stop=max(splits))
        return split_states

    def _fit(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        seed: int,
        start: int,
        observe: Callable[[int], None] | None = None,
        stop: int | None = None,
    ) -> None:
        fit_part(
            model,
            self.data,
            optimizer,
            epochs=EPOCHS,
            batch_size=BATCH_SIZE,
            seed=seed,
            schedule=cosine(),
            start=start,
            stop=stop,
            observe=observe,
        )
