"""A probe that watches the tangent kernel move while a model trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core import Observation
from latewood.core.modes import buffers_restored, evaluated
from latewood.errors import WorkError, invalid, require_count
from latewood.regimes.kernel_change import kernel_distance, target_alignment
from latewood.regimes.kernels.example_gradients import Inputs, examples_of, part_of
from latewood.regimes.kernels.tangent_kernel import MEMORY, tangent_kernel

__all__ = ["KernelProbe"]

_START: Final = "tangent_kernel_start.safetensors"


class KernelProbe:
    """Measures how far the tangent kernel of a model has moved since the start of the training.

    Each observation has, of the trace kernel on some fixed examples,

    - ``kernel_relative`` and ``kernel_cosine``: relK and cosd, see ``kernel_distance``;
    - ``kernel_trace``: mean of its diagonal;
    - ``kernel_rank``: (sum of eigenvalues)^2 / sum of their squares;
    - ``kernel_alignment``: with the targets, if there are any, see ``target_alignment``.

    The model is looked at in evaluation mode. Where outputs are not (N, C), ``forward`` says how to
    get there; a recipe calls it "tangent_kernel" and takes the first training samples. With a
    folder, the kernel at the start is kept there for a run that goes on from a checkpoint; without
    one such a run measures from where it goes on.

    Args:
        model: the model to observe.
        inputs: examples, or more of them than are used.
        targets: (N,) integer classes or real, or (N, C); no alignment if None.
        every: steps between observations.
        examples: how many of the first examples are used.
        folder: where the kernel at the start is kept.
        total_steps: last step of the training, which is always observed.
        memory: bytes, as in ``tangent_kernel``.
        forward: how to run the model on inputs.

    Raises:
        RequestError: a number out of range, or targets that do not fit the inputs.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        targets: Tensor | None = None,
        *,
        every: int = 100,
        examples: int = 32,
        folder: Path | None = None,
        total_steps: int | None = None,
        memory: int = MEMORY,
        forward: Callable[[nn.Module, Any], Tensor] | None = None,
    ) -> None:
        require_count("every", every)
        require_count("examples", examples)
        if isinstance(memory, bool) or not isinstance(memory, int) or memory < 2**20:
            raise invalid("memory", memory, "a number of bytes of at least 2 ** 20")
        count = examples_of(inputs)
        if targets is not None and len(targets) != count:
            raise invalid("targets", tuple(targets.shape), f"one for each of {count} examples")
        self.model, self.every, self.memory, self.forward = model, every, memory, forward
        self.inputs = part_of(inputs, slice(0, examples))
        self.targets = None if targets is None else _columns(targets[:examples])
        self.total_steps = total_steps
        self._path = None if folder is None else Path(folder) / _START
        self._start: Tensor | None = None

    @property
    def every_process(self) -> bool:
        """False: all processes hold the same weights."""
        return False

    def observe(self, step: int) -> list[Observation]:
        """Looks after ``step`` updates, where that is due.

        Args:
            step: updates so far.

        Returns:
            One observation, or [].

        Raises:
            RequestError: the model has no tangent kernel, see there.
            WorkError: the kernel at the start could not be kept.
        """
        if step % self.every and step != self.total_steps:
            return []
        with evaluated(self.model), buffers_restored(self.model):
            kernel = tangent_kernel(
                self.model, self.inputs, mode="trace", memory=self.memory, forward=self.forward
            ).double()
        start = self._started(kernel, step)
        distance = kernel_distance(start, kernel)
        values = {
            "kernel_relative": float(distance.relative),
            "kernel_cosine": float(distance.cosine),
            "kernel_trace": float(kernel.diagonal().mean()),
            "kernel_rank": float(kernel.trace() ** 2 / kernel.square().sum()),
        }
        if self.targets is not None:
            values["kernel_alignment"] = float(target_alignment(kernel, self.targets.to(kernel)))
        return [Observation(step, values)]

    def finish(self) -> list[Observation]:
        """Nothing is ever under way."""
        return []

    def _started(self, kernel: Tensor, step: int) -> Tensor:
        from safetensors.torch import load_file, save_file

        if self._start is None and step > 0 and self._path is not None and self._path.is_file():
            kept = load_file(self._path)["kernel"].to(kernel)
            if kept.shape == kernel.shape:
                self._start = kept
        if self._start is None:
            self._start = kernel
            if self._path is not None and step == 0:
                try:
                    self._path.parent.mkdir(parents=True, exist_ok=True)
                    save_file({"kernel": kernel.cpu().contiguous()}, self._path)
                except OSError as error:
                    raise WorkError(f"{self._path}: cannot be written: {error}") from error
        return self._start


def _columns(targets: Tensor) -> Tensor:
    if not targets.is_floating_point() and targets.ndim == 1:
        return F.one_hot(targets.long() - targets.min()).double()
    return targets.double().flatten(1) if targets.ndim > 1 else targets.double()[:, None]
