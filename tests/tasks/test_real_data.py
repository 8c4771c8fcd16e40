"""The tasks on the real data sets, where they are; reads them through a cache of its own."""

import os
from pathlib import Path

import pytest
import torch

from latewood import models
from latewood.tasks import batches
from latewood.tasks.cifar10 import cifar10
from latewood.tasks.mnist import mnist
from latewood.tasks.mnist_diffusion import mnist_diffusion
from latewood.tasks.shakespeare import shakespeare
from latewood.tasks.spoken_digits import spoken_digits

pytestmark = pytest.mark.data


@pytest.fixture(autouse=True)
def real_data(tmp_path_factory, monkeypatch):
    if not os.environ.get("LATEWOOD_DATA"):
        pytest.skip("LATEWOOD_DATA is not set: no real data sets here")
    cache = Path(tmp_path_factory.getbasetemp()) / "decoded"
    monkeypatch.setenv("LATEWOOD_CACHE", str(cache))


def learns(task, model, *, steps, lr):
    """Trains for a few steps and returns the validation measures before and after."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    sample = task.validation.gather(torch.arange(min(300, len(task.validation))))

    def score():
        model.eval()
        return {
            name: float(value)
            for name, value in task.objective.evaluate(
                model, sample, torch.Generator().manual_seed(1)
            ).items()
        }

    before = score()
    model.train()
    for number, (batch, _) in enumerate(batches(task.train, batch_size=64, seed=0, epoch=0)):
        if number == steps:
            break
        if task.augment is not None:
            batch = task.augment(batch, generator)
        optimizer.zero_grad()
        task.objective.loss(model, batch, generator).backward()
        optimizer.step()
    return before, score()


def seeded(factory, **arguments):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return factory(**arguments)


def test_cifar10():
    task = cifar10()
    assert (len(task.train), len(task.validation)) == (50000, 10000)
    assert task.train.tensors[1].bincount().tolist() == [5000] * 10
    images, _ = task.train.gather(torch.arange(0, 50000, 10))
    assert images.shape[1:] == (3, 32, 32)
    assert images.mean(dim=(0, 2, 3)).abs().max() < 0.05
    assert (images.std(dim=(0, 2, 3)) - 1).abs().max() < 0.05
    before, after = learns(task, seeded(models.resnet20), steps=40, lr=0.01)
    assert after["accuracy"] > before["accuracy"] + 0.1


def test_cifar10_held_out():
    task = cifar10(validation=5000)
    assert (len(task.train), len(task.validation)) == (45000, 5000)
    assert task.validation.tensors[1].bincount().tolist() == [500] * 10


def test_mnist():
    task = mnist()
    assert (len(task.train), len(task.validation)) == (60000, 10000)
    _, after = learns(task, seeded(models.lenet), steps=60, lr=0.003)
    assert after["accuracy"] > 0.8


def test_mnist_diffusion():
    task = mnist_diffusion()
    assert (len(task.train), len(task.validation)) == (54000, 6000)
    model = seeded(models.unet, channels=(32, 32, 32, 32), time_features=64)
    before, after = learns(task, model, steps=30, lr=0.002)
    assert after["loss"] < 0.7 * before["loss"]


def test_spoken_digits():
    task = spoken_digits()
    assert (len(task.train), len(task.validation)) == (2700, 300)
    assert task.validation.tensors[1].bincount().tolist() == [30] * 10
    model = seeded(models.lstm_classifier, features=40, hidden=64)
    _, after = learns(task, model, steps=42, lr=0.01)
    assert after["accuracy"] > 0.6


def test_shakespeare():
    task = shakespeare(context=64)
    assert task.model_arguments["vocabulary"] == 65
    assert len(task.validation.characters) == 1115394 * 95 // 100 - 1115394 * 90 // 100
    model = seeded(models.lstm_language_model, vocabulary=65, hidden=64, layers=1)
    before, after = learns(task, model, steps=40, lr=0.01)
    assert before["bits_per_character"] == pytest.approx(6.02, abs=0.1)
    assert after["bits_per_character"] < 4.2
