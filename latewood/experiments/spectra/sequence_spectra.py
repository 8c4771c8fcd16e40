"""The paper's other two tasks in small: a recurrent network on speech, a Transformer on a text.

Ranks, alignment of neighbours and truncation at the strengths of weight decay that the paper shows
for these networks. The cpu scale reads spoken digits and Shakespeare from $LATEWOOD_DATA.
"""

from __future__ import annotations

from itertools import pairwise

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
from latewood.experiments.spectra.sequence_runs import (
    KINDS,
    MIDDLE,
    SequenceRun,
    SequenceSetting,
    sequence_setting,
    train_sequence_model,
)

__all__ = ["EXPERIMENT", "read_curves"]

DECAYS: dict[Scale, tuple[float, ...]] = {"quick": (0.1, 10), "cpu": (0, 0.1, 1, 10)}
SEEDS: dict[Scale, int] = {"quick": 1, "cpu": 2}
PUBLISHED = 0.1
"""The decay of the paper's own runs of both networks."""


def run(scale: Scale, workspace: Workspace) -> Results:
    """Trains both networks once per strength of decay, seed by seed."""
    settings = {network: sequence_setting(network, scale, workspace) for network in KINDS}

    def measure(seed: int) -> dict[str, float]:
        measurements: dict[str, float] = {}
        for network, setting in settings.items():
            for decay in DECAYS[scale]:
                observed = train_sequence_model(
                    setting, decay=decay, seed=seed, workspace=workspace
                )
                ends = _at_the_end(network, observed)
                measurements |= {f"{network} {decay:g} {key}": value for key, value in ends.items()}
                if decay == PUBLISHED:
                    curve = read_curves(network, observed, setting)
                    measurements |= {f"{network} {key}": value for key, value in curve.items()}
        return measurements

    run_settings = {
        "decays": list(DECAYS[scale]),
        "looks": f"at decay {PUBLISHED:g}, every so many steps: "
        + ", ".join(f"{name} {setting.measure_every}" for name, setting in settings.items()),
        "early": {name: f"up to step {setting.early}" for name, setting in settings.items()},
    }
    return replicate(measure, range(SEEDS[scale]), workspace, settings=run_settings)


def _at_the_end(network: str, observed: SequenceRun) -> dict[str, float]:
    last = max(observed.alignments)
    ranks = [ranks[last] for ranks in observed.ranks.values()]
    full, top, bottom = (observed.losses[part] for part in ("full", "top", "bottom"))
    return {
        "rank": sum(ranks) / len(ranks),
        "peak": observed.mean_over_kind(network, MIDDLE[network], last, lambda p: max(p.diagonal)),
        "validation loss": observed.scored["loss"],
        "full loss": full,
        "top loss": top,
        "bottom loss": bottom,
        "gap": (top - full) / full,
    }


def read_curves(network: str, observed: SequenceRun, setting: SequenceSetting) -> dict[str, float]:
    """Alignment scores by kind of pair over one run, and how many matrices lost rank.

    Args:
        network: which of ``KINDS``.
        observed: the run.
        setting: its setting.
    """
    last = max(observed.alignments)
    measurements: dict[str, float] = {}
    curves: dict[str, dict[int, float]] = {}
    for kind in KINDS[network]:
        curves[kind] = {
            step: observed.mean_over_kind(network, kind, step, lambda p: p.score)
            for step in observed.alignments
        }
        measurements[f"start/{kind}"] = curves[kind][0]
        measurements[f"highest/{kind}"] = max(curves[kind].values())
        measurements[f"end/{kind}"] = curves[kind][last]
        measurements[f"random/{kind}"] = observed.mean_over_kind(
            network, kind, 0, lambda p: p.baseline
        )
    mean = {
        step: sum(c[step] for c in curves.values()) / len(curves) for step in observed.alignments
    }
    highest = max(mean, key=lambda step: mean[step])
    measurements |= {
        "start": mean[0],
        "highest": mean[highest],
        "highest at": highest,
        "end": mean[last],
    }
    measurements["early until"] = setting.early
    falls = [ranks[last] < ranks[0] for ranks in observed.ranks.values()]
    return measurements | {"share of falling ranks": sum(falls) / len(falls)}


