from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from latewood.errors import RequestError
from latewood.growth import StageRates, Stages, norm_ratios
from latewood.optim import CSGD, AdaBound, AMSBound, AvaGrad, AvaGradW, DelayedAdam

WIDTHS = [1, 1.2, 1.44, 1.728, 2.0736, 2.48832, 2.985984, 3.5831808, 4]
HIDDEN = [1, 0.663, 0.796, 0.955, 1.146, 1.375, 1.651, 1.981, 1.778]
OUTER = [1, 0.447, 0.490, 0.537, 0.588, 0.644, 0.705, 0.773, 0.646]

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "plain": (torch.optim.SGD, {"lr": 0.1}),
    "fused sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "fused": True}),
    "foreach sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "foreach": True}),
    "adam": (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    "amsgrad": (torch.optim.Adam, {"lr": 0.01, "amsgrad": True}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "fused adamw": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1, "fused": True}),
    "tensor rate": (torch.optim.Adam, {"lr": torch.tensor(0.01, dtype=torch.float64)}),
    "nadam": (torch.optim.NAdam, {"lr": 0.01}),
    "radam": (torch.optim.RAdam, {"lr": 0.01}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.05}),
    "adamax": (torch.optim.Adamax, {"lr": 0.05}),
    "adadelta": (torch.optim.Adadelta, {"lr": 1.0}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.5, "centered": True}),
    "muon": (torch.optim.Muon, {"lr": 0.01}),
    "avagrad": (AvaGrad, {"lr": 0.3}),
    "avagradw": (AvaGradW, {"lr": 0.3, "weight_decay": 0.1, "gamma_scope": "tensor"}),
    "delayed": (DelayedAdam, {"lr": 0.01}),
    "adabound": (AdaBound, {"lr": 0.01}),
    "amsbound": (AMSBound, {"lr": 0.01}),
    "csgd": (CSGD, {"lr": 0.1, "momentum": 0.9}),
}


class Model(nn.Module):
    """Weights that are updated with given gradients."""

    def __init__(self, *shapes):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for number, shape in enumerate(shapes):
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            self.register_parameter(f"w{number}", nn.Parameter(value))

    def set_gradients(self, step):
        generator = torch.Generator().manual_seed(100 + step)
        for parameter in self.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)


ROWS, COLUMNS = torch.tensor([0, 0, 1, 1, 2, 0]), torch.tensor([0, 2, 2, 0, 1])
STAGE = torch.maximum(ROWS[:, None], COLUMNS[None, :])


def grown():
    return Stages(2, {("w0", 0): ROWS, ("w0", 1): COLUMNS})


def per_entry(ratios):
    return torch.tensor([ratios[stage] for stage in range(3)], dtype=torch.float64)[STAGE]


def test_ratios_of_the_papers_widths():
    """O6: a square hidden layer, and one that grows along one axis, of variance 1 / C_t."""
    edges = [round(500 * width) for width in WIDTHS]
    born = torch.zeros(edges[-1], dtype=torch.long)
    for stage, edge in enumerate(edges[:-1], start=1):
        born[edge:] = stage
    ones = torch.ones(len(born), len(born))
    assert list(norm_ratios(ones[:, :1], {0: born}).values()) == pytest.approx(OUTER, abs=0.002)
    assert list(norm_ratios(ones, {0: born, 1: born}).values()) == pytest.approx(HIDDEN, abs=0.002)


