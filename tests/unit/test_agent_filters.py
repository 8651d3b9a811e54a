"""The agent's part in filters, policies for slow subscribers, and programs that are stuck."""

from __future__ import annotations

import errno
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ocfcluster import parse_filter
from ocfcluster.agent.local_news import TOPIC as LOCAL_NEWS
from ocfcluster.limits import SECOND_NS, STUCK_NS, SUBSCRIPTION_TICK_NS
from ocfcluster.wire.filter import encode_filter
from ocfcluster.wire.frames import (
    Answer,
    LeftOut,
    OnSlow,
    OutOfLine,
    Reached,
    RecordFlags,
    Request,
    Subscribe,
    TopicResolve,
)
from ocfcluster.wire.properties import decode_properties, encode_properties
from ocfcluster.wire.run import RunKind, build_run, properties_of, read_header, run_events
from tests.unit.fake_node import Bench, RawClient, bench, publish_frame, read_all, read_frame

SEVERE = encode_filter(parse_filter('severity == "high"'))


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as made:
        yield made


def publish(
    client: RawClient,
    topic_id: int,
    producer: int,
    number: int,
    properties: dict[str, str],
    data: bytes = b"x",
) -> None:
    run = build_run(
        RunKind.PUBLICATION, topic_id, producer, number, [data], properties=encode_properties(properties)
    )
    client.send(publish_frame(run))
    client.answers()


def seqs(event_socket: socket.socket) -> list[int]:
    found: list[int] = []
    while (frame := read_frame(event_socket)) is not None:
        found += [fields[8] for fields, _ in frame[1]]
    return found


def told(event_socket: socket.socket) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """Documents and properties of events on oc.local."""
    found = []
    while (frame := read_frame(event_socket)) is not None:
        for fields, run in frame[1]:
            assert fields[2] == RecordFlags.LOCAL
            (data,) = run_events(run, read_header(run))
            found.append((json.loads(data), decode_properties(properties_of(run))))
    return found


def test_a_filter_goes_with_the_subscription(agent: Bench) -> None:
    client = agent.client()
    topic_id = client.create_topic("t")
    producer = client.open_producer()
    kind, _, filtered = client.lend(Subscribe(1, ["t"], False, filter=SEVERE))
    assert kind == Answer.SUBSCRIBED
    plain = client.subscribe(2, "t")
    for number, severity in enumerate(("low", "high", "high", "low"), 1):
        publish(client, topic_id, producer, number, {"severity": severity})
    assert seqs(filtered) == [2, 3]
    assert seqs(plain) == [1, 2, 3, 4]
    (document,) = [
        one for one in client.call(Request.STATUS)[1].document["subscriptions"] if one["subscription"] == 1
    ]
    assert (document["filter"], document["on_slow"]) == ('severity == "high"', "block")


def test_large_events_are_filtered_like_others(agent: Bench) -> None:
    client = agent.client()
    topic_id = client.create_topic("t")
    producer = client.open_producer()
    _, _, filtered = client.lend(Subscribe(1, ["t"], False, filter=SEVERE))
    publish(client, topic_id, producer, 1, {"severity": "low"}, b"x" * (1 << 20))
    publish(client, topic_id, producer, 2, {"severity": "high"}, b"y" * (1 << 20))
    assert [fields[8] for _, records in read_all(filtered, agent.step) for fields, _ in records] == [2]
    assert agent.agent.hub.held_bytes == 0


@pytest.mark.parametrize(
    "body",
    [
        Subscribe(1, ["t"], False, filter=b"\xc1"),
        Subscribe(1, ["t"], False, filter=b"\x92\x63\xa1x"),
        Subscribe(1, ["t"], False, filter=b"\x00" * 20_000),
        Subscribe(1, ["t"], False, on_slow=9),
    ],
)
def test_what_is_no_filter_or_policy_is_refused(agent: Bench, body: Subscribe) -> None:
    client = agent.client()
    client.create_topic("t")
    kind, error, _ = client.lend(body)
    assert (kind, error.errno) == (Answer.ERROR, errno.EINVAL)
    assert client.lend(Subscribe(1, ["t"], False))[0] == Answer.SUBSCRIBED  # nothing is left of it


