"""The blocking API against the fake agent."""

from __future__ import annotations

import errno
import gc
import os
import select
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ocfcluster
from ocfcluster import errors
from ocfcluster.cli.exits import explain
from ocfcluster.client.client import Client
from ocfcluster.client.connection import Connection
from ocfcluster.client.producer import Producer
from ocfcluster.limits import PRODUCER_RUNS_UNANSWERED
from tests.unit.fake_agent import Cluster, FakeAgent

NOBODY = 65534


def readable(thing: object) -> bool:
    return bool(select.select([thing], [], [], 0)[0])


def until(condition, seconds: float = 3.0) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.002)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    cluster = Cluster()
    cluster.create("t")
    cluster.create("u")
    cluster.create("here", local=True)
    with FakeAgent(str(tmp_path / "agent.sock"), cluster) as fake:
        yield fake


@pytest.fixture
def client(agent: FakeAgent) -> Iterator[Client]:
    with ocfcluster.connect(agent.path, name="test") as made:
        yield made


def test_publish_and_get(client: Client) -> None:
    with client.subscribe("t") as events:
        assert [(start.topic, start.next_seq) for start in events.starts] == [("t", 1)]
        receipt = client.publish("t", b"one", re_id=7, properties={"k": "v"})
        published = receipt.wait(2)
        assert (published.topic, published.seq, published.ev_id) == ("t", 1, 1)
        event = events.get(2)
        assert event is not None
        assert (event.topic, event.data, event.seq, event.ev_id, event.re_id) == ("t", b"one", 1, 1, 7)
        assert event.properties == {"k": "v"}
        assert event.notice is None
        assert not event.local
        assert event.to_bytes().endswith(b"one")
        assert events.get(0) is None
        assert events.get(0.01) is None


def test_publish_many_of_mixed_lengths_arrives_in_order(client: Client) -> None:
    datas = [bytes([i % 256]) * (i % 300) for i in range(4000)]
    with client.subscribe("t") as events:
        published = client.publish_many("t", datas).wait(5)
        assert (published.seq, published.count) == (1, 4000)
        got: list[bytes] = []
        for run in events.runs():
            assert run.seq == len(got) + 1
            got.extend(run)
            if len(got) == 4000:
                break
        assert got == datas
        assert not readable(events)


def test_gathered_publications_have_consecutive_numbers_and_few_runs(
    agent: FakeAgent, client: Client
) -> None:
    with client.subscribe("t") as events:
        receipts = [client.publish("t", b"%d" % i) for i in range(2000)]
        client.flush(5)
        assert [receipt.wait(0).seq for receipt in receipts] == list(range(1, 2001))
        assert agent.runs < 200
        for i in range(2000):
            event = events.get(1)
            assert event is not None
            assert (event.data, event.seq) == (b"%d" % i, i + 1)


def test_what_gathered_is_sent_without_another_call(agent: FakeAgent, client: Client) -> None:
    client.publish("t", b"open the producer").wait(2)
    agent.deaf = True
    receipts = [client.publish("t", b"x") for _ in range(5)]
    agent.deaf = False
    until(lambda: all(receipt.done() for receipt in receipts))


def test_publications_that_differ_go_into_runs_of_their_own(agent: FakeAgent, client: Client) -> None:
    with client.subscribe(["t", "u"]) as events:
        for i in range(30):
            client.publish(
                "tu"[i % 2], b"%d" % i, re_id=i % 3, properties={"n": str(i % 5)} if i % 4 else None
            )
        client.flush(5)
        for i in range(30):
            event = events.get(1)
            assert event is not None
            assert (event.topic, event.data, event.re_id) == ("tu"[i % 2], b"%d" % i, i % 3)
            assert event.properties == ({"n": str(i % 5)} if i % 4 else {})


def test_large_events_come_in_pieces(client: Client) -> None:
    big = bytes(range(256)) * 1200
    with client.subscribe("t") as events:
        client.publish_many("t", [big, b"small", big]).wait(5)
        for expected in (big, b"small", big):
            assert readable(events)
            event = events.get(1)
            assert event is not None
            assert event.data == expected
        assert not readable(events)


def test_the_descriptor_is_truthful(client: Client) -> None:
    with client.subscribe("t") as events:
        epoll = select.epoll()
        epoll.register(events.fileno(), select.EPOLLIN)
        descriptor = events.fileno()
        client.publish_many("t", [b"a", b"b", b"c"]).wait(2)
        for _ in range(3):
            assert readable(events)
            assert epoll.poll(0)
            assert events.get(0) is not None
        assert not readable(events)
        assert not epoll.poll(0)
        assert events.fileno() == descriptor
        epoll.close()


