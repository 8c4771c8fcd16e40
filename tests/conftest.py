"""Small data sets on disk, in the layouts that the hub serves."""

import io
import wave

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


def encode_image(pixels, form="PNG", **options):
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, form, **options)
    return buffer.getvalue()


def encode_wav(samples, *, rate=8000, width=2, channels=1):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples)
    return buffer.getvalue()


def write_parquet(path, contents, labels, *, column="img", label="label", row_group_size=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = [
        None if content is None else {"bytes": content, "path": f"{k}.x"}
        for k, content in enumerate(contents)
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({column: pa.array(stored, kind), label: pa.array(labels, pa.int64())})
    pq.write_table(table, path, row_group_size=row_group_size, compression="none")
    return path


class DataKit:
    """What the tests of data sources need to write their inputs."""

    image = staticmethod(encode_image)
    wav = staticmethod(encode_wav)
    parquet = staticmethod(write_parquet)

    @staticmethod
    def pictures(n, size=(8, 8), channels=3, seed=0):
        shape = (n, *size) if channels == 1 else (n, *size, channels)
        return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def data_kit():
    return DataKit


@pytest.fixture
def clean_places(tmp_path, monkeypatch):
    """No data and no cache but what the test makes."""
    monkeypatch.delenv("LATEWOOD_DATA", raising=False)
    monkeypatch.setenv("LATEWOOD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def picture_folder(tmp_path, data_kit):
    """40 training and 20 test images of 8x8 in ten classes, as Parquet."""
    folder = tmp_path / "pictures"
    for split, n, seed in (("train", 40, 0), ("test", 20, 1)):
        pictures = data_kit.pictures(n, seed=seed)
        data_kit.parquet(
            folder / f"{split}-00000-of-00001.parquet",
            [data_kit.image(picture) for picture in pictures],
            [k % 10 for k in range(n)],
            row_group_size=16,
        )
    return folder
