"""C1: connectivity events."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import NamedTuple

from ocfcluster.client import Client, Event, Subscription
from ocfcluster.conformance.context import (
    PATIENCE_S,
    Context,
    expect,
    expect_equal,
    must,
    settles,
)
from ocfcluster.conformance.registry import obligation
from ocfcluster.wire.frames import LOCAL_ID, RecordFlags

TOPIC = "oc.connectivity"
ALIAS = "__OC_EV_CONN_CLASS"
CHANGE_S = 12.0  # for a node to notice, and to tell
CLUSTER_LIMIT_S = 90.0
SUSPICION_MS = 500

# Written out a second time on purpose, from docs/formats.md: what a C program would read.
HEAD = struct.Struct("<4I")  # event, node_id, count, coalesced
INTERFACE = struct.Struct("<IIHHII16s")  # index, mtu, state, change, addresses_at, addresses, name
ADDRESS = struct.Struct("<BBH16s")  # family, prefix length, 0, address
ELIGIBLE_NODE = struct.Struct("<IHH")  # node_id, votes, change
LINK = struct.Struct("<IIHBB")  # hearer, heard, network, state, change
CONN_CLASS = 1
INTERFACES, ELIGIBLE, CONNECT = (CONN_CLASS << 22 | number for number in range(1, 4))
ADDED, REMOVED, UP, FAILED = 1, 2, 4, 8
BOTH = 3  # of a connection's state: it hears, and is heard


class Read(NamedTuple):
    """What the struct in an event's data says; ``rows`` as their layout has the fields."""

    event: int
    node_id: int
    coalesced: int
    rows: list[tuple[int, ...]]
    names: list[bytes]
    addresses: list[tuple[int, int, bytes]]


def _read(event: Event) -> Read:
    data = event.data
    expect(len(data) >= HEAD.size, f"{len(data)} bytes of data")
    code, node_id, count, coalesced = HEAD.unpack_from(data)
    layout = {INTERFACES: INTERFACE, ELIGIBLE: ELIGIBLE_NODE, CONNECT: LINK}.get(code)
    expect(layout is not None, f"the event code {code:#x}")
    assert layout is not None  # noqa: S101 - for the type checker
    end = HEAD.size + count * layout.size
    expect(len(data) >= end, f"{len(data)} bytes for {count} entries")
    rows = list(layout.iter_unpack(data[HEAD.size : end]))
    if code != INTERFACES:
        expect_equal(len(data), end, "bytes of the data")
        return Read(code, node_id, coalesced, rows, [], [])
    expect(not (len(data) - end) % ADDRESS.size, f"{len(data) - end} bytes of addresses")
    addresses = [(family, length, packed) for family, length, _, packed in ADDRESS.iter_unpack(data[end:])]
    return Read(
        code,
        node_id,
        coalesced,
        [row[:-1] for row in rows],
        [row[-1].rstrip(b"\0") for row in rows],
        addresses,
    )


def _next(subscription: Subscription, within_s: float = CHANGE_S) -> Event:
    event = must(subscription.get(timeout=within_s), "the next connectivity event")
    expect(event.notice is None, f"a notice came instead of a connectivity event: {event.notice}")
    return event


def _retained(client: Client, topic: str = TOPIC) -> list[Event]:
    """What a new subscriber gets at once."""
    found = []
    with client.subscribe(topic) as subscription:
        while (event := subscription.get(timeout=0.2)) is not None and RecordFlags.RETAINED in event.flags:
            found.append(event)
    return found


def _places(events: list[Event]) -> list[tuple[int, int, int, bytes]]:
    return [(event.seq, event.ev_id, event.m_sequence, event.data) for event in events]


def _kinds(events: list[Event]) -> list[tuple[int, int]]:
    """Node and kind of what is current; ELIGIBLE is about all nodes."""
    found = [_read(event) for event in events]
    return sorted((0 if one.event == ELIGIBLE else one.node_id, one.event) for one in found)


def _complete(nodes: list[int]) -> list[tuple[int, int]]:
    return sorted([(0, ELIGIBLE), *((node, kind) for node in nodes for kind in (INTERFACES, CONNECT))])


def _members(client: Client) -> list[int]:
    return [int(member["node_id"]) for member in client.members()]


