"""What must hold for the optimizers on any gradients: normalisation, scaling, partition, limits."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

from latewood.optim import CSGD, AdaBound, AMSBound, AvaGrad, DelayedAdam, HyperbolicBounds

FORMS = [{"fused": False, "foreach": False}, {"foreach": True}, {"fused": True}]


def parameters_of(*values, dtype=torch.float64):
    return [Parameter(torch.tensor(value, dtype=dtype)) for value in values]


def play(optimizer_class, start, script, **options):
    """Values of all parameters after every step of a script of gradients."""
    parameters = parameters_of(*start)
    optimizer = optimizer_class(parameters, **options)
    rows = []
    for gradients in script:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = (
                None if gradient is None else torch.tensor(gradient, dtype=torch.float64)
            )
        optimizer.step()
        rows.append([parameter.detach().clone() for parameter in parameters])
    return rows, optimizer


def script_of(steps, *sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scales = [torch.rand(size, generator=generator).double() * 3 - 2 for size in sizes]
    return [
        [(torch.randn(s.numel(), generator=generator) * 10**s).tolist() for s in scales]
        for _ in range(steps)
    ]


@pytest.mark.parametrize("options", FORMS)
@settings(max_examples=15, deadline=None)
@given(
    eps=st.floats(1e-6, 1e2),
    beta2=st.floats(0.5, 0.9999),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_aligned_rates_have_unit_root_mean_square(options, eps, beta2, sizes, seed):
    parameters = parameters_of(*([0.0] * size for size in sizes))
    optimizer = AvaGrad(parameters, eps=eps, betas=(0.9, beta2), **options)
    for step, gradients in enumerate(script_of(6, *sizes, seed=seed), start=1):
        before = [optimizer.state[p].get("exp_avg_sq") for p in parameters]
        before = [None if v is None else v.clone() for v in before]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        if step > 1:
            rates = 1 / ((torch.cat(before) / (1 - beta2 ** (step - 1))).sqrt() + eps)
            normalised = rates * optimizer.param_groups[0]["gamma"]
            assert normalised.square().mean().sqrt().item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("eps", [1e-8, 1.0, 1e4])
def test_one_coordinate_moves_by_the_corrected_average_whatever_eps_is(eps):
    script = [[[g]] for g in (0.5, -2.0, 1.5, 0.1, -0.3)]
    rows, _ = play(AvaGrad, [[1.0]], script, lr=0.1, eps=eps)
    averages, x, m = [], 1.0, 0.0
    for t, (((g,),),) in enumerate(zip(script, strict=True), start=1):
        m = 0.9 * m + 0.1 * g
        x -= 0.1 * m / (1 - 0.9**t) if t > 1 else 0.0
        averages.append(x)
    assert [row[0].item() for row in rows] == pytest.approx(averages, rel=1e-14)


@pytest.mark.parametrize("mode", ["official", "aligned", "paper"])
@pytest.mark.parametrize("options", FORMS)
def test_scaling_gradients_and_eps_by_four_changes_no_bit(mode, options):
    script = script_of(8, 5, 130)
    start = [[1.0] * 5, [-1.0] * 130]
    scaled = [[[4 * g for g in gradient] for gradient in step] for step in script]
    common = {"gamma_mode": mode, **options}
    rows, _ = play(AvaGrad, start, script, lr=0.1, eps=0.1, **common)
    others, _ = play(AvaGrad, start, scaled, lr=0.025, eps=0.4, **common)
    for row, other in zip(rows, others, strict=True):
        assert all(map(torch.equal, row, other))


def test_large_eps_turns_avagrad_and_adam_into_csgd(problem):
    def increments(optimizer_class, **options):
        case = problem("S")
        optimizer = optimizer_class(case.parameters, **options)
        values = []
        for step in range(10):
            case.backward(step)
            optimizer.step()
            values.append(torch.tensor(case.values()).double())
        return torch.stack(values).diff(dim=0)

    csgd = increments(CSGD, lr=0.05, momentum=0.9)
    assert (increments(AvaGrad, lr=0.05, eps=1e6) - csgd).abs().sum() <= 1e-6
    assert (increments(torch.optim.Adam, lr=5e4, eps=1e6) - csgd).abs().max() <= 6.5e-7


@pytest.mark.parametrize("mode", ["official", "aligned", "paper"])
def test_a_global_gamma_does_not_see_how_parameters_are_split(mode):
    script = script_of(6, 12)
    options = {"lr": 0.1, "eps": 0.01, "gamma_mode": mode, "gamma_scope": "global"}
    whole, _ = play(AvaGrad, [[1.0] * 12], script, **options)
    parts = [[g[:5], g[5:6], g[6:]] for (g,) in script]
    parameters = parameters_of([1.0] * 5, [1.0], [1.0] * 6)
    groups = [{"params": parameters[:1]}, {"params": parameters[1:]}]
    optimizer = AvaGrad(groups, **options)
    for step, gradients in enumerate(parts):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        torch.testing.assert_close(torch.cat(parameters), whole[step][0], rtol=1e-13, atol=1e-14)


def test_duplicating_every_parameter_leaves_gamma_alone():
    script = script_of(6, 7)
    _, once = play(AvaGrad, [[0.0] * 7], script)
    _, twice = play(AvaGrad, [[0.0] * 7, [0.0] * 7], [[g, g] for (g,) in script])
    gammas = [o.param_groups[0]["gamma"].item() for o in (once, twice)]
    assert gammas[0] == pytest.approx(gammas[1], rel=1e-14)


def test_official_mode_has_a_gamma_per_group_unless_told_otherwise():
    gradients = [
        torch.tensor([0.5, -0.4], dtype=torch.float64),
        torch.tensor([0.01, 0.02], dtype=torch.float64),
    ]

    def run(groups):
        parameters = parameters_of([1.0, 1.0], [1.0, 1.0])
        optimizer = AvaGrad(groups(parameters), lr=0.1, eps=0.01, gamma_mode="official")
        for _ in range(5):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
        gammas = [group["gamma"].item() for group in optimizer.param_groups]
        return [p.tolist() for p in parameters], gammas

    values, gammas = run(lambda p: p)
    assert values[0] == pytest.approx([0.9903468424815668, 1.0096060689451725], rel=1e-12)
    assert values[1] == pytest.approx([0.995076889665599, 0.9934358528874654], rel=1e-12)
    assert gammas == pytest.approx([0.031298821853901676], rel=1e-12)
    values, gammas = run(lambda p: [{"params": p[:1]}, {"params": p[1:]}])
    assert values[0] == pytest.approx([0.8925142605443993, 1.1069614187753296], rel=1e-12)
    assert values[1] == pytest.approx([0.9963671655682038, 0.9951562207576049], rel=1e-12)
    assert gammas == pytest.approx([0.40536754527073804, 0.022164667684745534], rel=1e-12)


def test_a_gamma_per_tensor_equals_an_optimizer_per_tensor():
    script = script_of(5, 4, 6)
    start = [[1.0] * 4, [1.0] * 6]
    rows, together = play(AvaGrad, start, script, eps=0.01, gamma_scope="tensor")
    for k in range(2):
        alone, optimizer = play(AvaGrad, [start[k]], [[g[k]] for g in script], eps=0.01)
        torch.testing.assert_close(rows[-1][k], alone[-1][0], rtol=1e-14, atol=0)
        state = together.state[together.param_groups[0]["params"][k]]
        assert state["gamma"].item() == pytest.approx(optimizer.param_groups[0]["gamma"].item())


@pytest.mark.parametrize("mode", ["official", "aligned", "paper"])
def test_gamma_depends_on_gradients_only(mode):
    script = script_of(6, 8)
    gammas = []
    for start, lr in (([1.0] * 8, 0.1), ([-7.0] * 8, 3.0)):
        _, optimizer = play(AvaGrad, [start], script, lr=lr, gamma_mode=mode)
        gammas.append(optimizer.param_groups[0]["gamma"].item())
    assert gammas[0] == gammas[1]


def test_official_gamma_lags_and_so_warms_up():
    script = [[[0.5] * 3]] * 6
    rows, _ = play(AvaGrad, [[0.0] * 3], script, lr=1.0, eps=0.1, gamma_mode="official")
    expected = [0, -0.0833333333333, -0.461368176750, -0.884993488245, -1.329260954537,
                -1.785365441930]  # fmt: skip
    assert [row[0][1].item() for row in rows] == pytest.approx(expected, abs=1e-12)


def test_official_late_parameter_pulls_gamma_down_as_in_the_released_code():
    script = [[0.5, None]] * 3 + [[0.5, 0.5]] * 3
    parameters = parameters_of(1.0, 1.0)
    optimizer = AvaGrad(parameters, lr=0.1, eps=0.1, gamma_mode="official")
    a, b, gammas = [], [], []
    for gradients in script:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = (
                None if gradient is None else torch.tensor(gradient, dtype=torch.float64)
            )
        optimizer.step()
        a.append(parameters[0].item())
        b.append(parameters[1].item())
        gammas.append(optimizer.param_groups[0]["gamma"].item())
    assert a == pytest.approx([1, 0.991666666667, 0.953863182325, 0.911500651175, 0.899917548109,
                               0.858755808691], abs=1e-12)  # fmt: skip
    assert b[4:] == pytest.approx([0.988416896933, 0.947255157516], abs=1e-12)
    assert gammas == pytest.approx([0.1, 0.453641812100, 0.508350373794, 0.138997236802,
                                    0.493940873009, 0.530815727412], abs=1e-12)  # fmt: skip


def test_amsbound_denominators_never_fall_and_rates_stay_between_the_bounds():
    script = script_of(30, 6, seed=3)
    parameters = parameters_of([0.0] * 6)
    optimizer = AMSBound(parameters, lr=0.01, gamma=0.1, betas=(0.0, 0.9))
    peak, bounds = torch.zeros(6).double(), HyperbolicBounds(0.1)
    for t, ((gradient,),) in enumerate(zip(script, strict=True), start=1):
        before = parameters[0].detach().clone()
        parameters[0].grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        now = optimizer.state[parameters[0]]["max_exp_avg_sq"]
        assert (now >= peak).all()
        peak = now.clone()
        rates = (before - parameters[0].detach()) / parameters[0].grad
        assert (rates >= 0.1 * bounds.lower(float(t)) * (1 - 1e-9)).all()
        assert (rates <= 0.1 * bounds.upper(float(t)) * (1 + 1e-9)).all()


def test_adabound_with_gamma_zero_is_adam():
    script = script_of(8, 5)
    rows, _ = play(AdaBound, [[1.0] * 5], script, lr=0.01, gamma=0.0)
    adam, _ = play(torch.optim.Adam, [[1.0] * 5], script, lr=0.01)
    torch.testing.assert_close(rows[-1][0], adam[-1][0], rtol=1e-5, atol=0)


def test_delayed_adam_divides_by_past_gradients_only():
    quiet, loud = script_of(3, 4), script_of(3, 4)
    loud[-1] = [[1e3 * g for g in loud[-1][0]]]
    options = {"betas": (0.0, 0.9), "eps": 0.1, "lr": 1.0}
    steps = []
    for script in (quiet, loud):
        rows, _ = play(DelayedAdam, [[0.0] * 4], script, **options)
        steps.append(rows[-1][0] - rows[-2][0])
    torch.testing.assert_close(steps[1], 1e3 * steps[0], rtol=1e-12, atol=0)


CLASSES = [
    (AvaGrad, {}),
    (AvaGrad, {"gamma_mode": "official"}),
    (AvaGrad, {"gamma_mode": "paper", "gamma_scope": "group"}),
    (AvaGrad, {"gamma_scope": "tensor"}),
    (DelayedAdam, {}),
    (AdaBound, {"weight_decay": 0.01, "weight_decay_mode": "decoupled"}),
    (AMSBound, {}),
    (CSGD, {"momentum": 0.9}),
]


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("optimizer_class", "extra"), CLASSES)
def test_a_restored_run_ends_with_the_same_bits(optimizer_class, extra, dtype, options, tmp_path):
    def fresh():
        generator = torch.Generator().manual_seed(0)
        parameters = [Parameter(torch.randn(n, generator=generator).to(dtype)) for n in (700, 3)]
        groups = [{"params": parameters[:1], "lr": 0.05}, {"params": parameters[1:]}]
        return parameters, optimizer_class(groups, **extra, **options)

    def advance(parameters, optimizer, steps):
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
            optimizer.step()

    straight, optimizer = fresh()
    advance(straight, optimizer, range(3))
    saved = [p.detach().clone() for p in straight]
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    copied, copied_optimizer = copy.deepcopy((straight, optimizer))
    advance(straight, optimizer, range(3, 6))
    advance(copied, copied_optimizer, range(3, 6))
    resumed, other = fresh()
    with torch.no_grad():
        for parameter, value in zip(resumed, saved, strict=True):
            parameter.copy_(value)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    advance(resumed, other, range(3, 6))
    for a, b, c in zip(straight, resumed, copied, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    for a, b in zip(straight, resumed, strict=True):
        for name, value in optimizer.state[a].items():
            assert torch.equal(value, other.state[b][name]), name
            assert value.dtype == other.state[b][name].dtype


@pytest.mark.parametrize(("optimizer_class", "extra"), CLASSES)
def test_all_forms_walk_the_same_way(optimizer_class, extra):
    script = script_of(12, 70, 5, seed=5)
    start = [[1.0] * 70, [-1.0] * 5]
    runs = [play(optimizer_class, start, script, **extra, **form)[0][-1] for form in FORMS]
    for other in runs[1:]:
        for value, reference in zip(other, runs[0], strict=True):
            torch.testing.assert_close(value, reference, rtol=1e-13, atol=1e-14)
