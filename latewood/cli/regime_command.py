"""The command that says where a training stands between kernel and rich."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from latewood.cli.app import Many, Trust, app, require_table
from latewood.errors import invalid


@app.command
def regime(
    source: str,
    /,
    *,
    examples: int = 64,
    alpha: Annotated[Sequence[float], Many] = (),
    depth: Annotated[Sequence[float], Many] = (),
    table: Path | None = None,
    trust: Annotated[bool, Trust] = False,
) -> None:
    """Say whether a network learns features or acts as a kernel machine.

    Of a recipe, the change of the tangent kernel is predicted before any training, at its own
    output scale and at others. Of a run it is measured between its initial weights and its last
    ones. Of a table of numbers, the exact limits of diagonal networks are computed.

    Parameters
    ----------
    source
        A recipe (a name or a TOML file), a run's folder, or a CSV file: features, then the target
        in the last column.
    examples
        Of the training data, that the kernel is computed on.
    alpha
        Output scale to predict besides; of a CSV file, scale of the start. May be repeated.
    depth
        Of a CSV file: depth of the diagonal network, 2 or more. May be repeated.
    table
        Also write the table to this file. Its ending says how: .csv, .json or .parquet.
    trust
        Import and call what the recipe of a run names, whoever wrote it.
    """
    require_table(table)
    if examples < 2:
        raise invalid("--examples", examples, "2 or more")
    path = Path(source)
    exact = path.suffix.lower() == ".csv"
    if depth and not exact:
        raise invalid("--depth", list(depth), "a CSV file with it; networks have a depth")

    from latewood.studies.regime_study import diagonal_rows, standing_of
    from latewood.terminal.tables import print_table, write_table

    rows: list[dict[str, Any]]
    if exact:
        rows = diagonal_rows(
            path, depths=depth or (2.0, 3.0), alphas=alpha or (0.01, 0.1, 1.0, 10.0)
        )
        print_table(rows, title="Limits of gradient flow on diagonal networks")
    else:
        scales = alpha or (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
        found = standing_of(source, examples=examples, alphas=scales, trust=trust)
        rows = found.rows()
        print_table(rows, title="How far the kernel moves, by output scale")
        print_table(found.layer_rows(), title="Layers, at output scale 1")
        for warning in found.regime.warnings:
            print(f"note: {warning}")
        print(found.regime.sentence())
    if table is not None:
        print(f"table: {write_table(rows, table)}")
