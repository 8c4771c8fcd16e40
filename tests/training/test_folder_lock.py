"""A folder has one writer: the second is refused by name, and a lock dies with its process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from latewood.errors import RequestError, WorkError
from latewood.training import folder_lock
from latewood.training.folder_lock import LOCK, FolderLock, holds_nothing
from latewood.training.recipe import parse_recipe
from latewood.training.run import train

RECIPE = {"task": "digits", "model": {"name": "mlp", "hidden": [8]}, "steps": 4, "device": "cpu"}

HOLD = """
import os, sys, time
from pathlib import Path
from latewood.training.folder_lock import FolderLock
FolderLock(Path(sys.argv[1])).acquire()
# Forked, the child says who it is: what must happen in it has happened then.
if "fork" not in sys.argv or os.fork() == 0:
    print(os.getpid(), flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def another_process(folder, *words):
    """A process that holds the lock, and the number that it printed."""
    command = [sys.executable, "-c", HOLD, str(folder), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(folder_lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(folder_lock, "STALE_SECONDS", 0.6)


def left_behind(folder, **changes):
    """The lock of a process on another machine, as it lies there."""
    record = {"process": 7, "host": "far", "machine": "another", "since": "noon", "token": "t"}
    (folder / LOCK).write_text(json.dumps(record | changes))


def test_the_second_writer_is_refused_by_name_and_the_next_is_not(tmp_path):
    folder = tmp_path / "run"
    with FolderLock(folder):
        with pytest.raises(RequestError, match=rf"folder: got .*run', which process {os.getpid()}"):
            FolderLock(folder).acquire()
        assert holds_nothing(folder)
        (folder / "file").touch()
    assert [entry.name for entry in folder.iterdir()] == ["file"]
    with FolderLock(folder, "out") as lock:
        lock.check()
        with pytest.raises(RequestError, match="out: got"):
            lock.acquire()


def test_a_folder_made_for_the_lock_alone_goes_with_it(tmp_path):
    (tmp_path / "there").mkdir()
    with FolderLock(tmp_path / "there" / "new" / "run"):
        assert (tmp_path / "there" / "new" / "run" / LOCK).exists()
    assert list((tmp_path / "there").iterdir()) == []
    with FolderLock(tmp_path / "there"):
        pass
    assert (tmp_path / "there").is_dir()


def test_a_lock_dies_with_its_process(tmp_path):
    with another_process(tmp_path) as (process, number):
        with pytest.raises(RequestError, match=f"process {number} on "):
            FolderLock(tmp_path).acquire()
        process.kill()
        process.wait()
        assert (tmp_path / LOCK).exists()
        with FolderLock(tmp_path):
            pass


def test_a_forked_child_does_not_keep_the_lock_of_a_dead_parent(tmp_path):
    with another_process(tmp_path, "fork") as (process, child):
        try:
            process.kill()
            process.wait()
            os.kill(child, 0)
            with FolderLock(tmp_path):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("supported", [True, False])
def test_a_lock_of_another_machine_lives_as_long_as_it_is_renewed(
    tmp_path, quick, monkeypatch, supported
):
    if not supported:
        monkeypatch.setattr(folder_lock, "_lock", lambda descriptor: None)
    left_behind(tmp_path)
    over = threading.Event()

    def renew():
        while not over.wait(0.05):
            os.utime(tmp_path / LOCK)

    far = threading.Thread(target=renew)
    far.start()
    try:
        with (
            pytest.warns(UserWarning, match="waiting to see whether process 7 on far"),
            pytest.raises(RequestError, match="process 7 on far"),
        ):
            FolderLock(tmp_path).acquire()
    finally:
        over.set()
        far.join()
    with pytest.warns(UserWarning, match="waiting"), FolderLock(tmp_path) as lock:
        lock.check()
    assert not (tmp_path / LOCK).exists()


def test_an_old_lock_of_another_machine_is_taken_at_once(tmp_path, quick):
    left_behind(tmp_path)
    os.utime(tmp_path / LOCK, (1, 1))
    with FolderLock(tmp_path) as lock:
        lock.check()


def test_a_lock_is_renewed_and_one_that_was_taken_over_is_noticed(tmp_path, quick):
    (tmp_path / "file").touch()
    lock = FolderLock(tmp_path)
    lock.acquire()
    os.utime(tmp_path / LOCK, (1, 1))
    deadline = time.monotonic() + 20
    while (tmp_path / LOCK).stat().st_mtime == 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (tmp_path / LOCK).stat().st_mtime > 1
    left_behind(tmp_path)
    lock._renew()
    with pytest.raises(WorkError, match=r"process 7 on far .* writes here now"):
        lock.check()
    lock.release()
    assert json.loads((tmp_path / LOCK).read_text())["process"] == 7, "the lock is another's"


def test_a_suspended_holder_looks_before_it_writes(tmp_path):
    lock = FolderLock(tmp_path)
    lock.acquire()
    left_behind(tmp_path)
    lock.check()
    lock._renewed -= folder_lock.STALE_SECONDS
    with pytest.raises(WorkError, match="writes here now"):
        lock.check()
    lock.release()


def test_where_nothing_keeps_locks_the_last_of_two_has_it(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(folder_lock, "_lock", lambda descriptor: None)
    held, refused = [], []

    def start():
        lock = FolderLock(tmp_path)
        try:
            lock.acquire()
            held.append(lock)
        except RequestError:
            refused.append(lock)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 3)
    held[0].release()


def test_never_two_at_once_while_many_come_and_go(tmp_path):
    (tmp_path / "file").touch()
    inside, most, taken = [0], [0], [0]

    def come_and_go():
        lock = FolderLock(tmp_path)
        for _ in range(200):
            with contextlib.suppress(RequestError), lock:
                inside[0] += 1
                most[0], taken[0] = max(most[0], inside[0]), taken[0] + 1
                time.sleep(0)
                inside[0] -= 1

    threads = [threading.Thread(target=come_and_go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert taken[0] > 6


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RequestError, match=r"cannot be written to \(Not a directory\)"):
            FolderLock(folder).acquire()


@pytest.mark.parametrize("how", ["resume", "overwrite", "new"])
def test_no_run_is_trained_beside_a_live_one(tmp_path, how):
    recipe, folder = parse_recipe(RECIPE), tmp_path / "run"
    if how != "new":
        train(recipe, folder=folder, show_progress=False)
        (folder / "summary.json").unlink()
    before = {path.name: path.read_bytes() for path in folder.glob("*.*") if path.name != LOCK}
    options = {how: True} if how != "new" else {}
    with another_process(folder) as (_, number):
        with pytest.raises(RequestError, match=f"folder: got .*, which process {number} on"):
            train(recipe, folder=folder, show_progress=False, **options)
        after = {path.name: path.read_bytes() for path in folder.glob("*.*") if path.name != LOCK}
        assert after == before
    # Its death freed the folder.
    assert train(recipe, folder=folder, show_progress=False, **options).summary["steps"] == 4
    assert not (folder / LOCK).exists()


def test_a_refused_request_leaves_no_folder(tmp_path):
    recipe = parse_recipe(RECIPE | {"batch_size": 100_000, "drop_last": True})
    with pytest.raises(RequestError, match="batch_size"):
        train(recipe, folder=tmp_path / "runs" / "one", show_progress=False)
    assert list(tmp_path.iterdir()) == []
