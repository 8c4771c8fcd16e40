"""Firefly: new channels by splitting old ones and by small random ones, chosen by the loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from latewood.core import ChannelPlan
from latewood.core.modes import undisturbed
from latewood.errors import RequestError, invalid
from latewood.growth.initialisations import Loss

__all__ = ["FireflyUnits", "firefly_units"]

_STEP: Final = 0.1
"""Size of a perturbation relative to the mean norm of what it is added to, or stands beside."""


@dataclass(frozen=True)
class FireflyUnits:
    """What becomes of one group of channels.

    Args:
        sources: the channel that each new one copies where nothing is said of it.
        weights: the whole wider weights of what makes and what reads the channels, by name.
        splits: how many of the new channels are halves of old ones.
    """

    sources: list[int]
    weights: Mapping[str, Tensor]
    splits: int


def firefly_units(
    model: nn.Module,
    plan: ChannelPlan,
    widths: Mapping[str, int],
    loss: Loss | None,
    generator: torch.Generator,
) -> dict[str, FireflyUnits]:
    r"""The best of as many splits and as many new channels as a group has old ones.

    A split takes half of what reads channel i for each of two copies, made by
    :math:`w_i \pm \epsilon d_i` with a random direction d; a new channel is made by random weights
    and read by a small column against its gradient. With :math:`\delta` the gradient of the loss on
    the reader's output, to first order in that output they change the loss by

    .. math::
        \Delta_i = \langle \delta,\ z_i\, (\tfrac12 \phi(w_i + \epsilon d_i)
        + \tfrac12 \phi(w_i - \epsilon d_i) - \phi(w_i)) \rangle, \qquad
        \Delta_j = -\epsilon\, \|\langle \delta, \phi(v_j) \rangle\| ,

    and those with the least are taken.

    Args:
        model: as it is.
        plan: its plan.
        widths: new widths by group; each made and read by one linear layer or convolution.
        loss: of a batch; called four times.
        generator: on the CPU.

    Returns:
        The new channels by group.

    Raises:
        RequestError: no loss, another layout, groups that share a layer, more than there are
            candidates.

    Source: Wu et al., Firefly neural architecture descent (arXiv 2102.08574), in our reading: one
    random direction instead of optimised ones, and no second round.
    """
    if loss is None:
        raise invalid("loss", None, "a function that returns the loss of a batch, for 'firefly'")
    ends = {name: _ends(model, plan, name, width) for name, width in widths.items()}
    layers = [id(layer) for both in ends.values() for layer in both]
    if len(set(layers)) < len(layers):
        raise invalid("widths", list(widths), "groups that share no layer, for init='firefly'")
    drawn = {
        name: [_like_rows(maker.weight, generator) for _ in range(2)]
        for name, (maker, _) in ends.items()
    }
    with undisturbed(model):
        gradients, usual = _observed(ends, {}, loss)
        swapped = [
            _observed(ends, {name: change(name) for name in ends}, loss)[1]
            for change in (
                lambda name: ends[name][0].weight + _STEP * drawn[name][0],
                lambda name: ends[name][0].weight - _STEP * drawn[name][0],
                lambda name: drawn[name][1],
            )
        ]
    units = {}
    for name, (maker, reader) in ends.items():
        plus, minus, new = (inputs[name] for inputs in swapped)
        bend = 0.5 * (plus + minus) - usual[name]
        made, read = maker.weight.detach(), reader.weight.detach()
        by_split = (read * _weight_gradient(reader, bend, gradients[name])).transpose(0, 1)
        column = _weight_gradient(reader, new, gradients[name]).transpose(0, 1)
        norms = column.flatten(1).norm(dim=1)
        size = _STEP * read.transpose(0, 1).flatten(1).norm(dim=1).mean()
        changes = torch.cat([by_split.flatten(1).sum(1), -size * norms])
        best = changes.argsort(stable=True)[: widths[name] - len(made)].sort().values.cpu()
        splits, news = best[best < len(made)], best[best >= len(made)] - len(made)
        rows, columns = made.clone(), read.transpose(0, 1).clone()
        step = _STEP * drawn[name][0][splits]
        rows[splits] += step
        columns[splits] *= 0.5
        against = column[news] / norms[news].clamp_min(1e-30).view(-1, *[1] * (column.ndim - 1))
        members = plan[name].having("producer")[0].tensor, plan[name].having("consumer")[0].tensor
        weights = (
            torch.cat([rows, made[splits] - step, drawn[name][1][news]]),
            torch.cat([columns, columns[splits], -size * against]).transpose(0, 1),
        )
        sources = [*splits.tolist(), *news.tolist()]
        units[name] = FireflyUnits(sources, dict(zip(members, weights, strict=True)), len(splits))
    return units


_Layer = nn.Linear | nn.modules.conv._ConvNd


def _ends(model: nn.Module, plan: ChannelPlan, name: str, width: int) -> tuple[_Layer, _Layer]:
    """The layer that makes the channels of a group and the one that reads them."""
    group = plan[name]
    layers = []
    for members in (group.having("producer"), group.having("consumer")):
        tensors = {member.tensor for member in members if member.tensor.endswith(".weight")}
        module = model.get_submodule(next(iter(tensors)).rpartition(".")[0]) if tensors else None
        if (
            len(tensors) > 1
            or not isinstance(module, _Layer)
            or getattr(module, "transposed", False)
            or getattr(module, "groups", 1) > 1
            or members[0].multiplicity > 1
            or parametrize.is_parametrized(module)
        ):
            raise RequestError(
                f"init: got 'firefly' for {name}; expected a group that one linear layer or "
                "convolution makes and one reads"
            )
        layers.append(module)
    if width > 3 * group.width:
        raise invalid(f"widths[{name!r}]", width, f"at most {3 * group.width} for init='firefly'")
    return layers[0], layers[1]


def _like_rows(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Random rows with the mean norm of the weight's own."""
    drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64).flatten(1)
    norm = weight.detach().flatten(1).double().norm(dim=1).mean().cpu()
    drawn *= norm / drawn.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return drawn.view(weight.shape).to(weight)


