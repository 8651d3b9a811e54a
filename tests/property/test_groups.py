"""The data of events of groups: codec ≡ declaration, damage, and what the lists may look like."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocfcluster.errors import Malformed
from ocfcluster.wire import group
from ocfcluster.wire.group import GroupCode, GroupEvent, GroupMember
from ocfcluster.wire.schema.components import GROUP_CHANGE, GROUP_MESSAGE
from tests.property.wire_helpers import damages

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
MEMBERS = st.lists(st.builds(GroupMember, U64, U32, U32), max_size=6).map(tuple)
CHANGES = st.sampled_from([GroupCode.JOIN, GroupCode.LEAVE, GroupCode.MEMBERS])
MESSAGES = st.sampled_from([GroupCode.CAST, GroupCode.REPLY, GroupCode.SEND])


@st.composite
def changes(draw: st.DrawFn) -> GroupEvent:
    """Changes whose youngest member is who joined, as the cluster makes them, and any others."""
    members = draw(MEMBERS)
    youngest = members[draw(st.integers(0, len(members))) :]
    joined = draw(st.just(youngest) | MEMBERS)
    return GroupEvent(draw(CHANGES), draw(U64), draw(U64), draw(U32), members, joined, draw(MEMBERS))


messages = st.builds(GroupEvent, MESSAGES, U64, U64, data=st.binary(max_size=40))


def declared_change(data: bytes, compiled: bool) -> GroupEvent:
    got: Any = GROUP_CHANGE.parse(data, compiled=compiled)

    def part(count: int, at: int) -> tuple[GroupMember, ...]:
        return tuple(GroupMember(one.member, one.node_id, one.pid) for one in got.array[at : at + count])

    return GroupEvent(
        GroupCode(got.code), got.member, got.to, got.reason, part(got.members, got.members_at),
        part(got.joined, got.joined_at), part(got.left, got.left_at),
    )  # fmt: skip


def declared_message(data: bytes, compiled: bool) -> GroupEvent:
    got: Any = GROUP_MESSAGE.parse(data, compiled=compiled)
    return GroupEvent(GroupCode(got.code), got.member, got.to, got.reason, data=got.data)


def declared(data: bytes, compiled: bool) -> GroupEvent:
    try:
        return declared_change(data, compiled)
    except Malformed:
        return declared_message(data, compiled)


@pytest.mark.parametrize("compiled", [False, True])
@given(event=changes())
def test_codec_of_changes_equals_declaration(event: GroupEvent, compiled: bool) -> None:
    data = event.encode()
    assert GroupEvent.decode(data) == event
    assert GroupEvent.decode(memoryview(data)) == event
    assert declared_change(data, compiled) == event
    assert GROUP_CHANGE.build(GROUP_CHANGE.parse(data, compiled=compiled), compiled=compiled) == data


@pytest.mark.parametrize("compiled", [False, True])
@given(event=messages)
def test_codec_of_messages_equals_declaration(event: GroupEvent, compiled: bool) -> None:
    data = event.encode()
    assert data == group.message(event.code, event.member, event.data, event.to)
    assert GroupEvent.decode(data) == event
    assert declared_message(data, compiled) == event
    assert GROUP_MESSAGE.build(GROUP_MESSAGE.parse(data, compiled=compiled), compiled=compiled) == data


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "event",
    [
        GroupEvent(
            GroupCode.LEAVE,
            3,
            0,
            2,
            (GroupMember(1, 1, 10), GroupMember(2, 2, 20)),
            (),
            (GroupMember(3, 3, 30),),
        ),
        GroupEvent(GroupCode.SEND, 1, 2, data=b"abc"),
        GroupEvent(GroupCode.SEND, 1, 2, group.WITHHELD),
    ],
)
def test_damage_is_read_alike_or_refused_alike(event: GroupEvent, compiled: bool) -> None:
    for data in damages(event.encode()):
        try:
            expected: GroupEvent | None = declared(data, compiled)
        except Malformed:
            expected = None
        try:
            got: GroupEvent | None = GroupEvent.decode(data)
        except Malformed:
            got = None
        assert got == expected, data.hex()


@given(event=messages, member=U64)
def test_a_message_is_said_by_whom_it_is_told(event: GroupEvent, member: int) -> None:
    data = group.said_by(event.encode(), member)
    assert len(data) == len(event.encode())
    changed = GroupEvent.decode(data)
    assert changed.member == (member if event.member else 0)
    assert (changed.code, changed.to, changed.data) == (event.code, event.to, event.data)


@given(event=changes())
def test_what_the_cluster_says_is_never_changed(event: GroupEvent) -> None:
    assert group.said_by(event.encode(), 7) == event.encode()


@given(data=st.binary(max_size=23))
def test_what_is_no_message_is_left_alone(data: bytes) -> None:
    assert group.said_by(data, 7) == data
    assert group.withheld(data) == b""


@given(event=messages)
def test_withheld_is_who_and_to_whom(event: GroupEvent) -> None:
    opened = GroupEvent.decode(group.withheld(event.encode()))
    assert opened.withheld
    assert (opened.code, opened.member, opened.to, opened.data) == (event.code, event.member, event.to, b"")


def test_names():
    assert group.group_topic("a") == group.group_topic("group:a") == "group:a"
    assert group.is_group("group:a")
    assert not group.is_group("groups")
