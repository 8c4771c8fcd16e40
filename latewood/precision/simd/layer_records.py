"""The layers of a network as the machine's costs see them: from modules, dicts and JSON files."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from latewood.core.modes import evaluated
from latewood.core.selection import is_hugging_face_conv1d
from latewood.errors import WorkError, invalid, listed
from latewood.precision.formats import weight_format
from latewood.precision.simd.machine_costs import LayerCounts

__all__ = ["CountedModel", "as_layers", "count_layers", "read_layers"]

Bits = int | Sequence[int] | Tensor
"""Of a layer: one number, or one for each input channel."""

_CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_KEYS: Final = ("name", "counts", "outputs", "positions")


@dataclass(frozen=True)
class CountedModel:
    """The layers of a module that a machine of 1, 2 and 4 bits can compute.

    Args:
        layers: in the order in which they are computed. Groups of a convolution that have unlike
            counts are layers of their own.
        left_out: name of each other layer with weights, and why.
    """

    layers: tuple[LayerCounts, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)


def count_layers(
    model: nn.Module, example_inputs: Any, bits: Bits | Mapping[str, Bits] | None = None
) -> CountedModel:
    """Runs a module once and counts the elements of each dot product, by their bits.

    Args:
        model: with convolutions and linear layers (Hugging Face's ``Conv1D`` too).
        example_inputs: a tensor or tuple of them, samples first.
        bits: of all layers, or of the layers named; those of their formats if not given.

    Raises:
        RequestError: bits out of range, of another number than the channels, or of unknown layers.
    """
    if isinstance(bits, Mapping):
        unknown = sorted(set(bits) - {name for name, _ in model.named_modules()})
        if unknown:
            raise invalid("bits", listed(unknown), "names of layers")
    inputs = example_inputs if isinstance(example_inputs, tuple | list) else (example_inputs,)
    samples = len(inputs[0])
    found = {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, *_CONVOLUTIONS)) or is_hugging_face_conv1d(module)
    }
    positions: dict[str, int] = {}

    def record(module: nn.Module, _: Any, output: Tensor) -> None:
        name = found[module]
        computed = output.numel() // max(1, samples * _outputs(module))
        positions[name] = positions.get(name, 0) + computed

    hooks = [module.register_forward_hook(record) for module in found]
    try:
        with evaluated(model), torch.no_grad():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    modules = {name: module for module, name in found.items()}
    layers: list[LayerCounts] = []
    left_out = {name: "not computed" for name in modules if name not in positions}
    for name, count in positions.items():
        module = modules[name]
        widths = _channel_bits(name, module, bits)
        if isinstance(widths, str):
            left_out[name] = widths
        else:
            layers += _by_group(name, module, widths, count)
    return CountedModel(tuple(layers), left_out)


def as_layers(
    network: nn.Module | Iterable[LayerCounts | Mapping[str, Any]],
    example_inputs: Any = None,
    bits: Bits | Mapping[str, Bits] | None = None,
) -> tuple[LayerCounts, ...]:
    """Layers from a module, or from records of them.

    Args:
        network: a module; or ``LayerCounts`` and dicts with their fields.
        example_inputs: of a module.
        bits: of a module's layers, as in ``count_layers``.

    Raises:
        RequestError: no layers, or something that is none.
    """
    if isinstance(network, nn.Module):
        if example_inputs is None:
            raise invalid("example_inputs", None, "inputs of the module, to see what it computes")
        counted = count_layers(network, example_inputs, bits)
        if not counted.layers:
            reasons = listed([f"{name}: {why}" for name, why in counted.left_out.items()])
            raise invalid("network", type(network).__name__, f"layers of 1, 2 or 4 bits; {reasons}")
        return counted.layers
    if not isinstance(network, Iterable):
        raise invalid("network", network, "a module, or a list of layers")
    layers = tuple(_record(entry, place) for place, entry in enumerate(network))
    if not layers:
        raise invalid("network", "no layers", "at least one layer")
    return layers


def read_layers(path: str | Path) -> tuple[LayerCounts, ...]:
    """Layers from a JSON file: a list of objects with counts, and name, outputs and positions.

    Args:
        path: of the file.

    Raises:
        RequestError: there is none, or it holds something else.
        WorkError: it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise invalid("path", str(path), "an existing JSON file of layers")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WorkError(f"{path}: not a readable JSON file ({error})") from error
    if isinstance(content, dict):
        content = content.get("layers")
    if not isinstance(content, list):
        raise invalid("path", str(path), "a list of layers, or an object with such a list")
    return as_layers(content)


def _record(entry: object, place: int) -> LayerCounts:
    if isinstance(entry, LayerCounts):
        return entry
    if not isinstance(entry, Mapping) or "counts" not in entry or set(entry) - set(_KEYS):
        raise invalid(f"layer {place}", entry, f"an object with {', '.join(_KEYS)}")
    return LayerCounts(**{"name": f"layer {place}", **entry})


def _channel_bits(
    name: str, module: nn.Module, bits: Bits | Mapping[str, Bits] | None
) -> list[int] | str:
    """Bits of each input channel, or why the layer is left out."""
    channels = _channels(module)
    given = bits.get(name) if isinstance(bits, Mapping) else bits
    if given is None:
        if bits is not None:
            return "no bits given"
        written = weight_format(module)
        if written is None:
            return "no number format"
        axis = 0 if is_hugging_face_conv1d(module) else 1
        shape = [size for place, size in enumerate(written.bits.shape) if place != axis]
        if written.bits.ndim and any(size != 1 for size in shape):
            return "bits of each weight: a register holds whole channels"
        given = written.bits.flatten()
        # Bits of a grouped convolution are those of its channels, one group after the other.
        if len(given) not in (1, channels):
            return f"bits for {len(given)} of {channels} channels"
    if isinstance(given, int) and not isinstance(given, bool):
        widths = [given] * channels
    else:
        widths = torch.as_tensor(given).flatten().tolist()
        widths = widths * channels if len(widths) == 1 else widths
    if len(widths) != channels or not all(isinstance(w, int) and 0 <= w <= 8 for w in widths):
        raise invalid(f"bits of {name}", given, f"0 to 8 for each of {channels} channels")
    if max(widths, default=0) > 4:
        return f"{max(widths)} bits"
    return widths


def _by_group(name: str, module: nn.Module, widths: list[int], positions: int) -> list[LayerCounts]:
    groups = int(getattr(module, "groups", 1))
    taps = math.prod(getattr(module, "kernel_size", ()))
    size = len(widths) // groups
    kinds: Counter[tuple[int, int, int]] = Counter()
    for group in range(groups):
        of_group = widths[group * size : (group + 1) * size]
        four = sum(width in (3, 4) for width in of_group)
        kinds[taps * four, taps * of_group.count(2), taps * of_group.count(1)] += 1
    outputs = _outputs(module) // groups
    return [
        LayerCounts(
            name if len(kinds) == 1 else f"{name}[{place}]", counts, outputs * number, positions
        )
        for place, (counts, number) in enumerate(kinds.items())
    ]


def _channels(module: nn.Module) -> int:
    if isinstance(module, nn.Linear):
        return module.in_features
    if isinstance(module, _CONVOLUTIONS):
        return module.in_channels
    return int(module.get_parameter("weight").shape[0])


def _outputs(module: nn.Module) -> int:
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, _CONVOLUTIONS):
        return module.out_channels
    return int(module.get_parameter("weight").shape[1])
