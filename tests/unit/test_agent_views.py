"""Views, and what a node says about itself, on their way to subscribers: what comes, when, and under which numbers."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from ocfcluster.agent.config import AgentConfig, TopicSetting
from ocfcluster.components.membership import MembershipCode, MembershipEvent, Node
from ocfcluster.limits import SUBSCRIPTION_QUEUE_HARD_BYTES
from ocfcluster.protocol.effects import NotificationCode, State
from ocfcluster.protocol.settings import Member
from ocfcluster.wire.frames import (
    LOCAL_ID,
    Answer,
    Begin,
    Notice,
    NoticeCode,
    Position,
    RecordFlags,
    RecordKind,
    Request,
    Subscribe,
    TopicResolve,
)
from ocfcluster.wire.run import check_run, run_events, verify_checksum
from tests.unit.fake_node import CONFIGURATION, Bench, RawClient, bench, read_all

ONE = CONFIGURATION.members[0]
TWO = Member(2, 2, 88, 6, 1)
TWO_AGAIN = Member(3, 2, 89, 6, 1)
NEW, NOT_PRIMARY, RESTORED, EVICTED = list(MembershipCode)[1:]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as made:
        yield made


class Seen(NamedTuple):
    """One record of an event socket: an event of oc.membership, another event's data, or a notice."""

    flags: RecordFlags
    m_sequence: int
    seq: int
    ev_id: int
    what: Any
    kind: RecordKind = RecordKind.RUN


def seen(events: Any, agent: Bench) -> list[Seen]:
    agent.agent.settle(0)
    found = []
    for _, records in read_all(events, agent.step):
        for fields, body in records:
            what = body
            if not isinstance(body, Notice):
                assert verify_checksum(body)
                (what,) = run_events(body, header := check_run(body))
                if header.topic_id == 1:
                    assert (header.producer, header.count, fields[4]) == (0, 1, 0)
                    what = MembershipEvent.decode(what)
            found.append(
                Seen(RecordFlags(fields[2]), fields[7], fields[8], fields[9], what, RecordKind(fields[1]))
            )
    return found


def again(client: RawClient, number: int, seq: int, cluster_id: str = CONFIGURATION.cluster_id) -> Any:
    """Subscribe to go on behind ``seq``: the answer and the event socket."""
    return client.lend(
        Subscribe(number, ["oc.membership"], False, cluster_id, [Position("oc.membership", 1, seq)])
    )


def event(
    code: MembershipCode, m_sequence: int, *members: Member, **lists: tuple[Member, ...]
) -> MembershipEvent:
    def nodes(those: tuple[Member, ...]) -> tuple[Node, ...]:
        return tuple(Node(one.node_id, one.born_on) for one in those)

    return MembershipEvent(
        code, m_sequence, nodes(members), nodes(lists.get("joined", ())), nodes(lists.get("left", ()))
    )


FIRST = event(NEW, 1, ONE, joined=(ONE,))


def test_a_subscriber_gets_the_current_view_and_then_every_change(agent: Bench) -> None:
    client = agent.client()
    _, answer, events = client.lend(Subscribe(1, ["__OC_EV_MEMB_CLASS"], False))
    assert [(start.topic, start.next_seq) for start in answer.starts] == [("oc.membership", 1)]
    assert seen(events, agent) == [Seen(RecordFlags.RETAINED, 1, 1, 1, FIRST)]
    agent.node.view([ONE, TWO])
    agent.node.view([ONE, TWO_AGAIN])
    agent.node.view([ONE])
    assert seen(events, agent) == [
        Seen(RecordFlags.NONE, 2, 2, 2, event(NEW, 2, ONE, TWO, joined=(TWO,))),
        Seen(RecordFlags.NONE, 3, 3, 3, event(NEW, 3, ONE, TWO_AGAIN, joined=(TWO_AGAIN,), left=(TWO,))),
        Seen(RecordFlags.NONE, 4, 4, 4, event(NEW, 4, ONE, left=(TWO_AGAIN,))),
    ]  # fmt: skip
    _, answer, late = client.lend(Subscribe(2, ["oc.membership"], False))
    assert answer.starts[0].next_seq == 4
    assert seen(late, agent) == [Seen(RecordFlags.RETAINED, 4, 4, 4, event(NEW, 4, ONE, left=(TWO_AGAIN,)))]


