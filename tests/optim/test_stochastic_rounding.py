"""bfloat16 parameters rounded at random: right on average, the same in every form, repeatable."""

import copy
import inspect

import pytest
import torch
from torch.nn import Parameter

from latewood.errors import RequestError
from latewood.kernels.optimizers import noise_key
from latewood.kernels.optimizers.stochastic_rounding import round_with_noise
from latewood.optim import CSGD, AdaBound, AMSBound, AvaGrad, AvaGradW, DelayedAdam

ALL = [AvaGrad, AvaGradW, DelayedAdam, AdaBound, AMSBound, CSGD]
FORMS = [
    {"fused": True},
    {"foreach": True},
    {"fused": False, "foreach": False},
    {"capturable": True},
]


def run(optimizer_class, steps=5, dtype=torch.bfloat16, **options):
    generator = torch.Generator().manual_seed(0)
    shapes = [(37, 70), (5,), (0,), (2, 3, 4)]
    parameters = [Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]
    parameters[0].data = parameters[0].data.t().contiguous().t()
    optimizer = optimizer_class(parameters, lr=1e-2, stochastic_rounding=True, **options)
    for _ in range(steps):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator).to(dtype)
        optimizer.step()
    return parameters


def test_the_mean_over_many_roundings_is_the_value():
    values = torch.tensor([1.0 + k / 1024 for k in range(9)] + [-3.1415927, 1e-40]).repeat(
        20_000, 1
    )
    rounded = round_with_noise(values, noise_key(0, 1, 0))
    assert torch.equal(rounded, rounded.bfloat16().float())
    spacing = values[0].abs() / 128
    mean = rounded.double().mean(0)
    assert ((mean - values[0].double()).abs() <= 0.02 * spacing + 1e-42).all()
    # What fits is left as it is: 1 and 1 + 1/128.
    assert (rounded[:, [0, 8]] == values[:, [0, 8]]).all()


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan"), 0.0, -0.0])
def test_special_values_stay(value):
    values = torch.full((1000,), value)
    rounded = round_with_noise(values, 12345)
    assert torch.equal(rounded.isnan(), values.isnan())
    assert torch.equal(rounded.nan_to_num(), values.nan_to_num())


def test_keys_of_seeds_steps_and_positions_differ():
    keys = {noise_key(s, t, k) for s in range(20) for t in range(1, 21) for k in range(20)}
    assert len(keys) > 7990 and all(0 <= key < 2**32 for key in keys)
    assert noise_key(3, torch.tensor(7.0, dtype=torch.float64), 2).item() == noise_key(3, 7.0, 2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("optimizer_class", ALL)
def test_two_hundred_small_steps_arrive(optimizer_class, form):
    """Half the spacing of bfloat16 at 1 is 0.004: to nearest, no step of 0.001 leaves 1."""
    ends = []
    for stochastic in (False, True):
        p = Parameter(torch.ones(2000, dtype=torch.bfloat16))
        more = {"final_lr": 1e-3} if optimizer_class in (AdaBound, AMSBound) else {}
        more |= {"eps": 1.0} if optimizer_class is DelayedAdam else {}
        optimizer = optimizer_class([p], lr=1e-3, stochastic_rounding=stochastic, **form, **more)
        p.grad = torch.full_like(p, 0.5)
        for _ in range(200):
            optimizer.step()
        ends.append(p.detach().double().mean().item())
    exact = Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = optimizer_class([exact], lr=1e-3, **more)
    exact.grad = torch.full_like(exact, 0.5)
    for _ in range(200):
        optimizer.step()
    assert ends[0] == 1.0 or optimizer_class in (AdaBound, AMSBound)
    assert ends[1] == pytest.approx(exact.item(), abs=2e-3)


@pytest.mark.parametrize("optimizer_class", ALL)
def test_every_form_draws_the_same_noise(optimizer_class):
    """A float32 result may differ in its last bit, and then rarely rounds the other way."""
    first, *others = [run(optimizer_class, weight_decay=0.1, **form) for form in FORMS]
    for other in others:
        for a, b in zip(first, other, strict=True):
            different = (a != b).double().mean().item() if a.numel() else 0.0
            assert different < 5e-3
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("optimizer_class", ALL)
def test_noise_follows_from_seed_and_step_alone(optimizer_class):
    state = torch.get_rng_state()
    one, two = run(optimizer_class), run(optimizer_class)
    other = run(optimizer_class, rounding_seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, one, two))
    assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_resumed_run_draws_on(momentum):
    def made(parameters, **options):
        return CSGD(parameters, lr=1e-2, momentum=momentum, stochastic_rounding=True, **options)

    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(8, 300, generator=generator).bfloat16()
    straight, halfway = (Parameter(torch.ones(300, dtype=torch.bfloat16)) for _ in range(2))
    ends = []
    for p, stop in ((straight, 8), (halfway, 4)):
        optimizer = made([p])
        for k in range(stop):
            p.grad = gradients[k]
            optimizer.step()
        ends.append(optimizer)
    resumed = Parameter(halfway.detach().clone())
    optimizer = made([resumed], rounding_seed=9)
    optimizer.load_state_dict(copy.deepcopy(ends[1].state_dict()))
    for k in range(4, 8):
        resumed.grad = gradients[k]
        optimizer.step()
    assert torch.equal(straight, resumed)


def test_other_precisions_are_as_ever():
    for dtype in (torch.float32, torch.float64):
        with_noise = run(AvaGrad, dtype=dtype)
        generator = torch.Generator().manual_seed(0)
        del generator
        plain = run(lambda p, stochastic_rounding, **o: AvaGrad(p, **o), dtype=dtype)
        assert all(map(torch.equal, with_noise, plain))


@pytest.mark.parametrize("optimizer_class", ALL)
def test_what_cannot_be_is_refused(optimizer_class):
    assert "stochastic_rounding" in inspect.signature(optimizer_class).parameters
    with pytest.raises(
        RequestError, match=r"^stochastic_rounding: got True; expected False for flo"
    ):
        optimizer_class([torch.ones(3, dtype=torch.float16)], stochastic_rounding=True)
    for seed in (-1, 2**32, 1.0, True):
        with pytest.raises(RequestError, match=r"^rounding_seed: got"):
            optimizer_class([torch.ones(3)], rounding_seed=seed)


def test_a_mixed_model_with_a_switch_per_group():
    half, full = (Parameter(torch.ones(500, dtype=d)) for d in (torch.bfloat16, torch.float32))
    nearest = Parameter(torch.ones(500, dtype=torch.bfloat16))
    optimizer = CSGD(
        [{"params": [half, full], "stochastic_rounding": True}, {"params": [nearest]}], lr=1e-3
    )
    for _ in range(20):
        for p in (half, full, nearest):
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert (nearest == 1.0).all()
    assert half.float().mean().item() == pytest.approx(full.mean().item(), abs=1e-3)
    assert nearest not in optimizer.state
