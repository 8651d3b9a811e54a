"""From the node's order to the event sockets: who gets what, and in which frames.

The hub gets each delivered run once, with its record header, and gives every subscriber references to it. After a
burst ``flush`` writes one message per subscriber where the sockets have room (the idle path: one ``sendmsg``). A run
that is too large for a message is written in pieces; where something else has to come in between (its place is taken by
a gap), the subscriber forgets those that it has.

- **Turns.** The callback subscriptions of one connection are one *line*: their frames are written in the order of
  the log and numbered, so that the library can run callbacks in that order. A blocked one holds the line up,
  unless it is out of line.
- **Slow subscribers** and the memory that all hold together: ``queues``.
- **Filters.** What a subscription's filter leaves out is not queued and not missed. Where it has got to meanwhile is
  told to the library once a second, beside the event socket, so that a later resumption begins behind it.
- **Catching up.** A subscription that begins with kept events is fed from them as its socket drains (``replay``).
"""

from __future__ import annotations

import errno
import heapq
import socket
import struct
from collections import deque
from collections.abc import Container
from typing import Final

from ocfcluster.ipc import replay
from ocfcluster.ipc.queues import Marks, Queues
from ocfcluster.ipc.slow import SlowBudget
from ocfcluster.ipc.subscription import EventSocket, Held, Item, Line, Subscription, Watcher
from ocfcluster.limits import (
    FRAME_BYTES,
    FRAME_HEADER_BYTES,
    QUEUED_ITEM_OVERHEAD_BYTES,
    RECORD_HEADER_BYTES,
    RECORDS_PER_FRAME,
    RUN_BYTES,
    SUBSCRIPTION_TICK_NS,
)
from ocfcluster.wire.filter import Predicate
from ocfcluster.wire.frames import (
    EVENT_HEADER,
    RECORD_HEADER,
    Notice,
    NoticeCode,
    OnSlow,
    RecordKind,
)
from ocfcluster.wire.run import properties_of

__all__ = ["EventSocket", "Hub", "Item", "Line", "Marks", "Subscription", "Watcher"]

_SEND_FLAGS: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_NODE: Final = struct.Struct("<12xI")  # node_id in a record header
_FRAME_ROOM: Final = FRAME_BYTES - FRAME_HEADER_BYTES  # for records
_FLUSH_EVERY_BYTES: Final = 1 << 20  # a burst that delivers more is written in between
_NO_LIMIT: Final = 1 << 63


