"""What growing costs beside training: events, planning, and whether predicted times come true."""

from __future__ import annotations

import copy
import importlib
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks._architectures import declare_missing_operators
from benchmarks._timing import interleaved_minima, print_table
from latewood.core import ChannelPlan, trace_channels
from latewood.growth import Growth, Plan, late, plan_schedule, widen
from latewood.growth.growing_widths import growing_widths
from latewood.growth.step_costs import measure_steps
from latewood.models import mlp, resnet, resnet20, transformer

__all__ = ["main"]

BATCH = 128
ALIGN = 8


def main(arguments: list[str]) -> None:
    """Prints three tables, in processor seconds of one thread.

    Args:
        arguments: number of rounds, 10 if left out; then which of "events", "planning" and
            "predictions", all if left out.
    """
    rounds = int(arguments[0]) if arguments else 10
    parts = arguments[1:] or ["events", "planning", "predictions"]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for part in parts:
            {"events": _events, "planning": _planning, "predictions": _predictions}[part](rounds)
    finally:
        torch.set_num_threads(before)


def _events(rounds: int) -> None:
    """One event that doubles all widths, over a training step of the network before it."""
    rows = []
    networks: dict[str, Callable[[], tuple[nn.Module, Any, Callable[[nn.Module], object]]]] = {
        f"ResNet-20, half as wide, {BATCH} images": _resnet20,
        "BERT-tiny, 2 x 128, 8 x 128 tokens": _bert_tiny,
        "Transformer, 3 layers of 128, 8 x 64 tokens": _transformer,
        "MLP 768-256-256, 128 vectors": _mlp,
    }
    for title, build in networks.items():
        try:
            model, examples, loss = build()
        except ImportError as error:
            print(f"{title}: needs {error.name}, which is not installed")
            continue
        rows.append([title, *_event_row(model, examples, loss, rounds)])
    # ``Growth`` traces once and carries its plan along; ``widen`` alone traces first.
    header = ["network", "step, ms", "trace, ms", "widen, ms", "widen / step", "both / step"]
    print_table("A growth event that doubles all widths, milliseconds", header, rows)


def _event_row(
    model: nn.Module, examples: Any, loss: Callable[[nn.Module], Any], rounds: int
) -> list[str]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()

    step()
    optimizer.zero_grad()
    plan = trace_channels(model, examples)
    widths = {name: of[-1] for name, of in growing_widths(plan, late(end=2.0), ()).items()}
    least = dict.fromkeys(("step", "trace", "widen"), float("inf"))
    for _ in range(rounds):
        # An event changes its network, so each has one of its own, copied outside the clock.
        twin, follower = copy.deepcopy((model, optimizer))
        follower.zero_grad()
        known: list[ChannelPlan] = []
        spent = {
            "step": _spent(step),
            "trace": _spent(partial(_trace_into, known, twin, examples)),
            "widen": _spent(
                partial(widen, twin, examples, widths, optimizers=follower, plan=known[0])
            ),
        }
        least = {name: min(least[name], seconds) for name, seconds in spent.items()}
    event, step_seconds = least["widen"], least["step"]
    ratios = (event / step_seconds, (least["trace"] + event) / step_seconds)
    return [*(f"{1e3 * seconds:.1f}" for seconds in least.values()), *map("{:.2f}".format, ratios)]


def _trace_into(plans: list[ChannelPlan], model: nn.Module, examples: Any) -> None:
    plans.append(trace_channels(model, examples))


