"""Linear mode connectivity beside the agreement of singular vectors, with its controls, on digits.

Runs that part early end in other places and in other directions; strangers and perturbed starts are
the controls, and a permutation of channels tells how much of a barrier is only their order.

Trainings amplify rounding: the same seeds with sums on two threads instead of one end elsewhere, as
far from each other as trunks are, and two claims close to their bounds held there.
"""

from __future__ import annotations

from itertools import combinations, pairwise

from scipy.stats import spearmanr
from torch import nn

from latewood.experiments.papers import SPECTRAL_DYNAMICS
from latewood.experiments.registry import (
    Claim,
    Experiment,
    Results,
    Scale,
    Workspace,
    register,
    replicate,
)
from latewood.experiments.spectra.branched_training import (
    EPOCHS,
    BranchedTraining,
    EndpointComparison,
    State,
)
from latewood.spectra import perturb_

__all__ = ["EXPERIMENT"]

SPLITS = {"quick": (10,), "cpu": (0, 0.2, 0.4, 1, 2, 5, 10)}
TRUNKS = {"quick": 1, "cpu": 3}
BRANCHES = {"quick": (3, 4), "cpu": (3, 4, 5)}
"""Seeds of the order of the data; the cpu scale has the paper's three trunks of three branches."""
STRENGTHS = {"quick": (0.25, 2.5), "cpu": (0.25, 0.5, 1.0, 2.5)}
LAST = 10
"""The epoch at which perturbed branches start."""


def run(scale: Scale, workspace: Workspace) -> Results:
    """Measures branches of every trunk, against each other and against those of the next trunk."""
    training = BranchedTraining(SPLITS[scale])
    trunk_count = max(2, TRUNKS[scale])
    branches = BRANCHES[scale]

    def measure(trunk: int) -> dict[str, float]:
        return (
            _branches(training, trunk, branches)
            | _strangers(training, trunk, (trunk + 1) % trunk_count, branches[0])
            | _perturbed(training, trunk, branches[:2], STRENGTHS[scale])
        )

    settings = {
        "epochs": EPOCHS,
        "splits after epochs": list(SPLITS[scale]),
        "branches of each split": len(branches),
        "perturbed after epoch": LAST,
        "agreement": "mean of the first ten pairs of vectors, over all matrices; for strangers "
        "and perturbed runs over those before the head",
    }
    return replicate(measure, range(TRUNKS[scale]), workspace, title="trunks", settings=settings)


def _branches(training: BranchedTraining, trunk: int, seeds: tuple[int, ...]) -> dict[str, float]:
    measurements: dict[str, float] = {}
    for split in training.splits:
        ends = [training.end(trunk, split, seed) for seed in seeds]
        pairs = [training.compare(first, second) for first, second in combinations(ends, 2)]
        top_barriers = [
            training.top_barrier(first, second) for first, second in combinations(ends, 2)
        ]
        measurements[f"barrier/{split:g}"] = sum(pair.barrier for pair in pairs) / len(pairs)
        measurements[f"top barrier/{split:g}"] = sum(top_barriers) / len(top_barriers)
        measurements[f"agreement/{split:g}"] = sum(pair.agreement for pair in pairs) / len(pairs)
    if len(training.splits) < 3:
        return measurements
    barriers, agreements = (
        [measurements[f"{name}/{split:g}"] for split in training.splits]
        for name in ("barrier", "agreement")
    )
    measurements["rank correlation"] = float(spearmanr(barriers, agreements).statistic)
    return measurements


def _strangers(training: BranchedTraining, trunk: int, other: int, seed: int) -> dict[str, float]:
    pairs = [
        training.compare(training.end(trunk, split, seed), training.end(other, split, seed))
        for split in training.splits
    ]
    ends = [training.end(start, LAST, seed) for start in (trunk, other)]
    return {
        "strangers, lowest barrier": min(pair.barrier for pair in pairs),
        "strangers, highest agreement": max(pair.hidden for pair in pairs),
        "strangers, barrier": pairs[-1].barrier,
        "strangers, permuted barrier": training.compare(*ends, permute=True).barrier,
    }


def _perturbed(
    training: BranchedTraining, trunk: int, seeds: tuple[int, ...], strengths: tuple[float, ...]
) -> dict[str, float]:
    def perturbed(strength: float) -> EndpointComparison:
        ends: list[State] = list(
            training.finish(
                training.at(trunk, LAST),
                LAST,
                seeds=seeds,
                before=lambda model, seed: _perturb(model, strength, seed),
            ).values()
        )
        return training.compare(*ends)

    pairs = {0.0: training.compare(*(training.end(trunk, LAST, seed) for seed in seeds))}
    pairs |= {strength: perturbed(strength) for strength in strengths}
    measurements: dict[str, float] = {}
    for strength, comparison in pairs.items():
        measurements[f"perturbed barrier/{strength:g}"] = comparison.barrier
        measurements[f"perturbed agreement/{strength:g}"] = comparison.hidden
    return measurements


def _perturb(model: nn.Module, strength: float, seed: int) -> None:
    perturb_(model, strength, seed=seed)


def _by_setting(results: Results, quantity: str) -> dict[float, float]:
    """The mean over the trunks at every split or strength, ascending."""
    means = {
        float(name.removeprefix(f"{quantity}/")): results.mean(name)
        for name in results.measurements
        if name.startswith(f"{quantity}/")
    }
    return dict(sorted(means.items()))


def _text(results: Results, quantity: str) -> str:
    return ", ".join(f"{at:g}: {value:.4f}" for at, value in _by_setting(results, quantity).items())


def _by_trunk(results: Results, quantity: str, digits: int) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in results.values(quantity))


