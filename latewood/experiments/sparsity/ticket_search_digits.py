"""Tickets and pruning in one run on digits: continuous sparsification beside all baselines.

Quick and cpu scale: a multilayer perceptron on scikit-learn's digits, about a second a training.
"""

from __future__ import annotations

from typing import Any

from latewood.experiments.papers import CONTINUOUS_SPARSIFICATION
from latewood.experiments.registry import (
    Claim,
    Experiment,
    Results,
    Scale,
    Workspace,
    register,
    replicate,
)
from latewood.experiments.sparsity.ticket_runs import at_density, search
from latewood.studies.tickets import TicketTable
from latewood.training.recipe import Recipe, parse_recipe

__all__ = ["EXPERIMENT", "digits_recipe"]

EPOCHS = {"quick": 16, "cpu": 40}
SEEDS = {"quick": 1, "cpu": 3}
MATCHED = {
    "quick": ("shuffled", "magnitude"),
    "cpu": ("shuffled", "magnitude", "one_shot", "gradual"),
}
ITERATIONS = 20


def run(scale: Scale, workspace: Workspace) -> Results:
    """Measures tickets and baselines with the same seeds, data order and epochs."""
    iterative = ("iterative",) if scale == "cpu" else ()

    recipe = digits_recipe(EPOCHS[scale])

    def search_seed(name: str, seed: int, **settings: Any) -> TicketTable:
        return search(workspace, name, recipe, seed, again=True, exclude=(), **settings)

    def measure(seed: int) -> dict[str, float]:
        table = search_seed(
            "one-round",
            seed,
            initial_logits=(-0.1,),
            baselines=(*MATCHED[scale], *iterative, "supermask"),
            iterations=ITERATIONS,
        )
        rounds = search_seed("two-rounds", seed, initial_logits=(-0.05,), rounds=2)
        measurements = _one_round(table) | _two_rounds(rounds)
        if scale == "quick":
            return measurements
        formula = search_seed(
            "unscaled",
            seed,
            initial_logits=(-0.1,),
            baselines=("shuffled", "supermask"),
            method={"scale": "none"},
        )
        return measurements | _unscaled(formula)

    settings = {
        "epochs of each training": EPOCHS[scale],
        "rounds of iterative magnitude pruning": ITERATIONS if iterative else 0,
        "rewinding": "to epoch 2",
    }
    return replicate(measure, range(SEEDS[scale]), workspace, title="seeds", settings=settings)


def _one_round(table: TicketTable) -> dict[str, float]:
    rows = {row["method"]: row for row in table.rows}
    last = max(
        (row for row in table.rows if row["method"] == "iterative"),
        key=lambda row: row["round"],
        default=None,
    )
    measurements = {
        name: row["accuracy"]
        for name, row in rows.items()
        if name not in ("iterative", "supermask", "hard")
    }
    measurements |= {
        "density": rows["ticket"]["density"],
        "soft": rows["hard"]["soft"],
        "hard": rows["hard"]["hard"],
        "supermask": rows["supermask"]["accuracy"],
        "supermask density": rows["supermask"]["density"],
    }
    if last is not None:
        measurements |= {
            "iterative": last["accuracy"],
            "iterative density": last["density"],
            "iterative over ticket epochs": last["search_epochs"] / rows["ticket"]["search_epochs"],
            "iterative over ticket seconds": (
                last["search_seconds"] / rows["ticket"]["search_seconds"]
            ),
        }
    return measurements


def _two_rounds(table: TicketTable) -> dict[str, float]:
    rows: dict[Any, dict[str, Any]] = {
        row["round"]: row for row in table.rows if row["method"] == "ticket"
    }
    return {
        "first round density": rows[1]["density"],
        "second round density": rows[2]["density"],
        "second round": rows[2]["accuracy"],
    }


def _unscaled(table: TicketTable) -> dict[str, float]:
    rows = {row["method"]: row for row in table.rows}
    measurements = {
        f"unscaled {name}": rows[name]["accuracy"]
        for name in ("ticket", "hard", "shuffled", "supermask")
    }
    return measurements | {
        "unscaled density": rows["ticket"]["density"],
        "unscaled supermask density": rows["supermask"]["density"],
    }


