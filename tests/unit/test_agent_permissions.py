"""Permissions at the agent: what clients with other credentials may, and what waits while names are looked up."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ocfcluster.agent.config import AccessSection, AgentConfig, TopicSetting
from ocfcluster.agent.name_service import Ids, Key
from ocfcluster.ipc.peer import Peer
from ocfcluster.protocol.effects import NotificationCode
from ocfcluster.protocol.groups import FIRST_GROUP_ID
from ocfcluster.protocol.settings import Limits
from ocfcluster.wire import control
from ocfcluster.wire.frames import (
    Administer,
    Administration,
    Answer,
    GroupName,
    NoticeCode,
    OpenProducer,
    Position,
    RecordKind,
    Request,
    Subscribe,
    TopicAlter,
    TopicCreate,
    TopicRemove,
    TopicResolve,
)
from ocfcluster.wire.run import read_header, run_events
from ocfcluster.wire.topics import Access, TopicSettings
from tests.unit.fake_node import Bench, RawClient, bench, read_all

ALICE, BOB, EVE = 1001, 1002, 1003
NAMES: dict[Key, Ids] = {("user", "alice"): (ALICE,), ("group", "ops"): (27,)}


class Directory:
    """In the place of the system's databases; ``answer`` gives what was asked while ``slow`` was set."""

    def __init__(self, made: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slow = False
        self.asked: list[Key] = []
        self._names = made.agent.names
        monkeypatch.setattr(type(self._names), "_ask", lambda _, key: self.asked.append(key))
        ids = type(self._names).ids
        monkeypatch.setattr(
            type(self._names), "ids",
            lambda names, *key: ids(names, *key) if self.slow else NAMES.get(key, ()),
        )  # fmt: skip

    def answer(self) -> None:
        for key in self.asked:
            if key in self._names._asked:
                self._names.found(key, NAMES.get(key, ()))


class World:
    """An agent of user 500 and clients of several users."""

    def __init__(self, made: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bench = made
        self.names = Directory(made, monkeypatch)
        monkeypatch.setattr("os.geteuid", lambda: 500)

    def client(self, uid: int, *groups: int) -> RawClient:
        client = self.bench.client()
        agents = list(self.bench.agent.clients.values())[-1]
        agents.peer = Peer(agents.peer.pid, uid, uid, groups)
        return client

    def order(self, operand: control.Operand) -> None:
        """A command of another node."""
        self.bench.node.control(operand)
        self.bench.agent.settle(time.monotonic_ns())


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    config = AgentConfig(access=AccessSection(("group:ops",), ("user:alice", f"uid:{BOB}")))
    with bench(tmp_path, config) as made:
        yield World(made, monkeypatch)


def access(
    publish: tuple[str, ...] = ("*",), subscribe: tuple[str, ...] = ("*",), administer: tuple[str, ...] = ()
) -> TopicSettings:
    return TopicSettings(access=Access(publish, subscribe, administer))


def create(client: RawClient, name: str, settings: TopicSettings) -> int:
    kind, answer = client.call(Request.TOPIC_CREATE, TopicCreate(name, False, settings))
    assert kind == Answer.TOPIC, answer
    return int(answer.topic_id)


def refused(answer: tuple[Any, Any], code: int, words: str = "") -> None:
    kind, error = answer[:2]
    assert (kind, getattr(error, "errno", 0)) == (Answer.ERROR, code), error
    assert words in error.message


def publish(client: RawClient, topic_id: int, producer: int, number: int, *events: bytes) -> list[int]:
    """Errnos of the receipts, one for each run."""
    client.receipts.clear()
    client.publish(topic_id, producer, number, *events)
    client.answers()
    return [receipt[3] for receipt in client.receipts]


# --- publishing -------------------------------------------------------------------------------------------------


def test_publications_of_those_who_may_not_become_void_runs(world: World) -> None:
    root, eve = world.client(0), world.client(EVE)
    topic_id = create(root, "t", access(publish=("user:alice",)))
    events = root.subscribe(1, "t")
    producer = eve.open_producer()
    published = world.bench.node.published
    assert publish(eve, topic_id, producer, 1, b"a", b"b") == [errno.EPERM]
    assert world.bench.node.published == published + 1  # so that the numbers have no hole
    other = create(root, "free", access())
    assert publish(eve, other, producer, 3, b"c") == [0]
    assert read_all(events, world.bench.step) == []
    assert world.bench.agent.counters.runs_refused == 1
    alice = world.client(ALICE)
    producer = alice.open_producer()
    assert publish(alice, topic_id, producer, 1, b"a") == [0]
    assert len(read_all(events, world.bench.step)) == 1


def test_local_topics_have_rights_too(world: World) -> None:
    root, eve = world.client(0), world.client(EVE)
    kind, topic = root.call(Request.TOPIC_CREATE, TopicCreate("t", True, access(("user:alice",))))
    assert kind == Answer.TOPIC
    producer = eve.call(Request.OPEN_PRODUCER, OpenProducer(True))[1].producer
    assert publish(eve, topic.topic_id, producer, 1, b"a") == [errno.EPERM]
    assert publish(root, topic.topic_id, root.open_producer(local=True), 1, b"a") == [0]


def test_an_alteration_holds_from_the_next_publication_on(world: World) -> None:
    root, alice = world.client(0), world.client(ALICE)
    topic_id = create(root, "t", access())
    producer = alice.open_producer()
    assert publish(alice, topic_id, producer, 1, b"a") == [0]
    world.order(control.TopicAlter("t", access(publish=(f"uid:{BOB}",))))
    assert publish(alice, topic_id, producer, 2, b"b") == [errno.EPERM]
    world.order(control.TopicAlter("t", access(publish=("user:alice",))))
    assert publish(alice, topic_id, producer, 3, b"c") == [0]


def test_rights_are_asked_for_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    root, alice = world.client(0), world.client(ALICE)
    topic_id = create(root, "t", access(publish=("user:alice",)))
    producer = alice.open_producer()
    gate = world.bench.agent.requests.permissions.gate
    asked = []
    judge = type(gate).judge
    monkeypatch.setattr(type(gate), "judge", lambda *of: asked.append(of) or judge(*of))  # type: ignore[func-returns-value]
    for number in range(1, 20):
        assert publish(alice, topic_id, producer, number, b"x") == [0]
    assert len(asked) == 1


def test_who_publishes_to_a_rule_is_told(world: World) -> None:
    root = world.client(0)
    topic_id = create(root, "group:g", access())
    assert publish(root, topic_id, root.open_producer(), 1, b"a") == [errno.EINVAL]
    assert publish(root, topic_id, root.open_producer(local=True), 1, b"a") == [errno.EINVAL]
    kind, answer, _ = root.lend(
        Subscribe(1, ["group:g"], False)
    )  # the group, and not what says who may use it
    assert (kind, answer.starts[0].topic_id >= FIRST_GROUP_ID) == (Answer.SUBSCRIBED, True)


def test_publications_wait_for_names_and_hold_up_nobody(world: World) -> None:
    root, alice, eve = world.client(0), world.client(ALICE), world.client(EVE)
    topic_id, free = create(root, "t", access(publish=("user:alice",))), create(root, "free", access())
    events = root.subscribe(1, "t", "free")
    mine, hers = alice.open_producer(), eve.open_producer()
    world.names.slow = True
    assert publish(alice, topic_id, mine, 1, b"1") == []
    assert publish(alice, free, mine, 2, b"2") == []  # behind it
    barrier = alice.ask(Request.BARRIER)
    assert publish(eve, topic_id, hers, 1, b"3") == []
    assert publish(root, free, root.open_producer(), 1, b"4") == [0]
    assert world.bench.agent.intake.inbox_bytes > 0
    world.names.answer()
    assert [kind for kind, request, _ in alice.answers() if request == barrier] == [Answer.DONE]
    assert [receipt[3] for receipt in alice.receipts] == [0, 0]
    world.names.answer()
    eve.answers()
    assert [receipt[3] for receipt in eve.receipts] == [errno.EPERM]
    runs = [run for _, records in read_all(events, world.bench.step) for _, run in records]
    assert [list(run_events(run, read_header(run))) for run in runs] == [[b"4"], [b"1"], [b"2"]]
    assert world.bench.agent.intake.inbox_bytes == 0
    assert publish(alice, topic_id, mine, 3, b"5") == [0]


def test_a_client_that_goes_while_its_names_are_looked_up_has_published(world: World) -> None:
    root, alice = world.client(0), world.client(ALICE)
    topic_id = create(root, "t", access(publish=("user:alice",)))
    events = root.subscribe(1, "t")
    producer = alice.open_producer()
    world.names.slow = True
    assert publish(alice, topic_id, producer, 1, b"1") == []
    (gone,) = [one for one in world.bench.agent.clients.values() if one.peer.uid == ALICE]
    world.bench.agent.connections.client_lost(gone, "")
    world.names.answer()
    assert len(read_all(events, world.bench.step)) == 1
    assert not gone.waiting


# --- subscribing ------------------------------------------------------------------------------------------------


def test_subscribing_is_refused(world: World) -> None:
    root, eve = world.client(0), world.client(EVE)
    create(root, "t", access(subscribe=("user:alice",)))
    create(root, "free", access())
    refused(eve.lend(Subscribe(1, ["free", "t"], False))[:2], errno.EPERM, "'t'")
    refused(eve.lend(Subscribe(1, ["no"], False))[:2], errno.EINVAL)
    assert list(world.bench.agent.hub.by_topic) == [2]  # the agent's own, of oc.connectivity
    assert world.bench.agent.counters.requests_not_permitted == 1
    world.client(ALICE).subscribe(1, "t", "free", "oc.membership")


def test_a_subscription_waits_for_names(world: World) -> None:
    root, alice, eve = world.client(0), world.client(ALICE), world.client(EVE)
    topic_id = create(root, "t", access(subscribe=("user:alice",)))
    world.names.slow = True
    assert alice.lend(Subscribe(1, ["t"], False))[0] is None
    assert eve.lend(Subscribe(1, ["t"], False))[0] is None
    assert publish(root, topic_id, root.open_producer(), 1, b"1") == [0]
    world.names.answer()
    world.names.answer()
    ((kind, _, answer),) = alice.answers()
    assert kind == Answer.SUBSCRIBED
    assert answer.starts[0].next_seq == 2  # type: ignore[union-attr]
    ((kind, _, error),) = eve.answers()
    assert (kind, error.errno) == (Answer.ERROR, errno.EPERM)  # type: ignore[union-attr]


def test_who_goes_while_a_subscription_waits_leaves_nothing(world: World) -> None:
    root, alice = world.client(0), world.client(ALICE)
    create(root, "t", access(subscribe=("user:alice",)))
    world.names.slow = True
    alice.lend(Subscribe(1, ["t"], False))
    (gone,) = [one for one in world.bench.agent.clients.values() if one.peer.uid == ALICE]
    world.bench.agent.connections.client_lost(gone, "")
    world.names.answer()
    assert list(world.bench.agent.hub.by_topic) == [2]  # the agent's own, of oc.connectivity


def test_a_right_that_is_taken_away_ends_the_subscription_at_that_place(world: World) -> None:
    root, alice, bob = world.client(0), world.client(ALICE), world.client(BOB)
    topic_id = create(root, "t", access())
    create(root, "free", access())
    hers, his = alice.subscribe(1, "t", "free"), bob.subscribe(1, "t", callback=True)
    producer = root.open_producer()
    node = world.bench.node
    publish(root, topic_id, producer, 1, b"before")
    node.control(control.TopicAlter("t", access(subscribe=("user:alice",))))
    publish(root, topic_id, producer, 2, b"after")
    records = [one for _, found in read_all(his, world.bench.step) for one in found]
    assert [fields[1] for fields, _ in records] == [RecordKind.RUN, RecordKind.NOTICE]
    notice = records[-1][1]
    assert (notice.code, notice.topic, notice.final) == (NoticeCode.NOT_PERMITTED, "t", True)
    assert "user:alice" in notice.reason
    records = [one for _, found in read_all(hers, world.bench.step) for one in found]
    assert [fields[1] for fields, _ in records] == [RecordKind.RUN, RecordKind.RUN]
    world.order(control.TopicAlter("t", access(subscribe=())))
    (_, [(_, notice)]) = read_all(hers, world.bench.step)[0]
    assert (notice.code, notice.final) == (NoticeCode.NOT_PERMITTED, True)
    assert list(world.bench.agent.hub.by_topic) == [2]  # the agent's own, of oc.connectivity


def test_an_alteration_whose_names_are_looked_up_ends_the_subscription_then(world: World) -> None:
    root, bob = world.client(0), world.client(BOB)
    create(root, "t", access())
    his = bob.subscribe(1, "t")
    world.names.slow = True
    world.order(control.TopicAlter("t", access(subscribe=("user:alice",))))
    assert read_all(his, world.bench.step) == []
    world.names.answer()
    world.names.answer()
    (_, [(_, notice)]) = read_all(his, world.bench.step)[0]
    assert notice.code == NoticeCode.NOT_PERMITTED


def test_a_subscription_that_was_interrupted_needs_its_right_again(world: World) -> None:
    root, bob = world.client(0), world.client(BOB)
    topic_id = create(root, "t", access(subscribe=("user:alice",)))
    body = Subscribe(1, ["t"], False, "0" * 31 + "1", [Position("t", topic_id, 0)])
    refused(bob.lend(body)[:2], errno.EPERM)


# --- administering ----------------------------------------------------------------------------------------------


def test_who_may_create_topics(world: World) -> None:
    eve, alice, ops, agents = (
        world.client(EVE), world.client(ALICE), world.client(EVE, 27), world.client(500),
    )  # fmt: skip
    refused(eve.call(Request.TOPIC_CREATE, TopicCreate("t")), errno.EPERM, "uid 500")
    for number, client in enumerate((alice, ops, agents)):
        create(client, f"t{number}", access())
    topics = world.bench.node.topics
    assert topics["t0"].settings.access.administer == (f"uid:{ALICE}",)
    assert topics["t1"].settings == topics["t2"].settings == TopicSettings()
    create(alice, "t3", access(administer=("user:alice", "group:ops")))
    assert topics["t3"].settings.access.administer == ("user:alice", "group:ops")


def test_a_topic_that_exists_is_as_good_for_everybody(world: World) -> None:
    root, eve, bob = world.client(0), world.client(EVE), world.client(BOB)
    made = create(root, "t", access(publish=()))
    commands = world.bench.node.commands
    for client in (eve, bob, root):
        kind, topic = client.call(Request.TOPIC_CREATE, TopicCreate("t"))
        assert (kind, topic.topic_id) == (Answer.TOPIC, made)
    refused(eve.call(Request.TOPIC_CREATE, TopicCreate("t", False, access(subscribe=()))), errno.EPERM)
    refused(bob.call(Request.TOPIC_CREATE, TopicCreate("t", False, access(subscribe=()))), errno.EEXIST)
    refused(eve.call(Request.TOPIC_CREATE, TopicCreate("t", True)), errno.EPERM)
    assert world.bench.node.commands > commands  # one created elsewhere is found by catching up


def test_administration_of_a_topic(world: World) -> None:
    root, alice, bob, ops = world.client(0), world.client(ALICE), world.client(BOB), world.client(EVE, 27)
    create(root, "t", access(administer=("user:alice",)))
    own = access(administer=("user:alice",), publish=())
    refused(bob.call(Request.TOPIC_ALTER, TopicAlter("t", own)), errno.EPERM, "user:alice")
    refused(bob.call(Request.TOPIC_REMOVE, TopicRemove("t")), errno.EPERM)
    assert alice.call(Request.TOPIC_ALTER, TopicAlter("t", own))[0] == Answer.DONE
    assert ops.call(Request.TOPIC_ALTER, TopicAlter("t", access()))[0] == Answer.DONE
    refused(alice.call(Request.TOPIC_REMOVE, TopicRemove("t")), errno.EPERM)  # it is hers no more
    refused(bob.call(Request.TOPIC_REMOVE, TopicRemove("no")), errno.EINVAL)
    refused(bob.call(Request.TOPIC_ALTER, TopicAlter("no", own)), errno.EINVAL)
    refused(bob.call(Request.TOPIC_REMOVE, TopicRemove("oc.membership")), errno.EPERM)
    assert world.bench.agent.counters.requests_not_permitted == 3
    assert root.call(Request.TOPIC_REMOVE, TopicRemove("t"))[0] == Answer.DONE


def test_a_topic_created_elsewhere_is_no_way_round(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its creation is ordered between the request and what this node has delivered of the order."""
    bob = world.client(BOB)
    node = world.bench.node
    order = node.control

    def with_company(operand: control.Operand, behind: bool = False) -> int:
        if isinstance(operand, control.Barrier):
            order(control.TopicCreate("t", False, access(administer=("user:alice",))))
        return order(operand, behind)

    monkeypatch.setattr(node, "control", with_company)
    refused(bob.call(Request.TOPIC_REMOVE, TopicRemove("t")), errno.EPERM)
    assert "t" in node.topics


def test_a_minority_refuses_what_it_does_not_know(world: World) -> None:
    node = world.bench.node
    node.notify(NotificationCode.NOT_PRIMARY)
    world.bench.agent.settle(time.monotonic_ns())
    refused(world.client(BOB).call(Request.TOPIC_REMOVE, TopicRemove("t")), errno.EINVAL, "no topic")
    refused(world.client(EVE).call(Request.TOPIC_CREATE, TopicCreate("t")), errno.EPERM)


def test_administration_waits_for_names(world: World) -> None:
    root, alice = world.client(0), world.client(ALICE)
    create(root, "t", access(administer=("user:alice",)))
    world.names.slow = True
    requests = [
        alice.ask(Request.TOPIC_CREATE, TopicCreate("new")),
        alice.ask(Request.TOPIC_ALTER, TopicAlter("t", access(administer=("user:alice",), publish=()))),
        alice.ask(Request.TOPIC_REMOVE, TopicRemove("t")),
        alice.ask(Request.ADMINISTER, Administer(Administration.SHUTDOWN)),
    ]
    assert alice.answers() == []
    world.names.answer()
    world.names.answer()
    assert sorted(((kind, request) for kind, request, _ in alice.answers()), key=lambda one: one[1]) == [
        (Answer.TOPIC, requests[0]), (Answer.DONE, requests[1]), (Answer.DONE, requests[2]),
        (Answer.ERROR, requests[3]),
    ]  # fmt: skip


def test_operators_are_administrators_of_the_node(world: World) -> None:
    asked = Administer(Administration.SEQUENCE, 1)
    refused(world.client(ALICE).call(Request.ADMINISTER, asked), errno.EPERM)
    kind, error = world.client(EVE, 27).call(Request.ADMINISTER, asked)
    assert kind == Answer.DONE or error.errno != errno.EPERM


def test_rules_for_groups_are_made_by_those_who_may_everything(world: World) -> None:
    root, alice, ops = world.client(0), world.client(ALICE), world.client(EVE, 27)
    refused(alice.call(Request.TOPIC_CREATE, TopicCreate("group:*")), errno.EPERM)
    create(ops, "group:a*", access(administer=("user:alice",), publish=("user:alice",)))
    assert world.bench.node.topics["group:a*"].local
    changed = access(administer=("user:alice",))
    assert alice.call(Request.TOPIC_ALTER, TopicAlter("group:a*", changed))[0] == Answer.DONE
    kind, rights = alice.call(Request.TOPIC_ACCESS, TopicResolve("group:abc"))
    assert kind == Answer.TOPIC_ACCESS
    assert rights.rule == "group:a*"
    assert [grant.allowed for grant in rights.grants] == [True, True, True]
    assert root.call(Request.TOPIC_ACCESS, TopicResolve("group:b"))[1].rule == ""


# --- explaining -------------------------------------------------------------------------------------------------


def test_the_doors_of_groups(world: World) -> None:
    root, alice, bob, eve = (world.client(uid) for uid in (0, ALICE, BOB, EVE))
    create(root, "group:g*", access(("user:alice",), ("user:alice", f"uid:{BOB}")))
    assert alice.call(Request.GROUP_JOIN, GroupName("group:g1"))[0] == Answer.GROUP
    topic_id = bob.call(Request.TOPIC_RESOLVE, TopicResolve("group:g1"))[1].topic_id
    assert bob.lend(Subscribe(1, ["group:g1"], False))[0] == Answer.SUBSCRIBED
    assert len(bob.call(Request.GROUP_SHOW, GroupName("group:g1"))[1].members) == 1
    refused(bob.call(Request.GROUP_JOIN, GroupName("group:g1")), errno.EPERM, "publish in 'group:g1'")
    refused(eve.call(Request.GROUP_SHOW, GroupName("group:g1")), errno.EPERM, "subscribe in")
    refused(eve.call(Request.GROUP_JOIN, GroupName("group:g1")), errno.EPERM)
    refused(eve.lend(Subscribe(1, ["group:g1"], False))[:2], errno.EPERM)
    assert publish(alice, topic_id, alice.open_producer(), 1, b"x") == [0]
    assert publish(bob, topic_id, bob.open_producer(), 1, b"x") == [errno.EPERM]
    assert eve.call(Request.GROUP_JOIN, GroupName("group:h"))[0] == Answer.GROUP  # no rule


def test_who_has_no_right_in_a_group_puts_none_into_use(world: World) -> None:
    """Thousands of names would displace the groups of others, which have nobody in them at the moment."""
    root, alice, bob, eve = (world.client(uid) for uid in (0, ALICE, BOB, EVE))
    create(root, "group:g*", access(publish=("user:alice",), subscribe=(f"uid:{BOB}",)))
    groups = world.bench.node.groups.by_name
    refused(eve.lend(Subscribe(1, ["group:g1"], False))[:2], errno.EPERM, "'group:g1'")
    refused(eve.call(Request.TOPIC_RESOLVE, TopicResolve("group:g1")), errno.EPERM, "'group:g1'")
    refused(alice.lend(Subscribe(1, ["group:g1"], False))[:2], errno.EPERM)
    assert not groups
    assert world.bench.agent.counters.requests_not_permitted == 3
    assert alice.call(Request.TOPIC_RESOLVE, TopicResolve("group:g2"))[0] == Answer.TOPIC  # to cast
    assert bob.call(Request.TOPIC_RESOLVE, TopicResolve("group:g3"))[0] == Answer.TOPIC
    assert bob.lend(Subscribe(1, ["group:g4", "group:g4"], False))[0] == Answer.SUBSCRIBED
    assert eve.lend(Subscribe(1, ["group:free"], False))[0] == Answer.SUBSCRIBED  # no rule
    assert list(groups) == ["group:g2", "group:g3", "group:g4", "group:free"]


def test_whether_a_group_is_put_into_use_waits_for_names(world: World) -> None:
    root, alice, eve, gone = (world.client(uid) for uid in (0, ALICE, EVE, EVE))
    create(root, "group:g*", access((), ("user:alice",)))
    groups = world.bench.node.groups.by_name
    world.names.slow = True
    for number, client in enumerate((alice, eve, gone), 1):
        assert client.lend(Subscribe(1, [f"group:g{number}"], False))[0] is None
        assert client.call(Request.TOPIC_RESOLVE, TopicResolve(f"group:g{number}"))[0] is None
    world.bench.agent.connections.client_lost(list(world.bench.agent.clients.values())[-1], "")
    assert not groups
    for _ in range(3):
        world.names.answer()
        world.bench.agent.settle(time.monotonic_ns())
    assert sorted(kind for kind, _, _ in alice.answers()) == [Answer.SUBSCRIBED, Answer.TOPIC]
    assert [answer.errno for _, _, answer in eve.answers()] == [errno.EPERM] * 2  # type: ignore[union-attr]
    assert list(groups) == ["group:g1"]


def test_before_the_first_view_nobody_knows_the_rules_of_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bench(tmp_path, active=False) as made:
        world = World(made, monkeypatch)
        root, eve = world.client(0), world.client(EVE)
        for client, name in ((root, "group:a"), (eve, "group:b"), (eve, "group:free")):
            assert client.lend(Subscribe(1 + len(name), [name], False))[0] is None
            assert client.call(Request.TOPIC_RESOLVE, TopicResolve(name))[0] is None
        for rule in ("group:a", "group:b"):
            made.node.replicated.topics.apply(control.TopicCreate(rule, True, access((), ())), Limits())
        made.node.activate()
        for _ in range(3):
            made.agent.settle(time.monotonic_ns())
        assert {kind for kind, _, _ in root.answers()} == {Answer.TOPIC, Answer.SUBSCRIBED}
        kinds = sorted(kind for kind, _, _ in eve.answers())
        assert kinds == sorted([Answer.ERROR, Answer.ERROR, Answer.SUBSCRIBED, Answer.TOPIC])
        assert sorted(made.node.groups.by_name) == ["group:a", "group:free"]


def test_before_the_first_view_nobody_joins_a_group_unseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bench(tmp_path, active=False) as made:
        world = World(made, monkeypatch)
        eve = world.client(EVE)
        for name in ("group:a", "group:free"):
            assert eve.call(Request.GROUP_JOIN, GroupName(name))[0] is None
        made.node.replicated.topics.apply(control.TopicCreate("group:a", True, access((), ())), Limits())
        made.node.activate()
        for _ in range(3):
            made.agent.settle(time.monotonic_ns())
        assert sorted(kind for kind, _, _ in eve.answers()) == sorted([Answer.ERROR, Answer.GROUP])
        assert {name: len(one.members) for name, one in made.node.groups.by_name.items()} == {"group:free": 1}


def test_a_join_waits_for_names(world: World) -> None:
    root, alice = world.client(0), world.client(ALICE)
    create(root, "group:g", access(("user:alice",), ("user:alice",)))
    world.names.slow = True
    assert alice.call(Request.GROUP_JOIN, GroupName("group:g")) == (None, None)
    world.names.answer()
    world.bench.agent.settle(time.monotonic_ns())
    ((kind, _, joined),) = alice.answers()
    assert (kind, len(joined.members)) == (Answer.GROUP, 1)


def test_rights_are_explained(world: World) -> None:
    root, alice, eve = world.client(0), world.client(ALICE), world.client(EVE)
    create(root, "t", access(("user:alice", "user:alise"), ("*",), ("group:ops",)))
    kind, rights = alice.call(Request.TOPIC_ACCESS, TopicResolve("t"))
    assert (kind, rights.topic, rights.uid, rights.unknown) == (
        Answer.TOPIC_ACCESS,
        "t",
        ALICE,
        ["user:alise"],
    )
    assert [(grant.right, grant.allowed, grant.why) for grant in rights.grants] == [
        ("publish", True, "it names user:alice"), ("subscribe", True, "anybody may"),
        ("administer", False, "it is for group:ops, root, the agent's user (uid 500) and access.administrators"),
    ]  # fmt: skip
    assert rights.grants[0].principals == ["user:alice", "user:alise"]
    rights = root.call(Request.TOPIC_ACCESS, TopicResolve("__OC_EV_MEMB_CLASS"))[1]
    assert (rights.topic, [grant.allowed for grant in rights.grants]) == (
        "oc.membership",
        [False, True, False],
    )
    for name in ("oc.membership", "oc.local"):
        rights = root.call(Request.TOPIC_ACCESS, TopicResolve(name))[1]
        assert [grant.principals for grant in rights.grants] == [[], ["*"], []]
        topic = root.call(Request.TOPIC_RESOLVE, TopicResolve(name))[1]
        assert topic.settings.access == Access((), ("*",), ())
    listed = {topic.topic: topic.settings.access for topic in root.call(Request.TOPIC_LIST)[1].topics}
    assert listed["oc.connectivity"] == Access((), ("*",), ())
    assert listed["t"] == Access(("user:alice", "user:alise"), ("*",), ("group:ops",))
    refused(eve.call(Request.TOPIC_ACCESS, TopicResolve("no")), errno.EINVAL)
    refused(eve.call(Request.TOPIC_ACCESS, TopicResolve("")), errno.EINVAL)
    world.names.slow = True
    world.order(control.TopicAlter("t", access(("user:late",))))
    assert eve.call(Request.TOPIC_ACCESS, TopicResolve("t")) == (None, None)
    world.names.answer()
    ((kind, _, rights),) = eve.answers()
    assert (kind, rights.unknown) == (Answer.TOPIC_ACCESS, ["user:late"])  # type: ignore[union-attr]


def test_topics_of_the_configuration_have_their_lists(tmp_path: Path) -> None:
    topics = [
        TopicSetting("t", "global", ("user:a",), ("gid:7",), ("group:b",)),
        TopicSetting("group:*", publish=()),
    ]
    with bench(tmp_path, AgentConfig(topics=topics)) as made:
        assert made.node.topics["t"].settings == access(("user:a",), ("gid:7",), ("group:b",))
        assert made.node.topics["group:*"].settings.access.publish == ()
        made.node.lose_history()
        made.node.control(control.TopicCreate("t", False))
        made.node.control(control.TopicCreate("group:*", True))
        made.node.activate()
        for _ in range(2):
            made.agent.settle(time.monotonic_ns())
        assert [text for text in made.agent.warnings if "other settings" in text and "'t'" in text]


def test_the_history_ends_while_names_are_looked_up(world: World) -> None:
    root, alice = world.client(0), world.client(ALICE)
    topic_id = create(root, "t", access(publish=("user:alice",), subscribe=("user:alice",)))
    producer = alice.open_producer()
    world.names.slow = True
    publish(alice, topic_id, producer, 1, b"x")
    alice.lend(Subscribe(1, ["t"], False))
    world.bench.node.lose_history()
    world.bench.agent.settle(time.monotonic_ns())
    world.names.answer()
    world.bench.node.activate()
    world.bench.agent.settle(time.monotonic_ns())
    assert world.bench.node.published == 0
    assert world.bench.agent.intake.inbox_bytes == 0
    assert list(world.bench.agent.hub.by_topic) == [2]  # the agent's own, of oc.connectivity
