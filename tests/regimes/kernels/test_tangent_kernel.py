"""Kernels by layers against Jacobians, for all kinds of layers; limits; what is refused."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap

from latewood.errors import RequestError
from latewood.models import grokking_transformer, mobilenet_v1, resnet20
from latewood.regimes import layer_kernels, tangent_kernel, tangent_methods


def by_jacobian(model, inputs):
    """(N, N, C, C) from the Jacobian of every example."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def single(values, example):
        return functional_call(model, values, (example[None],))[0]

    jacobians = vmap(jacrev(single), (None, 0))(parameters, inputs)
    flat = torch.cat([value.flatten(2) for value in jacobians.values()], 2)
    return torch.einsum("ncp,mdp->nmcd", flat, flat)


class Sequence(nn.Module):
    """Parameters of its own, a layer called twice, products without a layer."""

    def __init__(self):
        super().__init__()
        self.into, self.norm, self.twice = nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(3, 3)
        self.matrix, self.position = (
            nn.Parameter(torch.randn(6, 3)),
            nn.Parameter(torch.randn(1, 4, 6)),
        )
        self.gain, self.start = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(1, 1, 3))

    def forward(self, x):
        hidden = self.norm(self.into(x) + self.position).relu()
        hidden = self.twice(self.twice(hidden @ self.matrix).tanh()) * self.gain
        hidden = torch.cat([self.start.expand(len(x), -1, -1), hidden], 1)
        return (hidden**2).mean(1)


class TimeFirst(nn.Module):
    """The examples along the second axis, as in recurrent code, and mixed into the first."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        hidden = self.first(x.transpose(0, 1)).tanh()
        steps, count, _ = hidden.shape
        hidden = self.second(hidden.reshape(steps * count, -1)).tanh().reshape(steps, count, -1)
        return (
            self.out(hidden.transpose(0, 1).reshape(count * steps, -1))
            .reshape(count, steps, -1)
            .sum(1)
        )


class Tied(nn.Module):
    """An embedding that is the head as well, and torch's own attention."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 8, padding_idx=0)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x):
        hidden = self.table(x)
        return self.head((hidden + self.attention(hidden, hidden, hidden)[0])[:, -1])


