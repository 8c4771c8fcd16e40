"""What a channel carries: norms of what makes and reads it, and what is absent comes last."""

import pytest
import torch
from torch import nn

from latewood.core import parameter_groups
from latewood.core.selection import stored_tensor
from latewood.sparsity.structured import StructuredSparsification
from latewood.sparsity.structured.saliency import saliencies


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def build(model, **options):
    return StructuredSparsification(
        model, torch.randn(1, 4), budget={"macs": 0.6}, total_steps=12, steps_per_epoch=3, **options
    )


def scores(method):
    structure = method._structure
    (found,) = saliencies(structure.spec, structure.gates, structure.present)
    return found


def test_a_channels_rows_and_columns_count_the_columns_as_they_are_read():
    model = net()
    method = build(model)
    (gate,) = method._structure.gates
    with torch.no_grad():
        gate.logits.copy_(torch.randn(6))
    made = model[0].weight.square().sum(1)
    read = (stored_tensor(model[2], "weight") * gate.factors()).square().sum(0)
    torch.testing.assert_close(scores(method), (made + read) / (made + read).mean())


def test_what_is_absent_comes_last_by_its_logit():
    model = net()
    method = build(model, seed_width=2)
    optimizer = torch.optim.SGD(parameter_groups(model, [method]), lr=0.1)
    method.restructure(optimizer)
    (gate,) = method._structure.gates
    with torch.no_grad():
        gate.logits[2:] = torch.tensor([1.0, -1.0, 2.0, 0.0])
        for parameter in model.parameters():
            if parameter is not gate.logits:
                parameter.mul_(1e-3)
    found = scores(method)
    assert found[:2].mean() == pytest.approx(1) and found[:2].min() > 0
    assert found[2:].max() < 0
    assert found.argsort(descending=True)[2:].tolist() == [4, 2, 5, 3]


@pytest.mark.parametrize("name", ["resnet20", "lstm", "heads", "concat", "mobilenet"])
def test_every_channel_of_every_kind_of_layer_has_a_score(name, runs):
    run = runs(name, epochs=8)
    for _ in range(2):
        run.epoch()
    structure = run.method._structure
    for found, there in zip(
        saliencies(structure.spec, structure.gates, structure.present),
        structure.present,
        strict=True,
    ):
        assert (found[there] > 0).all() and (found[~there] < 0).all()
        assert found[there].mean() == pytest.approx(1)


def test_the_freeze_keeps_the_channels_of_large_weights():
    kept = {}
    for ranking in ("norms", "logits"):
        model = net()
        method = build(model, ranking=ranking)
        with torch.no_grad():
            model[0].weight[[1, 4]] *= 100.0
            method._structure.gates[0].logits.copy_(torch.tensor([3.0, 0.0, 2.0, 1.0, 0.5, 4.0]))
        large = model[0].weight.abs().max()
        kept[ranking] = method.finalize()[0].weight.abs().max() == large
    assert kept == {"norms": True, "logits": False}
