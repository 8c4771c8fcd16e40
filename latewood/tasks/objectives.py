"""What is minimised and what is measured: classification, language, diffusion, modular sums."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latewood.errors import invalid
from latewood.tasks.data.datasets import Batch

__all__ = ["Classification", "Diffusion", "LanguageModelling", "LastPosition", "Objective"]


@runtime_checkable
class Objective(Protocol):
    """The loss of a task and the measures that it is judged by.

    Randomness (noise, time steps) comes from the generator alone. ``evaluate`` returns means over
    the batch, which a caller averages with the batch sizes as weights; ``summarise`` then adds the
    measures that are no means but functions of means.
    """

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean loss over the batch: a scalar to differentiate."""
        ...

    def evaluate(
        self, model: nn.Module, batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Means over the batch by name, "loss" among them; without gradients."""
        ...

    def summarise(self, means: Mapping[str, float]) -> dict[str, float]:
        """The means over the whole data set, with the measures that derive from them."""
        ...


@dataclass(frozen=True)
class Classification:
    """Cross-entropy and accuracy of a model that maps inputs to logits (n, classes).

    Args:
        label_smoothing: share of the target spread evenly over the classes, in training only.

    Raises:
        RequestError: a share that is not in [0, 1].
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise invalid("label_smoothing", self.label_smoothing, "a share, 0 to 1")

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean cross-entropy."""
        *inputs, labels = batch
        return F.cross_entropy(model(*inputs), labels, label_smoothing=self.label_smoothing)

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Mean cross-entropy "loss" and the share "accuracy" of right answers."""
        *inputs, labels = batch
        return _scores(model(*inputs), labels)

    def summarise(self, means: Mapping[str, float]) -> dict[str, float]:
        """The means as they are."""
        return dict(means)


@dataclass(frozen=True)
class LastPosition:
    """Classification of a sequence by what a model predicts after its last token.

    Loss and accuracy read the last position only. The model maps tokens (n, length) to logits
    (n, length, classes), or to (n, classes) if it computes the last position alone.

    Source: spectra of weights (arXiv 2408.11804), grokking.
    """

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean cross-entropy at the last position."""
        tokens, labels = batch
        return F.cross_entropy(_last(model(tokens)), labels)

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Mean cross-entropy "loss" and the share "accuracy" of right answers."""
        tokens, labels = batch
        return _scores(_last(model(tokens)), labels)

    def summarise(self, means: Mapping[str, float]) -> dict[str, float]:
        """The means as they are."""
        return dict(means)


@dataclass(frozen=True)
class LanguageModelling:
    """Next-character prediction by a model that maps characters (n, length) to logits.

    ``bits_per_character = loss / ln 2``, ``perplexity = exp(loss)``.
    """

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean cross-entropy per character, in nats."""
        characters, following = batch
        logits: Tensor = model(characters)
        return F.cross_entropy(logits.flatten(0, 1), following.flatten())

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Mean cross-entropy "loss", "bits_per_character" and the share "accuracy" of hits."""
        characters, following = batch
        scores = _scores(model(characters).flatten(0, 1), following.flatten())
        return scores | {"bits_per_character": scores["loss"] / math.log(2)}

    def summarise(self, means: Mapping[str, float]) -> dict[str, float]:
        """The means with "perplexity", which is no mean of the batches' perplexities."""
        # Beyond 700 nats a float overflows; a diverged model has no finite perplexity anyway.
        loss = means["loss"]
        return dict(means) | {"perplexity": math.exp(loss) if loss < 700 else math.inf}


class Diffusion:
    """Denoising diffusion: the mean squared error of the predicted noise.

    ``x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise``, ``abar_t = prod_{s <= t} (1 - beta_s)``,
    ``beta = sigmoid(linspace(-6, 6, steps)) (last - first) + first``. The model maps
    (images, time steps as int64 of shape (n,), 0 to steps - 1) to noise of the images' shape.

    Args:
        steps: number of time steps.
        first: the smallest noise variance that the schedule tends to.
        last: the largest noise variance that the schedule tends to.

    Raises:
        RequestError: fewer than one step, or not 0 < first <= last < 1.

    Source: DDPM (arXiv 2006.11239); schedule of arXiv 2408.11804, image generation.
    """

    def __init__(self, *, steps: int = 1000, first: float = 1e-5, last: float = 5e-3) -> None:
        if steps < 1:
            raise invalid("steps", steps, "1 or more")
        if not 0 < first <= last < 1:
            raise invalid("first, last", (first, last), "0 < first <= last < 1")
        self.steps = steps
        ramp = torch.sigmoid(torch.linspace(-6, 6, steps, dtype=torch.float64))
        self.betas = ramp * (last - first) + first
        signal_power = torch.cumprod(1 - self.betas, dim=0)
        self._signal = signal_power.sqrt().float()
        self._noise = (1 - signal_power).sqrt().float()

    def diffuse(self, images: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The images (n, ...) as they are after ``times`` (int64, n, from 0) of the noising."""
        shape = (-1,) + (1,) * (images.dim() - 1)
        signal_scale = self._signal.to(images.device)[times].view(shape)
        noise_scale = self._noise.to(images.device)[times].view(shape)
        return signal_scale * images + noise_scale * noise

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean squared error of the noise at one random time per image."""
        images = batch[0]
        # Drawn where the generator lives, so that every device sees the same numbers.
        device = generator.device
        times = torch.randint(self.steps, (len(images),), generator=generator, device=device)
        noise = torch.randn(images.shape, generator=generator, device=device)
        times, noise = times.to(images.device), noise.to(images.device)
        return F.mse_loss(model(self.diffuse(images, noise, times), times), noise)

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Mean squared error "loss" of the noise at one random time per image."""
        return {"loss": self.loss(model, batch, generator)}

    def summarise(self, means: Mapping[str, float]) -> dict[str, float]:
        """The means as they are."""
        return dict(means)


def _scores(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    hits = logits.argmax(dim=-1) == labels
    return {"loss": F.cross_entropy(logits.float(), labels), "accuracy": hits.float().mean()}


def _last(logits: Tensor) -> Tensor:
    return logits[:, -1] if logits.dim() == 3 else logits
