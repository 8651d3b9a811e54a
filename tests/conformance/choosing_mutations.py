"""Mistakes in filters and in what slow subscribers are told."""

from __future__ import annotations

from typing import Any

from ocfcluster.agent.stuck import StuckWatch
from ocfcluster.components.filters import TypedFilter
from ocfcluster.errors import FilterError
from ocfcluster.ipc.delivery import Hub
from ocfcluster.wire import filter as filters
from tests.conformance.mutation import Mutation, Side, collector, wrap

MUTATIONS: list[Mutation] = []
agent = collector(MUTATIONS, Side.AGENT)
library = collector(MUTATIONS, Side.CLIENT)


@agent("F1", "filters_choose_by_property", "what_is_left_out_is_not_written", agents=1)
def filters_are_ignored() -> None:
    """The agent gives every event, whatever the filter says."""
    wrap(filters.Predicate, "__call__", lambda _original, _self, _properties, _node_id: True)


@agent("F1", "filters_choose_by_property", agents=1)
def not_is_forgotten() -> None:
    """The agent takes the negation of a filter for the filter."""

    def compiled(original: Any, term: Any) -> Any:
        return original(term.term if isinstance(term, filters.Not) else term)

    wrap(filters, "_compiled", compiled)


@agent("F1", "what_is_left_out_is_not_written", agents=1)
def what_is_left_out_is_a_gap() -> None:
    """The agent tells of a gap where a filter leaves something out."""

    def admits(original: Any, self: Hub, subscription: Any, item: Any) -> Any:
        admitted = original(self, subscription, item)
        if not admitted:
            self._miss(subscription, item.topic_id, item.first_seq, item.last_seq)
            self._tell_gaps(subscription)
        return admitted

    wrap(Hub, "_admits", admits)


@agent("F1", "a_filter_leaves_no_false_gap", wrong=(3,))
def nobody_is_told_what_was_left_out() -> None:
    """The agent does not tell how far a subscription has got past what its filter left out."""
    wrap(Hub, "_tell_positions", lambda _original, _self: None)


@library("F1", "a_wrong_filter_is_pointed_at")
def errors_of_filters_have_no_place() -> None:
    """Every error in the text of a filter is said to be at its beginning."""
    wrap(
        FilterError,
        "__init__",
        lambda original, self, why, text="", _position=0: original(self, why, text, 0),
    )


@library("F1", "membership_events_are_objects")
def codes_are_not_looked_at() -> None:
    """The ready-made filters give events of all codes."""
    wrap(TypedFilter, "__init__", lambda original, self, *_codes: original(self))


@agent("S4", "the_oldest_are_dropped_and_told", agents=1)
def what_is_dropped_is_not_told() -> None:
    """The oldest events are dropped without a word."""
    wrap(Hub, "_put_gaps_first", lambda _original, _self, subscription: subscription.lost.clear())


@agent("A13", "a_slow_one_ends_with_a_notice", agents=1)
def the_slow_are_left_alone() -> None:
    """A subscription that asked to be ended when it is slow gets nothing any more, and is not told."""

    def disconnect(_original: Any, self: Hub, subscription: Any) -> None:
        self._discard(subscription)
        self._end(subscription)

    wrap(Hub, "_disconnect", disconnect)


@agent("A13", "a_stuck_callback_is_visible", agents=1)
def nobody_looks_who_is_stuck() -> None:
    """The agent never looks which programs do not finish their events."""
    wrap(StuckWatch, "look", lambda _original, _self, _now: None)
