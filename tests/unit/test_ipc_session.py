"""The sans-IO session of one client: any way the bytes are cut gives the same requests; both directions are bounded."""

from __future__ import annotations

import errno
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocfcluster.errors import MalformedFrame
from ocfcluster.ipc.session import RECEIPTS_PER_FRAME, Session, Stage
from ocfcluster.limits import CONTROL_FRAME_BYTES, CONTROL_OUTPUT_BYTES, LENT_SOCKETS_UNANSWERED
from ocfcluster.wire.frames import (
    CONTROL_HEADER,
    RECEIPT,
    Answer,
    Error,
    Hello,
    Request,
    Subscribe,
    TopicResolve,
    control_frame,
    read_body,
)

HELLO = control_frame(Request.HELLO, 1, Hello())
KINDS = [kind for kind in Request if kind not in (Request.HELLO, Request.SUBSCRIBE)]


def frame(kind: int, request_id: int, body: bytes) -> bytes:
    return CONTROL_HEADER.pack(len(body), kind, 0, 0, request_id) + body


@given(
    requests=st.lists(
        st.tuples(st.sampled_from(KINDS), st.integers(1, 9), st.binary(max_size=300)), max_size=20
    ),
    cuts=st.lists(st.integers(0, 6000), max_size=12),
)
def test_requests_do_not_depend_on_how_the_stream_is_cut(
    requests: list[tuple[Request, int, bytes]], cuts: list[int]
) -> None:
    stream = HELLO + b"".join(frame(*request) for request in requests)
    session = Session(1 << 20)
    buffer = bytearray(len(stream))  # one buffer for all reads, as the agent has it
    bounds = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for begin, end in itertools.pairwise(bounds):
        buffer[: end - begin] = stream[begin:end]
        session.receive(memoryview(buffer)[: end - begin])
        buffer[:] = b"\xee" * len(buffer)
    got = [
        request if isinstance(request, bytes) else (request.kind, request.request_id, request.body)
        for request in session.requests
    ]
    expected = [body if kind == Request.PUBLISH else (kind, number, body) for kind, number, body in requests]
    assert got == [(Request.HELLO, 1, HELLO[12:]), *expected]


@given(st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused(data: bytes) -> None:
    for greeted in (False, True):
        session = Session(1 << 20)
        if greeted:
            session.receive(HELLO)
        try:
            session.receive(data)
        except MalformedFrame:
            assert session.stage is Stage.FAILED
            assert read_body(Answer.ERROR, session.output()[0][12:])


def test_a_large_publication_in_pieces_is_whole() -> None:
    session = Session(1 << 20)
    run = bytes(range(256)) * 4096
    stream = HELLO + frame(Request.PUBLISH, 0, run) + frame(Request.STATUS, 2, b"")
    for at in range(0, len(stream), 100_000):
        session.receive(stream[at : at + 100_000])
    assert len(session.requests) == 3
    assert session.requests[1] == run
    assert session.requests[2].kind == Request.STATUS


def test_what_claims_to_be_large_is_refused_at_its_header() -> None:
    for kind, most in ((Request.PUBLISH, (1 << 20) + 8192), (Request.TOPIC_CREATE, CONTROL_FRAME_BYTES)):
        session = Session(1 << 20)
        session.receive(HELLO)
        with pytest.raises(MalformedFrame):
            session.receive(CONTROL_HEADER.pack(most + 1, kind, 0, 0, 1))
        assert len(session._partial) == 0


def test_descriptors_belong_to_subscribes_in_order() -> None:
    session = Session(1 << 20)
    session.receive(HELLO)
    subscribe = control_frame(Request.SUBSCRIBE, 5, Subscribe(1, ["t"], False))
    session.receive(frame(Request.STATUS, 4, b"") + subscribe, [10])
    session.receive(subscribe[:7], [11])
    session.receive(subscribe[7:])
    assert [request.descriptor for request in session.requests] == [-1, -1, 10, 11]
    with pytest.raises(MalformedFrame):
        session.receive(subscribe)
    session = Session(1 << 20)
    session.receive(HELLO)
    with pytest.raises(MalformedFrame):
        session.receive(frame(Request.STATUS, 4, b""), [12])
    assert session.abandoned_descriptors() == [12]


def test_lent_sockets_that_are_not_answered_for_are_bounded() -> None:
    session = Session(1 << 20)
    session.receive(HELLO)
    for number in range(LENT_SOCKETS_UNANSWERED + 1):
        session.receive(
            control_frame(Request.SUBSCRIBE, number + 2, Subscribe(number, ["t"], False)), [100 + number]
        )
    last = session.requests[-1]
    assert not session.admits(last)
    session.refuse(last.request_id, errno.ENOMEM, "too many")
    assert session.admits(session.requests[1])


def test_answers_and_receipts_keep_their_order_and_are_bounded() -> None:
    session = Session(1 << 20)
    session.receive(HELLO)
    session.receipt(1, 1, 1, 0, 1, 1)
    session.receipt(1, 2, 1, 0, 2, 2)
    session.answer(1, Answer.DONE)
    session.receipt(1, 3, 1, 0, 3, 3)
    stream = b"".join(session.output())
    kinds = []
    while stream:
        length, kind, *_ = CONTROL_HEADER.unpack_from(stream)
        kinds.append((kind, length // RECEIPT.size if kind == Answer.RECEIPTS else 0))
        stream = stream[12 + length :]
    assert kinds == [(Answer.RECEIPTS, 2), (Answer.DONE, 0), (Answer.RECEIPTS, 1)]
    for number in range(CONTROL_OUTPUT_BYTES // RECEIPT.size + 1):
        assert not session.overflowed or number > CONTROL_OUTPUT_BYTES // RECEIPT.size - 10
        session.receipt(1, number, 1, 0, 1, 1)
    assert session.overflowed


def test_partial_writes_go_on_where_they_stopped() -> None:
    session = Session(1 << 20)
    for number in range(RECEIPTS_PER_FRAME + 5):
        session.receipt(7, number, 1, 0, number, number)
    session.answer(1, Answer.ERROR, Error(5, "x" * 50))
    whole = b"".join(session.output())
    got = b""
    while session.output():
        piece = b"".join(session.output())[:777]
        got += piece
        session.sent(len(piece))
    assert got == whole
    assert session.output_bytes == 0


def test_requests_are_decoded_later_and_wrong_ones_refused() -> None:
    session = Session(1 << 20)
    session.receive(HELLO + control_frame(Request.TOPIC_RESOLVE, 2, TopicResolve("t")))
    assert read_body(Request.TOPIC_RESOLVE, session.requests[1].body) == TopicResolve("t")
    with pytest.raises(MalformedFrame):
        session.hello(session.requests[1])
