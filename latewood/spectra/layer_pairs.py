"""Two layers of which the second reads what the first writes, by the names of their weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from latewood.errors import invalid

__all__ = ["LayerPair", "PairPart", "as_layer_pair"]

PairPart = Literal["", "query-key", "value", "forward", "backward", "gate", "up"]


@dataclass(frozen=True)
class LayerPair:
    """Two weights of which the second reads what the first writes.

    Args:
        outputs: full name of the parameter that writes.
        inputs: full name of the parameter that reads.
        part: "query-key" compares the two inside ``outputs``, a fused projection of attention, or
            the queries of ``outputs`` with the keys of ``inputs``; "value" takes the values of a
            fused projection, or values that several heads of queries share, as often as they are
            read; "forward" and "backward" take that half of the columns of ``inputs``, which reads
            both directions of a bidirectional layer; "gate" and "up" take the first and the second
            half of the rows of ``outputs``, whose product ``inputs`` reads.
    """

    outputs: str
    inputs: str
    part: PairPart = ""

    @property
    def name(self) -> str:
        """The pair in one word, for tables and plots."""
        if self.part == "query-key" and self.outputs == self.inputs:
            return f"{self.outputs}[query->key]"
        writes = self.part in ("value", "gate", "up")
        first = f"{self.outputs}[{self.part}]" if writes else self.outputs
        half = f"[{self.part}]" if self.part in ("forward", "backward") else ""
        return f"{first}->{self.inputs}{half}"


def as_layer_pair(pair: LayerPair | tuple[str, str]) -> LayerPair:
    """A pair from one, or from two names.

    Raises:
        RequestError: neither.
    """
    if isinstance(pair, LayerPair):
        return pair
    if isinstance(pair, str) or len(pair) != 2:
        raise invalid("pairs", pair, "tuples of two names, (outputs, inputs)")
    return LayerPair(*pair)
