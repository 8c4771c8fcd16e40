"""Multiply-accumulates of a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import nn

from latewood.core.devices import on_device
from latewood.core.modes import undisturbed, unfused
from latewood.core.module_calls import ModuleCall, module_calls

__all__ = ["macs", "macs_by_module"]


def macs(model: nn.Module, example_inputs: Sequence[Any] | dict[str, Any]) -> int:
    """Multiply-accumulates of one forward pass in evaluation mode.

    Those of convolutions, linear and recurrent layers and of attention's two products; masked
    weights count like others, and so do positions that a causal mask hides. Additions of biases,
    norms, activations and look-ups do not count.

    Args:
        model: any module. A custom operator counts if it has a formula of torch's
            ``register_flop_formula``.
        example_inputs: the arguments of the forward pass, a sequence of positional or a dict of
            keyword arguments; batch size 1 gives MACs per sample.
    """
    with _counting(model) as total:
        if isinstance(example_inputs, dict):
            model(**on_device(model, example_inputs))
        else:
            model(*on_device(model, example_inputs))
        return total()


def macs_by_module(model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, int]:
    """Multiply-accumulates of one forward pass by the names of the modules that do them.

    Args:
        model: as for ``macs``.
        args: positional arguments of the forward pass, where the model is.
        kwargs: its keyword arguments.

    Returns:
        For each module that was called, those of all its calls with all that is inside; "" is the
        model itself.
    """
    counts: dict[str, int] = {}
    at_entry: dict[ModuleCall, int] = {}
    with _counting(model) as total:

        def enter(call: ModuleCall) -> None:
            at_entry[call] = total()

        def leave(call: ModuleCall, _: Any) -> None:
            counts[call.name] = counts.get(call.name, 0) + total() - at_entry.pop(call)

        with module_calls(dict(model.named_modules()), enter, leave):
            model(*args, **kwargs)
    return counts


@contextmanager
def _counting(model: nn.Module) -> Iterator[Callable[[], int]]:
    """Says how many multiply-accumulates there have been so far."""
    # Not before it is needed: it imports Triton where that is installed, more than a second.
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False, custom_mapping=dict(_FORMULAS))
    # Torch's follows modules by hooks on gradients, which some models' tensors do not take.
    counter.mod_tracker = _WholeRun()  # type: ignore[assignment]
    # The fused attention of evaluation mode is one operator without a formula.
    with undisturbed(model), unfused(), counter:
        yield lambda: int(counter.get_total_flops()) // 2


class _WholeRun:
    """Stands in for what tells the counter which modules run: all counts are the model's."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def _lstm_cpu(inputs: Sequence[int], *shapes: Any, **_: Any) -> int:
    # One call per layer and direction: (time, batch, features), then W_ih, W_hh and the biases.
    return 2 * prod(inputs[:-1]) * sum(int(prod(shape)) for shape in shapes[:2])


def _recurrent_cuda(inputs: Sequence[int], weights: Any, *_: Any, **__: Any) -> int:
    # One call for all layers: every matrix is applied at every position.
    return 2 * prod(inputs[:-1]) * sum(int(prod(shape)) for shape in weights if len(shape) == 2)


def _attention_cpu(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _matrix_vector(matrix: Sequence[int], vector: Sequence[int], **_: Any) -> int:
    return 2 * prod(matrix)


# What torch's counter has no formula for, by operator; each gives FLOPs, two per MAC.
_FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.aten.mkldnn_rnn_layer: _lstm_cpu,
    torch.ops.aten._cudnn_rnn: _recurrent_cuda,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_cpu,
    torch.ops.aten.mv: _matrix_vector,
}
