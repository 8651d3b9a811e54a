"""What is kept of topics for subscribers who begin earlier than now. Part of the replicated state.

Whole runs are kept, by reference. What is kept is a function of the ordered log: runs go when a newer one of their
topic comes, when the topic is altered, with a view, or when all topics together hold too much; time is the
``order_time`` of what is ordered. Adding a run costs the same whatever it holds. The bounds count events all the
same: ``first_seq`` says exactly which event is the first, and only that walks into the one run at the edge.

An agent keeps the events of its local topics by the same rules, in a ``Retained`` of its own.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable
from itertools import islice
from operator import itemgetter
from typing import Final, NamedTuple

import msgspec

from ocfcluster import limits
from ocfcluster.errors import MalformedRun, MalformedSnapshot
from ocfcluster.limits import RETAINED_RUN_OVERHEAD_BYTES, RUN_HEADER_BYTES, SECOND_NS
from ocfcluster.protocol.effects import Delivery
from ocfcluster.protocol.settings import U32, U64, Counted
from ocfcluster.wire.run import LENGTHS_TABLE, RunKind, check_run, read_header
from ocfcluster.wire.topics import Retention

_SEQ: Final = 4  # places in a Delivery
_ORDER_TIME: Final = 9
_seq_of: Final = itemgetter(_SEQ)
_time_of: Final = itemgetter(_ORDER_TIME)
_NO_BOUND: Final = 1 << 62


class KeptTopic:
    """The newest runs of one topic, without a hole between them."""

    __slots__ = ("retention", "runs", "events", "bytes", "_most_events", "_most_bytes", "_longest_ns")

    def __init__(self, retention: Retention) -> None:
        self.runs: deque[Delivery] = deque()
        self.events = 0  # in the runs that are kept, those at the edge included
        self.bytes = 0  # of whole runs, with their overhead
        self.bound(retention)

    def bound(self, retention: Retention) -> None:
        """From here on these bounds count."""
        self.retention = retention
        self._most_events = retention.events or _NO_BOUND
        self._most_bytes = min(retention.bytes or _NO_BOUND, limits.RETAINED_BYTES_PER_TOPIC)
        self._longest_ns = retention.seconds * SECOND_NS or _NO_BOUND

    def add(self, delivery: Delivery) -> None:
        """The newest run."""
        self.runs.append(delivery)
        self.events += delivery[2] - delivery[3]
        self.bytes += len(delivery[0]) + RETAINED_RUN_OVERHEAD_BYTES
        self.drop_old(delivery[_ORDER_TIME])

    def drop_old(self, clock: int) -> None:
        """Let go of the runs none of whose events is within the bounds."""
        runs = self.runs
        oldest_time = clock - self._longest_ns
        while runs:
            run, _, count, skip, _, _, _, _, _, order_time = runs[0]
            events = self.events - count + skip
            size = self.bytes - len(run) - RETAINED_RUN_OVERHEAD_BYTES
            if events < self._most_events and size < self._most_bytes and order_time >= oldest_time:
                return
            runs.popleft()
            self.events = events
            self.bytes = size

    def drop_to(self, most_bytes: int) -> None:
        """Let go of the oldest runs until no more than so many bytes are left."""
        runs = self.runs
        while self.bytes > most_bytes:
            oldest = runs.popleft()
            self.events -= oldest.count - oldest.skip
            self.bytes -= len(oldest.run) + RETAINED_RUN_OVERHEAD_BYTES

    def first_seq(self, clock: int) -> int:
        """The seq of the first event within the bounds at ``clock``, 0 if there is none."""
        runs = self.runs
        recent = bisect_left(runs, clock - self._longest_ns, key=_time_of)
        if recent == len(runs):
            return 0
        end = runs[-1].seq + runs[-1].count - runs[-1].skip
        first = max(runs[recent].seq, end - self._most_events)
        if not recent:  # all but the oldest run are within the bytes
            oldest = runs[0]
            newer = self.bytes - len(oldest.run) - RETAINED_RUN_OVERHEAD_BYTES
            first = max(first, oldest.seq + _too_many(oldest, self._most_bytes - newer))
        return first if first < end else 0

    def cut(self, clock: int) -> None:
        """Let go also of those events of the run at the edge that are beyond the bounds, for good."""
        self.drop_old(clock)
        first = self.first_seq(clock)
        if not first:
            self.drop_to(0)
            return
        oldest = self.runs[0]
        while oldest.seq + oldest.count - oldest.skip <= first:  # all of it is beyond them
            self.runs.popleft()
            self.events -= oldest.count - oldest.skip
            self.bytes -= len(oldest.run) + RETAINED_RUN_OVERHEAD_BYTES
            oldest = self.runs[0]
        if first > oldest.seq:
            self.events -= first - oldest.seq
            self.runs[0] = _from(oldest, first)

    def portion(self, seq: int, clock: int, most_runs: int, most_bytes: int) -> list[Delivery]:
        """The oldest runs with events from ``seq`` on, without those before; at least one if there is any."""
        first = self.first_seq(clock)
        if not first:
            return []
        first = max(first, seq)
        runs = self.runs
        begin = bisect_right(runs, first, key=_seq_of) - 1
        taken: list[Delivery] = []
        for delivery in islice(runs, begin, begin + most_runs):
            if taken and len(delivery.run) > most_bytes:
                break
            most_bytes -= len(delivery.run)
            if delivery.seq < first:
                if delivery.seq + delivery.count - delivery.skip <= first:
                    continue  # it is behind the newest
                delivery = _from(delivery, first)
            taken.append(delivery)
        return taken


class Retained:
    """What is kept of all topics that keep something.

    ``clock`` is the order_time up to which events have grown old: of the last run that was kept, command or view.
    """

    __slots__ = ("topics", "bytes", "clock", "_most_bytes")

    def __init__(self, most_bytes: int = limits.RETAINED_BYTES) -> None:
        self.topics: dict[int, KeptTopic] = {}
        self.bytes = 0
        self.clock = 0
        self._most_bytes = most_bytes

    def add(self, delivery: Delivery) -> None:
        """A run of a topic in ``topics``."""
        topic = self.topics[delivery[1]]
        before = topic.bytes
        topic.add(delivery)
        self.clock = delivery[_ORDER_TIME]
        self.bytes += topic.bytes - before
        if self.bytes > self._most_bytes:
            self._make_room()

    def alter(self, topic_id: int, retention: Retention, clock: int) -> None:
        """The topic has these bounds from here on. What was beyond the old ones does not come back."""
        topic = self.topics.get(topic_id)
        if not retention.keeps:
            self.forget(topic_id)
        elif topic is None:
            self.topics[topic_id] = KeptTopic(retention)
        elif topic.retention != retention:
            before = topic.bytes
            topic.cut(clock)
            topic.bound(retention)
            topic.cut(clock)
            self.bytes += topic.bytes - before

    def forget(self, topic_id: int) -> None:
        topic = self.topics.pop(topic_id, None)
        if topic is not None:
            self.bytes -= topic.bytes

    def grow_old(self, clock: int) -> None:
        """Let go of what has grown old in topics that get no new events, too."""
        self.clock = clock
        for topic in self.topics.values():
            before = topic.bytes
            topic.drop_old(clock)
            self.bytes += topic.bytes - before

    def _make_room(self) -> None:
        """Those topics that keep most lose their oldest runs, down to one level for all of them: who keeps little
        loses nothing. A sixteenth more than need be goes, so that this is done seldom."""
        self.grow_old(self.clock)
        if self.bytes <= self._most_bytes:
            return
        left = self._most_bytes - self._most_bytes // 16
        level = 0
        sizes = sorted(topic.bytes for topic in self.topics.values())
        for place, size in enumerate(sizes):
            level = left // (len(sizes) - place)
            if size > level:
                break
            left -= size
        for topic in self.topics.values():
            if topic.bytes > level:
                self.bytes -= topic.bytes
                topic.drop_to(level)
                self.bytes += topic.bytes

    # --- who asks -----------------------------------------------------------------------------------------------

    def first_seq(self, topic_id: int) -> int:
        """The seq of the first event that is kept, 0 if there is none."""
        topic = self.topics.get(topic_id)
        return 0 if topic is None else topic.first_seq(self.clock)

    def portion(self, topic_id: int, seq: int, most_runs: int, most_bytes: int) -> list[Delivery]:
        """Some of what is kept, from ``seq`` on; none: nothing of that is kept (any more)."""
        topic = self.topics.get(topic_id)
        return [] if topic is None else topic.portion(seq, self.clock, most_runs, most_bytes)

    # --- snapshots ----------------------------------------------------------------------------------------------

    def taken(self) -> Taken:
        """All of it as it is now: a reference per run. What a snapshot is made of, in whatever thread."""
        return Taken(
            self.clock,
            [(topic_id, list(topic.runs)) for topic_id, topic in self.topics.items() if topic.runs],
        )

    def restore(self, image: RetainedImage, take: Callable[[int], bytes], last_seq: dict[int, int]) -> None:
        """Fill the topics with what ``image`` names; ``take`` gives so many bytes of the snapshot.

        Raises MalformedSnapshot for what cannot be.
        """
        self.clock = image.clock
        for topic_id, seq, rows in image.topics:
            topic = self.topics.get(topic_id)
            if topic is None or topic.runs or not rows:
                raise MalformedSnapshot(f"events are kept of topic {topic_id}, which keeps none")
            last_ev_id = last_time = 0
            for size, skip, ev_id, node_id, incarnation, m_sequence, order_time in rows:
                run = take(size)
                try:
                    header = check_run(run)
                except MalformedRun as error:
                    raise MalformedSnapshot(f"a run that is kept: {error}") from None
                fresh = header.count - skip
                if (
                    (header.kind, header.topic_id) != (RunKind.PUBLICATION, topic_id)
                    or fresh < 1 or ev_id <= last_ev_id or not last_time <= order_time <= self.clock
                ):  # fmt: skip
                    raise MalformedSnapshot(f"a run that is kept of topic {topic_id} cannot be in its place")
                topic.runs.append(
                    Delivery(
                        run, topic_id, header.count, skip, seq, ev_id, node_id, incarnation, m_sequence, order_time
                    )
                )  # fmt: skip
                topic.events += fresh
                topic.bytes += size + RETAINED_RUN_OVERHEAD_BYTES
                seq += fresh
                last_ev_id, last_time = ev_id + fresh - 1, order_time
            if seq != last_seq.get(topic_id, 0) + 1:
                raise MalformedSnapshot(f"what is kept of topic {topic_id} does not end with its last event")
            self.bytes += topic.bytes


KeptRun = tuple[
    Counted, U32, Counted, U32, U64, U32, Counted
]  # bytes, skip, ev_id, node_id, incarnation, m_sequence, time


class RetainedImage(msgspec.Struct, array_like=True, frozen=True):
    """What is kept, in a snapshot. The seqs of a topic's runs follow by counting."""

    clock: Counted = 0
    topics: list[tuple[U32, Counted, list[KeptRun]]] = []  # id, first seq, runs


