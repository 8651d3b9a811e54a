"""Mistakes in the agent and its protocol, patched by mutant_agent.py into agents that a test starts."""

from __future__ import annotations

import errno
import time
from itertools import pairwise
from typing import Any

import msgspec

from ocfcluster.agent import names
from ocfcluster.agent.daemon import Agent
from ocfcluster.agent.local import LocalTopics
from ocfcluster.agent.permissions import Permissions
from ocfcluster.agent.router import Router
from ocfcluster.agent.topics import Topics
from ocfcluster.ipc.delivery import Hub
from ocfcluster.ipc.session import Session
from ocfcluster.protocol import state
from ocfcluster.protocol.effects import Delivery
from ocfcluster.protocol.node import Node
from ocfcluster.protocol.state import ReplicatedState, TopicTable
from ocfcluster.wire.frames import Answer
from tests.conformance.mutation import Mutation, Side, collector, wrap

MUTATIONS: list[Mutation] = []
mutation = collector(MUTATIONS, Side.AGENT)


def _change_deliveries(change: Any) -> None:
    """``change(items, node_id)`` gives what the router hands out instead of ``items``."""
    node_id = 0

    def init(original: Any, self: Agent, config: Any, *arguments: Any, **named: Any) -> None:
        nonlocal node_id
        node_id = config.node.id
        original(self, config, *arguments, **named)

    wrap(Agent, "__init__", init)
    wrap(Router, "deliver", lambda original, self, items: original(self, change(items, node_id)))


@mutation("A2", "topic_answered_elsewhere_is_known", agents=3, wrong=(1,))
def topics_are_looked_up_in_an_old_copy() -> None:
    """The agent looks topics up in a copy that it renews every 100 ms."""
    copy: dict[str, Any] = {}
    renewed = 0.0

    def lookup(_original: Any, self: Topics, name: str) -> Any:
        nonlocal copy, renewed
        if time.monotonic() > renewed + 0.1:
            copy, renewed = dict(self._agent.node.topics), time.monotonic()
        return copy.get(names.canonical(name))

    wrap(Topics, "find", lookup)


@mutation("A3", "reserved_topics_are_not_permitted", agents=1)
def reserved_names_are_free() -> None:
    """Anybody may create topics whose names belong to the cluster."""
    for module in (names, state):
        module.reserved = lambda _name: False  # type: ignore[attr-defined]


@mutation("A3", "publishing_takes_the_right", agents=1)
def anybody_may_publish() -> None:
    """Publications are not held against the lists of their topic."""
    wrap(Permissions, "publish_refusal", lambda _original, _self, _client, _topic: 0)


@mutation("A3", "subscribing_takes_the_right", agents=1)
def anybody_may_subscribe() -> None:
    """Subscriptions are not held against the lists of their topics."""
    wrap(Permissions, "subscribe_refusal", lambda _original, _self, _client, _topics: (0, ""))


@mutation("A3", "administration_takes_the_right", agents=1)
def anybody_may_administer() -> None:
    """Who may open the socket may alter and remove every topic."""
    wrap(Permissions, "administering", lambda _original, _self, handler: handler)


@mutation("A3", "a_right_that_is_taken_away_is_told", agents=1)
def rights_are_looked_at_once() -> None:
    """A subscription goes on when its topic is altered, whoever may subscribe then."""
    wrap(Permissions, "topic_changed", lambda _original, _self, _change: None)


@mutation("A13", "shutdown_is_told")
def the_agent_stops_without_a_word() -> None:
    """An agent that is told to stop does not tell its clients."""
    wrap(Hub, "shut_down", lambda _original, _self, _reason, _now: None)

    def answer(original: Any, self: Session, request_id: int, kind: Any, body: Any = None) -> None:
        if kind is not Answer.SHUTDOWN:
            original(self, request_id, kind, body)

    wrap(Session, "answer", answer)


