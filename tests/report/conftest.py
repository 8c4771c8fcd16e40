"""Run folders made by hand, as the training engine would leave them."""

import json
import math

import numpy as np
import pytest

from latewood.spectra import Spectrum, snapshot_path, write_snapshot
from latewood.training.run_folder import RunFolder

RECIPE = """\
task = "digits"
model = "convnet"
optimizer = {{ name = "sgd", lr = 0.1, momentum = 0.9 }}
epochs = 20
batch_size = 64
seed = {seed}

{methods}
[environment]
latewood = "0.1.0"
torch = "2.13.0"
python = "3.11.9"
platform = "Linux x86_64"
"""

METHOD = """\
[[methods]]
name = "continuous_sparsification"
penalty_weight = 1e-8

[[probes]]
name = "spectral"
every = 10
"""


@pytest.fixture
def make_run(tmp_path):
    """A factory of run folders; what a run shall lack is given as False."""
    return run_factory(tmp_path)


@pytest.fixture(scope="module")
def make_shared_run(tmp_path_factory):
    """The same for tests that share their runs."""
    return run_factory(tmp_path_factory.mktemp("runs"))


def run_factory(place):
    def make(
        name="sparse",
        *,
        seed=0,
        sparse=True,
        spectra=True,
        finished=True,
        layers=("stem.weight", "block1.conv.weight", "block2.conv.weight", "head.weight"),
        steps=400,
        snapshots=20,
        rank=16,
        text=lambda words: words,
    ):
        folder = RunFolder(place / name)
        folder.path.mkdir(parents=True)
        recipe = RECIPE.format(seed=seed, methods=METHOD if sparse else "")
        folder.recipe_path.write_text(recipe + f"note = {json.dumps(text('a plain note'))}\n")
        random = np.random.default_rng(seed)
        with folder.metrics_path.open("w") as file:
            for step in range(1, steps + 1):
                for row in rows(step, steps, random, sparse, layers, text):
                    file.write(json.dumps(row) + "\n")
        if spectra:
            for step in np.unique(np.linspace(0, steps, snapshots).astype(int)):
                write_snapshot(
                    snapshot_path(folder.spectra_folder, int(step)),
                    int(step),
                    [spectrum(text(layer), step / steps, rank, random) for layer in layers],
                )
        if finished:
            folder.summary_path.write_text(json.dumps(summary(sparse, text)))
        return folder

    return make


def rows(step, steps, random, sparse, layers, text):
    share = step / steps
    common = {"step": step, "epoch": 20 * share}
    loss = 2.3 * math.exp(-5 * share) + 0.05 + 0.1 * random.random()
    yield common | {
        "kind": "train",
        "loss": loss,
        "lr": 0.05 * (1 + math.cos(math.pi * share)),
        "penalty": 0.01 * share,
        "gradient_norm": 3 * math.exp(-2 * share) + 0.2 * random.random(),
        "seconds": 0.1 * step,
    }
    if step % max(1, steps // 20):
        return
    accuracy = 0.98 - 0.85 * math.exp(-6 * share)
    scores = {"loss": loss + 0.05, "accuracy": accuracy}
    yield (
        common
        | {"kind": "validation"}
        | {text(k) if k == "loss" else k: v for k, v in scores.items()}
    )
    if sparse:
        densities = {
            f"continuous_sparsification/density/{text(layer)}": float(
                max(0.02, 1 - share * (0.6 + 0.4 * position / len(layers))) ** 3
            )
            for position, layer in enumerate(layers)
        }
        undecided = {
            f"continuous_sparsification/undecided/{text(layer)}": (1 - share) ** (1 + position)
            for position, layer in enumerate(layers)
        }
        yield common | {
            "kind": "method",
            "continuous_sparsification/density": (1 - 0.9 * share) ** 2,
            "continuous_sparsification/undecided": 1 - share,
            "continuous_sparsification/temperature": 200.0**share,
            **densities,
            **undecided,
        }


def spectrum(name, share, rank, random):
    places = np.arange(1, rank + 1)
    values = 3 * (1 + 2 * share) * places ** -(0.2 + 1.6 * share)
    values = np.sort(values * (1 + 0.02 * random.standard_normal(rank)))[::-1]
    return Spectrum(name, (rank, 9 * rank), np.ascontiguousarray(values, dtype=np.float32))


def summary(sparse, text):
    stages = ("trained", "finalized", "recalibrated") if sparse else ("trained",)
    change = {"trained": 0.0, "finalized": -0.012, "recalibrated": -0.003}
    return {
        "headline": "accuracy",
        "higher_is_better": True,
        "evaluations": {
            stage: {"loss": 0.08 - change[stage], "accuracy": 0.981 + change[stage]}
            for stage in stages
        },
        "size": {
            "parameters": 77_610,
            "nonzero": 5_210 if sparse else 77_610,
            "density": 0.064 if sparse else 1.0,
            "bits": 32.0,
            "macs": 1_250_000,
            "file_bytes": 24_120 if sparse else 312_000,
            "latency_ms": 0.41 if sparse else 0.44,
            text("watts"): 1.5,
        },
        "seconds": 48.0,
    }
