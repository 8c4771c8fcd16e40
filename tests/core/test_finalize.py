"""The end of methods: faults come off, formats before masks, shapes last, in any order listed."""

import itertools

import pytest
import torch
from torch import nn

from latewood.core import (
    FAULTS,
    MASK,
    PRECISION,
    SHAPES,
    EndsOnce,
    Method,
    attach,
    bake,
    detach,
    finalize,
    transformations,
)
from latewood.errors import RequestError
from latewood.sparsity import ContinuousSparsification, FixedMasks


class Attached(EndsOnce):
    """A method that puts one transformation on each of some weights and bakes them at the end."""

    def __init__(self, model, order, make):
        self.model, self.order = model, order
        self.layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        self.made = [make(layer.weight.shape) for layer in self.layers]
        for layer, transformation in zip(self.layers, self.made, strict=True):
            attach(layer, "weight", transformation)

    def finalize(self):
        self.require_active("finalize")
        self.finalized = True
        for layer, transformation in zip(self.layers, self.made, strict=True):
            bake(layer, "weight", transformation)
        return self.model


class ComesOff(Attached):
    """Faults leave nothing in the weights."""

    def finalize(self):
        for layer, transformation in zip(self.layers, self.made, strict=True):
            assert transformations(layer, "weight")[-1] is transformation
            detach(layer, "weight", transformation)
        return self.model


class Narrows:
    """Removes the rows that are 0: they must be known by then, and plain."""

    order = SHAPES

    def __init__(self, model):
        self.model = model

    def finalize(self):
        first, last = self.model
        rows = first.weight.detach().abs().sum(1).nonzero().flatten()
        first.weight.data, first.bias.data = first.weight.data[rows], first.bias.data[rows]
        last.weight.data = last.weight.data[:, rows]
        return self.model


class Wraps:
    """Returns the model inside another one, or a copy of it."""

    def __init__(self, model, order=PRECISION, *, copied=False):
        self.model, self.order, self.copied = model, order, copied

    def finalize(self):
        if self.copied:
            return nn.Sequential(*(nn.Linear(3, 3) for _ in self.model))
        return nn.Sequential(self.model, nn.Identity())


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


@pytest.mark.parametrize("listed", list(itertools.permutations(range(4))))
def test_the_order_of_the_list_does_not_matter(listed, sign_format, faults):
    model = network()
    masks = {"0.weight": torch.ones(4, 3).bool(), "1.weight": torch.ones(2, 4).bool()}
    masks["0.weight"][1] = masks["1.weight"][:, 1] = False
    methods = [
        Narrows(model),
        FixedMasks(model, masks),
        Attached(model, PRECISION, lambda shape: sign_format()),
        ComesOff(model, FAULTS, lambda shape: faults()),
    ]
    inputs = torch.randn(5, 3)
    without_faults = [
        masks[f"{i}.weight"] * torch.where(layer.parametrizations.weight.original >= 0, 0.25, -0.25)
        for i, layer in enumerate(model)
    ]
    # The row that goes has no weight, but a bias, which the next layer does not read.
    hidden = nn.functional.linear(inputs, without_faults[0], model[0].bias)
    expected = nn.functional.linear(hidden, without_faults[1], model[1].bias)
    assert finalize(model, [methods[i] for i in listed]) is model
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]
    assert model[0].weight.shape == (3, 3) and model[1].weight.shape == (2, 3)
    torch.testing.assert_close(model(inputs), expected)


@pytest.mark.filterwarnings("ignore:.*undecided")
def test_a_learned_mask_over_a_format_without_zero_leaves_exact_zeros(sign_format):
    model = network()
    method = ContinuousSparsification(model, total_steps=3, exclude=())
    with torch.no_grad():
        for logits in method.mask_parameters():
            logits.normal_()
    form = Attached(model, PRECISION, lambda shape: sign_format())
    method.harden()
    masks = method.masks()
    assert torch.equal(model[0].weight != 0, masks["0.weight"])
    finalize(model, [method, form])
    for i, layer in enumerate(model):
        scaled = 0.25 * method.scales[f"{i}.weight"]
        assert torch.equal(layer.weight != 0, masks[f"{i}.weight"])
        assert layer.weight.abs().unique().tolist() == [0, pytest.approx(scaled)]


