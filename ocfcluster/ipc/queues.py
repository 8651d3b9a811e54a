"""The queues of an agent's subscriptions: what they hold, and what happens where a subscriber is too slow.

- **Full.** Beyond a mark of queued bytes a subscription is full; the caller then closes the cluster's window. When
  the budget for that (``slow.SlowBudget``) is used up, or beyond the hard mark, it *drops*: it is given what is
  queued, then a GAP notice per topic with the first and last seq it missed, then it goes on. One that asked for it
  is never full: at the mark it loses its oldest events (DROP_OLDEST; the gap comes before what is left), or ends
  (DISCONNECT).
- **Memory.** Items are shared; what all queues hold together is bounded, and beyond that the longest queue of all
  is given up for a gap: first its runs, then also what its subscription alone was given. Notices are never lost.
"""

from __future__ import annotations

from heapq import heapify, heappop, heapreplace
from typing import TYPE_CHECKING, NamedTuple

from ocfcluster.ipc.slow import SlowBudget
from ocfcluster.ipc.subscription import Item, Line, Subscription, Watcher
from ocfcluster.limits import (
    QUEUED_ITEM_OVERHEAD_BYTES,
    RECORD_HEADER_BYTES,
    SUBSCRIPTION_QUEUE_BYTES,
    SUBSCRIPTION_QUEUE_HARD_BYTES,
    SUBSCRIPTION_QUEUES_BYTES,
)
from ocfcluster.wire.frames import (
    RECORD_HEADER,
    Notice,
    NoticeCode,
    OnSlow,
    RecordFlags,
    RecordKind,
    encode_notice,
    read_notice,
)
from ocfcluster.wire.run import read_header

if TYPE_CHECKING:
    from ocfcluster.ipc.replay import Replay


class Marks(NamedTuple):
    """Bytes queued at which a subscription is full, that it may never have, and that all together may hold."""

    full: int = SUBSCRIPTION_QUEUE_BYTES
    hard: int = SUBSCRIPTION_QUEUE_HARD_BYTES
    held: int = SUBSCRIPTION_QUEUES_BYTES


