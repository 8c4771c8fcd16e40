"""Recurrent networks: sequence classifier, language model, bidirectional labeller for CTC."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from latewood.errors import invalid
from latewood.models.parts import require_positive

__all__ = [
    "BidirectionalLSTM",
    "LSTMClassifier",
    "LSTMLanguageModel",
    "bidirectional_lstm",
    "lstm_classifier",
    "lstm_language_model",
]


class LSTMClassifier(nn.Module):
    """LSTM over a sequence of feature vectors, a classifier on a summary of its outputs."""

    def __init__(
        self,
        *,
        features: int,
        hidden: int,
        layers: int,
        num_classes: int,
        bidirectional: bool,
        dropout: float,
        pool: Literal["mean", "last"],
    ) -> None:
        super().__init__()
        self.pool = pool
        self.lstm = nn.LSTM(
            features,
            hidden,
            num_layers=layers,
            batch_first=True,
            dropout=dropout if layers > 1 else 0.0,
            bidirectional=bidirectional,
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden * (2 if bidirectional else 1), num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs, (last, _) = self.lstm(inputs)
        if self.pool == "mean":
            summary = outputs.mean(dim=1)
        elif self.lstm.bidirectional:
            summary = torch.cat((last[-2], last[-1]), dim=1)
        else:
            summary = last[-1]
        logits: Tensor = self.head(self.dropout(summary))
        return logits


def lstm_classifier(
    *,
    features: int,
    num_classes: int = 10,
    hidden: int = 128,
    layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    pool: Literal["mean", "last"] = "mean",
) -> LSTMClassifier:
    """Classifies sequences of feature vectors with an LSTM.

    Args:
        features: entries of one feature vector.
        num_classes: outputs.
        hidden: units of each layer and direction.
        layers: LSTM layers.
        bidirectional: whether a second LSTM reads backwards.
        dropout: probability between layers and before the classifier.
        pool: what the classifier sees: the "mean" over time, or the "last" state of each
            direction.

    Returns:
        A model from (batch, time, features) to (batch, num_classes).

    Raises:
        RequestError: a size is not positive, or the pooling is unknown.
    """
    require_positive(features=features, num_classes=num_classes, hidden=hidden, layers=layers)
    if pool not in ("mean", "last"):
        raise invalid("pool", pool, "mean or last")
    return LSTMClassifier(
        features=features,
        hidden=hidden,
        layers=layers,
        num_classes=num_classes,
        bidirectional=bidirectional,
        dropout=dropout,
        pool=pool,
    )


class LSTMLanguageModel(nn.Module):
    """Embedding, LSTM and a linear decoder over the vocabulary, with dropout between them."""

    def __init__(
        self, *, vocabulary: int, hidden: int, layers: int, dropout: float, tied: bool
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.lstm = nn.LSTM(
            hidden,
            hidden,
            num_layers=layers,
            batch_first=True,
            dropout=dropout if layers > 1 else 0.0,
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, vocabulary)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.unroll(tokens)[0]

    def unroll(
        self, tokens: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Logits, and the state from which the next stretch of the same text goes on.

        Args:
            tokens: (batch, time) int64.
            state: hidden and cell state, each (layers, batch, hidden); None starts at zero.

        Returns:
            logits (batch, time, vocabulary), and the state after the last token.
        """
        hidden, state = self.lstm(self.dropout(self.embedding(tokens)), state)
        return self.head(self.dropout(hidden)), state


def lstm_language_model(
    *,
    vocabulary: int,
    hidden: int = 1500,
    layers: int = 2,
    dropout: float = 0.0,
    tied: bool = False,
    init_range: float | None = None,
) -> LSTMLanguageModel:
    """Predicts the next token with an LSTM; embeddings are as wide as the layers.

    With a vocabulary of 10,000 the default is the large Penn Treebank model, 66.0 million values.

    Args:
        vocabulary: number of tokens.
        hidden: units of each layer and width of the embedding.
        layers: LSTM layers.
        dropout: probability on the embedding, between layers and before the decoder.
        tied: the decoder's weight is the embedding's.
        init_range: draw all parameters from U(-init_range, init_range); None keeps torch's
            initialisation with embeddings from U(-0.1, 0.1).

    Returns:
        A model from (batch, time) int64 to logits (batch, time, vocabulary).

    Raises:
        RequestError: a size is not positive.

    Source: Zaremba et al. 2014 (arXiv 1409.2329), section 4.1.
    """
    require_positive(vocabulary=vocabulary, hidden=hidden, layers=layers)
    model = LSTMLanguageModel(
        vocabulary=vocabulary, hidden=hidden, layers=layers, dropout=dropout, tied=tied
    )
    if init_range is None:
        nn.init.uniform_(model.embedding.weight, -0.1, 0.1)
        return model
    require_positive(init_range=init_range)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -init_range, init_range)
    return model


class BidirectionalLSTM(nn.Module):
    """Labels every frame of a sequence; the labels' blank is for the loss to know."""

    def __init__(self, *, features: int, hidden: int, layers: int, num_classes: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(
            features, hidden, num_layers=layers, batch_first=True, bidirectional=True
        )
        self.head = nn.Linear(2 * hidden, num_classes)

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is None:
            hidden = self.lstm(inputs)[0]
        else:
            # Packed, the backward direction starts at each sequence's own end, not in the padding.
            packed = pack_padded_sequence(
                inputs, lengths.cpu(), batch_first=True, enforce_sorted=False
            )
            hidden = pad_packed_sequence(
                self.lstm(packed)[0], batch_first=True, total_length=inputs.shape[1]
            )[0]
        logits: Tensor = self.head(hidden)
        return logits


def bidirectional_lstm(
    *,
    features: int = 40,
    hidden: int = 256,
    layers: int = 4,
    num_classes: int = 29,
) -> BidirectionalLSTM:
    """Bidirectional LSTM with one linear head per frame, for connectionist temporal classification.

    Args:
        features: entries of one feature vector (mel bands).
        hidden: units of each layer and direction.
        layers: LSTM layers.
        num_classes: labels including the blank.

    Returns:
        A model from (batch, time, features), and optionally lengths (batch,), to logits
        (batch, time, num_classes).

    Raises:
        RequestError: a size is not positive.

    Source: the speech model of arXiv 2408.11804.
    """
    require_positive(features=features, hidden=hidden, layers=layers, num_classes=num_classes)
    return BidirectionalLSTM(
        features=features, hidden=hidden, layers=layers, num_classes=num_classes
    )