def test_methods_of_one_order_finish_as_listed():
    ended = []

    class Noted(EndsOnce):
        def __init__(self, order, name):
            self.order, self.name = order, name

        def finalize(self):
            ended.append(self.name)
            return model

    model = network()
    orders = [(SHAPES, "a"), (MASK, "b"), (None, "c"), (MASK, "d"), (FAULTS, "e"), (PRECISION, "f")]
    finalize(model, [Noted(order, name) for order, name in orders])
    assert ended == ["c", "e", "f", "b", "d", "a"]


@pytest.mark.parametrize("later", [MASK, SHAPES])
def test_a_new_model_around_the_same_layers_is_what_comes_back(later):
    model = network()
    inputs = torch.randn(5, 3)
    masks = {"0.weight": torch.ones(4, 3).bool()}
    masks["0.weight"][1] = False
    method = FixedMasks(model, masks) if later == MASK else Narrows(model)
    with torch.no_grad():
        model[0].parametrizations.weight.original.mul_(masks["0.weight"]) if later == MASK else (
            model[0].weight.mul_(masks["0.weight"]),
            model[0].bias.mul_(masks["0.weight"][:, 0]),
        )
    expected = model(inputs)
    outcome = finalize(model, [method, Wraps(model)])
    assert outcome is not model and outcome[0] is model
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]
    torch.testing.assert_close(outcome(inputs), expected)
    with pytest.raises(RequestError, match="Wraps returned another model, as a method before it"):
        finalize(model, [Wraps(model), Wraps(model, SHAPES)])


def test_a_copy_that_later_methods_cannot_reach_is_refused_and_the_last_may_return_one():
    model = network()
    method = FixedMasks(model, {"0.weight": torch.ones(4, 3).bool()})
    with pytest.raises(
        RequestError, match=r"Wraps returned another model .* FixedMasks would change"
    ):
        finalize(model, [Wraps(model, copied=True), method])
    assert not method.finalized
    model = network()
    copied = finalize(model, [Wraps(model, SHAPES, copied=True)])
    assert [layer.weight.shape for layer in copied] == [(3, 3), (3, 3)]


def test_what_cannot_be_ordered_or_is_over_is_refused_by_name(mask, precision):
    class Orderless:
        pass

    class Odd:
        order = 7

    model = network()
    for method, given in ((Orderless(), "'none'"), (Odd(), "7")):
        with pytest.raises(RequestError, match=rf"order: got {given}; expected PRECISION, MASK"):
            finalize(model, [method])
    method = Attached(model, MASK, mask)
    attach(model[1], "weight", precision())  # a format that no method will bake
    with pytest.raises(RequestError, match=r"Mask on weight does not commute with Precision"):
        finalize(model, [method])
    with pytest.raises(RequestError, match=r"^Attached: finalized; finalize is refused"):
        finalize(model, [method])


def test_the_methods_of_the_package_say_their_order():
    method = FixedMasks(network(), {"0.weight": torch.ones(4, 3).bool()})
    assert isinstance(method, Method) and method.order == MASK
    assert finalize(model := network(), []) is model


def test_a_method_that_is_over_is_refused_before_another_is_changed():
    model = network()
    first = ContinuousSparsification(model, total_steps=1, include=("0",))
    over = FixedMasks(model, {"1.weight": torch.ones_like(model[1].weight, dtype=torch.bool)})
    over.finalize()
    with pytest.raises(RequestError, match=r"^FixedMasks: finalized"):
        finalize(model, [first, over])
    assert not first.finalized and transformations(model[0], "weight")
