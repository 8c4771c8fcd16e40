"""A linear layer whose weight is stored as compressed sparse rows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["CsrLinear"]


class CsrLinear(nn.Module):
    """A linear layer for inference whose weight is stored as compressed sparse rows.

    y = x W^T + b, with the weight's column indices, values and row starts as buffers, so that it is
    part of the state dict. A fresh layer holds no value; loading a state gives it its sizes.

    Args:
        in_features: entries of one input.
        out_features: entries of one output.
        bias: whether there is a bias.
    """

    row_starts: Tensor
    columns: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.register_buffer("row_starts", torch.zeros(out_features + 1, dtype=torch.int32))
        self.register_buffer("columns", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("values", torch.zeros(0))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)

    @classmethod
    def of(cls, layer: nn.Linear) -> CsrLinear:
        """The same function as a dense layer, with its weights that are not zero.

        Args:
            layer: a linear layer; it stays as it is.
        """
        compressed = cls(layer.in_features, layer.out_features, bias=layer.bias is not None)
        weight = layer.weight.detach()
        with warnings.catch_warnings():
            # torch says once a process that these tensors are in beta; the export checks results.
            warnings.filterwarnings("ignore", message=".*Sparse CSR tensor support.*")
            rows = weight.to_sparse_csr()
        compressed.row_starts = rows.crow_indices().to(torch.int32)
        compressed.columns = rows.col_indices().to(torch.int32)
        compressed.values = rows.values().clone()
        compressed.bias = None if layer.bias is None else layer.bias.detach().clone()
        return compressed.train(layer.training)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps (..., in_features) to (..., out_features)."""
        weight = torch.sparse_csr_tensor(
            self.row_starts,
            self.columns,
            self.values,
            (self.out_features, self.in_features),
            check_invariants=False,
        )
        flat = inputs.reshape(-1, self.in_features)
        # The product with one vector has a kernel of its own, about a third faster.
        product = (weight @ flat[0])[None] if flat.shape[0] == 1 else (weight @ flat.t()).t()
        outputs = product if self.bias is None else product + self.bias
        return outputs.reshape(*inputs.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """The sizes in words."""
        density = self.values.numel() / max(1, self.in_features * self.out_features)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, density={density:.4g}"
        )

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("columns", "values"):
            stored = state_dict.get(prefix + name)
            if isinstance(stored, Tensor):
                setattr(self, name, getattr(self, name).new_empty(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)
