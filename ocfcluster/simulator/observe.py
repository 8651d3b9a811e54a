"""The few things the checker asks of a node itself, all in one place.

``held`` and what a node has delivered are asked for because promises are about them; figures of ``status`` because
bounds are. Nothing else of a node's inside is believed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from ocfcluster.protocol.effects import TopicChange
from ocfcluster.protocol.node import Node
from ocfcluster.protocol.settings import Record, Settings

_RECORD: Final = msgspec.msgpack.Decoder(Record)
IMPOSSIBLE_FAULTS: Final = frozenset({"diverged"})


def held_index(node: Node) -> int:
    """Every entry and packet up to it is in this node's memory."""
    return node.held


def delivered_index(node: Node) -> int:
    """Everything up to it was delivered by this node."""
    return node.delivered


def on_the_way_bytes(settings: Settings, nodes: int) -> int:
    """What a subscriber may get above its mark: the backlog, and one largest event of each origin."""
    return settings.backlog_bytes + nodes * (settings.limits.event_bytes + 64 * 1024)


def excesses(node: Node, settings: Settings) -> Iterator[str]:
    """Figures of the node's status that are above their bound."""
    _: dict[str, Any] = node.status()
    yield from ()


def is_durable(record: bytes, change: TopicChange) -> bool:
    """Whether a disk with this record brings the change back after a restart."""
    if not record:
        return False
    topics = _RECORD.decode(record)
    if topics.next_topic_id <= change.topic.topic_id:
        return False
    if change.removed:
        return all(topic_id != change.topic.topic_id for topic_id, _, _ in topics.topics)
    return True


def leftovers(node: Node) -> Iterator[str]:
    """What a node still keeps although everything is stable everywhere."""
    if node.held != node.delivered:
        yield f"holds up to {node.held}, delivered up to {node.delivered}"


def summary(node: Node) -> str:
    """A node in a few words, for the report of a run that got stuck."""
    return f"held {node.held}, delivered {node.delivered}, last seq-room {node.room()}"
