"""Losses and measures against their formulas."""

import math

import pytest
import torch
from torch import nn

from latewood.errors import RequestError
from latewood.tasks import (
    Classification,
    Diffusion,
    LanguageModelling,
    LastPosition,
    Objective,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Fixed(nn.Module):
    """Answers every input with the same logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, inputs):
        return self.logits


def nats(logits, labels):
    shares = logits.double().exp()
    shares = shares / shares.sum(dim=-1, keepdim=True)
    return float(-torch.stack([shares[k, y].log() for k, y in enumerate(labels)]).mean())


@pytest.mark.parametrize(
    "objective", [Classification(), LastPosition(), LanguageModelling(), Diffusion(steps=2)]
)
def test_each_is_an_objective(objective):
    assert isinstance(objective, Objective)


def test_classification():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.4, 0.3], [0.0, 0.0, 3.0]])
    labels = torch.tensor([0, 1, 2])
    model, batch = Fixed(logits), (torch.zeros(3, 1), labels)
    loss = Classification().loss(model, batch, generator())
    loss.backward()
    assert loss.item() == pytest.approx(nats(logits, labels), rel=1e-6)
    scores = Classification().evaluate(model, batch, generator())
    assert set(scores) == {"loss", "accuracy"}
    assert float(scores["accuracy"]) == pytest.approx(2 / 3)
    assert not scores["loss"].requires_grad
    assert Classification().summarise({"loss": 1.0}) == {"loss": 1.0}


def test_label_smoothing_is_in_the_loss_and_not_in_the_scores():
    logits, labels = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
    model, batch = Fixed(logits), (torch.zeros(1), labels)
    spread = sum(nats(logits, [k]) for k in range(3)) / 3
    smooth = Classification(label_smoothing=0.3)
    expected = 0.7 * nats(logits, labels) + 0.3 * spread
    assert smooth.loss(model, batch, generator()).item() == pytest.approx(expected, rel=1e-6)
    scored = float(smooth.evaluate(model, batch, generator())["loss"])
    assert scored == pytest.approx(nats(logits, labels), rel=1e-6)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_label_smoothing_out_of_range(share):
    with pytest.raises(RequestError, match="label_smoothing: got"):
        Classification(label_smoothing=share)


def test_last_position_reads_nothing_else():
    logits = torch.randn(4, 3, 5, generator=generator())
    labels = torch.tensor([0, 1, 2, 3])
    model, batch = Fixed(logits), (torch.zeros(4, 3, dtype=torch.int64), labels)
    loss = LastPosition().loss(model, batch, generator())
    loss.backward()
    assert loss.item() == pytest.approx(nats(logits[:, -1], labels), rel=1e-6)
    assert not model.logits.grad[:, :-1].any()
    assert model.logits.grad[:, -1].any()
    # A model that only computes the last position is scored alike.
    both = [LastPosition().evaluate(m, batch, generator()) for m in (model, Fixed(logits[:, -1]))]
    assert both[0] == both[1]
    hits = (logits[:, -1].argmax(dim=1) == labels).float().mean()
    assert float(both[0]["accuracy"]) == float(hits)


def test_language_modelling():
    logits = torch.randn(2, 3, 5, generator=generator())
    following = torch.tensor([[0, 1, 2], [3, 4, 0]])
    model, batch = Fixed(logits), (torch.zeros(2, 3, dtype=torch.int64), following)
    objective = LanguageModelling()
    expected = nats(logits.flatten(0, 1), following.flatten())
    assert objective.loss(model, batch, generator()).item() == pytest.approx(expected, rel=1e-6)
    scores = objective.evaluate(model, batch, generator())
    assert float(scores["bits_per_character"]) == pytest.approx(expected / math.log(2), rel=1e-6)
    assert "perplexity" not in scores


def test_perplexity_comes_from_the_mean_loss():
    found = LanguageModelling().summarise({"loss": math.log(10), "accuracy": 0.5})
    assert found == {"loss": math.log(10), "accuracy": 0.5, "perplexity": pytest.approx(10)}
    assert LanguageModelling().summarise({"loss": 1e6})["perplexity"] == math.inf


def test_a_uniform_guess_costs_the_logarithm_of_the_vocabulary():
    batch = (torch.zeros(1, 4), torch.tensor([[0, 3, 7, 1]]))
    scores = LanguageModelling().evaluate(Fixed(torch.zeros(1, 4, 8)), batch, generator())
    assert float(scores["bits_per_character"]) == pytest.approx(3.0)


def test_noise_schedule():
    betas = Diffusion().betas
    assert len(betas) == 1000
    for k in (0, 1, 499, 998, 999):
        at = -6 + 12 * k / 999
        assert float(betas[k]) == pytest.approx(
            (5e-3 - 1e-5) / (1 + math.exp(-at)) + 1e-5, rel=1e-12
        )
    assert float(betas[0]) == pytest.approx(2.2338e-05, rel=1e-3)


def test_diffused_images_keep_unit_variance():
    objective = Diffusion()
    noise = torch.randn(3, 1, 64, 64, generator=generator(0))
    images = torch.randn(3, 1, 64, 64, generator=generator(1))
    times = torch.tensor([0, 500, 999])
    found = objective.diffuse(images, noise, times)
    for k, time in enumerate(times.tolist()):
        kept = float(torch.prod(1 - objective.betas[: time + 1]))
        expected = math.sqrt(kept) * images[k] + math.sqrt(1 - kept) * noise[k]
        torch.testing.assert_close(found[k], expected)
        assert float(found[k].var()) == pytest.approx(1, abs=0.05)


class Knowing(nn.Module):
    """Knows the clean images and so recovers the noise, plus an error."""

    def __init__(self, objective, images, error):
        super().__init__()
        self.objective, self.images, self.error = objective, images, error
        self.times = []

    def forward(self, noisy, times):
        assert times.dtype == torch.int64
        self.times += times.tolist()
        kept = torch.cumprod(1 - self.objective.betas, 0)[times].view(-1, 1, 1, 1)
        return ((noisy - kept.sqrt() * self.images) / (1 - kept).sqrt()).float() + self.error


@pytest.mark.parametrize("error", [0.0, 0.5])
def test_diffusion_loss_is_the_squared_error_of_the_noise(error):
    objective = Diffusion(steps=10)
    images = torch.randn(200, 1, 4, 4, generator=generator(1))
    model = Knowing(objective, images, error)
    batch = (images, torch.zeros(200))
    assert objective.loss(model, batch, generator()).item() == pytest.approx(error**2, abs=1e-3)
    scored = objective.evaluate(model, batch, generator())
    assert float(scored["loss"]) == pytest.approx(error**2, abs=1e-3)
    assert set(model.times) == set(range(10))
    assert model.times[:200] == model.times[200:]  # one generator state, one draw


def test_diffusion_draws_from_the_generator_alone():
    objective = Diffusion(steps=10)
    images = torch.randn(4, 1, 2, 2)
    before = torch.random.get_rng_state()
    losses = [
        float(objective.loss(Knowing(objective, images, images), (images,), generator(seed)))
        for seed in (3, 3)
    ]
    assert losses[0] == losses[1]
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("named", "arguments"),
    [("steps", {"steps": 0}), ("first, last", {"first": 0.0}), ("first, last", {"last": 1.0})],
)
def test_bad_schedules(named, arguments):
    with pytest.raises(RequestError, match=f"^{named}: got"):
        Diffusion(**arguments)
