"""Components at the agent's door: who may publish what on reserved topics, and views that wait for their component."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ocfcluster.agent.config import AgentConfig, Components
from ocfcluster.agent.current import TOPIC_ID as CONNECTIVITY
from ocfcluster.components.connectivity import (
    ConnectivityCode,
    ConnectivityEvent,
    Eligible,
    Link,
    LinkState,
)
from ocfcluster.components.membership import MembershipCode, MembershipEvent, Node
from ocfcluster.components.views import RawEntry
from ocfcluster.ipc.peer import Peer
from ocfcluster.limits import RUN_BYTES, VIEWS_UNPLACED
from ocfcluster.protocol.effects import NotificationCode
from ocfcluster.protocol.settings import Member
from ocfcluster.wire.control import Open, control_run
from ocfcluster.wire.frames import (
    LOCAL_ID,
    Answer,
    NoticeCode,
    Position,
    RecordFlags,
    RecordKind,
    Report,
    Request,
    Subscribe,
    TopicCreate,
)
from ocfcluster.wire.run import RunKind, build_run, read_header, run_events
from tests.unit.fake_node import CONFIGURATION, Bench, RawClient, bench, read_all

MEMBERSHIP = 1
STRANGER = Peer(4711, 65534, 65534)
LINKS = ConnectivityEvent(ConnectivityCode.CONNECT, 1, links=(Link(1, 2, 0, LinkState.HEARS),)).encode()
TWO, THREE = Member(2, 2, 78, 6, 1), Member(3, 3, 79, 7, 1)


def external(**which: str) -> AgentConfig:
    return AgentConfig(components=Components(**which))


@pytest.fixture
def connectivity(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path, external(connectivity="external")) as made:
        yield made


@pytest.fixture
def views(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path, external(membership="external")) as made:
        yield made


def as_user(agent: Bench, client: RawClient, peer: Peer) -> None:
    """From here on the last client counts as another user's."""
    agent.agent.clients[max(agent.agent.clients)].peer = peer


def receipt(client: RawClient) -> int:
    """The errno of the next receipt."""
    client.told += [body for _, _, body in client.answers()]
    return client.receipts.pop(0)[3]


def report(client: RawClient, topic: str, data: bytes, seq: int = 0) -> tuple[int, str]:
    """errno and reason with which a report is refused; (0, "")."""
    kind, body = client.call(Request.REPORT, Report(topic, data, seq))
    return (0, "") if kind == Answer.DONE else (body.errno, body.message)


def seen(end: Any, agent: Bench) -> list[tuple[int, int, int, Any]]:
    """flags, seq, ev_id and data (or notice) of all that came."""
    found: list[tuple[int, int, int, Any]] = []
    for _, records in read_all(end, agent.step):
        for fields, body in records:
            if fields[1] == RecordKind.NOTICE:
                found.append((fields[2], fields[8], fields[9], body))
                continue
            for number, data in enumerate(run_events(body, read_header(body))):
                found.append((fields[2], fields[8] + number, fields[9] + number, data))
    return found


# --- who ----------------------------------------------------------------------------------------------------


def test_the_built_in_component_is_alone(tmp_path: Path) -> None:
    with bench(tmp_path) as agent:
        client = agent.client()
        producer = client.open_producer()
        for topic_id in (MEMBERSHIP, CONNECTIVITY):
            client.publish(topic_id, producer, topic_id, LINKS)
            assert receipt(client) == errno.EPERM
            assert "built" in client.told[-1].message  # type: ignore[union-attr]
        assert report(client, "oc.connectivity", LINKS)[0] == errno.EPERM
        assert report(client, "oc.membership", LINKS)[0] == errno.EPERM
        assert client.lend(Subscribe(1, ["oc.views"], False))[1].errno == errno.EINVAL


def test_components_are_root_or_the_agents_user(connectivity: Bench) -> None:
    client = connectivity.client()
    producer = client.open_producer()
    client.publish(CONNECTIVITY, producer, 1, LINKS)
    assert receipt(client) == 0
    as_user(connectivity, client, STRANGER)
    client.publish(CONNECTIVITY, producer, 2, LINKS)
    assert receipt(client) == errno.EPERM
    assert "root" in client.told[-1].message  # type: ignore[union-attr]
    assert report(client, "oc.connectivity", LINKS)[0] == errno.EPERM


