"""How channels pass through recurrent layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from latewood.core.coupling.data_movement_rules import note_division
from latewood.core.coupling.label_layout import compact
from latewood.core.coupling.labels import NONE
from latewood.core.coupling.layer_rules import read, write
from latewood.core.coupling.traced_call import Call, Result, Rule

__all__ = ["SEQUENCE_RULES"]

_GATES: Final = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def _recurrent(call: Call) -> Result:
    """One width for all layers and directions, since torch's layers have one ``hidden_size``."""
    packed = not isinstance(call.positional[3], bool)
    inputs = call.positional[0]
    states, weights = call.positional[2 if packed else 1], call.positional[3 if packed else 2]
    has_biases, layers, _, _, bidirectional, *_ = call.positional[4 if packed else 3 :]
    directions = 2 if bidirectional else 1
    count = len(weights) // (layers * directions)
    cells = [weights[start : start + count] for start in range(0, len(weights), count)]
    gates = _GATES[call.name]
    entering = call.labels.of(inputs)
    unit = out = None
    for layer in range(layers):
        leaving = []
        for cell in cells[layer * directions : (layer + 1) * directions]:
            cell_unit, cell_out = _cell(call, entering, cell, gates, has_biases)
            unit = cell_unit if unit is None else unit
            out = cell_out if out is None else out
            call.labels.couple(cell_unit, unit)
            call.labels.couple(cell_out, out)
            leaving.append(cell_out)
        entering = torch.cat(leaving)
    listed = [states] if isinstance(states, Tensor) else list(states)
    kinds = [out, unit] if len(listed) == 2 else [out]
    for state, kind in zip(listed, kinds, strict=True):
        if kind is not None:
            _start(call, state, kind)
    return (entering, *kinds)


def _recurrent_cell(call: Call) -> Result:
    inputs, states, *weights = call.positional
    listed = [states] if isinstance(states, Tensor) else list(states)
    named = [weights[0], weights[1], *(bias for bias in weights[2:4] if bias is not None)]
    gates = _GATES[call.name.removesuffix("_cell")]
    unit, out = _cell(call, call.labels.of(inputs), named, gates, len(named) == 4)
    for state in listed:
        _start(call, state, unit)
    return [out, unit] if len(listed) == 2 else out


def _start(call: Call, state: Any, units: Tensor) -> None:
    """Couples what a layer starts from; made without data, it is as wide as the code says."""
    if not isinstance(state, Tensor):
        return
    labels = call.labels.of(state)
    call.labels.couple(labels, units)
    if bool((compact(labels) == NONE).all()):
        units = units.expand(state.shape)
        sizes = call.labels.allocated.get(state)
        if sizes is None:
            call.labels.must_not_vary(
                units, -1, "fixed", f"{call.where} starts from data of fixed size"
            )
        else:
            note_division(call, units, sizes)


def _cell(
    call: Call, entering: Tensor, weights: Sequence[Any], gates: int, has_biases: bool
) -> tuple[Tensor, Tensor]:
    """Couples one cell's tensors; returns labels of its units and of what leaves it."""
    weight_in, weight_back, *others = weights
    biases = others[:2] if has_biases else []
    projection = others[2 if has_biases else 0 :]
    read(call, entering, call.labels.axis(weight_in, 1, "consumer"))
    rows = call.labels.axis(weight_in, 0, "producer").view(gates, -1)
    call.labels.boundaries.cut(rows.flatten(), 0, range(0, rows.numel(), rows.shape[1]))
    unit = rows[0]
    call.labels.couple(rows, unit)
    back = call.labels.axis(weight_back, 0, "producer")
    call.labels.couple(back, rows.flatten())
    call.labels.boundaries.follow(back, rows.flatten())
    for bias in biases:
        write(call, bias, rows.flatten())
    out = unit
    if projection:
        read(call, unit, call.labels.axis(projection[0], 1, "consumer"))
        out = call.labels.axis(projection[0], 0, "producer")
    read(call, out, call.labels.axis(weight_back, 1, "consumer"))
    return unit, out


def _pack(call: Call) -> Result:
    return (call.labels.of(call.positional[0])[0, :1], None)


def _pad_packed(call: Call) -> Result:
    return (call.labels.of(call.positional[0])[:1], None)


SEQUENCE_RULES: Final[dict[str, Rule]] = {
    **dict.fromkeys(_GATES, _recurrent),
    **dict.fromkeys((f"{name}_cell" for name in _GATES), _recurrent_cell),
    "pack_padded_sequence": _pack,
    "pad_packed_sequence": _pad_packed,
}
"""Rules by the name of the operation."""
