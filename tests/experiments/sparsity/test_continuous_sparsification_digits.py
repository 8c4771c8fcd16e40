"""The experiment on digits: its small parts exactly, and all claims of the quick scale."""

from __future__ import annotations

import pytest
import torch

from latewood.experiments import Bench, Results
from latewood.experiments.sparsity import continuous_sparsification_digits as experiment


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return experiment.run("quick", Bench(tmp_path_factory.mktemp("bench")))


def test_every_claim_of_the_quick_scale_holds(results: Results) -> None:
    claims = [claim for claim in experiment.EXPERIMENT.claims if "quick" in claim.scales]
    assert len(claims) >= 7
    failed = [(c.name, c.measured(results)) for c in claims if not c.holds(results)]
    assert failed == []


def test_every_claim_can_fail() -> None:
    # As if pruning had destroyed the network while every baseline had done well.
    names = ("dense", "soft", "random", "imp 1", "one shot", "imp 20")
    broken = Results(
        {"hard": [0.1], "ticket": [0.1], "density": [0.5], **{n: [0.9] for n in names}}
    )
    assert [c.name for c in experiment.EXPERIMENT.claims if c.holds(broken)] == []


def test_largest_weights_are_kept_over_all_layers() -> None:
    weights = {"a": torch.tensor([[0.5, -0.1], [0.3, 0.2]]), "b": torch.tensor([[-0.4, 0.05]])}
    masks = experiment._largest(weights, 3)
    assert masks["a"].tolist() == [[True, False], [True, False]]
    assert masks["b"].tolist() == [[True, False]]


def test_shuffled_masks_keep_the_counts_of_each_layer() -> None:
    masks = {"a": torch.arange(50).view(5, 10) < 7, "b": torch.arange(20).view(4, 5) < 19}
    shuffled = experiment._shuffled(masks, 0)
    assert {name: int(mask.sum()) for name, mask in shuffled.items()} == {"a": 7, "b": 19}
    assert not torch.equal(shuffled["a"], masks["a"])


def test_masked_training_never_revives_a_weight() -> None:
    data = experiment._digits()
    trial = experiment._Trial(data, 0, 3)
    model = experiment._mlp(0)
    masks = experiment._largest(experiment._weights(model), 500)
    trained = experiment._retrain(trial, model.state_dict(), masks)
    weights = experiment._weights(trained)
    assert all(bool((weights[name][~mask] == 0).all()) for name, mask in masks.items())
    assert sum(int((weight != 0).sum()) for weight in weights.values()) == 500


def test_plain_state_of_a_masked_model_loads_into_a_plain_one() -> None:
    trial = experiment._Trial(experiment._digits(), 0, 3)
    trained = experiment._train(trial, experiment._mlp(0), sparsify=True)
    experiment._mlp(1).load_state_dict(trained.rewind)
    assert trained.masks.keys() == experiment._weights(trained.model).keys()
