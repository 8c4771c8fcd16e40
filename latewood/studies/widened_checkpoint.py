"""Widens a pretrained checkpoint, so that the library that made it reads it with its own loader."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from latewood.core import ChannelPlan, trace_channels
from latewood.core.modes import evaluated
from latewood.errors import RequestError, invalid
from latewood.growth.growing_widths import growing_widths
from latewood.growth.growth_schedule import late
from latewood.growth.widen import widen
from latewood.studies.configuration_numbers import Indescribable, fitted_configuration
from latewood.terminal.progress import Advance, progress
from latewood.terminal.tables import Row

__all__ = ["WidenedCheckpoint", "widen_checkpoint"]

_WEIGHTS: Final = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx")
_INDEX: Final = "*.index.json"
_PARTS: Final = 4
"""Loading, tracing, widening and writing, after each of which progress is shown."""


@dataclass(frozen=True)
class WidenedCheckpoint:
    """What was written.

    Args:
        folder: of the wider model.
        groups: one row a channel group that grew: its widths before and after.
        left_out: groups that could change, with widths that no configuration describes.
        numbers: one row a number of the configuration that changed.
        parameters: before and after.
        error: largest change of an output, relative to the largest output.
    """

    folder: Path
    groups: list[Row]
    left_out: list[str]
    numbers: list[Row]
    parameters: tuple[int, int]
    error: float


def widen_checkpoint(
    checkpoint: Path,
    *,
    out: Path,
    times: float = 2.0,
    widths: Mapping[str, int] | None = None,
    exclude: tuple[str, ...] = (),
    seed: int = 0,
    overwrite: bool = False,
    show_progress: bool | None = None,
) -> WidenedCheckpoint:
    """Widens a model of the ``transformers`` library, keeping what it computes.

    The folder gets the model as the library saves it, with the configuration's numbers changed, and
    whatever lay beside the weights, such as a tokenizer. It is read again with the library's own
    loader before anything is said to be done.

    Args:
        checkpoint: a folder with ``config.json`` and safetensors; nothing is unpickled, and no code
            that comes with it is run.
        out: the folder to write.
        times: how many times the present widths the new ones are, of all groups that can change.
        widths: new widths by layer or group instead.
        exclude: patterns on names of groups that keep their widths.
        seed: of the new channels.
        overwrite: replace what an earlier call wrote there.
        show_progress: None shows it when it takes longer than two seconds; False never.

    Raises:
        RequestError: no such checkpoint, widths that cannot be, or ones that no configuration of
            the library describes.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    if out.exists() and not overwrite:
        raise invalid("--out", str(out), "a folder that does not exist, or --overwrite")
    with _quiet(), progress("widening", _PARTS, show=show_progress) as advance:
        return _widened(checkpoint, out, times, widths, exclude, seed, advance)


