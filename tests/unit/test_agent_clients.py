"""The agent seen by one or two clients over raw sockets: what they ask, publish and get."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocfcluster.agent.config import AgentConfig, TopicSetting
from ocfcluster.limits import RUN_BYTES
from ocfcluster.wire import control
from ocfcluster.wire.frames import (
    LOCAL_ID,
    Answer,
    Full,
    Hello,
    NoticeCode,
    OpenProducer,
    Position,
    RecordFlags,
    RecordKind,
    Request,
    Shutdown,
    Subscribe,
    TopicCreate,
    TopicRemove,
    TopicResolve,
    Unsubscribe,
)
from ocfcluster.wire.run import RunKind, build_run, read_header, run_events
from tests.unit.fake_node import Bench, bench, publish_frame, read_all, read_frame

EVENT = b"event"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as made:
        yield made


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def test_greeting_says_who_the_agent_is(agent: Bench) -> None:
    welcome = agent.client(greet=False).greet()
    assert (welcome.node_id, welcome.incarnation, welcome.connection) == (1, 77, 1)
    assert welcome.cluster_id == "0" * 31 + "1"
    assert agent.client(greet=False).greet().connection == 2


def test_an_event_goes_from_publisher_to_subscriber(agent: Bench) -> None:
    client = agent.client()
    topic_id = client.create_topic("t")
    events = client.subscribe(7, "t")
    producer = client.open_producer()
    client.publish(topic_id, producer, 1, b"a", b"bc")
    client.answers()
    assert client.receipts == [(producer, 1, 2, 0, 1, 2)]  # ev_id 1 is the first view's
    header, records = read_frame(events)
    assert header == (1, 7, 0, 1, 0)
    fields, run = records[0]
    assert fields[1:10] == (RecordKind.RUN, 0, 0, 0, 1, 77, 1, 1, 2)
    assert list(run_events(run, read_header(run))) == [b"a", b"bc"]
    assert read_frame(events) is None


def test_a_burst_is_one_message_per_subscriber(agent: Bench) -> None:
    client, other = agent.client(), agent.client()
    topic_id = client.create_topic("t")
    first, second = client.subscribe(1, "t"), other.subscribe(1, "t")
    producer = client.open_producer()
    runs = [build_run(RunKind.PUBLICATION, topic_id, producer, n, [EVENT]) for n in range(1, 101)]
    client.send(b"".join(map(publish_frame, runs)))
    client.answers()
    for events in (first, second):
        frame = read_frame(events)
        assert frame[0][3] == 100
        assert [fields[8] for fields, _ in frame[1]] == list(range(1, 101))
        assert read_frame(events) is None


def test_a_large_event_comes_in_pieces_to_each_subscriber(agent: Bench) -> None:
    client = agent.client()
    topic_id = client.create_topic("t")
    first, second = client.subscribe(1, "t"), client.subscribe(2, "t")
    producer = client.open_producer()
    data = os.urandom(1 << 20)
    client.publish(topic_id, producer, 1, EVENT)
    client.publish(topic_id, producer, 2, data)
    client.publish(topic_id, producer, 3, EVENT)
    client.answers()
    for events in (first, second):
        frames = read_all(events, agent.step)
        runs = [run for _, records in frames for _, run in records]
        assert [list(run_events(run, read_header(run))) for run in runs] == [[EVENT], [data], [EVENT]]
    assert [receipt[4] for receipt in client.receipts] == [1, 2, 3]
    assert agent.agent.hub.held_bytes == 0


def test_a_topic_that_does_not_exist_is_unknown_after_a_barrier(agent: Bench) -> None:
    client = agent.client()
    kind, error = client.call(Request.TOPIC_RESOLVE, TopicResolve("no"))
    assert (kind, error.errno) == (Answer.ERROR, errno.EINVAL)
    own, lent = pair()
    with own, lent:
        kind, error = client.call(Request.SUBSCRIBE, Subscribe(1, ["no"], False), [lent.fileno()])
        assert (kind, error.errno) == (Answer.ERROR, errno.EINVAL)
        assert "no" in error.message


def test_a_subscription_starts_where_deliveries_of_its_own_burst_end(agent: Bench) -> None:
    """A barrier's outcome comes in one burst with events behind it: the start must name the first one given."""
    client = agent.client()
    producer = client.open_producer()
    topic_id = client.create_topic("t") + 1  # what "u" will have
    node = agent.node
    order = node.control

    def control_with_company(operand: control.Operand, behind: bool = False) -> int:
        if not isinstance(operand, control.Barrier):
            return order(operand, behind)
        order(control.TopicCreate("u", False))  # created elsewhere
        token = order(operand, behind)
        node.publish(build_run(RunKind.PUBLICATION, topic_id, producer, 1, [EVENT]))
        return token

    node.control = control_with_company  # type: ignore[method-assign]
    own, lent = pair()
    with own, lent:
        own.setblocking(False)
        start = client.call(Request.SUBSCRIBE, Subscribe(1, ["u"], False), [lent.fileno()])[1].starts[0]
        client.publish(topic_id, producer, 2, EVENT)
        agent.step()
        first = read_frame(own)[1][0][0][8]
        assert start.next_seq == first


