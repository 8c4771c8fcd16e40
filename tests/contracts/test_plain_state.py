"""States hold tensors and plain values only, and come back from disk as they were."""

import pytest
import torch
from short_training import TOTAL_STEPS, Training, assert_same
from torch import Tensor, nn

from latewood.core import load_state, save_state

PLAIN = (type(None), bool, int, float, str)


def assert_plain(node, where="state"):
    if isinstance(node, dict):
        for key, value in node.items():
            assert_plain(key, f"{where}, key {key!r}")
            assert_plain(value, f"{where}[{key!r}]")
    elif type(node) in (list, tuple):
        for index, value in enumerate(node):
            assert_plain(value, f"{where}[{index}]")
    else:
        assert type(node) in (*PLAIN, Tensor, nn.Parameter), f"{where} is a {type(node)}"


@pytest.mark.parametrize("step", [0, 4, TOTAL_STEPS])
def test_a_state_is_plain_and_survives_two_formats(component, network, step, tmp_path):
    training = Training(component, network, folder=tmp_path).run(step)
    state = training.state()
    assert_plain(state)
    save_state(tmp_path / "state", state)
    assert_same(load_state(tmp_path / "state"), detached(state), "saved as safetensors and JSON")
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert_same(detached(loaded), detached(state), "saved by torch")


@pytest.mark.parametrize("step", [4, TOTAL_STEPS])
def test_a_loaded_state_is_a_copy(method, network, step, tmp_path):
    training = Training(method, network).run(step)
    save_state(tmp_path / "state", training.state())
    state, again = (load_state(tmp_path / "state") for _ in range(2))
    resumed = Training(method, network, seed=1).restore(state)
    resumed.run().finish()
    assert_same(state["methods"], again["methods"], "the state that was loaded")


def test_a_state_of_another_kind_is_refused(method):
    training = Training(method, "mlp")
    before = training.snapshot()
    for state in ({"unheard_of": 1}, {**training.method.state_dict(), "unheard_of": 1}):
        with pytest.raises(ValueError, match="state"):
            training.method.load_state_dict(state)
    assert_same(training.snapshot(), before)


def detached(node):
    """The same tree with every Parameter as the tensor that it holds."""
    if isinstance(node, dict):
        return {key: detached(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(map(detached, node))
    return node.detach() if isinstance(node, Tensor) else node
