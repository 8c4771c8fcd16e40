"""Sound and its features against definitions written out, and errors that say where."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latewood.errors import RequestError, WorkError
from latewood.tasks.data.audio import (
    decode_wav,
    hertz_to_mel,
    log_mel,
    mel_filters,
    mel_to_hertz,
    power_spectrum,
)
from latewood.tasks.data.sources import Encoded


def decode(content, rate=8000):
    return decode_wav(Encoded(content, 0, "here"), sample_rate=rate)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_pcm_of_every_width(data_kit, width):
    full = 2 ** (8 * width - 1)
    values = [0, 1, -1, full - 1, -full, full // 2]
    if width == 1:
        content = bytes(value + 128 for value in values)
    else:
        content = b"".join(value.to_bytes(width, "little", signed=True) for value in values)
    expected = torch.tensor([value / full for value in values], dtype=torch.float64).float()
    assert torch.equal(decode(data_kit.wav(content, width=width)), expected)


def test_channels_are_averaged(data_kit):
    frames = np.array([[1000, 3000], [-200, 0]], "<i2").tobytes()
    sound = decode(data_kit.wav(frames, channels=2))
    assert (sound * 2**15).tolist() == [2000, -100]


def test_another_rate_is_refused(data_kit):
    with pytest.raises(RequestError, match="here: 16000 samples a second; expected 8000"):
        decode(data_kit.wav(b"\0\0", rate=16000))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"RIFF but nothing else",
        lambda content: content[:30],
        lambda content: content[:-1],
        lambda content: content[:-500],
        lambda content: content[:20] + b"\x07" + content[21:],
    ],
    ids=["empty", "text", "half a header", "a byte less", "torn", "not PCM"],
)
def test_damaged_recordings_are_named(data_kit, damage):
    with pytest.raises(WorkError, match="here: not a readable WAV file"):
        decode(damage(data_kit.wav(b"\1\2" * 1000)))


def test_silence_of_no_length_is_refused(data_kit):
    with pytest.raises(WorkError, match="here: not a readable WAV file"):
        decode(data_kit.wav(b""))


def test_power_spectrum_is_the_transform_written_out():
    generator = torch.Generator().manual_seed(0)
    sound = torch.randn(50, generator=generator, dtype=torch.float64)
    window, hop = 8, 5
    found = power_spectrum(sound, window=window, hop=hop)
    assert found.shape == (1 + 50 // hop, window // 2 + 1)
    for frame in range(len(found)):
        for k in range(window // 2 + 1):
            total = 0j
            for j in range(window):
                at = frame * hop - window // 2 + j
                value = float(sound[at]) if 0 <= at < 50 else 0.0
                taper = 0.5 - 0.5 * math.cos(2 * math.pi * j / window)
                angle = -2 * math.pi * j * k / window
                total += value * taper * complex(math.cos(angle), math.sin(angle))
            assert abs(total) ** 2 == pytest.approx(float(found[frame, k]), abs=1e-10)


def test_a_pure_tone_is_where_it_belongs():
    time = torch.arange(8000, dtype=torch.float64) / 8000
    power = power_spectrum(torch.sin(2 * math.pi * 1000 * time), window=200, hop=80)
    assert power[10:-10].argmax(dim=1).unique().tolist() == [1000 * 200 // 8000]
    filters = mel_filters(bands=40, window=200, sample_rate=8000)
    band = int((power @ filters)[50].argmax())
    edges = torch.linspace(0, float(hertz_to_mel(torch.tensor(4000.0))), 42)
    assert edges[band] < 15 < edges[band + 2]  # 1,000 Hz is 15 mel


@pytest.mark.parametrize(("hertz", "mel"), [(0, 0), (200, 3), (1000, 15), (6400, 42)])
def test_points_of_the_mel_scale(hertz, mel):
    assert float(hertz_to_mel(torch.tensor(float(hertz)))) == pytest.approx(mel, abs=1e-4)
    assert float(mel_to_hertz(torch.tensor(float(mel)))) == pytest.approx(hertz, rel=1e-5)


@given(st.floats(0, 20000))
def test_mel_and_back(hertz):
    tensor = torch.tensor(hertz, dtype=torch.float64)
    assert float(mel_to_hertz(hertz_to_mel(tensor))) == pytest.approx(hertz, abs=1e-6)


def test_filters_have_unit_area():
    # So fine a grid that sums are integrals.
    filters = mel_filters(bands=12, window=8000, sample_rate=8000)
    assert filters.shape == (4001, 12)
    torch.testing.assert_close(filters.sum(dim=0), torch.ones(12).double(), atol=1e-3, rtol=0)
    assert bool((filters >= 0).all())


def test_filters_meet_their_neighbours():
    # At the centre of a triangle its neighbours are zero; between centres the two overlap.
    filters = mel_filters(bands=12, window=8000, sample_rate=8000)
    peaks = filters.argmax(dim=0)
    assert bool((peaks.diff() > 0).all())
    for band in range(1, 11):
        assert (
            float(filters[peaks[band], band - 1]) < 1e-3 * float(filters[peaks[band], band]) + 2e-5
        )
        between = (peaks[band] + peaks[band + 1]) // 2
        assert (filters[between] > 0).nonzero().flatten().tolist() == [band, band + 1]


def test_features_are_standardised_averaged_and_padded():
    generator = torch.Generator().manual_seed(0)
    sound = torch.randn(2000, generator=generator)
    filters = mel_filters(bands=10, window=200, sample_rate=8000)
    arguments = {"filters": filters, "window": 200, "hop": 80}
    fine = log_mel(sound, **arguments, group=1, frames=40)
    whole = 1 + 2000 // 80
    torch.testing.assert_close(fine[:whole].mean(dim=0), torch.zeros(10), atol=1e-5, rtol=0)
    deviation = fine[:whole].std(dim=0, correction=0)
    torch.testing.assert_close(deviation, torch.ones(10), atol=1e-5, rtol=0)
    assert not fine[whole:].any()
    coarse = log_mel(sound, **arguments, group=3, frames=5)
    torch.testing.assert_close(coarse, fine[:15].view(5, 3, 10).mean(dim=1))
    last = log_mel(sound, **arguments, group=3, frames=40)
    torch.testing.assert_close(last[whole // 3], fine[whole // 3 * 3 : whole].mean(dim=0))


def test_loudness_drops_out():
    sound = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    filters = mel_filters(bands=10, window=200, sample_rate=8000)
    arguments = {"filters": filters, "window": 200, "hop": 80, "group": 3, "frames": 8}
    torch.testing.assert_close(
        log_mel(sound, **arguments), log_mel(sound / 10, **arguments), atol=1e-4, rtol=0
    )


def test_silence_gives_zeros_not_nan():
    filters = mel_filters(bands=10, window=200, sample_rate=8000)
    found = log_mel(torch.zeros(500), filters=filters, window=200, hop=80, group=3, frames=4)
    torch.testing.assert_close(found, torch.zeros(4, 10), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("named", "arguments"),
    [("window", {"window": 7}), ("window", {"window": 0}), ("hop", {"hop": 0})],
)
def test_bad_spectra(named, arguments):
    with pytest.raises(RequestError, match=f"^{named}: got"):
        power_spectrum(torch.zeros(10), **({"window": 8, "hop": 2} | arguments))


@pytest.mark.parametrize("bands", [0, 128])
def test_bands_that_cannot_be(bands):
    with pytest.raises(RequestError, match="bands: got"):
        mel_filters(bands=bands, window=200, sample_rate=8000)
