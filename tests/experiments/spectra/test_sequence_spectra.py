"""Spectra of sequence models: pairs by kind, what is read on the way, claims that can fail."""

from __future__ import annotations

import math

import pytest

from latewood.experiments import Results, Workspace
from latewood.experiments.spectra import sequence_spectra
from latewood.experiments.spectra.sequence_runs import (
    KINDS,
    SequenceRun,
    SequenceSetting,
    kind_of,
    sequence_setting,
)
from latewood.models import lstm_classifier, transformer
from latewood.spectra import PairAlignment, infer_pairs


def test_every_claim_of_the_quick_scale_holds(tmp_path) -> None:
    results = sequence_spectra.EXPERIMENT.run("quick", Workspace(tmp_path))
    claims = [claim for claim in sequence_spectra.EXPERIMENT.claims if "quick" in claim.scales]
    assert len(claims) == 3
    assert [(c.name, c.measured(results)) for c in claims if not c.holds(results)] == []


def test_every_pair_of_both_networks_has_its_kind() -> None:
    recurrent = lstm_classifier(features=4, hidden=4, layers=4, bidirectional=True)
    pairs = [kind_of(pair.name) for pair in infer_pairs(recurrent)]
    wanted = KINDS["LSTM"]
    # Three layers of two directions read the layer below; the head is of another kind.
    assert {kind: pairs.count(wanted[kind]) for kind in wanted} == dict.fromkeys(wanted, 6)
    assert len(pairs) == 18 + 4
    attending = transformer(vocabulary=7, width=8, heads=2, layers=3)
    pairs = [kind_of(pair.name) for pair in infer_pairs(attending)]
    counts = {kind: pairs.count(name) for kind, name in KINDS["Transformer"].items()}
    assert counts == dict.fromkeys(counts, 3) | {"second to attention": 2}


def test_what_is_read_on_the_way() -> None:
    def look(score: float) -> dict[str, PairAlignment]:
        pair = PairAlignment((score, 2 * score), score, 0.1)
        names = ["weight_ih_l0->lstm.weight_ih_l1", "weight_hh_l0->lstm.weight_ih_l1"]
        below = {f"lstm.{name}": pair for name in [*names, "weight_ih_l0->lstm.weight_hh_l0"]}
        # Another direction with three times the score; its mean with the first is twice it.
        back = {
            name.replace("_l0", "_l0_reverse").replace("_l1", "_l1_reverse") + "[backward]": (
                PairAlignment((3 * score,), 3 * score, 0.1)
            )
            for name in below
        }
        return below | back | {"lstm.weight_ih_l1->head.weight": PairAlignment((9.0,), 9.0, 0.1)}

    seen = SequenceRun(
        ranks={"one": {0: 0.9, 10: 0.95, 20: 0.8}, "two": {0: 0.5, 10: 0.4, 20: 0.6}},
        alignments={0: look(0.1), 10: look(0.4), 20: look(0.2)},
    )
    chosen = SequenceSetting({}, task=None, measure_every=10, early=10)  # type: ignore[arg-type]
    found = sequence_spectra.read_curves("LSTM", seen, chosen)
    assert found["start/input to state"] == pytest.approx(0.2)
    assert (found["highest at"], found["early until"]) == (10, 10)
    assert [found[key] for key in ("start", "highest", "end")] == pytest.approx([0.2, 0.8, 0.4])
    assert found["share of falling ranks"] == 0.5
    assert seen.mean_over_kind("LSTM", "input to input", 20, lambda p: max(p.diagonal)) == (
        pytest.approx((0.4 + 0.6) / 2)
    )


def test_the_quick_scale_reads_what_comes_with_python(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LATEWOOD_DATA", str(tmp_path / "none"))
    chosen = sequence_setting("Transformer", "quick", Workspace(tmp_path))
    assert chosen.task.name == "shakespeare"
    assert len(chosen.task.train) > 120 * 16


def test_every_claim_can_fail() -> None:
    broken: dict[str, list[float]] = {}
    for network, kinds in KINDS.items():
        for decay in ("0", "0.1", "1", "10"):
            same = {"rank": 0.5, "peak": 0.5, "gap": 0.1, "validation loss": 1.0 + float(decay)}
            same |= {"full loss": 1.0, "top loss": 2.0, "bottom loss": 2.0}
            broken |= {f"{network} {decay} {key}": [value] for key, value in same.items()}
        for kind in kinds:
            values = {"start": 0.5, "highest": 0.9, "end": 0.9, "random": 0.1}
            broken |= {f"{network} {key}/{kind}": [value] for key, value in values.items()}
        way = {"start": 0.5, "highest": 0.9, "end": 0.9, "highest at": 20, "early until": 10}
        way["share of falling ranks"] = 0.5
        broken |= {f"{network} {key}": [value] for key, value in way.items()}
    results = Results(broken, {"decays": [0, 0.1, 1, 10]})
    claims = sequence_spectra.EXPERIMENT.claims
    assert [claim.name for claim in claims if claim.holds(results)] == []
    assert all(claim.measured(results) for claim in claims)
    unread = Results({name: [math.nan] for name in broken}, results.settings)
    assert [claim.name for claim in claims if claim.holds(unread)] == []
