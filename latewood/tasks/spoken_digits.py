"""Spoken digits: short recordings, classified from their log-mel frames."""

from __future__ import annotations

import torch

from latewood.errors import WorkError, invalid
from latewood.tasks.data.audio import decode_wav, log_mel, mel_filters
from latewood.tasks.data.datasets import TensorDataset
from latewood.tasks.data.decoded import decoded
from latewood.tasks.data.label_noise import permute_labels
from latewood.tasks.data.locate import open_splits
from latewood.tasks.data.sources import SampleSource, check_label, content_hash
from latewood.tasks.objectives import Classification
from latewood.tasks.task import Task
from latewood.terminal.progress import progress

__all__ = ["spoken_digits"]

CLASSES = 10


def spoken_digits(
    *,
    folder: str | None = None,
    hub: str | None = None,
    sample_rate: int = 8000,
    window: int = 200,
    hop: int = 80,
    bands: int = 40,
    group: int = 3,
    frames: int = 32,
    label_smoothing: float = 0.0,
    label_noise: float = 0.0,
    label_seed: int = 12345,
) -> Task:
    """Classification of spoken digits from log-mel features.

    By default a frame is 25 ms, one starts every 10 ms, three are averaged, and 32 of these
    (0.96 s) are kept.

    Args:
        folder: folder of the data; None looks in $LATEWOOD_DATA and data for spoken_digits and
            fsdd.
        hub: data set on the Hugging Face hub to use instead, with columns audio and label.
        sample_rate: samples per second of the recordings.
        window: samples per frame, even.
        hop: samples from one frame to the next.
        bands: mel bands.
        group: frames that are averaged into one.
        frames: length of a sequence after averaging.
        label_smoothing: share of the target spread evenly over the classes, in training only.
        label_noise: share of the samples, of both parts, whose labels are permuted among
            themselves; 1 makes all labels random.
        label_seed: seed of that permutation.

    Returns:
        task with inputs (n, frames, bands) and int64 labels (n,).

    Raises:
        RequestError: no data, not the data expected, or a number out of range.
        WorkError: a file or a recording is damaged.

    Source: features of arXiv 2408.11804 (speech), at 8 kHz.
    """
    for name, value in {"group": group, "frames": frames, "hop": hop}.items():
        if value < 1:
            raise invalid(name, value, "1 or more")
    if window < 2 or window % 2:
        raise invalid("window", window, "a positive even number of samples")
    filters = mel_filters(bands=bands, window=window, sample_rate=sample_rate)

    def features(source: SampleSource) -> dict[str, torch.Tensor]:
        rows, labels = [], []
        with progress(f"decoding {source.name}", len(source)) as advance:
            for chunk in source.chunks():
                for encoded in chunk:
                    check_label(encoded, CLASSES)
                    sound = decode_wav(encoded, sample_rate=sample_rate)
                    rows.append(
                        log_mel(
                            sound,
                            filters=filters,
                            window=window,
                            hop=hop,
                            group=group,
                            frames=frames,
                        )
                    )
                    labels.append(encoded.label)
                    advance()
        if len(rows) != len(source):
            raise WorkError(f"{source.name}: has {len(rows)} samples; it promised {len(source)}")
        return {"features": torch.stack(rows), "labels": torch.tensor(labels)}

    def load(source: SampleSource) -> TensorDataset:
        settings = f"{sample_rate} {window} {hop} {bands} {group} {frames}"
        key = content_hash("log-mel", source.fingerprint(), settings)
        tensors = decoded(source.name, key, lambda: features(source))
        return TensorDataset(tensors["features"], tensors["labels"])

    train, scored = (
        load(source)
        for source in open_splits(
            "spoken_digits",
            ["train", "test"],
            folder=folder,
            hub=hub,
            names=("spoken_digits", "fsdd"),
            hub_name=None,
            columns=("audio",),
            feature="Audio",
        )
    )
    train, scored = permute_labels(train, scored, fraction=label_noise, seed=label_seed)
    return Task(
        name="spoken_digits",
        train=train,
        validation=scored,
        objective=Classification(label_smoothing=label_smoothing),
        headline="accuracy",
        model="lstm_classifier",
        model_arguments={
            "num_classes": CLASSES,
            "features": bands,
            "in_features": frames * bands,
            "context": frames,
        },
        example_inputs=(torch.zeros(1, frames, bands),),
    )
