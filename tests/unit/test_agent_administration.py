"""ADMINISTER at the agent: who may, what reaches the order and the node, and how a refusal reads."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from ocfcluster.ipc.peer import Peer
from ocfcluster.protocol.effects import Outcome
from ocfcluster.protocol.operator import BootstrapWithout, NewHistory, Rejoin
from ocfcluster.wire import control
from ocfcluster.wire.frames import (
    Administer,
    Administration,
    Answer,
    Begin,
    Body,
    GroupName,
    OpenProducer,
    Producer,
    Request,
    Subscribe,
    TopicCreate,
    TopicResolve,
)
from tests.unit.fake_node import Bench, FakeNode, bench

ORDERED = [
    (Administer(Administration.NODE_ADD, 4, 2), control.NodeAdd(4, 2)),
    (Administer(Administration.NODE_REMOVE, 4), control.NodeRemove(4)),
    (Administer(Administration.NODE_VOTES, 4, 0), control.NodeVotes(4, 0)),
    (Administer(Administration.SEQUENCE, 4), control.Sequence(4)),
    (Administer(Administration.SHUTDOWN), control.Shutdown()),
]
LOCAL = [
    (Administer(Administration.BOOTSTRAP_WITHOUT, nodes=[3, 2, 3]), BootstrapWithout((2, 3))),
    (Administer(Administration.NEW_HISTORY), NewHistory()),
    (Administer(Administration.REJOIN), Rejoin()),
]


class Order:
    """Takes the place of the node's order: keeps what is put in, and says what became of it."""

    def __init__(self, made: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.operands: list[control.Operand] = []
        self._bench = made
        monkeypatch.setattr(FakeNode, "control", self._control)

    def _control(self, operand: control.Operand, behind: bool = False) -> int:
        control.control_run(operand, 1)  # raises for what no node would take
        self.operands.append(operand)
        return len(self.operands)

    def decide(self, error: int) -> None:
        self._bench.agent.requests.outcome(Outcome(8, 0, len(self.operands), 1, error, 0, 0, 0))


@pytest.mark.parametrize(("asked", "operand"), ORDERED)
def test_ordered_commands_are_answered_at_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Administer, operand: control.Operand
) -> None:
    with bench(tmp_path) as made:
        order = Order(made, monkeypatch)
        client = made.client()
        request_id = client.ask(Request.ADMINISTER, asked)
        assert client.answers() == []
        assert order.operands == [operand]
        order.decide(0)
        made.agent.settle(0)
        assert client.answers() == [(Answer.DONE, request_id, None)]


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        *((Request.ADMINISTER, asked) for asked, _ in ORDERED),
        (Request.TOPIC_CREATE, TopicCreate("ghost", False)),
        (Request.TOPIC_RESOLVE, TopicResolve("ghost")),
        (Request.GROUP_JOIN, GroupName("group:ghost")),
        (Request.OPEN_PRODUCER, OpenProducer(False)),
        (Request.BARRIER, None),
    ],
)
def test_what_still_waits_is_withdrawn_when_its_connection_ends(
    tmp_path: Path, kind: Request, asked: Body | None
) -> None:
    with bench(tmp_path, active=False) as made:
        clients = [made.client(), made.client()]
        for client in clients:
            client.ask(kind, asked)
            assert client.answers() == []
        clients[0].close()
        made.step()
        assert len(made.node._controls) == 1  # the other one's
        clients[1].close()
        made.step()
        assert made.node._controls == {}
        assert made.agent.requests._pending == {}


def test_a_subscription_that_waits_is_withdrawn_with_the_socket_lent_for_it(tmp_path: Path) -> None:
    with bench(tmp_path, active=False) as made:
        client = made.client()
        _, answer, _ = client.lend(Subscribe(1, ["t", "group:ghost"], False))
        assert answer is None
        (lent,) = made.agent.requests._lent.values()
        client.close()
        made.step()
        assert lent.fileno() == -1
        assert (made.node._controls, made.agent.requests._lent) == ({}, {})


def test_a_beginning_that_is_not_there_is_refused_in_words_alone(tmp_path: Path) -> None:
    with bench(tmp_path) as made:
        client = made.client()
        client.create_topic("news")
        _, answer, _ = client.lend(Subscribe(1, ["news"], False, begins=[Begin("news", 999)]))
        assert answer.message.startswith("topic 'news' has no event")


