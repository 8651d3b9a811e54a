"""E1-E5: the event message."""

from __future__ import annotations

import random
import struct
import time

from ocfcluster.client import Client, Event
from ocfcluster.conformance.context import PATIENCE_S, Context, expect, expect_equal, take
from ocfcluster.conformance.registry import obligation
from ocfcluster.wire.frames import LOCAL_ID

# Written out a second time on purpose, from docs/formats.md: what a C program would read.
HEADER = struct.Struct("<5i")  # size, offset, ev_id, re_id, seq
TOPIC = slice(20, 276)
WIDE = struct.Struct(
    "<IQQQIIQQQ"
)  # flags, ev_id64, re_id64, seq64, node_id, properties, incarnation, m_sequence, time
WIDE_AT = 276
USER_PROPERTIES_AT = 336
POSITIVE_INTS = 2**31 - 1


def _one(client: Client, topic: str, data: bytes, **named: object) -> Event:
    """The event that comes of one publication."""
    with client.subscribe(topic) as subscription:
        client.publish(topic, data, **named).wait(PATIENCE_S)  # type: ignore[arg-type]
        return take(subscription, 1)[0]


def _folded(number: int) -> int:
    return (number - 1) % POSITIVE_INTS + 1 if number else 0


@obligation("E1")
def header_then_topic_properties_data(context: Context) -> None:
    """size, offset, ev_id, re_id, seq as int32, topic, properties, then data at offset; size covers all."""
    client, topic = context.client(), context.topic()
    for data, properties in (
        (b"", {}),
        (b"d", {"k": "v"}),
        (bytes(range(256)) * 9, {"key": "x" * 1000, "b": ""}),
    ):
        event = _one(client, topic, data, re_id=7, properties=properties)
        message = event.to_bytes()
        size, offset, ev_id, re_id, seq = HEADER.unpack_from(message)
        expect_equal(size, len(message), "size")
        expect_equal(message[offset:], data, "what stands at offset")
        expect_equal((ev_id, re_id, seq), (event.ev_id32, event.re_id32, event.seq32), "ev_id, re_id, seq")
        name = message[TOPIC]
        expect_equal(name, topic.encode().ljust(len(name), b"\0"), "the topic's place")
        for key, value in properties.items():
            expect(
                key.encode() + value.encode() in message[USER_PROPERTIES_AT:offset],
                f"property {key} is not there",
            )


@obligation("E1")
def declared_with_construct(context: Context) -> None:
    """The declaration in construct reads an event of the agent, and builds the same bytes."""
    from ocfcluster.wire.schema import events as schema

    event = _one(context.client(), context.topic(), b"\0data", re_id=3, properties={"k": "v"})
    message = event.to_bytes()
    read = schema.EVENT.parse(message)
    expect_equal(schema.EVENT.build(read), message, "the message built by the declaration")


@obligation("E2")
def data_is_opaque(context: Context) -> None:
    """Any bytes go through unchanged, also none at all."""
    client, topic = context.client(), context.topic()
    chance = random.Random(2)
    blobs = [
        b"",
        b"\0",
        bytes(range(256)),
        b'{"broken',
        chance.randbytes(70_000),
        chance.randbytes(client.event_bytes),
    ]
    subscription = client.subscribe(topic)
    for blob in blobs:
        client.publish(topic, blob)
    for blob, event in zip(blobs, take(subscription, len(blobs)), strict=True):
        expect(event.data == blob, f"an event of {len(blob)} bytes came as other {len(event.data)} bytes")


@obligation("E2")
def empty_events_count(context: Context) -> None:
    """Empty events are events: each comes, with a seq of its own, between others."""
    client, topic = context.client(), context.topic()
    subscription = client.subscribe(topic)
    blobs = [b"", b"", b"a", b"", b"bc", b""]
    client.publish_many(topic, blobs).wait(PATIENCE_S)
    events = take(subscription, len(blobs))
    expect_equal([event.data for event in events], blobs, "data")
    expect_equal([event.seq for event in events], list(range(1, 7)), "seq")


@obligation("E3")
def seq_counts_from_one(context: Context) -> None:
    """seq counts 1, 2, 3, … in each topic; ev_id is unique over topics and grows with the order."""
    client = context.client()
    topics = [context.topic(), context.topic()]
    subscription = client.subscribe(topics)
    for number in range(200):
        client.publish(topics[number % 3 % 2], b"%d" % number)
    events = take(subscription, 200)
    for topic in topics:
        seqs = [event.seq for event in events if event.topic == topic]
        expect_equal(seqs, list(range(1, len(seqs) + 1)), "seq of one topic")
    ids = [event.ev_id for event in events]
    expect_equal(len(set(ids)), len(ids), "different ev_ids")
    expect(
        all(0 < ev_id < LOCAL_ID for ev_id in ids), "an ev_id of a global topic is outside of its id space"
    )


