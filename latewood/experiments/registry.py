"""The registry of experiments: statements of the papers, each with the check that measures it."""

from __future__ import annotations

import contextlib
import importlib
import math
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from latewood.core.statistics import half_width
from latewood.errors import invalid

__all__ = [
    "SCALES",
    "Workspace",
    "Claim",
    "Experiment",
    "Results",
    "Scale",
    "experiments",
    "register",
    "replicate",
]

Scale = Literal["quick", "cpu", "full"]
"""quick: seconds, in the test suite; cpu: minutes on two cores; full: the paper's protocol."""

SCALES: tuple[Scale, ...] = get_args(Scale)
"""All scales, the smallest first."""

LABELS = {
    "P": "read in the paper",
    "C": "read in the authors' code",
    "S": "stated by an independent secondary source",
    "R": "recalled, not checked against the paper",
    "I": "inferred, or a design decision of this package",
    "D": "derived",
    "M": "measured earlier by us",
    "V": "verified or measured earlier by us",
}

_LABELLED = re.compile(rf"^(\[[{''.join(LABELS)}]\])+ \S")

T = TypeVar("T")


@dataclass(frozen=True)
class Results:
    """What one run of an experiment measured.

    Args:
        measurements: quantity -> its values, one per seed (all in the same order of seeds).
        settings: what a reader needs to judge the figures (epochs, seeds, sizes); JSON values.
    """

    measurements: Mapping[str, list[float]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def values(self, name: str) -> list[float]:
        """The values of a quantity, one per seed. Raises KeyError if it was not measured."""
        return self.measurements[name]

    def mean(self, name: str) -> float:
        """Mean over the seeds."""
        values = self.values(name)
        return math.fsum(values) / len(values)

    def interval(self, name: str) -> float:
        """Half-width of the mean's 95 % interval, ``t_{n-1} * std / sqrt(n)``; nan for one seed."""
        return half_width(self.values(name))

    def difference(self, first: str, second: str) -> float:
        """Mean over the seeds of ``first - second``, paired by seed."""
        return self.mean(first) - self.mean(second)

    def text(self, name: str, *, scale: float = 1.0, unit: str = "", digits: int = 2) -> str:
        """``mean ± interval unit (n seeds)`` of a quantity times ``scale``."""
        return _text([scale * value for value in self.values(name)], unit, digits)

    def texts(self, *names: str, scale: float = 1.0, unit: str = "", digits: int = 2) -> str:
        """``name mean ± interval unit (n seeds)`` of several quantities, with commas between."""
        shown = (self.text(name, scale=scale, unit=unit, digits=digits) for name in names)
        return ", ".join(f"{name} {text}" for name, text in zip(names, shown, strict=True))

    def difference_text(
        self, first: str, second: str, *, scale: float = 1.0, unit: str = "", digits: int = 2
    ) -> str:
        """The same text for ``first - second``, paired by seed."""
        pairs = zip(self.values(first), self.values(second), strict=True)
        return _text([scale * (a - b) for a, b in pairs], unit, digits)


@dataclass(frozen=True)
class Claim:
    """A statement of a paper, with the paper's figure and the check that our figure passes or not.

    Args:
        name: short identifier, unique within its experiment.
        statement: what is claimed, one sentence.
        source: label(s) of how far the statement can be trusted, then where it stands:
            ``"[P] abstract"``, ``"[R] section 5"``. Labels are the keys of ``LABELS``.
        paper_figure: the source's figure as text, or "figure only" when it is only in a plot.
        measured: our figure as text, from the results.
        holds: whether the results support the statement.
        scales: the scales at which the check means something; at others it is not evaluated.
    """

    name: str
    statement: str
    source: str
    paper_figure: str
    measured: Callable[[Results], str]
    holds: Callable[[Results], bool]
    scales: tuple[Scale, ...] = SCALES

    def __post_init__(self) -> None:
        if not _LABELLED.match(self.source):
            labels = " ".join(f"[{label}]" for label in LABELS)
            raise invalid("source", self.source, f"one of {labels}, then where it stands")


class Workspace:
    """Where an experiment works: a folder for what it keeps, and how it tells how far it is.

    Args:
        folder: run folders and other files of the experiment go here; made on first use.
        track: ``track(items, title, total)`` yields the items and shows progress.
    """

    def __init__(
        self,
        folder: Path,
        track: Callable[[Iterable[Any], str, int], Iterator[Any]] | None = None,
    ) -> None:
        self._folder = folder
        self._track = track

    @property
    def folder(self) -> Path:
        """The folder, which exists from now on."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder

    def spent(self, seconds: float) -> float:
        """Seconds that all parts of the experiment took, this one included.

        What an experiment that was stopped has left in its folder, it goes on with: those parts
        belong to its cost. Noted in the folder, if there is one.
        """
        note = self._folder / ".seconds"
        with contextlib.suppress(OSError, ValueError):
            seconds += float(note.read_text())
        with contextlib.suppress(OSError):
            if self._folder.exists():
                note.write_text(f"{seconds}\n")
        return seconds

    def track(self, items: Iterable[T], title: str) -> Iterator[T]:
        """Yields the items of a finite iterable, telling the user how far it is."""
        listed = list(items)
        return self._track(listed, title, len(listed)) if self._track else iter(listed)


@dataclass(frozen=True)
class Experiment:
    """One runnable check of a paper.

    Args:
        name: what ``latewood reproduce NAME`` calls it; lower case with hyphens.
        title: one line for people.
        paper: the paper in short, e.g. "Savarese et al. 2020, arXiv:1912.04427".
        run: ``run(scale, workspace) -> Results``.
        claims: what the results are checked against.
        scales: the scales that ``run`` accepts.
    """

    name: str
    title: str
    paper: str
    run: Callable[[Scale, Workspace], Results]
    claims: tuple[Claim, ...]
    scales: tuple[Scale, ...] = SCALES

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise invalid("name", self.name, "lower-case words joined by hyphens")
        names = [claim.name for claim in self.claims]
        if len(set(names)) != len(names):
            raise invalid("claims", names, "names that differ from one another")


_REGISTERED: dict[str, Experiment] = {}


def register(experiment: Experiment) -> Experiment:
    """Adds an experiment to the registry; a module calls it once, when it is imported.

    Raises:
        RequestError: another experiment has that name.
    """
    known = _REGISTERED.get(experiment.name)
    if known is not None and known.run.__module__ != experiment.run.__module__:
        raise invalid("name", experiment.name, "a name that no other experiment has")
    _REGISTERED[experiment.name] = experiment
    return experiment


def experiments() -> dict[str, Experiment]:
    """Every registered experiment by name, in alphabetical order.

    A module below ``latewood.experiments`` that calls ``register`` is found without being listed.
    """
    import latewood.experiments as package

    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    return dict(sorted(_REGISTERED.items()))


def replicate(
    measure: Callable[[int], Mapping[str, float]],
    seeds: Iterable[int],
    workspace: Workspace,
    *,
    title: str = "seeds",
    settings: Mapping[str, Any] | None = None,
) -> Results:
    """Runs ``measure(seed) -> {quantity: value}`` for every seed and collects the values.

    Raises:
        RequestError: the seeds did not all measure the same quantities.
    """
    seeds = list(seeds)
    measurements: dict[str, list[float]] = {}
    for done, seed in enumerate(workspace.track(seeds, title)):
        quantities = measure(seed)
        if done and quantities.keys() != measurements.keys():
            raise invalid("measure", sorted(quantities), f"the quantities {sorted(measurements)}")
        for name, value in quantities.items():
            measurements.setdefault(name, []).append(float(value))
    return Results(measurements, {"seeds": seeds, **(settings or {})})


def _text(values: list[float], unit: str, digits: int) -> str:
    mean = math.fsum(values) / len(values)
    unit = f" {unit}" if unit else ""
    if len(values) == 1:
        return f"{mean:.{digits}f}{unit} (1 seed)"
    return f"{mean:.{digits}f} ± {half_width(values):.{digits}f}{unit} ({len(values)} seeds)"
