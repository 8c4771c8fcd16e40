"""Continuous sparsification against magnitude pruning: which finds small networks, at what cost.

Quick and cpu scale: a multilayer perceptron on scikit-learn's digits, in seconds a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latewood.core import parameter_groups
from latewood.experiments.registry import (
    Bench,
    Claim,
    Experiment,
    Results,
    Scale,
    register,
    replicate,
)
from latewood.experiments.sparsity.ticket_runs import at_density
from latewood.sparsity import ContinuousSparsification
from latewood.tasks.digits import digits

__all__ = ["EXPERIMENT"]

EPOCHS = {"quick": 20, "cpu": 40}
SEEDS = {"quick": 1, "cpu": 5}
BATCH_SIZE = 64
LR = 0.05
REWIND_EPOCH = 2
INITIAL_LOGIT = -0.1
IMP_ROUNDS = 20
IMP_FRACTION = 0.2

State = dict[str, Tensor]
Masks = dict[str, Tensor]


@dataclass(frozen=True)
class _Data:
    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class _Trial:
    """What all trainings that are compared with one another share."""

    data: _Data
    seed: int
    epochs: int


@dataclass(frozen=True)
class _Trained:
    """The outcome of one training.

    Args:
        model: the network, plain.
        rewind: its plain state at the rewind point.
        masks: what was learned to be kept; {} if nothing was.
        soft: test accuracy before the masks were made hard.
    """

    model: nn.Module
    rewind: State
    masks: Masks
    soft: float


def run(scale: Scale, bench: Bench) -> Results:
    """Measures all methods on the same splits, seeds and epochs."""
    data = _digits()
    epochs, rounds = EPOCHS[scale], IMP_ROUNDS if scale == "cpu" else 0
    settings = {
        "epochs of each training": epochs,
        "IMP rounds": rounds,
        "test samples": len(data.test_labels),
    }

    def measure(seed: int) -> dict[str, float]:
        return _measure(_Trial(data, seed, epochs), rounds)

    return replicate(measure, range(SEEDS[scale]), bench, title="seeds", settings=settings)


def _measure(trial: _Trial, rounds: int) -> dict[str, float]:
    dense = _train(trial, _mlp(trial.seed))
    sparse = _train(trial, _mlp(trial.seed), sparsify=True)
    masks = sparse.masks
    kept = sum(int(mask.sum()) for mask in masks.values())
    total = sum(mask.numel() for mask in masks.values())

    ticket = _retrain(trial, sparse.rewind, masks)
    random = _retrain(trial, sparse.rewind, _shuffled(masks, trial.seed))
    magnitude = _largest(_weights(dense.model), kept)
    found = {
        "dense": _accuracy(dense.model, trial.data),
        "soft": sparse.soft,
        "hard": _accuracy(sparse.model, trial.data),
        "ticket": _accuracy(ticket, trial.data),
        "random": _accuracy(random, trial.data),
        "imp 1": _accuracy(_retrain(trial, dense.rewind, magnitude), trial.data),
        "one shot": _accuracy(_retrain(trial, dense.model.state_dict(), magnitude), trial.data),
        "density": kept / total,
    }
    if rounds:
        pruned, density = _iterate(trial, dense, rounds)
        found |= {"imp 20": _accuracy(pruned, trial.data), "imp 20 density": density}
    return found


def _iterate(trial: _Trial, dense: _Trained, rounds: int) -> tuple[nn.Module, float]:
    """Iterative magnitude pruning: train, remove a fraction, rewind, as often as asked."""
    model = dense.model
    total = kept = sum(weight.numel() for weight in _weights(model).values())
    for _ in range(rounds):
        kept = int(kept * (1 - IMP_FRACTION))
        model = _retrain(trial, dense.rewind, _largest(_weights(model), kept))
    return model, kept / total


def _retrain(trial: _Trial, state: State, masks: Masks) -> nn.Module:
    model = _mlp(trial.seed)
    model.load_state_dict(state)
    return _train(trial, model, masks=masks).model


def _train(
    trial: _Trial,
    model: nn.Module,
    *,
    sparsify: bool = False,
    masks: Masks | None = None,
) -> _Trained:
    """Nesterov SGD, with continuous sparsification or a fixed mask if asked."""
    steps_per_epoch = len(trial.data.inputs) // BATCH_SIZE
    method = None
    if sparsify:
        method = ContinuousSparsification(
            model,
            total_steps=trial.epochs * steps_per_epoch,
            steps_per_epoch=steps_per_epoch,
            initial_logit=INITIAL_LOGIT,
            exclude=(),
        )
    groups = parameter_groups(model, [method] if method else [], weight_decay=1e-4)
    optimizer = torch.optim.SGD(groups, lr=LR, momentum=0.9, nesterov=True)
    rewind: State = {}
    _apply(model, masks)
    for epoch, batches in enumerate(_epochs(trial)):
        if epoch == REWIND_EPOCH:
            rewind = _plain_state(model)
        for group in optimizer.param_groups:
            group["lr"] = LR * 0.1 ** (
                (epoch >= 0.66 * trial.epochs) + (epoch >= 0.84 * trial.epochs)
            )
        for inputs, labels in batches:
            loss = F.cross_entropy(model(inputs), labels)
            if method:
                loss = loss + method.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if method:
                method.step()
            _apply(model, masks)
    soft = _accuracy(model, trial.data)
    found = method.masks() if method else {}
    return _Trained(method.finalize() if method else model, rewind, found, soft)


def _epochs(trial: _Trial) -> Iterator[list[tuple[Tensor, Tensor]]]:
    data = trial.data
    generator = torch.Generator().manual_seed(trial.seed)
    count = len(data.inputs) // BATCH_SIZE
    for _ in range(trial.epochs):
        order = torch.randperm(len(data.inputs), generator=generator)
        parts = order[: count * BATCH_SIZE].split(BATCH_SIZE)
        yield [(data.inputs[part], data.labels[part]) for part in parts]


def _digits() -> _Data:
    task = digits()
    inputs, labels = task.train.gather(torch.arange(len(task.train)))
    test_inputs, test_labels = task.validation.gather(torch.arange(len(task.validation)))
    return _Data(inputs.flatten(1), labels, test_inputs.flatten(1), test_labels)


def _mlp(seed: int) -> nn.Module:
    """64-256-128-10 with ReLU; weights N(0, 2 / fan_in), biases 0."""
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(64, 256), nn.Linear(256, 128), nn.Linear(128, 10)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


@torch.no_grad()
def _accuracy(model: nn.Module, data: _Data) -> float:
    hits = model(data.test_inputs).argmax(1) == data.test_labels
    return float(hits.double().mean())


def _weights(model: nn.Module) -> State:
    return {name: value.detach() for name, value in model.named_parameters() if value.ndim == 2}


def _plain_state(model: nn.Module) -> State:
    """A copy of weights and biases under their plain names, without what a method added."""
    plain = {}
    for name, value in model.state_dict().items():
        head, _, tail = name.partition("parametrizations.")
        if not tail:
            plain[name] = value.clone()
        elif tail.endswith(".original"):
            plain[head + tail.removesuffix(".original")] = value.clone()
    return plain


@torch.no_grad()
def _apply(model: nn.Module, masks: Masks | None) -> None:
    """Sets removed weights to 0; done after every step, nothing can revive them."""
    if masks:
        for name, weight in model.named_parameters():
            if name in masks:
                weight.mul_(masks[name])


def _largest(weights: State, kept: int) -> Masks:
    """Masks that keep the given number of weights, the largest over all layers together."""
    magnitudes = torch.cat([weight.abs().flatten() for weight in weights.values()])
    flat = torch.zeros(len(magnitudes), dtype=torch.bool)
    flat[magnitudes.topk(kept).indices] = True
    parts = flat.split([weight.numel() for weight in weights.values()])
    return {name: part.view_as(w) for (name, w), part in zip(weights.items(), parts, strict=True)}


def _shuffled(masks: Masks, seed: int) -> Masks:
    """Masks with the same number of weights in every layer, at random places."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=generator)].view_as(mask)
        for name, mask in masks.items()
    }


