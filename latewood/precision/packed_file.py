"""Packed networks on disk: one safetensors file of streams, with a digest of all that is in it."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latewood.core.whole_files import write_whole
from latewood.errors import RequestError, WorkError, invalid
from latewood.precision.code_streams import stream_bytes
from latewood.precision.packed_graph import NetworkGraph
from latewood.precision.packed_layers import PackedLayer

__all__ = ["read_graph", "write_graph"]

_FORMAT: Final = "latewood packed"
_VERSION: Final = 2
"""Of files with convolutions in groups; others are of version 1, as all were before."""
_PARTS: Final = ("description", "codes", "values")
_MOST_DESCRIPTION: Final = 64 << 20
_MOST_WEIGHTS: Final = 1 << 33


def write_graph(graph: NetworkGraph, path: Path, left: list[list[Any]]) -> None:
    """Writes a packed network, all or nothing.

    Args:
        graph: the network.
        path: of the file.
        left: what is said of layers that were not packed.

    Raises:
        WorkError: the file cannot be written.
    """
    codes: list[Tensor] = []
    values: list[Tensor] = []
    description = {
        "nodes": graph.nodes,
        "output": graph.output,
        "left": left,
        "channels_last": graph.channels_last,
        "inputs": graph.inputs,
        "lengths": graph.lengths,
        "layers": [[name, *_packed(layer, codes, values)] for name, layer in graph.layers.items()],
        "tensors": [[name, *_stored(tensor, values)] for name, tensor in graph.tensors.items()],
    }
    text = json.dumps(description, separators=(",", ":"), allow_nan=False)
    parts = {
        "description": torch.frombuffer(
            bytearray(zlib.compress(text.encode(), 9)), dtype=torch.uint8
        ),
        "codes": torch.cat([*codes, torch.zeros(0, dtype=torch.uint8)]),
        "values": torch.cat([*values, torch.zeros(0, dtype=torch.uint8)]),
    }
    version = _VERSION if any(layer.groups > 1 for layer in graph.layers.values()) else 1
    marks = {"format": f"{_FORMAT} {version}", "sha256": _digest(parts)}
    try:
        write_whole(path, lambda temporary: save_file(parts, temporary, metadata=marks))
    except SafetensorError as error:
        raise WorkError(f"{path}: cannot be written ({error})") from error


def read_graph(path: Path) -> tuple[NetworkGraph, list[list[Any]]]:
    """Reads what ``write_graph`` wrote.

    Args:
        path: of the file.

    Returns:
        The network, and what is said of layers that were not packed.

    Raises:
        RequestError: no file there, or one of a newer format.
        WorkError: the file is cut, changed or something else.
    """
    if not path.is_file():
        raise invalid("path", str(path), "an existing file of a packed network")
    try:
        with safe_open(path, framework="pt") as file:
            marks = file.metadata() or {}
            _require_format(marks, path)
            if sorted(file.keys()) != sorted(_PARTS):
                raise WorkError(f"{path}: not a packed network (its parts are {file.keys()})")
            parts = {name: file.get_tensor(name) for name in _PARTS}
    except (OSError, SafetensorError) as error:
        raise WorkError(f"{path}: not a readable safetensors file ({error})") from error
    if any(part.dtype != torch.uint8 or part.dim() != 1 for part in parts.values()):
        raise WorkError(f"{path}: not a packed network (its parts are no bytes)")
    if marks.get("sha256") != _digest(parts):
        raise WorkError(f"{path}: its contents have changed since it was written")
    try:
        return _graph(parts)
    except WorkError as error:
        raise WorkError(f"{path}: {error}") from error
    except Exception as error:
        # The digest fits, so somebody wrote this on purpose: any part may be missing.
        raise WorkError(
            f"{path}: not a packed network ({type(error).__name__}: {error})"
        ) from error


def _graph(parts: dict[str, Tensor]) -> tuple[NetworkGraph, list[list[Any]]]:
    unpacker = zlib.decompressobj()
    text = unpacker.decompress(parts["description"].numpy().tobytes(), _MOST_DESCRIPTION)
    if unpacker.unconsumed_tail:
        raise WorkError(f"its description is longer than {_MOST_DESCRIPTION} bytes")
    description = json.loads(text)
    codes, values = _Reader(parts["codes"]), _Reader(parts["values"])
    layers = {entry[0]: _unpacked(entry[1:], codes, values) for entry in description["layers"]}
    tensors = {name: values.tensor(dtype, shape) for name, dtype, shape in description["tensors"]}
    graph = NetworkGraph(
        description["nodes"],
        layers,
        tensors,
        description["output"],
        bool(description["channels_last"]),
        # Files of before this was kept have none.
        [[str(dtype), [int(n) for n in shape]] for dtype, shape in description.get("inputs", [])],
        [None if n is None else int(n) for n in description.get("lengths", [])],
    )
    left = [[str(name), str(reason), int(count)] for name, reason, count in description["left"]]
    return graph, left


def _packed(layer: PackedLayer, codes: list[Tensor], values: list[Tensor]) -> list[Any]:
    widths = _packed_widths(layer.weight_bits, codes)
    same = torch.equal(layer.input_bits, layer.weight_bits)
    inputs: Any = None
    if layer.quantises_inputs:
        inputs = "same" if same else _packed_widths(layer.input_bits, codes)
    codes.append(layer.packed_codes.cpu())
    if layer.masked:
        codes.append(layer.packed_mask.cpu())
    for tensor in (layer.weight_scale, layer.input_scale.reshape(1)):
        _stored(tensor, values)
    biased = bool(layer.bias.any())
    if biased:
        _stored(layer.bias, values)
    flags = 1 * layer.never_negative + 2 * layer.masked + 4 * biased
    return [list(layer.shape), layer.tap_numbers, flags, widths, inputs]


def _unpacked(entry: list[Any], codes: _Reader, values: _Reader) -> PackedLayer:
    shape, taps, flags, widths, inputs = entry
    _require_shape(shape, taps, codes, widths)
    if flags not in range(8):
        raise WorkError(f"a layer with the flags {flags!r}")
    outputs, channels = shape[0] * (taps[8] if len(taps) > 8 else 1), shape[1]
    bits = _unpacked_widths(widths, channels, codes)
    none = torch.zeros(0, dtype=torch.uint8)
    input_bits = none
    if inputs is not None:
        input_bits = bits.clone() if inputs == "same" else _unpacked_widths(inputs, channels, codes)
    buffers = {
        "weight_bits": bits,
        "input_bits": input_bits,
        "packed_codes": codes.bytes(stream_bytes(bits, shape)),
        "packed_mask": none,
    }
    if flags & 2:
        kept = (bits > 0).to(torch.uint8)
        buffers["packed_mask"] = codes.bytes(stream_bytes(kept, shape))
    buffers["weight_scale"] = values.tensor("float32", [outputs])
    buffers["input_scale"] = values.tensor("float32", [1])[0].clone()
    buffers["bias"] = values.tensor("float32", [outputs]) if flags & 4 else torch.zeros(outputs)
    if inputs is not None and not torch.equal(input_bits > 0, bits > 0):
        raise WorkError("a layer that reads other channels than it has weights for")
    scales = (buffers["weight_scale"], buffers["input_scale"], buffers["bias"])
    if not all(bool(part.isfinite().all()) for part in scales) or not scales[1] > 0:
        raise WorkError("a layer whose scales are no numbers, or not positive for its inputs")
    made = PackedLayer.of_buffers(buffers, shape, bool(flags & 1), bool(flags & 2), taps)
    if inputs is not None:
        try:
            made.make_ready()
        except RequestError as error:
            # Sums beyond int32, say.
            raise WorkError(f"a layer of the shape {shape}: {error}") from error
    return made


def _require_shape(shape: Any, taps: Any, codes: _Reader, widths: Any) -> None:
    """Refuses shapes that are none, before memory is asked for them."""
    numbers = [*shape, *taps]
    if len(shape) not in (2, 4) or len(taps) not in ((8, 9) if len(shape) == 4 else (0,)):
        raise WorkError(f"a layer of the shape {shape} with the taps {taps}")
    least = [1] * len(shape) + [1, 1, 0, 0, 0, 0, 1, 1, 2][: len(taps)]
    if any(type(n) is not int or n < low for n, low in zip(numbers, least, strict=True)):
        raise WorkError(f"a layer of the shape {shape} with the taps {taps}")
    if len(taps) > 8 and shape[1] % taps[8]:
        raise WorkError(f"a layer of {shape[1]} channels in {taps[8]} groups")
    fewest = 0 if not isinstance(widths, int) else widths
    if math.prod(shape) * fewest > 8 * len(codes.stream) or math.prod(shape) > _MOST_WEIGHTS:
        raise WorkError(f"a layer of the shape {shape} in {len(codes.stream)} bytes of codes")


def _packed_widths(bits: Tensor, codes: list[Tensor]) -> Any:
    """One number if all are alike; else the widths there are, and in the stream which is where."""
    palette, where = torch.unique(bits.cpu(), return_inverse=True)
    if len(palette) <= 1:
        return int(palette[0]) if len(palette) else 0
    places = _place_bits(len(palette))
    flat = (where.reshape(-1, 1) >> torch.arange(places)) & 1
    codes.append(torch.from_numpy(np.packbits(flat.to(torch.uint8).numpy(), bitorder="little")))
    return palette.tolist()


def _unpacked_widths(widths: Any, channels: int, codes: _Reader) -> Tensor:
    if isinstance(widths, int):
        bits = torch.full((channels,), widths)
    else:
        places = _place_bits(len(widths))
        stream = codes.bytes((channels * places + 7) // 8).numpy()
        flat = torch.from_numpy(np.unpackbits(stream, bitorder="little"))[: channels * places]
        where = (flat.reshape(-1, places).to(torch.int64) << torch.arange(places)).sum(1)
        bits = torch.tensor(widths)[where]
    if bits.numel() and not (int(bits.min()) >= 0 and int(bits.max()) <= 8):
        raise WorkError(f"a layer of {int(bits.max())} bits")
    return bits.to(torch.uint8)


def _place_bits(count: int) -> int:
    return max(1, (count - 1).bit_length())


def _stored(tensor: Tensor, values: list[Tensor]) -> list[Any]:
    whole = tensor.detach().cpu().contiguous()
    values.append(whole.reshape(-1).view(torch.uint8))
    return [str(whole.dtype).removeprefix("torch."), list(whole.shape)]


class _Reader:
    """Takes one thing after the other from a stream of bytes."""

    def __init__(self, stream: Tensor) -> None:
        self.stream, self.place = stream, 0

    def bytes(self, count: int) -> Tensor:
        part = self.stream[self.place : self.place + count]
        if count < 0 or len(part) != count:
            raise WorkError(f"its streams end {count - len(part)} bytes early")
        self.place += count
        return part.clone()

    def tensor(self, dtype: str, shape: list[int]) -> Tensor:
        kind = getattr(torch, dtype, None)
        if not isinstance(kind, torch.dtype) or any(type(n) is not int or n < 0 for n in shape):
            raise WorkError(f"a tensor of the type {dtype!r} and shape {shape!r}")
        count = 1
        for size in shape:
            count *= size
        return self.bytes(count * kind.itemsize).view(kind).reshape(shape)


def _require_format(marks: dict[str, str], path: Path) -> None:
    name, _, version = marks.get("format", "").rpartition(" ")
    if name != _FORMAT or not version.isdigit():
        raise WorkError(f"{path}: not a packed network (its format is {marks.get('format')!r})")
    if int(version) > _VERSION:
        raise RequestError(
            f"{path}: got format {version}; expected at most {_VERSION}, which this version reads"
        )


def _digest(parts: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in _PARTS:
        digest.update(len(parts[name]).to_bytes(8, "little"))
        digest.update(parts[name].numpy().tobytes())
    return digest.hexdigest()
