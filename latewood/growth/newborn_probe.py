"""What becomes of newborn units: gradients and updates against the old ones', and copies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core import Observation
from latewood.core.coupling.trace import layer_tensors
from latewood.core.selection import stored_tensor
from latewood.errors import invalid
from latewood.growth.stages import Stages

__all__ = ["NewbornProbe"]


class NewbornProbe:
    """Watches the entries of the latest growth event beside all older ones.

    A unit that hardly gets a gradient was born in vain; two copies that stay together are one unit.
    Each observation has, over all grown weights of two or more axes together,

    - ``newborn_gradient_ratio``: root mean square of the newborn entries' gradients over that of
      the old ones', where there are gradients;
    - ``newborn_update_ratio``: the same of the change since the last observation;
    - ``newborn_copy_similarity``: mean cosine between the weights of the two copies of a pair, 1
      while they are one unit; for what makes the channels, where their number is even.

    Before the first event it has nothing to say, and nothing of changes in its first observation,
    as after a run goes on from a checkpoint. A recipe calls it "newborn", beside a method "growth".

    Args:
        model: the model that grows.
        stages: of its channels (``Growth.stages``).
        every: steps between observations.

    Raises:
        RequestError: ``every`` is no positive integer, or there are no stages.
    """

    def __init__(self, model: nn.Module, stages: Stages, *, every: int = 10) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise invalid("every", every, "an integer of at least 1")
        if not isinstance(stages, Stages):
            raise invalid("stages", stages, "those of a method that grows the model: add 'growth'")
        self.model, self.stages, self.every = model, stages, every
        self._before: dict[str, Tensor] = {}

    @property
    def every_process(self) -> bool:
        """False: all processes hold the same weights."""
        return False

    @torch.no_grad()
    def observe(self, step: int) -> list[Observation]:
        """Looks after ``step`` updates, where that is due.

        Args:
            step: updates so far.

        Returns:
            One observation, or [].
        """
        if step % self.every or not self.stages.tensors:
            return []
        gradients, updates = _Squares(), _Squares()
        similarities: list[float] = []
        before, self._before = self._before, {}
        for name, weight, vectors in self._grown():
            newborn = _newborn(weight, vectors, self.stages.latest)
            if weight.grad is not None and weight.grad.layout is torch.strided:
                gradients.add(weight.grad, newborn)
            if name in before and before[name].shape == weight.shape:
                updates.add(weight - before[name], newborn)
            self._before[name] = weight.detach().clone()
            if 0 in vectors:
                similarities += _similarities(weight, vectors[0], self.stages.latest)
        values = {
            "newborn_gradient_ratio": gradients.ratio(),
            "newborn_update_ratio": updates.ratio(),
            "newborn_copy_similarity": _mean(similarities),
        }
        known = {name: value for name, value in values.items() if value is not None}
        return [Observation(step, known)] if known else []

    def finish(self) -> list[Observation]:
        """Nothing: it works in step with the training."""
        return []

    def _grown(self) -> Iterator[tuple[str, Tensor, dict[int, Tensor]]]:
        places = dict(layer_tensors(self.model))
        for name in self.stages.tensors:
            if name in places:
                weight, vectors = stored_tensor(*places[name]), self.stages.of(name)
                fits = all(weight.shape[axis] == len(born) for axis, born in vectors.items())
                if isinstance(weight, nn.Parameter) and weight.ndim > 1 and fits:
                    yield name, weight, vectors


class _Squares:
    """Mean squares of newborn and old entries, over several tensors."""

    def __init__(self) -> None:
        self._sums, self._counts = [0.0, 0.0], [0, 0]

    def add(self, tensor: Tensor, newborn: Tensor) -> None:
        squares = tensor.abs().double().square()
        total, young = float(squares.sum()), float((squares * newborn).sum())
        count = int(newborn.expand_as(squares).sum())
        self._sums = [self._sums[0] + young, self._sums[1] + total - young]
        self._counts = [self._counts[0] + count, self._counts[1] + squares.numel() - count]

    def ratio(self) -> float | None:
        """Root mean square of the newborn over that of the old; None where it does not exist."""
        if not all(self._counts) or self._sums[1] <= 0.0:
            return None
        young, old = (total / n for total, n in zip(self._sums, self._counts, strict=True))
        return math.sqrt(young / old)


def _newborn(weight: Tensor, vectors: dict[int, Tensor], latest: int) -> Tensor:
    """Whether an entry is of the latest event, in a shape that broadcasts."""
    newborn = torch.zeros([1] * weight.ndim, dtype=torch.bool)
    for axis, born in vectors.items():
        shape = [-1 if dim == axis else 1 for dim in range(weight.ndim)]
        newborn = newborn | (born == latest).view(shape)
    return newborn.to(weight.device)


def _similarities(weight: Tensor, born: Tensor, latest: int) -> list[float]:
    """Cosines between the halves of every run of newborn rows: copies come as 1 .. k, 1 .. k."""
    found: list[float] = []
    position = 0
    for stage, members in itertools.groupby(born.tolist()):
        count = len(list(members))
        if stage == latest and count % 2 == 0:
            rows = weight[position : position + count].flatten(1).double()
            if not rows.is_complex():
                one, two = rows.chunk(2)
                norms = one.norm(dim=1) * two.norm(dim=1)
                found += F.cosine_similarity(one, two)[norms > 0].tolist()
        position += count
    return found


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
