"""What a node says of itself to people and programs: plain values, and words for what it waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ocfcluster import limits
from ocfcluster.protocol.detector import Detector
from ocfcluster.protocol.effects import State
from ocfcluster.protocol.settings import Configuration
from ocfcluster.wire.datagram import MessageFlags

if TYPE_CHECKING:
    from ocfcluster.protocol.node import Node


class LinkReport(NamedTuple):
    """Whether ``hearer`` hears ``heard``, and whether that one says so of ``hearer``, as far as this node knows."""

    hearer: int
    heard: int
    hears: bool
    is_heard: bool


def links(node: Node, detector: Detector, all_pairs: bool) -> list[LinkReport]:
    """Whom this node hears, by node_id: all nodes of the table, and whoever else is heard. With ``all_pairs`` behind
    that what the heartbeats of those that are heard say of each other."""
    own = (node.settings.node_id, node.settings.incarnation)
    table = node.configuration.table if node.configuration is not None else node.settings.table
    heard = {peer.node_id: peer for peer in detector.heard}  # of each the incarnation heard last
    others = sorted({*table, *heard} - {own[0]})
    found = [LinkReport(own[0], other, other in heard, detector.linked(own[0], other)) for other in others]
    if not all_pairs:
        return found
    said = {
        peer.node_id: {node_id for node_id, _ in peer.beat.heard}
        for peer in detector.heard
        if peer.beat is not None
    }
    said[own[0]] = set(heard)
    for hearer in sorted(said.keys() - {own[0]}):
        found += [
            LinkReport(hearer, other, other in said[hearer], hearer in said.get(other, ()))
            for other in sorted({own[0], *others} - {hearer})
        ]
    return found


def waiting_for(node: Node, detector: Detector) -> str:
    """What this node waits for, in words; empty: nothing."""
    configuration, plane = node.configuration, node.plane
    if node.recovery.proposer.active and node.recovery.proposer.waiting_for:
        return node.recovery.proposer.waiting_for
    if configuration is None:
        return node.recovery.formation.waiting_for
    if node.installation.foreign and (plane is None or not plane.is_member):
        return f"an operator: the other nodes are in another history, {node.installation.foreign}"
    if plane is None or not plane.is_member:
        if node.settings.node_id not in configuration.table:
            return f"this node to be added to the node table ({sorted(configuration.table)})"
        if not node.suspects:
            return "the others to let it join" if plane else "the state of the running cluster"
        return _missing(node, detector, configuration) or "the others"
    silent = [
        one.node_id
        for one in configuration.members
        if one.node_id != node.settings.node_id and not detector.hears(one.node_id, one.incarnation)
    ]
    return "; ".join(f"node {node_id}" for node_id in silent)


def _missing(node: Node, detector: Detector, configuration: Configuration) -> str:
    voices = detector.voices(configuration)
    missing = [
        one.node_id
        for one in configuration.members
        if one.node_id not in voices and one.node_id != node.settings.node_id
    ]
    return f"nodes {', '.join(map(str, missing))}" if missing else ""


def status(node: Node, detector: Detector, now: int) -> dict[str, Any]:
    """Plain values for people and programs; docs/operating.md lists the keys."""
    configuration, plane = node.configuration, node.plane
    members = []
    for member in configuration.members if configuration else ():
        own = (member.node_id, member.incarnation) == (node.settings.node_id, node.settings.incarnation)
        hears = own or detector.hears(member.node_id, member.incarnation)
        peer = node.peers.get(member.node_id, member.incarnation)
        age_ms = 0 if own else (now - peer.last_heard) // limits.MILLISECOND_NS if peer and hears else None
        origin = plane.origins.present.get(member.node_id) if plane is not None else None
        leaving = peer is not None and peer.beat is not None and bool(peer.beat.flags & MessageFlags.LEAVING)
        members.append(
            {
                "node_id": member.node_id, "incarnation": member.incarnation, "born_on": member.born_on,
                "votes": member.votes, "heard_ms_ago": age_ms, "leaving": leaving or (own and node.leaving),
                "sequencer": member.node_id == configuration.sequencer if configuration else False,
                "malformed": peer.malformed if peer is not None else 0,
                "broken": origin.assembler.broken if origin is not None else "",
            }
        )  # fmt: skip
    return {
        "state": node.state.value,
        "waiting_for": waiting_for(node, detector),
        "primary": node.state is State.ACTIVE and node.primary,
        "protocol_version": node.spoken.version,
        "frozen": plane is not None and plane.frozen,
        "synced": plane is not None and plane.is_member and plane.synced,
        "learning": plane is not None and not plane.is_member,
        "proposing": node.recovery.proposer.phase.value,
        "last_eviction": node.last_eviction,
        "cluster": node.settings.cluster_name,
        "cluster_id": configuration.cluster_id if configuration else "",
        "epoch": configuration.epoch if configuration else 0,
        "m_sequence": configuration.m_sequence if configuration else 0,
        "delivery": configuration.delivery if configuration else node.settings.delivery,
        "mtu": configuration.mtu if configuration else node.settings.mtu,
        "node_id": node.settings.node_id,
        "incarnation": node.settings.incarnation,
        "sequencer": configuration.sequencer if configuration else 0,
        "table": dict(configuration.table if configuration else node.settings.table),
        "members": members,
        "topics": len(node.topics),
        "groups": len(node.groups.by_name),
        "memberships": node.groups.memberships,
        "producers": len(plane.state.producers) if plane else 0,
        "data_plane": plane.status() if plane else {},
        "datagrams": dict(node.counters),
        "recovery": {
            **node.recovery.counters,
            **node.joiner.counters,
            "persist_failures": node.persist_failures,
        },
    }