def _current(client: Client, nodes: list[int]) -> list[Event]:
    """What is current, as soon as all ``nodes`` have reported everything."""
    found: list[Event] = []

    def complete() -> bool:
        found[:] = _retained(client)
        return _kinds(found) == _complete(nodes)

    settles(complete)
    expect_equal(_kinds(found), _complete(nodes), "nodes and kinds that a new subscriber hears of")
    return found


def _until(subscription: Subscription, wanted: Callable[[Read], bool], what: str) -> Event:
    """The first event that is ``wanted``; others are passed over."""
    deadline = time.monotonic() + CHANGE_S
    while time.monotonic() < deadline:
        event = _next(subscription, max(0.0, deadline - time.monotonic()))
        if wanted(_read(event)):
            return event
    expect(False, f"{what} was not told")
    raise AssertionError


def _link(read: Read, hearer: int, heard: int) -> tuple[int, int]:
    """State and change of a connection on network 0; (-1, 0) where it is not in the event."""
    for one, other, network, state, change in read.rows if read.event == CONNECT else ():
        if (one, other, network) == (hearer, heard, 0):
            return state, change
    return -1, 0


# --- the data and the current state -------------------------------------------------------------------------------


@obligation("C1")
def the_current_state_comes_at_once(context: Context) -> None:
    """A new subscriber gets what each member last said, retained and under its numbers, the same on every node."""
    client = context.client()
    nodes = _members(client)
    seen = _current(client, nodes)
    expect_equal([event.seq for event in seen], sorted(event.seq for event in seen), "seq of what is current")
    for socket in context.others:
        expect_equal(
            _places(_current(context.client(socket), nodes)), _places(seen), "what is current on another node"
        )
    expect_equal(
        _places(_retained(client, ALIAS)), _places(seen), "what comes under draft 0.3's class string"
    )


@obligation("C1")
def interfaces_have_state_and_addresses(context: Context) -> None:
    """INTERFACE names the node's interfaces, each with its state and addresses: loopback is up and has 127.0.0.1."""
    client = context.client()
    found = [_read(event) for event in _current(client, _members(client))]
    (own,) = [one for one in found if one.event == INTERFACES and one.node_id == client.node_id]
    at = own.names.index(b"lo")
    _, mtu, state, _, first, many = own.rows[at]
    expect(mtu > 0 and state & 7 == 7, f"mtu {mtu} and state {state:#x} of loopback")
    addresses = own.addresses[first : first + many]
    expect((4, 8, b"\x7f\0\0\1" + bytes(12)) in addresses, f"loopback has {addresses}")
    expect_equal(sum(row[5] for row in own.rows), len(own.addresses), "addresses of all interfaces")


@obligation("C1")
def everybody_hears_everybody(context: Context) -> None:
    """CONNECT of all nodes together says who hears whom, for all pairs; ELIGIBLE is the node table."""
    context.other_sockets()
    client = context.client()
    nodes = _members(client)
    found = [_read(event) for event in _current(client, nodes)]
    pairs = {row[:2]: row[3] for one in found if one.event == CONNECT for row in one.rows}
    wanted = {(one, other): BOTH for one in nodes for other in nodes if one != other}
    expect_equal(pairs, wanted, "who hears whom")
    (table,) = [one.rows for one in found if one.event == ELIGIBLE]
    in_force = {int(node): votes for node, votes in client.status()["table"].items()}
    expect_equal({row[0]: row[1] for row in table}, in_force, "eligible nodes and their votes")


@obligation("C1")
def connectivity_is_declared_with_construct(context: Context) -> None:
    """The declarations in construct read the data of each kind of event, and build the same bytes."""
    from ocfcluster.wire.schema import components as schema

    declared = {INTERFACES: schema.INTERFACES, ELIGIBLE: schema.ELIGIBLE, CONNECT: schema.CONNECT}
    client = context.client()
    for event in _current(client, _members(client)):
        code = int.from_bytes(event.data[:4], "little")
        expect_equal(
            (code >> 22, code & 0x3FFFFF in (1, 2, 3)), (CONN_CLASS, True), "class and event of the code"
        )
        form = declared[code]
        expect_equal(form.build(form.parse(event.data)), event.data, "the data built by the declaration")


# --- changes ------------------------------------------------------------------------------------------------------


