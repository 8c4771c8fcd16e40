"""Labels permuted over both parts of a task."""

import pytest
import torch

from latewood.errors import RequestError
from latewood.tasks import TensorDataset
from latewood.tasks.data.label_noise import permute_labels
from latewood.tasks.digits import digits


def parts() -> tuple[TensorDataset, TensorDataset]:
    inputs, labels = torch.arange(1000.0)[:, None], torch.arange(1000) % 10
    double = lambda batch: (2 * batch[0], batch[1])
    return (
        TensorDataset(inputs[:700], labels[:700], transform=double),
        TensorDataset(inputs[700:], labels[700:]),
    )


def joined(first: TensorDataset, second: TensorDataset) -> torch.Tensor:
    return torch.cat((first.tensors[1], second.tensors[1]))


def test_no_noise_leaves_the_parts_alone():
    train, validation = parts()
    assert permute_labels(train, validation, fraction=0.0) == (train, validation)


@pytest.mark.parametrize("fraction", [0.3, 1.0])
def test_the_share_of_samples_changes_and_no_class_grows(fraction):
    train, validation = parts()
    noisy = permute_labels(train, validation, fraction=fraction)
    before, after = joined(train, validation), joined(*noisy)
    assert torch.equal(before.bincount(), after.bincount())
    # Of the permuted, one in ten finds its own label again.
    changed = (before != after).double().mean().item()
    assert changed == pytest.approx(0.9 * fraction, abs=0.05)
    for part, old in zip(noisy, (train, validation), strict=True):
        assert (part.tensors[1] != old.tensors[1]).double().mean() == pytest.approx(
            changed, abs=0.08
        )
    assert torch.equal(noisy[0].tensors[0], train.tensors[0])
    assert noisy[0].gather(torch.tensor([3]))[0].item() == 6.0


def test_the_seed_alone_decides():
    first, again, other = (
        joined(*permute_labels(*parts(), fraction=1.0, seed=seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_task_of_its_own_permutes_its_labels():
    plain, noisy = digits(), digits(label_noise=1.0)
    assert torch.equal(plain.train.tensors[0], noisy.train.tensors[0])
    for part in ("train", "validation"):
        labels = [getattr(task, part).tensors[1] for task in (plain, noisy)]
        assert (labels[0] == labels[1]).double().mean() < 0.2


@pytest.mark.parametrize("arguments", [{"label_noise": 1.5}, {"label_noise": -0.1}])
def test_numbers_out_of_range(arguments):
    with pytest.raises(RequestError, match="label_noise: got"):
        digits(**arguments)


def test_a_negative_seed_is_refused():
    with pytest.raises(RequestError, match="label_seed: got"):
        digits(label_noise=0.5, label_seed=-1)
