"""A queue that is short, keeps order, and says what it gave up."""

import os
import threading

import pytest
import torch
from torch import nn

from latewood.errors import RequestError
from latewood.spectra.tracking.worker import Worker, WorkerSettings


class Gate:
    """Work that waits until it may go on."""

    def __init__(self):
        self.open = threading.Event()
        self.begun = threading.Event()

    def work(self, result):
        def wait():
            self.begun.set()
            assert self.open.wait(10)
            return result

        return wait


def worker(queue=2, policy="block"):
    return Worker(WorkerSettings(queue=queue, policy=policy))


def test_results_come_in_order():
    queue = worker(3)
    for number in range(3):
        queue.submit(lambda number=number: number)
    assert [queue.take() for _ in range(3)] == [0, 1, 2]
    assert not queue.ready()
    assert not queue.ready(wait=True)
    assert (queue.pending, queue.dropped) == (0, 0)


def test_nothing_is_taken_before_it_is_done():
    gate, queue = Gate(), worker(2)
    queue.submit(gate.work("first"))
    assert not queue.ready()
    assert queue.ready(wait=True)
    assert queue.pending == 1
    gate.open.set()
    assert queue.take() == "first"


def test_block_waits_for_room_and_loses_nothing():
    gate, queue = Gate(), worker(1, "block")
    queue.submit(gate.work(1))
    threading.Timer(0.05, gate.open.set).start()
    queue.submit(lambda: 2)
    assert gate.open.is_set()
    assert [queue.take(), queue.take()] == [1, 2]
    assert queue.dropped == 0


def test_the_oldest_that_has_not_begun_is_dropped():
    gate, queue = Gate(), worker(2, "drop-oldest")
    queue.submit(gate.work(1))
    assert gate.begun.wait(10)
    queue.submit(lambda: 2)
    queue.submit(lambda: 3)
    assert queue.dropped == 1
    gate.open.set()
    assert [queue.take(), queue.take()] == [1, 3]


def test_with_nothing_to_drop_the_new_one_is():
    gate, queue = Gate(), worker(1, "drop-oldest")
    queue.submit(gate.work(1))
    assert gate.begun.wait(10)
    queue.submit(lambda: 2)
    assert (queue.dropped, queue.pending) == (1, 1)
    gate.open.set()
    assert queue.take() == 1


def test_errors_come_out_where_the_result_is_asked_for():
    queue = worker()
    queue.submit(lambda: 1 / 0)
    queue.submit(lambda: "later")
    with pytest.raises(ZeroDivisionError):
        queue.take()
    assert queue.take() == "later"


def test_a_worker_where_cores_are_free(monkeypatch):
    model, settings = nn.Linear(2, 2), WorkerSettings(worker="auto")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for cores, expected in ((2, False), (3, True)):
        monkeypatch.setattr(
            os, "sched_getaffinity", lambda pid, n=cores: set(range(n)), raising=False
        )
        assert settings.beside(model) == expected
        assert not WorkerSettings(worker=False).beside(model)
        assert WorkerSettings(worker=True).beside(model)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert not settings.beside(model)
    assert settings.beside(nn.Linear(2, 2, device="meta"))


def test_threads_of_the_linear_algebra(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    settings = WorkerSettings()
    assert (settings.thread_count(beside=True), settings.thread_count(beside=False)) == (1, 6)
    assert WorkerSettings(threads=3).thread_count(beside=True) == 3


@pytest.mark.parametrize(
    "options", [{"worker": "always"}, {"queue": 0}, {"policy": "wait"}, {"threads": 0}]
)
def test_bad_arguments_are_refused(options):
    with pytest.raises(RequestError, match=next(iter(options))):
        WorkerSettings(**options)