@obligation("C1", time_limit_s=CLUSTER_LIMIT_S)
def connections_are_told_as_they_change(context: Context) -> None:
    """A node that dies and comes back: the others tell that the connection is lost, then established, in one order."""
    with context.own_cluster(3, SUSPICION_MS) as cluster:
        clients = [context.client(cluster.socket(i)) for i in (1, 2)]
        for client in clients:
            _current(client, [1, 2, 3])
        subscriptions = [client.subscribe(TOPIC) for client in clients]
        cluster.kill(3)
        lost = [_lost_twice(one) for one in subscriptions]
        expect_equal(_places(lost[0]), _places(lost[1]), "the loss as two nodes are told it")
        expect_equal(
            sorted(event.node_id for event in lost[0]), [1, 2], "who tells that the connection is lost"
        )
        cluster.start(3)
        back = [
            _until(
                one, lambda read: _link(read, 1, 3)[0] == BOTH and _link(read, 1, 3)[1] & UP > 0, "1-3 again"
            )
            for one in subscriptions
        ]
        expect_equal(_places(back[:1]), _places(back[1:]), "the connection as two nodes are told it")
        _current(clients[0], [1, 2, 3])
        _current(context.client(cluster.socket(3)), [1, 2, 3])


def _lost_twice(subscription: Subscription) -> list[Event]:
    """The events in which nodes 1 and 2 tell that they have lost node 3, in their order."""

    def lost(read: Read) -> bool:
        return read.node_id not in seen and _link(read, read.node_id, 3) in ((0, FAILED), (0, REMOVED))

    seen: list[int] = []
    found = []
    for _ in range(2):
        event = _until(subscription, lost, "the loss of node 3")
        seen.append(event.node_id)
        found.append(event)
    return found


@obligation("C1", time_limit_s=CLUSTER_LIMIT_S)
def eligibility_is_told_as_it_changes(context: Context) -> None:
    """A node that is added to the table and removed again: one event each, in which it is marked."""
    with context.own_cluster(1, SUSPICION_MS) as cluster:
        client = context.client(cluster.socket(1))
        _current(client, [1])
        with client.subscribe(TOPIC) as subscription:
            client.admin.add_node(4, votes=0, timeout=PATIENCE_S)
            added = _read(_until(subscription, lambda read: read.event == ELIGIBLE and _new(read), "node 4"))
            expect_equal(added.rows, [(1, 1, 0), (4, 0, ADDED)], "eligible nodes with node 4")
            client.admin.remove_node(4, timeout=PATIENCE_S)
            removed = _read(
                _until(subscription, lambda read: read.event == ELIGIBLE and _new(read), "its removal")
            )
            expect_equal(removed.rows, [(1, 1, 0), (4, 0, REMOVED)], "eligible nodes without node 4")


def _new(read: Read) -> bool:
    return any(row[-1] for row in read.rows if row[0] != 1)


@obligation("C1", time_limit_s=CLUSTER_LIMIT_S)
def a_minority_hears_of_its_own(context: Context) -> None:
    """A node that has lost the others still tells its own subscribers, also late ones: local, without a seq."""
    with context.own_cluster(3, SUSPICION_MS) as cluster:
        client = context.client(cluster.socket(1))
        last = _current(client, [1, 2, 3])[-1].seq
        with client.subscribe(TOPIC) as subscription:
            for other in (2, 3):
                cluster.pause(other)
            event = _until(
                subscription,
                lambda read: [_link(read, 1, other)[0] for other in (2, 3)] == [0, 0],
                "that both connections are lost",
            )
            expect(event.local and event.ev_id & LOCAL_ID, f"it is not marked local: ev_id {event.ev_id:#x}")
            expect(event.seq >= last, f"its seq is {event.seq}, after {last}")
            before = event.seq
            late = [one for one in _retained(client) if one.local and _read(one).event == CONNECT]
            expect_equal(_places(late), _places([event]), "the local event for a late subscriber")
            for other in (2, 3):
                cluster.go_on(other)
            back = _until(subscription, lambda read: _link(read, 1, 2)[0] == BOTH, "the connection again")
            while back.local:  # it may be heard again before there is a majority again
                back = _until(
                    subscription, lambda read: _link(read, 1, 2)[0] == BOTH, "the connection, to all"
                )
            expect(back.seq > before, f"it came as seq {back.seq}, after {before}")
            expect(settles(lambda: not any(one.local for one in _retained(client))), "what was local goes on")
