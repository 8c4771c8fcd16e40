"""What a traced model says about its layers: their place, what stands behind them, their fan-in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

from torch import Tensor

__all__ = ["UNKNOWN", "Layer", "LayerPart", "LayerRole", "LayerUse"]

LayerRole = Literal["input", "hidden", "output"]

UNKNOWN: Final = "unknown"
"""The activation where several ways through the model meet different ones, or none was told."""


@dataclass(frozen=True)
class LayerPart:
    """Outputs of a layer behind which the same things stand.

    Args:
        rows: their places on the axis of outputs; None for all of them. Fused layers have several
            parts: queries, keys and values, or the gates of a recurrent layer.
        activation: the first nonlinearity that they meet, by the name of its function ("softmax"
            for queries and keys); None if they reach the next weights or the model's output
            without one; "unknown" if that differs from way to way or an operation without a rule
            comes first.
        normalised: whether a norm stands between them and the next weights or the model's output;
            None if on some ways only. What is added to a residual stream goes on with it.
    """

    rows: tuple[int, ...] | None
    activation: str | None
    normalised: bool | None


@dataclass(frozen=True)
class LayerUse:
    """One form in which a weight is used.

    Args:
        role: "input" (reads nothing that another weight made, or looks rows up), "output" (what it
            makes reaches the model's output and no other weight) or "hidden"; None if it reaches
            neither, or differs between calls of a shared layer.
        inputs: axis of the weight that is summed over; None where there is none (lookups, tables)
            or where groups of channels are summed apart.
        outputs: axis of what it makes; None if it makes one number.
        fan_in: how many products make one output: inputs (of one group) times the kernel's area;
            in a transposed convolution divided by its strides; 1 for lookups and tables.
        parts: what stands behind its outputs.
        writes_stream: whether its outputs enter a residual stream, on either side of an addition to
            it, and nothing between normalises or bounds them: scaling the weight then changes how
            they weigh against the stream.
    """

    role: LayerRole | None
    inputs: int | None
    outputs: int | None
    fan_in: int
    parts: tuple[LayerPart, ...]
    writes_stream: bool

    @property
    def activation(self) -> str | None:
        """The activation behind all parts; "unknown" if they differ."""
        activations = {part.activation for part in self.parts}
        return activations.pop() if len(activations) == 1 else UNKNOWN

    @property
    def normalised(self) -> bool | None:
        """Whether a norm stands behind all parts; None if behind some."""
        answers = {part.normalised for part in self.parts}
        return answers.pop() if len(answers) == 1 else None


@dataclass(frozen=True)
class Layer:
    """A weight of two or more axes.

    Args:
        weight: name of the parameter, without the names of transformations on it.
        uses: the forms in which it is used: one, except for tied weights, such as an embedding that
            also makes the logits; () if it was not met in a form that tells.
    """

    weight: str
    uses: tuple[LayerUse, ...]

    @property
    def role(self) -> LayerRole | None:
        """The role in all uses; None if they differ."""
        roles = {use.role for use in self.uses}
        return roles.pop() if len(roles) == 1 else None

    @property
    def activation(self) -> str | None:
        """The activation behind all uses; "unknown" if they differ."""
        activations = {use.activation for use in self.uses}
        return activations.pop() if len(activations) == 1 else UNKNOWN

    @property
    def normalised(self) -> bool | None:
        """Whether a norm stands behind all uses; None if behind some."""
        answers = {use.normalised for use in self.uses}
        return answers.pop() if len(answers) == 1 else None

    @property
    def writes_stream(self) -> bool:
        """Whether any use writes to a residual stream that nothing normalises before."""
        return any(use.writes_stream for use in self.uses)

    @property
    def fan_in(self) -> int | None:
        """The fan-in in all uses; None if they differ."""
        sizes = {use.fan_in for use in self.uses}
        return sizes.pop() if len(sizes) == 1 else None

    def resized(self, source: Callable[[int], tuple[int, Tensor] | None]) -> Layer:
        """The layer after some of its axes changed size.

        Args:
            source: for an axis, its old size and for each new position the old one that it holds
                or copies; None for axes that stay.
        """
        return replace(self, uses=tuple(_resized(use, source) for use in self.uses))


def _resized(use: LayerUse, source: Callable[[int], tuple[int, Tensor] | None]) -> LayerUse:
    fan_in, parts = use.fan_in, use.parts
    change = None if use.inputs is None else source(use.inputs)
    if change is not None:
        fan_in = fan_in * len(change[1]) // change[0]
    change = None if use.outputs is None else source(use.outputs)
    if change is not None:
        parts = tuple(replace(part, rows=_moved(part.rows, change[1])) for part in parts)
    return replace(use, fan_in=fan_in, parts=parts)


def _moved(rows: tuple[int, ...] | None, source: Tensor) -> tuple[int, ...] | None:
    if rows is None:
        return None
    wanted = set(rows)
    return tuple(new for new, old in enumerate(source.tolist()) if old in wanted)
