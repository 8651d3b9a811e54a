"""The sans-IO session and the opening of frames: what an agent may say that it should not."""

from __future__ import annotations

import errno
import select
import socket

import msgspec
import pytest

from ocfcluster.client.controlsocket import ControlSocket
from ocfcluster.client.eventsocket import EventSocket
from ocfcluster.client.producer import Batch, Producer, run_size
from ocfcluster.client.session import Outgoing, Session, Stage
from ocfcluster.client.subscription_state import SubscriptionState
from ocfcluster.errors import (
    InvalidArgument,
    MalformedFrame,
    NotConnected,
    OutcomeUnknown,
    UnknownTopic,
)
from ocfcluster.limits import LENT_SOCKETS_UNANSWERED, REQUESTS_UNANSWERED
from ocfcluster.wire import frames
from ocfcluster.wire.frames import (
    CONTROL_HEADER,
    EVENT_HEADER,
    RECEIPT,
    RECORD_HEADER,
    Answer,
    RecordKind,
    Request,
    control_frame,
)
from ocfcluster.wire.run import build_run
from tests.unit.test_client_producer import Nobody

VERSION = frames.LOCAL_PROTOCOL_VERSION
WELCOME = frames.Welcome(VERSION, "x", "c", "h", 1, 7, 3, 1 << 20, "safe")


def session() -> Session:
    made = Session(library="test", name="n", resume=True, clock_ns=lambda: 5)
    made.connected()
    made.outgoing.clear()
    return made


def ready() -> Session:
    made = session()
    made.receive(control_frame(Answer.WELCOME, 0, WELCOME))
    assert made.stage is Stage.READY
    return made


def sent(made: Session) -> list[int]:
    """The request ids of what is outgoing."""
    return [CONTROL_HEADER.unpack_from(one.buffer)[4] for one in made.outgoing]


def test_requests_wait_for_the_welcome() -> None:
    made = session()
    pending = made.request(Request.BARRIER)
    assert not made.outgoing
    made.receive(control_frame(Answer.WELCOME, 0, WELCOME))
    made.receive(control_frame(Answer.DONE, sent(made)[0]))
    assert pending.done
    assert pending.result() is None


def test_frames_may_come_in_any_pieces() -> None:
    made = session()
    for byte in control_frame(Answer.WELCOME, 0, WELCOME):
        made.receive(bytes((byte,)))
    assert made.stage is Stage.READY


def test_errors_become_exceptions() -> None:
    made = ready()
    pending = made.request(Request.TOPIC_RESOLVE, frames.TopicResolve("x"))
    made.receive(control_frame(Answer.ERROR, sent(made)[0], frames.Error(errno.EINVAL, "no topic")))
    with pytest.raises(UnknownTopic, match="no topic"):
        pending.result()


@pytest.mark.parametrize(
    "data",
    [
        CONTROL_HEADER.pack(1 << 30, Answer.DONE, 0, 0, 1),
        CONTROL_HEADER.pack(0, 200, 0, 0, 1),
        CONTROL_HEADER.pack(1, Answer.RECEIPTS, 0, 0, 0) + b"x",
        CONTROL_HEADER.pack(1, Answer.TOPIC, 0, 0, 1) + b"\xc1",
        control_frame(Answer.DONE, 77),
        control_frame(Answer.WELCOME, 0, frames.Welcome(9, "x", "c", "h", 1, 7, 3, 1, "safe")),
    ],
)
def test_what_an_agent_must_not_say(data: bytes) -> None:
    made = ready()
    with pytest.raises(MalformedFrame):
        made.receive(data)


def test_an_answer_of_the_wrong_kind() -> None:
    made = ready()
    made.request(Request.STATUS)
    with pytest.raises(MalformedFrame):
        made.receive(control_frame(Answer.DONE, sent(made)[0]))


def test_requests_and_lent_sockets_are_bounded() -> None:
    made = ready()
    for _ in range(REQUESTS_UNANSWERED + 50):
        made.request(Request.BARRIER)
    assert len(made.outgoing) == REQUESTS_UNANSWERED
    lending = ready()
    states = [lending.new_subscription(["t"], False) for _ in range(100)]
    for state in states:
        state.lend = 5
        lending.subscribe(state)
    assert len(lending.outgoing) == LENT_SOCKETS_UNANSWERED
    assert all(one.descriptor == 5 for one in lending.outgoing)
    lending.receive(
        control_frame(
            Answer.SUBSCRIBED, sent(lending)[0], frames.Subscribed("h", [frames.Start("t", 16, 1, False)])
        )
    )
    assert len(lending.outgoing) == LENT_SOCKETS_UNANSWERED + 1


