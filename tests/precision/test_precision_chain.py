"""From learned bits to a packed file, past what comes between: masks, slimming, training on."""

from __future__ import annotations

import pytest
import torch
from packed_networks import small_network
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core import finalize, parameter_groups
from latewood.core.measure import bits
from latewood.errors import RequestError
from latewood.precision import LearnedPrecision, load_packed, pack, restore_formats, weight_format
from latewood.slim import load_slim, save_slim, slim
from latewood.sparsity import ContinuousSparsification


class Residual(nn.Module):
    """A small network with a residual branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.branch, self.inner = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.last, self.head = nn.Conv2d(12, 16, 3, padding=1), nn.Linear(16, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.stem(inputs)))
        hidden = hidden + torch.relu(self.inner(self.branch(hidden)))
        return self.head(torch.relu(self.last(hidden)).mean((2, 3)))


def test_a_pruned_network_of_learned_bits_becomes_smaller_and_packs(tmp_path):
    torch.manual_seed(0)
    model, steps = Residual(), 30
    inputs, labels = torch.randn(16, 3, 8, 8), torch.randint(0, 5, (16,))
    methods = [
        ContinuousSparsification(model, total_steps=steps, harden_at=0.3, density=0.2),
        LearnedPrecision(
            model, total_steps=steps, snap_at=0.6, target_bits=1.2, palette=(0, 1, 2, 4),
            activations=True,
        ),
    ]  # fmt: skip
    optimizer = torch.optim.SGD(parameter_groups(model, methods), lr=0.05, momentum=0.9)
    for _ in range(steps):
        loss = F.cross_entropy(model(inputs), labels) + sum(one.penalty() for one in methods)
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        for one in methods:
            one.step()
    finalize(model, methods)
    expected = model.eval()(inputs)
    smaller = slim(model, (inputs,))
    width = smaller.branch.weight.shape[0]
    assert width < 12
    assert weight_format(smaller.branch).scale.shape == (width, 1, 1, 1)
    assert weight_format(smaller.branch).bits.shape == (1, smaller.branch.in_channels, 1, 1)
    torch.testing.assert_close(smaller(inputs), expected, atol=1e-5, rtol=1e-5)
    save_slim(smaller, tmp_path / "slim")
    with pytest.raises(RequestError, match=r"restore=precision\.restore_formats"):
        load_slim(tmp_path / "slim", Residual)
    loaded = load_slim(tmp_path / "slim", Residual, restore=restore_formats)
    assert torch.equal(loaded(inputs), smaller(inputs))
    packed = pack(loaded, inputs)
    assert packed.difference < 1e-5
    packed.save(tmp_path / "x.safetensors")
    torch.testing.assert_close(
        load_packed(tmp_path / "x.safetensors").run(inputs), expected, atol=1e-5, rtol=1e-5
    )


def test_bits_of_a_model_are_those_of_its_formats():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    method = LearnedPrecision(model, total_steps=2, target_bits=2.0)
    method.snap()
    learning = bits(model)
    finalize(model, [method])
    assert learning == bits(model) == method.metrics()["all_bits"]


def test_weights_that_were_trained_on_are_not_packed():
    network, inputs = small_network(), torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        network[4].weight.mul_(torch.rand(7, 1, 1, 1))
    packed = pack(network, inputs)
    assert {layer.name: "left the grid" in layer.reason for layer in packed.left}["4"]
    # Roundings of bfloat16 stay within it.
    assert "4" in pack(small_network().bfloat16().float(), inputs).layers


class Changing(nn.Module):
    """Counts its calls, or doubles what it is given."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.network = what, small_network()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.what == "count":
            self.calls.add_(1)
        elif self.what == "keep":
            self.calls = self.calls + inputs.mean()
        else:
            inputs.mul_(2)
        return self.network(inputs)


@pytest.mark.parametrize(
    ("what", "named"), [("count", "calls"), ("keep", "calls"), ("double", "input 0")]
)
def test_networks_that_change_something_as_they_run_are_refused(what, named):
    inputs = torch.ones(2, 3, 8, 8)
    with pytest.raises(RequestError, match=f"changes {named} as it runs"):
        pack(Changing(what), inputs)
    assert bool((inputs == 1).all())


@pytest.mark.parametrize("examples", [None, 3, [], [None], {"x": 1}, torch.zeros(0, 3, 8, 8)])
def test_examples_are_tensors_that_hold_something(examples):
    with pytest.raises(RequestError, match="example_inputs"):
        pack(small_network(), examples)


def test_a_tensor_with_a_graph_on_a_layer_is_named():
    network = small_network()
    network.seen = network(torch.randn(1, 3, 8, 8))
    with pytest.raises(RequestError, match="cannot be copied"):
        pack(network, torch.randn(1, 3, 8, 8))


def test_torchs_transformer_layer_packs():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model, inputs = nn.Sequential(layer, nn.Linear(16, 3)), torch.randn(3, 7, 16)
    method = LearnedPrecision(model, total_steps=2, target_bits=2.0)
    finalize(model, [method])
    packed = pack(model, inputs)
    assert {"0.linear1", "0.linear2", "1"} == set(packed.layers)
    assert packed.difference < 1e-5


@pytest.mark.parametrize("teacher", ["x", "itself"])
def test_a_refused_teacher_leaves_the_model_alone(teacher):
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    names = list(model.state_dict())
    given = model if teacher == "itself" else teacher
    with pytest.raises(RequestError, match="distill_from"):
        LearnedPrecision(model, total_steps=4, target_bits=2.0, distill_from=given)
    assert list(model.state_dict()) == names
    assert not model._forward_hooks


@pytest.mark.parametrize(
    "state",
    [
        None,
        {},
        {"step": -1, "price": 0.0, "snapped": False},
        {"step": 1, "price": "x", "snapped": False},
        {"step": 1, "price": float("nan"), "snapped": False},
    ],
)
def test_states_of_others_are_refused(state):
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    method = LearnedPrecision(model, total_steps=4, target_bits=2.0)
    with pytest.raises(RequestError, match="state: got"):
        method.load_state_dict(state)
