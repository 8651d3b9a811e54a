"""Callbacks: the one order across all callback subscriptions of a client."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import ocfcluster
from ocfcluster import errors
from ocfcluster.client.client import Client
from ocfcluster.client.events import Event
from tests.unit.fake_agent import Cluster, FakeAgent


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
    client.dispatch(1)
    assert seen == list(range(1, 41))
    assert not select.select(
        [one.socket for one in client.connection().dispatcher._entries.values()], [], [], 0
    )[0]
