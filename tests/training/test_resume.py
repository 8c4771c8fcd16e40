"""Killed at any moment and resumed, a run ends with the same bits as one that was left alone."""

import json
import random
import shutil
import textwrap
import warnings

import pytest
from warm_python import run

from latewood.training import checkpoints
from latewood.training.run_folder import RunFolder

PARTS = '''
import random
import numpy as np
import torch
from torch import nn
from latewood.tasks import Classification, Task, TensorDataset

class Noisy(TensorDataset):
    """A data set that, like many people's own, draws from the global generators of the host."""
    def gather(self, indices):
        x, y = super().gather(indices)
        return x * (1 + 0.1 * random.random() + 0.1 * float(np.random.rand())), y

def task():
    noise = torch.Generator().manual_seed(0)
    images, labels = torch.randn(52, 1, 8, 8, generator=noise), torch.arange(52) % 4
    def augment(batch, generator):
        return batch[0] + 0.1 * torch.randn(batch[0].shape, generator=generator), batch[1]
    return Task(
        name="noise", train=Noisy(images, labels), validation=TensorDataset(images, labels),
        objective=Classification(), headline="accuracy", model="parts_of_resume:net",
        example_inputs=(images[:1],), augment=augment,
    )

def net(*, classes: int = 4):
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2),
        nn.Conv2d(6, 6, 3), nn.Flatten(), nn.Linear(96, classes),
    )
'''

RECIPE = """
task = "parts_of_resume:task"
epochs = 6
batch_size = 8
log_every = 4
checkpoint_every = 3
clip_norm = 1.0
seed = 3
device = "cpu"

[optimizer]
name = "adamw"
lr = 0.01

[schedule]
name = "cosine"
warmup = 0.1

[[methods]]
name = "continuous_sparsification"
final_temperature = 50

[[probes]]
name = "spectral"
every = 5
"""

GROWTH = """
task = "parts_of_resume:task"
epochs = 6
batch_size = [[2, 13], [4, 8]]
log_every = 2
checkpoint_every = 3
clip_norm = 1.0
seed = 3
device = "cpu"

[optimizer]
name = "adamw"
lr = 0.01

[[methods]]
name = "continuous_sparsification"
final_temperature = 50

[[methods]]
name = "growth"
schedule = { name = "phased", end = 2.0, phases = 3, epochs = [1, 2, 3] }
rates_every = 2
"""

# One process imports and warms up everything; each attempt is a fork, killed some steps further.
ATTEMPTS = """
import os, random, signal, sys, time, warnings
from pathlib import Path
from latewood.training.run import train
from latewood.training.recipe import load_recipe
from latewood.training.run_folder import RunFolder
import latewood.growth, latewood.sparsity, latewood.spectra, parts_of_resume

warnings.simplefilter("ignore")
recipe, whole, killed = load_recipe(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
chance = random.Random(int(sys.argv[4]))

def started(folder, resume):
    child = os.fork()
    if child:
        return child
    try:
        train(None if resume else recipe, folder=folder, resume=resume, trust=True)
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
    finally:
        os._exit(1)

def lines(folder):
    path = RunFolder(folder).metrics_path
    return path.read_bytes().count(b"\\n") if path.exists() else 0

train(recipe, folder=whole)
kills, target = 0, 0
while True:
    target += chance.randint(2, 6)
    child, done = started(killed, killed.exists()), (0, 0)
    # The rows of the attempt before may reach the target already: then this one is killed at once.
    while lines(killed) < target and not (done := os.waitpid(child, os.WNOHANG))[0]:
        time.sleep(0.0005)
    time.sleep(chance.uniform(0, 0.01))
    if not done[0]:
        os.kill(child, signal.SIGKILL)
        done = os.waitpid(child, 0)
    if done[1] == 0:
        break
    assert done[1] == signal.SIGKILL, done
    kills += 1
print(kills)
"""


@pytest.fixture
def home(tmp_path):
    (tmp_path / "parts_of_resume.py").write_text(PARTS)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "attempts.py").write_text(ATTEMPTS)
    return tmp_path


def run_attempts(home, seed):
    done = run(["attempts.py", "recipe.toml", "whole", "killed", str(seed)], cwd=home)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def rows_without_seconds(run):
    rows = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def without_time(text):
    value = json.loads(text)
    value.pop("seconds")
    value.get("size", {}).pop("latency_ms", None)
    return value


