"""Local topics: events that stay on the node where they were published.

The topics themselves are part of the replicated state; their counters and producers, and what is kept of them, are
this agent's own, live as long as it does, and have ids with the bit LOCAL_ID so that nothing of theirs is taken for
the cluster's.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from typing import NamedTuple

from ocfcluster.limits import PRODUCER_RUNS_UNANSWERED, PRODUCERS_PER_NODE
from ocfcluster.protocol.effects import Delivery, Topic
from ocfcluster.protocol.retention import Retained
from ocfcluster.wire.frames import LOCAL_ID
from ocfcluster.wire.run import RunHeader


class LocalOutcome(NamedTuple):
    """Of ``count`` publications from ``first_number`` on; ``error`` is 0 or an errno."""

    first_number: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody calls
    error: int
    seq: int
    ev_id: int


class _Producer:
    __slots__ = ("next_number", "outcomes")

    def __init__(self) -> None:
        self.next_number = 1
        self.outcomes: deque[LocalOutcome] = deque(maxlen=PRODUCER_RUNS_UNANSWERED)


class LocalTopics:
    """Counters of the local topics and the producers that publish to them."""

    __slots__ = ("last_seq", "retained", "_ev_id", "_producers", "_last_producer", "_ahead")

    def __init__(self) -> None:
        self.last_seq: dict[int, int] = {}  # topic_id → seq of the last event
        self.retained = Retained()
        self._ev_id = LOCAL_ID
        self._producers: dict[int, _Producer] = {}
        self._last_producer = LOCAL_ID
        self._ahead = time.time_ns() - time.monotonic_ns()  # of the wall clock, once and for all

    def open_producer(self) -> int:
        """The id of a new producer, or 0 where there are too many."""
        if len(self._producers) >= PRODUCERS_PER_NODE:
            return 0
        self._last_producer += 1
        self._producers[self._last_producer] = _Producer()
        return self._last_producer

    def knows(self, producer_id: int) -> bool:
        return producer_id in self._producers

    def close_producer(self, producer_id: int) -> bool:
        return self._producers.pop(producer_id, None) is not None

    def clock(self) -> int:
        """In ns: what the wall clock showed at the start, and the time since. Where the wall clock jumps, nothing that
        is kept for some seconds may grow old at once, or stay for as long as it was set back."""
        return self._ahead + time.monotonic_ns()

    def settle(self, topic: Topic) -> None:
        """The topic keeps from now on what its settings say."""
        self.retained.clock = self.clock()
        self.retained.alter(topic.topic_id, topic.settings.retention, self.retained.clock)

    def delivered(self, delivery: Delivery) -> None:
        """A run of a local topic got its place."""
        if delivery.topic_id in self.retained.topics:
            self.retained.add(delivery)

    def forget_topic(self, topic_id: int) -> None:
        self.last_seq.pop(topic_id, None)
        self.retained.forget(topic_id)

    def forget_history(self) -> None:
        """The cluster's history has ended, and the local topics' events and producers with it."""
        self.last_seq.clear()
        self.retained = Retained()
        self._producers.clear()

    def take_ev_id(self) -> int:
        """The id of a local event that belongs to no topic of this kind."""
        self._ev_id += 1
        return self._ev_id

    def publish(self, header: RunHeader, refused: int) -> tuple[list[LocalOutcome], int, LocalOutcome | None]:
        """Number a checked run: its outcomes, how many of its publications are repeats, and what is new in it.

        ``refused``: the errno with which the whole run is refused, or 0. Nothing is delivered if the third is None.
        """
        producer = self._producers.get(header.producer)
        first, count = header.first_number, header.count
        if producer is None:
            return [LocalOutcome(first, count, errno.EBADF, 0, 0)], 0, None
        if first > producer.next_number or first < 1:
            return [LocalOutcome(first, count, errno.EILSEQ, 0, 0)], 0, None
        outcomes: list[LocalOutcome] = []
        skip = min(producer.next_number - first, count)
        if skip:
            outcomes += _repeats(producer, first, first + skip)
        fresh = count - skip
        if not fresh:
            return outcomes, skip, None
        number = first + skip
        producer.next_number = number + fresh
        if refused:
            outcome = LocalOutcome(number, fresh, refused, 0, 0)
        else:
            seq = self.last_seq.get(header.topic_id, 0) + 1
            outcome = LocalOutcome(number, fresh, 0, seq, self._ev_id + 1)
            self.last_seq[header.topic_id] = seq + fresh - 1
            self._ev_id += fresh
        producer.outcomes.append(outcome)
        outcomes.append(outcome)
        return outcomes, skip, None if refused else outcome


def _repeats(producer: _Producer, at: int, end: int) -> list[LocalOutcome]:
    """The outcomes of numbers ``at`` to ``end`` that came before; EIO for what is no longer remembered."""
    answers = []
    for known in producer.outcomes:
        known_end = known.first_number + known.count
        if known_end <= at or known.first_number >= end:
            continue
        if known.first_number > at:
            answers.append(LocalOutcome(at, known.first_number - at, errno.EIO, 0, 0))
            at = known.first_number
        ahead = 0 if known.error else at - known.first_number
        until = min(end, known_end)
        answers.append(LocalOutcome(at, until - at, known.error, known.seq + ahead, known.ev_id + ahead))
        at = until
    if at < end:
        answers.append(LocalOutcome(at, end - at, errno.EIO, 0, 0))
    return answers