def test_the_end_without_resume_fails_what_waits() -> None:
    made = Session(library="test", name="n", resume=False, clock_ns=lambda: 5)
    made.connected()
    made.receive(control_frame(Answer.WELCOME, 0, WELCOME))
    pending = made.request(Request.BARRIER)
    made.lost("gone")
    assert made.stage is Stage.ENDED
    with pytest.raises(NotConnected, match="gone"):
        pending.result()
    with pytest.raises(NotConnected):
        made.request(Request.BARRIER)


def test_administration_is_never_repeated_by_itself() -> None:
    made = ready()
    under_way = made.request(Request.ADMINISTER, frames.Administer(frames.Administration.SHUTDOWN))
    again = made.request(Request.BARRIER)
    made.lost("gone")
    with pytest.raises(OutcomeUnknown, match="gone"):
        under_way.result()
    waiting = made.request(Request.ADMINISTER, frames.Administer(frames.Administration.REJOIN))
    made.outgoing.clear()
    made.connected()
    made.receive(control_frame(Answer.WELCOME, 0, WELCOME))
    kinds = [CONTROL_HEADER.unpack_from(one.buffer)[1] for one in made.outgoing]
    assert kinds == [Request.HELLO, Request.BARRIER, Request.ADMINISTER]
    assert not again.done
    assert not waiting.done


def kinds(made: Session) -> list[int]:
    """The kinds of the requests that are outgoing."""
    return [CONTROL_HEADER.unpack_from(one.buffer)[1] for one in made.outgoing]


def again(made: Session, welcome: frames.Welcome = WELCOME) -> None:
    """The connection is lost; another one is welcomed."""
    made.lost("gone")
    made.connected()
    made.outgoing.clear()
    made.receive(control_frame(Answer.WELCOME, 0, welcome))


def test_a_command_that_was_not_sent_before_its_agent_went_is_not_carried_out() -> None:
    made = ready()
    for _ in range(REQUESTS_UNANSWERED):
        made.request(Request.BARRIER)
    unsent = made.request(Request.ADMINISTER, frames.Administer(frames.Administration.SHUTDOWN))
    again(made)
    with pytest.raises(NotConnected, match="not carried out"):
        unsent.result()
    assert set(kinds(made)) == {Request.BARRIER}


def test_a_request_that_was_given_up_goes_to_no_other_agent() -> None:
    made = ready()
    under_way = made.request(Request.TOPIC_REMOVE, frames.TopicRemove("t"))
    made.outgoing.clear()  # written
    made.withdraw(under_way)
    made.lost("gone")
    for _ in range(3):
        made.withdraw(made.request(Request.TOPIC_REMOVE, frames.TopicRemove("t")))
    made.connected()
    made.receive(control_frame(Answer.WELCOME, 0, WELCOME))
    assert kinds(made) == [Request.HELLO]


def test_a_request_that_was_given_up_before_it_was_written_is_not() -> None:
    made = ready()
    first = made.request(Request.TOPIC_REMOVE, frames.TopicRemove("t"))
    second = made.request(Request.BARRIER)
    made.withdraw(first)
    assert kinds(made) == [Request.BARRIER]
    made.receive(control_frame(Answer.DONE, sent(made)[0]))
    assert second.done
    written = made.request(Request.TOPIC_REMOVE, frames.TopicRemove("t"))
    (request_id,) = sent(made)[1:]
    made.outgoing.clear()
    made.withdraw(written)
    made.receive(control_frame(Answer.DONE, request_id))  # its answer is none of an unknown request


STARTED = frames.Subscribed("h", [frames.Start("t", 16, 1, False)])


def lending(made: Session) -> SubscriptionState:
    state = made.new_subscription(["t"], False)
    state.lend = 5
    made.subscribe(state)
    return state


def test_a_subscription_that_was_given_up_is_asked_for_no_more() -> None:
    made = ready()
    under_way = lending(made)
    made.outgoing.clear()
    assert made.unsubscribe(under_way) is None
    made.lost("gone")
    assert made.unsubscribe(lending(made)) is None
    made.connected()
    made.receive(control_frame(Answer.WELCOME, 0, WELCOME))
    assert kinds(made) == [Request.HELLO]