def test_the_same_members_are_no_event(agent: Bench) -> None:
    events = agent.client().subscribe(1, "oc.membership")
    seen(events, agent)
    agent.node.view([ONE])
    assert seen(events, agent) == []
    assert agent.agent.counters.views == 2


def test_views_stand_at_their_place_among_events(agent: Bench) -> None:
    client = agent.client()
    topic_id = client.create_topic("t")
    producer = client.open_producer()
    both = client.subscribe(1, "t", "oc.membership")
    first, second = (
        client.subscribe(number, topic, callback=True) for number, topic in ((2, "oc.membership"), (3, "t"))
    )
    seen(both, agent), seen(first, agent)
    client.publish(topic_id, producer, 1, b"before")
    client.answers()
    agent.node.view([ONE, TWO])
    client.publish(topic_id, producer, 2, b"after")
    client.answers()
    expected = [(1, b"before"), (2, event(NEW, 2, ONE, TWO, joined=(TWO,))), (2, b"after")]
    assert [(one.m_sequence, one.what) for one in seen(both, agent)] == expected
    turns = [
        (header[2], records[0][0][7])
        for end in (first, second)
        for header, records in read_all(end, agent.step)
    ]
    assert sorted(turns) == [(2, 1), (3, 2), (4, 2)]  # the retained view had turn 1
    assert turns[0] == (3, 2)


def test_no_subscription_stands_before_the_first_view(tmp_path: Path) -> None:
    with bench(tmp_path, active=False) as agent:
        client = agent.client()
        kind, _, events = client.lend(Subscribe(1, ["oc.membership"], False))
        assert kind is None
        agent.node.activate()
        agent.agent.settle(0)
        ((kind, _, answer),) = client.answers()
        assert (kind, answer.starts[0].next_seq) == (Answer.SUBSCRIBED, 1)
        assert seen(events, agent) == [Seen(RecordFlags.RETAINED, 1, 1, 1, FIRST)]


def test_who_goes_on_gets_what_it_lacks_alone(agent: Bench) -> None:
    client = agent.client()
    for members in ([ONE, TWO], [ONE, TWO_AGAIN], [ONE]):
        agent.node.view(members)
    last = Seen(RecordFlags.RETAINED, 4, 4, 4, event(NEW, 4, ONE, left=(TWO_AGAIN,)))
    for number, (seq, next_seq, gap_from, expected) in enumerate(
        ((4, 5, 0, []), (3, 4, 0, [last]), (2, 4, 3, [last]), (0, 4, 1, [last]))
    ):
        _, answer, events = again(client, number, seq)
        start = answer.starts[0]
        assert (start.next_seq, start.gap_from, seen(events, agent)) == (next_seq, gap_from, expected)


def test_a_view_that_is_not_there_yet_cannot_be_begun_with(agent: Bench) -> None:
    client = agent.client()
    agent.node.view([ONE, TWO])
    agent.agent.settle(0)
    for number, (seq, expected) in enumerate(
        ((3, None), (2, 2), (4, errno.EINVAL), (1 << 40, errno.EINVAL)), 1
    ):
        body = Subscribe(number, ["oc.membership"], False, begins=[Begin("oc.membership", seq)])
        commands = agent.node.commands
        kind, answer, events = client.lend(body)
        if expected == errno.EINVAL:
            assert (kind, answer.errno) == (Answer.ERROR, errno.EINVAL)
            assert agent.node.commands == commands + 1  # it might have been seen on another node
        else:
            assert kind == Answer.SUBSCRIBED
            assert [one.seq for one in seen(events, agent)] == ([] if expected is None else [expected])


