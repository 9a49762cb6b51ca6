# SPDX-License-Identifier: Apache-2.0
"""When to poll next: a regular interval, replaced by backoff after failures (device-api.md section 8).

And at once when the clock was set, if that was why.
"""

from __future__ import annotations

from update_agent.backoff import delays

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from update_agent.config import Config


class PollTimer:
    """One kind of poll. `due` is a monotonic time; `now` is passed in."""

    __slots__ = ("_backoff", "_config", "_gave_up", "_interval_s", "due")

    def __init__(self, interval_s: int, config: Config, now: float) -> None:
        self._interval_s = interval_s
        self._config = config
        self._backoff: Iterator[int] | None = None
        self._gave_up = False
        self.due = now

    def started(self, now: float) -> None:
        """The poll begins: the regular interval runs from here."""
        self.due = now + self._interval_s

    def succeeded(self) -> None:
        """The poll was answered: the next failure starts a fresh backoff."""
        self._backoff = None
        self._gave_up = False

    def failed(self, now: float, retry_after_s: float | None = None) -> None:
        """The poll failed: come back after the backoff, or exactly when the server said."""
        if retry_after_s is not None:
            self.due = now + retry_after_s
            return
        if self._gave_up:
            return
        if self._backoff is None:
            config = self._config
            self._backoff = delays(
                config.retry_poll_interval_s, config.retry_poll_count, first_s=config.retry_first_interval_s
            )
        delay_s = next(self._backoff, None)
        if delay_s is None:
            self._gave_up = True
        else:
            self.due = now + delay_s


class ClockWatch:
    """Tells that the wall clock was set, while a wrong one is thought to be why requests fail.

    A board without a battery begins in 1970 or with its image's date, and TLS finds certificates not valid
    yet. It looks every few seconds, and only then: the kernel's word for it (timerfd) needs ctypes.
    """

    __slots__ = ("_offset_s",)

    LOOK_S = 5.0
    _STEP_S = 1.0  # less is the clock being steered, not set

    def __init__(self) -> None:
        self._offset_s: float | None = None

    def suspect(self, is_clock: bool, now: float, wall: float) -> None:
        """A request ended: watch from here on if the clock may be why it failed, else no more."""
        self._offset_s = wall - now if is_clock else None

    def was_set(self, now: float, wall: float) -> bool:
        """Whether it was set since; true once."""
        if self._offset_s is None or abs(wall - now - self._offset_s) < self._STEP_S:
            return False
        self._offset_s = None
        return True

    def next_look(self, now: float) -> float:
        """When to ask again; never, if there is nothing to watch."""
        return float("inf") if self._offset_s is None else now + self.LOOK_S
