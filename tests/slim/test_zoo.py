"""Masked against slim on every network of the package, with structured masks drawn at random."""

import copy

import pytest
import torch

from latewood.core.coupling import trace_channels
from latewood.core.coupling.trace import layer_tensors
from latewood.core.measure import parameter_count
from latewood.core.selection import select_parameters
from latewood.slim import slim
from latewood.sparsity import FixedMasks
from latewood.training import components

RESIDUAL = ("coupled", "inner", "scatter")


def mask_at_random(model, inputs, seed):
    """Switches random channels off, each group in most of the tensors that hold them.

    Weights get masks, which stay attached; vectors and tables are set to zero. What is left alive
    of a group elsewhere decides which of its channels can go, and whether heads, blocks or only
    the channels of a branch do.
    """
    generator = torch.Generator().manual_seed(seed)
    places = dict(layer_tensors(model))
    masks = {
        each.name: torch.ones_like(each.tensor, dtype=torch.bool)
        for each in select_parameters(model)
    }
    for group in trace_channels(model, inputs).free:
        share = float(torch.rand((), generator=generator))
        off = torch.rand(group.width, generator=generator) < share
        spared = torch.rand(len(group.members), generator=generator) < 0.15 * (seed % 2)
        for member, spare in zip(group.members, spared.tolist(), strict=True):
            if spare or "running" in member.tensor:
                continue
            gone = member.indices[off].flatten()
            if member.tensor in masks:
                masks[member.tensor].index_fill_(member.axis, gone, False)
            else:
                with torch.no_grad():
                    getattr(*places[member.tensor]).index_fill_(member.axis, gone, 0)
    FixedMasks(model, masks)


def test_every_network_of_the_package_is_here(zoo_names):
    assert set(components.MODELS) <= zoo_names


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", sorted(components.MODELS))
def test_slim_computes_what_the_masked_model_does(name, seed, zoo):
    model, inputs = zoo(name)
    model = model.double()
    inputs = tuple(each.double() if each.is_floating_point() else each for each in inputs)
    full = parameter_count(model)
    mask_at_random(model, inputs, seed)
    before = copy.deepcopy(model.state_dict())
    # Held to 1e-12 of the largest output by slim itself, also on inputs that it draws.
    smaller = slim(model, inputs, residual=RESIDUAL[seed], round_to=1 + seed % 2)
    assert parameter_count(smaller) <= full
    assert seed > 0 or parameter_count(smaller) < full
    with torch.no_grad():
        exact = model(*inputs)
        error = (exact - smaller(*inputs)).abs().max()
    assert float(error) <= 1e-12 * float(exact.abs().max())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
