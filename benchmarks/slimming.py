"""Masked models dense, masked, as compressed rows, slim and exported by measure, on one thread."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from benchmarks._timing import interleaved_minima, print_table
from latewood.core import trace_channels
from latewood.core.coupling.trace import layer_tensors
from latewood.core.selection import select_parameters
from latewood.models import resnet20
from latewood.slim import CsrLinear, ExportForm, export
from latewood.sparsity import FixedMasks

SIZE: Final = 1024
TURN_SECONDS: Final = 0.01
FORMS: Final[tuple[ExportForm, ...]] = ("dense", "masked", "csr", "slim", "auto")


@dataclass(frozen=True)
class Case:
    """Models of one kind, at the densities of their weights that are measured.

    Args:
        name: what the table calls it.
        make: the model and one sample of its inputs.
        mask: switches weights off at random, in place; the shares kept.
        batches: sizes of the batch.
        densities: shares of weights that are kept.
    """

    name: str
    make: Callable[[], tuple[nn.Module, Tensor]]
    mask: Callable[[nn.Module, Tensor, float, int], None]
    batches: Sequence[int]
    densities: Sequence[float]


def main(arguments: list[str]) -> None:
    """Prints one table a kind of model.

    Args:
        arguments: the number of rounds each form is timed, 15 if left out; then names of tables
            (weights, units, vgg, resnet, lstm), all if left out.
    """
    rounds = int(arguments[0]) if arguments else 15
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in arguments[1:] or CASES:
        _print_case(CASES[name], rounds)
    torch.set_num_threads(before)


def mask_weights(model: nn.Module, inputs: Tensor, density: float, seed: int) -> None:
    """Masks single weights, each on its own."""
    generator = torch.Generator().manual_seed(seed)
    FixedMasks(
        model,
        {
            weight.name: torch.rand(weight.tensor.shape, generator=generator) < density
            for weight in select_parameters(model)
        },
    )


def mask_channels(model: nn.Module, inputs: Tensor, density: float, seed: int) -> None:
    """Masks channels and units: what makes them and their norms, the square root of the density."""
    generator = torch.Generator().manual_seed(seed)
    places = dict(layer_tensors(model))
    masks = {
        weight.name: torch.ones_like(weight.tensor, dtype=torch.bool)
        for weight in select_parameters(model)
    }
    for group in trace_channels(model, inputs).free:
        order = torch.randperm(group.width, generator=generator)
        gone = order[round(density**0.5 * group.width) :]
        for member in group.members:
            positions = member.indices[gone].flatten()
            if member.role == "consumer" or "running" in member.tensor:
                continue
            if member.tensor in masks:
                masks[member.tensor].index_fill_(member.axis, positions, False)
            else:
                with torch.no_grad():
                    getattr(*places[member.tensor]).index_fill_(member.axis, positions, 0)
    FixedMasks(model, masks)


def _print_case(case: Case, rounds: int) -> None:
    rows = []
    for batch in case.batches:
        for density in case.densities:
            torch.manual_seed(0)
            model, sample = case.make()
            model.eval()
            inputs = torch.randn(batch, *sample.shape[1:])
            case.mask(model, inputs, density, 0)
            rows.append([str(batch), f"{density:g}", *_row(model, inputs, rounds)])
    header = ["batch", "density", "dense us", "masked", "CSR", "slim", "auto"]
    print_table(
        f"{case.name}: speed-up over dense",
        [*header, "auto is", "auto / best of dense, CSR, slim"],
        rows,
    )


def _row(model: nn.Module, inputs: Tensor, rounds: int) -> list[str]:
    forms: dict[ExportForm, nn.Module] = {}
    for mode in FORMS:
        forms[mode], report = export(model, inputs, mode=mode)
    best = _minima({mode: partial(form, inputs) for mode, form in forms.items()}, rounds)
    compressed = any(isinstance(layer, CsrLinear) for layer in forms["csr"].modules())
    least = min(best[form] for form in ("dense", "slim") + ("csr",) * compressed)
    choices = {layer.choice for layer in report.layers} - {"dense"} or {"dense"}
    return [
        f"{1e6 * best['dense']:.0f}",
        f"{best['dense'] / best['masked']:.2f}",
        f"{best['dense'] / best['csr']:.2f}" if compressed else "-",
        f"{best['dense'] / best['slim']:.2f}",
        f"{best['dense'] / best['auto']:.2f}",
        " + ".join(sorted(choices)),
        f"{least / best['auto']:.2f}",
    ]


def _minima(forms: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, float]:
    """Several calls a turn: with one, a form is charged for what the others left in the cache."""
    with torch.inference_mode():
        once = interleaved_minima(forms, rounds=2)
        calls = {name: max(1, round(TURN_SECONDS / seconds)) for name, seconds in once.items()}

        def several(name: str) -> None:
            for _ in range(calls[name]):
                forms[name]()

        turns: dict[str, Callable[[], None]] = {name: partial(several, name) for name in forms}
        # The thread's own time, since the machine may have other work.
        minima = interleaved_minima(turns, rounds=rounds, clock=time.thread_time)
    return {name: minima[name] / calls[name] for name in forms}


def _linear() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(SIZE, SIZE)), torch.randn(1, SIZE)


def _three_linear() -> tuple[nn.Module, Tensor]:
    sizes = (SIZE, SIZE, SIZE, 10)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1]), torch.randn(1, SIZE)


def _vgg_like() -> tuple[nn.Module, Tensor]:
    """Six convolutions of 64 to 256 channels on images of 32 x 32."""
    layers: list[nn.Module] = []
    channels = 3
    for width, pooled in ((64, 0), (64, 1), (128, 0), (128, 1), (256, 0), (256, 1)):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] * pooled
        channels = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
    return nn.Sequential(*layers), torch.randn(1, 3, 32, 32)


class _Labeller(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(512, 512, 2, batch_first=True)
        self.head = nn.Linear(512, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.lstm(inputs)[0])
        return outputs


CASES: Final = {
    "weights": Case(
        f"Linear layer {SIZE} x {SIZE}, single weights masked",
        _linear,
        mask_weights,
        (1, 32),
        (0.5, 0.2, 0.1, 0.05, 0.01),
    ),
    "units": Case(
        f"Linear layers {SIZE}-{SIZE}-{SIZE}-10, hidden units masked",
        _three_linear,
        mask_channels,
        (1, 32),
        (0.5, 0.2, 0.1, 0.05, 0.01),
    ),
    "vgg": Case(
        "Six convolutions 64 to 256 with batch norms on 32 x 32, channels masked",
        _vgg_like,
        mask_channels,
        (1, 16),
        (0.5625, 0.25, 0.0625),
    ),
    "resnet": Case(
        "ResNet-20 on 32 x 32, channels masked",
        lambda: (resnet20(), torch.randn(1, 3, 32, 32)),
        mask_channels,
        (1, 16),
        (0.5625, 0.25, 0.0625),
    ),
    "lstm": Case(
        "LSTM of 2 layers of 512 units, 35 steps, units masked",
        lambda: (_Labeller(), torch.randn(1, 35, 512)),
        mask_channels,
        (1, 16),
        (0.5625, 0.25, 0.0625),
    ),
}
