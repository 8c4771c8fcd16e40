"""Turns channels that change nothing into a smaller module of ordinary layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from latewood.core.coupling import ChannelGroup, ChannelPlan, slice_channels, trace_channels
from latewood.core.coupling.trace import layer_tensors, outputs_of, run_model
from latewood.core.modes import evaluated
from latewood.core.selection import stored_tensor
from latewood.core.transforms import MASK, bake, transformations
from latewood.errors import RequestError, WorkError, invalid
from latewood.sparsity.slimming.dependence import Reads, watch
from latewood.sparsity.slimming.rules import RULES

__all__ = ["Examples", "SlimRecipe", "bake_masks", "compare", "remember", "slim", "slim_recipe"]

_RECIPE: Final = "_slim_recipe"
_TOLERANCES: Final = {torch.float64: 1e-12, torch.float32: 1e-5}
_COARSE: Final = 2e-2
"""For half precision, where the kernels' own rounding is of this size."""
_TRIALS: Final = 3

Examples = Tensor | Sequence[Any] | dict[str, Any]


@dataclass(frozen=True)
class SlimRecipe:
    """How a slim module comes from the one it was made of.

    Args:
        steps: one dict a call of ``slim``: the kept channels by the name of their group.
        examples: what the model is called with, on the CPU.
    """

    steps: tuple[dict[str, list[int]], ...]
    examples: Any


def slim(
    model: nn.Module,
    example_inputs: Examples,
    *,
    keep: Mapping[str, Sequence[int]] | None = None,
    tolerance: float | None = None,
) -> nn.Module:
    """Removes the channels that change nothing and returns a smaller module of ordinary layers.

    A channel goes if in evaluation mode everything that reads it meets exact zeros, whatever the
    input is, or has only zero weights for it, in all members of its coupled group: a batch norm
    with weight and bias zero after the activation, say, or an LSTM unit without rows. Masks alone
    in front of a batch norm leave a constant, which is not zero; constants go into the bias of what
    reads them where that is exact (linear layers, convolutions without padding), and stay
    otherwise. The last channel of a group stays.

    Masks on the weights are folded in; other transformations stay. The model itself does not
    change. Every call compares the two modules on the example and on random inputs.

    Args:
        model: any module that ``latewood.core.coupling.trace_channels`` can follow.
        example_inputs: what the model is called with: a tensor, a sequence of positional
            arguments, or a dict of keyword arguments.
        keep: for a group's name (``trace_channels(model, example_inputs).table()`` lists them), the
            channels to keep, distinct, at least one; None removes all that can go.
        tolerance: largest difference allowed, relative to the largest output; None is 1e-12 in
            float64, 1e-5 in float32, 2e-2 in half precision.

    Returns:
        The slim module. What was kept, for ``save_slim``, is in ``slim_recipe(module)``.

    Raises:
        RequestError: an unknown group, channels that are not there, or a channel to be removed
            that is not exactly without effect.
        WorkError: the slim module differs from the model.
    """
    twin = copy.deepcopy(model)
    bake_masks(twin)
    plan = trace_channels(twin, example_inputs)
    wanted = None if keep is None else _wanted(plan, keep)
    widths = {group.name: group.width for group in plan.free}
    kept = {name: list(range(width)) for name, width in widths.items()}
    while removed := _removable(twin, plan, kept, wanted, example_inputs):
        chosen = {
            name: [each for each in range(plan[name].width) if each not in gone]
            for name, gone in removed.items()
        }
        plan = slice_channels(twin, plan, chosen)
        for name, staying in chosen.items():
            kept[name] = [kept[name][each] for each in staying]
    if wanted is not None:
        _refuse_the_rest(kept, wanted)
    step = {name: indices for name, indices in kept.items() if len(indices) < widths[name]}
    compare(model, twin, example_inputs, tolerance)
    before = getattr(model, _RECIPE, None)
    earlier = before.steps if isinstance(before, SlimRecipe) else ()
    examples = before.examples if isinstance(before, SlimRecipe) else example_inputs
    on_cpu = _mapped(examples, lambda each: each.detach().cpu())
    remember(twin, SlimRecipe((*earlier, step), on_cpu))
    return twin