def test_resuming_names_the_gap(agent: Bench) -> None:
    client = agent.client()
    topic_id = client.create_topic("t")
    producer = client.open_producer()
    for number in range(1, 6):
        client.publish(topic_id, producer, number, EVENT)
    client.answers()
    own, lent = pair()
    with own, lent:
        history = "0" * 31 + "1"

        def resume(number: int, cluster_id: str, position: Position) -> tuple[int, object]:
            body = Subscribe(number, ["t"], False, cluster_id, [position])
            return client.call(Request.SUBSCRIBE, body, [lent.fileno()])

        assert resume(1, history, Position("t", topic_id, 2))[1].starts[0].gap_from == 3
        assert resume(2, history, Position("t", topic_id, 5))[1].starts[0].gap_from == 0
        kind, answer = resume(3, "another", Position("t", topic_id, 5))
        assert kind == Answer.SUBSCRIBED
        assert answer.history_lost
        assert not answer.starts
        kind, answer = resume(4, history, Position("t", topic_id + 1, 5))
        assert (kind, answer.errno) == (Answer.ERROR, errno.EINVAL)
        assert "made again" in answer.message
        assert sorted(agent.agent.hub.lines[1].subscriptions) == [1, 2]


def test_resuming_goes_on_with_the_topics_that_are_left(agent: Bench) -> None:
    client = agent.client()
    left, again = client.create_topic("left"), client.create_topic("again")
    gone = again + 1
    own, lent = pair()
    with own, lent:
        history = "0" * 31 + "1"

        def resume(number: int, topics: dict[str, int]) -> tuple[int, object]:
            positions = [Position(name, topic_id, 0) for name, topic_id in topics.items()]
            body = Subscribe(number, list(topics), False, history, positions)
            return client.call(Request.SUBSCRIBE, body, [lent.fileno()])

        kind, answer = resume(1, {"gone": gone, "left": left, "again": again + 7})
        assert kind == Answer.SUBSCRIBED
        assert [(start.topic, start.topic_id) for start in answer.starts] == [("left", left)]
        kind, answer = resume(2, {"gone": gone, "again": again + 7})
        assert (kind, answer.errno) == (Answer.ERROR, errno.EINVAL)
        assert "gone" in answer.message
        assert sorted(agent.agent.hub.lines[1].subscriptions) == [1]


def test_topics_are_created_listed_and_removed(agent: Bench) -> None:
    client = agent.client()
    topic_id = client.create_topic("t")
    assert client.create_topic("t") == topic_id
    _kind, error = client.call(Request.TOPIC_CREATE, TopicCreate("t", local=True))
    assert error.errno == errno.EEXIST
    assert client.call(Request.TOPIC_CREATE, TopicCreate("oc.mine"))[1].errno == errno.EPERM
    assert client.call(Request.TOPIC_CREATE, TopicCreate("__OC_EV_X"))[1].errno == errno.EPERM
    assert client.call(Request.TOPIC_CREATE, TopicCreate("group:x*y"))[1].errno == errno.EINVAL
    assert client.call(Request.TOPIC_CREATE, TopicCreate(""))[1].errno == errno.EINVAL
    assert client.call(Request.TOPIC_CREATE, TopicCreate("é" * 128))[1].errno == errno.EINVAL
    topics = client.call(Request.TOPIC_LIST)[1].topics
    assert [t.topic for t in topics] == ["oc.connectivity", "oc.local", "oc.membership", "t"]
    alias = client.call(Request.TOPIC_RESOLVE, TopicResolve("__OC_EV_MEMB_CLASS"))[1]
    assert (alias.topic, alias.aliases) == ("oc.membership", ["__OC_EV_MEMB_CLASS"])
    assert client.call(Request.TOPIC_REMOVE, TopicRemove("oc.membership"))[1].errno == errno.EPERM
    events = client.subscribe(1, "t")
    both = client.subscribe(2, "t", "oc.membership")
    assert read_frame(both)[1][0][0][2] == RecordFlags.RETAINED  # the membership as it is
    assert client.call(Request.TOPIC_REMOVE, TopicRemove("t"))[0] == Answer.DONE
    assert client.call(Request.TOPIC_REMOVE, TopicRemove("t"))[1].errno == errno.EINVAL
    for end, final in ((events, True), (both, False)):
        notice = read_frame(end)[1][0][1]
        assert (notice.code, notice.topic, notice.final) == (NoticeCode.TOPIC_REMOVED, "t", final)
    assert client.create_topic("t") > topic_id


