"""Comparisons of learned bits: claims that can fail, and one small comparison of everything."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from latewood.core import select_parameters
from latewood.experiments import Results
from latewood.experiments.precision import (
    learned_precision_characters as characters,
)
from latewood.experiments.precision import (
    learned_precision_cifar10 as cifar10,
)
from latewood.experiments.precision.compared_trainings import ComparedTrainings
from latewood.precision import NoiseSettings
from latewood.tasks import TensorDataset
from latewood.tasks.digits import digits

EXPERIMENTS = (cifar10.LEARNED_PRECISION_CIFAR10, characters.LEARNED_PRECISION_CHARACTERS)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.name)
def test_every_claim_can_hold_and_fail(experiment):
    ours = dict.fromkeys(cifar10.LEARNED, 0.9) | {"allocated 3": 0.9}
    theirs = dict.fromkeys(
        ["float", "uniform 2", "uniform 2 with inputs", "steps 2", "noisy steps 2", "rounded 3"],
        0.5,
    )
    higher = experiment.name.endswith("cifar10")
    bits = {f"{name} bits": [1.99] for name in cifar10.LEARNED}
    good = {name: [value if higher else -value] for name, value in (ours | theirs).items()}
    bad = {name: [-value] for name, (value,) in good.items()}
    assert all(claim.holds(Results(good | bits)) for claim in experiment.claims)
    assert all(claim.measured(Results(good | bits)) for claim in experiment.claims)
    too_many = {name: [3.0] for name in bits}
    assert not any(claim.holds(Results(bad | too_many)) for claim in experiment.claims)


def test_all_trainings_of_a_small_network_are_measured_and_repeat():
    task = digits()
    inputs, labels = task.train.gather(torch.arange(256))[:2]
    task = replace(task, train=TensorDataset(inputs, labels))
    trainings = ComparedTrainings(
        task=task,
        network=lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 8, 3),
            nn.Flatten(),
            nn.Linear(8, 10),
        ),
        optimizer=partial(torch.optim.Adam, lr=0.02),
        steps=16,
        batch_size=32,
        seed=0,
        noise=NoiseSettings(lr=0.5),
        snap_at=0.5,
        include=("3", "5"),
    )
    learned = {"channel 2": {"target_bits": 2.0}}
    measured = trainings.measure(learned, allocations=(3,))
    assert measured.keys() == {
        *("float", "allocated 3", "rounded 3", "channel 2", "channel 2 bits", "uniform 2"),
        *("uniform 2 with inputs", "steps 2", "noisy steps 2", "noisy steps 2 bits"),
    }
    assert measured["channel 2 bits"] <= 2.0 and measured["noisy steps 2 bits"] <= 2.0
    assert 0.1 < measured["float"] <= 1.0
    assert trainings.learned(target_bits=2.0)[0] == measured["channel 2"]
    assert trainings.noisy_steps(2.0)[0] == measured["noisy steps 2"]


def test_the_layers_that_are_compared_are_those_that_are_meant():
    network = cifar10.compared(digits(), 0).network()
    chosen = {weight.layer for weight in select_parameters(network, include=cifar10.LAYERS)}
    assert "layer1.0.conv1" in chosen and not {"conv1", "fc"} & chosen
    task = replace(digits(), model_arguments={"vocabulary": 7})
    network = characters.compared(task, 0).network()
    chosen = {weight.layer for weight in select_parameters(network, include=characters.LAYERS)}
    assert all(name.startswith("blocks.") for name in chosen) and len(chosen) == 8
