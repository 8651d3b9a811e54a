"""The data of connectivity events: codec ≡ declaration, damage, and what counts as a change."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocfcluster.components.connectivity import (
    Address,
    Change,
    ConnectivityCode,
    ConnectivityEvent,
    Eligible,
    Interface,
    InterfaceState,
    Link,
    LinkState,
    compare_eligible,
    compare_interfaces,
    compare_links,
)
from ocfcluster.errors import Malformed
from ocfcluster.wire.schema import components as schema
from ocfcluster.wire.schema.format import Format
from tests.property.wire_helpers import damages

U32 = st.integers(0, 2**32 - 1)
IDS = st.integers(1, 2**32 - 1)
CHANGES = st.integers(0, 0x3F).map(Change)
STATES = st.integers(0, 0x1F).map(InterfaceState)
LINK_STATES = st.integers(0, 3).map(LinkState)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=15).filter(
    lambda name: len(name.encode()) <= 15
)
FOUR = st.builds(Address, st.just(4), st.integers(0, 32), st.binary(min_size=4, max_size=4))
SIX = st.builds(Address, st.just(6), st.integers(0, 128), st.binary(min_size=16, max_size=16))
ADDRESSES = st.lists(FOUR | SIX, max_size=3).map(tuple)
INTERFACES = st.lists(st.builds(Interface, U32, NAMES, U32, STATES, ADDRESSES, CHANGES), max_size=4).map(
    tuple
)
NODES = st.lists(st.builds(Eligible, U32, st.integers(0, 65535), CHANGES), max_size=5).map(tuple)
LINKS = st.lists(
    st.builds(Link, U32, U32, st.integers(0, 65535), LINK_STATES, CHANGES), max_size=5
).map(tuple)  # fmt: skip
EVENTS = st.one_of(
    st.builds(ConnectivityEvent, st.just(ConnectivityCode.INTERFACE), IDS, U32, interfaces=INTERFACES),
    st.builds(ConnectivityEvent, st.just(ConnectivityCode.ELIGIBLE), IDS, U32, eligible=NODES),
    st.builds(ConnectivityEvent, st.just(ConnectivityCode.CONNECT), IDS, U32, links=LINKS),
)
FORMATS = {
    int(ConnectivityCode.INTERFACE): schema.INTERFACES,
    int(ConnectivityCode.ELIGIBLE): schema.ELIGIBLE,
    int(ConnectivityCode.CONNECT): schema.CONNECT,
}


def format_of(data: bytes) -> Format:
    """The declaration that an event's code names; any of them refuses other codes."""
    code = int.from_bytes(data[:4], "little") if len(data) >= 4 else 0
    return FORMATS.get(code, schema.CONNECT)


def declared(data: bytes, compiled: bool) -> ConnectivityEvent:
    got: Any = format_of(data).parse(data, compiled=compiled)
    code = ConnectivityCode(got.code)
    if code is ConnectivityCode.INTERFACE:
        interfaces = tuple(
            Interface(
                one.index, one.name.rstrip(b"\0").decode(), one.mtu, InterfaceState(one.state),
                tuple(
                    Address(a.family, a.prefix_length, a.address[: 4 if a.family == 4 else 16])
                    for a in got.array[one.addresses_at : one.addresses_at + one.addresses]
                ),
                Change(one.change),
            )
            for one in got.interfaces
        )  # fmt: skip
        return ConnectivityEvent(code, got.node_id, got.coalesced, interfaces=interfaces)
    if code is ConnectivityCode.ELIGIBLE:
        nodes = tuple(Eligible(one.node_id, one.votes, Change(one.change)) for one in got.array)
        return ConnectivityEvent(code, got.node_id, got.coalesced, eligible=nodes)
    links = tuple(
        Link(one.hearer, one.heard, one.network, LinkState(one.state), Change(one.change))
        for one in got.array
    )
    return ConnectivityEvent(code, got.node_id, got.coalesced, links=links)


@pytest.mark.parametrize("compiled", [False, True])
@given(event=EVENTS)
def test_codec_equals_declaration(event: ConnectivityEvent, compiled: bool) -> None:
    data = event.encode()
    assert ConnectivityEvent.decode(data) == event
    assert ConnectivityEvent.decode(memoryview(data)) == event
    assert declared(data, compiled) == event
    form = format_of(data)
    assert form.build(form.parse(data, compiled=compiled), compiled=compiled) == data