def test_notifications_are_local_and_use_up_no_seq(agent: Bench) -> None:
    events = agent.client().subscribe(1, "oc.membership")
    seen(events, agent)
    agent.node.notify(NotificationCode.NOT_PRIMARY)
    agent.node.notify(NotificationCode.PRIMARY_RESTORED)
    agent.node.view([ONE, TWO])
    local = RecordFlags.LOCAL
    assert seen(events, agent) == [
        Seen(local, 1, 1, LOCAL_ID + 1, event(NOT_PRIMARY, 1, ONE)),
        Seen(local, 1, 1, LOCAL_ID + 2, event(RESTORED, 1, ONE)),
        Seen(RecordFlags.NONE, 2, 2, 2, event(NEW, 2, ONE, TWO, joined=(TWO,))),
    ]  # fmt: skip


def test_who_comes_to_a_minority_hears_that_it_is_one(agent: Bench) -> None:
    client = agent.client()
    agent.node.notify(NotificationCode.NOT_PRIMARY)
    retained, local = RecordFlags.RETAINED, RecordFlags.RETAINED | RecordFlags.LOCAL
    lost = Seen(local, 1, 1, LOCAL_ID + 1, event(NOT_PRIMARY, 1, ONE))
    back = Seen(local, 1, 1, LOCAL_ID + 2, event(RESTORED, 1, ONE))
    assert seen(client.subscribe(1, "oc.membership"), agent) == [Seen(retained, 1, 1, 1, FIRST), lost]
    assert seen(again(client, 2, 1)[2], agent) == [lost]
    agent.node.notify(NotificationCode.PRIMARY_RESTORED)
    assert seen(client.subscribe(3, "oc.membership"), agent) == [Seen(retained, 1, 1, 1, FIRST)]
    assert seen(again(client, 4, 1)[2], agent) == [back]  # it may have heard the first and not this
    agent.node.view([ONE, TWO])
    agent.agent.settle(0)
    assert seen(again(client, 5, 2)[2], agent) == []


def test_a_minority_says_at_once_that_it_knows_no_such_topic(agent: Bench) -> None:
    client = agent.client()
    agent.node.notify(NotificationCode.NOT_PRIMARY)
    agent.agent.settle(0)
    asked = agent.node.commands
    assert client.lend(Subscribe(1, ["nowhere"], False))[1].errno == errno.EINVAL
    assert client.call(Request.TOPIC_RESOLVE, TopicResolve("nowhere"))[1].errno == errno.EINVAL
    assert agent.node.commands == asked


def test_evicted_is_the_last_event(agent: Bench) -> None:
    client = agent.client()
    client.create_topic("t")
    ends = [
        client.subscribe(1, "oc.membership"),
        client.subscribe(2, "oc.membership", "t"),
        client.subscribe(3, "t"),
    ]
    for end in ends:
        seen(end, agent)
    agent.node.evict()
    agent.agent.settle(0)
    agent.agent.hub.shut_down(agent.agent._stop_reason, 0)
    last = Seen(RecordFlags.LOCAL, 1, 1, LOCAL_ID + 1, event(EVICTED, 1), RecordKind.LAST)
    assert seen(ends[0], agent) == [last]
    assert seen(ends[1], agent) == [last]
    (notice,) = seen(ends[2], agent)
    assert (notice.what.code, notice.what.final) == (NoticeCode.SHUTDOWN, True)
    assert notice.what.reason.startswith("evicted")
    assert list(agent.agent.hub.by_topic) == [2]  # the agent's own: what is current of oc.connectivity