def test_what_is_refused_uses_up_its_numbers(agent: Bench) -> None:
    client = agent.client()
    topic_id = client.create_topic("t")
    producer = client.open_producer()
    client.publish(9999, producer, 1, EVENT, EVENT)
    client.publish(1, producer, 3, EVENT)
    client.publish(topic_id, producer, 4, EVENT)
    client.publish(topic_id, producer, 9, EVENT)
    client.publish(topic_id, 4711, 1, EVENT)
    client.answers()
    assert sorted(client.receipts) == [
        (producer, 1, 2, errno.EINVAL, 0, 0),
        (producer, 3, 1, errno.EPERM, 0, 0),
        (producer, 4, 1, 0, 1, 2),
        (producer, 9, 1, errno.EILSEQ, 0, 0),
        (4711, 1, 1, errno.EBADF, 0, 0),
    ]


def test_a_run_of_several_events_fits_a_frame(agent: Bench) -> None:
    client = agent.client()
    topic_id = client.create_topic("t")
    producer = client.open_producer()
    client.publish(topic_id, producer, 1, b"x" * RUN_BYTES, b"y")
    client.answers()
    assert client.receipts == [(producer, 1, 2, errno.EMSGSIZE, 0, 0)]


def test_local_topics_stay_here_and_have_ids_of_their_own(agent: Bench) -> None:
    client = agent.client()
    topic_id = client.create_topic("here", local=True)
    events = client.subscribe(1, "here")
    producer = client.open_producer(local=True)
    wide = client.open_producer()
    assert producer & LOCAL_ID
    client.publish(topic_id, producer, 1, b"a", b"b")
    client.publish(topic_id, producer, 1, b"a", b"b", b"c")  # the first two come again
    client.publish(topic_id, producer, 5, b"e")
    client.publish(topic_id, wide, 1, b"f")
    client.answers()
    assert client.receipts[:4] == [
        (producer, 1, 2, 0, 1, LOCAL_ID + 1),
        (producer, 1, 2, 0, 1, LOCAL_ID + 1),
        (producer, 3, 1, 0, 3, LOCAL_ID + 3),
        (producer, 5, 1, errno.EILSEQ, 0, 0),
    ]
    assert client.receipts[4:] == [(wide, 1, 1, errno.EINVAL, 0, 0)]
    records = [record for _, records in read_all(events, agent.step) for record in records]
    assert [(fields[2], fields[4], fields[8]) for fields, _ in records] == [
        (RecordFlags.LOCAL, 0, 1),
        (RecordFlags.LOCAL, 2, 3),
    ]
    assert agent.node.last_seq(topic_id) == 0


def test_what_was_published_before_the_end_of_the_connection_is_delivered(agent: Bench) -> None:
    first, second = agent.client(), agent.client()
    topic_id = first.create_topic("t")
    events = second.subscribe(1, "t")
    producer = first.open_producer()
    agent.node.space = 0
    for number in range(1, 4):
        first.publish(topic_id, producer, number, EVENT)
    agent.step()
    first.socket.close()
    agent.step()
    assert read_frame(events) is None
    agent.node.space = 1 << 20
    agent.agent.settle(0)
    assert len(read_frame(events)[1]) == 3
    assert not agent.agent.intake.owners
    assert agent.agent.intake.inbox_bytes == 0


