"""The size and the speed of a model: values, zeros, bits, multiply-accumulates, file, latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from latewood.core.selection import select_parameters
from latewood.core.transforms import transformations
from latewood.errors import RequestError, invalid

__all__ = [
    "bits",
    "density",
    "file_bytes",
    "latency_ms",
    "macs",
    "measure",
    "nonzero_count",
    "parameter_count",
]

_WARM_UP = 3
_FEWEST_REPEATS = 3


def parameter_count(model: nn.Module) -> int:
    """Number of values in the model's parameters; what a transformation adds is not counted.

    Args:
        model: any module; parameters tied between layers count once.
    """
    with _undisturbed(model):
        return sum(tensor.numel() for tensor in _effective_parameters(model))


def nonzero_count(model: nn.Module) -> int:
    """Number of values that are not zero in the parameters the model computes with.

    Args:
        model: any module, with its masks and other transformations applied or attached.
    """
    with _undisturbed(model):
        return sum(int(tensor.count_nonzero()) for tensor in _effective_parameters(model))


def density(model: nn.Module) -> float:
    """Share of weights that are not zero, over the weight matrices of all layers.

    Biases, norms and embeddings do not count; see ``select_parameters``.

    Args:
        model: any module, with its masks and other transformations applied or attached.

    Returns:
        A number in [0, 1]; 1 for a model without weight matrices.
    """
    with _undisturbed(model):
        weights = [tensor for tensor, _ in _weights(model)]
        total = sum(weight.numel() for weight in weights)
        return sum(int(weight.count_nonzero()) for weight in weights) / total if total else 1.0


def bits(model: nn.Module) -> float:
    """Mean number of bits that a weight is stored in, over the weight matrices of all layers.

    That of the dtype (32 for float32), unless a transformation with a method
    ``stored_bits(weight) -> float``, the bits of the whole tensor, is attached; the outermost
    such one decides.

    Args:
        model: any module.

    Returns:
        Bits per weight; 0 for a model without weight matrices.
    """
    with _undisturbed(model):
        weights = _weights(model)
        total = sum(weight.numel() for weight, _ in weights)
        return sum(_stored_bits(*weight) for weight in weights) / total if total else 0.0


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
    counter = FlopCounterMode(display=False, custom_mapping=dict(_FORMULAS))
    # The fused attention of evaluation mode is one operator without a formula.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _undisturbed(model), counter:
            model(*_on_device(model, example_inputs))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops()) // 2


def latency_ms(
    model: nn.Module,
    example_inputs: Sequence[Tensor],
    *,
    repeats: int = 20,
    seconds: float = 2.0,
) -> float:
    """Median time of one forward pass on the given batch, in milliseconds.

    On the CPU: processor time of one thread, which other work on the machine hardly disturbs. On
    an accelerator: elapsed time until it is done. Evaluation and inference mode, after three
    passes that do not count.

    Args:
        model: any module.
        example_inputs: the arguments of the forward pass; a task's examples have batch size 1.
        repeats: passes that count.
        seconds: stop after this long, but not before three passes have counted.

    Raises:
        RequestError: ``repeats`` is below 1.
    """
    if repeats < 1:
        raise invalid("repeats", repeats, "1 or more")
    inputs = _on_device(model, example_inputs)
    clock, wait = _clock(_device(model))
    threads = torch.get_num_threads()
    times: list[float] = []
    try:
        torch.set_num_threads(1)
        with _undisturbed(model), torch.inference_mode():
            for _ in range(_WARM_UP):
                model(*inputs)
            end = time.monotonic() + seconds
            while len(times) < repeats:
                wait()
                start = clock()
                model(*inputs)
                wait()
                times.append(clock() - start)
                if time.monotonic() > end and len(times) >= _FEWEST_REPEATS:
                    break
    finally:
        torch.set_num_threads(threads)
    return 1e3 * statistics.median(times)


def file_bytes(model: nn.Module) -> int:
    """Size of the safetensors file that the model's state dict would make, without metadata.

    Args:
        model: any module; tensors tied between layers are stored once.
    """
    kept: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            kept.setdefault(id(tensor), (name, tensor.detach().contiguous()))
    return len(safetensors.torch.save(dict(kept.values())))


def measure(model: nn.Module, example_inputs: Sequence[Tensor]) -> dict[str, float]:
    """All measures of a model by name; changes neither the model nor a random generator.

    Args:
        model: any module.
        example_inputs: the arguments of a forward pass for MACs and latency.

    Returns:
        "parameters", "nonzero", "density", "bits", "macs", "file_bytes" and "latency_ms".
    """
    return {
        "parameters": float(parameter_count(model)),
        "nonzero": float(nonzero_count(model)),
        "density": density(model),
        "bits": bits(model),
        "macs": float(macs(model, example_inputs)),
        "file_bytes": float(file_bytes(model)),
        "latency_ms": latency_ms(model, example_inputs),
    }


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; modes and random generators are put back afterwards."""
    device = _device(model)
    modes = [(module, module.training) for module in model.modules()]
    with (
        torch.no_grad(),
        torch.random.fork_rng(
            devices=[] if device.type in ("cpu", "meta") else [device],
            device_type="cuda" if device.type in ("cpu", "meta") else device.type,
        ),
    ):
        try:
            model.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def _effective_parameters(model: nn.Module) -> Iterator[Tensor]:
    """The parameters as the layers see them: transformed ones once, transformations' own never."""
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        if "parametrizations" in module_name.split("."):
            continue
        owned = [(id(tensor), name) for name, tensor in module._parameters.items()]
        if parametrize.is_parametrized(module):
            for name, stack in cast(nn.ModuleDict, module.parametrizations).items():
                owned += [(id(next(stack.parameters(recurse=False), stack)), name)]
        for identity, name in owned:
            tensor = getattr(module, name)
            if tensor is not None and identity not in seen:
                seen.add(identity)
                yield tensor


def _weights(model: nn.Module) -> list[tuple[Tensor, list[nn.Module]]]:
    try:
        selected = select_parameters(model)
    except RequestError:
        return []
    return [(each.tensor, transformations(each.module, each.parameter_name)) for each in selected]


def _stored_bits(weight: Tensor, attached: list[nn.Module]) -> float:
    for transformation in reversed(attached):
        stored_bits = getattr(transformation, "stored_bits", None)
        if callable(stored_bits):
            return float(stored_bits(weight))
    return float(weight.numel() * weight.element_size() * 8)


def _device(model: nn.Module) -> torch.device:
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _on_device(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    device = _device(model)
    return [each.to(device) for each in inputs]


def _clock(device: torch.device) -> tuple[Callable[[], float], Callable[[], None]]:
    if device.type == "cpu":
        return time.thread_time, lambda: None
    return time.perf_counter, lambda: torch.accelerator.synchronize(device)


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
