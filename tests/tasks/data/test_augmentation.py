"""Augmentation against a reference that treats one sample at a time."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latewood.errors import RequestError
from latewood.tasks.data.augmentation import CropAndFlip, crop_and_flip


def reference(
    image: Tensor, top: int, left: int, flipped: bool, padding: int, fill: Tensor
) -> Tensor:
    channels, height, width = image.shape
    out = torch.empty_like(image)
    for channel in range(channels):
        for row in range(height):
            for column in range(width):
                y = top + row - padding
                x = left + (width - 1 - column if flipped else column) - padding
                inside = 0 <= y < height and 0 <= x < width
                out[channel, row, column] = image[channel, y, x] if inside else fill[channel]
    return out


@given(
    n=st.integers(1, 4),
    channels=st.integers(1, 3),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    padding=st.integers(0, 4),
    seed=st.integers(0, 1000),
)
def test_equals_one_sample_at_a_time(n, channels, height, width, padding, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, channels, height, width, generator=generator)
    top, left = torch.randint(2 * padding + 1, (2, n), generator=generator)
    flipped = torch.rand(n, generator=generator) < 0.5
    fill = torch.randn(channels, generator=generator)
    got = crop_and_flip(images, top, left, flipped, padding=padding, fill=fill)
    for k in range(n):
        expected = reference(images[k], int(top[k]), int(left[k]), bool(flipped[k]), padding, fill)
        assert torch.equal(got[k], expected)


def test_bytes_stay_bytes_and_strided_images_work():
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    centre = torch.tensor([1, 1])
    never = torch.tensor([False, False])
    out = crop_and_flip(
        images.contiguous(memory_format=torch.channels_last), centre, centre, never, padding=1
    )
    assert out.dtype == torch.uint8
    assert torch.equal(out, images)


def test_same_generator_state_gives_same_bits_and_labels_stay():
    images, labels = torch.randn(16, 3, 8, 8), torch.arange(16)
    augment = CropAndFlip(padding=2)
    first = augment((images, labels), torch.Generator().manual_seed(5))
    again = augment((images, labels), torch.Generator().manual_seed(5))
    other = augment((images, labels), torch.Generator().manual_seed(6))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert first[1] is labels


def test_draws_neither_touch_nor_read_the_global_generator():
    images = torch.randn(4, 1, 4, 4)
    before = torch.random.get_rng_state()
    CropAndFlip()((images,), torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_sample_has_its_own_numbers_over_the_whole_range():
    # One bright pixel in the middle shows where the cut was made.
    images = torch.zeros(2000, 1, 9, 9)
    images[:, :, 4, 4] = 1
    (out,) = CropAndFlip(padding=2, flip=0.0)((images,), torch.Generator().manual_seed(0))
    places = out.flatten(1).argmax(1)
    counts = torch.stack([(places == 9 * r + c).sum() for r in range(2, 7) for c in range(2, 7)])
    assert counts.sum() == 2000
    assert counts.min() > 40  # 80 expected in each of the 25 places; 40 is 4.5 deviations off


def test_flip_probability():
    images = torch.arange(4.0).expand(1000, 1, 1, 4)
    (out,) = CropAndFlip(padding=0, flip=0.25)((images,), torch.Generator().manual_seed(0))
    flipped = (out[:, 0, 0, 0] == 3).sum()
    assert 180 < flipped < 320
    (same,) = CropAndFlip(padding=0, flip=0.0)((images,), torch.Generator().manual_seed(0))
    assert torch.equal(same, images)


@pytest.mark.parametrize("arguments", [{"padding": -1}, {"flip": 1.5}, {"flip": -0.1}])
def test_bad_arguments(arguments):
    with pytest.raises(RequestError, match=next(iter(arguments))):
        CropAndFlip(**arguments)
