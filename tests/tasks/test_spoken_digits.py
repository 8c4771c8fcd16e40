import numpy as np
import pytest
import torch

from latewood.errors import RequestError, WorkError
from latewood.models import lstm_classifier
from latewood.tasks.data.audio import log_mel, mel_filters
from latewood.tasks.spoken_digits import spoken_digits

pytestmark = pytest.mark.usefixtures("clean_places")


@pytest.fixture
def sounds(tmp_path, data_kit):
    """Noise of growing length, four recordings to train and two to test."""
    folder = tmp_path / "sounds"
    random = np.random.default_rng(0)
    recordings = [random.integers(-9999, 9999, 2000 + 500 * k).astype("<i2") for k in range(6)]
    encoded = [data_kit.wav(r.tobytes()) for r in recordings]
    for split, part in (("train", encoded[:4]), ("test", encoded[4:])):
        data_kit.parquet(
            folder / f"{split}-00000-of-00001.parquet", part, range(len(part)), column="audio"
        )
    return folder, recordings


def test_features_of_every_recording_in_order(sounds):
    folder, recordings = sounds
    task = spoken_digits(folder=str(folder))
    features, labels = task.train.gather(torch.arange(4))
    assert (features.shape, features.dtype) == ((4, 32, 40), torch.float32)
    assert labels.tolist() == [0, 1, 2, 3]
    filters = mel_filters(bands=40, window=200, sample_rate=8000)
    for k in range(4):
        sound = torch.from_numpy(recordings[k].astype(np.float32)) / 2**15
        expected = log_mel(sound, filters=filters, window=200, hop=80, group=3, frames=32)
        torch.testing.assert_close(features[k], expected)


def test_fits_its_model(sounds):
    task = spoken_digits(folder=str(sounds[0]), bands=12, frames=10)
    features = task.model_arguments["features"]
    model = lstm_classifier(features=features, num_classes=10, hidden=4)
    assert model(*task.example_inputs).shape == (1, 10)
    scores = task.objective.evaluate(
        model, task.validation.gather(torch.arange(2)), torch.Generator()
    )
    assert set(scores) == {"loss", "accuracy"}


def test_other_settings_are_not_read_from_the_cache(sounds):
    short = spoken_digits(folder=str(sounds[0]), frames=5)
    assert short.train.tensors[0].shape == (4, 5, 40)
    assert spoken_digits(folder=str(sounds[0])).train.tensors[0].shape == (4, 32, 40)


def test_the_cache_is_read(sounds, monkeypatch):
    first = spoken_digits(folder=str(sounds[0]))
    monkeypatch.setattr("latewood.tasks.spoken_digits.decode_wav", None)
    again = spoken_digits(folder=str(sounds[0]))
    assert torch.equal(first.train.tensors[0], again.train.tensors[0])


@pytest.mark.parametrize(
    ("content", "label", "error", "said"),
    [
        (b"RIFFjunk", 0, WorkError, "not a readable WAV file"),
        (None, 0, WorkError, "has no bytes"),
        (b"x", 10, RequestError, "label 10; expected 0 to 9"),
    ],
)
def test_bad_rows_are_named(sounds, data_kit, content, label, error, said):
    good = data_kit.wav(b"\0\1" * 500)
    path = sounds[0] / "train-00000-of-00001.parquet"
    data_kit.parquet(path, [good, content], [0, label], column="audio")
    with pytest.raises(error, match=rf"train-00000-of-00001\.parquet, row 1.*: {said}"):
        spoken_digits(folder=str(sounds[0]))


def test_another_rate_is_named(sounds, data_kit):
    path = sounds[0] / "train-00000-of-00001.parquet"
    data_kit.parquet(path, [data_kit.wav(b"\0\1" * 500, rate=16000)], [0], column="audio")
    with pytest.raises(RequestError, match=r"row 0 .*16000 samples a second; expected 8000"):
        spoken_digits(folder=str(sounds[0]))


@pytest.mark.parametrize("name", ["window", "hop", "bands", "group", "frames"])
def test_numbers_out_of_range(sounds, name):
    with pytest.raises(RequestError, match=f"^{name}: got 0"):
        spoken_digits(folder=str(sounds[0]), **{name: 0})


def test_no_data_names_both_folders():
    with pytest.raises(RequestError, match=r"data/spoken_digits, .*data/fsdd"):
        spoken_digits()
