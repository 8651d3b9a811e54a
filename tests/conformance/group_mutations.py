"""Mistakes about groups, in the library and in agents."""

from __future__ import annotations

from typing import Any

import msgspec

from ocfcluster.agent import groups as agent_groups
from ocfcluster.agent.connections import Connections
from ocfcluster.agent.groups import Groups
from ocfcluster.agent.topics import Topics
from ocfcluster.client import replies
from ocfcluster.client.group import Group
from ocfcluster.protocol import group_commands
from ocfcluster.protocol.groups import GroupTable
from ocfcluster.wire.group import GroupCode, GroupEvent, is_group
from tests.conformance.mutation import Mutation, Side, collector, wrap

MUTATIONS: list[Mutation] = []
of_library = collector(MUTATIONS, Side.CLIENT)
of_agent = collector(MUTATIONS, Side.AGENT)


@of_agent("G1", "a_group_needs_no_creation", agents=1)
def groups_are_unknown_topics() -> None:
    """Nobody finds a topic whose name is a group's."""
    wrap(Topics, "find", lambda original, self, name: None if is_group(name) else original(self, name))


@of_library("G1", "events_carry_the_drafts_codes")
def replies_answer_nothing() -> None:
    """A reply does not name the event that it answers."""

    def say(original: Any, self: Group, code: Any, data: Any, to: int, re_id: int, *rest: Any) -> Any:
        return original(self, code, data, to, 0 if code is GroupCode.REPLY else re_id, *rest)

    wrap(Group, "_say", say)


@of_agent("G1", "every_change_tells_the_members", agents=1)
def changes_tell_who_changed_alone() -> None:
    """A JOIN or LEAVE names the member that it is about, and no other."""
    original = agent_groups.of_change
    agent_groups.of_change = lambda change: msgspec.structs.replace(  # type: ignore[attr-defined]
        original(change), members=change.joined
    )


@of_agent("G1", "every_change_tells_the_members", agents=1)
def observers_wait_for_the_next_change() -> None:
    """A new observer is not told who is in the group."""
    wrap(Groups, "begin", lambda _original, _self, _subscription: None)


@of_agent("G1", "the_same_on_every_node", agents=3, wrong=(2,))
def one_node_lists_members_youngest_first() -> None:
    """On one node the members of a group stand in the reverse order."""
    original = agent_groups.of_change

    def of_change(change: Any) -> GroupEvent:
        event = original(change)
        return msgspec.structs.replace(event, members=event.members[::-1])

    agent_groups.of_change = of_change  # type: ignore[attr-defined]


@of_agent("G1", "sent_to_one_member", agents=1)
def what_is_for_one_is_for_all() -> None:
    """A message for one member is given to every subscriber of the group as it is."""
    agent_groups._withheld = lambda run: run


@of_agent("G1", "a_process_that_dies_leaves", agents=1)
def the_dead_stay_members() -> None:
    """The end of a process is nothing to the groups that it is in."""
    wrap(Connections, "client_done", lambda _original, _self, _client: None)


@of_agent("G1", "a_node_that_dies_leaves")
def members_outlive_their_node() -> None:
    """A view takes no members away."""
    wrap(GroupTable, "departed", lambda _original, _self, _present: [])


@of_agent("G1", "a_node_that_dies_leaves")
def leaves_come_before_the_view() -> None:
    """The LEAVEs of a lost node's members stand before the view that is without it."""

    def depart(original: Any, state: Any, present: Any, order_time: int, items: list[Any]) -> None:
        before = len(items)
        original(state, present, order_time, items)
        items[before - 1 :] = [*items[before:], items[before - 1]]

    from ocfcluster.protocol import state as state_module

    state_module.depart = lambda *arguments: depart(group_commands.depart, *arguments)  # type: ignore[attr-defined]


@of_library("G1", "requests_end_with_the_last_reply")
def requests_wait_for_who_has_left() -> None:
    """A request goes on waiting for a member that left without a reply."""

    def take(original: Any, self: Any, event: Any) -> None:
        if event.notice is None and replies.open_event(event).code is GroupCode.LEAVE:
            return
        original(self, event)

    wrap(replies.Collector, "take", take)


@of_library("G1", "requests_end_with_the_last_reply")
def requests_end_with_the_first_reply() -> None:
    """A request is complete when one member has replied."""

    def take(original: Any, self: Any, event: Any) -> None:
        original(self, event)
        if self._replies:
            self._waiting.clear()
            self.done = True

    wrap(replies.Collector, "take", take)
