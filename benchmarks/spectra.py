"""One spectral snapshot against WeightWatcher and stored-layout svdvals; what tracking costs."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._timing import print_table
from latewood.models import mlp, resnet20, transformer, vgg16
from latewood.spectra import (
    SpectralProbe,
    effective_rank,
    snapshot_path,
    snapshot_paths,
    weight_matrices,
)

PEER = "WeightWatcher 0.7.7 analyze()"
STORED = "torch.linalg.svdvals, weights as stored"
SMALLEST = "MLP 64-32-10, batch 32"


def main(arguments: list[str]) -> None:
    """Prints the tables of one snapshot, its accuracy and size, and of tracking.

    Args:
        arguments: the number of rounds each snapshot is timed, 3 if left out; then the seconds each
            tracked training runs, 20 if left out.
    """
    rounds = int(arguments[0]) if arguments else 3
    seconds = float(arguments[1]) if len(arguments) > 1 else 20.0
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        models = {"VGG-16": vgg16(), "two GPT-2-small blocks": gpt2_blocks()}
        for name, model in models.items():
            _print_snapshot(name, model, Path(folder), rounds)
        _print_accuracy()
        _print_size(models["VGG-16"], Path(folder))
        _print_parts(models["VGG-16"], rounds)
        _print_epochs(Path(folder))
        _print_tracking(Path(folder), seconds)
        _print_on_against_off(Path(folder))
    torch.set_num_threads(before)


def gpt2_blocks() -> nn.Module:
    """The eight weight matrices of two blocks of GPT-2 small."""
    shapes = ((768, 2304), (768, 768), (768, 3072), (3072, 768))
    return nn.Sequential(*(nn.Linear(*shape) for shape in shapes * 2))


def _print_snapshot(name: str, model: nn.Module, folder: Path, rounds: int) -> None:
    weights = [w.flatten(1) for w in weight_matrices(model, skip_head=False).values()]
    values = SpectralProbe(model, every=1)
    vectors = SpectralProbe(model, every=1, folder=folder)
    tracking = SpectralProbe(model, every=1, folder=folder / "tracked", full_every=10**9)
    tracking.observe(0)
    candidates: dict[str, Callable[[], object]] = {
        "Latewood, all singular values": lambda: values.observe(0),
        "Latewood, values and 16 vectors, written": lambda: vectors.observe(0),
        "Latewood, 16 values and vectors tracked, written": lambda: tracking.observe(1),
        STORED: lambda: [torch.linalg.svdvals(weight) for weight in weights],
    }
    if peer := _weightwatcher(model):
        candidates[PEER] = peer
    best = _least_cpu_seconds(candidates, rounds)
    ours = best["Latewood, all singular values"]
    print_table(
        f"One snapshot of {name}",
        ["", "CPU seconds", "times the first"],
        [[label, f"{best[label]:.3f}", f"{best[label] / ours:.1f}"] for label in candidates],
    )


def _least_cpu_seconds(
    candidates: dict[str, Callable[[], object]], rounds: int
) -> dict[str, float]:
    """Like ``interleaved_minima``, in processor time, which other processes disturb less."""
    best = dict.fromkeys(candidates, float("inf"))
    for turn in range(rounds + 1):
        for name, run in candidates.items():
            start = time.process_time()
            run()
            elapsed = time.process_time() - start
            if turn:
                best[name] = min(best[name], elapsed)
    return best


def _weightwatcher(model: nn.Module) -> Callable[[], object] | None:
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import weightwatcher
    except ImportError:
        print("WeightWatcher is not installed: pip install weightwatcher==0.7.7")
        return None
    logging.disable(logging.CRITICAL)

    def analyze() -> object:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return weightwatcher.WeightWatcher(model=model).analyze()

    return analyze


def _print_accuracy() -> None:
    """The probe's effective ranks against those of float64 singular values."""
    rows = []
    generator = torch.Generator().manual_seed(0)
    for name, make in {"fresh": _fresh, "20 spikes on noise": _spiked, "rank 5": _low_rank}.items():
        errors = {"values": 0.0, "values and vectors": 0.0}
        for shape in ((64, 576), (256, 2304), (512, 512), (2304, 768), (1100, 1200)):
            layer = nn.Linear(shape[1], shape[0], bias=False)
            layer.weight.data = make(shape, generator)
            exact = float(effective_rank(torch.linalg.svdvals(layer.weight.detach().double())))
            with tempfile.TemporaryDirectory() as folder:
                for label, place in zip(errors, (None, Path(folder)), strict=True):
                    (observation,) = SpectralProbe(layer, every=1, folder=place).observe(0)
                    error = abs(observation.values["effective_rank/weight"] / exact - 1)
                    errors[label] = max(errors[label], error)
        rows.append([name, *(f"{error:.1e}" for error in errors.values())])
    print_table(
        "Largest relative error of the effective rank against float64",
        ["weights", "values", "values and 16 vectors"],
        rows,
    )