def test_ratios_are_limited_and_1_where_a_norm_says_nothing():
    born = {0: torch.tensor([0, 1, 2, 3])}
    weight = torch.tensor([[1.0], [1e-4], [1e4], [0.0]])
    assert norm_ratios(weight, born) == {0: 1.0, 1: 0.05, 2: 20.0, 3: 1.0}
    weight[0] = 0.0
    assert set(norm_ratios(weight, born).values()) == {1.0}
    weight[0] = math.nan
    assert set(norm_ratios(weight, born).values()) == {1.0}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_with_ratios_is_the_step_at_per_entry_rates(name):
    """The blend of the specification, with the whole map of ratios, is the oracle."""
    kind, options = OPTIMIZERS[name]
    model = Model((6, 5), (7, 3)) if name == "muon" else Model((6, 5), (7,), (2, 2))
    twin = copy.deepcopy(model)
    optimizer = kind(model.parameters(), **options)
    reference = kind(twin.parameters(), **options)
    rates = StageRates(model, grown(), every=0, counters=False)
    rates.attach(optimizer)
    factors = per_entry(rates.ratios["w0"])
    assert len(factors.unique()) == 3
    for step in range(4):
        model.set_gradients(step)
        twin.set_gradients(step)
        before = twin.w0.detach().clone()
        optimizer.step()
        reference.step()
        with torch.no_grad():
            twin.w0.copy_(before + factors * (twin.w0 - before))
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=3e-15)
    expected = reference.state_dict()
    state = optimizer.state_dict()
    assert state["param_groups"] == expected["param_groups"]
    assert state["state"].keys() == expected["state"].keys()
    for number, entries in expected["state"].items():
        assert state["state"][number].keys() == entries.keys()
        for key, value in entries.items():
            close = torch.allclose(state["state"][number][key], value, rtol=1e-12, atol=1e-15)
            assert close, key


