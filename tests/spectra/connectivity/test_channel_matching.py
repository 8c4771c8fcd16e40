"""Channels in another order: the function stays, and a shuffled copy is found again."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from latewood import models
from latewood.core.coupling.trace import outputs_of
from latewood.errors import RequestError
from latewood.sparsity import ContinuousSparsification
from latewood.spectra import ChannelSymmetries, connect, match_channels, matched

MODELS = {
    "mlp": lambda: (
        models.mlp(in_features=6, hidden=(8, 7), norm=True, num_classes=3),
        (torch.randn(4, 6),),
    ),
    "resnet20": lambda: (models.resnet20(width=0.5), (torch.randn(2, 3, 16, 16),)),
    "mobilenet_v1": lambda: (models.mobilenet_v1(width=0.125), (torch.randn(1, 3, 32, 32),)),
    "lenet": lambda: (models.lenet(), (torch.randn(1, 1, 28, 28),)),
    "unet": lambda: (
        models.unet(channels=(32, 32, 64, 64), time_features=8),
        (torch.randn(1, 1, 20, 20), torch.ones(1)),
    ),
    "lstm": lambda: (
        models.lstm_classifier(features=5, hidden=8, layers=2, bidirectional=True),
        (torch.randn(2, 4, 5),),
    ),
    "tied lstm": lambda: (
        models.lstm_language_model(vocabulary=11, hidden=8, tied=True),
        (torch.randint(0, 11, (2, 4)),),
    ),
    "transformer": lambda: (
        models.transformer(vocabulary=11, context=6, width=8, layers=2, heads=4),
        (torch.randint(0, 11, (2, 4)),),
    ),
}


def build(name, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, inputs = MODELS[name]()
        with torch.no_grad():
            for entry in model.state_dict().values():
                if entry.is_floating_point() and entry.ndim == 1:  # norms and biases of their own
                    entry.uniform_(0.5, 2)
    inputs = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    return model.double().eval(), inputs


def outputs(model, state, inputs):
    model.load_state_dict(state)
    with torch.no_grad():
        return list(outputs_of(model(*inputs)))


@pytest.mark.parametrize("name", MODELS)
def test_a_shuffled_copy_computes_the_same_and_is_found_again(name):
    model, inputs = build(name)
    state = copy.deepcopy(model.state_dict())
    symmetries = ChannelSymmetries(model, inputs)
    shuffled = symmetries.permuted(state, symmetries.random(seed=3))
    moved = [name for name in state if not torch.equal(state[name], shuffled[name])]
    statistics = [name for name in state if name.endswith(("running_mean", "running_var"))]
    assert len(moved) > len(symmetries.groups)
    assert set(statistics) <= set(moved)

    for one, other in zip(
        outputs(model, state, inputs), outputs(model, shuffled, inputs), strict=True
    ):
        assert float((one - other).abs().max() / one.abs().max()) < 1e-12

    back, found = matched(model, state, shuffled, inputs)
    assert all(torch.equal(state[name], back[name]) for name in state)
    assert all(a <= b for a, b in itertools.pairwise(found.objective))
    assert found.fixed_groups
    again = symmetries.permuted(shuffled, found.permutations)
    assert all(torch.equal(state[name], again[name]) for name in state)


@pytest.mark.parametrize("name", MODELS)
def test_the_objective_never_falls_between_strangers(name):
    model, inputs = build(name)
    other, _ = build(name, seed=1)
    symmetries = ChannelSymmetries(model, inputs)
    found = match_channels(symmetries, model.state_dict(), other.state_dict())
    assert all(a <= b for a, b in itertools.pairwise(found.objective))
    assert found.objective[-1] > found.objective[0]

    sources = symmetries.sources(symmetries.random(seed=0))
    covered = [n for n in sources if n in dict(model.named_parameters())]
    permuted = symmetries.permuted(other.state_dict(), found.permutations)
    product = sum(float((model.state_dict()[n] * permuted[n]).sum()) for n in covered)
    assert product == pytest.approx(found.objective[-1])


def test_a_single_layer_is_assigned_as_well_as_by_trying_all_orders():
    first, second = (nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)) for _ in range(2))
    symmetries = ChannelSymmetries(first, torch.randn(1, 3))
    found = match_channels(symmetries, first.state_dict(), second.state_dict())
    best = max(
        sum(
            float((a * b).sum())
            for (name, a), b in zip(
                first.state_dict().items(),
                symmetries.permuted(second.state_dict(), {"0": torch.tensor(order)}).values(),
                strict=True,
            )
            if name != "2.bias"
        )
        for order in itertools.permutations(range(5))
    )
    assert found.objective[-1] == pytest.approx(best, rel=1e-5)


def test_the_order_of_the_groups_is_the_seeds():
    model, inputs = build("resnet20")
    other, _ = build("resnet20", seed=1)
    symmetries = ChannelSymmetries(model, inputs)
    ends = (model.state_dict(), other.state_dict())
    one, two, three = (match_channels(symmetries, *ends, seed=seed) for seed in (0, 0, 1))
    assert one.objective == two.objective != three.objective
    single = match_channels(symmetries, *ends, sweeps=1)
    assert single.objective == one.objective[:2]


def test_no_barrier_to_a_shuffled_copy():
    model, inputs = build("mlp")
    state = copy.deepcopy(model.state_dict())
    symmetries = ChannelSymmetries(model, inputs)
    shuffled = symmetries.permuted(state, symmetries.random(seed=1))

    (wanted,) = outputs(model, state, inputs)

    def loss(net):
        with torch.no_grad():
            return {"loss": F.mse_loss(net(inputs[0]), wanted).item()}

    asis = connect(model, state, shuffled, loss)
    assert asis.scores["loss"][-1] < 1e-24
    assert asis.barrier() > 1e-3 and asis.matching is None
    found = connect(model, state, shuffled, loss, permute=True, example_inputs=inputs)
    assert found.barrier() < 1e-12
    assert found.matching.objective[-1] > found.matching.objective[0]
    batches = [(inputs[0],)]
    from_batches = connect(model, state, shuffled, loss, permute=True, batches=batches)
    assert from_batches.matching.objective == found.matching.objective


def test_what_cannot_be_permuted_is_refused():
    model, inputs = build("mlp")
    state = model.state_dict()
    symmetries = ChannelSymmetries(model, inputs)
    with pytest.raises(RequestError, match="each once"):
        symmetries.permuted(state, {"linear1": torch.zeros(8, dtype=torch.long)})
    with pytest.raises(RequestError, match="linear1, linear2"):
        symmetries.permuted(state, {"head": torch.arange(3)})
    with pytest.raises(RequestError, match="sweeps"):
        match_channels(symmetries, state, state, sweeps=0)
    with pytest.raises(RequestError, match="finite"):
        broken = {name: entry.clone() for name, entry in state.items()}
        broken["linear1.weight"][0, 0] = torch.nan
        match_channels(symmetries, state, broken)
    with pytest.raises(RequestError, match="no entry"):
        match_channels(symmetries, state, {})
    other = models.mlp(in_features=6, hidden=(9, 7), norm=True, num_classes=3).state_dict()
    with pytest.raises(RequestError, match="linear1"):
        match_channels(symmetries, state, other)
    with pytest.raises(RequestError, match="example_inputs"):
        connect(model, state, state, lambda _: {"loss": 0.0}, permute=True)
    ContinuousSparsification(model, total_steps=1)
    with pytest.raises(RequestError, match="transformation"):
        ChannelSymmetries(model, inputs)
