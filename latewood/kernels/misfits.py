"""What is said of a tensor that no form of a kernel can work on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from latewood.errors import RequestError, invalid
from latewood.kernels.dispatch import tensors_are_virtual

__all__ = ["Misfit", "has_memory", "is_covered", "is_plain", "memory_misfit", "require_memory"]

_PLAIN = frozenset((Tensor, Parameter))


class Misfit(NamedTuple):
    """A property of a tensor that is not as a kernel needs it, its value, and what is expected."""

    what: str
    value: object
    expected: str

    def error(self, name: str) -> RequestError:
        """The error that says so of the tensor of this name."""
        return invalid(f"{name}, {self.what}", self.value, self.expected)


def is_plain(*tensors: object) -> bool:
    """Whether all are tensors or parameters, none of a subclass, whose data may lie elsewhere."""
    return _PLAIN.issuperset(map(type, tensors))


def is_covered(tensor: Tensor) -> bool:
    """Whether the storage of a strided tensor holds all its elements.

    A storage that was resized under its tensors, as sharding does between two uses, may not.
    """
    if tensor.numel() == 0:
        return True
    reach = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    end = tensor.storage_offset() + reach + 1
    return end * tensor.element_size() <= tensor.untyped_storage().nbytes()


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor is strided and has a storage; one of a batch of gradients has none."""
    if tensor.layout is not torch.strided:
        return False
    try:
        tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):
        return False
    return True


def memory_misfit(tensor: Tensor) -> Misfit | None:
    """Why the elements of a tensor do not lie in memory, if they do not."""
    if tensor.layout is not torch.strided:
        return Misfit("layout", tensor.layout, "torch.strided")
    if is_plain(tensor) and not tensors_are_virtual() and not is_covered(tensor):
        held, shape = tensor.untyped_storage().nbytes(), tuple(tensor.shape)
        expected = f"enough for shape {shape}; was the storage resized, as sharding does?"
        return Misfit("bytes in its storage", held, expected)
    return None


def require_memory(**tensors: Tensor) -> None:
    """Raises unless all tensors are strided and their elements lie in memory.

    Plain torch does not look either, so this stands before it where the native form declined.

    Raises:
        RequestError: says which tensor, by its keyword.
    """
    if torch.compiler.is_compiling():
        return
    for name, tensor in tensors.items():
        misfit = memory_misfit(tensor)
        if misfit is not None:
            raise misfit.error(name)
