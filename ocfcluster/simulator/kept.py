"""What nodes keep of topics: what the topic's settings say."""

from __future__ import annotations

from ocfcluster.limits import RETAINED_RUN_OVERHEAD_BYTES
from ocfcluster.protocol.effects import Delivery, Topic, TopicChange
from ocfcluster.protocol.retention import Retained
from ocfcluster.simulator.history import History, Item, Place
from ocfcluster.simulator.trace import Violation
from ocfcluster.wire.run import read_header, run_events
from ocfcluster.wire.topics import Retention


def check_rule(history: History, place: Place, retained: Retained, topic_id: int) -> None:
    """Whether a node that is at ``place`` keeps of a topic what its settings say, counted by events.

    Not where seconds ever were among its bounds: what commands, which nobody sees, do to the clock. Raises Violation.
    """
    if history.is_open_before(place.epoch):
        return
    model = _Model(topic_id, (history.topics or {}).get(topic_id))
    for epoch in sorted(history.segments):
        if epoch > place.epoch:
            break
        items = history.segments[epoch].items
        for item in items[: place.offset] if epoch == place.epoch else items:
            model.take(item)
    if model.has_seconds:
        return
    first = model.first_seq()
    if retained.first_seq(topic_id) != first:
        raise Violation(
            "retention",
            f"topic {topic_id} is kept from seq {retained.first_seq(topic_id)} on; by {model.retention} {first} is "
            f"right, at {place}",
        )


class _Model:
    """The events of one topic, looked at one by one."""

    def __init__(self, topic_id: int, topic: Topic | None) -> None:
        self._topic_id = topic_id
        self.retention = Retention() if topic is None else topic.settings.retention
        self.has_seconds = bool(self.retention.seconds)
        self._events: list[tuple[int, int, Delivery]] = []  # seq, bytes, run
        self._least_seq = 1

    def take(self, item: Item) -> None:
        if isinstance(item, TopicChange) and item.topic.topic_id == self._topic_id:
            old, self.retention = self.retention, item.topic.settings.retention
            self.has_seconds = self.has_seconds or bool(self.retention.seconds)
            for retention in (old, self.retention):
                self._least_seq = self._first(retention) or self._end
        elif isinstance(item, Delivery) and item.topic_id == self._topic_id:
            header = read_header(item.run)
            sizes = [len(data) for data in run_events(item.run, header)][item.skip :]
            self._events += [(item.seq + place, size, item) for place, size in enumerate(sizes)]
            if not self.retention.keeps:
                self._least_seq = self._end

    @property
    def _end(self) -> int:
        return self._events[-1][0] + 1 if self._events else 1

    def first_seq(self) -> int:
        return self._first(self.retention)

    def _first(self, retention: Retention) -> int:
        first = used = repeats = 0
        last: Delivery | None = None
        for kept, (seq, size, run) in enumerate(reversed(self._events), 1):
            if run is not last:
                last = run
                used += repeats  # a run is in memory as a whole: what it repeats is before its events
                sizes = [len(one) for one in run_events(run.run, read_header(run.run))]
                used += RETAINED_RUN_OVERHEAD_BYTES + len(run.run) - sum(sizes)
                repeats = sum(sizes[: run.skip])
            used += size
            within = kept <= (retention.events or kept) and used <= (retention.bytes or used)
            if not retention.keeps or seq < self._least_seq or not within:
                break
            first = seq
        return first
