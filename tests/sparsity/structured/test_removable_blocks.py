"""Which modules may go: a branch beside an identity, seen through whatever is done in place."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from latewood.core import parameter_groups, trace_channels
from latewood.slim import Skip
from latewood.slim.idle_blocks import idle_modules, skip_modules
from latewood.sparsity.structured import StructuredSparsification
from latewood.sparsity.structured.removable_blocks import removable_blocks


def branch(width=6):
    return nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, width))


class Block(nn.Module):
    """A residual block whose sum is computed as the case says."""

    def __init__(self, total):
        super().__init__()
        self.layer, self.total = branch(), total

    def forward(self, x):
        return self.total(self.layer, x)


def plain(layer, x):
    return x + layer(x)


def added_to_the_branch(layer, x):
    y = layer(x)
    y += x
    return y


def added_to_the_input(layer, x):
    x += layer(x.clone())
    return x


def added_in_two_steps(layer, x):
    residual = x
    x = layer(x)
    x.add_(residual)
    return x


def input_spoilt(layer, x):
    y = x + layer(x)
    x.mul_(2)
    return y


def scaled(layer, x):
    return 2 * x + layer(x)


class Net(nn.Module):
    """A layer, two blocks, and what the case does with them."""

    def __init__(self, total, around=lambda block, x: block(x)):
        super().__init__()
        self.first, self.last, self.around = nn.Linear(4, 6), nn.Linear(6, 3), around
        self.one, self.two = Block(total), Block(total)

    def forward(self, inputs):
        return self.last(self.around(self.two, self.around(self.one, self.first(inputs))))


def build(*case):
    torch.manual_seed(0)
    return Net(*case).double().eval()


INPUTS = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def blocks_of(model, inputs=INPUTS):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    blocks = removable_blocks(model, trace_channels(model, inputs), inputs)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    return blocks


@pytest.mark.parametrize(
    "total", [plain, added_to_the_branch, added_to_the_input, added_in_two_steps]
)
def test_the_block_goes_and_never_its_branch(total):
    model = build(total)
    blocks = blocks_of(model)
    assert [(block.name, block.kind) for block in blocks] == [
        ("one", "identity"), ("two", "identity")
    ]  # fmt: skip
    assert blocks[0].last == ("one.layer.2.bias", "one.layer.2.weight")
    with torch.no_grad():
        for name in blocks[0].last:
            model.get_parameter(name).zero_()
        exact = model(INPUTS)
        skip_modules(model, {"one": blocks[0].kind})
        assert torch.equal(model(INPUTS), exact)


@pytest.mark.parametrize("total", [input_spoilt, scaled])
def test_a_block_that_changes_its_input_stays(total):
    assert blocks_of(build(total)) == ()


def output_overwritten(block, x):
    y = block(x)
    y.mul_(3)
    return x + y


def view_overwritten(block, x):
    y = block(x)
    y.flatten().clamp_(min=0)
    return x + y


def input_overwritten(block, x):
    y = block(x)
    x.mul_(3)
    return x + y


@pytest.mark.parametrize("around", [output_overwritten, view_overwritten, input_overwritten])
def test_what_follows_in_place_does_not_reach_through_an_absent_block(around):
    model = build(plain, around)
    blocks = blocks_of(model)
    assert [(block.name, block.kind) for block in blocks] == [("one", "copy"), ("two", "copy")]
    with torch.no_grad():
        for name in blocks[0].last:
            model.get_parameter(name).zero_()
        exact = model(INPUTS)
        # What does nothing already is taken out with the same care.
        assert idle_modules(model, INPUTS)["one"] == "copy"
        skip_modules(model, {"one": "identity"})
        assert not torch.equal(model(INPUTS), exact), "the copy is needed"
        skip_modules(model, {"one": "copy"})
        assert torch.equal(model(INPUTS), exact)


def test_a_bias_that_starts_at_zero_does_not_hide_what_a_branch_adds():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.layer = nn.LayerNorm(6), branch()
            for linear in (self.layer[0], self.layer[2]):
                nn.init.zeros_(linear.bias)

        def forward(self, x):
            return x + self.layer(self.norm(x))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), Normed(), nn.Linear(6, 3)).double()
    (block,) = blocks_of(model)
    assert block.last == ("1.layer.2.bias", "1.layer.2.weight")


def test_a_branch_that_starts_at_zero_hides_nothing_either():
    model = build(scaled)
    nn.init.zeros_(model.one.layer[2].weight)
    nn.init.zeros_(model.one.layer[2].bias)
    assert blocks_of(model) == ()


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.block, self.last = nn.Linear(4, 6), Block(plain), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.block(self.block(self.first(x))))


def test_a_block_that_runs_twice_stays():
    torch.manual_seed(0)
    assert blocks_of(Twice().double()) == ()


def trained(model, inputs, epochs=8, **options):
    """A model after a few epochs, with the output of its gated form at the freeze."""
    options = {"budget": {"parameters": 0.5}, "logit_lr": 0.5, "freeze": 1.0} | options
    method = StructuredSparsification(
        model, inputs, total_steps=2 * epochs, steps_per_epoch=2, **options
    )
    optimizer = torch.optim.SGD(parameter_groups(model, [method]), lr=0.01, momentum=0.9)
    for epoch in range(epochs):
        method.restructure(optimizer)
        if epoch == 2 and method._structure.layer_gate is not None:
            with torch.no_grad():
                method._structure.layer_gate.logits[0] = -50.0
        for _ in range(2):
            loss = model(inputs).square().mean() + method.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            method.step()
    return method


@pytest.mark.parametrize("total", [plain, added_to_the_branch, added_to_the_input])
@pytest.mark.parametrize("around", [lambda block, x: block(x), output_overwritten])
def test_an_absent_block_returns_its_input_in_training(total, around):
    model = build(total, around)
    method = trained(model.train(), INPUTS)
    structure = method._structure
    assert not bool(structure.blocks[0]) and isinstance(model.one, Skip)

    def expected(inputs):
        hidden = model.first(inputs)
        for block, there in zip((model.one, model.two), structure.blocks.tolist(), strict=True):
            hidden = around(block if there else lambda x: x.clone(), hidden)
        return model.last(hidden)

    assert torch.equal(model(INPUTS), expected(INPUTS))


def encoder(norm_first=True, layers=3):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.0, batch_first=True, norm_first=norm_first, dtype=torch.float64
    )
    stack = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(4, 8, dtype=torch.float64), stack, nn.Linear(8, 3).double())


@pytest.mark.parametrize("absent", [(0,), (1,), (0, 1, 2)])
def test_torchs_encoder_runs_without_some_of_its_layers(absent):
    tokens = torch.randn(2, 5, 4, dtype=torch.float64)
    model = encoder()
    method = StructuredSparsification(
        model, tokens, budget={"parameters": 0.7}, total_steps=8, steps_per_epoch=2
    )
    structure = method._structure
    assert [block.name for block in structure.spec.blocks] == [f"1.layers.{n}" for n in range(3)]
    there = torch.tensor([number not in absent for number in range(3)])
    structure.change_to(structure.present, there, None)
    names = {name for name, _ in model.named_parameters()}
    structure.fold(None)

    def expected():
        hidden = model[0](tokens)
        for number, layer in enumerate(model[1].layers):
            hidden = layer(hidden) if number not in absent else hidden
        return model[2](hidden)

    for mode in (True, False):
        model.train(mode)
        torch.testing.assert_close(model(tokens), expected(), rtol=0, atol=1e-12)
        masked = model[1](model[0](tokens), src_key_padding_mask=torch.zeros(2, 5).bool())
        torch.testing.assert_close(model[2](masked), expected(), rtol=0, atol=1e-12)
    # The layers keep their names until the end, where those that are there move up.
    kept = [number for number in range(3) if number not in absent]
    assert all(any(name.startswith(f"1.layers.{number}.") for name in names) for number in kept)
    exact = model(tokens)
    slim = method.finalize()
    assert slim[1].num_layers == len(slim[1].layers) == max(1, len(kept))
    torch.testing.assert_close(slim(tokens), exact, rtol=0, atol=1e-12)


def test_a_post_norm_encoder_has_no_layer_that_can_go():
    tokens = torch.randn(2, 5, 4, dtype=torch.float64)
    assert blocks_of(encoder(norm_first=False), tokens) == ()


def test_an_absent_block_answers_what_the_code_around_it_asks():
    class Asking(Net):
        def forward(self, inputs):
            hidden = F.relu(self.first(inputs))
            for block in (self.one, self.two):
                if block.kind == "sliding" and block.layer.scale == 2:
                    hidden = block(hidden)
            return self.last(hidden)

    torch.manual_seed(0)
    model = Asking(plain).double()
    for block in (model.one, model.two):
        block.kind, block.layer.scale = "sliding", 2
    trained(model, INPUTS)
    assert isinstance(model.one, Skip) and model.one.kind == "sliding"
    assert model.one.layer.scale == 2 and not list(model.one.parameters())


class Experts(nn.Module):
    """A block that sends each row to one of two experts, in a loop over those that are chosen."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(6, 2)
        self.experts = nn.ModuleList(branch() for _ in range(2))

    def forward(self, x):
        chosen = self.router(x).argmax(-1)
        total = torch.zeros_like(x)
        for number in chosen.unique().tolist():
            rows = (chosen == number).nonzero().flatten()
            total.index_add_(0, rows, self.experts[number](x[rows]))
        return x + total


def test_a_block_that_chooses_by_its_input_may_go():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), Experts(), nn.Linear(6, 3)).double().eval()
    rows = 9 * torch.randn(64, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert [block.name for block in blocks_of(model, rows)] == ["1"]


def test_a_relu_behind_the_sum_needs_an_input_that_is_never_negative():
    def rectified(layer, x):
        return F.relu(x + layer(x))

    torch.manual_seed(0)
    layers = [nn.Linear(4, 6), Block(rectified), Block(rectified), nn.Linear(6, 3)]
    model = nn.Sequential(*layers).double().eval()
    # What the first block is given is positive here, but only by chance.
    with torch.no_grad():
        layers[0].bias.fill_(50)
    assert [block.name for block in blocks_of(model)] == ["2"]
