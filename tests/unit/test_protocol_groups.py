"""Groups in the replicated state: ids and places, members and their bounds, what views and snapshots do."""

from __future__ import annotations

import errno
from typing import Any

import msgspec
import pytest

from ocfcluster import limits
from ocfcluster.errors import MalformedRun, MalformedSnapshot
from ocfcluster.protocol.effects import Delivery, Directed, GroupChange, Outcome, TopicChange, View
from ocfcluster.protocol.groups import FIRST_GROUP_ID, GroupTable
from ocfcluster.protocol.settings import Configuration, Member
from ocfcluster.protocol.state import ReplicatedState, restored_state, state_image
from ocfcluster.wire import control
from ocfcluster.wire.group import TO_PROPERTY, GroupCode, GroupMember, LeaveReason, message
from ocfcluster.wire.properties import encode_properties
from ocfcluster.wire.run import RunKind, build_run, read_header

HERE, THERE = (1, 77), (2, 78)


class Order:
    """A state, and the order as a test writes it."""

    def __init__(self, state: ReplicatedState | None = None) -> None:
        self.state = state or ReplicatedState(_configuration())
        self.items: list[Any] = []
        self._token = 0
        self._numbers: dict[int, int] = {}
        if state is None:
            self.view(HERE, THERE)

    def view(self, *present: tuple[int, int]) -> list[Any]:
        before = self.state.configuration
        epoch = 1 if before is None else before.epoch + 1
        self.items = []
        self.state.view(_configuration(*present, epoch=epoch), self.items)
        return self.items

    def control(self, operand: control.Operand, origin: tuple[int, int] = HERE) -> Outcome:
        self._token += 1
        self.items = []
        self.state.apply(control.control_run(operand, self._token), *origin, 1000, True, self.items)
        outcome = self.items.pop()
        assert isinstance(outcome, Outcome)
        return outcome

    def open(self, name: str) -> int:
        return self.control(control.GroupOpen(name)).value

    def join(self, name: str, origin: tuple[int, int] = HERE, pid: int = 5) -> int:
        outcome = self.control(control.GroupJoin(name, pid), origin)
        assert outcome.error == 0, outcome
        return outcome.value

    def leave(self, name: str, member: int, origin: tuple[int, int] = HERE) -> int:
        return self.control(control.GroupLeave(name, member, LeaveReason.LEFT), origin).error

    def say(self, topic_id: int, *datas: bytes, to: int = 0, origin: tuple[int, int] = HERE) -> Outcome:
        producer = self.control(control.Open(), origin).value
        properties = encode_properties({TO_PROPERTY: str(to)}) if to else b""
        run = build_run(RunKind.PUBLICATION, topic_id, producer, 1, datas, properties=properties)
        self.items = []
        self.state.apply(run, *origin, 1000, True, self.items)
        outcome = self.items.pop()
        assert isinstance(outcome, Outcome)
        return outcome


def _configuration(*present: tuple[int, int], epoch: int = 1) -> Configuration:
    members = [Member(1, node, incarnation, node, 1) for node, incarnation in present or (HERE, THERE)]
    return Configuration(
        "0" * 31 + "1", [], epoch, epoch - 1, {1: 1, 2: 1}, members, members[0].node_id, members[0].node_id, "safe",
        False, 1, 1500, _limits(), epoch, [(epoch, epoch - 1)], 1000 * epoch,
    )  # fmt: skip


def _limits() -> Any:
    from ocfcluster.protocol.settings import Limits

    return Limits()


def test_a_group_has_an_id_and_its_own_numbers_from_its_first_use():
    order = Order()
    topic_id = order.open("group:a")
    assert topic_id == FIRST_GROUP_ID
    assert [type(item) for item in order.items] == [TopicChange]
    assert order.open("group:a") == topic_id
    assert order.items == []
    assert order.open("group:b") == topic_id + 1
    outcome = order.say(topic_id, b"x", b"y")
    assert (outcome.error, outcome.seq, outcome.ev_id) == (0, 1, 2)  # the view's event is the first
    (delivery,) = order.items
    assert isinstance(delivery, Delivery)
    assert (delivery.topic_id, delivery.seq, delivery.ev_id, delivery.count) == (topic_id, 1, 2, 2)
    assert order.state.seq_of(topic_id) == 2
    assert order.say(topic_id + 1, b"z").seq == 1
    assert order.say(topic_id + 2, b"z").error == errno.EINVAL


