"""Runs experiments and keeps what they measured, with what is needed to measure it again."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

import latewood
from latewood.errors import LatewoodError, RequestError, WorkError, invalid
from latewood.experiments.judgement import Judgement, judge
from latewood.experiments.registry import SCALES, Experiment, Results, Scale, Workspace, experiments
from latewood.terminal.progress import Track

__all__ = ["Record", "environment", "load_records", "run_experiment", "select", "verdicts"]


@dataclass(frozen=True)
class Record:
    """One run of one experiment, as its JSON file holds it.

    Args:
        experiment: its name.
        scale: "quick", "cpu" or "full".
        results: what was measured; None if the run failed.
        error: why it failed; "" if it did not.
        command: the command that measures it again.
        date: day of the run, ISO 8601.
        seconds: wall-clock duration, that of earlier parts whose files it goes on with included.
        environment: versions, machine and threads.
    """

    experiment: str
    scale: Scale
    results: Results | None
    error: str
    command: str
    date: str
    seconds: float
    environment: dict[str, str] = field(default_factory=dict)

    def save(self, folder: Path) -> Path:
        """Writes ``folder/EXPERIMENT.SCALE.json``, replacing an earlier run's file.

        A run that failed does not replace one that did not: its record is ``.failed`` beside it.

        Raises:
            WorkError: the folder cannot be written to.
        """
        path = folder / f"{self.experiment}.{self.scale}.json"
        if self.error and _has_results(path):
            path = path.with_suffix(".failed")
        temporary = path.with_name(f"{path.name}.tmp")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            raise WorkError(f"{path}: cannot be written: {error.strerror or error}") from error
        return path


@dataclass(frozen=True)
class Verdict:
    """What one run says about one claim.

    Args:
        claim: its name.
        statement: what is claimed.
        source: where it stands.
        paper_figure: the source's figure.
        measured: ours.
        judgement: of the claim's check; None where the run says nothing about it.
    """

    claim: str
    statement: str
    source: str
    paper_figure: str
    measured: str
    judgement: Judgement | None

    @property
    def word(self) -> str:
        """The verdict in words: "holds", "does not hold", "undecided" or "not measured"."""
        return "not measured" if self.judgement is None else self.judgement.outcome

    @property
    def text(self) -> str:
        """The word, and of an undecided claim the difference that is open, with its interval."""
        margin = None if self.judgement is None else self.judgement.margin
        if margin is None:
            return self.word
        return f"{self.word} ({margin[0]:.2g} ± {margin[1]:.2g} from the bound)"


def select(names: Sequence[str]) -> list[Experiment]:
    """The experiments of these names in the order given, or all of them for no name.

    Raises:
        RequestError: an unknown name; the message lists those there are.
    """
    known = experiments()
    for name in names:
        if name not in known:
            raise invalid("experiment", name, f"one of {', '.join(known)}")
    return [known[name] for name in names] if names else list(known.values())


def run_experiment(
    experiment: Experiment, scale: Scale, folder: Path, *, track: Track | None = None
) -> Record:
    """Runs one experiment; a failure of the work is part of the record, not an exception.

    Args:
        experiment: what to run.
        scale: how large.
        folder: where the experiment may keep files: ``folder/work/EXPERIMENT.SCALE``.
        track: shows progress; see ``Workspace``.

    Raises:
        RequestError: the experiment has no such scale, or its own arguments were refused.
    """
    if scale not in experiment.scales:
        known = ", ".join(experiment.scales)
        raise invalid("scale", scale, f"one of {known} for the experiment {experiment.name}")
    workspace = Workspace(folder / "work" / f"{experiment.name}.{scale}", track)
    start = time.monotonic()
    results, problem = None, ""
    seconds = 0.0
    try:
        try:
            results = experiment.run(scale, workspace)
        finally:
            seconds = workspace.spent(time.monotonic() - start)
    except RequestError:
        raise
    except (LatewoodError, ArithmeticError, OSError, RuntimeError) as error:
        problem = f"{type(error).__name__}: {error}"
    return Record(
        experiment=experiment.name,
        scale=scale,
        results=results,
        error=problem,
        command=shlex.join(["latewood", "reproduce", experiment.name, "--scale", scale]),
        date=datetime.date.today().isoformat(),
        seconds=round(seconds, 1),
        environment=environment(),
    )


def load_records(folder: Path) -> list[Record]:
    """The records saved in a folder, by experiment and then by scale, largest scale first.

    Raises:
        WorkError: a file there is not a record.
    """
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            results = fields.pop("results")
            records.append(
                Record(results=None if results is None else Results(**results), **fields)
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise WorkError(f"{path}: not the record of an experiment: {error}") from error
    return sorted(records, key=lambda record: (record.experiment, -SCALES.index(record.scale)))


def verdicts(experiment: Experiment, record: Record) -> list[Verdict]:
    """What a record says about each claim of its experiment, in the claims' order."""
    judged = []
    for claim in experiment.claims:
        measured, judgement = "not measured in this run", None
        if record.results is not None and record.scale in claim.scales:
            try:
                figure = claim.measured(record.results)
                judgement = judge(claim.holds, record.results)
                measured = figure
            except KeyError as error:
                measured = f"not measured in this run: {error.args[0]}"
        judged.append(
            Verdict(
                claim.name,
                claim.statement,
                claim.source,
                claim.paper_figure,
                measured,
                judgement,
            )
        )
    return judged


def environment() -> dict[str, str]:
    """Versions and machine, for a reader who wants to know what the figures depend on."""
    machine = f"{_processor()}, {os.cpu_count()} cores"
    if torch.cuda.is_available():
        machine = f"{torch.cuda.get_device_name()}; {machine}"
    return {
        "latewood": latewood.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": machine,
        "threads": str(torch.get_num_threads()),
    }


def _has_results(path: Path) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["results"] is not None
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