def _fresh(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator) / shape[1] ** 0.5


def _low_rank(shape: tuple[int, int], generator: torch.Generator, rank: int = 5) -> Tensor:
    left = torch.randn(shape[0], rank, generator=generator)
    return left @ torch.randn(rank, shape[1], generator=generator) / shape[1] ** 0.5


def _spiked(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return 0.05 * _fresh(shape, generator) + 0.2 * _low_rank(shape, generator, 20)


def _print_size(model: nn.Module, folder: Path) -> None:
    SpectralProbe(model, every=1, folder=folder).observe(7)
    snapshot = snapshot_path(folder, 7).stat().st_size
    checkpoint = sum(p.numel() * p.element_size() for p in model.parameters())
    print_table(
        "What agreement plots of VGG-16 need to keep per snapshot",
        ["", "megabytes", "times less"],
        [
            ["weights", f"{checkpoint / 1e6:.2f}", "1"],
            ["snapshot", f"{snapshot / 1e6:.2f}", f"{checkpoint / snapshot:.1f}"],
        ],
    )


def _print_parts(model: nn.Module, rounds: int) -> None:
    """The longest that one step waits where observations take turns with the matrices."""
    rows = []
    for parts in (1, 2, 4, 8):
        probe = SpectralProbe(model, every=1, parts=parts)
        probe.observe(0)
        turns: dict[str, Callable[[], object]] = {
            f"{turn}": partial(probe.observe, 1) for turn in range(parts)
        }
        best = _least_cpu_seconds(turns, rounds)
        rows.append([str(parts), f"{1e3 * max(best.values()):.0f}"])
    print_table(
        "The dearest observation of VGG-16, in the loop", ["parts", "CPU milliseconds"], rows
    )


@dataclass(frozen=True)
class _Training:
    """What is tracked.

    Args:
        model: trained by plain SGD.
        loss: of one batch.
        steps: an epoch has, on the data that the model is for.
    """

    model: nn.Module
    loss: Callable[[nn.Module], Tensor]
    steps: int


def _trainings() -> dict[str, _Training]:
    images = partial(torch.randn, 128, 3, 32, 32)
    tokens = torch.randint(65, (16, 64))
    digits, answers = torch.randn(32, 64), torch.randint(10, (32,))

    def digits_loss(model: nn.Module) -> Tensor:
        return F.cross_entropy(model(digits), answers)

    def images_loss(model: nn.Module) -> Tensor:
        return F.cross_entropy(model(images()), torch.randint(10, (128,)))

    def tokens_loss(model: nn.Module) -> Tensor:
        return F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())

    wide = mlp(in_features=3072, hidden=(256, 256, 256))
    characters = transformer(vocabulary=65, context=64)
    return {
        "MLP 64-32-10, batch 32": _Training(mlp(in_features=64, hidden=(32,)), digits_loss, 44),
        "MLP 3072-256-256-256-10, batch 128": _Training(wide, images_loss, 390),
        "ResNet-20, batch 128": _Training(resnet20(), images_loss, 390),
        "character Transformer, 16 x 64": _Training(characters, tokens_loss, 980),
    }


