# SPDX-License-Identifier: Apache-2.0
"""Bytes through several hands at once: the caller fills blocks, threads take each of them, in order.

The blocks are a fixed ring of page-aligned memory (as O_DIRECT wants it), so a payload of any size passes
through the same megabyte. Filling, hashing and writing all release the interpreter's lock while they work;
with two processors they overlap, with one they take turns.
"""

from __future__ import annotations

import _thread
import mmap

from update_agent.errors import UpdateError
from update_agent.lean import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Fill = Callable[[memoryview], int]
    Take = Callable[[memoryview, int], None]

BLOCK_BYTES = 512 << 10  # 256 KiB: a quarter more CPU time for an uncompressed image; 1 MiB: 2 MB more memory
# For a source that fills them faster than SHA-256 takes them: 6 % less time, and 2 MB more memory.
LARGE_BLOCK_BYTES = 1 << 20
BLOCKS = 3
# Signals are for the thread that fills: it is to be woken out of its wait for a block, and unwinds.
_SIGNALS = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGCHLD,
)


def aligned(size_bytes: int) -> memoryview:
    """Zeroed memory at the start of a page; of huge ones where there are any: O_DIRECT pins each page."""
    memory = mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        pass  # a kernel without
    return memoryview(memory)


class _Hand:
    """One thread that takes every block. `full[n]` and `free[n]` are tokens that pass block n to and fro.

    After its first error it gives blocks back untouched, until the filling thread has noticed.
    """

    def __init__(self, take: Take, blocks: int) -> None:
        self._take = take
        self._is_closing = False
        self._parts: list[tuple[memoryview, int]] = [(memoryview(b""), 0)] * blocks
        self._full = [_thread.allocate_lock() for _ in range(blocks)]
        self._free = [_thread.allocate_lock() for _ in range(blocks)]
        self._ended = _thread.allocate_lock()
        self.error: BaseException | None = None
        for lock in (*self._full, self._ended):
            lock.acquire()
        try:
            _thread.start_new_thread(self._run, ())
        except RuntimeError as error:
            raise UpdateError(
                f"cannot take the payload in: {error}", hint="memory or the number of threads is exhausted"
            ) from error

    def wait(self, block: int) -> None:
        """Wait until the thread is done with this block. Raises its error."""
        self._free[block].acquire()
        if self.error is not None:
            raise self.error

    def give(self, block: int, view: memoryview, position: int) -> None:
        """Hand over a block that was waited for."""
        self._parts[block] = (view, position)
        self._full[block].release()

    def end(self) -> None:
        """End the thread: after what it is doing now, whatever else was given."""
        self._is_closing = True
        for lock in self._full:
            lock.acquire(blocking=False)
            try:
                lock.release()
            except RuntimeError:
                pass  # the thread has this token, but not yet the interpreter
        self._ended.acquire()

    def _run(self) -> None:
        block = 0
        try:
            while True:
                self._full[block].acquire()
                if self._is_closing:
                    return
                if self.error is None:
                    try:
                        self._take(*self._parts[block])
                    except BaseException as error:
                        self.error = error
                self._free[block].release()
                block = (block + 1) % len(self._full)
        finally:
            self._ended.release()


def pump(fill: Fill, size: int, *takers: Take, block_bytes: int = BLOCK_BYTES, blocks: int = BLOCKS) -> int:
    """Fill blocks until `size` bytes are through every taker; how many came, fewer if `fill` ended early.

    `fill` is called here, with a view to fill; it may return less only at its end. Each taker runs in a
    thread of its own and gets every part (the last may be empty) with its position. The first error of any of
    them is raised. However this ends, no thread is left.
    """
    memory = aligned(block_bytes * blocks)
    hands: list[_Hand] = []
    position = block = 0
    try:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # inherited by the threads
        try:
            hands.extend(_Hand(take, blocks) for take in takers)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        while position < size:
            for hand in hands:
                hand.wait(block)
            start = block * block_bytes
            want = min(block_bytes, size - position)
            count = fill(memory[start : start + want])
            for hand in hands:
                hand.give(block, memory[start : start + count], position)
            position += count
            block = (block + 1) % blocks
            if count < want:
                break
        for _ in range(blocks):
            for hand in hands:
                hand.wait(block)
            block = (block + 1) % blocks
    finally:
        for hand in hands:
            hand.end()
    return position
