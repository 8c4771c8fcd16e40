"""Recalibration: the cumulative mean of batch statistics, and nothing else changed."""

import pytest
import torch
from torch import nn

from latewood.core.batch_norm import recalibrate_batch_norm
from latewood.errors import RequestError


def model_and_batches():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2), nn.BatchNorm1d(2)
    ).double()
    batches = [(torch.randn(8, 3, dtype=torch.float64) * (i + 1), None) for i in range(5)]
    with torch.no_grad():
        for inputs, _ in batches[:2]:
            model(inputs)
    return model, batches


def test_statistics_are_the_mean_over_batches():
    model, batches = model_and_batches()
    first = [model[0](inputs) for inputs, _ in batches]
    assert recalibrate_batch_norm(model, batches) == 2
    mean = torch.stack([each.mean(0) for each in first]).mean(0)
    variance = torch.stack([each.var(0, unbiased=True) for each in first]).mean(0)
    assert torch.allclose(model[1].running_mean, mean, rtol=1e-12)
    assert torch.allclose(model[1].running_var, variance, rtol=1e-12)
    assert model[1].num_batches_tracked == len(batches)


def test_dropout_is_off_while_measuring():
    model, batches = model_and_batches()
    recalibrate_batch_norm(model, batches)
    once = model[4].running_mean.clone()
    recalibrate_batch_norm(model, batches)
    assert torch.equal(model[4].running_mean, once)


def test_modes_momenta_gradients_and_generators_are_left_as_they_were():
    model, batches = model_and_batches()
    model.train()
    model[3].eval()
    model[1].momentum = 0.3
    modes = [module.training for module in model.modules()]
    parameters = [parameter.clone() for parameter in model.parameters()]
    generator = torch.get_rng_state()
    recalibrate_batch_norm(model, batches)
    assert [module.training for module in model.modules()] == modes
    assert (model[1].momentum, model[4].momentum) == (0.3, 0.1)
    assert all(parameter.grad is None for parameter in model.parameters())
    for parameter, before in zip(model.parameters(), parameters, strict=True):
        assert torch.equal(parameter, before)
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_forward_of_the_callers_own():
    model, batches = model_and_batches()
    swapped = [(None, inputs) for inputs, _ in batches]
    recalibrate_batch_norm(model, batches)
    expected = model[4].running_var.clone()
    recalibrate_batch_norm(model, swapped, forward=lambda model, batch: model(batch[1]))
    assert torch.equal(model[4].running_var, expected)


def test_a_failure_brings_the_old_statistics_back():
    model, batches = model_and_batches()
    model.train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with pytest.raises(RuntimeError):
        recalibrate_batch_norm(model, [*batches[:2], (torch.randn(8, 7).double(),)])
    with pytest.raises(RequestError, match="at least one batch"):
        recalibrate_batch_norm(model, [])
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])
    assert model.training
    assert model[1].momentum == 0.1


def test_a_model_without_running_statistics_reads_no_batch():
    def never():
        raise AssertionError("read a batch")
        yield

    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))
    assert recalibrate_batch_norm(model, never()) == 0
