import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from latewood.errors import RequestError
from latewood.tasks.digits import digits


@pytest.fixture(scope="module")
def task():
    return digits()


def test_split_and_shapes(task):
    assert (len(task.train), len(task.validation)) == (1257, 540)
    images, labels = task.train.gather(torch.tensor([0, 1256]))
    assert (images.shape, images.dtype) == ((2, 1, 8, 8), torch.float32)
    assert (labels.shape, labels.dtype) == ((2,), torch.int64)
    assert task.example_inputs[0].shape == (1, 1, 8, 8)
    assert (task.headline, task.higher_is_better) == ("accuracy", True)


def test_every_class_is_split_seventy_to_thirty(task):
    counts = torch.bincount(torch.from_numpy(load_digits().target))
    held_out = task.validation.tensors[1].bincount()
    assert bool(((held_out - 0.3 * counts).abs() < 1).all())
    assert torch.equal(task.train.tensors[1].bincount() + held_out, counts)


def test_one_mean_and_deviation_of_the_training_part(task):
    pixels = task.train.tensors[0]
    assert float(pixels.mean()) == pytest.approx(0, abs=1e-5)
    assert float(pixels.std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert abs(float(task.validation.tensors[0].mean())) > 1e-4


def test_the_split_is_scikit_learns_with_seed_0(task):
    labels = load_digits().target
    rows = np.arange(len(labels))
    learned, held_out = train_test_split(rows, test_size=0.3, random_state=0, stratify=labels)
    assert task.train.tensors[1].tolist() == labels[learned].tolist()
    assert task.validation.tensors[1].tolist() == labels[held_out].tolist()


def test_no_image_is_on_both_sides_and_none_is_lost(task):
    # Undone, the standardised pixels are the bundled ones.
    both = torch.cat([part.tensors[0].flatten(1) for part in (task.train, task.validation)])
    steps = ((both - both.min()) / (both.max() - both.min()) * 16).round()
    bundled = torch.from_numpy(load_digits().data).float()
    assert sorted(map(tuple, steps.tolist())) == sorted(map(tuple, bundled.tolist()))


def test_twice_the_same(task):
    assert torch.equal(digits().train.tensors[0], task.train.tensors[0])


def test_bad_smoothing():
    with pytest.raises(RequestError, match="label_smoothing: got"):
        digits(label_smoothing=2.0)
