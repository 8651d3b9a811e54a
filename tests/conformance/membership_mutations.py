"""Mistakes in what an agent tells of the membership, patched by mutant_agent.py into agents that a test starts."""

from __future__ import annotations

from typing import Any

from ocfcluster.agent import names
from ocfcluster.agent.daemon import Agent
from ocfcluster.agent.router import Router
from ocfcluster.agent.views import Views
from ocfcluster.components import membership
from ocfcluster.components.membership import EVENT_BITS, MembershipEvent
from tests.conformance.mutation import Mutation, Side, collector, wrap

MUTATIONS: list[Mutation] = []
mutation = collector(MUTATIONS, Side.AGENT)


@mutation("M1", "fields_of_the_drafts_struct", agents=1)
def out_and_in_change_places() -> None:
    """The list of the nodes that came in stands where those that went out belong, and the other way round."""

    def encode(original: Any, self: MembershipEvent) -> Any:
        return original(MembershipEvent(self.code, self.m_sequence, self.members, self.left, self.joined))

    wrap(MembershipEvent, "encode", encode)


@mutation("M1", "fields_of_the_drafts_struct", "membership_is_declared_with_construct", agents=1)
def event_codes_have_no_class() -> None:
    """The upper ten bits of the event code are empty."""

    def encode(original: Any, self: MembershipEvent) -> bytes:
        data = original(self)
        number = int.from_bytes(data[:4], "little") & (1 << EVENT_BITS) - 1
        return bytes(number.to_bytes(4, "little") + data[4:])

    wrap(MembershipEvent, "encode", encode)


@mutation("M1", "the_old_class_string_works", agents=1)
def the_old_class_string_is_unknown() -> None:
    """The names of draft 0.3 lead nowhere."""
    names.ALIASES.clear()


@mutation("M2", "the_same_membership_on_every_node", agents=3, wrong=(2,))
def the_youngest_member_comes_first() -> None:
    """One node lists the members in the reverse order."""
    wrap(membership, "nodes", lambda original, members: original(members)[::-1])


@mutation("M2", "each_change_is_one_event", "a_quick_restart_is_out_and_in")
def who_left_is_not_named() -> None:
    """The list of the nodes that went out is always empty."""
    wrap(Views, "deliver", lambda original, self, view: original(self, view._replace(left=())))


@mutation("M2", "each_change_is_one_event")
def a_change_is_told_twice() -> None:
    """Every view is handed out two times."""

    def deliver(original: Any, self: Views, view: Any) -> None:
        original(self, view)
        original(self, view)

    wrap(Views, "deliver", deliver)


@mutation("M2", "a_new_history_ends_the_subscription", wrong=(3,))
def subscriptions_outlive_their_history() -> None:
    """Where a history ends its subscriptions go on with the next one."""
    wrap(Agent, "_history_lost", lambda _original, _self, _lost, _now: None)


@mutation("M3", "a_minority_is_told")
def a_minority_is_kept_in_the_dark() -> None:
    """NOT_PRIMARY and PRIMARY_RESTORED are not told."""
    wrap(Views, "notify", lambda _original, _self, _notification, _node_id, _incarnation: None)


@mutation("M3", "a_minority_is_told", "evicted_is_the_last_event", wrong=(1, 3))
def local_events_use_up_a_seq() -> None:
    """What a node says about itself has the next seq of the topic."""

    def local_event(original: Any, self: Views, event: Any, seq: int, *rest: Any) -> Any:
        return original(self, event, seq + 1, *rest)

    wrap(Views, "_local_event", local_event)


@mutation("M3", "evicted_is_the_last_event", wrong=(3,))
def eviction_is_a_shutdown_like_others() -> None:
    """An evicted node tells the subscribers of oc.membership what it tells all others, and no more."""
    wrap(Views, "evicted", lambda _original, _self, _node_id, _incarnation: None)


@mutation("M4", "the_current_membership_comes_at_once", "the_membership_comes_first_among_topics", agents=1)
def the_membership_is_told_when_it_changes() -> None:
    """A new subscriber does not get the membership as it is."""
    wrap(Views, "begin", lambda _original, _self, _subscription, _position: None)


@mutation("M4", "the_current_membership_comes_at_once", agents=1)
def the_membership_comes_as_if_it_were_new() -> None:
    """What a new subscriber gets at once has no mark of being older."""
    wrap(
        Views, "_give", lambda original, self, subscription, told, _more=0: original(self, subscription, told)
    )


@mutation("M4", "views_come_before_the_events_in_them")
def views_come_a_burst_late() -> None:
    """A view is handed out behind the events of the burst after its own."""
    late: list[Any] = []

    def deliver(original: Any, self: Router, items: list[Any]) -> None:
        waited = late[:]
        late.clear()
        original(self, items)
        for view in waited:
            tell(self.views, view)

    tell = Views.deliver
    wrap(Views, "deliver", lambda _original, _self, view: late.append(view))
    wrap(Router, "deliver", deliver)
