"""What events of the reserved topics and of groups say, as a subscriber reads it: membership, connectivity, groups,
raw views. The first byte chooses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fuzz.target import Target, well_formed
from ocfcluster.components import connectivity, membership
from ocfcluster.components.connectivity import (
    Address,
    Change,
    Connectivity,
    ConnectivityCode,
    ConnectivityEvent,
    Eligible,
    Interface,
    InterfaceState,
    Link,
    LinkState,
)
from ocfcluster.components.membership import MembershipCode, MembershipEvent, Node
from ocfcluster.components.views import RawEntry, RawMember
from ocfcluster.wire import group
from ocfcluster.wire.event import fold32
from ocfcluster.wire.group import GroupCode, GroupEvent, GroupMember

_MEMBERSHIP, _CONNECTIVITY, _GROUP, _VIEW = range(4)


def check(data: bytes) -> None:
    kind, body = data[0] % 4 if data else 0, data[1:]
    if kind == _MEMBERSHIP:
        read_membership(body)
    elif kind == _CONNECTIVITY:
        read_connectivity(body)
    elif kind == _GROUP:
        read_group(body)
    else:
        entry = well_formed(RawEntry.decode, body)
        assert entry is None or RawEntry.decode(entry.encode()) == entry


def read_membership(body: bytes) -> None:
    event = well_formed(MembershipEvent.decode, body)
    if event is None:
        return
    assert len(event.members) + len(event.joined) + len(event.left) <= 3 * len(body)
    repr(event)
    if all(one.born_on == fold32(one.born_on) for one in (*event.members, *event.joined, *event.left)):
        again = MembershipEvent.decode(event.encode())
        assert again == MembershipEvent(
            event.code, fold32(event.m_sequence), event.members, event.joined, event.left
        )
    assert membership.event_class(event.code) == membership.MEMB_CLASS


def read_connectivity(body: bytes) -> None:
    event = well_formed(ConnectivityEvent.decode, body)
    if event is None:
        return
    repr(event)
    again = event.encode()
    assert again == body
    known = Connectivity()
    known.take(event)
    known.take(event)
    for one in event.interfaces:
        list(map(str, one.addresses))
    connectivity.compare_interfaces(event.interfaces, event.interfaces)
    connectivity.compare_links(event.links, event.links)
    known.forget([event.node_id])


def read_group(body: bytes) -> None:
    event = well_formed(GroupEvent.decode, body)
    group.said_by(body, 7)
    hidden = group.withheld(body)
    if event is None:
        return
    repr(event)
    assert GroupEvent.decode(event.encode()) == event
    if event.code in (GroupCode.CAST, GroupCode.REPLY, GroupCode.SEND):
        assert GroupEvent.decode(hidden).data == b""
        assert GroupEvent.decode(group.said_by(body, 7)).member in (0, 7)


def seeds() -> Iterator[bytes]:
    nodes = (Node(1, 1), Node(2, 1), Node(3, 2))
    for event in (
        MembershipEvent(MembershipCode.NEW_MEMBERSHIP, 2, nodes, nodes[2:], (Node(4, 1),)),
        MembershipEvent(MembershipCode.EVICTED, 2),
    ):
        yield bytes([_MEMBERSHIP]) + event.encode()
    addresses = (Address.of("10.0.0.1", 24), Address.of("fd00::1", 64))
    up = InterfaceState.UP | InterfaceState.CARRIER
    for connected in (
        ConnectivityEvent(
            ConnectivityCode.INTERFACE, 1, 2,
            (Interface(1, "lo", 65536, up), Interface(2, "eth0", 1500, up, addresses, Change.UP)),
        ),
        ConnectivityEvent(ConnectivityCode.ELIGIBLE, 1, eligible=(Eligible(1, 1), Eligible(2, 0, Change.REMOVED))),
        ConnectivityEvent(ConnectivityCode.CONNECT, 1, links=(Link(1, 2, 0, LinkState.HEARS | LinkState.HEARD),)),
    ):  # fmt: skip
        yield bytes([_CONNECTIVITY]) + connected.encode()
    members = (GroupMember(9, 1, 100), GroupMember(17, 2, 0))
    for said in (
        GroupEvent(GroupCode.JOIN, 17, 0, 0, members, members[1:]),
        GroupEvent(GroupCode.LEAVE, 9, 0, 1, members[1:], (), members[:1]),
        GroupEvent(GroupCode.MEMBERS, members=members),
        GroupEvent(GroupCode.CAST, 9, data=b"said"),
        GroupEvent(GroupCode.SEND, 9, 17, 1),
    ):
        yield bytes([_GROUP]) + said.encode()
    raw = RawMember(1, 0x1001, 1, 1)
    yield bytes([_VIEW]) + RawEntry("view", 3, 2, 1, "0" * 32, 1, (raw,), (raw,)).encode()
    yield bytes([_VIEW]) + RawEntry("evicted", 0, 2).encode()


TARGET: Final = Target(
    check,
    seeds,
    ("components/connectivity.py", "components/membership.py", "components/views.py", "wire/group.py"),
)
