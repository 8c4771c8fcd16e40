"""Decoding of images: right pixels, every mode, and errors that say where."""

import numpy as np
import pytest
import torch
from PIL import Image

from latewood.errors import RequestError, WorkError
from latewood.tasks.data.images import decode_image, decode_images, load_images
from latewood.tasks.data.locate import open_splits
from latewood.tasks.data.parquet import ParquetSource
from latewood.tasks.data.sources import Encoded

pytestmark = pytest.mark.usefixtures("clean_places")


def decode(content, channels):
    return decode_image(Encoded(content, 0, "here"), channels=channels)


def source(data_kit, tmp_path, contents, labels, **options):
    path = data_kit.parquet(tmp_path / "d" / "train-00000-of-00001.parquet", contents, labels)
    return ParquetSource([path], columns=("img",))


def test_lossless_images_come_back_bit_for_bit_in_order(tmp_path, data_kit):
    pictures = data_kit.pictures(200, size=(5, 7))
    labels = [k % 10 for k in range(200)]
    found = decode_images(
        source(data_kit, tmp_path, [data_kit.image(p) for p in pictures], labels),
        channels=3,
        classes=10,
    )
    assert torch.equal(found["images"], torch.from_numpy(pictures).permute(0, 3, 1, 2))
    assert found["labels"].tolist() == labels


def test_thread_count_changes_nothing(tmp_path, data_kit):
    contents = [data_kit.image(p) for p in data_kit.pictures(300)]
    data = source(data_kit, tmp_path, contents, [0] * 300)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 4):
        torch.set_num_threads(threads)
        results.append(decode_images(data, channels=3, classes=10)["images"])
    torch.set_num_threads(before)
    assert torch.equal(*results)


def test_grey_spreads_to_colour_and_colour_weighs_to_grey(data_kit):
    grey = data_kit.pictures(1, channels=1)[0]
    assert np.array_equal(decode(data_kit.image(grey), 1)[0], grey)
    spread = decode(data_kit.image(grey), 3)
    assert spread.shape == (3, 8, 8)
    assert all(np.array_equal(channel, grey) for channel in spread)
    colour = np.zeros((8, 8, 3), np.uint8)
    colour[..., 1] = 200
    # ITU-R 601: green weighs 0.587.
    assert decode(data_kit.image(colour), 1).tolist() == np.full((1, 8, 8), 117).tolist()


def test_palettes_become_the_colours_they_stand_for(data_kit):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 10, 20, 30])
    image.putdata([1, 0])
    assert decode(data_kit.image(image), 3)[:, 0].T.tolist() == [[10, 20, 30], [255, 0, 0]]


def test_black_and_white_becomes_0_and_255(data_kit):
    image = Image.new("1", (2, 1))
    image.putdata([1, 0])
    assert decode(data_kit.image(image), 1).ravel().tolist() == [255, 0]


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_transparent_lies_on_black(data_kit, channels):
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[..., :3] = 100
    pixels[0, :, 3] = [255, 0, 51]
    out = decode(data_kit.image(pixels), channels)
    assert out.shape == (channels, 1, 3)
    assert out[0, 0].tolist() == [100, 0, 20]


def test_a_palette_with_a_transparent_entry(data_kit):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 10, 20, 30])
    image.putdata([0, 1])
    out = decode(data_kit.image(image, transparency=0), 3)
    assert out[:, 0].T.tolist() == [[0, 0, 0], [10, 20, 30]]


def test_more_than_8_bits_a_channel_is_refused(data_kit):
    deep = Image.fromarray(np.full((2, 2), 40000, np.uint16))
    with pytest.raises(WorkError, match=r"here: an image of mode 'I;16'.*8 bits"):
        decode(data_kit.image(deep), 1)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"no image at all",
        lambda content: content[: len(content) // 2],
        lambda content: content[:60] + bytes([content[60] ^ 255]) + content[61:],
    ],
    ids=["empty", "text", "torn", "flipped"],
)
def test_a_damaged_image_is_named_by_file_and_row(tmp_path, data_kit, damage):
    contents = [data_kit.image(p) for p in data_kit.pictures(150)]
    contents[130] = damage(contents[130])
    contents[140] = b""
    data = source(data_kit, tmp_path, contents, [0] * 150)
    with pytest.raises(WorkError, match=r"train-.*parquet, row 130 \(130\.x\): not a readable"):
        decode_images(data, channels=3, classes=10)


def test_another_size_is_named_by_file_and_row(tmp_path, data_kit):
    contents = [data_kit.image(p) for p in data_kit.pictures(3)]
    contents[2] = data_kit.image(data_kit.pictures(1, size=(8, 9))[0])
    with pytest.raises(RequestError, match=r"row 2 .*: an image of 8 x 9; expected 8 x 8"):
        decode_images(source(data_kit, tmp_path, contents, [0] * 3), channels=3, classes=10)


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_out_of_range_is_named_by_file_and_row(tmp_path, data_kit, label):
    contents = [data_kit.image(p) for p in data_kit.pictures(3)]
    with pytest.raises(RequestError, match=rf"row 1 .*: label {label}; expected 0 to 9"):
        decode_images(source(data_kit, tmp_path, contents, [0, label, 0]), channels=3, classes=10)


def test_decoded_once_then_read_from_the_cache(picture_folder, clean_places, monkeypatch):
    def opened():
        return open_splits(
            "t",
            ["train"],
            folder=str(picture_folder),
            hub=None,
            names=("t",),
            hub_name=None,
            columns=("img",),
            feature="Image",
        )[0]

    first = load_images(opened(), channels=3, classes=10)
    monkeypatch.setattr("latewood.tasks.data.images.decode_images", None)
    again = load_images(opened(), channels=3, classes=10)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    with pytest.raises(TypeError):  # other channels are other data
        load_images(opened(), channels=1, classes=10)
    # So is other content under the same name.
    (picture_folder / "train-00000-of-00001.parquet").write_bytes(
        (picture_folder / "test-00000-of-00001.parquet").read_bytes()
    )
    with pytest.raises(TypeError):
        load_images(opened(), channels=3, classes=10)
