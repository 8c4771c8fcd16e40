"""Inspection: closed forms of known spectra, and what is left out or refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from latewood.errors import RequestError
from latewood.spectra import analyze
from latewood.studies.inspection import COLUMNS, inspect_checkpoint


def inspect_tensor(name: str, tensor: torch.Tensor) -> dict[str, Any]:
    (row,) = analyze({name: tensor})
    return row


def test_identity_uses_every_direction() -> None:
    row = inspect_tensor("eye", 3 * torch.eye(5))
    assert list(row) == list(COLUMNS)
    assert row["rank"] == 5
    assert row["effective rank"] == pytest.approx(1.0)
    assert row["stable rank"] == pytest.approx(1.0)
    assert (row["largest"], row["smallest"]) == (pytest.approx(3.0), pytest.approx(3.0))
    assert row["density"] == pytest.approx(0.2)


def test_rank_one_uses_one_direction() -> None:
    row = inspect_tensor("outer", torch.ones(4, 8))
    assert row["effective rank"] == pytest.approx(1 / 4, rel=1e-4)
    assert row["largest"] == pytest.approx(math.sqrt(32))


def test_random_matrix_is_near_its_own_baseline() -> None:
    row = inspect_tensor("w", torch.randn(96, 64, 3, generator=torch.Generator().manual_seed(0)))
    assert row["shape"] == "96x192"
    assert row["effective rank"] == pytest.approx(row["of random"], abs=0.01)


def test_not_a_number_is_shown_as_such() -> None:
    assert math.isnan(inspect_tensor("w", torch.full((3, 3), math.nan))["effective rank"])


def test_vectors_and_integers_are_left_out(tmp_path: Path) -> None:
    tensors = {
        "w": torch.eye(2, dtype=torch.bfloat16),
        "bias": torch.ones(2),
        "steps": torch.ones(2, 2, dtype=torch.int64),
        "empty": torch.ones(0, 2),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    assert [row["name"] for row in inspect_checkpoint(tmp_path / "a.safetensors")] == ["w"]


def test_a_file_without_matrices_is_refused(tmp_path: Path) -> None:
    save_file({"bias": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(RequestError, match=r"a\.safetensors: got 1 tensors"):
        inspect_checkpoint(tmp_path / "a.safetensors")
