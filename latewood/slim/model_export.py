"""Gives a masked model the form in which it runs fastest: dense, compressed rows, or slim."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, get_args

import torch
from torch import nn

from latewood.core.copies import copy_of
from latewood.core.coupling import trace_channels
from latewood.core.coupling.trace import run_model
from latewood.core.timing import least_times
from latewood.errors import invalid
from latewood.slim.comparison import Examples, bake_masks, compare
from latewood.slim.compressed_linear import LinearChoice, compress, compression
from latewood.slim.csr_linear import CsrLinear
from latewood.slim.edits import Channels, Edit, apply_edit, remember
from latewood.slim.idle_channels import Limits
from latewood.slim.layer_times import heavy_layers, layer_times
from latewood.slim.removal import slimmed

__all__ = ["ExportForm", "ExportReport", "LayerChoice", "export"]

ExportForm = Literal["auto", "dense", "masked", "csr", "slim"]
"""The forms of a model that ``export`` can write; "auto" is the fastest."""

_MULTIPLES: Final = (8, 16)
"""Numbers of channels that kernels like; measured beside the exact ones."""
_TOLERATED: Final = 1.02
"""Forms this close to the fastest count as equally fast, and the order below decides."""
_WHOLE: Final[dict[str, Any]] = {"steady": 25, "seconds": 5.0}
"""How patiently the forms of the whole are timed, since that decides."""
_PREFERRED: Final[tuple[ExportForm, ...]] = ("auto", "slim", "csr", "dense")


@dataclass(frozen=True)
class LayerChoice:
    """The form of one layer.

    Args:
        layer: its name in the model that was exported.
        choice: "dense" as it was; "slim": it lost rows or columns; "csr": compressed rows, of what
            was left; "removed": it went with a block.
        density: share of its weights that were not zero.
        us: least time in microseconds by form, where it was measured: "dense", "slim" and "csr" for
            each alone, "chosen" for what was taken. {} unless the mode is "auto".
    """

    layer: str
    choice: Literal["dense", "slim", "csr", "removed"]
    density: float
    us: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportReport:
    """What ``export`` made, and why.

    Args:
        mode: what was asked for.
        form: what was returned: the mode, but for "auto" the form that was fastest as a whole;
            there "auto" is the mixture of the layers' own best forms.
        layers: the choice of each linear, convolutional and recurrent layer.
        us: least time of the whole model in microseconds by form, for the mode "auto".
        difference: largest difference of the outputs from the model's own, relative to the largest
            output.
    """

    mode: ExportForm
    form: ExportForm
    layers: tuple[LayerChoice, ...]
    us: dict[str, float]
    difference: float


@dataclass(frozen=True)
class _Exported:
    """One form of the model, and the edits that make it of the dense one."""

    model: nn.Module
    edits: list[Edit]


def export(
    model: nn.Module,
    example_inputs: Examples,
    *,
    mode: ExportForm = "auto",
    tolerance: float | None = None,
) -> tuple[nn.Module, ExportReport]:
    """Exports a masked model in a form for inference, by default in the one that runs fastest.

    "auto" first makes it slim as ``slim`` does; of every group of channels the exact number and
    multiples of 8 and 16 are timed on the layers they run through, and the fastest is kept. Then
    each linear layer is timed dense and in compressed rows. At last the whole is timed beside the
    dense, the slim and the compressed model, and the fastest of them is returned, so that it is
    never slower than the dense one beyond what a repeated measurement differs. All times are least
    times taken in turns, on the example: they hold for its batch size, this machine and the present
    number of threads.

    Args:
        model: any module; it stays as it is.
        example_inputs: what it is called with, with the batch size that matters.
        mode: "auto"; "dense" folds the masks into the weights; "masked" keeps them attached; "csr"
            stores linear layers as compressed rows; "slim" removes channels, heads and blocks.
        tolerance: as for ``slim``.

    Returns:
        The exported module in evaluation mode, and what was chosen. All but "masked" can be saved
        with ``save_slim``.

    Raises:
        RequestError: another mode.
        WorkError: the exported module differs from the model.
    """
    if mode not in get_args(ExportForm):
        raise invalid("mode", mode, f"one of {', '.join(get_args(ExportForm))}")
    dense = copy_of(model).eval()
    if mode == "masked":
        difference = compare(model, dense, example_inputs, tolerance)
        return dense, ExportReport(mode, "masked", (), {}, difference)
    bake_masks(dense)
    form: ExportForm = mode
    times: dict[str, dict[str, float]] = {}
    whole: dict[str, float] = {}
    if mode == "auto":
        forms, times = _forms(dense, example_inputs)
        whole = _whole_times(forms, example_inputs)
        form = _fastest(whole)
        exported = forms[form]
    else:
        exported = _plain(dense, example_inputs, mode)
    difference = compare(model, exported.model, example_inputs, tolerance)
    remember(exported.model, exported.edits, example_inputs)
    layers = _choices(dense, exported.model, times)
    return exported.model, ExportReport(mode, form, layers, whole, difference)


def _plain(dense: nn.Module, example_inputs: Examples, mode: ExportForm) -> _Exported:
    if mode == "slim":
        return _Exported(*slimmed(dense, example_inputs, Limits()))
    if mode == "csr":
        return _compressed(_Exported(dense, []), example_inputs, "csr")[0]
    return _Exported(copy.deepcopy(dense), [])


def _compressed(
    exported: _Exported, example_inputs: Examples, mode: Literal["auto", "csr"]
) -> tuple[_Exported, list[LinearChoice]]:
    twin, report = compress(copy.deepcopy(exported.model), example_inputs, mode)
    edit = compression(report)
    return _Exported(twin, [*exported.edits, edit] if edit.layers else exported.edits), report


def _forms(
    dense: nn.Module, example_inputs: Examples
) -> tuple[dict[ExportForm, _Exported], dict[str, dict[str, float]]]:
    """The forms to choose from, and the times of the layers in them."""
    forms: dict[ExportForm, _Exported] = {"dense": _Exported(copy.deepcopy(dense), [])}
    best = forms["dense"]
    exact = _Exported(*slimmed(dense, example_inputs, Limits()))
    if _size(exact.model) < _size(dense):
        forms["slim"] = exact
        best = _Exported(
            *slimmed(
                dense, example_inputs, Limits(by_group=_multiples(dense, exact, example_inputs))
            )
        )
    mixed, report = _compressed(best, example_inputs, "auto")
    if any(choice.chosen == "csr" for choice in report):
        forms["csr"] = _plain(dense, example_inputs, "csr")
    if len(forms) > 1:
        forms["auto"] = mixed
    times = layer_times({"chosen": mixed.model} | _others(forms), example_inputs)
    for choice in report:
        # Compressed rows that were not taken have been timed as well.
        if choice.csr_ms is not None and choice.layer in times:
            times[choice.layer].setdefault("csr", 1e3 * choice.csr_ms)
    return forms, times


def _others(forms: Mapping[ExportForm, _Exported]) -> dict[str, nn.Module]:
    return {
        form: exported.model for form, exported in forms.items() if form in ("dense", "slim", "csr")
    }


def _multiples(dense: nn.Module, exact: _Exported, example_inputs: Examples) -> dict[str, int]:
    """For each group that lost channels, the multiple of channels whose layers take least time."""
    full = copy.deepcopy(dense)
    keep: dict[str, list[int]] = {}
    for edit in exact.edits:
        if isinstance(edit, Channels):
            keep = edit.keep
            break
        full = apply_edit(full, edit, example_inputs).eval()
    groups = [group for group in trace_channels(full, example_inputs) if group.name in keep]
    candidates = {"1": exact.model, "full": full}
    for multiple in _MULTIPLES:
        # Where all widths are multiples already there is nothing to try.
        if any(len(keep[group.name]) % multiple for group in groups):
            exported = slimmed(dense, example_inputs, Limits(round_to=multiple))[0]
            candidates[str(multiple)] = exported
    times = layer_times(candidates, example_inputs)
    chosen: dict[str, int] = {}
    for group in groups:
        layers = {member.tensor.rpartition(".")[0] for member in group.members}
        spent = {
            name: sum(times[layer][name] for layer in layers if name in times.get(layer, {}))
            for name in candidates
        }
        fastest = min(spent.values())
        # The fewest channels of those that are equally fast.
        order = ["1", *map(str, _MULTIPLES), "full"]
        best = next(name for name in order if spent.get(name, fastest * 2) <= _TOLERATED * fastest)
        chosen[group.name] = group.width if best == "full" else int(best)
    return chosen


def _whole_times(
    forms: Mapping[ExportForm, _Exported], example_inputs: Examples
) -> dict[str, float]:
    device = next(
        (weight.device for exported in forms.values() for weight in exported.model.parameters()),
        torch.device("cpu"),
    )
    calls: dict[str, Callable[[], object]] = {
        form: partial(run_model, exported.model.eval(), example_inputs)
        for form, exported in forms.items()
    }
    return least_times(calls, device, **_WHOLE)


def _fastest(times: Mapping[str, float]) -> ExportForm:
    """The fastest form; of those that are as fast, the first in a fixed order."""
    best = min(times.values())
    return next(form for form in _PREFERRED if times.get(form, 2 * best) <= _TOLERATED * best)


def _choices(
    dense: nn.Module, exported: nn.Module, times: Mapping[str, dict[str, float]]
) -> tuple[LayerChoice, ...]:
    after = dict(exported.named_modules())
    choices = []
    for name, layer in heavy_layers(dense).items():
        weights = [weight for weight in layer.parameters() if weight.ndim > 1]
        total = sum(weight.numel() for weight in weights)
        nonzero = sum(int(weight.count_nonzero()) for weight in weights)
        choice = _choice(layer, after.get(name))
        choices.append(LayerChoice(name, choice, nonzero / max(1, total), times.get(name, {})))
    return tuple(choices)


def _choice(
    before: nn.Module, after: nn.Module | None
) -> Literal["dense", "slim", "csr", "removed"]:
    if isinstance(after, CsrLinear):
        return "csr"
    if after is None or type(after) is not type(before):
        return "removed"
    return "slim" if _size(after) < _size(before) else "dense"


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
