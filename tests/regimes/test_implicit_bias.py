"""The limits of gradient flow: worked numbers, the conditions of optimality, an ODE, rates."""

import math

import pytest
import torch

from latewood.errors import RequestError, WorkError
from latewood.regimes import (
    biased_limit,
    diagonal_kernel,
    effective_scale,
    escape_time,
    gradient_descent,
    gradient_flow,
    kernel_distance,
    kernel_scale,
    limit,
    minimum_l1,
    minimum_l2,
    potential_gradient,
    rich_scale,
    wide_start,
)

TWO = {
    2.0: {
        1e-4: (0.000070708177, 0.499964645912, 8.36369611227),
        0.01: (0.007044697945, 0.496477651028, 3.75193657380),
        0.1: (0.066858017747, 0.466570991127, 1.42485727500),
        0.3: (0.158122834076, 0.420938582962, 0.455372443517),
        1.0: (0.199211377416, 0.400394311292, 0.0498597374299),
    },
    3.0: {
        0.01: (0.000007405020, 0.499996297490, 0.490550290895),
        0.1: (0.005263627462, 0.497368186269, 0.405544210913),
        0.3: (0.069156544185, 0.465421727907, 0.229198736135),
        1.0: (0.198267062592, 0.400866468704, 0.0165636927536),
    },
    5.0: {
        0.1: (0.000026576074, 0.499986711963, 0.498120662121),
        0.3: (0.005949669562, 0.497025165219, 0.452655954760),
        1.0: (0.197280822634, 0.401359588683, 0.0297087935021),
    },
}
TWENTY = {
    2.0: {
        1e-4: (1.516194487892, 1.060854264877, 25.5503281823, 1.001434686283, -0.322431367656),
        0.01: (1.593863002415, 0.954532296078, 11.4087178578, 0.900568974664, -0.240879063742),
        0.1: (1.928605954968, 0.667179476730, 3.78659136126, 0.512428157358, -0.193005811012),
        1.0: (2.219964797308, 0.604814526742, 0.0913620886766, 0.284005337849, -0.164260731226),
    },
    3.0: {
        0.01: (1.500323773015, 1.116584621412, 1.47538143004, 1.000036508845, -0.496670633449),
        0.1: (1.552836846949, 1.023072835741, 1.21952383980, 0.971258774499, -0.277875014769),
        1.0: (2.219321810193, 0.604815346101, 0.0304184051762, 0.284415084717, -0.164258584869),
    },
    5.0: {
        0.3: (1.551439494470, 1.031583125932, 1.35178571990, 0.974474790384, -0.310322092368),
        1.0: (2.218642195069, 0.604816885395, 0.0546854383392, 0.284850045712, -0.164256609456),
    },
}


def test_worked_limits_of_two_features(two_features):
    for depth, rows in TWO.items():
        found = limit(*two_features, depth=depth, alpha=list(rows))
        expected = torch.tensor(list(rows.values()), dtype=torch.float64)
        torch.testing.assert_close(found.beta, expected[:, :2], rtol=0, atol=1e-12)
        torch.testing.assert_close(found.potential, expected[:, 2], rtol=1e-11, atol=0)
    assert float(limit(*two_features, alpha=0.1).dual) == pytest.approx(
        1.9216420748551328, rel=1e-13
    )


def test_worked_limits_of_twenty_features(twenty_features):
    expected_targets = [-1.1084091851, -0.4967751477, 0.7921057010, -0.7395672657, 0.8015054473]
    assert twenty_features[1].tolist() == pytest.approx(expected_targets, abs=1e-10)
    for depth, rows in TWENTY.items():
        found = limit(*twenty_features, depth=depth, alpha=list(rows))
        for index, (l1, l2, value, fourth, twelfth) in enumerate(rows.values()):
            beta = found.beta[index]
            assert float(beta.abs().sum()) == pytest.approx(l1, abs=2e-12)
            assert float(beta.norm()) == pytest.approx(l2, abs=2e-12)
            assert float(found.potential[index]) == pytest.approx(value, rel=1e-11)
            assert float(beta[3]) == pytest.approx(fourth, abs=2e-12)
            assert float(beta[11]) == pytest.approx(twelfth, abs=2e-12)


def test_least_norms(two_features, twenty_features):
    assert minimum_l1(*two_features).tolist() == pytest.approx([0, 0.5])
    assert minimum_l2(*two_features).tolist() == pytest.approx([0.2, 0.4])
    sparse, dense = minimum_l1(*twenty_features), minimum_l2(*twenty_features)
    assert float(sparse.abs().sum()) == pytest.approx(1.5, abs=1e-12)
    assert float(dense.norm()) == pytest.approx(0.604814316768, abs=1e-12)
    assert float(dense.abs().sum()) == pytest.approx(2.220494214157, abs=1e-12)