class Taken(NamedTuple):
    """What was kept at one place of the order; nothing of it changes any more."""

    clock: int
    topics: list[tuple[int, list[Delivery]]]

    def image(self) -> RetainedImage:
        """What a snapshot's header says of it; ``blobs`` are the runs, in the same order."""
        return RetainedImage(
            self.clock,
            [
                (
                    topic_id,
                    runs[0].seq,
                    [
                        (len(run), skip, ev_id, node_id, incarnation, m_sequence, order_time)
                        for run, _, _, skip, _, ev_id, node_id, incarnation, m_sequence, order_time in runs
                    ],
                )
                for topic_id, runs in self.topics
            ],
        )

    def blobs(self) -> list[bytes]:
        return [delivery[0] for _, runs in self.topics for delivery in runs]


class TopicSource:
    """One topic's kept events, for ``ipc.replay``, also when the topic has been altered or removed meanwhile."""

    __slots__ = ("_retained", "_last_seq", "_topic_id")

    def __init__(
        self, retained: Callable[[], Retained], last_seq: Callable[[int], int], topic_id: int
    ) -> None:
        self._retained = retained
        self._last_seq = last_seq
        self._topic_id = topic_id

    @property
    def last_seq(self) -> int:
        return self._last_seq(self._topic_id)

    def portion(self, seq: int, most_runs: int, most_bytes: int) -> list[Delivery]:
        return self._retained().portion(self._topic_id, seq, most_runs, most_bytes)


