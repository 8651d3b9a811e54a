"""Another agent with this node's id: which of the two is the mistake."""

from __future__ import annotations

from ocfcluster import limits
from ocfcluster.wire.datagram import Heartbeat, MessageFlags

_NO_MEMBER = int(MessageFlags.FORMING | MessageFlags.LEARNING)


class Namesake:
    """Watches the other incarnations of this node's id. One that has died is heard for a moment at most: late
    datagrams. One that goes on speaking is a second agent."""

    __slots__ = ("_counter", "_incarnation", "_since", "_span_ns", "_told_at")

    def __init__(self, suspicion_ns: int, now: int) -> None:
        self._span_ns = suspicion_ns
        self._incarnation = 0
        self._counter = 0
        self._since = 0
        self._told_at = now - limits.SECOND_NS

    def retime(self, suspicion_ns: int) -> None:
        self._span_ns = suspicion_ns

    def heard(self, incarnation: int, counter: int, beat: Heartbeat, now: int) -> bool:
        """A heartbeat of it; True where it is a member and has been speaking for longer than a dead one would be
        heard: then this node is the newcomer."""
        if incarnation != self._incarnation or counter <= self._counter:
            if incarnation != self._incarnation:
                self._incarnation, self._since = incarnation, now
                self._counter = counter
            return False
        self._counter = counter
        return now - self._since >= self._span_ns and not beat.flags & _NO_MEMBER

    def tell(self, now: int) -> bool:
        """Whether an operator is to be told now: once a second."""
        if now - self._told_at < limits.SECOND_NS:
            return False
        self._told_at = now
        return True