@pytest.mark.parametrize("depth", [2.0, 2.01, 2.6, 3.0, 5.0, 8.0])
def test_the_conditions_of_optimality(depth, gaussian):
    inputs, targets = gaussian
    shape = torch.linspace(0.6, 1.5, 15).double()
    alphas = torch.tensor([0.2, 0.5, 1.0, 10.0]).double()
    found = limit(inputs, targets, depth=depth, alpha=alphas, shape=shape)
    assert found.beta.shape == (4, 15) and found.dual.shape == (4, 6) and found.rank == 6
    assert float(found.residual.max()) < 1e-13
    gradient = potential_gradient(found.beta, depth=depth, alpha=alphas, shape=shape)
    torch.testing.assert_close(gradient, found.dual @ inputs, rtol=1e-9, atol=1e-11)
    off = found.plus**depth - found.minus**depth - found.beta
    assert bool((off.abs() < 1e-13 * found.plus**depth + 1e-13 * found.minus**depth).all())
    if depth == 2:
        kept = found.plus * found.minus / (alphas[:, None] * shape) ** 2
    else:
        e = 2 - depth
        kept = (found.plus**e + found.minus**e) / (2 * (alphas[:, None] * shape) ** e)
    torch.testing.assert_close(kept, torch.ones_like(kept), rtol=1e-10, atol=0)


@pytest.mark.parametrize(("depth", "alpha"), [(2.0, 0.05), (2.5, 0.3), (3.0, 0.5)])
def test_the_flow_ends_there(depth, alpha, twenty_features):
    shape = torch.linspace(0.7, 1.3, 20).double()
    found = limit(*twenty_features, depth=depth, alpha=alpha, shape=shape)
    for coordinates in ("weights", "dual"):
        flow = gradient_flow(
            *twenty_features, depth=depth, alpha=alpha, shape=shape, coordinates=coordinates
        )
        torch.testing.assert_close(flow.beta, found.beta, rtol=0, atol=1e-8)
        torch.testing.assert_close(flow.plus, found.plus, rtol=0, atol=1e-8)
        torch.testing.assert_close(flow.minus, found.minus, rtol=0, atol=1e-8)


def test_the_flow_from_a_biased_start_ends_at_the_biased_limit(gaussian):
    inputs, targets = gaussian
    plus, minus = torch.linspace(0.1, 0.9, 15).double(), torch.linspace(0.8, 0.2, 15).double()
    flow = gradient_flow(inputs, targets, plus=plus, minus=minus)
    found = biased_limit(inputs, targets, plus**2, minus**2)
    torch.testing.assert_close(flow.beta, found.beta, rtol=0, atol=1e-8)
    torch.testing.assert_close(flow.plus, found.plus, rtol=0, atol=1e-8)


def test_without_bias_the_biased_limit_is_the_limit(gaussian):
    start = torch.full((15,), 0.09, dtype=torch.float64)
    found = biased_limit(*gaussian, start, start)
    torch.testing.assert_close(found.beta, limit(*gaussian, alpha=0.3).beta, rtol=1e-12, atol=1e-13)


def test_a_wide_network_is_a_diagonal_one(gaussian):
    """The formula for a finite width against gradient descent on both factors."""
    inputs, targets = gaussian
    width, alpha, lr = 7, 0.2, 1e-3
    generator = torch.Generator().manual_seed(4)
    both = torch.randn(30, width, generator=generator, dtype=torch.float64) * alpha
    u, v = both[:15].clone(), both[15:].clone()
    for _ in range(20000):
        residual = inputs @ (u * v).sum(1) - targets
        if float(residual.norm()) < 1e-9:
            break
        pull = 2 * lr * (inputs.T @ residual)[:, None]
        u, v = u - pull * v, v - pull * u
    found = biased_limit(inputs, targets, *wide_start(15, width, alpha, seed=4))
    assert float((found.beta - (u * v).sum(1)).norm() / found.beta.norm()) < 5e-3


def test_the_wider_the_closer_to_the_limit_of_width(gaussian):
    fixed = 0.05
    distances = []
    for width in (1, 100, 10_000):
        alpha = math.sqrt(2 * fixed / width)
        assert effective_scale(alpha, width) == pytest.approx(math.sqrt(fixed))
        starts = [wide_start(15, width, alpha, seed=seed) for seed in range(5)]
        plus, minus = (torch.stack(part) for part in zip(*starts, strict=True))
        wide = limit(*gaussian, alpha=math.sqrt(fixed)).beta
        found = biased_limit(*gaussian, plus, minus).beta
        distances.append(float((found - wide).norm(dim=1).mean() / wide.norm()))
    assert distances[0] > 3 * distances[1] > 9 * distances[2]


