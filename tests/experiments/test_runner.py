"""Records of runs: what is kept, what a failure leaves, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from latewood.errors import RequestError, WorkError
from latewood.experiments import Claim, Experiment, Results, Workspace, registry
from latewood.experiments.runner import (
    environment,
    load_records,
    run_experiment,
    select,
    verdicts,
)


def _measure(scale: str, workspace: Workspace) -> Results:
    workspace.folder.joinpath("kept").write_text(scale)
    return Results({"gain": [1.0, 2.0]}, {"seeds": [0, 1]})


def _fail(scale: str, workspace: Workspace) -> Results:
    raise WorkError("the disk is full")


GAIN = Claim(
    "gain",
    "It gains.",
    "[R] table 1",
    "1.2",
    lambda r: r.text("gain"),
    lambda r: r.mean("gain") > 1,
)
EXPERIMENT = Experiment("gains", "Gains", "Somebody 2020", _measure, (GAIN,), ("quick", "cpu"))


def test_record_survives_its_file(tmp_path: Path) -> None:
    record = run_experiment(EXPERIMENT, "quick", tmp_path)
    path = record.save(tmp_path)
    assert path.name == "gains.quick.json"
    assert load_records(tmp_path) == [record]
    assert record.command == "latewood reproduce gains --scale quick"
    assert (tmp_path / "work" / "gains.quick" / "kept").read_text() == "quick"


def test_larger_scales_come_first(tmp_path: Path) -> None:
    for scale in ("quick", "cpu"):
        run_experiment(EXPERIMENT, scale, tmp_path).save(tmp_path)
    assert [record.scale for record in load_records(tmp_path)] == ["cpu", "quick"]


def test_failed_work_is_recorded(tmp_path: Path) -> None:
    record = run_experiment(replace(EXPERIMENT, run=_fail), "quick", tmp_path)
    assert record.results is None
    assert record.error == "WorkError: the disk is full"
    assert [verdict.judgement for verdict in verdicts(EXPERIMENT, record)] == [None]


def test_a_failure_leaves_the_results_there_were(tmp_path: Path) -> None:
    good = run_experiment(EXPERIMENT, "quick", tmp_path)
    path = good.save(tmp_path)
    failed = run_experiment(replace(EXPERIMENT, run=_fail), "quick", tmp_path)
    beside = failed.save(tmp_path)
    assert beside == path.with_suffix(".failed")
    assert json.loads(beside.read_text())["error"] == "WorkError: the disk is full"
    assert load_records(tmp_path) == [good]
    assert run_experiment(EXPERIMENT, "quick", tmp_path).save(tmp_path) == path


def test_an_interrupted_experiment_costs_all_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, 40.0, 100.0, 102.0])
    monkeypatch.setattr("latewood.experiments.runner.time.monotonic", lambda: next(now))

    def stop(scale: str, workspace: Workspace) -> Results:
        _measure(scale, workspace)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(replace(EXPERIMENT, run=stop), "quick", tmp_path)
    assert run_experiment(EXPERIMENT, "quick", tmp_path).seconds == 42.0


def test_a_scale_it_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="quick, cpu"):
        run_experiment(EXPERIMENT, "full", tmp_path)


def test_verdicts(tmp_path: Path) -> None:
    record = run_experiment(EXPERIMENT, "quick", tmp_path)
    [verdict] = verdicts(EXPERIMENT, record)
    assert (verdict.word, verdict.measured) == ("undecided", "1.50 ± 6.35 (2 seeds)")
    assert verdict.text == "undecided (0.5 ± 6.4 from the bound)"
    better = replace(record, results=Results({"gain": [1.5, 1.51]}))
    assert verdicts(EXPERIMENT, better)[0].text == "holds"
    worse = replace(record, results=Results({"gain": [0.5]}))
    assert verdicts(EXPERIMENT, worse)[0].word == "does not hold"
    without = replace(record, results=Results({}))
    assert verdicts(EXPERIMENT, without)[0].word == "not measured"
    elsewhere = replace(EXPERIMENT, claims=(replace(GAIN, scales=("full",)),))
    assert verdicts(elsewhere, record)[0].word == "not measured"


def test_selecting_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(EXPERIMENT, name="others")
    monkeypatch.setattr(
        "latewood.experiments.runner.experiments", lambda: {"gains": EXPERIMENT, "others": other}
    )
    assert [experiment.name for experiment in select(())] == ["gains", "others"]
    assert [experiment.name for experiment in select(["others"])] == ["others"]
    with pytest.raises(RequestError, match="gains, others"):
        select(["nothing"])


def test_a_file_that_is_no_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"results": None, "accuracy": 1}))
    with pytest.raises(WorkError, match=r"x\.json"):
        load_records(tmp_path)


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    record = run_experiment(EXPERIMENT, "quick", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match="file"):
        record.save(tmp_path / "file")


def test_environment_names_versions() -> None:
    import torch

    found = environment()
    assert found["torch"] == torch.__version__
    assert "cores" in found["machine"]
    assert registry.SCALES == ("quick", "cpu", "full")
