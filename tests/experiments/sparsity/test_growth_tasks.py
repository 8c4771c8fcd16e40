"""The three trainings: sizes by hand, data that is always there, real data where it is."""

from __future__ import annotations

import os

import pytest
import torch

from latewood.core.measure import parameter_count
from latewood.errors import RequestError
from latewood.experiments.flop_counted_training import build
from latewood.experiments.sparsity import growth_tasks


def test_images_are_the_digits():
    setting = growth_tasks.images(epochs=7)
    assert (setting.epochs, setting.period, setting.steps_per_pass) == (7, 19, 19)
    assert parameter_count(build(setting, 0)) == 56_554
    assert parameter_count(setting.network(1e-9)) == 9 + 2 * 9 + 3 * 2 + 20


def test_characters_are_read_from_what_comes_with_python(tmp_path):
    setting = growth_tasks.characters("quick", tmp_path, epochs=2)
    assert setting.period == 25 < setting.steps_per_pass
    inputs, targets = setting.task.train.gather(torch.arange(2))
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert parameter_count(setting.network(0.5)) < 0.5 * parameter_count(build(setting, 0))
    assert build(setting, 0)(inputs).shape == (2, 64, setting.task.model_arguments["vocabulary"])


def test_foregrounds_are_split_by_the_seed():
    first, again, other = (growth_tasks.foregrounds("quick", epochs=1, seed=s) for s in (0, 0, 1))
    held = [setting.task.validation.tensors[0] for setting in (first, again, other)]
    assert torch.equal(held[0], held[1])
    assert not torch.equal(held[0], held[2])
    assert (len(first.task.train), len(held[0])) == (36, 12)
    images, masks = first.task.train.gather(torch.arange(12))
    assert -1 <= images.min() < images.max() <= 1
    assert 0.05 < masks.float().mean() < 0.5
    loss = first.task.objective.loss(build(first, 0), (images, masks), torch.Generator())
    assert loss.isfinite()
    assert parameter_count(first.network(0.5)) < 0.3 * parameter_count(build(first, 0))
    assert parameter_count(first.network(1e-9)) > 0


def test_without_the_evaluation_set_it_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.setenv("LATEWOOD_DATA", str(tmp_path))
    with pytest.raises(RequestError, match=r"LATEWOOD_DATA.*segmentation"):
        growth_tasks.foregrounds("cpu", epochs=1, seed=0)


@pytest.mark.data
@pytest.mark.skipif("LATEWOOD_DATA" not in os.environ, reason="LATEWOOD_DATA is not set")
def test_photographs_and_composites_are_read_with_their_masks():
    setting = growth_tasks.foregrounds("cpu", epochs=1, seed=0)
    assert len(setting.task.train) + len(setting.task.validation) == 69
    images, masks = setting.task.train.gather(torch.arange(len(setting.task.train)))
    assert images.shape[1:] == (3, 32, 32) and masks.shape[1:] == (32, 32)
    assert 0.1 < masks.float().mean() < 0.5
