"""Where other implementations break: nothing to do, nothing yet, too little precision, too much."""

import copy
import warnings

import pytest
import torch
from torch.nn import Parameter

from latewood.errors import RequestError, WorkError
from latewood.optim import CSGD, AdaBound, AMSBound, AvaGrad, AvaGradW, DelayedAdam

ALL = [AvaGrad, AvaGradW, DelayedAdam, AdaBound, AMSBound, CSGD]
FORMS = [{"fused": False, "foreach": False}, {"foreach": True}, {"fused": True}]


def parameter(*values, dtype=torch.float64):
    return Parameter(torch.tensor(values, dtype=dtype))


def step(optimizer, *gradients):
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = None if gradient is None else torch.full_like(p, gradient)
    optimizer.step()


@pytest.mark.parametrize("optimizer_class", [AvaGrad, AvaGradW, DelayedAdam, AdaBound, AMSBound])
def test_eps_has_to_be_positive(optimizer_class):
    with pytest.raises(RequestError, match="eps"):
        optimizer_class([parameter(1.0)], eps=0.0)


@pytest.mark.parametrize("options", FORMS)
def test_untouched_coordinates_collapse_gamma_and_are_named(options):
    p = parameter(0.0, 0.0)
    optimizer = AvaGrad([p], lr=0.1, eps=1e-8, gamma_mode="official", **options)
    with pytest.warns(RuntimeWarning, match="never had a gradient"):
        for _ in range(5):
            p.grad = torch.tensor([1.0, 0.0]).double()
            optimizer.step()
    assert optimizer.param_groups[0]["gamma"].item() == pytest.approx(1.414213562e-8, rel=1e-9)
    assert p[0].item() == pytest.approx(-5.24264063e-9, rel=1e-8)


@pytest.mark.parametrize("options", FORMS)
def test_untouched_coordinates_are_named_also_where_their_rates_overflow(options):
    p = Parameter(torch.zeros(2))
    optimizer = AvaGrad([p], eps=1e-30, **options)
    with pytest.warns(RuntimeWarning, match="never had a gradient"):
        for _ in range(3):
            p.grad = torch.tensor([1.0, 0.0])
            optimizer.step()


@pytest.mark.parametrize("options", FORMS)
def test_rates_too_small_for_their_precision_are_named(options):
    p = Parameter(torch.zeros(2))
    p.grad = torch.ones(2)
    optimizer = AvaGrad([p], eps=1e30, **options)
    with pytest.raises(WorkError, match="every squared rate is 0"):
        for _ in range(2):
            optimizer.step()
    assert p.isfinite().all()


