"""Judges what happens in the groups of one history: who is a member at each place, and who says something there."""

from __future__ import annotations

from ocfcluster.errors import Malformed
from ocfcluster.protocol.effects import Delivery, GroupChange, Topic, TopicChange
from ocfcluster.protocol.groups import FIRST_GROUP_ID
from ocfcluster.simulator.history import Item, TopicState, shown
from ocfcluster.simulator.trace import Violation
from ocfcluster.wire.group import GroupEvent, GroupMember, LeaveReason
from ocfcluster.wire.run import read_header, run_events

Process = tuple[int, int]  # node_id, incarnation


class GroupState(TopicState):
    """A group as the sequence shows it. ``members`` None: who is in it is not known (nobody saw an epoch's end)."""

    __slots__ = ("members",)

    def __init__(self, topic: Topic, last_seq: int = 0) -> None:
        super().__init__(topic, last_seq)
        self.members: dict[int, tuple[GroupMember, Process]] | None = {}


class GroupJudge:
    """All groups, at one place of the history."""

    __slots__ = ("_departing", "_known", "_next_id", "_seen", "groups")

    def __init__(self) -> None:
        self.groups: dict[int, GroupState] = {}
        self._next_id = FIRST_GROUP_ID
        self._seen: set[int] = set()  # ids of all members that there ever were
        self._departing: dict[int, set[int]] = {}  # group → members whose LEAVE is due now
        self._known = True

    def lose_track(self) -> None:
        """Behind an epoch that nobody delivered to its end: groups and members are what is said of them."""
        self._known = False
        self._departing.clear()
        for state in self.groups.values():
            state.members = None
            if state.last_seq >= 0:
                state.last_seq = -2 - state.last_seq

    def topic(self, change: TopicChange) -> None:
        """A group came into use, or was forgotten. Raises Violation."""
        topic_id = change.topic.topic_id
        if change.removed:
            state = self.groups.pop(topic_id, None)
            if state is None and not self._known:
                return
            if state is None or state.topic != change.topic or state.members:
                raise Violation("groups", f"{shown(change)}: it was not there, or has members")
            return
        same = [one for one in self.groups.values() if one.topic.name == change.topic.name]
        if self._known and (same or topic_id != self._next_id):
            raise Violation("groups", f"{shown(change)}: next id {self._next_id}, there is {same}")
        for one in same:
            del self.groups[one.topic.topic_id]
        self._next_id = topic_id + 1
        self.groups[topic_id] = GroupState(change.topic)

    def _find(self, topic: Topic, what: Item) -> GroupState:
        """The group of an event. Raises Violation where there is none at its place."""
        state = self.groups.get(topic.topic_id)
        if state is None:
            if self._known:
                raise Violation("groups", f"{shown(what)}: there is no such group at its place")
            state = self.groups[topic.topic_id] = GroupState(topic, -2)
            state.members = None
        return state

    def view(self, present: set[Process]) -> None:
        """A view: the members whose agents it is without leave next, before anything else."""
        self._departing = {}
        for topic_id, state in self.groups.items():
            gone = {key for key, (_, process) in (state.members or {}).items() if process not in present}
            if gone:
                self._departing[topic_id] = gone

    def pass_by(self, item: Item) -> None:
        """Nothing comes before the LEAVEs that a view brings, by id of their groups. Raises Violation."""
        if not self._departing:
            return
        topic_id = min(self._departing)
        if isinstance(item, GroupChange) and item.reason == LeaveReason.NODE_LEFT:
            state = self.groups.get(item.topic.topic_id)
            if item.topic.topic_id < topic_id and (
                state.members is None if state is not None else not self._known
            ):
                return  # of a group whose members are not known
        if not isinstance(item, GroupChange) or item.topic.topic_id != topic_id:
            raise Violation("groups", f"{shown(item)}: before it members {self._departing} were to leave")
        if {one.member for one in item.left} != self._departing.pop(topic_id):
            raise Violation("groups", f"{shown(item)} is not the LEAVE of all whose nodes are gone")
        if item.reason != LeaveReason.NODE_LEFT:
            raise Violation("groups", f"{shown(item)} is for reason {item.reason}")

    def changed(self, change: GroupChange, nodes: dict[int, int]) -> TopicState:
        """A JOIN or LEAVE; its group, whose seq is judged elsewhere. Raises Violation."""
        state = self._find(change.topic, change)
        if len(change.joined) + len(change.left) == 0 or (change.joined and change.left):
            raise Violation("groups", f"{shown(change)} is neither a JOIN nor a LEAVE")
        if state.members is not None:
            self._move(state, change, nodes)
            present = tuple(member for member, _ in state.members.values())
            if change.members != present:
                raise Violation("groups", f"{shown(change)}: the members are {present}")
        else:  # the change says who is in it
            state.members = {
                one.member: (one, (one.node_id, nodes.get(one.node_id, 0))) for one in change.members
            }
        self._seen.update(one.member for one in change.joined)
        return state

    def _move(self, state: GroupState, change: GroupChange, nodes: dict[int, int]) -> None:
        members = state.members
        if members is None:
            return
        for one in change.joined:
            if one.member in self._seen or one.member != change.ev_id:
                raise Violation("groups", f"{shown(change)}: member {one.member} had joined before")
            if one.node_id not in nodes:
                raise Violation("groups", f"{shown(change)}: its node is no member at its place")
            members[one.member] = (one, (one.node_id, nodes[one.node_id]))
        for one in change.left:
            known = members.pop(one.member, None)
            if known is None or known[0] != one:
                raise Violation("groups", f"{shown(change)}: {one.member} is no member at its place")

    def said(self, item: Delivery, to: int) -> TopicState:
        """A message in a group; its group. Raises Violation: who says it is a member there, on its own node."""
        state = self._find(Topic(item.topic_id, f"group {item.topic_id}", False), item)
        if state.members is None:
            return state
        if to and to not in state.members:
            raise Violation("groups", f"{shown(item)} is for {to}, who is no member")
        for at, data in enumerate(run_events(item.run, read_header(item.run))):
            if at < item.skip:
                continue
            try:
                speaker = GroupEvent.decode(data).member
            except Malformed:
                continue
            if not speaker:
                continue
            known = state.members.get(speaker)
            if known is None or known[1] != (item.node_id, item.incarnation):
                raise Violation(
                    "groups", f"{shown(item)}: {speaker} says it, who is no member there: {state.members}"
                )
        return state
