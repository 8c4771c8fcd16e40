"""The spectral experiments: their claims hold at the quick scale, and each of them can fail."""

from __future__ import annotations

import math
from types import ModuleType

import pytest

from latewood.experiments import Experiment, Results, Workspace
from latewood.experiments.spectra import grokking, random_labels, rank_and_stability, weight_decay

QUICK = [
    (grokking, grokking.SMALL),
    (random_labels, random_labels.EXPERIMENT),
    (rank_and_stability, rank_and_stability.EXPERIMENT),
    (weight_decay, weight_decay.EXPERIMENT),
]


@pytest.mark.parametrize(
    ("module", "experiment"), QUICK, ids=lambda part: getattr(part, "name", "")
)
def test_every_claim_of_the_quick_scale_holds(
    module: ModuleType, experiment: Experiment, tmp_path_factory: pytest.TempPathFactory
) -> None:
    results = experiment.run("quick", Workspace(tmp_path_factory.mktemp("workspace")))
    claims = [claim for claim in experiment.claims if "quick" in claim.scales]
    assert len(claims) >= 3
    assert [(c.name, c.measured(results)) for c in claims if not c.holds(results)] == []


class Broken(Results):
    """Results in which every quantity has one value, or what is given."""

    def __init__(self, value: float, **given: float) -> None:
        super().__init__({}, {"AdamW": [0.0, 0.1, 3.0], "SGD": [0.0, 0.01]})
        self.value, self.given = value, {key.replace("_", " "): v for key, v in given.items()}

    def values(self, name: str) -> list[float]:
        return [self.given.get(name, self.value)]

    def difference(self, first: str, second: str) -> float:
        return self.mean(first) - self.mean(second)


def test_nothing_holds_of_a_network_that_never_learns() -> None:
    never = Broken(math.nan, **{"error": 0.9, "no_decay: grokked at": math.inf})
    never.given |= {"grokked at": math.inf, "by heart at": math.inf, "onset at": math.inf}
    for experiment in (grokking.SMALL, grokking.PAPER):
        assert [c.name for c in experiment.claims if c.holds(never)] == []


@pytest.mark.parametrize(
    "experiment",
    [
        random_labels.EXPERIMENT,
        random_labels.FAR_OVER_CAPACITY,
        rank_and_stability.EXPERIMENT,
        weight_decay.EXPERIMENT,
    ],
    ids=lambda experiment: experiment.name,
)
def test_nothing_holds_where_all_quantities_are_alike(experiment: Experiment) -> None:
    alike = Broken(0.5, smallest_fall=0.0, random_smallest_fall=0.0)
    trivial = {"starts-at-random", "no-alignment-at-the-start"}
    held = {c.name for c in experiment.claims if c.holds(alike)}
    assert held <= trivial
    different = Broken(0.9, random_rank=0.1, chance_alignment=0.1)
    assert not trivial & {c.name for c in experiment.claims if c.holds(different)}


def test_a_landmark_that_does_not_come_is_at_infinity() -> None:
    from latewood.experiments.spectra.modular_addition_runs import IN_PROJ, Curves, landmarks

    ranks = {IN_PROJ: {0: 0.9, 10: 0.8, 20: 0.7, 30: 0.5, 40: 0.3}}
    curves = Curves(
        error={10: 0.99, 20: 0.7, 30: 0.3, 40: 0.005},
        training_error={10: 0.5, 20: 0.0, 30: 0.0, 40: 0.0},
        ranks=ranks,
        largest=dict.fromkeys(ranks[IN_PROJ], 2.0),
        embedding_alignment=dict.fromkeys(ranks[IN_PROJ], 0.1),
    )
    found = landmarks(curves)
    assert (found["by heart at"], found["onset at"], found["grokked at"]) == (20, 30, 40)
    assert (found["plateau"], found["rank, by heart"], found["rank, onset"]) == (0.7, 0.7, 0.5)
    curves.training_error = dict.fromkeys(curves.error, 0.5)
    found = landmarks(curves)
    assert found["by heart at"] == found["onset at"] == found["grokked at"] == math.inf
    assert math.isnan(found["plateau"])
    assert math.isnan(found["rank, grokked"])


def test_the_steep_fall_is_looked_for_around_each_seeds_own_moment() -> None:
    steps = range(0, 40_500, 500)
    onsets = (13_000.0, 21_500.0)
    falls = {f"rank at {step}": [_rank(step, onset) for onset in onsets] for step in steps}
    held_out = {f"error at {step}": [0.7 if step < onset else 0.0 for onset in onsets]
                for step in steps}  # fmt: skip
    both = {"share held out": [0.7, 0.7], "plateau": [0.7, 0.7], "rank, start": [0.9, 0.9]}
    results = Results({**falls, **held_out, **both, "onset at": list(onsets)})
    about = ("rank-falls-before-too", "plateau-is-not-chance", "rank-falls-steeply-with-the-error")
    claims = {claim.name: claim for claim in grokking.PAPER.claims}
    assert all(claims[name].holds(results) for name in about)
    steady = {f"rank at {step}": [0.9 - step / 60_000] * 2 for step in steps}
    even = Results({**results.measurements, **steady})
    assert not claims["rank-falls-steeply-with-the-error"].holds(even)


def _rank(step: int, onset: float) -> float:
    """0.9 falling to 0.5 at once, staying there, then down to 0.3 from 1,000 steps before on."""
    return 0.9 if step < 1000 else max(0.3, 0.5 - 1e-4 * max(0.0, step - onset + 1000))
