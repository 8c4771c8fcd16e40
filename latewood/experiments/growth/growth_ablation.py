"""What each part of growing is worth: pairs, carried state, variance transfer, adapted rates.

Quick scale: digits, a training of a second each. Cpu scale: CIFAR-10 averaged to 16x16 pixels and a
perceptron 768-256-256-10, minutes on one core. GradMax cannot start channels in front of a
rectifier, nor more of them than the next layer has outputs, so it is compared on a twin with tanh
whose first hidden layer grows.
"""

from __future__ import annotations

from dataclasses import dataclass

from latewood.experiments.flop_counted_training import TrainingSetting
from latewood.experiments.growth.growing_networks import perceptrons, small_images
from latewood.experiments.growth.growing_training import (
    Growing,
    best_rate,
    fractions_of,
    starts_of,
    train,
)
from latewood.experiments.papers import GROWTH
from latewood.experiments.registry import (
    Claim,
    Experiment,
    Results,
    Scale,
    Workspace,
    register,
    replicate,
)

__all__ = ["ABLATION", "compare"]


FRACTIONS = fractions_of(0.25, 6)
STARTS = starts_of(FRACTIONS)

RECTIFIED: dict[str, Growing] = {
    "full": Growing(),
    "small": Growing((0.25,)),
    "pairs": Growing(FRACTIONS, STARTS),
    "pairs, state dropped": Growing(FRACTIONS, STARTS, state="drop"),
    "pairs + VT": Growing(FRACTIONS, STARTS, rescale="vt"),
    "pairs + VT + LRA": Growing(FRACTIONS, STARTS, rescale="vt", rates="norm"),
    "random, state dropped": Growing(FRACTIONS, STARTS, init="random", state="drop"),
    "Net2Net": Growing(FRACTIONS, STARTS, init="net2net"),
}
"""Ways to train the network with rectifiers, by name."""

TANH: dict[str, Growing] = {
    "tanh, pairs + VT + LRA": RECTIFIED["pairs + VT + LRA"],
    "tanh, GradMax": Growing(FRACTIONS, STARTS, init="gradmax"),
}
"""Ways to train the network with tanh, of which one layer grows."""

STOPPED = "full, equal MACs"
"""The full network, with the multiply-accumulates of those that grow."""

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
TUNING_SEED = 100


@dataclass(frozen=True)
class Length:
    """How large the comparison is.

    Args:
        width: of the full network's hidden layers.
        samples: training images.
        steps: of the training.
        seeds: how many.
        rate: SGD's, the middle one of those to choose from.
        held_out: training images on which rates are chosen; 0 takes ``rate`` as it is.
    """

    width: int
    samples: int
    steps: int
    seeds: int
    rate: float
    held_out: int


LENGTHS: dict[Scale, Length] = {
    "quick": Length(width=64, samples=0, steps=120, seeds=1, rate=0.02, held_out=0),
    "cpu": Length(width=256, samples=10_000, steps=2000, seeds=4, rate=0.02, held_out=2000),
}


def compare(scale: Scale, workspace: Workspace) -> Results:
    """Trains the network in every way, at its own best rate, and some ways again with tanh."""
    length = LENGTHS[scale]
    task = small_images(scale, samples=length.samples)
    settings = {
        name: perceptrons(
            task,
            width=length.width,
            rate=length.rate,
            activation="tanh" if name in TANH else "relu",
            first_only=name in TANH,
        )
        for name in (*RECTIFIED, *TANH)
    }
    ways = RECTIFIED | TANH
    rates = dict.fromkeys(ways, 1.0)
    if length.held_out:
        for name in workspace.track(ways, "learning rates"):
            rates[name] = best_rate(
                settings[name],
                ways[name],
                FACTORS,
                steps=length.steps // 2,
                seed=TUNING_SEED,
                samples=length.held_out,
            )

    def measure(seed: int) -> dict[str, float]:
        measurements: dict[str, float] = {}
        full = train(settings["full"], Growing(), steps=length.steps, seed=seed, rate=rates["full"])
        for name, growing in ways.items():
            trained = full
            if name != "full":
                trained = train(
                    settings[name], growing, steps=length.steps, seed=seed, rate=rates[name]
                )
            measurements |= {
                name: trained.score,
                f"{name} loss": trained.loss,
                f"{name} jump": trained.jump,
            }
            # With tanh another network grows.
            if name in RECTIFIED:
                measurements[f"{name} macs"] = trained.macs / full.macs
        fraction = measurements["pairs macs"]
        stopped = train(
            settings["full"],
            Growing(),
            steps=max(1, round(fraction * length.steps)),
            seed=seed,
            rate=rates["full"],
        )
        return measurements | {
            STOPPED: stopped.score,
            f"{STOPPED} loss": stopped.loss,
            f"{STOPPED} macs": stopped.macs / full.macs,
        }

    return replicate(
        measure,
        range(length.seeds),
        workspace,
        settings={
            "steps": length.steps,
            "images": len(task.train),
            "widths": _widths(settings["full"], length.width),
            "learning rates": {name: length.rate * rate for name, rate in rates.items()},
        },
    )


def _widths(setting: TrainingSetting, width: int) -> list[int]:
    return [2 * round(fraction * width / 2) for fraction in FRACTIONS]


GROWN = "pairs + VT + LRA"


def _accuracies(results: Results, *names: str) -> str:
    return results.texts(*names, scale=100, unit="%")


