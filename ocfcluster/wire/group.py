"""The data of events of groups (topics ``group:NAME``): who joined and left, and what members say to each other.

Layout, little-endian (the normative declarations are ``schema.GROUP_CHANGE`` and ``schema.GROUP_MESSAGE``)::

     0  code u32       GroupCode: the drafts' oc_group_event_t, class 3 in the upper 10 bits
     4  reason u32     of LEAVE: LeaveReason; of a message for another member: WITHHELD; else 0
     8  member u64     who joined, left (the first of those in ``left``) or speaks; 0: no member
    16  to u64         of a SEND, and of a REPLY to one: the member whom it is for; else 0
    24  CAST, REPLY, SEND: what was said, to the end
        JOIN, LEAVE, MEMBERS:
    24  members, members_at, left, left_at, joined, joined_at: six u32, counts and indexes into the array
    48  array of (member u64, node_id u32, pid u32)

A member's id is the ``ev_id`` of its JOIN. Agents make JOIN, LEAVE and MEMBERS, from entries of the order; libraries
make the others, and agents do not look into them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple

import msgspec

from ocfcluster.errors import Malformed
from ocfcluster.limits import GROUP_PREFIX

EVENT_BITS: Final = 22  # of an event code; the 10 above them are the class
GROUP_CLASS: Final = 3  # OC_EV_GROUP_CLASS
TO_PROPERTY: Final = (
    "oc.to"  # of a run of SENDs: the member's id in decimal. Agents look at it, not into the data
)
RESERVED_KEYS: Final = "oc."  # what properties of programs in groups do not begin with
_HEAD: Final = struct.Struct("<IIQQ")
_LISTS: Final = struct.Struct("<IIIIII")
_MEMBER: Final = struct.Struct("<QII")
_ARRAY_AT: Final = _HEAD.size + _LISTS.size
HEAD_BYTES: Final = _HEAD.size
WITHHELD: Final = 1  # as the reason of a message: what was said is for another member


class GroupCode(IntEnum):
    """The drafts' ``oc_group_event_t``, and the two that this project adds behind it."""

    INVALID = GROUP_CLASS << EVENT_BITS
    JOIN = INVALID + 1
    LEAVE = INVALID + 2
    CAST = INVALID + 3
    REPLY = INVALID + 4
    SEND = INVALID + 5  # to one member; the others see that it was sent
    MEMBERS = INVALID + 6  # local: the membership as it is where a subscription begins


class LeaveReason(IntEnum):
    """Why a member is none any more."""

    LEFT = 1  # it asked to, or closed its client
    DIED = 2  # its process, or its connection to its agent, has ended
    NODE_LEFT = 3  # its node is not in the view any more


_CHANGES: Final = frozenset(int(code) for code in (GroupCode.JOIN, GroupCode.LEAVE, GroupCode.MEMBERS))
_MESSAGES: Final = frozenset(int(code) for code in (GroupCode.CAST, GroupCode.REPLY, GroupCode.SEND))


class GroupMember(NamedTuple):
    """A member of a group: its id (the ``ev_id`` of its JOIN), its node, and its process there (0: not known)."""

    member: int
    node_id: int
    pid: int


