"""The size and the speed of a model: values, zeros, bits, multiply-accumulates, file, latency."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import safetensors.torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from latewood.core.devices import device_of, on_device
from latewood.core.format_buffers import format_buffers
from latewood.core.macs import macs
from latewood.core.modes import undisturbed
from latewood.core.selection import select_parameters
from latewood.core.threads import threads
from latewood.core.timing import least_times
from latewood.core.transforms import transformations
from latewood.errors import RequestError

__all__ = [
    "bits",
    "density",
    "file_bytes",
    "latency_ms",
    "measure",
    "nonzero_count",
    "parameter_count",
]


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
    """Fraction of weights that are not zero, over the weight matrices of all layers.

    Biases, norms and embeddings do not count; see ``select_parameters``.

    Args:
        model: any module, with its masks and other transformations applied or attached.

    Returns:
        A number in [0, 1]; 1 for a model without weight matrices.
    """
    with undisturbed(model):
        return _Weights.of(model).density


def bits(model: nn.Module) -> float:
    """Mean number of bits that a weight is stored in, over the weight matrices of all layers.

    That of the dtype (32 for float32), unless a transformation with a method
    ``stored_bits(weight) -> float``, the bits of the whole tensor, is attached; the outermost
    such one decides. A baked number format (``core.format_buffers``) says its bits too.

    Args:
        model: any module.

    Returns:
        Bits per weight; 0 for a model without weight matrices.
    """
    with undisturbed(model):
        return _Weights.of(model).bits


def latency_ms(
    model: nn.Module, example_inputs: Sequence[Tensor], *, seconds: float = 2.0
) -> float:
    """Least time of one forward pass on the given batch, in milliseconds (``core.timing``).

    On the CPU: processor time of one thread, which other work on the machine hardly disturbs. On
    an accelerator: elapsed time until it is done. Evaluation and inference mode.

    Args:
        model: any module.
        example_inputs: the arguments of the forward pass; a task's examples have batch size 1.
        seconds: stop after about this long, but not before four turns.
    """
    forward = partial(model, *on_device(model, example_inputs))
    with threads(1), undisturbed(model):
        times = least_times({"forward": forward}, device_of(model), seconds=seconds)
    return times["forward"] / 1e3


def file_bytes(model: nn.Module) -> int:
    """Size of the safetensors file that the model's state dict would make, without metadata.

    Args:
        model: any module; tensors tied between layers are stored once.
    """
    stored: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            stored.setdefault(id(tensor), (name, tensor.detach().contiguous()))
    return len(safetensors.torch.save(dict(stored.values())))


def measure(model: nn.Module, example_inputs: Sequence[Tensor]) -> dict[str, float]:
    """All measures of a model by name; changes neither the model nor a random generator.

    Args:
        model: any module.
        example_inputs: the arguments of a forward pass for MACs and latency.

    Returns:
        "parameters", "nonzero", "density", "bits", "macs", "file_bytes" and "latency_ms".
    """
    with undisturbed(model):
        weights = _Weights.of(model)
    return {
        "parameters": float(parameter_count(model)),
        "nonzero": float(nonzero_count(model)),
        "density": weights.density,
        "bits": weights.bits,
        "macs": float(macs(model, example_inputs)),
        "file_bytes": float(file_bytes(model)),
        "latency_ms": latency_ms(model, example_inputs),
    }


@dataclass(frozen=True)
class _Weights:
    """What the weight matrices of a model come to together."""

    total: int
    nonzero: int
    stored_bits: float

    @classmethod
    def of(cls, model: nn.Module) -> _Weights:
        try:
            selected = select_parameters(model)
        except RequestError:
            selected = []
        total, nonzero, stored_bits = 0, 0, 0.0
        for matrix in selected:
            weight = matrix.tensor
            total += weight.numel()
            nonzero += int(weight.count_nonzero())
            attached = transformations(matrix.module, matrix.parameter_name)
            format_left = format_buffers(matrix.module, matrix.parameter_name)
            stored_bits += _stored_bits(weight, attached, format_left)
        return cls(total, nonzero, stored_bits)

    @property
    def density(self) -> float:
        return self.nonzero / self.total if self.total else 1.0

    @property
    def bits(self) -> float:
        return self.stored_bits / self.total if self.total else 0.0


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


def _stored_bits(
    weight: Tensor, attached: list[nn.Module], format_left: tuple[Tensor, Tensor] | None
) -> float:
    for transformation in reversed(attached):
        stored_bits = getattr(transformation, "stored_bits", None)
        if callable(stored_bits):
            return float(stored_bits(weight))
    if format_left is not None:
        return float(format_left[0].expand(weight.shape).sum())
    return float(weight.numel() * weight.element_size() * 8)
