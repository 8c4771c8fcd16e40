"""Worked numbers: two steps of continuous sparsification in float64, and the penalty's flow."""

import math

import pytest
import torch
from torch import nn

from latewood.core import parameter_groups
from latewood.sparsity import ContinuousSparsification

X = [[1.0, 2.0, -1.0], [0.5, -1.5, 3.0]]
LABELS = [0, 1]
WEIGHT = [[0.5, -0.25, 0.125], [-0.75, 0.3, 0.6]]
LOGITS = [[0.1, -0.2, 0.0], [0.3, -0.05, -0.4]]

UNSCALED = {
    "cross_entropy": [0.664926114789543, 0.640348913575574],
    "loss": [0.694310141293357, 0.668215710384860],
    "weight_gradient": """-0.036090085642 -0.371287893449  0.515474794410
                          0.039490479094  0.402082373235 -0.413732791795""",
    "logit_gradient": """-0.006078010501  0.053511842379  0.034717174651
                         -0.010159518553  0.064318288987 -0.146215422762""",
    "weight": [
        """0.506847616272 -0.179450550245  0.027057414062
           -0.757488941028  0.223598649085  0.678597830441""",
        """0.512108782343 -0.105243727074 -0.112350588564
           -0.763685635810  0.126881282460  0.748527046208""",
    ],
    "logits": [
        """0.101154821995 -0.210167250052 -0.006596263184
           0.301930308525 -0.062220474908 -0.372219069675""",
        """0.101730803850 -0.238229935974 -0.016662211504
           0.303511311906 -0.101536440592 -0.280825492099""",
    ],
    "mask": "1 0 0 1 0 0",
}
SCALED = {
    "cross_entropy": [0.657015906082085, 0.408508887857148],
    "loss": [0.718874304133880, 0.466952211064934],
    "logit_gradient": """0.002626444624  0.106120471711  0.075425071148
                         0.001288843540  0.127489978899 -0.318600513547""",
    "weight": [
        None,
        """0.489664369732  0.007712384594 -0.335008055271
           -0.736150427432 -0.000938326046  0.909769064677""",
    ],
    "logits": [
        None,
        """0.084705726795 -0.250436388692  0.003861385980
           0.284890076281 -0.117679756857 -0.155247992562""",
    ],
    "mask": "1 0 1 1 0 0",
}


def close(actual, text, tolerance=1e-12):
    want = torch.tensor([float(number) for number in text.split()], dtype=torch.float64)
    torch.testing.assert_close(actual.detach().flatten().double(), want, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("scale", "initial_logit", "golden"),
    [("none", 0.0, UNSCALED), ("code", -0.1, SCALED)],
    ids=["unscaled", "scaled"],
)
def test_two_steps(scale, initial_logit, golden):
    layer = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    layer.weight.data = torch.tensor(WEIGHT, dtype=torch.float64)
    method = ContinuousSparsification(
        layer,
        total_steps=2,
        initial_logit=initial_logit,
        final_temperature=4.0,
        penalty_weight=0.01,
        scale=scale,
    )
    (logits,) = method.mask_parameters()
    assert logits.dtype is torch.float64
    logits.data = torch.tensor(LOGITS, dtype=torch.float64)
    weight = layer.parametrizations.weight.original
    groups = parameter_groups(layer, [method], weight_decay=1e-4)
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    x, labels = torch.tensor(X, dtype=torch.float64), torch.tensor(LABELS)

    for step, temperature in enumerate([1.0, 4.0]):
        assert method.temperature == temperature
        cross_entropy = nn.functional.cross_entropy(layer(x), labels)
        loss = cross_entropy + method.penalty()
        optimizer.zero_grad()
        loss.backward()
        assert cross_entropy.item() == pytest.approx(golden["cross_entropy"][step], abs=1e-14)
        assert loss.item() == pytest.approx(golden["loss"][step], abs=1e-14)
        if step == 0:
            if "weight_gradient" in golden:
                close(weight.grad, golden["weight_gradient"])
            close(logits.grad, golden["logit_gradient"])
        optimizer.step()
        method.step()
        if golden["weight"][step]:
            close(weight, golden["weight"][step])
            close(logits, golden["logits"][step])

    close(method.masks()["weight"], golden["mask"])


