"""The cache of decoded data: written whole or not at all, checked on every reading."""

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from latewood.kernels.user_cache import cache_folder
from latewood.tasks.data import decoded as module
from latewood.tasks.data.decoded import decoded

pytestmark = pytest.mark.usefixtures("clean_places")


class Builder:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"images": torch.arange(60, dtype=torch.uint8).view(3, 4, 5), "x": torch.ones(2)}


def stored():
    return sorted(cache_folder().glob("*.safetensors"))


def test_built_once_and_bit_exact():
    build = Builder()
    first, again = (
        decoded("some/name (train)", "k", build),
        decoded("some/name (train)", "k", build),
    )
    assert build.calls == 1
    for name, tensor in build().items():
        assert torch.equal(first[name], tensor)
        assert torch.equal(again[name], tensor)
        assert again[name].dtype == tensor.dtype
    (file,) = stored()
    assert file.name.startswith("some-name-train-k-")


def test_another_key_is_other_data():
    build = Builder()
    decoded("n", "k1", build)
    decoded("n", "k2", build)
    assert build.calls == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-7],
        lambda content: b"",
        lambda content: content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
        lambda content: b"\xff" * len(content),
    ],
    ids=["torn", "empty", "one bit", "noise"],
)
def test_a_damaged_file_is_built_again(damage):
    build = Builder()
    decoded("n", "k", build)
    (file,) = stored()
    file.write_bytes(damage(file.read_bytes()))
    again = decoded("n", "k", build)
    assert build.calls == 2
    assert torch.equal(again["images"], Builder()()["images"])
    decoded("n", "k", build)
    assert build.calls == 2


def test_a_failed_build_leaves_nothing():
    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        decoded("n", "k", fail)
    assert stored() == []


def test_a_cache_that_cannot_be_written_costs_a_warning_only(monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("LATEWOOD_CACHE", str(blocked / "cache"))
    build = Builder()
    with pytest.warns(UserWarning, match="not kept.*LATEWOOD_CACHE"):
        found = decoded("n", "k", build)
    assert torch.equal(found["images"], build()["images"])


def test_a_full_disk_costs_a_warning_and_leaves_no_torn_file(monkeypatch):
    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.warns(UserWarning, match="No space left"):
        decoded("n", "k", Builder())
    assert [path for path in cache_folder().iterdir() if not path.name.endswith(".lock")] == []


def _slow_build(marks: str) -> dict[str, torch.Tensor]:
    (Path(marks) / str(os.getpid())).touch()
    time.sleep(0.3)  # long enough for the others to arrive
    return {"x": torch.arange(5)}


def _worker(cache: str, marks: str, together: Any) -> None:
    os.environ["LATEWOOD_CACHE"] = cache
    together.wait(60)
    found = decoded("n", "k", lambda: _slow_build(marks))
    assert found["x"].tolist() == [0, 1, 2, 3, 4]


def test_processes_at_the_same_time_decode_once(tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    context = multiprocessing.get_context("fork")
    together = context.Barrier(3)
    workers = [
        context.Process(target=_worker, args=(str(tmp_path / "cache"), str(marks), together))
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(list(marks.iterdir())) == 1


def test_where_the_cache_lies(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("LATEWOOD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "latewood"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "latewood"