class GroupEvent(msgspec.Struct, frozen=True):
    """One event of a group, opened. ``members`` (oldest first), ``joined`` and ``left`` are those of JOIN, LEAVE and
    MEMBERS; ``data`` is that of CAST, REPLY and SEND, empty where it was for another member (``withheld``)."""

    code: GroupCode
    member: int = 0
    to: int = 0
    reason: int = 0
    members: tuple[GroupMember, ...] = ()
    joined: tuple[GroupMember, ...] = ()
    left: tuple[GroupMember, ...] = ()
    data: bytes = b""

    def encode(self) -> bytes:
        """The event's data. Who joined is the youngest member, so that list lies within the members'."""
        head = _HEAD.pack(self.code, self.reason, self.member, self.to)
        if int(self.code) in _MESSAGES:
            return head + self.data
        array = list(self.members)
        joined_at = len(array) - len(self.joined)
        if array[max(joined_at, 0) :] != list(self.joined):
            joined_at = len(array)
            array += self.joined
        left_at = len(array) if self.left else 0
        array += self.left
        lists = _LISTS.pack(
            len(self.members), 0, len(self.left), left_at,
            len(self.joined), joined_at if self.joined else 0,
        )  # fmt: skip
        return head + lists + b"".join(_MEMBER.pack(*one) for one in array)

    @classmethod
    def decode(cls, data: bytes | memoryview) -> GroupEvent:
        """What an event's data says. Raises Malformed."""
        if len(data) < _HEAD.size:
            raise Malformed(f"{len(data)} bytes are no group event")
        code, reason, member, to = _HEAD.unpack_from(data)
        if code in _MESSAGES:
            if reason > WITHHELD or (reason and len(data) > _HEAD.size):
                raise Malformed(f"a group event with code {code:#x}, reason {reason} and {len(data)} bytes")
            return cls(GroupCode(code), member, to, reason, data=bytes(data[_HEAD.size :]))
        if code not in _CHANGES:
            raise Malformed(f"a group event with code {code:#x}, not one of this version")
        if len(data) < _ARRAY_AT or (len(data) - _ARRAY_AT) % _MEMBER.size:
            raise Malformed(f"{len(data)} bytes are no change of a group's members")
        members, members_at, left, left_at, joined, joined_at = _LISTS.unpack_from(data, _HEAD.size)
        array = [GroupMember._make(one) for one in _MEMBER.iter_unpack(data[_ARRAY_AT:])]
        if max(members_at + members, left_at + left, joined_at + joined) > len(array):
            raise Malformed("a list of a group event ends behind its array")
        return cls(
            GroupCode(code), member, to, reason,
            tuple(array[members_at : members_at + members]),
            tuple(array[joined_at : joined_at + joined]),
            tuple(array[left_at : left_at + left]),
        )  # fmt: skip

    @property
    def withheld(self) -> bool:
        """Whether this is a message for another member, whose data is not for this subscriber."""
        return self.reason == WITHHELD and int(self.code) in _MESSAGES

    def __repr__(self) -> str:
        words = [f"member {self.member}"] if self.member else []
        words += [f"to {self.to}"] if self.to else []
        words += [f"members {_ids(self.members)}"] if self.members else []
        words += [f"in {_ids(self.joined)}"] if self.joined else []
        words += [f"out {_ids(self.left)}"] if self.left else []
        words += [f"{len(self.data)} bytes"] if int(self.code) in _MESSAGES else []
        return f"<GroupEvent {self.code.name}{': ' if words else ''}{', '.join(words)}>"


def message(code: GroupCode, member: int, data: bytes, to: int = 0) -> bytes:
    """The data of a CAST, REPLY or SEND of ``member`` (0: of no member)."""
    return _HEAD.pack(code, 0, member, to) + data


def said_by(data: bytes, member: int) -> bytes:
    """A message of a member as ``member`` says it now (0: who is none any more); anything else as it is."""
    if len(data) < _HEAD.size:
        return data
    code, reason, before, to = _HEAD.unpack_from(data)
    if code not in _MESSAGES or not before or before == member:
        return data
    return _HEAD.pack(code, reason, member, to) + data[_HEAD.size :]


def withheld(data: bytes) -> bytes:
    """What others see of a message that is for one member: who said something to whom."""
    if len(data) < _HEAD.size:
        return b""
    code, _, member, to = _HEAD.unpack_from(data)
    return _HEAD.pack(code, WITHHELD, member, to)


def is_group(topic: str) -> bool:
    """Whether a topic of this name is a group, which needs no creation."""
    return topic.startswith(GROUP_PREFIX)


def group_topic(name: str) -> str:
    """The topic of the group ``name``, which may be given with its prefix, too."""
    return name if is_group(name) else GROUP_PREFIX + name


def _ids(those: Sequence[GroupMember]) -> str:
    return " ".join(str(one.member) for one in those)