class Hub(Queues):
    """All subscriptions of an agent."""

    def __init__(
        self, watcher: Watcher, budget: SlowBudget | None = None, marks: Marks | None = None
    ) -> None:
        super().__init__(
            watcher, SlowBudget() if budget is None else budget, Marks() if marks is None else marks
        )
        self.frames = 0  # counters, for status
        self.left_out = 0  # runs that filters kept from subscriptions
        self._passed: dict[Subscription, None] = {}  # whose position is to be told
        self._tick_at = 0
        self._judged: Item | None = None  # whose properties are known
        self._properties = b""
        self._unflushed_bytes = 0

    # --- who is there -----------------------------------------------------------------------------------------

    def open_line(self, connection: int) -> Line:
        line = self.lines[connection] = Line(connection)
        return line

    def close_line(self, line: Line, now: int) -> list[Subscription]:
        """The connection is gone, and its subscriptions with it; the caller closes their sockets."""
        self.lines.pop(line.connection, None)
        gone = list(line.subscriptions.values())
        for subscription in gone:
            self.remove(subscription, now)
        return gone

    def add(
        self,
        line: Line,
        number: int,
        event_socket: EventSocket,
        topics: dict[int, str],
        callback: bool,
        on_slow: OnSlow = OnSlow.BLOCK,
        predicate: Predicate | None = None,
    ) -> Subscription:
        """A new subscription to ``topics`` (id → name); it gets what is delivered from here on and ``predicate``
        lets through."""
        subscription = Subscription(line, number, event_socket, topics, callback, on_slow, predicate)
        line.subscriptions[number] = subscription
        for topic_id in topics:
            self.by_topic.setdefault(topic_id, []).append(subscription)
        return subscription

    def remove(self, subscription: Subscription, now: int) -> None:
        """Let go of a subscription; the caller closes its socket after this."""
        line = subscription.line
        if line.subscriptions.get(subscription.number) is not subscription:
            return
        del line.subscriptions[subscription.number]
        subscription.ended = True
        if subscription.replay is not None:
            subscription.replay.abandon()
        for topic_id in subscription.topics:
            self._leave_topic(subscription, topic_id)
        if subscription.blocked:
            subscription.blocked = False
            self.watcher.watch_writable(subscription, False)
        self._discard(subscription)
        self.dropping.pop(subscription, None)
        self._passed.pop(subscription, None)
        self._set_full(subscription, False, now)
        if subscription.callback and line.subscriptions:
            self._touch_line(line)  # it may have held the others up

    def begin_with(
        self, subscription: Subscription, cursors: dict[int, replay.Cursor], local: Container[int] = ()
    ) -> None:
        """A subscription that was just added gets what is kept of these topics before anything else.

        ``local``: which of all its topics are local ones.
        """
        replay.begin(self, subscription, cursors, local)
        self._touch(subscription)  # also where all of the first portion was left out

    def replace(self, topic_id: int, subscription: Subscription, by: Subscription | None) -> None:
        """``by`` gets from here on what is delivered to the topic, and ``subscription`` does not."""
        self._leave_topic(subscription, topic_id)
        if by is not None:
            self.by_topic.setdefault(topic_id, []).append(by)

    def subscribers(self, topic_id: int) -> list[Subscription]:
        """Those to this topic, whether they get its events or are still catching up."""
        stand_ins = self.stand_ins()
        live = [one for one in self.by_topic.get(topic_id, ()) if one not in stand_ins]
        return live + [one for one in self.replays if topic_id in one.topics]

    def set_out_of_line(self, subscription: Subscription, out: bool, held: Held | None = None) -> None:
        """Whether a callback subscription holds up the others of its line while its socket is full.

        ``held`` is the event that its program has not finished, where it said so.
        """
        subscription.out_of_line = out
        subscription.held = held
        self._touch_line(subscription.line)

    # --- what comes -------------------------------------------------------------------------------------------

    def deliver(
        self, topic_id: int, header: bytes, run: bytes, first_seq: int, last_seq: int,
        only: list[Subscription] | None = None,
    ) -> None:  # fmt: skip
        """One delivered run, with the RECORD_HEADER all subscribers get: all of the topic, or ``only`` some of them.
        Call only with subscribers in ``by_topic``."""
        subscribers = self.by_topic[topic_id] if only is None else only
        self._position = position = self._position + 1
        item = Item(header, run, topic_id, first_seq, last_seq, position)
        size = item.size
        room = self.marks.hard - size
        dirty = self._dirty
        for subscription in subscribers:
            if subscription.apart and not self._admits(subscription, item):
                continue
            if subscription.queued_bytes > room:
                self._fall_back(subscription)
                self._miss(subscription, topic_id, first_seq, last_seq)
                continue
            subscription.queue.append(item)
            subscription.queued_bytes += size + QUEUED_ITEM_OVERHEAD_BYTES
            item.holders += 1
            if not subscription.dirty:
                subscription.dirty = True
                dirty.append(subscription)
        if item.holders:
            self.held_bytes += size + QUEUED_ITEM_OVERHEAD_BYTES
            self._unflushed_bytes += size
            if self._unflushed_bytes > _FLUSH_EVERY_BYTES:
                self._write_all()

    def _admits(self, subscription: Subscription, item: Item) -> bool:
        """Whether a subscription that does not simply get everything gets ``item``; if not, that is written down."""
        if subscription.filter is not None and not self._lets_through(
            subscription, subscription.filter, item
        ):
            return False
        if subscription.dropping:
            self._miss(subscription, item.topic_id, item.first_seq, item.last_seq)
            return False
        return True

    def _lets_through(self, subscription: Subscription, predicate: Predicate, item: Item) -> bool:
        if item is not self._judged:
            self._judged = item
            self._properties = properties_of(item.body)
        node_id = _NODE.unpack_from(item.header)[0] if predicate.by_node else 0
        if not predicate(self._properties, node_id):
            self.left_out += 1
            if not subscription.passed:
                self._passed[subscription] = None
            subscription.passed[item.topic_id] = item.last_seq
            return False
        subscription.passed.pop(item.topic_id, None)
        return True

    def queue_run(
        self,
        subscription: Subscription,
        topic_id: int,
        header: bytes,
        run: bytes,
        first_seq: int,
        last_seq: int,
    ) -> None:
        """One run for this subscriber alone, from what is kept."""
        self._position += 1
        item = Item(header, run, topic_id, first_seq, last_seq, self._position)
        predicate = subscription.filter
        if predicate is not None and not self._lets_through(subscription, predicate, item):
            return
        self._count(subscription, item)
        subscription.queue.append(item)
        self._touch(subscription)

    def pass_on(self, subscription: Subscription, item: Item) -> None:
        """An item that was in another queue, as one of its holders."""
        subscription.queued_bytes += item.size + QUEUED_ITEM_OVERHEAD_BYTES
        subscription.queue.append(item)
        self._touch(subscription)

    def take_over(self, subscription: Subscription, stand_in: Subscription) -> None:
        """What was written down of a stand-in is the subscription's own: what it missed, what its filter left out."""
        self.dropping.pop(stand_in, None)
        self._passed.pop(stand_in, None)
        subscription.dropping = False
        subscription.apart = subscription.filter is not None
        subscription.passed.update(stand_in.passed)
        if subscription.passed and not subscription.ended:
            self._passed[subscription] = None
        subscription.gaps = stand_in.gaps
        if not subscription.ended:
            self.tell_gaps(subscription)

    def give(
        self, subscription: Subscription, topic_id: int, header: bytes, run: bytes, seq: int, last: bool
    ) -> None:
        """One record for this subscriber alone, behind what it was given so far and the gaps in that.

        It is kept where other events are dropped, as long as the queue is below its hard mark, unless the filter
        leaves it out. With ``last`` the subscription ends with it, and ``run`` is a record of kind LAST.
        """
        if last and subscription.replay is not None:
            subscription = subscription.replay.abandon()
        if subscription.ended:
            return
        predicate = subscription.filter
        if (
            predicate is not None
            and not last
            and not predicate(properties_of(run), _NODE.unpack_from(header)[0] if predicate.by_node else 0)
        ):
            self.left_out += 1
            return
        if subscription.queued_bytes > self.marks.hard and not last:
            self._fall_back(subscription)
            self._miss(subscription, topic_id, seq, seq)
            return
        if subscription.gaps:
            self.tell_gaps(subscription)
        self._position += 1
        item = Item(header, run, 0, seq, seq, self._position)
        self._count(subscription, item)
        subscription.queue.append(item)
        self._touch(subscription)
        if last:
            self._end(subscription)

    def topic_removed(self, topic_id: int, last_seq: int) -> None:
        """Tell the subscribers of a topic, whose last event was ``last_seq``; those that have no other end with it."""
        catching_up = [one for one, its in self.replays.items() if its.topic_removed(topic_id, last_seq)]
        for subscription in [*self.by_topic.get(topic_id, ()), *catching_up]:
            name = subscription.topics[topic_id]
            self._leave_topic(subscription, topic_id)
            final = len(subscription.topics) == 1
            self.notify(
                subscription,
                Notice(NoticeCode.TOPIC_REMOVED, name, reason="the topic was removed", final=final),
            )
            del subscription.topics[topic_id]

    def shut_down(self, reason: str, now: int, code: NoticeCode = NoticeCode.SHUTDOWN) -> None:
        """End every subscription: the agent ends, or what it had to give them."""
        self._tell_positions()
        for subscription in self.subscriptions():
            self.notify(subscription, Notice(code, reason=reason, final=True))
        self.flush(now)

    # --- what goes --------------------------------------------------------------------------------------------

    def flush(self, now: int) -> None:
        """Write what the burst brought, and see who is too slow."""
        self._now = now
        if self._dirty:
            self._write_all()
        if self.replays:
            self._bound_held()  # also where nobody else looks: what waits for those that catch up
        if self.full and self.budget.used_up(now):
            self._fall_back_all()
        if self._dirty:  # what that has made room for, or gaps of
            self._write_all()
        if now >= self._tick_at:
            self._tick(now)

    def writable(self, subscription: Subscription, now: int) -> None:
        """The event socket has room again."""
        catching_up = subscription.replay
        if catching_up is not None:
            catching_up.look_away()
            if not subscription.queue:
                catching_up.feed()
        elif not subscription.blocked:
            return
        if subscription.blocked:
            subscription.blocked = False
            self.watcher.watch_writable(subscription, False)
        self._touch(subscription)
        self.flush(now)

    def _tick(self, now: int) -> None:
        self._tick_at = now + SUBSCRIPTION_TICK_NS
        self._judged = None
        self._tell_positions()
        self.watcher.tick(now)
        if self._dirty:  # it had something to say
            self._write_all()

    def _tell_positions(self) -> None:
        """Where filters have left things out since their subscriptions last got something, say how far that goes."""
        for subscription in list(self._passed):
            if subscription.queue or subscription.gaps or subscription.ended or subscription.replay:
                continue  # what waits would be taken for something that it has got
            del self._passed[subscription]
            if subscription.passed:
                self.watcher.left_out(subscription, subscription.passed)
                subscription.passed = {}

    def deadline(self) -> int | None:
        """When ``flush`` is to be called though nothing happens."""
        return self.budget.deadline()

    def _touch_line(self, line: Line) -> None:
        for subscription in line.subscriptions.values():
            if subscription.callback:
                self._touch(subscription)
                return

    def _write_all(self) -> None:
        self._unflushed_bytes = 0
        while self._dirty:
            dirty = self._dirty
            self._dirty = []
            lines: list[Line] = []
            for subscription in dirty:
                subscription.dirty = False
                line = subscription.line
                if not subscription.callback:
                    if subscription.queue and not subscription.blocked:
                        self._write(subscription, _NO_LIMIT)
                elif not line.dirty:
                    line.dirty = True
                    lines.append(line)
            for line in lines:
                line.dirty = False
                self._write_line(line)
            for subscription in dirty:
                self._look(subscription)
            self._bound_held()

    def _write_line(self, line: Line) -> None:
        """Write the callback subscriptions of a connection in the order of the log, as far as nobody blocks."""
        subscriptions = line.subscriptions
        if len(subscriptions) == 1:
            (only,) = subscriptions.values()
            if only.queue and not only.blocked:
                self._write(only, _NO_LIMIT)
            return
        heads = [
            (s.queue[0].position, s.number, s)
            for s in subscriptions.values()
            if s.callback and s.queue and not (s.blocked and s.out_of_line)
        ]
        heapq.heapify(heads)
        while heads:
            position, number, subscription = heapq.heappop(heads)
            if subscription.blocked:
                return  # in line: all wait for it
            limit = max(heads[0][0], position + 1) if heads else _NO_LIMIT
            if not self._write(subscription, limit) and not subscription.out_of_line:
                return
            if subscription.queue and not subscription.blocked:
                heapq.heappush(heads, (subscription.queue[0].position, number, subscription))

    def _write(self, subscription: Subscription, limit: int) -> bool:
        """Write the queue's items before position ``limit`` in as few messages as they fit; False if it blocked."""
        queue = subscription.queue
        line = subscription.line
        while queue and (head := queue[0]).position < limit:
            if subscription.lost and head is not subscription.begun:  # what was lost was behind that
                self._put_gaps_first(subscription)
                head = queue[0]
            if head.size > _FRAME_ROOM:
                buffers, written, whole = self._piece(subscription, head)
                records = 1
            else:
                buffers, written, records = self._records(queue, limit)
                whole = True
            turn = line.turn + 1 if subscription.callback else 0
            buffers[0] = EVENT_HEADER.pack(line.connection, subscription.number, turn, records, 0)
            try:
                subscription.socket.sendmsg(buffers, (), _SEND_FLAGS)
            except (BlockingIOError, InterruptedError):
                subscription.blocked = True
                self.watcher.watch_writable(subscription, True)
                return False
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    subscription.blocked = True
                    self.watcher.watch_writable(subscription, True)
                    return False
                # closed by its owner, or lent with too small a buffer (EMSGSIZE)
                self.remove(subscription, self._now)
                self.watcher.subscription_broken(subscription)
                return True
            self.frames += 1
            subscription.sent_bytes += FRAME_HEADER_BYTES + written
            subscription.sent = (head.topic_id, head.first_seq)
            if not whole:
                subscription.begun_bytes = RUN_BYTES + (subscription.begun_bytes if subscription.begun else 0)
                subscription.begun = head
                continue
            if turn:
                line.turn = turn
            self._written(subscription, records)
        if not queue and subscription.dropping:
            self._drained(subscription)
        return True

    @staticmethod
    def _records(queue: deque[Item], limit: int) -> tuple[list[bytes | memoryview], int, int]:
        """What of the queue's items before position ``limit`` fits one message: buffers behind one for its header,
        their bytes, how many records they are."""
        buffers: list[bytes | memoryview] = [b""]
        room = _FRAME_ROOM
        records = 0
        for item in queue:
            if item.position >= limit or item.size > room or records == RECORDS_PER_FRAME:
                break
            room -= item.size
            records += 1
            buffers += (item.header, item.body)
        return buffers, _FRAME_ROOM - room, records

    @staticmethod
    def _piece(subscription: Subscription, item: Item) -> tuple[list[bytes | memoryview], int, bool]:
        """The next piece of a run that is too large for a message, as ``_records``, and whether it is the last one."""
        begin = subscription.begun_bytes if subscription.begun is item else 0
        piece = memoryview(item.body)[begin : begin + RUN_BYTES]
        fields = RECORD_HEADER.unpack(item.header)
        header = RECORD_HEADER.pack(
            RECORD_HEADER_BYTES + len(piece), RecordKind.PART, fields[2], begin // RUN_BYTES, *fields[4:]
        )
        return [b"", header, piece], RECORD_HEADER_BYTES + len(piece), begin + len(piece) == len(item.body)