def test_a_command_behind_publications_is_dropped_with_its_connection_and_they_go_on(tmp_path: Path) -> None:
    with bench(tmp_path) as made:
        client, other = made.client(), made.client()
        topic_id, producer = client.create_topic("t"), client.open_producer()
        made.node.space = 0
        client.publish(topic_id, producer, 1, b"x")
        client.ask(Request.TOPIC_CREATE, TopicCreate("ghost", False))
        client.ask(Request.CLOSE_PRODUCER, Producer(producer))
        made.step()
        client.close()
        made.step()
        made.node.space = 1 << 30
        assert other.call(Request.BARRIER)[0] == Answer.DONE
        assert made.node.published == 1
        assert "ghost" not in made.node.topics
        assert producer not in made.agent.intake.owners
        assert made.agent.intake._orphans == {}  # what gives up something is done in any case


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        (ORDERED[0][0], errno.EEXIST, "with other votes"),
        (ORDERED[0][0], errno.ENOMEM, "64 nodes"),
        (ORDERED[0][0], errno.EBUSY, "majority"),
        (ORDERED[1][0], errno.EINVAL, "node 4 is not in the node table"),
        (ORDERED[1][0], errno.EBUSY, "majority"),
        (ORDERED[2][0], errno.EINVAL, "node 4 is not in the node table"),
        (ORDERED[3][0], errno.EINVAL, "node 4 is no member"),
        (ORDERED[3][0], errno.EBUSY, "node 4 cannot take over"),
        (ORDERED[4][0], errno.EIO, "error"),
    ],
)
def test_what_the_order_refuses_is_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Administer, error: int, words: str
) -> None:
    with bench(tmp_path) as made:
        order = Order(made, monkeypatch)
        client = made.client()
        client.ask(Request.ADMINISTER, asked)
        client.answers()
        order.decide(error)
        made.agent.settle(0)
        ((kind, _, answer),) = client.answers()
        said = errno.EINVAL if error == errno.EEXIST else error  # EEXIST is about topics
        assert (kind, answer.errno) == (Answer.ERROR, said)  # type: ignore[union-attr]
        assert words in answer.message  # type: ignore[union-attr]


@pytest.mark.parametrize(("asked", "command"), LOCAL)
def test_local_commands_reach_an_agent_that_waits_to_form(
    tmp_path: Path, asked: Administer, command: object
) -> None:
    with bench(tmp_path, active=False) as made:
        client = made.client()
        assert client.call(Request.ADMINISTER, asked) == (Answer.DONE, None)
        assert made.node.told == [command]
        made.node.operator_refusal = "this node waits for nothing"
        kind, answer = client.call(Request.ADMINISTER, asked)
        assert (kind, answer.errno, answer.message) == (
            Answer.ERROR,
            errno.EBUSY,
            "this node waits for nothing",
        )


@pytest.mark.parametrize(
    "asked",
    [
        Administer(0), Administer(9), Administer(2**32 - 1), Administer(Administration.BOOTSTRAP_WITHOUT),
        Administer(Administration.BOOTSTRAP_WITHOUT, nodes=[0]),
        Administer(Administration.BOOTSTRAP_WITHOUT, nodes=list(range(1, 66))),
        Administer(Administration.NODE_ADD, 0, 1), Administer(Administration.NODE_ADD, 4, 256),
        Administer(Administration.NODE_VOTES, 4, 256), Administer(Administration.SEQUENCE, 0),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(tmp_path: Path, asked: Administer) -> None:
    with bench(tmp_path) as made:
        kind, answer = made.client().call(Request.ADMINISTER, asked)
        assert (kind, answer.errno) == (Answer.ERROR, errno.EINVAL)
        assert made.node.told == []


@pytest.mark.parametrize("asked", [one for one, _ in ORDERED] + [one for one, _ in LOCAL])
def test_other_users_may_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Administer) -> None:
    with bench(tmp_path) as made:
        order = Order(made, monkeypatch)
        client = made.client()
        own = next(iter(made.agent.clients.values()))
        monkeypatch.setattr("os.geteuid", lambda: 4242)
        own.peer = Peer(1, 4243, 4243)
        kind, answer = client.call(Request.ADMINISTER, asked)
        assert (kind, answer.errno) == (Answer.ERROR, errno.EPERM)
        assert "4242" in answer.message
        assert (made.node.told, order.operands) == ([], [])
        own.peer = Peer(1, 4242, 4242)
        assert client.call(Request.ADMINISTER, asked)[0] != Answer.ERROR
        own.peer = Peer(1, 0, 0)
        assert client.call(Request.ADMINISTER, asked)[0] != Answer.ERROR
