"""The data of events on ``oc.connectivity``: what a node says of its interfaces, of eligibility, and whom it hears.

>>> from ocfcluster.components.connectivity import ConnectivityEvent
>>> event = subscription.get()                                      # doctest: +SKIP
>>> ConnectivityEvent.decode(event.data)                            # doctest: +SKIP
<ConnectivityEvent CONNECT of node 1: 1-2, 1-3 lost>

Each event holds the whole state of its kind, with what has changed marked in it: who has the last one of a node and
kind needs none before it. Draft 0.3 names the codes and leaves the structure open; the normative declarations are
``schema.INTERFACES``, ``schema.ELIGIBLE`` and ``schema.CONNECT``; docs/formats.md has the byte offsets.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple, TypeVar

import msgspec

from ocfcluster.components.membership import EVENT_BITS
from ocfcluster.errors import Malformed
from ocfcluster.limits import INTERFACE_NAME_BYTES

TOPIC: Final = "oc.connectivity"
CONN_CLASS: Final = 1  # OC_EV_CONN_CLASS

_HEAD: Final = struct.Struct("<4I")  # code, node_id, count, coalesced
_INTERFACE: Final = struct.Struct("<IIHHII16s")  # index, mtu, state, change, addresses_at, addresses, name
_ADDRESS: Final = struct.Struct("<BBH16s")  # family, prefix_length, 0, address
_NODE: Final = struct.Struct("<IHH")  # node_id, votes, change
_LINK: Final = struct.Struct("<IIHBB")  # hearer, heard, network, state, change
_ADDRESS_BYTES: Final = {4: 4, 6: 16}
Flags = TypeVar("Flags", bound=IntFlag)


class ConnectivityCode(IntEnum):
    """The drafts' ``oc_conn_event_t``, with the class in the upper bits as events carry it."""

    INVALID = CONN_CLASS << EVENT_BITS
    INTERFACE = INVALID + 1
    ELIGIBLE = INVALID + 2
    CONNECT = INVALID + 3


class Change(IntFlag):
    """What is new since the node's last event of the same kind."""

    NONE = 0
    ADDED = 1  # an interface or node that was not there
    REMOVED = 2  # it is in this event for the last time
    UP = 4  # an interface that carries traffic now; a connection that is established now
    FAILED = 8  # an interface that carries none any more; a connection that is lost
    ADDRESSES = 16  # of an interface
    OTHER = 32  # mtu or flags of an interface; votes of a node; one direction of a connection


class InterfaceState(IntFlag):
    """What an interface is; it carries traffic (``Interface.healthy``) with both UP and CARRIER."""

    NONE = 0
    UP = 1  # an administrator wants it up
    CARRIER = 2  # there is a cable, and something at its other end
    LOOPBACK = 4
    MULTICAST = 8
    CLUSTER = 16  # the agents talk over it


class LinkState(IntFlag):
    """What the hearer knows; the connection is established (``Link.established``) with both."""

    NONE = 0
    HEARS = 1  # ``hearer`` hears ``heard``
    HEARD = 2  # ``heard`` says that it hears ``hearer``


_KNOWN: Final[dict[type[IntFlag], int]] = {
    kind: sum(int(one) for one in kind) for kind in (Change, InterfaceState, LinkState)
}


class Address(NamedTuple):
    """An address of an interface: ``family`` is 4 or 6, ``packed`` has 4 or 16 bytes."""

    family: int
    prefix_length: int
    packed: bytes

    @classmethod
    def of(cls, text: str, prefix_length: int) -> Address:
        """From "10.0.0.1" or "fd00::1". Raises ValueError."""
        address = ipaddress.ip_address(text)
        return cls(address.version, prefix_length, address.packed)

    def __str__(self) -> str:
        return f"{ipaddress.ip_address(self.packed)}/{self.prefix_length}"


class Interface(NamedTuple):
    """A network interface of the reporting node."""

    index: int  # type: ignore[assignment]  # the kernel's; hides tuple.index
    name: str
    mtu: int
    state: InterfaceState
    addresses: tuple[Address, ...] = ()
    change: Change = Change.NONE

    @property
    def healthy(self) -> bool:
        both = InterfaceState.UP | InterfaceState.CARRIER
        return self.state & both == both


class Eligible(NamedTuple):
    """A node of the node table, with its votes; one with the change REMOVED is no longer in it."""

    node_id: int
    votes: int
    change: Change = Change.NONE


class Link(NamedTuple):
    """Whether ``hearer`` hears ``heard``, on one network of the cluster."""

    hearer: int
    heard: int
    network: int
    state: LinkState
    change: Change = Change.NONE

    @property
    def established(self) -> bool:
        both = LinkState.HEARS | LinkState.HEARD
        return self.state & both == both


