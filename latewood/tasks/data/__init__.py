"""Data as tensors: found, decoded once, kept, and read in one order by every process and seed."""

from __future__ import annotations

from latewood.tasks.data.datasets import (
    Batch,
    Dataset,
    Normalise,
    TensorDataset,
    batch_count,
    batch_stream,
    batches,
    epoch_order,
    stratified_prefix,
)

__all__ = [
    "Batch",
    "Dataset",
    "Normalise",
    "TensorDataset",
    "batch_count",
    "batch_stream",
    "batches",
    "epoch_order",
    "stratified_prefix",
]