def test_a_join_is_an_event_and_its_ev_id_the_members_id():
    order = Order()
    first = order.join("group:a", HERE, 11)
    created, change = order.items
    assert isinstance(created, TopicChange)
    assert isinstance(change, GroupChange)
    assert (change.seq, change.ev_id, change.reason) == (1, first, 0)
    assert change.joined == change.members == (GroupMember(first, 1, 11),)
    second = order.join("group:a", THERE, 12)
    (change,) = order.items
    assert change.members == (GroupMember(first, 1, 11), GroupMember(second, 2, 12))
    assert change.joined == (GroupMember(second, 2, 12),)
    assert (change.left, change.seq, second) == ((), 2, first + 1)
    assert order.leave("group:a", first) == 0
    (change,) = order.items
    assert (change.reason, change.left, change.joined) == (LeaveReason.LEFT, (GroupMember(first, 1, 11),), ())
    assert change.members == (GroupMember(second, 2, 12),)


def test_a_member_is_taken_away_by_its_own_agent_alone():
    order = Order()
    member = order.join("group:a", HERE)
    assert order.leave("group:a", member, THERE) == errno.EINVAL
    assert order.leave("group:a", member, (1, 99)) == errno.EINVAL
    assert order.leave("group:b", member) == errno.EINVAL
    assert order.leave("group:a", member + 1) == errno.EINVAL
    assert order.items == []
    assert order.leave("group:a", member) == 0
    assert order.leave("group:a", member) == errno.EINVAL


def test_a_view_takes_away_all_members_of_agents_that_are_gone_one_event_per_group():
    order = Order()
    stays = order.join("group:b", HERE)
    gone = [order.join("group:b", THERE, pid) for pid in (1, 2)]
    alone = order.join("group:a", THERE)
    items = order.view(HERE)
    view, *changes = items
    assert isinstance(view, View)
    assert [change.topic.name for change in changes] == ["group:b", "group:a"]  # by id, and b came first
    assert [tuple(one.member for one in change.left) for change in changes] == [tuple(gone), (alone,)]
    assert [one.member for one in changes[0].members] == [stays]
    assert all(change.reason == LeaveReason.NODE_LEFT for change in changes)
    assert [change.ev_id for change in changes] == [view.ev_id + 1, view.ev_id + 2]
    assert changes[0].order_time == view.configuration.order_time
    assert changes[0].m_sequence == view.configuration.m_sequence


def test_a_restarted_agent_has_no_members_of_before():
    order = Order()
    order.join("group:a", THERE)
    (_, change) = order.view(HERE, (2, 79))
    assert change.members == ()
    assert order.view(HERE, (2, 79))[1:] == []


def test_a_message_for_one_member_says_whom_it_is_for():
    order = Order()
    topic_id = order.open("group:a")
    member = order.join("group:a", THERE)
    outcome = order.say(topic_id, message(GroupCode.SEND, 0, b"psst", member), to=member)
    (item,) = order.items
    assert isinstance(item, Directed)
    assert (item.to, item.delivery.seq, outcome.seq) == (member, 2, 2)
    order.leave("group:a", member, THERE)
    refused = order.say(topic_id, b"psst", to=member)
    assert (refused.error, order.items) == (errno.ESRCH, [])
    assert order.state.seq_of(topic_id) == 3  # what is refused has no number


def test_a_refused_message_uses_up_its_publish_number_and_a_repeat_is_answered_alike():
    order = Order()
    topic_id = order.open("group:a")
    producer = order.control(control.Open()).value
    properties = encode_properties({TO_PROPERTY: "4711"})
    run = build_run(RunKind.PUBLICATION, topic_id, producer, 1, [b"x"], properties=properties)
    for _ in range(2):
        items: list[Any] = []
        order.state.apply(run, *HERE, 1000, True, items)
        assert [item.error for item in items] == [errno.ESRCH]
    items = []
    order.state.apply(build_run(RunKind.PUBLICATION, topic_id, producer, 2, [b"y"]), *HERE, 1000, True, items)
    assert [type(item) for item in items] == [Delivery, Outcome]


def test_too_large_and_ill_formed_publications_are_refused_alike():
    order = Order()
    topic_id = order.open("group:a")
    assert order.say(topic_id, bytes(limits.EVENT_BYTES_DEFAULT + 1)).error == errno.EMSGSIZE
    producer = order.control(control.Open()).value
    run = build_run(RunKind.PUBLICATION, topic_id, producer, 1, [b"x"], properties=b"\x07nonsense")
    items: list[Any] = []
    order.state.apply(run, *HERE, 1000, True, items)
    assert [item.error for item in items] == [errno.EINVAL]


