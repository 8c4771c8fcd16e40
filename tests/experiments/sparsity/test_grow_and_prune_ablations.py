"""The ablations: what each leaves out, sizes at the quick scale, and claims that can fail."""

from __future__ import annotations

import pytest
import torch

from latewood.core import parameter_groups
from latewood.experiments import Results, Workspace
from latewood.experiments.flop_counted_training import build
from latewood.experiments.sparsity import grow_and_prune_ablations as experiment
from latewood.experiments.sparsity import growth_tasks

EXPERIMENTS = (experiment.TEMPERATURES, experiment.REPAIRS)


@pytest.mark.parametrize("chosen", EXPERIMENTS, ids=lambda each: each.name)
def test_claims_of_the_quick_scale_hold(chosen, tmp_path, monkeypatch):
    monkeypatch.setitem(experiment.EPOCHS, "quick", 3)
    results = chosen.run("quick", Workspace(tmp_path))
    quick = [claim for claim in chosen.claims if "quick" in claim.scales]
    assert [(c.name, c.measured(results)) for c in quick if not c.holds(results)] == []
    assert all(claim.measured(results) for claim in chosen.claims)


def test_without_sampling_there_is_what_has_a_logit_above_zero():
    setting = growth_tasks.images(epochs=4)
    model = build(setting, 0)
    method = experiment.Thresholded(
        model, setting.task.example_inputs, budget={"parameters": 0.5}, preset="paper",
        total_steps=4, steps_per_epoch=1,
    )  # fmt: skip
    optimizer = torch.optim.SGD(parameter_groups(model, [method]), lr=0.1, momentum=0.9)
    method.restructure(optimizer)
    method.step()
    (group,) = method.parameter_groups()
    with torch.no_grad():
        for logits in group["params"]:
            logits[:7] = 0.1
            logits[7:] = -0.1
    before = [logits.detach().clone() for logits in group["params"]]
    assert method.restructure(optimizer)
    assert [conv.weight.shape[0] for conv in (model.conv1, model.conv2, model.conv3)] == [7, 7, 7]
    assert all(torch.equal(a, b) for a, b in zip(before, group["params"], strict=True))
    assert len(method.shares) == 2 and method.shares[0] < method.shares[1] < 0.5


def test_every_claim_can_fail():
    broken = Results({
        "per structure off": [0.2, 0.2, 0.2], "per structure last share": [0.3] * 3,
        "global off": [0.0, 0.0, 0.2], "global last share": [0.5] * 3,
        "per structure largest share": [0.9] * 3, "no sampling largest share": [0.6] * 3,
        "recommended last share": [0.15] * 3, "recommended accuracy": [0.9] * 3,
        "without freeze accuracy": [0.9] * 3, "without freeze recalibrated": [0.8] * 3,
        "plain recalibrated": [0.95] * 3, "straight-through accuracy": [0.5] * 3,
    })  # fmt: skip
    for chosen in EXPERIMENTS:
        assert [claim.name for claim in chosen.claims if claim.holds(broken)] == []