SAMPLES = (
    ConnectivityEvent(
        ConnectivityCode.INTERFACE, 1, 2,
        interfaces=(
            Interface(1, "lo", 65536, InterfaceState(7), (Address.of("127.0.0.1", 8), Address.of("::1", 128))),
            Interface(2, "eth0", 1500, InterfaceState(3), (Address.of("10.0.0.1", 24),), Change.UP),
        ),
    ),
    ConnectivityEvent(
        ConnectivityCode.ELIGIBLE, 1, eligible=(Eligible(1, 1), Eligible(2, 0, Change.REMOVED))
    ),
    ConnectivityEvent(
        ConnectivityCode.CONNECT, 3, links=(Link(3, 1, 0, LinkState(3)), Link(3, 2, 0, LinkState(1), Change.FAILED))
    ),
)  # fmt: skip


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("event", SAMPLES, ids=lambda event: event.code.name)
def test_damage_is_read_alike_or_refused_alike(event: ConnectivityEvent, compiled: bool) -> None:
    for data in damages(event.encode()):
        try:
            expected: ConnectivityEvent | None = declared(data, compiled)
        except Malformed:
            expected = None
        try:
            got: ConnectivityEvent | None = ConnectivityEvent.decode(data)
        except Malformed:
            got = None
        assert got == expected, data.hex()


def test_fields_are_where_formats_md_says() -> None:
    data = SAMPLES[0].encode()
    assert struct.unpack_from("<4I", data) == (1 << 22 | 1, 1, 2, 2)
    assert struct.unpack_from("<IIHHII16s", data, 16 + 36) == (
        2, 1500, 3, int(Change.UP), 2, 1, b"eth0" + bytes(12),
    )  # fmt: skip
    assert data[16 + 72 :][40:60] == bytes([4, 24, 0, 0, 10, 0, 0, 1]) + bytes(12)
    assert struct.unpack_from("<IHHIHH", SAMPLES[1].encode(), 16) == (1, 1, 0, 2, 0, 2)
    assert struct.unpack_from("<IIHBB", SAMPLES[2].encode(), 28) == (3, 2, 0, 1, 8)


# --- what counts as a change ------------------------------------------------------------------------------------------

LO = Interface(1, "lo", 65536, InterfaceState(7), (Address.of("127.0.0.1", 8),))
ETH = Interface(2, "eth0", 1500, InterfaceState.UP | InterfaceState.CARRIER, (Address.of("10.0.0.1", 24),))


@pytest.mark.parametrize(
    ("now", "change"),
    [
        (ETH, Change.NONE),
        (ETH._replace(state=InterfaceState.UP), Change.FAILED),
        (ETH._replace(state=InterfaceState.CARRIER), Change.FAILED),
        (ETH._replace(addresses=()), Change.ADDRESSES),
        (ETH._replace(addresses=(Address.of("10.0.0.2", 24),)), Change.ADDRESSES),
        (ETH._replace(mtu=9000), Change.OTHER),
        (ETH._replace(state=ETH.state | InterfaceState.MULTICAST), Change.OTHER),
        (ETH._replace(state=InterfaceState.NONE, addresses=()), Change.FAILED | Change.ADDRESSES),
        (ETH._replace(index=3), Change.ADDED),
        (ETH._replace(name="eth1"), Change.ADDED),
    ],
)
def test_changes_of_an_interface(now: Interface, change: Change) -> None:
    found = compare_interfaces((LO, ETH), (LO, now))
    assert found[:2] == (LO, now._replace(change=change))
    gone = [one for one in found if one.change & Change.REMOVED]
    assert bool(gone) == (change is Change.ADDED)
    assert all(one[:2] == ETH[:2] and not one.addresses and not one.healthy for one in gone)


def test_an_interface_that_comes_up_again() -> None:
    down = ETH._replace(state=InterfaceState.UP)
    assert compare_interfaces((down,), (ETH,)) == (ETH._replace(change=Change.UP),)


def test_what_was_removed_is_told_once() -> None:
    told = compare_interfaces((LO, ETH), (LO,))
    assert told[1].change is Change.REMOVED
    assert compare_interfaces(told, (LO,)) == (LO,)
    assert compare_interfaces(told, (LO, ETH))[1].change is Change.ADDED


def test_changes_of_eligibility() -> None:
    before = compare_eligible((), {1: 1, 2: 1, 3: 1})
    assert [one.change for one in before] == [Change.ADDED] * 3
    now = compare_eligible(before, {2: 1, 3: 2, 4: 1})
    assert [one.change for one in now] == [Change.REMOVED, Change.NONE, Change.OTHER, Change.ADDED]
    assert compare_eligible(now, {2: 1, 3: 2, 4: 1}) == (Eligible(2, 1), Eligible(3, 2), Eligible(4, 1))


def test_changes_of_connections() -> None:
    both = LinkState.HEARS | LinkState.HEARD
    first = compare_links((), (Link(1, 2, 0, both), Link(1, 3, 0, LinkState.NONE)))
    assert [one.change for one in first] == [Change.ADDED | Change.UP, Change.ADDED]
    lost = compare_links(first, (Link(1, 2, 0, LinkState.HEARS), Link(1, 3, 0, LinkState.HEARS)))
    assert [one.change for one in lost] == [Change.FAILED, Change.OTHER]
    back = compare_links(lost, (Link(1, 2, 0, both), Link(1, 2, 1, both)))
    assert [(one[:3], one.change) for one in back] == [
        ((1, 2, 0), Change.UP), ((1, 2, 1), Change.ADDED | Change.UP), ((1, 3, 0), Change.REMOVED),
    ]  # fmt: skip