def test_rates_of_both_ends(two_features):
    dense = minimum_l2(*two_features)
    for depth in (2.0, 3.0):
        found = limit(*two_features, depth=depth, alpha=[2.0, 4.0, 8.0]).beta
        off = (found - dense).norm(dim=1).log2()
        assert (off[1:] - off[:-1]).tolist() == pytest.approx([-2 * depth] * 2, abs=0.05)
    small = limit(*two_features, depth=5.0, alpha=[0.02, 0.04, 0.08]).beta.abs().sum(1) - 0.5
    assert (small[1:] / small[:-1]).log2().tolist() == pytest.approx([5.0, 5.0], abs=0.02)
    tiny = limit(*two_features, alpha=1e-5).beta.abs().sum() - 0.5
    assert float(tiny) == pytest.approx(0.5 * math.sqrt(0.5) * 1e-5, rel=1e-3)


def test_norms_are_monotone_in_the_scale(twenty_features):
    for depth in (2.0, 3.0, 5.0):
        beta = limit(*twenty_features, depth=depth, alpha=torch.logspace(-1.5, 1, 12)).beta
        assert bool((beta.abs().sum(1).diff() >= -1e-12).all())
        assert bool((beta.norm(dim=1).diff() <= 1e-12).all())


def test_shape_matters_at_small_scale_for_deep_networks_only(two_features):
    """At depth 3 the limit weighs the l1 norm with 1 / shape; at depth 2 it does not."""
    shape = torch.tensor([4.0, 1.0])
    deep = limit(*two_features, depth=3.0, alpha=1e-3, shape=shape).beta
    assert deep.tolist() == pytest.approx([1.0, 0.0], abs=1e-3)
    assert limit(*two_features, alpha=1e-6, shape=shape).beta.tolist() == pytest.approx(
        [0, 0.5], abs=1e-3
    )
    for depth in (2.0, 3.0):
        large = limit(*two_features, depth=depth, alpha=30.0, shape=shape).beta
        weighted = minimum_l2(*two_features, weights=shape ** (2 - 2 * depth))
        torch.testing.assert_close(large, weighted, rtol=1e-5, atol=0)


def test_a_start_too_small_for_the_dual_gives_the_least_l1_norm(twenty_features):
    found = limit(*twenty_features, depth=[3.0, 5.0], alpha=[1e-9, 1e-3])
    assert found.iterations.tolist() == [0, 0]
    assert found.beta.abs().sum(1).tolist() == pytest.approx([1.5, 1.5], abs=1e-9)
    near = limit(*twenty_features, depth=3.0, alpha=1e-5)
    assert int(near.iterations) > 0
    torch.testing.assert_close(near.beta, found.beta[0], rtol=0, atol=1e-4)


def test_mixed_depths_are_each_alone(gaussian):
    mixed = limit(*gaussian, depth=torch.tensor([[2.0], [3.0]]), alpha=[0.1, 0.5, 1.0])
    assert mixed.beta.shape == (2, 3, 15)
    alone = limit(*gaussian, depth=3.0, alpha=0.5)
    torch.testing.assert_close(mixed.beta[1, 1], alone.beta, rtol=1e-12, atol=1e-14)


def test_kernel_change_by_the_closed_form(twenty_features):
    inputs, targets = twenty_features
    for depth, rows in {
        2.0: {
            0.1: (4.7907865, 0.12448343),
            0.3: (0.26947574, 0.0082262716),
            1.0: (0.0028185327, 1.4576e-6),
        },
        3.0: {0.3: (3.8479989, 0.16825329), 1.0: (0.0062567057, 7.147e-6)},
    }.items():
        for alpha, (relative, cosine) in rows.items():
            found = limit(inputs, targets, depth=depth, alpha=alpha)
            start = torch.full((20,), alpha, dtype=torch.float64)
            distance = kernel_distance(
                diagonal_kernel(inputs, start, start, depth=depth),
                diagonal_kernel(inputs, found.plus, found.minus, depth=depth),
            )
            assert float(distance.relative) == pytest.approx(relative, rel=2e-8)
            assert float(distance.cosine) == pytest.approx(cosine, rel=1e-4)