def test_barrier_comes_after_the_publications_before_it(agent: Bench) -> None:
    client = agent.client()
    topic_id = client.create_topic("t")
    producer = client.open_producer()
    agent.node.space = 0
    client.publish(topic_id, producer, 1, EVENT)
    barrier = client.ask(Request.BARRIER)
    status = client.ask(Request.STATUS)
    assert [request_id for _, request_id, _ in client.answers()] == [
        status
    ]  # it overtakes, the barrier does not
    assert not client.receipts
    agent.node.space = 1
    agent.agent.settle(0)
    assert [request_id for _, request_id, _ in client.answers()] == [barrier]
    assert client.receipts


def test_publishers_take_turns(agent: Bench) -> None:
    clients = [agent.client() for _ in range(3)]
    topic_id = clients[0].create_topic("t")
    events = clients[0].subscribe(1, "t")
    producers = [client.open_producer() for client in clients]
    agent.node.space = 0
    for client, producer in zip(clients, producers, strict=True):
        for number in range(1, 5):
            client.publish(topic_id, producer, number, EVENT)
    agent.step()
    agent.node.space = 1 << 20
    agent.agent.settle(0)
    runs = [run for _, records in read_all(events, agent.step) for _, run in records]
    order = [producers.index(read_header(run).producer) for run in runs]
    assert order == [0, 1, 2] * 4


def test_a_publisher_without_room_is_not_read_on_for_ever(agent: Bench) -> None:
    client = agent.client()
    topic_id = client.create_topic("t")
    producer = client.open_producer()
    client.answers()
    agent.node.space = 0
    frame = publish_frame(build_run(RunKind.PUBLICATION, topic_id, producer, 1, [b"x" * 60_000]))
    rest = frame
    for _ in range(5000):
        try:
            rest = rest[client.socket.send(rest) :] or frame
        except BlockingIOError:
            agent.step()
            if not agent.agent.clients[1].reading:
                break
    assert not agent.agent.clients[1].reading
    assert 8 << 20 < agent.agent.intake.inbox_bytes < 9 << 20
    agent.node.space = 1 << 30
    agent.agent.settle(0)
    assert agent.agent.clients[1].reading
    assert agent.agent.intake.inbox_bytes == 0


def test_requests_before_the_cluster_has_formed_wait(tmp_path: Path) -> None:
    with bench(tmp_path, active=False) as agent:
        client = agent.client()
        create = client.ask(Request.TOPIC_CREATE, TopicCreate("t"))
        opened = client.ask(Request.OPEN_PRODUCER, OpenProducer())
        assert client.call(Request.STATUS)[1].document["state"] == "forming"
        agent.node.activate()
        agent.agent.settle(0)
        assert [(kind, request_id) for kind, request_id, _ in client.answers()] == [
            (Answer.TOPIC, create),
            (Answer.PRODUCER, opened),
        ]


def test_topics_of_the_configuration_are_created_once_active(tmp_path: Path) -> None:
    config = AgentConfig(topics=[TopicSetting("a"), TopicSetting("b", "local")])
    with bench(tmp_path, config) as agent:
        agent.step()
        assert not agent.node.topics["a"].local
        assert agent.node.topics["b"].local


def test_ten_thousand_subscriptions_are_refused_beyond_the_limit(agent: Bench) -> None:
    client = agent.client()
    client.create_topic("t")
    before = len(os.listdir("/proc/self/fd"))
    own, lent = pair()
    with own, lent:
        kinds = []
        for number in range(10_000):
            kind, body = client.call(Request.SUBSCRIBE, Subscribe(number, ["t"], False), [lent.fileno()])
            kinds.append(kind)
            if kind == Answer.ERROR:
                assert body.errno == errno.ENOMEM
        assert kinds.count(Answer.SUBSCRIBED) == 256
        assert kinds.count(Answer.ERROR) == 10_000 - 256
        assert client.call(Request.UNSUBSCRIBE, Unsubscribe(3))[0] == Answer.DONE
        assert client.call(Request.UNSUBSCRIBE, Unsubscribe(3))[1].errno == errno.EINVAL
        assert (
            client.call(Request.SUBSCRIBE, Subscribe(3, ["t"], False), [lent.fileno()])[0]
            == Answer.SUBSCRIBED
        )
        assert (
            client.call(Request.SUBSCRIBE, Subscribe(4, ["t"], False), [lent.fileno()])[1].errno
            == errno.EINVAL
        )
    client.socket.close()
    agent.step()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_only_seqpacket_sockets_are_taken(agent: Bench) -> None:
    client = agent.client()
    client.create_topic("t")
    reading, writing = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        for descriptor in (stream.fileno(), writing):
            kind, error = client.call(Request.SUBSCRIBE, Subscribe(1, ["t"], False), [descriptor])
            assert (kind, error.errno) == (Answer.ERROR, errno.EINVAL)
    os.close(reading)
    os.close(writing)


