"""Subscriptions that begin earlier than now: events that are kept, then the live ones, from one definite point on.

While it catches up, a subscription is fed from what is kept, in portions, as its socket drains. What is published
meanwhile to those topics is not queued for it: it is kept, too, and comes in its turn. Where the subscription has got
everything it becomes one like any other, once, between two runs. So whoever catches up costs the agent one portion,
and holds up nobody.

What is published to the subscription's other topics is held back until its place in the order has come: stand-ins are
subscribed to them in its place, one to the topics of the cluster's order, one to local topics, which have an order of
their own and come behind. The ids of events (ev_id) tell the order.

A reader so slow that what is kept runs out under it is told of the gap.
"""

from __future__ import annotations

import copy
import struct
from collections import deque
from collections.abc import Container, Sequence
from heapq import heapify, heapreplace
from typing import TYPE_CHECKING, Final, Protocol

from ocfcluster.limits import (
    QUEUED_ITEM_OVERHEAD_BYTES,
    RECORD_HEADER_BYTES,
    REPLAY_PORTION_BYTES,
    REPLAY_PORTION_RUNS,
)
from ocfcluster.wire.frames import (
    LOCAL_ID,
    RECORD_HEADER,
    Notice,
    NoticeCode,
    OnSlow,
    RecordFlags,
    RecordKind,
)

if TYPE_CHECKING:
    from ocfcluster.ipc.delivery import Hub
    from ocfcluster.ipc.subscription import Subscription

RAN_OUT: Final = "they are not kept any more"
REMOVED: Final = "the topic was removed, and what was kept of it"
_EV_ID: Final = struct.Struct("<40xQ")  # in a record header
_RUN: Final = int(RecordKind.RUN)

# run, topic_id, count, skip, seq, ev_id, node_id, incarnation, m_sequence, order_time
Kept = tuple[bytes, int, int, int, int, int, int, int, int, int]


class Source(Protocol):
    """What is kept of one topic. It must be of the same moment as what the hub has delivered, whenever it is asked."""

    @property
    def last_seq(self) -> int:
        """Of the topic's last event, kept or not."""

    def portion(self, seq: int, most_runs: int, most_bytes: int) -> Sequence[Kept]:
        """The oldest runs that are kept with events from ``seq`` on, at least one if there is any."""


class Cursor:
    """How far a subscription has got in one topic."""

    __slots__ = ("next_seq", "source", "old_seq", "last_seq", "local")

    def __init__(self, source: Source, next_seq: int, local: bool) -> None:
        self.source = source
        self.next_seq = next_seq
        self.old_seq = self.last_seq = source.last_seq  # up to here events are older than the subscription
        self.local = local