@pytest.mark.parametrize(
    ("initial_logit", "scale"),
    [(0.0, 2.0), (-0.1, 2.105170918075648), (0.1, 1.904837418035959)],
)
def test_scale_of_the_code(initial_logit, scale):
    for dtype, tolerance in [(torch.float64, 5e-16), (torch.float32, 1.2e-7)]:
        layer = nn.Linear(3, 2, bias=False, dtype=dtype)
        ContinuousSparsification(layer, total_steps=2, initial_logit=initial_logit)
        (mask,) = layer.parametrizations.weight
        assert mask.scale == pytest.approx(scale, rel=tolerance)


@pytest.mark.parametrize(
    ("start", "penalty_weight", "temperature", "end"),
    [(0.3, 0.01, 10.0, 0.130654881862), (1.0, 0.05, 2.0, None), (-0.5, 0.02, 5.0, None)],
)
def test_penalty_flow_has_its_closed_form(start, penalty_weight, temperature, end):
    """Without a loss gradient F(beta s) falls by lambda beta^2 tau, F(z) = 2 sinh z + 2 z."""
    layer = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    method = ContinuousSparsification(
        layer,
        total_steps=1,
        final_temperature=temperature,
        penalty_weight=penalty_weight,
        scale="none",
    )
    (logits,) = method.mask_parameters()
    logits.data.fill_(start)
    optimizer = torch.optim.SGD([logits], lr=0.02)
    for _ in range(1000):
        optimizer.zero_grad()
        method.penalty().backward()
        optimizer.step()

    def F(z):
        return 2 * math.sinh(z) + 2 * z

    fallen = F(temperature * start) - F(temperature * logits.item())
    assert fallen == pytest.approx(penalty_weight * temperature**2 * 20.0, rel=2e-3)
    if end is not None:
        assert logits.item() == pytest.approx(end, abs=3e-4)


def test_temperatures():
    """Growth factor 200 ** (1 / 84) an epoch over 85 epochs, the last at exactly 200."""
    method = ContinuousSparsification(nn.Linear(2, 2), total_steps=85 * 3, steps_per_epoch=3)
    seen = []
    for _ in range(85 * 3):
        seen.append(method.temperature)
        method.step()
    assert seen[0] == 1.0 and seen[-1] == 200.0 and method.temperature == 200.0
    assert seen[::3] == seen[1::3] == seen[2::3]
    epochs = seen[::3]
    for e in range(84):
        assert epochs[e + 1] / epochs[e] == pytest.approx(1.065106939444817, rel=1e-12)


def test_temperature_by_step():
    method = ContinuousSparsification(nn.Linear(2, 2), total_steps=11, final_temperature=1024.0)
    seen = []
    for _ in range(14):
        seen.append(method.temperature)
        method.step()
    assert seen[0] == 1.0 and seen[10:] == [1024.0] * 4
    assert seen[1:11] == pytest.approx([2.0**i for i in range(1, 11)])


@pytest.mark.parametrize(("total_steps", "steps_per_epoch"), [(1, None), (1, 1), (5, 5), (3, 10)])
def test_a_run_of_one_step_or_epoch_is_at_the_final_temperature(total_steps, steps_per_epoch):
    layer = nn.Linear(2, 2)
    method = ContinuousSparsification(
        layer, total_steps=total_steps, steps_per_epoch=steps_per_epoch
    )
    assert method.temperature == 200.0
    assert layer.parametrizations.weight[0].temperature == 200.0


def test_a_last_epoch_that_is_cut_short_is_at_the_final_temperature():
    method = ContinuousSparsification(nn.Linear(2, 2), total_steps=7, steps_per_epoch=3)
    for _ in range(6):
        method.step()
    assert method.temperature == 200.0