class ConnectivityEvent(msgspec.Struct, frozen=True):
    """One event of ``oc.connectivity``, opened: what node ``node_id`` says.

    INTERFACE fills ``interfaces``, ELIGIBLE ``eligible`` and CONNECT ``links``. ``coalesced`` counts changes that were
    not told one by one before this event, because they came too quickly or cancelled each other.
    """

    code: ConnectivityCode
    node_id: int
    coalesced: int = 0
    interfaces: tuple[Interface, ...] = ()
    eligible: tuple[Eligible, ...] = ()
    links: tuple[Link, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether anything differs from the node's last event of this kind; else it is said again for newcomers."""
        parts: tuple[Sequence[Interface | Eligible | Link], ...] = (
            self.interfaces,
            self.eligible,
            self.links,
        )
        return bool(self.coalesced) or any(one.change for part in parts for one in part)

    def encode(self) -> bytes:
        """The event's data."""
        if self.code is ConnectivityCode.INTERFACE:
            body, count = _encode_interfaces(self.interfaces), len(self.interfaces)
        elif self.code is ConnectivityCode.ELIGIBLE:
            body, count = b"".join(_NODE.pack(*one) for one in self.eligible), len(self.eligible)
        else:
            body, count = b"".join(_LINK.pack(*one) for one in self.links), len(self.links)
        return _HEAD.pack(self.code, self.node_id, count, min(self.coalesced, 0xFFFF_FFFF)) + body

    @classmethod
    def decode(cls, data: bytes | memoryview) -> ConnectivityEvent:
        """What an event's data says. Raises Malformed."""
        if len(data) < _HEAD.size:
            raise Malformed(f"{len(data)} bytes are no connectivity event")
        code, node_id, count, coalesced = _HEAD.unpack_from(data)
        body = bytes(data[_HEAD.size :])
        if not node_id:
            raise Malformed("a connectivity event of node 0")
        if code == ConnectivityCode.INTERFACE:
            return cls(ConnectivityCode.INTERFACE, node_id, coalesced, interfaces=_interfaces(body, count))
        if code == ConnectivityCode.ELIGIBLE:
            _exactly(body, count, _NODE, "nodes")
            nodes = tuple(
                Eligible(one, votes, _flags(Change, change)) for one, votes, change in _NODE.iter_unpack(body)
            )
            return cls(ConnectivityCode.ELIGIBLE, node_id, coalesced, eligible=nodes)
        if code == ConnectivityCode.CONNECT:
            _exactly(body, count, _LINK, "connections")
            links = tuple(
                Link(hearer, heard, network, _flags(LinkState, state), _flags(Change, change))
                for hearer, heard, network, state, change in _LINK.iter_unpack(body)
            )
            return cls(ConnectivityCode.CONNECT, node_id, coalesced, links=links)
        raise Malformed(f"a connectivity event with code {code:#x}, not one of this version")

    def __repr__(self) -> str:
        words = [f"{one.name} {_word(one.change, one.healthy, 'up', 'down')}" for one in self.interfaces]
        words += [
            f"{one.node_id}{' removed' if one.change & Change.REMOVED else ''}" for one in self.eligible
        ]
        words += [f"{one.hearer}-{one.heard}{'' if one.established else ' lost'}" for one in self.links]
        return f"<ConnectivityEvent {self.code.name} of node {self.node_id}: {', '.join(words) or 'nothing'}>"


def _word(change: Change, good: bool, yes: str, no: str) -> str:
    if change & Change.REMOVED:
        return "removed"
    return yes if good else no


class Connectivity:
    """What a subscriber knows after the events so far: ``take`` each of them, the retained ones first.

    ``interfaces`` by node, ``eligible`` nodes with their votes, and ``links`` by (hearer, heard, network).
    """

    def __init__(self) -> None:
        self.interfaces: dict[int, tuple[Interface, ...]] = {}
        self.eligible: dict[int, int] = {}
        self.links: dict[tuple[int, int, int], Link] = {}

    def take(self, event: ConnectivityEvent) -> None:
        """The event replaces what was known of its node and kind."""
        if event.code is ConnectivityCode.INTERFACE:
            present = tuple(one for one in event.interfaces if not one.change & Change.REMOVED)
            self.interfaces[event.node_id] = present
        elif event.code is ConnectivityCode.ELIGIBLE:
            self.eligible = {
                one.node_id: one.votes for one in event.eligible if not one.change & Change.REMOVED
            }
        else:
            told = {one.hearer for one in event.links} | {event.node_id}
            self.links = {key: one for key, one in self.links.items() if key[0] not in told}
            self.links |= {one[:3]: one for one in event.links if not one.change & Change.REMOVED}

    def forget(self, nodes: Iterable[int]) -> None:
        """Nodes that are no members any more: what they said of themselves is old."""
        for node_id in nodes:
            self.interfaces.pop(node_id, None)
            self.links = {key: one for key, one in self.links.items() if key[0] != node_id}


# --- what differs -----------------------------------------------------------------------------------------------------


def compare_interfaces(before: Iterable[Interface], now: Iterable[Interface]) -> tuple[Interface, ...]:
    """``now`` with its changes marked, and behind it what is gone. An interface is known by index and name."""
    known = {(one.index, one.name): one for one in before if not one.change & Change.REMOVED}
    found = []
    for one in now:
        old = known.pop((one.index, one.name), None)
        found.append(one._replace(change=Change.ADDED if old is None else _interface_change(old, one)))
    gone = [
        one._replace(state=InterfaceState.NONE, addresses=(), change=Change.REMOVED) for one in known.values()
    ]
    return (*found, *gone)


def _interface_change(old: Interface, new: Interface) -> Change:
    change = Change.NONE
    if old.healthy != new.healthy:
        change |= Change.UP if new.healthy else Change.FAILED
    if set(old.addresses) != set(new.addresses):
        change |= Change.ADDRESSES
    if old.mtu != new.mtu or (old.state != new.state and old.healthy == new.healthy):
        change |= Change.OTHER
    return change


def compare_eligible(before: Iterable[Eligible], table: Mapping[int, int]) -> tuple[Eligible, ...]:
    """The node table (node_id → votes) by node_id, with what differs from ``before`` marked in it."""
    known = {one.node_id: one.votes for one in before if not one.change & Change.REMOVED}
    found = []
    for node_id in sorted({*table, *known}):
        if node_id not in table:
            found.append(Eligible(node_id, 0, Change.REMOVED))
        elif node_id not in known:
            found.append(Eligible(node_id, table[node_id], Change.ADDED))
        else:
            changed = Change.NONE if known[node_id] == table[node_id] else Change.OTHER
            found.append(Eligible(node_id, table[node_id], changed))
    return tuple(found)


def compare_links(before: Iterable[Link], now: Iterable[Link]) -> tuple[Link, ...]:
    """``now`` with its changes marked, and behind it the connections to nodes that are not known any more."""
    known = {one[:3]: one for one in before if not one.change & Change.REMOVED}
    found = []
    for one in now:
        old = known.pop(one[:3], None)
        if old is None:
            change = Change.ADDED | (Change.UP if one.established else Change.NONE)
        elif old.established != one.established:
            change = Change.UP if one.established else Change.FAILED
        else:
            change = Change.NONE if old.state == one.state else Change.OTHER
        found.append(one._replace(change=change))
    return (*found, *(one._replace(state=LinkState.NONE, change=Change.REMOVED) for one in known.values()))


# --- bytes ------------------------------------------------------------------------------------------------------------


def _encode_interfaces(interfaces: Sequence[Interface]) -> bytes:
    rows: list[bytes] = []
    addresses: list[bytes] = []
    for one in interfaces:
        name = one.name.encode("utf-8", "replace")[:INTERFACE_NAME_BYTES]
        rows.append(
            _INTERFACE.pack(
                one.index, one.mtu, one.state, one.change, len(addresses), len(one.addresses), name
            )
        )
        addresses += [_ADDRESS.pack(family, length, 0, packed) for family, length, packed in one.addresses]
    return b"".join((*rows, *addresses))


def _interfaces(body: bytes, count: int) -> tuple[Interface, ...]:
    begin = count * _INTERFACE.size
    if len(body) < begin or (len(body) - begin) % _ADDRESS.size:
        raise Malformed(f"{len(body)} bytes do not hold {count} interfaces and their addresses")
    addresses = [_address(*fields) for fields in _ADDRESS.iter_unpack(body[begin:])]
    found = []
    at = 0
    for index, mtu, state, change, first, many, name in _INTERFACE.iter_unpack(body[:begin]):
        if first != at or at + many > len(addresses):
            raise Malformed("the addresses of an interface are not behind those of the one before it")
        at += many
        found.append(
            Interface(
                index, _name(name), mtu, _flags(InterfaceState, state), tuple(addresses[first:at]),
                _flags(Change, change),
            )
        )  # fmt: skip
    if at != len(addresses):
        raise Malformed("addresses that belong to no interface")
    return tuple(found)


def _address(family: int, prefix_length: int, zero: int, field: bytes) -> Address:
    size = _ADDRESS_BYTES.get(family, 0)
    if not size or zero or prefix_length > 8 * size or any(field[size:]):
        raise Malformed(f"an address of family {family} with prefix length {prefix_length}")
    return Address(family, prefix_length, field[:size])


def _name(field: bytes) -> str:
    name = field.rstrip(b"\0")
    try:
        if name and b"\0" not in name and len(name) <= INTERFACE_NAME_BYTES:
            return name.decode()
    except UnicodeDecodeError:
        pass
    raise Malformed(f"an interface of the name {field!r}")


def _exactly(body: bytes, count: int, layout: struct.Struct, what: str) -> None:
    if len(body) != count * layout.size:
        raise Malformed(f"{len(body)} bytes do not hold {count} {what}")


def _flags(kind: type[Flags], value: int) -> Flags:
    if value & ~_KNOWN[kind]:
        raise Malformed(f"{kind.__name__} {value:#x}, not of this version")
    return kind(value)
