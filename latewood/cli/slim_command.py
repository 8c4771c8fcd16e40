"""The command that makes a trained model smaller and faster: slim."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from latewood.cli.app import Flag, Trust, app


@app.command
def slim(
    run: Path,
    /,
    *,
    mode: Literal["auto", "slim", "csr", "dense"] = "auto",
    out: Path | None = None,
    batch: int = 1,
    json: Annotated[bool, Flag] = False,
    overwrite: Annotated[bool, Flag] = False,
    trust: Annotated[bool, Trust] = False,
) -> None:
    """Make a trained model as small and fast as its zeros allow, without changing what it computes.

    Writes model.safetensors and model.json, from which latewood.slim.load_slim makes the
    model again, and slim.json with the table and the choice for each layer.

    Parameters
    ----------
    run
        The folder of a finished run, or a checkpoint in a run; of a run with methods these are
        finalized in a copy, as if the run had ended there.
    mode
        auto measures each layer and takes what is fastest: dense, compressed rows, or slim.
    out
        Folder of the slim model; RUN-slim if not given.
    batch
        How many samples at once to measure with.
    json
        Print the report as JSON instead of the table.
    overwrite
        Replace the slim model that is already there.
    """
    import json as encoder

    from latewood.studies.slim_run import slim_run
    from latewood.terminal.progress import track
    from latewood.terminal.tables import print_table

    done = slim_run(
        run, mode=mode, out=out, batch=batch, overwrite=overwrite, trust=trust, track=track
    )
    if json:
        print(encoder.dumps(done.report, indent=1))
        return
    print_table(done.rows, title=f"{done.report['run']}: {done.report['form']} is the form written")
    print(f"model: {done.folder}")
