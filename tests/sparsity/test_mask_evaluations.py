"""The four readings, and the warning when soft and hard disagree."""

import copy
import warnings

import pytest
import torch
from torch import nn

from latewood.sparsity import ContinuousSparsification, MaskEvaluations, evaluate_masks

X = torch.randn(64, 5, generator=torch.Generator().manual_seed(1))


def started(logit, temperature):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    method = ContinuousSparsification(
        model, total_steps=1, final_temperature=temperature, scale="none", exclude=()
    )
    generator = torch.Generator().manual_seed(2)
    for logits in method.mask_parameters():
        sign = torch.rand(logits.shape, generator=generator) - 0.5
        logits.data = logit * sign.sign()
    model.train()
    model(X + 1)
    return model, method


def score(model):
    assert not model.training and not model[1].training
    with torch.no_grad():
        return model(X).abs().mean().item()


def test_each_reading_is_that_of_its_network():
    model, method = started(0.5, 2.0)
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match=r"soft and hard disagree: .* 100.0% undecided"):
        found = evaluate_masks(method, score, [(X,)])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    model.eval()
    assert found.soft == score(model)
    assert found.undecided == 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        method.finalize()
    assert found.hard == pytest.approx(score(model), rel=1e-6)
    with torch.no_grad():
        hidden = model[0](X)
        model[1].running_mean.copy_(hidden.mean(0))
        model[1].running_var.copy_(hidden.var(0))
    assert found.recalibrated == pytest.approx(score(model), rel=1e-5)
    assert len({found.soft, found.hard, found.recalibrated}) == 3


def test_decided_masks_do_not_warn_and_without_batches_nothing_is_recalibrated():
    _, method = started(0.5, 200.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate_masks(method, score)
    assert isinstance(found, MaskEvaluations) and found.undecided == 0.0
    assert found.soft == pytest.approx(found.hard, rel=1e-6)
    assert found.recalibrated == found.hard


def test_the_gap_alone_warns():
    _, method = started(0.5, 200.0)
    scores = iter([0.905, 0.92])
    with pytest.warns(UserWarning, match=r"0.92 with the soft masks, 0.905 with the binary"):
        evaluate_masks(method, lambda _: next(scores))
    scores = iter([0.905, 0.92])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate_masks(method, lambda _: next(scores), tolerance=0.02)


def test_a_score_that_fails_leaves_everything_as_it_was():
    model, method = started(0.5, 2.0)
    before = copy.deepcopy(model.state_dict())
    calls = []

    def failing(model):
        calls.append(model)
        if len(calls) == 2:
            raise OSError("no data")
        return 0.0

    with pytest.raises(OSError, match="no data"):
        evaluate_masks(method, failing, [(X,)])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not method.hardened and not model[0].parametrizations.weight[0].hard
