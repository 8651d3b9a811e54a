"""What a node's local subscribers do with what is delivered: take it at some speed, and be full at times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ocfcluster.limits import MILLISECOND_NS, SECOND_NS
from ocfcluster.protocol.effects import Delivery

if TYPE_CHECKING:
    from ocfcluster.simulator.world import World


@dataclass(slots=True)
class SubscriberProfile:
    """``bytes_per_second`` 0: takes everything at once and is never full."""

    bytes_per_second: int = 0
    mark_bytes: int = 64 * 1024  # full above it, free again below half of it


class Subscriber:
    """The slowest subscriber of a node."""

    __slots__ = (
        "_draining",
        "_set_full",
        "_world",
        "full",
        "most_bytes",
        "profile",
        "queued_bytes",
        "stopped",
    )

    def __init__(self, world: World, profile: SubscriberProfile, set_full: Callable[[bool], None]) -> None:
        self._world = world
        self._set_full = set_full
        self._draining = False
        self.profile = profile
        self.queued_bytes = 0
        self.most_bytes = 0
        self.full = False
        self.stopped = False

    def take(self, item: Delivery) -> None:
        if not self.profile.bytes_per_second and not self.stopped:
            return
        self.queued_bytes += len(item.run)
        self.most_bytes = max(self.most_bytes, self.queued_bytes)
        self._mark()
        self._drain()

    def start_anew(self) -> None:
        """Its agent was restarted: what it had not taken is gone."""
        self.queued_bytes = 0
        self.full = False

    def stop(self) -> None:
        """Takes nothing any more until ``catch_up``."""
        self.stopped = True

    def catch_up(self) -> None:
        """Takes everything, and stays quick."""
        self.stopped = False
        self.profile.bytes_per_second = 0
        self.queued_bytes = 0
        self._mark()

    def _mark(self) -> None:
        full = self.queued_bytes > (self.profile.mark_bytes // 2 if self.full else self.profile.mark_bytes)
        if full != self.full:
            self.full = full
            self._set_full(full)

    def _drain(self) -> None:
        if not self._draining and not self.stopped and self.queued_bytes and self.profile.bytes_per_second:
            self._draining = True
            self._world.after(5 * MILLISECOND_NS, self._drained)

    def _drained(self) -> None:
        self._draining = False
        taken = self.profile.bytes_per_second * 5 * MILLISECOND_NS // SECOND_NS
        self.queued_bytes = max(0, self.queued_bytes - taken)
        self._mark()
        self._drain()
