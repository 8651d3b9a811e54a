"""Groups in the replicated state: who is a member, and the topic id and ``seq`` of each group.

A group has a topic id from the first command that names it: somebody observes, casts or joins. Ids are counted up from
FIRST_GROUP_ID and never used twice. A group is kept when its last member leaves, for those who observe it and cast to
it; where there are limits.GROUPS of them, one more takes the place of one without members that was not
used for long: the first in the order of use, where an event since it was looked at last gives it another turn.
"""

from __future__ import annotations

import errno
from typing import Annotated, Final

import msgspec

from ocfcluster import limits
from ocfcluster.errors import Malformed, MalformedSnapshot
from ocfcluster.protocol.effects import Topic
from ocfcluster.protocol.settings import U32, U64, Counted
from ocfcluster.wire.group import TO_PROPERTY, GroupMember, is_group
from ocfcluster.wire.properties import decode_properties
from ocfcluster.wire.run import largest_event, read_header, run_properties

FIRST_GROUP_ID: Final = 1 << 31  # of topic ids; those below are other topics'
_LAST_ID: Final = 0xFFFF_FFFF
Name = Annotated[str, msgspec.Meta(max_length=limits.TOPIC_NAME_BYTES)]
Process = tuple[int, int]  # node_id, incarnation

# member (its id), node_id, incarnation, pid
MemberImage = tuple[Counted, U32, U64, U32]
# topic_id, name, last seq, seq when it was looked at last, members
GroupImage = tuple[U32, Name, Counted, Counted, list[MemberImage]]


class Group:
    """One group: its topic, its last ``seq``, and its members, oldest first."""

    __slots__ = ("topic", "last_seq", "seen_seq", "members")

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.last_seq = 0
        self.seen_seq = 0  # last_seq when a place was looked for last
        self.members: dict[int, tuple[GroupMember, int]] = {}  # by id; beside each its node's incarnation

    @property
    def present(self) -> tuple[GroupMember, ...]:
        """The members, oldest first."""
        return tuple(member for member, _ in self.members.values())


