"""Sizes that torch's layers keep as attributes, read anew from their tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from latewood.core.selection import stored_tensor

__all__ = ["Sizes"]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Sizes:
    """A layer before a change of size, and what of it the change must not touch.

    Args:
        module: the layer.
        per_group: channels of one group of a grouped convolution or group norm, 0 for others.
        grouped: whether it is a grouped convolution; one channel left of it would not tell.
    """

    module: nn.Module
    per_group: int
    grouped: bool = False

    @classmethod
    def of(cls, module: nn.Module, *, grouped: bool = False) -> Sizes:
        """Notes a layer's sizes.

        Args:
            module: the layer.
            grouped: whether it is a grouped convolution even if only one group is left of it.
        """
        if isinstance(module, nn.modules.conv._ConvNd):
            channels = (
                module.in_channels if isinstance(module, _TRANSPOSED) else module.out_channels
            )
            return cls(module, channels // module.groups, grouped or module.groups != 1)
        if isinstance(module, nn.GroupNorm):
            return cls(module, module.num_channels // module.num_groups)
        return cls(module, 0)

    def refresh(self) -> None:
        """Sets the layer's attributes to the shapes of its tensors."""
        module = self.module
        for name, value in self._sizes().items():
            setattr(module, name, value)
        if isinstance(module, nn.RNNBase):
            # cuDNN wants the weights in one block of memory again.
            module._init_flat_weights()

    def _sizes(self) -> dict[str, Any]:
        module = self.module
        match module:
            case nn.Linear():
                out_features, in_features = _shape(module, "weight")
                return {"in_features": in_features, "out_features": out_features}
            case nn.modules.conv._ConvNd():
                return self._convolution()
            case nn.modules.batchnorm._NormBase():
                name = "running_mean" if module.running_mean is not None else "weight"
                return {"num_features": _shape(module, name)[0]}
            case nn.GroupNorm():
                channels = _shape(module, "weight")[0]
                return {"num_channels": channels, "num_groups": channels // self.per_group}
            case nn.LayerNorm() | nn.RMSNorm():
                return {"normalized_shape": _shape(module, "weight")}
            case nn.Embedding():
                rows, columns = _shape(module, "weight")
                return {"num_embeddings": rows, "embedding_dim": columns}
            case nn.PReLU():
                return {"num_parameters": _shape(module, "weight")[0]}
            case nn.MultiheadAttention():
                return _attention(module)
            case nn.RNNBase():
                return _recurrent(module)
            case nn.RNNCellBase():
                return {
                    "input_size": _shape(module, "weight_ih")[1],
                    "hidden_size": _shape(module, "weight_hh")[1],
                }
        return {}

    def _convolution(self) -> dict[str, int]:
        first, second = _shape(self.module, "weight")[:2]
        groups = first // self.per_group if self.grouped else 1
        sizes = (first, second * groups)
        names = ("out_channels", "in_channels")
        if isinstance(self.module, _TRANSPOSED):
            names = ("in_channels", "out_channels")
        return {**dict(zip(names, sizes, strict=True)), "groups": groups}


def _attention(module: nn.MultiheadAttention) -> dict[str, int]:
    """The widths; how they divide into heads is a matter of the plan."""
    if module._qkv_same_embed_dim:
        rows, width = _shape(module, "in_proj_weight")
        return {"embed_dim": rows // 3, "kdim": width, "vdim": width}
    widths = {f"{name}dim": _shape(module, f"{name}_proj_weight")[1] for name in "kv"}
    return {"embed_dim": _shape(module, "q_proj_weight")[0], **widths}


def _recurrent(module: nn.RNNBase) -> dict[str, int]:
    sizes = {"input_size": _shape(module, "weight_ih_l0")[1]}
    if module.proj_size:
        projection = _shape(module, "weight_hr_l0")
        return {**sizes, "proj_size": projection[0], "hidden_size": projection[1]}
    return {**sizes, "hidden_size": _shape(module, "weight_hh_l0")[1]}


def _shape(module: nn.Module, name: str) -> tuple[int, ...]:
    if parametrize.is_parametrized(module, name):
        return tuple(stored_tensor(module, name).shape)
    tensor: Tensor = getattr(module, name)
    return tuple(tensor.shape)
