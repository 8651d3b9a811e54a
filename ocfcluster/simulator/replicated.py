"""The replicated state: at the same place in the order it is the same on every node, whichever way it came there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from xxhash import xxh3_64_intdigest

from ocfcluster.protocol.retention import Retained
from ocfcluster.protocol.state import ReplicatedState, StateImage, state_image
from ocfcluster.simulator.trace import Violation

if TYPE_CHECKING:
    from ocfcluster.simulator.shell import Shell

_FIELDS: Final = StateImage.__struct_fields__
Key = tuple[str, int, int]  # cluster_id, epoch, index


class StateChecker:
    """Compares the whole state whenever two nodes have delivered equally much, also after one has got a snapshot:
    topics with their settings, groups with their members, numbers, producers, the node table, the events kept."""

    __slots__ = ("_digests", "_looked_at", "compared")

    def __init__(self) -> None:
        self.compared = 0
        self._digests: dict[Key, tuple[int, int, StateImage]] = {}  # digest, node, and what it was made of
        self._looked_at: dict[int, tuple[int, Key]] = {}  # node_id → incarnation, its last place

    def look(self, shell: Shell) -> None:
        """A node has finished a burst. Raises Violation."""
        cursor, plane = shell.cursor, shell.node.plane
        if cursor is None or cursor.beyond or plane is None:
            return
        key = cursor.history.cluster_id, cursor.segment.epoch, plane.delivered
        seen = shell.settings.incarnation, key
        if self._looked_at.get(shell.node_id) == seen:
            return
        self._looked_at[shell.node_id] = seen
        image, digest = digest_of(plane.state)
        known, who, there = self._digests.setdefault(key, (digest, shell.node_id, image))
        self.compared += who != shell.node_id
        if known != digest:
            raise Violation(
                "replicated state",
                f"node {shell.node_id} has another state than node {who} had after index {key[2]} of epoch {key[1]}: "
                f"{_differences(there, image) or 'other events are kept'}",
            )


def digest_of(state: ReplicatedState) -> tuple[StateImage, int]:
    """The state as a snapshot has it, and a number that is equal where two states are: what is kept counts as it is
    given to whoever asks, since nodes may let go of old events at different moments."""
    image = state_image(state)
    image = msgspec.structs.replace(
        image,
        votes=dict(image.votes),
        topics=sorted(image.topics),
        last_seq=sorted(image.last_seq),
        producers=sorted(image.producers),
        groups=list(image.groups),  # in their order, which says whose place is given away first
        retained=msgspec.structs.replace(image.retained, topics=[]),
    )
    return image, xxh3_64_intdigest(msgspec.msgpack.encode(image), digest_of_kept(state.retained))


def digest_of_kept(retained: Retained) -> int:
    """Equal where the same events are given to whoever asks."""
    digest = 0
    for topic_id in sorted(retained.topics):
        for one in retained.portion(topic_id, 1, 1 << 30, 1 << 60):
            fields = " ".join(map(str, (topic_id, *one[2:])))
            digest = xxh3_64_intdigest(fields.encode() + one.run[:64], digest)
    return digest


def _differences(one: StateImage, other: StateImage) -> str:
    return "; ".join(
        f"{name} {getattr(one, name)!r:.400} / {getattr(other, name)!r:.400}"
        for name in _FIELDS
        if getattr(one, name) != getattr(other, name)
    )
