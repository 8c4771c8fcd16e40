"""Growth in a loop of one's own: what changes when, what is counted, and what is refused."""

import copy
import dataclasses
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from latewood.core import Restructuring, finalize, macs, parameter_groups, trace_channels
from latewood.errors import RequestError, WorkError
from latewood.growth import Growth, NewbornProbe
from latewood.sparsity import ContinuousSparsification, StructuredSparsification
from latewood.training.fit import fit

EXAMPLE = torch.zeros(1, 6)
LATE = {"name": "late", "end": 2.0, "at": 0.5}
THREE = {"name": "explicit", "widths": {"0": [4, 6, 10], "2": [4, 4, 8]}, "epochs": [1, 2, 1]}


def net(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)
        )


def data(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 6, generator=generator), torch.arange(16) % 3


def grown(model, schedule=THREE, **options):
    options = {"total_steps": 8, "steps_per_epoch": 2, "rescale": "none"} | options
    return Growth(model, EXAMPLE, schedule=schedule, **options)


def train(model, method, *, steps=8, optimizer=None, events=None, begin=None):
    optimizer = optimizer or torch.optim.SGD(
        parameter_groups(model, [method]), lr=0.05, momentum=0.9
    )

    def before(step):
        if method._counter.epochs.begins(method._counter.step):
            changed = method.restructure(optimizer)
            if events is not None:
                events.append((step, changed))

    fit(
        model,
        (data(step) for step in range(method._counter.step, steps)),
        lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        optimizer,
        methods=[method],
        before_step=before,
    )
    return optimizer


def widths(model):
    return [layer.out_features for layer in model if isinstance(layer, nn.Linear)]


def test_it_widens_at_the_starts_of_its_phases_and_ends_as_a_plain_model():
    model = net()
    method = grown(model)
    assert isinstance(method, Restructuring) and method.phase == 0
    parameters, events = list(model.parameters()), []
    train(model, method, events=events)
    assert events == [(0, False), (2, True), (4, False), (6, True)]
    assert widths(model) == [10, 8, 3]
    assert [(event.step, dict(event.widths)) for event in method.events] == [
        (2, {"0": 6}),
        (6, {"0": 10, "2": 8}),
    ]
    # Whoever holds the parameters (an optimizer, a list) goes on holding them.
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert finalize(model, [method]) is model
    assert type(model[0]) is nn.Linear and not list(model.buffers())