def _from(delivery: Delivery, seq: int) -> Delivery:
    """The run without its events before ``seq``."""
    ahead = seq - delivery.seq
    return delivery._replace(skip=delivery.skip + ahead, seq=seq, ev_id=delivery.ev_id + ahead)


def _too_many(delivery: Delivery, room: int) -> int:
    """How many of the run's first events do not fit into ``room`` bytes, with what the run itself costs."""
    size = len(delivery.run) + RETAINED_RUN_OVERHEAD_BYTES
    if size <= room:
        return 0
    header = read_header(delivery.run)
    fresh = delivery.count - delivery.skip
    if header.event_length == LENGTHS_TABLE:
        lengths = struct.unpack_from(f"<{fresh}I", delivery.run, RUN_HEADER_BYTES + 4 * delivery.skip)
    else:
        lengths = (header.event_length,) * fresh
    size -= _data_bytes(delivery, sum(lengths))
    fit = 0
    for length in reversed(lengths):
        size += length
        if size > room:
            break
        fit += 1
    return fresh - fit


def _data_bytes(delivery: Delivery, fresh_bytes: int) -> int:
    """Bytes of all events in the run, those that are skipped included."""
    header = read_header(delivery.run)
    if header.event_length != LENGTHS_TABLE:
        return header.event_length * header.count
    if not delivery.skip:
        return fresh_bytes
    return sum(struct.unpack_from(f"<{header.count}I", delivery.run, RUN_HEADER_BYTES))