def _print_epochs(folder: Path) -> None:
    """The fraction of an epoch that an observation at its end takes, by the least times of both."""
    rows = []
    for name, training in _trainings().items():
        model, optimizer = training.model, torch.optim.SGD(training.model.parameters(), lr=0.01)
        probes = [
            SpectralProbe(model, every=1, folder=folder / f"epochs {name} {worker}", worker=worker)
            for worker in (False, True)
        ]
        step, observations = float("inf"), [float("inf")] * len(probes)
        for turn in range(6):
            for _ in range(4):
                start = time.perf_counter()
                _take_step(training, optimizer)
                step = min(step, time.perf_counter() - start)
            for index, probe in enumerate(probes):
                start = time.perf_counter()
                probe.observe(turn)
                observations[index] = min(observations[index], time.perf_counter() - start)
                probe.finish()
        epoch = training.steps * step
        fractions = [f"{100 * seconds / epoch:.3f} %" for seconds in observations]
        in_loop = f"{1e3 * observations[0]:.1f}"
        rows.append([name, str(training.steps), f"{epoch:.2f}", in_loop, *fractions])
    print_table(
        "An observation at the end of every epoch: the fraction of its time that training waits",
        ["training", "steps an epoch", "seconds", "observation, ms", "in the loop", "in a worker"],
        rows,
    )


def _take_step(training: _Training, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    training.loss(training.model).backward()
    optimizer.step()


def _print_tracking(folder: Path, seconds: float) -> None:
    """The fraction of the wall-clock time that a probe at "auto" takes in four trainings."""
    trainings = _trainings()
    rows = []
    for name, training in trainings.items():
        model = training.model
        for worker in (False, True):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            place = folder / f"{name.split(',')[0]} {worker}"
            probe = SpectralProbe(model, every="auto", folder=place, worker=worker)
            spent, step, second = 0.0, 0, ""
            start = time.perf_counter()
            while time.perf_counter() - start < seconds:
                before = time.perf_counter()
                probe.observe(step)
                spent += time.perf_counter() - before
                _take_step(training, optimizer)
                step += 1
                if not second and (now := time.perf_counter() - start) >= 1:
                    second = f"{100 * spent / now:.2f} %"
            total = time.perf_counter() - start
            probe.finish()
            fractions = [f"{100 * part:.2f} %" for part in (spent / total, probe.overhead)]
            where = "in a worker" if worker else "in the loop"
            snapshots = str(len(snapshot_paths(place)))
            rows.append([name, where, str(step), snapshots, second, *fractions])
    print_table(
        f'Tracking at every="auto" with a budget of 3 %, {seconds:.0f} s of training each',
        [
            *("training", "observations", "steps", "snapshots", "in observe, first second"),
            *("in observe", "with the worker's time"),
        ],
        rows,
    )


def _print_on_against_off(folder: Path, pairs: int = 6, steps: int = 15_000) -> None:
    """What a probe at "auto" adds to the wall-clock time of short steps, its calls included.

    The trainings take turns, each pair in the other order; the least time of either is the one that
    other work on the machine has disturbed least.
    """
    times: dict[bool, list[float]] = {True: [], False: []}
    counted = 0.0
    for pair in range(pairs):
        for probed in (pair % 2 == 0, pair % 2 == 1):
            training = _trainings()[SMALLEST]
            optimizer = torch.optim.SGD(training.model.parameters(), lr=0.01)
            place = folder / f"auto {pair}"
            probe = SpectralProbe(training.model, every="auto", folder=place) if probed else None
            start = time.perf_counter()
            for step in range(steps):
                if probe is not None:
                    probe.observe(step)
                _take_step(training, optimizer)
            times[probed].append(time.perf_counter() - start)
            counted = counted if probe is None else max(counted, probe.overhead)
    added = [on / off - 1 for on, off in zip(times[True], times[False], strict=True)]
    print_table(
        f'A probe at every="auto" on against off, {pairs} x {steps} steps of {SMALLEST}',
        ["added, least times", "added, from pair to pair", "most that the probe counted"],
        [
            [
                f"{100 * (min(times[True]) / min(times[False]) - 1):+.2f} %",
                f"{100 * min(added):+.2f} to {100 * max(added):+.2f} %",
                f"{100 * counted:.2f} %",
            ]
        ],
    )
