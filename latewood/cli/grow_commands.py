"""Commands about networks that grow: grow plan, grow simulate and grow widen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App

from latewood.cli.app import Flag, Many, app
from latewood.errors import invalid, listed

grow = App(name="grow", help="Plan, time and carry out the growth of networks.")
app.command(grow)


@grow.command
def plan(
    recipe: Path,
    /,
    *,
    set: Annotated[Sequence[str], Many] = (),
    seconds: float = 2.0,
) -> None:
    """Show what grows in a recipe, how wide it is in every phase, and what the phases take.

    Nothing is trained. Steps are measured on this machine; data, validation and files come on top.

    Parameters
    ----------
    recipe
        A TOML file, or a name that latewood recipes lists, with a growth among its methods.
    set
        key=value: change the recipe, for example methods.0.schedule.end=2.0. May be repeated.
    seconds
        How long to measure, about.
    """
    from latewood.studies.growth_plans import plan_growth
    from latewood.terminal.tables import print_table
    from latewood.training.recipe import load_recipe

    done = plan_growth(load_recipe(recipe, set), seconds=seconds)
    print_table(done.groups, title="Channel groups")
    print_table(done.phases, title="Phases", right=("cost",))
    print(
        f"predicted: {done.seconds:.3g} s for {done.macs_share:.1%} of the multiply-accumulates of "
        f"the final network from the start, which would take {done.fixed_seconds:.3g} s"
    )


@grow.command
def simulate(
    recipe: Path,
    /,
    *,
    set: Annotated[Sequence[str], Many] = (),
    phases: int = 4,
    align: int = 16,
    tolerance: float = 0.02,
    seconds: float = 5.0,
) -> None:
    """Time a recipe's network at many widths here, and choose a faster schedule of equal cost.

    Parameters
    ----------
    recipe
        A TOML file, or a name that latewood recipes lists, with a growth among its methods.
    set
        key=value: change the recipe. May be repeated.
    phases
        Most phases of the schedule to choose.
    align
        Widths on the way are multiples of this even number: 16 for convolutions, 8 for others.
    tolerance
        Largest difference of the cost, as a share.
    seconds
        How long to measure, about.
    """
    from latewood.studies.growth_plans import simulate_growth
    from latewood.terminal.tables import print_table
    from latewood.training.recipe import load_recipe
    from latewood.training.toml import inline_toml

    done = simulate_growth(
        load_recipe(recipe, set), phases=phases, align=align, tolerance=tolerance, seconds=seconds
    )
    print_table(done.networks, title="Networks")
    print_table(done.schedules, title="Schedules", right=("MACs", "time"))
    print(f"schedule = {inline_toml(done.section)}")


@grow.command
def widen(
    checkpoint: Path,
    /,
    *,
    times: float = 2.0,
    width: Annotated[Sequence[str], Many] = (),
    exclude: Annotated[Sequence[str], Many] = (),
    out: Path | None = None,
    seed: int = 0,
    overwrite: Annotated[bool, Flag] = False,
) -> None:
    """Widen a pretrained model of the transformers library without changing what it computes.

    The result is a folder that the library's own from_pretrained reads, to be trained on.

    Parameters
    ----------
    checkpoint
        A folder with config.json and safetensors. Nothing is unpickled.
    times
        How many times the present widths the new ones are, of all groups that can change.
    width
        NAME=WIDTH: the new width of one layer or group instead. May be repeated.
    exclude
        Patterns on names of groups that keep their widths.
    out
        Folder of the wider model; CHECKPOINT-wider if not given.
    seed
        Of the new channels.
    overwrite
        Replace what is already in that folder.
    """
    widths = dict(_pair(text) for text in width)

    from latewood.studies.widened_checkpoint import widen_checkpoint
    from latewood.terminal.tables import print_table

    # Of "." and ".." only the resolved path has a name.
    named = checkpoint if checkpoint.name not in ("", "..") else checkpoint.resolve()
    done = widen_checkpoint(
        checkpoint,
        out=out or named.with_name(f"{named.name}-wider"),
        times=times,
        widths=widths or None,
        exclude=tuple(exclude),
        seed=seed,
        overwrite=overwrite,
    )
    print_table(done.groups, title="Channel groups")
    if done.left_out:
        names = listed(done.left_out)
        print(f"left as they are, since no configuration describes them wider: {names}")
    print_table(done.numbers, title="Numbers of the configuration")
    before, after = done.parameters
    print(f"parameters: {before:,} before, {after:,} after")
    print(f"outputs changed by {done.error:.1e} of the largest")
    print(f"model: {done.folder}")


def _pair(text: str) -> tuple[str, int]:
    name, separator, width = text.rpartition("=")
    if not separator or not width.isdecimal():
        raise invalid("--width", text, "NAME=WIDTH, such as encoder.layer.0.intermediate.dense=256")
    return name, int(width)
