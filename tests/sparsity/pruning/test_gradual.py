"""Gradual magnitude pruning: the ramp, what it removes, and resuming on the way."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from latewood.core import Method
from latewood.errors import RequestError
from latewood.sparsity import GradualMagnitudePruning
from latewood.training import components

X = torch.randn(16, 5, generator=torch.Generator().manual_seed(1))
Y = torch.arange(16) % 3


def started(**arguments):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 3))
    options = {"total_steps": 20, "density": 0.1, "exclude": ()} | arguments
    method = GradualMagnitudePruning(model, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    return model, method, optimizer


def train(model, method, optimizer, steps):
    for _ in range(steps):
        loss = F.cross_entropy(model(X), Y) + method.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.step()


def test_the_ramp_is_cubic_and_ends_at_exactly_the_density():
    run = started(begin=0.2, end=0.8)
    seen = []
    for _ in range(20):
        train(*run, 1)
        seen.append(round(run[1].metrics()["density"] * 160))
    want = []
    for step in range(1, 21):
        q = min(1.0, max(0.0, (step / 20 - 0.2) / 0.6))
        want.append(round(160 * (0.1 + 0.9 * (1 - q) ** 3)))
    assert seen == want and seen[3] == 160 and seen[15:] == [16] * 5


def test_it_prunes_every_so_often_and_at_the_end_of_the_ramp():
    run = started(begin=0.0, end=0.55, every=4)
    seen = []
    for _ in range(20):
        train(*run, 1)
        seen.append(round(run[1].metrics()["density"] * 160))
    changes = [i + 1 for i in range(1, 20) if seen[i] != seen[i - 1]]
    assert changes == [4, 8, 11] and seen[-1] == 16
    assert started(steps_per_epoch=5)[1].every == 5


def test_it_removes_the_smallest_of_what_is_present_and_revives_nothing():
    model, method, optimizer = started(begin=0.0, end=0.9)
    for _ in range(20):
        before = method.masks()
        loss = F.cross_entropy(model(X), Y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        stored = {
            "0.weight": model[0].parametrizations.weight.original.detach().abs(),
            "2.weight": model[2].parametrizations.weight.original.detach().abs(),
        }
        method.step()
        after = method.masks()
        assert not any((after[name] & ~before[name]).any() for name in after)
        gone = torch.cat([stored[n][before[n] & ~after[n]] for n in after])
        left = torch.cat([stored[n][after[n]] for n in after])
        assert not len(gone) or gone.max() <= left.min()
    masks = method.masks()
    method.finalize()
    assert torch.equal(model[0].weight != 0, masks["0.weight"])
    for call in (method.step, lambda: method.load_state_dict({"step": 3})):
        with pytest.raises(RequestError, match=r"^GradualMagnitudePruning: finalized; "):
            call()
    assert method.state_dict() == {"step": 20}


def test_it_resumes_to_the_same_bits():
    whole, first = started(every=3), started(every=3)
    train(*whole, 20)
    train(*first, 7)
    saved = copy.deepcopy([part.state_dict() for part in first])
    again = started(every=3)
    for part, state in zip(again, saved, strict=True):
        part.load_state_dict(state)
    train(*again, 13)
    for name, tensor in whole[0].state_dict().items():
        assert torch.equal(tensor, again[0].state_dict()[name]), name


def test_it_is_a_method_that_recipes_name():
    assert isinstance(started()[1], Method)
    assert components.resolve("method", "gradual_magnitude_pruning") is GradualMagnitudePruning


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"density": 0.0}, "density: got 0.0"),
        ({"begin": 0.5, "end": 0.5}, "begin, end: got"),
        ({"every": 0}, "every: got 0"),
        ({"total_steps": 0}, "total_steps: got 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(RequestError, match=message):
        started(**arguments)
