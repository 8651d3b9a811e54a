"""Clients that misbehave: garbage, half frames, floods, and properties that nobody could read."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocfcluster.agent.config import AgentConfig, Limits
from ocfcluster.limits import REQUESTS_AT_ONCE, REQUESTS_UNANSWERED, WINDOW_BYTES
from ocfcluster.wire.frames import (
    CONTROL_HEADER,
    Answer,
    Error,
    Request,
)
from ocfcluster.wire.properties import encode_properties
from ocfcluster.wire.run import RunKind, build_run
from tests.unit.fake_node import Bench, bench, publish_frame

EVENT = b"event"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as made:
        yield made


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        CONTROL_HEADER.pack(0, Request.STATUS, 0, 0, 1),  # before HELLO
        CONTROL_HEADER.pack(0xFFFF_FFFF, Request.HELLO, 0, 0, 1),
        CONTROL_HEADER.pack(300_000, Request.HELLO, 0, 0, 1),
        CONTROL_HEADER.pack(2, Request.HELLO, 0, 0, 1) + b"\xff\xff",
        CONTROL_HEADER.pack(1, Request.HELLO, 0, 1, 1) + b"\x90",
        CONTROL_HEADER.pack(0, 99, 0, 0, 1),
    ],
)
def test_garbage_is_answered_and_the_connection_closed(agent: Bench, garbage: bytes) -> None:
    client = agent.client(greet=False)
    client.send(garbage)
    client.answers()
    assert client.eof
    assert isinstance(client.told[-1], Error)
    assert client.told[-1].errno == errno.EPROTO
    assert not agent.agent.clients
    assert agent.client().call(Request.STATUS)[0] == Answer.STATUS


@pytest.mark.parametrize(
    "frame",
    [
        publish_frame(b""),
        publish_frame(b"x" * 100),
        publish_frame(build_run(RunKind.BARRIER, 0, 0, 1, [b"\x90"])),
        publish_frame(build_run(RunKind.PUBLICATION, 16, 1, 0, [b""])),
        CONTROL_HEADER.pack(2 << 20, Request.PUBLISH, 0, 0, 0),
        CONTROL_HEADER.pack(3, Request.STATUS, 0, 0, 9) + b"abc",
        CONTROL_HEADER.pack(1, Request.SUBSCRIBE, 0, 0, 9) + b"\x90",
        CONTROL_HEADER.pack(1, Request.HELLO, 0, 0, 9) + b"\x90",
    ],
)
def test_garbage_after_the_greeting_too(agent: Bench, frame: bytes) -> None:
    client = agent.client()
    client.send(frame)
    client.answers()
    assert client.eof
    assert client.told[-1].errno == errno.EPROTO
    assert not agent.agent.clients


def test_descriptors_that_nobody_asked_for_end_the_connection(agent: Bench) -> None:
    client = agent.client()
    before = len(os.listdir("/proc/self/fd"))
    client.ask(Request.STATUS, None, [0, 1, 2])
    client.answers()
    assert client.eof
    assert len(os.listdir("/proc/self/fd")) < before


def test_half_a_frame_waits_for_its_rest(agent: Bench) -> None:
    client = agent.client()
    topic_id = client.create_topic("t")
    producer = client.open_producer()
    frame = publish_frame(build_run(RunKind.PUBLICATION, topic_id, producer, 1, [EVENT]))
    for at in range(len(frame)):
        client.send(frame[at : at + 1])
        agent.step()
        assert not client.receipts
    client.answers()
    assert client.receipts == [(producer, 1, 1, 0, 1, 2)]
    client.send(frame[:20])
    client.socket.close()
    agent.step()
    assert not agent.agent.clients


def test_a_client_that_never_reads_its_answers_is_disconnected(agent: Bench) -> None:
    client = agent.client()
    for number in range(2000):
        client.create_topic(f"topic-{number}")
    client.socket.setblocking(False)
    for _ in range(5000):
        try:
            client.ask(Request.TOPIC_LIST)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            pass
        agent.step()
        if not agent.agent.clients:
            break
    assert not agent.agent.clients
    assert agent.client().call(Request.STATUS)[0] == Answer.STATUS


def test_too_many_unanswered_requests_are_refused(tmp_path: Path) -> None:
    with bench(tmp_path, active=False) as agent:
        client = agent.client()
        for _ in range(REQUESTS_UNANSWERED + 10):
            client.ask(Request.BARRIER)
        answers = client.answers()
        assert len(answers) == 10
        assert {body.errno for _, _, body in answers} == {errno.ENOMEM}


def test_too_many_clients_are_told_so(tmp_path: Path) -> None:
    with bench(tmp_path, AgentConfig(limits=Limits(clients=2))) as agent:
        agent.client()
        agent.client()
        third = agent.client(greet=False)
        third.answers()
        assert third.eof
        assert third.told[0].errno == errno.ENOMEM


def test_properties_that_nobody_could_read_end_the_connection_at_the_door(agent: Bench) -> None:
    client = agent.client()
    topic_id, producer = client.create_topic("t"), client.open_producer()
    good = encode_properties({"k": "v"})
    for properties, ends in ((good, False), (good[:-1], True)):
        run = build_run(RunKind.PUBLICATION, topic_id, producer, 1, [EVENT], properties=properties)
        client.send(CONTROL_HEADER.pack(len(run), Request.PUBLISH, 0, 0, 0) + run)
        client.answers()
        assert client.eof is ends


def test_a_flood_of_requests_gives_others_their_turn_and_none_is_lost(agent: Bench) -> None:
    flooder, other = agent.client(), agent.client()
    topic_id = other.create_topic("t")
    producer = flooder.open_producer()
    before = agent.agent.counters.requests
    run = build_run(RunKind.PUBLICATION, topic_id, producer, 1, [EVENT])
    flood = b"".join(CONTROL_HEADER.pack(0, Request.STATUS, 0, 0, 100 + number) for number in range(200))
    flooder.socket.send(flood + publish_frame(run))
    other.socket.send(CONTROL_HEADER.pack(0, Request.STATUS, 0, 0, 99))
    agent.loop.step(1)
    assert 0 < agent.agent.counters.requests - before <= 2 * REQUESTS_AT_ONCE < 200
    other.step = lambda: None
    assert [request_id for _, request_id, _ in other.answers()] == [99]
    answered = [request_id for _, request_id, _ in flooder.answers()]
    assert answered == list(range(100, 300))
    assert flooder.receipts == [(producer, 1, 1, 0, 1, 2)]  # behind all of them


def test_what_a_flooder_published_before_it_ended_still_counts(agent: Bench) -> None:
    flooder, other = agent.client(), agent.client()
    topic_id = other.create_topic("t")
    producer = flooder.open_producer()
    run = build_run(RunKind.PUBLICATION, topic_id, producer, 1, [EVENT])
    flood = b"".join(CONTROL_HEADER.pack(0, Request.STATUS, 0, 0, 100 + number) for number in range(200))
    flooder.socket.send(flood + publish_frame(run))
    agent.loop.step(1)
    agent.agent.connections._on_process_end(agent.agent.clients[1])
    agent.step()
    assert agent.node.published == 1


def barriers(count: int) -> bytes:
    return b"".join(CONTROL_HEADER.pack(0, Request.BARRIER, 0, 0, 100 + number) for number in range(count))


def test_requests_behind_one_publication_have_their_turns_too(agent: Bench) -> None:
    flooder, other = agent.client(), agent.client()
    topic_id = other.create_topic("t")
    producer = flooder.open_producer()
    before = agent.agent.counters.requests
    run = build_run(RunKind.PUBLICATION, topic_id, producer, 1, [EVENT])
    flooder.socket.send(publish_frame(run) + barriers(200))
    agent.loop.step(1)
    assert 0 < agent.agent.counters.requests - before <= 2 * REQUESTS_AT_ONCE < 200
    assert [request_id for _, request_id, _ in flooder.answers()] == list(range(100, 300))
    assert flooder.receipts == [(producer, 1, 1, 0, 1, 2)]
    assert agent.agent.intake.inbox_bytes == 0


def test_requests_behind_a_publication_that_waits_take_a_bounded_place(agent: Bench) -> None:
    flooder = agent.client()
    topic_id = flooder.create_topic("t")
    producer = flooder.open_producer()
    space, agent.node.space = agent.node.space, 0
    run = build_run(RunKind.PUBLICATION, topic_id, producer, 1, [EVENT])
    flooder.socket.send(publish_frame(run))
    flood = barriers(2000)
    flooder.socket.setblocking(False)
    sent = 0
    for _ in range(10_000):
        try:
            sent += flooder.socket.send(flood[sent % len(flood) :])
        except BlockingIOError:
            agent.step()
            (client,) = agent.agent.clients.values()
            if not client.reading:
                break
    else:
        pytest.fail("the agent reads on and on")
    assert agent.agent.intake.inbox_bytes < 2 * WINDOW_BYTES
    agent.node.space = space
    flooder.socket.setblocking(True)
    agent.agent.settle(0)
    while agent.agent.intake.inbox_bytes:
        assert not flooder.eof
        flooder.answers()
    assert flooder.receipts == [(producer, 1, 1, 0, 1, 2)]


def test_an_agent_that_has_failed_tells_and_gives_nothing_more(
    agent: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent.node, "give_snapshot", lambda *_: lambda: [b"half done"], raising=False)
    making = agent.agent.give_snapshot(b"")
    assert making is not None
    assert making() == [b"half done"]
    taken: list[object] = []
    monkeypatch.setattr(agent.node, "take_effects", lambda: taken.append(1) or [])
    agent.agent.failure = RuntimeError("half done")
    agent.agent.catch_up()
    agent.agent.settle(0)
    assert agent.agent.give_snapshot(b"") is None
    assert not taken