class Square(torch.autograd.Function):
    """An operation that no mode sees."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x * weight**2

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad * weight**2, (2 * grad * x * weight).sum(0)


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.out = nn.Parameter(torch.randn(5)), nn.Linear(5, 2)

    def forward(self, x):
        return self.out(Square.apply(x, self.weight))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, stride=2),
        nn.GroupNorm(2, 6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 6, 3, groups=3, padding="same", dilation=2),
        nn.BatchNorm2d(6),
        nn.Tanh(),
        nn.Conv2d(6, 4, (1, 3), padding=(0, 1), padding_mode="circular", bias=False),
        nn.Flatten(),
        nn.Linear(36, 3),
    ).eval()


def f64(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


CASES = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(inplace=True), nn.Linear(9, 4)),
        f64(7, 6),
    ),
    "convolutions": (convolutions, f64(6, 2, 6, 6)),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)),
        f64(5, 3, 6),
    ),
    "conv3d": (
        lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten(), nn.Tanh(), nn.Linear(16, 2)),
        f64(4, 1, 3, 3, 3),
    ),
    "sequence": (Sequence, f64(5, 4, 5)),
    "as many examples as steps": (Sequence, f64(4, 4, 5)),
    "time first": (TimeFirst, f64(5, 4, 5)),
    "time first, as many": (TimeFirst, f64(4, 4, 5)),
    "tied": (Tied, torch.randint(0, 11, (6, 5), generator=torch.Generator().manual_seed(0))),
    "parametrized": (
        lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 2)
        ),
        f64(5, 6),
    ),
    "one example": (lambda: nn.Sequential(nn.Linear(6, 3)), f64(1, 6)),
}
SLOW = {"tied": {"attention"}, "parametrized": {"0"}}


@pytest.fixture(params=CASES)
def case(request):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        build, inputs = CASES[request.param]
        return request.param, build().double(), inputs


def test_it_is_the_product_of_jacobians(case):
    name, model, inputs = case
    exact = by_jacobian(model, inputs)
    near = {"rtol": 1e-10, "atol": 1e-10 * float(exact.abs().max())}
    for memory in (2**30, 2**20):
        full = tangent_kernel(model, inputs, memory=memory)
        torch.testing.assert_close(full, exact, **near)
    diagonal = exact.diagonal(dim1=2, dim2=3)
    trace = tangent_kernel(model, inputs, mode="trace")
    torch.testing.assert_close(trace, diagonal.sum(-1), **near)
    torch.testing.assert_close(tangent_kernel(model, inputs, mode="sum"), exact.sum((2, 3)), **near)
    rectangle = tangent_kernel(model, inputs, inputs[:2], mode="diagonal")
    torch.testing.assert_close(rectangle, diagonal[:, :2], **near)
    parts = layer_kernels(model, inputs)
    torch.testing.assert_close(sum(parts.values()), trace, **near)
    assert float(torch.linalg.eigvalsh(trace).min()) > -1e-10 * float(trace.trace())
    slow = {m.parameter.split(".")[0] for m in tangent_methods(model, inputs) if m.way != "layer"}
    assert slow == SLOW.get(name, set())


def test_many_blocks_are_one():
    model, inputs = (
        nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 10)).double(),
        f64(40, 64),
    )
    whole = tangent_kernel(model, inputs)
    parts = tangent_kernel(model, inputs, memory=2**20)
    torch.testing.assert_close(parts, whole, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(whole.permute(1, 0, 3, 2), whole, rtol=1e-12, atol=1e-12)


def test_what_no_operation_shows_is_noticed():
    inputs = f64(4, 5)
    hidden = Hidden().double()
    ways = {m.parameter: m.way for m in tangent_methods(hidden, inputs)}
    assert ways == {"weight": "loop", "out.weight": "layer", "out.bias": "layer"}
    rows = []
    for x in inputs:
        grads = [
            torch.autograd.grad(o, list(hidden.parameters()), retain_graph=True)
            for o in hidden(x[None])[0]
        ]
        rows.append(torch.stack([torch.cat([g.flatten() for g in grad]) for grad in grads]))
    stacked = torch.stack(rows)
    exact = torch.einsum("ncp,mdp->nmcd", stacked, stacked)
    torch.testing.assert_close(tangent_kernel(hidden, inputs), exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (lambda: resnet20(width=0.25), torch.randn(3, 3, 8, 8)),
        (lambda: mobilenet_v1(width=0.125), torch.randn(2, 3, 32, 32)),
        (
            lambda: grokking_transformer(vocabulary=7, width=8, heads=2, hidden=16),
            torch.randint(0, 7, (3, 3)),
        ),
    ],
    ids=["resnet20", "mobilenet", "grokking"],
)
def test_networks_of_the_papers(model, inputs):
    network = model().double().eval()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    output = network(inputs)
    pick = (
        None if output.ndim == 2 else lambda net, x: net(x[0] if isinstance(x, tuple) else x)[:, -1]
    )
    found = tangent_kernel(network, inputs, mode="trace", forward=pick)
    chosen = [p for p in network.parameters() if p.requires_grad]
    output = output if output.ndim == 2 else output[:, -1]
    for c in (0, 1):
        grads = [
            torch.cat(
                [
                    g.flatten()
                    for g in torch.autograd.grad(
                        output[n, c], chosen, retain_graph=True, materialize_grads=True
                    )
                ]
            )
            for n in (0, 1)
        ]
        one = tangent_kernel(network, inputs, mode="diagonal", forward=pick)[0, 1, c]
        assert float(one) == pytest.approx(float(grads[0] @ grads[1]), rel=1e-8)
    assert bool(torch.isfinite(found).all())


def test_a_language_model_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_embd=8, n_layer=1, n_head=2, vocab_size=13, n_positions=6, num_labels=3
    )
    config.pad_token_id = 0
    model = transformers.GPT2ForSequenceClassification(config).double().eval()
    ids = torch.randint(1, 13, (4, 5), generator=torch.Generator().manual_seed(0))
    found = tangent_kernel(model, {"input_ids": ids})
    chosen = list(model.parameters())
    logits = model(input_ids=ids).logits
    rows = [
        torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(
                    logits[n, c], chosen, retain_graph=True, materialize_grads=True
                )
            ]
        )
        for n in range(4)
        for c in range(3)
    ]
    stacked = torch.stack(rows).unflatten(0, (4, 3))
    exact = torch.einsum("ncp,mdp->nmcd", stacked, stacked)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)
    ways = {m.parameter: m.way for m in tangent_methods(model, {"input_ids": ids})}
    assert ways["transformer.h.0.attn.c_attn.weight"] == "layer"
    assert ways["transformer.wte.weight"] == "layer"


def test_a_wide_network_nears_the_infinite_one():
    """The closed form for f = m^-1/2 sum a_j relu(w_j x)."""
    width = 40_000
    torch.manual_seed(0)

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (
                nn.Linear(2, width, bias=False),
                nn.Linear(width, 1, bias=False),
            )
            nn.init.normal_(self.first.weight)
            nn.init.normal_(self.second.weight)

        def forward(self, x):
            return self.second(self.first(x).relu()) / math.sqrt(width)

    angles = torch.tensor([0.0, 0.7, 2.0])
    inputs = torch.stack([angles.cos(), angles.sin()], 1)
    t = (angles[:, None] - angles).abs()
    closed = (t.sin() + (math.pi - t) * t.cos()) / (2 * math.pi) + t.cos() * (math.pi - t) / (
        2 * math.pi
    )
    torch.testing.assert_close(
        tangent_kernel(Wide(), inputs, mode="trace"), closed, rtol=0, atol=0.03
    )


def test_homogeneous_networks_scale_as_their_degree():
    model = nn.Sequential(
        nn.Linear(5, 7, bias=False), nn.ReLU(), nn.Linear(7, 2, bias=False)
    ).double()
    before = tangent_kernel(model, f64(4, 5))
    with torch.no_grad():
        for p in model.parameters():
            p *= 3.0
    torch.testing.assert_close(tangent_kernel(model, f64(4, 5)), 9 * before, rtol=1e-12, atol=0)


def test_parameters_are_chosen_and_nothing_changes():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    model[2].bias.requires_grad_(False)
    model[0].weight.grad = torch.ones(4, 5)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    names = set(layer_kernels(model, torch.randn(3, 5, generator=torch.Generator().manual_seed(0))))
    assert names == {"0.weight", "0.bias", "1.weight", "1.bias", "2.weight"}
    inputs = torch.ones(2, 5)
    assert set(layer_kernels(model, inputs, include=["*.weight"], exclude=["1.*"])) == {
        "0.weight",
        "2.weight",
    }
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones(4, 5)) and model[2].weight.grad is None
    assert not model[2].bias.requires_grad


def test_precision_is_chosen():
    model, inputs = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(3, 5)
    exact = tangent_kernel(model, inputs, dtype=torch.float64)
    assert exact.dtype == torch.float64 and model[0].weight.dtype == torch.float32
    torch.testing.assert_close(tangent_kernel(model, inputs).double(), exact, rtol=1e-5, atol=1e-6)
    low = tangent_kernel(model.bfloat16(), inputs.bfloat16()).double()
    torch.testing.assert_close(low, exact, rtol=0.1, atol=0.1)


class Coupled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x):
        return self.layer(x - x.mean(0))


class Noisy(Coupled):
    def forward(self, x):
        return self.layer(x + torch.randn_like(x))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (
            lambda: nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)),
            {},
            "normalises with its batch",
        ),
        (lambda: nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5)), {}, "Dropout in training mode"),
        (Coupled, {}, "depends on the others of its batch"),
        (Noisy, {}, "change from one run to the next"),
        (lambda: nn.Sequential(nn.Linear(5, 4), nn.Unflatten(1, (2, 2))), {}, "outputs of shape"),
        (lambda: nn.Sequential(nn.Linear(5, 1), nn.Flatten(0)), {}, "outputs of shape"),
        (lambda: nn.Linear(5, 3), {"mode": "all"}, "^mode: got 'all'"),
        (lambda: nn.Linear(5, 3), {"memory": 10}, "^memory: got 10"),
        (lambda: nn.Linear(5, 3), {"dtype": torch.int8}, "^dtype: got"),
        (lambda: nn.Linear(5, 3), {"include": ["none.*"]}, "^include: got"),
        (lambda: nn.Linear(5, 3), {"exclude": ["*"]}, "at least one chosen parameter"),
        (lambda: nn.Linear(5, 3).requires_grad_(False), {}, "at least one chosen parameter"),
        (lambda: nn.Linear(5, 3), {"include": "weight"}, "a list of globs"),
    ],
)
def test_what_has_no_kernel_is_refused(model, options, message):
    with pytest.raises(RequestError, match=message):
        tangent_kernel(model(), torch.randn(4, 5), **options)


def test_inputs_that_are_none_are_refused():
    for inputs in (
        torch.empty(0, 5),
        torch.tensor(1.0),
        (),
        {"a": torch.ones(2, 5), "b": torch.ones(3)},
    ):
        with pytest.raises(RequestError, match=r"^inputs: got"):
            tangent_kernel(nn.Linear(5, 3), inputs)
    with pytest.raises(RequestError, match=r"^other: got"):
        tangent_kernel(nn.Linear(5, 3), torch.ones(2, 5), torch.empty(0, 5))


class Sorted(nn.Module):
    """Runs its layer on the examples in an order that they decide."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        order = x[:, 0].argsort()
        return self.head(torch.tanh(self.inner(x[order]))[order.argsort()])


class Routed(nn.Module):
    """Has one of two layers for each example."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)])

    def forward(self, x):
        output = x.new_zeros(len(x), 2)
        for place, expert in enumerate(self.experts):
            rows = ((x[:, 0] > 0).long() == place).nonzero()[:, 0]
            output = output.index_add(0, rows, expert(x[rows]))
        return output


@pytest.mark.parametrize("model", [Sorted, Routed])
def test_examples_that_change_places_after_the_first_three(model):
    """The plan sees three examples; what comes after them may lie anywhere."""
    torch.manual_seed(0)
    network = model().double()
    x = torch.randn(8, 4, dtype=torch.float64)
    x[:, 0] = torch.tensor([0.1, 0.2, 0.3, -0.4, 0.5, -0.6, 0.25, 0.15])
    found = tangent_kernel(network, x)
    singly = torch.cat(
        [torch.cat([tangent_kernel(network, a[None], b[None]) for b in x], 1) for a in x]
    )
    torch.testing.assert_close(found, singly, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(tangent_kernel(network, x[:2], x), singly[:2], rtol=1e-12, atol=0)