@pytest.mark.parametrize(("text", "spectra"), [(RECIPE, 9), (GROWTH, 0)], ids=["", "growing"])
def test_killed_at_arbitrary_moments_it_ends_with_the_same_bits(home, text, spectra):
    (home / "recipe.toml").write_text(text)
    assert run_attempts(home, seed=1) >= 4
    whole, killed = RunFolder(home / "whole"), RunFolder(home / "killed")
    assert len(rows_without_seconds(whole)) > 25
    assert rows_without_seconds(killed) == rows_without_seconds(whole)
    assert without_time(killed.summary_path.read_text()) == without_time(
        whole.summary_path.read_text()
    )
    ours, theirs = files(whole.path), files(killed.path)
    assert ours.keys() == theirs.keys()
    timed = ("metrics.jsonl", "summary.json", "state.json", "state.safetensors", "manifest.json")
    compared = [name for name in ours if not name.endswith(timed)]
    assert {"model.safetensors", "recipe.toml"} <= set(compared)
    assert sum(name.startswith("spectra") for name in compared) == spectra
    assert all(ours[name] == theirs[name] for name in compared)
    # The states hold seconds, and files of tensors a digest of them; the rest is the same.
    for step in checkpoints.steps(whole.checkpoints):
        one, other = (
            checkpoints.Checkpoint(run.checkpoints / f"step-{step:08d}", step).state()
            for run in (whole, killed)
        )
        del one["seconds"], other["seconds"]
        assert_same(one, other)


def assert_same(one, other, where="state"):
    import torch

    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
        assert one.dtype == other.dtype, where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{index}]")
    else:
        assert one == other, where


def test_a_damaged_last_checkpoint_costs_nothing_but_time(home, monkeypatch):
    from latewood.errors import Interrupted
    from latewood.training import observers
    from latewood.training.run import train

    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(home)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = train(home / "recipe.toml", folder=home / "whole").folder

        def stop(session):
            if session.step == 14:
                raise Interrupted("enough")

        kept = observers.observers
        with monkeypatch.context() as patch:
            patch.setattr("latewood.training.run.observers", lambda: [*kept(), stop])
            with pytest.raises(Interrupted):
                train(home / "recipe.toml", folder=home / "torn")
        torn = RunFolder(home / "torn")
        assert checkpoints.steps(torn.checkpoints) == [9, 12]
        path = torn.checkpoints / "step-00000012" / "model.safetensors"
        path.write_bytes(path.read_bytes()[: random.Random(0).randrange(path.stat().st_size)])
        with torn.metrics_path.open("a") as file:
            file.write('{"step": 14, "epo')
    with pytest.warns(UserWarning, match="model.safetensors is corrupted; the checkpoint before"):
        train(None, folder=torn.path, resume=True, trust=True)
    assert rows_without_seconds(torn) == rows_without_seconds(whole)
    assert torn.model_path.read_bytes() == whole.model_path.read_bytes()


def test_killed_before_the_first_checkpoint_it_starts_over(home, monkeypatch):
    from latewood.errors import Interrupted
    from latewood.training import observers
    from latewood.training.run import train

    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(home)

    def stop(session):
        if session.step == 2:
            raise Interrupted("enough")

    kept = observers.observers
    text = textwrap.dedent(RECIPE).replace("epochs = 6", "steps = 6")
    (home / "recipe.toml").write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = train(home / "recipe.toml", folder=home / "whole").folder
        with monkeypatch.context() as patch:
            patch.setattr("latewood.training.run.observers", lambda: [*kept(), stop])
            with pytest.raises(Interrupted):
                train(home / "recipe.toml", folder=home / "early")
        early = RunFolder(home / "early")
        assert checkpoints.steps(early.checkpoints) == []
        train(None, folder=early.path, resume=True, trust=True)
    assert rows_without_seconds(early) == rows_without_seconds(whole)
    assert early.model_path.read_bytes() == whole.model_path.read_bytes()


def test_a_checkpoint_that_a_killed_process_had_not_removed_goes(home, monkeypatch):
    from latewood.training.run import train

    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(home)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = train(home / "recipe.toml", folder=home / "run").folder
        steps = checkpoints.steps(run.checkpoints)
        # As if it had been killed when the last was written and before the oldest was removed.
        first = run.checkpoints / f"step-{steps[0]:08d}"
        shutil.copytree(first, first.with_name("step-00000001"))
        run.summary_path.unlink()
        train(None, folder=run.path, resume=True, trust=True)
    assert checkpoints.steps(run.checkpoints) == steps
