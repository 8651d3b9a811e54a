"""Callbacks: the one order across all callback subscriptions of a client."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import ocfcluster
from ocfcluster import errors
from ocfcluster.client import dispatch
from ocfcluster.client.client import Client
from ocfcluster.client.dispatch import Dispatcher, Entry
from ocfcluster.client.events import Event
from ocfcluster.ocf import oc_ev_event_done
from ocfcluster.wire import frames
from ocfcluster.wire.frames import EVENT_HEADER
from ocfcluster.wire.run import RunKind, build_run
from tests.unit.early import EarlyAgent
from tests.unit.fake_agent import Cluster, FakeAgent, Peer


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    cluster = Cluster()
    for name in "abc":
        cluster.create(name)
    with FakeAgent(str(tmp_path / "agent.sock"), cluster) as fake:
        yield fake


@pytest.fixture
def client(agent: FakeAgent) -> Iterator[Client]:
    with ocfcluster.connect(agent.path) as made:
        yield made


def test_one_order_across_subscriptions(agent: FakeAgent, client: Client) -> None:
    seen: list[tuple[str, int]] = []
    for name in "abc":
        client.subscribe(name, on_event=lambda event: seen.append((event.topic, event.ev_id)))

    def publish() -> None:
        with ocfcluster.connect(agent.path) as other:
            for i in range(600):
                other.publish("abc"[i % 3], b"%d" % i)
                if i % 50 == 0:
                    other.flush(2)

    thread = threading.Thread(target=publish)
    thread.start()
    end = time.monotonic() + 10
    while len(seen) < 600 and time.monotonic() < end:
        client.dispatch(0.05)
    thread.join()
    assert [ev_id for _, ev_id in seen] == list(range(1, 601))
    assert {topic for topic, _ in seen} == set("abc")


def test_the_order_holds_whichever_socket_is_looked_at_first(agent: FakeAgent, client: Client) -> None:
    """Frames that come between two looks: the second look finds what the first one missed."""
    seen: list[int] = []
    made = [client.subscribe(name, on_event=lambda event: seen.append(event.ev_id)) for name in "abc"]
    look = made[0].event_socket.head
    published: list[int] = []

    class Late:
        def __call__(self) -> tuple[int, int] | None:
            key = look()
            if not published:  # after "a" was found empty: first "a", then "b" is written
                published.append(1)
                with ocfcluster.connect(agent.path) as other:
                    other.publish("a", b"first").wait(2)
                    other.publish("b", b"second").wait(2)
            return key

    dispatcher = client.connection().dispatcher
    entries = list(dispatcher._entries.values())

    class Patched:
        """Stands in for the first subscription's socket, whose methods cannot be replaced (slots)."""

        head = staticmethod(Late())

        def __getattr__(self, name: str) -> object:
            return getattr(made[0].event_socket, name)

    entries[0].socket = Patched()  # type: ignore[assignment]
    while dispatcher.dispatch():
        pass
    entries[0].socket = made[0].event_socket
    assert seen == [1, 2]


def test_unsubscribing_in_a_callback_takes_effect_at_once(client: Client) -> None:
    seen: list[bytes] = []

    def once(event: Event) -> None:
        seen.append(event.data)
        subscription.close()

    subscription = client.subscribe("a", on_event=once)
    client.publish_many("a", [b"1", b"2", b"3"]).wait(2)
    client.dispatch(2)
    assert seen == [b"1"]
    with pytest.raises(errors.NoSubscription):
        client.dispatch()


def test_subscribing_in_a_callback_takes_effect(client: Client) -> None:
    seen: list[tuple[str, bytes]] = []

    def more(event: Event) -> None:
        seen.append((event.topic, event.data))
        if event.topic == "a":
            made.append(client.subscribe("b", on_event=more))
            client.publish("b", b"2")
        else:
            for one in made:
                one.close()

    made = [client.subscribe("a", on_event=more)]
    client.publish("a", b"1")
    client.dispatch(3)
    assert seen == [("a", b"1"), ("b", b"2")]


def test_an_exception_of_a_callback_comes_out_and_loses_nothing(client: Client) -> None:
    seen: list[bytes] = []

    def picky(event: Event) -> None:
        seen.append(event.data)
        if event.data == b"2":
            raise ValueError(event.data)

    client.subscribe("a", on_event=picky)
    client.publish_many("a", [b"1", b"2", b"3"]).wait(2)
    with pytest.raises(ValueError, match="2"):
        client.dispatch(2)
    client.dispatch(0.05)
    assert seen == [b"1", b"2", b"3"]


