"""How channels pass through attention, where heads are the channels, or the entries of a head."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from latewood.core.coupling.data_movement_rules import note_division
from latewood.core.coupling.label_layout import compact
from latewood.core.coupling.labels import NONE
from latewood.core.coupling.layer_rules import read, write
from latewood.core.coupling.traced_call import Call, Result, Rule

__all__ = ["ATTENTION_RULES"]


def _attention(call: Call) -> Result:
    names = ("query", "key", "value", "attn_mask")
    tensors = [tensor for tensor in call.arguments(*names) if isinstance(tensor, Tensor)]
    return _by_entry(call, tensors) if call.labels.by_head_size else _by_head(call, tensors)


def _by_head(call: Call, tensors: list[Tensor]) -> Tensor:
    """Heads are the channels: the size of a head sets the scale of its scores."""
    queries = tensors[0].shape[-3] if tensors[0].ndim > 2 else 1
    heads = []
    for tensor in tensors:
        labels = call.labels.of(tensor)
        head = labels[..., :1, :1]
        call.labels.couple(labels, head)
        if head.ndim > 2 and 1 < head.shape[-3] < queries:
            head = head.repeat_interleave(queries // head.shape[-3], -3)
        heads.append(head)
    for tensor, head in zip(tensors, heads, strict=True):
        # A mask for all heads is no matter; one for each head must follow them.
        shared = tensor.ndim < 3 or (tensor.shape[-3] == 1 and queries > 1)
        if not shared and bool((compact(head) == NONE).any()):
            for other in heads:
                call.labels.bar(other, "fixed", f"{call.where} meets data of fixed size")
    for head in heads:
        call.labels.couple(heads[0], head)
    # The entries of a head are one channel, but each with its own label their places stay known.
    values = call.labels.of(tensors[2])[..., :1, :]
    repeats = heads[2].shape[-3] // values.shape[-3] if values.ndim > 2 else 1
    values = values.repeat_interleave(repeats, -3) if repeats > 1 else values
    return torch.where(values == NONE, heads[2], values)


def _by_entry(call: Call, tensors: list[Tensor]) -> Tensor:
    """An entry of all heads is a channel: of queries and keys together, and of values."""
    queries, keys, values = (call.labels.of(tensor) for tensor in tensors[:3])
    call.labels.contract_by_entry(queries, keys, call.where)
    for mask in tensors[3:]:
        call.labels.bar(call.labels.of(mask), "fixed", f"{call.where}: the number of heads stays")
    return call.labels.alike_in_front(values)


def _torch_attention(call: Call) -> Result:
    """torch's own layer has as many rows for its heads as its stream is wide.

    So a head comes or goes together with as many channels of the stream as it has entries; by
    entries, each entry of all heads together with a channel of the stream for each head.
    """
    query, key, value, width, heads = call.positional[:5]
    packed, packed_bias = call.argument(5, "in_proj_weight"), call.argument(6, "in_proj_bias")
    out, out_bias = call.argument(11, "out_proj_weight"), call.argument(12, "out_proj_bias")
    labels = call.labels
    mixed = labels.axis(out, 1, "consumer")
    _group_heads(call, mixed, width, heads)
    streams = [labels.of(stream) for stream in (query, key, value)]
    rows = torch.cat([mixed, mixed, mixed])
    if packed is not None:
        thirds = labels.axis(packed, 0, "producer")
        labels.couple(thirds, rows)
        labels.boundaries.cut(thirds, 0, [len(mixed), 2 * len(mixed)])
        for stream in streams:
            read(call, stream, labels.axis(packed, 1, "consumer"))
    else:
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        for stream, name in zip(streams, names, strict=True):
            weight = call.named[name]
            labels.couple(labels.axis(weight, 0, "producer"), mixed)
            read(call, stream, labels.axis(weight, 1, "consumer"))
    _note_stream_sizes(call, streams)
    stays = f"{call.where}: torch keeps heads x head size equal to the width of the queries' stream"
    labels.couple(streams[0], mixed)
    if bool((compact(streams[0]) == NONE).any()):
        labels.bar(mixed, "fixed", f"{stays}, which is data of fixed size")
    write(call, packed_bias, rows)
    for bias in (call.argument(7, "bias_k"), call.argument(8, "bias_v")):
        if bias is not None:
            labels.couple(labels.axis(bias, 2, "per_channel"), mixed)
    stream_out = labels.axis(out, 0, "producer")
    write(call, out_bias, stream_out)
    mask = call.argument(16, "attn_mask")
    if isinstance(mask, Tensor) and mask.ndim == 3 and not labels.by_head_size:
        labels.bar(mixed, "fixed", f"{call.where} has a mask for each head")
    scores = None
    if call.output[1] is not None and call.output[1].ndim > 3 and not labels.by_head_size:
        scores = mixed.view(int(heads), -1)[:, :1, None].expand(call.output[1].shape[-3:])
    return (stream_out, scores)


def _group_heads(call: Call, mixed: Tensor, width: int, heads: int) -> None:
    """Couples what is one channel: a head, or an entry of all heads."""
    by_head = mixed.view(int(heads), -1)
    if call.labels.by_head_size:
        call.labels.couple(by_head, by_head[:1])
        call.labels.scores.append(by_head[0])
        size = _attribute(call, "head_dim", by_head.shape[1])
        note_division(call, by_head, [heads, size])
    else:
        if len(by_head) == 1:
            # A single head does not show that the number of heads must follow.
            call.labels.boundaries.unclear(mixed, 0, range(len(mixed)))
        call.labels.couple(by_head, by_head[:, :1])
        note_division(call, by_head, [heads, -1])
    note_division(call, mixed, [width])


def _note_stream_sizes(call: Call, streams: list[Tensor]) -> None:
    for labels, name in zip(streams[1:], ("kdim", "vdim"), strict=True):
        size = _attribute(call, name, labels.shape[-1])
        note_division(call, labels, [-1] * (labels.ndim - 1) + [size])


def _attribute(call: Call, name: str, value: int) -> int:
    """A number that torch's layer keeps, if it is torch's layer that calls; -1 if not."""
    module: Any = call.modules[-1][1] if call.modules else None
    size = vars(module).get(name) if isinstance(module, nn.MultiheadAttention) else None
    return size if isinstance(size, int) and size == value else -1


ATTENTION_RULES: Final[dict[str, Rule]] = {
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _torch_attention,
}
"""Rules by the name of the operation."""