def test_where_a_filter_has_got_to_is_told_beside_the_event_socket(agent: Bench) -> None:
    client = agent.client()
    topic_id = client.create_topic("t")
    producer = client.open_producer()
    _, _, filtered = client.lend(Subscribe(1, ["t"], False, filter=SEVERE))
    for number in range(1, 6):
        publish(client, topic_id, producer, number, {})
    agent.agent.settle(time.monotonic_ns() + SUBSCRIPTION_TICK_NS)
    client.answers()
    assert client.told == [LeftOut(1, [Reached(topic_id, 5)])]
    assert seqs(filtered) == []
    assert agent.agent.clients[1].session.unanswered == 0


def test_who_takes_nothing_is_told_of_on_the_local_topic(agent: Bench) -> None:
    watcher, client = agent.client(), agent.client()
    news = watcher.subscribe(1, "oc.local")
    topic_id = client.create_topic("t")
    producer = client.open_producer()
    events = client.subscribe(4, "t")
    publish(client, topic_id, producer, 1, {})
    began = time.monotonic_ns()
    agent.agent.settle(began + SUBSCRIPTION_TICK_NS)
    agent.agent.settle(began + STUCK_NS)
    assert told(news) == []
    agent.agent.settle(began + SUBSCRIPTION_TICK_NS + STUCK_NS)
    ((document, properties),) = told(news)
    assert document.items() >= {
        "event": "stuck", "connection": 2, "subscription": 4, "topics": ["t"], "topic": "t", "seq": 1, "taken": False,
        "pid": client_pid(agent), "age_ms": STUCK_NS // 1_000_000,
    }.items()  # fmt: skip
    assert properties["event"] == "stuck"
    agent.agent.settle(began + 60 * SECOND_NS)  # once
    assert told(news) == []
    shown = agent.agent.status()["clients"]
    assert [one["oldest_outstanding"] and one["oldest_outstanding"]["seq"] for one in shown] == [None, 1]
    assert seqs(events) == [1]
    agent.agent.settle(began + 61 * SECOND_NS)
    ((document, properties),) = told(news)
    assert (document["event"], document["subscription"]) == ("free", 4)
    assert properties["event"] == "free"


def client_pid(agent: Bench) -> int:
    return agent.agent.clients[2].peer.pid


def test_an_event_that_is_not_done_is_told_of(agent: Bench) -> None:
    watcher, client = agent.client(), agent.client()
    news = watcher.subscribe(1, "oc.local")
    topic_id = client.create_topic("t")
    producer = client.open_producer()
    events = client.subscribe(4, "t", callback=True)
    publish(client, topic_id, producer, 1, {})
    assert seqs(events) == [1]
    assert client.call(Request.OUT_OF_LINE, OutOfLine(4, True, "t", 1))[0] == Answer.DONE
    agent.agent.settle(time.monotonic_ns() + STUCK_NS + SECOND_NS)
    ((document, _),) = told(news)
    assert (document["event"], document["seq"], document["taken"]) == ("stuck", 1, True)
    client.close()
    agent.step()
    agent.agent.settle(time.monotonic_ns() + STUCK_NS + 3 * SECOND_NS)
    ((document, _),) = told(news)
    assert document["event"] == "free"
    assert not agent.agent.stuck.told


def test_the_local_topic_is_the_agents_own(agent: Bench) -> None:
    client = agent.client()
    answer = client.call(Request.TOPIC_RESOLVE, TopicResolve("oc.local"))[1]
    assert (answer.topic_id, answer.local, answer.last_seq) == (LOCAL_NEWS.topic_id, True, 0)
    producer = client.open_producer(local=True)
    publish(client, LOCAL_NEWS.topic_id, producer, 1, {})
    assert client.receipts[-1][3] == errno.EPERM


def test_a_slow_one_that_asked_to_be_ended_is_ended(agent: Bench) -> None:
    client = agent.client()
    topic_id = client.create_topic("t")
    producer = client.open_producer()
    _, _, slow = client.lend(Subscribe(1, ["t"], False, on_slow=int(OnSlow.DISCONNECT)))
    _, _, dropping = client.lend(Subscribe(2, ["t"], False, on_slow=int(OnSlow.DROP_OLDEST)))
    for number in range(1, 41):
        publish(client, topic_id, producer, number, {}, bytes(1 << 20))
    assert not any(agent.node.full_told)
    kinds = [(fields[1], fields[8]) for _, records in read_all(slow, agent.step) for fields, _ in records]
    assert kinds[-1][0] == 2
    last = [kept for _, records in read_all(dropping, agent.step) for kept in records]
    assert last[-1][0][8] == 40
    counters = agent.agent.status()["counters"]
    assert counters["slow_disconnected"] == 1
    assert counters["slow_dropped"] > 10
