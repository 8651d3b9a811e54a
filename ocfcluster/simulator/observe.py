"""The few things the checker asks of a node itself, all in one place.

``held`` and what a node has delivered are asked for because promises are about them, figures of the status because
bounds are, and records because disks are looked into. Nothing else of a node's inside is believed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec

from ocfcluster import limits
from ocfcluster.protocol.effects import TopicChange
from ocfcluster.protocol.node import Node
from ocfcluster.protocol.settings import Ballot, Configuration, Record, Settings
from ocfcluster.simulator.votes import Vote

_RECORD: Final = msgspec.msgpack.Decoder(Record)
IMPOSSIBLE_FAULTS: Final = frozenset({"duplicate_node_id", "broken_stream"})
AT_REST: Final = (
    "in_flight_bytes", "pending_bytes", "kept_bytes", "ahead_bytes", "unfinished_bytes", "runs_held", "entries_kept",
)  # fmt: skip


class OnDisk(NamedTuple):
    """What a record says."""

    configuration: Configuration | None
    vote: Vote | None


def read_record(record: bytes) -> OnDisk:
    """A record that became durable."""
    decoded = _RECORD.decode(record)
    paxos = decoded.paxos
    if not paxos:
        return OnDisk(decoded.configuration, None)
    vote = Vote(paxos.cluster_id, paxos.epoch, paxos.promised, paxos.accepted_ballot, paxos.accepted)
    return OnDisk(decoded.configuration, vote)


def held_index(node: Node) -> int:
    """Every entry and packet up to it is, or was, in this node's memory."""
    plane = node.plane  # asked after each burst: too often to have a status made
    return 0 if plane is None else plane.log.held


def delivered_index(node: Node) -> int:
    """Everything up to it was delivered by this node."""
    plane = node.plane
    return 0 if plane is None else plane.delivered


def counted_index(node: Node) -> int:
    """What this node counts for in its epoch: it holds that, and topics of it are on its disk."""
    plane = node.plane
    return 0 if plane is None else plane.acknowledged


def freed_index(node: Node) -> int:
    """Nothing up to it is kept to serve others."""
    plane = node.plane
    return 0 if plane is None else plane.freed


def promised(node: Node, configuration: Configuration) -> set[int]:
    """Whose promises this node has, where it has proposed this configuration."""
    return node.recovery.proposer.promised_for(configuration)


def is_primary(node: Node) -> bool:
    """Whether the node says that it is part of the primary."""
    return node.primary


def on_the_way_bytes(settings: Settings, nodes: int) -> int:
    """What may be on its way when the window closes: the backlog, and of each origin a window and one largest event."""
    run = max(
        settings.limits.event_bytes + limits.RUN_HEADER_BYTES + limits.PROPERTIES_BYTES, limits.RUN_BYTES
    )
    window = settings.window_bytes + limits.CONTROL_RESERVE_BYTES + limits.SEGMENT_BUFFER_BYTES
    return settings.backlog_bytes + nodes * (window + run)


def pending_bytes(settings: Settings) -> int:
    """What may wait for room in the window at the node of its programs."""
    run = max(
        settings.limits.event_bytes + limits.RUN_HEADER_BYTES + limits.PROPERTIES_BYTES, limits.RUN_BYTES
    )
    return max(limits.WINDOW_BYTES, run) + run + limits.CONTROL_FRAME_BYTES


def excesses(node: Node, settings: Settings, now: int, nodes: int) -> Iterator[str]:
    """Figures of the node's status that are above their bound."""
    figures: dict[str, Any] = node.status(now)["data_plane"]
    if not figures:
        return
    run = max(
        settings.limits.event_bytes + limits.RUN_HEADER_BYTES + limits.PROPERTIES_BYTES, limits.RUN_BYTES
    )
    bounds = {
        "in_flight_bytes": settings.window_bytes
        + limits.CONTROL_RESERVE_BYTES
        + limits.SEGMENT_BUFFER_BYTES
        + run,
        "pending_bytes": pending_bytes(settings),
        "kept_bytes": on_the_way_bytes(settings, nodes),
        "ahead_bytes": nodes * limits.OUT_OF_ORDER_BYTES,
        "unfinished_bytes": nodes * run,
    }
    for name, most in bounds.items():
        if figures[name] > most:
            yield f"{name} is {figures[name]}, above its bound of {most}"


def leftovers(node: Node, now: int) -> Iterator[str]:
    """What a node still keeps although everything is stable everywhere."""
    figures: dict[str, Any] = node.status(now)["data_plane"]
    if not figures:
        yield "it has no state yet"
        return
    if len({figures[name] for name in ("held", "commit", "stable", "delivered")}) != 1:
        yield "held {held}, commit {commit}, stable {stable} and delivered {delivered} differ".format(
            **figures
        )
    plane, configuration = node.plane, node.configuration
    if plane is not None and configuration is not None:
        streams = len(plane.origins.streams)
        if streams > len(configuration.members):
            yield f"{streams} streams are kept of {len(configuration.members)} members"
    for name in AT_REST:
        if figures[name]:
            yield f"{name} is {figures[name]}"


def taken_datagrams(node: Node, now: int) -> int:
    """Datagrams that this node took as new ones of its cluster."""
    counters: dict[str, int] = node.status(now)["datagrams"]
    return counters["datagrams"]


def summary(node: Node, now: int) -> str:
    """A node in a few words, for the report of a run that got stuck."""
    status = node.status(now)
    figures = status["data_plane"]
    where = f"{status['state']}, epoch {status['epoch']} of {status['cluster_id'][-6:] or 'nothing'}"
    waits = f", waits for {status['waiting_for']}" if status["waiting_for"] else ""
    if not figures:
        return where + waits
    return (
        where
        + waits
        + (
            ", held {held} commit {commit} stable {stable} delivered {delivered} window {window_bytes} "
            "in flight {in_flight_bytes} pending {pending_bytes} {window_closed_because}"
        ).format(**figures)
    )


def group_members(node: Node) -> dict[str, set[int]]:
    """Ids of the members of each group, as a node has them."""
    return {name: set(group.members) for name, group in node.groups.by_name.items()}


def is_durable(record: bytes, change: TopicChange, cluster_id: str) -> bool:
    """Whether a disk with this record brings the change back after a restart."""
    if not record:
        return False
    topics = _RECORD.decode(record)
    if topics.configuration is None:
        return False
    if topics.configuration.cluster_id != cluster_id:
        return cluster_id in topics.configuration.supersedes  # it went on, and has what was carried over
    if topics.next_topic_id <= change.topic.topic_id:
        return False
    if change.removed:
        return all(row[0] != change.topic.topic_id for row in topics.topics)
    return True  # it may have been altered again, or removed, since


def remembers(record: bytes, instance: tuple[str, int], ballot: Ballot, *, accepted: bool) -> bool:
    """Whether a disk with this record knows of a vote for ``ballot``, or of what followed the instance."""
    found = _RECORD.decode(record) if record else None
    if found is None:
        return False
    configuration, paxos = found.configuration, found.paxos
    if configuration is not None and (configuration.cluster_id, configuration.epoch) != instance:
        return True  # it went on; none goes back
    if paxos is None or (paxos.cluster_id, paxos.epoch) != instance:
        return False
    known = paxos.accepted_ballot if accepted else paxos.promised
    return known is not None and known >= ballot


def histories_known(record: bytes) -> list[str]:
    """The histories that a disk with this record knows of."""
    configuration = _RECORD.decode(record).configuration if record else None
    return [] if configuration is None else [configuration.cluster_id, *configuration.supersedes]