def test_a_descriptor_that_was_not_lent_yet_stays() -> None:
    made = ready()
    for _ in range(2 * LENT_SOCKETS_UNANSWERED):
        made.unsubscribe(lending(made))
    assert not made.outgoing
    lending(made)
    assert kinds(made) == [Request.SUBSCRIBE]


def test_an_agent_that_answers_late_is_told_that_the_subscription_was_given_up() -> None:
    made = ready()
    state = lending(made)
    (request_id,) = sent(made)
    made.outgoing.clear()
    made.unsubscribe(state)
    assert not made.outgoing  # it would know no such subscription
    made.receive(control_frame(Answer.SUBSCRIBED, request_id, STARTED))
    assert kinds(made) == [Request.UNSUBSCRIBE]
    assert not made.subscriptions
    again(made)
    assert Request.SUBSCRIBE not in kinds(made)


def test_a_resumption_that_was_given_up_does_not_hold_up_publications() -> None:
    made = ready()
    state = lending(made)
    made.receive(control_frame(Answer.SUBSCRIBED, sent(made)[0], STARTED))
    others = [lending(made) for _ in range(LENT_SOCKETS_UNANSWERED)]
    for one, request_id in zip(others, sent(made)[1:], strict=True):
        made.receive(control_frame(Answer.SUBSCRIBED, request_id, STARTED))
        assert one.started
    batch = publish(made, b"x")
    again(made)
    assert batch.run not in [one.buffer for one in made.outgoing]  # one resumption waits for its turn
    last = others[-1]
    assert made.unsubscribe(last) is None
    assert batch.run in [one.buffer for one in made.outgoing]
    assert made.unsubscribe(state) is None  # under way
    assert state.id not in made.subscriptions


def test_a_name_that_is_too_long() -> None:
    with pytest.raises(InvalidArgument):
        Session(library="x", name="n" * 65, resume=True, clock_ns=lambda: 0)


# --- frames on an event socket -----------------------------------------------------------------------------------


@pytest.fixture
def event_socket():  # type: ignore[no-untyped-def]
    state = SubscriptionState(1, ["t"], False, connection=3, names={16: "t"}, positions={16: 0}, started=True)
    made = EventSocket(state, resume=True)
    yield made
    made.close()


def record(run: bytes, seq: int, skip: int = 0) -> bytes:
    length = RECORD_HEADER.size + len(run)
    return RECORD_HEADER.pack(length, RecordKind.RUN, 0, 0, skip, 1, 7, 1, seq, seq, 0) + run


def message(*records: bytes, connection: int = 3) -> bytes:
    return EVENT_HEADER.pack(connection, 1, 0, len(records), 0) + b"".join(records)


def test_several_runs_in_a_frame_and_a_skip(event_socket: EventSocket) -> None:
    uniform = build_run(1, 16, 9, 1, [b"a", b"b", b"c"])
    mixed = build_run(1, 16, 9, 4, [b"d", b"ee", b"", b"ffff"], properties=b"\x01\x01\x01\x00kv")
    event_socket._writer.send(message(record(uniform, 1, 1), record(mixed, 3, 2)))
    got = []
    while (event := event_socket.take_event()) is not None:
        got.append((event.seq, event.data, event.properties))
    assert got == [(1, b"b", {}), (2, b"c", {}), (3, b"", {"k": "v"}), (4, b"ffff", {"k": "v"})]
    assert event_socket.state.positions == {16: 4}
    assert not select.select([event_socket], [], [], 0)[0]


def test_a_run_is_what_is_left_of_it(event_socket: EventSocket) -> None:
    for events in ([b"a", b"b", b"c"], [b"a", b"bb", b"ccc"]):
        event_socket._writer.send(message(record(build_run(1, 16, 9, 1, events), 1)))
        assert event_socket.take_event() is not None
        run = event_socket.take_run()
        assert run is not None
        assert (run.seq, len(run), list(run)) == (2, 2, events[1:])
        assert [event.data for event in run.events()] == events[1:]
        assert event_socket.take_run() is None