def test_the_end_of_a_history_ends_everything_that_belongs_to_it(tmp_path: Path) -> None:
    with bench(tmp_path, AgentConfig(topics=[TopicSetting("t"), TopicSetting("here", "local")])) as agent:
        client, other = agent.client(), agent.client()
        topic_id, here = (client.create_topic(name, local=name == "here") for name in ("t", "here"))
        gone = agent.client()
        gone.open_producer()
        gone.socket.close()
        local = client.open_producer(local=True)
        client.publish(here, local, 1, b"local")
        client.answers()
        events = client.subscribe(1, "oc.membership")
        seen(events, agent)
        agent.node.space = 0
        other_producer = other.open_producer()
        other.publish(topic_id, other_producer, 1, b"waits")
        agent.step()
        other.socket.close()  # what it published would go on
        agent.step()
        agent.node.lose_history()
        agent.agent.settle(0)
        (notice,) = seen(events, agent)
        assert (notice.what.code, notice.what.final) == (NoticeCode.HISTORY_LOST, True)
        client.answers()
        assert client.eof
        assert CONFIGURATION.cluster_id in client.told[-1].message
        assert not agent.agent.clients
        assert not agent.agent.intake.owners
        assert not agent.agent.intake._orphans
        assert agent.agent.intake.inbox_bytes == 0

        late = agent.client()
        assert late.lend(Subscribe(2, ["oc.membership"], False))[0] is None  # not before the first view
        agent.node.space = 1 << 20
        agent.node.activate()
        agent.agent.settle(0)
        ((kind, _, answer),) = late.answers()
        assert (kind, answer.starts[0].next_seq, answer.cluster_id) == (Answer.SUBSCRIBED, 1, "0" * 31 + "2")
        assert agent.node.published == 0
        assert again(late, 1, 1)[1].history_lost
        assert {"t", "here"} <= set(agent.node.topics)  # made again, as the configuration asks
        late.publish(agent.node.topics["here"].topic_id, local, 2, b"of another history")
        late.answers()
        assert late.receipts == [(local, 2, 1, errno.EBADF, 0, 0)]


def test_who_waits_for_an_order_that_has_ended_is_let_go(agent: Bench) -> None:
    client = agent.client()
    agent.node.state = State.FORMING  # commands are kept and not ordered
    before = len(os.listdir("/proc/self/fd"))
    kind, _, events = client.lend(Subscribe(1, ["nowhere"], False))
    assert kind is None
    agent.node.lose_history()
    agent.agent.settle(0)
    client.close()
    del events
    assert len(os.listdir("/proc/self/fd")) <= before
    agent.node.activate()
    agent.agent.settle(0)
    assert not agent.agent.hub.subscriptions()


def test_a_barrier_that_finds_no_room_refuses_the_subscription(agent: Bench) -> None:
    client = agent.client()
    agent.node.refusal = errno.ENOMEM
    assert client.lend(Subscribe(1, ["nowhere"], False))[1].errno == errno.ENOMEM


def test_local_events_belong_to_the_view_that_was_delivered(agent: Bench) -> None:
    client = agent.client()
    here = client.create_topic("here", local=True)
    events = client.subscribe(1, "here")
    producer = client.open_producer(local=True)
    agent.node.configuration = msgspec.structs.replace(
        agent.node.configuration, m_sequence=7
    )  # not delivered yet
    client.publish(here, producer, 1, b"x")
    client.answers()
    assert [one.m_sequence for one in seen(events, agent)] == [1]


def test_a_slow_subscriber_hears_of_itself_all_the_same(agent: Bench) -> None:
    events = agent.client().subscribe(1, "oc.membership")
    seen(events, agent)
    (subscription,) = agent.agent.hub.by_topic[1]
    agent.agent.hub._fall_back(subscription)
    agent.node.view([ONE, TWO])
    agent.node.notify(NotificationCode.NOT_PRIMARY)
    gap, told = seen(events, agent)
    assert (gap.what.code, gap.what.first_seq, gap.what.last_seq) == (NoticeCode.GAP, 2, 2)
    assert told.what.code is NOT_PRIMARY


def test_beyond_the_hard_mark_a_notification_is_a_gap(agent: Bench) -> None:
    events = agent.client().subscribe(1, "oc.membership")
    seen(events, agent)
    (subscription,) = agent.agent.hub.by_topic[1]
    subscription.queued_bytes += SUBSCRIPTION_QUEUE_HARD_BYTES + 1
    agent.node.notify(NotificationCode.NOT_PRIMARY)
    (gap,) = seen(events, agent)
    assert (gap.what.code, gap.what.first_seq, gap.what.last_seq) == (NoticeCode.GAP, 1, 1)
