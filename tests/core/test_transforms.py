"""Transformations: one stacking order, every layer type sees them, and they come off exactly."""

import copy
import itertools
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from latewood.core.selection import select_parameters, stored_tensor
from latewood.core.transforms import MASK, Follows, attach, bake, detach, transformations
from latewood.errors import RequestError


class HardMask(nn.Module):
    order = MASK
    follows: ClassVar = {"kept": Follows()}

    def __init__(self, kept):
        super().__init__()
        self.register_buffer("kept", kept)

    def forward(self, weight):
        return weight * self.kept


CASES = {
    "linear": lambda: (nn.Linear(3, 4), torch.randn(2, 3)),
    "conv": lambda: (nn.Conv2d(2, 3, 3), torch.randn(2, 2, 5, 5)),
    "lstm": lambda: (nn.LSTM(3, 4, 2, bidirectional=True, batch_first=True), torch.randn(2, 5, 3)),
    "projected lstm": lambda: (nn.LSTM(3, 4, proj_size=2), torch.randn(5, 2, 3)),
    "gru": lambda: (nn.GRU(3, 4), torch.randn(5, 2, 3)),
    "rnn": lambda: (nn.RNN(3, 4, bias=False), torch.randn(5, 2, 3)),
    "cell": lambda: (nn.GRUCell(3, 4), torch.randn(2, 3)),
    "attention": lambda: (nn.MultiheadAttention(4, 2), torch.randn(3, 2, 4)),
    "cross attention": lambda: (
        nn.MultiheadAttention(4, 2, kdim=4, vdim=4, add_bias_kv=True),
        torch.randn(3, 2, 4),
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    torch.manual_seed(0)
    return CASES[request.param]()


pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")


def run(layer, inputs):
    if isinstance(layer, nn.MultiheadAttention):
        return layer(inputs, inputs, inputs)[0]
    if isinstance(layer, nn.GRUCell):
        return layer(inputs, torch.ones(2, 4))
    out = layer(inputs)
    return out[0] if isinstance(out, tuple) else out


def attach_all(layer, *factories):
    for selected in select_parameters(layer):
        for factory in factories:
            attach(selected.module, selected.parameter_name, factory(selected.tensor.shape))


def baked_by_hand(layer):
    """A layer without transformations that holds what the transformed one computes with."""
    plain = copy.deepcopy(layer)
    for selected, source in zip(select_parameters(plain), select_parameters(layer), strict=True):
        effective = source.tensor.detach().clone()
        for each in transformations(selected.module, selected.parameter_name):
            bake(selected.module, selected.parameter_name, each)
        with torch.no_grad():
            selected.stored.copy_(effective)
    return plain


def test_every_layer_computes_with_the_transformed_weights(case, mask, precision):
    layer, inputs = case
    before = run(layer, inputs)
    attach_all(layer, mask, lambda shape: precision())
    after = run(layer, inputs)
    assert not torch.allclose(before, after)
    assert torch.equal(after, run(baked_by_hand(layer), inputs))
    layer.eval()
    with torch.no_grad():  # attention and recurrent layers take other paths here
        assert torch.allclose(run(layer, inputs), after.detach(), atol=1e-6)


def test_gradients_reach_the_transformations(case, mask, precision):
    layer, inputs = case
    attach_all(layer, mask, lambda shape: precision())
    for _ in range(2):  # a second step: nothing of the first graph may be left behind
        layer.zero_grad()
        run(layer, inputs).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        # A key's bias shifts all scores of a query alike, so its gradient is zero up to rounding.
        if "bias" not in name:
            assert parameter.grad.abs().sum() > 0, name


def test_the_gradient_of_an_lstm_transformation_is_the_derivative(precision):
    layer, inputs = nn.LSTM(3, 4, 2).double(), torch.randn(5, 2, 3, dtype=torch.float64)
    step = precision().double()
    attach(layer, "weight_hh_l1", step)
    run(layer, inputs).square().sum().backward()
    epsilon = 1e-6
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            step.step += sign * epsilon
            losses.append(run(layer, inputs).square().sum())
            step.step -= sign * epsilon
    assert step.step.grad.item() == pytest.approx(
        ((losses[0] - losses[1]) / (2 * epsilon)).item(), rel=1e-7
    )


@pytest.mark.parametrize("sequence", list(itertools.permutations(range(3))))
def test_the_stacking_order_does_not_depend_on_the_attachment_order(
    sequence, mask, precision, faults
):
    layer = nn.Linear(3, 4)
    weight = layer.weight
    stack = [precision(), mask(weight.shape), faults()]
    for position in sequence:
        attach(layer, "weight", stack[position])
    assert transformations(layer, "weight") == stack
    assert torch.equal(layer.weight, stack[2](stack[1](stack[0](weight))))
    assert stored_tensor(layer, "weight") is weight


def test_equal_orders_stay_in_order_of_attachment(mask, precision):
    layer = nn.Linear(3, 4)
    first, second, innermost = mask(layer.weight.shape), mask(layer.weight.shape), precision()
    for each in (first, second, innermost):
        attach(layer, "weight", each)
    assert transformations(layer, "weight") == [innermost, first, second]


def test_bake_takes_out_the_innermost_and_leaves_the_others(mask, precision, faults):
    layer = nn.Linear(3, 4)
    weight = layer.weight
    stack = [precision(), mask(weight.shape), faults()]
    for each in stack:
        attach(layer, "weight", each)
    effective = layer.weight.detach().clone()
    while stack:
        innermost = stack.pop(0)
        expected = innermost(weight.detach().clone())
        bake(layer, "weight", innermost)
        assert transformations(layer, "weight") == stack
        assert stored_tensor(layer, "weight") is weight
        assert torch.equal(weight, expected)
        assert torch.equal(layer.weight, effective)


def test_what_does_not_commute_is_not_baked_before_what_is_inside_it(mask, precision, faults):
    layer = nn.Linear(3, 4)
    stack = [precision(), mask(layer.weight.shape), faults()]
    for each in stack:
        attach(layer, "weight", each)
    before = copy.deepcopy(layer.state_dict())
    for outer, inner in (("Mask", "Precision"), ("Faults", "Precision")):
        (transformation,) = [each for each in stack if type(each).__name__ == outer]
        says = (
            f"{outer} on weight does not commute with {inner} inside it; "
            f"expected {inner} to be baked first, then {outer}"
        )
        with pytest.raises(RequestError, match=says):
            bake(layer, "weight", transformation)
    assert transformations(layer, "weight") == stack
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_masks_commute(mask):
    layer = nn.Linear(3, 4)
    inner, outer = mask(layer.weight.shape), mask(layer.weight.shape)
    with torch.no_grad():
        outer.logits.neg_()
    for each in (inner, outer):
        attach(layer, "weight", each)
    before = layer.weight.detach().clone()
    bake(layer, "weight", outer)
    assert transformations(layer, "weight") == [inner]
    torch.testing.assert_close(layer.weight, before)


def test_a_class_says_what_else_it_commutes_with(mask, faults):
    """Rows change their sign before or after a mask; a mask that shifts entries is no product."""

    class Negated(faults):
        commutes_with = (MASK,)

    class Rolled(mask):
        commutes_with = ()

        def forward(self, weight):
            return super().forward(weight.roll(1))

    layer = nn.Linear(3, 4)
    inner, negated = mask(layer.weight.shape), Negated()
    for each in (inner, negated):
        attach(layer, "weight", each)
    before = layer.weight.detach().clone()
    bake(layer, "weight", negated)
    torch.testing.assert_close(layer.weight, before)
    rolled = Rolled(layer.weight.shape)
    attach(layer, "weight", rolled)
    with pytest.raises(RequestError, match="Rolled on weight does not commute with Mask"):
        bake(layer, "weight", rolled)


def test_what_another_package_has_put_there_is_innermost_and_commutes_with_nothing(mask):
    class Foreign(nn.Module):
        def forward(self, weight):
            return weight.square()

    layer = nn.Linear(3, 4)
    outer = mask(layer.weight.shape)
    attach(layer, "weight", outer)
    parametrize.register_parametrization(layer, "weight", Foreign())
    attach(layer, "weight", another := mask(layer.weight.shape))
    assert [type(each) for each in transformations(layer, "weight")] == [Foreign, mask, mask]
    with pytest.raises(RequestError, match="Mask on weight does not commute with Foreign"):
        bake(layer, "weight", another)


def test_pruned_weights_are_zero_though_the_format_has_no_zero(sign_format):
    """A mask inside such a format would be undone by it."""
    layer = nn.Linear(30, 20)
    kept = torch.rand(20, 30) < 0.3
    for each in (hard := HardMask(kept), form := sign_format()):
        attach(layer, "weight", each)
    assert torch.equal(layer.weight != 0, kept)
    bake(layer, "weight", form)
    assert bool(stored_tensor(layer, "weight").all())
    bake(layer, "weight", hard)
    assert torch.equal(layer.weight != 0, kept)
    assert layer.weight.abs().unique().tolist() == [0, form.size]


def test_baking_all_from_the_inside_keeps_the_function_and_leaves_a_plain_layer(
    case, mask, precision
):
    layer, inputs = case
    kind, names = type(layer), [name for name, _ in layer.named_parameters()]
    attach_all(layer, mask, lambda shape: precision())
    before = run(layer, inputs)
    for selected in select_parameters(layer):
        for each in transformations(selected.module, selected.parameter_name):
            bake(selected.module, selected.parameter_name, each)
    assert type(layer) is kind
    assert [name for name, _ in layer.named_parameters()] == names
    assert torch.equal(run(layer, inputs), before)
    fresh = copy.deepcopy(layer)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(run(fresh, inputs), before)


def test_a_deep_copy_is_its_own_model(case, mask, precision):
    layer, inputs = case
    attach_all(layer, mask)
    run(layer, inputs).sum().backward()
    before = run(layer, inputs)
    twin = copy.deepcopy(layer)
    attach_all(twin, lambda shape: precision())
    for selected in select_parameters(twin):
        for each in transformations(selected.module, selected.parameter_name):
            bake(selected.module, selected.parameter_name, each)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not torch.allclose(run(twin, inputs), before)
    assert torch.equal(run(layer, inputs), before)
    assert all(len(transformations(s.module, s.parameter_name)) == 1
               for s in select_parameters(layer))  # fmt: skip


def test_moving_a_recurrent_layer_leaves_it_copyable(mask):
    layer = nn.LSTM(3, 4)
    attach_all(layer, mask)
    layer.double()
    twin = copy.deepcopy(layer)
    inputs = torch.randn(5, 2, 3, dtype=torch.float64)
    assert torch.equal(run(twin, inputs), run(layer, inputs))
    with torch.no_grad():
        stored_tensor(twin, "weight_hh_l0").mul_(2)
    assert not torch.equal(run(twin, inputs), run(layer, inputs))


def test_a_failed_call_of_a_recurrent_layer_leaves_it_usable(mask):
    layer = nn.LSTM(3, 4)
    attach_all(layer, mask)
    with pytest.raises(RuntimeError):
        layer(torch.randn(5, 2, 7))
    assert copy.deepcopy(layer)(torch.randn(5, 2, 3))[0].shape == (5, 2, 4)


def test_state_dict_round_trip_into_a_freshly_attached_model(case, mask, precision):
    layer, inputs = case
    fresh = copy.deepcopy(layer)
    attach_all(layer, mask, lambda shape: precision())
    attach_all(fresh, lambda shape: precision(), mask)  # another order of attachment
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter))
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(run(fresh, inputs), run(layer, inputs))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ["linear", "conv", "lstm", "attention"])
def test_torch_compile_traces(name, backend, mask, precision):
    torch.manual_seed(0)
    layer, inputs = CASES[name]()
    attach_all(layer, mask, lambda shape: precision())
    expected = run(layer, inputs)
    compiled = torch.compile(layer, backend=backend)
    got = compiled(inputs, inputs, inputs) if name == "attention" else compiled(inputs)
    got = got[0] if isinstance(got, tuple) else got
    assert torch.allclose(got, expected, atol=1e-6)
    got.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    torch._dynamo.reset()


