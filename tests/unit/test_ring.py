# SPDX-License-Identifier: Apache-2.0
"""Blocks between threads: order, content, and that nothing is left behind however it ends."""

from __future__ import annotations

import _thread
import os
import signal
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from update_agent import ring
from update_agent.errors import UpdateError
from update_agent.ring import pump


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(os.listdir("/proc/self/task"))
    yield
    # The thread has released its last lock; the kernel needs another moment to end it.
    deadline = threading.Event()
    for _ in range(500):
        if set(os.listdir("/proc/self/task")) <= before:
            return
        deadline.wait(0.01)
    pytest.fail("a thread is still there")


class Data:
    """Something to fill from, `step` bytes short of what was announced."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def fill(self, view: memoryview) -> int:
        part = self.data[self.position : self.position + len(view)]
        view[: len(part)] = part
        self.position += len(part)
        return len(part)


class Taker:
    """Keeps what it gets, and fails at a position if told so."""

    def __init__(self, fails_at: int | None = None, error: BaseException | None = None) -> None:
        self.got = bytearray()
        self.fails_at = fails_at
        self.error = error or OSError("taker")

    def take(self, view: memoryview, position: int) -> None:
        assert position == len(self.got)
        if self.fails_at is not None and position + len(view) > self.fails_at:
            raise self.error
        self.got += view


@given(
    size=st.integers(0, 40),
    missing=st.integers(0, 40),
    block_bytes=st.integers(1, 9),
    blocks=st.integers(1, 4),
    takers=st.integers(1, 3),
)
def test_every_taker_gets_all_in_order(
    size: int, missing: int, block_bytes: int, blocks: int, takers: int
) -> None:
    data = os.urandom(max(0, size - missing))
    hands = [Taker() for _ in range(takers)]
    count = pump(Data(data).fill, size, *(h.take for h in hands), block_bytes=block_bytes, blocks=blocks)
    assert count == len(data)
    assert [bytes(hand.got) for hand in hands] == [data] * takers


def test_blocks_are_page_aligned_and_few() -> None:
    from update_agent.native import address

    seen = set()

    def take(view: memoryview, _position: int) -> None:
        seen.add(address(view))

    size = 20 * ring.BLOCK_BYTES
    assert pump(len, size, take) == size
    assert len(seen) == ring.BLOCKS
    assert all(where % 4096 == 0 for where in seen)


@given(fails_at=st.integers(0, 39), which=st.sampled_from(["fill", "first", "second"]))
def test_the_error_of_any_of_them_comes_up(fails_at: int, which: str) -> None:
    error = ValueError(which)
    source = Data(bytes(40))
    first = Taker(fails_at if which == "first" else None, error)
    second = Taker(fails_at if which == "second" else None, error)

    def fill(view: memoryview) -> int:
        if which == "fill" and source.position + len(view) > fails_at:
            raise error
        return source.fill(view)

    with pytest.raises(ValueError, match=which) as caught:
        pump(fill, 40, first.take, second.take, block_bytes=3, blocks=2)
    assert caught.value is error


def test_after_an_error_a_taker_gets_nothing_more() -> None:
    calls = []

    def take(_view: memoryview, position: int) -> None:
        calls.append(position)
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        pump(len, 1000, take, lambda _v, _p: None, block_bytes=10, blocks=4)
    assert calls == [0]


@pytest.mark.parametrize("sender", ["fill", "take"])
def test_a_signal_unwinds(sender: str) -> None:
    """As SIGTERM does in the child: the handler raises, in the thread that fills, filling or waiting."""

    class Stop(BaseException):
        pass

    def stop(_number: int, _frame: object) -> None:
        raise Stop

    def fill(view: memoryview) -> int:
        if sender == "fill" and masks:
            os.kill(os.getpid(), signal.SIGUSR1)
            os.read(reader, 1)  # as from a server that says nothing more
        return len(view)

    def take(_view: memoryview, _position: int) -> None:
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        if sender == "take":
            os.kill(os.getpid(), signal.SIGUSR1)

    reader, writer = os.pipe()
    masks: list[set[int]] = []
    previous = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(Stop):
            pump(fill, 1 << 30, take, block_bytes=10, blocks=1)
    finally:
        signal.signal(signal.SIGUSR1, previous)
        os.close(reader)
        os.close(writer)
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1} <= masks[0]
    assert signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_no_more_threads_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = _thread.start_new_thread, []

    def second_fails(*arguments: object) -> int:
        started.append(1)
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        return start(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(_thread, "start_new_thread", second_fails)
    with pytest.raises(UpdateError, match=r"can't start new thread .*number of threads"):
        pump(len, 10, Taker().take, Taker().take)
