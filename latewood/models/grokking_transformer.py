"""The one-layer Transformer that groks modular addition, literally and from tables."""

from __future__ import annotations

import math
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latewood.errors import invalid
from latewood.models.parts import require_positive
from latewood.models.transformer import PositionedEmbedding

__all__ = ["GrokkingTransformer", "grokking_transformer"]


class GrokkingBlock(nn.Module):
    """Attention (``nn.MultiheadAttention``) and a two-layer ReLU network, added to the stream."""

    def __init__(self, width: int, heads: int, hidden: int, *, norm: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width) if norm else nn.Identity()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width) if norm else nn.Identity()
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)

    def forward(self, stream: Tensor) -> Tensor:
        """The stream at the last position only, which a causal model may see all others from.

        Args:
            stream: (batch, time, width).

        Returns:
            (batch, width).
        """
        normed = self.norm1(stream)
        mixed = self.attention(normed[:, -1:], normed, normed, need_weights=False)[0]
        return self._written((stream[:, -1:] + mixed).squeeze(1))

    def from_table(self, table: Tensor, tokens: Tensor) -> Tensor:
        """The same as ``forward`` of ``table[time, tokens]``, with each entry projected once.

        Args:
            table: (time, vocabulary, width), the stream of every token at every position.
            tokens: (batch, time) int64.

        Returns:
            (batch, width).
        """
        queries, keys, values = self._projected(self.norm1(table))
        scores = torch.einsum("uhc,tvhc->utvh", queries, keys) / math.sqrt(keys.shape[-1])
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        shares = scores[tokens[:, -1:], positions, tokens].softmax(dim=1)
        # Position by position: one gather of all values would be written and read once more.
        parts = (
            shares[:, t, :, None] * values[t].index_select(0, tokens[:, t])
            for t in range(tokens.shape[1])
        )
        mixed = reduce(torch.add, parts)
        last = table[-1].index_select(0, tokens[:, -1])
        return self._written(last + self.attention.out_proj(mixed.flatten(1)))

    def _projected(self, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (vocabulary, heads, c) of the last position; keys and values of all."""
        heads, width = self.attention.num_heads, table.shape[-1]
        weights = self.attention.in_proj_weight.split([width, 2 * width])
        biases = self.attention.in_proj_bias.split([width, 2 * width])
        queries = F.linear(table[-1], weights[0], biases[0]).unflatten(-1, (heads, -1))
        both = F.linear(table, weights[1], biases[1]).unflatten(-1, (2, heads, -1))
        keys, values = both.unbind(-3)
        return queries, keys, values

    def _written(self, last: Tensor) -> Tensor:
        outputs: Tensor = last + self.linear2(F.relu(self.linear1(self.norm2(last))))
        return outputs


class GrokkingTransformer(nn.Module):
    """One block between an embedding and a head; answers at the last position only."""

    def __init__(
        self,
        *,
        vocabulary: int,
        context: int,
        width: int,
        heads: int,
        hidden: int,
        norm: bool,
        tabulated: bool,
    ) -> None:
        super().__init__()
        self.tabulated = tabulated
        self.embedding = PositionedEmbedding(
            vocabulary, context, width, positions="sinusoidal", scaled=True
        )
        self.block = GrokkingBlock(width, heads, hidden, norm=norm)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.tabulated:
            stream = self.block.from_table(self.embedding.table(tokens.shape[1]), tokens)
        else:
            stream = self.block(self.embedding(tokens))
        logits: Tensor = self.head(self.norm(stream))
        return logits


def grokking_transformer(
    *,
    vocabulary: int = 114,
    context: int = 3,
    width: int = 128,
    heads: int = 4,
    hidden: int = 512,
    norm: bool = False,
    tabulated: bool = False,
) -> GrokkingTransformer:
    """One-layer causal Transformer without norms, as it groks modular addition.

    The loss is on the last position, so only that position's query and two-layer network are
    computed; the result is that of the full causal layer. What attention reads depends on a token
    and its position alone: with ``tabulated`` each such entry is projected once instead of once per
    sequence. The result is the same up to rounding, and faster where there are many more sequences
    in a batch than tokens in the vocabulary.

    Args:
        vocabulary: number of tokens, p + 1.
        context: longest sequence.
        width: entries of the stream, a multiple of ``heads``.
        heads: attention heads.
        hidden: width of the two-layer network.
        norm: layer normalisation before attention, before the two-layer network and at the end.
        tabulated: project every token at every position once per step.

    Returns:
        A model from (batch, time) int64 to logits (batch, vocabulary) of the last position.

    Raises:
        RequestError: a size is not positive, or ``width`` is no multiple of ``heads``.

    Source: the modular-addition model of arXiv 2408.11804.
    """
    require_positive(
        vocabulary=vocabulary, context=context, width=width, heads=heads, hidden=hidden
    )
    if width % heads:
        raise invalid("width", width, f"a multiple of heads={heads}")
    model = GrokkingTransformer(
        vocabulary=vocabulary,
        context=context,
        width=width,
        heads=heads,
        hidden=hidden,
        norm=norm,
        tabulated=tabulated,
    )
    nn.init.uniform_(model.embedding.tokens.weight, -0.1, 0.1)
    nn.init.uniform_(model.head.weight, -0.1, 0.1)
    nn.init.zeros_(model.head.bias)
    return model