def _spent(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _resnet20() -> tuple[nn.Module, Any, Callable[[nn.Module], Any]]:
    torch.manual_seed(0)
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.arange(BATCH) % 10
    return (
        resnet20(width=0.5),
        images[:1],
        lambda model: F.cross_entropy(model(images), labels),
    )


def _transformer() -> tuple[nn.Module, Any, Callable[[nn.Module], Any]]:
    torch.manual_seed(0)
    tokens = torch.randint(65, (8, 64))
    model = transformer(vocabulary=65, context=64, width=128, layers=3, heads=4)
    return model, tokens[:1], lambda model: model(tokens).square().mean()


def _mlp() -> tuple[nn.Module, Any, Callable[[nn.Module], Any]]:
    torch.manual_seed(0)
    vectors = torch.randn(128, 768)
    model = mlp(in_features=768, hidden=(256, 256), num_classes=10)
    return model, vectors[:1], lambda model: model(vectors).square().mean()


def _bert_tiny() -> tuple[nn.Module, Any, Callable[[nn.Module], Any]]:
    _kept_alive.append(declare_missing_operators())
    library = importlib.import_module("transformers")
    config = library.BertConfig(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    tokens = torch.randint(0, 30522, (8, 128))
    model: nn.Module = library.BertModel(config)
    return (
        model,
        {"input_ids": tokens[:1]},
        lambda model: model(input_ids=tokens).last_hidden_state.square().mean(),
    )


_kept_alive: list[Any] = []
"""What declares operators for as long as it lives."""


def _planning(rounds: int) -> None:
    """The plan of a ResNet-50, from the model to groups and barriers, beside Torch-Pruning's."""
    torch.manual_seed(0)
    model, example = resnet(50, stem="imagenet").eval(), torch.randn(1, 3, 224, 224)
    candidates: dict[str, Callable[[], object]] = {
        "Latewood: trace, groups, barriers": lambda: trace_channels(model, example)
    }
    if find_spec("torch_pruning") is None:
        print("torch_pruning is not installed: no row of it")
    else:
        pruning = importlib.import_module("torch_pruning")

        def peer() -> object:
            graph = pruning.DependencyGraph().build_dependency(model, example)
            return list(graph.get_all_groups())

        candidates["Torch-Pruning: graph and groups"] = peer
    if find_spec("gromo") is None:
        print("gromo is not installed: no row of it")
    best = interleaved_minima(candidates, rounds=rounds, clock=time.process_time)
    first = next(iter(best.values()))
    rows = [[name, f"{1e3 * time:.0f}", f"{first / time:.2f}"] for name, time in best.items()]
    print_table("Planning of a ResNet-50", ["planner", "ms", "ours over it"], rows)


def _predictions(rounds: int) -> None:
    """Schedules of the planner, predicted and then trained."""
    rows = []
    for title, build in _TRAININGS.items():
        rows += _prediction_rows(title, build, rounds)
    header = ["network, batch", "schedule", "trained, s", "off", "range", "MACs", "faster"]
    print_table(f"The planner's prediction, widths in multiples of {ALIGN}", header, rows)


Training = tuple[nn.Module, Any, Callable[[nn.Module], Any], int]
"""A narrow network, its example, the loss of a batch, and epochs of 20 steps."""


def _prediction_rows(title: str, build: Callable[[], Training], rounds: int) -> list[list[str]]:
    model, examples, loss, epochs = build()
    steps = 20

    def train_step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        loss(network).backward()
        optimizer.step()

    def make_optimizer(network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)

    choice = plan_schedule(
        model,
        examples,
        end=4.0,
        epochs=epochs,
        steps_per_epoch=steps,
        align=ALIGN,
        train_step=train_step,
        make_optimizer=make_optimizer,
        seconds=2.0,
        clock=time.process_time,
    )

    def trained(plan: Plan) -> float:
        network = copy.deepcopy(model).train()
        growth = Growth(
            network,
            examples,
            schedule=plan.schedule,
            total_steps=epochs * steps,
            steps_per_epoch=steps,
            rescale="none",
            rates="constant",
        )
        optimizer = make_optimizer(network)
        start = time.process_time()
        for _ in range(epochs):
            growth.restructure(optimizer)
            for _ in range(steps):
                train_step(network, optimizer)
                growth.step()
        return time.process_time() - start

    plans = {"the paper's": choice.reference, "aligned, chosen": choice.chosen}
    asked = list({id(cost): cost.widths for plan in plans.values() for cost in plan.costs}.values())
    off: dict[str, list[float]] = {name: [] for name in plans}
    spent: dict[str, list[float]] = {name: [] for name in plans}
    for _ in range(max(3, rounds)):
        # A prediction right before each training: other work on the machine comes and goes.
        costs = measure_steps(
            model,
            examples,
            asked,
            train_step=train_step,
            make_optimizer=make_optimizer,
            seconds=1.0,
            clock=time.process_time,
        )
        seconds = {tuple(cost.widths.values()): cost for cost in costs}
        for name, plan in plans.items():
            again = replace(plan, costs=[seconds[tuple(c.widths.values())] for c in plan.costs])
            spent[name].append(trained(plan))
            off[name].append(100 * (spent[name][-1] / again.seconds - 1))
    faster = 100 * (1 - min(spent["aligned, chosen"]) / min(spent["the paper's"]))
    return [
        [
            title,
            name,
            f"{min(spent[name]):.2f}",
            f"{statistics.median(off[name]):+.0f} %",
            f"{min(off[name]):+.0f} to {max(off[name]):+.0f} %",
            f"{plan.macs / choice.fixed.macs:.3f}",
            f"{faster:.0f} %" if plan is choice.chosen else "",
        ]
        for name, plan in plans.items()
    ]


def _perceptron() -> Training:
    torch.manual_seed(0)
    inputs, labels = torch.randn(BATCH, 768), torch.arange(BATCH) % 10
    model = mlp(in_features=768, hidden=(64, 64))
    return model, inputs[:1], lambda network: F.cross_entropy(network(inputs), labels), 40


def _language_model() -> Training:
    torch.manual_seed(0)
    tokens = torch.randint(0, 65, (8, 65))
    model = transformer(vocabulary=65, context=64, width=32, layers=2, heads=2)

    def loss(network: nn.Module) -> Any:
        return F.cross_entropy(network(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    return model, tokens[:1, :-1], loss, 20


_TRAININGS: dict[str, Callable[[], Training]] = {
    f"MLP 768-256-256, {BATCH}": _perceptron,
    "Transformer, 2 layers of 128, 8 x 64": _language_model,
}
