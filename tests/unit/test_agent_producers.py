"""Producers as the agent sees them: whose they are across connections and agents, and how they end."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ocfcluster.agent import intake
from ocfcluster.agent.producer_tokens import ProducerTokens
from ocfcluster.protocol.effects import State
from ocfcluster.protocol.settings import Limits
from ocfcluster.wire.frames import (
    CONTROL_HEADER,
    LOCAL_ID,
    Answer,
    OpenProducer,
    Producer,
    Request,
)
from tests.unit.fake_node import Bench, RawClient, bench

EVENT = b"event"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as made:
        yield made


def test_a_producer_goes_on_with_who_shows_its_token(agent: Bench) -> None:
    first, second = agent.client(), agent.client()
    topic_id = first.create_topic("t")
    producer = first.open_producer()
    first.publish(topic_id, producer, 1, EVENT)
    first.answers()
    for token in (b"", b"x" * 16, first.tokens[producer][:-1]):
        second.resume(producer, token)
    second.publish(topic_id, producer, 2, EVENT)
    second.answers()
    assert second.receipts == [(producer, 2, 1, errno.EBADF, 0, 0)]
    # As a client does that has reconnected, whether the agent has seen that its old connection is gone or not:
    second.resume(producer, first.tokens[producer])
    second.publish(topic_id, producer, 1, EVENT)
    second.publish(topic_id, producer, 2, EVENT)
    second.answers()
    assert second.receipts[1:] == [(producer, 1, 1, 0, 1, 2), (producer, 2, 1, 0, 2, 3)]
    first.publish(topic_id, producer, 3, EVENT)
    first.answers()
    assert first.receipts[1:] == [(producer, 3, 1, errno.EBADF, 0, 0)]
    first.socket.close()
    agent.step()
    second.publish(topic_id, producer, 3, EVENT)
    second.answers()
    assert second.receipts[3:] == [(producer, 3, 1, 0, 3, 4)]


def test_what_waits_unread_on_the_old_connection_is_in_nobodys_way(agent: Bench) -> None:
    first, second = agent.client(), agent.client()
    topic_id = first.create_topic("t")
    producer = first.open_producer()
    first.publish(topic_id, producer, 1, EVENT)
    first.ask(Request.STATUS)
    first.socket.close()  # the agent has not looked yet
    second.resume(producer, first.tokens[producer])
    second.publish(topic_id, producer, 1, EVENT)
    second.answers()
    assert second.receipts == [(producer, 1, 1, 0, 1, 2)]


def test_a_new_agent_gives_a_producer_to_nobody_but_its_program(tmp_path: Path) -> None:
    with bench(tmp_path) as before:
        client = before.client()
        local, wide = client.open_producer(local=True), client.open_producer()
        tokens = client.tokens
    with bench(tmp_path) as after:  # the same state directory; the FakeNode is a new cluster
        after.node.replicated.restore_producer(wide, 1, 1, 0, [])
        topic_id = after.client().create_topic("t")
        thief, program = after.client(), after.client()
        for token in (b"", tokens[local]):
            thief.resume(wide, token)
        thief.publish(topic_id, wide, 1, EVENT)
        assert thief.call(Request.CLOSE_PRODUCER, Producer(wide))[1].errno == errno.EBADF
        assert thief.receipts == [(wide, 1, 1, errno.EBADF, 0, 0)]
        program.resume(wide, tokens[wide])
        program.publish(topic_id, wide, 1, EVENT)
        program.answers()
        assert [receipt[3] for receipt in program.receipts] == [0]


def test_where_the_state_directory_is_another_one_who_comes_first_goes_on(tmp_path: Path) -> None:
    """Else what a program has on its way could never be said to have been taken or not, for want of a disk."""
    secret = tmp_path / "state" / "programs.key"
    with bench(tmp_path) as before:
        client = before.client()
        wide, other = client.open_producer(), client.open_producer()
        tokens = client.tokens
    secret.write_bytes(b"damaged")
    with bench(tmp_path) as after:
        for producer in (wide, other):
            after.node.replicated.restore_producer(producer, 1, 1, 0, [])
        topic_id = after.client().create_topic("t")
        program, late = after.client(), after.client()
        mine = late.open_producer()
        program.resume(wide, tokens[wide])
        program.resume(4711, b"")  # there is no such
        program.resume(mine, b"")  # it was opened here
        for producer in (wide, 4711, mine):
            program.publish(topic_id, producer, 1, EVENT)
        program.answers()
        assert {receipt[0]: receipt[3] for receipt in program.receipts} == {
            wide: 0, 4711: errno.EBADF, mine: errno.EBADF,
        }  # fmt: skip
        (renewed,) = program.told
        assert isinstance(renewed, Producer)
        assert renewed.producer == wide
        late.resume(wide, tokens[wide])  # the token that was good is so no more
        late.publish(topic_id, wide, 2, EVENT)
        late.answers()
        assert late.receipts == [(wide, 2, 1, errno.EBADF, 0, 0)]
        late.resume(wide, renewed.token)
        late.publish(topic_id, wide, 2, EVENT)
        late.answers()
        assert late.receipts[1][3] == 0
    assert secret.stat().st_mode & 0o777 == 0o600
    with bench(tmp_path) as again:  # the directory is no new one any more
        again.node.replicated.restore_producer(other, 1, 1, 0, [])
        program = again.client()
        program.resume(other, tokens[other])
        program.publish(again.client().create_topic("t"), other, 1, EVENT)
        program.answers()
        assert program.receipts == [(other, 1, 1, errno.EBADF, 0, 0)]


def test_who_goes_on_before_there_is_a_view_has_what_there_is_then(tmp_path: Path) -> None:
    """Ids of producers that will be can be guessed: nobody has one before it is."""
    with bench(tmp_path, active=False) as agent:
        agent.node.replicated.restore_producer(7, 1, 1, 0, [])
        thief, program = agent.client(), agent.client()
        for producer in (1, 2, 3, 7):
            thief.resume(producer, b"guessed")
        thief.answers()
        assert not thief.told
        agent.node.activate()
        agent.agent.settle(0)
        thief.answers()
        (renewed,) = thief.told
        assert isinstance(renewed, Producer)
        assert renewed.producer == 7
        assert agent.agent.intake.owners.keys() == {7}
        topic_id = program.create_topic("t")
        opened = program.open_producer()
        program.publish(topic_id, opened, 1, EVENT)
        thief.socket.close()
        agent.step()
        program.publish(topic_id, opened, 2, EVENT)
        program.answers()
        assert [receipt[3] for receipt in program.receipts] == [0, 0]
        program.socket.close()
        agent.step()
        assert not agent.agent.intake.owners


def test_a_closed_local_producer_is_nobodys_and_in_nobodys_way(agent: Bench) -> None:
    program = agent.client()
    producer = program.open_producer(local=True)
    assert program.call(Request.CLOSE_PRODUCER, Producer(producer))[0] == Answer.DONE
    program.resume(producer, program.tokens[producer])
    program.answers()
    assert not agent.agent.intake.owners
    agent.agent.intake._orphans[producer] = None  # it was one when it was closed to make room
    agent.agent.intake._orphans[program.open_producer(local=True)] = None
    assert agent.agent.intake.close_orphaned_local()
    assert not agent.agent.intake.close_orphaned_local()


def test_an_older_connection_takes_nothing_back(agent: Bench) -> None:
    old, new = agent.client(), agent.client()
    topic_id = old.create_topic("t")
    producer = old.open_producer()
    token = old.tokens[producer]
    new.resume(producer, token)
    new.publish(topic_id, producer, 1, EVENT)
    new.answers()
    old.resume(producer, token)  # written before, and read late
    old.answers()
    old.socket.close()
    agent.step()
    new.publish(topic_id, producer, 2, EVENT)
    new.answers()
    assert [receipt[3] for receipt in new.receipts] == [0, 0]


def test_a_token_is_of_one_history_or_of_one_incarnation() -> None:
    history = "one"
    tokens = ProducerTokens(b"s" * 32, False, 7, lambda: history)
    wide, local = tokens.make(5), tokens.make(LOCAL_ID | 5)
    assert tokens.fits(5, wide)
    assert tokens.fits(LOCAL_ID | 5, local)
    assert not tokens.fits(6, wide)
    history = "two"
    assert not tokens.fits(5, wide)
    assert tokens.fits(LOCAL_ID | 5, local)
    assert not ProducerTokens(b"s" * 32, False, 8, lambda: history).fits(LOCAL_ID | 5, local)


def test_a_client_that_has_reconnected_gives_back_what_it_has_not_used_since(agent: Bench) -> None:
    first, second = agent.client(), agent.client()
    producer = first.open_producer()
    kind, error = second.call(Request.CLOSE_PRODUCER, Producer(producer))
    assert (kind, error.errno) == (Answer.ERROR, errno.EBADF)  # somebody else's
    closing = Producer(producer, first.tokens[producer])
    assert second.call(Request.CLOSE_PRODUCER, closing)[0] == Answer.DONE
    assert not agent.agent.intake.owners


def test_a_producer_that_is_none_is_not_kept(agent: Bench) -> None:
    client = agent.client()
    topic_id = client.create_topic("t")
    for producer in range(5000, 7000):
        client.publish(topic_id, producer, 1, EVENT)
    client.answers()
    assert {receipt[3] for receipt in client.receipts} == {errno.EBADF}
    assert len(client.receipts) == 2000
    assert not agent.agent.intake.owners


def test_local_producers_of_the_dead_make_room(agent: Bench) -> None:
    for _ in range(3):
        client = agent.client()
        for _ in range(1024 if not agent.agent.intake.owners else 0):
            assert client.open_producer(local=True)
        kind, error = client.call(Request.OPEN_PRODUCER, OpenProducer(local=True))
        assert (kind, error.errno) == (Answer.ERROR, errno.ENOMEM)
        client.socket.close()
        agent.step()
        assert not agent.agent.intake.owners


def few_producers(agent: Bench, most: int) -> None:
    """This node may have ``most`` global producers."""
    node = agent.node
    assert node.configuration is not None
    node.configuration = msgspec.structs.replace(node.configuration, limits=Limits(producers_per_node=most))
    node.replicated._limits = node.configuration.limits


def gone(agent: Bench, client: RawClient) -> None:
    """The program has died."""
    client.socket.close()
    agent.step()


def test_global_producers_of_the_dead_make_room_those_first_whose_program_died_first(agent: Bench) -> None:
    few_producers(agent, 3)
    early, late, living = agent.client(), agent.client(), agent.client()
    newer, older, kept = late.open_producer(), early.open_producer(), living.open_producer()
    assert living.call(Request.OPEN_PRODUCER, OpenProducer())[1].errno == errno.ENOMEM
    stale = agent.client()  # which shows the token of a producer that was closed long ago
    stale.resume(1000, agent.agent.intake.tokens.make(1000))
    stale.answers()
    for dead in (stale, early, late):
        gone(agent, dead)
    for closed in (older, newer):
        agent.node.ordered.clear()
        opened = living.open_producer()
        assert agent.node.ordered == [
            ("Open", False),
            ("Close", False),
            ("Open", True),
        ]  # not to pass the CLOSE
        assert closed not in agent.node.replicated.producers
        assert agent.agent.intake.owners[opened] is agent.agent.intake.owners[kept]
    before = agent.node.commands
    assert living.call(Request.OPEN_PRODUCER, OpenProducer())[1].errno == errno.ENOMEM
    assert agent.node.commands - before == 1


def test_a_program_that_comes_back_keeps_its_producer_and_learns_that_it_was_closed(agent: Bench) -> None:
    few_producers(agent, 2)
    first, second, other = agent.client(), agent.client(), agent.client()
    topic_id = other.create_topic("t")
    (kept, lost) = first.open_producer(), second.open_producer()
    gone(agent, first)
    gone(agent, second)
    back, again = agent.client(), agent.client()
    back.resume(kept, first.tokens[kept])
    back.answers()
    other.open_producer()
    again.resume(lost, second.tokens[lost])
    back.publish(topic_id, kept, 1, EVENT)
    again.publish(topic_id, lost, 1, EVENT)
    back.answers()
    again.answers()
    assert [receipt[3] for receipt in back.receipts + again.receipts] == [0, errno.EBADF]


def test_an_open_that_is_refused_for_another_reason_costs_nobody_a_producer(agent: Bench) -> None:
    few_producers(agent, 2)
    dead, living = agent.client(), agent.client()
    producer = dead.open_producer()
    gone(agent, dead)
    agent.node.refusal = errno.ENOMEM  # too many commands wait
    agent.node.ordered.clear()
    assert living.call(Request.OPEN_PRODUCER, OpenProducer())[1].errno == errno.ENOMEM
    assert {name for name, _ in agent.node.ordered} == {"Open"}
    agent.node.refusal = 0
    assert list(agent.node.replicated.producers) == [producer]
    living.open_producer()
    agent.node.refusal = errno.ENOMEM
    before = agent.node.commands
    assert living.call(Request.OPEN_PRODUCER, OpenProducer())[1].errno == errno.ENOMEM
    assert agent.node.commands - before == 5  # twice more, and not again and again
    agent.node.refusal = 0
    assert living.open_producer()  # the one whose CLOSE was refused is not forgotten
    assert producer not in agent.node.replicated.producers


def test_producers_of_the_agent_before_make_room_where_nobody_has_come_back_to_them(tmp_path: Path) -> None:
    with bench(tmp_path, active=False) as agent:
        for producer, met in ((5, 30), (6, 20), (7, 10)):
            agent.node.replicated.restore_producer(producer, 1, 1, met, [])
        back = agent.client()
        back.resume(7, agent.agent.intake.tokens.make(7))
        back.answers()
        agent.node.activate()
        few_producers(agent, 3)
        agent.agent.settle(0)
        late = agent.client()
        late.resume(5, agent.agent.intake.tokens.make(5))
        late.answers()
        opened = late.open_producer()
        assert sorted(agent.node.replicated.producers) == sorted((5, 7, opened))


def test_what_is_remembered_of_producers_without_a_program_is_bounded(
    agent: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "PRODUCERS_PER_NODE", 4)
    few_producers(agent, 4)
    first = agent.client()
    producers = [first.open_producer() for _ in range(4)]
    gone(agent, first)
    for number in range(1000, 1040):  # as of programs that show tokens of what was closed long ago
        client = agent.client()
        client.resume(number, agent.agent.intake.tokens.make(number))
        client.answers()
        gone(agent, client)
        assert len(agent.agent.intake._global_orphans) <= 8
    living = agent.client()
    for producer in producers:
        assert producer in agent.node.replicated.producers
        living.open_producer()
        assert producer not in agent.node.replicated.producers


def test_a_program_comes_back_to_all_its_producers_of_either_scope(
    agent: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "PRODUCERS_PER_NODE", 3)
    first = agent.client()
    producers = [first.open_producer(local=local) for local in (False, True) * 3]
    gone(agent, first)
    again = agent.client()
    for producer in producers:
        again.resume(producer, first.tokens[producer])
    again.answers()
    (client,) = agent.agent.clients.values()
    assert client.producers == set(producers)
    for producer in producers:  # which it is the owner of already
        assert agent.agent.intake.resume(client, producer, first.tokens[producer])
        assert not agent.agent.intake.resume(client, producer, bytes(16))
    assert not agent.agent.intake.resume(client, 1000, agent.agent.intake.tokens.make(1000))


def test_a_producer_whose_close_is_on_its_way_is_closed_once_whoever_asks_again(agent: Bench) -> None:
    client, other = agent.client(), agent.client()
    producers = sorted(client.open_producer() for _ in range(5))
    agent.node.state = State.FORMING  # nothing is ordered now
    assert client.call(Request.CLOSE_PRODUCER, Producer(producers[0]))[0] is None
    assert client.call(Request.CLOSE_PRODUCER, Producer(producers[0]))[1].errno == errno.EBADF
    client.send(CONTROL_HEADER.pack(0, Request.GOODBYE, 0, 0, 0) * 16)
    agent.step()
    assert client.answers() == []
    assert client.eof
    for producer in producers:
        other.resume(producer, client.tokens[producer])
        closing = Producer(producer, client.tokens[producer])
        assert other.call(Request.CLOSE_PRODUCER, closing)[1].errno == errno.EBADF
    other.ask(Request.GOODBYE)
    agent.step()
    assert len(agent.node._controls) == len(producers)
    assert not agent.agent.intake._global_orphans
    agent.node.activate()
    agent.agent.settle(0)
    assert not agent.node.replicated.producers
    assert not agent.agent.intake.closing
    assert not agent.agent.intake._global_orphans
    assert not agent.agent.intake.owners


def test_a_producer_whose_close_is_refused_is_its_owners_still(agent: Bench) -> None:
    few_producers(agent, 1)
    client, other = agent.client(), agent.client()
    topic_id, producer = client.create_topic("t"), client.open_producer()
    agent.node.refusal = errno.ENOMEM
    assert client.call(Request.CLOSE_PRODUCER, Producer(producer))[1].errno == errno.ENOMEM
    agent.node.refusal = 0
    client.publish(topic_id, producer, 1, EVENT)
    client.answers()
    assert [receipt[3] for receipt in client.receipts] == [0]
    agent.node.refusal = errno.ENOMEM
    client.ask(Request.GOODBYE)
    agent.step()
    agent.node.refusal = 0
    assert other.open_producer() != producer  # nobody is left who could close it: it has made room
    assert len(agent.node.replicated.producers) == 1


def test_goodbye_closes_the_clients_producers(agent: Bench) -> None:
    client = agent.client()
    topic_id = client.create_topic("t")
    producer = client.open_producer()
    client.publish(topic_id, producer, 1, EVENT)
    client.ask(Request.GOODBYE)
    client.answers()
    assert client.eof
    assert client.receipts == [(producer, 1, 1, 0, 1, 2)]
    assert not agent.node.replicated.producers
    assert not agent.agent.clients


def test_a_producer_is_closed_once_and_by_its_owner(agent: Bench) -> None:
    client, other = agent.client(), agent.client()
    producer = client.open_producer()
    assert other.call(Request.CLOSE_PRODUCER, Producer(producer))[1].errno == errno.EBADF
    assert client.call(Request.CLOSE_PRODUCER, Producer(producer))[0] == Answer.DONE
    assert client.call(Request.CLOSE_PRODUCER, Producer(producer))[1].errno == errno.EBADF