def _decays(results: Results) -> list[float]:
    return [float(decay) for decay in results.settings["decays"]]


def _row(results: Results, quantity: str, digits: int = 2) -> str:
    return "; ".join(
        f"{network} "
        + ", ".join(
            f"{decay:g}: {results.text(f'{network} {decay:g} {quantity}', digits=digits)}"
            for decay in _decays(results)
        )
        for network in KINDS
    )


def _means(results: Results, network: str, quantity: str) -> list[float]:
    return [results.mean(f"{network} {decay:g} {quantity}") for decay in _decays(results)]


def _falls(values: list[float]) -> bool:
    return all(after < before for before, after in pairwise(values))


def _kinds(results: Results, network: str, quantity: str) -> str:
    return ", ".join(
        f"{kind} {results.mean(f'{network} {quantity}/{kind}'):.2f}" for kind in KINDS[network]
    )


def _rise(results: Results, network: str, kind: str) -> float:
    """How much the alignment of a kind of pairs is above its start where it is highest."""
    return results.difference(f"{network} highest/{kind}", f"{network} start/{kind}")


def _growth(results: Results, network: str) -> float:
    """How much higher the largest alignment is at the strongest decay than without any."""
    peaks = _means(results, network, "peak")
    return peaks[-1] - peaks[0]