def digits_recipe(epochs: int) -> Recipe:
    """One training of the perceptron on digits, as all searches on it have it."""
    return parse_recipe(
        {
            "task": "digits",
            "model": {"name": "mlp", "hidden": [256, 128], "init": "kaiming_normal"},
            "optimizer": {
                "name": "sgd",
                "lr": 0.05,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 1e-4,
            },
            "schedule": {"name": "step_decay", "milestones": [0.66, 0.84], "per": "epoch"},
            "epochs": epochs,
            "batch_size": 64,
            "drop_last": True,
            "device": "cpu",
        }
    )


_EARLIER = "an earlier measurement in the same setting, mean ± standard deviation"

EXPERIMENT = register(
    Experiment(
        name="ticket-search",
        title="Continuous sparsification against every baseline, tickets and in one run, on digits",
        paper=CONTINUOUS_SPARSIFICATION,
        run=run,
        scales=("quick", "cpu"),
        claims=(
            Claim(
                "density",
                "One round with initial logit -0.1 keeps between 0.9 % and 2 % of the weights.",
                f"[V] {_EARLIER}",
                "density 0.0131 ± 0.0006",
                lambda r: r.text("density", digits=4),
                lambda r: 0.009 <= r.mean("density") <= 0.020,
            ),
            Claim(
                "pruning-in-one-run",
                "The network with the hard mask, without a second training, is within 2 points of "
                "dense.",
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
                "The ticket of one round, rewound and trained, is within 2 points of dense.",
                f"[V] {_EARLIER}",
                "97.70 ± 0.34 %, dense 98.00 ± 0.40 %",
                lambda r: at_density(r, "dense", "ticket"),
                lambda r: r.difference("dense", "ticket") <= 0.02,
            ),
            Claim(
                "ticket-against-one-round-of-magnitude",
                "At equal density and search epochs it beats one round of magnitude pruning by "
                "50 points.",
                f"[R] the paper finds tickets in 1 to 5 rounds, IMP in 10 to 30; [V] {_EARLIER}",
                "14.1 ± 4.2 %",
                lambda r: at_density(r, "ticket", "magnitude"),
                lambda r: r.difference("ticket", "magnitude") >= 0.5,
            ),
            Claim(
                "ticket-against-shuffled",
                "It beats the same counts per layer at random places by 15 points.",
                f"[V] {_EARLIER}",
                "50.0 ± 11.7 %",
                lambda r: at_density(r, "ticket", "shuffled"),
                lambda r: r.difference("ticket", "shuffled") >= 0.15,
            ),
            Claim(
                "ticket-against-one-shot",
                "It beats one-shot magnitude pruning with as long a fine-tuning by 50 points.",
                f"[V] {_EARLIER}",
                "10 to 15 %",
                lambda r: at_density(r, "ticket", "one_shot"),
                lambda r: r.difference("ticket", "one_shot") >= 0.5,
                scales=("cpu",),
            ),
            Claim(
                "ticket-against-gradual",
                "At equal density it is at least 1 point above gradual magnitude pruning, which "
                "needs no second training.",
                f"[V] {_EARLIER}",
                "95.80 ± 0.49 %",
                lambda r: at_density(r, "ticket", "gradual"),
                lambda r: r.difference("ticket", "gradual") >= 0.01,
                scales=("cpu",),
            ),
            Claim(
                "hard-against-one-shot",
                "At equal density the hard network, without a second training, beats one-shot "
                "magnitude pruning with as many epochs of fine-tuning by 50 points.",
                f"[P] abstract: better than the state of the art in pruning; [V] {_EARLIER}",
                "one shot 10 to 15 %",
                lambda r: at_density(r, "hard", "one_shot"),
                lambda r: r.difference("hard", "one_shot") >= 0.5,
                scales=("cpu",),
            ),
            Claim(
                "hard-against-gradual",
                "At equal density and equal epochs, without any second training, the hard network "
                "is at least 1 point above gradual magnitude pruning.",
                f"[P] abstract: better than the state of the art in pruning; [V] {_EARLIER}",
                "97.19 ± 0.44 % against 95.80 ± 0.49 %",
                lambda r: at_density(r, "hard", "gradual"),
                lambda r: r.difference("hard", "gradual") >= 0.01,
                scales=("cpu",),
            ),
            Claim(
                "ticket-against-20-rounds",
                "It is at most 0.5 points behind iterative magnitude pruning of 20 % in 20 rounds, "
                "at 1/20 of the search epochs.",
                f"[V] {_EARLIER}",
                "iterative 96.93 ± 0.30 % at density 0.0115",
                lambda r: (
                    f"{at_density(r, 'ticket', 'iterative')} (iterative: "
                    f"{r.text('iterative density', digits=4)}), "
                    f"{r.text('iterative over ticket epochs', unit='times the epochs', digits=0)}"
                ),
                lambda r: (
                    r.difference("ticket", "iterative") >= -0.005
                    and r.mean("iterative over ticket epochs") >= 20
                ),
                scales=("cpu",),
            ),
            Claim(
                "faster-in-seconds",
                "Its search takes at most a tenth of the seconds of these 20 rounds.",
                "[P] abstract: faster ticket search",
                "figure only",
                lambda r: r.text("iterative over ticket seconds", unit="times faster", digits=1),
                lambda r: r.mean("iterative over ticket seconds") >= 10,
                scales=("cpu",),
            ),
            Claim(
                "rounds-are-sparser",
                "A second round, with initial logit -0.05, ends with fewer weights than the first.",
                "[R] sequential search: one ticket a round, each sparser",
                "density 0.0101 ± 0.0021 after two rounds, ticket 96.67 ± 0.37 %",
                lambda r: (
                    f"density {r.text('first round density', digits=4)}, then "
                    f"{r.text('second round density', digits=4)}, ticket "
                    f"{r.text('second round', scale=100, unit='%')}"
                ),
                lambda r: r.difference("first round density", "second round density") > 0,
            ),
            Claim(
                "supermask",
                "On weights frozen at their random initial values, a learned mask alone reaches "
                "94 %; without a mask the network knows nothing (at most 25 %).",
                f"[V] {_EARLIER}",
                "97.0 to 97.6 % at density 0.51, untrained 9 to 11 %",
                lambda r: (
                    f"supermask {r.text('supermask', scale=100, unit='%')} at density "
                    f"{r.text('supermask density')}, untrained "
                    f"{r.text('untrained', scale=100, unit='%')}"
                ),
                lambda r: r.mean("supermask") >= 0.94 and r.mean("untrained") <= 0.25,
            ),
            Claim(
                "both-scalings",
                "Without the scale of the authors' code (the formula alone, every weight halved at "
                "first) the ticket is within 2 points of dense too, 15 points above random places "
                "at its density, and denser than with the scale.",
                f"[C] the scale is in the code; [V] {_EARLIER}",
                "density 0.0197 without, 0.0131 with the scale",
                lambda r: (
                    f"ticket {r.text('unscaled ticket', scale=100, unit='%')}, random places "
                    f"{r.text('unscaled shuffled', scale=100, unit='%')}, density "
                    f"{r.text('unscaled density', digits=4)} without, "
                    f"{r.text('density', digits=4)} with"
                ),
                lambda r: (
                    r.difference("dense", "unscaled ticket") <= 0.02
                    and r.difference("unscaled ticket", "unscaled shuffled") >= 0.15
                    and r.mean("unscaled density") > r.mean("density")
                ),
                scales=("cpu",),
            ),
            Claim(
                "supermask-without-scale",
                "A supermask reaches 94 % without the scale too.",
                "[I] the formula alone, on frozen weights",
                "none (ours)",
                lambda r: (
                    f"supermask {r.text('unscaled supermask', scale=100, unit='%')} at density "
                    f"{r.text('unscaled supermask density')}"
                ),
                lambda r: r.mean("unscaled supermask") >= 0.94,
                scales=("cpu",),
            ),
        ),
    )
)
