"""Datagrams: codecs ≡ declarations, interpreted and compiled, both ways and on every damage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocfcluster.errors import MalformedDatagram
from ocfcluster.wire.datagram import (
    BODY,
    CLEAR,
    DATA,
    DATA_HEAD,
    MAGIC,
    VERSION,
    Extent,
    Heartbeat,
    MessageFlags,
    MessageType,
    Order,
    Range,
    clear_prefix,
    decode_ack,
    decode_config_request,
    decode_data,
    decode_heartbeat,
    decode_nack,
    decode_order,
    decode_retransmit,
    decode_structure,
    encode_ack,
    encode_config_request,
    encode_heartbeat,
    encode_nack,
    encode_order,
    encode_packets,
    encode_structure,
    retransmit_head,
)
from ocfcluster.wire.schema.datagrams import DATAGRAMS, STRUCTURES
from tests.property.wire_helpers import U32, U64, damaged, damages, taken

FLAGS = st.integers(0, 255)
PAYLOADS = st.binary(min_size=1, max_size=30)
HEARD = st.lists(st.tuples(U32, U64), max_size=4)
PREFIXES = st.builds(clear_prefix, U32, U32, U64, U32)


class Document(msgspec.Struct, array_like=True):
    """Stands in for the structures of protocol/, which wire/ does not know."""

    epoch: int
    text: str


def orders(flags: st.SearchStrategy[int] = FLAGS) -> st.SearchStrategy[Order]:
    entries = st.lists(st.tuples(U32, U32, U64), max_size=4)
    return st.builds(Order, flags, U32, U32, U64, U64, U64, U64, entries)


RANGES = st.lists(st.builds(Range, U32, U32, U64, U64), max_size=4)
HEARTBEATS = st.tuples(FLAGS, *[U32] * 4, *[U64] * 14, HEARD).map(Heartbeat._make)


@st.composite
def heartbeat_bodies(draw: st.DrawFn) -> bytes:
    beat = draw(HEARTBEATS)
    return encode_heartbeat(beat, draw(st.integers(0, 300)) if beat.flags & MessageFlags.PADDED else 0)


def packet(head: bytes, number: int, payload: bytes) -> bytes:
    """The body of one packet's datagram."""
    return encode_packets(bytes(24), 0, head, Extent(number, 1, len(payload), payload))[0][BODY:]


BODIES: dict[MessageType, st.SearchStrategy[bytes]] = {
    MessageType.DATA: st.builds(packet, st.just(DATA_HEAD), U64, PAYLOADS),
    MessageType.ORDER: orders().map(encode_order),
    MessageType.ACK: st.builds(encode_ack, FLAGS, U32, U64),
    MessageType.NACK: st.builds(encode_nack, U32, RANGES),
    MessageType.RETRANSMIT: st.builds(packet, st.builds(retransmit_head, U32, U64), U64, PAYLOADS),
    MessageType.HEARTBEAT: heartbeat_bodies(),
    MessageType.CONFIG_REQUEST: st.builds(encode_config_request, U32),
    **{
        kind: st.builds(encode_structure, st.just(kind), U32, st.builds(Document, U32, st.text(max_size=8)))
        for kind in STRUCTURES
    },
}
DECODERS: dict[int, Callable[[bytes], Any]] = {
    MessageType.DATA: decode_data,
    MessageType.ORDER: decode_order,
    MessageType.ACK: decode_ack,
    MessageType.NACK: decode_nack,
    MessageType.RETRANSMIT: decode_retransmit,
    MessageType.HEARTBEAT: decode_heartbeat,
    MessageType.CONFIG_REQUEST: decode_config_request,
    **dict.fromkeys(STRUCTURES, decode_structure),
}
KINDS = list(BODIES)


def datagrams(kind: MessageType) -> st.SearchStrategy[bytes]:
    return st.builds(
        lambda prefix, counter, body: prefix + counter.to_bytes(8, "little") + body,
        PREFIXES,
        U64,
        BODIES[kind],
    )


EXAMPLES = {
    MessageType.DATA: packet(DATA_HEAD, 7, b"stream"),
    MessageType.ORDER: encode_order(Order(0, 1, 2, 3, 4, 5, 6, [(1, 2, 3), (4, 5, 6)])),
    MessageType.ACK: encode_ack(1, 2, 3),
    MessageType.NACK: encode_nack(1, [Range(0, 2, 0, 4), Range(3, 1, 2**63, 5)]),
    MessageType.RETRANSMIT: packet(retransmit_head(3, 33), 7, b"stream"),
    MessageType.HEARTBEAT: encode_heartbeat(Heartbeat._make((0, *range(1, 19), [(1, 11), (2, 22)]))),
    MessageType.CONFIG_REQUEST: encode_config_request(9),
    **{kind: encode_structure(kind, 1, Document(1, "x")) for kind in STRUCTURES},
}
PADDED = encode_heartbeat(Heartbeat._make((MessageFlags.PADDED, *range(1, 19), [(1, 11)])), 160)


