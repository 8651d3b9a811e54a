"""A client's part in groups over connections that come and go, sans-IO."""

from __future__ import annotations

import errno
from typing import Any

import msgspec
import pytest

from ocfcluster.client.pending import Pending
from ocfcluster.client.producer import Batch
from ocfcluster.client.session import Session, Stage
from ocfcluster.errors import InvalidArgument, LimitReached, NotConnected
from ocfcluster.wire import frames
from ocfcluster.wire.frames import Answer, control_frame
from ocfcluster.wire.group import GroupCode, GroupEvent, message
from ocfcluster.wire.run import read_header, run_events
from tests.unit.test_client_producer import Nobody
from tests.unit.test_client_session import WELCOME, ready, sent

TOPIC = "group:g"
TOPIC_ID = 1 << 31


def join(made: Session) -> Any:
    return made.memberships.join(TOPIC, made.request)


def leave(made: Session) -> Pending | None:
    return made.memberships.leave(TOPIC, made.request)


def answer(made: Session, member: int, request_id: int | None = None) -> None:
    request_id = sent(made)[-1] if request_id is None else request_id
    made.receive(control_frame(Answer.GROUP, request_id, frames.Group(TOPIC, TOPIC_ID, 1, member, [])))
    made.outgoing.clear()


def reconnect(made: Session, **changes: Any) -> None:
    made.lost("cut")
    made.take_effects()
    made.connected()
    made.outgoing.clear()
    made.receive(control_frame(Answer.WELCOME, 0, msgspec.structs.replace(WELCOME, **changes)))


def joined(member: int = 5) -> Session:
    made = ready()
    join(made)
    answer(made, member)
    assert made.memberships.member(TOPIC) == member
    return made


def test_joining_twice_asks_once():
    made = ready()
    first = join(made)
    assert join(made) is first
    assert len(sent(made)) == 1
    answer(made, 5)
    assert join(made) is first
    assert not made.outgoing


def test_on_each_connection_it_joins_again_and_is_another_member():
    made = joined()
    reconnect(made)
    assert made.memberships.member(TOPIC) == 0
    assert len(sent(made)) == 1
    answer(made, 9)
    assert made.memberships.member(TOPIC) == 9


def test_a_join_whose_answer_was_lost_is_asked_again_once():
    made = ready()
    membership = join(made)
    reconnect(made)
    assert len(sent(made)) == 1
    answer(made, 6)
    assert membership.member == 6


def test_a_join_that_waits_for_an_agent_is_asked_once():
    made = ready()
    made.lost("cut")
    membership = join(made)
    made.connected()
    made.outgoing.clear()
    made.receive(control_frame(Answer.WELCOME, 0, WELCOME))
    assert len(sent(made)) == 1
    answer(made, 6)
    assert membership.member == 6


def test_a_refusal_is_told_and_not_tried_again():
    made = ready()
    membership = join(made)
    made.receive(control_frame(Answer.ERROR, sent(made)[-1], frames.Error(errno.ENOMEM, "full")))
    assert isinstance(membership.refusal, LimitReached)
    made.outgoing.clear()
    reconnect(made)
    assert not made.outgoing
    assert made.memberships.get(TOPIC) is None


def test_a_leave_whose_connection_is_lost_is_done():
    made = joined()
    pending = leave(made)
    assert pending is not None
    assert leave(made) is pending
    assert made.memberships.member(TOPIC) == 0  # what is said now comes behind the LEAVE
    reconnect(made)
    assert pending.done
    assert pending.result() is None
    assert not made.outgoing


def test_leaving_without_a_connection_needs_nobody():
    made = joined()
    made.lost("cut")
    assert leave(made) is None
    assert made.memberships.get(TOPIC) is None


def test_a_member_that_leaves_and_joins_is_one_when_both_are_answered():
    made = joined()
    left = leave(made)
    assert left is not None
    membership = join(made)
    leave_id, join_id = sent(made)
    made.receive(control_frame(Answer.DONE, leave_id))
    assert left.done
    answer(made, 8, join_id)
    assert (membership.member, made.memberships.member(TOPIC)) == (8, 8)