def test_the_function_is_kept_at_an_event_and_the_state_goes_along():
    model = net().double()
    method = Growth(
        model, EXAMPLE.double(), schedule=LATE, total_steps=8, steps_per_epoch=2, rescale="none"
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, y = data(0)
    for step in range(4):
        if step % 2 == 0:
            method.restructure(optimizer)
        optimizer.zero_grad()
        F.cross_entropy(model(x.double()), y).backward()
        optimizer.step()
        method.step()
    before, momentum = model(x.double()), optimizer.state[model[0].weight]["momentum_buffer"]
    old = momentum.clone()
    assert method.restructure(optimizer)
    assert torch.allclose(model(x.double()), before, rtol=0, atol=1e-13)
    assert torch.equal(momentum[:4], old) and momentum.shape == (8, 6)
    assert not momentum[4:].any()


def test_what_a_training_costs_is_counted():
    model = net()
    method = grown(model)
    final = copy.deepcopy(model)
    narrow = macs(model, (EXAMPLE,))
    train(model, method)
    first = 6 * 4 + 4 * 4 + 4 * 3
    second = 6 * 6 + 6 * 4 + 4 * 3
    last = 6 * 10 + 10 * 8 + 8 * 3
    assert narrow == first == macs(final, (EXAMPLE,)) and macs(model, (EXAMPLE,)) == last
    seen = method.metrics()
    assert seen["training/macs"] == 2 * first + 4 * second + 2 * last
    assert seen["training/share"] == pytest.approx(seen["training/macs"] / (8 * last))
    assert (seen["phase"], seen["cost"], seen["macs"]) == (2, 1.0, last)
    assert (seen["width/0"], seen["width/2"]) == (10, 8)
    assert seen["parameters"] == sum(p.numel() for p in model.parameters())


def test_the_norms_by_stage_are_those_of_the_weights():
    model = net()
    method = grown(model, THREE)
    train(model, method, steps=6)
    seen = method.metrics()
    total = sum(seen[f"norm/{stage}"] ** 2 for stage in range(3))
    # The last layer's inputs have not grown yet; its norm is in none.
    squares = sum(float(model[i].weight.detach().square().sum()) for i in (0, 2))
    assert total == pytest.approx(squares, rel=1e-5)
    assert seen["norm/2"] == seen["rate/2"] == 0 and seen["rate/0"] == 1


def test_the_loss_is_measured_around_each_event():
    model = net()
    x, y = data(5)
    calls = []

    def loss(model):
        calls.append(sum(p.numel() for p in model.parameters()))
        with torch.no_grad():
            return F.cross_entropy(model(x), y).item()

    method = grown(model, measure_loss=loss)
    train(model, method)
    assert len(calls) == 4 and calls[0] < calls[1] == calls[2] < calls[3]
    for event in method.events:
        assert event.loss_after == pytest.approx(event.loss_before, rel=1e-5)
    assert method.metrics()["event/after"] == method.events[-1].loss_after


def test_it_grows_when_the_loss_stops_falling():
    # Asked after every epoch but before the first, and after an event.
    losses = iter([1.0, 0.5, 0.5, 9.0, 0.4, 0.39, 0.39, 8.0])
    model = net()
    schedule = {"name": "plateau", "end": 2.0, "phases": 3, "patience": 1, "latest": 0.9}
    method = grown(
        model, schedule, total_steps=20, steps_per_epoch=2, measure_loss=lambda _: next(losses)
    )
    train(model, method, steps=20)
    assert [event.step for event in method.events] == [6, 12]
    assert [event.loss_before for event in method.events] == [0.5, 0.39]
    assert [event.loss_after for event in method.events] == [9.0, 8.0]


def test_a_plateau_that_never_comes_grows_in_time():
    count = iter(range(1000))
    schedule = {"name": "plateau", "end": 2.0, "phases": 3, "latest": 0.5}
    model = net()
    method = grown(model, schedule, total_steps=16, measure_loss=lambda _: 1.0 / (1 + next(count)))
    train(model, method, steps=16)
    assert [event.step for event in method.events] == [4, 8]


def test_a_copy_of_the_model_grows_with_the_same_numbers():
    model, average = net(), net(seed=1)
    method = grown(model, LATE, copies=[average], rescale="none")
    optimizer = train(model, method, steps=4)
    x, _ = data(9)
    before = average(x)
    assert method.restructure(optimizer)
    assert widths(average) == widths(model)
    assert torch.allclose(average(x), before, atol=1e-6)
    assert torch.equal(average[0].weight[4:], model[0].weight[4:])
    # The average goes on as one: every parameter still has its counterpart.
    with torch.no_grad():
        for mean, value in zip(average.parameters(), model.parameters(), strict=True):
            mean.lerp_(value, 0.5)


@pytest.mark.parametrize("rescale", ["none", "vt", "vt_exact"])
@pytest.mark.parametrize("init", ["pair", "net2net", "zero_out", "random"])
def test_every_way_of_growing_trains_and_ends_plain(init, rescale):
    model = net()
    method = grown(model, THREE, init=init, rescale=rescale)
    train(model, method)
    method.finalize()
    assert widths(model) == [10, 8, 3] and not hasattr(model[2], "parametrizations")
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("init", ["gradmax", "firefly"])
def test_new_channels_can_be_chosen_by_a_loss_and_resume_without_it(init):
    def build():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3), nn.Dropout(0.1))
        x, labels = data(99)
        seen = []

        def loss(network):
            seen.append(network.training)
            return F.cross_entropy(network(x), labels)

        return model, grown(model, {**LATE, "end": {"0": 6}}, init=init, loss=loss), seen

    model, method, seen = build()
    optimizer = train(model, method, steps=6)
    assert widths(model) == [6, 3] and seen and not any(seen) and model.training
    again, resumed, counted = build()
    calls = len(counted)
    resumed.reshape(method.state_dict())
    again.load_state_dict(model.state_dict())
    resumed.load_state_dict(method.state_dict())
    assert len(counted) == calls
    follower = torch.optim.SGD(parameter_groups(again, [resumed]), lr=0.05, momentum=0.9)
    follower.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for network, way, by in ((model, method, optimizer), (again, resumed, follower)):
        torch.manual_seed(5)
        train(network, way, optimizer=by)
    assert all(map(torch.equal, model.parameters(), again.parameters()))


