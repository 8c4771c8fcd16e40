"""One rule for all methods: after ``finalize`` the calls of training are refused by name."""

import copy

import pytest
from short_training import Training, assert_same

from latewood.core import Restructuring
from latewood.errors import RequestError


def test_training_calls_are_refused_by_name_after_finalize(method, network):
    training = Training(method, network).run()
    state = copy.deepcopy(training.method.state_dict())
    metrics = training.method.metrics()
    training.finish()
    final = training.method.metrics()
    assert final.keys() == metrics.keys()
    calls = {
        "penalty": (),
        "step": (),
        "finalize": (),
        "parameter_groups": (),
        "load_state_dict": (state,),
    }
    if isinstance(training.method, Restructuring):
        calls |= {"restructure": (training.optimizer,), "reshape": (state,)}
    weights = {name: tensor.clone() for name, tensor in training.model.state_dict().items()}
    for name, arguments in calls.items():
        with pytest.raises(RequestError, match=rf"\b{name}\b"):
            getattr(training.method, name)(*arguments)
    # What reads answers as at the end.
    assert training.method.metrics() == final
    assert training.method.state_dict().keys() == state.keys()
    assert_same(dict(training.model.state_dict()), weights)


def test_a_method_may_end_before_its_first_step(method, network):
    training = Training(method, network)
    model = training.finish()
    assert model is training.model
    with pytest.raises(RequestError, match=r"\bstep\b"):
        training.method.step()