@pytest.mark.parametrize("manual", [False, True])
def test_dispatching_keeps_its_time(client: Client, monkeypatch: pytest.MonkeyPatch, manual: bool) -> None:
    """Amid a run as well as between runs. A callback takes a second, of a clock that nothing else moves."""
    seen: list[bytes] = []
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)

    def slow(event: Event) -> None:
        seen.append(event.data)
        clock.now += 1
        if manual:
            oc_ev_event_done(event)

    client.subscribe_for("a", slow, manual=manual)
    datas = [b"%d" % i for i in range(12)]
    client.publish_many("a", datas[:6]).wait(2)
    for data in datas[6:]:
        client.publish("a", data).wait(2)
    monkeypatch.setattr(dispatch, "time", clock)
    for timeout, count in ((2, 2), (0, 3), (2.5, 6), (4, 10)):
        client.dispatch(timeout)
        assert seen == datas[:count]
    client.dispatch(2)
    assert seen == datas


def test_closing_gives_back_what_a_thread_waits_at(agent: FakeAgent) -> None:
    with ocfcluster.connect(agent.path) as client:
        client.subscribe("a", on_event=print)
        dispatcher = client.connection().dispatcher
        thread = threading.Thread(target=client.dispatch)
        thread.start()
        wait_for(lambda: dispatcher._polls == 1)
        wake = dispatcher._wake
        assert os.readlink(f"/proc/self/fd/{wake}") == "anon_inode:[eventfd]"
    thread.join(10)
    assert not thread.is_alive()
    assert dispatcher._wake == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(wake)


def test_dispatching_inside_a_callback_is_refused(client: Client) -> None:
    raised: list[type[BaseException]] = []

    def again(event: Event) -> None:
        try:
            client.dispatch(0)
        except errors.ClientError as error:
            raised.append(type(error))

    client.subscribe("a", on_event=again)
    client.publish("a", b"").wait(2)
    client.dispatch(0.05)
    assert raised == [errors.WouldDeadlock]


def test_get_on_a_callback_subscription_is_refused(client: Client) -> None:
    subscription = client.subscribe("a", on_event=print)
    with pytest.raises(errors.TopicExists):
        subscription.get(0)


def test_publishing_inside_a_callback_under_a_full_mark_is_refused(agent: FakeAgent, client: Client) -> None:
    raised: list[type[BaseException]] = []

    def echo(event: Event) -> None:
        agent.hold_receipts = True
        agent.set_full([subscription.event_socket.state.id])
        try:
            client.publish("b", b"answer").wait(3)
        except errors.ClientError as error:
            raised.append(type(error))

    subscription = client.subscribe("a", on_event=echo)
    client.publish("a", b"").wait(2)
    client.dispatch(0.05)
    assert raised == [errors.WouldDeadlock]
    agent.release_receipts()


def test_a_full_callback_socket_keeps_the_order(agent: FakeAgent, client: Client) -> None:
    """While one socket is full later turns wait in the agent; nothing is lost or turned round."""
    seen: list[int] = []
    for name in "ab":
        client.subscribe(name, on_event=lambda event: seen.append(event.ev_id))
    with ocfcluster.connect(agent.path) as other:
        for i in range(40):
            other.publish_many("ab"[i % 2], [bytes(50_000)])
        other.flush(5)
    assert not seen
    end = time.monotonic() + 10
    while len(seen) < 40 and time.monotonic() < end:
        client.dispatch(0.05)
    assert seen == list(range(1, 41))
    assert not select.select(
        [one.socket for one in client.connection().dispatcher._entries.values()], [], [], 0
    )[0]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


class Seen:
    """A callback that keeps data, and nothing of notices but their names."""

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.notices: list[str] = []

    def __call__(self, event: Event) -> None:
        if event.notice is None:
            self.data.append(event.data)
        else:
            self.notices.append(event.notice.name)


def test_a_new_subscription_has_its_place_in_the_order_before_its_answer_is_read(agent: FakeAgent) -> None:
    """Its first event is in the socket, a later one of another topic too, and SUBSCRIBED is not there yet."""
    agent.kill()
    seen = Seen()
    with EarlyAgent(agent.path, agent.cluster, "b", "a") as early, ocfcluster.connect(agent.path) as client:
        first = client.subscribe("a", on_event=seen)
        thread = threading.Thread(target=client.subscribe, args=("b", seen))
        thread.start()
        assert early.written.wait(5)
        assert select.select([first], [], [], 5)[0]
        client.dispatch(0.05)
        client.connection().dispatcher.handle(first.event_socket)
        assert seen.data == []
        early.answer.set()
        thread.join(5)
        client.dispatch(0.05)
        assert seen.data == [b"1", b"2"]


def test_a_subscription_that_another_thread_makes_meanwhile_is_looked_at(agent: FakeAgent) -> None:
    """The dispatching thread has begun to look, and another one subscribes: an earlier event may be there now."""
    seen = Seen()
    with ocfcluster.connect(agent.path) as client:
        first = client.subscribe("a", on_event=seen)
        dispatcher = client.connection().dispatcher
        really, others = dispatcher._look, []

        def look(entry: Entry) -> None:
            if not others:
                others.append(threading.Thread(target=subscribe))
                others[0].start()
                others[0].join(5)
                assert select.select([first], [], [], 5)[0]
            really(entry)

        def subscribe() -> None:
            client.subscribe("b", on_event=seen)
            client.publish("b", b"1").wait(2)
            client.publish("a", b"2").wait(2)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Dispatcher, "_look", lambda _, entry: look(entry))
            client.dispatch(0.5)
        client.dispatch(0.05)
        assert seen.data == [b"1", b"2"]