def slim_recipe(model: nn.Module) -> SlimRecipe:
    """What ``slim`` kept when it made a module.

    Args:
        model: a result of ``slim`` or ``load_slim``.

    Raises:
        RequestError: it is neither.
    """
    recipe = getattr(model, _RECIPE, None)
    if not isinstance(recipe, SlimRecipe):
        raise invalid("model", type(model).__name__, "a module that slim or load_slim returned")
    return recipe


def remember(model: nn.Module, recipe: SlimRecipe) -> None:
    """Leaves a recipe on a module, outside its parameters, buffers and state dict."""
    object.__setattr__(model, _RECIPE, recipe)


def bake_masks(model: nn.Module) -> None:
    """Folds the masks on a model's weights into them; other transformations stay."""
    for module, name in dict(layer_tensors(model)).values():
        for transformation in transformations(module, name):
            if getattr(transformation, "order", None) == MASK:
                bake(module, name, transformation)


def _wanted(plan: ChannelPlan, keep: Mapping[str, Sequence[int]]) -> dict[str, set[int]]:
    """Channels to keep by group, checked; groups that are not named keep all."""
    found: dict[str, set[int]] = {}
    for name, listed in keep.items():
        group, indices = plan[name], list(listed)
        fits = all(type(each) is int and 0 <= each < group.width for each in indices)
        if not indices or not fits or len(set(indices)) < len(indices):
            expected = f"distinct channels from 0 to {group.width - 1}, at least one"
            raise invalid(f"keep[{name!r}]", indices, expected)
        if group.barriers and len(indices) < group.width:
            reasons = "; ".join(dict.fromkeys(each.reason for each in group.barriers))
            raise RequestError(f"keep[{name!r}]: its channels cannot change: {reasons}")
        found[name] = set(indices)
    return found


def _refuse_the_rest(kept: dict[str, list[int]], wanted: dict[str, set[int]]) -> None:
    for name, staying in wanted.items():
        rest = [each for each in kept.get(name, ()) if each not in staying]
        if rest:
            raise RequestError(
                f"keep[{name!r}]: channels {rest} are to be removed, but what reads them does not "
                "meet exact zeros. A mask in front of a batch norm leaves a constant: zero the "
                "norm's weight and bias as well, or the weights that read the channel"
            )


def _removable(
    model: nn.Module,
    plan: ChannelPlan,
    kept: dict[str, list[int]],
    wanted: dict[str, set[int]] | None,
    example_inputs: Examples,
) -> dict[str, set[int]]:
    """The channels of each group that can go now; what they add to biases is folded in."""
    reads = watch(model, example_inputs, RULES)
    places = dict(layer_tensors(model))
    clean, foldable = _clean(places, plan, reads)
    removed: dict[str, set[int]] = {}
    for group in plan.free:
        gone = {channel for channel in range(group.width) if _all_clean(group, channel, clean)}
        if wanted is not None:
            staying = wanted.get(group.name)
            gone = {
                each
                for each in gone
                if staying is not None and kept[group.name][each] not in staying
            }
        if len(gone) == group.width:
            gone.discard(0)
        if gone:
            removed[group.name] = gone
    _fold(places, plan, reads, foldable, removed)
    return removed


def _all_clean(group: ChannelGroup, channel: int, clean: dict[str, Tensor]) -> bool:
    return all(
        bool(clean[member.tensor][member.indices[channel]].all())
        for member in group.having("consumer")
    )


_Places = dict[str, tuple[nn.Module, str]]


