"""Runs of a model that can be compared after its shapes have changed: one precision, one noise."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from latewood.core.coupling.trace import outputs_of, run_model
from latewood.core.coupling.traced_call import tensors_in
from latewood.core.double_precision import in_float64
from latewood.core.modes import attributes_restored, buffers_restored

__all__ = ["DOUBLE_OVER_SINGLE", "ModelOutputs", "ModelRuns"]

DOUBLE_OVER_SINGLE: Final = 1e-7
"""How much finer the grid of float64 is; errors in float32 are judged by it."""
_NUDGE: Final = 2.0**-50
"""By how much inputs are changed to see how rounding is magnified: four units in the last place."""


@dataclass(frozen=True)
class ModelOutputs:
    """What a model computed in one mode.

    Args:
        tensors: the outputs that are not counts or indices.
        drawn: name and shape of the random numbers that were drawn, in order.
    """

    tensors: list[Tensor]
    drawn: list[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class ModelRuns:
    """Runs of one model on one example, without dropout, each with the same noise.

    Args:
        model: that runs.
        inputs: what it is called with.
        double: whether it computes in float64.
        modes: in which it runs: False for evaluation, True for training.
    """

    model: nn.Module
    inputs: Any
    double: bool
    modes: tuple[bool, ...]

    @classmethod
    def of(cls, model: nn.Module, inputs: Any) -> ModelRuns:
        """Finds out in which precision and modes a model runs."""
        runs = cls(model, inputs, True, (False,))
        try:
            # Some masks overflow in float64.
            fits = all(bool(output.isfinite().all()) for output in runs._run(False).tensors)
        except Exception:
            fits = False
        if not fits:
            runs = cls(model, inputs, False, (False,))
        try:
            runs._run(True)
        except Exception:
            # A batch too small for its statistics, losses that want targets: not this mode.
            return runs
        return cls(model, inputs, runs.double, (False, True))

    def outputs(self) -> list[ModelOutputs]:
        """What the model computes, mode by mode."""
        return [self._run(training) for training in self.modes]

    def difference(self, exact: list[ModelOutputs], *, training_scale: float = 1.0) -> float:
        """The largest change of outputs, relative to the largest of them.

        Args:
            exact: what the model computed before, mode by mode.
            training_scale: factor on changes in training mode.
        """
        errors = [0.0]
        for training, before in zip(self.modes, exact, strict=True):
            after = self._run(training)
            if training and before.drawn != after.drawn:
                continue
            pairs = list(zip(after.tensors, before.tensors, strict=True))
            largest = max((float(one.abs().max()) for _, one in pairs if one.numel()), default=0.0)
            error = max(
                (float((one - two).abs().max()) for one, two in pairs if two.numel()), default=0.0
            )
            errors.append(error / (largest or 1.0) * (training_scale if training else 1.0))
        error = max(errors, key=lambda value: value if value == value else float("inf"))
        return error * (1.0 if self.double else DOUBLE_OVER_SINGLE)

    def magnification(self, exact: list[ModelOutputs]) -> float:
        """By how much training mode magnifies rounding: the change of outputs over that of inputs.

        Statistics of few values that are nearly alike magnify it layer by layer. 0 where the model
        does not run in training mode, or its inputs are not real numbers.

        Args:
            exact: what ``outputs`` returned.
        """
        if True not in self.modes or not self.double:
            return 0.0
        nudged = replace(self, inputs=_nudged(_double(self.inputs)), modes=(True,))
        return nudged.difference([exact[self.modes.index(True)]]) / _NUDGE

    def _run(self, training: bool) -> ModelOutputs:
        noise = _Noise()
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(attributes_restored(self.model))
            stack.enter_context(buffers_restored(self.model))
            stack.enter_context(_generators_seeded())
            _enter_mode(self.model, training)
            if self.double:
                stack.enter_context(in_float64())
            stack.enter_context(noise)
            inputs = _double(self.inputs) if self.double else self.inputs
            outputs = outputs_of(run_model(self.model, inputs))
        floating = [output for output in outputs if output.is_floating_point()]
        return ModelOutputs(floating, noise.drawn)


@contextmanager
def _generators_seeded() -> Iterator[None]:
    """All generators start alike, for a while; some models mask spans by Python's and numpy's."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = [*range(torch.cuda.device_count())] if torch.cuda.is_initialized() else []
    try:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        with torch.random.fork_rng(devices=devices):
            # torch.manual_seed would note a call for devices that nobody has asked for yet.
            torch.default_generator.manual_seed(0)
            if devices:
                torch.cuda.manual_seed_all(0)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


def _enter_mode(model: nn.Module, training: bool) -> None:
    """A mode without dropout."""
    model.train(training)
    for module in model.modules():
        # These hand its probability to one large operation.
        if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
            module.dropout = 0.0


class _Noise(TorchFunctionMode):
    """Leaves dropout out, since its masks differ between copies, and notes what is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[tuple[str, tuple[int, ...]]] = []

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(function, "__name__", "").strip("_")
        named = dict(kwargs or {})
        if "dropout" in name:
            return args[0] if args else named["input"]
        if name == "scaled_dot_product_attention":
            args, named = args[:4], {**_beyond(args), **named, "dropout_p": 0.0}
        output = function(*args, **named)
        if name in _RANDOM:
            self.drawn += [(name, tuple(tensor.shape)) for tensor in tensors_in(output)]
        return output


def _beyond(args: tuple[Any, ...]) -> dict[str, Any]:
    """Arguments of an attention that were given by position behind its mask."""
    names = ("dropout_p", "is_causal", "scale", "enable_gqa")
    return dict(itertools.islice(zip(names, args[4:], strict=False), len(names)))


_RANDOM: Final = frozenset(
    """
    bernoulli exponential gumbel_softmax multinomial normal poisson rand rand_like randint randn
    randn_like randperm rrelu uniform
    """.split()  # noqa: SIM905
)


def _nudged(tree: Any) -> Any:
    """Inputs whose real numbers are changed in the last places of the largest, each differently.

    All by one share is what norms do not notice; examples are often nothing but zeros.
    """
    if isinstance(tree, Tensor) and tree.is_floating_point():
        generator = torch.Generator().manual_seed(0)
        shares = torch.rand(tree.shape, generator=generator, dtype=torch.float64).mul(2.0).sub(1.0)
        largest = float(tree.abs().max()) if tree.numel() else 0.0
        return tree + _NUDGE * (largest or 1.0) * shares.to(tree.device)
    if isinstance(tree, list):
        return [_nudged(item) for item in tree]
    if isinstance(tree, dict):
        return {name: _nudged(item) for name, item in tree.items()}
    return tree


def _double(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.double() if tree.is_floating_point() else tree
    if isinstance(tree, (tuple, list)):
        return [_double(item) for item in tree]
    if isinstance(tree, dict):
        return {name: _double(item) for name, item in tree.items()}
    return tree
