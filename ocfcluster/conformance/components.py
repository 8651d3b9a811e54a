"""P1: the publisher library, and components from outside in the place of the built-in ones."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from ocfcluster.client import Client
from ocfcluster.client.component import Component
from ocfcluster.client.events import Event
from ocfcluster.components.connectivity import ConnectivityCode, ConnectivityEvent, Link, LinkState
from ocfcluster.components.membership import MembershipCode, MembershipEvent, Node
from ocfcluster.components.views import TOPIC as VIEWS
from ocfcluster.components.views import RawEntry
from ocfcluster.conformance.context import (
    PATIENCE_S,
    QUIET_S,
    Context,
    expect,
    expect_equal,
    expect_errno,
    must,
    settles,
)
from ocfcluster.conformance.registry import obligation
from ocfcluster.wire.frames import RecordFlags, Report, Request

MEMBERSHIP = "oc.membership"
CONNECTIVITY = "oc.connectivity"
LIMIT_S = 60.0
CHANGE_S = 12.0  # for an agent to start
SUSPICION_MS = 500
EXTERNAL_MEMBERSHIP = {"membership": "external"}
EXTERNAL_CONNECTIVITY = {"connectivity": "external"}
Given = TypeVar("Given")


class _Membership(Component):
    """Places what the entries say, but for views that are ``held``."""

    topic = MEMBERSHIP
    hears = (VIEWS,)

    def __init__(self, socket: str, hold: bool = False) -> None:
        super().__init__(socket)
        self.entries: list[RawEntry] = []
        self.hold = hold
        self.lost: list[str] = []

    def check(self, data: bytes) -> object:
        return data  # so that what the agent says can be seen

    async def on_event(self, event: Event) -> None:
        entry = RawEntry.decode(event.data)
        self.entries.append(entry)
        if not self.hold and entry.kind == "view":
            await self.place(entry.seq, membership(entry))

    async def on_lost(self, reason: str) -> None:
        self.lost.append(reason)


class _Connectivity(Component):
    topic = CONNECTIVITY

    def check(self, data: bytes) -> object:
        return data


class _Checking(_Connectivity):
    def check(self, data: bytes) -> object:
        return ConnectivityEvent.decode(data)


def membership(entry: RawEntry, m_sequence: int = 0) -> bytes:
    """The event of a view."""
    nodes = [
        tuple(Node(one.node_id, one.born_on) for one in those)
        for those in (entry.members, entry.joined, entry.left)
    ]
    return MembershipEvent(MembershipCode.NEW_MEMBERSHIP, m_sequence or entry.m_sequence, *nodes).encode()


class _Running:
    """A component in a thread and loop of its own."""

    def __init__(self, component: Component) -> None:
        self.component = component
        self._loop = asyncio.new_event_loop()
        self._run: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._main, daemon=True)

    def _main(self) -> None:
        self._run = self._loop.create_task(self.component.run())
        self._loop.run_until_complete(asyncio.wait((self._run,)))

    def __enter__(self) -> Self:
        self._thread.start()
        expect(
            settles(lambda: bool(self.component.connection) or self.failed() is not None),
            "no component came up",
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self.component.stop)
            self._thread.join(PATIENCE_S)

    def failed(self) -> BaseException | None:
        """What ended the component."""
        run = self._run
        return run.exception() if run is not None and run.done() and not run.cancelled() else None

    def call(self, coroutine: Coroutine[Any, Any, Given]) -> Given:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE_S)


def _report(client: Client, topic: str, data: bytes, seq: int = 0) -> None:
    client.connection().call(Request.REPORT, Report(topic, data, seq), PATIENCE_S)


@obligation("P1")
def built_in_components_have_their_topics_alone(context: Context) -> None:
    """Where a component is built in nobody else publishes, not even as root: EPERM, in the order and outside of it."""
    client = context.client()
    event = MembershipEvent(MembershipCode.NEW_MEMBERSHIP, 1, (Node(1, 1),)).encode()
    links = ConnectivityEvent(ConnectivityCode.CONNECT, client.node_id).encode()
    for topic, data in ((MEMBERSHIP, event), (CONNECTIVITY, links)):
        receipt = client.publish(topic, data)
        error = expect_errno(errno.EPERM, f"publishing to {topic}", receipt.wait, PATIENCE_S)
        expect("built" in str(error), f"the reason is {error}")
        expect_errno(errno.EPERM, f"a report to {topic}", _report, client, topic, data)
    expect_errno(errno.EINVAL, "a topic for views", client.subscribe, VIEWS)


@obligation("P1", time_limit_s=LIMIT_S)
def an_external_component_takes_the_place(context: Context) -> None:
    """Nothing is told until an external membership component does; its event has the view's numbers on every node."""
    with context.own_cluster(2, SUSPICION_MS, EXTERNAL_MEMBERSHIP) as cluster:
        clients = [context.client(cluster.socket(i)) for i in (1, 2)]
        waiting = [client.subscribe(MEMBERSHIP) for client in clients]
        expect_equal(
            [one.get(timeout=QUIET_S) for one in waiting], [None, None], "what came without a component"
        )
        with _Running(_Membership(cluster.socket(1))), _Running(_Membership(cluster.socket(2))):
            events = [must(one.get(timeout=PATIENCE_S), "the component's event") for one in waiting]
            places = [(one.seq, one.ev_id, one.m_sequence, one.order_time_ns, one.data) for one in events]
            expect_equal(places[0], places[1], "the event of two components")
            expect_equal(
                places[0][0], waiting[0].starts[0].next_seq, "its seq, and where the subscription starts"
            )
            expect_equal(places[0][2], 1, "its m_sequence")
            with clients[0].subscribe(MEMBERSHIP) as late:
                kept = must(late.get(timeout=PATIENCE_S), "the membership for a late subscriber")
                expect_equal(
                    (kept.seq, kept.data, kept.flags),
                    (events[0].seq, events[0].data, RecordFlags.RETAINED),
                    "the membership for a late subscriber",
                )