def test_the_views_are_for_root_and_the_agents_user(views: Bench) -> None:
    client = views.client()
    as_user(views, client, STRANGER)
    kind, error, _ = client.lend(Subscribe(1, ["oc.views"], False))
    assert (kind, error.errno) == (Answer.ERROR, errno.EPERM)
    assert report(client, "oc.membership", b"")[0] == errno.EPERM


@pytest.mark.parametrize(
    ("data", "code", "why"),
    [
        (b"", errno.EINVAL, "0 bytes"),
        (LINKS[:-1], errno.EINVAL, "connections"),
        (LINKS[:4] + b"\2" + LINKS[5:], errno.EINVAL, "node 2 is not this one"),
        (LINKS, 0, ""),
    ],
)
def test_reports_are_looked_at(connectivity: Bench, data: bytes, code: int, why: str) -> None:
    client = connectivity.client()
    producer = client.open_producer()
    client.publish(CONNECTIVITY, producer, 1, LINKS, data)
    assert receipt(client) == code
    refusals = [body for body in client.told if hasattr(body, "first_number")]
    assert [(one.producer, one.first_number) for one in refusals] == [(producer, 1)] * bool(code)
    assert all(why in one.message for one in refusals)
    told = report(client, "oc.connectivity", data)
    assert told[0] == code
    assert why in told[1]
    client.publish(CONNECTIVITY, producer, 3, LINKS)
    assert receipt(client) == 0  # what was refused has used up its numbers, and nothing else


