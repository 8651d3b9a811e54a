"""The built-in component of ``oc.connectivity``: each node reports on itself, and the sequencer on eligibility.

It stands on the public publisher library, as a client of its own agent like any other; only where its knowledge comes
from (``Source``) is the agent's own affair.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Final, Protocol

from ocfcluster.client.component import Component
from ocfcluster.client.controlsocket import Dial
from ocfcluster.client.events import Event
from ocfcluster.components.connectivity import (
    TOPIC,
    Change,
    ConnectivityCode,
    ConnectivityEvent,
    Eligible,
    Interface,
    Link,
    compare_eligible,
    compare_interfaces,
    compare_links,
)
from ocfcluster.components.membership import TOPIC as MEMBERSHIP
from ocfcluster.components.membership import MembershipCode, MembershipEvent
from ocfcluster.errors import Malformed
from ocfcluster.limits import NODES
from ocfcluster.wire.frames import RecordFlags

INTERFACES: Final = "interfaces"
ELIGIBILITY: Final = "eligibility"
LINKS: Final = "links"


class Source(Protocol):
    """Where the reporter's knowledge comes from."""

    def interfaces(self) -> tuple[Interface, ...]:
        """This node's interfaces as they are now, by index."""

    def links(self, all_pairs: bool) -> tuple[Link, ...]:
        """Whom this node hears; with ``all_pairs`` also what it knows of who hears whom among the others."""

    def table(self) -> Mapping[int, int]:
        """The node table in force, node_id → votes."""

    def reports_eligibility(self) -> bool:
        """Whether it is this node's turn to: it is the sequencer of the view."""


class ConnectivityReporter(Component):
    """Reports for node ``node_id``. ``interfaces_changed`` wakes it; links and table it looks at itself."""

    topic = TOPIC
    hears = (MEMBERSHIP, TOPIC)

    def __init__(self, dial: Dial, node_id: int, source: Source, *, interval_s: float) -> None:
        """``dial`` makes a connection to the agent."""
        super().__init__("(built in)", interval_s=interval_s, dial=dial)
        self._node_id = node_id
        self._source = source
        self._interfaces: tuple[Interface, ...] = ()  # as they were told last, likewise below
        self._links: tuple[Link, ...] = ()
        self._eligible: tuple[Eligible, ...] = ()
        self._next: ConnectivityEvent | None = None  # what ``told`` is about
        self._seen_interfaces: tuple[Interface, ...] = ()  # as they were looked at last
        self._seen_links: tuple[Link, ...] = ()
        self._seen_table: dict[int, int] = {}  # as it was when it was found untold last
        self._again: set[str] = set()  # to be told whether anything differs or not

    def check(self, data: bytes) -> object:
        return ConnectivityEvent.decode(data)

    # --- when something is to be told ---------------------------------------------------------------------------

    async def on_start(self) -> None:
        """A new incarnation: nobody knows anything of it."""
        self._interfaces, self._links, self._eligible = (), (), ()
        self._tell_all()

    def look_at_interfaces(self) -> None:
        """The kernel says that something has changed: see what. Each look that finds a difference is one change."""
        interfaces = self._source.interfaces()
        if interfaces != self._seen_interfaces:
            self._seen_interfaces = interfaces
            if self._client is not None:
                self.changed(INTERFACES)

    async def work(self) -> None:
        """Look at links and table; how often is a small part of the time in which a node is suspected."""
        while True:
            links = self._source.links(False)
            if links != self._seen_links:
                self._seen_links = links
                self.changed(LINKS)
            table = dict(self._source.table())
            if not self._eligibility_differs():
                self._seen_table = {}
            elif table != self._seen_table:
                self._seen_table = table
                self.changed(ELIGIBILITY)
            await asyncio.sleep(self.interval_s)

    async def on_event(self, event: Event) -> None:
        with contextlib.suppress(Malformed):  # of a node of a later version, or of a member that lies
            if event.topic == TOPIC:
                self._heard(ConnectivityEvent.decode(event.data), event.local)
            else:
                self._membership(MembershipEvent.decode(event.data), RecordFlags.RETAINED in event.flags)

    def _membership(self, membership: MembershipEvent, retained: bool) -> None:
        if membership.code is MembershipCode.NOT_PRIMARY:
            self.set_ordered(False)
            self._tell_all()  # this node's own subscribers, in case that what is under way does not come
        elif membership.code is not MembershipCode.EVICTED:
            was, joined = self.ordered, {node.node_id for node in membership.joined} - {self._node_id}
            self.set_ordered(True)
            newcomers = joined and not retained
            if (
                newcomers or not was
            ):  # they know nothing of this node; nor do the others of what was told locally
                self._tell_all()

    def _heard(self, told: ConnectivityEvent, local: bool) -> None:
        """What somebody reports: the sequencer has told the table. One that no table is, with what was removed from
        it, would not fit what this node has to tell next."""
        if told.code is ConnectivityCode.ELIGIBLE and not local and len(told.eligible) <= 2 * NODES:
            self._eligible = told.eligible

    def _tell_all(self) -> None:
        for key in (INTERFACES, ELIGIBILITY, LINKS):
            self._again.add(key)
            self.changed(key, 0)

    def _eligibility_differs(self) -> bool:
        known = {one.node_id: one.votes for one in self._eligible if not one.change & Change.REMOVED}
        return self._source.reports_eligibility() and known != dict(self._source.table())

    # --- what is told -------------------------------------------------------------------------------------------

    def state(self, key: str, coalesced: int) -> bytes | None:
        again = key in self._again
        coalesced = max(0, coalesced)
        if key == INTERFACES:
            self._seen_interfaces = self._source.interfaces()
            interfaces = compare_interfaces(self._interfaces, self._seen_interfaces)
            event = ConnectivityEvent(
                ConnectivityCode.INTERFACE, self._node_id, coalesced, interfaces=interfaces
            )
            wanted = again or coalesced > 0 or any(one.change for one in interfaces)
        elif key == LINKS:
            known = self._source.links(not self.ordered)
            links = compare_links(self._links, (one for one in known if one.hearer == self._node_id))
            others = tuple(one for one in known if one.hearer != self._node_id)
            event = ConnectivityEvent(
                ConnectivityCode.CONNECT, self._node_id, coalesced, links=links + others
            )
            wanted = again or coalesced > 0 or any(one.change for one in links)
        else:
            eligible = compare_eligible(self._eligible, self._source.table())
            event = ConnectivityEvent(ConnectivityCode.ELIGIBLE, self._node_id, coalesced, eligible=eligible)
            differs = self._eligibility_differs()
            wanted = self._source.reports_eligibility() and self.ordered and (again or differs)
        if not wanted:
            self._again.discard(key)
            return None
        self._next = event
        return event.encode()

    def told(self, key: str) -> None:
        event, self._next = self._next, None
        self._again.discard(key)
        if event is None:
            return
        if key == INTERFACES:
            self._interfaces = event.interfaces
        elif key == LINKS:
            self._links = tuple(one for one in event.links if one.hearer == self._node_id)
        else:
            self._eligible = event.eligible
