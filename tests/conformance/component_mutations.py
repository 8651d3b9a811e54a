"""Mistakes in the components, in what the agent does with them, and in the publisher library."""

from __future__ import annotations

import asyncio
from typing import Any

from ocfcluster.agent import daemon, links
from ocfcluster.agent.components import Components
from ocfcluster.agent.current import CurrentConnectivity
from ocfcluster.agent.external_views import ExternalViews
from ocfcluster.agent.views import Views
from ocfcluster.client.arguments import as_bytes
from ocfcluster.client.component import Component
from ocfcluster.components.connectivity import ConnectivityEvent, LinkState
from ocfcluster.components.reporter import ConnectivityReporter
from tests.conformance.mutation import Mutation, Side, collector, wrap

MUTATIONS: list[Mutation] = []
mutation = collector(MUTATIONS, Side.AGENT)
library_mutation = collector(MUTATIONS, Side.CLIENT)


@mutation(
    "C1", "the_current_state_comes_at_once", "interfaces_have_state_and_addresses", "everybody_hears_everybody",
    "connectivity_is_declared_with_construct", agents=3,
)  # fmt: skip
def connectivity_is_told_when_it_changes() -> None:
    """A new subscriber of oc.connectivity does not get what is current."""
    wrap(CurrentConnectivity, "begin", lambda _original, _self, _subscription, _position: None)


@mutation("C1", "the_current_state_comes_at_once", agents=3)
def what_is_current_has_other_numbers() -> None:
    """What is current comes to a new subscriber under other numbers than it was told under."""

    def give(original: Any, self: CurrentConnectivity, subscription: Any, told: Any, more: Any = 0) -> None:
        original(self, subscription, told._replace(seq=told.seq + 1000 * told.node_id), more)

    wrap(CurrentConnectivity, "_give", give)


@mutation("C1", "interfaces_have_state_and_addresses", agents=1)
def interfaces_have_no_addresses() -> None:
    """Interfaces are reported without their addresses."""
    wrap(
        Components,
        "interfaces",
        lambda original, self: tuple(one._replace(addresses=()) for one in original(self)),
    )


@mutation("C1", "everybody_hears_everybody", agents=3, wrong=(1, 2))
def hearing_is_taken_for_a_connection() -> None:
    """A node does not say whether the others hear it."""

    def one_way(original: Any, *arguments: Any) -> Any:
        one = original(*arguments)
        return one._replace(state=one.state & ~LinkState.HEARD)

    wrap(links, "connection", one_way)


@mutation("C1", "connectivity_is_declared_with_construct", "the_current_state_comes_at_once", agents=3)
def connectivity_codes_have_no_class() -> None:
    """The upper ten bits of the event code are empty."""

    def encode(original: Any, self: ConnectivityEvent) -> bytes:
        data = original(self)
        return bytes((int.from_bytes(data[:4], "little") & 0x3FFFFF).to_bytes(4, "little") + data[4:])

    def decode(original: Any, data: bytes) -> ConnectivityEvent:
        code = int.from_bytes(data[:4], "little") | 1 << 22
        return original(code.to_bytes(4, "little") + bytes(data[4:]))  # type: ignore[no-any-return]

    wrap(ConnectivityEvent, "encode", encode)
    original = ConnectivityEvent.decode
    ConnectivityEvent.decode = staticmethod(lambda data: decode(original, data))  # type: ignore[method-assign]


@mutation(
    "C1", "connections_are_told_as_they_change", "eligibility_is_told_as_it_changes", wrong=(1, 2)
)  # fmt: skip
def reports_are_made_at_the_start_alone() -> None:
    """A node reports when it starts, and then looks no more."""
    wrap(ConnectivityReporter, "work", lambda _original, _self: asyncio.sleep(3600))


@mutation("C1", "connections_are_told_as_they_change", wrong=(1, 2))
def newcomers_are_told_nothing() -> None:
    """When a node joins, the others do not say again what is current."""

    async def on_event(original: Any, self: ConnectivityReporter, event: Any) -> None:
        tell_all, self._tell_all = self._tell_all, lambda: None  # type: ignore[method-assign]
        await original(self, event)
        self._tell_all = tell_all  # type: ignore[method-assign]

    wrap(ConnectivityReporter, "on_event", on_event)


@mutation("C1", "a_minority_hears_of_its_own")
def a_minority_waits_for_the_others() -> None:
    """A node without a majority tells nobody what it finds out."""
    wrap(CurrentConnectivity, "notify", lambda _original, _self, *_: None)


@mutation("C1", "a_minority_hears_of_its_own")
def local_reports_have_a_seq_of_their_own() -> None:
    """What a node tells its own subscribers alone has the next seq of the topic, and is there for those of its time."""

    def notify(original: Any, self: CurrentConnectivity, *arguments: Any) -> None:
        last_seq = self._last_seq
        self._last_seq = lambda topic_id: last_seq(topic_id) + 100
        original(self, *arguments)
        self._last_seq = last_seq

    wrap(CurrentConnectivity, "notify", notify)


# --- P1 ---------------------------------------------------------------------------------------------------------------


@mutation("P1", "built_in_components_have_their_topics_alone", agents=1)
def anybody_is_a_component() -> None:
    """Whoever may connect publishes on reserved topics."""
    wrap(Components, "fault", lambda _original, _self, _client, _topic_id: "")


@mutation("P1", "data_of_reserved_topics_is_validated")
def the_door_lets_everything_in() -> None:
    """The agent does not look at what a component publishes."""
    wrap(Components, "_report_fault", lambda _original, _self, _data: "")


@mutation("P1", "data_of_reserved_topics_is_validated")
def refusals_have_no_reason() -> None:
    """EINVAL comes without what is wrong."""

    def report(original: Any, self: Components, client: Any, report: Any) -> tuple[int, str]:
        return original(self, client, report)[0], "no"

    wrap(Components, "report", report)


@library_mutation("P1", "data_of_reserved_topics_is_validated")
def the_library_does_not_check() -> None:
    """What a component publishes goes to the agent as it is."""
    wrap(Component, "_checked", lambda _original, _self, data: as_bytes(data))


@mutation("P1", "an_external_component_takes_the_place", "a_component_that_is_gone_is_seen")
def the_built_in_component_stays() -> None:
    """With components.membership = "external" the agent tells the membership all the same."""
    daemon.ExternalViews = Views  # type: ignore[misc,assignment]


@mutation("P1", "an_external_component_takes_the_place", wrong=(2,))
def placed_events_have_a_number_of_their_own() -> None:
    """The event of an external component has an ev_id of its agent's, not the view's."""

    def place(original: Any, self: ExternalViews, place: Any, event: Any) -> None:
        original(self, place._replace(ev_id=place.ev_id + 1), event)

    wrap(ExternalViews, "_place", place)


@mutation("P1", "a_component_that_is_gone_is_seen")
def components_may_be_several() -> None:
    """Whoever subscribes to the views gets them."""
    wrap(Components, "subscribe_fault", lambda _original, _self, _client, _topics: (0, ""))


@mutation("P1", "a_component_that_is_gone_is_seen")
def views_do_not_wait_for_the_successor() -> None:
    """A component gets the views that come from now on, and not what nobody has told yet."""
    wrap(ExternalViews, "begin_raw", lambda _original, _self: None)


@library_mutation("P1", "a_component_outlives_its_agent")
def a_component_ends_with_its_agent() -> None:
    """The library does not look for the next agent."""

    async def run(_original: Any, self: Component) -> None:
        await self._serve()

    wrap(Component, "run", run)
