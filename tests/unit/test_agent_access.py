"""The gate: principals against credentials, who may do everything, rules for groups; and the name service below."""

from __future__ import annotations

import asyncio
import os
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocfcluster.agent import name_service
from ocfcluster.agent.access import Gate, Right, is_rule, rule_for
from ocfcluster.agent.name_service import Ids, Key, NameService, look_up
from ocfcluster.ipc import peer as peer_module
from ocfcluster.ipc.peer import Peer, is_closed, peer_credentials
from ocfcluster.limits import (
    NAME_LIFETIME_NS,
    NAME_UNKNOWN_LIFETIME_NS,
    NAME_WAIT_NS,
    NAMES_ASKED,
    NAMES_KNOWN,
)
from ocfcluster.protocol.effects import Topic
from ocfcluster.protocol.state import MEMBERSHIP_TOPIC
from ocfcluster.wire.topics import Access, TopicSettings, principal_fault

ALICE = Peer(1, 1001, 1001, (27, 30))
BOB = Peer(2, 1002, 1002, ())
DIRECTORY: dict[Key, Ids] = {
    ("user", "alice"): (1001,), ("user", "bob"): (1002,), ("group", "ops"): (27,), ("group", "bob"): (1002,),
    ("groups", "1001"): (27,), ("groups", "1002"): (),
}  # fmt: skip


class Directory:
    """Names that are all known at once, or, where they are in ``slow``, not yet."""

    def __init__(self) -> None:
        self.slow: set[Key] = set()

    def ids(self, kind: str, name: str) -> Ids | None:
        return None if (kind, name) in self.slow else DIRECTORY.get((kind, name), ())


def topic(
    publish: tuple[str, ...] = ("*",), subscribe: tuple[str, ...] = ("*",), administer: tuple[str, ...] = (),
    *, name: str = "t", topic_id: int = 16, local: bool = False,
) -> Topic:  # fmt: skip
    return Topic(topic_id, name, local, TopicSettings(access=Access(publish, subscribe, administer)))


def gate(
    *topics: Topic, names: Directory | None = None, administrators: tuple[str, ...] = (),
    create: tuple[str, ...] = (),
) -> Gate:  # fmt: skip
    table = {one.name: one for one in topics}
    return Gate(administrators, create, names or Directory(), lambda: table)


@pytest.fixture(autouse=True)
def agents_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 500)


def may(made: Gate, peer: Peer, right: Right, of: Topic) -> bool | None:
    verdict = made.judge(peer, right, of)
    assert verdict is None or verdict.why
    return None if verdict is None else verdict.allowed


@pytest.mark.parametrize(
    ("principal", "alice", "bob"),
    [
        ("*", True, True), ("user:alice", True, False), ("uid:1001", True, False), ("uid:01001", True, False),
        ("uid:1002", False, True), ("group:ops", True, False), ("gid:30", True, False), ("gid:1002", False, True),
        ("group:bob", False, True), ("user:nobody-here", False, False), ("group:nobody-here", False, False),
        ("uid:27", False, False), ("gid:1001", True, False), ("user:ops", False, False), ("group:alice", False, False),
        ("uid:99999999999999999999", False, False),
    ],
)  # fmt: skip
def test_principals(principal: str, alice: bool, bob: bool) -> None:
    made = gate()
    for right in Right:
        one = topic(**{right.value: (principal,)})  # type: ignore[arg-type]
        assert (may(made, ALICE, right, one), may(made, BOB, right, one)) == (alice, bob)
        others = {other.value: ("*",) for other in Right if other is not right}
        closed = topic(**{right.value: (), **others})  # type: ignore[arg-type]
        assert may(made, ALICE, right, closed) is False


def test_root_and_the_agents_user_and_administrators_may_everything() -> None:
    closed = topic((), (), ())
    made = gate(administrators=("group:ops",))
    for peer, allowed in ((Peer(1, 0, 0), True), (Peer(1, 500, 1), True), (ALICE, True), (BOB, False)):
        assert all(may(made, peer, right, closed) is allowed for right in Right)
        everything, create = made.everything(peer), made.create(peer, "t")
        assert everything is not None
        assert create is not None
        assert (everything.allowed, create.allowed) == (allowed, allowed)


def test_reserved_topics_are_the_clusters_own() -> None:
    made = gate()
    for peer in (Peer(1, 0, 0), ALICE):
        assert [may(made, peer, right, MEMBERSHIP_TOPIC) for right in Right] == [False, True, False]


