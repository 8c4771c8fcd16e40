"""Commands that look at what is on disk: recipes, inspect, spectra, segment and report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from latewood.cli.app import Flag, Trust, app, require_table
from latewood.errors import RequestError, WorkError, listed


@app.command
def recipes() -> None:
    """List the recipes that ship with the package; train, sweep and tickets take their names."""
    from latewood.recipes import shipped_recipes
    from latewood.terminal.tables import print_table

    rows = [
        {"recipe": recipe.name, "task": recipe.task, "model": recipe.model, "about": recipe.about}
        for recipe in shipped_recipes()
    ]
    print_table(rows)


@app.command
def inspect(
    files: Annotated[Sequence[Path], Parameter(negative=())],
    /,
    *,
    split: Literal["fused", "qkv"] = "fused",
    conv: Literal["flatten", "taps"] = "flatten",
    lora: Literal["factors", "product"] = "factors",
    key: str = "",
    include: Annotated[Sequence[str], Parameter(negative=())] = ("*",),
    exclude: Annotated[Sequence[str], Parameter(negative=())] = (),
    sort: str | None = None,
    all_columns: Annotated[bool, Flag] = False,
    against: Path | None = None,
    page: Path | None = None,
    table: Path | None = None,
) -> None:
    """Show the spectra of any checkpoint's weight matrices, without the code that made it.

    Parameters
    ----------
    files
        safetensors or torch files, runs, checkpoints in them, or folders of Hugging Face models and
        PEFT adapters.
    split
        Attention's fused projections as one matrix, or as queries, keys and values.
    conv
        Kernels as one matrix each, or as one matrix per tap.
    lora
        Low-rank adapters as their two factors, or as what they add to a weight: scaled in a PEFT
        folder, whose configuration says by how much, without its scale elsewhere.
    key
        Where in a torch file the weights are, such as ema.model; found if not given.
    include
        Only tensors or layers whose names match one of these patterns.
    exclude
        No tensors or layers whose names match one of these patterns.
    sort
        Rows by this column, the largest first; from input to output if not given.
    all_columns
        Show every column that the table file has.
    against
        Compare with this checkpoint, matrix by matrix, instead.
    page
        Also draw the matrices of one file over depth, as this HTML page.
    table
        Also write the table, with all columns, to this file.
        Its ending says how: .csv, .json or .parquet.
    """
    require_table(table)
    if page is not None and (len(files) > 1 or against is not None):
        raise RequestError(f"--page: got '{page}' for several checkpoints; expected one alone")

    from latewood.studies.inspection import (
        FEW_COLUMNS,
        compared,
        inspect_checkpoint,
        sorted_rows,
        summary_row,
    )
    from latewood.studies.inspection_page import write_inspection_page
    from latewood.terminal.progress import track
    from latewood.terminal.tables import print_table, write_table

    look = partial(
        inspect_checkpoint,
        split=split,
        conv=conv,
        lora=lora,
        include=include,
        exclude=exclude,
        track=track,
    )
    other = None if against is None else look(against)
    table_rows = []
    for file in files:
        inspection = look(file, key=key)
        rows = inspection.rows if other is None else compared(inspection, other)
        rows = rows if sort is None else sorted_rows(rows, sort)
        table_rows += [{"file": str(file), **row} for row in rows]
        if other is None:
            few = () if all_columns else FEW_COLUMNS
            columns = few or tuple(rows[0])
            print_table([*rows, summary_row(rows)], title=str(file), columns=columns)
        else:
            print_table(rows, title=f"{file} against {against}")
        if inspection.left_out:
            left_out = [
                {
                    "name": left.name,
                    "shape": "x".join(map(str, left.shape)),
                    "dtype": str(left.dtype).removeprefix("torch."),
                    "why": left.why,
                }
                for left in inspection.left_out
            ]
            print_table(left_out, title="Left out")
        if page is not None:
            print(f"page: {write_inspection_page(str(file), inspection, page)}")
    if table is not None:
        print(f"table: {write_table(table_rows, table)}")


@app.command
def spectra(
    run: Path,
    /,
    *,
    reference: str = "final",
    against: Path | None = None,
    out: Path | None = None,
    table: Path | None = None,
) -> None:
    """Show when the singular vectors of a run's weights took their direction, and draw it.

    Needs the snapshots of a probe named spectral, and no checkpoints.

    Parameters
    ----------
    run
        A run folder.
    reference
        What to compare with: final, initial, previous, a step, or (with --against) same.
    against
        Compare with the snapshots of this run instead.
    out
        The page; agreement.html in the run's folder if not given.
    table
        Also write every single agreement to this file.
        Its ending says how: .csv, .json or .parquet.
    """
    require_table(table)

    from latewood.studies.agreement_page import (
        agreement_rows,
        run_agreement,
        score_rows,
        write_agreement_page,
    )
    from latewood.terminal.tables import print_table, write_table
    from latewood.training.run_folder import RunFolder

    folder, other = RunFolder(run), None if against is None else RunFolder(against)
    agreement = run_agreement(folder, reference, against=other)
    about = f"step {reference}" if reference.isdecimal() else f"the {reference} snapshot"
    if other is not None:
        about += f" of {other.name}"
    print_table(score_rows(agreement), title=f"Agreement with {about}")
    print(f"page: {write_agreement_page(folder, agreement, out or run / 'agreement.html', about)}")
    if table is not None:
        print(f"table: {write_table(agreement_rows(agreement), table)}")


@app.command
def segment(
    images: Annotated[Sequence[Path], Parameter(negative=())],
    /,
    *,
    out: Path = Path("segmented"),
    overlay: Annotated[bool, Flag] = False,
    evaluate: Path | None = None,
    preset: Literal["paper", "robust", "fast"] = "robust",
    size: int | None = None,
    network: Path | None = None,
    recursive: Annotated[bool, Flag] = False,
    trust: Annotated[bool, Trust] = False,
) -> None:
    """Split images into foreground and background, without labels or weights.

    Writes a mask for every image, segmentation.json, and index.html to look at them all.

    Parameters
    ----------
    images
        Image files, or folders of them.
    out
        Folder of the results.
    overlay
        Also write each image with its background darkened and the outline drawn.
    evaluate
        A folder with true masks, called NAME.png or NAME_mask.png, to compare with.
    preset
        paper is the published algorithm; robust finds better masks; fast works at half the size.
    size
        Larger images are searched with this shorter side, in pixels, and their masks brought
        back to full size along the edges; 128 if not given, 64 for fast.
    network
        Instead of searching, ask the network that a run on the task foreground has trained.
    recursive
        Also take the images in folders inside the folders.
    """
    from latewood.segmentation import PRESETS, segment
    from latewood.segmentation.contact_sheet import write_sheet
    from latewood.segmentation.segment_files import means, segment_files
    from latewood.segmentation.settings import settings_of
    from latewood.studies.trained_segmenter import trained_segmenter
    from latewood.terminal.progress import track
    from latewood.terminal.tables import print_table
    from latewood.training.run_folder import RunFolder

    settings = settings_of(preset, {"size": size or PRESETS[preset].size or 128})
    search = partial(segment, preset=settings)
    segmenter = search if network is None else trained_segmenter(RunFolder(network), trust=trust)
    passed_over: list[Path] = []
    done = segment_files(
        images,
        out,
        segmenter,
        overlays=overlay,
        truth=evaluate,
        recursive=recursive,
        passed_over=passed_over,
        track=track,
    )
    scores = means(done)
    if scores:
        rows = [
            {"measure": name, "better polarity": scores[name], "as it is": scores[f"{name}_fixed"]}
            for name in ("accuracy", "iou", "miou", "dice")
        ]
        print_table([*rows, {"measure": "empty masks", "as it is": scores["empty"]}])
    failed = [one for one in done if one.error]
    print(f"masks: {len(done) - len(failed)} in {out}")
    print(f"page: {write_sheet(done, out / 'index.html', passed_over)}")
    if passed_over:
        folders = any(path.is_dir() for path in passed_over) and not recursive
        hint = " (--recursive enters folders)" if folders else ""
        print(f"passed over: {listed(map(str, passed_over))}{hint}")
    if failed:
        # One line says it all; the page and segmentation.json hold the reasons of the rest.
        shown = "; ".join(one.error for one in failed[:5])
        more = f"; and {len(failed) - 5} more, see {out / 'index.html'}" if len(failed) > 5 else ""
        raise WorkError(f"{len(failed)} of {len(done)} images failed: {shown}{more}")


@app.command
def report(
    runs: Annotated[Sequence[Path], Parameter(negative=())],
    /,
    *,
    out: Path | None = None,
) -> None:
    """Write one self-contained HTML page about a run, comparing several, or about a ticket search.

    Parameters
    ----------
    runs
        Run folders, or the folder of one ticket search.
    out
        The page; report.html in the folder of the first run if not given.
    """
    from latewood.report import write_report
    from latewood.studies.tickets import TicketTable, write_tickets_page
    from latewood.training.run_folder import RunFolder

    searches = [path for path in runs if TicketTable.is_in(path)]
    if searches:
        if len(runs) > 1:
            raise RequestError(
                f"RUNS: got '{searches[0]}', which holds a ticket search, among others; expected "
                "it alone"
            )
        table = TicketTable.load(searches[0])
        print(f"report: {write_tickets_page(table, out or searches[0] / 'report.html')}")
        return
    folders = [RunFolder(path) for path in runs]
    print(f"report: {write_report(folders, out or folders[0].report_path)}")