def test_another_version_of_the_protocol_is_refused(agent: Bench) -> None:
    client = agent.client(greet=False)
    client.call(Request.HELLO, Hello(version=9, library="9.9"))
    assert client.eof
    assert "9.9" in client.told[-1].message


def test_the_end_of_the_process_is_seen_though_a_child_keeps_the_connection(agent: Bench) -> None:
    reading, writing = os.pipe()
    parent = os.fork()
    if not parent:  # connects, leaves its connection to a child, and ends
        connected = socket.socket(socket.AF_UNIX)
        connected.connect(agent.path)
        if os.fork():
            os._exit(0)
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    agent.step()
    os.waitpid(parent, 0)
    agent.step()
    try:
        watched = agent.agent.counters.clients_accepted == 1
        assert watched
        assert not agent.agent.clients
    finally:
        os.close(writing)


def test_shutdown_is_told_to_all(agent: Bench) -> None:
    client = agent.client()
    client.create_topic("t")
    events = client.subscribe(1, "t")
    agent.agent.hub.shut_down("going", 0)
    notice = read_frame(events)[1][0][1]
    assert (notice.code, notice.reason, notice.final) == (NoticeCode.SHUTDOWN, "going", True)
    agent.agent.clients[1].session.answer(0, Answer.SHUTDOWN, Shutdown("going"))
    agent.agent.clients[1].write()
    client.answers()
    assert client.told == [Shutdown("going")]


def test_a_subscription_that_holds_data_is_out_of_the_poller_when_it_ends(agent: Bench) -> None:
    client = agent.client()
    topic_id = client.create_topic("t")
    events = client.subscribe(1, "t")
    producer = client.open_producer()
    for number in range(1, 40):
        client.publish(topic_id, producer, number, b"x" * 60_000)
    client.answers()
    assert len(agent.loop._writers) == 1
    assert client.call(Request.STATUS)[1].document["subscriptions"][0]["blocked"]
    assert client.call(Request.UNSUBSCRIBE, Unsubscribe(1))[0] == Answer.DONE
    assert not agent.loop._writers
    assert agent.agent.hub.held_bytes == 0
    events.close()


def test_full_subscriptions_are_told_to_publishers_and_their_own_client(agent: Bench) -> None:
    client = agent.client()
    topic_id = client.create_topic("t")
    events = client.subscribe(4, "t")
    producer = client.open_producer()
    for number in range(1, 300):
        client.publish(topic_id, producer, number, b"x" * 60_000)
    client.answers()
    assert agent.node.full_told == [True]
    assert client.told == [Full([4])]
    frames = read_all(events, agent.step)
    assert sum(header[3] for header, _ in frames) == 299
    client.answers()
    assert agent.node.full_told == [True, False]
    assert client.told == [Full([4]), Full([])]


def test_status_tells_of_clients_and_subscriptions(agent: Bench) -> None:
    client = agent.client()
    client.create_topic("t")
    client.subscribe(5, "t", callback=True)
    document = client.call(Request.STATUS)[1].document
    assert document["clients"][0]["name"] == "raw"
    assert document["subscriptions"][0]["topics"] == ["t"]
    assert document["subscriptions"][0]["callback"]
    assert document["counters"]["clients_accepted"] == 1


def test_publications_do_not_pass_a_command_that_waits_for_room(
    agent: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = agent.client()
    topic_id = client.create_topic("t")
    producer = client.open_producer()
    agent.node.space = 0
    client.publish(topic_id, producer, 1, EVENT)
    client.ask(Request.BARRIER)
    client.publish(topic_id, producer, 2, EVENT)
    client.answers()
    command = agent.node.control

    def control_of(operand: control.Operand, behind: bool = False) -> int:
        agent.node.space = 0  # the node has no room as long as it waits there
        return command(operand, behind)

    monkeypatch.setattr(agent.node, "control", control_of)
    agent.node.space = 1 << 20
    agent.agent.settle(0)
    client.answers()
    assert [receipt[1] for receipt in client.receipts] == [1]
    agent.node.space = 1 << 20
    agent.agent.settle(0)
    client.answers()
    assert [receipt[1] for receipt in client.receipts] == [1, 2]
