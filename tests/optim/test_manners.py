"""The manners of torch.optim: groups, names, schedules, closures, switches, refusals, training."""

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.nn import Parameter
from torch.optim import lr_scheduler

import latewood.optim
from latewood.errors import RequestError
from latewood.optim import (
    CSGD,
    AdaBound,
    AMSBound,
    AvaGrad,
    AvaGradW,
    CorrectedBounds,
    DelayedAdam,
    HyperbolicBounds,
)

ALL = [AvaGrad, AvaGradW, DelayedAdam, AdaBound, AMSBound, CSGD]


def tensors(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def advance(optimizer, steps=3):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("optimizer_class", ALL)
def test_names_and_groups_and_later_groups(optimizer_class):
    a, b, c = tensors(3, 4, 5)
    optimizer = optimizer_class([{"params": [("a", a)], "lr": 0.5}, {"params": [("b", b)]}])
    optimizer.add_param_group({"params": [("c", c)], "weight_decay": 0.25})
    assert [group["lr"] for group in optimizer.param_groups] == [
        0.5,
        optimizer.defaults["lr"],
        optimizer.defaults["lr"],
    ]
    assert optimizer.param_groups[2]["weight_decay"] == 0.25
    before = [p.detach().clone() for p in (a, b, c)]
    advance(optimizer)
    assert not any(map(torch.equal, before, (a, b, c)))
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["a"]


@pytest.mark.parametrize("optimizer_class", ALL)
@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", -1.0), ("lr", float("nan")), ("weight_decay", -0.1), ("lr", torch.ones(2))],
)
def test_options_out_of_range_are_refused_wherever_they_come_from(optimizer_class, name, value):
    with pytest.raises((RequestError, ValueError, RuntimeError)):
        optimizer_class(tensors(3), **{name: value})
    optimizer = optimizer_class(tensors(3))
    if not isinstance(value, torch.Tensor):
        with pytest.raises(RequestError, match=name):
            optimizer.add_param_group({"params": tensors(2), name: value})
        assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("optimizer_class", "options", "name"),
    [
        (AvaGrad, {"betas": (0.9, 1.0)}, "betas"),
        (AvaGrad, {"betas": (0.9,)}, "betas"),
        (AvaGrad, {"gamma_mode": "pape"}, "gamma_mode"),
        (AvaGrad, {"gamma_scope": "layer"}, "gamma_scope"),
        (AvaGrad, {"gamma_scope": "group", "process_group": object()}, "process_group"),
        (DelayedAdam, {"first_step": "maybe"}, "first_step"),
        (AdaBound, {"gamma": -1e-3}, "gamma"),
        (AdaBound, {"final_lr": -1.0}, "final_lr"),
        (AMSBound, {"weight_decay_mode": "sometimes"}, "weight_decay_mode"),
        (CSGD, {"momentum": 1.0}, "momentum"),
        (CSGD, {"foreach": True, "fused": True}, "foreach"),
        (CSGD, {"capturable": True, "fused": True}, "capturable"),
        (AdaBound, {"differentiable": True}, "differentiable"),
    ],
)
def test_a_refusal_names_the_option(optimizer_class, options, name):
    with pytest.raises(RequestError, match=name):
        optimizer_class(tensors(3), **options)


WRONG = {
    "lr": ["0.1", None, [0.1], True, 1j],
    "weight_decay": ["x", None],
    "fused": ["yes", 1],
    "foreach": [0],
    "maximize": [3, None],
    "capturable": ["no"],
    "betas": [0.9, None, ("a", 0.9), (0.9, None), "ab"],
    "eps": [None, "1", 0, float("nan"), torch.ones(2)],
    "decoupled_weight_decay": ["no"],
    "bias_correction": [1],
    "gamma_mode": [None, 1],
    "gamma_scope": [3],
    "first_step": [1, None],
    "final_lr": ["a", None],
    "gamma": ["a", None],
    "amsbound": ["x"],
    "bounds": [3],
    "weight_decay_mode": [None],
    "momentum": ["0.9", None],
}


