# ruff: noqa: NPY002
"""The loop: what it computes, what it writes, what it refuses, and what it leaves alone."""

import json
import math
import os
import random
import signal
import sys
import threading
import time
import types
from contextlib import contextmanager
from itertools import islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from latewood.core import PRECISION, Observation, attach, bake
from latewood.errors import Interrupted, RequestError, WorkError
from latewood.tasks import Classification, Task, TensorDataset, batches
from latewood.training import checkpoints, observers, open_run
from latewood.training.recipe import load_recipe, parse_recipe
from latewood.training.run import train
from latewood.training.run_folder import RunFolder


def blobs(*, samples: int = 70, noise: bool = False):
    """Three separable clusters in four dimensions."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % 3
    inputs = torch.randn(samples, 4, generator=generator) * 0.3 + F.one_hot(labels, 4) * 2

    def augment(batch, generator):
        return batch[0] + 0.1 * torch.randn(batch[0].shape, generator=generator), batch[1]

    return Task(
        name="blobs",
        train=TensorDataset(inputs, labels),
        validation=TensorDataset(inputs[:31], labels[:31]),
        objective=Classification(),
        headline="accuracy",
        model="here:net",
        model_arguments={"num_classes": 3},
        example_inputs=(inputs[:1],),
        augment=augment if noise else None,
    )


def net(*, num_classes: int, width: int = 8, norm: bool = False, dropout: float = 0.0):
    layers = [nn.Linear(4, width), nn.BatchNorm1d(width) if norm else nn.Identity(), nn.ReLU()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(width, num_classes))


class Shrink:
    """A method with one parameter of its own, which scales a penalty, and a schedule."""

    order = None

    def __init__(self, model, *, total_steps: int, strength: float = 1e-3):
        self.model, self.total_steps, self.strength = model, total_steps, strength
        self.scale = nn.Parameter(torch.ones(()))
        self.taken = 0

    def parameter_groups(self):
        return [{"params": [self.scale], "lr": 0.01}]

    def penalty(self):
        return self.strength * self.scale * self.model[0].weight.square().sum()

    def step(self):
        self.taken += 1

    def finalize(self):
        with torch.no_grad():
            self.model[0].weight[0].zero_()
        return self.model

    def metrics(self):
        return {"taken": float(self.taken)}

    def state_dict(self):
        return {"taken": self.taken, "scale": self.scale.detach().clone()}

    def load_state_dict(self, state):
        self.taken = state["taken"]
        with torch.no_grad():
            self.scale.copy_(state["scale"])


class Look:
    every_process = False

    def __init__(self, model, *, every: int):
        self.model, self.every = model, every

    def observe(self, step):
        torch.rand(3)  # a careless probe must not change the run
        if step % self.every:
            return []
        return [Observation(step, {"norm": self.model[0].weight.norm().item()})]

    def finish(self):
        return []


class LateLook(Look):
    """Works beside the training: what it sees is told at the next look, or at the end."""

    def __init__(self, model, *, every: int):
        super().__init__(model, every=every)
        self.waiting = []

    def observe(self, step):
        observations = super().observe(step)
        if not observations:
            return []
        told, self.waiting = self.waiting, observations
        return told

    def finish(self):
        told, self.waiting = self.waiting, []
        return told


class Glance:
    def __init__(self, model):
        self.model = model

    def observe(self, step):
        return {}


@pytest.fixture(autouse=True)
def here(monkeypatch):
    module = types.ModuleType("here")
    for thing in (blobs, net, Shrink, Look, LateLook, Glance):
        setattr(module, thing.__name__, thing)
    monkeypatch.setitem(sys.modules, "here", module)


def recipe(**changes):
    base = {
        "task": "here:blobs",
        "epochs": 2,
        "batch_size": 16,
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        "device": "cpu",
    }
    document = {**base, **changes}
    if "steps" in changes:
        document.pop("epochs")
    return parse_recipe(document)


def rows(run, kind):
    return [row for row in run.read_metrics() if row["kind"] == kind]


def without_time(value):
    return {
        key: without_time(item) if isinstance(item, dict) else item
        for key, item in value.items()
        if key not in ("seconds", "latency_ms")
    }


def test_where_the_batch_size_changes_the_rate_counts_samples(tmp_path):
    asked = recipe(epochs=4, batch_size=[[1, 35], [2, 14], [1, 10]], schedule="linear", log_every=1)
    result = train(asked, folder=tmp_path / "run")
    seen = rows(result.folder, "train")
    # 70 samples: 2 steps, twice 5 steps, 7 steps.
    at = [0, 1 / 2, *(1 + i / 5 for i in range(10)), *(3 + i / 7 for i in range(7))]
    assert [row["lr"] for row in seen] == pytest.approx([0.1 * (1 - p / 4) for p in at], abs=1e-15)
    assert [row["epoch"] for row in seen] == pytest.approx([*at[1:], 4], abs=1e-15)
    assert [row["step"] for row in rows(result.folder, "validation")] == [2, 7, 12, 19]
    assert load_recipe(result.folder.recipe_path, trust=True).batch_size == [
        [1, 35],
        [2, 14],
        [1, 10],
    ]


def test_one_batch_size_written_as_stretches_gives_the_same_bits(tmp_path):
    changes = {"epochs": 3, "schedule": {"name": "cosine", "per": "epoch"}, "seed": 4}
    method = {"name": "continuous_sparsification", "exclude": []}
    one = train(recipe(**changes, methods=[method]), folder=tmp_path / "one")
    stretches = recipe(**changes, methods=[method], batch_size=[[2, 16], [1, 16]])
    each = train(stretches, folder=tmp_path / "each")
    ours, theirs = load_file(one.folder.model_path), load_file(each.folder.model_path)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for kind in ("train", "validation", "method"):
        assert [*map(without_time, rows(one.folder, kind))] == [
            *map(without_time, rows(each.folder, kind))
        ]


def test_a_batch_size_that_leaves_no_batch_is_refused_before_anything_is_written(tmp_path):
    asked = recipe(batch_size=[[1, 16], [1, 71]], drop_last=True)
    with pytest.raises(RequestError, match="batch_size: got 71 with drop_last; expected at most"):
        train(asked, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_loop_is_the_one_that_people_write_by_hand(tmp_path):
    schedule = {"name": "cosine", "warmup": 0.2}
    optimizer = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    asked = recipe(epochs=3, seed=5, optimizer=optimizer, schedule=schedule, clip_norm=0.5)
    result = train(asked, folder=tmp_path / "run")
    start = train(
        recipe(steps=1, seed=5, optimizer={"name": "sgd", "lr": 0.0}), folder=tmp_path / "0"
    )

    model, task = net(num_classes=3), blobs()
    model.load_state_dict(load_file(start.folder.model_path))  # the weights before any step
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    by_hand = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others}], lr=0.1, momentum=0.9
    )
    step, losses = 0, []
    for epoch in range(3):
        for (x, y), _ in batches(task.train, batch_size=16, seed=5, epoch=epoch):
            at = step / 15
            rate = at / 0.2 if at < 0.2 else 0.5 * (1 + math.cos(math.pi * (at - 0.2) / 0.8))
            for group in by_hand.param_groups:
                group["lr"] = 0.1 * rate
            loss = F.cross_entropy(model(x), y)
            by_hand.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            by_hand.step()
            losses.append(loss.item())
            step += 1
    assert step == result.summary["steps"] == 15
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)
    first, last = rows(result.folder, "train")
    assert first["loss"] == pytest.approx(sum(losses[:10]) / 10, rel=1e-6)
    assert last["loss"] == pytest.approx(sum(losses[10:]) / 5, rel=1e-6)
    assert last["lr"] == pytest.approx(0.1 * rate)


@pytest.mark.parametrize("logged", [1, 4])
def test_the_logged_loss_is_the_tasks_and_the_penalty_is_logged_beside_it(tmp_path, logged):
    strength = 4.0  # the penalty is many times the loss
    method = {"name": "here:Shrink", "strength": strength}
    optimizer = {"name": "sgd", "lr": 0.001}
    asked = recipe(steps=4, seed=5, methods=[method], optimizer=optimizer, log_every=logged)
    run = train(asked, folder=tmp_path / "run", show_progress=False).folder

    start = train(
        recipe(steps=1, seed=5, optimizer={"name": "sgd", "lr": 0.0}), folder=tmp_path / "0"
    )
    model, task, scale = net(num_classes=3), blobs(), torch.ones(())
    model.load_state_dict(load_file(start.folder.model_path))
    scale.requires_grad_()
    by_hand = torch.optim.SGD([{"params": model.parameters(), "lr": 0.001},
                               {"params": [scale], "lr": 0.01}])  # fmt: skip
    losses, penalties, norms = [], [], []
    for (x, y), _ in islice(batches(task.train, batch_size=16, seed=5, epoch=0), 4):
        loss = F.cross_entropy(model(x), y)
        penalty = strength * scale * model[0].weight.square().sum()
        by_hand.zero_grad()
        (loss + penalty).backward()
        parts = [p.grad.square().sum() for p in [*model.parameters(), scale]]
        norms.append(math.sqrt(sum(parts)))
        by_hand.step()
        losses.append(loss.item())
        penalties.append(penalty.item())
    assert min(penalties) > 5 * max(losses)

    def means(values):
        return [sum(values[i : i + logged]) / logged for i in range(0, 4, logged)]

    written = rows(run, "train")
    assert [row["step"] for row in written] == list(range(logged, 5, logged))
    # The loss is a difference of the sum and the penalty, in single precision.
    for name, values in (("loss", losses), ("penalty", penalties), ("gradient_norm", norms)):
        assert [row[name] for row in written] == pytest.approx(means(values), rel=1e-4)


def test_a_run_leaves_everything_a_run_folder_should_hold(tmp_path):
    asked = recipe(methods=["here:Shrink"], probes=[{"name": "here:Look", "every": 4}], log_every=3)
    result = train(asked, folder=tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    assert run.finished
    assert [row["step"] for row in rows(run, "train")] == [3, 6, 9, 10]
    assert [row["step"] for row in rows(run, "validation")] == [5, 10]
    assert [row["step"] for row in rows(run, "probe")] == [0, 4, 8]
    assert [row["step"] for row in rows(run, "method")] == [0, 5, 10]
    assert [row["Shrink/taken"] for row in rows(run, "method")] == [0.0, 5.0, 10.0]
    assert rows(run, "validation")[0]["epoch"] == 1.0
    assert all(row["penalty"] > 0 for row in rows(run, "train"))
    assert checkpoints.steps(run.checkpoints) == [10]
    summary = run.summary
    assert summary == json.loads(json.dumps(result.summary))
    assert summary["headline"] == "accuracy"
    assert set(summary["evaluations"]) == {"trained", "finalized"}  # no batch norm to recalibrate
    assert summary["size"]["nonzero"] < summary["size"]["parameters"]
    state = load_file(run.model_path)
    assert torch.equal(state["0.weight"][0], torch.zeros(4))
    assert all(torch.equal(state[k], v) for k, v in result.model.state_dict().items())


def test_the_evaluations_are_those_of_the_model_before_after_and_recalibrated(tmp_path):
    asked = recipe(methods=["here:Shrink"], model={"name": "here:net", "norm": True})
    result = train(asked, folder=tmp_path / "run")
    evaluations = result.summary["evaluations"]
    assert set(evaluations) == {"trained", "finalized", "recalibrated"}
    validation = rows(result.folder, "validation")[-1]
    assert evaluations["trained"] == {key: validation[key] for key in ("loss", "accuracy")}
    x, y = blobs().validation.tensors
    with torch.no_grad():
        loss = F.cross_entropy(result.model(x), y).item()
    assert evaluations["recalibrated"]["loss"] == pytest.approx(loss, rel=1e-6)
    assert evaluations["finalized"]["loss"] != evaluations["recalibrated"]["loss"]


def test_evaluation_is_the_mean_over_samples_not_over_batches(tmp_path):
    result = train(recipe(steps=2), folder=tmp_path / "run")  # 31 samples in batches of 16
    x, y = blobs().validation.tensors
    with torch.no_grad():
        logits = result.model(x)
    evaluation = result.summary["evaluations"]["trained"]
    assert evaluation["loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-6)
    assert evaluation["accuracy"] == pytest.approx((logits.argmax(1) == y).double().mean().item())


def test_evaluation_asks_no_double_of_an_accelerator(tmp_path, monkeypatch):
    class Single(torch.Tensor):
        """Like a tensor of a device that has no float64."""

        @classmethod
        def __torch_function__(cls, function, types, arguments=(), options=None):
            assert function is not torch.Tensor.double
            result = super().__torch_function__(function, types, arguments, options)
            return result.as_subclass(torch.Tensor) if function is torch.Tensor.cpu else result

    plain = train(recipe(), folder=tmp_path / "plain").summary["evaluations"]
    evaluate = Classification.evaluate

    def single(self, *arguments):
        scores = evaluate(self, *arguments)
        return {name: value.as_subclass(Single) for name, value in scores.items()}

    monkeypatch.setattr(Classification, "evaluate", single)
    assert train(recipe(), folder=tmp_path / "single").summary["evaluations"] == plain


def test_the_same_seed_gives_the_same_bits_and_another_gives_others(tmp_path):
    busy = {"task": {"name": "here:blobs", "noise": True}}
    busy["model"] = {"name": "here:net", "dropout": 0.3, "norm": True}

    def weights(name, **changes):
        return train(recipe(**busy, **changes), folder=tmp_path / name).model.state_dict()[
            "0.weight"
        ]

    first = weights("a")
    torch.manual_seed(123)  # the caller's generator is not the run's
    assert torch.equal(first, weights("b"))
    assert torch.equal(first, weights("c", probes=[{"name": "here:Look", "every": 1}]))
    assert torch.equal(first, weights("d", evaluate_every=1, checkpoint_every=2, log_every=1))
    assert not torch.equal(first, weights("e", seed=1))


def test_training_samples_are_scored_on_request_as_they_are(tmp_path):
    busy = {"task": {"name": "here:blobs", "noise": True}, "evaluate_every": 4}
    plain = train(recipe(**busy), folder=tmp_path / "plain")
    scored = train(recipe(**busy, score_training=True), folder=tmp_path / "scored")
    assert rows(plain.folder, "training") == []
    last = rows(scored.folder, "training")[-1]
    inputs, labels = blobs().train.tensors
    right = (scored.model(inputs).argmax(1) == labels).float().mean().item()
    assert last["accuracy"] == pytest.approx(right)
    assert [row["step"] for row in rows(scored.folder, "training")] == [4, 8, 10]
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, scored.model.state_dict()[name])


@pytest.mark.parametrize("per, expected", [("epoch", 2), ("step", 10)])
def test_the_schedule_moves_per_step_or_per_epoch(tmp_path, per, expected):
    asked = recipe(schedule={"name": "linear", "per": per}, log_every=1)
    run = train(asked, folder=tmp_path / "run").folder
    rates = [row["lr"] for row in rows(run, "train")]
    assert len(set(rates)) == expected
    assert rates[0] == pytest.approx(0.1)
    # The factor reaches its end after the last step, so that no step is taken with rate 0.
    assert rates[-1] == pytest.approx(0.1 * (1 - (0.5 if per == "epoch" else 0.9)))


def test_steps_may_end_within_an_epoch_and_go_over_several(tmp_path):
    run = train(recipe(steps=7, log_every=1), folder=tmp_path / "run").folder
    assert [row["step"] for row in rows(run, "train")] == list(range(1, 8))
    assert rows(run, "train")[-1]["epoch"] == pytest.approx(1.4)


def test_clipping_leaves_the_methods_parameters_alone(tmp_path):
    method = {"name": "here:Shrink", "strength": 10.0}
    asked = recipe(steps=1, methods=[method], clip_norm=1e-9)
    run = train(asked, folder=tmp_path / "run").folder
    state = checkpoints.latest(run.checkpoints).state()
    assert state["methods"][0]["scale"] < 0.9  # its gradient is that of the penalty, far over 1e-9


def test_the_caller_is_left_as_it_was(tmp_path):
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    expected = torch.rand(1).item(), random.random(), np.random.rand()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    threads, path, environment = torch.get_num_threads(), list(sys.path), dict(os.environ)
    with torch.no_grad():
        train(recipe(), folder=tmp_path / "run")
        assert not torch.is_grad_enabled()
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert (torch.get_num_threads(), sys.path, dict(os.environ)) == (threads, path, environment)


def test_runs_of_different_precision_follow_each_other_in_one_process(tmp_path):
    train(recipe(), folder=tmp_path / "full")
    mixed = train(recipe(precision="bf16"), folder=tmp_path / "bf16")
    assert mixed.summary["evaluations"]["trained"]["accuracy"] > 0.5
    assert mixed.model[0].weight.dtype is torch.float32


def test_channels_last_and_compile_give_the_same_model(tmp_path):
    changes = {"task": "digits", "model": "convnet", "steps": 3, "batch_size": 8}
    changes["evaluate_every"] = 1000
    plain = train(recipe(**changes), folder=tmp_path / "plain").model
    last = train(recipe(**changes, channels_last=True), folder=tmp_path / "last").model
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(last.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_compiled_run_saves_plain_names(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda module: (seen.append(module), module)[1])
    run = train(recipe(compile=True, steps=1), folder=tmp_path / "run").folder
    assert len(seen) == 1
    assert "0.weight" in load_file(run.model_path)


class NaNAt(nn.Linear):
    """A layer whose output or gradient breaks at one of its calls in training."""

    def __init__(self, where, at):
        super().__init__(8, 3)
        self.where, self.at, self.calls = where, at, 0

    def forward(self, x):
        out = super().forward(x)
        if self.training:
            self.calls += 1
            if self.calls >= self.at:
                if self.where == "output":
                    return out / 0
                return out + (out - out.detach()).abs().sqrt()
        return out


@pytest.mark.parametrize(
    "where, words",
    [
        ("output", "the output of layer 'last'"),
        ("gradient", "the gradient of 'last.bias'"),
    ],
)
def test_a_broken_step_is_not_taken_and_says_what_broke_first(tmp_path, monkeypatch, where, words):
    def breaking(*, num_classes: int):
        model = nn.Sequential()
        model.add_module("first", nn.Linear(4, 8))
        model.add_module("last", NaNAt(where, at=6))
        return model

    monkeypatch.setattr(sys.modules["here"], "net", breaking)
    with pytest.raises(WorkError) as caught:
        train(recipe(checkpoint_every=2, log_every=1), folder=tmp_path / "run")
    message = str(caught.value)
    assert message.startswith("step 6: the loss is ")
    assert f"; {words} is the first that is not finite. The step was not taken: " in message
    run = RunFolder(tmp_path / "run")
    assert checkpoints.steps(run.checkpoints) == [2, 4]
    assert [row["step"] for row in rows(run, "train")] == [1, 2, 3, 4, 5]
    saved = checkpoints.latest(run.failure_folder)
    assert saved.step == 5
    assert all(torch.isfinite(tensor).all() for tensor in saved.model_state().values())
    assert saved.state()["batch"][0].shape == (16, 4)
    assert saved.state()["finding"] in message


def test_weights_that_a_step_made_infinite_are_named(tmp_path):
    class Ruin(Shrink):
        def step(self):
            super().step()
            if self.taken == 3:
                self.model[4].weight.data[0, 0] = torch.inf

    sys.modules["here"].Ruin = Ruin
    with pytest.raises(WorkError, match=r"^step 4: .*'4\.weight', which the step before left so"):
        train(recipe(methods=["here:Ruin"]), folder=tmp_path / "run")


def test_a_validation_that_is_not_finite_warns_and_the_run_goes_on(tmp_path, monkeypatch):
    scores = {"loss": float("nan"), "accuracy": 0.5}
    monkeypatch.setattr(observers, "evaluate", lambda *arguments, **more: dict(scores))
    with pytest.warns(UserWarning, match="run: not finite in validation: loss$"):
        train(recipe(steps=2), folder=tmp_path / "run")


def test_a_full_disk_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    sync = checkpoints._sync

    def full(path):
        if "step-00000006" in path.name:
            raise OSError(28, "No space left on device")
        sync(path)

    monkeypatch.setattr(checkpoints, "_sync", full)
    with pytest.raises(WorkError, match=r"step 6 .*No space left.*last good one is of step 4"):
        train(recipe(checkpoint_every=2), folder=tmp_path / "run")
    monkeypatch.undo()
    assert checkpoints.latest(tmp_path / "run" / "checkpoints").step == 4


def test_an_existing_run_is_refused_before_anything_is_built(tmp_path):
    train(recipe(steps=1), folder=tmp_path / "run")
    before = (tmp_path / "run" / "summary.json").read_bytes()
    with pytest.raises(RequestError, match="holds a run already"):
        train(recipe(task="here:blobs"), folder=tmp_path / "run")
    assert (tmp_path / "run" / "summary.json").read_bytes() == before
    train(recipe(steps=2), folder=tmp_path / "run", overwrite=True)
    assert RunFolder(tmp_path / "run").summary["steps"] == 2


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"batch_size": 100, "drop_last": True}, "batch_size: got 100 with drop_last"),
        ({"model": {"name": "here:net", "width": 0.5}}, "model.width: got 0.5"),
        ({"optimizer": {"name": "sgd", "lr": -1.0}}, "optimizer: 'sgd' refused its arguments"),
        ({"device": "cuda:7"}, "device: got 'cuda:7'"),
        ({"trackers": ["aim"]}, "trackers[0]: got 'aim'"),
        ({"task": "json:dumps"}, "task.obj: missing"),
        ({"model": {"name": "builtins:dict"}}, "model.name: got 'builtins:dict'"),
        ({"model": "here:blobs"}, "model: 'here:blobs' returned no nn.Module but"),
        ({"model": "unet"}, "model: got 'unet', which fails on the example inputs of the task"),
        ({"model": "lenet"}, "model: got 'lenet', which fails on the example inputs of the task"),
    ],
)
def test_a_request_that_cannot_be_met_leaves_no_folder(tmp_path, changes, words):
    with pytest.raises(RequestError) as caught:
        train(recipe(**changes), folder=tmp_path / "run")
    assert str(caught.value).startswith(words)
    assert not (tmp_path / "run").exists()


def test_resuming_needs_a_run_and_the_same_recipe(tmp_path):
    with pytest.raises(RequestError, match="expected the folder of a run"):
        train(None, folder=tmp_path / "run", resume=True)
    with pytest.raises(RequestError, match="at most one"):
        train(recipe(), folder=tmp_path / "run", resume=True, overwrite=True)
    train(recipe(), folder=tmp_path / "run")
    with pytest.raises(RequestError, match=r"(?s)differs.*seed: the run has 0, the recipe 1"):
        train(recipe(seed=1), folder=tmp_path / "run", resume=True)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    first = train(recipe(), folder=tmp_path / "run")
    before = first.folder.summary_path.read_bytes()
    again = train(recipe(), folder=tmp_path / "run", resume=True)
    assert again.summary == first.summary
    assert again.model is None
    assert first.folder.summary_path.read_bytes() == before


def test_a_checkpoint_of_another_model_is_refused_with_its_keys(tmp_path, monkeypatch):
    train(recipe(), folder=tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    monkeypatch.setattr(
        sys.modules["here"], "net", lambda *, num_classes: nn.Linear(4, num_classes)
    )
    with pytest.raises(RequestError, match=r"(?s)another model; these keys differ.*weight"):
        train(None, folder=tmp_path / "run", resume=True, trust=True)


def test_a_checkpoint_from_before_groups_kept_their_first_rate_goes_on(tmp_path, monkeypatch):
    whole = train(recipe(epochs=4), folder=tmp_path / "whole")
    train(recipe(epochs=4), folder=tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    run.summary_path.unlink()
    checkpoints.discard_after(run.checkpoints, 15)
    earlier = checkpoints.Checkpoint.state

    def without_first_rates(checkpoint):
        state = earlier(checkpoint)
        for group in state["optimizer"]["param_groups"]:
            del group["initial_lr"]
        return state

    monkeypatch.setattr(checkpoints.Checkpoint, "state", without_first_rates)
    result = train(None, folder=run.path, resume=True, trust=True)
    assert without_time(result.summary) == without_time(whole.summary)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_finish_and_the_run_can_go_on(tmp_path, monkeypatch, number):
    whole = train(recipe(epochs=4), folder=tmp_path / "whole")

    def stop_at_seven(session):
        if session.step == 7:
            os.kill(os.getpid(), number)

    kept = observers.observers
    with monkeypatch.context() as patch:
        patch.setattr("latewood.training.run.observers", lambda: [stop_at_seven, *kept()])
        with pytest.raises(Interrupted, match=r"step 7 of 20; go on with --resume .*run --trust"):
            train(recipe(epochs=4), folder=tmp_path / "run")
    assert checkpoints.steps(tmp_path / "run" / "checkpoints") == [7]
    result = train(None, folder=tmp_path / "run", resume=True, trust=True)
    assert without_time(result.summary) == without_time(whole.summary)
    mine, other = ([without_time(row) for row in r.folder.read_metrics()] for r in (result, whole))
    assert mine == other


def test_a_signal_while_the_run_starts_leaves_a_checkpoint(tmp_path, monkeypatch):
    def begin_and_stop(session):
        observers.begin(session)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("latewood.training.run_start.begin", begin_and_stop)
    with pytest.raises(Interrupted, match="stopped after step 1 of"):
        train(recipe(), folder=tmp_path / "run")
    assert checkpoints.steps(tmp_path / "run" / "checkpoints") == [1]


def test_a_run_works_outside_the_main_thread(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(train(recipe(), folder=tmp_path / "r")))
    thread.start()
    thread.join()
    assert results[0].summary["steps"] == 10


def test_without_a_number_checkpoints_come_with_epochs_and_time(tmp_path, monkeypatch):
    monkeypatch.setattr(observers, "CHECKPOINT_SECONDS", 0.0)
    run = train(recipe(epochs=3, keep_checkpoints=9), folder=tmp_path / "run").folder
    assert checkpoints.steps(run.checkpoints) == [5, 10, 15]
    monkeypatch.setattr(observers, "CHECKPOINT_SECONDS", 1e9)
    run = train(recipe(epochs=3, keep_checkpoints=9), folder=tmp_path / "other").folder
    assert checkpoints.steps(run.checkpoints) == [15]


def test_seconds_go_on_where_the_interrupted_run_stopped(tmp_path, monkeypatch):
    train(recipe(steps=2), folder=tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    before = checkpoints.latest(run.checkpoints).state()["seconds"]
    run.summary_path.unlink()
    time.sleep(0.05)
    after = train(None, folder=run.path, resume=True, trust=True).summary["seconds"]
    assert after >= round(before, 3)


def test_methods_finish_in_the_order_of_what_they_do_not_of_the_recipe(tmp_path):
    """A mask that were folded into the weight before its format was would be refused."""

    class Coarse(nn.Module):
        order = PRECISION

        def forward(self, weight):
            return weight.div(0.5).floor().add(0.5).mul(0.5)  # no zero

    class Format(Shrink):
        order = PRECISION

        def __init__(self, model, *, total_steps):
            super().__init__(model, total_steps=total_steps)
            self.format = Coarse()
            attach(model[0], "weight", self.format)

        def finalize(self):
            bake(self.model[0], "weight", self.format)
            return self.model

    sys.modules["here"].Format = Format
    pruning = {"name": "gradual_magnitude_pruning", "density": 0.5}
    result = train(recipe(methods=[pruning, "here:Format"]), folder=tmp_path / "run")
    weight = result.model[0].weight
    assert weight.abs().unique().tolist()[:2] == [0, 0.25]
    assert result.summary["evaluations"]["trained"] == result.summary["evaluations"]["finalized"]
    checkpoint = checkpoints.latest(RunFolder(tmp_path / "run").checkpoints)
    again = open_run(checkpoint.path, trust=True).model
    assert torch.equal(again[0].weight, weight)


def test_what_a_probe_tells_late_belongs_to_the_step_it_was_seen_at(tmp_path):
    runs = []
    for name in ("Look", "LateLook"):
        asked = recipe(probes=[{"name": f"here:{name}", "every": 4}])
        train(asked, folder=tmp_path / name)
        runs.append(rows(RunFolder(tmp_path / name), "probe"))
    assert [row["epoch"] for row in runs[1]] == [0, 4 / 5, 8 / 5]
    assert runs[0] == runs[1]


def test_a_probe_without_what_the_loop_asks_of_it_is_refused_before_the_start(tmp_path):
    with pytest.raises(RequestError, match=r"probes\[0\]: a Glance without every_process, finish"):
        train(recipe(probes=["here:Glance"]), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:.log_with")
def test_a_tracker_sees_the_rows_by_kind(tmp_path, monkeypatch):
    logged = []

    class Tracker:
        name = "tensorboard"

        def finish(self):
            logged.append("finished")

    def init_trackers(self, name, config=None, init_kwargs=None):
        self.trackers = [Tracker()]
        logged.append(config)

    monkeypatch.setattr(
        "latewood.training.processes.get_available_trackers", lambda: ["tensorboard"]
    )
    monkeypatch.setattr("accelerate.accelerator.filter_trackers", lambda *a, **k: [])
    monkeypatch.setattr("accelerate.Accelerator.init_trackers", init_trackers)
    monkeypatch.setattr(
        "accelerate.Accelerator.log", lambda self, values, step: logged.append((step, values))
    )
    late = [{"name": "here:LateLook", "every": 1}]
    asked = recipe(steps=2, trackers=["tensorboard"], log_every=1, probes=late)
    train(asked, folder=tmp_path / "run")
    settings = logged.pop(0)
    assert settings["optimizer.lr"] == 0.1
    assert settings["probes.0.name"] == "here:LateLook"
    assert logged[0][0] == 1
    assert "train/loss" in logged[0][1]
    seen = [(step, row) for step, row in logged[:-1] if "probe/norm" in row]
    # Trackers take rising steps only: what comes late says which step it is of.
    assert [(step, row.get("probe/step")) for step, row in seen] == [(1, 0), (2, 1), (2, None)]
    assert logged[-1] == "finished"


def test_scoring_shows_how_far_it_is(tmp_path, monkeypatch):
    notes = []

    @contextmanager
    def seen(title, total, **options):
        yield lambda steps=1, note="": notes.append((steps, note))

    monkeypatch.setattr("latewood.training.run.progress", seen)
    methods = [{"name": "gradual_magnitude_pruning", "density": 0.5}]
    train(recipe(steps=2, evaluate_every=1, methods=methods), folder=tmp_path / "run")
    assert sum(steps for steps, _ in notes) == 2
    scoring = [note for _, note in notes if "scoring" in note]
    # After both steps and after finalizing, in batches of 16.
    assert scoring[:2] == ["scoring 16 of 31 samples", "scoring 31 of 31 samples"]
    assert len(scoring) == 3 * 2
    assert "scoring" not in notes[-1][1]
