"""`create_optimizer`: by name, with the options and the decay of a recipe's optimizer."""

import pytest
import torch
from torch import nn

from latewood.core import parameter_groups
from latewood.errors import RequestError
from latewood.optim import AvaGrad, create_optimizer
from latewood.optim.creation import _OPTIMIZERS
from latewood.sparsity import ContinuousSparsification
from latewood.training.components import OPTIMIZERS, resolve


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_the_names_are_those_of_recipes():
    assert {name: resolve("optimizer", name) for name in OPTIMIZERS} == _OPTIMIZERS


@pytest.mark.parametrize("name", _OPTIMIZERS)
def test_norms_and_biases_do_not_decay(name):
    network = model()
    optimizer = create_optimizer(name, network, lr=0.1, weight_decay=0.25)
    assert isinstance(optimizer, _OPTIMIZERS[name])
    decays = {p: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert len(decays) == len(list(network.parameters()))
    for parameter in network.parameters():
        assert decays[parameter] == (0.25 if parameter.ndim > 1 else 0.0)
    everything = create_optimizer(name, network, lr=0.1, weight_decay=0.25, decay_all=True)
    assert {group["weight_decay"] for group in everything.param_groups} == {0.25}
    assert create_optimizer(_OPTIMIZERS[name], network, lr=0.1).defaults["lr"] == 0.1


def test_a_method_brings_its_groups():
    network = model()
    method = ContinuousSparsification(network, total_steps=10)
    optimizer = create_optimizer("csgd", network, [method], lr=0.1)
    expected = parameter_groups(network, [method])
    assert [len(g["params"]) for g in optimizer.param_groups] == [
        len(g["params"]) for g in expected
    ]


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("avagard",), {}, r"^name: got 'avagard'.*did you mean 'avagrad'"),
        ((3,), {}, r"^name: got 3"),
        ((nn.Linear,), {}, r"^name: got <class"),
        (("avagrad",), {"esp": 1.0}, r"^options: got 'esp'.*did you mean 'eps'"),
        ((AvaGrad,), {"eps": 0.0}, r"^eps: got 0.0"),
    ],
)
def test_a_refusal_names_what_is_wrong(arguments, options, words):
    with pytest.raises(RequestError, match=words):
        create_optimizer(*arguments, model(), **options)


def test_a_model_without_parameters_is_refused():
    with pytest.raises(RequestError, match=r"^model: got 'ReLU'"):
        create_optimizer("csgd", nn.ReLU())
