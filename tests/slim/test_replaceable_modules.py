"""Idle modules that code around them looks for."""

import torch
from torch import nn

from latewood.core import trace_channels
from latewood.slim import Skip, slim
from latewood.slim.idle_blocks import idle_modules
from latewood.slim.replaceable_modules import replaceable_modules
from latewood.sparsity.structured.removable_blocks import removable_blocks


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x):
        return x + self.last(torch.relu(self.inner(x)))


class Collecting(nn.Module):
    """Sums what its blocks of one class return, as backbones of transformers do."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Residual() for _ in range(3))
        self.plain = nn.Sequential(Residual())

    def forward(self, x):
        seen = []
        handles = [
            block.register_forward_hook(lambda _, __, output: seen.append(output))
            for block in self.blocks
            if isinstance(block, Residual)
        ]
        x = self.plain(x)
        for block in self.blocks:
            x = block(x)
        for handle in handles:
            handle.remove()
        return x + 2 * seen[0] + 3 * seen[1]


def test_blocks_whose_output_is_collected_stay():
    torch.manual_seed(0)
    model = Collecting().double().eval()
    with torch.no_grad():
        for block in (*model.blocks[1:], model.plain[0]):
            block.last.weight.zero_()
            block.last.bias.zero_()
    x = torch.randn(5, 4, dtype=torch.float64)
    idle = idle_modules(model, x)
    assert {"blocks.1", "blocks.2", "plain"} <= idle.keys()
    assert replaceable_modules(model, idle, lambda: model(x)).keys() == {"plain", "blocks.1"}
    assert isinstance(model.blocks[1], Residual)
    smaller = slim(model, x)
    torch.testing.assert_close(smaller(x), model(x), atol=1e-12, rtol=0)
    assert isinstance(smaller.blocks[1], Skip) and isinstance(smaller.blocks[2], Residual)


def test_structured_sparsification_keeps_blocks_whose_output_is_collected():
    torch.manual_seed(0)
    model, x = Collecting().eval(), torch.randn(5, 4)
    blocks = removable_blocks(model, trace_channels(model, x), x)
    # The last may go whatever the others do, the first two are what is collected.
    assert [block.name for block in blocks] == ["blocks.2", "plain.0"]


def test_a_trial_of_a_block_is_not_collected():
    # Tried while the network runs, a block would count twice.
    class Watching(Collecting):
        def forward(self, x):
            self.calls = 0
            handle = self.blocks[0].register_forward_hook(self.count)
            x = super().forward(x)
            handle.remove()
            assert self.calls == 1
            return x

        def count(self, *_):
            self.calls += 1

    model, x = Watching().eval(), torch.randn(5, 4)
    removable_blocks(model, trace_channels(model, x), x)
