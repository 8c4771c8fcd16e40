"""Inspection: closed forms of known spectra, and what is left out or refused."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from latewood.errors import RequestError
from latewood.spectra import analyze
from latewood.studies.inspection import (
    COLUMNS,
    Inspection,
    compared,
    inspect_checkpoint,
    sorted_rows,
    summary_row,
)
from latewood.studies.inspection_page import write_inspection_page
from latewood.terminal.tables import cell, print_table


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


def names(inspection: Inspection) -> list[Any]:
    return [row["name"] for row in inspection.rows]


def test_vectors_and_integers_are_left_out(tmp_path: Path) -> None:
    tensors = {
        "w": torch.eye(2, dtype=torch.bfloat16),
        "bias": torch.ones(2),
        "steps": torch.ones(2, 2, dtype=torch.int64),
        "empty": torch.ones(0, 2),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    assert names(inspect_checkpoint(tmp_path / "a.safetensors")) == ["w"]


def test_a_file_without_matrices_is_refused(tmp_path: Path) -> None:
    save_file({"bias": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(RequestError, match=r"a\.safetensors: got 1 tensors"):
        inspect_checkpoint(tmp_path / "a.safetensors")


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    weights = {
        "w": torch.eye(2),
        "codes": torch.ones(2, 3, dtype=torch.int8),
        "waves": torch.ones(2, 2, dtype=torch.complex64),
        "empty": torch.ones(0, 2),
        "bias": torch.ones(2),
    }
    torch.save(weights, tmp_path / "a.pt")
    inspection = inspect_checkpoint(tmp_path / "a.pt")
    assert names(inspection) == ["w"]
    reasons = {left.name: left.why for left in inspection.left_out}
    assert list(reasons) == ["codes", "waves", "empty"]
    assert "integers" in reasons["codes"]
    assert "complex" in reasons["waves"]
    assert "no entries" in reasons["empty"]


def test_what_is_not_stored_densely_is_left_out_and_said(tmp_path: Path) -> None:
    quantized = torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8)
    tensors = {"rows": torch.eye(3).to_sparse(), "codes": quantized, "w": torch.eye(2)}
    torch.save(tensors, tmp_path / "a.pt")
    inspection = inspect_checkpoint(tmp_path / "a.pt")
    assert names(inspection) == ["w"]
    assert [left.name for left in inspection.left_out] == ["rows", "codes"]
    assert "sparse_coo" in inspection.left_out[0].why


def test_rows_go_from_input_to_output(tmp_path: Path) -> None:
    expected = [
        "model.embed_tokens.weight",
        "model.layers.0.mlp.weight",
        "model.layers.2.mlp.weight",
        "model.layers.10.mlp.weight",
        "model.projection.weight",
        "lm_head.weight",
    ]
    state = {name: gaussian(3, 4, seed=index) for index, name in enumerate(expected)}
    save_file(state, tmp_path / "a.safetensors")
    assert names(inspect_checkpoint(tmp_path / "a.safetensors")) == expected
    # A torch file has the order of the model.
    order = [expected[i] for i in (5, 0, 3, 1, 2, 4)]
    torch.save({name: state[name] for name in order}, tmp_path / "a.pt")
    assert names(inspect_checkpoint(tmp_path / "a.pt")) == order


def test_only_some_names(tmp_path: Path) -> None:
    save_file({f"{x}.weight": gaussian(3, 3) for x in "abc"}, tmp_path / "a.safetensors")
    path = tmp_path / "a.safetensors"
    assert names(inspect_checkpoint(path, include=["a", "b.*"])) == ["a.weight", "b.weight"]
    assert names(inspect_checkpoint(path, exclude=["a"])) == ["b.weight", "c.weight"]
    with pytest.raises(RequestError, match="of these names"):
        inspect_checkpoint(path, exclude=["?.weight"])


def test_queries_keys_and_values_that_go_head_by_head(tmp_path: Path) -> None:
    fused = gaussian(2 * 3 * 4, 8)
    state = {"layers.0.attention.query_key_value.weight": fused}
    save_file(state, tmp_path / "model.safetensors")
    inspection = inspect_checkpoint(tmp_path, split="qkv")
    assert "config.json" in inspection.left_out[0].why
    assert len(inspection.rows) == 1
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 2}))
    inspection = inspect_checkpoint(tmp_path, split="qkv")
    query, key, value = (view.read() for view in inspection.views)
    assert torch.equal(query, torch.cat([fused[0:4], fused[12:16]]))
    assert torch.equal(key, torch.cat([fused[4:8], fused[16:20]]))
    assert torch.equal(value, torch.cat([fused[8:12], fused[20:24]]))
    assert inspection.left_out == []


def test_queries_that_share_their_keys(tmp_path: Path) -> None:
    # As in Phi: four heads of queries, two of keys and of values, one below the other.
    fused = gaussian(4 * 3 + 2 * 3 + 2 * 3, 12)
    save_file({"self_attn.qkv_proj.weight": fused}, tmp_path / "model.safetensors")
    config = {"num_attention_heads": 4, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    views = inspect_checkpoint(tmp_path, split="qkv").views
    assert [view.name.rpartition("[")[2] for view in views] == ["query]", "key]", "value]"]
    assert torch.equal(torch.cat([view.read() for view in views]), fused)
    assert [len(view.read()) for view in views] == [12, 6, 6]
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 5}))
    assert "do not fit 5" in inspect_checkpoint(tmp_path, split="qkv").left_out[0].why


def test_the_folder_of_an_adapter(tmp_path: Path) -> None:
    down, up = gaussian(2, 8), gaussian(6, 2, seed=1)
    save_file(
        {"q_proj.lora_A.weight": down, "q_proj.lora_B.weight": up},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 16, "r": 2}))
    assert len(inspect_checkpoint(tmp_path).rows) == 2
    (row,) = inspect_checkpoint(tmp_path, lora="product").rows
    assert row["largest"] == pytest.approx(8 * torch.linalg.matrix_norm(up @ down, 2).item())


def test_weights_below_a_key(tmp_path: Path) -> None:
    nested = {"step": 3, "model": {"w": gaussian(3, 3)}, "ema": {"net.a": {"v": gaussian(2, 2)}}}
    torch.save(nested, tmp_path / "a.pt")
    assert names(inspect_checkpoint(tmp_path / "a.pt")) == ["w"]
    assert names(inspect_checkpoint(tmp_path / "a.pt", key="ema.net.a")) == ["v"]
    for key in ("nothing", "ema.other", "step.w"):
        with pytest.raises(RequestError, match="key"):
            inspect_checkpoint(tmp_path / "a.pt", key=key)
    save_file({"w": gaussian(3, 3)}, tmp_path / "a.safetensors")
    with pytest.raises(RequestError, match="key"):
        inspect_checkpoint(tmp_path / "a.safetensors", key="model")


def test_summary_sort_and_comparison(tmp_path: Path) -> None:
    one = {"a": 2 * torch.eye(12), "b": gaussian(12, 12), "c": gaussian(2, 3)}
    other = {"a": torch.eye(12), "b": one["b"], "d": gaussian(2, 2)}
    for name, state in (("one", one), ("other", other)):
        save_file(state, tmp_path / f"{name}.safetensors")
    first, second = (
        inspect_checkpoint(tmp_path / f"{name}.safetensors") for name in ("one", "other")
    )
    summary = summary_row(first.rows)
    ranks = [row["effective rank"] for row in first.rows]
    assert summary["effective rank"] == pytest.approx(sum(ranks) / 3)  # type: ignore[arg-type]
    assert summary["alpha"] == first.rows[1]["alpha"] is not None
    assert summary["largest"] == max(row["largest"] for row in first.rows)  # type: ignore[type-var]
    assert next(row["name"] for row in sorted_rows(first.rows, "effective rank")) == "a"
    assert [row["name"] for row in sorted_rows(first.rows, "alpha")] == ["b", "a", "c"]
    assert [row["name"] for row in sorted_rows(first.rows, "name")] == ["a", "b", "c"]
    with pytest.raises(RequestError, match="sort"):
        sorted_rows(first.rows, "size")
    a, b = compared(first, second)
    assert (a["name"], a["distance"], a["largest change"]) == ("a", 1.0, pytest.approx(1.0))
    assert (b["name"], b["distance"], b["effective rank change"]) == ("b", 0.0, 0.0)
    third = inspect_checkpoint(tmp_path / "one.safetensors", include=["c"])
    with pytest.raises(RequestError, match="against"):
        compared(third, second)


def test_the_page_draws_every_matrix(tmp_path: Path) -> None:
    state = {"<b>x": gaussian(20, 20), "codes": torch.ones(2, 2, dtype=torch.int8)}
    save_file(state, tmp_path / "a.safetensors")
    inspection = inspect_checkpoint(tmp_path / "a.safetensors")
    page = write_inspection_page("a.safetensors", inspection, tmp_path / "page.html").read_text()
    assert "Exponent of the tail" in page
    assert "codes (2x2, int8): integers" in page
    assert "<b>x" not in page


def test_names_cannot_steer_a_terminal() -> None:
    assert cell("a\x1b[31mb\nc\u202ed") == "a\\x1b[31mb\\nc\\u202ed"
    shown = io.StringIO()
    print_table([{"name": "\x1b]0;x\x07"}], title="\x1b[2J", to=shown)
    assert "\x1b" not in shown.getvalue()
    assert cell("größe→w") == "größe→w"
