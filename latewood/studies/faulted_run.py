"""What a run's network is worth on crossbars with stuck cells, by fault rate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from latewood.errors import RequestError, invalid
from latewood.faults import Crossbar, MonteCarlo, StuckAt, monte_carlo
from latewood.terminal.tables import Row
from latewood.training.evaluation import evaluate, recalibration_batches
from latewood.training.opened_run import open_run
from latewood.training.processes import alone
from latewood.training.randomness import caller_unchanged
from latewood.training.run_context import RunContext

__all__ = ["FaultedRun", "evaluate_under_faults"]


@dataclass(frozen=True)
class FaultedRun:
    """A run's network on devices of several fault rates.

    Args:
        headline: name of the score.
        results: one for each of the faults.
        faults: rates that the results are of.
        path: the file that was written; None if none was.
        least: score that a device must reach; None if nobody asked.
    """

    headline: str
    results: tuple[MonteCarlo, ...]
    faults: tuple[StuckAt, ...]
    path: Path | None
    least: float | None

    @property
    def rows(self) -> list[Row]:
        """One row for each of the faults."""
        return [self._row(*pair) for pair in zip(self.faults, self.results, strict=True)]

    def _row(self, faults: StuckAt, result: MonteCarlo) -> Row:
        row: Row = {
            "hrs": faults.hrs,
            "lrs": faults.lrs,
            self.headline: result.mean,
            "+-": result.half_width,
            "95 % reach": result.nearly_worst,
            "worst": result.worst,
            "changed weights": result.effective_rate,
            "maps": result.maps,
        }
        return row if self.least is None else {**row, "yield": result.yield_at(self.least)}


def evaluate_under_faults(
    run: Path,
    *,
    rates: Sequence[float],
    hrs_share: float = 1.0,
    crossbar: Crossbar | None = None,
    level: str = "cell",
    maps: int = 100,
    half_width: float | None = None,
    seed: int = 0,
    least: float | None = None,
    calibrate: bool = False,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    jobs: int = 1,
    out: Path | None = None,
    trust: bool = False,
    show: bool | None = None,
) -> FaultedRun:
    """Scores the model of a run on many devices at each of several fault rates.

    The devices are nested: what is stuck at a rate is so at a larger one.

    Args:
        run: the folder of a run, or a checkpoint in one, whose methods end in a copy.
        rates: of stuck cells, each in [0, 1].
        hrs_share: share of them in the high-resistance state.
        crossbar: how weights are held; the default one if None.
        level: "cell" or "weight".
        maps: devices at each rate, at most.
        half_width: of the interval of a mean that is narrow enough; None evaluates all maps.
        seed: of the maps.
        least: score that a device must reach to count for the yield.
        calibrate: measure batch norms anew on every device.
        include: patterns on layer or parameter names.
        exclude: patterns of the same form.
        jobs: processes.
        out: file to write; ``faults.json`` in the run's folder if None.
        trust: import and call modules that the run's recipe names.
        show: whether progress is shown.

    Raises:
        RequestError: no run there, rates out of range, or no weights for crossbars.
        WorkError: a score that is not finite.
    """
    if not rates:
        raise invalid("--rates", list(rates), "one rate or more")
    if level not in ("cell", "weight"):
        raise invalid("--level", level, "'cell' or 'weight'")
    crossbar = crossbar or Crossbar()
    total = [StuckAt.total(rate, hrs_share=hrs_share) for rate in sorted(set(rates))]
    faults = [StuckAt(at.hrs, at.lrs, level=level) for at in total]  # type: ignore[arg-type]
    opened = open_run(run, trust=trust)
    path = out or opened.folder.faults_path
    if path.is_dir() or not path.parent.is_dir():
        raise invalid("--out", str(path), "a file in a folder there is")
    recipe = opened.recipe.model_copy(update={"device": "cpu", "precision": "no"})
    context, task = RunContext(recipe, alone(), opened.task), opened.task

    def score(model: nn.Module, data: Any) -> float:
        return evaluate(context, model, data[0])[task.headline]

    with caller_unchanged(cuda=False):
        calibration = list(recalibration_batches(context)) if calibrate else None
        results = [
            monte_carlo(
                opened.model,
                [task.validation],
                crossbar,
                at,
                maps=maps,
                score=score,
                seed=seed,
                half_width=half_width,
                higher_is_better=task.higher_is_better,
                calibration=calibration,
                include=include,
                exclude=exclude,
                jobs=jobs,
                show=show,
            )
            for at in faults
        ]
    done = FaultedRun(task.headline, tuple(results), tuple(faults), path, least)
    _write(path, done, crossbar, calibrate=calibrate)
    return done


def _write(path: Path, done: FaultedRun, crossbar: Crossbar, *, calibrate: bool) -> None:
    content = {
        "headline": done.headline,
        "least": done.least,
        "crossbar": asdict(crossbar),
        "calibrated": calibrate,
        "rates": [
            {
                "hrs": faults.hrs,
                "lrs": faults.lrs,
                "level": faults.level,
                "scores": list(result.scores),
                "summary": result.summary(),
            }
            for faults, result in zip(done.faults, done.results, strict=True)
        ],
    }
    beside = path.with_name(path.name + ".part")
    try:
        beside.write_text(json.dumps(content, indent=1), encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise RequestError(f"--out: '{path}' cannot be written ({error})") from error
