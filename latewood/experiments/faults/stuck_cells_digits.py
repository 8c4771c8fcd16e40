"""Drop-connect training against none on devices with stuck cells, on digits.

A perceptron with batch norm, evaluated on many maps of each kind of fault. The protocol is that of
the package's specification; quick and cpu scale are the same trainings, shorter and on fewer maps
at quick.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core import finalize
from latewood.core.schedules import cosine, progress
from latewood.experiments.registry import (
    Claim,
    Experiment,
    Results,
    Scale,
    Workspace,
    register,
    replicate,
)
from latewood.faults import Crossbar, DropConnect, MonteCarlo, StuckAt, injected, monte_carlo
from latewood.models import mlp
from latewood.tasks.digits import digits
from latewood.training.fit import fit
from latewood.training.randomness import derive, seed_torch

__all__ = ["STUCK_CELLS_DIGITS"]

EPOCHS: Mapping[str, int] = {"quick": 1, "cpu": 60}
SEEDS: Mapping[str, int] = {"quick": 1, "cpu": 3}
MAPS: Mapping[str, int] = {"quick": 2, "cpu": 200}
BATCH, RATE = 64, 1e-3
HIDDEN = (128, 64)
WIDTHS: Mapping[str, tuple[int, int]] = {
    "narrow": (32, 16),
    "middle": (128, 64),
    "wide": (512, 256),
}
ZEROED: Final = StuckAt(hrs=0.3, level="weight")
HRS_CELLS: Final = StuckAt(hrs=0.3)
MIXED: Final = StuckAt(hrs=0.0904, lrs=0.0175)
MIXED_TRAINING: Final[Mapping[str, Any]] = {
    "rate": MIXED.rate,
    "hrs_share": MIXED.hrs / MIXED.rate,
    "emulate": "cells",
}
ALIGNED, MISALIGNED, PAIR = Crossbar(7, 2), Crossbar(8, 2), Crossbar(scheme="pair")
TRAININGS: Mapping[str, Mapping[str, Any] | None] = {
    "plain": None,
    "drop .1": {"rate": 0.1},
    "drop .3": {"rate": 0.3},
    "rescaled .3": {"rate": 0.3, "scale": "inverted"},
    "one map .3": {"rate": 0.3, "resample": "fixed", "map": 10_000},
}


def run(scale: Scale, workspace: Workspace) -> Results:
    """Trains every network from the same weights on the same batches, seed by seed."""
    epochs, maps = EPOCHS[scale], MAPS[scale]

    def measure(seed: int) -> dict[str, float]:
        measured: dict[str, float] = {}
        for name, arguments in TRAININGS.items():
            setting = _Setting(seed, epochs, HIDDEN, norm=True)
            setting.train(arguments)
            result = setting.evaluate(ALIGNED, ZEROED, maps)
            measured[f"{name}, no faults"] = result.plain
            measured[f"{name}, weights"] = result.mean
            measured[f"{name}, deviation over maps"] = result.std
            if name == "one map .3":
                measured[f"{name}, that map"] = setting.accuracy_on(ZEROED, map=10_000)
            if name == "plain":
                renewed = setting.evaluate(ALIGNED, ZEROED, maps, calibrate=True)
                measured["plain, calibrated"] = renewed.mean
                measured["plain, pairs"] = setting.evaluate(PAIR, HRS_CELLS, maps).mean
                for held, crossbar in (("aligned", ALIGNED), ("misaligned", MISALIGNED)):
                    mixed = setting.evaluate(crossbar, MIXED, maps)
                    measured[f"plain, {held} cells"] = mixed.mean
        for held, crossbar in (("aligned", ALIGNED), ("misaligned", MISALIGNED)):
            setting = _Setting(seed, epochs, HIDDEN, norm=True)
            setting.train({**MIXED_TRAINING, "crossbar": crossbar})
            mixed = setting.evaluate(crossbar, MIXED, maps)
            measured[f"emulated, {held} cells"] = mixed.mean
        for name, hidden in WIDTHS.items():
            for training in ("plain", "drop .3"):
                setting = _Setting(seed, epochs, hidden, norm=False)
                setting.train(TRAININGS[training])
                result = setting.evaluate(ALIGNED, ZEROED, maps)
                measured[f"{name} {training}, weights"] = result.mean
        return measured

    settings = {
        "epochs of each training": epochs,
        "maps": maps,
        "hidden units": str(HIDDEN),
        "widths without batch norm": str(list(WIDTHS.values())),
        "weights": "30 % of all weights zeroed (high-resistance state)",
        "cells": f"{MIXED.hrs:.2%} stuck in the high-resistance state, {MIXED.lrs:.2%} in the low",
    }
    return replicate(measure, range(SEEDS[scale]), workspace, settings=settings)


class _Setting:
    """A network and the data of a seed."""

    def __init__(self, seed: int, epochs: int, hidden: Sequence[int], *, norm: bool) -> None:
        task = digits()
        self._seed = seed
        self.inputs, self.labels = task.train.gather(torch.arange(len(task.train)))[:2]
        held_out = task.validation
        self.test = held_out.gather(torch.arange(len(held_out)))[:2]
        with torch.random.fork_rng(devices=[]):
            seed_torch(derive(seed, "faults"), torch.device("cpu"))
            self.model: nn.Module = mlp(
                in_features=64, hidden=tuple(hidden), num_classes=10, norm=norm
            )
        generator = torch.Generator().manual_seed(derive(seed, "batches"))
        self.batches = [
            part
            for _ in range(epochs)
            for part in torch.randperm(len(self.inputs), generator=generator).split(BATCH)
        ]

    def train(self, arguments: Mapping[str, Any] | None) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="crossbar: ")  # misaligned on purpose
            methods = (
                [] if arguments is None else [DropConnect(self.model, seed=self._seed, **arguments)]
            )
        total, decay = len(self.batches), cosine()

        def objective(model: nn.Module, batch: Tensor) -> Tensor:
            return F.cross_entropy(model(self.inputs[batch]), self.labels[batch])

        fit(
            self.model.train(),
            self.batches,
            objective,
            torch.optim.Adam(self.model.parameters(), lr=RATE),
            methods=methods,
            rate_factor=lambda step: decay(progress(step, total)),
        )
        finalize(self.model, methods)

    def evaluate(
        self, crossbar: Crossbar, faults: StuckAt, maps: int, *, calibrate: bool = False
    ) -> MonteCarlo:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="crossbar: ")
            return monte_carlo(
                self.model,
                self.test,
                crossbar,
                faults,
                maps=maps,
                seed=self._seed,
                calibration=[(self.inputs,)] if calibrate else None,
                show=False,
            )

    def accuracy_on(self, faults: StuckAt, *, map: int) -> float:
        inputs, labels = self.test
        self.model.eval()
        with injected(self.model, ALIGNED, faults, map=map, seed=self._seed), torch.no_grad():
            predicted = self.model(inputs).argmax(1)
        return float((predicted == labels).double().mean())


def _gap(first: str, second: str) -> Callable[[Results], str]:
    return lambda r: (
        f"{r.texts(first, second, scale=100, unit='%')}, difference "
        f"{r.difference_text(first, second, scale=100, unit='points')}"
    )


def _claim(
    name: str,
    statement: str,
    source: str,
    figure: str,
    first: str,
    second: str,
    bound: float,
) -> Claim:
    return Claim(
        name,
        statement,
        source,
        figure,
        _gap(first, second),
        lambda r: r.difference(first, second) >= bound,
        scales=("cpu",),
    )


_WITHOUT: Final = "none for this setting"

STUCK_CELLS_DIGITS = register(
    Experiment(
        name="stuck-cells-digits",
        title="Drop-connect training for devices with stuck cells, on digits",
        paper="Towards RRAM fault tolerance by drop-connect training, arXiv:2404.15498",
        run=run,
        scales=("quick", "cpu"),
        claims=(
            _claim(
                "little-loss",
                "With 30 % of the weights zeroed, a network trained with drop-connect loses at "
                "most 6 points against itself without faults.",
                "[P] abstract: the loss can be below 1 point at up to 30 % defects",
                "< 1 point in the best case, CIFAR-10",
                "drop .3, weights",
                "drop .3, no faults",
                -0.06,
            ),
            _claim(
                "defended",
                "There, it is at least 15 points above the network trained without a defence.",
                "[P] abstract: drop-connect makes networks tolerate defects",
                _WITHOUT,
                "drop .3, weights",
                "plain, weights",
                0.15,
            ),
            _claim(
                "price",
                "Without faults it is at most 5 points behind the network without a defence.",
                "[I] capacity is the price of robustness",
                _WITHOUT,
                "drop .3, no faults",
                "plain, no faults",
                -0.05,
            ),
            _claim(
                "rate-matters",
                "Trained at the rate of the device, 0.3, it is above one trained at 0.1.",
                "[D] the expected risk at a rate is least where it was trained at that rate",
                _WITHOUT,
                "drop .3, weights",
                "drop .1, weights",
                0.0,
            ),
            Claim(
                "spread",
                "Its deviation over maps is at most half that of the network without a defence.",
                "[I] no retraining per chip needs a small spread",
                _WITHOUT,
                lambda r: r.texts(
                    "drop .3, deviation over maps",
                    "plain, deviation over maps",
                    scale=100,
                    unit="points",
                ),
                lambda r: (
                    r.mean("drop .3, deviation over maps")
                    <= 0.5 * r.mean("plain, deviation over maps")
                ),
                scales=("cpu",),
            ),
            _claim(
                "one-map-does-not-transfer",
                "A network trained on one known map is at least 10 points better there than on "
                "other maps.",
                "[I] the baseline of fault-aware training for one chip",
                _WITHOUT,
                "one map .3, that map",
                "one map .3, weights",
                0.10,
            ),
            _claim(
                "not-rescaled",
                "Trained with weights rescaled by 1 / (1 - rate) it is at least 5 points behind.",
                "[I] nothing rescales the weights of a chip",
                _WITHOUT,
                "drop .3, weights",
                "rescaled .3, weights",
                0.05,
            ),
            Claim(
                "pairs-are-drop-connect",
                "Cells of single pairs stuck in the high-resistance state cost what zeroed weights "
                "cost: means over maps differ by at most 4 points.",
                "[D] the two are the same in law",
                "none (exact)",
                _gap("plain, pairs", "plain, weights"),
                lambda r: abs(r.difference("plain, pairs", "plain, weights")) <= 0.04,
                scales=("cpu",),
            ),
            _claim(
                "aligned",
                "With 9.04 % of the cells stuck in the high state and 1.75 % in the low one, "
                "aligned cells (7 bits, 2 a cell) are at least 20 points above misaligned ones "
                "(8 bits, 2 a cell), without a defence.",
                "[M] the highest slice of 8 bits counts more than any weight",
                "40.9 points",
                "plain, aligned cells",
                "plain, misaligned cells",
                0.20,
            ),
            _claim(
                "emulation-misaligned",
                "There, training with the cells emulated gains at least 15 points on misaligned "
                "cells.",
                "[M] emulate='cells'",
                "37.3 points",
                "emulated, misaligned cells",
                "plain, misaligned cells",
                0.15,
            ),
            _claim(
                "emulation-aligned",
                "And at least 3 points on aligned cells.",
                "[M] emulate='cells'",
                "7.2 points",
                "emulated, aligned cells",
                "plain, aligned cells",
                0.03,
            ),
            _claim(
                "calibration",
                "Batch norms measured anew on each device, which takes a pass of calibration a "
                "chip, gain at least 15 points without any training for faults.",
                "[M] the strongest cheap baseline",
                "30.2 points",
                "plain, calibrated",
                "plain, weights",
                0.15,
            ),
            Claim(
                "width",
                "With and without drop-connect, wider networks keep more (no batch norm).",
                "[I] capacity is the price",
                _WITHOUT,
                lambda r: r.texts(
                    *(
                        f"{width} {training}, weights"
                        for training in ("plain", "drop .3")
                        for width in WIDTHS
                    ),
                    scale=100,
                    unit="%",
                ),
                lambda r: all(
                    r.difference(f"{wider} {training}, weights", f"{narrower} {training}, weights")
                    > 0
                    for training in ("plain", "drop .3")
                    for narrower, wider in (("narrow", "middle"), ("middle", "wide"))
                ),
                scales=("cpu",),
            ),
        ),
    )
)