@obligation("E3")
def folding(context: Context) -> None:
    """The int32 fields fold n to ((n-1) mod (2^31-1)) + 1: never 0 or negative; 0 means no re_id."""
    client, topic = context.client(), context.topic()
    for re_id, folded in ((0, 0), (1, 1), (2**31 - 1, 2**31 - 1), (2**31, 1), (2**32, 2), (2**40 + 5, 517)):
        event = _one(client, topic, b"x", re_id=re_id)
        expect_equal(event.re_id, re_id, "re_id")
        expect_equal(event.re_id32, folded, f"re_id32 of {re_id}")
        expect_equal(HEADER.unpack_from(event.to_bytes())[3], folded, f"re_id of the message for {re_id}")
        expect_equal(
            (event.seq32, event.ev_id32), (_folded(event.seq), _folded(event.ev_id)), "seq32, ev_id32"
        )


@obligation("E3")
def local_ids_are_marked(context: Context) -> None:
    """Events of local topics say so, and their ev_ids have a marked space of their own."""
    client = context.client()
    local = _one(client, context.topic("local"), b"x")
    general = _one(client, context.topic(), b"x")
    expect(
        local.local and local.ev_id & LOCAL_ID, f"a local event: local={local.local}, ev_id={local.ev_id:#x}"
    )
    expect(not general.local and not general.ev_id & LOCAL_ID, f"a global event: ev_id={general.ev_id:#x}")


@obligation("E3")
def same_numbers_on_every_node(context: Context) -> None:
    """seq and ev_id of an event are the same on every node."""
    topic = context.topic()
    clients = [context.client(), *map(context.client, context.other_sockets())]
    subscriptions = [client.subscribe(topic) for client in clients]
    for number in range(50):
        clients[number % len(clients)].publish(topic, b"%d" % number)
    seen = [[(event.seq, event.ev_id, event.data) for event in take(each, 50)] for each in subscriptions]
    for other in seen[1:]:
        expect_equal(other, seen[0], "seq, ev_id and data on another node")


@obligation("E4")
def origin_and_time(context: Context) -> None:
    """An event carries its publisher's node and incarnation, m_sequence, publish time and flags."""
    client, topic = context.client(), context.topic()
    before = time.time_ns()
    events = [_one(client, topic, b"x") for _ in range(2)]
    after = time.time_ns()
    for event in events:
        expect_equal(event.node_id, client.node_id, "the publisher's node")
        expect(event.incarnation == events[0].incarnation != 0, f"the incarnation: {event.incarnation}")
        expect(event.m_sequence >= 1, f"m_sequence is {event.m_sequence}")
        expect(before <= event.time_ns <= after, f"published at {event.time_ns}, not in [{before}, {after}]")
        expect_equal(int(event.flags), 0, "flags of a plain event")
    expect(events[0].time_ns < events[1].time_ns, "the publish time stands still")


@obligation("E4")
def origin_of_other_nodes(context: Context) -> None:
    """Events published on another node carry that node and its incarnation."""
    topic = context.topic()
    here = context.client()
    subscription = here.subscribe(topic)
    for socket in context.other_sockets():
        there = context.client(socket)
        there.publish(topic, b"x").wait(PATIENCE_S)
        event = take(subscription, 1)[0]
        expect_equal(event.node_id, there.node_id, "the publisher's node")
        expect(event.node_id != here.node_id, "another node has the same node_id")


@obligation("E4")
def user_properties(context: Context) -> None:
    """User keys and values come with the event."""
    table = {"a": "", "colour": "grün", "n": "1" * 1000}
    event = _one(context.client(), context.topic(), b"x", properties=table)
    expect_equal(dict(event.properties), table, "properties")


@obligation("E5")
def little_endian_at_fixed_places(context: Context) -> None:
    """Every field of the image is little-endian and where the documentation puts it."""
    event = _one(context.client(), context.topic(), b"data", re_id=2**40 + 1, properties={"k": "v"})
    message = event.to_bytes()
    flags, ev_id, re_id, seq, node_id, length, incarnation, m_sequence, time_ns = WIDE.unpack_from(
        message, WIDE_AT
    )
    expect_equal(
        (flags, ev_id, re_id, seq, node_id, incarnation, m_sequence, time_ns),
        (int(event.flags), event.ev_id, event.re_id, event.seq, event.node_id, event.incarnation,
         event.m_sequence, event.time_ns),
        "the 64-bit fields",
    )  # fmt: skip
    expect_equal(message[USER_PROPERTIES_AT : USER_PROPERTIES_AT + length], b"\1\1\1\0kv", "user properties")
    offset = HEADER.unpack_from(message)[1]
    expect_equal(offset, 344, "offset of the data, a multiple of 8")
    expect(not any(message[USER_PROPERTIES_AT + length : offset]), "the filling is not zero")
