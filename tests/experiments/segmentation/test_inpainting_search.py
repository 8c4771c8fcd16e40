"""The experiment on drawn images: what is drawn, and all claims of the quick scale."""

from __future__ import annotations

import pytest
import torch

from latewood.errors import RequestError
from latewood.experiments import Results, Workspace
from latewood.experiments.segmentation import inpainting_search as experiment
from latewood.experiments.segmentation.composite_images import composites


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return experiment.run("quick", Workspace(tmp_path_factory.mktemp("workspace")))


def test_every_claim_of_the_quick_scale_holds(results: Results) -> None:
    claims = [claim for claim in experiment.EXPERIMENT.claims if "quick" in claim.scales]
    assert len(claims) == 6
    assert [(c.name, c.measured(results)) for c in claims if not c.holds(results)] == []


def test_every_claim_can_fail(results: Results) -> None:
    # As if the start had been the best of all and the search had only made it worse.
    broken = {name: [0.1] for name in results.measurements}
    kinds = ("drawn", "real", "composite")
    broken |= {f"{k} {n.split(' ', 1)[1]}": [0.1] for k in kinds for n in results.measurements}
    for kind in kinds:
        for peer in ("chan-vese", "morphological", "grabcut square", "grabcut frame"):
            broken |= {f"{kind} {peer}": [0.9], f"{kind} {peer} ms": [0.01]}
    failed = Results(broken)
    assert [c.name for c in experiment.EXPERIMENT.claims if c.holds(failed)] == []


def test_composites_are_reproducible_and_of_moderate_area() -> None:
    images, masks = composites(6, size=64, seed=3)
    again, _ = composites(6, size=64, seed=3)
    assert torch.equal(images, again)
    assert images.shape == (6, 3, 64, 64) and images.min() >= 0 and images.max() <= 1
    shares = masks.double().mean((1, 2))
    assert bool(((shares > 0.05) & (shares < 0.5)).all())
    other, _ = composites(6, size=64, seed=4)
    assert not torch.equal(images, other)


def test_without_the_evaluation_set_it_says_where_it_looked(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("LATEWOOD_DATA", str(tmp_path_factory.mktemp("empty")))
    with pytest.raises(RequestError, match="LATEWOOD_DATA"):
        experiment._evaluation_set("real")