def test_a_damaged_run_is_a_gap(event_socket: EventSocket) -> None:
    run = bytearray(build_run(1, 16, 9, 1, [b"a", b"b"]))
    run[-1] ^= 1
    event_socket._writer.send(message(record(bytes(run), 7)))
    event_socket._writer.send(message(record(build_run(1, 16, 9, 3, [b"c"]), 9)))
    event = event_socket.take_event()
    assert event is not None
    assert event.notice is not None
    assert (event.notice.name, event.notice.first_seq, event.notice.last_seq) == ("gap", 7, 8)
    after = event_socket.take_event()
    assert after is not None
    assert after.seq == 9
    assert event_socket.damaged == 1


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_truncated_frame_is_told_and_passed_over(event_socket: EventSocket, cut: int) -> None:
    whole = message(record(build_run(1, 16, 9, 1, [b"a", b"b"]), 1))
    event_socket._writer.send(whole[:-cut])
    event = event_socket.take_event()
    assert event is not None
    assert event.notice is not None
    assert event_socket.take_event() is None
    assert not select.select([event_socket], [], [], 0)[0]


def test_a_gap_that_was_told_is_not_told_again(event_socket: EventSocket) -> None:
    for last_seq, reached in ((5, 5), (3, 5), (0, 5)):  # 0: nobody knows
        data = frames.encode_notice(frames.Notice(frames.NoticeCode.GAP, "t", 1, last_seq, "too slow"))
        length = RECORD_HEADER.size + len(data)
        head = RECORD_HEADER.pack(length, RecordKind.NOTICE, 5, 0, 0, 1, 7, 1, 0, 1, 0)
        event_socket._writer.send(message(head + data))
        event = event_socket.take_event()
        assert event is not None
        assert event.notice is not None
        assert event_socket.state.positions == {16: reached}


def test_an_agent_that_went_before_a_subscription_began_is_not_told_of() -> None:
    state = SubscriptionState(1, ["t"], False)
    made = EventSocket(state, resume=True)
    try:
        made._writer.send(message(record(build_run(1, 16, 9, 1, [b"early"]), 1)))
        assert made.lose(frames.Notice(frames.NoticeCode.AGENT_LOST, reason="gone"))
        state.started, state.connection = True, 3
        assert made.take_event() is None
        assert not select.select([made], [], [], 0)[0]
    finally:
        made.close()


def test_what_cannot_be_written_ends_the_connection() -> None:
    made = ready()
    ours, theirs = socket.socketpair()
    control = ControlSocket(ours)
    try:
        lending(made).lend = 5
        made.outgoing[0] = Outgoing(made.outgoing[0].buffer, 1 << 20)  # no descriptor of this process
        made.request(Request.BARRIER)
        assert control.write(made)
        assert not made.outgoing
        assert control.read() == b""
        assert theirs.recv(1) == b""
    finally:
        control.close()
        theirs.close()


def test_frames_of_another_connection_do_not_count(event_socket: EventSocket) -> None:
    event_socket._writer.send(message(record(build_run(1, 16, 9, 1, [b"late"]), 1), connection=2))
    assert event_socket.take_event() is None
    assert not select.select([event_socket], [], [], 0)[0]


def test_what_belongs_to_a_history_waits_until_the_agent_knows_its_own() -> None:
    made = ready()
    producer = made.add_producer(False)
    made.open(producer)
    made.receive(control_frame(Answer.PRODUCER, sent(made)[-1], frames.Producer(7)))
    assert producer.id == 7
    batch = Batch(Nobody(), "t", 16, 0, b"", [b"x"], 65)
    producer.queue(batch, 0)
    made.publish(producer, batch)
    forming = frames.Welcome(VERSION, "x", "c", "", 1, 8, 4, 1 << 20, "safe")
    for cluster_id, again in (("h", True), ("another", False)):
        made.lost("restart")
        made.connected()
        made.outgoing.clear()
        made.receive(control_frame(Answer.WELCOME, 0, forming))
        assert made.stage is Stage.READY
        assert not made.outgoing  # the same number may be another client's producer in a new history
        told = frames.Welcome(VERSION, "x", "c", cluster_id, 1, 8, 4, 1 << 20, "safe")
        made.receive(control_frame(Answer.WELCOME, 0, told))
        published = [one for one in made.outgoing if one.buffer == batch.run]
        assert bool(published) is again
        assert batch.done is not again


def publish(made: Session, data: bytes) -> Batch:
    """A publication under a producer that was just opened."""
    producer = made.add_producer(False)
    made.open(producer)
    made.receive(control_frame(Answer.PRODUCER, sent(made)[-1], frames.Producer(7)))
    batch = Batch(Nobody(), "t", 16, 0, b"", [data], run_size(1, len(data), b""))
    producer.queue(batch, 0)
    made.publish(producer, batch)
    return batch


