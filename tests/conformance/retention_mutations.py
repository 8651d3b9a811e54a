"""Mistakes in what is kept of topics and given to subscriptions that start earlier."""

from __future__ import annotations

from typing import Any

from ocfcluster.agent.starts import Starts
from ocfcluster.client.subscription_state import SubscriptionState
from ocfcluster.ipc.delivery import Hub
from ocfcluster.ipc.replay import Cursor, Replay
from ocfcluster.protocol.retention import KeptTopic, Retained
from ocfcluster.wire.frames import NoticeCode
from tests.conformance.mutation import Mutation, Side, collector, wrap

MUTATIONS: list[Mutation] = []
mutation = collector(MUTATIONS, Side.AGENT)
library_mutation = collector(MUTATIONS, Side.CLIENT)


@mutation("S3", "the_start_can_be_earlier", agents=1)
def kept_events_come_as_if_they_were_new() -> None:
    """What was kept has no mark of being older than the subscription."""

    def init(original: Any, self: Cursor, *arguments: Any) -> None:
        original(self, *arguments)
        self.old_seq = 0

    wrap(Cursor, "__init__", init)


@mutation("S3", "the_start_can_be_earlier", agents=1)
def whole_runs_are_given() -> None:
    """A subscription starts with the first event of the run in which its start lies."""
    wrap(
        KeptTopic,
        "first_seq",
        lambda _original, self, _clock: self.runs[0].seq if self.runs else 0,
    )


@mutation("S3", "kept_events_are_what_they_were", agents=1)
def kept_events_are_of_the_newest_view() -> None:
    """Kept events carry another membership generation than the one at their place."""
    wrap(
        Replay,
        "_give",
        lambda original, self, topic_id, kept: original(self, topic_id, (*kept[:8], kept[8] + 1, kept[9])),
    )


@mutation("S3", "nothing_between_kept_and_new", agents=1)
def who_catches_up_gets_new_events_too() -> None:
    """What is published while a subscription catches up is queued for it at once, beside what is kept."""
    wrap(
        Hub,
        "replace",
        lambda original, self, topic_id, one, by: (
            original(self, topic_id, one, by) if by is not None else None
        ),
    )


@mutation("S4", "what_is_not_kept_is_told", agents=1)
def what_is_not_kept_is_passed_over() -> None:
    """A subscription that asks for more than is kept starts with what is kept, without a word."""
    wrap(
        Hub,
        "notify",
        lambda original, self, one, notice: (
            None if notice.code == NoticeCode.GAP else original(self, one, notice)
        ),
    )


@mutation("S4", "another_topic_of_the_name_is_told", agents=1)
def a_position_is_its_seq_alone() -> None:
    """The position of an event counts for whatever topic has the name, in whatever history."""
    wrap(Starts, "_is_current", lambda _original, _self, _begin, _topic_id: True)


@mutation("A13", "resumed_with_what_is_kept")
def snapshots_bring_nothing_that_is_kept() -> None:
    """An agent that joins has the topics, and nothing of what is kept of them."""
    wrap(
        Retained,
        "restore",
        lambda _original, _self, _image, take, _last_seq: [
            take(row[0]) for topic in _image.topics for row in topic[2]
        ],
    )


@library_mutation("A13", "resumed_with_what_is_kept")
def who_comes_back_begins_now() -> None:
    """The library does not say where a subscription was when it asks the next agent to go on."""

    def request(original: Any, self: SubscriptionState, *arguments: Any) -> Any:
        self.positions.clear()
        return original(self, *arguments)

    wrap(SubscriptionState, "request", request)