def test_the_lent_end_is_out_of_the_way_of_select(client: Client) -> None:
    with client.subscribe("t") as events:
        assert events.fileno() < 1024
        assert events.event_socket.state.lend >= 1024


def test_get_wakes_when_an_event_comes(client: Client) -> None:
    with client.subscribe("t") as events:
        timer = threading.Timer(0.05, lambda: client.publish("t", b"late"))
        timer.start()
        event = events.get(2)
        assert event is not None
        assert event.data == b"late"
        timer.join()


def test_concurrent_takers_share_the_events(client: Client) -> None:
    with client.subscribe("t") as events:
        got: list[list[int]] = [[], [], []]

        def take(mine: list[int]) -> None:
            while True:
                event = events.get(2)
                if event is None or event.data == b"end":
                    return
                mine.append(event.seq)

        threads = [threading.Thread(target=take, args=(mine,)) for mine in got]
        for thread in threads:
            thread.start()
        client.publish_many("t", [b"x"] * 5000)
        for _ in threads:
            client.publish("t", b"end", re_id=1)
        client.flush(5)
        for thread in threads:
            thread.join(5)
        assert sorted(got[0] + got[1] + got[2]) == list(range(1, 5001))
        assert all(mine == sorted(mine) for mine in got)


def test_concurrent_publishers_keep_their_order(client: Client) -> None:
    def work(number: int) -> None:
        with client.publisher("t") as publisher:
            for i in range(500):
                publisher.publish(b"%d %d" % (number, i))

    with client.subscribe("t") as events:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seen: dict[bytes, list[int]] = {}
        for _ in range(1500):
            event = events.get(2)
            assert event is not None
            number, i = event.data.split()
            seen.setdefault(number, []).append(int(i))
        assert all(order == list(range(500)) for order in seen.values())


def test_unknown_topics_and_bad_names(client: Client) -> None:
    with pytest.raises(errors.UnknownTopic) as caught:
        client.subscribe("nowhere")
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(errors.UnknownTopic):
        client.publish("nowhere", b"")
    for name in ("", "x" * 256, "a\0b", "ü" * 128):
        with pytest.raises(errors.InvalidArgument):
            client.subscribe(name)
        with pytest.raises(errors.InvalidArgument):
            client.publish(name, b"")
    with pytest.raises(errors.TooLarge):
        client.publish("t", bytes(ocfcluster.client.publisher.RUN_BYTES * 100))
    with pytest.raises(errors.TooLarge):
        client.publish_many("t", [b"a", b"b", bytes(2 << 20)])
    with pytest.raises(errors.InvalidArgument, match="encode"):
        client.publish("t", "text")  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidArgument):
        client.publish_many("t", [])


def test_refused_publications_raise_from_their_receipt(agent: FakeAgent, client: Client) -> None:
    agent.refuse["u"] = errno.EPERM
    refused = client.publish("u", b"no")
    fine = client.publish("t", b"yes")
    with pytest.raises(errors.NotPermitted):
        refused.wait(2)
    assert fine.wait(2).seq == 1


def test_topics(client: Client) -> None:
    made = client.create_topic("new", "local")
    assert (made.name, made.scope) == ("new", "local")
    assert client.create_topic("new", "local").topic_id == made.topic_id
    with pytest.raises(errors.TopicExists):
        client.create_topic("new")
    assert [topic.name for topic in client.topics()] == ["here", "new", "t", "u"]
    assert client.topic("new") == made
    client.remove_topic("new")
    with pytest.raises(errors.UnknownTopic):
        client.topic("new")
    assert client.members() == [{"node_id": 1}]
    client.barrier()


def test_a_removed_topic_ends_its_subscription_with_a_notice(agent: FakeAgent, client: Client) -> None:
    events = client.subscribe("u")
    client.publish("u", b"last").wait(2)
    agent.remove_topic("u")
    assert [event.data for event in (events.get(1),) if event] == [b"last"]
    event = events.get(1)
    assert event is not None
    assert event.notice is not None
    assert event.notice.name == "topic_removed"
    assert event.notice.final
    for _ in range(2):
        assert readable(events)
        with pytest.raises(errors.NotConnected):
            events.get(0)
    assert list(events) == []
    events.close()
    with pytest.raises(errors.UnknownTopic):
        client.publish("u", b"").wait(2)


