"""The bounded queue between the model's thread and the writers'."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from attnstore.ingest.writing import WriteQueue

TIMEOUT = 20.0


class Gate:
    """A write that waits until it is let through, and says that it began."""

    def __init__(self) -> None:
        self.began, self.go = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.began.set()
        assert self.go.wait(TIMEOUT)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.go.set()


def in_thread(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def settle(thread: threading.Thread) -> bool:
    """Whether a thread ends within a moment in which one that is not blocked would."""
    thread.join(0.2)
    return not thread.is_alive()


def test_one_thread_keeps_the_order_and_exit_waits() -> None:
    done: list[int] = []

    def write(i: int) -> None:
        time.sleep(0.001 * (i % 3))
        done.append(i)

    with WriteQueue(limit=5, threads=1) as queue:
        for i in range(50):
            queue.put(lambda i=i: write(i), 1)  # type: ignore[misc]
    assert done == list(range(50))


def test_writes_run_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=TIMEOUT)
    met: list[int] = []
    with WriteQueue(threads=3) as queue:
        for _ in range(3):
            # each waits for the two others
            queue.put(lambda: met.append(together.wait()), 1)
    assert sorted(met) == [0, 1, 2]
    assert not together.broken


def test_flush_waits_for_the_write_in_hand(gate: Gate) -> None:
    done: list[str] = []
    with WriteQueue(threads=1) as queue:
        queue.flush()
        queue.put(gate, 1)
        queue.put(lambda: done.append("second"), 1)
        assert gate.began.wait(TIMEOUT)

        def flush() -> None:
            queue.flush()
            done.append("flushed")

        flusher = in_thread(flush)
        assert not settle(flusher)
        gate.go.set()
        flusher.join(TIMEOUT)
        assert done == ["second", "flushed"]


def test_the_caller_is_held_while_too_much_waits(gate: Gate) -> None:
    """The write in hand counts: its weights are in memory as long as it runs."""
    with WriteQueue(limit=10, threads=1) as queue:
        queue.put(gate, 4)
        assert gate.began.wait(TIMEOUT)
        queue.put(lambda: None, 6)
        held = in_thread(lambda: queue.put(lambda: None, 1))
        assert not settle(held)
        gate.go.set()
        held.join(TIMEOUT)
        assert not held.is_alive()


def test_never_more_than_the_limit_is_in_memory() -> None:
    lock = threading.Lock()
    held, peak = 0, 0

    def account(size: int) -> None:
        nonlocal held, peak
        with lock:
            held += size
            peak = max(peak, held)

    def write(size: int) -> None:
        time.sleep(0.0005)
        account(-size)

    sizes = [1 + (7 * i) % 5 for i in range(200)]
    with WriteQueue(limit=12) as queue:
        for size in sizes:
            account(size)  # the caller has it before it may put it
            queue.put(lambda size=size: write(size), size)  # type: ignore[misc]
    assert held == 0
    assert 12 < peak <= 12 + max(sizes)


def test_an_item_larger_than_the_limit_goes_alone(gate: Gate) -> None:
    with WriteQueue(limit=10) as queue:
        queue.put(gate, 100)
        held = in_thread(lambda: queue.put(lambda: None, 1))
        assert not settle(held)
        gate.go.set()
        held.join(TIMEOUT)
        large = in_thread(lambda: queue.put(lambda: None, 100))
        large.join(TIMEOUT)
        assert not large.is_alive()


class Broken(Exception):
    pass


def fail() -> None:
    raise Broken("disk")


def test_an_error_is_raised_at_the_next_put_and_nothing_runs_after_it(gate: Gate) -> None:
    done: list[int] = []
    with pytest.raises(Broken, match="disk"), WriteQueue(threads=1) as queue:
        queue.put(gate, 1)
        assert gate.began.wait(TIMEOUT)
        queue.put(fail, 1)
        for i in range(5):
            queue.put(lambda i=i: done.append(i), 1)  # type: ignore[misc]
        gate.go.set()
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            queue.put(lambda: done.append(99), 1)
            time.sleep(0.001)
    assert 99 not in done
    assert done == []


def test_an_error_is_raised_at_flush() -> None:
    with pytest.raises(Broken), WriteQueue() as queue:
        queue.put(fail, 1)
        with pytest.raises(Broken):
            queue.flush()
        with pytest.raises(Broken):
            queue.put(lambda: None, 1)
        with pytest.raises(Broken):
            queue.flush()
        # and once more at exit: whoever swallowed it must not take the episode for written


def test_an_error_in_the_last_write_is_raised_at_exit() -> None:
    with pytest.raises(Broken), WriteQueue() as queue:
        queue.put(fail, 1)


def test_a_caller_that_is_held_gets_the_error(gate: Gate) -> None:
    caught: list[BaseException] = []

    def put() -> None:
        try:
            queue.put(lambda: None, 10)
        except Broken as error:
            caught.append(error)

    def slow_failure() -> None:
        gate()
        fail()

    with pytest.raises(Broken), WriteQueue(limit=10) as queue:
        queue.put(slow_failure, 10)
        assert gate.began.wait(TIMEOUT)
        held = in_thread(put)
        assert not settle(held)
        gate.go.set()
        held.join(TIMEOUT)
    assert len(caught) == 1


def test_an_exception_of_the_caller_drops_the_rest(gate: Gate) -> None:
    done: list[int] = []
    with pytest.raises(ZeroDivisionError), WriteQueue(threads=1) as queue:
        queue.put(gate, 1)
        assert gate.began.wait(TIMEOUT)
        for i in range(5):
            queue.put(lambda i=i: done.append(i), 1)  # type: ignore[misc]
        threading.Timer(0.1, gate.go.set).start()
        1 / 0  # noqa: B018
    assert done == []


def test_the_callers_exception_is_not_replaced_by_the_writers() -> None:
    with pytest.raises(ZeroDivisionError), WriteQueue() as queue:
        queue.put(fail, 1)
        time.sleep(0.05)
        1 / 0  # noqa: B018


def test_the_thread_ends_and_holds_nothing() -> None:
    class Weights:
        def write(self) -> None:
            pass

    weights = Weights()
    gone = weakref.ref(weights)
    with WriteQueue() as queue:
        queue.put(weights.write, 1)
        del weights
        queue.flush()
        assert gone() is None
    assert not [t for t in threading.enumerate() if t.name.startswith("attnstore-writer")]