def _clean(
    places: _Places, plan: ChannelPlan, reads: Reads
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """For every weight that reads: which positions read nothing, and which a constant to fold."""
    clean: dict[str, Tensor] = {}
    foldable: dict[str, Tensor] = {}
    for group in plan.free:
        for member in group.having("consumer"):
            if member.tensor in clean:
                continue
            module, name = places[member.tensor]
            weight = getattr(module, name).detach().movedim(member.axis, 0)
            empty = (weight == 0).flatten(1).all(1)
            zeros = reads.zeros.get(member.tensor, torch.zeros_like(empty)).to(empty.device)
            nothing = empty | zeros
            fold = reads.folds.get(member.tensor)
            if fold is not None and not any(
                transformations(*places[each]) for each in (member.tensor, fold.bias)
            ):
                foldable[member.tensor] = ~nothing & ~fold.values.isnan()
                nothing = nothing | foldable[member.tensor]
            clean[member.tensor] = nothing.cpu()
    return clean, foldable


def _fold(
    places: _Places,
    plan: ChannelPlan,
    reads: Reads,
    foldable: dict[str, Tensor],
    removed: dict[str, set[int]],
) -> None:
    """Adds to the biases what the weights that go away read from constants."""
    folded: dict[str, set[int]] = {}
    for name, gone in removed.items():
        for member in plan[name].having("consumer"):
            positions = member.indices[sorted(gone)].flatten().tolist()
            folded.setdefault(member.tensor, set()).update(positions)
    for tensor, constant in foldable.items():
        fold = reads.folds[tensor]
        positions = [each for each in folded.get(tensor, ()) if constant[each]]
        # Only linear layers and convolutions fold, and they read along axis 1.
        taken = stored_tensor(*places[tensor]).detach()[:, positions]
        weights = taken if taken.ndim == 2 else taken.flatten(2).sum(2)
        with torch.no_grad():
            stored_tensor(*places[fold.bias]).add_(weights @ fold.values[positions])


def compare(model: nn.Module, twin: nn.Module, examples: Examples, tolerance: float | None) -> None:
    """Compares two models on an example and on random inputs; a WorkError if they differ."""
    generator = torch.Generator().manual_seed(0)
    with evaluated(model), evaluated(twin), torch.no_grad():
        for trial in range(_TRIALS):
            inputs = examples if trial == 0 else _mapped(examples, _Redraw(generator))
            exact = [each for each in outputs_of(run_model(model, inputs)) if _compared(each)]
            slimmed = [each for each in outputs_of(run_model(twin, inputs)) if _compared(each)]
            for one, other in zip(exact, slimmed, strict=True):
                allowed = _TOLERANCES.get(one.dtype, _COARSE) if tolerance is None else tolerance
                # Drawn inputs may lie where the model itself is not finite, which is no difference.
                same = ((one == other) | (one.isnan() & other.isnan())) & (trial > 0)
                largest = float(one.abs().nan_to_num(posinf=0.0).max()) or 1.0
                error = float((one - other).masked_fill(same, 0.0).abs().max()) / largest
                if not error <= allowed:
                    raise WorkError(
                        f"the module that was made differs by {error:.1e} of the largest output; "
                        f"allowed are {allowed:.1e}"
                    )


def _compared(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 0


class _Redraw:
    """Other inputs of the same kind: normal values, or the integers of the example shuffled."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def __call__(self, tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=self._generator, dtype=torch.float64)
            return drawn.to(tensor)
        if tensor.ndim < 2:
            # Lengths, steps or labels: shuffled they may not be what the model takes.
            return tensor
        values = tensor.flatten()
        order = torch.randint(values.numel(), tensor.shape, generator=self._generator)
        return values[order.to(values.device)]


def _mapped(tree: Any, change: Any) -> Any:
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, (tuple, list)):
        return type(tree)(_mapped(each, change) for each in tree)
    if isinstance(tree, dict):
        return {name: _mapped(each, change) for name, each in tree.items()}
    return cast(Any, tree)