def _better(first: str, second: str, results: Results) -> str:
    gain = results.difference_text(first, second, scale=100, unit="points")
    return f"{_accuracies(results, first, second)}; difference {gain}"


_EARLIER = "an earlier measurement on 5,000 images (SGD, 3 seeds)"

ABLATION = register(
    Experiment(
        name="growth-ablation",
        title="Growing a perceptron to four times its width in six phases, and parts left out",
        paper=GROWTH,
        run=compare,
        scales=("quick", "cpu"),
        claims=(
            Claim(
                "a-fraction-of-the-cost",
                "Growing takes at most two thirds of the multiply-accumulates of the full "
                "network's training.",
                "[P] abstract: substantially reduced training budget",
                "52.9 to 54.9 % (CIFAR-10, nine phases)",
                lambda r: r.text(f"{GROWN} macs", scale=100, unit="%"),
                lambda r: max(r.values(f"{GROWN} macs")) <= 2 / 3,
            ),
            Claim(
                "pairs-keep-the-loss",
                "Pairs move the loss at no event by more than 0.001; random channels move it by "
                "more than 0.01.",
                "[S] a secondary source: growth is function-preserving",
                "-",
                lambda r: r.texts("pairs jump", "random, state dropped jump", digits=4),
                lambda r: (
                    max(r.values("pairs jump")) < 1e-3
                    and min(r.values("random, state dropped jump")) > 1e-2
                ),
            ),
            Claim(
                "close-to-the-full-network",
                "With all parts the accuracy is at most one point below the full network's.",
                "[P] abstract: comparable or better accuracy",
                "[R] 92.53 against 92.62 % (ResNet-20), [S] 75.90 against 76.72 % (ResNet-50)",
                lambda r: _better(GROWN, "full", r),
                lambda r: r.difference("full", GROWN) <= 0.01,
                scales=("cpu",),
            ),
            Claim(
                "better-than-stopping-early",
                "With all parts it is better than the full network trained with as many "
                "multiply-accumulates.",
                f"[V] {_EARLIER}: a tie",
                "53.4 against 52.9 %, ± 0.4 and 0.7 (a small ResNet)",
                lambda r: _better(GROWN, STOPPED, r),
                lambda r: r.difference(GROWN, STOPPED) > 0,
                scales=("cpu",),
            ),
            Claim(
                "better-than-small",
                "With all parts it is better than the network of a quarter of the width.",
                f"[V] {_EARLIER}",
                "41.57 against 39.98 %",
                lambda r: _better(GROWN, "small", r),
                lambda r: r.difference(GROWN, "small") > 0,
                scales=("cpu",),
            ),
            Claim(
                "better-than-random",
                "With all parts it is better than random new channels with the state dropped.",
                "[R] the paper's ablation",
                "-",
                lambda r: _better(GROWN, "random, state dropped", r),
                lambda r: r.difference(GROWN, "random, state dropped") > 0,
                scales=("cpu",),
            ),
            Claim(
                "better-than-net2net",
                "With all parts it is better than Net2Net at equal cost.",
                "[S] secondary sources",
                "75.90 against 74.89 % (ResNet-50); [R] 92.53 against 91.60 % (ResNet-20)",
                lambda r: _better(GROWN, "Net2Net", r),
                lambda r: r.difference(GROWN, "Net2Net") > 0,
                scales=("cpu",),
            ),
            Claim(
                "better-than-gradmax",
                "With all parts it is better than GradMax at equal cost, where GradMax can grow.",
                "[R] a comparison in some of the paper's tables; not certain",
                "-",
                lambda r: _better("tanh, pairs + VT + LRA", "tanh, GradMax", r),
                lambda r: r.difference("tanh, pairs + VT + LRA", "tanh, GradMax") > 0,
                scales=("cpu",),
            ),
            Claim(
                "carrying-the-state-helps",
                "Pairs are better with the optimizer's state carried along than with it dropped.",
                "[R] 31.62 against 31.44 BLEU (IWSLT'14)",
                "31.62 against 31.44 BLEU",
                lambda r: _better("pairs", "pairs, state dropped", r),
                lambda r: r.difference("pairs", "pairs, state dropped") > 0,
                scales=("cpu",),
            ),
            Claim(
                "variance-transfer-helps",
                "Variance transfer is better than pairs alone.",
                f"[R] the paper's ablation; [V] {_EARLIER}: within the noise",
                "41.95 against 41.20 %, ± 0.35 and 0.40",
                lambda r: _better("pairs + VT", "pairs", r),
                lambda r: r.difference("pairs + VT", "pairs") > 0,
                scales=("cpu",),
            ),
            Claim(
                "variance-transfer-lowers-the-loss",
                "It ends with a lower validation loss, since it keeps the outputs small.",
                f"[V] {_EARLIER}",
                "2.25 against 2.99",
                lambda r: r.texts("pairs + VT loss", "pairs loss", digits=3),
                lambda r: r.difference("pairs + VT loss", "pairs loss") < 0,
                scales=("cpu",),
            ),
            Claim(
                "adapted-rates-help",
                "Learning rates by stage are better than one rate for all, with pairs and "
                "variance transfer.",
                f"[R] 32.01 against 31.62 BLEU; [V] {_EARLIER}: within the noise",
                "32.01 against 31.62 BLEU (IWSLT'14)",
                lambda r: _better(GROWN, "pairs + VT", r),
                lambda r: r.difference(GROWN, "pairs + VT") > 0,
                scales=("cpu",),
            ),
        ),
    )
)
