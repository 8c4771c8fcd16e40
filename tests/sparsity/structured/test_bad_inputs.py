"""What is refused, and in which words."""

import pytest
import torch
from torch import nn

from latewood.core import parameter_groups
from latewood.errors import RequestError
from latewood.sparsity import ContinuousSparsification
from latewood.sparsity.structured import StructuredSparsification

INPUTS = torch.randn(1, 4)


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def build(model=None, inputs=INPUTS, **options):
    options = {"budget": {"macs": 0.5}, "total_steps": 12, "steps_per_epoch": 3} | options
    return StructuredSparsification(net() if model is None else model, inputs, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": {}}, "budget: got {}"),
        ({"budget": {"macs": 0.5, "parameters": 0.5}}, "budget: got"),
        ({"budget": {"flops": 0.5}}, "budget: got {'flops': 0.5}"),
        ({"budget": {"macs": 0.0}}, "budget.macs: got 0.0"),
        ({"budget": {"macs": float("nan")}}, "budget.macs: got nan"),
        ({"budget": {"parameters": 0.01}}, "expected at least 11, one channel in each group"),
        ({"budget": 0.5}, "budget: got 0.5"),
        ({"budget": {"macs": "half"}}, "budget.macs: got 'half'"),
        ({"seed_logit": float("inf")}, "seed_logit: got inf"),
        ({"seed_logit": None}, "seed_logit: got None"),
        ({"total_steps": 0}, "total_steps: got 0"),
        ({"steps_per_epoch": 2.5}, "steps_per_epoch: got 2.5"),
        ({"seed_width": 0}, "seed_width: got 0"),
        ({"preset": "best"}, "preset: got 'best'; expected one of recommended, paper"),
        ({"estimator": "hard"}, "estimator: got 'hard'"),
        ({"temperature": "local"}, "temperature: got 'local'"),
        ({"final_temperature": 0.5}, "final_temperature: got 0.5"),
        ({"penalty": -1.0}, "penalty: got -1.0"),
        ({"layer_penalty": float("inf")}, "layer_penalty: got inf"),
        ({"growth_logit": float("nan")}, "growth_logit: got nan"),
        ({"growth_time": 0.0}, "growth_time: got 0.0"),
        ({"freeze": 1.5}, "freeze: got 1.5"),
        ({"ranking": "size"}, "ranking: got 'size'"),
        ({"overshoot": 0.5}, "overshoot: got 0.5"),
        ({"overshoot": float("inf")}, "overshoot: got inf"),
        ({"floor": 1.5}, "floor: got 1.5"),
        ({"floor": float("nan")}, "floor: got nan"),
        ({"logit_lr": 0.0}, "logit_lr: got 0.0"),
        ({"logit_decay": -1.0}, "logit_decay: got -1.0"),
        ({"birth": "he"}, "birth: got 'he'"),
        ({"exclude": ("7",)}, "exclude: got '7'; expected a pattern on one of 0"),
        ({"exclude": ("0",)}, "a model with channels that can be removed"),
        ({"inputs": {"x": 1}}, "example_inputs: got 'dict'"),
        ({"inputs": ()}, "example_inputs: got 'tuple'"),
        ({"model": nn.Linear(4, 3)}, "a model with channels that can be removed"),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(RequestError) as refused:
        build(**options)
    assert words in str(refused.value)


def test_a_model_with_masks_is_refused():
    model = net()
    ContinuousSparsification(model, total_steps=3)
    with pytest.raises(RequestError, match="build StructuredSparsification before other methods"):
        build(model)


def test_a_mask_whose_shape_would_not_follow_is_refused():
    model = net()
    method = build(model)
    other = ContinuousSparsification(model, total_steps=3)
    optimizer = torch.optim.SGD(parameter_groups(model, [method, other]), lr=0.1)
    with pytest.raises(RequestError, match="SoftMask holds tensors that would not follow"):
        method.restructure(optimizer)


def test_the_loop_must_restructure_before_each_epoch():
    model = net()
    method = build(model)
    optimizer = torch.optim.SGD(parameter_groups(model, [method]), lr=0.1, momentum=0.9)
    with pytest.raises(RequestError, match="call restructure"):
        method.step()
    method.restructure(optimizer)
    assert not method.restructure(optimizer)
    method.step()
    with pytest.raises(RequestError, match="called 1 steps into an epoch of 3"):
        method.restructure(optimizer)
    method.step()
    method.step()
    with pytest.raises(RequestError, match="call restructure"):
        method.step()
    assert method.finalize() is model
    state = method.state_dict()
    assert method.metrics()["undecided"] == 0
    for call in (
        method.step,
        method.penalty,
        method.finalize,
        method.parameter_groups,
        lambda: method.restructure(optimizer),
        lambda: method.reshape(state),
        lambda: method.load_state_dict(state),
    ):
        with pytest.raises(RequestError, match=r"^StructuredSparsification: finalized; "):
            call()


def test_the_optimizer_must_hold_the_logits():
    model = net()
    method = build(model)
    with pytest.raises(RequestError, match="does not hold the logits"):
        method.restructure(torch.optim.SGD(model[0].parameters(), lr=0.1))


def test_an_optimizer_state_of_another_shape_is_refused():
    model = net()
    method = build(model)
    optimizer = torch.optim.SGD(parameter_groups(model, [method]), lr=0.1, momentum=0.9)
    optimizer.state[model[0].weight] = {"rows": torch.zeros(8)}
    with pytest.raises(RequestError, match=r"its rows of 0.weight has shape \(8,\)"):
        method.restructure(optimizer)


def test_a_foreign_state_is_refused():
    method = build()
    with pytest.raises(RequestError, match="state_dict"):
        method.load_state_dict({"step": 1})
    with pytest.raises(RequestError, match="state_dict"):
        method.reshape(
            build(nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3))).state_dict()
        )
    optimizer = torch.optim.SGD(method.parameter_groups(), lr=0.1, momentum=0.9)
    method.restructure(optimizer)
    state = method.state_dict()
    with pytest.raises(RequestError, match="build it and the method anew"):
        method.reshape(state)


def test_a_failed_change_leaves_the_model_whole():
    model = net()
    method = build(model)
    optimizer = torch.optim.SGD(parameter_groups(model, [method]), lr=0.1, momentum=0.9)
    optimizer.state[model[2].bias] = {}
    optimizer.state[model[0].bias] = {"rows": torch.zeros(3)}
    with pytest.raises(RequestError):
        method.restructure(optimizer)
    assert model[0].weight.shape == (8, 4)
    assert model(INPUTS).shape == (1, 3)