def example(body: bytes) -> bytes:
    return clear_prefix(7, 3, 33) + (5).to_bytes(8, "little") + body


def fast(datagram: bytes) -> Any:
    """What a node makes of ``datagram``: the guards of ``Node._sender``, then the decoder of its type."""
    if len(datagram) <= BODY:
        raise MalformedDatagram("too short")
    magic, version, flags, *_ = CLEAR.unpack_from(datagram)
    if (magic, version, flags) != (MAGIC, VERSION, 0) or datagram[BODY] not in DECODERS:
        raise MalformedDatagram("foreign")
    return DECODERS[datagram[BODY]](datagram)


def values(kind: int, got: Any) -> Any:
    """The fields that a declaration found, as the decoder of ``kind`` gives them."""
    match kind:
        case MessageType.DATA:
            return Extent(got.number, 1, len(got.payload), got.payload)
        case MessageType.RETRANSMIT:
            return got.node_id, got.incarnation, Extent(got.number, 1, len(got.payload), got.payload)
        case MessageType.ORDER:
            entries = [(one.node_id, one["count"], one.first) for one in got.entries]
            return Order(
                got.flags,
                got.epoch,
                got.window,
                got.first_index,
                got.order_time,
                got.commit,
                got.stable,
                entries,
            )
        case MessageType.ACK:
            return got.flags, got.epoch, got.held
        case MessageType.NACK:
            return got.epoch, [
                Range(one.node_id, one["count"], one.incarnation, one.first) for one in got.ranges
            ]
        case MessageType.HEARTBEAT:
            heard = [(one.node_id, one.incarnation) for one in got.heard]
            return Heartbeat(**{name: got[name] for name in Heartbeat._fields[:-1]}, heard=heard)
        case MessageType.CONFIG_REQUEST:
            return got.epoch
        case _:
            return got.epoch, got.payload


def declared(datagram: bytes, compiled: bool) -> Any:
    kind = datagram[BODY] if len(datagram) > BODY else int(MessageType.DATA)
    if kind not in DATAGRAMS:
        raise MalformedDatagram("unknown type")
    return values(kind, DATAGRAMS[MessageType(kind)].parse(datagram, compiled=compiled))


def test_every_message_is_declared_and_tested() -> None:
    assert set(DATAGRAMS) == set(DECODERS) == set(BODIES) == set(EXAMPLES)
    assert set(DATAGRAMS) == set(MessageType)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_codec_equals_declaration(kind: MessageType, compiled: bool, data: st.DataObject) -> None:
    datagram = data.draw(datagrams(kind))
    assert declared(datagram, compiled) == fast(datagram)
    fields = DATAGRAMS[kind].parse(datagram, compiled=compiled)
    clear = fields["clear"]  # the attribute is the method of dict
    assert CLEAR.unpack_from(datagram) == (
        clear.magic, clear.version, clear.flags, clear.cluster, clear.node_id, clear.history, clear.incarnation,
        clear.counter,
    )  # fmt: skip
    assert DATAGRAMS[kind].build(fields, compiled=compiled) == datagram


@given(order=orders(), beat=HEARTBEATS, ranges=RANGES)
def test_messages_come_back(order: Order, beat: Heartbeat, ranges: list[Range]) -> None:
    assert decode_order(bytes(BODY) + encode_order(order)) == order
    assert decode_nack(bytes(BODY) + encode_nack(5, ranges)) == (5, ranges)
    assert decode_heartbeat(bytes(BODY) + encode_heartbeat(beat)) == beat


def agree_about(datagram: bytes) -> Any:
    got = taken(fast, datagram, MalformedDatagram)
    assert got == taken(lambda one: declared(one, False), datagram, MalformedDatagram)
    assert got == taken(lambda one: declared(one, True), datagram, MalformedDatagram)
    return got


@pytest.mark.parametrize("body", [*EXAMPLES.values(), PADDED])
def test_every_damage_is_malformed_or_another_message_to_codec_and_declaration_alike(body: bytes) -> None:
    datagram = example(body)
    assert agree_about(datagram) is not None
    for one in damages(datagram):
        agree_about(one)


@settings(max_examples=300)
@given(st.sampled_from(KINDS).flatmap(lambda kind: damaged(datagrams(kind))))
def test_codec_and_declaration_take_the_same_bytes(datagram: bytes) -> None:
    agree_about(datagram)


@given(st.sampled_from(KINDS), st.binary(max_size=200))
def test_any_bytes_as_a_body(kind: MessageType, body: bytes) -> None:
    agree_about(example(bytes((kind,)) + body))


def test_layouts_begin_alike() -> None:
    for kind, body in EXAMPLES.items():
        assert body[0] == kind
        assert len(example(body)) == BODY + len(body)
    assert example(EXAMPLES[MessageType.DATA])[BODY + DATA.size :] == b"stream"
