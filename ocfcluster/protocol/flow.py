"""Flow control, the sequencer's part: how many bytes each origin may have uncommitted.

Two bounds. The *window* is a share of a budget: as much as the smallest receive buffer takes without loss, less after
retransmissions, more again slowly. The *backlog* bounds what is not stable: a paused member stalls nobody until it
is full. The window closes (0) while the backlog is full, while a responsive member lags by more than its receive
buffer takes, or while a member says that one of its subscribers is full (that only for SLOW_SUBSCRIBER_TIMEOUT in
each SLOW_SUBSCRIBER_INTERVAL, for the whole cluster: then the subscriber pays, and not the cluster).
"""

from __future__ import annotations

from ocfcluster import limits


class Flow:
    __slots__ = (
        "_budget",
        "_ceiling",
        "_backlog_bytes",
        "_window_bytes",
        "_packet_bytes",
        "_closed_for_backlog",
        "_closed_for_lag",
        "_closed_for_full",
        "_full_credit_ns",
        "_counted_at",
        "_adapted_at",
        "_retransmitted",
        "_ordered",
        "_active",
    )

    def __init__(self, window_bytes: int, backlog_bytes: int, packet_bytes: int, now: int) -> None:
        self._ceiling = window_bytes
        self._budget = window_bytes
        self._window_bytes = window_bytes
        self._backlog_bytes = backlog_bytes
        self._packet_bytes = packet_bytes
        self._closed_for_backlog = False
        self._closed_for_lag = False
        self._closed_for_full = False
        self._full_credit_ns = limits.SLOW_SUBSCRIBER_TIMEOUT_NS
        self._counted_at = now
        self._adapted_at = now
        self._retransmitted = 0
        self._ordered = 0
        self._active: dict[int, int] = {}  # origin → when it was last ordered

    def set_receive_buffer(self, smallest_bytes: int) -> None:
        """The smallest receive buffer that members have been granted, in bytes."""
        self._ceiling = max(self._packet_bytes, min(self._window_bytes, smallest_bytes // 2))
        self._budget = min(self._budget, self._ceiling)

    @property
    def least_lag_bytes(self) -> int:
        """Lag up to this closes nothing and keeps nothing closed."""
        return self._ceiling // 2

    def ordered(self, node_id: int, packets: int, now: int) -> None:
        self._ordered += packets
        self._active[node_id] = now

    def retransmitted(self, packets: int) -> None:
        self._retransmitted += packets

    def window(self, now: int, backlog_bytes: int, lag_bytes: int, full: bool) -> int:
        """Bytes each origin may have uncommitted from now on; 0 closes. All arguments describe this moment."""
        self._adapt(now)
        if self._closed_for_backlog:
            self._closed_for_backlog = backlog_bytes > self._backlog_bytes * 3 // 4
        else:
            self._closed_for_backlog = backlog_bytes >= self._backlog_bytes
        mark = self._ceiling
        self._closed_for_lag = lag_bytes > (mark // 2 if self._closed_for_lag else mark)
        self._count_full(now, full)
        if self._closed_for_backlog or self._closed_for_lag or self._closed_for_full:
            return 0
        share = self._budget // max(1, len(self._active))
        return max(share, self._packet_bytes)

    @property
    def backlog_full(self) -> bool:
        """Whether the window is closed because members do not acknowledge."""
        return self._closed_for_backlog

    @property
    def lag_closes(self) -> bool:
        """Whether the window is closed because a member lags."""
        return self._closed_for_lag

    @property
    def closed_because(self) -> str:
        """Why the window is closed, for people; empty while it is open."""
        if self._closed_for_backlog:
            return "a member does not acknowledge and the backlog is full"
        if self._closed_for_full:
            return "a subscriber is full"
        if self._closed_for_lag:
            return "a member lags"
        return ""

    def _count_full(self, now: int, full: bool) -> None:
        passed = now - self._counted_at
        self._counted_at = now
        if self._closed_for_full:
            self._full_credit_ns -= passed
        else:
            interval = limits.SLOW_SUBSCRIBER_INTERVAL_NS
            gained = passed * limits.SLOW_SUBSCRIBER_TIMEOUT_NS // interval
            self._full_credit_ns = min(limits.SLOW_SUBSCRIBER_TIMEOUT_NS, self._full_credit_ns + gained)
        if not full or self._full_credit_ns <= 0:
            self._closed_for_full = False
        elif not self._closed_for_full:
            # Once used up, it waits for a fifth of the time again: not a stutter at each burst.
            self._closed_for_full = self._full_credit_ns >= limits.SLOW_SUBSCRIBER_TIMEOUT_NS // 5

    def _adapt(self, now: int) -> None:
        if now - self._adapted_at < limits.FLOW_ADAPT_NS:
            return
        self._adapted_at = now
        idle = now - limits.FLOW_ACTIVE_NS
        self._active = {node_id: at for node_id, at in self._active.items() if at > idle}
        if self._retransmitted * 50 > self._ordered:
            self._budget = max(self._budget * 3 // 4, min(limits.FLOW_FLOOR_BYTES, self._ceiling))
        else:
            self._budget = min(self._ceiling, self._budget + self._ceiling // 16)
        self._retransmitted = self._ordered = 0