EXPERIMENT = register(
    Experiment(
        name="sequence-spectra",
        title="Ranks, alignment and truncation under weight decay: a bidirectional LSTM on spoken "
        "digits, a Transformer on characters",
        paper=SPECTRAL_DYNAMICS,
        run=run,
        scales=("quick", "cpu"),
        claims=(
            Claim(
                "unaligned-at-the-start",
                "At the start no kind of neighbours aligns in either network: the score of their "
                "first ten directions is below twice that of random vectors.",
                "[P] figure 5 (C4); [I] the bound",
                "figure only",
                lambda r: "; ".join(
                    f"{network}: {_kinds(r, network, 'start')}; random: "
                    f"{_kinds(r, network, 'random')}"
                    for network in KINDS
                ),
                lambda r: all(
                    r.mean(f"{network} start/{kind}") < 2 * r.mean(f"{network} random/{kind}")
                    for network, kinds in KINDS.items()
                    for kind in kinds
                ),
            ),
            Claim(
                "alignment-of-the-recurrent-network-is-early",
                "In the LSTM it is clear around the first epoch and then diffuses: the mean score "
                "of all pairs is highest within the first two of twelve epochs, there at least "
                "twice what it was at the start, and lower at the end.",
                "[P] figure 5 (C4); [I] the bounds",
                "figure only",
                lambda r: (
                    f"{r.text('LSTM start')} at the start, highest {r.text('LSTM highest')} at "
                    f"step {r.text('LSTM highest at', digits=0)}, {r.text('LSTM end')} at the end"
                ),
                lambda r: (
                    max(r.values("LSTM highest at")) <= r.mean("LSTM early until")
                    and r.mean("LSTM highest") >= 2 * r.mean("LSTM start")
                    and r.mean("LSTM end") < r.mean("LSTM highest")
                ),
                scales=("cpu",),
            ),
            Claim(
                "clear-only-between-queries-and-keys",
                "In the Transformer it is clear only between queries and keys: of all kinds of "
                "pairs, theirs rises most above its start, by 0.2 or more, and that of the others "
                "by less than 0.2.",
                "[P] figure 5 (C4); [I] the bounds",
                "figure only",
                lambda r: (
                    f"start: {_kinds(r, 'Transformer', 'start')}; highest: "
                    f"{_kinds(r, 'Transformer', 'highest')}; end: "
                    f"{_kinds(r, 'Transformer', 'end')}"
                ),
                lambda r: all(
                    (_rise(r, "Transformer", kind) >= 0.2) == (kind == "query to key")
                    for kind in KINDS["Transformer"]
                ),
                scales=("cpu",),
            ),
            Claim(
                "rank-minimisation",
                "Training with the paper's decay lowers the effective rank of at least nine "
                "tenths of the matrices of both networks.",
                "[P] figure 3 (C2): nearly all matrices of all four tasks",
                "figure only",
                lambda r: "; ".join(
                    f"{n} {r.text(f'{n} share of falling ranks', scale=100, unit='%', digits=0)}"
                    for n in KINDS
                ),
                lambda r: all(min(r.values(f"{n} share of falling ranks")) >= 0.9 for n in KINDS),
                scales=("cpu",),
            ),
            Claim(
                "top-half-suffices",
                "At the end of training with the paper's decay, what the top half of all spectra "
                "lacks in training loss is at most a tenth of what the bottom half lacks.",
                "[P] figure 4 (C3): close to the full network, and not; [I] the bound",
                "figure only",
                lambda r: "; ".join(
                    f"{n} whole {r.text(f'{n} {PUBLISHED:g} full loss')}, top "
                    f"{r.text(f'{n} {PUBLISHED:g} top loss')}, bottom "
                    f"{r.text(f'{n} {PUBLISHED:g} bottom loss')}"
                    for n in KINDS
                ),
                lambda r: all(
                    10 * r.difference(f"{n} {PUBLISHED:g} top loss", f"{n} {PUBLISHED:g} full loss")
                    <= r.difference(
                        f"{n} {PUBLISHED:g} bottom loss", f"{n} {PUBLISHED:g} full loss"
                    )
                    and r.mean(f"{n} {PUBLISHED:g} bottom loss")
                    > r.mean(f"{n} {PUBLISHED:g} full loss")
                    for n in KINDS
                ),
            ),
            Claim(
                "rank-falls-with-decay",
                "More decay leaves the matrices of both networks a lower effective rank, their "
                "mean strictly lower at every strength.",
                "[P] figure 6 (C5): until the norm collapses",
                "figure only",
                lambda r: _row(r, "rank"),
                lambda r: all(_falls(_means(r, network, "rank")) for network in KINDS),
            ),
            Claim(
                "alignment-grows-with-decay",
                "The largest entry of neighbours' alignment (of the LSTM's inputs to inputs, of "
                "the Transformer's two-layer networks) is higher at the strongest decay than "
                "without any, in both networks.",
                "[P] figure 7 (C6)",
                "figure only",
                lambda r: _row(r, "peak"),
                lambda r: all(_growth(r, network) > 0 for network in KINDS),
                scales=("cpu",),
            ),
            Claim(
                "strong-only-in-the-two-layer-network",
                "It is strong only for the Transformer's two-layer network: there it grows by 0.2 "
                "or more, in the LSTM by less than 0.2.",
                "[P] figure 7 (C6); [I] the bounds",
                "figure only",
                lambda r: ", ".join(f"{network} {_growth(r, network):+.2f}" for network in KINDS),
                lambda r: _growth(r, "Transformer") >= 0.2 > _growth(r, "LSTM"),
                scales=("cpu",),
            ),
            Claim(
                "small-values-lose-their-use",
                "More decay closes the relative gap between the training loss of the top half of "
                "the spectra and that of the whole, at every strength, in both networks.",
                "[P] figure 14 (C7)",
                "figure only",
                lambda r: _row(r, "gap", digits=3),
                lambda r: all(_falls(_means(r, network, "gap")) for network in KINDS),
                scales=("cpu",),
            ),
            Claim(
                "performant-with-much-decay",
                "With ten times the paper's decay both networks have a validation loss at most a "
                "tenth above that without any.",
                "[P] figure 14 (C7); [I] the bound",
                "figure only",
                lambda r: _row(r, "validation loss"),
                lambda r: all(
                    r.mean(f"{n} {10 * PUBLISHED:g} validation loss")
                    <= 1.1 * r.mean(f"{n} 0 validation loss")
                    for n in KINDS
                ),
                scales=("cpu",),
            ),
        ),
    )
)
