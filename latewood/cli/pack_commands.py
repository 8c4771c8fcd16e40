"""Commands about networks of packed low-bit layers: pack and bench-packed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from latewood.cli.app import Flag, Many, Trust, app


@app.command
def pack(
    run: Path,
    /,
    *,
    out: Path | None = None,
    batch: int = 1,
    onnx: Path | None = None,
    onnx_form: Literal["low_bit", "dequantized", "qonnx"] = "low_bit",
    c: Path | None = None,
    c_name: str = "network",
    json: Annotated[bool, Flag] = False,
    overwrite: Annotated[bool, Flag] = False,
    trust: Annotated[bool, Trust] = False,
) -> None:
    """Pack the layers of a run that learned precisions into one file that really computes in bits.

    The file holds the whole network: latewood.precision.load_packed needs no code of its maker.

    Parameters
    ----------
    run
        The folder of a run, or a checkpoint in one; of a run with methods these are finalized in a
        copy, as if the run had ended there. Or a folder that latewood slim wrote.
    out
        File of the packed network; RUN-packed.safetensors if not given.
    batch
        How many samples at once to time it with.
    onnx
        Also write the network as this ONNX file.
    onnx_form
        Of the weights in it: integers of few bits, floating numbers, or QONNX's quantisers.
    c
        Also write the network as this C99 header, one function without any library.
    c_name
        What all names in it begin with; the function is NAME_run.
    json
        Print the report as JSON instead of tables.
    overwrite
        Replace the file that is already there.
    """
    import json as encoder
    from dataclasses import asdict

    from latewood.studies.packed_run import pack_run
    from latewood.terminal.tables import print_table

    done = pack_run(
        run,
        out=out,
        batch=batch,
        onnx=onnx,
        onnx_form=onnx_form,
        c=c,
        c_name=c_name,
        overwrite=overwrite,
        trust=trust,
    )
    left = [asdict(layer) for layer in done.left]
    if json:
        exported = {f"{kind} file": str(path) for kind, path in done.exported.items()}
        report: dict[str, object] = {"file": str(done.path), "layers": done.layers, "left": left}
        report |= {"execution": done.execution, **exported, **done.summary}
        print(encoder.dumps(report, indent=1))
        return
    print_table(done.layers, title=f"{run}: packed layers")
    if left:
        print_table(left, title="Left in floating point")
    print_table([{"measure": name, "": value} for name, value in done.summary.items()])
    print(f"packed network: {done.path} ({done.execution})")
    for kind, path in done.exported.items():
        print(f"{kind}: {path}")


@app.command
def bench_packed(
    file: Path,
    /,
    *,
    shape: Annotated[Sequence[int], Many],
    seconds: float = 2.0,
) -> None:
    """Time a packed network on this machine, beside the same network in floating point.

    Parameters
    ----------
    file
        What latewood pack wrote.
    shape
        Sizes of the input, the batch first: --shape 1 3 32 32.
    seconds
        How long to measure, about.
    """
    from latewood.studies.packed_run import time_packed
    from latewood.terminal.tables import print_table

    times = time_packed(file, tuple(shape), seconds=seconds)
    rows = [
        {"form": name, "microseconds": time, "float over it": times["float"] / time}
        for name, time in times.items()
    ]
    print_table(rows, title=str(file))