@pytest.fixture
def one_process_group(tmp_path):
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["linear", "lstm"])
def test_distributed_data_parallel(name, one_process_group, mask):
    layer, inputs = CASES[name]()
    attach_all(layer, mask)
    expected = run(layer, inputs)
    wrapped = DistributedDataParallel(layer)
    for _ in range(2):
        wrapped.zero_grad()
        out = run(wrapped, inputs)
        out.sum().backward()
    assert torch.equal(out, expected)
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_refuses_what_cannot_be_attached(mask, precision):
    layer = nn.Linear(3, 4, bias=False)

    class NoOrder(nn.Module):
        def forward(self, weight):
            return weight

    class Wider(precision):
        def forward(self, weight):
            return torch.cat([weight, weight])

    with pytest.raises(
        RequestError, match=r"NoOrder\.order: got None; expected one of 0 \(precision\)"
    ):
        attach(layer, "weight", NoOrder())
    for name in ("wait", "bias", "in_features"):
        with pytest.raises(RequestError, match=f"parameter_name: got '{name}'; expected a param"):
            attach(layer, name, precision())
    with pytest.raises(RequestError, match=r"Wider on weight.*shape"):
        attach(layer, "weight", Wider())
    attach(layer, "weight", mask(layer.weight.shape))
    with pytest.raises(RequestError, match=r"Wider on weight.*shape"):
        attach(layer, "weight", Wider())
    assert len(transformations(layer, "weight")) == 1
    with pytest.raises(RequestError, match="one piece"):
        attach(weight_norm(nn.Linear(3, 4)), "weight", precision())


def test_detach_takes_out_any_and_leaves_the_stored_tensor(mask, precision, faults):
    layer = nn.Linear(3, 4)
    weight, values = layer.weight, layer.weight.detach().clone()
    stack = [precision(), mask(weight.shape), faults()]
    for each in stack:
        attach(layer, "weight", each)
    for position in (1, 1, 0):
        detach(layer, "weight", stack.pop(position))
        assert transformations(layer, "weight") == stack
        assert stored_tensor(layer, "weight") is weight and torch.equal(weight, values)
    assert type(layer) is nn.Linear and layer.weight is weight
    with pytest.raises(RequestError, match=r"got 'Faults'.*\(there: none\)"):
        detach(layer, "weight", faults())


def test_refuses_to_bake_what_is_not_there(mask, precision):
    layer = nn.Linear(3, 4)
    with pytest.raises(RequestError, match=r"got 'Precision'.*\(there: none\)"):
        bake(layer, "weight", precision())
    attach(layer, "weight", mask(layer.weight.shape))
    with pytest.raises(RequestError, match=r"\(there: Mask\)"):
        bake(layer, "weight", mask(layer.weight.shape))
