"""Pattern sets explored for a run, a model or a file of layers, with the page that shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from latewood.errors import RequestError, invalid, nearest
from latewood.precision.patterns import PATTERNS
from latewood.precision.simd import (
    DEFAULT_CONSTANTS,
    CountedModel,
    Exploration,
    MachineConstants,
    count_layers,
    read_layers,
)
from latewood.report import Figure, Group, Section
from latewood.report.headline import Headline, Tile
from latewood.report.report import write_page
from latewood.report.sampling import evenly, short
from latewood.training import components, open_run

__all__ = ["constants_from", "counted_network", "shares_from", "write_exploration_page"]

_POINTS: Final = 4000


def counted_network(
    source: str, *, shares: Mapping[int, float] | None, shape: Sequence[int], trust: bool = False
) -> CountedModel:
    """The layers that a command's argument names.

    Args:
        source: a run's folder or checkpoint, a JSON file of layers, or the name of a model.
        shares: of a model, the fraction of each layer's input channels with so many bits.
        shape: of one input of a model.
        trust: import modules that a run's recipe names.

    Raises:
        RequestError: nothing of these, a model without shares, shares for something else, or no
            layer of 1, 2 or 4 bits.
        WorkError: a damaged file.
    """
    path = Path(source)
    if shares is not None and (path.suffix == ".json" or path.exists()):
        raise invalid("--bits", shares, f"none: {source} says what bits its layers have")
    if path.suffix == ".json":
        return CountedModel(read_layers(path))
    if path.exists():
        opened = open_run(path, trust=trust)
        counted = count_layers(opened.model, opened.task.example_inputs)
        if not counted.layers:
            reasons = "; ".join(f"{name}: {why}" for name, why in counted.left_out.items())
            raise invalid("run", source, f"a run with layers of 1, 2 or 4 bits ({reasons})")
        return counted
    if source not in components.MODELS:
        hint = nearest(source, components.MODELS)
        raise invalid("source", source, f"a run, a JSON file of layers or a model's name{hint}")
    if shares is None:
        raise RequestError("--bits: got none for a model without a run; expected shares of bits")
    module, _, name = components.MODELS[source].partition(":")
    try:
        model = getattr(__import__(module, fromlist=[name]), name)()
        weighted = [
            (name, layer)
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
        ]
        # As in training, the first and the last layer keep 8 bits.
        bits = {name: _dealt(layer, shares) for name, layer in weighted[1:-1]}
        return count_layers(model, torch.zeros(1, *shape), bits)
    except (TypeError, RuntimeError, ValueError) as error:
        raise RequestError(f"source: {source} cannot compute inputs of {shape}: {error}") from error


def shares_from(text: str) -> dict[int, float]:
    """Fractions of channels by bits from ``4:0.125,2:0.25,1:0.625``.

    Raises:
        RequestError: another form, bits that are not 1, 2 or 4, or fractions that do not add up
            to 1.
    """
    expected = "fractions that add up to 1, such as 4:0.125,2:0.25,1:0.625"
    try:
        pairs = [part.split(":") for part in text.split(",")]
        shares = {int(bits): float(fraction) for bits, fraction in pairs}
    except ValueError:
        raise invalid("--bits", text, expected) from None
    known = set(shares) <= {1, 2, 4} and len(shares) == len(pairs)
    if not known or min(shares.values()) < 0 or not abs(sum(shares.values()) - 1) < 1e-6:
        raise invalid("--bits", text, expected)
    return shares


def constants_from(texts: Sequence[str]) -> MachineConstants:
    """The machine's constants with some of them changed, each as ``name=value``.

    Raises:
        RequestError: an unknown name, or a value that is not allowed.
    """
    changes: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=")
        known = vars(DEFAULT_CONSTANTS)
        if name not in known:
            names = ", ".join(known)
            raise invalid("--constant", text, f"name=value of {names}{nearest(name, known)}")
        try:
            changes[name] = type(known[name])(value)
        except ValueError:
            raise invalid("--constant", text, f"{name}=a number") from None
    return replace(DEFAULT_CONSTANTS, **changes)


def write_exploration_page(title: str, exploration: Exploration, path: Path) -> Path:
    """Writes a self-contained page: vectors against energy of all sets, and the Pareto set.

    Args:
        title: what was explored.
        exploration: of it.
        path: the HTML file.

    Returns:
        ``path``.

    Raises:
        WorkError: the file cannot be written.
    """
    best = exploration.best()
    size = exploration.sets.shape[1]
    number = len(exploration.sets)
    lead = (
        f"{number:,} sets of {size} precision patterns, each fitted to {len(exploration.layers)} "
        "layers. A vector is a dot product of two registers; energy is that of computing and of "
        "memory for one sample; the colour says how many weights lie in a slot wider than they "
        "need. Marked are the sets that no other one beats in all three."
    )
    section = Section(
        title="Patterns of the machine",
        lead=lead,
        groups=[Group(figures=[_scatter(exploration), _promotions(exploration)])],
        notes=[f"Best energy times cycles: {_named(best.indices)}."],
    )
    tiles = (
        Tile(f"{best.vectors:,}", "vectors of the best set"),
        Tile(f"{best.energy_uj:.4g} uJ", "a sample, on it"),
        Tile(f"{len(exploration.pareto):,}", "sets on the front"),
    )
    return write_page(Headline(f"Patterns for {title}", "", tiles), [section], path)


def _scatter(exploration: Exploration) -> Figure:
    energy = exploration.compute_uj + exploration.memory_uj
    # Many sets come to the same: each point once.
    points = np.stack([exploration.vectors, energy, exploration.promoted], axis=1)
    _, first = np.unique(points.round(9), axis=0, return_index=True)
    shown = first[evenly(len(first), _POINTS)]
    cloud = {
        "type": "scattergl" if len(shown) > 1000 else "scatter",
        "mode": "markers",
        "name": "all sets",
        "x": short(exploration.vectors[shown].astype(float), 10),
        "y": short(energy[shown]),
        "marker": {"color": "muted", "size": 4},
        "opacity": 0.5,
        "hovertemplate": "%{x:,} vectors<br>%{y:.4~g} uJ",
    }
    return Figure(
        title="Energy a sample, uJ",
        data=[cloud, _front(exploration, energy)],
        layout={"xaxis": {"title": {"text": "vectors a sample"}}, "showlegend": True},
        height=420,
        size="full",
        description=f"Energy and vectors of {len(exploration.sets)} sets of patterns.",
    )


def _promotions(exploration: Exploration) -> Figure:
    return Figure(
        title="Promoted weights",
        data=[_front(exploration, exploration.promoted)],
        layout={"xaxis": {"title": {"text": "vectors a sample"}}, "showlegend": False},
        height=300,
        size="full",
        description="Promoted weights of the sets on the front.",
    )


def _front(exploration: Exploration, values: Any) -> dict[str, Any]:
    front = exploration.pareto
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "front",
        "x": short(exploration.vectors[front].astype(float), 10),
        "y": short(np.asarray(values, dtype=float)[front]),
        "text": [_named(exploration.sets[place]) for place in front],
        "marker": {"color": "run 0", "size": 9},
        "hovertemplate": "%{text}<br>%{x:,} vectors<br>%{y:.4~g}",
    }


def _named(indices: Any) -> str:
    return " ".join("({},{},{})".format(*PATTERNS[int(index)]) for index in indices)


def _dealt(layer: nn.Module, shares: Mapping[int, float]) -> list[int]:
    """Bits of each channel: the widest first, in the shares as nearly as whole channels can."""
    weight = layer.get_parameter("weight")
    channels = weight.shape[1] * int(getattr(layer, "groups", 1))
    ends = np.cumsum([shares.get(bits, 0.0) for bits in (4, 2, 1)])
    bounds = [0, *np.rint(ends * channels).astype(int).tolist()]
    return [
        bits
        for bits, start, end in zip((4, 2, 1), bounds[:-1], bounds[1:], strict=True)
        for _ in range(end - start)
    ]
