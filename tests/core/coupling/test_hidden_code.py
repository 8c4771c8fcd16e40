"""Code that a trace cannot look into holds what goes in; models that cannot run are refused."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from latewood.core.coupling import slice_channels, trace_channels, verify_plan, widen_channels
from latewood.errors import RequestError
from latewood.slim import slim
from latewood.sparsity.structured import StructuredSparsification

INPUTS = (torch.randn(2, 4, generator=torch.Generator().manual_seed(0)),)


class Between(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def net(*middle):
    return nn.Sequential(
        nn.Linear(4, 6), *middle, nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)
    )  # fmt: skip


@torch.jit.script
def gated(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (Between(lambda x: gated(x)), "nothing that was seen reads them"),
        (torch.jit.script(nn.Linear(6, 6)), "scripted"),
        (Between(lambda x: torch.from_numpy(x.detach().numpy().copy())), "no rule for numpy"),
        (Between(lambda x: torch.tensor(x.tolist())), "no rule for tolist"),
        (Between(torch.vmap(lambda row: 2 * row)), "nothing that was seen reads them"),
    ],
)
def test_what_goes_into_it_keeps_its_channels(middle, reason):
    model = net(middle)
    plan = trace_channels(model, INPUTS)
    assert any(reason in barrier.reason for barrier in plan["0"].barriers)
    assert not plan["2"].barriers
    assert verify_plan(model, plan, INPUTS) <= 1e-12
    slim(model, INPUTS)


def test_a_layer_under_vmap_keeps_its_channels():
    class Mapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.hidden, self.head = net(), nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.head(self.hidden(torch.vmap(self.inner)(x)).relu())

    plan = trace_channels(Mapped(), INPUTS)
    assert [group.name for group in plan.free] == ["hidden"]


def test_a_model_that_cannot_be_copied_is_refused():
    model = net(Between(gated))
    plan = trace_channels(model, INPUTS)
    for use in (lambda: verify_plan(model, plan, INPUTS), lambda: slim(model, INPUTS)):
        with pytest.raises(RequestError, match="cannot be copied"):
            use()


def test_compiled_modules_are_followed():
    inner = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    model = net(torch.compile(inner, backend="eager"))
    plan = trace_channels(model, INPUTS)
    assert len(plan.free) == 3
    slice_channels(model, plan, {group.name: range(2) for group in plan.free})
    assert model(*INPUTS).shape == (2, 3)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("form", ["weight_norm", "prune"])
def test_weights_that_hooks_compute_stay_and_the_rest_goes_on(form):
    model = net(nn.Linear(6, 6), nn.ReLU())
    if form == "weight_norm":
        nn.utils.weight_norm(model[1])
    else:
        prune.l1_unstructured(model[1], "weight", 0.5)
    plan = trace_channels(model, INPUTS)
    assert [group.name for group in plan.free] == ["3"]
    assert verify_plan(model, plan, INPUTS) <= 1e-12
    with torch.no_grad():
        model[-1].weight[:, :3] = 0
    assert slim(model, INPUTS)[-1].in_features == 5


class Exponential(nn.Module):
    """A pair of rows is none any more: exp(z) and exp(-z) do not cancel."""

    def forward(self, weight):
        return weight.exp()


class Symmetric(nn.Module):
    """Part of it is no symmetric form of a part."""

    def forward(self, weight):
        return weight.triu() + weight.triu(1).T


@pytest.mark.parametrize("form", [Exponential, Symmetric])
def test_weights_that_others_compute_keep_their_channels(form):
    model, x = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)), torch.randn(2, 3)
    nn.utils.parametrize.register_parametrization(model[1], "weight", form())
    plan = trace_channels(model, x)
    for name in ("0", "1"):
        assert [(barrier.kind, barrier.reason) for barrier in plan[name].barriers] == [
            ("fixed", f"1.weight is computed by {form.__name__}, which says nothing of channels")
        ]
    assert not plan.free


def test_models_without_values_are_refused_where_values_matter():
    with torch.device("meta"):
        model, inputs = net(), (torch.empty(2, 4),)
    plan = trace_channels(model, inputs)
    assert len(plan.free) == 2
    for use in (
        lambda: verify_plan(model, plan, inputs),
        lambda: slim(model, inputs),
        lambda: widen_channels(model, plan, {"0": 2}, fill="pair"),
        lambda: StructuredSparsification(
            model, inputs, budget={"parameters": 0.5}, total_steps=4, steps_per_epoch=2
        ),
    ):
        with pytest.raises(RequestError, match=r"0\.weight is on the meta device"):
            use()


def test_a_lazy_model_is_refused_by_the_name_of_its_layer():
    with pytest.raises(RequestError, match=r"0\.weight has no shape yet"):
        trace_channels(nn.Sequential(nn.LazyLinear(3)), INPUTS)


@pytest.mark.parametrize("function", [lambda x: None, lambda x: "text"])
def test_a_model_that_returns_no_tensors_is_refused(function):
    with pytest.raises(RequestError, match="expected tensors"):
        trace_channels(net(Between(lambda x: x)).append(Between(function)), INPUTS)


def test_an_empty_batch_is_refused():
    with pytest.raises(RequestError, match=r"example_inputs: .* at least one entry"):
        trace_channels(net(), (torch.empty(0, 4),))


def test_each_run_has_a_cache_of_its_own():
    class Cache:
        def __init__(self):
            self.states = []

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x, cache):
            cache.states.append(self.first(x).relu())
            return self.last(torch.cat(cache.states))

    model, cache = Decoder(), Cache()
    plan = trace_channels(model, (*INPUTS, cache))
    assert verify_plan(model, plan, (*INPUTS, cache)) <= 1e-12
    slim(model, (*INPUTS, cache))
    assert cache.states == []