def test_local_topics_have_a_producer_of_their_own(agent: FakeAgent, client: Client) -> None:
    with client.subscribe(["t", "here"]) as events:
        client.publish("t", b"1")
        client.publish("here", b"2")
        client.publish("t", b"3")
        client.flush(2)
        assert sorted(event.data for event in (events.get(1) for _ in range(3)) if event) == [
            b"1",
            b"2",
            b"3",
        ]
    assert len(agent.cluster.next_number) == 2


def test_a_producer_that_is_lost_as_soon_as_it_is_there_is_opened_again(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The history ends between the answer and the thread that waits for it."""
    wait = Connection.wait_until
    lost: list[Producer] = []

    def wait_until(connection: Connection, *arguments: Any, **keywords: Any) -> bool:
        done = wait(connection, *arguments, **keywords)
        for producer in connection.session.producers:
            if producer.id and not lost:
                lost.append(producer)
                producer.abandon(errors.OutcomeUnknown("the history ended"))
        return done

    monkeypatch.setattr(Connection, "wait_until", wait_until)
    client.publish("t", b"1").wait(2)
    assert lost


def test_what_ends_a_large_call_in_the_middle_says_how_far_it_was(agent: FakeAgent) -> None:
    with ocfcluster.connect(agent.path, resume=False) as client:
        client.publish("t", b"").wait(2)
        agent.hold_receipts = True
        threading.Timer(0.2, agent.kill).start()
        with pytest.raises(errors.NotConnected, match=r"ended; 1[34]\d of 300 were published"):
            client.publish_many("t", [bytes(60_000)] * 300)


def test_the_window_blocks_and_says_so(agent: FakeAgent, client: Client) -> None:
    client.publish("t", b"").wait(2)
    agent.hold_receipts = True
    with pytest.raises(errors.WouldBlock, match=r"; 1[34]\d of 300 were published"):
        client.publish_many("t", [bytes(60_000)] * 300, timeout=0.2)
    with pytest.raises(errors.WouldBlock):
        client.flush(0.05)
    threading.Timer(0.05, agent.release_receipts).start()
    client.publish("t", b"through", timeout=3).wait(3)


def test_waiting_for_a_subscription_that_this_thread_drains_is_refused(
    agent: FakeAgent, client: Client
) -> None:
    with client.subscribe("t") as events:
        client.publish("t", b"").wait(2)
        assert events.get(1) is not None
        agent.hold_receipts = True
        agent.set_full([events.event_socket.state.id])
        with pytest.raises(errors.WouldDeadlock):
            client.publish_many("t", [bytes(60_000)] * 300, timeout=3)
        # Another thread, which drains nothing, may wait.
        raised: list[type[BaseException]] = []

        def wait() -> None:
            try:
                client.flush(0.05)
            except errors.ClientError as error:
                raised.append(type(error))

        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()
        assert raised == [errors.WouldBlock]
        agent.release_receipts()


def test_no_agent(tmp_path: Path) -> None:
    with pytest.raises(errors.AgentUnreachable) as caught:
        ocfcluster.connect(str(tmp_path / "nothing.sock"))
    assert "nothing.sock" in str(caught.value)
    assert "`ocfcluster agent`" in str(caught.value)
    assert caught.value.errno == errno.ECONNREFUSED


def test_an_agent_of_others(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen()
        path.chmod(0)
        was = os.geteuid()
        if was == 0:  # who is held up by no mode
            os.seteuid(NOBODY)
        try:
            with pytest.raises(errors.AgentUnreachable, match="the socket's group") as caught:
                ocfcluster.connect(str(path))
        finally:
            os.seteuid(was)
    assert str(path) in str(caught.value)
    assert "start one" not in explain(caught.value)


def test_who_has_looked_at_a_topic_publishes_to_the_one_that_is_there(
    agent: FakeAgent, client: Client
) -> None:
    def made_again() -> None:
        del agent.cluster.topics["t"]
        agent.cluster.create("t")

    assert client.topic("t").name == "t"
    agent.call(made_again)
    assert client.publish("t", b"x").wait(2).topic == "t"


def test_close_wakes_whoever_waits(client: Client) -> None:
    events = client.subscribe("t")
    ended: list[object] = []

    def take() -> None:
        try:
            ended.append(events.get())
        except OSError as error:
            ended.append(error)

    thread = threading.Thread(target=take)
    thread.start()
    time.sleep(0.05)
    events.close()
    thread.join(2)
    assert isinstance(ended[0], errors.InvalidArgument)


def test_closing_flushes(agent: FakeAgent) -> None:
    with ocfcluster.connect(agent.path) as client:
        for i in range(100):
            client.publish("t", b"%d" % i)
    assert agent.cluster.seq[agent.cluster.topics["t"].topic_id] == 100
    with pytest.raises(errors.NotConnected):
        client.publish("t", b"")


def test_an_unreferenced_client_closes_with_a_warning(agent: FakeAgent) -> None:
    client = ocfcluster.connect(agent.path)
    client.publish("t", b"")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del client
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]
    until(lambda: not agent._peers)


def test_an_unreferenced_subscription_is_unsubscribed(agent: FakeAgent, client: Client) -> None:
    events = client.subscribe("t")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        del events
        gc.collect()
    until(lambda: not any(peer.subscribers for peer in agent._peers.values()))


def test_many_subscriptions_and_descriptors_are_given_back(agent: FakeAgent, client: Client) -> None:
    import os

    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        made = [client.subscribe("t") for _ in range(50)]
        client.publish("t", b"x").wait(2)
        assert all(one.get(1) is not None for one in made)
        for one in made:
            one.close()
    until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_an_event_too_large_for_the_cluster_joins_no_run_of_others(agent: FakeAgent) -> None:
    agent.event_bytes = 100
    with ocfcluster.connect(agent.path) as client:
        client.publish("t", b"first").wait(2)
        receipts = []
        for _ in range(200):  # a few of them gather
            receipts.append(client.publish("t", b"fits"))
            with pytest.raises(errors.TooLarge):
                client.publish("t", bytes(101))
        assert [receipt.wait(2).seq for receipt in receipts] == list(range(2, 202))


def test_room_at_the_end_of_the_time_is_room(agent: FakeAgent, client: Client) -> None:
    with client.publisher("t") as publisher:
        publisher.publish(b"open").wait(2)
        agent.hold_receipts = True
        for _ in range(PRODUCER_RUNS_UNANSWERED):
            publisher.publish_many([b"x"])
        with pytest.raises(errors.WouldBlock):
            publisher.publish_many([b"x"], timeout=0.05)
        producer = publisher._producer
        assert producer is not None
        batch = producer.unanswered[0]

        def answer_one() -> None:
            with client.connection().lock:
                producer.answered(batch.number, 1, 0, 1, 1)

        timer = threading.Timer(0.05, answer_one)
        timer.start()
        publisher.publish_many([b"x"], timeout=0.2)  # there is room, but not for several
        timer.join()
        agent.release_receipts()


def test_receipts_come_also_when_their_publisher_was_closed_too_early(
    agent: FakeAgent, client: Client
) -> None:
    publisher = client.publisher("t")
    publisher.publish(b"open").wait(2)
    agent.hold_receipts = True
    receipt = publisher.publish(b"x")
    with pytest.raises(errors.WouldBlock):
        publisher.close(timeout=0.05)
    agent.release_receipts()
    assert receipt.wait(2).seq == 2
    until(lambda: not client.connection().session.producers)


def test_a_very_long_timeout_is_long_and_not_an_error(client: Client) -> None:
    with client.subscribe("t") as events:
        client.publish("t", b"x")
        event = events.get(1e12)
        assert event is not None
        assert event.data == b"x"


@pytest.mark.parametrize("other", ["wait", "pump"])
def test_the_connection_is_watched_after_several_threads_have_waited(
    agent: FakeAgent, client: Client, other: str
) -> None:
    """Whoever leaves last gives it back to the library's thread: also who has only seen another one read."""
    connection = client.connection()
    client.publish("t", b"0").wait(2)
    agent.hold_receipts = True
    receipt = client.publish("t", b"1")
    until(lambda: not connection._ticks_left)

    def pump() -> None:
        while not receipt.done():
            connection.pump()

    first = threading.Thread(target=receipt.wait)
    first.start()
    until(lambda: connection._reading)
    second = threading.Thread(target=receipt.wait if other == "wait" else pump)
    second.start()
    until(lambda: connection._waiting == 1)
    agent.release_receipts()
    first.join(5)
    second.join(5)
    last = client.publish("t", b"2")
    until(last.done)
