"""Frames of the local protocol: bodies on every damage, and the packed parts ≡ their declarations."""

from __future__ import annotations

import struct
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocfcluster.errors import MalformedFrame
from ocfcluster.limits import CLIENT_NAME_BYTES
from ocfcluster.wire import frames
from ocfcluster.wire.frames import (
    CONTROL_HEADER,
    EVENT_HEADER,
    RECEIPT,
    RECORD_HEADER,
    Answer,
    Notice,
    NoticeCode,
    RecordKind,
    Request,
    control_frame,
    encode_notice,
    read_body,
    read_notice,
)
from ocfcluster.wire.schema.frames import CONTROL_FRAME, EVENT_FRAME, RECEIPTS
from tests.property.wire_helpers import U16, U32, U64, damaged, damages, taken, text

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Values that a field of type ``kind`` may have."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        bound = arguments[1]
        if arguments[0] is int:
            return st.integers(bound.ge, 2**64 - 1 if bound.le is None else bound.le)
        return text(0, CLIENT_NAME_BYTES, nul=True)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return st.tuples(*map(values_of, arguments))
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    if origin is list:
        return st.lists(values_of(arguments[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(st.text(max_size=5), PLAIN, max_size=3)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return bodies(kind)
    return {str: st.text(max_size=12), bool: st.booleans(), bytes: st.binary(max_size=12)}[kind]


def bodies(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return st.builds(
        kind, **{field.name: values_of(hints[field.name]) for field in msgspec.structs.fields(kind)}
    )


KINDS = sorted(frames._BODIES)
EXAMPLES = {
    Request.HELLO: frames.Hello(1, "0.1.0", "nämë"),
    Request.SUBSCRIBE: frames.Subscribe(3, ["t", "ü"], True, "0123", [frames.Position("t", 16, 2**63)]),
    Answer.WELCOME: frames.Welcome(1, "0.1.0", "c", "id", 1, 2**60, 3, 2**20, "safe"),
    Answer.SUBSCRIBED: frames.Subscribed("id", [frames.Start("t", 16, 5, False, 2)], True),
    Answer.STATUS: frames.Status({"a": [1, {"b": None}], "c": -1.5}),
    Answer.ERROR: frames.Error(22, "no"),
    Answer.FULL: frames.Full([1, 2, 3]),
}


def test_every_body_is_generated_and_no_request_is_left_out() -> None:
    without = {Request.PUBLISH, Request.TOPIC_LIST, Request.STATUS, Request.BARRIER, Request.GOODBYE,
               Request.GROUP_LIST, Answer.DONE, Answer.RECEIPTS}  # fmt: skip
    assert set(KINDS) == ({*Request} | {*Answer}) - without
    assert len({*map(int, Request)} | {*map(int, Answer)}) == len(Request) + len(Answer)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30)
@given(data=st.data())
def test_body_comes_back(kind: int, data: st.DataObject) -> None:
    body = data.draw(bodies(frames._BODIES[kind]))
    frame = control_frame(kind, 7, body)
    length, got_kind, _, _, request_id = CONTROL_HEADER.unpack_from(frame)
    assert (length, got_kind, request_id) == (len(frame) - CONTROL_HEADER.size, kind, 7)
    assert read_body(kind, frame[CONTROL_HEADER.size :]) == body
    assert read_body(kind, memoryview(frame)[CONTROL_HEADER.size :]) == body


def fits(value: Any, kind: Any) -> bool:
    """Whether a decoded value is one that its field may have."""
    if isinstance(value, msgspec.Struct):
        hints = typing.get_type_hints(type(value), include_extras=True)
        return all(fits(getattr(value, name), hint) for name, hint in hints.items())
    if typing.get_origin(kind) is typing.Annotated and isinstance(value, int):
        bound = typing.get_args(kind)[1]
        return bool(bound.ge <= value <= (2**64 - 1 if bound.le is None else bound.le))
    if typing.get_origin(kind) is list:
        return all(fits(one, typing.get_args(kind)[0]) for one in value)
    return True


@pytest.mark.parametrize("kind", list(EXAMPLES))
def test_every_damage_is_malformed_or_another_body(kind: int) -> None:
    encoded = control_frame(kind, 1, EXAMPLES[kind])[CONTROL_HEADER.size :]
    for data in damages(encoded):
        body = taken(lambda one: read_body(kind, one), data, MalformedFrame)
        if body is not None:
            assert fits(body, type(body))
            assert len(data) == len(encoded)


@settings(max_examples=300)
@given(st.sampled_from(KINDS), st.binary(max_size=60))
def test_any_bytes_as_a_body(kind: int, data: bytes) -> None:
    body = taken(lambda one: read_body(kind, one), data, MalformedFrame)
    if body is not None:
        assert fits(body, type(body))


NOTICES = st.builds(
    Notice, st.sampled_from(NoticeCode).map(int), st.text(max_size=8), U64, U64, st.text(), st.booleans()
)


@given(NOTICES)
def test_notice_comes_back(notice: Notice) -> None:
    assert read_notice(encode_notice(notice)) == notice


def test_every_damage_of_a_notice_is_malformed_or_another_notice() -> None:
    encoded = encode_notice(Notice(NoticeCode.GAP, "tëst", 3, 2**40, "reason", True))
    for data in damages(encoded):
        notice = taken(read_notice, data, MalformedFrame)
        if notice is not None:
            assert fits(notice, Notice)
            assert len(data) == len(encoded)


@settings(max_examples=200)
@given(damaged(NOTICES.map(encode_notice)) | st.binary(max_size=40))
def test_any_bytes_as_a_notice(data: bytes) -> None:
    taken(read_notice, data, MalformedFrame)


# --- the packed parts -----------------------------------------------------------------------------------------


def unpack_control(data: bytes) -> tuple[Any, ...]:
    """The control frame in ``data`` as its readers take it: header, then as many bytes as it says."""
    if len(data) < CONTROL_HEADER.size:
        raise MalformedFrame("header")
    header = CONTROL_HEADER.unpack_from(data)
    if len(data) != CONTROL_HEADER.size + header[0]:
        raise MalformedFrame("body")
    return (*header, data[CONTROL_HEADER.size :])


def declared_control(data: bytes, compiled: bool) -> tuple[Any, ...]:
    got = CONTROL_FRAME.parse(data, compiled=compiled)
    return (got.length, got.kind, got.reserved_8, got.reserved_16, got.request_id, got.body)


def unpack_event_frame(data: bytes) -> tuple[Any, ...]:
    """The event frame in ``data``, plainly."""
    try:
        connection, subscription, turn, count, reserved = EVENT_HEADER.unpack_from(data)
        at = EVENT_HEADER.size
        records = []
        for _ in range(count):
            record = RECORD_HEADER.unpack_from(data, at)
            end = at + record[0]
            if record[0] < RECORD_HEADER.size or end > len(data) or record[1] not in {1, 2, 3, 4}:
                raise MalformedFrame("record")
            if record[1] == RecordKind.PART and count != 1:
                raise MalformedFrame("part")
            records.append((*record, data[at + RECORD_HEADER.size : end]))
            at = end
    except struct.error as error:
        raise MalformedFrame(str(error)) from None
    if count == 0 or at != len(data):
        raise MalformedFrame("count")
    return (connection, subscription, turn, count, reserved, records)


def declared_event_frame(data: bytes, compiled: bool) -> tuple[Any, ...]:
    got = EVENT_FRAME.parse(data, compiled=compiled)
    names = ("length", "kind", "flags", "piece", "skip", "node_id", "incarnation", "m_sequence", "seq", "ev_id",
             "order_time", "body")  # fmt: skip
    records = [tuple(record[name] for name in names) for record in got.records]
    return (got.connection, got.subscription, got.turn, got.count, got.reserved, records)


CONTROL_FRAMES = st.builds(
    lambda kind, request_id, body: CONTROL_HEADER.pack(len(body), kind, 0, 0, request_id) + body,
    st.integers(0, 255), U32, st.binary(max_size=40),
)  # fmt: skip
RECORDS = st.builds(
    lambda kind, flags, reserved, rest, body: RECORD_HEADER.pack(56 + len(body), kind, flags, reserved, *rest) + body,
    st.sampled_from([1, 2]), st.integers(0, 255), U16, st.tuples(U32, U32, U64, U64, U64, U64, U64),
    st.binary(max_size=20),
)  # fmt: skip
EVENT_FRAMES = st.builds(
    lambda head, records: EVENT_HEADER.pack(*head, len(records), 0) + b"".join(records),
    st.tuples(U32, U32, U64), st.lists(RECORDS, min_size=1, max_size=4),
)  # fmt: skip
PART = EVENT_HEADER.pack(1, 2, 3, 1, 0) + RECORD_HEADER.pack(60, 3, 0, 7, 0, 1, 2, 3, 4, 5, 6) + bytes(4)
TWO = (
    EVENT_HEADER.pack(1, 2, 3, 2, 0)
    + RECORD_HEADER.pack(58, 1, 0, 0, 0, 1, 2, 3, 4, 5, 6) + b"ab"
    + RECORD_HEADER.pack(57, 2, 4, 0, 0, 1, 2, 3, 4, 5, 6) + b"c"
)  # fmt: skip


@pytest.mark.parametrize("compiled", [False, True])
@given(data=CONTROL_FRAMES)
def test_control_frame_equals_its_declaration(data: bytes, compiled: bool) -> None:
    assert declared_control(data, compiled) == unpack_control(data)
    assert CONTROL_FRAME.build(CONTROL_FRAME.parse(data), compiled=compiled) == data


@pytest.mark.parametrize("compiled", [False, True])
@given(data=EVENT_FRAMES)
def test_event_frame_equals_its_declaration(data: bytes, compiled: bool) -> None:
    assert declared_event_frame(data, compiled) == unpack_event_frame(data)
    assert EVENT_FRAME.build(EVENT_FRAME.parse(data), compiled=compiled) == data


@pytest.mark.parametrize("compiled", [False, True])
@given(receipts=st.lists(st.tuples(U64, U64, U32, U32, U64, U64), max_size=4))
def test_receipts_equal_their_declaration(receipts: list[tuple[int, ...]], compiled: bool) -> None:
    data = b"".join(RECEIPT.pack(*one) for one in receipts)
    got = RECEIPTS.parse(data, compiled=compiled)
    names = ("producer", "first_number", "count", "errno", "seq", "ev_id")
    assert [tuple(one[name] for name in names) for one in got.receipts] == receipts
    assert RECEIPTS.build(got, compiled=compiled) == data
    for length in range(len(data)):
        whole = taken(lambda one: RECEIPTS.parse(one, compiled=compiled), data[:length], MalformedFrame)
        assert (whole is not None) == (length % RECEIPT.size == 0)


@pytest.mark.parametrize("data", [PART, TWO])
def test_damaged_event_frames_are_taken_alike(data: bytes) -> None:
    for one in damages(data):
        plain = taken(unpack_event_frame, one, MalformedFrame)
        for compiled in (False, True):
            assert plain == taken(lambda d, c=compiled: declared_event_frame(d, c), one, MalformedFrame)


def test_a_piece_of_a_run_is_alone_in_its_frame() -> None:
    (record,) = EVENT_FRAME.parse(PART).records
    assert (record.piece, record.body) == (7, bytes(4))
    two = EVENT_HEADER.pack(1, 2, 3, 2, 0) + 2 * PART[EVENT_HEADER.size :]
    for compiled in (False, True):
        with pytest.raises(MalformedFrame):
            EVENT_FRAME.parse(two, compiled=compiled)


@given(damaged(EVENT_FRAMES) | st.binary(max_size=120))
def test_any_bytes_as_an_event_frame(data: bytes) -> None:
    plain = taken(unpack_event_frame, data, MalformedFrame)
    for compiled in (False, True):
        assert plain == taken(lambda d, c=compiled: declared_event_frame(d, c), data, MalformedFrame)


@given(damaged(CONTROL_FRAMES) | st.binary(max_size=40))
def test_any_bytes_as_a_control_frame(data: bytes) -> None:
    plain = taken(unpack_control, data, MalformedFrame)
    for compiled in (False, True):
        assert plain == taken(lambda d, c=compiled: declared_control(d, c), data, MalformedFrame)
