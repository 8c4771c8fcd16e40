"""Dense, masked, CSR and slim forms of layers and networks, per layer and whole, on one thread."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks._timing import interleaved_minima, print_table
from latewood.core import trace_channels
from latewood.sparsity import CsrLinear, export_linear, slim
from latewood.training.measure import parameter_count
from latewood.training.models import lstm_language_model, resnet20, vgg11

DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.01)
KEPT = (0.75, 0.5, 0.25)
SIZE = 1024
CALLS = 10


class _Last(nn.Module):
    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return pair[0]


def main(arguments: list[str]) -> None:
    """Prints one table of linear layers and one of networks.

    Args:
        arguments: the number of rounds each candidate is timed, 30 if left out.
    """
    rounds = int(arguments[0]) if arguments else 30
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.inference_mode():
        _print_linear(rounds)
        _print_networks(rounds)
    torch.set_num_threads(before)


def _print_linear(rounds: int) -> None:
    """All forms have the same number of weights; the slim one has both sides narrowed."""
    rows = []
    for batch in (1, 32):
        for density in DENSITIES:
            inputs = torch.randn(batch, SIZE)
            dense, masked = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)
            masked.weight.mul_(torch.rand(SIZE, SIZE) < density)
            side = round(SIZE * density**0.5)
            narrow, fewer = nn.Linear(side, side), torch.randn(batch, side)
            auto, report = export_linear(masked, inputs)
            rowwise = CsrLinear.of(masked)
            forms = {
                "dense": lambda dense=dense, inputs=inputs: dense(inputs),
                "masked": lambda masked=masked, inputs=inputs: masked(inputs),
                "csr": lambda rowwise=rowwise, inputs=inputs: rowwise(inputs),
                "auto": lambda auto=auto, inputs=inputs: auto(inputs),
                "slim": lambda narrow=narrow, fewer=fewer: narrow(fewer),
            }
            best = _warm_minima(forms, rounds)
            least = min(best["dense"], best["csr"])
            rows.append(
                [str(batch), f"{density:g}", f"{1e6 * best['dense']:.0f}"]
                + [f"{best['dense'] / best[form]:.2f}" for form in ("masked", "csr", "slim")]
                + [report[0].chosen, f"{least / best['auto']:.2f}"]
            )
    print_table(
        f"Linear layer {SIZE} x {SIZE}: speed-up over dense at equal numbers of weights",
        ["batch", "density", "dense us", "masked", "CSR", "slim", "auto", "auto / best"],
        rows,
    )


def _warm_minima(forms: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, float]:
    """Several calls a turn: with one, a form is charged for what the others left in the cache."""

    def several(run: Callable[[], Tensor]) -> None:
        for _ in range(CALLS):
            run()

    turns = {name: partial(several, run) for name, run in forms.items()}
    return {name: each / CALLS for name, each in interleaved_minima(turns, rounds=rounds).items()}


def _networks() -> dict[str, tuple[nn.Module, Tensor]]:
    image = torch.randn(16, 3, 32, 32)
    tokens = torch.randint(0, 1000, (1, 35))
    layer = nn.Sequential()
    layer.add_module("lstm", nn.LSTM(512, 512, 2, batch_first=True))
    layer.add_module("outputs", _Last())
    layer.add_module("head", nn.Linear(512, 10))
    return {
        "ResNet-20, batch 16": (resnet20(), image),
        "ResNet-20, batch 1": (resnet20(), image[:1]),
        "VGG-11, batch 16": (vgg11(), image),
        "2-layer LSTM 512, 35 steps, batch 1": (layer, torch.randn(1, 35, 512)),
        "LSTM language model 256, batch 1": (
            lstm_language_model(vocabulary=1000, hidden=256),
            tokens,
        ),
    }


def _print_networks(rounds: int) -> None:
    rows = []
    for name, (model, inputs) in _networks().items():
        model.eval()
        forms = {"dense": lambda model=model, inputs=inputs: model(inputs)}
        counts = {"dense": parameter_count(model)}
        for share in KEPT:
            with torch.inference_mode(False), torch.no_grad():
                small = _slimmed(model, inputs.clone(), share)
            counts[f"{share:g}"] = parameter_count(small)
            forms[f"{share:g}"] = lambda small=small, inputs=inputs: small(inputs)
        best = interleaved_minima(forms, rounds=rounds)
        rows.append(
            [name, f"{1e3 * best['dense']:.2f}"]
            + [
                f"{best['dense'] / best[form]:.2f} ({counts['dense'] / counts[form]:.1f})"
                for form in list(forms)[1:]
            ]
        )
    print_table(
        "Slim networks: speed-up over dense (and times fewer parameters) by share of channels kept",
        ["network", "dense ms", *[f"{share:g}" for share in KEPT]],
        rows,
    )


def _slimmed(model: nn.Module, inputs: Tensor, share: float) -> nn.Module:
    """The model after a share of the channels of every group is left without readers."""
    masked = copy.deepcopy(model)
    tensors = dict(masked.named_parameters())
    for group in trace_channels(masked, inputs).free:
        gone = range(round(share * group.width), group.width)
        for member in group.having("consumer"):
            positions = member.indices[list(gone)].flatten()
            tensors[member.tensor].index_fill_(member.axis, positions, 0)
    return slim(masked, inputs)
