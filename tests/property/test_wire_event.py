"""The event message (obligations E1 to E5): codec ≡ declaration, damaged images, folding."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocfcluster.errors import InvalidArgument, TooLarge
from ocfcluster.limits import EVENT_BYTES_CEILING
from ocfcluster.wire.event import FIXED, EventMessage, decode_event, encode_event, fold32
from ocfcluster.wire.frames import RecordFlags
from ocfcluster.wire.properties import encode_properties
from ocfcluster.wire.schema.events import EVENT, PROPERTIES
from tests.property.wire_helpers import PROPERTY_TABLES, TOPIC_NAMES, U32, U64, damaged, damages, taken

MESSAGES = st.builds(
    EventMessage,
    topic=TOPIC_NAMES, data=st.binary(max_size=40), seq=U64, ev_id=U64, re_id=U64 | st.just(0), node_id=U32,
    incarnation=U64, m_sequence=U64, time_ns=U64, flags=st.integers(0, 7), properties=PROPERTY_TABLES,
)  # fmt: skip
EXAMPLES = [
    EventMessage("t", b"", 1, 1, 0, 1, 1, 1, 1, 0, {}),
    EventMessage("tëst", b"data", 2**33, 2**63 + 5, 2**31, 3, 4, 5, 6, int(RecordFlags.LOCAL), {"k": "v"}),
    EventMessage("", b"n", 0, 0, 0, 0, 0, 0, 0, int(RecordFlags.NOTICE), {}),
]


def encode(message: EventMessage) -> bytes:
    return encode_event(**message._asdict())


def declared(data: bytes, compiled: bool) -> EventMessage:
    got: Any = EVENT.parse(data, compiled=compiled)
    table = PROPERTIES.parse(got.properties, compiled=compiled).entries
    return EventMessage(
        topic=got.topic.rstrip(b"\0").decode(), data=got.data, seq=got.seq64, ev_id=got.ev_id64, re_id=got.re_id64,
        node_id=got.node_id, incarnation=got.incarnation, m_sequence=got.m_sequence, time_ns=got.time_ns,
        flags=got.flags, properties={one.key.decode(): one.value.decode() for one in table},
    )  # fmt: skip


@given(MESSAGES)
def test_message_comes_back(message: EventMessage) -> None:
    encoded = encode(message)
    assert decode_event(encoded) == message
    assert decode_event(memoryview(b"x" + encoded)[1:]) == message


@pytest.mark.parametrize("compiled", [False, True])
@given(message=MESSAGES)
def test_codec_equals_declaration(message: EventMessage, compiled: bool) -> None:
    encoded = encode(message)
    assert declared(encoded, compiled) == message
    fields = EVENT.parse(encoded, compiled=compiled)
    assert fields.properties == encode_properties(message.properties)
    assert EVENT.build(fields, compiled=compiled) == encoded


@pytest.mark.parametrize("compiled", [False, True])
@settings(max_examples=30)
@given(message=MESSAGES)
def test_declaration_builds_from_values_what_the_codec_reads(message: EventMessage, compiled: bool) -> None:
    table = encode_properties(message.properties)
    filling = -(336 + len(table)) % 8
    fields = {
        "size": 336 + len(table) + filling + len(message.data), "offset": 336 + len(table) + filling,
        "ev_id": fold32(message.ev_id), "re_id": fold32(message.re_id), "seq": fold32(message.seq),
        "topic": message.topic.encode().ljust(256, b"\0"), "flags": message.flags, "ev_id64": message.ev_id,
        "re_id64": message.re_id, "seq64": message.seq, "node_id": message.node_id, "properties_length": len(table),
        "incarnation": message.incarnation, "m_sequence": message.m_sequence, "time_ns": message.time_ns,
        "properties": table, "filling": bytes(filling), "data": message.data,
    }  # fmt: skip
    built = EVENT.build(fields, compiled=compiled)
    assert built == encode(message)
    assert decode_event(built) == message


@pytest.mark.parametrize("message", EXAMPLES)
def test_every_damage_is_malformed_or_another_message_of_its_length(message: EventMessage) -> None:
    for data in damages(encode(message)):
        got = taken(decode_event, data)
        if got is not None:
            assert encode(got) == data


@pytest.mark.parametrize("message", EXAMPLES)
def test_message_cut_before_its_data_is_malformed_whatever_size_it_says(message: EventMessage) -> None:
    encoded = encode(message._replace(data=b""))
    for length in range(4, len(encoded)):
        assert taken(decode_event, struct.pack("<i", length) + encoded[4:length]) is None
        agree_about(struct.pack("<i", length) + encoded[4:length])


def agree_about(data: bytes) -> None:
    got = taken(decode_event, data)
    assert (
        got == taken(lambda one: declared(one, False), data) == taken(lambda one: declared(one, True), data)
    )


def test_codec_and_declaration_take_the_same_damages() -> None:
    for data in damages(encode(EXAMPLES[1])):
        agree_about(data)


@settings(max_examples=200)
@given(damaged(MESSAGES.map(encode)) | st.binary(max_size=400))
def test_codec_and_declaration_take_the_same_bytes(data: bytes) -> None:
    agree_about(data)


def test_layout_byte_by_byte() -> None:
    encoded = encode_event(
        "oc.test", b"DATA", seq=2**31, ev_id=2**32, re_id=7, node_id=3, incarnation=4, m_sequence=5, time_ns=6,
        flags=1, properties={"k": "v"},
    )  # fmt: skip
    assert FIXED.size == 336
    assert encoded[0:20] == struct.pack("<5i", 348, 344, fold32(2**32), 7, 1)
    assert encoded[20:276] == b"oc.test".ljust(256, b"\0")
    assert encoded[276:280] == struct.pack("<I", 1)
    assert encoded[280:304] == struct.pack("<3Q", 2**32, 7, 2**31)
    assert encoded[304:312] == struct.pack("<2I", 3, 6)
    assert encoded[312:336] == struct.pack("<3Q", 4, 5, 6)
    assert encoded[336:344] == b"\1\1\1\0kv\0\0"
    assert encoded[344:] == b"DATA"


def test_a_c_compiler_would_lay_it_out_alike() -> None:
    """Native alignment adds no padding: the C struct of docs/formats.md is this image."""
    native = struct.Struct("=5i256sIQQQIIQQQ")
    assert struct.calcsize("@5i256sIQQQIIQQQ") == native.size == FIXED.size


@given(U64)
def test_folded_numbers_are_positive_and_count_on(number: int) -> None:
    assert fold32(0) == 0
    assert 1 <= fold32(number + 1) <= 2**31 - 1
    assert fold32(number + 1) == (number % (2**31 - 1)) + 1
    following = fold32(number + 2)
    assert following == fold32(number + 1) + 1 or (fold32(number + 1), following) == (2**31 - 1, 1)


def test_folding_at_its_edges() -> None:
    assert [fold32(n) for n in (1, 2**31 - 1, 2**31, 2**31 + 1, 2 * (2**31 - 1), 2**32)] == [
        1, 2**31 - 1, 1, 2, 2**31 - 1, 2,
    ]  # fmt: skip


@pytest.mark.parametrize("change", [
    {"topic": ""}, {"topic": "t" * 256}, {"topic": "é" * 128}, {"topic": "a\0b"}, {"topic": "\udcff"},
    {"flags": 8}, {"flags": -1}, {"seq": -1}, {"seq": 2**64}, {"ev_id": 2**64}, {"re_id": -1}, {"node_id": 2**32},
    {"incarnation": -1}, {"m_sequence": 2**64}, {"time_ns": -1}, {"properties": {"": ""}},
])  # fmt: skip
def test_values_outside_their_fields_are_invalid_arguments(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        encode(EXAMPLES[0]._replace(**change))


def test_more_data_than_any_event_may_have_is_too_large() -> None:
    with pytest.raises(TooLarge):
        encode_event("t", bytes(EVENT_BYTES_CEILING + 1), seq=1, ev_id=1)
