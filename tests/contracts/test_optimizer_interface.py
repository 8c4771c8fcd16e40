"""What every loop and library expects of an optimizer, torch's own among them."""

import copy
import inspect
import math
import pickle

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.nn import Parameter
from torch.optim import lr_scheduler

from latewood.errors import RequestError


def tensors(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def made(case, params, **options):
    arguments = {key: value for key, value in case.section.items() if key != "name"}
    return case.factory(params, **{**arguments, **options})


def advance(optimizer, steps=3):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def test_a_closure_is_called_with_gradients_and_its_loss_returned(optimizer):
    (p,) = tensors(3)
    descent = made(optimizer, [p])

    def closure():
        assert torch.is_grad_enabled()
        descent.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    losses = [descent.step(closure).item() for _ in range(4)]
    assert losses[-1] < losses[0]
    p.grad = torch.ones(3)
    assert descent.step() is None


def test_names_and_groups_and_later_groups(optimizer):
    a, b, c = tensors(3, 4, 5)
    descent = made(optimizer, [{"params": [("a", a)], "lr": 0.5}, {"params": [("b", b)]}])
    descent.add_param_group({"params": [("c", c)], "weight_decay": 0.25})
    default = descent.defaults["lr"]
    assert [group["lr"] for group in descent.param_groups] == [0.5, default, default]
    assert descent.param_groups[2]["weight_decay"] == 0.25
    before = [p.detach().clone() for p in (a, b, c)]
    advance(descent)
    assert not any(map(torch.equal, before, (a, b, c)))
    assert descent.state_dict()["param_groups"][0]["param_names"] == ["a"]
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        descent.add_param_group({"params": [("a", a)]})


def test_a_group_steps_by_its_own_options(optimizer):
    together, alone = tensors(3, 4), tensors(3, 4)
    descent = made(optimizer, [{"params": together[:1]}, {"params": together[1:], "lr": 0.0}])
    other = made(optimizer, alone[:1])
    still = together[1].detach().clone()
    advance(descent)
    for p, q in zip(together[:1], alone[:1], strict=True):
        q.grad = p.grad
    assert torch.equal(together[1], still)
    assert not torch.equal(together[0], alone[0])
    assert other.param_groups[0]["lr"] == descent.param_groups[0]["lr"]


def test_tensors_without_elements_take_part_with_nothing(optimizer):
    empty, full, alone = Parameter(torch.empty(0, 3)), *tensors(4), *tensors(4)
    descent, other = made(optimizer, [empty, full]), made(optimizer, [alone])
    for step in range(3):
        empty.grad = torch.empty(0, 3)
        full.grad, alone.grad = (torch.full((4,), 0.5 - step) for _ in range(2))
        descent.step()
        other.step()
    assert torch.equal(full, alone) and full.isfinite().all()
    assert empty.shape == (0, 3)


def test_parameters_without_gradients_wait(optimizer):
    (alone, *both) = tensors(3, 3, 4)
    with torch.no_grad():
        alone.copy_(both[0])
    descent, other = made(optimizer, both), made(optimizer, [alone])
    before = both[1].detach().clone()
    for step in range(3):
        both[0].grad = torch.full((3,), 1.0 - step)
        alone.grad = both[0].grad.clone()
        descent.step()
        other.step()
    assert torch.equal(both[1], before) and torch.equal(both[0], alone)
    assert both[1] not in descent.state or not descent.state[both[1]]


def test_gradients_are_read_only_and_maximize_climbs(optimizer):
    assert "maximize" in inspect.signature(optimizer.factory).parameters
    (up, down) = (Parameter(torch.zeros(70)) for _ in range(2))
    climb, descent = made(optimizer, [up], maximize=True), made(optimizer, [down])
    for step in range(4):
        gradient = torch.linspace(-1, 1, 70) + 0.1 * step
        up.grad, down.grad = gradient.clone(), -gradient
        before = up.grad.clone()
        climb.step()
        descent.step()
        assert torch.equal(up.grad, before)
    torch.testing.assert_close(up, down)
    assert up[-1] > 0 > up[0]


def test_a_sparse_gradient_is_refused_or_applied(optimizer):
    dense, sparse = (nn.Embedding(5, 2, sparse=flag) for flag in (False, True))
    sparse.load_state_dict(dense.state_dict())
    optimizers = [made(optimizer, layer.parameters()) for layer in (dense, sparse)]
    before = sparse.weight.detach().clone()
    for layer in (dense, sparse):
        layer(torch.tensor([1, 3])).sum().backward()
    assert sparse.weight.grad.is_sparse
    try:
        optimizers[1].step()
    except RuntimeError as error:
        assert "sparse" in str(error)
        assert torch.equal(sparse.weight, before)
    else:
        optimizers[0].step()
        torch.testing.assert_close(sparse.weight, dense.weight)


def test_gradients_are_cleared_in_both_ways(optimizer):
    (p,) = tensors(3)
    descent = made(optimizer, [p])
    advance(descent, 1)
    descent.zero_grad(set_to_none=False)
    assert torch.equal(p.grad, torch.zeros(3))
    descent.zero_grad()
    assert p.grad is None
    before = p.detach().clone()
    descent.step()
    assert torch.equal(p, before)


def test_a_state_of_other_groups_is_refused(optimizer):
    descent = made(optimizer, tensors(3, 4))
    advance(descent)
    before = copy.deepcopy(descent.state_dict())
    for other in (
        made(optimizer, [{"params": tensors(3)}, {"params": tensors(4)}]),
        made(optimizer, tensors(3)),
    ):
        advance(other)
        with pytest.raises(ValueError, match="parameter group"):
            descent.load_state_dict(other.state_dict())
    after = descent.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for index, state in before["state"].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(after["state"][index][name]), torch.as_tensor(value))