def test_a_report_fits_a_frame(connectivity: Bench) -> None:
    client = connectivity.client()
    producer = client.open_producer()
    links = tuple(Link(1, other, 0, LinkState.HEARS) for other in range(2, RUN_BYTES // 12 + 2))
    client.publish(
        CONNECTIVITY, producer, 1, ConnectivityEvent(ConnectivityCode.CONNECT, 1, links=links).encode()
    )
    assert receipt(client) == errno.EMSGSIZE


def test_reports_have_a_topic(connectivity: Bench) -> None:
    client = connectivity.client()
    client.create_topic("news")
    assert report(client, "nothing", b"")[0] == errno.EINVAL
    assert report(client, "news", b"")[0] == errno.EPERM
    assert report(client, "oc.connectivity", LINKS, 7)[0] == errno.EINVAL


def order(agent: Bench, member: Member, events: list[bytes]) -> None:
    """What another member publishes on oc.connectivity, past its own agent's door."""
    replicated, items = agent.node.replicated, agent.node._items
    process = (member.node_id, member.incarnation, 1234)
    replicated.apply(control_run(Open(), 1), *process, True, items)
    producer = items.pop().value
    replicated.apply(
        build_run(RunKind.PUBLICATION, CONNECTIVITY, producer, 1, events), *process, False, items
    )
    agent.agent.settle(0)


# --- what is current ----------------------------------------------------------------------------------------


def test_what_is_current_comes_with_its_numbers(connectivity: Bench) -> None:
    """The last event of each kind, though they were published in one run, and that began again."""
    client = connectivity.client()
    producer = client.open_producer()
    nodes = ConnectivityEvent(ConnectivityCode.ELIGIBLE, 1, eligible=(Eligible(1, 1),)).encode()
    again = ConnectivityEvent(ConnectivityCode.CONNECT, 1, 3).encode()
    client.publish(CONNECTIVITY, producer, 1, LINKS, nodes)
    client.publish(CONNECTIVITY, producer, 1, LINKS, nodes, again)  # a library that had no answer
    client.answers()
    kept = [(int(RecordFlags.RETAINED), 2, nodes), (int(RecordFlags.RETAINED), 3, again)]
    for number in (1, 2):
        end = client.subscribe(number, "__OC_EV_CONN_CLASS")
        events = seen(end, connectivity)
        assert [(flags, seq, data) for flags, seq, _, data in events] == kept
        assert events[1][2] == events[0][2] + 1
    client.publish(CONNECTIVITY, producer, 4, LINKS)
    assert [(flags, seq, data) for flags, seq, _, data in seen(end, connectivity)] == [(0, 4, LINKS)]
    position = Position("oc.connectivity", CONNECTIVITY, 3)
    _, answer, end = client.lend(
        Subscribe(3, ["oc.connectivity"], False, CONFIGURATION.cluster_id, [position])
    )
    assert answer.starts[0].gap_from == 4
    assert [(seq, data) for _, seq, _, data in seen(end, connectivity)] == [(4, LINKS)]


def test_what_a_node_said_goes_with_it(connectivity: Bench) -> None:
    client = connectivity.client()
    client.publish(CONNECTIVITY, client.open_producer(), 1, LINKS)
    client.answers()
    (mine,) = CONFIGURATION.members
    connectivity.node.view([msgspec.structs.replace(mine, incarnation=78)])
    connectivity.agent.settle(0)
    assert seen(client.subscribe(1, "oc.connectivity"), connectivity) == []


def test_what_other_nodes_publish_is_looked_at_before_it_is_kept(connectivity: Bench) -> None:
    """Their agents may be of a later version, or lie."""
    (mine,) = CONFIGURATION.members
    connectivity.node.view([mine, TWO])
    connectivity.agent.settle(0)
    events = [
        (ConnectivityCode.CONNECT + 1).to_bytes(4, "little") + LINKS[4:],  # a code that comes later
        b"short",
        LINKS,  # of node 1
        *(ConnectivityEvent(ConnectivityCode.CONNECT, one).encode() for one in range(3, 100)),
        ConnectivityEvent(ConnectivityCode.ELIGIBLE, 3).encode(),
        ConnectivityEvent(ConnectivityCode.CONNECT, 2).encode(),
    ]
    order(connectivity, TWO, events)
    kept = seen(connectivity.client().subscribe(1, "oc.connectivity"), connectivity)
    assert [data for *_, data in kept] == [events[-1]]


def test_what_is_kept_does_not_grow_with_nodes_that_come_and_go(connectivity: Bench) -> None:
    (mine,) = CONFIGURATION.members
    for node_id in range(2, 50):
        other = Member(node_id, node_id, 78, 6, 1)
        connectivity.node.view([mine, other])
        connectivity.agent.settle(0)
        order(connectivity, other, [ConnectivityEvent(ConnectivityCode.CONNECT, node_id).encode()])
    assert len(connectivity.agent.components.current._kept) <= 2


def test_a_local_notification_uses_up_no_seq(connectivity: Bench) -> None:
    client = connectivity.client()
    producer = client.open_producer()
    client.publish(CONNECTIVITY, producer, 1, LINKS)
    client.answers()
    end = client.subscribe(1, "oc.connectivity")
    seen(end, connectivity)
    connectivity.node.notify(NotificationCode.NOT_PRIMARY)
    connectivity.agent.settle(0)
    lost = ConnectivityEvent(ConnectivityCode.CONNECT, 1, links=(Link(1, 2, 0, LinkState.NONE),)).encode()
    assert report(client, "oc.connectivity", lost) == (0, "")
    ((flags, seq, ev_id, data),) = seen(end, connectivity)
    assert (flags, seq, data) == (RecordFlags.LOCAL, 1, lost)
    assert ev_id & LOCAL_ID
    late = seen(client.subscribe(2, "oc.connectivity"), connectivity)
    assert [one[0] for one in late] == [RecordFlags.RETAINED, RecordFlags.RETAINED | RecordFlags.LOCAL]
    connectivity.node.notify(NotificationCode.PRIMARY_RESTORED)
    connectivity.agent.settle(0)
    assert len(seen(client.subscribe(3, "oc.connectivity"), connectivity)) == 1
    client.publish(CONNECTIVITY, producer, 2, LINKS)
    assert [(flags, seq) for flags, seq, _, _ in seen(end, connectivity)] == [(0, 2)]


def test_the_agents_own_subscription_is_nobodys(connectivity: Bench) -> None:
    client = connectivity.client()
    _, answer = client.call(Request.TOPIC_LIST)
    assert [topic.subscribers for topic in answer.topics if topic.topic_id == CONNECTIVITY] == [0]
    assert connectivity.agent.status()["subscription_count"] == 0


# --- views that wait for their component --------------------------------------------------------------------


def event_of(entry: RawEntry) -> bytes:
    lists = [
        tuple(Node(one.node_id, one.born_on) for one in those)
        for those in (entry.members, entry.joined, entry.left)
    ]
    return MembershipEvent(MembershipCode.NEW_MEMBERSHIP, entry.m_sequence, *lists).encode()


def entries(end: Any, agent: Bench) -> list[RawEntry]:
    return [RawEntry.decode(data) for _, _, _, data in seen(end, agent)]


def test_views_are_placed_in_their_order(views: Bench) -> None:
    subscriber, client = views.client(), views.client()
    waiting = subscriber.subscribe(1, "oc.membership")
    views.node.view([*CONFIGURATION.members, TWO])
    views.agent.settle(0)
    assert seen(waiting, views) == []
    raw = client.subscribe(1, "oc.views")
    first, second = entries(raw, views)
    assert [(one.kind, one.seq, one.m_sequence) for one in (first, second)] == [
        ("view", 1, 1),
        ("view", 2, 2),
    ]
    assert [(one.node_id, one.incarnation) for one in second.joined] == [(2, 78)]
    assert "next is 1" in report(client, "oc.membership", event_of(second), 2)[1]
    assert report(client, "oc.membership", event_of(first), 1) == (0, "")
    assert report(client, "oc.membership", event_of(second), 2) == (0, "")
    assert report(client, "oc.membership", event_of(first), 1) == (0, "")  # told before: left as it is
    assert [(flags, seq, data) for flags, seq, _, data in seen(waiting, views)] == [
        (0, 1, event_of(first)), (0, 2, event_of(second)),
    ]  # fmt: skip
    assert report(client, "oc.membership", event_of(second), 3)[0] == errno.EINVAL
    assert report(client, "oc.membership", b"?", 3)[0] == errno.EINVAL
    late = seen(subscriber.subscribe(2, "oc.membership"), views)
    assert [(flags, seq) for flags, seq, _, _ in late] == [(RecordFlags.RETAINED, 2)]


def test_there_is_one_component(views: Bench) -> None:
    client, other = views.client(), views.client()
    end = client.subscribe(1, "oc.views")
    kind, error, _ = other.lend(Subscribe(1, ["oc.views"], False))
    assert (kind, error.errno) == (Answer.ERROR, errno.EBUSY)
    (entry,) = entries(end, views)
    assert report(other, "oc.membership", event_of(entry), 1)[0] == errno.EPERM
    said = views.agent.status()["components"]["membership"]
    assert (said["mode"], said["present"], said["unplaced"]) == ("external", True, 1)
    assert views.agent.status()["warnings"] == []
    client.ask(Request.TOPIC_CREATE, TopicCreate("last-words"))
    client.socket.close()
    views.agent.connections.watch_client_readable(views.agent.clients[1], False)  # it has not come to see it
    assert other.lend(Subscribe(1, ["oc.views"], False))[0] == Answer.SUBSCRIBED
    assert views.agent.status()["components"]["membership"]["present"]
    assert "last-words" in views.node.replicated.topics.by_name


def test_views_that_nobody_places_are_a_gap(views: Bench) -> None:
    subscriber = views.client()
    waiting = subscriber.subscribe(1, "oc.membership")
    for number in range(VIEWS_UNPLACED + 1):
        views.node.view([*CONFIGURATION.members, *([TWO] if number % 2 == 0 else [])])
        views.agent.settle(0)
    assert "is not there yet" in views.agent.status()["warnings"][0]
    client = views.client()
    end = client.subscribe(1, "oc.views")
    given = entries(end, views)
    assert [one.seq for one in given] == list(range(3, VIEWS_UNPLACED + 3))
    assert report(client, "oc.membership", event_of(given[0]), 3) == (0, "")
    gap, placed = seen(waiting, views)
    assert (gap[3].code, gap[3].first_seq, gap[3].last_seq) == (NoticeCode.GAP, 1, 2)
    assert placed[1] == 3


def test_what_the_node_says_of_itself(views: Bench) -> None:
    subscriber, client = views.client(), views.client()
    waiting, raw = subscriber.subscribe(1, "oc.membership"), client.subscribe(1, "oc.views")
    (entry,) = entries(raw, views)
    lost = MembershipEvent(MembershipCode.NOT_PRIMARY, 1, (Node(1, 1),)).encode()
    assert "view comes first" in report(client, "oc.membership", lost)[1]
    assert report(client, "oc.membership", event_of(entry), 1) == (0, "")
    seen(waiting, views)
    views.node.notify(NotificationCode.NOT_PRIMARY)
    views.agent.settle(0)
    (told,) = entries(raw, views)
    assert (told.kind, told.seq, [one.node_id for one in told.members]) == ("not_primary", 0, [1])
    for _ in range(2):  # the second time as a successor would, that does not know
        assert report(client, "oc.membership", lost) == (0, "")
    ((flags, seq, ev_id, data),) = seen(waiting, views)
    assert (flags, seq, data, ev_id & LOCAL_ID) == (RecordFlags.LOCAL, 1, lost, LOCAL_ID)
    late = seen(subscriber.subscribe(2, "oc.membership"), views)
    assert [one[0] for one in late] == [RecordFlags.RETAINED, RecordFlags.RETAINED | RecordFlags.LOCAL]
    evicted = MembershipEvent(MembershipCode.EVICTED, 1).encode()
    assert "is a member" in report(client, "oc.membership", evicted)[1]
    views.node.evict()
    views.agent.settle(0)
    assert views.agent.components.last_word_due
    assert [one.kind for one in entries(raw, views)] == ["evicted"]
    assert report(client, "oc.membership", evicted) == (0, "")
    assert not views.agent.components.last_word_due
    assert [data for _, _, _, data in seen(waiting, views)] == [evicted]


def test_a_successor_is_told_where_things_stand(views: Bench) -> None:
    client = views.client()
    (entry,) = entries(client.subscribe(1, "oc.views"), views)
    assert report(client, "oc.membership", event_of(entry), 1) == (0, "")
    client.close()
    views.step()
    assert "is gone" in views.agent.status()["warnings"][0]
    views.node.notify(NotificationCode.NOT_PRIMARY)
    views.agent.settle(0)
    again = entries(views.client().subscribe(1, "oc.views"), views)
    assert [(one.kind, one.seq) for one in again] == [("view", 1), ("not_primary", 0)]


def test_who_was_ahead_of_the_component_misses_nothing(views: Bench) -> None:
    """A subscriber that comes back before the component has told the views it has missed."""
    client = views.client()
    (entry,) = entries(client.subscribe(1, "oc.views"), views)
    views.node.view([*CONFIGURATION.members, TWO])
    views.agent.settle(0)
    known = Position("oc.membership", MEMBERSHIP, 0)
    asked = Subscribe(2, ["oc.membership"], False, CONFIGURATION.cluster_id, [known])
    _, answer, end = client.lend(asked)
    assert (answer.starts[0].next_seq, answer.starts[0].gap_from) == (1, 0)
    assert report(client, "oc.membership", event_of(entry), 1) == (0, "")
    assert [seq for _, seq, _, _ in seen(end, views)] == [1]


def test_without_a_view_there_is_nothing_to_start_with(tmp_path: Path) -> None:
    with bench(tmp_path, external(membership="external"), active=False) as agent:
        client = agent.client()
        assert client.lend(Subscribe(1, ["oc.views"], False))[0] is None
        agent.node.activate()
        agent.agent.settle(0)
        assert agent.agent.router.views.begun


def test_another_history_begins_anew(views: Bench) -> None:
    client = views.client()
    client.subscribe(1, "oc.views")
    views.node.lose_history()
    views.agent.settle(0)
    assert not views.agent.router.views.begun
    assert views.agent.router.views.m_sequence == 0


def test_interfaces_that_cannot_be_looked_at_are_as_they_were(
    connectivity: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> list[object]:
        raise OSError(errno.EMFILE, "Too many open files")

    async def main() -> None:
        components = connectivity.agent.components
        known = components.interfaces()
        assert known
        monkeypatch.setattr("ocfcluster.agent.components.list_devices", none_left)
        assert components.interfaces() == components.interfaces() == known
        later = components._look_later
        assert later is not None
        later.cancel()

    asyncio.run(main())
