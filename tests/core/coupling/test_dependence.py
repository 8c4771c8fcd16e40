"""Which entries depend on the input: never one too few, and as few as plain arithmetic says."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from latewood.core.coupling.dependence import RANDOM, Dependence
from latewood.core.coupling.dependence_rules import DEPENDENCE_RULES
from latewood.core.coupling.operation_table import OPERATIONS, dependence_rule
from latewood.core.coupling.trace import prepared, run_model
from latewood.core.coupling.watched_run import watched

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


def sparse(*shape, share=0.5):
    return normal(*shape) * (torch.rand(shape, generator=GENERATOR) < share)


class Net(nn.Module):
    """Multiplies its input with a mask, and hands it to the case with a weight."""

    def __init__(self, case, mask, weight=None):
        super().__init__()
        self.case = case
        self.register_buffer("mask", mask.double())
        self.weight = nn.Parameter(normal(3) if weight is None else weight)

    def forward(self, x):
        return self.case(x * self.mask, self.weight)


def follow(model, inputs):
    """The mask of the output, and what the weights read."""
    with prepared(model) as tensors:
        dependence = Dependence(tensors, dependence_rule)
        with watched(model, dependence):
            output = run_model(model, inputs)
        return dependence.of(output).clone(), dependence.reads


def changing(model, shape):
    """Which entries of the output really change with the input."""
    with torch.no_grad():
        outputs = [model(normal(*shape)) for _ in range(4)]
    return torch.stack([output != outputs[0] for output in outputs]).any(0)


SHAPE = (2, 4, 6)
HALF = torch.arange(6) % 2 == 0
CASES = {
    "sum with a constant": lambda x, w: x + 1,
    "kept constant": lambda x, w: torch.where(w[0] > 9, x, x * 0),
    "permute": lambda x, w: x.permute(2, 0, 1),
    "transpose and view": lambda x, w: x.transpose(1, 2).contiguous().view(2, -1),
    "view of a transposed": lambda x, w: x.transpose(0, 1).view(4, 2, 2, 3),
    "view as": lambda x, w: x.view_as(torch.empty(8, 6)),
    "unflatten": lambda x, w: x.unflatten(-1, (2, 3)),
    "squeeze in place": lambda x, w: x.clone().unsqueeze_(0).squeeze_(0),
    "cat": lambda x, w: torch.cat([x, x.flip(0)], 1),
    "stack": lambda x, w: torch.stack([x, x], 1),
    "split": lambda x, w: x.split([2, 4], -1)[1],
    "chunk": lambda x, w: x.chunk(2, 1)[0],
    "roll": lambda x, w: x.roll(1, -1),
    "flip": lambda x, w: x.flip(-1),
    "index": lambda x, w: x[:, 1:, [5, 0, 3]],
    "index select": lambda x, w: x.index_select(-1, torch.tensor([5, 0, 3])),
    "gather": lambda x, w: x.gather(-1, torch.tensor([5, 0, 3]).expand(2, 4, 3)),
    "expand": lambda x, w: x[:, :1].expand(2, 5, 6),
    "repeat": lambda x, w: x.repeat(1, 1, 2),
    "repeat interleave": lambda x, w: x.repeat_interleave(2, -1),
    "pad": lambda x, w: F.pad(x, (1, 2)),
    "mean": lambda x, w: x.mean(1),
    "mask": lambda x, w: x.masked_fill(HALF, 2.0),
    "powers": lambda x, w: (x**2).sqrt().clamp(0.1, 3),
    "matmul": lambda x, w: x @ torch.eye(6, 3, dtype=x.dtype),
    "addmm": lambda x, w: torch.addmm(w, x[0], torch.eye(6, 3, dtype=x.dtype)),
    "weights from data": lambda x, w: F.layer_norm(x, (6,), x[0, 0]),
    "norm": lambda x, w: F.group_norm(x, 2),
    "chosen by data": lambda x, w: x[:, x.sum((0, 2)).argsort()],
    "in place": lambda x, w: x.clone().add_(1).mul_(2),
    "written": lambda x, w: torch.zeros(2, 4, 6, dtype=x.dtype).index_add_(1, torch.arange(4), x),
    "out": lambda x, w: torch.cat([x, x], 1, out=torch.empty(0, dtype=x.dtype)),
}


@pytest.mark.parametrize("name", CASES)
def test_no_entry_that_changes_is_missed(name):
    masked = torch.ones(4, 6, dtype=torch.bool)
    masked[1:3] = False
    masked[:, 3] = False
    for mask in (masked, torch.ones(4, 6), torch.zeros(4, 6)):
        model = Net(CASES[name], mask)
        followed, _ = follow(model, normal(*SHAPE))
        missed = changing(model, SHAPE) & ~followed
        assert not bool(missed.any())


MOVING = """
    permute, transpose and view, view of a transposed, unflatten, squeeze in place, cat, stack,
    split, chunk, roll, flip, index, index select, gather, expand, repeat, repeat interleave, pad
