"""Commands about machines with 1, 2 and 4-bit dot products: explore and simulate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from latewood.cli.app import Many, Trust, app, require_table
from latewood.errors import invalid


@app.command
def explore(
    source: str,
    /,
    *,
    size: int = 4,
    by: Literal["energy_delay", "vectors", "cycles", "energy", "promoted"] = "energy_delay",
    bits: str | None = None,
    shape: str = "3x32x32",
    constant: Annotated[Sequence[str], Many] = (),
    most: int = 20,
    page: Path | None = None,
    table: Path | None = None,
    trust: Annotated[bool, Trust] = False,
) -> None:
    """Find the precision patterns that a machine should have for a network.

    All sets of up to four patterns are tried. What is printed last goes into a recipe's
    learned_precision, or LearnedPrecision(patterns=...).

    Parameters
    ----------
    source
        A run whose precisions were learned; a JSON file of layers, [{"name": ..., "counts": [n4,
        n2, n1], "outputs": ..., "positions": ...}]; or the name of a model, with --bits.
    size
        Patterns in a set, 1 to 8; sets of more than four grow from the best of four.
    by
        What the best set is best by.
    bits
        For a model: fractions of each layer's channels, such as 4:0.125,2:0.25,1:0.625. Its first
        and last layers are left out.
    shape
        Of one input of a model.
    constant
        name=value: change a constant of the machine, for example mac_rate=2. May be repeated.
    most
        Rows of the table.
    page
        Also draw all sets, as this HTML page.
    table
        Also write the table to this file. Its ending says how: .csv, .json or .parquet.
    """
    require_table(table)
    if not shape.replace("x", "").isdecimal() or not all(shape.split("x")):
        raise invalid("--shape", shape, "numbers with x between them, such as 3x32x32")
    if most < 1:
        raise invalid("--most", most, "1 or more")

    from latewood.precision.simd import explore as explore_layers
    from latewood.studies.pattern_exploration import (
        constants_from,
        counted_network,
        shares_from,
        write_exploration_page,
    )
    from latewood.terminal.progress import track
    from latewood.terminal.tables import print_table, write_table

    constants = constants_from(constant)
    counted = counted_network(
        source,
        shares=None if bits is None else shares_from(bits),
        shape=[int(number) for number in shape.split("x")],
        trust=trust,
    )
    done = explore_layers(
        counted.layers,
        size=size,
        constants=constants,
        track=lambda layers: track(layers, "layers", len(layers)),
    )
    rows = done.table(most)
    tried = f"{len(done.sets) + done.unfit:,} sets of {size} tried"
    unfit = f", {done.unfit:,} of them without slots wide enough" if done.unfit else ""
    title = f"{tried}{unfit}; {len(done.pareto):,} that no other one beats"
    print_table(rows, title=title)
    print_table(done.baselines(), title="Other machines")
    if counted.left_out:
        left_out = [{"layer": name, "why": why} for name, why in counted.left_out.items()]
        print_table(left_out, title="Left out")
    if bits is not None:
        print(f"bits: given shares ({bits}), not learned ones")
    if page is not None:
        print(f"page: {write_exploration_page(source, done, page)}")
    if table is not None:
        print(f"table: {write_table(rows, table)}")
    chosen = ", ".join(str(list(pattern)) for pattern in done.best(by).patterns)
    print(f"patterns = [{chosen}]")


@app.command
def simulate(
    source: Path,
    /,
    *,
    layer: str | None = None,
    pattern: Annotated[Sequence[str], Many] = (),
    outputs: int = 8,
    image: int = 8,
    trace: Path | None = None,
    constant: Annotated[Sequence[str], Many] = (),
    trust: Annotated[bool, Trust] = False,
) -> None:
    """Run a layer instruction by instruction on the machine, and check it against plain sums.

    Parameters
    ----------
    source
        A run whose precisions were learned, the file of a packed network, or a safetensors file of
        one layer: weight_codes and bits, with mask and input_codes where there are some.
    layer
        Of a run or packed network; the first that the machine can compute if not given.
    pattern
        g4,g2,g1: a pattern of the machine. May be repeated; the three uniform ones and 2,2,4 if
        not given.
    outputs
        How many outputs of the layer to compute; 0 for all.
    image
        How many rows and columns of a convolution's input to read; 0 for all.
    trace
        Write every instruction with its operands to this text file, to test hardware against.
    constant
        name=value: change a constant of the machine. May be repeated.
    """
    from latewood.precision.patterns import pattern_index
    from latewood.studies.machine_simulation import simulate_layer
    from latewood.studies.pattern_exploration import constants_from
    from latewood.terminal.tables import print_table

    chosen = [pattern_index(_triple(text)) for text in pattern]
    done = simulate_layer(
        source,
        layer=layer,
        patterns=chosen or 4,
        outputs=outputs,
        image=image,
        trace=trace,
        constants=constants_from(constant),
        trust=trust,
    )
    print_table(done.instructions, title=f"{done.name}: {done.vectors} registers an output")
    print_table(done.costs, title="Modelled costs")
    print(f"{done.checked:,} accumulators, all equal to plain sums")
    if trace is not None:
        print(f"trace: {trace} ({done.trace_lines:,} instructions)")


def _triple(text: str) -> tuple[int, int, int]:
    numbers = text.split(",")
    if len(numbers) != 3 or not all(number.strip().isdecimal() for number in numbers):
        raise invalid("--pattern", text, "g4,g2,g1, such as 2,2,4")
    first, second, third = map(int, numbers)
    return first, second, third
