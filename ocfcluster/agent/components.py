"""Components of this node: who may publish on reserved topics, what is taken from them, and the built-in one's life."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

import structlog

from ocfcluster.agent.clients import Client
from ocfcluster.agent.current import TOPIC_ID as CONNECTIVITY
from ocfcluster.agent.current import CurrentConnectivity
from ocfcluster.agent.external_views import RAW, ExternalViews
from ocfcluster.agent.names import canonical
from ocfcluster.components.connectivity import (
    Address,
    ConnectivityEvent,
    Interface,
    InterfaceState,
    Link,
)
from ocfcluster.components.reporter import ConnectivityReporter
from ocfcluster.errors import AgentUnreachable, Malformed
from ocfcluster.ipc.delivery import Subscription
from ocfcluster.ipc.peer import is_closed
from ocfcluster.limits import (
    ADDRESSES_REPORTED,
    INTERFACE_LOOK_NS,
    INTERFACES_REPORTED,
    REPORT_INTERVAL_NS,
    RUN_BYTES,
    SECOND_NS,
    SHORTAGE_RETRY_NS,
)
from ocfcluster.net.changes import InterfaceChanges
from ocfcluster.net.interfaces import list_devices
from ocfcluster.protocol.effects import Topic
from ocfcluster.protocol.state import CONNECTIVITY_TOPIC, MEMBERSHIP_TOPIC
from ocfcluster.wire.frames import Answer, Position, Refused, Report
from ocfcluster.wire.run import RunHeader, run_events

if TYPE_CHECKING:
    from ocfcluster.agent.daemon import Agent

LAST_WORD_S: Final = 0.5  # that an external component has to say EVICTED
_ENDING_S: Final = 1.0  # that the built-in one has to flush

log = structlog.get_logger("ocfcluster.agent")


class Components:
    """What the agent has to do with components. ``current`` is the state of oc.connectivity for new subscribers."""

    __slots__ = (
        "current",
        "left_out",
        "_agent",
        "_reporter",
        "_own",
        "_task",
        "_changes",
        "_look_again",
        "_look_later",
        "_known",
        "_missing",
    )

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.current = CurrentConnectivity(agent.hub, agent.local, agent.node.last_seq)
        self.left_out = 0  # interfaces beyond what is reported
        self._reporter: ConnectivityReporter | None = None
        self._own = 0  # the reporter's connection
        self._task: asyncio.Task[None] | None = None
        self._changes: InterfaceChanges | None = None
        self._look_again: asyncio.TimerHandle | None = None
        self._look_later: asyncio.TimerHandle | None = None  # they could not be looked at
        self._known: tuple[Interface, ...] = ()  # interfaces, as they were when they could be looked at last
        self._missing = False  # an external component of views was there, and is not

    # --- who may ------------------------------------------------------------------------------------------------

    @property
    def _views(self) -> ExternalViews | None:
        views = self._agent.router.views
        return views if isinstance(views, ExternalViews) else None

    def topic(self, name: str) -> Topic | None:
        """A topic that is this agent's own."""
        return RAW if name == RAW.name and self._views is not None else None

    def fault(self, client: Client, topic_id: int) -> str:
        """Why ``client`` may not speak for the component of a reserved topic; empty: it may."""
        if topic_id == CONNECTIVITY and self._agent.config.components.connectivity == "builtin":
            return (
                ""
                if self.is_own(client)
                else 'the agent publishes there itself (components.connectivity = "builtin")'
            )
        if topic_id == MEMBERSHIP_TOPIC.topic_id and self._views is None:
            return 'the agent publishes there itself (components.membership = "builtin")'
        if topic_id not in (CONNECTIVITY, MEMBERSHIP_TOPIC.topic_id, RAW.topic_id):
            return "no component publishes there"
        if client.peer.uid not in (0, os.geteuid()):
            return "components run as root or as the user whom the agent runs as"
        return ""

    def door(self, client: Client, topic_id: int, run: bytes, header: RunHeader) -> int:
        """The errno with which a run for a reserved topic is refused, or 0. ``client`` is told why."""
        why = self.fault(client, topic_id)
        if why:
            return self._refuse(client, header, errno.EPERM, why)
        if topic_id != CONNECTIVITY:
            return self._refuse(
                client, header, errno.EPERM, "its events have places in the order already (REPORT)"
            )
        if len(run) > RUN_BYTES:
            return self._refuse(client, header, errno.EMSGSIZE, f"a report has at most {RUN_BYTES} bytes")
        for data in run_events(run, header):
            why = self._report_fault(data)
            if why:
                return self._refuse(client, header, errno.EINVAL, why)
        return 0

    def _report_fault(self, data: bytes) -> str:
        try:
            event = ConnectivityEvent.decode(data)
        except Malformed as error:
            return f"no event of this topic: {error}"
        own = self._agent.config.node.id
        return (
            ""
            if event.node_id == own
            else f"node {event.node_id} is not this one: each reports on itself ({own})"
        )

    def _refuse(self, client: Client, header: RunHeader, code: int, why: str) -> int:
        if not client.gone:
            client.session.answer(0, Answer.REFUSED, Refused(header.producer, header.first_number, why))
            self._agent.connections.touch(client)
        return code

    def report(self, client: Client, report: Report) -> tuple[int, str]:
        """A component's word outside of the order: an errno and why it is refused, or (0, "")."""
        agent = self._agent
        topic = agent.node.topics.get(canonical(report.topic))
        if topic is None:
            return errno.EINVAL, f"there is no topic {report.topic!r}"
        why = self.fault(client, topic.topic_id)
        if why:
            return errno.EPERM, f"topic {topic.name!r}: {why}"
        node_id, incarnation = agent.config.node.id, agent.incarnation
        views = self._views
        if topic == CONNECTIVITY_TOPIC:
            why = "places are for views alone" if report.seq else self._report_fault(report.data)
            if not why:
                self.current.notify(report.data, node_id, incarnation, agent.router.views.m_sequence)
            return (errno.EINVAL if why else 0), f"topic {topic.name!r}: {why}"
        if views is None or views.component is None or views.component.line is not client.line:
            return errno.EPERM, f"topic {topic.name!r}: its component is who has subscribed to {RAW.name!r}"
        try:
            code, why = views.report(report.seq, report.data, node_id, incarnation)
        except Malformed as error:
            code, why = errno.EINVAL, f"no event of this topic: {error}"
        return code, f"topic {topic.name!r}: {why}"

    def subscribe_fault(self, client: Client, topic_ids: Collection[int]) -> tuple[int, str]:
        """Why ``client`` may not have these topics: an errno and a sentence, or (0, "")."""
        views = self._views
        if RAW.topic_id not in topic_ids or views is None:
            return 0, ""
        why = self.fault(client, RAW.topic_id)
        if why:
            return errno.EPERM, f"topic {RAW.name!r}: {why}"
        if views.component is not None:
            owner = self._agent.clients.get(views.component.line.connection)
            if owner is None or not is_closed(owner.socket):
                pid = 0 if owner is None else owner.peer.pid
                return (
                    errno.EBUSY,
                    f"topic {RAW.name!r}: process {pid} is the membership component of this node",
                )
            self._agent.connections.read_to_its_end(owner, "another component takes its place")
        return 0, ""

    def begin(self, subscription: Subscription, positions: Mapping[str, Position]) -> None:
        """A subscription has started: give it what is current."""
        if CONNECTIVITY in subscription.topics:
            known = positions.get(CONNECTIVITY_TOPIC.name)
            self.current.begin(subscription, None if known is None else known.seq)
        views = self._views
        if RAW.topic_id in subscription.topics and views is not None:
            log.info("component", topic=MEMBERSHIP_TOPIC.name, told="it is there", unplaced=views.unplaced)
            self._missing = False
            views.begin_raw()

    def client_lost(self, client: Client) -> None:
        """A connection is about to be closed: was it a component's?"""
        views = self._views
        if views is not None and views.component is not None and views.component.line is client.line:
            self._missing = True
            log.warning(
                "component", topic=MEMBERSHIP_TOPIC.name, pid=client.peer.pid,
                told="it is gone: changes of the membership are not told here until it is back",
            )  # fmt: skip

    # --- the built-in one ---------------------------------------------------------------------------------------

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the reporter, where it is this agent's own."""
        if self._agent.config.components.connectivity != "builtin":
            return
        timing = self._agent.config.timing
        interval_s = max(timing.heartbeat_ms / 1000, REPORT_INTERVAL_NS / SECOND_NS)
        reporter = ConnectivityReporter(self._dial, self._agent.config.node.id, self, interval_s=interval_s)
        try:
            self._changes = InterfaceChanges()
        except OSError as error:
            self._agent.warnings.append(
                f"changes of network interfaces are not noticed ({error.strerror}): oc.connectivity tells them late"
            )
        else:
            loop.add_reader(self._changes.fileno(), self._on_interface_change, loop)
        self._reporter = reporter
        self._task = loop.create_task(reporter.run())
        self._task.add_done_callback(self._on_end)

    def _dial(self) -> socket.socket:
        """The reporter's end of a new connection; the agent has the other."""
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:  # no descriptors: it tries again
            raise AgentUnreachable(
                f"the agent has no connection for its own component: {error.strerror}"
            ) from None
        client = self._agent.connections.admit(theirs, own=True)
        if client is None:
            ours.close()
            raise AgentUnreachable("the agent cannot tell who its own component is")
        self._own = client.connection
        return ours

    def _on_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.error(
                "component", topic=CONNECTIVITY_TOPIC.name, told="it has failed", exc_info=task.exception()
            )
            self._agent.warnings.append(
                f"the component of {CONNECTIVITY_TOPIC.name} has failed: {task.exception()}"
            )

    def _on_interface_change(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look once, and then not for a moment: a storm of changes must not hold up the order."""
        if self._changes is None or self._reporter is None:
            return
        loop.remove_reader(self._changes.fileno())
        self._look_again = loop.call_later(INTERFACE_LOOK_NS / SECOND_NS, self._watch_again, loop)
        if self._changes.read():
            self._reporter.look_at_interfaces()

    def _watch_again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._look_again = None
        if self._changes is not None:
            loop.add_reader(self._changes.fileno(), self._on_interface_change, loop)

    def stop(self) -> None:
        """The node is about to leave: the built-in component says goodbye while there is an order."""
        if self._reporter is not None:
            self._reporter.stop()

    async def end(self, loop: asyncio.AbstractEventLoop) -> None:
        """The agent ends: nothing of the components may be left."""
        if self._look_again is not None:
            self._look_again.cancel()
        if self._look_later is not None:
            self._look_later.cancel()
        if self._changes is not None:
            if self._look_again is None:
                loop.remove_reader(self._changes.fileno())
            self._changes.close()
            self._changes = None
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,), timeout=_ENDING_S)

    @property
    def last_word_due(self) -> bool:
        """Whether an external component has still to tell its subscribers of this node's eviction."""
        return self._views is not None and self._views.last_word_due

    # --- what the reporter knows --------------------------------------------------------------------------------

    def interfaces(self) -> tuple[Interface, ...]:
        try:
            devices = list_devices()
        except OSError:  # no descriptor is left to ask with: nobody knows better for now
            if self._look_later is None:
                loop = asyncio.get_running_loop()
                self._look_later = loop.call_later(SHORTAGE_RETRY_NS / SECOND_NS, self._looks_later)
            return self._known
        cluster = set(self._agent.cluster_addresses())
        found: list[Interface] = []
        addresses = 0
        for device in devices[:INTERFACES_REPORTED]:
            state = InterfaceState.NONE
            for holds, flag in (
                (device.is_up, InterfaceState.UP),
                (device.has_carrier, InterfaceState.CARRIER),
                (device.is_loopback, InterfaceState.LOOPBACK),
                (device.is_multicast, InterfaceState.MULTICAST),
                (any(text in cluster for text, _ in device.addresses), InterfaceState.CLUSTER),
            ):
                state |= flag if holds else InterfaceState.NONE
            those = device.addresses[: ADDRESSES_REPORTED - addresses]
            addresses += len(those)
            found.append(
                Interface(
                    device.index, device.name, device.mtu, state, tuple(Address.of(*one) for one in those)
                )
            )
        self.left_out = max(0, len(devices) - INTERFACES_REPORTED)
        self._known = tuple(found)
        return self._known

    def _looks_later(self) -> None:
        self._look_later = None
        if self._reporter is not None:
            self._reporter.look_at_interfaces()

    def links(self, all_pairs: bool) -> tuple[Link, ...]:
        return self._agent.who_hears(all_pairs)

    def table(self) -> Mapping[int, int]:
        configuration = self._agent.node.configuration
        return self._agent.config.cluster.table() if configuration is None else configuration.table

    def reports_eligibility(self) -> bool:
        configuration = self._agent.node.configuration
        return configuration is not None and configuration.sequencer == self._agent.config.node.id

    # --- status -------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether one of the agent's connections is the built-in component's."""
        return self._own in self._agent.clients

    def is_own(self, client: Client) -> bool:
        """Whether a connection is the built-in component's."""
        return client.connection == self._own

    def status(self) -> dict[str, Any]:
        """For the status document."""
        config, views, reporter = self._agent.config.components, self._views, self._reporter
        document: dict[str, Any] = {
            "membership": {"mode": config.membership, "present": True},
            "connectivity": {"mode": config.connectivity},
        }
        if views is not None:
            component = views.component
            owner = None if component is None else self._agent.clients.get(component.line.connection)
            document["membership"].update(
                present=component is not None,
                pid=0 if owner is None else owner.peer.pid,
                unplaced=views.unplaced,
            )
        if reporter is not None:
            document["connectivity"].update(
                present=self._task is not None and not self._task.done(), reports=reporter.published,
                coalesced=reporter.coalesced, interfaces_left_out=self.left_out,
            )  # fmt: skip
        return document

    def warnings(self) -> list[str]:
        """What an operator should know of now."""
        if self._views is None or self._views.component is not None:
            return []
        was = "is gone" if self._missing else "is not there yet"
        return [
            f'the membership component {was} (components.membership = "external"): nothing is told of changes'
        ]
