"""CIFAR-10, MNIST and diffusion on MNIST, from small folders in their layouts."""

import numpy as np
import pytest
import torch

from latewood.errors import RequestError, WorkError
from latewood.tasks import batches
from latewood.tasks.cifar10 import cifar10
from latewood.tasks.mnist import mnist
from latewood.tasks.mnist_diffusion import mnist_diffusion

pytestmark = pytest.mark.usefixtures("clean_places")


@pytest.fixture
def grey_folder(tmp_path, data_kit):
    folder = tmp_path / "grey"
    for split, n in (("train", 30), ("test", 10)):
        data_kit.parquet(
            folder / f"{split}-00000-of-00001.parquet",
            [data_kit.image(p) for p in data_kit.pictures(n, size=(28, 28), channels=1)],
            [k % 10 for k in range(n)],
            column="image",
        )
    return folder


def whole(dataset):
    return dataset.gather(torch.arange(len(dataset)))


def test_cifar10_standardises_the_stored_pixels(picture_folder, data_kit):
    task = cifar10(folder=str(picture_folder))
    assert (len(task.train), len(task.validation)) == (40, 20)
    images, labels = whole(task.train)
    mean, std = np.array([125.3, 123.0, 113.9]), np.array([63.0, 62.1, 66.7])
    expected = ((data_kit.pictures(40) - mean) / std).transpose(0, 3, 1, 2)
    torch.testing.assert_close(images, torch.from_numpy(expected).float(), atol=1e-5, rtol=1e-5)
    assert labels.tolist() == [k % 10 for k in range(40)]
    assert task.example_inputs[0].shape == (1, 3, 8, 8)
    assert task.model_arguments["in_features"] == 192


def test_cifar10_pads_with_black(picture_folder):
    task = cifar10(folder=str(picture_folder), padding=8, flip=0.0)
    images = torch.ones(500, 3, 8, 8)
    out, _ = task.augment((images, torch.zeros(500)), torch.Generator().manual_seed(0))
    black = -torch.tensor([125.3 / 63.0, 123.0 / 62.1, 113.9 / 66.7])
    for channel in range(3):
        found = out[:, channel].unique()
        torch.testing.assert_close(found, torch.tensor([float(black[channel]), 1.0]))


def test_cifar10_without_augmentation(picture_folder):
    assert cifar10(folder=str(picture_folder), augment=False).augment is None


def test_held_out_images_are_stratified_and_disjoint(picture_folder):
    task = cifar10(folder=str(picture_folder), validation=10)
    assert (len(task.train), len(task.validation)) == (30, 10)
    assert task.validation.tensors[1].bincount().tolist() == [1] * 10
    full = cifar10(folder=str(picture_folder)).train.tensors[0]
    both = torch.cat([task.train.tensors[0], task.validation.tensors[0]])
    assert sorted(x.sum().item() for x in both) == sorted(x.sum().item() for x in full)
    again = cifar10(folder=str(picture_folder), validation=10)
    assert torch.equal(again.validation.tensors[0], task.validation.tensors[0])
    other = cifar10(folder=str(picture_folder), validation=10, split_seed=1)
    assert not torch.equal(other.validation.tensors[0], task.validation.tensors[0])


def test_holding_out_regardless_of_the_class_is_torchs_random_split(picture_folder):
    task = cifar10(folder=str(picture_folder), validation=10, stratified=False, split_seed=42)
    full = cifar10(folder=str(picture_folder)).train
    _, held_out = torch.utils.data.random_split(
        range(40), [30, 10], generator=torch.Generator().manual_seed(42)
    )
    chosen = torch.tensor(sorted(held_out.indices))
    assert torch.equal(task.validation.tensors[0], full.tensors[0][chosen])


def test_held_out_images_need_no_test_split(picture_folder):
    (picture_folder / "test-00000-of-00001.parquet").unlink()
    assert len(cifar10(folder=str(picture_folder), validation=10).validation) == 10


