"""The sequencer's part of the data plane: order, commit, stable, window."""

from __future__ import annotations

from collections.abc import Iterable

from ocfcluster import limits
from ocfcluster.protocol.flow import Flow
from ocfcluster.protocol.order_log import Entry, OrderLog
from ocfcluster.protocol.settings import Configuration
from ocfcluster.protocol.streams import OriginStream


class OrderClock:
    """order_time: the sequencer's monotonic clock, slewed towards its wall clock; it never goes back.

    A jump of the wall clock must not empty a retention by seconds, so it is followed by at most one part in
    ORDER_TIME_SLEW.
    """

    __slots__ = ("_last", "_offset", "_slewed_at")

    def __init__(self, not_before: int, now: int, wall_ns: int) -> None:
        self._last = not_before
        self._offset = max(wall_ns, not_before) - now
        self._slewed_at = now

    def slew(self, now: int, wall_ns: int) -> None:
        most = max(0, now - self._slewed_at) // limits.ORDER_TIME_SLEW
        self._slewed_at = now
        error = wall_ns - now - self._offset
        self._offset += max(-most, min(most, error))

    def read(self, now: int) -> int:
        self._last = max(self._last, now + self._offset)
        return self._last


class Sequencer:
    """Gives packets their indexes and counts who holds them."""

    __slots__ = (
        "_votes",
        "_held",
        "_quorum_votes",
        "flow",
        "commit",
        "stable",
        "_own_id",
        "full_members",
        "_changed",
        "_epoch",
        "learners",
    )

    def __init__(self, configuration: Configuration, own_id: int, flow: Flow, stable: int) -> None:
        """``stable``: what was stable before this epoch; it counts for each member until that one reports."""
        self._epoch = configuration.epoch
        self._votes = {member.node_id: member.votes for member in configuration.members}
        self._held = {member.node_id: stable for member in configuration.members}
        self.learners: dict[
            tuple[int, int], int
        ] = {}  # (node_id, incarnation) → held; they count for stable alone
        self._quorum_votes = sum(self._votes.values()) // 2 + 1
        self._own_id = own_id
        self.flow = flow
        self.commit = configuration.base
        self.stable = stable
        self._changed = True  # somebody holds more than was counted
        self.full_members: dict[int, bool] = {}

    def order(self, origins: dict[int, OriginStream], log: OrderLog, order_time: int) -> list[Entry]:
        """Entries for what has come in since: each origin's contiguous packets, behind those ordered before."""
        entries: list[Entry] = []
        index = log.next_index
        for origin in origins.values():
            count = origin.contiguous - origin.ordered
            if count > 0:
                entries.append(Entry(index, count, origin, origin.ordered + 1, order_time, self._epoch))
                origin.ordered = origin.contiguous
                index += count
        return entries

    def acknowledged(self, node_id: int, held: int, highest: int) -> bool:
        """A member holds everything up to ``held``. False where that says nothing new, or what cannot be."""
        if held > highest or held <= self._held.get(node_id, held):
            return False
        self._held[node_id] = held
        self._changed = True
        return True

    def learner_holds(self, node_id: int, incarnation: int, held: int) -> None:
        """One that is no member yet has fetched up to ``held``: what it still needs is kept from now on."""
        learners = self.learners
        key = (node_id, incarnation)
        if key in learners or len(learners) < limits.NODES:
            learners[key] = max(held, learners.get(key, 0))
            self._changed = True

    def learner_gone(self, node_id: int, incarnation: int) -> None:
        if self.learners.pop((node_id, incarnation), None) is not None:
            self._changed = True

    def held(self, node_id: int) -> int:
        """What the member has acknowledged."""
        return self._held.get(node_id, 0)

    def count(self) -> bool:
        """Work out commit and stable; True where commit moved."""
        if not self._changed:
            return False
        self._changed = False
        votes = 0
        commit = self.commit
        for held, node_id in sorted(((held, node) for node, held in self._held.items()), reverse=True):
            votes += self._votes[node_id]
            if votes >= self._quorum_votes:
                commit = max(commit, held)
                break
        least = min(self._held.values())
        if self.learners:
            least = min(least, *self.learners.values())
        self.stable = max(self.stable, least)
        moved = commit != self.commit
        self.commit = commit
        return moved

    def lag(self, members: Iterable[int]) -> int:
        """Packets that the slowest of ``members`` (node_ids) is behind this node."""
        own = held = self._held[self._own_id]
        for node_id in members:
            held = min(held, self._held[node_id])
        return own - held
