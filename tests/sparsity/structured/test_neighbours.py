"""Beside probes, compilers, copies and other optimizers."""

import pytest
import torch
from torch.nn import functional as F

from latewood.core import parameter_groups, recalibrate_batch_norm
from latewood.models import convnet
from latewood.optim import AdaBound, AvaGrad
from latewood.sparsity import StructuredSparsification
from latewood.spectra import SpectralProbe

INPUTS = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 4


def grow(make, *, epochs=8, compiled=False, **options):
    torch.manual_seed(0)
    model = convnet(channels=(8, 12), strides=(1, 2), num_classes=4)
    options = {"growth_logit": -0.5, "logit_lr": 0.5} | options
    method = StructuredSparsification(
        model,
        INPUTS[:1],
        budget={"macs": 0.5},
        total_steps=3 * epochs,
        steps_per_epoch=3,
        **options,
    )
    optimizer = make(parameter_groups(model, [method], weight_decay=1e-3))
    seen = []
    for _ in range(epochs):
        method.restructure(optimizer)
        network = torch.compile(model, backend="eager") if compiled else model
        for _ in range(3):
            loss = F.cross_entropy(network(INPUTS), LABELS) + method.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            method.step()
        seen.append(method.metrics())
    return model, method, seen


@pytest.mark.parametrize(
    "make",
    [
        lambda groups: torch.optim.SGD(groups, lr=0.05),
        lambda groups: torch.optim.Adam(groups, lr=1e-2, amsgrad=True),
        lambda groups: torch.optim.RMSprop(groups, lr=1e-3, momentum=0.9),
        lambda groups: torch.optim.Adagrad(groups, lr=1e-2),
        lambda groups: AvaGrad(groups, lr=0.1),
        lambda groups: AdaBound(groups, lr=1e-3),
    ],
    ids=["sgd", "amsgrad", "rmsprop", "adagrad", "avagrad", "adabound"],
)
def test_any_optimizer_follows_the_shapes(make):
    _, method, seen = grow(make)
    assert len({row["parameters"] for row in seen}) > 2
    assert method.frozen and 0.9 <= seen[-1]["budget/used"] <= 1


def test_a_compiled_network_trains_like_a_plain_one():
    torch.compiler.reset()
    plain, _, rows = grow(lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9))
    other, _, others = grow(
        lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9), compiled=True
    )
    assert rows == others
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_a_probe_sees_the_matrices_of_the_day(tmp_path):
    torch.manual_seed(0)
    model = convnet(channels=(8, 12), strides=(1, 2), num_classes=4)
    probe = SpectralProbe(model, every=1, folder=tmp_path)
    method = StructuredSparsification(
        model, INPUTS[:1], budget={"macs": 0.5}, total_steps=4, steps_per_epoch=1,
        growth_logit=0.0, freeze=1.0,
    )  # fmt: skip
    optimizer = torch.optim.SGD(parameter_groups(model, [method]), lr=0.1, momentum=0.9)
    for step in range(3):
        method.restructure(optimizer)
        (observation,) = probe.observe(step)
        assert "effective_rank/conv2.weight" in observation.values
        F.cross_entropy(model(INPUTS), LABELS).backward()
        optimizer.step()
        method.step()


def test_freezing_at_the_end_wants_new_statistics_and_no_optimizer():
    model, method, seen = grow(
        lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9), preset="paper"
    )
    assert not method.frozen and seen[-1]["undecided"] > 0
    slim = method.finalize()
    assert slim is model and method.frozen
    assert 0.9 <= method.metrics()["budget/used"] <= 1
    assert recalibrate_batch_norm(slim, [(INPUTS,)]) == 2
    assert slim.eval()(INPUTS).isfinite().all()


def test_half_precision_leaves_the_logits_alone():
    model = convnet(channels=(8, 12), strides=(1, 2), num_classes=4)
    method = StructuredSparsification(
        model, INPUTS[:1], budget={"macs": 0.5}, total_steps=4, steps_per_epoch=1
    )
    model.bfloat16()
    assert all(p.dtype is torch.float32 for p in method.parameter_groups()[0]["params"])
    optimizer = torch.optim.SGD(parameter_groups(model, [method]), lr=0.1, momentum=0.9)
    for _ in range(3):
        method.restructure(optimizer)
        (F.cross_entropy(model(INPUTS.bfloat16()), LABELS) + method.penalty()).backward()
        optimizer.step()
        method.step()
    assert model.conv1.weight.dtype is torch.bfloat16
