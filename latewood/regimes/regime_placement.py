"""Where a model's training stands between kernel and rich, predicted or measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core.copies import copy_of
from latewood.core.modes import evaluated
from latewood.errors import RequestError, WorkError, invalid
from latewood.regimes.kernel_change import kernel_distance, target_alignment
from latewood.regimes.kernels.example_gradients import ExampleGradients, Inputs, examples_of
from latewood.regimes.kernels.tangent_kernel import MEMORY, layer_kernels, tangent_kernel
from latewood.regimes.potentials import numbers

__all__ = ["LayerChange", "Regime", "Standing", "regime", "verdict"]

Verdict = Literal["kernel", "edge", "rich"]

KERNEL_COSINE: Final = 0.01
KERNEL_RELATIVE: Final = 0.1
RICH_COSINE: Final = 0.1
RICH_RELATIVE: Final = 1.0
ALIGNED: Final = 0.01
"""Smallest change of the alignment with the targets that counts as one: our choice."""
_RIDGE: Final = 1e-8
_FEWEST: Final = 32


def verdict(relative: float, cosine: float) -> Verdict:
    """What the change of a kernel says: the thresholds are this package's choice, not a paper's.

    "kernel" if cosd < 0.01 and relK < 0.1; "rich" if cosd > 0.1 or relK > 1; else "edge".

    Args:
        relative: relK, see ``kernel_distance``.
        cosine: cosd.

    Raises:
        RequestError: a distance is negative or NaN.
    """
    if not (relative >= 0 and cosine >= 0):
        raise invalid("relative, cosine", (relative, cosine), "two distances, 0 or more")
    if cosine > RICH_COSINE or relative > RICH_RELATIVE:
        return "rich"
    return "kernel" if cosine < KERNEL_COSINE and relative < KERNEL_RELATIVE else "edge"


@dataclass(frozen=True)
class Standing:
    """How far the kernel moves at one output scale.

    Args:
        alpha: output scale; 1 is the model as it is.
        relative: relK.
        cosine: cosd.
        alignment: of the moved kernel with the targets.
        verdict: "kernel", "edge" or "rich": how strongly features are learned.
    """

    alpha: float
    relative: float
    cosine: float
    alignment: float
    verdict: Verdict


@dataclass(frozen=True)
class LayerChange:
    """What one layer has of the kernel and of its change, at output scale 1.

    Args:
        layer: name of the module.
        share: of the trace of the kernel at the start.
        change: of the change: its part of <dK, dK> / \\|dK\\|^2, which sums to 1 over layers.
        relative: relK of the layer's own kernel.
        cosine: cosd of it.
        lazy: whether these two are those of the kernel regime.
    """

    layer: str
    share: float
    change: float
    relative: float
    cosine: float
    lazy: bool


@dataclass(frozen=True)
class Regime:
    """Where a model stands.

    Args:
        here: the standing at output scale 1: measured if a trained model was given.
        measured: whether it was, or the change is predicted from one step.
        sweep: standings at the scales asked for, predicted.
        layers: what each layer has of it.
        alignment: of the kernel with the targets at the start.
        quality: whether the change is towards the targets: "towards", "away" or "neither".
        eigenvalues: of the kernel at the start, largest first, float64.
        examples: how many it was measured on.
        warnings: what makes the figures less sure.
    """

    here: Standing
    measured: bool
    sweep: tuple[Standing, ...]
    layers: tuple[LayerChange, ...]
    alignment: float
    quality: Literal["towards", "away", "neither"]
    eigenvalues: Tensor
    examples: int
    warnings: tuple[str, ...]

    @property
    def effective_rank(self) -> float:
        """Of the kernel at the start: (sum of eigenvalues)^2 / sum of their squares."""
        return float(self.eigenvalues.sum() ** 2 / self.eigenvalues.square().sum())

    def crossing(self, cosine: float = KERNEL_COSINE) -> float | None:
        """The output scale at which the predicted cosd is this, between those of the sweep.

        Args:
            cosine: above 0.

        Returns:
            The scale, by a line through logarithms; None if the sweep does not cross it.
        """
        points = sorted(self.sweep, key=lambda standing: standing.alpha)
        for low, high in itertools.pairwise(points):
            a, b = low.cosine, high.cosine
            if min(a, b) > 0 and (a - cosine) * (b - cosine) <= 0 and a != b:
                part = math.log(a / cosine) / math.log(a / b)
                return low.alpha * math.pow(high.alpha / low.alpha, part)
        return None

    def sentence(self) -> str:
        """One line for people."""
        way = "measured" if self.measured else "predicted"
        known = self.crossing()
        text = (
            f"{self.here.verdict} at output scale 1 ({way}: relK {self.here.relative:.3g}, cosd "
            f"{self.here.cosine:.3g} on {self.examples} examples); the kernel moves "
            f"{self.quality.replace('neither', 'neither towards nor away')}"
            f"{' from' if self.quality != 'towards' else ''} the targets (alignment "
            f"{self.alignment:.3g} to {self.here.alignment:.3g})"
        )
        if known is not None:
            text += f"; the kernel regime begins at output scale {known:.3g}"
        return text


def regime(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    *,
    trained: nn.Module | None = None,
    alphas: Sequence[float] = (),
    ridge: float = _RIDGE,
    dtype: torch.dtype | None = torch.float64,
    memory: int = MEMORY,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
) -> Regime:
    r"""Where the training of a model on some data stands between kernel and rich.

    Without ``trained`` the change of the kernel is predicted from the smallest step of the tangent
    model that fits the targets,

    .. math:: \delta = \tfrac{1}{\alpha} J^\top (J J^\top + \rho)^{-1} (y - f(w_0)),

    at whose end the kernel is computed anew: one kernel a scale and no training. The scale is that
    of the output, see ``Scaled``; 1 is the model as it is. The model is looked at in evaluation
    mode and not changed.

    Args:
        model: gives (N, C), at its initial weights.
        inputs: N examples of its training data; 32 to 200 are a good number.
        targets: (N,) or (N, C) real, or (N,) integer classes, of which one-hot vectors are made.
        trained: the same model after training: then the change is measured.
        alphas: output scales to predict besides.
        ridge: rho in units of the mean of the diagonal of J J^T.
        dtype: in which to compute; float64, since small changes drown in float32.
        memory: bytes, as in ``tangent_kernel``.
        forward: how to run the model on inputs.

    Returns:
        Standings, layers, alignment and spectrum.

    Raises:
        RequestError: targets that do not fit, a value out of range, a trained model with other
            parameters, or what ``tangent_kernel`` refuses.
        WorkError: the outputs or the kernel are not finite, or the kernel is zero.

    Source: the prediction and the verdict are ours; relK, cosd and alignment are as in
    ``kernel_distance`` and ``target_alignment``.
    """
    scales: list[float] = []
    if len(alphas):
        scales = numbers("alphas", list(alphas), least=0, open_end=True).tolist()
    rho = float(numbers("ridge", ridge, least=0))
    count = examples_of(inputs)
    options: dict[str, Any] = {"dtype": dtype, "memory": memory, "forward": forward}
    with evaluated(model):
        start_layers = _by_layer(layer_kernels(model, inputs, **options))
        step = None
        wanted = targets.double()
        if trained is None or scales:
            gradients = ExampleGradients(model, inputs, mode="full", dtype=dtype, forward=forward)
            outputs = gradients.outputs(inputs)
            wanted = _as_outputs(targets, outputs)
            step = _tangent_step(model, inputs, wanted - outputs, gradients, rho, options)
        elif not targets.is_floating_point() and targets.ndim == 1:
            wanted = F.one_hot(targets.long()).double()
        start = _finite_sum(start_layers)
        moved: dict[float, dict[str, Tensor]] = {}
        for alpha in [*scales, *([1.0] if trained is None else [])]:
            if alpha not in moved and step is not None:
                other = _stepped(model, step, 1 / alpha)
                moved[alpha] = _by_layer(layer_kernels(other, inputs, **options))
    if trained is not None:
        _require_same(model, trained)
        with evaluated(trained):
            end_layers = _by_layer(layer_kernels(trained, inputs, **options))
    else:
        end_layers = moved[1.0]
    alignment = float(target_alignment(start, wanted))
    here = _standing(1.0, start, _finite_sum(end_layers), wanted)
    shift = here.alignment - alignment
    notes = []
    if count < _FEWEST:
        notes.append(f"{count} examples: cosd is blind on few; use {_FEWEST} or more")
    return Regime(
        here=here,
        measured=trained is not None,
        sweep=tuple(_standing(a, start, _finite_sum(moved[a]), wanted) for a in scales),
        layers=_layer_changes(start_layers, end_layers),
        alignment=alignment,
        quality="neither" if abs(shift) < ALIGNED else "towards" if shift > 0 else "away",
        eigenvalues=torch.linalg.eigvalsh(start).flip(0),
        examples=count,
        warnings=tuple(notes),
    )


def _as_outputs(targets: Tensor, outputs: Tensor) -> Tensor:
    """The targets as (N, C), refused where they do not fit the outputs."""
    count, classes = outputs.shape
    if not targets.is_floating_point() and targets.shape == (count,) and classes > 1:
        if bool(((targets < 0) | (targets >= classes)).any()):
            raise invalid("targets", int(targets.max()), f"classes from 0 to {classes - 1}")
        return F.one_hot(targets.long(), classes).to(outputs)
    columns = targets[:, None] if targets.ndim == 1 else targets
    if columns.shape != outputs.shape:
        raise invalid("targets", tuple(targets.shape), f"{tuple(outputs.shape)}, as the outputs")
    if not bool(torch.isfinite(columns).all()):
        raise invalid("targets", "values that are not finite", "finite numbers")
    return columns.to(outputs)


def _tangent_step(
    model: nn.Module,
    inputs: Inputs,
    residual: Tensor,
    gradients: ExampleGradients,
    ridge: float,
    options: dict[str, Any],
) -> dict[str, Tensor]:
    """The smallest change of the weights that takes the tangent model to the targets."""
    kernel = tangent_kernel(model, inputs, mode="full", **options).double()
    count, classes = residual.shape
    matrix = kernel.permute(0, 2, 1, 3).reshape(count * classes, count * classes)
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    if not bool(torch.isfinite(values).all()) or float(values[-1]) <= 0:
        raise WorkError("the tangent kernel is zero or not finite; check the model's weights")
    floor = max(ridge * float(matrix.diagonal().mean()), float(values[-1]) * 1e-12)
    inner = vectors.T @ residual.double().flatten()
    weights = vectors @ (inner / (values.clamp_min(0) + floor))
    return gradients.pulled(inputs, weights.reshape(count, classes).to(residual))


def _stepped(model: nn.Module, step: dict[str, Tensor], part: float) -> nn.Module:
    """A copy of a model some way along a step."""
    other = copy_of(model)
    if next(iter(step.values())).dtype == torch.float64:
        other = other.double()
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name in step:
                parameter.add_(step[name].to(parameter), alpha=part)
    return other


def _by_layer(kernels: dict[str, Tensor]) -> dict[str, Tensor]:
    layers: dict[str, Tensor] = {}
    for name, kernel in kernels.items():
        layer = name.replace(".parametrizations.", ".").rpartition(".")[0] or name
        layers[layer] = layers[layer] + kernel if layer in layers else kernel
    return layers


def _finite_sum(layers: dict[str, Tensor]) -> Tensor:
    total = torch.stack(list(layers.values())).double().sum(0)
    if not bool(torch.isfinite(total).all()) or not bool(total.any()):
        raise WorkError("the tangent kernel is zero or not finite; check the model's weights")
    return total


def _standing(alpha: float, start: Tensor, end: Tensor, targets: Tensor) -> Standing:
    distance = kernel_distance(start, end)
    relative, cosine = float(distance.relative), float(distance.cosine)
    alignment = float(target_alignment(end, targets))
    return Standing(alpha, relative, cosine, alignment, verdict(relative, cosine))


def _layer_changes(start: dict[str, Tensor], end: dict[str, Tensor]) -> tuple[LayerChange, ...]:
    names = [name for name in start if name in end]
    changes = {name: end[name].double() - start[name].double() for name in names}
    whole = torch.stack(list(changes.values())).sum(0)
    size = float(whole.square().sum())
    trace = sum(float(start[name].diagonal().sum()) for name in names)
    result = []
    for name in names:
        distance = kernel_distance(start[name], end[name])
        relative, cosine = float(distance.relative), float(distance.cosine)
        # A layer without a kernel at the start cannot be compared with one.
        known = math.isfinite(relative) and math.isfinite(cosine)
        result.append(
            LayerChange(
                layer=name,
                share=float(start[name].diagonal().sum()) / trace,
                change=float((changes[name] * whole).sum()) / size if size else 0.0,
                relative=relative,
                cosine=cosine,
                lazy=known and verdict(relative, cosine) == "kernel",
            )
        )
    return tuple(result)


def _require_same(model: nn.Module, trained: nn.Module) -> None:
    before = {name: p.shape for name, p in model.named_parameters()}
    after = {name: p.shape for name, p in trained.named_parameters()}
    if before != after:
        different = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
        raise RequestError(
            f"trained: its parameters differ from the model's: {', '.join(different[:5])}; "
            "expected the same model after training"
        )
