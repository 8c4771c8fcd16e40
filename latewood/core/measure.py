"""The size and the speed of a model: values, zeros, bits, multiply-accumulates, file, latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from latewood.core.macs import device_of, macs, on_device, undisturbed
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
    with undisturbed(model):
        return sum(tensor.numel() for tensor in _effective_parameters(model))


def nonzero_count(model: nn.Module) -> int:
    """Number of values that are not zero in the parameters the model computes with.

    Args:
        model: any module, with its masks and other transformations applied or attached.
    """
    with undisturbed(model):
        return sum(int(tensor.count_nonzero()) for tensor in _effective_parameters(model))


def density(model: nn.Module) -> float:
    """Share of weights that are not zero, over the weight matrices of all layers.

    Biases, norms and embeddings do not count; see ``select_parameters``.

    Args:
        model: any module, with its masks and other transformations applied or attached.

    Returns:
        A number in [0, 1]; 1 for a model without weight matrices.
    """
    with undisturbed(model):
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
    with undisturbed(model):
        weights = _weights(model)
        total = sum(weight.numel() for weight, _ in weights)
        return sum(_stored_bits(*weight) for weight in weights) / total if total else 0.0


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
    inputs = on_device(model, example_inputs)
    clock, wait = _clock(device_of(model))
    threads = torch.get_num_threads()
    times: list[float] = []
    try:
        torch.set_num_threads(1)
        with undisturbed(model), torch.inference_mode():
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


def _clock(device: torch.device) -> tuple[Callable[[], float], Callable[[], None]]:
    if device.type == "cpu":
        return time.thread_time, lambda: None
    return time.perf_counter, lambda: torch.accelerator.synchronize(device)