@mutation("A16", "creation_is_idempotent", agents=1)
def a_topic_can_be_created_once_alone() -> None:
    """Creating a topic that exists with the same scope gives EEXIST."""

    def create(original: Any, self: TopicTable, wanted: Any, *rest: Any) -> Any:
        if wanted.name in self.by_name:
            return errno.EEXIST, self.by_name[wanted.name], None
        return original(self, wanted, *rest)

    wrap(TopicTable, "_create", create)


@mutation("A16", "removal_ends_subscriptions", agents=1)
def removal_is_not_told() -> None:
    """Subscribers of a topic that is removed hear nothing of it."""
    wrap(Hub, "topic_removed", lambda _original, _self, _topic_id, _last_seq: None)


@mutation("A16", "made_again_is_another", agents=1)
def ids_of_removed_topics_are_used_again() -> None:
    """A topic that is removed and made again gets its old id."""

    def remove(original: Any, self: TopicTable, name: str) -> Any:
        outcome = original(self, name)
        if outcome[2] is not None:
            self.next_id = outcome[1].topic_id
        return outcome

    wrap(TopicTable, "_remove", remove)


@mutation("A16", "local_events_are_delivered_here", "local_events_never_leave", agents=3, wrong=(1, 2, 3))
def every_topic_is_global() -> None:
    """A topic that is created as local is made a global one."""
    wrap(
        TopicTable,
        "_create",
        lambda original, self, wanted, bounds: original(
            self, msgspec.structs.replace(wanted, local=False), bounds
        ),
    )


@mutation("A16", "creation_is_ordered", agents=3, wrong=(2,))
def each_node_numbers_topics_for_itself() -> None:
    """A topic has another id on another node."""

    def init(original: Any, self: ReplicatedState, *arguments: Any) -> None:
        original(self, *arguments)
        self.topics.next_id += 100

    wrap(ReplicatedState, "__init__", init)


@mutation("E3", "local_ids_are_marked", agents=1)
def local_ids_are_like_global_ones() -> None:
    """ev_ids of local topics count from 1 without their mark."""

    def init(original: Any, self: LocalTopics) -> None:
        original(self)
        self._ev_id = 0

    wrap(LocalTopics, "__init__", init)


@mutation("E3", "same_numbers_on_every_node", agents=3, wrong=(2,))
def each_node_counts_ev_ids_for_itself() -> None:
    """The same event has another ev_id on another node."""

    def init(original: Any, self: ReplicatedState, *arguments: Any) -> None:
        original(self, *arguments)
        self.ev_id = 1000

    wrap(ReplicatedState, "__init__", init)
    wrap(
        Node, "_audit", lambda *_: None
    )  # else it finds that it differs, and begins anew with the others' numbers


@mutation("E4", "origin_of_other_nodes", agents=3, wrong=(1,))
def the_node_that_delivers_is_the_origin() -> None:
    """Events carry the node where they are delivered instead of their publisher's."""
    _change_deliveries(
        lambda items, node_id: [
            item._replace(node_id=node_id) if type(item) is Delivery else item for item in items
        ]
    )


@mutation("S1", "one_order_on_every_node", "one_order_for_callbacks_on_every_node", agents=3, wrong=(2,))
def order_differs_per_node() -> None:
    """One node hands out two neighbouring runs of different topics in the other order."""

    def swap(items: list[Any], _node_id: int) -> list[Any]:
        places = [place for place, item in enumerate(items) if type(item) is Delivery]
        for one, other in pairwise(places):
            if items[one].topic_id != items[other].topic_id:
                items[one], items[other] = items[other], items[one]
                break
        return items

    _change_deliveries(swap)


@mutation("S2", "an_agent_delivers_locally", "every_node_delivers", agents=3, wrong=(1,))
def own_events_are_for_other_nodes_alone() -> None:
    """What is published at an agent does not reach its own subscribers."""
    _change_deliveries(
        lambda items, node_id: [
            item for item in items if type(item) is not Delivery or item.node_id != node_id
        ]
    )
