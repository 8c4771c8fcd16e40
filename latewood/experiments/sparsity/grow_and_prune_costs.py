"""Growing against training, pruning and fine-tuning by Torch-Pruning: accuracy for what it costs.

Quick and cpu scale: the digits and the convolutional network 1-32-64-64, to a fifth and a tenth of
its multiply-accumulates.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from latewood.experiments.flop_counted_training import (
    build,
    dense_training_macs,
    fit_and_count,
)
from latewood.experiments.papers import STRUCTURED_SPARSIFICATION
from latewood.experiments.registry import (
    Claim,
    Experiment,
    Results,
    Scale,
    Workspace,
    register,
    replicate,
)
from latewood.experiments.sparsity.growth_runs import grow
from latewood.experiments.sparsity.growth_tasks import images
from latewood.experiments.sparsity.train_prune_finetune import (
    Size,
    narrow_from_scratch,
    size,
    train_prune_finetune,
)

__all__ = ["EXPERIMENT", "GROWN_EPOCHS", "NARROW_EPOCHS"]

KEPT = {"a fifth": 0.2, "a tenth": 0.1}
EPOCHS: dict[Scale, int] = {"quick": 4, "cpu": 60}
SIZES: tuple[Size, Size] = ("macs", "parameters")
SEEDS: dict[Scale, int] = {"quick": 1, "cpu": 8}

GROWN_EPOCHS: dict[Scale, dict[str, int]] = {
    "quick": {"a fifth": 4, "a tenth": 4},
    "cpu": {"a fifth": 32, "a tenth": 56},
}
"""Of growing: so long that it stays below a fifth of what Torch-Pruning's way costs."""

NARROW_EPOCHS: dict[Scale, dict[str, int]] = {
    "quick": {"a fifth": 4, "a tenth": 4},
    "cpu": {"a fifth": 36, "a tenth": 64},
}
"""Of networks that are small from the start: so long that they cost what growing does."""


def run(scale: Scale, workspace: Workspace) -> Results:
    """Measures all ways on the same data order; without Torch-Pruning, ours alone."""
    setting = images(epochs=EPOCHS[scale])
    cost = dense_training_macs(setting)
    full, parameters = (size(setting, build(setting, 0), kind) for kind in SIZES)
    compare = importlib.util.find_spec("torch_pruning") is not None

    def measure(seed: int) -> dict[str, float]:
        measurements: dict[str, float] = {}
        half = None
        if compare:
            model = build(setting, seed)
            half = model, fit_and_count(setting, model, epochs=setting.epochs // 2, seed=seed)
        for name, keep in KEPT.items():
            budget: dict[str, Any] = {"keep": keep, "measure": "macs", "seed": seed}
            ways = {
                "grown": grow(setting, epochs=GROWN_EPOCHS[scale][name], **budget),
                "narrow": narrow_from_scratch(setting, epochs=NARROW_EPOCHS[scale][name], **budget),
            }
            if half is not None:
                ways["pruned"] = train_prune_finetune(setting, dense=half, **budget)
            for way, network in ways.items():
                measurements |= {
                    f"{way} {name}": network.score,
                    f"{way} {name} training": network.training_macs / cost,
                    f"{way} {name} macs": network.macs / full,
                    f"{way} {name} parameters": network.parameters / parameters,
                }
        return measurements

    settings = {
        "epochs of Torch-Pruning": f"{setting.epochs // 2} dense, then as many of fine-tuning",
        "epochs of growing": GROWN_EPOCHS[scale],
        "epochs of the narrow network": NARROW_EPOCHS[scale],
        "Torch-Pruning": "measured" if compare else "not installed: pip install 'latewood[peers]'",
        "validation samples": len(setting.task.validation),
    }
    return replicate(measure, range(SEEDS[scale]), workspace, settings=settings)


def _line(results: Results, *names: str) -> str:
    return ", ".join(f"{name} {results.text(name, scale=100, unit='%')}" for name in names)


_EARLIER = "an earlier measurement in the same setting, with budgets of parameters"
_TARGET = f"[I] the aim of this package; [V] {_EARLIER}"


def _claims(name: str, *, cheaper: str, accuracy: str) -> tuple[Claim, ...]:
    grown, pruned, narrow = f"grown {name}", f"pruned {name}", f"narrow {name}"
    label = name.removeprefix("a ")
    return (
        Claim(
            f"within-the-budget-{label}",
            f"Grown to {name} of the multiply-accumulates, a network never has more, and less by "
            "at most 1 % of the full network.",
            f"[V] {_EARLIER}",
            "unused at most 0.64 %",
            lambda r: _line(r, f"{grown} macs", f"{grown} parameters"),
            lambda r: all(
                KEPT[name] - 0.01 <= share <= KEPT[name] for share in r.values(f"{grown} macs")
            ),
        ),
        Claim(
            f"cheaper-than-pruning-{label}",
            f"Growing to {name} takes at most 20 % of the multiply-accumulates of Torch-Pruning's "
            "train, prune, fine-tune.",
            _TARGET,
            cheaper,
            lambda r: (
                f"{_line(r, f'{grown} training', f'{pruned} training')} of the dense training; "
                f"ratio {r.mean(f'{grown} training') / r.mean(f'{pruned} training'):.3f}"
            ),
            lambda r: r.mean(f"{grown} training") <= 0.2 * r.mean(f"{pruned} training"),
            scales=("cpu",),
        ),
        Claim(
            f"as-good-as-pruning-{label}",
            f"At {name} of the size its mean accuracy is at most 0.3 points below Torch-Pruning's.",
            _TARGET,
            accuracy,
            lambda r: _line(r, grown, pruned),
            lambda r: r.difference(pruned, grown) <= 0.003,
            scales=("cpu",),
        ),
        Claim(
            f"at-least-96-{label}",
            f"Its accuracy at {name} is at least 96 % with every seed.",
            f"[V] {_EARLIER}",
            "97.8 % and more",
            lambda r: _line(r, grown),
            lambda r: min(r.values(grown)) >= 0.96,
            scales=("cpu",),
        ),
        Claim(
            f"better-than-narrow-from-the-start-{label}",
            f"At {name} it is at least as good as a network that was as small from the start, all "
            "layers narrowed alike, trained for the same cost.",
            f"[V] {_EARLIER}, which found the opposite: growth finds the size, it does not beat it",
            "narrow 99.2 % and 98.8 %",
            lambda r: (
                f"{_line(r, grown, narrow)}; {_line(r, f'{grown} training', f'{narrow} training')}"
            ),
            lambda r: r.difference(grown, narrow) >= 0,
            scales=("cpu",),
        ),
    )


EXPERIMENT = register(
    Experiment(
        name="grow-and-prune-costs",
        title="Growing against train, prune, fine-tune (Torch-Pruning), digits, 1-32-64-64",
        paper=STRUCTURED_SPARSIFICATION,
        run=run,
        scales=("quick", "cpu"),
        claims=(
            *_claims(
                "a fifth",
                cheaper="18 to 20 % of the dense training against 60 %",
                accuracy="98.5 % against 99.5 %",
            ),
            *_claims(
                "a tenth",
                cheaper="8.6 to 9.5 % of the dense training against 54 %",
                accuracy="98.2 % against 99.2 %",
            ),
        ),
    )
)
