"""The data of events of groups: what the order says becomes what subscribers read, and back.

>>> from ocfcluster.components.groups import GroupEvent, open_event
>>> event = subscription.get()                                      # doctest: +SKIP
>>> open_event(event)                                               # doctest: +SKIP
<GroupEvent JOIN: member 17, members 9 17, in 17>

The normative declarations are ``schema.GROUP_CHANGE`` and ``schema.GROUP_MESSAGE``; docs/formats.md has the byte
offsets, ``wire.group`` the codec (the client library uses it as well).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocfcluster.client.replies import open_event
from ocfcluster.wire.group import (
    GROUP_CLASS,
    GroupCode,
    GroupEvent,
    GroupMember,
    LeaveReason,
    group_topic,
    is_group,
)

if TYPE_CHECKING:
    from ocfcluster.protocol.effects import GroupChange
    from ocfcluster.protocol.groups import Group

__all__ = [
    "GROUP_CLASS", "GroupCode", "GroupEvent", "GroupMember", "LeaveReason", "group_topic", "is_group",
    "members_of", "of_change", "open_event",
]  # fmt: skip


def of_change(change: GroupChange) -> GroupEvent:
    """The JOIN or LEAVE that tells of ``change``."""
    first = (change.joined or change.left)[0]
    return GroupEvent(
        GroupCode.JOIN if change.joined else GroupCode.LEAVE, first.member, 0, change.reason,
        change.members, change.joined, change.left,
    )  # fmt: skip


def members_of(group: Group) -> GroupEvent:
    """The MEMBERS that tells a new subscriber who is in the group."""
    return GroupEvent(GroupCode.MEMBERS, members=group.present)