class Queues:
    """What waits to be written to all subscriptions."""

    def __init__(self, watcher: Watcher, budget: SlowBudget, marks: Marks) -> None:
        self.watcher = watcher
        self.budget = budget
        self.marks = marks
        self.by_topic: dict[int, list[Subscription]] = {}
        self.lines: dict[int, Line] = {}
        self.full: dict[Subscription, None] = {}
        self.dropping: dict[Subscription, None] = {}
        self.replays: dict[Subscription, Replay] = {}
        self.held_bytes = 0  # of distinct items in any queue
        self.gaps = 0  # counters, for status
        self.fallbacks = 0
        self.dropped = 0  # runs that subscriptions with DROP_OLDEST lost
        self.disconnected = 0  # subscriptions that ended at the mark
        self._position = 0
        self._dirty: list[Subscription] = []
        self._now = 0

    def subscriptions(self) -> list[Subscription]:
        return [s for line in self.lines.values() for s in line.subscriptions.values()]

    def stand_ins(self) -> list[Subscription]:
        """Those that hold back what is to come later for subscriptions that catch up."""
        return [stand_in for one in self.replays.values() for stand_in in one.stand_ins]

    def _leave_topic(self, subscription: Subscription, topic_id: int) -> None:
        subscribers = self.by_topic.get(topic_id)
        if subscribers is not None and subscription in subscribers:
            subscribers.remove(subscription)
            if not subscribers:
                del self.by_topic[topic_id]

    def _touch(self, subscription: Subscription) -> None:
        if not subscription.dirty:
            subscription.dirty = True
            self._dirty.append(subscription)

    # --- notices ------------------------------------------------------------------------------------------------

    def notify(self, subscription: Subscription, notice: Notice) -> None:
        """Queue a notice behind what the subscription was given so far, with what it missed named before it."""
        if notice.final and subscription.replay is not None:
            subscription = subscription.replay.abandon()
        if subscription.ended:
            return
        if subscription.gaps:
            self.tell_gaps(subscription)
        self._queue_notice(subscription, notice)
        if notice.final:
            self._end(subscription)

    def _end(self, subscription: Subscription) -> None:
        """What is queued now is the last of it."""
        subscription.ended = True
        for topic_id in subscription.topics:
            self._leave_topic(subscription, topic_id)

    def _queue_notice(self, subscription: Subscription, notice: Notice) -> None:
        self._position += 1
        subscription.queue.append(self._notice_item(subscription, notice, self._position))
        self._touch(subscription)

    def _notice_item(self, subscription: Subscription, notice: Notice, position: int) -> Item:
        """A notice for one subscription, counted; the caller puts it into the queue."""
        body = encode_notice(notice)
        header = RECORD_HEADER.pack(
            RECORD_HEADER_BYTES + len(body), RecordKind.NOTICE, RecordFlags.NOTICE | RecordFlags.LOCAL,
            0, 0, 0, 0, 0, notice.last_seq, 0, 0,
        )  # fmt: skip
        item = Item(header, body, 0, 0, 0, position)
        self._count(subscription, item)
        return item

    # --- what is held -------------------------------------------------------------------------------------------

    def _count(self, subscription: Subscription, item: Item) -> None:
        item.holders = 1
        self.held_bytes += item.size + QUEUED_ITEM_OVERHEAD_BYTES
        subscription.queued_bytes += item.size + QUEUED_ITEM_OVERHEAD_BYTES

    def _written(self, subscription: Subscription, records: int) -> None:
        queue = subscription.queue
        freed = 0
        subscription.begun = None  # it is the first, if any
        for _ in range(records):
            item = queue.popleft()
            freed += item.size
            item.holders -= 1
            if not item.holders:
                self.held_bytes -= item.size + QUEUED_ITEM_OVERHEAD_BYTES
        subscription.queued_bytes -= freed + records * QUEUED_ITEM_OVERHEAD_BYTES

    # --- the slow ---------------------------------------------------------------------------------------------

    def _look(self, subscription: Subscription) -> None:
        """Set or clear the full mark after writing."""
        if subscription.dropping:
            if not subscription.queue and not subscription.blocked:
                self._drained(subscription)
            return
        waiting = subscription.waiting_bytes
        if waiting > self.marks.full:
            if subscription.on_slow is OnSlow.BLOCK:
                self._set_full(subscription, True, self._now)
            elif subscription.on_slow is OnSlow.DROP_OLDEST:
                self._drop_oldest(subscription, self.marks.full)
            elif not subscription.ended:
                self._disconnect(subscription)
        elif subscription.full and waiting <= self.marks.full // 2:
            self._set_full(subscription, False, self._now)

    def _bound_held(self) -> None:
        """Where all queues together hold too much, give up the longest that can be, and so on."""
        if self.held_bytes <= self.marks.held:
            return
        holding = [*self.subscriptions(), *self.stand_ins()]
        longest = [(-one.queued_bytes, place, one) for place, one in enumerate(holding)]
        heapify(longest)
        while longest and self.held_bytes > self.marks.held:
            _, place, one = longest[0]
            if self._give_up(one):
                heapreplace(longest, (-one.queued_bytes, place, one))
            else:
                heappop(longest)  # only notices are left in it: another one has to do

    def _set_full(self, subscription: Subscription, full: bool, now: int) -> None:
        if subscription.full == full:
            return
        subscription.full = full
        if full:
            if not self.full:
                self.budget.begin(now)
                self.watcher.full_changed(True)
            self.full[subscription] = None
        else:
            del self.full[subscription]
            if not self.full:
                self.budget.end(now)
                self.watcher.full_changed(False)
        line = subscription.line
        self.watcher.own_full_changed(
            line.connection, [s.number for s in line.subscriptions.values() if s.full]
        )

    def _fall_back_all(self) -> None:
        for subscription in list(self.full):
            self._fall_back(subscription)

    def _fall_back(self, subscription: Subscription) -> None:
        subscription.dropping = subscription.apart = True
        self.dropping[subscription] = None
        self.fallbacks += 1
        self._set_full(subscription, False, self._now)
        self._touch(subscription)  # one with an empty queue, or held up by its line alone, goes on at once

    def _miss(self, subscription: Subscription, topic_id: int, first_seq: int, last_seq: int) -> None:
        known = subscription.gaps.get(topic_id)
        subscription.gaps[topic_id] = (first_seq if known is None else known[0], last_seq)

    def _drained(self, subscription: Subscription) -> None:
        """What was queued is written: name what was missed, and go on as before."""
        self.dropping.pop(subscription, None)
        if not subscription.ended:
            self.tell_gaps(subscription)
        if subscription.replay is not None:
            subscription.replay.look_out()
        else:
            subscription.dropping = False
            subscription.apart = subscription.filter is not None

    def tell_gaps(self, subscription: Subscription) -> None:
        """Name what was missed, behind what is queued."""
        gaps = subscription.gaps
        subscription.gaps = {}
        for topic_id, gap in gaps.items():
            self._position += 1
            subscription.queue.append(
                self._gap_item(subscription, topic_id, gap, _too_slow(subscription), self._position)
            )
            self._touch(subscription)

    def _gap_item(
        self, subscription: Subscription, topic_id: int, gap: tuple[int, int], reason: str, position: int
    ) -> Item:
        """The notice of a gap, counted; the caller puts it into the queue."""
        self.gaps += 1
        name = subscription.names.get(topic_id, "")
        item = self._notice_item(subscription, Notice(NoticeCode.GAP, name, *gap, reason), position)
        item.topic_id = -topic_id
        item.first_seq, item.last_seq = gap
        return item

    # --- those that asked for another policy ------------------------------------------------------------------

    def _drop_oldest(self, subscription: Subscription, most: int) -> None:
        """Lose runs from the head of the queue until ``most`` bytes are left; the newest item stays in any case.

        Notices stay, and a run of which the last frame had a piece: else one that reads slowly would never get a large
        one. Gaps that were to be told and are not written yet are taken back, to be told as one.
        """
        queue = subscription.queue
        kept: list[Item] = []
        begun = subscription.begun
        if begun is not None:
            kept.append(queue.popleft())
        while len(queue) > 1 and subscription.waiting_bytes > most:
            item = queue[0]
            if item.topic_id:
                self._lose(subscription, item)
                self._written(subscription, 1)
                subscription.begun = begun
            else:
                kept.append(queue.popleft())
        queue.extendleft(reversed(kept))

    def _lose(self, subscription: Subscription, item: Item) -> None:
        """A run at the head of the queue is not given, or a gap there is not told yet."""
        topic_id = abs(item.topic_id)
        _widen(subscription.lost, topic_id, item.first_seq, item.last_seq)
        self.dropped += item.topic_id > 0

    def _put_gaps_first(self, subscription: Subscription) -> None:
        """What was lost before the queue is told before it, but behind the gaps of what came before that."""
        queue = subscription.queue
        position = queue[0].position
        lost, subscription.lost = subscription.lost, {}
        begins = {subscription.names.get(topic_id, ""): gap[0] for topic_id, gap in lost.items()}
        earlier: list[Item] = []
        while queue and _is_gap_before(queue[0], begins):
            earlier.append(queue.popleft())
        for topic_id, gap in reversed(lost.items()):
            queue.appendleft(self._gap_item(subscription, topic_id, gap, _too_slow(subscription), position))
        queue.extendleft(reversed(earlier))

    def _disconnect(self, subscription: Subscription) -> None:
        """The subscription asked to end rather than to hold anybody up: its queue is lost, told, and the last."""
        for item in subscription.queue:
            if item.topic_id:
                self._lose(subscription, item)
        notices = self._discard(subscription)
        for item in notices:
            self._count(subscription, item)
            subscription.queue.append(item)
        self.disconnected += 1
        reason = f"the subscriber was too slow: more than {self.marks.full} bytes waited for it"
        self.notify(subscription, Notice(NoticeCode.SLOW, reason=reason, final=True))

    def _discard(self, subscription: Subscription) -> list[Item]:
        """Empty the queue; the notices that were in it are given back."""
        items = list(subscription.queue)
        self._written(subscription, len(items))
        return [item for item in items if not item.topic_id]

    def _give_up(self, subscription: Subscription) -> bool:
        """Turn a queue into gaps; False where nothing is in it that can be.

        What was given to this subscription alone goes only when no run is left. Notices stay, and what a subscription
        ends with: there are a few for each of its topics at most.
        """
        queue = subscription.queue
        if subscription.on_slow is OnSlow.DROP_OLDEST and len(queue) > 1 and not subscription.dropping:
            before = subscription.queued_bytes
            self._drop_oldest(subscription, before // 2)
            if subscription.queued_bytes < before:
                return True
        runs = any(item.topic_id > 0 for item in queue)
        missed: dict[int, tuple[int, int]] = {}
        kept: list[Item] = []
        gaps = 0
        for item in queue:
            topic_id = abs(item.topic_id) if item.topic_id or runs else _topic_given(item)
            if topic_id:
                _widen(missed, topic_id, item.first_seq, item.last_seq)
                gaps += item.topic_id < 0
            else:
                kept.append(item)
        gone = len(queue) - len(kept)
        # Of one that has ended gaps are put back: a record less at least, so that this comes to an end.
        if not gone or (subscription.ended and gone == gaps == len(missed)):
            return False
        if not subscription.dropping:
            self._fall_back(subscription)
        for topic_id, gap in subscription.gaps.items():
            _widen(missed, topic_id, *gap)
        if subscription.begun is not None:  # what was lost was behind it
            for topic_id, gap in subscription.lost.items():
                _widen(missed, topic_id, *gap)
            subscription.lost = {}
        subscription.gaps = missed
        self._written(subscription, len(queue))
        if subscription.ended:  # its last notice is among those that stay, so the gaps go before it
            self.tell_gaps(subscription)
        for item in kept:
            self._count(subscription, item)
            queue.append(item)
        self._touch(subscription)
        return True


def _topic_given(item: Item) -> int:
    """The topic of a record that one subscription alone was given; 0 of a notice, and of a record that ends it."""
    kind = RECORD_HEADER.unpack(item.header)[1]
    return read_header(item.body).topic_id if kind == RecordKind.RUN else 0


def _is_gap_before(item: Item, begins: dict[str, int]) -> bool:
    """Whether this is the notice of a gap (what is not kept any more) that ends before what ``begins`` in its topic."""
    if item.topic_id or RECORD_HEADER.unpack(item.header)[1] != RecordKind.NOTICE:
        return False
    notice = read_notice(item.body)
    return notice.code == NoticeCode.GAP and notice.last_seq < begins.get(notice.topic, 1 << 64)


def _widen(gaps: dict[int, tuple[int, int]], topic_id: int, first_seq: int, last_seq: int) -> None:
    """The gap of this topic goes as far as these, too."""
    first, last = gaps.get(topic_id, (first_seq, last_seq))
    gaps[topic_id] = (min(first, first_seq), max(last, last_seq))


def _too_slow(subscription: Subscription) -> str:
    """Why there is a gap. Its ends were missed; with a filter there may be others between them."""
    if subscription.filter is None:
        return "the subscriber was too slow"
    return "the subscriber was too slow; between these two the filter may have left out others"
