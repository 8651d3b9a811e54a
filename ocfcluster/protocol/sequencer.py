"""The sequencer's part of the data plane: order, commit, stable, window."""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter
from typing import Final

from ocfcluster import limits
from ocfcluster.protocol.flow import Flow
from ocfcluster.protocol.learners import Learners
from ocfcluster.protocol.order_log import Entry, OrderLog
from ocfcluster.protocol.origins import Origins
from ocfcluster.protocol.peers import PeerTable
from ocfcluster.protocol.settings import Configuration, Settings
from ocfcluster.protocol.streams import OriginStream

_HELD: Final = itemgetter(1)


class OrderClock:
    """order_time: the sequencer's monotonic clock, slewed towards its wall clock; it never goes back.

    A history begins with the wall clock of the node that proposes it. From there on a jump of a wall clock, or a new
    sequencer's that is another, must not empty a retention by seconds: it is followed by at most one part in
    ORDER_TIME_SLEW. So each member has such a clock, which runs from the order_time of the view on and follows what is
    ordered; who promises says what it shows, and the next sequencer goes on from the highest.
    """

    __slots__ = ("_last", "_offset", "_slewed_at")

    def __init__(self) -> None:
        self._last = 0
        self._offset = -(1 << 63)  # nothing is known yet
        self._slewed_at = 0

    def enter(self, not_before: int, now: int) -> None:
        """An epoch begins, with this order_time."""
        self._last = not_before
        self._offset = max(self._offset, not_before - now)
        self._slewed_at = now

    def follow(self, order_time: int, now: int) -> None:
        """The sequencer has ordered something at ``order_time``, not long ago."""
        self._last = order_time
        self._offset = order_time - now

    def slew(self, now: int, wall_ns: int) -> None:
        most = max(0, now - self._slewed_at) // limits.ORDER_TIME_SLEW
        self._slewed_at = now
        error = wall_ns - now - self._offset
        self._offset += max(-most, min(most, error))

    def read(self, now: int) -> int:
        time = now + self._offset
        if time > self._last:
            self._last = time
        return self._last


