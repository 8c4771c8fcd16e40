"""Several rounds in one run: the ticket before the reset, the reset, the momentum after it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from latewood.core import parameter_groups
from latewood.core.state import load_state, save_state
from latewood.errors import RequestError
from latewood.sparsity import ContinuousSparsification

X = torch.randn(16, 5, generator=torch.Generator().manual_seed(1))
Y = torch.arange(16) % 3


def started(**arguments):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    method = ContinuousSparsification(model, **{"initial_logit": -0.05, "exclude": ()} | arguments)
    groups = parameter_groups(model, [method], weight_decay=1e-4)
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    return model, method, optimizer


def train(model, method, optimizer, steps):
    for _ in range(steps):
        loss = F.cross_entropy(model(X), Y) + method.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.step()


def test_worked_reset():
    """min(4 s, -0.1) after the second of two steps, from numbers worked out in float64."""
    layer = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    layer.weight.data = torch.tensor([[0.5, -0.25, 0.125], [-0.75, 0.3, 0.6]], dtype=torch.float64)
    method = ContinuousSparsification(
        layer,
        total_steps=4,
        rounds=2,
        initial_logit=-0.1,
        final_temperature=4.0,
        penalty_weight=0.01,
    )
    (logits,) = method.mask_parameters()
    logits.data = torch.tensor([[0.1, -0.2, 0.0], [0.3, -0.05, -0.4]], dtype=torch.float64)
    groups = parameter_groups(layer, [method], weight_decay=1e-4)
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    x = torch.tensor([[1.0, 2.0, -1.0], [0.5, -1.5, 3.0]], dtype=torch.float64)
    for _ in range(2):
        loss = F.cross_entropy(layer(x), torch.tensor([0, 1])) + method.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.step()
    want = [-0.1, -1.001745554766, -0.1, -0.1, -0.470719027426, -0.620991970247]
    want = torch.tensor(want, dtype=torch.float64)
    torch.testing.assert_close(logits.detach().flatten(), want, rtol=0, atol=1e-12)
    assert method.tickets[0]["weight"].flatten().tolist() == [True, False, True, True, False, False]
    assert not method.masks()["weight"].any()
    assert method.temperature == layer.parametrizations.weight[0].temperature == 1.0


@pytest.mark.parametrize("initial_logit", [-0.05, 0.0, 0.1])
def test_survivors_start_again_and_the_pruned_stay_away(initial_logit):
    model, method, optimizer = started(total_steps=12, rounds=2, initial_logit=initial_logit)
    train(model, method, optimizer, 5)
    before = []
    method._start_round = lambda start=method._start_round: (
        before.extend(200.0 * each.detach().clone() for each in method.mask_parameters()),
        start(),
    )
    train(model, method, optimizer, 1)
    for raised, logits in zip(before, method.mask_parameters(), strict=True):
        again = raised >= logits.new_tensor(initial_logit)
        assert (logits <= logits.new_tensor(initial_logit)).all()
        assert torch.equal(logits == logits.new_tensor(initial_logit), again)
        assert torch.equal(logits[~again], raised[~again])


def test_temperatures_of_three_rounds():
    _, method, _ = started(total_steps=18, rounds=3, steps_per_epoch=2)
    seen, rounds = [], []
    for _ in range(18):
        seen.append(method.temperature)
        rounds.append(method.round)
        method.step()
    one = [1.0, 1.0, 200**0.5, 200**0.5, 200.0, 200.0]
    assert seen == pytest.approx(one * 3)
    assert rounds == [1] * 6 + [2] * 6 + [3] * 6
    assert method.round == 3 and method.temperature == 200.0
    assert method.metrics()["round"] == 3.0


def test_there_is_one_ticket_a_round_and_no_reset_after_the_last():
    model, method, optimizer = started(total_steps=60, rounds=3, initial_logit=-0.02)
    train(model, method, optimizer, 60)
    tickets = method.tickets
    assert len(tickets) == 3
    kept = [sum(mask.sum().item() for mask in ticket.values()) for ticket in tickets]
    assert 64 >= kept[0] > 0 and kept == sorted(kept, reverse=True) and kept[-1] > 0
    assert all(torch.equal(method.masks()[name], mask) for name, mask in tickets[2].items())


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("carry", [False, True])
def test_momentum_of_the_logits_alone_is_cleared(kind, carry):
    model, method, _ = started(total_steps=20, rounds=2, carry_momentum=carry)
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(parameter_groups(model, [method]), lr=0.01, **options)
    train(model, method, optimizer, 10)
    name = "momentum_buffer" if kind is torch.optim.SGD else "exp_avg"
    held = {p: optimizer.state[p][name].clone() for p in model.parameters()}
    logits = set(method.mask_parameters())
    loss = F.cross_entropy(model(X), Y) + method.penalty()
    optimizer.zero_grad()
    loss.backward()
    gradients = {p: p.grad.clone() for p in model.parameters()}
    optimizer.step()
    decay, gain = (0.9, 1.0) if kind is torch.optim.SGD else (0.9, 0.1)
    for parameter, old in held.items():
        if parameter in logits and not carry:
            old = torch.zeros_like(old)
        new = optimizer.state[parameter][name]
        torch.testing.assert_close(new, decay * old + gain * gradients[parameter])
    assert any(old.abs().max() > 1e-6 for p, old in held.items() if p in logits)


@pytest.mark.parametrize("at", [4, 10, 13])
def test_a_run_resumes_to_the_same_bits_in_and_between_rounds(at, tmp_path):
    whole = started(total_steps=20, rounds=2)
    train(*whole, 20)
    first = started(total_steps=20, rounds=2)
    train(*first, at)
    save_state(tmp_path / "state", [dict(part.state_dict()) for part in first])
    again = started(total_steps=20, rounds=2)
    for part, state in zip(again, load_state(tmp_path / "state"), strict=True):
        part.load_state_dict(state)
    train(*again, 20 - at)
    for name, tensor in whole[0].state_dict().items():
        assert torch.equal(tensor, again[0].state_dict()[name]), name
    for one, other in zip(whole[1].tickets, again[1].tickets, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_loading_another_state_calls_off_what_was_pending():
    run = started(total_steps=20, rounds=2)
    train(*run, 3)
    early = copy.deepcopy([part.state_dict() for part in run])
    train(*run, 7)
    for part, state in zip(run, early, strict=True):
        part.load_state_dict(state)
    other = started(total_steps=20, rounds=2)
    train(*other, 3)
    train(*run, 1)
    train(*other, 1)
    for name, tensor in run[0].state_dict().items():
        assert torch.equal(tensor, other[0].state_dict()[name]), name


def test_one_round_has_the_state_of_no_rounds():
    assert started(total_steps=3)[1].state_dict() == {"step": 0}
    with pytest.raises(RequestError, match="state: got"):
        started(total_steps=4, rounds=2)[1].load_state_dict({"step": 0})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": 0}, "rounds: got 0; expected a whole number"),
        ({"rounds": 7}, "rounds: got 7; expected a number that cuts 20 steps into whole equal st"),
        ({"rounds": 4, "steps_per_epoch": 4}, "whole equal epochs of 4 steps"),
    ],
)
def test_rounds_must_be_equal(arguments, message):
    with pytest.raises(RequestError, match=message):
        started(total_steps=20, **arguments)


@pytest.mark.filterwarnings("ignore:.*undecided")
def test_a_supermask_trains_the_logits_alone():
    model, method, _ = started(
        total_steps=10, initial_logit=0.0, penalty_weight=0.0, freeze_weights=True
    )
    groups = parameter_groups(model, [method], weight_decay=0.1)
    assert [len(group["params"]) for group in groups] == [2]
    before = {
        name: value.clone() for name, value in model.named_parameters() if "logits" not in name
    }
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    train(model, method, optimizer, 10)
    after = dict(model.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(logits.abs().min() > 0 for logits in method.mask_parameters())
    method.finalize()
    assert all(parameter.requires_grad for parameter in model.parameters())
    kept = model[0].weight != 0
    scaled = before["0.parametrizations.weight.original"] * 2.0
    assert 0 < kept.sum() < kept.numel() and torch.equal(model[0].weight[kept], scaled[kept])


def test_fixed_masks_end_the_rounds():
    model, method, optimizer = started(total_steps=20, rounds=2, initial_logit=0.05)
    train(model, method, optimizer, 5)
    method.density_target(0.5)
    before = [logits.clone() for logits in method.mask_parameters()]
    train(model, method, optimizer, 10)
    assert all(map(torch.equal, before, method.mask_parameters()))
    assert len(method.tickets) == 1