_EARLIER = "an earlier measurement in the same setting, mean ± standard deviation"

EXPERIMENT = register(
    Experiment(
        name="continuous-sparsification",
        title="Continuous sparsification against magnitude pruning on digits, MLP 64-256-128-10",
        paper="Savarese, Silva, Maire: Winning the Lottery with Continuous Sparsification, 2020, "
        "arXiv:1912.04427",
        run=run,
        scales=("quick", "cpu"),
        claims=(
            Claim(
                "density",
                "One run with initial logit -0.1 ends with about 1.3 % of the weights "
                "(between 0.9 % and 2 %).",
                f"[V] {_EARLIER}",
                "density 0.0131 ± 0.0006",
                lambda r: r.text("density", digits=4),
                lambda r: 0.009 <= r.mean("density") <= 0.020,
            ),
            Claim(
                "pruning-in-one-run",
                "The network with the hard mask, without retraining, is within 2 points of dense.",
                f"[V] {_EARLIER}",
                "97.19 ± 0.44 %, dense 98.00 ± 0.40 %",
                lambda r: at_density(r, "dense", "hard"),
                lambda r: r.difference("dense", "hard") <= 0.02,
            ),
            Claim(
                "hard-as-soft",
                "As the temperature rises the soft mask becomes the hard one: making it hard at "
                "the end costs at most 1 point.",
                "[P] a figure's caption and the authors' README, as a limit",
                "none (a limit)",
                lambda r: r.difference_text("soft", "hard", scale=100, unit="points"),
                lambda r: r.difference("soft", "hard") <= 0.01,
            ),
            Claim(
                "ticket",
                "The mask found in one round, on weights rewound to epoch 2 and retrained, is "
                "within 2 points of dense.",
                f"[V] {_EARLIER}",
                "97.70 ± 0.34 %",
                lambda r: at_density(r, "dense", "ticket"),
                lambda r: r.difference("dense", "ticket") <= 0.02,
            ),
            Claim(
                "ticket-against-random",
                "The ticket beats random masks with the same counts per layer by 15 points.",
                f"[V] {_EARLIER}",
                "random 50.0 ± 11.7 %",
                lambda r: at_density(r, "ticket", "random"),
                lambda r: r.difference("ticket", "random") >= 0.15,
            ),
            Claim(
                "ticket-against-one-round-of-magnitude",
                "At equal search cost and density the ticket beats one round of iterative "
                "magnitude pruning by 50 points.",
                f"[R] the paper finds tickets in 1 to 5 rounds, IMP in 10 to 30; [V] {_EARLIER}",
                "IMP 1 round 14.1 ± 4.2 %",
                lambda r: at_density(r, "ticket", "imp 1"),
                lambda r: r.difference("ticket", "imp 1") >= 0.5,
            ),
            Claim(
                "pruning-against-one-shot-magnitude",
                "At equal density the hard mask without retraining beats one-shot magnitude "
                "pruning with as many epochs of fine-tuning by 50 points.",
                f"[P] abstract: better than the state of the art in pruning; [V] {_EARLIER}",
                "one shot 10 to 15 %",
                lambda r: at_density(r, "hard", "one shot"),
                lambda r: r.difference("hard", "one shot") >= 0.5,
            ),
            Claim(
                "ticket-against-20-rounds-of-magnitude",
                "With 1/20 of the search epochs the ticket is as good as iterative magnitude "
                "pruning at 20 % a round for 20 rounds (at most 0.5 points behind).",
                f"[R] the paper finds tickets faster than IMP; [V] {_EARLIER}",
                "ticket 97.70 ± 0.34 %, IMP 96.93 ± 0.30 % at density 0.0115",
                lambda r: (
                    f"{at_density(r, 'ticket', 'imp 20')} (imp 20: "
                    f"{r.text('imp 20 density', digits=4)})"
                ),
                lambda r: r.difference("ticket", "imp 20") >= -0.005,
                scales=("cpu",),
            ),
        ),
    )
)