class Sequencer:
    """Gives packets their indexes, counts who holds them, and says how much each origin may send."""

    __slots__ = (
        "commit", "learners", "stable", "_changed", "_epoch", "_flow", "_full_members", "_granted", "_held", "_kept",
        "_own_id", "_packet_bytes", "_quorum_votes", "_backlog_bytes", "_votes",
    )  # fmt: skip

    def __init__(
        self, configuration: Configuration, settings: Settings, packet_bytes: int, stable: int, now: int
    ) -> None:
        """``stable``: what was stable before this epoch; it counts for each member until that one reports."""
        self._epoch = configuration.epoch
        self._votes = {member.node_id: member.votes for member in configuration.members}
        self._held = {member.node_id: stable for member in configuration.members}
        self._kept = stable  # what this node holds in memory, whatever its disk says
        self.learners = Learners(now)  # they count for stable alone
        self._quorum_votes = sum(self._votes.values()) // 2 + 1
        self._own_id = settings.node_id
        self._packet_bytes = packet_bytes
        self._backlog_bytes = settings.backlog_bytes
        self.commit = configuration.base
        self.stable = stable
        self._changed = True  # somebody holds more than was counted
        self._full_members: dict[int, bool] = {}
        self._flow = Flow(settings.window_bytes, settings.backlog_bytes, packet_bytes, now)
        self._granted: dict[int, int] = {}
        self.granted(settings.node_id, settings.receive_buffer_bytes)

    # --- order ------------------------------------------------------------------------------------------------------

    def order(
        self, origins: dict[int, OriginStream], log: OrderLog, clock: OrderClock, now: int
    ) -> list[Entry]:
        """Entries for what has come in since: each origin's contiguous packets, behind those ordered before. All have
        one order_time."""
        entries: list[Entry] = []
        index = log.next_index
        order_time = 0
        for origin in origins.values():
            count = origin.contiguous - origin.ordered
            if count > 0:
                order_time = order_time or clock.read(now)
                entries.append(Entry(index, count, origin, origin.ordered + 1, order_time, self._epoch))
                origin.ordered = origin.contiguous
                index += count
                self._flow.ordered(origin.node_id, count, now)
        return entries

    # --- commit and stable ------------------------------------------------------------------------------------------

    def hears(self, node_id: int, held: int, full: bool, highest: int) -> None:
        """What a member says of itself: how far it holds the order, and whether a subscriber of its is full."""
        self._full_members[node_id] = full
        self.acknowledged(node_id, held, highest)

    def acknowledged(self, node_id: int, held: int, highest: int) -> bool:
        """A member holds everything up to ``held``. False where that says nothing new, or what cannot be."""
        if held > highest or held <= self._held.get(node_id, held):
            return False
        self._held[node_id] = held
        self._changed = True
        return True

    def keeps(self, held: int, acknowledged: int, highest: int) -> None:
        """This node holds everything up to ``held``. What of that waits for its disk counts for nothing but stable:
        others are served from memory, and a disk that hangs must not have the backlog fill."""
        if held > self._kept:
            self._kept = held
            self._changed = True
        self.acknowledged(self._own_id, acknowledged, highest)

    def learner_holds(self, node_id: int, incarnation: int, held: int) -> None:
        """One that is no member yet has fetched up to ``held``: what it still needs is kept from now on."""
        self._changed |= self.learners.holds(node_id, incarnation, held)

    def learner_gone(self, node_id: int, incarnation: int) -> None:
        self._changed |= self.learners.gone(node_id, incarnation)

    def give_up_learners(self, now: int) -> list[int]:
        """Learners (node_ids) for which the backlog has been full for too long: nothing is kept for them now."""
        given_up = self.learners.give_up(self._flow.backlog_full, self._least, now)
        self._changed |= bool(given_up)
        return given_up

    @property
    def _least(self) -> int:
        """What all members hold."""
        least = self._kept
        for node_id, held in self._held.items():
            if held < least and node_id != self._own_id:
                least = held
        return least

    def count(self) -> bool:
        """Work out commit and stable; True where commit moved."""
        if not self._changed:
            return False
        self._changed = False
        votes = 0
        commit = self.commit
        for node_id, held in sorted(self._held.items(), key=_HELD, reverse=True):
            if held <= commit:
                break
            votes += self._votes[node_id]
            if votes >= self._quorum_votes:
                commit = held
                break
        least = min(self._least, commit)
        if self.learners.held:
            least = min(least, *self.learners.held.values())
        if least > self.stable:
            self.stable = least
        moved = commit != self.commit
        self.commit = commit
        return moved

    def lags(self, node_id: int) -> bool:
        """Whether the window is closed, and this member is the one it waits for."""
        flow = self._flow
        return (flow.backlog_full or flow.lag_closes) and self._held.get(node_id, 0) <= self._least

    @property
    def backlog_full(self) -> bool:
        return self._flow.backlog_full

    def held(self, node_id: int) -> int:
        """What the member has acknowledged."""
        return self._held.get(node_id, 0)

    # --- the window -------------------------------------------------------------------------------------------------

    def granted(self, node_id: int, receive_buffer_bytes: int) -> None:
        """A member's receive buffer: the smallest bounds what may be on its way."""
        # No agent starts with less, so less is no reason to throttle everybody.
        most = max(receive_buffer_bytes, limits.RECEIVE_BUFFER_FLOOR_BYTES)
        if self._granted.get(node_id) != most:
            self._granted[node_id] = most
            self._flow.set_receive_buffer(min(self._granted.values()))

    def retransmitted(self, packets: int) -> None:
        self._flow.retransmitted(packets)

    @property
    def closed_because(self) -> str:
        return self._flow.closed_because

    def window(self, origins: Origins, peers: PeerTable, full: bool, now: int) -> int:
        """Bytes that each origin may have uncommitted from now on. ``full``: a subscriber of this node is."""
        backlog = origins.kept_cost_bytes
        lag = self.lag(origins.present) * self._packet_bytes
        if lag > self._flow.least_lag_bytes:  # else it closes nothing, whoever it is
            lag = self.lag(_responsive(origins, peers, now)) * self._packet_bytes
        window = self._flow.window(now, backlog, lag, full or True in self._full_members.values())
        if window and self.learners.held:
            # Who joins must gain on what is published: the window gives way as what is kept for it grows.
            left = max(0, self._backlog_bytes - backlog)
            window = max(self._packet_bytes, window * left // self._backlog_bytes)
        return window

    def lag(self, members: Iterable[int]) -> int:
        """Packets that the slowest of ``members`` (node_ids) is behind this node."""
        own = least = self._kept
        for node_id in members:
            held = self._held[node_id]
            if held < least:
                least = held
        return own - least


def _responsive(origins: Origins, peers: PeerTable, now: int) -> list[int]:
    """Other members that were heard a moment ago."""
    oldest = now - limits.RESPONSIVE_NS
    return [
        node_id
        for node_id, origin in origins.present.items()
        if not origin.own
        and (peer := peers.get(node_id, origin.incarnation)) is not None
        and peer.last_heard > oldest
    ]
