"""What is kept of topics, against a model that looks at single events; and snapshots of it."""

from __future__ import annotations

from itertools import count

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocfcluster.errors import MalformedSnapshot
from ocfcluster.limits import RETAINED_RUN_OVERHEAD_BYTES, SECOND_NS
from ocfcluster.protocol.effects import Delivery
from ocfcluster.protocol.retention import Retained, RetainedImage
from ocfcluster.wire.run import RunKind, build_run, check_run, run_events
from ocfcluster.wire.topics import Retention

TOPIC = 16
bounds = st.builds(
    Retention,
    events=st.sampled_from([0, 0, 1, 3, 20]),
    bytes=st.sampled_from([0, 0, 100, 330, 900, 4000]),
    seconds=st.sampled_from([0, 0, 1, 5]),
)
runs = st.tuples(
    st.lists(st.binary(max_size=40), min_size=1, max_size=9) | st.lists(st.just(b"equal"), min_size=1, max_size=9),
    st.integers(0, 8),  # skipped
    st.integers(0, 3 * SECOND_NS),  # since the run before
)  # fmt: skip


class World:
    """A topic that keeps by the code, and all its events for the model."""

    def __init__(self, retained: Retained, retention: Retention) -> None:
        self.retained = retained
        self.retention = retention
        self.seq = self.clock = 0
        self.ev_ids = count(1)
        self.events: list[tuple[Delivery, int, int]] = []  # with place in the run and seq
        self.least_seq = 1  # what was dropped by old bounds does not come back
        retained.alter(TOPIC, retention, 0)

    def publish(self, events: list[bytes], skip: int, passed: int) -> Delivery:
        self.clock += passed
        run = build_run(RunKind.PUBLICATION, TOPIC, 7, 1, events)
        skip = min(skip, len(events) - 1)
        delivery = Delivery(
            run, TOPIC, len(events), skip, self.seq + 1, next(self.ev_ids) * 100, 1, 2, 3, self.clock
        )
        self.seq += len(events) - skip
        self.events += [(delivery, place, delivery.seq + place - skip) for place in range(skip, len(events))]
        if TOPIC in self.retained.topics:
            self.retained.add(delivery)
        else:
            self.least_seq = self.seq + 1
            self.retained.clock = self.clock
        return delivery

    def alter(self, retention: Retention) -> None:
        self.least_seq = self.first_seq() or self.seq + 1
        self.retention = retention
        self.retained.alter(TOPIC, retention, self.clock)
        self.least_seq = self.first_seq() or self.seq + 1

    def first_seq(self) -> int:
        """The longest end of the topic that is within all bounds, event by event."""
        retention = self.retention
        first = 0
        size = 0
        last_run: bytes | None = None
        for kept, (delivery, place, seq) in enumerate(reversed(self.events), 1):
            header = check_run(delivery.run)
            data = [len(event) for event in run_events(delivery.run, header)]
            if delivery.run is not last_run:
                size += RETAINED_RUN_OVERHEAD_BYTES + len(delivery.run) - sum(data)
                last_run = delivery.run
            size += data[place]
            within = (
                retention.keeps
                and seq >= self.least_seq
                and (not retention.events or kept <= retention.events)
                and (not retention.bytes or size <= retention.bytes)
                and (
                    not retention.seconds or delivery.order_time >= self.clock - retention.seconds * SECOND_NS
                )
            )
            if not within:
                break
            first = seq
        return first


def given_events(deliveries: list[Delivery]) -> list[tuple[int, bytes]]:
    found = []
    for one in deliveries:
        datas = list(run_events(one.run, check_run(one.run)))[one.skip :]
        found += list(enumerate(datas, one.seq))
    return found


@settings(max_examples=300, deadline=None)
@given(bounds, st.lists(runs | bounds, max_size=25))
def test_what_is_kept_is_the_longest_end_within_all_bounds(
    first: Retention, steps: list[tuple[list[bytes], int, int] | Retention]
) -> None:
    world = World(Retained(), first)
    for step in steps:
        if isinstance(step, Retention):
            world.alter(step)
        else:
            world.publish(*step)
        begin = world.first_seq()
        assert world.retained.first_seq(TOPIC) == begin
        for asked in (1, begin + 1, world.seq, world.seq + 1):
            taken = world.retained.portion(TOPIC, asked, 1000, 1 << 30)
            wanted = [
                (seq, list(run_events(one.run, check_run(one.run)))[place])
                for one, place, seq in world.events
                if begin and seq >= max(begin, asked)
            ]
            assert given_events(taken) == wanted
        small = world.retained.portion(TOPIC, 1, 2, 1)
        assert len(small) == bool(begin)  # always one, if there is any
        kept = world.retained.topics.get(TOPIC)
        assert world.retained.bytes == (kept.bytes if kept else 0)
        if kept:
            assert kept.bytes == sum(len(one.run) + RETAINED_RUN_OVERHEAD_BYTES for one in kept.runs)
            assert kept.events == sum(one.count - one.skip for one in kept.runs)


