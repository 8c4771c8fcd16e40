from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from latewood.errors import RequestError
from latewood.kernels.inpainting import evaluate
from latewood.segmentation import Settings
from latewood.tasks import Objective
from latewood.tasks.foreground_objective import Dihedral, Foreground


class Red(nn.Module):
    """Foreground where the first channel is positive."""

    def forward(self, x):
        return 4 * x[:, :1]


def batch():
    images = -torch.ones(2, 3, 4, 4)
    images[0, 0, :, :2] = 1
    labels = torch.zeros(2, 4, 4, dtype=torch.bool)
    labels[0, :2, :2] = True
    return images, labels


def test_loss_and_scores_by_hand():
    objective, generator = Foreground(), torch.Generator()
    assert isinstance(objective, Objective)
    right, wrong = math.log1p(math.exp(-4)), math.log1p(math.exp(4))
    expected = (28 * right + 4 * wrong) / 32
    assert objective.loss(Red(), batch(), generator).item() == pytest.approx(expected, rel=1e-5)
    scores = objective.evaluate(Red(), batch(), generator)
    assert scores["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert scores["accuracy"].item() == pytest.approx(28 / 32)
    # Half of the first mask is right; the second one and its label are both empty.
    assert scores["iou"].item() == pytest.approx((0.5 + 1) / 2)
    assert scores["agreement"].item() == 1
    images = batch()[0][:1]
    settings = Settings(scaled=True).inpainting(4, 4, 3)
    error = evaluate(images, images[:, 0] > 0, settings).inpainting.item()
    # The second mask has one region only, which predicts nothing.
    assert error > 0 and scores["inpainting"].item() == pytest.approx(error / 2)
    means = {name: value.item() for name, value in scores.items()}
    assert objective.summarise(means) == means


def test_agreement_sees_what_a_mirror_changes():
    class Left(nn.Module):
        def forward(self, x):
            sides = torch.tensor([1.0, 1.0, 1.0, -1.0])
            return sides.expand(len(x), 1, 4, 4)

    scores = Foreground().evaluate(Left(), batch(), torch.Generator())
    assert scores["agreement"].item() == pytest.approx(2 / 4)


def test_moves_keep_images_and_masks_together_and_reach_all_eight():
    generator = torch.Generator().manual_seed(0)
    plane = torch.arange(16.0).view(4, 4)
    images, masks = plane.expand(200, 3, 4, 4), plane.expand(200, 4, 4)
    moved, labels = Dihedral(0.0)((images, masks), generator)
    assert torch.equal(moved, labels[:, None].expand(-1, 3, -1, -1))
    seen = {tuple(label.flatten().tolist()) for label in labels}
    expected = {
        tuple(torch.rot90(side, k).flatten().tolist())
        for side in (plane, plane.T)
        for k in range(4)
    }
    assert seen == expected


def test_shifts_are_of_whole_channels():
    images, masks = torch.zeros(500, 3, 4, 4), torch.zeros(500, 4, 4, dtype=torch.bool)
    moved, labels = Dihedral(0.1)((images, masks), torch.Generator().manual_seed(0))
    assert not labels.any()
    assert moved.std((2, 3)).max().item() < 1e-6
    assert moved[:, :, 0, 0].std().item() == pytest.approx(0.1, rel=0.1)
    again, _ = Dihedral(0.1)((images, masks), torch.Generator().manual_seed(0))
    assert torch.equal(moved, again)
    with pytest.raises(RequestError, match="shift"):
        Dihedral(-1.0)
