"""What a run's model comes to when its layers with number formats are packed."""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from latewood.core.measure import file_bytes
from latewood.core.timing import least_times
from latewood.errors import RequestError, invalid
from latewood.precision import (
    LeftLayer,
    PackedModel,
    export_c,
    export_onnx,
    load_packed,
    pack,
    remove_formats,
)
from latewood.precision.exports import OnnxForm
from latewood.studies.packable_models import packable
from latewood.terminal.tables import Row
from latewood.training.randomness import caller_unchanged

__all__ = ["PackedRun", "layer_rows", "pack_run", "time_packed"]


@dataclass(frozen=True)
class PackedRun:
    """What was made of a run's model.

    Args:
        path: the file that was written.
        layers: one row a packed layer.
        left: layers that stayed in floating point.
        summary: sizes, times and the difference of outputs, by name.
        exported: the files written for other programs, by kind.
        execution: how the packed network was run, as ``PackedModel.execution``.
    """

    path: Path
    layers: list[Row]
    left: tuple[LeftLayer, ...]
    summary: dict[str, float]
    exported: dict[str, Path]
    execution: str


def pack_run(
    run: Path,
    *,
    out: Path | None = None,
    batch: int = 1,
    onnx: Path | None = None,
    onnx_form: OnnxForm = "low_bit",
    c: Path | None = None,
    c_name: str = "network",
    overwrite: bool = False,
    trust: bool = False,
) -> PackedRun:
    """Packs the model of a run into one file, and times it beside the model in floating point.

    Args:
        run: the folder of a run, or a checkpoint in one, whose methods end in a copy; or the folder
            or a file that ``latewood slim`` wrote.
        out: the file to write; the run's name with "-packed.safetensors" behind it if None.
        batch: samples that it is timed with.
        onnx: also write this ONNX file.
        onnx_form: of its weights.
        c: also write this C header.
        c_name: prefix of everything in it.
        overwrite: replace a file that is there.
        trust: import and call modules that the run's recipe names.

    Raises:
        RequestError: no run there, no layer that can be packed, or a file that is there already.
        WorkError: the packed network differs, or the file cannot be written.
    """
    if batch < 1:
        raise invalid("batch", batch, "1 or more")
    source = packable(run, trust=trust)
    path = out or source.folder.with_name(f"{source.folder.name}-packed.safetensors")
    for option, file in (("--out", path), ("--onnx", onnx), ("--c", c)):
        _require_free(option, file, overwrite=overwrite)
    inputs = tuple(torch.cat([example] * batch) for example in source.inputs)
    with caller_unchanged(cuda=False):
        packed = pack(source.model, inputs)
        # First, since they may have no form for an operation: then nothing is written at all.
        exported, sizes = _export(packed, onnx, onnx_form, c, c_name)
        packed.save(path)
        plain = remove_formats(copy.deepcopy(source.model))
        times = _times(plain, packed, inputs)
    summary = {
        "float file bytes": float(file_bytes(plain)),
        "packed file bytes": float(path.stat().st_size),
        **sizes,
        "float us": times["float"],
        "packed us": times["packed"],
        "output difference": packed.difference or 0.0,
    }
    execution = packed.execution or ""
    return PackedRun(path, layer_rows(packed), packed.left, summary, exported, execution)


def time_packed(path: Path, shape: tuple[int, ...], *, seconds: float = 2.0) -> dict[str, float]:
    """Times a packed network beside the same network with its weights as floating numbers.

    Args:
        path: of a file that ``PackedModel.save`` wrote.
        shape: of its input, the batch included.
        seconds: how long to measure, about.

    Returns:
        Least microseconds a call: "float" and "packed".

    Raises:
        RequestError: no such file, a shape that the network does not take, or no time.
        WorkError: the file is damaged.
    """
    if any(size < 1 for size in shape):
        raise invalid("--shape", list(shape), "sizes of 1 or more")
    if not 0 < seconds < math.inf:
        raise invalid("--seconds", seconds, "a number above 0")
    packed = load_packed(path)
    generator = torch.Generator().manual_seed(0)
    inputs = (torch.randn(shape, generator=generator),)
    plain = copy.deepcopy(packed)
    for layer in plain.graph.layers.values():
        layer.quantises_inputs = False
    try:
        packed.run(*inputs)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise invalid(
            "--shape", list(shape), f"one that the network takes ({reason[0]})"
        ) from error
    return _times(plain, packed, inputs, seconds=seconds)


def layer_rows(packed: PackedModel) -> list[Row]:
    """One row a packed layer: its shape, its channels by bits, and its bytes."""
    rows: list[Row] = []
    for name, layer in packed.layers.items():
        counts = Counter(layer.weight_bits.tolist())
        rows.append(
            {
                "layer": name,
                "shape": "x".join(map(str, layer.shape)),
                "channels by bits": ", ".join(f"{counts[w]} of {w}" for w in sorted(counts)),
                "inputs": "quantised" if layer.quantises_inputs else "float",
                "bytes": -(-layer.stored_bits // 8),
            }
        )
    return rows


def _export(
    packed: PackedModel, onnx: Path | None, onnx_form: OnnxForm, c: Path | None, c_name: str
) -> tuple[dict[str, Path], dict[str, float]]:
    """Writes the files for other programs; where they are, and what is said of them."""
    exported: dict[str, Path] = {}
    sizes: dict[str, float] = {}
    if c is not None:
        header = export_c(packed, c, c_name)
        exported["C header"] = c
        sizes |= {"C flash bytes": float(header.flash), "C RAM bytes": float(header.ram)}
    if onnx is not None:
        exported["ONNX"] = onnx
        sizes["ONNX file bytes"] = float(export_onnx(packed, onnx, onnx_form).bytes)
    return exported, sizes


def _require_free(option: str, file: Path | None, *, overwrite: bool) -> None:
    if file is None:
        return
    if file.is_dir() or not file.parent.is_dir():
        raise invalid(option, str(file), "a file in a folder there is")
    if file.exists() and not overwrite:
        raise RequestError(
            f"{option}: got '{file}', which exists; expected a new file, or --overwrite"
        )


def _times(
    plain: nn.Module, packed: PackedModel, inputs: tuple[Tensor, ...], *, seconds: float = 2.0
) -> dict[str, float]:
    forms = {"float": lambda: plain(*inputs), "packed": lambda: packed.run(*inputs)}
    return least_times(forms, torch.device("cpu"), steady=25, seconds=seconds)