def test_several_optimizers_follow():
    model = net()
    weights = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    biases = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    first = torch.optim.SGD(weights, lr=0.05, momentum=0.9)
    second = torch.optim.Adam(biases, lr=0.01)
    method, twin = grown(model), net()
    other = grown(twin)
    alone = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9)
    runs = [(model, method, (first, second)), (twin, other, (alone,))]
    for step in range(8):
        for network, way, optimizers in runs:
            if step % 2 == 0:
                way.restructure(*optimizers)
            x, labels = data(step)
            for optimizer in optimizers:
                optimizer.zero_grad()
            F.cross_entropy(network(x), labels).backward()
            for optimizer in optimizers:
                optimizer.step()
            way.step()
    assert widths(model) == widths(twin) == [10, 8, 3]
    shapes = [state["exp_avg"].shape for state in second.state.values()]
    assert shapes == [bias.shape for bias in biases]
    some = net()
    method = grown(some, LATE)
    optimizer = train(some, method, optimizer=torch.optim.SGD([some[0].weight], lr=0.1), steps=4)
    with pytest.raises(RequestError, match=r"optimizers: none has 0\.bias"):
        method.restructure(optimizer)


def test_state_can_be_dropped_and_rates_warmed_up():
    model = net()
    method = grown(model, LATE, state="drop", rates="constant", warmup=4)
    optimizer = train(model, method, optimizer=torch.optim.Adam(model.parameters(), 0.01), steps=4)
    before = model[0].weight.detach().clone()
    method.restructure(optimizer)
    assert not optimizer.state[model[0].weight]
    old = model[0].weight.detach().clone()
    train(model, method, optimizer=optimizer, steps=5)
    moved = (model[0].weight.detach() - old).abs()
    # The first step after the event: an Adam without state moves by its rate, newborn by a quarter.
    assert moved[:4].max() <= 0.01 * 1.001 and moved[4:].max() <= 0.0025 * 1.001
    assert before.shape == (4, 6)


def test_a_probe_watches_what_was_born():
    model = net()
    method = grown(model, LATE)
    probe = NewbornProbe(model, method.stages, every=1)
    optimizer = train(model, method, steps=4)
    assert probe.observe(4) == []
    train(model, method, steps=5, optimizer=optimizer)
    probe.observe(5)
    train(model, method, steps=6, optimizer=optimizer)
    (seen,) = probe.observe(6)
    assert seen.values["newborn_update_ratio"] > 0


def test_masks_grow_with_their_weights():
    model = net()
    masks = ContinuousSparsification(model, total_steps=8, exclude=[])
    method = grown(model, LATE)
    groups = parameter_groups(model, [masks, method])
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    for step in range(8):
        if step % 2 == 0:
            method.restructure(optimizer)
        optimizer.zero_grad()
        x, y = data(step)
        (F.cross_entropy(model(x), y) + masks.penalty() + method.penalty()).backward()
        optimizer.step()
        masks.step(), method.step()
    assert {name: mask.shape for name, mask in masks.masks().items()} == {
        "0.weight": (8, 6),
        "2.weight": (8, 8),
        "4.weight": (3, 8),
    }
    finalize(model, [masks, method])
    assert widths(model) == [8, 8, 3] and not hasattr(model[0], "parametrizations")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": {**LATE, "end": {"9": 8}}}, "widths: got '9'; expected a group or a layer"),
        ({"schedule": {**LATE, "end": {"4": 5}}}, "4: its channels cannot change: "),
        ({"schedule": {**LATE, "end": {"0": 5}}}, r"schedule.end\['0'\]: got 5; .* 4 or 6"),
        ({"schedule": {**THREE, "epochs": [1, 1, 1]}}, "ends before the run does"),
        ({"schedule": {**THREE, "epochs": [2, 2, 1]}}, "ends after the run does"),
        ({"schedule": {**LATE, "end": {"0": 4}}}, "model: got 'no channel group that grows'"),
        ({"exclude": ["*"]}, "model: got 'no channel group that grows'"),
        ({"exclude": ["layer*"]}, "exclude: got 'layer.'; expected a pattern on 0, 2"),
        ({"steps_per_epoch": [2, 2]}, "steps_per_epoch: got '2 epochs of 4 steps"),
        ({"total_steps": 0}, "total_steps: got 0"),
        ({"rate_floor": 0.0}, "rate_floor: got 0.0"),
        ({"rate_ceiling": 0.5}, "rate_ceiling: got 0.5"),
        ({"rates_every": -1}, "every: got -1"),
        ({"copies": ["a"]}, r"copies\[0\]: got 'a'"),
        ({"copies": [nn.Linear(6, 4)]}, r"copies\[0\]: got 'a model with nothing for 0.weight'"),
        ({"init": "gradmax"}, "loss: got None; expected a function"),
        ({"schedule": {"name": "plateau", "end": 2.0, "phases": 2}}, "measure_loss: got None"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_changes(options, message):
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RequestError, match=message):
        grown(model, **{"schedule": THREE, **options})
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    grown(model, THREE)  # and nothing is left that would stand in the way


