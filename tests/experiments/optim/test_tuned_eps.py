"""The tuned comparisons: how they search, and that the paper's protocol is there and runs."""

from __future__ import annotations

import io
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.nn import Parameter

from latewood.experiments import Workspace
from latewood.experiments.optim import tuned_eps
from latewood.training import components
from latewood.training.recipe import parse_recipe


def bowl(rate: float, eps: float, coupled: float):
    """Least at lr = rate (eps/1)^coupled and at the given eps; counts what it is asked."""
    asked = []

    def loss(section):
        asked.append(section)
        x = math.log10(section["lr"]) - math.log10(rate) - coupled * math.log10(section["eps"])
        y = math.log10(section["eps"]) - math.log10(eps)
        return x * x + 0.1 * y * y

    return loss, asked


@pytest.mark.parametrize("start", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("eps_line", "coupled"), [(tuned_eps.EPS, 0.0), (tuned_eps.DIAGONAL, 1.0)])
def test_a_search_finds_the_least_loss_from_anywhere(start, eps_line, coupled):
    loss, _ = bowl(10.0, 1e-2, coupled)
    section = {"name": "x", "lr": start, "eps": 1e-5}
    found = tuned_eps.search(section, (tuned_eps.RATE, eps_line, tuned_eps.RATE), loss)
    assert found["name"] == "x"
    assert found["eps"] == pytest.approx(1e-2)
    assert found["lr"] == pytest.approx(10.0 * found["eps"] ** coupled, rel=0.02)


def test_a_search_ends_where_both_neighbours_are_worse_and_walks_back_exactly():
    loss, asked = bowl(10.0, 1.0, 0.0)
    found = tuned_eps.search({"lr": 10.0, "eps": 1.0}, (tuned_eps.RATE,), loss)
    assert found["lr"] == 10.0
    assert [section["lr"] for section in asked] == [10.0, 32.0, 3.2]
    there = tuned_eps._moved(tuned_eps._moved(found, tuned_eps.RATE, 1), tuned_eps.RATE, -1)
    assert there["lr"] == 10.0


def test_a_search_turns_back_from_runs_that_diverge():
    def loss(section):
        return -section["lr"] if section["lr"] < 5.0 else math.inf

    assert tuned_eps.search({"lr": 1.0}, (tuned_eps.RATE,), loss)["lr"] == 3.2


def test_the_papers_protocol_is_a_recipe_for_every_optimizer():
    for section in tuned_eps.PAPER_POINTS.values():
        recipe = parse_recipe(tuned_eps.IMAGE_RECIPES["full"] | {"optimizer": section, "seed": 1})
        parameters = [Parameter(torch.zeros(2))]
        optimizer = components.build("optimizer", recipe.optimizer, "optimizer", params=parameters)
        for key in section.keys() - {"name"}:
            assert optimizer.defaults[key] == section[key]


def test_the_papers_protocol_takes_two_steps_on_tiny_images(tmp_path, monkeypatch):
    name = "AvaGrad"
    pictures = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    rows = []
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        rows.append({"bytes": file.getvalue(), "path": None})
    table = pa.table({"img": rows, "label": [k % 10 for k in range(20)]})
    for split in ("train", "test"):
        pq.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    recipe = tuned_eps.IMAGE_RECIPES["full"]
    task = recipe["task"] | {"folder": str(tmp_path), "validation": 16}
    tiny = recipe | {"task": task, "epochs": 1, "batch_size": 2}
    monkeypatch.setitem(tuned_eps.IMAGE_RECIPES, "full", tiny)
    monkeypatch.setattr(tuned_eps, "PAPER_POINTS", {name: tuned_eps.PAPER_POINTS[name]})
    monkeypatch.setattr(tuned_eps, "SEEDS", (1,))
    results = tuned_eps.IMAGES.run("full", Workspace(tmp_path / "runs"))
    assert 0.0 <= results.mean(name) <= 1.0
    assert results.settings["recipe"]["model"] == {"name": "wide_resnet28", "width": 4}
