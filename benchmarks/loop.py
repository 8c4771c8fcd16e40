"""The training loop against a bare hand-written PyTorch loop: same model, data and optimizer."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks._timing import interleaved_minima, print_table
from latewood.models import convnet, resnet20
from latewood.tasks import Classification, Task, TensorDataset
from latewood.tasks.digits import digits
from latewood.training.loop import train_steps
from latewood.training.observers import observers
from latewood.training.processes import processes
from latewood.training.recipe import Recipe, parse_recipe
from latewood.training.run_folder import RunFolder
from latewood.training.session import Session
from latewood.training.session_builder import open_session

__all__ = ["main"]

OPTIMIZER = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4}


class _Enough(Exception):
    """Ends the loop after a number of steps, without the checkpoint of an interruption."""


def main(arguments: list[str]) -> None:
    """Prints milliseconds per step of both loops and their ratio.

    Args:
        arguments: number of rounds; 15 if empty. ResNet-20 gets twice as many of one step each.
    """
    rounds = int(arguments[0]) if arguments else 15
    torch.set_num_threads(1)
    rows = [
        _compare("convnet, digits, batch 64", digits(), 64, 40, rounds),
        _compare("resnet20, 3x32x32, batch 128", _images(), 128, 1, 2 * rounds),
    ]
    header = ["model and data", "bare, wall ms", "ours", "ratio"]
    header += ["bare, processor ms", "ours", "ratio"]
    print_table("Training loop over a bare loop", header, rows)


def _compare(title: str, task: Task, batch_size: int, steps: int, rounds: int) -> list[str]:
    recipe = parse_recipe(
        {
            "task": "digits",
            "steps": 10**6,
            "batch_size": batch_size,
            "drop_last": True,
            "optimizer": OPTIMIZER,
            "evaluate_every": 10**6,
            "checkpoint_every": 10**6,
            "device": "cpu",
        }
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        processes(device="cpu", precision="no", trackers=[], folder=Path(folder)) as group,
    ):
        run = RunFolder(Path(folder) / "run")
        run.create(recipe.to_toml(purpose="benchmark"))
        session = open_session(recipe, run, group, task)
        loops = {"bare": _bare(recipe, task, steps), "ours": _ours(session, steps)}
        row = [title]
        # Processor time says what the loop costs on a machine that others share.
        for clock in (time.perf_counter, time.process_time):
            best = interleaved_minima(loops, rounds=rounds, clock=clock)
            bare, ours = (1000 * best[name] / steps for name in ("bare", "ours"))
            row += [f"{bare:.2f}", f"{ours:.2f}", f"{ours / bare:.3f}"]
    return row


def _ours(session: Session, steps: int) -> Callable[[], None]:
    def count(session: Session) -> None:
        if session.step % steps == 0:
            raise _Enough

    def run() -> None:
        with suppress(_Enough):
            train_steps(session, [*observers(), count], lambda: False)

    return run


def _bare(recipe: Recipe, task: Task, steps: int) -> Callable[[], None]:
    """What one writes by hand: no schedule, no guard, no metrics but a mean loss."""
    model = convnet() if task.model == "convnet" else resnet20()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=1e-4)
    dataset = task.train
    assert isinstance(dataset, TensorDataset)
    inputs, labels = dataset.tensors
    size = recipe.last_batch_size

    def run() -> None:
        total, done = 0.0, 0
        while done < steps:
            order = torch.randperm(len(labels))
            for start in range(0, len(order) - size + 1, size):
                chosen = order[start : start + size]
                x, y = inputs[chosen], labels[chosen]
                loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item()
                done += 1
                if done == steps:
                    return

    return run


def _images() -> Task:
    noise = torch.Generator().manual_seed(0)
    images = torch.randn(1024, 3, 32, 32, generator=noise)
    labels = torch.randint(10, (1024,), generator=noise)
    data = TensorDataset(images, labels)
    return Task(
        name="random images",
        train=data,
        validation=data,
        objective=Classification(),
        headline="accuracy",
        model="resnet20",
        example_inputs=(images[:1],),
    )
