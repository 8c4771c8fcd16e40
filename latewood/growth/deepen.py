"""Deepening a model in place: blocks that change nothing at first, or copies of those there are."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latewood.core import trace_channels
from latewood.core.coupling.trace import outputs_of, run_model
from latewood.core.modes import attributes_restored, undisturbed
from latewood.core.state_rules import unwrapped_optimizer
from latewood.errors import RequestError, invalid
from latewood.growth.variance_transfer import norm_inputs

__all__ = ["deepen"]

How = Literal["insert_identity", "stack", "interleave"]

_COUNTS: Final = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
"""What configurations call the number of blocks, which some models read when they run."""
_TOLERANCE: Final = 1e-6


def deepen(
    model: nn.Module,
    example_inputs: Any,
    blocks: str,
    *,
    how: How = "insert_identity",
    after: int = -1,
    optimizers: Iterable[Optimizer] | Optimizer = (),
) -> list[int]:
    """Adds residual blocks to a list of them, in place. An extension of ours, not of the paper.

    "insert_identity" adds one copy of a block, whose last layer before the addition (or the scale
    of the norm behind it) is zero: the function is kept. "stack" puts a copy of the whole list
    behind it, "interleave" a copy of each block behind it: both change the function. New parameters
    join the optimizers' groups of what they copy; copies of "stack" and "interleave" take a copy of
    its state.

    Args:
        model: any module.
        example_inputs: what it is called with.
        blocks: name of an ``nn.ModuleList`` or ``nn.Sequential`` of blocks.
        how: as above.
        after: for "insert_identity", the block to copy, behind which the copy goes.
        optimizers: that train the model.

    Returns:
        Where the new blocks are in the list.

    Raises:
        RequestError: no such list, no such block, a block that no zero makes an identity, or a
            model that does not run what was added. Nothing has changed then.

    Source: "stack" as in StackBERT and G_stack; counts in a transformers configuration follow.
    """
    if how not in get_args(How):
        raise invalid("how", how, f"one of {', '.join(get_args(How))}")
    container = dict(model.named_modules()).get(blocks)
    if not isinstance(container, nn.ModuleList | nn.Sequential) or not len(container):
        raise invalid("blocks", blocks, "the name of a ModuleList or Sequential with blocks in it")
    old = list(container)
    if isinstance(after, bool) or not isinstance(after, int) or not -len(old) <= after < len(old):
        raise invalid("after", after, f"an integer from {-len(old)} to {len(old) - 1}")
    after %= len(old)
    updaters = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
    if how == "insert_identity":
        zeroed = _writers(model, example_inputs, f"{blocks}.{after}")
        order, new = [*range(after + 1), after, *range(after + 1, len(old))], [after + 1]
    elif how == "stack":
        zeroed = ()
        order, new = [*range(len(old))] * 2, [*range(len(old), 2 * len(old))]
    else:
        zeroed = ()
        order, new = sorted([*range(len(old))] * 2), [*range(1, 2 * len(old), 2)]
    made = {place: _copied(old[order[place]], zeroed) for place in new}
    before = _outputs(model, example_inputs)
    with _undone_on_error(model, container, len(old)):
        _set_blocks(container, [made.get(place, old[source]) for place, source in enumerate(order)])
        _set_counts(model, len(old), len(order))
        run = _runs(model, example_inputs, list(made.values()))
        if not run:
            raise RequestError(f"blocks: {blocks} has more blocks now than the model runs")
        if how == "insert_identity" and not _alike(before, _outputs(model, example_inputs)):
            raise RequestError(
                f"blocks: a copy of {blocks}.{after} is no identity with "
                f"{', '.join(zeroed) or 'nothing'} at zero; expected a block that adds to what it "
                "reads, without a norm behind the addition"
            )
    for place, block in made.items():
        _join(updaters, old[order[place]], block, with_state=how != "insert_identity")
    return new


def _writers(model: nn.Module, example_inputs: Any, block: str) -> tuple[str, ...]:
    """Tensors of a block that make all it adds to a stream: writers, or norms behind them."""
    plan = trace_channels(model, example_inputs)
    prefix = f"{block}."
    inside = [layer for name, layer in plan.layers.items() if name.startswith(prefix)]
    fed = norm_inputs(model, plan, example_inputs)
    writers = [layer.weight for layer in inside if layer.writes_stream]
    if not writers and inside:
        # A norm between the last layer and the addition: its scale and shift make what is added.
        norms = fed.get(inside[-1].weight, ())
        last = [layer for layer in inside if fed.get(layer.weight)]
        norms = norms or (fed[last[-1].weight] if last else ())
        writers = [f"{norm}.weight" for norm in norms[-1:]]
    names = [*writers, *(name[: -len("weight")] + "bias" for name in writers)]
    return tuple(name.removeprefix(prefix) for name in names)


def _copied(block: nn.Module, zeroed: Iterable[str]) -> nn.Module:
    twin = copy.deepcopy(block)
    tensors = dict(twin.named_parameters())
    with torch.no_grad():
        for name in zeroed:
            if name in tensors:
                tensors[name].zero_()
    return twin


@contextmanager
def _undone_on_error(
    model: nn.Module, container: nn.ModuleList | nn.Sequential, count: int
) -> Iterator[None]:
    children = dict(container._modules)
    counts = [(holder, name, getattr(holder, name)) for holder, name in _counts(model, count)]
    indices = [(m, m.layer_idx) for block in container for m in _indexed(block)]
    try:
        yield
    except BaseException:
        container._modules.clear()
        container._modules.update(children)
        for holder, name, value in counts:
            setattr(holder, name, value)
        for module, index in indices:
            setattr(module, "layer_idx", index)  # noqa: B010
        raise


def _set_blocks(container: nn.ModuleList | nn.Sequential, blocks: list[nn.Module]) -> None:
    container._modules.clear()
    container._modules.update({str(place): block for place, block in enumerate(blocks)})
    for place, block in enumerate(blocks):
        for module in _indexed(block):
            setattr(module, "layer_idx", place)  # noqa: B010


def _indexed(block: nn.Module) -> list[Any]:
    """Modules that know the place of their block, as those do that keep caches."""
    return [m for m in block.modules() if isinstance(getattr(m, "layer_idx", None), int)]


def _counts(model: nn.Module, count: int) -> list[tuple[Any, str]]:
    holders: dict[int, Any] = {}
    for module in model.modules():
        for holder in (module, getattr(module, "config", None)):
            if holder is not None:
                holders[id(holder)] = holder
    return [
        (holder, name)
        for holder in holders.values()
        for name in _COUNTS
        if type(getattr(holder, name, None)) is int and getattr(holder, name) == count
    ]


def _set_counts(model: nn.Module, before: int, after: int) -> None:
    for holder, name in _counts(model, before):
        setattr(holder, name, after)


def _runs(model: nn.Module, example_inputs: Any, added: list[nn.Module]) -> bool:
    seen: set[int] = set()
    with attributes_restored(model), undisturbed(model):
        for block in added:
            block.register_forward_hook(lambda module, *_: seen.add(id(module)))
        run_model(model, example_inputs)
    return len(seen) == len(added)


def _outputs(model: nn.Module, example_inputs: Any) -> list[Tensor]:
    with attributes_restored(model), undisturbed(model):
        torch.manual_seed(0)
        outputs = outputs_of(run_model(model, example_inputs))
        return [output.clone() for output in outputs if output.is_floating_point()]


def _alike(before: list[Tensor], after: list[Tensor]) -> bool:
    if [t.shape for t in before] != [t.shape for t in after]:
        return False
    return all(
        float((one - two).abs().max()) <= _TOLERANCE * float(one.abs().max())
        for one, two in zip(before, after, strict=True)
        if one.numel()
    )


def _join(
    optimizers: list[Optimizer], source: nn.Module, block: nn.Module, *, with_state: bool
) -> None:
    """Puts a copy's parameters into the groups of what they copy, with a copy of the state."""
    pairs = {
        id(old): (old, new)
        for old, new in zip(source.parameters(), block.parameters(), strict=True)
    }
    for optimizer in map(unwrapped_optimizer, optimizers):
        for group in optimizer.param_groups:
            names = group.get("param_names")
            for place, parameter in enumerate(list(group["params"])):
                if id(parameter) not in pairs:
                    continue
                old, new = pairs[id(parameter)]
                group["params"].append(new)
                if names is not None:
                    names.append(f"{names[place]} (copy)")
                if with_state and old in optimizer.state:
                    state = cast(dict[str, Any], optimizer.state[old])
                    optimizer.state[new] = copy.deepcopy(state)