class GroupTable:
    """All groups, in the order in which their places may be given to others."""

    __slots__ = ("by_id", "by_name", "next_id", "_per_node")

    def __init__(self) -> None:
        self.by_name: dict[str, Group] = {}
        self.by_id: dict[int, Group] = {}
        self.next_id = FIRST_GROUP_ID
        self._per_node: dict[int, int] = {}  # memberships of each node

    def open(self, name: str) -> tuple[int, Group | None, Group | None]:
        """The group of that name, which is in use from here on: (0 or an errno, the group, the one it displaced)."""
        group = self.by_name.get(name)
        if group is not None:
            self._used(group)
            return 0, group, None
        displaced = None
        if len(self.by_name) >= limits.GROUPS:
            displaced = self._displace()
            if displaced is None:
                return errno.ENOMEM, None, None
        if self.next_id > _LAST_ID:
            return errno.ENOMEM, None, displaced
        group = Group(Topic(self.next_id, name, False))
        self.next_id += 1
        self._put(group)
        return 0, group, displaced

    def _put(self, group: Group) -> None:
        self.by_name[group.topic.name] = group
        self.by_id[group.topic.topic_id] = group

    def _used(self, group: Group) -> None:
        """It goes to the end of the order, where it is safe for longest."""
        name = group.topic.name
        del self.by_name[name]
        self.by_name[name] = group

    def _displace(self) -> Group | None:
        """Forget the group whose place is given away first; None where all have members."""
        for group in list(self.by_name.values()):
            if group.members:
                continue
            if group.last_seq != group.seen_seq:
                group.seen_seq = group.last_seq
                self._used(group)
                continue
            return self._forget(group)
        # All were used since: now the first without members in the new order.
        for group in self.by_name.values():
            if not group.members:
                return self._forget(group)
        return None

    def _forget(self, group: Group) -> Group:
        del self.by_name[group.topic.name]
        del self.by_id[group.topic.topic_id]
        return group

    @property
    def memberships(self) -> int:
        """How many there are in all groups."""
        return sum(self._per_node.values())

    def takes(self, run: bytes, topic_id: int, event_bytes: int) -> tuple[Group | None, int, int]:
        """What becomes of a checked run to this topic: the group, the member whom it is for (0: all), and an errno."""
        group = self.by_id.get(topic_id)
        if group is None:
            return None, 0, errno.EINVAL
        if largest_event(run) > event_bytes:
            return None, 0, errno.EMSGSIZE
        try:
            text = decode_properties(run_properties(run, read_header(run))).get(TO_PROPERTY)
        except Malformed:
            return None, 0, errno.EINVAL
        if text is None:
            return group, 0, 0
        for member in group.members:
            if str(member) == text:
                return group, member, 0
        return None, 0, errno.ESRCH

    # --- members ------------------------------------------------------------------------------------------------

    def is_full(self, group: Group, node_id: int) -> bool:
        """Whether one more member of this node would be too many."""
        return (
            len(group.members) >= limits.GROUP_MEMBERS
            or self._per_node.get(node_id, 0) >= limits.MEMBERSHIPS_PER_NODE
        )

    def join(self, group: Group, member: GroupMember, incarnation: int) -> None:
        group.members[member.member] = (member, incarnation)
        self._per_node[member.node_id] = self._per_node.get(member.node_id, 0) + 1

    def leave(self, name: str, member: int, process: Process) -> tuple[Group, GroupMember] | None:
        """Take away a member of this process; None where it has no such one."""
        group = self.by_name.get(name)
        known = group.members.get(member) if group is not None else None
        if group is None or known is None or (known[0].node_id, known[1]) != process:
            return None
        self._take(group, member)
        self._used(group)
        return group, known[0]

    def _take(self, group: Group, member: int) -> None:
        node_id = group.members.pop(member)[0].node_id
        self._per_node[node_id] -= 1
        if not self._per_node[node_id]:
            del self._per_node[node_id]

    def departed(self, present: set[Process]) -> list[tuple[Group, tuple[GroupMember, ...]]]:
        """Take away the members whose agents are not in ``present``: each group that had some, by id."""
        changed = []
        for topic_id in sorted(self.by_id):
            group = self.by_id[topic_id]
            gone = [
                one
                for one, incarnation in group.members.values()
                if (one.node_id, incarnation) not in present
            ]
            for one in gone:
                self._take(group, one.member)
            if gone:
                changed.append((group, tuple(gone)))
        return changed

    # --- snapshots ----------------------------------------------------------------------------------------------

    @property
    def images(self) -> list[GroupImage]:
        """All groups in the order of the table."""
        return [
            (
                group.topic.topic_id, group.topic.name, group.last_seq, group.seen_seq,
                [(one.member, one.node_id, incarnation, one.pid) for one, incarnation in group.members.values()],
            )
            for group in self.by_name.values()
        ]  # fmt: skip

    @classmethod
    def of(cls, images: list[GroupImage], next_id: int) -> GroupTable:
        """The table that ``images`` were made of. Raises MalformedSnapshot for what cannot be one."""
        table = cls()
        for topic_id, name, last_seq, seen_seq, members in images:
            group = Group(Topic(topic_id, name, False))
            group.last_seq, group.seen_seq = last_seq, seen_seq
            table._put(group)
            for member, node_id, incarnation, pid in members:
                table.join(group, GroupMember(member, node_id, pid), incarnation)
            good = FIRST_GROUP_ID <= topic_id < next_id and is_group(name) and seen_seq <= last_seq
            if not good or len(group.members) != len(members) or len(members) > limits.GROUP_MEMBERS:
                raise MalformedSnapshot(f"a group that cannot be: {name!r:.80}")
        if not len(table.by_id) == len(table.by_name) == len(images) <= limits.GROUPS:
            raise MalformedSnapshot("groups that cannot be: the same one twice, or too many")
        if not FIRST_GROUP_ID <= next_id <= _LAST_ID + 1:
            raise MalformedSnapshot(f"groups that cannot be: next id {next_id}")
        table.next_id = next_id
        return table
