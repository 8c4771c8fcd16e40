"""Multiply-accumulates of a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from latewood.core.modes import evaluated, unfused

__all__ = ["device_of", "macs", "on_device", "undisturbed"]


def macs(model: nn.Module, example_inputs: Sequence[Tensor]) -> int:
    """Multiply-accumulates of one forward pass in evaluation mode.

    Those of convolutions, linear and recurrent layers and of attention's two products; masked
    weights count like others, and so do positions that a causal mask hides. Additions of biases,
    norms, activations and look-ups do not count.

    Args:
        model: any module. A custom operator counts if it has a formula of torch's
            ``register_flop_formula``.
        example_inputs: the arguments of the forward pass; batch size 1 gives MACs per sample.
    """
    # Not before it is needed: it imports Triton where that is installed, more than a second.
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False, custom_mapping=dict(_FORMULAS))
    # The fused attention of evaluation mode is one operator without a formula.
    with undisturbed(model), unfused(), counter:
        model(*on_device(model, example_inputs))
    return int(counter.get_total_flops()) // 2


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; modes and random generators are put back afterwards."""
    device = device_of(model)
    with (
        evaluated(model),
        torch.no_grad(),
        torch.random.fork_rng(
            devices=[] if device.type in ("cpu", "meta") else [device],
            device_type="cuda" if device.type in ("cpu", "meta") else device.type,
        ),
    ):
        yield


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter is; the CPU for a model without parameters."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def on_device(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The inputs on the model's device."""
    device = device_of(model)
    return [each.to(device) for each in inputs]


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
