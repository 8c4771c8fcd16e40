from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from latewood.errors import RequestError
from latewood.growth import deepen


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))


class ConvBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.na = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.b, self.nb = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x):
        return torch.relu(x + self.nb(self.b(torch.relu(self.na(self.a(x))))))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return torch.tanh(self.layer(x))


class Net(nn.Module):
    def __init__(self, block, container=nn.ModuleList, stem=None, shape=(5, 6)):
        super().__init__()
        torch.manual_seed(0)
        self.stem = stem or nn.Identity()
        made = [block(), block()]
        self.blocks = nn.ModuleList(made) if container is nn.ModuleList else container(*made)
        self.head = nn.Linear(6, 3) if stem is None else nn.Linear(4, 3)
        self.double()
        self.inputs = torch.randn(*shape, dtype=torch.float64)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)) if x.ndim == 4 else x)


def conv_net():
    stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    return Net(ConvBlock, nn.Sequential, stem, (4, 3, 8, 8))


@pytest.mark.parametrize("build", [lambda: Net(Block), conv_net])
def test_an_inserted_block_keeps_the_function_and_learns(build):
    model = build()
    optimizer = torch.optim.Adam(model.parameters())
    for training in (False, True):
        model.train(training)
        before = model(model.inputs).detach()
        assert deepen(model, model.inputs, "blocks", after=0, optimizers=optimizer) == [1]
        assert torch.allclose(model(model.inputs), before, rtol=0, atol=1e-12)
    assert len(model.blocks) == 4
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    model.train()
    start = copy.deepcopy(model.blocks[1].state_dict())
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(model.inputs), torch.arange(len(model.inputs)) % 3).backward()
        optimizer.step()
    moved = [
        not torch.equal(start[name], parameter)
        for name, parameter in model.blocks[1].named_parameters()
    ]
    assert all(moved)


@pytest.mark.parametrize(
    ("how", "order", "new"),
    [("stack", [0, 1, 0, 1], [2, 3]), ("interleave", [0, 0, 1, 1], [1, 3])],
)
def test_copies_take_weights_and_state(how, order, new):
    model = Net(Plain)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    F.cross_entropy(model(model.inputs), torch.arange(5) % 3).backward()
    optimizer.step()
    old = list(model.blocks)
    assert deepen(model, model.inputs, "blocks", how=how, optimizers=optimizer) == new
    for place, source in enumerate(order):
        block = model.blocks[place]
        assert (block is old[source]) == (place not in new)
        assert torch.equal(block.layer.weight, old[source].layer.weight)
        states = [optimizer.state[b.layer.weight]["momentum_buffer"] for b in (block, old[source])]
        assert torch.equal(*states) and (place not in new or states[0] is not states[1])


def test_a_configuration_that_counts_blocks_follows(transformers_kit):
    model, inputs = transformers_kit.build("llama")
    before = model(**inputs).logits
    assert deepen(model, inputs, "model.layers", after=1) == [2]
    assert model.config.num_hidden_layers == 3
    assert [block.self_attn.layer_idx for block in model.model.layers] == [0, 1, 2]
    assert torch.allclose(model(**inputs).logits, before, atol=1e-6)
    tokens = model.generate(inputs["input_ids"], max_new_tokens=3, do_sample=False, use_cache=True)
    again = model.generate(inputs["input_ids"], max_new_tokens=3, do_sample=False, use_cache=False)
    assert torch.equal(tokens, again)


def test_what_cannot_deepen_is_refused_and_stays():
    model = Net(Plain)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RequestError, match=r"a copy of blocks\.1 is no identity"):
        deepen(model, model.inputs, "blocks")
    for name, arguments in {
        "blocks: got 'layers'": {"blocks": "layers"},
        "after: got 2": {"blocks": "blocks", "after": 2},
        "how: got 'twice'": {"blocks": "blocks", "how": "twice"},
    }.items():
        with pytest.raises(RequestError, match=name):
            deepen(model, model.inputs, **arguments)
    assert list(model.state_dict()) == list(before) and len(model.blocks) == 2


def test_a_model_that_runs_a_fixed_number_of_blocks_is_refused():
    class Fixed(Net):
        def forward(self, x):
            return self.head(self.blocks[1](self.blocks[0](x)))

    model = Fixed(Block)
    with pytest.raises(RequestError, match="more blocks now than the model runs"):
        deepen(model, model.inputs, "blocks")
    assert len(model.blocks) == 2