def test_bounds_of_members(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "GROUP_MEMBERS", 2)
    monkeypatch.setattr(limits, "MEMBERSHIPS_PER_NODE", 3)
    order = Order()
    members = [order.join("group:a") for _ in range(2)]
    assert order.control(control.GroupJoin("group:a", 1), THERE).error == errno.ENOMEM
    order.join("group:b")
    assert order.control(control.GroupJoin("group:c", 1)).error == errno.ENOMEM  # of this node
    order.join("group:c", THERE)
    assert order.leave("group:a", members[0]) == 0
    order.join("group:c")


def test_one_more_group_takes_the_place_of_one_that_is_not_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "GROUPS", 3)
    order = Order()
    used = order.open("group:used")
    order.join("group:with members")
    idle = order.open("group:idle")
    order.say(used, b"x")
    order.open("group:new")
    removed, created = order.items
    assert (removed.topic.topic_id, removed.removed) == (idle, True)
    assert (created.topic.name, created.removed) == ("group:new", False)
    assert order.say(idle, b"y").error == errno.EINVAL
    assert order.say(used, b"y").seq == 2
    assert order.open("group:idle") > idle  # ids are never used twice
    order.join("group:used")
    order.join("group:idle")
    assert order.control(control.GroupOpen("group:more")).error == errno.ENOMEM
    assert order.items == []


def test_a_place_is_found_where_all_are_in_use(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "GROUPS", 2)
    order = Order()
    for name in ("group:a", "group:b"):
        order.say(order.open(name), b"x")
    order.open("group:c")
    assert order.items[0].topic.name == "group:a"


def test_the_table_is_the_same_after_a_snapshot(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "GROUPS", 3)
    order = Order()
    first = order.join("group:a")
    order.say(order.open("group:b"), b"x")
    order.join("group:c", THERE)
    order.leave("group:a", first)
    encoded = msgspec.msgpack.encode(state_image(order.state))
    image = msgspec.msgpack.decode(encoded, type=type(state_image(order.state)))
    other = Order(restored_state(image))
    for operand, origin in (
        (control.GroupOpen("group:d"), HERE),
        (control.GroupJoin("group:b", 3), THERE),
        (control.GroupOpen("group:e"), HERE),
    ):
        order.control(operand, origin)
        other.control(operand, origin)
        assert order.items == other.items
    assert order.state.groups.images == other.state.groups.images
    assert order.state.chain == other.state.chain
    assert order.view(HERE) == other.view(HERE)


@pytest.mark.parametrize(
    ("images", "next_id"),
    [
        ([(FIRST_GROUP_ID, "group:a", 0, 0, [])], FIRST_GROUP_ID),  # an id that is still to be given
        ([(16, "group:a", 0, 0, [])], FIRST_GROUP_ID + 1),
        ([(FIRST_GROUP_ID, "a", 0, 0, [])], FIRST_GROUP_ID + 1),
        ([(FIRST_GROUP_ID, "group:a", 1, 2, [])], FIRST_GROUP_ID + 1),
        ([(FIRST_GROUP_ID, "group:a", 2, 0, [(1, 1, 1, 1), (1, 2, 1, 1)])], FIRST_GROUP_ID + 1),
        (
            [(FIRST_GROUP_ID, "group:a", 0, 0, []), (FIRST_GROUP_ID + 1, "group:a", 0, 0, [])],
            FIRST_GROUP_ID + 2,
        ),
        ([(FIRST_GROUP_ID, "group:a", 0, 0, []), (FIRST_GROUP_ID, "group:b", 0, 0, [])], FIRST_GROUP_ID + 2),
        ([], 2**32 + 1),
        ([], 16),
    ],
)
def test_tables_that_cannot_be(images: Any, next_id: int):
    with pytest.raises(MalformedSnapshot):
        GroupTable.of(images, next_id)


def test_the_chain_tells_a_membership_from_another():
    one, other = Order(), Order()
    one.join("group:a")
    other.open("group:a")
    assert one.state.chain != other.state.chain


@pytest.mark.parametrize(
    "operand",
    [
        control.GroupOpen("group:"),
        control.GroupOpen("a"),
        control.GroupOpen("group:\0"),
        control.GroupJoin("group:a", 2**32),
        control.GroupLeave("group:a", 0, LeaveReason.LEFT),
        control.GroupLeave("group:a", 1, LeaveReason.NODE_LEFT),
        control.GroupLeave("group:a", 1, 0),
    ],
)
def test_operands_that_no_node_takes(operand: control.Operand):
    encoded = msgspec.msgpack.encode(operand)
    run = build_run(control.kind_of(operand), 0, 0, 1, [encoded])
    with pytest.raises(MalformedRun):
        control.read_operand(run, read_header(run))
