"""Run folders: what they hold, what they refuse, and what they never delete."""

import contextlib
import json
import math
import os
import shutil
from pathlib import Path

import pytest

from latewood.errors import RequestError, WorkError
from latewood.training.run_folder import RunFolder, write_atomically

RECIPE = 'task = "digits"\n\n[environment]\npython = "3"\n'


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "runs" / "first")
    run.create(RECIPE)
    return run


def test_a_new_folder_holds_the_recipe_and_empty_metrics(run):
    assert run.exists
    assert not run.finished
    assert run.recipe_path.read_text() == RECIPE
    assert run.read_metrics() == []
    assert run.summary == {}
    assert run.name == "first"


def test_a_folder_with_a_run_is_refused_and_left_as_it_was(run):
    run.append_metrics({"step": 1, "kind": "train"})
    with pytest.raises(RequestError, match=r"holds a run already; .*--overwrite"):
        run.create(RECIPE)
    assert len(run.read_metrics()) == 1


def test_overwrite_removes_what_the_run_made_and_nothing_else(run):
    run.append_metrics({"step": 1, "kind": "train"})
    run.write_summary({"headline": "loss"})
    (run.checkpoints / "step-00000001").mkdir()
    (run.path / "notes.txt").write_text("mine")
    run.create(RECIPE, overwrite=True)
    assert run.read_metrics() == []
    assert not run.finished
    assert list(run.checkpoints.iterdir()) == []
    assert (run.path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("deleted", range(6))
def test_killed_while_it_starts_a_run_is_still_known_as_one(
    tmp_path, monkeypatch, overwrite, deleted
):
    run = RunFolder(tmp_path / "run")
    if overwrite:
        run.create(RECIPE)
        run.write_summary({"headline": "loss"})
        run.spectra_folder.mkdir()
    left = [deleted]

    def killed(method):
        def call(*arguments, **options):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return method(*arguments, **options)

        return call

    for owner, name in ((Path, "unlink"), (Path, "mkdir"), (Path, "touch"), (shutil, "rmtree")):
        monkeypatch.setattr(owner, name, killed(getattr(owner, name)))
    with contextlib.suppress(KeyboardInterrupt):
        run.create(RECIPE, overwrite=overwrite)
    monkeypatch.undo()
    run.create(RECIPE, overwrite=True)
    assert run.exists and run.checkpoints.is_dir() and not run.finished


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_run_is_never_touched(tmp_path, overwrite):
    (tmp_path / "recipe.toml").write_text('task = "digits"\n')  # a recipe, but no run wrote it
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(RequestError, match="not empty and holds no run"):
        RunFolder(tmp_path).create(RECIPE, overwrite=overwrite)
    assert (tmp_path / "checkpoints").is_dir()
    assert (tmp_path / "recipe.toml").read_text() == 'task = "digits"\n'


def test_an_empty_folder_may_be_used_and_a_file_may_not(tmp_path):
    (tmp_path / "empty").mkdir()
    RunFolder(tmp_path / "empty").create(RECIPE)
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="which is a file"):
        RunFolder(tmp_path / "file").create(RECIPE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_a_wrong_request(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RequestError, match="cannot be written to"):
        RunFolder(tmp_path / "run").create(RECIPE)


def test_a_folder_that_cannot_be_made_is_a_wrong_request(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"cannot be written to \(Not a directory\)"):
        RunFolder(tmp_path / "file" / "run").create(RECIPE)


def test_metrics_are_strict_json_and_come_back_as_they_went_in(run):
    rows = [
        {"step": 1, "epoch": 0.1, "kind": "train", "loss": 0.1 + 0.2},
        {"step": 2, "epoch": 0.2, "kind": "train", "loss": math.nan},
        {"step": 2, "epoch": 0.2, "kind": "validation", "loss": math.inf},
    ]
    for row in rows:
        run.append_metrics(row)

    def strict(constant):
        raise AssertionError(f"{constant} is not JSON")

    for line in run.metrics_path.read_text().splitlines():
        json.loads(line, parse_constant=strict)
    first, second, third = run.read_metrics()
    assert first == rows[0]
    assert math.isnan(second["loss"])
    assert math.isnan(third["loss"])


def test_a_torn_last_line_is_left_out_and_a_damaged_one_before_is_an_error(run):
    run.append_metrics({"step": 1, "kind": "train"})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 2, "ki')
    assert [row["step"] for row in run.read_metrics()] == [1]
    with run.metrics_path.open("a") as file:
        file.write('\n{"step": 3}\n')
    with pytest.raises(WorkError, match="line 2 is damaged"):
        run.read_metrics()


DAMAGED = {
    "no JSON": "{",
    "no row": "3",
    "no step": '{"loss": 1}',
    "a step that is no number": '{"step": "x"}',
    "a step that is nothing": '{"step": null}',
    "a number without end": '{"step": 1, "loss": 1' + "0" * 400 + "}",
    "more digits than are read": '{"step": 1' + "0" * 5000 + "}",
    "nested too deep": '{"step": 1, "loss": ' + "[" * 100_000 + "]" * 100_000 + "}",
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_line_is_named_and_does_not_block_a_resume(run, damage):
    run.metrics_path.write_text('{"step": 1}\n' + damage + '\n{"step": 2}\n{"step": 3}\n')
    with pytest.raises(WorkError, match="line 2 is damaged"):
        run.read_metrics()
    problems = []
    assert [row["step"] for row in run.read_metrics(problems)] == [1, 2, 3]
    assert len(problems) == 1 and "line 2 is" in problems[0] and len(problems[0]) < 300
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: line 2 is damaged"):
        run.truncate_metrics(2)
    assert [row["step"] for row in run.read_metrics()] == [1, 2]


def test_many_damaged_lines_are_said_in_one_sentence(run):
    run.metrics_path.write_text("{\n" * 1000 + '{"step": 2}\n')
    with pytest.raises(WorkError, match=r"1000 lines \(1, 2, .* and 992 more\) are damaged"):
        run.read_metrics()


def test_a_line_that_is_whole_but_for_its_end_counts_as_torn(run):
    # Else the next row would be glued to it.
    run.metrics_path.write_text('{"step": 1}')
    assert run.read_metrics() == []


def test_truncating_drops_later_rows_and_the_torn_one(run):
    for step in (0, 1, 2, 2, 3):
        run.append_metrics({"step": step, "kind": "train"})
    with run.metrics_path.open("a") as file:
        file.write('{"step"')
    run.truncate_metrics(2)
    assert [row["step"] for row in run.read_metrics()] == [0, 1, 2, 2]
    run.append_metrics({"step": 3, "kind": "train"})
    assert [row["step"] for row in run.read_metrics()] == [0, 1, 2, 2, 3]
    run.truncate_metrics(-1)
    assert run.read_metrics() == []


def test_what_a_killed_process_left_half_written_is_removed_and_nothing_else(run):
    run.spectra_folder.mkdir()
    for path in (run.path / ".summary.json.7.tmp", run.spectra_folder / ".step-1.parquet.7.tmp"):
        path.write_text("half")
    (run.checkpoints / ".step-00000001.7.tmp").mkdir()
    kept = [run.spectra_folder / "step-1.parquet", run.path / ".hidden"]
    for path in kept:
        path.write_text("whole")
    run.remove_leftovers()
    assert not list(run.path.rglob("*.tmp"))
    assert all(path.exists() for path in kept)


def test_a_summary_comes_back_and_a_damaged_one_is_named(run):
    run.write_summary({"evaluations": {"trained": {"loss": 1.0}}, "size": {"bits": math.nan}})
    assert run.finished
    assert run.summary == {"evaluations": {"trained": {"loss": 1.0}}, "size": {"bits": None}}
    for damaged in ("{", "[]5", "3"):
        run.summary_path.write_text(damaged)
        with pytest.raises(WorkError, match=r"summary\.json"):
            run.summary


def test_a_summary_of_an_earlier_version_reads_as_one_of_today(run):
    run.summary_path.write_text('{"readings": {"trained": {"loss": 1.0}}, "steps": 3}')
    assert run.summary == {"evaluations": {"trained": {"loss": 1.0}}, "steps": 3}


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_atomically(path, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkError, match=r"file.txt: cannot be written \(No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_metrics_on_a_full_disk_are_a_failure_of_the_work(run):
    run.metrics_path.unlink()
    run.metrics_path.mkdir()
    for write in (lambda: run.append_metrics({"step": 1}), run.sync_metrics):
        with pytest.raises(WorkError, match=r"metrics.jsonl: cannot be written"):
            write()
