"""Snapshots, topic tables and requests for them, as a node gets them by TCP: all the way to a state.

An input is a switch u8 and what came. 0: a snapshot; 1: topics; 2: a request; 3, 4: the first two with the checksum
made right.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from random import Random
from typing import Final

from xxhash import xxh3_64_intdigest

from fuzz.mutation import change_packed, damage
from fuzz.target import Target, well_formed
from fuzz.targets.epochs import configuration
from ocfcluster import limits
from ocfcluster.protocol.effects import Item
from ocfcluster.protocol.order_log import OrderLog
from ocfcluster.protocol.sequencer import OrderClock, Sequencer
from ocfcluster.protocol.settings import Settings
from ocfcluster.protocol.snapshot import (
    Request,
    decode_request,
    decode_topics,
    encode_request,
    encode_topics,
    restore,
    take_snapshot,
)
from ocfcluster.protocol.state import FIRST_TOPIC_ID, ReplicatedState
from ocfcluster.protocol.streams import OriginStream
from ocfcluster.wire import control
from ocfcluster.wire.datagram import Extent
from ocfcluster.wire.run import RunKind, build_run, check_run
from ocfcluster.wire.topics import DEFAULT_SETTINGS, Retention, TopicSettings

_HEAD: Final = struct.Struct("<IQ")
_SNAPSHOT, _TOPICS, _REQUEST, _MENDED_SNAPSHOT, _MENDED_TOPICS = range(5)
_PACKET_BYTES: Final = 40


def check(data: bytes) -> None:
    kind, came = data[0] % 5 if data else 0, data[1:]
    if kind in (_MENDED_SNAPSHOT, _MENDED_TOPICS):
        came = mended(came)
    if kind == _REQUEST:
        request = well_formed(decode_request, came)
        assert request is None or decode_request(encode_request(request)) == request
    elif kind in (_TOPICS, _MENDED_TOPICS):
        topics = well_formed(decode_topics, came)
        if topics is not None:
            assert len(topics.rows) <= limits.TOPICS
            again = encode_topics(topics.rows, topics.next_topic_id, topics.topics_index)
            assert decode_topics(again) == topics
    else:
        restored(came)


def restored(snapshot: bytes) -> None:
    """What is taken goes on like the state of its giver: what waits is delivered, and it can be handed on."""
    found = well_formed(restore, snapshot, limits.RUN_BYTES)
    if found is None:
        return
    state, log = found.state, found.log
    given = take_snapshot(found.configuration, state, log, found.streams, found.delivered, found.stable)()
    assert sum(map(len, given)) <= 2 * len(snapshot) + 256
    restore(b"".join(given), limits.RUN_BYTES)
    for topic_id in state.retained.topics:
        for delivery in state.retained.portion(topic_id, 0, 100, 1 << 20):
            assert delivery.skip < delivery.count
    items: list[Item] = []
    while log.runs:
        held = log.runs.popleft()
        if held.origin is not None:
            check_run(held.run)
            state.apply(held.run, held.origin.node_id, held.origin.incarnation, held.order_time, True, items)
    for stream in found.streams:
        stream.add(Extent(stream.contiguous + 1, 1, 4, b"abcd"))
    log.free(found.stable)


def mended(snapshot: bytes) -> bytes:
    if len(snapshot) < _HEAD.size:
        return snapshot
    return (
        snapshot[:4] + struct.pack("<Q", xxh3_64_intdigest(snapshot[_HEAD.size :])) + snapshot[_HEAD.size :]
    )


def mutate(data: bytes, random: Random) -> bytes:
    """A value of the header, which gets its right length, or what follows it."""
    if len(data) <= 1 + _HEAD.size:
        return damage(data, random)
    kind, came = data[:1], data[1:]
    if data[0] % 5 == _REQUEST:
        return kind + change_packed(came, random)
    end = _HEAD.size + int.from_bytes(came[:4], "little")
    header, blobs = came[_HEAD.size : end], came[end:]
    if random.random() < 0.2:
        blobs = damage(blobs, random)
    else:
        header = change_packed(header, random)
    changed = struct.pack("<IQ", len(header), 0) + header + blobs
    return bytes([_MENDED_TOPICS if data[0] % 5 in (_TOPICS, _MENDED_TOPICS) else _MENDED_SNAPSHOT]) + changed


class Giver:
    """A member's log, streams and state, in what ``epochs.configuration`` has in force."""

    def __init__(self) -> None:
        self.configuration = configuration()
        self.log = OrderLog(self.configuration.base)
        self.streams = [
            OriginStream(one.node_id, one.incarnation, limits.RUN_BYTES) for one in self.configuration.members
        ]
        self.state = ReplicatedState(self.configuration)
        self.log.install(self.configuration)
        own = Settings("fuzz", 1, 0x1001, 0x2001, 1, receive_buffer_bytes=4 << 20)
        self._sequencer = Sequencer(self.configuration, own, _PACKET_BYTES, self.configuration.base, 0)
        self._packets = dict.fromkeys((1, 2, 3), 0)
        self.delivered = 0

    def publish(self, node_id: int, data: bytes, time: int) -> None:
        count = -(-len(data) // _PACKET_BYTES)
        self.streams[node_id - 1].add(Extent(self._packets[node_id] + 1, count, _PACKET_BYTES, data))
        self._packets[node_id] += count
        clock = OrderClock()
        clock.follow(time, time)
        streams = {one.node_id: one for one in self.streams}
        entries = self._sequencer.order(streams, self.log, clock, time)
        if entries:
            self.log.add(entries)
        self.log.advance(2**63 - 1)

    def deliver(self, upto: int) -> None:
        items: list[Item] = []
        self.delivered = upto
        log = self.log
        while log.runs and log.runs[0].index <= upto:
            held = log.runs.popleft()
            if held.view is not None:
                self.state.view(held.view, items)
            elif held.origin is not None:
                origin = held.origin
                self.state.apply(held.run, origin.node_id, origin.incarnation, held.order_time, False, items)

    def snapshot(self, stable: int) -> bytes:
        return b"".join(
            take_snapshot(self.configuration, self.state, self.log, self.streams, self.delivered, stable)()
        )


def seeds() -> Iterator[bytes]:
    giver = Giver()
    keeping = TopicSettings(Retention(events=5))
    giver.publish(1, control.control_run(control.TopicCreate("t", False, keeping), 1), 20)
    giver.deliver(giver.log.held)
    for kind in (_SNAPSHOT, _MENDED_SNAPSHOT):
        yield bytes([kind]) + giver.snapshot(giver.log.held)
    giver.publish(2, control.control_run(control.Open(), 1), 30)
    giver.deliver(giver.log.held)
    producer = next(iter(giver.state.producers))
    run = build_run(RunKind.PUBLICATION, FIRST_TOPIC_ID, producer, 1, [b"a", b"bb"])
    giver.publish(2, run, 40)
    giver.publish(3, control.control_run(control.GroupOpen("group:g"), 1), 41)
    giver.publish(3, control.control_run(control.GroupJoin("group:g", 7), 2), 42)
    giver.deliver(giver.log.held)
    yield bytes([_MENDED_SNAPSHOT]) + giver.snapshot(giver.log.held - 3)
    giver.publish(2, build_run(RunKind.PUBLICATION, FIRST_TOPIC_ID, producer, 3, [b"c"] * 4), 50)
    giver.publish(2, build_run(RunKind.PUBLICATION, FIRST_TOPIC_ID, producer, 7, [b"d" * 90])[:-50], 51)
    yield bytes([_MENDED_SNAPSHOT]) + giver.snapshot(giver.delivered - 1)
    damaged = bytearray(giver.snapshot(giver.delivered - 1))
    damaged[damaged.index(b"cccc") - 4] ^= 1  # the bytes of properties in the header of a run that waits
    yield bytes([_MENDED_SNAPSHOT]) + bytes(damaged)
    giver.publish(1, b"\xff" * 30, 52)
    yield bytes([_MENDED_SNAPSHOT]) + giver.snapshot(giver.delivered)
    topics = encode_topics([(16, "t", False, DEFAULT_SETTINGS), (18, "u", True, keeping)], 19, 30)
    yield bytes([_TOPICS]) + topics
    yield bytes([_MENDED_TOPICS]) + topics
    yield bytes([_REQUEST]) + encode_request(Request(7, 2, 0x1002, "0" * 32, 3, True))


TARGET: Final = Target(
    check,
    seeds,
    ("protocol/snapshot.py", "protocol/state.py", "protocol/retention.py", "protocol/groups.py"),
    mutate,
    most_bytes=8192,
)
