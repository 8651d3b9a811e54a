"""The data of membership events: codec ≡ declaration, damage, and what the lists may look like."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocfcluster.components.membership import MembershipCode, MembershipEvent, Node
from ocfcluster.errors import Malformed
from ocfcluster.wire.event import fold32
from ocfcluster.wire.schema.components import MEMBERSHIP
from tests.property.wire_helpers import damages

IDS = st.integers(1, 2**32 - 1)
GENERATIONS = st.integers(1, 2**31 - 1)
NODES = st.lists(st.builds(Node, IDS, GENERATIONS), max_size=6).map(tuple)
CODES = st.sampled_from([code for code in MembershipCode if code is not MembershipCode.INVALID])


@st.composite
def events(draw: st.DrawFn) -> MembershipEvent:
    """Events whose youngest members are those that joined, as the cluster makes them, and any others."""
    members = draw(NODES)
    youngest = members[draw(st.integers(0, len(members))) :]
    joined = draw(st.just(youngest) | NODES)
    return MembershipEvent(draw(CODES), draw(GENERATIONS), members, joined, draw(NODES))


def declared(data: bytes, compiled: bool) -> MembershipEvent:
    got: Any = MEMBERSHIP.parse(data, compiled=compiled)

    def part(count: int, at: int) -> tuple[Node, ...]:
        return tuple(Node(one.node_id, one.born_on) for one in got.array[at : at + count])

    return MembershipEvent(
        MembershipCode(got.code), got.m_sequence, part(got.members, got.members_at),
        part(got.joined, got.joined_at), part(got.left, got.left_at),
    )  # fmt: skip


@pytest.mark.parametrize("compiled", [False, True])
@given(event=events())
def test_codec_equals_declaration(event: MembershipEvent, compiled: bool) -> None:
    data = event.encode()
    assert MembershipEvent.decode(data) == event
    assert MembershipEvent.decode(memoryview(data)) == event
    assert declared(data, compiled) == event
    assert MEMBERSHIP.build(MEMBERSHIP.parse(data, compiled=compiled), compiled=compiled) == data


@pytest.mark.parametrize("compiled", [False, True])
def test_damage_is_read_alike_or_refused_alike(compiled: bool) -> None:
    event = MembershipEvent(
        MembershipCode.NEW_MEMBERSHIP, 3, (Node(1, 1), Node(2, 3)), (Node(2, 3),), (Node(2, 1),)
    )
    for data in damages(event.encode()):
        try:
            expected: MembershipEvent | None = declared(data, compiled)
        except Malformed:
            expected = None
        try:
            got: MembershipEvent | None = MembershipEvent.decode(data)
        except Malformed:
            got = None
        assert got == expected, data.hex()


@given(NODES, NODES)
def test_lists_are_where_the_drafts_struct_says(members: tuple[Node, ...], left: tuple[Node, ...]) -> None:
    joined = members[-1:]
    data = MembershipEvent(MembershipCode.NEW_MEMBERSHIP, 7, members, joined, left).encode()
    head = struct.unpack_from("<8I", data)
    assert head[0] >> 22 == 2
    assert head[0] & 0x3FFFFF == 1
    assert head[1] == 7
    array = list(struct.iter_unpack("<II", data[32:]))
    assert len(array) == len(members) + len(left)  # a union: who joined is not listed twice
    for count, at, expected in ((*head[2:4], members), (*head[4:6], left), (*head[6:8], joined)):
        assert array[at : at + count] == list(map(tuple, expected))
        assert count or not at


@given(st.integers(2**31, 2**63))
def test_generations_beyond_32_bits_are_folded(m_sequence: int) -> None:
    event = MembershipEvent(MembershipCode.NEW_MEMBERSHIP, m_sequence, (Node(1, m_sequence),))
    read = MembershipEvent.decode(event.encode())
    assert (read.m_sequence, read.members[0].born_on) == (fold32(m_sequence), fold32(m_sequence))
