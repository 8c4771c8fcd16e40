"""Low-rank adapters: what they add to the weight that they adapt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Adapter", "adapters", "low_rank_product"]


@dataclass(frozen=True)
class Adapter:
    """The adapters of one weight.

    Args:
        names: of those that the weight does not contain yet.
        factors: full names of the parameters that hold all factors.
        product: gives the (out, in) matrix that the adapter of a name adds.
    """

    names: tuple[str, ...]
    factors: frozenset[str]
    product: Callable[[str], Tensor]


def low_rank_product(down: Tensor, up: Tensor, scale: float = 1.0) -> Tensor:
    """What an adapter adds to its weight: scale x up x down, in float32 at least.

    Args:
        down: (r, in), "lora_A".
        up: (out, r), "lora_B".
        scale: factor.

    Returns:
        (out, in).
    """
    kind = torch.promote_types(torch.promote_types(down.dtype, up.dtype), torch.float32)
    return scale * (up.detach().to(kind) @ down.detach().to(kind))


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """The adapters of a model that PEFT or loralib has put there, told by their attributes.

    Args:
        model: any module.

    Returns:
        By the full name of the adapted weight; adapters of other layers than linear ones are left
        out.
    """
    candidates: dict[str, Adapter | None] = {}
    for path, module in model.named_modules():
        down, up = getattr(module, "lora_A", None), getattr(module, "lora_B", None)
        prefix = path + "." if path else ""
        if isinstance(down, nn.ModuleDict) and isinstance(up, nn.ModuleDict):
            base = getattr(module, "base_layer", None)
            if isinstance(getattr(base, "weight", None), Tensor):
                candidates[f"{prefix}base_layer.weight"] = _peft(module, down, up, prefix)
        elif isinstance(down, nn.Parameter) and isinstance(up, nn.Parameter) and down.ndim == 2:
            candidates[f"{prefix}weight"] = _loralib(module, down, up, prefix)
    return {name: adapter for name, adapter in candidates.items() if adapter is not None}


def _peft(module: nn.Module, down: nn.ModuleDict, up: nn.ModuleDict, prefix: str) -> Adapter | None:
    names = [n for n in down if n in up and _is_matrix(down[n]) and _is_matrix(up[n])]
    if not names:
        return None
    scales = getattr(module, "scaling", {})
    merged = getattr(module, "merged_adapters", [])

    def product(name: str) -> Tensor:
        lower, upper = (side[name].get_parameter("weight") for side in (down, up))
        return low_rank_product(lower, upper, float(scales.get(name, 1.0)))

    return Adapter(
        tuple(name for name in names if name not in merged),
        frozenset(f"{prefix}lora_{side}.{name}.weight" for side in "AB" for name in names),
        product,
    )


def _loralib(
    module: nn.Module, down: nn.Parameter, up: nn.Parameter, prefix: str
) -> Adapter | None:
    if up.shape[1] != down.shape[0]:
        return None  # a fused layer that adapts some of its parts only

    def product(name: str) -> Tensor:
        return low_rank_product(down, up, float(getattr(module, "scaling", 1.0)))

    factors = frozenset({f"{prefix}lora_A", f"{prefix}lora_B"})
    return Adapter(() if getattr(module, "merged", False) else ("default",), factors, product)


def _is_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2
