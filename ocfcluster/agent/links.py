"""Who was heard on which network, and when: for the status, and for whoever tells programs about connections."""

from __future__ import annotations

from typing import Any

from ocfcluster.agent.config import AgentConfig
from ocfcluster.agent.node_api import NodeApi
from ocfcluster.components.connectivity import Link as Connection
from ocfcluster.components.connectivity import LinkState
from ocfcluster.limits import MILLISECOND_NS
from ocfcluster.net.redundant import Absent, Link, RedundantTransport
from ocfcluster.net.transport import Transport
from ocfcluster.protocol.report import LinkReport


def links(config: AgentConfig, node: NodeApi, transport: Transport) -> list[Link]:
    """What was heard of every other node on every network, by node_id and then in the order of the networks; of each
    node the incarnation that was heard last. A node that was never heard on a network has no link there."""
    if isinstance(transport, RedundantTransport):
        known = transport.links()
    else:
        name = config.network.all()[0].name
        known = [Link(node_id, number, name, address, at) for node_id, number, address, at in node.heard()]
    newest: dict[int, Link] = {}
    for link in known:
        if link.node_id not in newest or link.heard_at > newest[link.node_id].heard_at:
            newest[link.node_id] = link
    place = {one.name: number for number, one in enumerate(config.network.all())}
    return sorted(
        (link for link in known if link.incarnation == newest[link.node_id].incarnation),
        key=lambda link: (link.node_id, place[link.network]),
    )


def connections(
    config: AgentConfig, reports: list[LinkReport], heard: list[Link], suspicion_ns: int, now: int
) -> tuple[Connection, ...]:
    """Who hears whom, as events of oc.connectivity have it: the node's own row per network, then what it knows of the
    others (``reports``), which heartbeats tell without saying on which network: it counts as the first.

    On several networks a node hears another where datagrams came within ``suspicion_ns``; whether the other hears it
    is known of the node, not of each network.
    """
    networks = config.network.all()
    recent = {(one.node_id, one.network) for one in heard if now - one.heard_at < suspicion_ns}
    found = []
    for hearer, other, hears, is_heard in reports:
        if len(networks) == 1 or hearer != config.node.id:
            found.append(connection(hearer, other, 0, hears, is_heard))
            continue
        for number, network in enumerate(networks):
            here = hears and (other, network.name) in recent
            found.append(connection(hearer, other, number, here, here and is_heard))
    return tuple(found)


def connection(hearer: int, heard: int, network: int, hears: bool, is_heard: bool) -> Connection:
    """A connection as events have it."""
    state = (LinkState.HEARS if hears else LinkState.NONE) | (LinkState.HEARD if is_heard else LinkState.NONE)
    return Connection(hearer, heard, network, state)


def networks_document(config: AgentConfig, transport: Transport) -> list[dict[str, Any]]:
    """The networks of this node, for the status."""
    if config.transport() == "memory":
        return []
    ones = transport.transports if isinstance(transport, RedundantTransport) else [transport]
    return [
        {
            "name": network.name,
            "address": [str(part) for part in one.address[:2]],
            "mtu": one.mtu,
            "receive_buffer_bytes": one.receive_buffer_bytes,
            "counters": dict(one.counters),
            "error": one.error if isinstance(one, Absent) else "",
        }
        for network, one in zip(config.network.all(), ones, strict=True)
    ]


def links_document(links: list[Link], suspicion_ns: int, now: int) -> list[dict[str, Any]]:
    """The links as plain values; ``heard``: within the time after which a node is suspected."""
    return [
        {
            "node_id": link.node_id,
            "network": link.network,
            "heard": now - link.heard_at < suspicion_ns,
            "heard_ms_ago": (now - link.heard_at) // MILLISECOND_NS,
            "address": [str(part) for part in link.address[:2]],
        }
        for link in links
    ]