def _observed(
    ends: Mapping[str, tuple[_Layer, _Layer]], weights: Mapping[str, Tensor], loss: Loss
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients on what the readers make, and what they read, with other weights in the makers."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def note(name: str, given: Tensor, made: Tensor) -> None:
        if name in inputs:
            raise RequestError(f"init: got 'firefly' for {name}, whose reader runs more than once")
        inputs[name], outputs[name] = given.detach(), made

    hooks = [
        reader.register_forward_hook(lambda _, given, made, name=name: note(name, given[0], made))
        for name, (_, reader) in ends.items()
    ]
    try:
        with torch.enable_grad(), _swapped({ends[name][0]: w for name, w in weights.items()}):
            value = loss()
            if weights:
                return {}, inputs
            gradients = torch.autograd.grad(value, list(outputs.values()))
    finally:
        for hook in hooks:
            hook.remove()
    return dict(zip(outputs, gradients, strict=True)), inputs


@contextmanager
def _swapped(weights: Mapping[_Layer, Tensor]) -> Iterator[None]:
    before = {layer: layer.weight.data for layer in weights}
    try:
        for layer, weight in weights.items():
            layer.weight.data = weight.detach()
        yield
    finally:
        for layer, data in before.items():
            layer.weight.data = data


def _weight_gradient(layer: _Layer, inputs: Tensor, gradient: Tensor) -> Tensor:
    """That of a layer's weight, had it read the inputs."""
    with torch.enable_grad():
        weight = layer.weight.detach().requires_grad_()
        made = functional_call(layer, {"weight": weight}, (inputs,))
        (of_weight,) = torch.autograd.grad(made, weight, gradient)
    return of_weight