def test_sgd_with_momentum_equals_a_rate_of_its_own_for_every_entry():
    model = Model((6, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    rates = StageRates(model, grown(), every=0)
    rates.attach(optimizer)
    weight, buffer = model.w0.detach().clone(), torch.zeros(6, 5, dtype=torch.float64)
    rate = 0.1 * per_entry(rates.ratios["w0"])
    for step in range(5):
        model.set_gradients(step)
        buffer = 0.9 * buffer + (model.w0.grad + 0.01 * weight)
        optimizer.step()
        weight = weight - rate * buffer
    assert torch.allclose(model.w0, weight, rtol=1e-15, atol=1e-15)


def shared_counter_steps(count, *, counters, steps=40):
    """Steps in units of the learning rate, under a constant gradient, of an entry born late."""
    model = Model((2, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=0.0)
    model.w0.grad = torch.ones_like(model.w0)
    state = optimizer.state[model.w0]
    state["step"] = torch.tensor(float(count))
    state["exp_avg"] = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    state["exp_avg_sq"] = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    stages = Stages(1, {("w0", 0): torch.tensor([0, 1])})
    StageRates(model, stages, rule="constant", counters=counters).attach(optimizer)
    lengths = []
    for _ in range(steps):
        before = float(model.w0[1].detach())
        optimizer.step()
        lengths.append((before - float(model.w0[1].detach())) / 1e-3)
    assert state["step"] == count + steps
    return lengths


@pytest.mark.parametrize(
    ("count", "first", "peak", "at"),
    [
        (10**4, [3.162], 6.568, 12),
        (1000, [2.515, 3.381, 3.940, 4.332, 4.616], 5.241, 12),
        (100, [0.980], 2.147, 14),
    ],
)
def test_under_the_counter_of_the_old_entries_adam_overshoots(count, first, peak, at):
    """O9, the trap: an empty state under an old counter."""
    lengths = shared_counter_steps(count, counters=False)
    assert lengths[: len(first)] == pytest.approx(first, abs=2e-3)
    assert max(lengths) == pytest.approx(peak, abs=2e-3)
    assert lengths.index(max(lengths)) + 1 == at


@pytest.mark.parametrize("count", [100, 1000, 10**4])
def test_with_counters_of_their_own_newborn_entries_step_exactly_by_the_rate(count):
    assert shared_counter_steps(count, counters=True) == pytest.approx([1.0] * 40, abs=1e-9)


@pytest.mark.parametrize("name", ["adam", "amsgrad", "adamw", "delayed", "adabound", "csgd"])
def test_newborn_entries_step_as_a_new_parameter_would(name):
    kind, options = OPTIMIZERS[name]
    model, old, new = Model((4, 3)), Model((2, 3)), Model((2, 3))
    optimizer = kind(model.parameters(), **options)
    old_optimizer, new_optimizer = kind(old.parameters(), **options), None
    stages = Stages()
    StageRates(model, stages, rule="constant").attach(optimizer)
    with torch.no_grad():
        old.w0.copy_(model.w0[:2])
    for step in range(12):
        model.set_gradients(step)
        old.w0.grad = model.w0.grad[:2].clone()
        if step == 5:
            new_optimizer = kind(new.parameters(), **options)
            with torch.no_grad():
                new.w0.copy_(model.w0[2:])
            stages.load_state_dict(
                {"latest": 1, "vectors": [["w0", 0, torch.tensor([0, 0, 1, 1])]]}
            )
        if new_optimizer is not None:
            new.w0.grad = model.w0.grad[2:].clone()
            new_optimizer.step()
        optimizer.step()
        old_optimizer.step()
    assert torch.allclose(model.w0[:2], old.w0, rtol=0, atol=1e-14)
    assert torch.allclose(model.w0[2:], new.w0, rtol=0, atol=1e-14)


def test_warmup_raises_the_rate_of_newborn_entries_only():
    model = Model((2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stages = Stages(1, {("w0", 0): torch.tensor([0, 1])})
    StageRates(model, stages, rule="constant", warmup=4).attach(optimizer)
    lengths = []
    for _ in range(6):
        before = model.w0.detach().clone()
        model.w0.grad = torch.ones_like(model.w0)
        optimizer.step()
        lengths.append(((before - model.w0.detach()) / 0.1).flatten().tolist())
    assert [length[0] for length in lengths] == pytest.approx([1.0] * 6)
    assert [length[1] for length in lengths] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_norms_are_renewed_every_few_steps_and_at_events():
    model = Model((6, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stages = grown()
    rates = StageRates(model, stages, every=2)
    rates.attach(optimizer)
    first = rates.ratios
    model.set_gradients(0)
    optimizer.step()
    assert rates.ratios == first
    optimizer.step()
    second = rates.ratios
    assert second != first
    assert second["w0"] == norm_ratios(model.w0, stages.of("w0"))
    stages.load_state_dict({"latest": 3, "vectors": [["w0", 0, torch.tensor([0, 0, 1, 1, 2, 3])]]})
    assert sorted(rates.ratios["w0"]) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["sgd", "adam", "muon", "avagrad"])
def test_a_restored_run_takes_the_same_steps(name):
    kind, options = OPTIMIZERS[name]
    model, stages = Model((6, 5)), grown()
    optimizer = kind(model.parameters(), **options)
    rates = StageRates(model, stages, every=3, warmup=5)
    rates.attach(optimizer)
    for step in range(4):
        model.set_gradients(step)
        optimizer.step()
    resumed, again = copy.deepcopy(model), Stages()
    other = kind(resumed.parameters(), **options)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    again.load_state_dict(stages.state_dict())
    restored = StageRates(resumed, again, every=3, warmup=5)
    restored.load_state_dict(rates.state_dict())
    restored.attach(other)
    for step in range(4, 9):
        for network, updater in ((model, optimizer), (resumed, other)):
            network.set_gradients(step)
            updater.step()
    assert torch.equal(model.w0, resumed.w0)
    assert rates.state_dict() == restored.state_dict()


def test_closures_schedulers_and_first_steps_work():
    model, twin = Model((6, 5)), Model((6, 5))
    pair = []
    for network, by_closure in ((model, True), (twin, False)):
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)
        rates = StageRates(network, grown())
        rates.attach(optimizer)
        for _ in range(5):

            def closure(network=network, optimizer=optimizer):
                optimizer.zero_grad()
                loss = network.w0.square().sum()
                loss.backward()
                return loss

            if by_closure:
                assert optimizer.step(closure) > 0
            else:
                closure()
                assert optimizer.step() is None
            scheduler.step()
        pair.append(optimizer)
    assert torch.equal(model.w0, twin.w0)
    assert pair[0].param_groups[0]["lr"] == pytest.approx(1e-4)


def test_a_step_that_fails_leaves_the_optimizer_whole():
    model = Model((6, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    StageRates(model, grown()).attach(optimizer)
    model.set_gradients(0)
    optimizer.step()
    groups = [dict(group) for group in optimizer.param_groups]
    optimizer.param_groups[0]["momentum"] = "much"
    with pytest.raises(TypeError):
        optimizer.step()
    optimizer.param_groups[0]["momentum"] = 0.9
    assert optimizer.param_groups == groups and list(optimizer.state) == [model.w0]
    optimizer.step()
    assert len(optimizer.state_dict()["state"]) == 1


def test_detached_rates_have_no_part_in_steps():
    model, twin = Model((6, 5)), Model((6, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rates = StageRates(model, grown())
    rates.attach(optimizer)
    rates.detach()
    model.set_gradients(0)
    twin.set_gradients(0)
    optimizer.step()
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    assert torch.equal(model.w0, twin.w0)


def test_a_parameter_without_a_gradient_stays_and_does_not_age():
    model = Model((6, 5), (2, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    rates = StageRates(model, grown())
    rates.attach(optimizer)
    before = model.w0.detach().clone()
    model.w1.grad = torch.ones_like(model.w1)
    optimizer.step()
    assert torch.equal(model.w0, before) and rates.state_dict()["ages"] == {}


@pytest.mark.parametrize("shape", [(6, 5), (1200, 1000)], ids=["blended", "apart"])
def test_what_is_kept_from_step_to_step_follows_what_moves_in_memory(shape):
    """Parts are cut once; a moved weight, a loaded state and new ratios are seen all the same."""
    rows = torch.zeros(shape[0], dtype=torch.long)
    rows[shape[0] // 2 :] = 1
    models = [Model(shape) for _ in range(2)]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in models]
    rates = StageRates(models[0], Stages(1, {("w0", 0): rows}), every=0)
    rates.attach(optimizers[0])
    for step in range(6):
        ratio = rates.ratios["w0"][1]
        before = models[1].w0.detach().clone()
        for model, optimizer in zip(models, optimizers, strict=True):
            model.set_gradients(step)
            optimizer.step()
        factors = 1.0 + (ratio - 1.0) * rows.double()[:, None]
        with torch.no_grad():
            models[1].w0.copy_(before + factors * (models[1].w0 - before))
        assert torch.allclose(models[0].w0, models[1].w0, rtol=1e-12, atol=1e-14), step
        if step == 1:
            models[0].w0.data = models[0].w0.detach().clone()
        elif step == 2:
            optimizers[0].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
        elif step == 3:
            with torch.no_grad():
                for model in models:
                    model.w0[-1] *= 3
            rates.refresh()
            assert rates.ratios["w0"][1] != ratio


def test_many_small_pieces_are_blended():
    born = torch.arange(200) % 2
    model = Model((200, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    rates = StageRates(model, Stages(1, {("w0", 0): born}), every=0)
    rates.attach(optimizer)
    ratio = rates.ratios["w0"][1]
    before = model.w0.detach().clone()
    model.set_gradients(0)
    optimizer.step()
    factor = torch.where(born == 1, ratio, 1.0)[:, None]
    assert torch.allclose(model.w0, before - 0.1 * factor * model.w0.grad, atol=1e-15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "size"}, "rule: got 'size'"),
        ({"every": -1}, "every: got -1"),
        ({"warmup": 0.5}, r"warmup: got 0\.5"),
        ({"limits": (0.0, 2.0)}, "limits"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(RequestError, match=message):
        StageRates(Model((2, 2)), Stages(), **arguments)


def test_unknown_optimizers_are_refused_with_what_to_register():
    model = Model((6, 5))
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(RequestError, match=r"LBFGS means.*register_state_rule\(LBFGS"):
        StageRates(model, grown()).attach(optimizer)