def test_the_error_of_gradient_descent_is_linear_in_its_step(two_features):
    steps = [4e-2, 4e-3]
    for depth in (2.0, 3.0):
        trained = gradient_descent(*two_features, depth=depth, alpha=0.3, lr=steps, tolerance=1e-10)
        off = (trained.beta - limit(*two_features, depth=depth, alpha=0.3).beta).norm(dim=1)
        assert (off[:-1] / off[1:]).tolist() == pytest.approx([10], rel=0.2)


def test_guarantees_hold_and_are_loose(twenty_features):
    rich, kernel = rich_scale(1.5, 20, 1.0), kernel_scale(0.604814316768, 1.0)
    assert rich == pytest.approx(1.62e-6, rel=1e-2) and kernel == pytest.approx(2.694, rel=1e-3)
    found = limit(*twenty_features, alpha=[rich, kernel]).beta
    assert float(found[0].abs().sum() / 1.5) == pytest.approx(1.0064, abs=1e-4)
    assert float(found[1].norm() / 0.604814316768) ** 2 == pytest.approx(1, abs=1e-7)


def test_time_at_the_saddle(two_features):
    assert escape_time(2.0, depth=3.0, alpha=0.01) == pytest.approx(8.3333, rel=1e-4)
    assert escape_time(2.0, depth=5.0, alpha=0.05) == pytest.approx(133.33, rel=1e-4)
    assert escape_time(2.0, depth=2.0, alpha=1e-6, size=0.5) == pytest.approx(1.684, abs=1e-3)


def test_dependent_examples_are_said_and_their_dual_is_the_shortest(gaussian):
    inputs, targets = gaussian
    doubled = limit(torch.cat([inputs, inputs]), torch.cat([targets, targets]), alpha=0.2)
    single = limit(inputs, targets, alpha=0.2)
    assert doubled.rank == 6
    torch.testing.assert_close(doubled.beta, single.beta, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        doubled.dual, torch.cat([single.dual, single.dual]) / 2, rtol=1e-9, atol=1e-11
    )


def test_data_without_an_interpolant_is_refused(gaussian):
    inputs, targets = gaussian
    contradictory = torch.cat([targets, targets + 1])
    for call in (
        lambda: limit(torch.cat([inputs, inputs]), contradictory, alpha=1.0),
        lambda: minimum_l1(torch.cat([inputs, inputs]), contradictory),
        lambda: gradient_flow(torch.zeros(2, 3), torch.ones(2)),
    ):
        with pytest.raises(RequestError, match="no linear predictor interpolates"):
            call()


def test_targets_of_zero_leave_the_start():
    found = limit(torch.eye(2, 3), torch.zeros(2), depth=[2.0, 3.0], alpha=0.5)
    assert found.beta.abs().max() == 0 and found.residual.max() == 0


def test_tied_solutions_of_least_norm_are_not_guessed():
    with pytest.raises(WorkError, match="several interpolants share"):
        limit(torch.ones(1, 2), torch.ones(1), depth=5.0, alpha=1e-6)
    assert limit(
        torch.ones(1, 2), torch.ones(1), depth=5.0, alpha=0.1
    ).beta.tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"inputs": torch.ones(3)}, "inputs"),
        ({"inputs": torch.ones(0, 3)}, "inputs"),
        ({"inputs": torch.full((2, 3), math.nan)}, "inputs"),
        ({"targets": torch.ones(3)}, "targets"),
        ({"depth": 1.99}, "depth"),
        ({"alpha": -1.0}, "alpha"),
        ({"alpha": [1.0, 2.0], "depth": [2.0, 3.0, 4.0]}, "alpha"),
        ({"shape": [1.0]}, None),
        ({"shape": [[1.0, 1.0, 1.0]]}, "shape"),
    ],
)
def test_what_is_out_of_range_is_named(change, name):
    arguments = {"inputs": torch.eye(2, 3), "targets": torch.ones(2), "alpha": 1.0} | change
    inputs, targets = arguments.pop("inputs"), arguments.pop("targets")
    if name is None:
        assert limit(inputs, targets, **arguments).rank == 2
        return
    with pytest.raises(RequestError, match=f"^{name}: got"):
        limit(inputs, targets, **arguments)


def test_what_does_not_end_says_how_far_it_came(two_features):
    with pytest.raises(WorkError, match=r"residual of .*try a later until"):
        gradient_flow(*two_features, alpha=1e-3, until=0.1)
    with pytest.raises(WorkError, match="after 3 steps"):
        gradient_descent(*two_features, alpha=0.1, lr=1e-3, most_steps=3)
    with pytest.raises(WorkError, match=r"lr 50 .*smaller lr"):
        gradient_descent(*two_features, alpha=0.5, lr=[1e-3, 50.0])
