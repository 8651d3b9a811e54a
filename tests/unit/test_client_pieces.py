"""Runs that are too large for one frame: their pieces, and what may come between them."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocfcluster.client.events import Notice, NoticeCode
from ocfcluster.client.eventsocket import EventSocket
from ocfcluster.client.pieces import Pieces
from ocfcluster.client.subscription_state import SubscriptionState
from ocfcluster.errors import MalformedFrame
from ocfcluster.limits import EVENT_BYTES_CEILING, RUN_BYTES
from ocfcluster.wire import frames
from ocfcluster.wire.frames import EVENT_HEADER, RECORD_HEADER, RecordKind
from ocfcluster.wire.run import RunKind, build_run

CONNECTION = 5
DATA = bytes(range(256)) * 900
RUN = build_run(RunKind.PUBLICATION, 16, 7, 1, [DATA])
PIECES = [RUN[at : at + RUN_BYTES] for at in range(0, len(RUN), RUN_BYTES)]


class Events:
    """A subscription, and the agent's end of its socket."""

    def __init__(self) -> None:
        state = SubscriptionState(1, ["t"], callback=False)
        state.started = True
        state.names, state.positions = {16: "t"}, {16: 0}
        state.connection = CONNECTION
        self.state = state
        self.events = EventSocket(state, resume=True)

    def send(self, kind: RecordKind, body: bytes, number: int = 0, seq: int = 1) -> None:
        header = RECORD_HEADER.pack(RECORD_HEADER.size + len(body), kind, 0, number, 0, 2, 3, 4, seq, seq, 9)
        message = EVENT_HEADER.pack(self.state.connection, 1, 0, 1, 0) + header + body
        self.events._writer.send(message, socket.MSG_DONTWAIT)

    def send_pieces(self, *numbers: int, seq: int = 1) -> None:
        for number in numbers:
            self.send(RecordKind.PART, PIECES[number], number, seq)


@pytest.fixture
def made() -> Iterator[Events]:
    one = Events()
    yield one
    one.events.close()


def test_the_event_is_there_with_the_last_piece_and_stays_until_it_is_taken(made: Events) -> None:
    for number in range(len(PIECES)):
        assert made.events.take_event() is None
        assert made.state.positions == {16: 0}
        made.send_pieces(number)
    assert made.events.head() == (1, 0)
    assert made.events._readable()
    event = made.events.take_event()
    assert event is not None
    assert (event.seq, event.node_id, event.data) == (1, 2, DATA)
    assert not made.events._readable()
    assert made.events.take_event() is None
    assert made.state.positions == {16: 1}


def test_another_frame_says_that_the_rest_will_not_come(made: Events) -> None:
    made.send_pieces(0, 1)
    made.send(RecordKind.NOTICE, frames.encode_notice(frames.Notice(NoticeCode.GAP, "t", 1, 1, "too slow")))
    gap = made.events.take_event()
    assert gap is not None
    assert Notice.decode(gap.data).code is NoticeCode.GAP
    assert not made.events._pieces.begun
    made.send_pieces(*range(len(PIECES)), seq=2)
    event = made.events.take_event()
    assert event is not None
    assert (event.seq, event.data) == (2, DATA)
    assert made.events.damaged == 0


def test_a_run_that_is_begun_anew(made: Events) -> None:
    made.send_pieces(0, 1, *range(len(PIECES)))
    event = made.events.take_event()
    assert event is not None
    assert (event.data, made.events.damaged) == (DATA, 0)
    assert made.events.take_event() is None


@pytest.mark.parametrize("numbers", [(1,), (0, 2), (0, 1, 1)])
def test_pieces_that_do_not_follow_each_other_are_a_gap(made: Events, numbers: tuple[int, ...]) -> None:
    made.send_pieces(*numbers)
    gap = made.events.take_event()
    assert gap is not None
    assert "damaged" in Notice.decode(gap.data).reason
    assert made.events.damaged == 1
    made.send_pieces(*range(len(PIECES)))
    event = made.events.take_event()
    assert event is not None
    assert event.data == DATA


def test_an_agent_that_goes_between_pieces_leaves_nothing(made: Events) -> None:
    made.send_pieces(0)
    assert made.events.take_event() is None
    made.send_pieces(1)
    assert made.events.lose(Notice(NoticeCode.AGENT_LOST))
    assert not made.events._pieces.begun
    lost = made.events.take_event()
    assert lost is not None
    assert Notice.decode(lost.data).code is NoticeCode.AGENT_LOST
    assert made.state.positions == {16: 0}  # from here the next agent goes on
    made.events.resumed([], 2, CONNECTION + 1)
    made.send_pieces(*range(len(PIECES)))
    event = made.events.take_event()
    assert event is not None
    assert (event.data, made.events.damaged) == (DATA, 0)


def test_an_agent_that_goes_behind_the_last_piece_has_given_the_event(made: Events) -> None:
    made.send_pieces(*range(len(PIECES)))
    assert made.events.lose(Notice(NoticeCode.AGENT_LOST))
    event = made.events.take_event()
    assert event is not None
    assert event.data == DATA


def test_nothing_of_a_run_is_kept_once_the_subscription_is_closed(made: Events) -> None:
    made.send_pieces(0)
    assert made.events.take_event() is None
    made.events.close()
    assert not made.events._pieces.begun


@given(st.integers(64, 400), st.integers(1, 100))
def test_any_cut_gives_the_run(size: int, piece: int) -> None:
    run = size.to_bytes(4, "little") + bytes(at & 0xFF for at in range(size - 4))
    pieces, first = Pieces(), 64
    cuts = [run[:first], *(run[at : at + piece] for at in range(first, size, piece))]
    got = [pieces.add(number, memoryview(one)) for number, one in enumerate(cuts)]
    assert got == [None] * (len(cuts) - 1) + [run]
    assert not pieces.begun


@pytest.mark.parametrize("length", [0, 63, 64, EVENT_BYTES_CEILING * 2, 2**32 - 1])
def test_a_run_whose_length_cannot_be_is_refused_at_once(length: int) -> None:
    pieces = Pieces()
    with pytest.raises(MalformedFrame):
        pieces.add(0, memoryview(length.to_bytes(4, "little") + bytes(61)))
    assert not pieces.begun
    with pytest.raises(MalformedFrame, match="shorter"):
        pieces.add(0, memoryview(bytes(63)))