def test_a_state_without_steps_loads(optimizer):
    descent, other = made(optimizer, tensors(3)), made(optimizer, tensors(3))
    descent.load_state_dict(other.state_dict())
    advance(descent)
    advance(other)
    assert torch.equal(descent.param_groups[0]["params"][0], other.param_groups[0]["params"][0])


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", -1.0), ("lr", float("nan")), ("weight_decay", -0.1), ("lr", torch.ones(2))],
)
def test_options_out_of_range_are_refused_wherever_they_come_from(optimizer, name, value):
    if optimizer.is_ours or not (isinstance(value, float) and math.isnan(value)):
        with pytest.raises(ValueError, match=name if optimizer.is_ours else "Invalid|1-element"):
            made(optimizer, tensors(3), **{name: value})
    if optimizer.is_ours and not isinstance(value, torch.Tensor):
        # torch looks at the constructor's only, and lets nan pass
        descent = made(optimizer, tensors(3))
        with pytest.raises(RequestError, match=name):
            descent.add_param_group({"params": tensors(2), name: value})
        assert len(descent.param_groups) == 1


def scheduler_of(name, optimizer):
    if name == "one-cycle":
        return lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=10)
    if name == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, 10)
    warm_up = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3)
    return lr_scheduler.SequentialLR(
        optimizer, [warm_up, lr_scheduler.StepLR(optimizer, 2)], milestones=[3]
    )


@pytest.mark.parametrize("name", ["one-cycle", "cosine", "sequential"])
def test_schedules_work_on_floats_and_on_tensors_alike(optimizer, name):
    results = []
    for lr in (0.125, torch.tensor(0.125)):
        parameters = tensors(3, 4)
        # torch's own step on lists takes no tensor for a rate.
        listed = {} if optimizer.is_ours else {"foreach": False}
        descent = made(optimizer, parameters, lr=lr, **listed)
        scheduler = scheduler_of(name, descent)
        for _ in range(8):
            advance(descent, 1)
            scheduler.step()
        assert isinstance(descent.param_groups[0]["lr"], type(lr))
        results.append(parameters)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_hooks_and_pickles(optimizer):
    parameters = tensors(3)
    descent = made(optimizer, parameters)
    calls = []
    descent.register_step_pre_hook(lambda *_: calls.append("before"))
    descent.register_step_post_hook(lambda *_: calls.append("after"))
    advance(descent, 1)
    assert calls == ["before", "after"]
    copied = pickle.loads(pickle.dumps(descent))
    advance(copied, 2)
    advance(descent, 2)
    assert torch.equal(copied.param_groups[0]["params"][0], parameters[0])


@pytest.mark.parametrize("flat", [False, True])
def test_distributed_checkpoints_carry_the_state_by_name(optimizer, flat):
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    models = [nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [made(optimizer, model.parameters()) for model in models]
    advance(optimizers[0])
    models[1].load_state_dict(models[0].state_dict())
    state = get_optimizer_state_dict(models[0], optimizers[0], options=options)
    set_optimizer_state_dict(models[1], optimizers[1], copy.deepcopy(state), options=options)
    for descent in optimizers:
        advance(descent)
    assert torch.equal(models[0].weight, models[1].weight)


def test_a_small_network_learns(optimizer):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=generator)
    y = (x[:, 0] > 0).long()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    descent = made(optimizer, model.parameters())
    for _ in range(60):
        descent.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        descent.step()
    assert nn.functional.cross_entropy(model(x), y).item() < 0.3


def test_constructors_take_plain_keyword_options_that_a_recipe_can_give(optimizer):
    for name, option in inspect.signature(optimizer.factory).parameters.items():
        assert option.kind is not inspect.Parameter.VAR_KEYWORD
        assert name == "params" or option.default is not inspect.Parameter.empty
