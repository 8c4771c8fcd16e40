"""fit: the loop written by hand is the oracle; then the order of its parts, and what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latewood.core import parameter_groups
from latewood.core.schedules import cosine
from latewood.errors import RequestError
from latewood.sparsity import ContinuousSparsification, StructuredSparsification
from latewood.training.fit import fit, set_rates, unclaimed


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))


def samples(count):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield torch.randn(8, 4, generator=generator), torch.randint(3, (8,), generator=generator)


def cross_entropy(model, batch):
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels)


def sgd(model, methods=()):
    return torch.optim.SGD(parameter_groups(model, methods), lr=0.3, momentum=0.9)


def same(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_it_is_the_loop_one_writes_by_hand():
    by_hand, fitted = network(), network()
    optimizer = sgd(by_hand)
    for step, batch in enumerate(samples(20)):
        for group in optimizer.param_groups:
            group["lr"] = 0.3 * cosine()(step / 20)
        optimizer.zero_grad()
        cross_entropy(by_hand, batch).backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 0.2)
        optimizer.step()

    fit(
        fitted,
        samples(20),
        cross_entropy,
        sgd(fitted),
        rate_factor=lambda step: cosine()(step / 20),
        clip_norm=0.2,
    )
    assert same(by_hand, fitted)
    assert not same(fitted, network())


def test_methods_penalties_count_their_parameters_are_not_clipped_and_their_steps_follow():
    def built():
        model = network()
        method = ContinuousSparsification(model, total_steps=20, penalty_weight=1e-3, exclude=())
        return model, method, sgd(model, [method])

    (by_hand, method, optimizer), (fitted, other, second) = built(), built()
    masks = {id(p) for group in method.parameter_groups() for p in group["params"]}
    weights = [p for p in by_hand.parameters() if id(p) not in masks]
    assert masks and weights
    for batch in samples(20):
        optimizer.zero_grad()
        (cross_entropy(by_hand, batch) + method.penalty()).backward()
        nn.utils.clip_grad_norm_(weights, 0.05)
        optimizer.step()
        method.step()
    fit(fitted, samples(20), cross_entropy, second, methods=[other], clip_norm=0.05)
    assert same(by_hand, fitted)
    assert method.metrics() == other.metrics()
    assert [id(p) for p in unclaimed(by_hand.parameters(), [method])] == [id(p) for p in weights]


class Noted:
    """A method and an optimizer's hook that say when they are called."""

    def __init__(self, calls, weight):
        self.calls, self.weight = calls, weight

    def parameter_groups(self):
        return []

    def penalty(self):
        self.calls.append("penalty")
        return 0.0 * self.weight.sum()

    def step(self):
        self.calls.append("method")


def test_the_order_of_a_step_and_what_the_callbacks_are_told():
    calls, model = [], network()
    optimizer = sgd(model)
    optimizer.register_step_pre_hook(lambda *_: calls.append("optimizer"))

    def loss(given, batch):
        assert given is model
        calls.append("loss")
        return cross_entropy(given, batch)

    fit(
        model,
        samples(2),
        loss,
        optimizer,
        methods=[Noted(calls, model[0].weight)],
        rate_factor=lambda step: calls.append(("rate", step)) or 1.0,
        before_step=lambda step: calls.append(("before", step)),
        after_step=lambda step: calls.append(("after", step)),
    )
    parts = ["loss", "penalty", "optimizer", "method"]
    assert calls == [
        *[("before", 0), ("rate", 0), *parts, ("after", 1)],
        *[("before", 1), ("rate", 1), *parts, ("after", 2)],
    ]


def test_rates_without_a_factor_are_left_alone_and_initial_ones_can_be_given():
    model = network()
    optimizer = sgd(model)
    rates = []

    def note(_):
        rates.append(optimizer.param_groups[0]["lr"])

    fit(model, samples(2), cross_entropy, optimizer, after_step=note)
    fit(model, samples(2), cross_entropy, optimizer, rate_factor=lambda s: 0.5**s, after_step=note)
    # A second call goes on from the initial rates, not from where the first one ended.
    fit(model, samples(1), cross_entropy, optimizer, rate_factor=lambda s: 0.5, after_step=note)
    optimizer.param_groups[0]["initial_lr"] = 1.0
    set_rates(optimizer, 0.25)
    assert rates == [0.3, 0.3, 0.3, 0.15, 0.15]
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_a_method_that_changes_shapes_is_told_of_epochs_in_before_step():
    model = network()
    method = StructuredSparsification(
        model,
        example_inputs=(torch.zeros(1, 4),),
        total_steps=40,
        steps_per_epoch=4,
        budget={"parameters": 0.5},
        seed=0,
    )
    optimizer = sgd(model, [method])

    def begin(step):
        if step % 4 == 0:
            method.restructure(optimizer)

    fit(model, samples(40), cross_entropy, optimizer, methods=[method], before_step=begin)
    smaller = method.finalize()
    assert 0 < smaller[0].out_features < 16
    assert smaller(torch.zeros(2, 4)).shape == (2, 3)


def test_no_batches_no_step_and_the_callers_generators_and_mode_are_left_alone():
    model = network().eval()
    before = torch.random.get_rng_state()
    fit(model, [], cross_entropy, sgd(model), after_step=lambda _: pytest.fail("a step"))
    assert same(model, network())
    fit(model, samples(1), cross_entropy, sgd(model))
    assert not model.training
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("norm", [0.0, -1.0, math.nan])
def test_a_norm_that_clips_everything_is_refused(norm):
    model = network()
    with pytest.raises(RequestError, match="clip_norm: got"):
        fit(model, samples(1), cross_entropy, sgd(model), clip_norm=norm)
    assert same(model, network())


def test_an_optimizer_that_needs_a_closure_is_refused():
    model = network()
    with pytest.raises(RequestError, match="optimizer: got 'LBFGS'; expected one whose step needs"):
        fit(model, samples(1), cross_entropy, torch.optim.LBFGS(model.parameters()))


def test_an_optimizer_without_the_masks_is_refused():
    model = network()
    optimizer = sgd(model)
    method = ContinuousSparsification(model, total_steps=2)
    with pytest.raises(RequestError, match="without a parameter of ContinuousSparsification"):
        fit(model, samples(2), cross_entropy, optimizer, methods=[method])


@pytest.mark.parametrize(
    ("loss", "shown"),
    [
        (lambda model, batch: 1.0, "got 'float'"),
        (lambda model, batch: model(batch[0]), "got \\(8, 3\\)"),
        (lambda model, batch: torch.ones(()), "got \\(\\)"),
    ],
)
def test_a_loss_that_is_no_differentiable_scalar_is_refused(loss, shown):
    model = network()
    with pytest.raises(RequestError, match=f"loss: {shown}; expected a differentiable tensor"):
        fit(model, samples(1), loss, sgd(model))
