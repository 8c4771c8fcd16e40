"""A queue that is short, keeps order, and says what it gave up."""

import threading

import pytest

from latewood.errors import RequestError
from latewood.spectra.tracking.worker import Background


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


def test_results_come_in_order():
    queue = Background(3)
    for number in range(3):
        queue.submit(lambda number=number: number)
    assert [queue.take() for _ in range(3)] == [0, 1, 2]
    assert not queue.ready()
    assert not queue.ready(wait=True)
    assert (queue.pending, queue.dropped) == (0, 0)


def test_nothing_is_taken_before_it_is_done():
    gate, queue = Gate(), Background(2)
    queue.submit(gate.work("first"))
    assert not queue.ready()
    assert queue.ready(wait=True)
    assert queue.pending == 1
    gate.open.set()
    assert queue.take() == "first"


def test_block_waits_for_room_and_loses_nothing():
    gate, queue = Gate(), Background(1, "block")
    queue.submit(gate.work(1))
    threading.Timer(0.05, gate.open.set).start()
    queue.submit(lambda: 2)
    assert gate.open.is_set()
    assert [queue.take(), queue.take()] == [1, 2]
    assert queue.dropped == 0


def test_the_oldest_that_has_not_begun_is_dropped():
    gate, queue = Gate(), Background(2, "drop-oldest")
    queue.submit(gate.work(1))
    assert gate.begun.wait(10)
    queue.submit(lambda: 2)
    queue.submit(lambda: 3)
    assert queue.dropped == 1
    gate.open.set()
    assert [queue.take(), queue.take()] == [1, 3]


def test_with_nothing_to_drop_the_new_one_is():
    gate, queue = Gate(), Background(1, "drop-oldest")
    queue.submit(gate.work(1))
    assert gate.begun.wait(10)
    queue.submit(lambda: 2)
    assert (queue.dropped, queue.pending) == (1, 1)
    gate.open.set()
    assert queue.take() == 1


def test_errors_come_out_where_the_result_is_asked_for():
    queue = Background()
    queue.submit(lambda: 1 / 0)
    queue.submit(lambda: "later")
    with pytest.raises(ZeroDivisionError):
        queue.take()
    assert queue.take() == "later"


@pytest.mark.parametrize(("options", "named"), [((0,), "queue"), ((2, "wait"), "policy")])
def test_bad_arguments_are_refused(options, named):
    with pytest.raises(RequestError, match=named):
        Background(*options)