def test_what_gathered_for_a_history_ends_with_it() -> None:
    made = ready()
    batch = publish(made, b"x")
    (producer,) = made.producers
    gathered = producer.gathering = Batch(Nobody(), "t", 16, 0, b"", [b"y"], 65)
    again(made)
    assert producer.gathering is gathered
    again(made, frames.Welcome(VERSION, "x", "c", "another", 1, 7, 4, 1 << 20, "safe"))
    assert producer.gathering is None
    assert isinstance(batch.error, OutcomeUnknown)
    assert isinstance(gathered.error, OutcomeUnknown)


def test_a_closed_producer_is_given_back_when_all_is_answered() -> None:
    made = ready()
    batch = publish(made, b"x")
    (producer,) = made.producers
    gathered = producer.gathering = Batch(Nobody(), "t", 16, 0, b"", [b"y"], 65)
    made.close_producer(producer)
    again(made)
    assert [one.buffer for one in made.outgoing][1::2] == [batch.run, gathered.run]
    body = 2 * RECEIPT.pack(7, 1, 2, 0, 1, 1)  # a repeat says nothing new
    made.outgoing.clear()
    made.receive(CONTROL_HEADER.pack(len(body), Answer.RECEIPTS, 0, 0, 0) + body)
    assert batch.done
    assert gathered.done
    assert kinds(made) == [Request.CLOSE_PRODUCER]
    assert not made.producers


@pytest.mark.parametrize("greeting", [False, True])
def test_a_producer_that_was_closed_without_an_agent_is_given_back_to_the_next(greeting: bool) -> None:
    made = ready()
    publish(made, b"x")
    (producer,) = made.producers
    producer.answered(1, 1, 0, 1, 1)
    made.lost("gone")
    if greeting:
        made.connected()
    made.close_producer(producer)
    assert made.producers
    if not greeting:
        made.connected()
    made.outgoing.clear()
    made.receive(control_frame(Answer.WELCOME, 0, WELCOME))
    assert kinds(made) == [Request.CLOSE_PRODUCER]
    assert not made.producers


def test_a_closed_producer_is_no_more_in_another_history() -> None:
    made = ready()
    batch = publish(made, b"x")
    made.close_producer(made.producers[0])
    again(made, frames.Welcome(VERSION, "x", "c", "another", 1, 7, 4, 1 << 20, "safe"))
    assert isinstance(batch.error, OutcomeUnknown)
    assert not made.outgoing
    assert not made.producers


def test_a_topic_is_known_as_long_as_its_history_goes_on() -> None:
    made = ready()
    asked = made.request(Request.TOPIC_RESOLVE, frames.TopicResolve("t"))
    topic = frames.Topic("t", 16, False, 0)
    made.receive(control_frame(Answer.TOPIC, sent(made)[0], topic))
    assert made.topics == {"t": topic}
    again(made, frames.Welcome(VERSION, "x", "c", "another", 1, 7, 4, 1 << 20, "safe"))
    assert asked.done  # whoever asked looks only now
    assert made.topics == {}


@pytest.mark.parametrize("data", [b"x", bytes(200_000)])
def test_what_the_next_agent_would_hang_up_at_is_not_sent_again(data: bytes) -> None:
    made = ready()
    batch = publish(made, data)
    again(made)
    assert made.outgoing[-1].buffer == batch.run
    again(made, frames.Welcome(VERSION, "x", "c", "h", 1, 7, 4, len(data), "safe"))
    assert made.outgoing[-1].buffer == batch.run
    again(made, frames.Welcome(VERSION, "x", "c", "h", 1, 7, 4, 100_000, "safe"))
    if len(data) == 1:
        assert made.outgoing[-1].buffer == batch.run
    else:
        assert not made.outgoing
        assert isinstance(batch.error, OutcomeUnknown)


