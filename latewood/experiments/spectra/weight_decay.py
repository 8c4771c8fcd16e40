"""Weight decay: how it lowers ranks, and what is left for the small singular values to do.

Perceptrons on digits at several strengths of decay, by AdamW (decoupled) and by SGD (coupled, so
that the coefficients of both cannot be compared).

An earlier measurement in the same setting had .42 where the middle matrix has .68 without decay.
It had looked after the truncation: its figures are those of the top half of the spectrum over the
whole matrix's number of singular values, at all nine strengths, and are measured here besides.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
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
from latewood.experiments.spectra.digits_setting import Digits, fit_part, load, network, scores
from latewood.spectra import (
    effective_rank,
    model_alignment,
    singular_values,
    truncation_scores,
    weight_matrices,
)

__all__ = ["EXPERIMENT"]

ADAMW: dict[Scale, tuple[float, ...]] = {"quick": (0.0, 0.1, 1.0, 10.0), "cpu": (0, 0.1, 1, 3, 10)}
SGD: dict[Scale, tuple[float, ...]] = {"quick": (0.0, 1e-2), "cpu": (0, 1e-4, 1e-3, 1e-2)}
EPOCHS: dict[Scale, int] = {"quick": 20, "cpu": 60}
SEEDS: dict[Scale, int] = {"quick": 1, "cpu": 3}
BATCH_SIZE = 64
MIDDLE = "linear2.weight"
MIDDLE_PAIR = "linear2.weight->linear3.weight"
# Beyond this AdamW's network is no longer performant.
PERFORMANT = 3.0


def run(scale: Scale, workspace: Workspace) -> Results:
    """Trains one network per strength of decay and optimizer, seed by seed."""
    data = load()

    def measure(seed: int) -> dict[str, float]:
        measurements: dict[str, float] = {}
        for name, decays in (("AdamW", ADAMW[scale]), ("SGD", SGD[scale])):
            for decay in decays:
                model = network(seed=seed)
                fit_part(
                    model,
                    data,
                    _optimizer(name, model, decay),
                    epochs=EPOCHS[scale],
                    batch_size=BATCH_SIZE,
                    seed=seed,
                )
                scored = _spectrum_scores(model, data)
                measurements |= {f"{name} {decay:g} {key}": value for key, value in scored.items()}
        return measurements

    settings = {"epochs": EPOCHS[scale], "AdamW": list(ADAMW[scale]), "SGD": list(SGD[scale])}
    return replicate(measure, range(SEEDS[scale]), workspace, settings=settings)


def _optimizer(name: str, model: nn.Module, decay: float) -> torch.optim.Optimizer:
    if name == "AdamW":
        return torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=decay)
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=decay)


def _spectrum_scores(model: nn.Module, data: Digits) -> dict[str, float]:
    losses = truncation_scores(model, lambda part: scores(part, data.train))
    full, top = losses["full"]["loss"], losses["top"]["loss"]
    values = singular_values(weight_matrices(model)[MIDDLE])
    half = torch.where(torch.arange(len(values)) < math.ceil(len(values) / 2), values, 0.0)
    return {
        "rank": effective_rank(values).item(),
        "rank of the top half": effective_rank(half).item(),
        "accuracy": 1.0 - scores(model, data.validation)["error"],
        "gap": (top - full) / full,
        "alignment": model_alignment(model)[MIDDLE_PAIR].diagonal.max().item(),
    }


def _decays(results: Results, name: str) -> list[float]:
    return [float(decay) for decay in results.settings[name]]


def _row(results: Results, name: str, quantity: str, digits: int = 3) -> str:
    parts = (
        f"{decay:g}: {results.text(f'{name} {decay:g} {quantity}', digits=digits)}"
        for decay in _decays(results, name)
    )
    return f"{name} {', '.join(parts)}"


def _means(results: Results, name: str, quantity: str, least: float = 0.0) -> list[float]:
    return [
        results.mean(f"{name} {decay:g} {quantity}")
        for decay in _decays(results, name)
        if decay >= least
    ]


# What was measured earlier, by optimizer and strength, before it was known to be of the top half.
_EARLIER: dict[str, dict[float, float]] = {
    "AdamW": {0: 0.42, 0.1: 0.40, 1: 0.18, 3: 0.105, 10: 0.066},
    "SGD": {0: 0.45, 1e-4: 0.45, 1e-3: 0.41, 1e-2: 0.08},
}


def _falls(values: list[float]) -> bool:
    return all(after < before for before, after in pairwise(values))


EXPERIMENT = register(
    Experiment(
        name="weight-decay",
        title="Rank, truncation and alignment under weight decay, on digits",
        paper=SPECTRAL_DYNAMICS,
        run=run,
        scales=("quick", "cpu"),
        claims=(
            Claim(
                "rank-falls-with-decay",
                "From a decay of 0.1 on, more of it by AdamW leaves the middle matrix a strictly "
                "lower effective rank.",
                "[P] figure 6 (C5)",
                "figure only",
                lambda r: _row(r, "AdamW", "rank"),
                lambda r: _falls(_means(r, "AdamW", "rank", least=0.1)),
            ),
            Claim(
                "rank-falls-with-coupled-decay",
                "The same by SGD, whose decay is coupled: the strongest leaves less than half the "
                "rank of none.",
                "[P] figure 6 (C5)",
                "figure only",
                lambda r: _row(r, "SGD", "rank"),
                lambda r: _means(r, "SGD", "rank")[-1] < 0.5 * _means(r, "SGD", "rank")[0],
            ),
            Claim(
                "earlier-ranks-are-of-the-top-half",
                "The ranks of an earlier measurement in this setting, which are lower, are those "
                "of the middle matrix after its truncation to the top half, over the whole "
                "matrix's number of singular values: the same within 0.02 at every strength.",
                "[M] AdamW .42, .40, .18, .105, .066 for 0, .1, 1, 3, 10; SGD .45, .45, .41, .08 "
                "for 0, 1e-4, 1e-3, 1e-2; [D] from this agreement",
                "not in the paper",
                lambda r: (
                    f"{_row(r, 'AdamW', 'rank of the top half')}; "
                    f"{_row(r, 'SGD', 'rank of the top half')}"
                ),
                lambda r: all(
                    abs(r.mean(f"{name} {decay:g} rank of the top half") - rank) <= 0.02
                    for name, ranks in _EARLIER.items()
                    for decay, rank in ranks.items()
                ),
                scales=("cpu",),
            ),
            Claim(
                "small-values-lose-their-use",
                "More decay by AdamW closes the relative gap between the training loss of the "
                "top half of the spectra and that of the whole, at every strength.",
                "[P] figure 14 (C7); [M] 1, .5, .01, .001, 0",
                "figure only",
                lambda r: _row(r, "AdamW", "gap"),
                lambda r: _falls(_means(r, "AdamW", "gap")),
            ),
            Claim(
                "performant-at-low-rank",
                "At a decay with which the middle matrix has lost two thirds of its rank, the "
                "validation accuracy is at most 3 points below that without decay.",
                "[P] figure 14 (C7); [M] .966 at decay 3, .89 at 10",
                "figure only",
                lambda r: _row(r, "AdamW", "accuracy"),
                lambda r: (
                    r.mean(f"AdamW {PERFORMANT:g} rank") < r.mean("AdamW 0 rank") / 3
                    and r.difference("AdamW 0 accuracy", f"AdamW {PERFORMANT:g} accuracy") <= 0.03
                ),
                scales=("cpu",),
            ),
            Claim(
                "alignment-grows-with-decay",
                "The largest entry of the middle neighbours' alignment is higher at the strongest "
                "decay than without any, by AdamW and by SGD.",
                "[P] figure 7 (C6), strong only for the Transformer's two-layer network, which "
                "this scale does not train",
                "figure only",
                lambda r: f"{_row(r, 'AdamW', 'alignment')}; {_row(r, 'SGD', 'alignment')}",
                lambda r: all(
                    _means(r, name, "alignment")[-1] > _means(r, name, "alignment")[0]
                    for name in ("AdamW", "SGD")
                ),
                scales=("cpu",),
            ),
        ),
    )
)
