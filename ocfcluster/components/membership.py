"""The data of events on ``oc.membership``: draft 0.3's ``oc_ev_membership_t`` without its size field.

>>> from ocfcluster.components.membership import MembershipEvent
>>> event = subscription.get()                                      # doctest: +SKIP
>>> MembershipEvent.decode(event.data)                              # doctest: +SKIP
<MembershipEvent NEW_MEMBERSHIP 2: members 1 3, out 2>

The normative declaration is ``schema.MEMBERSHIP``; docs/formats.md has the byte offsets.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from ocfcluster.errors import Malformed
from ocfcluster.wire.event import fold32

if TYPE_CHECKING:
    from ocfcluster.protocol.effects import View
    from ocfcluster.protocol.settings import Member

TOPIC: Final = "oc.membership"

EVENT_BITS: Final = 22  # of an event code; the 10 above them are the class
MEMB_CLASS: Final = 2  # OC_EV_MEMB_CLASS
_HEAD: Final = struct.Struct("<8I")
_NODE: Final = struct.Struct("<II")


class MembershipCode(IntEnum):
    """The drafts' ``oc_memb_event_t``, with the class in the upper bits as events carry it."""

    INVALID = MEMB_CLASS << EVENT_BITS
    NEW_MEMBERSHIP = INVALID + 1
    NOT_PRIMARY = INVALID + 2
    PRIMARY_RESTORED = INVALID + 3
    EVICTED = INVALID + 4


class Node(NamedTuple):
    """The drafts' ``oc_node_t``: a member, and the membership generation in which it became one."""

    node_id: int
    born_on: int


class MembershipEvent(msgspec.Struct, frozen=True):
    """One event of ``oc.membership``, opened.

    ``members``, ``joined`` (the drafts' *in*) and ``left`` (their *out*) are oldest first. A node that was restarted
    before its loss was noticed is in both, with another ``born_on`` in each. Of NOT_PRIMARY and PRIMARY_RESTORED the
    members are those of the last membership that was agreed on, and nobody joined or left; of EVICTED all are empty.
    """

    code: MembershipCode
    m_sequence: int
    members: tuple[Node, ...] = ()
    joined: tuple[Node, ...] = ()
    left: tuple[Node, ...] = ()

    @classmethod
    def of_view(cls, view: View) -> MembershipEvent:
        """The NEW_MEMBERSHIP that tells of ``view``."""
        configuration = view.configuration
        return cls(
            MembershipCode.NEW_MEMBERSHIP,
            configuration.m_sequence,
            nodes(configuration.members),
            nodes(view.joined),
            nodes(view.left),
        )

    def encode(self) -> bytes:
        """The event's data. Those that joined are the youngest members, so their list lies within the members'."""
        array = list(self.members)
        in_at = len(array) - len(self.joined)
        if array[max(in_at, 0) :] != list(self.joined):
            in_at = len(array)
            array += self.joined
        out_at = len(array) if self.left else 0
        array += self.left
        return _HEAD.pack(
            self.code, fold32(self.m_sequence), len(self.members), 0, len(self.left), out_at,
            len(self.joined), in_at if self.joined else 0,
        ) + b"".join(_NODE.pack(node_id, fold32(born_on)) for node_id, born_on in array)  # fmt: skip

    @classmethod
    def decode(cls, data: bytes | memoryview) -> MembershipEvent:
        """What an event's data says. Raises Malformed."""
        if len(data) < _HEAD.size or (len(data) - _HEAD.size) % _NODE.size:
            raise Malformed(f"{len(data)} bytes are no membership event")
        code, m_sequence, members, members_at, left, left_at, joined, joined_at = _HEAD.unpack_from(data)
        array = [Node._make(pair) for pair in _NODE.iter_unpack(data[_HEAD.size :])]
        lists = ((members, members_at), (joined, joined_at), (left, left_at))
        if any(at + count > len(array) for count, at in lists):
            raise Malformed("a list of a membership event ends behind its array")
        if not MembershipCode.INVALID < code <= MembershipCode.EVICTED:
            raise Malformed(f"a membership event with code {code:#x}, not one of this version")
        return cls(MembershipCode(code), m_sequence, *(tuple(array[at : at + count]) for count, at in lists))

    def __repr__(self) -> str:
        words = [f"members {_ids(self.members)}"] if self.members else []
        words += [f"in {_ids(self.joined)}"] if self.joined else []
        words += [f"out {_ids(self.left)}"] if self.left else []
        return (
            f"<MembershipEvent {self.code.name} {self.m_sequence}{': ' if words else ''}{', '.join(words)}>"
        )


def nodes(members: Sequence[Member]) -> tuple[Node, ...]:
    """Members of a configuration as events name them, in the same order."""
    return tuple(Node(member.node_id, member.born_on) for member in members)


def event_class(code: int) -> int:
    """The drafts' OC_EV_GET_CLASS."""
    return code >> EVENT_BITS


def event_number(code: int) -> int:
    """The drafts' OC_EV_GET_EVENT."""
    return code & (1 << EVENT_BITS) - 1


def _ids(those: Sequence[Node]) -> str:
    return " ".join(str(node.node_id) for node in those)
