"""Linear layers in compressed rows where that is measured to be faster than dense ones."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core.timing import least_times
from latewood.errors import invalid
from latewood.slim.comparison import Examples, bake_masks, compare
from latewood.slim.csr_linear import CsrLinear
from latewood.slim.edits import Compressed, remember
from latewood.slim.layer_times import given_to

__all__ = ["LinearChoice", "compress", "compression", "export_linear"]

_GAIN = 0.95
"""CSR must take less than this share of the dense time, so that noise never makes a loss."""


@dataclass(frozen=True)
class LinearChoice:
    """What was chosen for one linear layer, and why.

    Args:
        layer: its name.
        chosen: "dense" or "csr".
        reason: in words.
        density: share of its weights that are not zero.
        rows: inputs that it multiplied with its weight in the example; 0 if it was not called.
        dense_ms: least time of the dense layer on them; None if it was not measured.
        csr_ms: least time of the compressed one.
    """

    layer: str
    chosen: Literal["dense", "csr"]
    reason: str
    density: float
    rows: int
    dense_ms: float | None = None
    csr_ms: float | None = None


def export_linear(
    model: nn.Module,
    example_inputs: Examples,
    *,
    mode: Literal["auto", "dense", "csr"] = "auto",
    tolerance: float | None = None,
) -> tuple[nn.Module, list[LinearChoice]]:
    """Gives each linear layer the form, dense or compressed rows, that is faster where it runs.

    Zeros in a dense layer save no time, and compressed rows only do from some sparsity on, which
    depends on sizes, batch and machine: so both forms are timed on what the layer is given when the
    model runs the example. Masks on the weights are folded in. The result is for inference, and is
    compared with the model as in ``slim``.

    Args:
        model: any module; it stays as it is.
        example_inputs: what it is called with, with the batch size that matters.
        mode: "auto" measures; "dense" only folds the masks in; "csr" compresses every plain linear
            layer that runs, where torch has these products for its type and device.
        tolerance: as for ``slim``.

    Returns:
        The exported module in evaluation mode, and one entry a linear layer.

    Raises:
        RequestError: another mode.
        WorkError: the exported module differs from the model.
    """
    if mode not in ("auto", "dense", "csr"):
        raise invalid("mode", mode, "auto, dense or csr")
    twin = copy.deepcopy(model).eval()
    bake_masks(twin)
    twin, report = compress(twin, example_inputs, mode)
    compare(model, twin, example_inputs, tolerance)
    remember(twin, [compression(report)], example_inputs)
    return twin, report


def compress(
    model: nn.Module, example_inputs: Examples, mode: Literal["auto", "dense", "csr"]
) -> tuple[nn.Module, list[LinearChoice]]:
    """Gives each linear layer the form that a mode asks for, in place, and says which.

    Args:
        model: a model without masks, in evaluation mode.
        example_inputs: what it is called with.
        mode: as for ``export_linear``.

    Returns:
        The model, or what took its place, and one entry a linear layer.
    """
    twin = model
    layers = {name: layer for name, layer in twin.named_modules() if isinstance(layer, nn.Linear)}
    given = given_to(twin, layers, example_inputs)
    tied = _tied(twin)
    report = []
    for name, layer in layers.items():
        positional = given[name][0] if name in given else ()
        inputs = positional[0] if positional and isinstance(positional[0], Tensor) else None
        choice, compressed = _choose(name, layer, inputs, mode, id(layer.weight) in tied)
        report.append(choice)
        if choice.chosen == "csr" and compressed is not None:
            if name:
                twin.set_submodule(name, compressed)
            else:
                twin = compressed
    return twin, report


def compression(report: Sequence[LinearChoice]) -> Compressed:
    """What ``compress`` did, to be done again."""
    return Compressed([choice.layer for choice in report if choice.chosen == "csr"])


def _tied(model: nn.Module) -> set[int]:
    """Tensors that several layers own."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for tensor in module.parameters(recurse=False):
            owners[id(tensor)] = owners.get(id(tensor), 0) + 1
    return {tensor for tensor, count in owners.items() if count > 1}


def _choose(
    name: str, layer: nn.Linear, inputs: Tensor | None, mode: str, tied: bool
) -> tuple[LinearChoice, CsrLinear | None]:
    weight = layer.weight.detach()
    density = int(weight.count_nonzero()) / max(1, weight.numel())
    rows = 0 if inputs is None else inputs.numel() // max(1, layer.in_features)

    def dense(reason: str) -> tuple[LinearChoice, None]:
        return LinearChoice(name, "dense", reason, density, rows), None

    if mode == "dense":
        return dense("asked for")
    if inputs is None:
        return dense("not called in the example")
    if type(layer) is not nn.Linear or tied:
        return dense("shares its weight" if tied else f"a {type(layer).__name__}")
    if mode == "auto" and density == 1:
        return dense("has no zeros")
    compressed = CsrLinear.of(layer)
    try:
        if mode == "csr":
            with torch.inference_mode():
                compressed(inputs)
            return LinearChoice(name, "csr", "asked for", density, rows), compressed
        dense_ms, csr_ms = _times(layer, compressed, inputs)
    except RuntimeError as error:
        # Not every build of torch has these products for every type.
        return dense(f"compressed rows do not run here ({str(error).splitlines()[0]})")
    faster = csr_ms < _GAIN * dense_ms
    reason = f"CSR takes {csr_ms / dense_ms:.2f} of the dense time"
    choice = LinearChoice(
        name, "csr" if faster else "dense", reason, density, rows, dense_ms, csr_ms
    )
    return choice, compressed


def _times(layer: nn.Linear, compressed: CsrLinear, inputs: Tensor) -> tuple[float, float]:
    """Least times in milliseconds, taken in turns."""
    forms = {
        "dense": lambda: F.linear(inputs, layer.weight, layer.bias),
        "csr": lambda: compressed(inputs),
    }
    best = least_times(forms, inputs.device)
    return best["dense"] / 1e3, best["csr"] / 1e3
