"""Bodies of control frames: hostile and careless senders."""

from __future__ import annotations

import msgspec
import pytest

from ocfcluster.errors import InvalidArgument, MalformedFrame
from ocfcluster.limits import CLIENT_NAME_BYTES, FRAME_HEADER_BYTES, RECORD_HEADER_BYTES
from ocfcluster.wire import frames
from ocfcluster.wire.frames import Answer, Notice, NoticeCode, Request, control_frame, read_body, read_notice


def body(*fields: object) -> bytes:
    return msgspec.msgpack.encode(fields)


def test_sizes_and_layout_of_the_headers() -> None:
    assert frames.CONTROL_HEADER.size == 12
    assert frames.RECEIPT.size == 40
    assert frames.EVENT_HEADER.size == FRAME_HEADER_BYTES
    assert frames.RECORD_HEADER.size == RECORD_HEADER_BYTES
    assert control_frame(Request.GOODBYE, 7) == b"\0\0\0\0\x0e\0\0\0\x07\0\0\0"
    assert (
        control_frame(Request.TOPIC_RESOLVE, 1, frames.TopicResolve("t"))
        == b"\3\0\0\0\x08\0\0\0\1\0\0\0\x91\xa1t"
    )


@pytest.mark.parametrize("number", [-1, 2**32, 2**64 - 1])
def test_a_subscription_number_that_fits_no_event_frame_is_refused(number: int) -> None:
    for kind, fields in (
        (Request.SUBSCRIBE, (number, ["t"], False)),
        (Request.UNSUBSCRIBE, (number,)),
        (Request.OUT_OF_LINE, (number, True)),
    ):
        with pytest.raises(MalformedFrame):
            read_body(kind, body(*fields))


@pytest.mark.parametrize(("kind", "fields"), [
    (Request.HELLO, (-1, "", "")),
    (Request.CLOSE_PRODUCER, (-1,)),
    (Request.SUBSCRIBE, (1, ["t"], False, "", [["t", -1, 1]])),
    (Request.SUBSCRIBE, (1, ["t"], False, "", [["t", 2**32, 1]])),
    (Request.SUBSCRIBE, (1, ["t"], False, "", [["t", 1, -1]])),
])  # fmt: skip
def test_numbers_outside_their_fields_are_refused(kind: Request, fields: tuple[object, ...]) -> None:
    with pytest.raises(MalformedFrame):
        read_body(kind, body(*fields))


def test_greatest_numbers_are_taken() -> None:
    got = read_body(Request.SUBSCRIBE, body(2**32 - 1, ["t"], False, "", [["t", 2**32 - 1, 2**64 - 1]]))
    assert got == frames.Subscribe(2**32 - 1, ["t"], False, "", [frames.Position("t", 2**32 - 1, 2**64 - 1)])
    assert read_body(Request.CLOSE_PRODUCER, body(2**64 - 1)) == frames.Producer(2**64 - 1)


def test_names_for_the_log_are_short() -> None:
    assert read_body(Request.HELLO, body(1, "l" * CLIENT_NAME_BYTES, "n" * CLIENT_NAME_BYTES))
    for fields in ((1, "", "n" * (CLIENT_NAME_BYTES + 1)), (1, "l" * (CLIENT_NAME_BYTES + 1), "")):
        with pytest.raises(MalformedFrame):
            read_body(Request.HELLO, body(*fields))


@pytest.mark.parametrize(
    "kind", [Request.PUBLISH, Request.GOODBYE, Answer.RECEIPTS, Answer.DONE, 0, 255, 2**40, -1]
)
def test_kinds_without_a_structure_are_refused(kind: int) -> None:
    with pytest.raises(MalformedFrame):
        read_body(kind, b"\x90")


@pytest.mark.parametrize("bad", [
    b"", b"\xc1", b"\x93\x01\xa1\xff\xa0", b"\x90\x90", b"\x80", b"\x94\x01\xa0\xa0" + b"\x91" * 100_000,
    b"\x93\x01\xdb\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff\x01\xa0\xa0",
])  # fmt: skip
def test_garbage_is_a_malformed_frame(bad: bytes) -> None:
    with pytest.raises(MalformedFrame):
        read_body(Request.HELLO, bad)
    with pytest.raises(MalformedFrame):
        read_notice(bad)


@pytest.mark.parametrize("kind", [Request.SUBSCRIBE, Answer.STATUS, Answer.TOPICS])
def test_a_length_that_is_claimed_allocates_nothing(kind: int) -> None:
    huge = b"\xdd\xff\xff\xff\xff"  # an array of 2^32 - 1 entries
    start = {Request.SUBSCRIBE: b"\x93\x01", Answer.STATUS: b"\x91\x81\xa1a", Answer.TOPICS: b"\x91"}[kind]
    with pytest.raises(MalformedFrame):
        read_body(kind, start + huge)


@pytest.mark.parametrize("unfit", [frames.Hello(1, "\udcff"), frames.Producer(2**64)])
def test_what_cannot_be_encoded_is_an_invalid_argument(unfit: frames.Body) -> None:
    with pytest.raises(InvalidArgument):
        control_frame(Request.HELLO, 1, unfit)


def test_later_versions_may_add_fields() -> None:
    assert read_body(Request.HELLO, body(2, "l", "n", "new", [1])) == frames.Hello(2, "l", "n")
    assert read_body(Request.HELLO, body()) == frames.Hello()


def test_defaults_are_not_shared() -> None:
    frames.Subscribe(1, [], True).positions.append(frames.Position("t", 1, 1))
    assert frames.Subscribe(1, [], True).positions == []


def test_notice_comes_back() -> None:
    notice = Notice(NoticeCode.GAP, "t", 3, 2**64 - 1, "r", True)
    assert read_notice(frames.encode_notice(notice)) == notice
    assert read_notice(memoryview(frames.encode_notice(notice))) == notice