def test_a_leave_and_a_join_that_are_lost_together():
    made = joined()
    left = leave(made)
    membership = join(made)
    reconnect(made)
    assert left is not None
    assert left.done
    assert len(sent(made)) == 1
    answer(made, 8)
    assert membership.member == 8


def test_a_refused_leave_leaves_a_member():
    made = joined()
    pending = leave(made)
    assert pending is not None
    made.receive(control_frame(Answer.ERROR, sent(made)[-1], frames.Error(errno.EINVAL, "no")))
    with pytest.raises(InvalidArgument):
        pending.result()
    assert made.memberships.member(TOPIC) == 5


def test_who_leaves_before_the_join_is_answered_and_loses_the_connection():
    made = ready()
    membership = join(made)
    left = leave(made)
    made.lost("cut")
    assert left is not None
    assert left.done
    assert isinstance(membership.refusal, NotConnected)


def test_who_leaves_before_the_join_is_answered_speaks_as_no_member():
    made = ready()
    membership = join(made)
    left = leave(made)
    join_id, leave_id = sent(made)
    answer(made, 5, join_id)
    assert made.memberships.member(TOPIC) == 0
    made.receive(control_frame(Answer.DONE, leave_id))
    assert left is not None
    assert left.done
    assert isinstance(membership.refusal, NotConnected)  # for who waits for the JOIN


def test_groups_end_with_their_history():
    made = joined()
    membership = made.memberships.get(TOPIC)
    reconnect(made, cluster_id="another")
    assert not [one for one in sent(made) if one]
    assert membership is not None
    assert isinstance(membership.refusal, NotConnected)
    assert made.memberships.get(TOPIC) is None


def test_everything_fails_at_the_end():
    made = ready()
    membership = join(made)
    made.end("closed")
    assert made.stage is Stage.ENDED
    assert isinstance(membership.refusal, NotConnected)


def test_what_is_sent_again_is_said_by_no_member():
    """Under the same numbers: whichever form the order meets first is the one that is delivered."""
    made = joined(5)
    producer = made.add_producer(local=False)
    made.open(producer)
    made.receive(control_frame(Answer.PRODUCER, sent(made)[-1], frames.Producer(77)))
    made.outgoing.clear()
    said = [message(GroupCode.CAST, 5, b"one"), message(GroupCode.CAST, 0, b"of nobody"), b"raw"]
    batch = Batch(Nobody(), TOPIC, TOPIC_ID, 0, b"", list(said), 200)
    plain = Batch(Nobody(), "t", 16, 0, b"", [message(GroupCode.CAST, 5, b"no group")], 200)
    for one in (batch, plain):
        producer.queue(one, 5)
        made.publish(producer, one)
    first = batch.run
    assert list(run_events(first, read_header(first))) == said
    reconnect(made)
    again = [bytes(one.buffer) for one in made.outgoing if len(one.buffer) > 60]
    assert len(again) == 2
    header = read_header(again[0])
    events = list(run_events(again[0], header))
    assert [event[24:] for event in events[:2]] == [b"one", b"of nobody"]
    assert [GroupEvent.decode(event).member for event in events[:2]] == [0, 0]
    assert events[2] == b"raw"
    assert header._replace(checksum=0) == read_header(first)._replace(checksum=0)
    assert again[1] == plain.run
    assert list(run_events(plain.run, read_header(plain.run))) == [message(GroupCode.CAST, 5, b"no group")]
    join_id = next(one for one in sent(made) if one)
    answer(made, 9, join_id)
    later = Batch(Nobody(), TOPIC, TOPIC_ID, 0, b"", [message(GroupCode.CAST, 9, b"two")], 200)
    producer.queue(later, 5)
    made.publish(producer, later)
    (event,) = run_events(later.run, read_header(later.run))
    assert GroupEvent.decode(event).member == 9