def test_who_may_create() -> None:
    made = gate(create=("user:alice",))
    for peer, name, allowed in (
        (ALICE, "t", True), (BOB, "t", False), (ALICE, "group:g", False), (Peer(1, 0, 0), "group:g", True),
    ):  # fmt: skip
        verdict = made.create(peer, name)
        assert verdict is not None
        assert verdict.allowed is allowed, (peer, name)


def test_what_is_being_looked_up_is_waited_for_only_where_it_decides() -> None:
    names = Directory()
    names.slow = {("user", "alice"), ("group", "ops")}
    made = gate(names=names, administrators=("group:ops",), create=("user:alice",))
    assert may(made, BOB, Right.PUBLISH, topic(("user:alice", "uid:1002"))) is True
    assert may(made, BOB, Right.PUBLISH, topic(("user:alice",))) is None
    assert may(made, BOB, Right.PUBLISH, topic(("uid:1",))) is None  # it may be an administrator
    assert may(made, Peer(1, 0, 0), Right.PUBLISH, topic(("user:alice",))) is True
    assert made.create(BOB, "t") is None
    assert made.nobody(["user:alice", "user:who"]) is None
    names.slow.clear()
    assert may(made, BOB, Right.PUBLISH, topic(("user:alice",))) is False
    assert made.nobody(["user:alice", "user:who", "uid:7", "*", "group:what", "user:who"]) == [
        "user:who",
        "group:what",
    ]


def test_groups_that_the_kernel_does_not_tell_are_looked_up() -> None:
    names = Directory()
    untold = ALICE._replace(groups=None)
    ops = topic(("group:ops",))
    assert may(gate(names=names), untold, Right.PUBLISH, ops) is True
    assert may(gate(names=names), untold, Right.PUBLISH, topic(("gid:1001",))) is True
    assert may(gate(names=names), untold, Right.PUBLISH, topic(("gid:30",))) is False
    names.slow = {("groups", "1001")}
    assert may(gate(names=names), untold, Right.PUBLISH, ops) is None


def test_groups_go_by_the_longest_rule() -> None:
    def rule(name: str, *publish: str) -> Topic:
        return topic(publish, name=name, local=True)

    rules = [rule("group:*", "uid:1"), rule("group:lock*", "uid:1001"), rule("group:locks", "uid:1002")]
    made = gate(*rules)
    assert all(map(is_rule, rules))
    for name, alice, bob in (
        ("group:locks", False, True), ("group:lock", True, False), ("group:lock-1", True, False),
        ("group:loc", False, False),
    ):  # fmt: skip
        one = Topic(1 << 31, name, False)
        assert not is_rule(one)
        assert (may(made, ALICE, Right.PUBLISH, one), may(made, BOB, Right.PUBLISH, one)) == (alice, bob)
    assert may(gate(), BOB, Right.PUBLISH, Topic(1 << 31, "group:free", False)) is True
    assert rule_for("group:locks", {}) is None


# --- property ---------------------------------------------------------------------------------------------------

names_of = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=16)
principals = st.one_of(
    st.just("*"),
    st.builds("user:{}".format, names_of | st.just("alice")),
    st.builds("group:{}".format, names_of | st.just("ops")),
    st.builds("uid:{}".format, st.integers(0, 2000)),
    st.builds("gid:{}".format, st.integers(0, 2000)),
)


def is_named(peer: Peer, principal: str) -> bool:
    """What a principal means, said once more."""
    assert peer.groups is not None
    if principal == "*":
        return True
    kind, _, name = principal.partition(":")
    ids: Ids = (int(name),) if kind in ("uid", "gid") else DIRECTORY.get((kind, name), ())
    own = {peer.uid} if kind in ("uid", "user") else {peer.gid, *peer.groups}
    return bool(own & set(ids))


@given(
    st.lists(principals, max_size=6), st.integers(1, 2000), st.integers(0, 2000),
    st.lists(st.integers(0, 2000), max_size=4),
)  # fmt: skip
def test_one_of_the_list_is_enough_and_none_is_not(
    listed: list[str], uid: int, gid: int, groups: list[int]
) -> None:
    peer = Peer(1, uid, gid, tuple(groups))
    assert not any(map(principal_fault, listed))
    expected = uid == 500 or any(is_named(peer, one) for one in listed)
    made = gate()
    assert may(made, peer, Right.PUBLISH, topic(tuple(listed))) is expected
    assert may(made, peer, Right.PUBLISH, topic(tuple(reversed(listed)))) is expected


@given(st.text(max_size=80))
def test_any_text_is_a_principal_that_can_be_judged_or_has_a_fault(text: str) -> None:
    if not principal_fault(text):
        assert may(gate(), ALICE, Right.PUBLISH, topic((text,))) in (True, False)


