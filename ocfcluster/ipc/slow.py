"""How long slow subscribers may hold the publishers up: one account for all subscriptions of an agent.

A full subscription closes the window of the whole cluster. That is allowed for SLOW_SUBSCRIBER_TIMEOUT in each
SLOW_SUBSCRIBER_INTERVAL, counted for all subscriptions together; then the full ones fall back to dropping.
"""

from __future__ import annotations

from ocfcluster.limits import SLOW_SUBSCRIBER_INTERVAL_NS, SLOW_SUBSCRIBER_TIMEOUT_NS


class SlowBudget:
    """Counts the time during which any subscription was full, per interval."""

    __slots__ = ("timeout_ns", "interval_ns", "spent_ns", "interval_since", "full_since")

    def __init__(
        self,
        timeout_ns: int = SLOW_SUBSCRIBER_TIMEOUT_NS,
        interval_ns: int = SLOW_SUBSCRIBER_INTERVAL_NS,
    ) -> None:
        self.timeout_ns = timeout_ns
        self.interval_ns = interval_ns
        self.spent_ns = 0  # in this interval, but for the stretch that began at full_since
        self.interval_since = 0
        self.full_since: int | None = None

    def _roll(self, now: int) -> None:
        if now - self.interval_since < self.interval_ns:
            return
        self.interval_since = now
        self.spent_ns = 0
        if self.full_since is not None:
            self.full_since = now

    def begin(self, now: int) -> None:
        """Some subscription has become full."""
        self._roll(now)
        if self.full_since is None:
            self.full_since = now

    def end(self, now: int) -> None:
        """None is full any more."""
        self._roll(now)
        if self.full_since is not None:
            self.spent_ns += now - self.full_since
            self.full_since = None

    def used_up(self, now: int) -> bool:
        self._roll(now)
        running = 0 if self.full_since is None else now - self.full_since
        return self.spent_ns + running >= self.timeout_ns

    def deadline(self) -> int | None:
        """When the budget will be used up if nothing changes; None while nothing is full."""
        if self.full_since is None:
            return None
        return self.full_since + max(0, self.timeout_ns - self.spent_ns)
