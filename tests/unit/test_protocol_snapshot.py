"""Snapshots: what is restored goes on like its giver, and nothing that is none is taken for one."""

from __future__ import annotations

import copy
import random
from typing import Any

import msgspec
import pytest
from xxhash import xxh3_64_intdigest

from ocfcluster import limits
from ocfcluster.errors import MalformedSnapshot
from ocfcluster.protocol.effects import Delivery, Item
from ocfcluster.protocol.order_log import OrderLog
from ocfcluster.protocol.sequencer import OrderClock, Sequencer
from ocfcluster.protocol.settings import Configuration, TopicRow
from ocfcluster.protocol.snapshot import (
    Making,
    Request,
    Restored,
    decode_request,
    decode_topics,
    encode_request,
    encode_topics,
    restore,
    take_snapshot,
)
from ocfcluster.protocol.state import ReplicatedState, state_image
from ocfcluster.protocol.store import NO_LIMIT
from ocfcluster.protocol.streams import OriginStream
from ocfcluster.wire import control
from ocfcluster.wire.datagram import Extent
from ocfcluster.wire.topics import DEFAULT_SETTINGS, Access, Retention, TopicSettings
from tests.property.wire_helpers import flipped
from tests.unit.protocol_world import configuration_of, publication, settings_of

SIZE = 40
CONFIGURATION = configuration_of({1: 1, 2: 1, 3: 1})