def test_limits_keep_the_proportions(picture_folder):
    task = cifar10(folder=str(picture_folder), limit_train=20, limit_validation=10)
    assert task.train.tensors[1].bincount().tolist() == [2] * 10
    assert task.validation.tensors[1].bincount().tolist() == [1] * 10
    full = cifar10(folder=str(picture_folder)).train.tensors[0]
    assert torch.equal(task.train.tensors[0], full[:20])


@pytest.mark.parametrize(
    "arguments",
    [
        {"validation": 0},
        {"validation": 40},
        {"limit_train": 0},
        {"limit_train": 41},
        {"limit_validation": 21},
        {"flip": 2.0},
        {"padding": -1},
        {"std": (0.0, 1.0, 1.0)},
    ],
)
def test_numbers_out_of_range(picture_folder, arguments):
    with pytest.raises(RequestError, match=f"^{next(iter(arguments))}: got"):
        cifar10(folder=str(picture_folder), **arguments)


def test_splits_of_different_sizes(picture_folder, data_kit):
    data_kit.parquet(
        picture_folder / "test-00000-of-00001.parquet",
        [data_kit.image(data_kit.pictures(1, size=(9, 9))[0])],
        [0],
    )
    with pytest.raises(RequestError, match=r"\(3, 9, 9\); expected \(3, 8, 8\)"):
        cifar10(folder=str(picture_folder))


def test_a_damaged_image_stops_the_task(picture_folder, data_kit):
    data_kit.parquet(picture_folder / "test-00000-of-00001.parquet", [b"junk"], [0])
    with pytest.raises(WorkError, match=r"test-.*parquet, row 0 .*: not a readable image"):
        cifar10(folder=str(picture_folder))


def test_no_data_at_all():
    with pytest.raises(RequestError, match=r"'cifar10'.*hub = 'uoft-cs/cifar10'"):
        cifar10()
    with pytest.raises(RequestError, match=r"'mnist'.*hub = 'ylecun/mnist'"):
        mnist()


def test_found_by_the_environment(picture_folder, tmp_path, monkeypatch):
    picture_folder.rename(tmp_path / "cifar10")
    monkeypatch.setenv("LATEWOOD_DATA", str(tmp_path))
    assert len(cifar10().train) == 40


def test_more_processes_than_samples(picture_folder):
    task = cifar10(folder=str(picture_folder), limit_train=3)
    with pytest.raises(RequestError, match="world_size: got 4; expected 1 to 3 processes"):
        batches(task.train, batch_size=2, seed=0, epoch=0, world_size=4)


def test_mnist(grey_folder, data_kit):
    task = mnist(folder=str(grey_folder))
    images, labels = whole(task.validation)
    expected = (data_kit.pictures(10, size=(28, 28), channels=1) / 255 - 0.1307) / 0.3081
    torch.testing.assert_close(images[:, 0], torch.from_numpy(expected).float())
    assert labels.tolist() == [*range(10)]
    assert task.example_inputs[0].shape == (1, 1, 28, 28)


def test_mnist_from_image_files(tmp_path, data_kit):
    for split in ("train", "test"):
        for label in range(10):
            home = tmp_path / "files" / split / str(label)
            home.mkdir(parents=True)
            for k, picture in enumerate(data_kit.pictures(2, size=(28, 28), channels=1)):
                (home / f"{k}.png").write_bytes(data_kit.image(picture))
    task = mnist(folder=str(tmp_path / "files"))
    assert task.train.tensors[1].tolist() == [k // 2 for k in range(20)]


def test_mnist_diffusion_with_its_model(grey_folder):
    from latewood.models import unet

    task = mnist_diffusion(folder=str(grey_folder), validation=10, steps=10)
    assert (len(task.train), len(task.validation)) == (20, 10)
    assert (task.headline, task.higher_is_better) == ("loss", False)
    model = unet(in_channels=1, channels=(32, 32, 32, 32), time_features=8, time_steps=10)
    assert model(*task.example_inputs).shape == (1, 1, 28, 28)
    batch = task.train.gather(torch.arange(2))
    loss = task.objective.loss(model, batch, torch.Generator().manual_seed(0))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
