from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from latewood.cli import main
from latewood.errors import RequestError, WorkError
from latewood.segmentation import mask_scores
from latewood.studies.trained_segmenter import _best_weights, trained_segmenter
from latewood.tasks.foreground import foreground
from latewood.training import checkpoints
from latewood.training.recipe import parse_recipe
from latewood.training.run import train
from latewood.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Nine discs on dark ground, one of them with a mask by people, and one constant image."""
    home = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    y, x = torch.arange(40)[:, None], torch.arange(52)
    for i in range(9):
        disc = (y - 20) ** 2 + (x - 26 - i % 3) ** 2 <= 11**2
        image = torch.where(disc, torch.tensor([0.8, 0.5, 0.2])[:, None, None], 0.25)
        image = (image + 0.03 * torch.randn(3, 40, 52, generator=generator)).clamp(0, 1)
        pixels = (image * 255).to(torch.uint8).movedim(0, -1).numpy()
        Image.fromarray(pixels).save(home / f"image{i}.png")
    Image.fromarray(pixels[..., 0]).save(home / "image0_mask.png")
    Image.new("RGB", (40, 40), (90, 90, 90)).save(home / "plain.png")
    return home


def test_labels_are_found_and_useless_images_left_out(folder):
    task = foreground(folder=str(folder), size=32, validation=0.34)
    assert (len(task.train), len(task.validation)) == (6, 3)
    images, masks = task.train.gather(torch.arange(6))
    assert images.shape == (6, 3, 32, 32) and masks.shape == (6, 32, 32)
    assert images.min() >= -1 and images.max() <= 1
    assert bool((masks[:, 16, 16] & ~masks[:, 0, 0]).all())
    again = foreground(folder=str(folder), size=32, validation=0.34)
    assert torch.equal(again.train.gather(torch.arange(6))[0], images)


def test_a_recipe_trains_on_it(folder, tmp_path):
    recipe = parse_recipe(
        {
            "task": {"name": "foreground", "folder": str(folder), "size": 16, "preset": "fast"},
            "model": {"name": "segmentation_unet", "channels": [4, 8]},
            "optimizer": {"name": "adam", "lr": 0.02},
            "steps": 60,
            "evaluate_every": 20,
            "checkpoint_every": 20,
            "keep_checkpoints": 3,
            "batch_size": 4,
            "device": "cpu",
        }
    )
    rows = train(recipe, folder=tmp_path / "run").folder.read_metrics()
    last = [row for row in rows if row["kind"] == "validation"][-1]
    assert {"loss", "iou", "inpainting", "agreement"} <= last.keys()
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert losses[-1] < losses[0]
    _check_the_network_on_a_new_image(tmp_path / "run", tmp_path)


def _check_the_network_on_a_new_image(run, tmp_path):
    state = torch.random.get_rng_state()
    segmenter = trained_segmenter(RunFolder(run))
    assert torch.equal(torch.random.get_rng_state(), state)
    y, x = torch.arange(90)[:, None], torch.arange(120)
    disc = (y - 45) ** 2 + (x - 60) ** 2 <= 25**2
    image = torch.where(disc, torch.tensor([0.8, 0.5, 0.2])[:, None, None], 0.25)
    found = segmenter(image)
    assert found.mask.shape == (90, 120) and found.flags == ()
    assert mask_scores(found.mask[None], disc[None])["iou_fixed"].item() > 0.6
    assert found.score > 0 and found.contrast > 0
    assert segmenter(image[:1]).mask.shape == (90, 120)

    pixels = (image * 255).to(torch.uint8).movedim(0, -1).numpy()
    Image.fromarray(pixels).save(tmp_path / "new.png")
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "segment",
                str(tmp_path / "new.png"),
                "--out",
                str(tmp_path / "out"),
                "--network",
                str(run),
            ]
        )
    assert ended.value.code == 0
    written = torch.from_numpy(np.array(Image.open(tmp_path / "out" / "new.png"))) > 127
    assert (written == found.mask).double().mean() > 0.99
    record = json.loads((tmp_path / "out" / "segmentation.json").read_text())[0]
    assert record["margin"] is None

    best = _best_weights(RunFolder(run))
    rows = [r for r in RunFolder(run).read_metrics() if r["kind"] == "validation"]
    score = {row["step"]: row["inpainting"] for row in rows}
    steps = [int(path.name.split("-")[1]) for path in (run / "checkpoints").iterdir()]
    assert len(steps) == 3
    assert best.parent.name == f"step-{max(steps, key=score.get):08d}"
    checkpoint = checkpoints.at_step(run / "checkpoints", int(best.parent.name[5:]))
    weights = load_file(best) | {"head.bias": torch.tensor([-100.0])}
    checkpoints.save(run / "checkpoints", checkpoint.step, weights, checkpoint.state(), keep=3)
    nothing = trained_segmenter(RunFolder(run))(image)
    assert (nothing.flags, nothing.score, int(nothing.mask.sum())) == (("empty",), 0, 0)

    (run / "summary.json").unlink()
    with pytest.raises(RequestError, match="finished"):
        trained_segmenter(RunFolder(run))
    recipe = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text(recipe.replace('name = "foreground"', 'name = "digits"'))
    with pytest.raises(RequestError):
        trained_segmenter(RunFolder(run))


def test_what_cannot_work(folder, tmp_path):
    with pytest.raises(RequestError, match="size"):
        foreground(folder=str(folder), size=4)
    with pytest.raises(RequestError, match="validation"):
        foreground(folder=str(folder), validation=1.0)
    with pytest.raises(RequestError, match="holds no images"):
        foreground(folder=str(tmp_path))
    Image.new("RGB", (40, 40)).save(tmp_path / "plain.png")
    with pytest.raises(WorkError, match="0 of 1 images"):
        foreground(folder=str(tmp_path))
    (tmp_path / "torn.png").write_bytes(b"nothing")
    with pytest.raises(WorkError, match=r"torn\.png"):
        foreground(folder=str(tmp_path))


def test_segmenter_of_no_run_is_refused_by_name(tmp_path) -> None:
    with pytest.raises(RequestError, match=r"^network: got .*; expected the folder of a run"):
        trained_segmenter(RunFolder(tmp_path))
