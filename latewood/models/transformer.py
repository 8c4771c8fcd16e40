"""Causal Transformer language model."""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from latewood.errors import invalid
from latewood.models.parts import (
    Activation,
    activation_layer,
    require_positive,
    sinusoidal_positions,
)

__all__ = ["PositionedEmbedding", "Transformer", "transformer"]

Positions = Literal["learned", "sinusoidal"]


class CausalSelfAttention(nn.Module):
    """Multi-head attention to the present and the past.

    The rows of ``in_proj`` are the queries, then the keys, then the values; within each, head h
    has rows h * width / heads to (h + 1) * width / heads.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        packed = self.in_proj(inputs).unflatten(-1, (3, self.heads, -1))
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, dropout_p=self.dropout if self.training else 0.0
        )
        outputs: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return outputs


class TransformerBlock(nn.Module):
    """Attention and a two-layer network, each added to the stream; norms sit before them."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        activation: Activation,
        dropout: float,
        norm: bool,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width) if norm else nn.Identity()
        self.attention = CausalSelfAttention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width) if norm else nn.Identity()
        self.linear1 = nn.Linear(width, hidden)
        self.activation = activation_layer(activation)
        self.linear2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, stream: Tensor) -> Tensor:
        mixed: Tensor = stream + self.dropout(self.attention(self.norm1(stream)))
        hidden = self.activation(self.linear1(self.norm2(mixed)))
        written: Tensor = self.dropout(self.linear2(hidden))
        return mixed + written


class PositionedEmbedding(nn.Module):
    """Token vectors plus position vectors."""

    positions: Tensor

    def __init__(
        self, vocabulary: int, context: int, width: int, *, positions: Positions, scaled: bool
    ) -> None:
        super().__init__()
        self.context = context
        self.scale = math.sqrt(width) if scaled else 1.0
        self.tokens = nn.Embedding(vocabulary, width)
        if positions == "learned":
            self.learned: nn.Embedding | None = nn.Embedding(context, width)
        elif positions == "sinusoidal":
            self.learned = None
            table = sinusoidal_positions(context, width)
            self.register_buffer("positions", table, persistent=False)
        else:
            raise invalid("positions", positions, "learned or sinusoidal")

    def forward(self, tokens: Tensor) -> Tensor:
        outputs: Tensor = self.scale * self.tokens(tokens) + self._positions(tokens.shape[1])
        return outputs

    def table(self, length: int) -> Tensor:
        """The outputs of all tokens at the first ``length`` positions: (length, tokens, width)."""
        outputs: Tensor = self.scale * self.tokens.weight + self._positions(length).unsqueeze(1)
        return outputs

    def _positions(self, length: int) -> Tensor:
        if length > self.context:
            raise invalid("tokens", f"{length} positions", f"at most {self.context} positions")
        table = self.positions if self.learned is None else self.learned.weight
        return table[:length]


class Transformer(nn.Module):
    """Embedding, blocks, a last norm and a linear head over the vocabulary."""

    def __init__(
        self,
        *,
        vocabulary: int,
        context: int,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        activation: Activation,
        dropout: float,
        norm: bool,
        positions: Positions,
        scale_embedding: bool,
        tied: bool,
    ) -> None:
        super().__init__()
        self.embedding = PositionedEmbedding(
            vocabulary, context, width, positions=positions, scaled=scale_embedding
        )
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width, heads, hidden, activation=activation, dropout=dropout, norm=norm
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.embedding.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        stream = self.dropout(self.embedding(tokens))
        for block in self.blocks:
            stream = block(stream)
        logits: Tensor = self.head(self.norm(stream))
        return logits


def _initialize_normal(model: Transformer) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    # Each block adds twice to the stream; this keeps its variance independent of the depth.
    std = 0.02 / math.sqrt(2 * len(model.blocks))
    for block in model.blocks:
        if isinstance(block, TransformerBlock):
            nn.init.normal_(block.attention.out_proj.weight, std=std)
            nn.init.normal_(block.linear2.weight, std=std)


def _initialize_uniform(model: Transformer) -> None:
    nn.init.uniform_(model.embedding.tokens.weight, -0.1, 0.1)
    nn.init.uniform_(model.head.weight, -0.1, 0.1)
    for module in model.modules():
        if isinstance(module, CausalSelfAttention):
            nn.init.xavier_uniform_(module.in_proj.weight)
            nn.init.zeros_(module.in_proj.bias)
            nn.init.zeros_(module.out_proj.bias)


def transformer(
    *,
    vocabulary: int,
    context: int = 256,
    width: int = 128,
    layers: int = 4,
    heads: int = 4,
    hidden: int | None = None,
    activation: Activation = "gelu",
    dropout: float = 0.0,
    norm: bool = True,
    positions: Positions = "learned",
    scale_embedding: bool = False,
    tied: bool = False,
    init: Literal["normal", "uniform"] = "normal",
) -> Transformer:
    """Causal Transformer language model with norms before attention and the two-layer network.

    The WikiText-103 model of arXiv 2408.11804 is ``width=768, layers=12, heads=12, hidden=768,
    activation="relu", positions="sinusoidal", scale_embedding=True, init="uniform",
    context=2048``.

    Args:
        vocabulary: number of tokens.
        context: longest sequence.
        width: entries of the stream, a multiple of ``heads``.
        layers: blocks.
        heads: attention heads.
        hidden: width of the two-layer network; None is four times ``width``.
        activation: of the two-layer network.
        dropout: probability on the embedding, the attention weights and what is added to the
            stream.
        norm: layer normalisation; False leaves all of it out.
        positions: "learned" or fixed "sinusoidal" position vectors.
        scale_embedding: multiply token vectors by sqrt(width).
        tied: the head's weight is the token embedding's.
        init: "normal": N(0, 0.02^2), the layers that write to the stream divided by
            sqrt(2 layers); "uniform": U(-0.1, 0.1) for tokens and head, Xavier-uniform for the
            attention's input projection, torch's own elsewhere.

    Returns:
        A model from (batch, time) int64 to logits (batch, time, vocabulary).

    Raises:
        RequestError: a size is not positive, ``width`` is no multiple of ``heads``, or a name is
            unknown.

    Source: Radford et al. 2019 (GPT-2); "uniform" after the language model of arXiv 2408.11804.
    """
    require_positive(
        vocabulary=vocabulary, context=context, width=width, layers=layers, heads=heads
    )
    if width % heads:
        raise invalid("width", width, f"a multiple of heads={heads}")
    if init not in ("normal", "uniform"):
        raise invalid("init", init, "normal or uniform")
    hidden = 4 * width if hidden is None else hidden
    require_positive(hidden=hidden)
    model = Transformer(
        vocabulary=vocabulary,
        context=context,
        width=width,
        layers=layers,
        heads=heads,
        hidden=hidden,
        activation=activation,
        dropout=dropout,
        norm=norm,
        positions=positions,
        scale_embedding=scale_embedding,
        tied=tied,
    )
    if init == "normal":
        _initialize_normal(model)
    else:
        _initialize_uniform(model)
    return model