"""


@pytest.mark.parametrize("name", [name.strip() for name in MOVING.split(",")])
def test_what_moves_data_moves_the_mask(name):
    mask = torch.rand(4, 6, generator=torch.Generator().manual_seed(3)) < 0.5
    followed, _ = follow(Net(CASES[name], mask), normal(*SHAPE))
    assert torch.equal(followed, CASES[name](mask.double().expand(SHAPE), None) > 0)


def test_places_chosen_by_data_hold_zeros_where_all_do():
    model = Net(lambda x, w: torch.zeros(4, 6)[x.sum((0, 2)).argsort()], torch.ones(4, 6))
    assert not bool(follow(model, normal(*SHAPE))[0].any())
    model = Net(lambda x, w: torch.arange(4.0)[x.sum((0, 2)).argsort()], torch.ones(4, 6))
    assert bool(follow(model, normal(*SHAPE))[0].all())


@pytest.mark.parametrize("rows", ["alike", "different", "none", "all", "many"])
def test_a_linear_map_reaches_what_its_weights_say(rows):
    count = 40 if rows == "many" else 5
    mask = torch.rand(count, 130, generator=GENERATOR) < (0.02 if rows == "many" else 0.3)
    if rows == "alike":
        mask = mask[:1].expand(5, 130)
    elif rows in ("none", "all"):
        mask = torch.full((5, 130), rows == "all")
    weight = sparse(20, 130, share=0.05)
    weight[3] = 0
    weight[4, :129] = 0
    model = Net(lambda x, w: F.linear(x, w), mask, weight)
    expected = mask.double() @ (weight != 0).double().T > 0
    assert torch.equal(follow(model, normal(count, 130))[0], expected)


SETTINGS = [
    {"stride": 2, "padding": 1},
    {"padding": 2, "dilation": 2},
    {"groups": 2, "padding": 1},
    {"groups": 2, "stride": 3},
]


@pytest.mark.parametrize(
    ("settings", "transposed", "planes"),
    list(itertools.product(SETTINGS, [False, True], ["whole", "torn"])),
)
def test_a_convolution_reaches_what_its_taps_say(settings, transposed, planes):
    mask = (torch.rand(4, 1, 1, generator=GENERATOR) < 0.5).expand(4, 7, 6).clone()
    mask[0] = False
    if planes == "torn":
        mask &= torch.rand(4, 7, 6, generator=GENERATOR) < 0.3
    groups = settings.get("groups", 1)
    weight = sparse(4, 6 // groups, 3, 3, share=0.2) if transposed else sparse(6, 4 // groups, 3, 3)
    weight[..., 0] = 0
    convolve = F.conv_transpose2d if transposed else F.conv2d
    model = Net(lambda x, w: convolve(x, w, **settings), mask, weight)
    used = (weight != 0).double()
    expected = convolve(mask.double().expand(2, -1, -1, -1), used, **settings) > 0.5
    assert torch.equal(follow(model, normal(2, 4, 7, 6))[0], expected)


def test_an_expert_without_tokens_reads_anything():
    model = Net(lambda x, w: F.linear(x[x[:, 0] > 1e9], w), torch.ones(6), normal(3, 6))
    _, reads = follow(model, normal(5, 6))
    assert not bool(reads.zeros["weight"].any())


def test_a_product_with_a_matrix_says_what_it_reads():
    mask = torch.tensor([1, 0, 1, 0, 0, 1])
    for case in (lambda x, w: x @ w, lambda x, w: torch.addmm(torch.zeros(3).double(), x, w)):
        _, reads = follow(Net(case, mask, normal(6, 3)), normal(5, 6))
        assert torch.equal(reads.zeros["weight"], mask == 0) and not reads.folds


def test_a_number_taken_from_data_may_steer_everything():
    def steered(x, weight):
        return weight * 1 if float(x.sum()) > 0 else weight * 2

    assert bool(follow(Net(steered, torch.ones(6)), normal(2, 6))[0].all())


def test_every_operation_is_taught_once_with_both_rules():
    assert set(DEPENDENCE_RULES) <= set(OPERATIONS)
    assert all(
        rule.dependence is None or name in DEPENDENCE_RULES
        for name, rule in OPERATIONS.items()
        if any(part in name for part in RANDOM)
    )
    derived = {name for name, rule in OPERATIONS.items() if rule.dependence} - set(DEPENDENCE_RULES)
    assert {"add", "where", "permute", "getitem", "reshape", "expand", "roll"} <= derived
    assert not {"softmax", "setitem", "copy", "rrelu", "get", "sort"} & derived
    assert dependence_rule("an operation of one's own") is None