class Replay:
    """One subscription that catches up."""

    __slots__ = ("stand_ins", "_hub", "_subscription", "_cursors", "_looks_out")

    def __init__(
        self, hub: Hub, subscription: Subscription, cursors: dict[int, Cursor], local: Container[int]
    ) -> None:
        self._hub = hub
        self._subscription = subscription
        self._cursors = cursors
        self._looks_out = False
        # Of the cluster's topics and of local ones: in one queue a local event would hold up all behind it.
        self.stand_ins = (self._stand_in(), self._stand_in())
        for topic_id in subscription.topics:
            if topic_id not in cursors:
                hub.by_topic.setdefault(topic_id, []).append(self.stand_ins[topic_id in local])

    def _stand_in(self) -> Subscription:
        stand_in = copy.copy(self._subscription)  # its topics are the same table
        stand_in.queue = deque()
        stand_in.queued_bytes = 0
        stand_in.gaps, stand_in.passed, stand_in.lost = {}, {}, {}
        stand_in.on_slow = OnSlow.BLOCK
        stand_in.replay = self
        stand_in.dirty = True  # so nobody writes its queue
        return stand_in

    def look_out(self) -> None:
        """What was given is written: the next portion comes when the socket has room."""
        if not self._looks_out:
            self._looks_out = True
            self._hub.watcher.watch_writable(self._subscription, True)

    def look_away(self) -> None:
        if self._looks_out:
            self._looks_out = False
            self._hub.watcher.watch_writable(self._subscription, False)

    def feed(self) -> bool:
        """Queue the next portion. Whether the subscription has caught up: it is like any other then."""
        hub, subscription = self._hub, self._subscription
        if subscription.gaps:
            hub.tell_gaps(subscription)  # its queue was given up: what it missed comes before what follows
        runs, size = REPLAY_PORTION_RUNS, min(REPLAY_PORTION_BYTES, hub.marks.full)
        share = max(1, len(self._cursors))
        heads: list[tuple[int, int, Sequence[Kept], int]] = []  # ev_id of the next run, topic, runs, place
        for topic_id, cursor in self._cursors.items():
            cursor.last_seq = cursor.source.last_seq
            kept = cursor.source.portion(cursor.next_seq, 1 + runs // share, size // share)
            if kept:
                heads.append((kept[0][5], topic_id, kept, 0))
            else:
                self._reach(topic_id, cursor, cursor.last_seq + 1)
        heapify(heads)
        while heads and runs > 0 and size > 0:
            ev_id, topic_id, kept, place = heads[0]
            self._give_held(ev_id)
            record = kept[place]
            self._give(topic_id, record)
            runs -= 1
            size -= len(record[0]) + RECORD_HEADER_BYTES + QUEUED_ITEM_OVERHEAD_BYTES
            if place + 1 < len(kept):
                heapreplace(heads, (kept[place + 1][5], topic_id, kept, place + 1))
            elif self._cursors[topic_id].next_seq > self._cursors[topic_id].last_seq:
                heads[0] = heads[-1]
                heads.pop()
                heapify(heads)
            else:
                break  # more of this topic comes before what others have
        if heads:
            return False
        self._end()
        hub.replays.pop(subscription, None)
        return True

    def _give(self, topic_id: int, record: Kept) -> None:
        run, _, count, skip, seq, ev_id, node_id, incarnation, m_sequence, order_time = record
        cursor = self._cursors[topic_id]
        self._reach(topic_id, cursor, seq)
        flags = RecordFlags.LOCAL if cursor.local else RecordFlags.NONE
        if seq <= cursor.old_seq:
            flags |= RecordFlags.RETAINED
        header = RECORD_HEADER.pack(
            RECORD_HEADER_BYTES + len(run), _RUN, flags, 0, skip, node_id, incarnation, m_sequence, seq, ev_id,
            order_time,
        )  # fmt: skip
        cursor.next_seq = seq + count - skip
        self._hub.queue_run(self._subscription, topic_id, header, run, seq, cursor.next_seq - 1)

    def _reach(self, topic_id: int, cursor: Cursor, seq: int) -> None:
        """The next event is ``seq``: what is between is not kept any more."""
        if seq > cursor.next_seq:
            self._miss(topic_id, cursor.next_seq, seq - 1, RAN_OUT)
            cursor.next_seq = seq

    def _miss(self, topic_id: int, first_seq: int, last_seq: int, reason: str) -> None:
        name = self._subscription.topics.get(topic_id, "")
        self._hub.gaps += 1
        self._hub.notify(self._subscription, Notice(NoticeCode.GAP, name, first_seq, last_seq, reason))

    def _give_held(self, before: int) -> None:
        """What was held back and comes before this ev_id; a notice has none, and waits for nothing.

        Nor does what this node alone tells in a topic of the cluster's: its place is between the topic's events.
        """
        of_cluster, of_node = self.stand_ins
        self._give_from(of_cluster, before, LOCAL_ID)
        self._give_from(of_node, before, 1 << 64)

    def _give_from(self, stand_in: Subscription, first: int, end: int) -> None:
        """What it holds, up to the first item with an ev_id from ``first`` on and below ``end``."""
        queue = stand_in.queue
        while queue and not first <= _EV_ID.unpack_from(queue[0].header)[0] < end:
            item = queue.popleft()
            stand_in.queued_bytes -= item.size + QUEUED_ITEM_OVERHEAD_BYTES
            self._hub.pass_on(self._subscription, item)

    def topic_removed(self, topic_id: int, last_seq: int) -> bool:
        """Whether the subscription was catching up with this topic, whose events are gone now, to the last."""
        cursor = self._cursors.pop(topic_id, None)
        # The cursor's own last seq is of the last portion: more may have come since, and its source is empty now.
        if cursor is not None and cursor.next_seq <= last_seq:
            self._miss(topic_id, cursor.next_seq, last_seq, REMOVED)
        return cursor is not None

    def abandon(self) -> Subscription:
        """The subscription, which ends or is gone: it is given no more of what is kept."""
        if self._hub.replays.pop(self._subscription, None) is not None:
            self._cursors.clear()
            self._end()
        return self._subscription

    def _end(self) -> None:
        """What was held back is queued, and the subscription takes the place of its stand-ins."""
        hub, subscription = self._hub, self._subscription
        subscription.replay = None
        self.look_away()
        if not subscription.ended:
            hub.tell_gaps(subscription)
        self._give_held(1 << 64)
        for stand_in in self.stand_ins:
            stand_in.replay = None
            hub.take_over(subscription, stand_in)
            for topic_id in subscription.topics:
                hub.replace(topic_id, stand_in, None)
        if not subscription.ended:
            for topic_id in subscription.topics:
                hub.replace(topic_id, subscription, subscription)


def begin(
    hub: Hub, subscription: Subscription, cursors: dict[int, Cursor], local: Container[int] = ()
) -> None:
    """A subscription that was just added is to be given what is kept of these topics first.

    ``local``: which of all its topics are local ones.
    """
    for topic_id in subscription.topics:
        hub.replace(topic_id, subscription, None)
    replay = subscription.replay = hub.replays[subscription] = Replay(hub, subscription, cursors, local)
    subscription.dropping = subscription.apart = True  # what is delivered now is not for its queue
    replay.feed()
