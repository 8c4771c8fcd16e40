"""When the temperature moves and when the masks are fixed, and what training is like after that."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from latewood.core import parameter_groups
from latewood.core.state import load_state, save_state
from latewood.errors import RequestError
from latewood.sparsity import ContinuousSparsification
from latewood.sparsity.temperature_schedule import TemperatureSchedule

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(32) % 3

pytestmark = pytest.mark.filterwarnings("ignore:.*undecided", "ignore:.*no logit is above 0")


def started(**arguments):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    method = ContinuousSparsification(model, **{"exclude": (), "total_steps": 20} | arguments)
    groups = parameter_groups(model, [method], weight_decay=1e-2)
    return model, method, torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def train(model, method, optimizer, steps):
    for _ in range(steps):
        loss = F.cross_entropy(model(X), Y) + method.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.step()


def temperatures(schedule):
    return [schedule.temperature(step) for step in range(schedule.total_steps)]


def test_the_whole_curve_fits_before_the_masks_are_fixed():
    schedule = TemperatureSchedule(total_steps=10, final_temperature=16.0, harden_at=0.5)
    assert schedule.harden_step == 5
    want = [1.0, 2.0, 4.0, 8.0, 16.0] + [16.0] * 5
    assert temperatures(schedule) == pytest.approx(want)


@pytest.mark.parametrize(("at", "epochs"), [(0.5, 5), (0.66, 7), (0.7, 7), (0.01, 1), (0.99, 10)])
def test_with_epochs_known_masks_are_fixed_at_the_end_of_one(at, epochs):
    schedule = TemperatureSchedule(total_steps=30, steps_per_epoch=3, harden_at=at)
    assert schedule.harden_step == 3 * epochs
    assert schedule.temperature(3 * epochs - 1) == 200.0
    if epochs > 1:
        assert temperatures(schedule)[:6] == pytest.approx(
            [1.0] * 3 + [200 ** (1 / (epochs - 1))] * 3
        )


def test_only_the_last_round_is_cut():
    schedule = TemperatureSchedule(total_steps=12, rounds=3, harden_at=0.5, final_temperature=8.0)
    one = [1.0, 2.0, 4.0, 8.0]
    assert temperatures(schedule) == pytest.approx([*one, *one, 1.0, 8.0, 8.0, 8.0])
    assert schedule.harden_step == 10
    assert TemperatureSchedule(total_steps=12).harden_step is None


def test_a_decimal_fraction_counts_as_it_prints():
    assert TemperatureSchedule(total_steps=100, harden_at=0.07).harden_step == 7


@pytest.mark.parametrize("density", [None, 0.25])
def test_weights_train_on_under_the_fixed_masks(density):
    model, method, optimizer = started(harden_at=0.5, initial_logit=0.02, density=density)
    train(model, method, optimizer, 9)
    assert not method.hardened
    train(model, method, optimizer, 1)
    assert method.hardened and method.temperature == 200.0
    masks, logits = method.masks(), [each.clone() for each in method.mask_parameters()]
    if density is not None:
        kept = sum(int(mask.sum()) for mask in masks.values())
        assert kept == round(density * (6 * 16 + 16 * 3))
    before = [p.detach().clone() for p in model.parameters()]
    train(model, method, optimizer, 10)
    assert all(map(torch.equal, logits, method.mask_parameters()))
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(torch.equal(masks[name], mask) for name, mask in method.masks().items())
    assert method.metrics()["undecided"] == 0.0
    outputs = model(X)
    method.finalize()
    assert torch.allclose(model(X), outputs, atol=1e-6)
    assert all(bool((model.get_parameter(n)[~mask] == 0).all()) for n, mask in masks.items())


def test_an_exact_density_also_holds_without_a_course():
    model, method, optimizer = started(initial_logit=0.02, density=0.1)
    train(model, method, optimizer, 20)
    assert not method.hardened
    method.finalize()
    kept = int((model[0].weight != 0).sum() + (model[2].weight != 0).sum())
    assert kept == round(0.1 * (6 * 16 + 16 * 3))
    assert method.metrics()["density"] == kept / (6 * 16 + 16 * 3)


@pytest.mark.parametrize("at", [7, 10, 15])
def test_a_run_resumes_to_the_same_bits_before_and_after(at, tmp_path):
    arguments = {"harden_at": 0.5, "initial_logit": 0.02}
    whole = started(**arguments)
    train(*whole, 20)
    first = started(**arguments)
    train(*first, at)
    save_state(tmp_path / "state", [dict(part.state_dict()) for part in first])
    again = started(**arguments)
    for part, state in zip(again, load_state(tmp_path / "state"), strict=True):
        part.load_state_dict(state)
    train(*again, 20 - at)
    assert again[1].hardened
    for name, tensor in whole[0].state_dict().items():
        assert torch.equal(tensor, again[0].state_dict()[name]), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"harden_at": 0.0}, "harden_at: got 0.0; expected a number in"),
        ({"harden_at": 1.5}, "harden_at: got 1.5"),
        ({"harden_at": float("nan")}, "harden_at: got nan"),
        ({"density": 0.0}, "density: got 0.0; expected a number in"),
        ({"density": 1e-3}, "every layer keeps a weight"),
    ],
)
def test_bad_arguments_are_named_and_leave_the_model_alone(arguments, message):
    model = nn.Sequential(nn.Linear(6, 16), nn.Linear(16, 3))
    with pytest.raises(RequestError, match=message):
        ContinuousSparsification(model, total_steps=10, exclude=(), **arguments)
    assert type(model[0]) is nn.Linear