@pytest.mark.parametrize(
    ("optimizer_class", "name"),
    [(c, name) for c in ALL for name in WRONG if name in inspect.signature(c).parameters],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(optimizer_class, name):
    for value in WRONG[name]:
        with pytest.raises(RequestError, match=f"^{name}: got"):
            optimizer_class(tensors(3), **{name: value})
        optimizer = optimizer_class(tensors(3))
        if name not in ("bounds", "gamma_mode", "gamma_scope"):
            with pytest.raises(RequestError, match=f"^{name}: got"):
                optimizer.add_param_group({"params": tensors(2), name: value})
            assert len(optimizer.param_groups) == 1


def test_numbers_given_as_tensors_become_floats_but_for_the_learning_rate():
    lr = torch.tensor(0.1)
    optimizer = AvaGrad(
        tensors(3), lr=lr, eps=torch.tensor(0.5), betas=(torch.tensor(0.5), 0.75),
        weight_decay=torch.tensor(0.25),
    )  # fmt: skip
    (group,) = optimizer.param_groups
    assert group["lr"] is lr
    values = (group["eps"], group["weight_decay"], group["betas"])
    assert values == (0.5, 0.25, (0.5, 0.75))
    assert all(type(value) is float for value in (*values[:2], *values[2]))


def test_a_checkpoint_without_the_first_rate_gets_one():
    (p,) = tensors(3)
    optimizer = AdaBound([p], lr=0.01)
    advance(optimizer)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group["base_lr"]
        group["lr"] = 0.001
        group["initial_lr"] = 0.01
    other = AdaBound(tensors(3))
    other.load_state_dict(state)
    assert other.param_groups[0]["base_lr"] == 0.01
    advance(other)


def test_modes_of_gamma_cannot_differ_between_groups():
    optimizer = AvaGrad(tensors(3))
    with pytest.raises(RequestError, match="gamma_mode"):
        optimizer.add_param_group({"params": tensors(2), "gamma_mode": "paper"})


def test_fused_is_refused_where_no_kernel_exists():
    with pytest.raises(RequestError, match="fused"):
        CSGD([Parameter(torch.empty(3, device="meta"))], fused=True)


@pytest.mark.parametrize("optimizer_class", ALL)
def test_a_closure_is_called_with_gradients_and_its_loss_returned(optimizer_class):
    (p,) = tensors(3)
    optimizer = optimizer_class([p])

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(4)]
    assert losses[-1] < losses[0]


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
@pytest.mark.parametrize("optimizer_class", ALL)
def test_schedules_work_on_floats_and_on_tensors_alike(optimizer_class, name):
    extra = {"momentum": 0.9} if optimizer_class is CSGD else {}
    results = []
    for lr in (0.125, torch.tensor(0.125)):
        parameters = tensors(3, 4)
        optimizer = optimizer_class(parameters, lr=lr, **extra)
        scheduler = scheduler_of(name, optimizer)
        for _ in range(8):
            advance(optimizer, 1)
            scheduler.step()
        assert isinstance(optimizer.param_groups[0]["lr"], type(lr))
        results.append(parameters)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("optimizer_class", ALL)
def test_hooks_and_pickles(optimizer_class):
    parameters = tensors(3)
    optimizer = optimizer_class(parameters)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    advance(optimizer, 1)
    assert calls == ["before", "after"]
    copied = pickle.loads(pickle.dumps(optimizer))
    advance(copied, 2)
    advance(optimizer, 2)
    assert torch.equal(copied.param_groups[0]["params"][0], parameters[0])


def test_load_hooks_of_the_user_are_heard():
    parameters = tensors(3)
    optimizer = AvaGrad(parameters)
    advance(optimizer)
    other = AvaGrad(tensors(3))

    def zero(_, state):
        state = copy.deepcopy(state)
        state["state"][0]["exp_avg"].zero_()
        return state

    other.register_load_state_dict_pre_hook(zero)
    seen = []
    other.register_load_state_dict_post_hook(
        lambda o: seen.append(o.state[o.param_groups[0]["params"][0]]["exp_avg"].sum().item())
    )
    other.load_state_dict(optimizer.state_dict())
    assert seen == [0.0]