def _widened(
    checkpoint: Path,
    out: Path,
    times: float,
    widths: Mapping[str, int] | None,
    exclude: tuple[str, ...],
    seed: int,
    advance: Advance,
) -> WidenedCheckpoint:
    model = _loaded(checkpoint)
    inputs = _example(model)
    advance(note="loaded")
    plan = trace_channels(model, inputs)
    schedule = late(end=dict(widths) if widths else times)
    wanted = {name: of[-1] for name, of in growing_widths(plan, schedule, exclude).items()}
    advance(note="traced")
    configuration = model.config.to_dict()
    before = _outputs(model, inputs)
    parameters = sum(p.numel() for p in model.parameters())
    kind, config_kind = type(model), type(model.config)

    def make(values: dict[str, Any]) -> nn.Module:
        made: nn.Module = kind(config_kind.from_dict(values))
        return made

    left_out: list[str] = []
    while True:
        widen(model, inputs, wanted, seed=seed)
        try:
            fitted = fitted_configuration(make, configuration, model)
            break
        except Indescribable as unfit:
            # Some groups may be described together where all are not: in some libraries the number
            # of heads only goes with the width of the stream.
            dropped = _culprits(plan, wanted, unfit.tensors)
            if widths or len(dropped) == len(wanted):
                raise
            left_out += dropped
            wanted = {name: width for name, width in wanted.items() if name not in dropped}
            model = _loaded(checkpoint)
    advance(note="widened")
    after = _outputs(model, inputs)
    wider: Any = make(fitted)
    wider.to(next(model.parameters()).dtype)
    wider.load_state_dict(model.state_dict())
    temporary = out.resolve().with_name(f"{out.resolve().name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        wider.save_pretrained(temporary)
        _copy_rest(checkpoint, temporary)
        advance(note="written")
        again = kind.from_pretrained(temporary, dtype="auto", local_files_only=True)
        error = _error(after, _outputs(again, inputs))
        if error > 0.0:
            raise RequestError(
                f"configuration: {kind.__name__} with the fitting numbers computes something else "
                f"(outputs differ by {error:.1e}); expected other groups or widths"
            )
        if out.exists():
            shutil.rmtree(out)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return WidenedCheckpoint(
        folder=out,
        groups=[
            {"group": name, "width": plan[name].width, "new width": width}
            for name, width in wanted.items()
        ],
        left_out=left_out,
        numbers=list(_changed(configuration, fitted)),
        parameters=(parameters, sum(p.numel() for p in wider.parameters())),
        error=_error(before, after),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own messages and bars: it makes many models that nobody asked for."""
    try:
        from transformers.utils import logging
    except ImportError:
        yield
        return
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _loaded(checkpoint: Path) -> Any:
    expected = "the folder of a model of the transformers library, with config.json and safetensors"
    path = checkpoint / "config.json"
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(
            f"CHECKPOINT: got '{checkpoint}'; expected {expected} ({error})"
        ) from error
    if isinstance(written, dict) and "architecture" in written and "model_type" not in written:
        raise RequestError(
            f"CHECKPOINT: '{checkpoint}' is a timm model ({written['architecture']}), whose "
            f"config.json names an architecture and no widths; expected {expected}. Widen the "
            "model that timm.create_model made with latewood.growth.widen, and save its state"
        )
    if not isinstance(written, dict) or "model_type" not in written:
        raise invalid("CHECKPOINT", str(checkpoint), f"{expected}; config.json has no model_type")
    if not list(checkpoint.glob("*.safetensors")):
        raise invalid("CHECKPOINT", str(checkpoint), f"{expected}; there are no safetensors")
    try:
        import transformers
    except ImportError as error:
        raise RequestError(
            "CHECKPOINT: needs the transformers library: pip install 'latewood[transformers]'"
        ) from error
    names = written.get("architectures") or ["none"]
    try:
        kind = getattr(transformers, str(names[0]), None)
    except ImportError as error:  # the library imports a model's module when it is asked for it
        raise RequestError(
            f"CHECKPOINT: {names[0]} cannot be imported here: {error}; expected an installation in "
            f"which 'from transformers import {names[0]}' works"
        ) from error
    if kind is None:
        raise invalid(
            "CHECKPOINT", str(checkpoint), f"an architecture of transformers, not {names[0]}"
        )
    try:
        model = kind.from_pretrained(
            checkpoint, dtype="auto", local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # the library raises many kinds for what is in the folder
        raise RequestError(
            f"CHECKPOINT: '{checkpoint}' cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return model.eval()


def _culprits(plan: ChannelPlan, wanted: Mapping[str, int], tensors: frozenset[str]) -> list[str]:
    """The groups of the tensors that fit no configuration; those of one width if none has any."""
    culprits = [
        name for name in wanted if any(member.tensor in tensors for member in plan[name].members)
    ]
    if culprits:
        return culprits
    least = min(plan[name].width for name in wanted)
    return [name for name in wanted if plan[name].width == least]


def _example(model: Any) -> dict[str, Tensor]:
    """Small inputs of a model, by what it calls its main input."""
    config, name = model.config, model.main_input_name
    generator = torch.Generator().manual_seed(0)
    if name == "pixel_values":
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", 64)
        height, width = (size, size) if isinstance(size, int) else size
        shape = (1, getattr(vision, "num_channels", 3), height, width)
        dtype = next(model.parameters()).dtype
        return {name: torch.randn(shape, generator=generator).to(dtype)}
    if name != "input_ids":
        raise invalid("CHECKPOINT", type(model).__name__, "a model of token ids or pixel values")
    text = config.get_text_config()
    tokens = torch.randint(2, text.vocab_size, (1, 8), generator=generator)
    if config.is_encoder_decoder:
        return {name: tokens, "decoder_input_ids": tokens.clone()}
    return {name: tokens}


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    with evaluated(model):
        outputs = model(**inputs)
    first = outputs[0]
    return [first.double()]


def _error(before: list[Tensor], after: list[Tensor]) -> float:
    largest = max(float(tensor.abs().max()) for tensor in before)
    change = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
    return change / (largest or 1.0)


def _copy_rest(checkpoint: Path, folder: Path) -> None:
    """Copies what lies beside weights and configuration: tokenizers, licences, model cards."""
    for path in checkpoint.iterdir():
        weights = any(path.match(pattern) for pattern in (*_WEIGHTS, _INDEX))
        if path.is_file() and not weights and not (folder / path.name).exists():
            shutil.copy2(path, folder / path.name)


def _changed(before: Any, after: Any, path: str = "") -> list[Row]:
    rows: list[Row] = []
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            rows += _changed(old, value, f"{path}{key}.")
        elif value != old:
            rows.append({"number": f"{path}{key}", "was": old, "is": value})
    return rows
