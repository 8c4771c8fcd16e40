"""Branches start from the same weights, optimizer and generator, and leave all of them alone."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from latewood.spectra import branch


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))


def trained(start, seed):
    model, optimizer = start
    inputs, labels = torch.eye(3).repeat(4, 1), torch.arange(12) % 2
    order = torch.Generator().manual_seed(seed)
    for part in torch.randperm(12, generator=order).split(4):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[part]), labels[part]).backward()
        optimizer.step()
    return model.state_dict(), copy.deepcopy(optimizer.state_dict())


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_branches_differ_by_their_seed_only():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trained((model, optimizer), 0)  # momentum that a fresh optimizer would not have
    before = copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    ends = branch((model, optimizer), trained, seeds=[1, 2])
    assert torch.equal(torch.get_rng_state(), generator)
    assert same(before, model.state_dict())
    assert not same(ends[1][0], ends[2][0])

    again = branch((model, optimizer), trained, seeds=[2])
    assert same(again[2][0], ends[2][0])
    fresh = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    assert not same(branch((model, fresh), trained, seeds=[2])[2][0], ends[2][0])

    assert same(trained((model, optimizer), 1)[0], ends[1][0])  # as an uncut run goes on