# --- credentials ------------------------------------------------------------------------------------------------


def test_the_kernel_tells_who_connects() -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("")  # Linux chooses a name
        listening.listen()
        with socket.socket(socket.AF_UNIX) as connecting:
            connecting.connect(listening.getsockname())
            accepted, _ = listening.accept()
            with accepted:
                peer = peer_credentials(accepted)
    assert peer[:3] == (os.getpid(), os.getuid(), os.getegid())
    assert peer.groups is not None
    assert sorted(peer.groups) == sorted(os.getgroups())


def test_a_kernel_that_does_not_tell_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_module, "_SO_PEERGROUPS", 0xFFFF)
    one, other = socket.socketpair()
    with one, other:
        assert peer_credentials(one).groups is None


# --- the name service -------------------------------------------------------------------------------------------


class HeldNames(NameService):
    """Look-ups end when the test says so; time passes when it does."""

    def __init__(self) -> None:
        self.now = 1
        self.told: list[str] = []
        self.asked: list[Key] = []
        super().__init__(lambda: None, lambda: self.told.append("answered"), lambda: self.now)  # type: ignore[arg-type,return-value]

    def _ask(self, key: Key) -> None:
        self.asked.append(key)


def test_a_name_is_looked_up_once_and_remembered_for_a_while() -> None:
    names = HeldNames()
    assert names.ids("user", "alice") is None
    assert names.ids("user", "alice") is None
    names.when_answered(lambda: names.told.append("waiter"))
    names.found(("user", "alice"), (1001,))
    assert names.told == ["waiter", "answered"]
    assert names.ids("user", "alice") == (1001,)
    names.now += NAME_LIFETIME_NS
    assert names.ids("user", "alice") is None
    assert names.asked == [("user", "alice")] * 2
    names.found(("user", "alice"), ())
    assert names.ids("user", "alice") == ()
    names.now += NAME_UNKNOWN_LIFETIME_NS
    assert names.ids("user", "alice") is None
    assert names.told == ["waiter", "answered", "answered"]


def test_who_waits_for_a_service_that_hangs_does_so_for_a_while() -> None:
    names = HeldNames()
    key = ("group", "slow")
    assert names.ids(*key) is None
    names.when_answered(lambda: names.told.append(str(names.ids(*key))))
    names.now += NAME_WAIT_NS
    names._late(key)
    assert names.told == ["()", "answered"]
    assert names.ids(*key) == ()
    names.found(key, (5,))
    assert names.ids(*key) == (5,)
    names._late(key)
    assert names.told == ["()", "answered", "answered"]


def test_names_are_bounded() -> None:
    names = HeldNames()
    for number in range(NAMES_ASKED):
        assert names.ids("user", str(number)) is None
    assert names.ids("user", "one more") == ()
    assert len(names.asked) == NAMES_ASKED
    for number in range(NAMES_KNOWN + 10):
        names.found(("user", str(number)), (number,))
    assert len(names._known) == NAMES_KNOWN
    assert names.ids("user", "9") is None
    assert names.ids("user", "10") == (10,)


def test_those_who_wait_when_it_closes_are_told() -> None:
    names = HeldNames()
    names.ids("user", "alice")
    names.when_answered(lambda: names.told.append("waiter"))
    names.close()
    assert names.told == ["waiter"]


def test_the_loop_goes_on_while_a_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def slow(kind: str, name: str) -> Ids:
        assert threading.current_thread() is not threading.main_thread()
        release.wait(10)
        return (7,)

    monkeypatch.setattr(name_service, "look_up", slow)

    async def run() -> Ids | None:
        answered = asyncio.Event()
        loop = asyncio.get_running_loop()
        names = NameService(lambda: loop, answered.set)
        assert names.ids("user", "alice") is None
        await asyncio.sleep(0.02)
        assert not answered.is_set()
        release.set()
        await asyncio.wait_for(answered.wait(), 10)
        ids = names.ids("user", "alice")
        names.close()
        return ids

    assert asyncio.run(run()) == (7,)


def test_the_systems_databases_are_asked() -> None:
    assert look_up("user", "root") == (0,)
    assert look_up("group", "root") == (0,)
    assert 0 in look_up("groups", "0")
    for kind, name in (("user", "no such user"), ("group", "no such group"), ("groups", "4294967294"), ("user", "a\0b"), ("groups", "9" * 30)):  # fmt: skip  # noqa: E501
        assert look_up(kind, name) == ()


def test_a_connection_is_closed_though_there_is_something_to_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"unread")
        assert not is_closed(ours)
        theirs.close()
        assert is_closed(ours)
