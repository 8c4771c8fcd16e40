"""An averaged copy of the weights, made early or late, is its own network to the end and after."""

import pytest
import torch
from short_training import Training, batch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from latewood.core import Restructuring


def averaged(model):
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))


def storages(model):
    tensors = [*model.parameters(), *model.buffers()]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}


def values_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("start", [1, 7, 12], ids=["early", "hardened", "last"])
def test_an_averaged_copy_is_its_own_network(component, network, start, tmp_path):
    inputs, _ = batch(network, 99)
    training = Training(component, network, folder=tmp_path).run(start)
    average = averaged(training.model)
    shapes = [p.shape for p in training.model.parameters()]
    while training.steps < 12:
        training.step()
        now = [p.shape for p in training.model.parameters()]
        if now != shapes:
            # An average over other shapes has no meaning: whoever keeps one starts it anew.
            assert isinstance(training.method, Restructuring)
            average, shapes = averaged(training.model), now
        average.update_parameters(training.model)
        assert storages(average).isdisjoint(storages(training.model))
    assert average.eval()(inputs).isfinite().all()
    before, output = values_of(average), average(inputs)
    training.finish()
    assert training.model.eval()(inputs).isfinite().all()
    # What ends the method on the model does not reach into the copy.
    assert before.keys() == average.state_dict().keys()
    assert all(torch.equal(before[name], v) for name, v in average.state_dict().items())
    assert torch.equal(average(inputs), output)
    assert storages(average).isdisjoint(storages(training.model))
    average.module.train()(inputs).sum().backward()


def test_a_fresh_model_takes_the_finalized_average(method, network):
    """A model of plain layers can be averaged on, as any other."""
    training = Training(method, network).run()
    model = training.finish()
    average = averaged(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(2):
        inputs, labels = batch(network, step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        average.update_parameters(model)
    assert average.eval()(batch(network, 99)[0]).isfinite().all()
