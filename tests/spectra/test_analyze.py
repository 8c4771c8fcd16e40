"""Tables of whole models and of state dicts say the same, wherever a name tells enough."""

import math

import pytest
import torch
from torch import nn

from latewood.errors import RequestError
from latewood.spectra import analyze, effective_rank, singular_values


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.MultiheadAttention(6, 2), nn.Linear(6, 4)
        )


def by_name(rows):
    return {row["name"]: row for row in rows}


@pytest.mark.parametrize("options", [{}, {"conv": "taps"}, {"split": "qkv"}])
def test_a_model_and_its_state_dict_agree(model, options):
    assert analyze(model, **options) == analyze(model.state_dict(), **options)


def test_every_number_comes_with_its_certificate(model):
    model[3].weight.data = model[3].weight.data.bfloat16()
    row = by_name(analyze(model))["3.weight"]
    exact = effective_rank(torch.linalg.svdvals(model[3].weight.detach().double())).item()
    assert abs(row["effective rank"] / exact - 1) <= row["error"] + 1e-15
    assert row["error"] < 1e-6
    assert (row["method"], row["dtype"]) == ("svd", "bfloat16")


def test_parts(model):
    parts = by_name(analyze(model, split="qkv"))
    weight = model[2].in_proj_weight.detach()
    exact = effective_rank(singular_values(weight[6:12])).item()
    assert parts["2.in_proj_weight[key]"]["effective rank"] == pytest.approx(exact)
    assert by_name(analyze(model, conv="taps"))["0.weight"]["shape"] == "9x6x3"


def test_what_names_in_a_state_dict_tell():
    noise = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=noise)

    state = {
        "h.0.attn.c_attn.weight": random(4, 12),
        "mlp.experts.gate_up_proj": random(3, 5, 7),
        "q.lora_A.default.weight": random(2, 8),
        "q.lora_B.default.weight": random(6, 2),
        "head.weight": random(5, 4),
        "steps": torch.ones(2, 2, dtype=torch.int64),
    }
    state["tied.weight"] = state["head.weight"]
    rows = by_name(analyze(state, split="qkv", lora="product"))
    assert list(rows) == [
        *(f"h.0.attn.c_attn.weight[{part}]" for part in ("query", "key", "value")),
        "mlp.experts.gate_up_proj",
        "q.lora.default.weight",
        "head.weight",
    ]
    assert rows["mlp.experts.gate_up_proj"]["shape"] == "3x5x7"
    key = state["h.0.attn.c_attn.weight"][:, 4:8]
    largest = torch.linalg.matrix_norm(key, 2).item()
    assert rows["h.0.attn.c_attn.weight[key]"]["largest"] == pytest.approx(largest)
    assert rows["q.lora.default.weight"]["shape"] == "6x8"
    assert rows["q.lora.default.weight"]["effective rank"] < 2 / 6
    # Three times as many rows as columns would have, and it has not: left whole.
    grouped = {"attn.qkv_proj.weight": random(8, 4)}
    assert list(by_name(analyze(grouped, split="qkv"))) == list(grouped)


def test_nothing_and_broken_weights():
    assert analyze({}) == []
    assert analyze(nn.ReLU()) == []
    (row,) = analyze({"w": torch.full((3, 3), math.nan)})
    assert math.isnan(row["effective rank"])
    assert math.isnan(row["error"])


@pytest.mark.parametrize("options", [{"split": "heads"}, {"lora": "merged"}, {"conv": "slices"}])
def test_what_needs_the_model_is_refused(options):
    with pytest.raises(RequestError, match=next(iter(options))):
        analyze({"w": torch.ones(2, 2)}, **options)


def test_formats_of_eight_bits_and_factors_that_do_not_fit():
    noise = torch.Generator().manual_seed(0)
    eight = torch.randn(4, 3, generator=noise).to(torch.float8_e4m3fn)
    assert by_name(analyze({"weight": eight}))["weight"]["dtype"] == "float8_e4m3fn"
    apart = {"q.lora_A.weight": torch.ones(2, 4), "q.lora_B.weight": torch.ones(4, 3)}
    assert list(by_name(analyze(apart, lora="product"))) == list(apart)
