"""Opening events of groups, and collecting the replies to a cast, sans-IO."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from ocfcluster.client.events import Event
from ocfcluster.errors import Malformed
from ocfcluster.wire.frames import NoticeCode
from ocfcluster.wire.group import GroupCode, GroupEvent, GroupMember


def open_event(event: Event) -> GroupEvent:
    """What an event of a group says. Raises Malformed for what is none: a notice, what somebody published otherwise,
    a program's event that claims to be the cluster's."""
    if event.notice is not None:
        raise Malformed(f"no event of a group but a notice: {event.notice.name}")
    opened = GroupEvent.decode(event.data)
    if opened.code in (GroupCode.JOIN, GroupCode.LEAVE):
        made_up = bool(event.node_id) or event.local
    else:
        made_up = event.local is not (opened.code is GroupCode.MEMBERS)
    if made_up:
        raise Malformed(f"an event of node {event.node_id} that claims to be {opened.code.name}")
    return opened


class Reply(NamedTuple):
    """One member's reply."""

    member: GroupMember
    data: bytes
    event: Event


class Replies(msgspec.Struct, frozen=True):
    """What came of a request. The cast is the event ``ev_id``, delivered to ``members`` (without the asking one).

    Of these ``replies`` came, ``left`` ceased to be members without one, and from ``missing`` one may still come.
    ``interrupted`` says why that cannot be known: the events behind the cast did not all come.
    """

    ev_id: int
    members: tuple[GroupMember, ...]
    replies: tuple[Reply, ...]
    left: tuple[GroupMember, ...]
    missing: tuple[GroupMember, ...]
    interrupted: str = ""

    @property
    def complete(self) -> bool:
        """Whether the last possible reply has come."""
        return not self.missing and not self.interrupted


class Collector:
    """Takes the events of a group in their order, from before the cast ``ev_id`` on, until it is ``done``."""

    __slots__ = ("done", "_ev_id", "_present", "_asked", "_waiting", "_replies", "_left", "_interrupted")

    def __init__(self, ev_id: int) -> None:
        self.done = False
        self._ev_id = ev_id
        self._present: dict[int, GroupMember] = {}
        self._asked: tuple[GroupMember, ...] | None = None  # None: the cast has not come yet
        self._waiting: dict[int, GroupMember] = {}
        self._replies: list[Reply] = []
        self._left: list[GroupMember] = []
        self._interrupted = ""

    def take(self, event: Event) -> None:
        notice = event.notice
        if notice is not None:
            if notice.final or notice.code is NoticeCode.GAP:
                self._interrupted = notice.reason or notice.name
                self.done = True
            return
        try:
            opened = open_event(event)
        except Malformed:
            return  # somebody's who published to the topic otherwise
        if opened.code in (GroupCode.MEMBERS, GroupCode.JOIN, GroupCode.LEAVE):
            self._present = {one.member: one for one in opened.members}
            for member in [one for key, one in self._waiting.items() if key not in self._present]:
                del self._waiting[member.member]
                self._left.append(member)
        elif event.ev_id == self._ev_id:
            self._waiting = {key: one for key, one in self._present.items() if key != opened.member}
            self._asked = tuple(self._waiting.values())
        elif opened.code is GroupCode.REPLY and event.re_id == self._ev_id:
            member_or_none = self._waiting.pop(opened.member, None)
            if member_or_none is not None:
                self._replies.append(Reply(member_or_none, opened.data, event))
        self.done = self._asked is not None and not self._waiting

    def result(self) -> Replies:
        interrupted = self._interrupted
        if self._asked is None:
            interrupted = interrupted or "the cast has not come back in the time given"
        return Replies(
            self._ev_id, self._asked or (), tuple(self._replies), tuple(self._left),
            tuple(self._waiting.values()), interrupted,
        )  # fmt: skip