def test_untouched_coordinates_are_no_reason_to_warn_where_eps_bounds_them():
    p = parameter(0.0, 0.0)
    optimizer = AvaGrad([p], eps=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(12):
            p.grad = torch.tensor([1.0, 0.0]).double()
            optimizer.step()


def test_a_parameter_in_its_first_step_does_not_count_in_aligned_mode():
    early, late = parameter(1.0, 2.0), parameter(3.0)
    optimizer = AvaGrad([early, late], eps=0.1)
    alone = AvaGrad([parameter(1.0, 2.0)], eps=0.1)
    for gradient in (0.5, 0.7):
        step(optimizer, gradient, None)
        step(alone, gradient)
    step(optimizer, 0.3, 0.3)
    step(alone, 0.3)
    assert torch.equal(early, alone.param_groups[0]["params"][0])
    assert late.item() == 3.0
    step(optimizer, 0.3, 0.3)
    assert late.item() != 3.0


@pytest.mark.parametrize("mode", ["official", "aligned", "paper"])
@pytest.mark.parametrize("scope", ["global", "group", "tensor"])
def test_gamma_stays_where_no_gradient_came(mode, scope):
    a, b = parameter(1.0, 2.0), parameter(3.0)
    groups = [{"params": [a]}, {"params": [b]}]
    optimizer = AvaGrad(groups, eps=0.1, gamma_mode=mode, gamma_scope=scope)
    for _ in range(3):
        step(optimizer, 0.5, 0.25)
    before = [group["gamma"].item() for group in optimizer.param_groups]
    step(optimizer, None, None)
    assert [group["gamma"].item() for group in optimizer.param_groups] == before
    if scope == "group":
        step(optimizer, 0.5, None)
        assert optimizer.param_groups[1]["gamma"].item() == before[1]


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("optimizer_class", ALL)
def test_tensors_without_elements_take_part_with_nothing(optimizer_class, options):
    empty, full = Parameter(torch.empty(0, 3)), Parameter(torch.ones(4))
    alone = Parameter(torch.ones(4))
    optimizer = optimizer_class([empty, full], **options)
    other = optimizer_class([alone], **options)
    for _ in range(3):
        step(optimizer, 0.5, 0.5)
        step(other, 0.5)
    assert torch.equal(full, alone) and torch.isfinite(full).all()


@pytest.mark.parametrize("options", [*FORMS, {"capturable": True}])
@pytest.mark.parametrize("scope", ["global", "group", "tensor"])
@pytest.mark.parametrize("mode", ["aligned", "official", "paper"])
def test_empty_parameters_alone_in_a_group_or_everywhere_are_no_failure(mode, scope, options):
    empty, other_empty = Parameter(torch.empty(0, 3)), Parameter(torch.empty(0))
    full, alone = Parameter(torch.ones(4)), Parameter(torch.ones(4))
    how = {"gamma_mode": mode, "gamma_scope": scope, **options}
    groups = [{"params": [empty, other_empty]}, {"params": [full]}]
    both, one, none = AvaGrad(groups, **how), AvaGrad([alone], **how), AvaGrad([empty], **how)
    for _ in range(4):
        step(both, 0.5, 0.5, 0.5)
        step(one, 0.5)
        step(none, 0.5)
    torch.testing.assert_close(full, alone)
    gammas = [float(g["gamma"]) for o in (both, none) for g in o.param_groups]
    assert all(0.0 < gamma < 10.0 for gamma in gammas)


@pytest.mark.parametrize("options", [*FORMS, {"capturable": True}])
@pytest.mark.parametrize("optimizer_class", ALL)
def test_the_first_step_may_be_taken_in_inference_mode(optimizer_class, options):
    extra = {"momentum": 0.9} if optimizer_class is CSGD else {}
    ends = []
    for first in (torch.inference_mode, torch.no_grad):
        p = Parameter(torch.ones(4))
        optimizer = optimizer_class([p], lr=0.1, **extra, **options)
        p.grad = torch.full_like(p, 0.5)
        with first():
            optimizer.step()
        for _ in range(3):
            optimizer.step()
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        optimizer.step()
        ends.append(p)
    assert torch.equal(*ends)


@pytest.mark.parametrize("optimizer_class", ALL)
def test_parameters_of_inference_mode_step_there(optimizer_class):
    with torch.inference_mode():
        p = Parameter(torch.ones(4), requires_grad=False)
        optimizer = optimizer_class([p], lr=0.1)
        for _ in range(4):
            p.grad = torch.full_like(p, 0.5)
            optimizer.step()
    q = Parameter(torch.ones(4))
    plain = optimizer_class([q], lr=0.1)
    for _ in range(4):
        step(plain, 0.5)
    assert torch.equal(p, q.detach())


class Tagged(torch.Tensor):
    """A gradient of a subclass that means nothing by it."""


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("optimizer_class", ALL)
def test_a_gradient_of_a_subclass_is_taken_for_its_values(optimizer_class, options):
    ends = []
    for kind in (torch.Tensor, Tagged):
        p = Parameter(torch.ones(4))
        optimizer = optimizer_class([p], lr=0.1, **options)
        for _ in range(3):
            p.grad = torch.full((4,), 0.5).as_subclass(kind)
            optimizer.step()
        ends.append(p)
    assert torch.equal(*ends)


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("optimizer_class", ALL)
def test_gradients_are_never_changed(optimizer_class, options):
    p = Parameter(torch.ones(700))
    optimizer = optimizer_class([p], weight_decay=0.1, maximize=True, **options)
    p.grad = torch.linspace(-1, 1, 700)
    before = p.grad.clone()
    values = [p.detach().clone()]
    for _ in range(3):
        optimizer.step()
        values.append(p.detach().clone())
    assert torch.equal(p.grad, before)
    # Climbing: every step goes the same way, along the gradient.
    assert ((values[3] - values[2])[-1] > 0) and ((values[2] - values[1])[-1] > 0)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("optimizer_class", [AvaGrad, AdaBound, CSGD])
def test_an_overflow_under_loss_scaling_skips_everything(optimizer_class, fused):
    extra = {"momentum": 0.9} if optimizer_class is CSGD else {}
    p, q = Parameter(torch.ones(3)), Parameter(torch.ones(3))
    optimizer = optimizer_class([p], lr=0.1, fused=fused, **extra)
    plain = optimizer_class([q], lr=0.1, fused=fused, **extra)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for k, gradient in enumerate([0.5, 0.25, float("inf"), 0.125]):
        scaler.scale(torch.zeros(()))
        p.grad = torch.full_like(p, gradient) * scaler.get_scale()
        before = copy.deepcopy(optimizer.state_dict())
        scaler.step(optimizer)
        scaler.update()
        if k == 2:
            after = optimizer.state_dict()
            for name, value in before["state"][0].items():
                assert torch.equal(value, after["state"][0][name])
            assert before["param_groups"] == after["param_groups"]
        else:
            step(plain, gradient)
    torch.testing.assert_close(p, q)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", FORMS)
def test_half_precision_parameters_really_move(dtype, options):
    # 1/eps^2 summed over them overflows float16, and their squared gradients underflow it.
    p = Parameter(torch.zeros(5000, dtype=dtype))
    optimizer = AvaGrad([p], lr=0.1, eps=1e-3, **options)
    for _ in range(4):
        step(optimizer, 1e-4)
    assert torch.isfinite(p).all()
    # A constant gradient moves every coordinate by lr times it, from the second step on.
    assert p.float().mean().item() == pytest.approx(-3e-5, rel=0.02)
    assert optimizer.state[p]["exp_avg_sq"].dtype == torch.float32


def test_adabound_may_start_a_warm_up_at_zero():
    p, q = parameter(1.0), parameter(1.0)
    optimizer, plain = AdaBound([p], lr=0.0), AdaBound([q], lr=0.01)
    step(optimizer, 0.5)
    assert p.item() == 1.0
    optimizer.param_groups[0]["lr"] = 0.01
    for _ in range(3):
        step(optimizer, 0.5)
        step(plain, 0.5)
    assert torch.isfinite(p) and p.item() < 1.0
    assert optimizer.param_groups[0]["base_lr"] == plain.param_groups[0]["base_lr"] == 0.01


def test_adabound_keeps_the_first_rate_of_every_group_with_the_group():
    optimizer = AdaBound([parameter(1.0)], lr=0.01)
    optimizer.add_param_group({"params": [parameter(2.0)], "lr": 0.5})
    optimizer = copy.deepcopy(optimizer)
    assert [group["base_lr"] for group in optimizer.param_groups] == [0.01, 0.5]
    assert optimizer.state_dict()["param_groups"][1]["base_lr"] == 0.5


@pytest.mark.parametrize("optimizer_class", ALL)
def test_sparse_gradients_are_refused_by_name(optimizer_class):
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    optimizer = optimizer_class(embedding.named_parameters())
    with pytest.raises(WorkError, match="'weight' is sparse"):
        optimizer.step()
    assert isinstance(WorkError(""), RuntimeError)


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("optimizer_class", ALL)
def test_complex_parameters_are_pairs_of_reals(optimizer_class, options):
    generator = torch.Generator().manual_seed(0)
    p = Parameter(torch.randn(6, dtype=torch.complex64, generator=generator))
    q = Parameter(torch.view_as_real(p.detach()).clone())
    optimizers = [optimizer_class([x], weight_decay=0.1, **options) for x in (p, q)]
    for _ in range(4):
        p.grad = torch.randn(6, dtype=torch.complex64, generator=generator)
        q.grad = torch.view_as_real(p.grad).clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(torch.view_as_real(p.detach()), q.detach())


@pytest.mark.parametrize("name", ["eps", "betas"])
def test_gamma_follows_a_change_of_eps_or_beta2_at_once(name):
    change = {"eps": 2.0, "betas": (0.9, 0.9)}
    p = parameter(0.0, 0.0)
    optimizer = AvaGrad([p], eps=0.1)
    for k in range(3):
        p.grad = torch.tensor([1.0 + k, 0.01]).double()
        optimizer.step()
    optimizer.param_groups[0][name] = change[name]
    v = optimizer.state[p]["exp_avg_sq"].clone()
    optimizer.step()
    eps, beta2 = optimizer.param_groups[0]["eps"], optimizer.param_groups[0]["betas"][1]
    rates = 1 / ((v / (1 - beta2**3)).sqrt() + eps)
    expected = 1 / rates.square().mean().sqrt()
    assert optimizer.param_groups[0]["gamma"].item() == pytest.approx(expected.item(), rel=1e-12)


def test_gamma_follows_second_moments_that_were_edited():
    p = parameter(0.0, 0.0)
    optimizer = AvaGrad([p], eps=0.1)
    for _ in range(2):
        step(optimizer, 1.0)
    optimizer.state[p]["exp_avg_sq"].fill_(0.0)
    step(optimizer, 1.0)
    assert optimizer.param_groups[0]["gamma"].item() == pytest.approx(0.1, rel=1e-12)


@pytest.mark.parametrize("gamma_scope", ["global", "group", "tensor"])
@pytest.mark.parametrize("options", FORMS)
def test_a_tensor_without_elements_takes_part(options, gamma_scope):
    alone, beside, without = parameter(1.0, 2.0), parameter(1.0, 2.0), parameter()
    steps = AvaGrad([alone], gamma_scope=gamma_scope, **options)
    others = AvaGrad([without, beside], gamma_scope=gamma_scope, **options)
    empty = AvaGrad([without], gamma_scope=gamma_scope, **options)
    for _ in range(3):
        step(steps, 1.0)
        step(others, 1.0, 1.0)
        step(empty, 1.0)
    assert torch.equal(alone, beside)


def test_gamma_follows_a_moment_whose_data_was_replaced():
    # As growth and sharding do; torch counts no version of that.
    replaced, written = parameter(1.0, 2.0), parameter(1.0, 2.0)
    for p, replace in ((replaced, True), (written, False)):
        optimizer = AvaGrad([p])
        for gradient in (1.0, 2.0):
            step(optimizer, gradient)
        moment = optimizer.state[p]["exp_avg_sq"]
        if replace:
            moment.data = moment * 100.0
        else:
            moment.mul_(100.0)
        step(optimizer, 3.0)
    assert torch.equal(replaced, written)


def test_a_count_of_whole_numbers_goes_on():
    p = parameter(1.0)
    optimizer = CSGD([p], momentum=0.9)
    step(optimizer, 0.5)
    optimizer.state[p]["step"] = torch.tensor(1)
    step(optimizer, 0.5)
    assert optimizer.state[p]["step"].item() == 2
