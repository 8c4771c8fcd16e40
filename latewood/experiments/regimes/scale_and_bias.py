"""Which solution gradient flow finds by the scale of its start: depth, shape, width, completion.

Limits are exact, so the scales differ in their numbers of seeds and of starts alone; and in how
well the observed entries of a completion are fitted, which takes most of the time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latewood.experiments.registry import (
    Claim,
    Experiment,
    Results,
    Scale,
    Workspace,
    register,
    replicate,
)
from latewood.regimes import limit, matrix_completion, minimum_l1, minimum_l2

__all__ = ["SCALE_AND_BIAS"]

SEEDS: dict[Scale, int] = {"quick": 1, "cpu": 3}
FEATURES, NONZERO, EXAMPLES, NOISE = 1000, 5, 100, 0.1
SMALL, LARGE = 3e-4, 0.508
THRESHOLD = 0.025
DEPTHS = (2.0, 3.0, 5.0)
STARTS: dict[Scale, int] = {"quick": 7, "cpu": 17}
RATIOS = (0.01, 0.1, 1.0, 10.0)
WIDTHS = (10, 1000)
MISFITS: dict[Scale, float] = {"quick": 1e-2, "cpu": 1e-4}


def run(scale: Scale, workspace: Workspace) -> Results:
    """Solves the sparse regression and the completions, and looks at two features."""

    def measure(seed: int) -> dict[str, float]:
        return _regression(seed, STARTS[scale]) | _completion(seed, MISFITS[scale])

    results = replicate(measure, range(SEEDS[scale]), workspace)
    settings = {"features": FEATURES, "non-zeros": NONZERO, "examples": EXAMPLES}
    exact = {name: [value] for name, value in _two_features().items()}
    return Results({**results.measurements, **exact}, {**results.settings, **settings})


def _regression(seed: int, starts: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    planted = torch.zeros(FEATURES, dtype=torch.float64)
    planted[:NONZERO] = NONZERO**-0.5
    inputs = torch.randn(EXAMPLES, FEATURES, generator=generator, dtype=torch.float64)
    noise = torch.randn(EXAMPLES, generator=generator, dtype=torch.float64)
    targets = inputs @ planted + NOISE * noise

    def error(beta: Tensor) -> Tensor:
        return (beta - planted).square().sum(-1)

    ends = error(limit(inputs, targets, alpha=[SMALL, LARGE]).beta)
    found = {
        "error, small start": float(ends[0]),
        "error, large start": float(ends[1]),
        "error, least l1": float(error(minimum_l1(inputs, targets))),
        "error, least l2": float(error(minimum_l2(inputs, targets))),
    }
    powers = torch.logspace(-6, -1, starts, dtype=torch.float64)
    for depth in DEPTHS:
        beta = limit(inputs, targets, depth=depth, alpha=powers ** (1 / depth)).beta
        good = error(beta) <= THRESHOLD
        found[f"threshold, depth {depth:g}"] = float(powers[good].max()) if good.any() else 0.0
    return found


def _completion(seed: int, misfit: float) -> dict[str, float]:
    generator = torch.Generator().manual_seed(1000 + seed)
    u, v = torch.randn(2, 10, generator=generator, dtype=torch.float64)
    mask = torch.zeros(100, dtype=torch.bool)
    mask[torch.randperm(100, generator=generator)[:60]] = True
    widths = torch.tensor(WIDTHS, dtype=torch.float64)
    alphas = (torch.tensor(RATIOS, dtype=torch.float64)[:, None] / widths).sqrt()
    done = matrix_completion(
        torch.outer(u, v),
        mask.reshape(10, 10),
        alpha=alphas,
        width=list(WIDTHS),
        seed=seed,
        tolerance=misfit,
    )
    found = {}
    for i, ratio in enumerate(RATIOS):
        for j, width in enumerate(WIDTHS):
            where = f"alpha^2 k {ratio:g}, width {width}"
            found[f"excess, {where}"] = float(done.excess_nuclear_norm[i, j])
            found[f"movement, {where}"] = float(done.movement[i, j])
    return found


def _two_features() -> dict[str, float]:
    inputs, targets = torch.tensor([[1.0, 2.0]]), torch.tensor([1.0])
    shape = torch.tensor([4.0, 1.0])
    shallow = limit(inputs, targets, depth=2.0, alpha=1e-6, shape=shape).beta
    deep = limit(inputs, targets, depth=3.0, alpha=1e-4, shape=shape).beta
    found = {"first weight, depth 2": float(shallow[0]), "first weight, depth 3": float(deep[0])}
    dense = minimum_l2(inputs, targets)
    for depth in (2.0, 3.0, 5.0):
        off = (limit(inputs, targets, depth=depth, alpha=[4.0, 8.0]).beta - dense).norm(dim=1)
        found[f"kernel slope, depth {depth:g}"] = float((off[1] / off[0]).log2())
    excess = limit(inputs, targets, depth=5.0, alpha=[0.02, 0.04]).beta.abs().sum(1) - 0.5
    return found | {"rich slope, depth 5": float((excess[1] / excess[0]).log2())}


def _rich(results: Results) -> bool:
    return all(
        abs(results.mean(f"excess, alpha^2 k 0.01, width {width}")) < 0.1 for width in WIDTHS
    )


def _frozen(results: Results) -> bool:
    moved = [results.mean(f"movement, alpha^2 k {ratio:g}, width 1000") for ratio in RATIOS]
    return moved[3] < 0.1 and moved[3] < 0.2 * moved[0]


SCALE_AND_BIAS = register(
    Experiment(
        name="scale-and-bias",
        title="The scale of the start decides between sparse and dense solutions",
        paper="Woodworth et al. 2020, arXiv:2002.09277",
        run=run,
        scales=("quick", "cpu"),
        claims=(
            Claim(
                "a-small-start-finds-the-sparse-solution",
                "At depth 2 and N = 100, a start of 3e-4 has a population error below 0.03, one of "
                "0.508 above 0.8: that of the least l2 norm.",
                "[P] figure 1; [V] errors of this setting, whose dimension the paper does not say",
                "0.008 to 0.020 and 0.90",
                lambda r: r.texts("error, small start", "error, large start", digits=3),
                lambda r: r.mean("error, small start") < 0.03 < 0.8 < r.mean("error, large start"),
            ),
            Claim(
                "the-ends-are-the-two-norms",
                "These errors are within 0.02 of those of the least l1 and the least l2 norm.",
                "[P] theorem 1",
                "0.007 to 0.011 and 0.90 to 0.91",
                lambda r: r.texts("error, least l1", "error, least l2", digits=3),
                lambda r: (
                    abs(r.difference("error, small start", "error, least l1")) < 0.02
                    and abs(r.difference("error, large start", "error, least l2")) < 0.02
                ),
            ),
            Claim(
                "depth-hastens-the-transition",
                "The largest alpha^D with a population error of at most 0.025 at N = 100 is at "
                "least twice as large at depth 3 as at depth 2, and no smaller at depth 5.",
                "[P] figure 3c",
                "1.0e-4, 9.4e-4, 1.8e-3",
                lambda r: r.texts(*(f"threshold, depth {d:g}" for d in DEPTHS), digits=6),
                lambda r: (
                    r.mean("threshold, depth 3") >= 2 * r.mean("threshold, depth 2")
                    and r.mean("threshold, depth 5") >= r.mean("threshold, depth 3")
                ),
            ),
            Claim(
                "shape-matters-for-deep-small-starts-only",
                "With a start of shape (4, 1) for x = (1, 2), y = 1, a small one ends at (0, 0.5) "
                "at depth 2, as without it, and at (1, 0) at depth 3.",
                "[P] theorem 1 for depth 2; [D] for depth 3",
                "0 and 1",
                lambda r: r.texts("first weight, depth 2", "first weight, depth 3", digits=4),
                lambda r: (
                    abs(r.mean("first weight, depth 2")) < 1e-3
                    and abs(r.mean("first weight, depth 3") - 1) < 1e-3
                ),
            ),
            Claim(
                "large-starts-near-l2-as-a-power",
                "The distance to the least l2 norm falls as alpha^(-2 D), within 0.02 in the "
                "exponent, at depths 2, 3 and 5.",
                "[D] from the potential",
                "-4, -6, -10",
                lambda r: r.texts(*(f"kernel slope, depth {d}" for d in (2, 3, 5)), digits=3),
                lambda r: all(
                    abs(r.mean(f"kernel slope, depth {d}") + 2 * d) < 0.02 for d in (2, 3, 5)
                ),
            ),
            Claim(
                "small-starts-near-l1-as-a-power",
                "At depth 5 the excess of the l1 norm falls as alpha^5, within 0.02.",
                "[P] polynomial for depths above 2; [D] the exponent",
                "5",
                lambda r: r.text("rich slope, depth 5", digits=3),
                lambda r: abs(r.mean("rich slope, depth 5") - 5) < 0.02,
            ),
            Claim(
                "narrow-and-wide-complete-alike-from-small-starts",
                "At alpha^2 k = 0.01 a rank-1 matrix of 10 x 10 is completed with an excess of the "
                "nuclear norm below 0.1, at k = 10 and at k = 1000.",
                "[P] figure 5; [V]",
                "about 0",
                lambda r: r.texts(*(f"excess, alpha^2 k 0.01, width {k}" for k in WIDTHS)),
                _rich,
            ),
            Claim(
                "the-excess-rises-with-alpha^2-k",
                "At both widths the excess at alpha^2 k = 1 is more than ten times that at 0.01, "
                "although at k = 1000 the predictor starts ten times closer to zero.",
                "[P] theorem 4 and figure 5",
                "figure only",
                lambda r: r.texts(*(f"excess, alpha^2 k 1, width {k}" for k in WIDTHS)),
                lambda r: all(
                    r.mean(f"excess, alpha^2 k 1, width {k}")
                    > 10 * abs(r.mean(f"excess, alpha^2 k 0.01, width {k}"))
                    for k in WIDTHS
                ),
            ),
            Claim(
                "large-starts-freeze-what-is-not-observed",
                "At k = 1000 and alpha^2 k = 10 the entries that were not observed move by less "
                "than 0.1, and less than a fifth of what they do at 0.01.",
                "[P] figure 5; [V] below 0.06",
                "about 0",
                lambda r: r.texts(
                    *(f"movement, alpha^2 k {ratio:g}, width 1000" for ratio in RATIOS), digits=3
                ),
                _frozen,
            ),
        ),
    )
)
