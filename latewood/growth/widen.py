"""Widening a model in place, all or nothing, with what its optimizers know."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latewood.core import ChannelPlan, trace_channels, widen_channels
from latewood.core.coupling.additions import Addition, additions
from latewood.core.coupling.preserving_fill import usual_deviation
from latewood.core.coupling.resize import replace_data
from latewood.core.coupling.trace import layer_tensors
from latewood.core.selection import stored_tensor
from latewood.errors import invalid
from latewood.growth.firefly import FireflyUnits, firefly_units
from latewood.growth.initialisations import (
    INITS,
    Init,
    Loss,
    NewValues,
    gradmax_directions,
    sources_of,
)
from latewood.growth.model_copies import averaged_models, require_alike
from latewood.growth.optimizer_state import (
    copy_state,
    divide_state,
    drop_state,
    fill_state,
    require_known_state,
    require_no_gradients,
    require_owners,
)
from latewood.growth.requested_widths import allowed_barriers, widened_groups
from latewood.growth.stages import Stages
from latewood.growth.undoing import all_or_nothing
from latewood.growth.variance_transfer import (
    RESCALES,
    Rescale,
    Rescaling,
    new_deviation,
    rescaling,
)
from latewood.growth.weight_scale import multiply_scale
from latewood.growth.whole_tensors import whole_tensors
from latewood.growth.wider_heads import keep_scores, require_pairs_of_queries

__all__ = ["Widened", "WideningSettings", "widen", "with_loss"]


@dataclass(frozen=True)
class WideningSettings:
    """Finer points of ``widen``.

    Args:
        state: what becomes of the optimizers' state of tensors that grow: "carry" keeps that of old
            entries and starts second moments of new ones with the old ones' mean, "zero" with 0
            (Adam then takes long first steps), "drop" forgets it.
        gain: of new weights, with a rescaling: their deviation times the root of the fan-in; None
            takes sqrt(2) in front of rectifiers and 1 elsewhere.
        exact_eps: whether the eps of norms is rescaled with what they read (x c^2), which leaves no
            error at all instead of one of about eps / variance.
        loss: of a batch, for ``init="gradmax"`` and ``init="firefly"``.
    """

    state: Literal["carry", "zero", "drop"] = "carry"
    gain: float | None = None
    exact_eps: bool = False
    loss: Loss | None = None


def with_loss(
    settings: WideningSettings, loss: Callable[[nn.Module], Tensor] | None, model: nn.Module
) -> WideningSettings:
    """The settings with a loss that is taken of a model.

    Args:
        settings: that may lack one.
        loss: of any model of the structure; None leaves the settings as they are.
        model: whose loss it is to be.
    """
    return settings if loss is None else replace(settings, loss=lambda: loss(model))


@dataclass(frozen=True)
class Widened:
    """What a growth event did.

    Args:
        before: the plan of the model as it was.
        plan: the plan of the wider model.
        widths: old and new width, by group that grew.
        rescaling: what old weights were multiplied by.
        added: where the new channels are.
    """

    before: ChannelPlan
    plan: ChannelPlan
    widths: Mapping[str, tuple[int, int]]
    rescaling: Rescaling
    added: tuple[Addition, ...]


def widen(
    model: nn.Module,
    example_inputs: Any,
    widths: Mapping[str, int],
    *,
    optimizers: Iterable[Optimizer] | Optimizer = (),
    copies: Iterable[nn.Module] | nn.Module = (),
    init: Init = "pair",
    rescale: Rescale = "none",
    seed: int | torch.Generator = 0,
    plan: ChannelPlan | None = None,
    stages: Stages | None = None,
    settings: WideningSettings | None = None,
) -> Widened:
    r"""Widens layers of a model in place, with everything that must have their width.

    New channels come in identical pairs that every reader takes with opposite signs, so the model
    computes what it did; residual streams under layer norms and RMS norms are padded so that the
    norms do not notice. Parameters stay the same objects and optimizers keep them and their state.
    Nothing changes if the request is refused, or if an error or an interrupt comes in the middle.

    Args:
        model: any module that ``core.trace_channels`` follows.
        example_inputs: what it is called with: a tensor, a sequence, or a dict by name.
        widths: new width by group, or by layer that makes the group; the plan's ``table`` lists
            them. Attention counts heads.
        optimizers: whose state is to follow; together they have all trainable parameters that
            grow.
        copies: averages (torch's ``AveragedModel`` too) or teachers of the same structure, which
            grow by the same random numbers.
        init: "pair" (the function is kept); "replicate" (copies of all channels, widths in
            multiples; kept), "net2net" (copies of random ones; kept), "zero_out" (nothing reads the
            new channels at first; kept), "random" (not kept), "gradmax" (nothing makes them at
            first, and their gradient is the largest there is; kept), "firefly" (split copies and
            small random ones, those that lower the loss the most; nearly kept).
        rescale: "none" keeps old weights and the function. "vt" (variance transfer) makes old
            weights those of a well initialised network of the new width; what it changes of the
            function is one factor on the outputs. "vt_exact" undoes each factor behind its weight,
            by a ``WeightScale`` that ``bake_scales`` folds in. "vt_constraint_old" and
            "vt_constraint_new" use measured variances and change the function.
        seed: of the random numbers, or a generator on the CPU.
        plan: of the model as it is, if it is known, such as what the last event returned: tracing
            is what takes longest here. That of ``core.trace_head_sizes`` has sizes of heads as
            groups.
        stages: of the model's channels, which then note the event.
        settings: finer points.

    Returns:
        The new plan and what was done.

    Raises:
        RequestError: a plan of a model with other sizes, unknown layers, widths below the present
            ones or not reachable in pairs (the nearest are named), groups that cannot change,
            optimizers without some parameters or with a state that nothing explains, accumulated
            gradients.

    Source: pairs and variance transfer of Yuan, Savarese and Maire (arXiv 2306.12700), as secondary
    sources describe them; padding, state and exactness are ours.
    """
    settings = settings or WideningSettings()
    for name, value, allowed in (
        ("init", init, INITS),
        ("rescale", rescale, RESCALES),
        ("state", settings.state, ("carry", "zero", "drop")),
    ):
        if value not in allowed:
            raise invalid(name, value, f"one of {', '.join(map(repr, allowed))}")
    updaters = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
    models = [model, *averaged_models(copies)]
    before = plan or trace_channels(model, example_inputs)
    grown = widened_groups(before, widths, init)
    require_pairs_of_queries(before, grown, init)
    if plan is not None:
        _require_its_plan(model, plan, grown)
    require_alike(models)
    parameters = _parameters(models, before, grown)
    require_no_gradients(parameters)
    require_owners(updaters, _parameters([model], before, grown))
    _warn_of_frozen_readers(model, before, grown)
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    fireflies: dict[str, FireflyUnits] = {}
    if init == "firefly":
        if rescale != "none":
            raise invalid("rescale", rescale, "'none' for init='firefly'")
        fireflies = firefly_units(model, before, grown, settings.loss, generator)
    sources = {
        name: fireflies[name].sources
        if name in fireflies
        else sources_of(init, before[name], width, generator)
        for name, width in grown.items()
    }
    directions = {}
    if init == "gradmax":
        directions = gradmax_directions(model, before, grown, settings.loss)
    factors = rescaling(model, before, grown, example_inputs, rescale)
    rescaled = {
        name: tensor
        for network in reversed(models)
        for name, tensor in whole_tensors(network).items()
        if name in factors.factors or name in factors.biases
    }
    require_known_state(updaters, parameters | rescaled)
    require_no_gradients(rescaled)
    deviations: dict[str, float | None] = {}
    if rescale != "none":
        deviations = _deviations(model, before, grown, factors, rescale, settings.gain)
    with all_or_nothing(models, updaters, stages), torch.no_grad():
        for network in models:
            _rescale(network, factors, updaters, exact_eps=settings.exact_eps)
        usual = {
            name: usual_deviation(tensor)
            for name, tensor in whole_tensors(model).items()
            if init != "pair" and tensor.ndim > 1
        }
        after = widen_channels(
            model,
            before,
            {name: width - before[name].width for name, width in grown.items()}
            if init == "pair"
            else sources,
            fill="pair" if init == "pair" else "copy",
            std=None if rescale == "none" else lambda name, _: deviations.get(name),
            generator=generator,
            twins=models[1:],
            optimizers=updaters,
            allow=allowed_barriers(init),
        )
        for name in grown:
            for network in models:
                keep_scores(network, after[name], before[name].width, updaters)
        added = additions(before, after)
        by_tensor: dict[str, list[Addition]] = {}
        for addition in added:
            by_tensor.setdefault(addition.tensor, []).append(addition)
        for units in fireflies.values():
            for name, weight in units.weights.items():
                for network in models:
                    tensor = whole_tensors(network)[name]
                    tensor.copy_(weight)
        if init not in ("pair", "firefly"):
            values = NewValues(init, sources, deviations, directions, generator)
            places = [dict(layer_tensors(network)) for network in models]
            for name, of_tensor in by_tensor.items():
                tensors = [(place[name][0], stored_tensor(*place[name])) for place in places]
                if tensors[0][1].is_floating_point():
                    values.fill(places[0][name][1], tensors, of_tensor, usual.get(name, 1.0))
        for network in models:
            stored = whole_tensors(network)
            for name, of_tensor in by_tensor.items():
                _follow_state(updaters, stored[name], of_tensor, settings.state)
                if init in ("net2net", "replicate") and settings.state == "carry":
                    _copy_state(updaters, stored[name], of_tensor, values)
        if stages is not None:
            stages.widen(before, after)
    changed = {name: (before[name].width, width) for name, width in grown.items()}
    return Widened(before, after, changed, factors, added)


def _warn_of_frozen_readers(model: nn.Module, plan: ChannelPlan, grown: Mapping[str, int]) -> None:
    tensors = whole_tensors(model)
    for name in grown:
        learns = {
            role: any(tensors[m.tensor].requires_grad for m in plan[name].members if m.role == role)
            for role in ("producer", "consumer")
        }
        if plan[name].having("consumer") and learns["producer"] and not learns["consumer"]:
            warnings.warn(
                f"widen: all that reads the channels of {name} is frozen: what new channels add "
                "to can change only by what makes them",
                RuntimeWarning,
                stacklevel=3,
            )


def _require_its_plan(model: nn.Module, plan: ChannelPlan, grown: Mapping[str, int]) -> None:
    """Refuses a plan of the model as it was before its shapes changed."""
    tensors = whole_tensors(model)
    for name, axis in {(m.tensor, m.axis): None for g in grown for m in plan[g].members}:
        described = sum(
            next(m for m in group.members if (m.tensor, m.axis) == (name, axis)).indices.numel()
            for group in plan.owner(name, axis)
        )
        size = tensors[name].shape[axis] if name in tensors else 0
        if size != described:
            raise invalid(
                "plan",
                f"one with {described} positions on axis {axis} of {name}",
                f"that of the model as it is, which has {size}",
            )


def _parameters(
    models: Iterable[nn.Module], plan: ChannelPlan, grown: Mapping[str, int]
) -> dict[str, Tensor]:
    names = {member.tensor for group in plan if group.name in grown for member in group.members}
    return {
        name if number == 0 else f"copies[{number - 1}]: {name}": tensor
        for number, model in enumerate(models)
        for name, tensor in whole_tensors(model).items()
        if name in names and isinstance(tensor, nn.Parameter)
    }


def _deviations(
    model: nn.Module,
    plan: ChannelPlan,
    grown: Mapping[str, int],
    factors: Rescaling,
    rescale: Rescale,
    gain: float | None,
) -> dict[str, float | None]:
    more: dict[str, dict[int, int]] = {}
    for name, width in grown.items():
        for member in {(m.tensor, m.axis): m for m in plan[name].members}.values():
            axes = more.setdefault(member.tensor, {})
            added = (width - plan[name].width) * member.multiplicity
            axes[member.axis] = axes.get(member.axis, 0) + added
    found: dict[str, float | None] = {}
    for name, tensor in whole_tensors(model).items():
        if name not in more or tensor.ndim < 2:
            continue
        if rescale.startswith("vt_constraint"):
            found[name] = factors.factors.get(name, 1.0) * usual_deviation(tensor)
            continue
        growth = {axis: 1 + added / tensor.shape[axis] for axis, added in more[name].items()}
        found[name] = new_deviation(plan.layers.get(name), growth, gain)
    return found


def _rescale(
    model: nn.Module, factors: Rescaling, optimizers: list[Optimizer], *, exact_eps: bool
) -> None:
    places = dict(layer_tensors(model))
    for name, factor in (*factors.factors.items(), *factors.biases.items()):
        module, own = places[name]
        tensor = stored_tensor(module, own)
        replace_data(tensor, tensor.detach() * factor)
        if name in factors.compensated:
            multiply_scale(module, own, 1.0 / factor)
    for name, factor in factors.undone.items():
        divide_state(optimizers, stored_tensor(*places[name]), factor)
    for name, factor in factors.statistics.items():
        norm = model.get_submodule(name)
        for own, power in (("running_mean", 1), ("running_var", 2)):
            statistic = getattr(norm, own, None)
            if isinstance(statistic, Tensor):
                replace_data(statistic, statistic * factor**power)
        eps = getattr(norm, "eps", None)
        if exact_eps and isinstance(eps, float):
            setattr(norm, "eps", eps * factor**2)  # noqa: B010
        count = getattr(norm, "num_batches_tracked", None)
        if isinstance(count, Tensor) and getattr(norm, "momentum", 0.1) is None:
            # The average of all batches so far would mix two scales.
            replace_data(count, torch.zeros_like(count))


def _follow_state(
    optimizers: list[Optimizer], tensor: Tensor, added: list[Addition], state: str
) -> None:
    if state == "drop":
        drop_state(optimizers, tensor)
    elif state == "carry":
        new: dict[int, list[Tensor]] = {}
        for addition in added:
            new.setdefault(addition.axis, []).append(addition.new.flatten())
        fill_state(optimizers, tensor, {axis: torch.cat(parts) for axis, parts in new.items()})


def _copy_state(
    optimizers: list[Optimizer], tensor: Tensor, added: list[Addition], values: NewValues
) -> None:
    for addition in added:
        sources = torch.tensor(list(values.sources[addition.group]), dtype=torch.long)
        pairs = (addition.new.flatten(), addition.old[sources].flatten())
        shares = None
        if "consumer" not in addition.roles:
            shares = torch.ones(tensor.shape[addition.axis], dtype=torch.float64)
            of_group = values.shares(addition)
            shares[: len(of_group)] = of_group
        copy_state(optimizers, tensor, addition.axis, pairs, shares)
