"""The raw entries that an external membership component gets: the events of ``oc.views``, as JSON.

They are this node's own, outside of every order but their own: each view at its place among what the agent delivers,
and what the node finds out about itself. docs/publishers.md says what a component makes of them.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from ocfcluster.errors import Malformed
from ocfcluster.protocol.effects import View
from ocfcluster.protocol.settings import Member

TOPIC: Final = "oc.views"


class RawMember(msgspec.Struct, frozen=True):
    """A member of a view: one incarnation of a node."""

    node_id: int
    incarnation: int
    born_on: int
    votes: int

    @classmethod
    def of(cls, member: Member) -> RawMember:
        return cls(member.node_id, member.incarnation, member.born_on, member.votes)


class RawEntry(msgspec.Struct, frozen=True, omit_defaults=False):
    """One entry. ``kind`` "view" is to be placed at ``seq`` of ``oc.membership``; the others are notifications, with
    the ``m_sequence`` and the members of the last view, and ``seq`` 0."""

    kind: Literal["view", "not_primary", "primary_restored", "evicted"]
    seq: int
    m_sequence: int
    epoch: int = 0
    cluster_id: str = ""
    sequencer: int = 0
    members: tuple[RawMember, ...] = ()  # oldest first, likewise below
    joined: tuple[RawMember, ...] = ()
    left: tuple[RawMember, ...] = ()

    @classmethod
    def of_view(cls, view: View) -> RawEntry:
        configuration = view.configuration
        return cls(
            "view", view.seq, configuration.m_sequence, configuration.epoch, configuration.cluster_id,
            configuration.sequencer, *(
                tuple(map(RawMember.of, those)) for those in (configuration.members, view.joined, view.left)
            ),
        )  # fmt: skip

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes | memoryview) -> RawEntry:
        """Raises Malformed."""
        try:
            return _DECODER.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Malformed(f"no entry of {TOPIC}: {error}") from None


_DECODER: Final = msgspec.json.Decoder(RawEntry)