class Giver:
    """A member's log, streams and state; ``order`` has what was published ordered, ``hold`` holds and delivers it."""

    def __init__(self) -> None:
        self.log = OrderLog(0)
        self.streams = [
            OriginStream(one.node_id, one.incarnation, limits.RUN_BYTES) for one in CONFIGURATION.members
        ]
        self.state = ReplicatedState(CONFIGURATION)
        self.delivered = 0
        self.stable = 0
        self.log.install(CONFIGURATION)
        self._sequencer = Sequencer(CONFIGURATION, settings_of(1, {1: 1}), SIZE, 0, 0)
        self._packets = dict.fromkeys((1, 2, 3), 0)

    def publish(self, node_id: int, data: bytes) -> None:
        """The next bytes of a node's stream, as packets of SIZE bytes."""
        count = -(-len(data) // SIZE)
        self.streams[node_id - 1].add(Extent(self._packets[node_id] + 1, count, SIZE, data))
        self._packets[node_id] += count

    def order(self, time: int = 7) -> None:
        clock = OrderClock()
        clock.follow(time, time)
        streams = {one.node_id: one for one in self.streams}
        entries = self._sequencer.order(streams, self.log, clock, time)
        if entries:
            self.log.add(entries)

    def hold(self, limit: int = NO_LIMIT) -> None:
        self.log.advance(limit)

    def deliver(self, upto: int, items: list[Item] | None = None) -> list[Item]:
        self.delivered = upto
        return deliver(self.log, self.state, upto)

    def taken(self) -> Making:
        return take_snapshot(CONFIGURATION, self.state, self.log, self.streams, self.delivered, self.stable)

    def snapshot(self) -> bytes:
        return b"".join(self.taken()())


def deliver(log: OrderLog, state: ReplicatedState, upto: int) -> list[Item]:
    items: list[Item] = []
    while log.runs and log.runs[0].index <= upto:
        held = log.runs.popleft()
        if held.view is not None:
            state.view(held.view, items)
        else:
            assert held.origin is not None
            state.apply(held.run, held.origin.node_id, held.origin.incarnation, held.order_time, False, items)
    return items


def busy() -> Giver:
    """A topic, a producer with outcomes, runs that wait to be delivered, one that was begun; index 1 is the view."""
    one = Giver()
    one.publish(1, control.control_run(control.TopicCreate("t", False), 1))
    one.publish(2, control.control_run(control.Open(), 1) + publication(16, 2, 1, [b"a", b"bb"])[:50])
    one.order(10)
    one.hold()
    one.deliver(one.log.held)
    one.publish(2, publication(16, 2, 1, [b"a", b"bb"])[50:] + publication(16, 2, 3, [b"x" * 100]))
    one.order(20)
    one.hold()
    one.deliver(one.log.held - 3)
    one.publish(2, publication(16, 2, 4, [b"y" * 150])[:-30])
    one.publish(3, publication(16, 99, 1, [b"nobody's"]))
    one.order(30)
    one.hold(one.log.held + 5)
    one.stable = 4
    one.log.free(4)
    return one


def restored(snapshot: bytes) -> Restored:
    return restore(snapshot, limits.RUN_BYTES)


def test_a_snapshot_is_of_the_moment_when_it_was_taken() -> None:
    """It is put together later, beside a node that goes on."""
    giver = busy()
    giver.state.retained.alter(16, Retention(events=100), 0)
    kept = publication(16, 2, 1, [b"k"])
    for number in range(3):
        giver.state.retained.add(Delivery(kept, 16, 1, 0, 1 + number, 9 + number, 1, 1001, 1, 7))
    taken = [giver.taken() for _ in range(2)]
    before = taken[0]()
    giver.state.retained.add(Delivery(kept, 16, 1, 0, 4, 12, 1, 1001, 1, 8))
    giver.state.retained.topics[16].runs.popleft()
    giver.state.node_table.votes[1] += 1
    giver.state.last_seq[16] += 1
    giver.order()
    giver.hold()
    giver.deliver(giver.log.held)
    giver.log.free(giver.log.held)
    assert taken[1]() == before
    assert giver.taken()() != before


def test_a_snapshot_is_the_givers_state() -> None:
    giver = busy()
    assert (
        giver.delivered < giver.log.held < giver.log.next_index - 1
    )  # delivered, held and ordered are all different
    assert any(one.assembler.unfinished for one in giver.streams)
    assert giver.log.runs
    got = restored(giver.snapshot())
    assert (got.configuration, got.delivered, got.stable) == (CONFIGURATION, giver.delivered, 4)
    assert state_image(got.state) == state_image(giver.state)
    assert (got.log.held, got.log.next_index, got.log.highest) == (
        giver.log.held,
        giver.log.held + 1,
        giver.log.held,
    )
    assert got.log.last_order_time == giver.log.last_order_time
    assert [(*one[:2], one.run) for one in got.log.runs] == [(*one[:2], one.run) for one in giver.log.runs]
    for mine, theirs in zip(got.streams, giver.streams, strict=True):
        assert (mine.node_id, mine.incarnation) == (theirs.node_id, theirs.incarnation)
        assert mine.assembler.unfinished == theirs.assembler.unfinished
        assert mine.contiguous == mine.logged == mine.highest == mine.ordered


def test_who_begins_with_it_goes_on_like_the_giver() -> None:
    """Both get the rest of the order, and deliver the same."""
    giver = busy()
    got = restored(giver.snapshot())
    streams = {(one.node_id, one.incarnation): one for one in got.streams}
    giver.publish(2, publication(16, 2, 4, [b"y" * 150])[-30:] + publication(16, 2, 5, [b"last"]))
    giver.publish(1, control.control_run(control.TopicRemove("t"), 2))
    giver.order(40)
    position = got.log.held
    for entry in giver.log.find(position + 1, 10_000):
        origin = streams[entry.origin.node_id, entry.origin.incarnation]
        cut = max(0, position + 1 - entry.first_index)
        got.log.add(
            [entry._replace(origin=origin, first_index=entry.first_index + cut, count=entry.count - cut,
                            first_packet=entry.first_packet + cut)]
        )  # fmt: skip
    for theirs in giver.streams:
        mine = streams[theirs.node_id, theirs.incarnation]
        for extent in theirs.find(mine.contiguous + 1, 10_000):
            mine.add(extent)
    giver.hold()
    got.log.advance(NO_LIMIT)
    assert got.log.held == giver.log.held == giver.log.next_index - 1
    assert deliver(got.log, got.state, 10_000) == giver.deliver(10_000)
    assert state_image(got.state) == state_image(giver.state)
    assert got.state.chain != 0


def test_what_it_keeps_serves_others() -> None:
    giver = busy()
    got = restored(giver.snapshot())
    held = giver.log.held

    def entries(log: OrderLog) -> list[tuple[int, ...]]:
        cut = [
            one if one.last_index <= held else one._replace(count=held + 1 - one.first_index)
            for one in log.find(1, held)
        ]
        return [(one[0], one[1], one.origin.node_id, *one[3:]) for one in cut]

    assert entries(got.log)
    assert entries(got.log) == entries(giver.log)
    for mine, theirs in zip(got.streams, giver.streams, strict=True):
        kept = b"".join(one.data for one in mine.find(1, 10_000))
        assert kept == b"".join(one.data for one in theirs.find(1, mine.logged))
        assert mine.kept_bytes == len(kept)
    got.log.free(held)
    assert (got.log.entries_kept, sum(one.kept_bytes for one in got.streams)) == (0, 0)


def test_a_broken_stream_stays_broken() -> None:
    giver = Giver()
    giver.publish(3, b"\xff" * 100)
    giver.order()
    giver.hold()
    giver.deliver(giver.log.held)
    got = restored(giver.snapshot())
    assert got.streams[2].assembler.broken == giver.streams[2].assembler.broken != ""
    assert got.streams[0].assembler.broken == ""


def test_a_producer_answers_repeats_as_before() -> None:
    giver = busy()
    giver.deliver(giver.log.held)
    got = restored(giver.snapshot())
    results = []
    for state in (giver.state, got.state):
        items: list[Item] = []
        state.apply(publication(16, 2, 1, [b"a", b"bb"]), 2, 1002, 50, True, items)
        results.append(items)
    assert results[0] == results[1] != []


# --- what is none -----------------------------------------------------------------------------------------------------


def test_every_truncation_and_every_flip_is_found() -> None:
    snapshot = busy().snapshot()
    for length in range(len(snapshot)):
        with pytest.raises(MalformedSnapshot):
            restored(snapshot[:length])
    for bit in range(0, 8 * len(snapshot), 5):
        with pytest.raises(MalformedSnapshot):
            restored(flipped(snapshot, bit))
    with pytest.raises(MalformedSnapshot):
        restored(snapshot + b"\0")


def sealed(header: Any, blobs: bytes) -> bytes:
    """A snapshot with this header (plain values), whose checksum is right."""
    encoded = msgspec.msgpack.encode(header)
    checksum = xxh3_64_intdigest(encoded + blobs)
    return len(encoded).to_bytes(4, "little") + checksum.to_bytes(8, "little") + encoded + blobs


def opened(snapshot: bytes) -> tuple[list[Any], bytes]:
    end = 12 + int.from_bytes(snapshot[:4], "little")
    return msgspec.msgpack.decode(snapshot[12:end], strict=False), snapshot[end:]


def test_sealed_and_opened_are_each_others_opposite() -> None:
    snapshot = busy().snapshot()
    assert sealed(*opened(snapshot)) == snapshot


def spots(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a structure."""
    found = [path] if path else []
    if isinstance(value, list):
        for at, one in enumerate(value):
            found += spots(one, (*path, at))
    elif isinstance(value, dict):
        for key, one in value.items():
            found += spots(one, (*path, key))
    return found


def exercised(got: Restored) -> None:
    """What a node does with what it restored: nothing of it may fail."""
    log, state, items = got.log, got.state, []
    for run in log.runs:
        assert run.run[4] >= 0
    for held in list(log.runs):
        assert held.origin is not None
        state.apply(held.run, held.origin.node_id, held.origin.incarnation, held.order_time, True, items)
    view: Configuration = msgspec.structs.replace(
        got.configuration, epoch=got.configuration.epoch + 1, m_sequence=got.configuration.m_sequence + 1
    )
    state.view(view, items)
    for token, name in enumerate(list(state.topics.by_name), 1):
        state.apply(control.control_run(control.TopicRemove(name), token), 1, 1001, 1, True, items)
    state.apply(publication(16, 2, 1, [b"x"] * 9), 2, 1002, 5, True, items)
    take_snapshot(view, state, log, got.streams, got.delivered, got.stable)()
    for entry in list(log.find(0, 2**62)):
        for number in (entry.first_index, entry.first_packet, entry.order_time):
            assert 0 <= number < 2**63
    for stream in got.streams:
        for extent in stream.find(0, 2**62):
            assert [len(extent.part(at, 1).data) > 0 for at in range(extent.count)] == [True] * extent.count
        stream.assembler.feed(b"\0" * 100)
    log.free(got.stable)


@pytest.mark.parametrize("seed", range(6))
def test_no_numbers_of_a_giver_make_anything_but_a_malformed_snapshot_or_one_that_can_be_used(
    seed: int,
) -> None:
    """A hostile giver seals what it likes. Every value in the header in turn, and then several at once."""
    chance = random.Random(seed)
    header, blobs = opened(busy().snapshot())
    paths = spots(header)
    values: list[Any] = [
        0, 1, 2, -1, 5, 40, 2**31, 2**32 - 1, 2**32, 2**62 - 1, 2**62, 2**63, 2**64 - 1, "", "x", [], None, True, 1.5,
        {},
    ]  # fmt: skip
    refused = 0
    for turn in range(3 * len(paths)):
        changed, _ = opened(sealed(header, b""))
        for path in chance.sample(paths, 1 if turn < 2 * len(paths) else chance.randint(2, 4)):
            where = changed
            try:
                for step in path[:-1]:
                    where = where[step]
                where[path[-1]] = copy.copy(chance.choice(values))
            except (TypeError, IndexError, KeyError):
                continue  # replaced above it
        try:
            got = restored(sealed(changed, blobs))
        except MalformedSnapshot:
            refused += 1
            continue
        exercised(got)
    assert refused > len(paths)


def test_a_deep_header_is_malformed() -> None:
    with pytest.raises(MalformedSnapshot):
        restored(
            (50_000).to_bytes(4, "little")
            + xxh3_64_intdigest(b"\x91" * 50_000).to_bytes(8, "little")
            + b"\x91" * 50_000
        )


# --- topics and requests ----------------------------------------------------------------------------------------------


def test_topics_come_back_and_every_damage_is_found() -> None:
    encoded = encode_topics([(16, "a", False, DEFAULT_SETTINGS), (20, "b", True, DEFAULT_SETTINGS)], 21, 99)
    topics = decode_topics(encoded)
    assert (topics.rows, topics.next_topic_id, topics.topics_index) == (
        [(16, "a", False, DEFAULT_SETTINGS), (20, "b", True, DEFAULT_SETTINGS)],
        21,
        99,
    )
    for length in range(len(encoded)):
        with pytest.raises(MalformedSnapshot):
            decode_topics(encoded[:length])
    for bit in range(8 * len(encoded)):
        with pytest.raises(MalformedSnapshot):
            decode_topics(flipped(encoded, bit))


@pytest.mark.parametrize(
    ("rows", "next_id"),
    [
        ([(16, "a", False, DEFAULT_SETTINGS), (16, "b", False, DEFAULT_SETTINGS)], 20),
        ([(16, "a", False, DEFAULT_SETTINGS), (17, "a", False, DEFAULT_SETTINGS)], 20),
        ([(3, "a", False, DEFAULT_SETTINGS)], 20),
        ([(20, "a", False, DEFAULT_SETTINGS)], 20),
        ([(16, "", False, DEFAULT_SETTINGS)], 20),
        ([(16, "oc.mine", False, DEFAULT_SETTINGS)], 20),
        ([(16, "a", False, DEFAULT_SETTINGS)], 2**32),
        ([(16, "a", False, TopicSettings(access=Access(publish=("root",))))], 20),
    ],
)
def test_topics_that_cannot_be_are_refused(rows: list[TopicRow], next_id: int) -> None:
    with pytest.raises(MalformedSnapshot):
        decode_topics(encode_topics(rows, next_id, 1))


def test_requests_come_back_or_are_malformed() -> None:
    request = Request(7, 3, 1003, "0" * 32, 4, True)
    encoded = encode_request(request)
    assert decode_request(encoded) == request
    assert len(encoded) < limits.SNAPSHOT_REQUEST_BYTES
    for length in range(len(encoded)):
        with pytest.raises(MalformedSnapshot):
            decode_request(encoded[:length])
    for bit in range(8 * len(encoded)):
        try:
            decode_request(flipped(encoded, bit))
        except MalformedSnapshot:
            continue
    with pytest.raises(MalformedSnapshot):
        decode_request(b"\x91" * 4000)