def _curve_correlation(results: Results) -> float:
    """Rank correlation of barrier and agreement over the splits, each a mean over the trunks.

    Raises:
        KeyError: too few splits for one.
    """
    barriers, agreements = (_by_setting(results, name) for name in ("barrier", "agreement"))
    if len(barriers) < 3:
        raise KeyError("rank correlation")
    return float(spearmanr([*barriers.values()], [*agreements.values()]).statistic)


def _falls(values: dict[float, float], *, after: float) -> bool:
    later = [value for at, value in values.items() if at >= after]
    return all(before > after_it for before, after_it in pairwise(later))


_EARLIER = "an earlier measurement in the same setting"

EXPERIMENT = register(
    Experiment(
        name="mode-connectivity",
        title="Barriers and agreement of singular vectors between branches, MLP 64-128-128-128-10 "
        "on digits",
        paper=SPECTRAL_DYNAMICS,
        run=run,
        scales=("quick", "cpu"),
        claims=(
            Claim(
                "barrier-falls-as-agreement-rises",
                "The later two branches part, the lower the barrier between their ends and the "
                "higher the agreement of their singular vectors: rank correlation of the two "
                "curves over the splits, each a mean over the trunks, at most -0.8.",
                f"[P] figure 11, which draws the mean; [M] {_EARLIER}, two trunks with one pair of "
                "branches each",
                "figure only; earlier, by trunk, -0.93 and -1.00; on two threads -0.89, -0.96, "
                "-0.96",
                lambda r: (
                    f"{_curve_correlation(r):.2f}; by trunk {_by_trunk(r, 'rank correlation', 2)}; "
                    f"barrier after epochs {_text(r, 'barrier')}; agreement "
                    f"{_text(r, 'agreement')}"
                ),
                lambda r: _curve_correlation(r) <= -0.8,
                scales=("cpu",),
            ),
            Claim(
                "connected-after-a-third",
                "Branches that part after 10 of 30 epochs end without a barrier (below 0.001) and "
                "in the same directions (agreement above 0.85), in the mean over the trunks.",
                f"[P] figure 11, which draws the mean; [M] {_EARLIER}",
                "figure only; earlier 0.0000 and 0.93; on two threads at most 0.0002 and at least "
                "0.89",
                lambda r: (
                    f"barrier {r.text('barrier/10', digits=5)}, by trunk "
                    f"{_by_trunk(r, 'barrier/10', 5)}; agreement {r.text('agreement/10')}, by "
                    f"trunk {_by_trunk(r, 'agreement/10', 2)}"
                ),
                lambda r: r.mean("barrier/10") < 1e-3 and r.mean("agreement/10") > 0.85,
            ),
            Claim(
                "top-half-carries-the-barrier",
                "With every network on the line truncated to the top half of its spectra the "
                "barrier is the same at every split, within a fifth or 0.001 (below which branches "
                "count as connected).",
                "[C] measured by the released code, drawn in no figure; [I] the bounds",
                "not given",
                lambda r: f"top half {_text(r, 'top barrier')}; whole {_text(r, 'barrier')}",
                lambda r: all(
                    abs(top - _by_setting(r, "barrier")[split])
                    <= max(0.001, 0.2 * _by_setting(r, "barrier")[split])
                    for split, top in _by_setting(r, "top barrier").items()
                ),
            ),
            Claim(
                "strangers-are-apart",
                "Ends of different trunks have a barrier (above 0.5) and no agreement (below 0.1) "
                "at every split.",
                f"[P] figure 12; [M] {_EARLIER}, at one split",
                "figure only; earlier barrier 1.62, agreement 0.027, 0.009 and 0.005",
                lambda r: (
                    f"lowest barrier {min(r.values('strangers, lowest barrier')):.2f}, highest "
                    f"agreement {max(r.values('strangers, highest agreement')):.3f}"
                ),
                lambda r: (
                    min(r.values("strangers, lowest barrier")) > 0.5
                    and max(r.values("strangers, highest agreement")) < 0.1
                ),
            ),
            Claim(
                "permutation-of-strangers",
                "Bringing one stranger's channels into the other's order, by their weights alone, "
                "takes away at least half of the barrier.",
                "[R] Ainsworth et al. 2022, arXiv:2209.04836: wide networks trained apart can be "
                "permuted until hardly a barrier is left",
                "none (this setting is not in the paper)",
                lambda r: (
                    f"{r.text('strangers, barrier', digits=2)}, permuted "
                    f"{r.text('strangers, permuted barrier')}"
                ),
                lambda r: all(
                    permuted < 0.5 * as_it_is
                    for permuted, as_it_is in zip(
                        r.values("strangers, permuted barrier"),
                        r.values("strangers, barrier"),
                        strict=True,
                    )
                ),
            ),
            Claim(
                "perturbation-turns-directions",
                "The more weights are perturbed before the branches part, the less their ends "
                "agree, strictly from a strength of 0.25 on.",
                f"[P] figure 13; [M] {_EARLIER}, one trunk",
                "figure only; earlier 0.86, 0.84, 0.81, 0.66, 0.36, 0.07 for 0 to 2.5",
                lambda r: f"agreement by strength {_text(r, 'perturbed agreement')}",
                lambda r: _falls(_by_setting(r, "perturbed agreement"), after=0.25),
            ),
            Claim(
                "perturbation-raises-the-barrier",
                "The barrier at a strength of 2.5 is more than 20 times that at 0.25.",
                f"[P] figure 13; [M] {_EARLIER}, one trunk",
                "figure only; earlier 0.057 against 0.0002",
                lambda r: f"barrier by strength {_text(r, 'perturbed barrier')}",
                lambda r: r.mean("perturbed barrier/2.5") > 20 * r.mean("perturbed barrier/0.25"),
            ),
        ),
    )
)