def test_a_loaded_state_is_a_copy():
    optimizer, other = AvaGrad(tensors(3)), AvaGrad(tensors(3))
    advance(optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    other.load_state_dict(state)
    advance(other)
    assert torch.equal(state["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


def test_a_checkpoint_of_the_released_code_loads():
    (p,) = tensors(3)
    optimizer = AvaGrad([p], gamma_mode="official")
    moments = {"step": 4, "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}
    group = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 0.1, "weight_decay": 0, "gamma": 0.25}
    optimizer.load_state_dict({"state": {0: moments}, "param_groups": [{**group, "params": [0]}]})
    before = p.detach().clone()
    p.grad = torch.ones(3)
    optimizer.step()
    expected = 0.25 * 0.1 / (1 - 0.9**5) / ((1 / (1 - 0.999**4)) ** 0.5 + 0.1)
    torch.testing.assert_close(before - p.detach(), torch.full((3,), expected))
    assert optimizer.state[p]["step"].item() == 5


@pytest.mark.parametrize("bounds", [None, HyperbolicBounds(0.5), CorrectedBounds()])
def test_copies_keep_the_bounds(bounds):
    parameters = tensors(3)
    optimizer = AdaBound(parameters, lr=0.01, bounds=bounds)
    copied_parameters, copied = copy.deepcopy((parameters, optimizer))
    advance(optimizer)
    advance(copied)
    assert copied.bounds == bounds
    assert torch.equal(parameters[0], copied_parameters[0])


@pytest.mark.parametrize("optimizer_class", ALL)
def test_capturable_keeps_counts_on_the_device_and_walks_the_same_way(optimizer_class):
    results = []
    for capturable in (False, True):
        parameters = tensors(3, 4)
        optimizer = optimizer_class(parameters, lr=torch.tensor(0.1), capturable=capturable)
        advance(optimizer, 4)
        results.append(parameters)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("optimizer_class", ALL)
def test_accumulated_gradients_count_as_one(optimizer_class):
    data = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    results = []
    for parts in (1, 4):
        model = nn.Linear(3, 2)
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(0.1)
        optimizer = optimizer_class(model.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            for chunk in data.chunk(parts):
                (model(chunk).square().mean() / parts).backward()
            optimizer.step()
        results.append(model.weight.detach())
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("optimizer_class", ALL)
def test_a_small_network_learns(optimizer_class):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=generator)
    y = (x[:, 0] > 0).long()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    rates = {AvaGrad: 0.5, AvaGradW: 0.5, CSGD: 0.5, DelayedAdam: 1e-2}
    optimizer = optimizer_class(model.parameters(), lr=rates.get(optimizer_class, 1e-2))
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert F.cross_entropy(model(x), y).item() < 0.3


def test_constructors_take_plain_keyword_options_that_a_recipe_can_give():
    for optimizer_class in ALL:
        for name, option in inspect.signature(optimizer_class).parameters.items():
            assert option.kind is not inspect.Parameter.VAR_KEYWORD
            assert name == "params" or option.default is not inspect.Parameter.empty


def test_the_room_exports_what_it_promises():
    for name in ("AvaGrad", "AvaGradW", "DelayedAdam", "AdaBound", "AMSBound", "CSGD"):
        assert name in latewood.optim.__all__ and hasattr(latewood.optim, name)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("optimizer_class", ALL)
def test_distributed_checkpoints_carry_the_state_by_name(optimizer_class, flat):
    extra = {"momentum": 0.9} if optimizer_class is CSGD else {}
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    models = [nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [optimizer_class(model.parameters(), lr=0.1, **extra) for model in models]
    advance(optimizers[0])
    models[1].load_state_dict(models[0].state_dict())
    state = get_optimizer_state_dict(models[0], optimizers[0], options=options)
    set_optimizer_state_dict(models[1], optimizers[1], copy.deepcopy(state), options=options)
    for optimizer in optimizers:
        advance(optimizer)
    assert torch.equal(models[0].weight, models[1].weight)
