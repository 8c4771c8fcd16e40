"""Attention that can lose heads, in the place of torch's layer, which cannot."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from latewood.core.coupling.trace import run_model
from latewood.core.modes import evaluated, unfused
from latewood.core.module_calls import ModuleCall, module_calls
from latewood.errors import invalid
from latewood.slim.comparison import Examples

__all__ = ["HeadAttention", "replaceable_attention", "unpack_attention"]


class HeadAttention(nn.Module):
    """Multi-head attention from four linear layers, with any number of heads of any size.

    Computes what ``nn.MultiheadAttention`` does when it is called with ``need_weights=False``. In
    that layer heads x head size must equal the stream's width, so that no head can be removed.

    Args:
        widths: entries of the query's, the key's and the value's stream.
        num_heads: heads.
        head_size: entries of one head.
        out_width: entries of the output.
        bias: whether the linear layers have one.
        dropout: probability of leaving out an attention weight in training.
        batch_first: whether the batch is the first axis, or the sequence.
    """

    # What torch's encoder layers ask for before they take their fused path, which is not for this.
    in_proj_bias: None = None
    _qkv_same_embed_dim = False

    def __init__(
        self,
        widths: Sequence[int],
        num_heads: int,
        head_size: int,
        out_width: int,
        *,
        bias: bool = True,
        dropout: float = 0.0,
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.batch_first = batch_first
        rows = num_heads * head_size
        self.query = nn.Linear(widths[0], rows, bias=bias)
        self.key = nn.Linear(widths[1], rows, bias=bias)
        self.value = nn.Linear(widths[2], rows, bias=bias)
        self.out_proj = nn.Linear(rows, out_width, bias=bias)

    @classmethod
    def of(cls, layer: nn.MultiheadAttention) -> HeadAttention:
        """The same function as torch's layer.

        Args:
            layer: a layer without extra keys; it stays as it is.
        """
        bias = layer.in_proj_bias is not None
        attention = cls(
            (layer.embed_dim, layer.kdim, layer.vdim),
            layer.num_heads,
            layer.head_dim,
            layer.embed_dim,
            bias=bias,
            dropout=layer.dropout,
            batch_first=layer.batch_first,
        ).to(layer.out_proj.weight)
        packed = layer.in_proj_weight
        weights = (
            packed.chunk(3)
            if packed is not None
            else (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
        )
        parts = (attention.query, attention.key, attention.value)
        with torch.no_grad():
            for number, (part, weight) in enumerate(zip(parts, weights, strict=True)):
                part.weight.copy_(weight)
                if bias:
                    part.bias.copy_(layer.in_proj_bias.chunk(3)[number])
            attention.out_proj.load_state_dict(layer.out_proj.state_dict())
        return attention.train(layer.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Attends as ``nn.MultiheadAttention`` does.

        Args:
            query: (batch, length, width) with ``batch_first``, else (length, batch, width).
            key: the same of the sequence attended to.
            value: the same of the sequence attended to.
            key_padding_mask: (batch, keys); true or -inf hides a key.
            need_weights: must be False.
            attn_mask: (length, keys); true or -inf hides a key from a query.
            average_attn_weights: not used, since there are no weights.
            is_causal: hides later keys, where there is no ``attn_mask``.

        Returns:
            The output, shaped like the query, and None.

        Raises:
            RequestError: weights are asked for.
        """
        if need_weights:
            raise invalid("need_weights", need_weights, "False: there are no weights to return")
        batched = query.ndim == 3
        place = 0 if self.batch_first else 1
        streams = [stream if batched else stream.unsqueeze(place) for stream in (query, key, value)]
        if not self.batch_first:
            streams = [stream.transpose(0, 1) for stream in streams]
        queries, keys, values = (
            layer(stream).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, stream in zip((self.query, self.key, self.value), streams, strict=True)
        )
        mask = _added(attn_mask, key_padding_mask, query)
        mixed = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=is_causal and mask is None,
        )
        outputs = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not self.batch_first:
            outputs = outputs.transpose(0, 1)
        return outputs if batched else outputs.squeeze(place), None


def replaceable_attention(model: nn.Module, example_inputs: Examples) -> list[str]:
    """Names of torch's attention layers that ``HeadAttention`` can stand in for.

    Those that a run of the example calls, always without asking for weights or for a mask of each
    head, and that have neither extra keys nor transformed weights. An encoder that makes nested
    tensors of padded sequences returns zeros in the padding, as only its fused path does, and so
    keeps its layers.

    Args:
        model: any module.
        example_inputs: what it is called with.
    """
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) is nn.MultiheadAttention
        and layer.bias_k is None
        and not layer.add_zero_attn
        and not parametrize.is_parametrized(layer)
        and not parametrize.is_parametrized(layer.out_proj)
    }
    if not layers:
        return []
    signature = inspect.signature(nn.MultiheadAttention.forward)
    encoder_signature = inspect.signature(nn.TransformerEncoder.forward)
    fits: dict[str, bool] = {}
    nesting: set[str] = set()

    def note(call: ModuleCall) -> None:
        bound = signature.bind(call.module, *call.positional, **call.named)
        bound.apply_defaults()
        mask = bound.arguments["attn_mask"]
        plain = not bound.arguments["need_weights"] and (mask is None or mask.ndim == 2)
        fits[call.name] = fits.get(call.name, True) and plain

    def note_padding(call: ModuleCall) -> None:
        bound = encoder_signature.bind(call.module, *call.positional, **call.named)
        if bound.arguments.get("src_key_padding_mask") is not None:
            nesting.add(call.name)

    encoders = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.TransformerEncoder) and module.use_nested_tensor
    }
    with (
        evaluated(model),
        unfused(),
        torch.no_grad(),
        module_calls(layers, note),
        module_calls(encoders, note_padding),
    ):
        run_model(model, example_inputs)
    return [
        name
        for name in layers
        if fits.get(name, False)
        and not any(not outer or name.startswith(f"{outer}.") for outer in nesting)
    ]


def unpack_attention(model: nn.Module, layers: Sequence[str]) -> None:
    """Puts ``HeadAttention`` in the place of torch's attention layers.

    Args:
        model: changed in place.
        layers: names of the layers.
    """
    for name in layers:
        model.set_submodule(name, HeadAttention.of(_attention(model, name)))
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            # Nested tensors are for its fused path only.
            module.use_nested_tensor = False


def _attention(model: nn.Module, name: str) -> nn.MultiheadAttention:
    layer = model.get_submodule(name)
    if not isinstance(layer, nn.MultiheadAttention):
        raise invalid("layers", name, "the name of an nn.MultiheadAttention")
    return layer


def _added(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, like: Tensor
) -> Tensor | None:
    """What is added to the scores (batch, heads, queries, keys), or None."""
    padding = None if key_padding_mask is None else _scores(key_padding_mask, like)
    if padding is not None:
        padding = padding.reshape(-1, 1, 1, padding.shape[-1])
    if attn_mask is None:
        return padding
    scores = _scores(attn_mask, like)
    return scores if padding is None else scores + padding


def _scores(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype is not torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
