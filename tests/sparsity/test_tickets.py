"""Tickets: what rewinding restores, what a mask holds down, and what a file keeps."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from latewood.core import PRECISION, Method, attach, bake, parameter_groups, transformations
from latewood.errors import RequestError, WorkError
from latewood.sparsity import ContinuousSparsification, FixedMasks, Ticket, restore, snapshot

X = torch.randn(16, 5, generator=torch.Generator().manual_seed(1))
Y = torch.arange(16) % 3


class Net(nn.Sequential):
    def __init__(self, seed=0):
        torch.manual_seed(seed)
        super().__init__(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        self.register_buffer("unsaved", torch.rand(2), persistent=False)


def train(model, optimizer, steps, method=None):
    for _ in range(steps):
        loss = F.cross_entropy(model(X), Y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if method:
            method.step()


def random_masks(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (8, 5), "3.weight": (3, 8)}
    return {name: torch.rand(shape, generator=generator) < 0.5 for name, shape in shapes.items()}


def momentum(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)


# Snapshots


def test_a_snapshot_restores_every_parameter_and_buffer_to_the_bit():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, 3)
    taken = snapshot(model)
    assert set(taken) == {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    assert taken["1.num_batches_tracked"].item() == 3
    want = copy.deepcopy(taken)
    train(model, optimizer, 3)
    model.unsaved.add_(1)
    changed = [
        name for name, value in snapshot(model).items() if not torch.equal(value, want[name])
    ]
    assert set(changed) >= set(want) - {"0.bias"}  # batch norm takes its gradient away
    restore(model, taken)
    now = snapshot(model)
    assert all(torch.equal(now[name], want[name]) for name in want)


def test_names_are_those_of_the_plain_model_whatever_masks_it_has():
    plain = snapshot(Net())
    for mask in (
        lambda model: ContinuousSparsification(model, total_steps=4, exclude=()),
        lambda model: FixedMasks(model, random_masks()),
    ):
        model = Net()
        mask(model)
        taken = snapshot(model)
        assert taken.keys() == plain.keys()
        assert all(torch.equal(taken[name], plain[name]) for name in plain)
        restore(model, snapshot(Net(1)))
        assert torch.equal(model[0].parametrizations.weight.original, Net(1)[0].weight)


def test_other_transformations_keep_their_own_tensors_in_the_snapshot():
    class Gain(nn.Module):
        order = PRECISION

        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(2.0))

        def forward(self, weight):
            return self.gain * weight

    model = Net()
    attach(model[0], "weight", Gain())
    assert snapshot(model)["0.parametrizations.weight.0.gain"].item() == 2.0


def test_a_snapshot_of_another_model_is_refused_and_changes_nothing():
    model = Net()
    before = snapshot(model)
    other = {**snapshot(Net(1)), "3.bias": torch.zeros(4)}
    with pytest.raises(
        RequestError, match=r"snapshot\['3.bias'\]: got .*\(4,\)'; expected .*\(3,\)"
    ):
        restore(model, other)
    other.pop("3.bias")
    with pytest.raises(RequestError, match=r"only one of the two has 3\.bias"):
        restore(model, other)
    assert all(torch.equal(value, before[name]) for name, value in snapshot(model).items())


# Fixed masks


def test_it_is_a_method():
    assert isinstance(FixedMasks(Net(), random_masks()), Method)


@pytest.mark.parametrize("make", [momentum, adamw])
def test_pruned_weights_stay_exactly_zero(make):
    model, masks = Net(), random_masks()
    optimizer = make(model)
    # Momentum from before the masks must not revive anything either.
    train(model, optimizer, 5)
    method = FixedMasks(model, masks)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    for _ in range(10):
        train(model, optimizer, 1, method)
        average.update_parameters(model)
        for network in (model, average.module):
            assert (network[0].weight[~masks["0.weight"]] == 0).all()
            assert (network[3].weight[~masks["3.weight"]] == 0).all()
            assert (network[0].weight[masks["0.weight"]] != 0).all()
    x = torch.randn(4, 5)
    model.eval()
    before = model(x)
    method.finalize()
    assert type(model[0]) is nn.Linear and torch.equal(model(x), before)
    assert torch.equal(model[0].weight != 0, masks["0.weight"])


def test_gradients_of_pruned_weights_are_zero():
    model, masks = Net(), random_masks()
    FixedMasks(model, masks)
    F.cross_entropy(model(X), Y).backward()
    gradient = model[0].parametrizations.weight.original.grad
    assert (gradient[~masks["0.weight"]] == 0).all() and (gradient != 0).any()


def test_scale_and_densities():
    model, masks = Net(), random_masks()
    weight = model[3].weight.detach().clone()
    method = FixedMasks(model, masks, scale={"0.weight": 1.0, "3.weight": 2.0})
    assert torch.equal(model[3].weight, 2 * weight * masks["3.weight"])
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    assert method.metrics() == {
        "density": sum(kept.values()) / 64,
        "density/0": kept["0.weight"] / 40,
        "density/3": kept["3.weight"] / 24,
    }
    method.finalize()
    assert torch.equal(model[3].weight, 2 * weight * masks["3.weight"])
    for call in (
        method.finalize,
        method.step,
        method.penalty,
        method.parameter_groups,
        lambda: method.load_state_dict({}),
    ):
        with pytest.raises(RequestError, match=r"^FixedMasks: finalized; "):
            call()
    assert method.metrics()["density"] == sum(kept.values()) / 64
    assert method.state_dict() == {}


def test_masks_over_a_format_wait_for_it_and_change_nothing_before():
    class Gain(nn.Module):
        order = PRECISION

        def forward(self, weight):
            return 2 * weight

    model, masks = Net(), random_masks()
    attach(model[3], "weight", gain := Gain())  # the second of two masked weights
    method = FixedMasks(model, masks)
    before = model[3].weight.detach().clone()
    with pytest.raises(
        RequestError, match=r"BinaryMask .* Gain inside it; expected Gain to be baked"
    ):
        method.finalize()
    assert all(len(transformations(model[i], "weight")) == count for i, count in ((0, 1), (3, 2)))
    bake(model[3], "weight", gain)
    assert method.finalize() is model
    assert torch.equal(model[3].weight, before)
    assert torch.equal(model[3].weight != 0, masks["3.weight"])


def test_a_tied_weight_is_masked_and_scaled_once_in_both_uses():
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    model[1].weight = model[0].weight
    weight = model[0].weight.detach().clone()
    mask = torch.arange(24).view(6, 4) % 3 == 0
    method = FixedMasks(model, {"1.weight": mask}, scale=2.0)
    assert torch.equal(model[0].weight, 2 * weight * mask)
    method.finalize()
    assert torch.equal(model[0].weight, 2 * weight * mask)
    assert model[0].weight is model[1].weight


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({}, "masks: got {}; expected a mapping with the mask of at least one weight"),
        (np.ones(3), "masks: got 'ndarray'; expected a mapping"),
        ({"0.weight": np.ones((6, 4), dtype=bool)}, "got 'ndarray'; expected a torch tensor"),
        ({"1.weight": torch.ones(8, dtype=torch.bool)}, "include: got '1.weight'"),
        ({"0.weight": torch.ones(8, 5)}, r"expected torch.bool of shape \(8, 5\)"),
        ({"0.weight": torch.ones(5, 8, dtype=torch.bool)}, r"got 'torch.bool of shape \(5, 8\)'"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks, message):
    model = Net()
    with pytest.raises(RequestError, match=message):
        FixedMasks(model, masks)
    assert type(model[0]) is nn.Linear


def test_a_mask_without_its_scale_is_refused():
    model = Net()
    with pytest.raises(RequestError, match=r"scale: .*3\.weight"):
        FixedMasks(model, random_masks(), scale={"0.weight": 2.0})
    assert type(model[0]) is nn.Linear


# Tickets


def found(**arguments):
    model = Net()
    method = ContinuousSparsification(
        model, total_steps=40, rounds=2, initial_logit=-0.02, exclude=(), **arguments
    )
    optimizer = torch.optim.SGD(parameter_groups(model, [method]), lr=0.1, momentum=0.9)
    train(model, optimizer, 4, method)
    early = snapshot(model)
    train(model, optimizer, 36, method)
    return method, early


def test_rewinding_gives_the_early_weights_under_the_mask_of_a_round():
    method, early = found()
    for index in (0, -1):
        ticket = Ticket.of(method, early, finished_round=index)
        assert all(torch.equal(ticket.masks[n], m) for n, m in method.tickets[index].items())
        model = Net(1)
        ticket.rewind(model)
        taken = snapshot(model)
        assert all(torch.equal(taken[name], early[name]) for name in early)
        assert torch.equal(model[0].weight, early["0.weight"] * ticket.masks["0.weight"])
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
        before = snapshot(model)
        with pytest.raises(RequestError, match="already has a mask"):
            ticket.rewind(model)
        assert all(torch.equal(value, before[n]) for n, value in snapshot(model).items())
    kept = sum(int(mask.sum()) for mask in ticket.masks.values())
    assert ticket.density == kept / 64


def test_the_scale_of_the_code_can_be_kept():
    method, early = found()
    model = Net(1)
    Ticket.of(method, early, finished_round=0, ticket_scale="keep").rewind(model)
    want = early["0.weight"] * method.tickets[0]["0.weight"] * method.scales["0.weight"]
    assert method.scales["0.weight"] == pytest.approx(2.0202, abs=1e-4)
    assert torch.equal(model[0].weight, want)


def test_a_saved_ticket_comes_back_bit_for_bit(tmp_path):
    method, early = found()
    ticket = Ticket.of(method, early, ticket_scale="keep")
    ticket.save(tmp_path / "ticket-0.5")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ticket-0.5.json",
        "ticket-0.5.safetensors",
    ]
    again = Ticket.load(tmp_path / "ticket-0.5")
    assert again.scale == ticket.scale
    for one, other in ((ticket.masks, again.masks), (ticket.snapshot, again.snapshot)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[n], other[n]) and one[n].dtype == other[n].dtype for n in one)


def test_what_is_no_ticket_is_named(tmp_path):
    from latewood.core.state import save_state

    for tree in ({"masks": {}}, {"format": "latewood ticket 1"}):
        save_state(tmp_path / "other", tree)
        with pytest.raises(WorkError, match="not a ticket"):
            Ticket.load(tmp_path / "other")
    method, early = found()
    with pytest.raises(RequestError, match="finished_round: got 2; expected an index of 2 tickets"):
        Ticket.of(method, early, finished_round=2)
    with pytest.raises(RequestError, match="ticket_scale: got 'code'"):
        Ticket.of(method, early, ticket_scale="code")
