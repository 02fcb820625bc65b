"""A clock that stops while this process does."""

import time

_LONGEST = 1.0


class AwakeClock:
    """Seconds in which this process has run: the time since the last reading counts for at most one second.

    A process that waits for others reads it several times per second. When it has been suspended together with them
    (SIGSTOP, a frozen container, a paused virtual machine), it does not take their silence during that time for a
    failure.
    """

    def __init__(self) -> None:
        self._seconds, self._last = 0.0, time.monotonic()

    def now(self) -> float:
        """Return the seconds that count since the clock was created."""
        now = time.monotonic()
        self._seconds += min(now - self._last, _LONGEST)
        self._last = now
        return self._seconds