def test_a_group_has_one_owner_at_a_time():
    model = net()
    method = grown(model)
    with pytest.raises(RequestError, match="StructuredSparsification: Growth already changes the "):
        StructuredSparsification(
            model, EXAMPLE, budget={"macs": 0.5}, total_steps=8, steps_per_epoch=2
        )
    train(model, method)
    finalize(model, [method])
    after = StructuredSparsification(
        model, EXAMPLE, budget={"macs": 0.5}, total_steps=8, steps_per_epoch=2
    )
    with pytest.raises(RequestError, match="Growth: StructuredSparsification already changes the"):
        grown(model, {"name": "late", "end": 2.0, "at": 0.5})
    del after


def test_calls_out_of_turn_are_refused():
    model = net()
    method = grown(model)
    with pytest.raises(RequestError, match="step: call restructure"):
        method.step()
    optimizer = train(model, method, steps=3)
    with pytest.raises(RequestError, match="restructure: called 1 steps into an epoch of 2"):
        method.restructure(optimizer)
    with pytest.raises(RequestError, match="reshape: the model has grown already"):
        method.reshape(method.state_dict())
    with pytest.raises(RequestError, match="state: got"):
        method.load_state_dict({"step": 3})
    fresh = grown(net())
    with pytest.raises(RequestError, match="a network on which reshape was called"):
        fresh.load_state_dict(method.state_dict())


def test_a_plan_that_a_trial_refutes_is_refused_before_anything_changes(monkeypatch):
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)
    plan = trace_channels(model, x)
    (reader,) = plan["0"].having("consumer")
    members = tuple(
        dataclasses.replace(member, indices=member.indices.flip(0)) if member == reader else member
        for member in plan["0"].members
    )
    groups = tuple(
        dataclasses.replace(group, members=members) if group.name == "0" else group
        for group in plan
    )
    wrong = dataclasses.replace(plan, groups=groups)
    monkeypatch.setattr(sys.modules["latewood.growth.growth"], "trace_channels", lambda *_: wrong)
    with pytest.raises(WorkError, match="at fault: 0"):
        Growth(model, x, schedule={"name": "late", "end": 2.0}, total_steps=4, steps_per_epoch=2)
    assert model[0].weight.shape == (4, 3)


def test_a_run_traces_once(monkeypatch):
    counted = []
    for name in ("latewood.growth.growth", "latewood.growth.widen"):
        module = sys.modules[name]
        original = module.trace_channels
        monkeypatch.setattr(
            module, "trace_channels", lambda *a, of=original: counted.append(1) or of(*a)
        )
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)
    schedule = {"name": "phased", "end": 3.0, "phases": 3, "epochs": [1, 1, 1]}
    method = Growth(model, x, schedule=schedule, total_steps=3, steps_per_epoch=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        method.restructure(optimizer)
        method.step()
    assert model[0].weight.shape == (12, 3) and counted == [1]
