"""A layer of a run, or of a file of codes, on the simulated machine, with the trace of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from latewood.errors import RequestError, WorkError, invalid, listed
from latewood.precision.packed_model import load_packed
from latewood.precision.simd import (
    DEFAULT_CONSTANTS,
    LayerCounts,
    Machine,
    MachineConstants,
    MachineLayer,
    TraceWriter,
    lay_out,
    layer_cost,
    reference_accumulators,
    run_layer,
)
from latewood.precision.simd.machine_costs import baseline_cost
from latewood.precision.simd.module_layer import (
    input_codes,
    lay_out_module,
    lay_out_packed,
    simulated_layers,
)
from latewood.terminal.tables import Row
from latewood.training import open_run

__all__ = ["Simulation", "read_layer_file", "simulate_layer"]

_GEOMETRY: Final = ("stride", "padding", "dilation")


@dataclass(frozen=True)
class Simulation:
    """A layer on the machine.

    Args:
        name: of the layer.
        instructions: one row an instruction: how often it was executed.
        costs: one row a machine: this one, int8 and float32.
        vectors: registers of one dot product.
        checked: accumulators, all of them equal to plain sums.
        trace_lines: instructions in the trace; None without one.
    """

    name: str
    instructions: list[Row]
    costs: list[Row]
    vectors: int
    checked: int
    trace_lines: int | None


def simulate_layer(
    source: Path,
    *,
    layer: str | None = None,
    patterns: list[int] | int = 4,
    outputs: int = 8,
    image: int = 8,
    trace: Path | None = None,
    constants: MachineConstants = DEFAULT_CONSTANTS,
    trust: bool = False,
) -> Simulation:
    """Runs a layer instruction by instruction, and compares it with plain sums.

    Args:
        source: a run, a packed network, or a safetensors file of one layer (``read_layer_file``).
        layer: of a run or packed network; the first that the machine can compute if not given.
        patterns: of the machine.
        outputs: how many of the layer's outputs to compute; 0 for all.
        image: how many rows and columns of its input to read; 0 for all.
        trace: file for every instruction with its operands.
        constants: of the cost model.
        trust: import modules that a run's recipe names.

    Raises:
        RequestError: no such layer, or one that the machine cannot compute.
        WorkError: a damaged file, or accumulators that differ.
    """
    for name, value in (("--outputs", outputs), ("--image", image)):
        if value < 0:
            raise invalid(name, value, "a whole number, 0 or more")
    if source.suffix == ".safetensors":
        name, laid_out, codes = _of_file(source, layer, patterns)
    else:
        name, laid_out, codes = _of_run(source, layer, patterns, trust=trust)
    laid_out, codes = _smaller(laid_out, codes, patterns, outputs, image)
    machine = Machine(patterns)
    if trace is None:
        done, lines = run_layer(machine, laid_out, codes), None
    else:
        with TraceWriter(trace) as writer:
            machine = Machine(patterns, record=writer)
            done = run_layer(machine, laid_out, codes)
        lines = writer.lines
    expected = reference_accumulators(laid_out, codes)
    if not np.array_equal(done.accumulators, expected):
        raise WorkError(f"{name}: the machine's accumulators differ from plain sums")
    counts = LayerCounts(
        name,
        tuple(laid_out.taps * int((laid_out.bits == p).sum()) for p in (4, 2, 1)),  # type: ignore[arg-type]
        outputs=laid_out.outputs,
        positions=int(np.prod(done.accumulators.shape[2:])) * len(codes),
    )
    costs = [
        ("this machine", layer_cost(counts, laid_out.fit, constants)),
        ("int8", baseline_cost(counts, "int8", constants)),
        ("float32", baseline_cost(counts, "float32", constants)),
    ]
    return Simulation(
        name=name,
        instructions=[
            {"instruction": instruction, "executed": count}
            for instruction, count in sorted(done.instructions.items())
        ],
        costs=[
            {
                "machine": machine_name,
                "vectors": cost.instructions,
                "cycles": cost.cycles,
                "compute nJ": 1e-3 * cost.compute_pj,
                "loads nJ": 1e-3 * cost.load_pj,
                "weights nJ": 1e-3 * cost.weight_pj,
            }
            for machine_name, cost in costs
        ],
        vectors=laid_out.vectors,
        checked=int(done.accumulators.size),
        trace_lines=lines,
    )


def read_layer_file(
    path: Path, patterns: list[int] | int = 4
) -> tuple[MachineLayer, NDArray[np.integer[Any]]]:
    """A layer and inputs of it from a safetensors file of codes.

    Tensors ``weight_codes`` (outputs, channels[, height, width]) and ``bits`` (channels,), uint8;
    optionally ``mask`` (uint8 or bool, of the shape of the codes) and ``input_codes`` (samples,
    channels[, height, width]), drawn at random where there are none. Metadata: ``stride``,
    ``padding`` and ``dilation`` as JSON, ``signed`` as "true" or "false".

    Args:
        path: of the file.
        patterns: of the machine.

    Raises:
        RequestError: no file there, tensors missing or of other shapes.
        WorkError: a damaged file.
    """
    if not path.is_file():
        raise invalid("source", str(path), "an existing safetensors file, or a run")
    try:
        with safe_open(path, "np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        geometry = {name: json.loads(metadata[name]) for name in _GEOMETRY if name in metadata}
        signed = json.loads(metadata.get("signed", "true"))
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise WorkError(f"{path}: not a readable file of a layer ({error})") from error
    missing = [name for name in ("weight_codes", "bits") if name not in tensors]
    if missing:
        raise invalid("source", str(path), f"tensors {', '.join(missing)} in the file")
    mask = tensors.get("mask")
    layer = lay_out(
        tensors["weight_codes"],
        tensors["bits"],
        patterns,
        mask=None if mask is None else mask.astype(np.bool_),
        signed=bool(signed),
        **geometry,
    )
    codes = tensors.get("input_codes")
    return layer, _drawn_codes(layer) if codes is None else codes


def _drawn_codes(layer: MachineLayer) -> NDArray[np.integer[Any]]:
    size = [step * (taps - 1) + 5 for step, taps in zip(layer.dilation, layer.kernel, strict=False)]
    width = layer.bits.astype(np.int64).reshape(-1, *(1,) * len(size))
    shape = (1, len(layer.bits), *size)
    return np.random.default_rng(0).integers(0, 1 << width, size=shape)


def _of_file(
    path: Path, layer: str | None, patterns: list[int] | int
) -> tuple[str, MachineLayer, NDArray[np.integer[Any]]]:
    """A layer of a packed network, or the only one of a file of codes."""
    try:
        with safe_open(path, "np") as file:
            packed = "weight_codes" not in file.keys() and "bits" not in file.keys()  # noqa: SIM118
    except (SafetensorError, OSError):
        # The reader of layers says what is wrong.
        packed = False
    if not packed:
        return (path.stem, *read_layer_file(path, patterns))
    layers = load_packed(path).layers
    computable: dict[str, MachineLayer] = {}
    reasons: dict[str, str] = {}
    for name, module in layers.items():
        try:
            computable[name] = lay_out_packed(module, patterns)
        except RequestError as error:
            reasons[name] = str(error)
    # A packed layer with its batch norm is called conv+norm; the layer's own name will do.
    named = [name for name in computable if layer in (None, name, name.partition("+")[0])]
    name = named[0] if named else ""
    if not name:
        why = listed(f"{other}: {reason}" for other, reason in reasons.items())
        expected = f"one of {listed(computable) or 'none'} ({why})"
        raise RequestError(f"--layer: got {layer!r}; expected {expected}")
    return name, computable[name], _drawn_codes(computable[name])


def _of_run(
    source: Path, layer: str | None, patterns: list[int] | int, *, trust: bool
) -> tuple[str, MachineLayer, NDArray[np.integer[Any]]]:
    opened = open_run(source, trust=trust)
    layers = simulated_layers(opened.model)
    if not layers:
        expected = "a run with layers of 1, 2 or 4 bits a channel"
        raise invalid("run", str(source), expected)
    name = layer or next(iter(layers))
    if name not in layers:
        raise RequestError(f"--layer: got {name!r}; expected one of {listed(layers)}")
    laid_out = lay_out_module(layers[name], patterns)
    return name, laid_out, input_codes(opened.model, name, laid_out, opened.task.example_inputs)


def _smaller(
    layer: MachineLayer,
    codes: NDArray[np.integer[Any]],
    patterns: list[int] | int,
    outputs: int,
    image: int,
) -> tuple[MachineLayer, NDArray[np.integer[Any]]]:
    """The first outputs of a layer, and the corner of its inputs."""
    if image and layer.kernel:
        codes = codes[:, :, :image, :image]
    if not outputs or outputs >= layer.outputs:
        return layer, codes
    geometry: dict[str, Any] = {}
    if layer.kernel:
        geometry = {name: getattr(layer, name) for name in _GEOMETRY}
    smaller = lay_out(
        layer.weight_codes[:outputs],
        layer.bits,
        patterns,
        mask=None if layer.mask is None else layer.mask[:outputs],
        signed=layer.signed,
        **geometry,
    )
    return smaller, codes