@obligation("P1", time_limit_s=LIMIT_S)
def data_of_reserved_topics_is_validated(context: Context) -> None:
    """What is no event of the topic is refused with EINVAL and a reason, by the library and at the agent's door."""
    with context.own_cluster(1, SUSPICION_MS, {**EXTERNAL_MEMBERSHIP, **EXTERNAL_CONNECTIVITY}) as cluster:
        component = _Membership(cluster.socket(1), hold=True)
        with _Running(component) as running:
            expect(settles(lambda: bool(component.entries)), "no view came to the component")
            view = component.entries[0]
            for what, seq, data, reason in (
                ("nonsense", view.seq, b"nonsense", "bytes"),
                ("another m_sequence", view.seq, membership(view, 7), "m_sequence"),
                ("another place", view.seq + 1, membership(view), "next is"),
                ("a view without a place", 0, membership(view), "seq"),
            ):
                error = expect_errno(errno.EINVAL, what, running.call, component.place(seq, data))
                expect(reason in str(error), f"{what}: the reason is {error}")
            running.call(component.place(view.seq, membership(view)))
        node_id = context.client(cluster.socket(1)).node_id
        good = ConnectivityEvent(
            ConnectivityCode.CONNECT, node_id, links=(Link(node_id, 2, 0, LinkState.HEARS),)
        )
        foreign = ConnectivityEvent(ConnectivityCode.CONNECT, node_id + 1).encode()
        with (
            _Running(_Connectivity(cluster.socket(1))) as running,
            _Running(_Checking(cluster.socket(1))) as checking,
        ):
            for what, data, reason in (
                ("nonsense", b"nonsense", "bytes"),
                ("of another node", foreign, "not this one"),
            ):
                error = expect_errno(errno.EINVAL, what, running.call, _published(running.component, data))
                expect(reason in str(error), f"{what} published: the reason is {error}")
                error = expect_errno(errno.EINVAL, what, running.call, running.component.notify(data))
                expect(reason in str(error), f"{what} told here: the reason is {error}")
            expect_errno(errno.EINVAL, "nonsense", checking.call, checking.component.publish(b"nonsense"))
            running.call(_published(running.component, good.encode()))
        with context.client(cluster.socket(1)).subscribe(CONNECTIVITY) as late:
            kept = must(late.get(timeout=PATIENCE_S), "what the component has published")
            expect_equal((kept.seq, kept.data), (1, good.encode()), "the only event that was let in")


async def _published(component: Component, data: bytes) -> None:
    await (await component.publish(data))


@obligation("P1", time_limit_s=LIMIT_S)
def a_component_that_is_gone_is_seen(context: Context) -> None:
    """A second component is refused with EBUSY; the end of one is seen, and its successor tells what was not told."""
    with context.own_cluster(1, SUSPICION_MS, EXTERNAL_MEMBERSHIP) as cluster:
        client = context.client(cluster.socket(1))

        def said() -> dict[str, Any]:
            return dict(client.status()["components"]["membership"])

        expect_equal(
            (said()["mode"], said()["present"]), ("external", False), "what is said before it is there"
        )
        with _Running(_Membership(cluster.socket(1), hold=True)):
            expect(settles(lambda: said()["present"]), "the component does not show in the status")
            expect_errno(
                errno.EBUSY, "a second component", context.client(cluster.socket(1)).subscribe, VIEWS
            )
        expect(settles(lambda: not said()["present"]), "the end of the component does not show in the status")
        expect_equal(said()["unplaced"], 1, "views without an event")
        expect(
            any("membership component is gone" in one for one in client.status()["warnings"]), "no warning"
        )
        with client.subscribe(MEMBERSHIP) as subscription:
            expect_equal(subscription.get(timeout=QUIET_S), None, "what came without a component")
            for _ in range(2):  # the second has nothing to tell that was not told
                with _Running(_Membership(cluster.socket(1))) as running:
                    expect(settles(lambda: running.component.published > 0), "the successor has told nothing")
            event = must(subscription.get(timeout=PATIENCE_S), "the event of the successor")
            expect_equal(event.m_sequence, 1, "its m_sequence")
            expect_equal(subscription.get(timeout=QUIET_S), None, "what came besides")


@obligation("P1", time_limit_s=LIMIT_S)
def a_component_outlives_its_agent(context: Context) -> None:
    """When the agent is killed and started again its component is told, goes on with the next one, and tells it all."""
    with context.own_cluster(1, SUSPICION_MS, EXTERNAL_MEMBERSHIP) as cluster:
        component = _Membership(cluster.socket(1))
        with _Running(component) as running:
            expect(settles(lambda: component.published == 1), "nothing was told")
            cluster.kill(1)
            expect(settles(lambda: bool(component.lost)), "the component was not told that its agent is gone")
            cluster.start(1)
            expect(settles(lambda: component.published == 2, CHANGE_S), "the next agent was told nothing")
            expect_equal(running.failed(), None, "what ended the component")
        client = context.client(cluster.socket(1))
        with client.subscribe(MEMBERSHIP) as subscription:
            event = must(subscription.get(timeout=PATIENCE_S), "the membership after the restart")
            expect_equal(
                [node.node_id for node in MembershipEvent.decode(event.data).members],
                [client.node_id],
                "members",
            )