def test_a_resumption_begins_behind_what_the_filter_left_out() -> None:
    made = ready()
    state = made.new_subscription(["t", "u"], False, b"filter", 1)
    pending = made.subscribe(state)
    starts = [frames.Start("t", 16, 11, False), frames.Start("u", 17, 21, False)]
    made.receive(control_frame(Answer.SUBSCRIBED, sent(made)[0], frames.Subscribed("h", starts)))
    pending.result()
    reached = [frames.Reached(16, 40), frames.Reached(17, 50)]
    made.receive(control_frame(Answer.LEFT_OUT, 0, frames.LeftOut(state.id, reached)))
    made.receive(control_frame(Answer.LEFT_OUT, 0, frames.LeftOut(99, reached)))  # one that is gone
    state.positions[17] = 60  # a later frame was taken
    made.lost("gone")
    made.connected()
    made.outgoing.clear()
    made.receive(control_frame(Answer.WELCOME, 0, WELCOME))
    (again,) = [one.buffer for one in made.outgoing]
    body = frames.read_body(Request.SUBSCRIBE, again[CONTROL_HEADER.size :])
    assert isinstance(body, frames.Subscribe)
    assert [(one.topic, one.seq) for one in body.positions] == [("t", 40), ("u", 60)]
    assert (body.filter, body.on_slow) == (b"filter", 1)
    answer = frames.Subscribed(
        "h", [frames.Start("t", 16, 43, False, gap_from=41), frames.Start("u", 17, 61, False)]
    )
    made.outgoing.clear()
    made.receive(control_frame(Answer.SUBSCRIBED, CONTROL_HEADER.unpack_from(again)[4], answer))
    notices = [notice for effect in made.take_effects() for notice in getattr(effect, "notices", [])]
    assert [(notice.name, notice.first_seq, notice.last_seq) for notice in notices] == [
        ("gap", 41, 42), ("resumed", 0, 0),
    ]  # fmt: skip
    assert "filter" in notices[0].reason
    assert state.left_out == {}


def resumed(made: Session, welcome: frames.Welcome = WELCOME) -> list[int]:
    """The kinds of what goes out on the next connection."""
    again(made, welcome)
    return kinds(made)


def publishing(made: Session, producer_id: int) -> tuple[Producer, Batch]:
    producer = made.add_producer(bool(producer_id & frames.LOCAL_ID))
    made.open(producer)
    made.receive(control_frame(Answer.PRODUCER, sent(made)[-1], frames.Producer(producer_id, b"token")))
    made.outgoing.clear()
    batch = Batch(Nobody(), "t", 16, 0, b"", [b"1"], run_size(1, 1, b""))
    producer.queue(batch, 0)
    return producer, batch


def test_a_producer_is_resumed_before_anything_is_published_on_it() -> None:
    made = ready()
    producer, batch = publishing(made, 5)
    made.publish(producer, batch)
    assert resumed(made)[:2] == [Request.RESUME_PRODUCER, Request.PUBLISH]
    body = frames.read_body(Request.RESUME_PRODUCER, bytes(made.outgoing[0].buffer)[CONTROL_HEADER.size :])
    assert body == frames.Producer(5, b"token")
    made.receive(CONTROL_HEADER.pack(RECEIPT.size, Answer.RECEIPTS, 0, 0, 0) + RECEIPT.pack(5, 1, 1, 0, 1, 1))
    made.close_producer(producer)
    closing = bytes(made.outgoing[-1].buffer)[CONTROL_HEADER.size :]
    assert frames.read_body(Request.CLOSE_PRODUCER, closing) == frames.Producer(5, b"token")


def test_an_agent_may_give_a_producer_another_token() -> None:
    made = ready()
    producer, _ = publishing(made, 5)
    made.receive(control_frame(Answer.PRODUCER, 0, frames.Producer(6, b"another producer's")))
    made.receive(control_frame(Answer.PRODUCER, 0, frames.Producer(5, b"renewed")))
    assert producer.token == b"renewed"
    assert producer.id == 5


@pytest.mark.parametrize("written", [True, False])
def test_a_local_publication_that_was_never_sent_goes_to_the_next_agent(written: bool) -> None:
    made = ready()
    producer, batch = publishing(made, frames.LOCAL_ID | 5)
    if written:
        made.publish(producer, batch)
    again = resumed(made, msgspec.structs.replace(WELCOME, incarnation=8))
    if written:
        assert isinstance(batch.error, OutcomeUnknown)
        assert again == []
    else:
        assert not batch.done
        assert again == [Request.OPEN_PRODUCER]


def test_a_topic_is_removed_once() -> None:
    """Asked again of the next agent it would remove one that was made again meanwhile."""
    made = ready()
    pending = made.request(Request.TOPIC_REMOVE, frames.TopicRemove("t"))
    made.outgoing.clear()
    assert resumed(made) == []
    with pytest.raises(OutcomeUnknown, match="may or may not"):
        pending.result()
