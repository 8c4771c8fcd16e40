"""The manners of our own optimizers beyond the contract: refusals, switches, what states carry."""

import copy
import inspect

import pytest
import torch
from torch.nn import Parameter

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


@pytest.mark.parametrize("mode", ["official", "paper"])
def test_groups_added_after_a_checkpoint_follow_its_mode(mode):
    saved = AvaGrad(tensors(3), gamma_mode=mode, gamma_scope="group")
    advance(saved)
    optimizer, expected = AvaGrad(tensors(3)), AvaGrad(tensors(3), gamma_mode=mode)
    optimizer.load_state_dict(saved.state_dict())
    (late,) = tensors(4)
    optimizer.add_param_group({"params": [late]})
    modes = {(g["gamma_mode"], g["gamma_scope"]) for g in optimizer.param_groups}
    assert modes == {(mode, "group")}
    with pytest.raises(RequestError, match=r"^gamma_mode: got 'aligned'"):
        optimizer.add_param_group({"params": tensors(2), "gamma_mode": "aligned"})
    advance(optimizer)
    assert expected.defaults["gamma_mode"] == mode


def test_a_checkpoint_of_several_modes_is_refused_before_anything_is_loaded():
    optimizer = AvaGrad([{"params": tensors(3)}, {"params": tensors(2)}])
    advance(optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][1]["gamma_mode"] = "paper"
    state["param_groups"][0]["lr"] = 7.0
    with pytest.raises(RequestError, match=r"^gamma_mode: got .*the same in all groups"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.1
    advance(optimizer)


DECAYS = [
    (AvaGradW, {"weight_decay": 0.3}),
    (AvaGrad, {"weight_decay": 0.3, "decoupled_weight_decay": True, "gamma_mode": "paper"}),
    (DelayedAdam, {"weight_decay": 0.3, "decoupled_weight_decay": True}),
    (DelayedAdam, {"weight_decay": 0.3, "first_step": "take", "decoupled_weight_decay": True}),
    (AdaBound, {"weight_decay": 0.3, "weight_decay_mode": "decoupled"}),
    (AMSBound, {"weight_decay": 0.3, "weight_decay_mode": "decoupled_unscaled"}),
    (CSGD, {"momentum": 0.9, "weight_decay": 0.3}),
]


@pytest.mark.parametrize("lr", [0.05, torch.tensor(0.05)])
@pytest.mark.parametrize(("optimizer_class", "options"), DECAYS)
def test_counts_on_the_device_cost_no_precision(optimizer_class, options, lr):
    ends = []
    for capturable in (False, True):
        generator = torch.Generator().manual_seed(0)
        p = Parameter(torch.randn(50, dtype=torch.float64, generator=generator))
        optimizer = optimizer_class([p], lr=lr, capturable=capturable, **options)
        for _ in range(6):
            p.grad = torch.randn(50, dtype=torch.float64, generator=generator)
            optimizer.step()
        ends.append(p.detach())
    torch.testing.assert_close(*ends, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("wrapped", ["bare", "scheduled", "scheduled and hooked"])
def test_a_warning_points_at_the_line_that_called_the_step(wrapped):
    p = Parameter(torch.zeros(2))
    optimizer = AvaGrad([p], eps=1e-8)
    if wrapped != "bare":
        torch.optim.lr_scheduler.StepLR(optimizer, 1)
    if "hooked" in wrapped:
        optimizer.register_step_post_hook(lambda *_: None)
    p.grad = torch.tensor([1.0, 0.0])
    with pytest.warns(RuntimeWarning, match="never had a gradient") as caught:
        for _ in range(3):
            optimizer.step()
    assert {warning.filename for warning in caught} == {__file__}


def test_a_step_that_fails_has_counted_nothing():
    class Refusing:
        def lower(self, step):
            raise ArithmeticError("of the user's")

        upper = lower

    (p,) = tensors(3)
    optimizer = AdaBound([p], bounds=Refusing())
    p.grad = torch.ones(3)
    before = p.detach().clone()
    with pytest.raises(ArithmeticError):
        optimizer.step()
    assert optimizer.state[p]["step"].item() == 0 and torch.equal(p, before)


def test_fused_is_refused_where_no_kernel_exists():
    with pytest.raises(RequestError, match="fused"):
        CSGD([Parameter(torch.empty(3, device="meta"))], fused=True)


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


def test_the_room_exports_what_it_promises():
    for name in ("AvaGrad", "AvaGradW", "DelayedAdam", "AdaBound", "AMSBound", "CSGD"):
        assert name in latewood.optim.__all__ and hasattr(latewood.optim, name)
