"""Networks that grow from a seed and prune themselves to half: images, characters, foregrounds.

Quick scale: trainings of seconds that only show sizes and costs. Cpu scale: minutes on one core.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from latewood.experiments.flop_counted_training import (
    TrainingSetting,
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
from latewood.experiments.sparsity.growth_tasks import characters, foregrounds, images
from latewood.experiments.sparsity.train_prune_finetune import (
    narrow_from_scratch,
    score_and_cost,
)

__all__ = ["CHARACTERS", "FOREGROUNDS", "IMAGES", "measure"]

KEEP = 0.5
SEEDS: dict[Scale, int] = {"quick": 1, "cpu": 3}
EPOCHS: dict[str, dict[Scale, int]] = {
    "images": {"quick": 4, "cpu": 40},
    "characters": {"quick": 4, "cpu": 30},
    "foregrounds": {"quick": 4, "cpu": 50},
}

MakeSetting = Callable[[Scale, Path, int], TrainingSetting]


def measure(setting: TrainingSetting, seed: int, *, keep: float = KEEP) -> dict[str, float]:
    """The dense network, one that grew to a share of its multiply-accumulates, one as narrow."""
    model = build(setting, seed)
    cost = dense_training_macs(setting)
    dense = score_and_cost(
        setting, model, fit_and_count(setting, model, epochs=setting.epochs, seed=seed)
    )
    grown = grow(setting, keep=keep, measure="macs", epochs=setting.epochs, seed=seed)
    narrow = narrow_from_scratch(
        setting, keep=keep, measure="macs", epochs=setting.epochs, seed=seed
    )
    measurements = {"dense": dense.score, "grown": grown.score, "narrow": narrow.score}
    for name, network in (("grown", grown), ("narrow", narrow)):
        measurements |= {
            f"{name} macs": network.macs / dense.macs,
            f"{name} parameters": network.parameters / dense.parameters,
            f"{name} training": network.training_macs / cost,
        }
    return measurements


def _runner(kind: str, make: MakeSetting) -> Callable[[Scale, Workspace], Results]:
    def run(scale: Scale, workspace: Workspace) -> Results:
        """Trains dense, growing and narrow networks with the same data order and epochs."""
        epochs = EPOCHS[kind][scale]
        folder = workspace.folder

        def measured(seed: int) -> dict[str, float]:
            return measure(make(scale, folder, seed), seed)

        setting = make(scale, folder, 0)
        settings = {
            "epochs": epochs,
            "steps of an epoch": setting.period,
            "batch size": setting.batch_size,
            "budget": f"{KEEP:g} of the multiply-accumulates",
            "validation samples": len(setting.task.validation),
        }
        return replicate(measured, range(SEEDS[scale]), workspace, settings=settings)

    return run


def _shares(results: Results, *names: str) -> str:
    return ", ".join(f"{name} {results.text(name, scale=100, unit='%')}" for name in names)


def _claims(
    *, unit: str, scale: float, worse_by: float, higher_is_better: bool, as_good: str
) -> tuple[Claim, ...]:
    sign = 1 if higher_is_better else -1

    def scores(results: Results, *names: str) -> str:
        return ", ".join(
            f"{name} {results.text(name, scale=scale, unit=unit, digits=3)}" for name in names
        )

    def behind(results: Results, first: str, second: str) -> float:
        return sign * results.difference(first, second)

    return (
        Claim(
            "ends-with-half",
            "The network that grew ends with half of the multiply-accumulates: never more, and "
            "less by at most 1 % of the full network.",
            "[P] abstract: half of the inference FLOPs saved; [I] never above the budget",
            "49.7 % saved (ResNet-50, ImageNet)",
            lambda r: _shares(r, "grown macs", "grown parameters"),
            lambda r: all(0.49 <= share <= 0.5 for share in r.values("grown macs")),
        ),
        Claim(
            "trains-with-half",
            "Its training takes about half of the multiply-accumulates of the dense training: at "
            "most 55 %.",
            "[P] abstract: nearly half of the training FLOPs saved",
            "47.4 % saved, 1.90 times fewer (ResNet-50, ImageNet)",
            lambda r: _shares(r, "grown training"),
            lambda r: max(r.values("grown training")) <= 0.55,
        ),
        Claim(
            "as-good-as-dense",
            as_good,
            "[P] abstract: 75.2 % top-1 without fine-tuning; [R] 76.1 % for the dense network",
            "75.2 % (ResNet-50, ImageNet)",
            lambda r: scores(r, "dense", "grown"),
            lambda r: behind(r, "dense", "grown") <= worse_by,
            scales=("cpu",),
        ),
        Claim(
            "better-than-narrow-from-the-start",
            "It is at least as good as a network of that size, all layers narrowed alike, that is "
            "trained as long.",
            "[V] an earlier measurement on digits at a fifth and a tenth of the size, which found "
            "the opposite: growth finds the size, it does not beat it",
            "narrow 99.2 %, grown 98.5 % (digits, a fifth of the parameters)",
            lambda r: f"{scores(r, 'narrow', 'grown')}; {_shares(r, 'narrow training')}",
            lambda r: behind(r, "narrow", "grown") <= 0,
            scales=("cpu",),
        ),
    )


IMAGES = register(
    Experiment(
        name="grow-and-prune-images",
        title="Growing to half of a convolutional network, digits, 1-32-64-64",
        paper=STRUCTURED_SPARSIFICATION,
        run=_runner("images", lambda scale, folder, seed: images(epochs=EPOCHS["images"][scale])),
        scales=("quick", "cpu"),
        claims=_claims(
            unit="%",
            scale=100,
            worse_by=0.009,
            higher_is_better=True,
            as_good="Its accuracy is at most 0.9 points below that of the dense network.",
        ),
    )
)

CHARACTERS = register(
    Experiment(
        name="grow-and-prune-characters",
        title="Growing to half of a language model of two LSTM layers, characters of Shakespeare",
        paper=STRUCTURED_SPARSIFICATION,
        run=_runner(
            "characters",
            lambda scale, folder, seed: characters(
                scale, folder, epochs=EPOCHS["characters"][scale]
            ),
        ),
        scales=("quick", "cpu"),
        claims=_claims(
            unit="bits",
            scale=1,
            worse_by=0.05,
            higher_is_better=False,
            as_good="It needs at most 0.05 bits a character more than the dense network.",
        ),
    )
)

FOREGROUNDS = register(
    Experiment(
        name="grow-and-prune-foregrounds",
        title="Growing to half of a small DeepLab, foregrounds of photographs and composites",
        paper=STRUCTURED_SPARSIFICATION,
        run=_runner(
            "foregrounds",
            lambda scale, folder, seed: foregrounds(
                scale, epochs=EPOCHS["foregrounds"][scale], seed=seed
            ),
        ),
        scales=("quick", "cpu"),
        claims=_claims(
            unit="%",
            scale=100,
            worse_by=0.02,
            higher_is_better=True,
            as_good="Its overlap with the true masks (IoU) is at most 2 points below the dense "
            "network's.",
        ),
    )
)