def test_a_subscription_that_goes_on_keeps_its_place_in_the_order(agent: FakeAgent) -> None:
    """After a reconnect one subscription goes on, and the answer for another, which has an event, is not there yet."""
    seen = Seen()
    with ocfcluster.connect(agent.path) as client:
        client.subscribe("a", on_event=seen)
        client.subscribe("b", on_event=seen)
        agent.kill()
        with EarlyAgent(agent.path, agent.cluster, "b", "a") as early:
            assert early.written.wait(5)
            while "resumed" not in seen.notices:
                client.dispatch(0.05)
            client.dispatch(0.05)
            assert seen.data == []
            early.answer.set()
            client.dispatch(0.05)
            assert seen.data == [b"1", b"2"]
            assert seen.notices.count("resumed") == 2


def test_nobody_waits_for_an_answer_once_the_connection_has_ended(agent: FakeAgent) -> None:
    agent.kill()
    seen = Seen()
    late: list[BaseException] = []

    def subscribe(client: Client) -> None:
        try:
            client.subscribe("b", on_event=seen)
        except errors.NotConnected as error:
            late.append(error)

    early = EarlyAgent(agent.path, agent.cluster, "b", "a")
    with early, ocfcluster.connect(agent.path, resume=False) as client:
        first = client.subscribe("a", on_event=seen)
        thread = threading.Thread(target=subscribe, args=(client,))
        thread.start()
        assert early.written.wait(5)
        assert select.select([first], [], [], 5)[0]
        (peer,) = early._peers.values()
        peer.stream.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        assert [type(error) for error in late] == [errors.NotConnected]
        with pytest.raises(errors.NotConnected):
            client.dispatch(5)
        assert seen.data == [b"2"]
        assert seen.notices == ["agent_lost"]


def test_nobody_waits_for_a_subscription_that_is_asked_for_and_has_no_event(agent: FakeAgent) -> None:
    """The agent takes its time for the answer; what comes for others does not wait for it."""
    seen = Seen()
    with ocfcluster.connect(agent.path) as client:
        client.subscribe("a", on_event=seen)
        agent.deaf = True
        with pytest.raises(errors.WouldBlock):
            client.subscribe("b", on_event=seen, timeout=0.05)
        assert len(client.connection().dispatcher) == 1
        agent.deaf = False
        asked = threading.Event()
        answer = threading.Event()
        subscribe = agent._on_subscribe

        def slow(peer: Peer, body: frames.Subscribe) -> object:
            asked.set()
            topic_id = agent.cluster.topics["a"].topic_id
            agent.deliver(build_run(RunKind.PUBLICATION, topic_id, 0, 1, [b"a"]), topic_id, 1, 1)
            answer.wait(5)
            return subscribe(peer, body)

        agent._on_subscribe = slow  # type: ignore[method-assign]
        thread = threading.Thread(target=client.subscribe, args=("b", seen))
        thread.start()
        assert asked.wait(5)
        while not seen.data:
            client.dispatch(0.05)
        assert seen.data == [b"a"]
        answer.set()
        thread.join(5)


def test_nobody_waits_for_what_came_late_on_a_connection_that_has_ended(agent: FakeAgent) -> None:
    """It lies in the socket of a subscription whose next agent takes its time to go on with it."""
    seen = Seen()
    with ocfcluster.connect(agent.path) as client:
        client.subscribe("a", on_event=seen)
        pulled = client.subscribe("c", on_event=seen)
        other = client.subscribe("b", on_event=seen)
        client.connection().dispatcher.remove(pulled.event_socket)  # its turn is none that callbacks get
        agent.kill()
        while len(seen.notices) < 2:
            client.dispatch(0.05)
        with socket.socket(fileno=os.dup(other.event_socket.state.lend)) as end:
            end.send(EVENT_HEADER.pack(77, other.event_socket.state.id, 1, 0, 0))
        with EarlyAgent(agent.path, agent.cluster, "b", "c", "a", publish_late=False) as early:
            assert early.written.wait(5)
            for _ in range(100):
                client.dispatch(0.05)
                if seen.data:
                    break
            assert seen.data == [b"2"]


def test_what_a_callback_raises_comes_out_also_if_it_closed_its_subscription(client: Client) -> None:
    def closing(event: Event) -> None:
        subscription.close()
        raise errors.InvalidArgument("mine")

    subscription = client.subscribe("a", on_event=closing)
    client.publish("a", b"").wait(2)
    with pytest.raises(errors.InvalidArgument, match="mine"):
        client.dispatch(2)
