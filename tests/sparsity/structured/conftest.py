"""Models that grow and prune a few steps, and their full counterparts with masks."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from latewood import models
from latewood.core import parameter_groups
from latewood.core.coupling.trace import layer_tensors
from latewood.core.selection import stored_tensor
from latewood.sparsity.structured import StructuredSparsification


class Concatenating(nn.Module):
    """Two branches side by side in front of one layer, one of them depthwise behind."""

    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.two = nn.Conv2d(3, 5, 1)
        self.deep = nn.Conv2d(11, 11, 3, padding=1, groups=11)
        self.last = nn.Conv2d(11, 7, 1)
        self.head = nn.Linear(7 * 16, 3)

    def forward(self, inputs):
        both = torch.cat([F.relu(self.norm(self.one(inputs))), F.relu(self.two(inputs))], 1)
        return self.head(F.relu(self.last(self.deep(both))).flatten(1))


class Heads(nn.Module):
    """Attention of four heads of two values, then a residual-free head."""

    def __init__(self):
        super().__init__()
        self.heads, self.into, self.out = 4, nn.Linear(5, 24), nn.Linear(8, 3)

    def forward(self, inputs):
        split = self.into(inputs).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*split)
        return self.out(mixed.transpose(1, 2).flatten(2)).mean(1)


CASES = {
    "convnet": lambda: (
        models.convnet(channels=(8, 12, 12), num_classes=4), (torch.randn(8, 1, 8, 8),)
    ),
    "resnet20": lambda: (
        models.resnet20(width=0.25, num_classes=4), (torch.randn(8, 3, 8, 8),)
    ),
    "mobilenet": lambda: (
        models.mobilenet_v1(width=0.125, num_classes=4), (torch.randn(4, 3, 32, 32),)
    ),
    "concat": lambda: (Concatenating(), (torch.randn(8, 3, 4, 4),)),
    "lstm": lambda: (
        models.lstm_classifier(features=5, hidden=10, layers=2, num_classes=4),
        (torch.randn(8, 6, 5),),
    ),
    "language": lambda: (
        models.lstm_language_model(vocabulary=11, hidden=12), (torch.randint(0, 11, (8, 5)),)
    ),
    "heads": lambda: (Heads(), (torch.randn(8, 6, 5),)),
}  # fmt: skip


class Run:
    """A model of the zoo in training."""

    def __init__(self, name, optimizer="sgd", *, epochs=10, steps=3, seed=0, **options):
        torch.manual_seed(seed)
        self.model, self.inputs = CASES[name]()
        self.model.double().train()
        self.inputs = tuple(x.double() if x.is_floating_point() else x for x in self.inputs)
        self.full = copy.deepcopy(self.model)
        options = {"budget": {"parameters": 0.5}, "logit_lr": 0.5} | options
        self.method = StructuredSparsification(
            self.model,
            tuple(x[:1] for x in self.inputs),
            total_steps=epochs * steps,
            steps_per_epoch=steps,
            **options,
        )
        groups = parameter_groups(self.model, [self.method], weight_decay=1e-3)
        make = {
            "sgd": lambda: torch.optim.SGD(groups, lr=0.02, momentum=0.9),
            "adamw": lambda: torch.optim.AdamW(groups, lr=1e-3),
        }
        self.optimizer = make[optimizer]()

    def step(self):
        outputs = self.model(*self.inputs)
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs
        logits = outputs.flatten(0, -2)
        loss = F.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[1])
        self.optimizer.zero_grad()
        (loss + self.method.penalty()).backward()
        self.optimizer.step()
        self.method.step()

    def epoch(self):
        self.method.restructure(self.optimizer)
        for _ in range(self.method.steps_per_epoch):
            self.step()

    def masked(self):
        """The full model with the slim one's values, and zeros where nothing is to be read."""
        structure = self.method._structure
        generator = torch.Generator().manual_seed(5)
        places = dict(layer_tensors(self.full))
        with torch.no_grad():
            for name, held in structure.spec.tensors.items():
                block = held.block
                if block is not None and not structure.blocks[block]:
                    if name in structure.spec.blocks[block].last:
                        getattr(*places[name]).zero_()
                    continue
                tensor = places[name][0]._buffers.get(places[name][1])
                tensor = stored_tensor(*places[name]) if tensor is None else tensor
                if held.axes:
                    # What is absent holds anything; only its readers are zero.
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
                for axis in held.axes:
                    if axis.reads:
                        there = axis.positions(structure.present)
                        gone = sorted(set(range(axis.size)) - set(there.tolist()))
                        tensor.index_fill_(axis.axis, torch.tensor(gone, dtype=torch.int64), 0)
                positions = held.positions(structure.present)
                where = torch.meshgrid(*positions, indexing="ij") if positions else ...
                tensor[where] = held.stored
        return self.full.eval()


@pytest.fixture
def runs():
    return Run
