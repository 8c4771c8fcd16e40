"""Sound as features: WAV bytes to log-mel frames, with nothing but torch."""

from __future__ import annotations

import io
import math
import wave

import torch
from torch import Tensor

from latewood.errors import RequestError, WorkError, invalid
from latewood.tasks.data.sources import Encoded

__all__ = ["decode_wav", "hertz_to_mel", "log_mel", "mel_filters", "mel_to_hertz", "power_spectrum"]

BREAK_HERTZ = 1000.0
BREAK_MEL = 15.0
LOG_STEP = math.log(6.4) / 27


def decode_wav(encoded: Encoded, *, sample_rate: int) -> Tensor:
    """The samples of a WAV file, channels averaged, from -1 to 1.

    Args:
        encoded: PCM of 8, 16, 24 or 32 bits.
        sample_rate: samples per second that the file must have.

    Returns:
        float32 of shape (samples,).

    Raises:
        WorkError: the bytes are no readable WAV file; it names the file and the row.
        RequestError: another sample rate.
    """
    try:
        with wave.open(io.BytesIO(encoded.content)) as file:
            channels, width, rate, count = file.getparams()[:4]
            content = file.readframes(count)
    except Exception as error:  # damaged headers raise EOFError, struct.error and more
        reason = str(error) or type(error).__name__
        raise WorkError(f"{encoded.origin}: not a readable WAV file: {reason}") from error
    if len(content) != count * channels * width or not count:
        raise WorkError(
            f"{encoded.origin}: not a readable WAV file: {len(content)} bytes of sound; expected "
            f"{count * channels * width or 'some'}"
        )
    if rate != sample_rate:
        raise RequestError(f"{encoded.origin}: {rate} samples a second; expected {sample_rate}")
    return _pcm(content, width).view(-1, channels).mean(dim=1)


def power_spectrum(sound: Tensor, *, window: int, hop: int) -> Tensor:
    """Squared magnitudes of the short-time Fourier transform with a periodic Hann window.

    Frames are centred on multiples of ``hop``; beyond its ends the sound is silent.

    Args:
        sound: shape (samples,).
        window: samples per frame, even.
        hop: samples from one frame to the next.

    Returns:
        shape (1 + samples // hop, window // 2 + 1).

    Raises:
        RequestError: a window or hop that is not positive, or an odd window.
    """
    if window < 2 or window % 2:
        raise invalid("window", window, "a positive even number of samples")
    if hop < 1:
        raise invalid("hop", hop, "1 or more samples")
    padded = torch.nn.functional.pad(sound, (window // 2, window // 2))
    frames = padded.unfold(0, window, hop)
    taper = torch.hann_window(window, periodic=True, dtype=sound.dtype)
    spectrum: Tensor = torch.fft.rfft(frames * taper)
    return spectrum.abs().square()


def hertz_to_mel(hertz: Tensor) -> Tensor:
    """Pitch on Slaney's scale: linear up to 1,000 Hz (15 mel), then 27 mel per factor 6.4."""
    above = BREAK_MEL + torch.log(hertz.clamp(min=BREAK_HERTZ) / BREAK_HERTZ) / LOG_STEP
    return torch.where(hertz < BREAK_HERTZ, hertz * BREAK_MEL / BREAK_HERTZ, above)


def mel_to_hertz(mel: Tensor) -> Tensor:
    """The inverse of ``hertz_to_mel``."""
    above = BREAK_HERTZ * torch.exp(LOG_STEP * (mel.clamp(min=BREAK_MEL) - BREAK_MEL))
    return torch.where(mel < BREAK_MEL, mel * BREAK_HERTZ / BREAK_MEL, above)


def mel_filters(*, bands: int, window: int, sample_rate: int) -> Tensor:
    """Triangles that are evenly spaced in mel from 0 Hz to half the sample rate.

    Each has unit area over frequency: its height is ``2 / (upper - lower)`` in 1/Hz.

    Args:
        bands: number of triangles.
        window: samples per frame.
        sample_rate: samples per second.

    Returns:
        float64 of shape (window // 2 + 1, bands).

    Raises:
        RequestError: so many bands that one of them holds no frequency of the transform.

    Source: Slaney, Auditory Toolbox (1998).
    """
    if bands < 1:
        raise invalid("bands", bands, "1 or more")
    top = hertz_to_mel(torch.tensor(sample_rate / 2, dtype=torch.float64))
    edges = mel_to_hertz(torch.linspace(0, float(top), bands + 2, dtype=torch.float64))
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    bins = torch.arange(window // 2 + 1, dtype=torch.float64)[:, None] * sample_rate / window
    rising = (bins - lower) / (centre - lower)
    falling = (upper - bins) / (upper - centre)
    filters = torch.minimum(rising, falling).clamp(min=0) * 2 / (upper - lower)
    if not bool((filters.sum(dim=0) > 0).all()):
        raise invalid("bands", bands, f"fewer bands; windows of {window} samples cannot tell them")
    return filters


def log_mel(
    sound: Tensor, *, filters: Tensor, window: int, hop: int, group: int, frames: int
) -> Tensor:
    """Log-mel features of one sound, standardised per band, cut or padded to a fixed length.

    Every band is standardised over the sound's own frames, so that loudness and microphone drop
    out; padding is 0, the mean.

    Args:
        sound: shape (samples,).
        filters: from ``mel_filters``.
        window: samples per frame.
        hop: samples from one frame to the next.
        group: frames that are averaged into one.
        frames: length of the result.

    Returns:
        float32 of shape (frames, bands).
    """
    power = power_spectrum(sound.double(), window=window, hop=hop)
    # The floor is far below the quantisation noise of 16-bit sound.
    features = torch.log(power @ filters + 1e-10)
    spread = features.std(dim=0, correction=0)
    features = (features - features.mean(dim=0)) / spread.clamp(min=1e-5)
    whole = -(-len(features) // group)
    grouped = torch.stack([part.mean(dim=0) for part in features.split(group)])
    result = torch.zeros(frames, filters.shape[1])
    result[: min(whole, frames)] = grouped[:frames].float()
    return result


def _pcm(content: bytes, width: int) -> Tensor:
    stored = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    if width == 1:
        return (stored.float() - 128) / 128
    # Little-endian bytes, the last of which carries the sign.
    parts = stored.view(-1, width).double()
    places = 256.0 ** torch.arange(width, dtype=torch.float64)
    values = parts @ places
    full = 256.0**width
    return (torch.where(values >= full / 2, values - full, values) / (full / 2)).float()