@settings(max_examples=100, deadline=None)
@given(bounds, st.lists(runs, max_size=25), st.lists(runs, max_size=5))
def test_a_snapshot_brings_it_whole(
    retention: Retention,
    before: list[tuple[list[bytes], int, int]],
    after: list[tuple[list[bytes], int, int]],
) -> None:
    world = World(Retained(), retention)
    for step in before:
        world.publish(*step)
    image = msgspec.msgpack.decode(msgspec.msgpack.encode(world.retained.taken().image()), type=RetainedImage)
    blobs = world.retained.taken().blobs()
    restored = Retained()
    restored.alter(TOPIC, retention, 0)
    restored.restore(image, lambda size: blobs.pop(0)[:size], {TOPIC: world.seq})
    assert not blobs
    for step in after:
        delivery = world.publish(*step)
        if TOPIC in restored.topics:
            restored.add(delivery)
    if TOPIC in world.retained.topics:
        assert restored.topics[TOPIC].runs == world.retained.topics[TOPIC].runs
        assert (restored.bytes, restored.clock) == (world.retained.bytes, world.retained.clock)


@pytest.mark.parametrize("seed", range(20))
def test_all_together_have_a_bound_and_who_keeps_little_loses_nothing(seed: int) -> None:
    most = 40_000
    retained = Retained(most)
    ids = range(16, 24)
    for topic_id in ids:
        retained.alter(topic_id, Retention(events=1000), 0)
    seqs = dict.fromkeys(ids, 0)
    for step in range(400):
        # The last topics are quiet: one event in 100 and none but the first.
        topic_id = 23 if step == 0 else 22 if step % 100 == 1 else 16 + (step * (seed + 1)) % 6
        seqs[topic_id] += 1
        run = build_run(RunKind.PUBLICATION, topic_id, 7, 1, [b"x" * (100 + seed * step % 300)])
        retained.add(Delivery(run, topic_id, 1, 0, seqs[topic_id], step + 1, 1, 2, 3, step))
        assert retained.bytes == sum(one.bytes for one in retained.topics.values()) <= most
    assert retained.first_seq(23) == retained.first_seq(22) == 1
    assert all(retained.first_seq(topic_id) > 1 for topic_id in range(16, 22) if seqs[topic_id] > 60)
    assert retained.bytes > most * 3 // 4


def image_of(
    *rows: tuple[int, int, int, int, int, int, int], topic_id: int = TOPIC, seq: int = 1
) -> RetainedImage:
    return RetainedImage(50, [(topic_id, seq, list(rows))])


RUN = build_run(RunKind.PUBLICATION, TOPIC, 7, 1, [b"a", b"b"])
ROW = (len(RUN), 0, 5, 1, 2, 3, 40)


@pytest.mark.parametrize(
    "image",
    [
        image_of(ROW, topic_id=17),  # it keeps nothing
        image_of(),
        image_of(ROW, seq=2),  # does not end with the last event
        image_of((len(RUN), 2, 5, 1, 2, 3, 40)),  # everything skipped
        image_of((len(RUN), 0, 5, 1, 2, 3, 51)),  # later than the clock
        image_of(ROW, ROW),  # not in the order
        image_of((len(RUN) - 1, 0, 5, 1, 2, 3, 40)),  # no run
        RetainedImage(50, [(TOPIC, 1, [ROW]), (TOPIC, 1, [ROW])]),
    ],
)
def test_what_cannot_be_kept_is_refused(image: RetainedImage) -> None:
    retained = Retained()
    retained.alter(TOPIC, Retention(events=9), 0)
    with pytest.raises(MalformedSnapshot):
        retained.restore(image, lambda size: RUN[:size], {TOPIC: 2})


def test_a_snapshot_that_can_be_is_taken() -> None:
    retained = Retained()
    retained.alter(TOPIC, Retention(events=9), 0)
    retained.restore(image_of(ROW), lambda size: RUN[:size], {TOPIC: 2})
    assert retained.first_seq(TOPIC) == 1
