"""Connectivity and tickets: the quick claims hold, each claim can fail, trunks are cut cleanly."""

from __future__ import annotations

import pytest
import torch

from latewood.experiments import Results, Workspace
from latewood.experiments.spectra import mode_connectivity, ticket_directions
from latewood.experiments.spectra.branched_training import BranchedTraining


@pytest.mark.parametrize(("experiment", "count"), [(mode_connectivity, 6), (ticket_directions, 4)])
def test_every_claim_of_the_quick_scale_holds(experiment, count, tmp_path) -> None:
    results = experiment.run("quick", Workspace(tmp_path))
    claims = [claim for claim in experiment.EXPERIMENT.claims if "quick" in claim.scales]
    assert len(claims) == count
    assert [(c.name, c.measured(results)) for c in claims if not c.holds(results)] == []


def test_every_claim_of_connectivity_can_fail() -> None:
    # As if branches ended anywhere, and strangers and perturbed branches in one place.
    broken = Results(
        {
            "rank correlation": [-0.9, 0.1],
            "barrier/0": [0.0, 0.0],
            "barrier/5": [0.1, 0.1],
            "barrier/10": [0.0, 1.0],
            "top barrier/10": [0.5, 1.0],
            "agreement/0": [0.4, 0.4],
            "agreement/5": [0.7, 0.7],
            "agreement/10": [0.9, 0.1],
            "strangers, lowest barrier": [1.0, 0.0],
            "strangers, highest agreement": [0.0, 0.9],
            "strangers, barrier": [1.0, 1.0],
            "strangers, permuted barrier": [0.1, 0.9],
            **{f"perturbed barrier/{s}": [0.1, 0.1] for s in ("0", "0.25", "2.5")},
            **{f"perturbed agreement/{s}": [0.5, 0.5] for s in ("0", "0.25", "2.5")},
        }
    )
    claims = mode_connectivity.EXPERIMENT.claims
    assert [claim.name for claim in claims if claim.holds(broken)] == []
    assert all(claim.measured(broken) for claim in claims)


def test_the_curves_of_figure_11_are_means_over_trunks() -> None:
    claims = {claim.name: claim for claim in mode_connectivity.EXPERIMENT.claims}
    rank, connected = claims["barrier-falls-as-agreement-rises"], claims["connected-after-a-third"]
    # Neither trunk falls steadily; their mean does.
    uneven = Results(
        {
            "rank correlation": [-0.8, -0.8],
            "barrier/0": [0.5, 0.3],
            "barrier/1": [0.2, 0.4],
            "barrier/5": [0.3, 0.1],
            "barrier/10": [0.0012, 0.0004],
            "agreement/0": [0.1, 0.1],
            "agreement/1": [0.2, 0.2],
            "agreement/5": [0.3, 0.3],
            "agreement/10": [0.84, 0.92],
        }
    )
    assert rank.holds(uneven)
    assert rank.measured(uneven).startswith("-1.00; by trunk -0.80, -0.80;")
    assert connected.holds(uneven)
    assert "by trunk 0.00120, 0.00040" in connected.measured(uneven)
    assert "by trunk 0.84, 0.92" in connected.measured(uneven)
    with pytest.raises(KeyError, match="rank"):
        rank.holds(Results({"barrier/0": [1.0], "agreement/0": [1.0]}))


def test_every_claim_of_tickets_can_fail() -> None:
    broken = Results(
        {
            f"{kind} {kept} {quantity}": [0.5]
            for kind in ("largest", "random", "redrawn")
            for kept in ("0.05", "0.2")
            for quantity in ("loss", "mask/1", "mask/2", "way/1", "way/2")
        }
    )
    claims = ticket_directions.EXPERIMENT.claims
    assert [claim.name for claim in claims if claim.holds(broken)] == []
    assert "random 0.05: 0.500 0.500" in claims[0].measured(broken)


def test_a_branch_in_the_trunks_own_order_is_the_trunk() -> None:
    cut = BranchedTraining((28, 29.5))
    early, late = (cut.end(0, split, 0) for split in cut.splits)
    other = cut.end(0, 28, 1)
    assert all(torch.equal(early[name], late[name]) for name in early)
    assert not all(torch.equal(early[name], other[name]) for name in early)
