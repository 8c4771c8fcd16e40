"""Recurrent layers whose products of inputs and of states are those of packed codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from latewood.errors import RequestError, invalid
from latewood.precision.formats import weight_format
from latewood.precision.packed_layers import PackedLinear

__all__ = ["PackedGRU", "PackedLSTM", "RecurrentFormat"]


class RecurrentFormat(NamedTuple):
    """How what a recurrent product reads is quantised.

    Args:
        bits: 1 to 8, for all channels.
        scale: (alpha) positive; numbers lie on the grid between -2 and 2 of it.
    """

    bits: int
    scale: float


class _PackedRecurrent(nn.Module):
    """What both kinds share: cells by layer and direction, and the way through a sequence."""

    gates: int = 0

    def __init__(
        self,
        cells: Sequence[tuple[PackedLinear, PackedLinear]],
        *,
        bidirectional: bool = False,
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        directions = 2 if bidirectional else 1
        if not cells or len(cells) % directions:
            raise invalid("cells", f"{len(cells)} pairs", f"{directions} for each layer")
        self.hidden_size = cells[0][1].shape[1]
        self.bidirectional, self.batch_first = bidirectional, batch_first
        for place, (inputs, states) in enumerate(cells):
            expected = (self.gates * self.hidden_size, self.hidden_size)
            if tuple(states.shape) != expected or inputs.shape[0] != expected[0]:
                shapes = f"{tuple(inputs.shape)} and {tuple(states.shape)} at {place}"
                raise invalid("cells", shapes, f"({expected[0]}, inputs) and {expected}")
        self.of_inputs = nn.ModuleList(pair[0] for pair in cells)
        self.of_states = nn.ModuleList(pair[1] for pair in cells)
        self.eval()

    @property
    def stored_bits(self) -> int:
        """Bits of all codes and masks."""
        layers = [*self.of_inputs, *self.of_states]
        return sum(layer.stored_bits for layer in layers if isinstance(layer, PackedLinear))

    def _sequence(self, inputs: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Outputs (time, batch, ...) and the last state of every cell."""
        directions = 2 if self.bidirectional else 1
        last: list[Tensor] = []
        for layer in range(len(self.of_inputs) // directions):
            parts = []
            for direction in range(directions):
                place = layer * directions + direction
                # All steps at once, as none of them waits for another.
                given = self.of_inputs[place](inputs)
                steps = range(len(given)) if direction == 0 else range(len(given) - 1, -1, -1)
                state, outputs = states[place], [given] * len(given)
                for step in steps:
                    state = self._step(given[step], self.of_states[place], state)
                    outputs[step] = self._output(state)
                last.append(state)
                parts.append(torch.stack(outputs) if outputs else given[..., : self.hidden_size])
            inputs = torch.cat(parts, -1)
        return inputs, last

    def _step(self, given: Tensor, product: nn.Module, state: Tensor) -> Tensor:
        raise NotImplementedError

    def _output(self, state: Tensor) -> Tensor:
        return state

    def _placed(self, inputs: Tensor) -> tuple[Tensor, bool]:
        """(time, batch, channels), and whether there was no axis of the batch."""
        if inputs.dim() not in (2, 3):
            raise invalid("inputs", tuple(inputs.shape), "(time, batch, channels) or one sequence")
        if inputs.dim() == 2:
            return inputs[:, None], True
        return (inputs.transpose(0, 1) if self.batch_first else inputs), False

    def _back(self, outputs: Tensor, alone: bool) -> Tensor:
        if alone:
            return outputs[:, 0]
        return outputs.transpose(0, 1) if self.batch_first else outputs

    def _start(self, given: Tensor | None, inputs: Tensor, alone: bool, name: str) -> Tensor:
        shape = (len(self.of_inputs), inputs.shape[1], self.hidden_size)
        if given is None:
            return inputs.new_zeros(shape)
        state = given[:, None] if alone and given.dim() == 2 else given
        if tuple(state.shape) != shape:
            raise invalid(name, tuple(given.shape), f"{shape[:1] + shape[2:] if alone else shape}")
        return state


class PackedLSTM(_PackedRecurrent):
    r"""An LSTM of packed codes; gates and states are floating numbers.

    .. math:: (i, f, g, o) = W x + U h, \quad c' = \sigma(f) c + \sigma(i) \tanh g,
        \quad h' = \sigma(o) \tanh c'

    Args:
        cells: of each layer, and of each direction in it, the products W and U with their biases:
            (4 hidden, inputs) and (4 hidden, hidden), in torch's order of gates.
        bidirectional: whether a second cell of each layer reads backwards.
        batch_first: whether sequences are (batch, time, channels).

    Raises:
        RequestError: shapes that do not fit one another.
    """

    gates = 4

    @classmethod
    def of(
        cls,
        layer: nn.LSTM,
        inputs: RecurrentFormat | None = None,
        states: RecurrentFormat | None = None,
    ) -> PackedLSTM:
        """The packed form of a finished layer whose weights have number formats.

        Args:
            layer: without projection.
            inputs: format of what W reads; None: as it is, the weights are then multiplied as
                floating numbers.
            states: likewise of what U reads.

        Raises:
            RequestError: the layer has no packed form; the message says why.
        """
        if layer.proj_size:
            raise RequestError("an LSTM with a projection has no packed form")
        return cls(
            _cells(layer, inputs, states),
            bidirectional=layer.bidirectional,
            batch_first=layer.batch_first,
        )

    def forward(
        self, inputs: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Outputs and last states, as of ``nn.LSTM``.

        Args:
            inputs: (time, batch, channels), the first two swapped with ``batch_first``, or one
                sequence.
            state: hidden and cell, each (layers x directions, batch, hidden); None starts at 0.

        Raises:
            RequestError: shapes that do not fit, NaN.
        """
        x, alone = self._placed(inputs)
        hidden = self._start(None if state is None else state[0], x, alone, "state[0]")
        cell = self._start(None if state is None else state[1], x, alone, "state[1]")
        outputs, last = self._sequence(x, list(torch.stack((hidden, cell), 1)))
        ends = torch.stack(last)[:, :, 0] if alone else torch.stack(last)
        return self._back(outputs, alone), (ends[:, 0], ends[:, 1])

    def _step(self, given: Tensor, product: nn.Module, state: Tensor) -> Tensor:
        i, f, g, o = (given + product(state[0])).chunk(4, -1)
        cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.stack((torch.sigmoid(o) * torch.tanh(cell), cell))

    def _output(self, state: Tensor) -> Tensor:
        return state[0]


class PackedGRU(_PackedRecurrent):
    r"""A GRU of packed codes; gates and states are floating numbers.

    .. math:: r, z = \sigma(W x + U h), \quad n = \tanh(W_n x + r (U_n h)),
        \quad h' = (1 - z) n + z h

    Args:
        cells: as for ``PackedLSTM``, with three gates.
        bidirectional: likewise.
        batch_first: likewise.
    """

    gates = 3

    @classmethod
    def of(
        cls,
        layer: nn.GRU,
        inputs: RecurrentFormat | None = None,
        states: RecurrentFormat | None = None,
    ) -> PackedGRU:
        """The packed form of a finished layer, as ``PackedLSTM.of``."""
        return cls(
            _cells(layer, inputs, states),
            bidirectional=layer.bidirectional,
            batch_first=layer.batch_first,
        )

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs and last states, as of ``nn.GRU``.

        Args:
            inputs: as for ``PackedLSTM``.
            state: (layers x directions, batch, hidden); None starts at 0.

        Raises:
            RequestError: shapes that do not fit, NaN.
        """
        x, alone = self._placed(inputs)
        hidden = self._start(state, x, alone, "state")
        outputs, last = self._sequence(x, list(hidden))
        ends = torch.stack(last)
        return self._back(outputs, alone), ends[:, 0] if alone else ends

    def _step(self, given: Tensor, product: nn.Module, state: Tensor) -> Tensor:
        from_inputs, from_states = given.chunk(3, -1), product(state).chunk(3, -1)
        r, z = (torch.sigmoid(from_inputs[k] + from_states[k]) for k in range(2))
        new = torch.tanh(from_inputs[2] + r * from_states[2])
        return (1 - z) * new + z * state


def _cells(
    layer: nn.RNNBase, inputs: RecurrentFormat | None, states: RecurrentFormat | None
) -> list[tuple[PackedLinear, PackedLinear]]:
    cells = []
    for number in range(layer.num_layers):
        for suffix in ("", "_reverse") if layer.bidirectional else ("",):
            end = f"_l{number}{suffix}"
            cells.append(
                (
                    _product(layer, f"ih{end}", inputs, "inputs"),
                    _product(layer, f"hh{end}", states, "states"),
                )
            )
    return cells


def _product(
    layer: nn.RNNBase, name: str, reads: RecurrentFormat | None, argument: str
) -> PackedLinear:
    weight = getattr(layer, f"weight_{name}")
    grid = weight_format(layer, f"weight_{name}")
    if grid is None:
        raise RequestError(f"weight_{name} has no number format")
    if not grid.holds(weight):
        raise RequestError(f"weight_{name} has left the grid of its number format")
    kept = grid.kept(weight).cpu()
    bits, scale = (x.detach().cpu().expand(weight.shape) for x in (grid.bits, grid.scale))
    if not bool((bits == bits[:1]).all()):
        raise RequestError(f"weight_{name}: its bits differ within an input channel")
    if not bool((scale == scale[:, :1]).all()):
        raise RequestError(f"weight_{name}: its scale differs within an output channel")
    channel_bits = torch.where(kept.any(0), bits[0], 0)
    input_bits = None
    if reads is not None:
        if type(reads.bits) is not int or not 1 <= reads.bits <= 8:
            raise invalid(f"{argument}.bits", reads.bits, "a whole number from 1 to 8")
        input_bits = torch.where(channel_bits > 0, reads.bits, 0).to(torch.uint8)
    return PackedLinear(
        (grid.codes(weight).cpu() * (channel_bits > 0)).to(torch.uint8),
        channel_bits.contiguous(),
        scale[:, 0].float().contiguous(),
        input_bits=input_bits,
        input_scale=1.0 if reads is None else reads.scale,
        mask=kept,
        bias=getattr(layer, f"bias_{name}", None) if layer.bias else None,
    )
