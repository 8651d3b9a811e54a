"""The publisher library: state that is told together, one publication under way, minorities, and a component's life."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from ocfcluster.client.component import Component
from ocfcluster.components.connectivity import (
    Address,
    Change,
    ConnectivityCode,
    ConnectivityEvent,
    Eligible,
    Interface,
    InterfaceState,
    Link,
    LinkState,
)
from ocfcluster.components.membership import MembershipCode, MembershipEvent, Node
from ocfcluster.components.reporter import ConnectivityReporter
from ocfcluster.errors import AgentUnreachable, InvalidArgument, Malformed, NotConnected, NotPermitted
from ocfcluster.wire.frames import RecordFlags
from tests.cluster import LoopbackCluster
from tests.external import ExternalCluster

INTERVAL_S = 0.02
ROUND_S = 3 * INTERVAL_S


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 20))


class Told:
    """In the place of an agent: what a component has told; receipts come when the test says so."""

    def __init__(self) -> None:
        self.published: list[bytes] = []
        self.notified: list[bytes] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.under_way = 0
        self.most_under_way = 0

    def attach(self, component: Component) -> None:
        async def publish(data: bytes) -> Any:
            self.published.append(bytes(data))
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)

            async def receipt() -> None:
                await self.answers.wait()
                self.under_way -= 1

            return receipt()

        async def notify(data: bytes) -> None:
            self.notified.append(bytes(data))

        component.publish = publish  # type: ignore[method-assign,assignment]
        component.notify = notify  # type: ignore[method-assign,assignment]


class Counter(Component):
    """Tells a number."""

    topic = "oc.test"

    def __init__(self) -> None:
        super().__init__(interval_s=INTERVAL_S)
        self.number = 0
        self.confirmed: list[str] = []

    def state(self, key: str, coalesced: int) -> bytes | None:
        return b"%s %d %d" % (key.encode(), self.number, coalesced) if self.number else None

    def told(self, key: str) -> None:
        self.confirmed.append(key)


@contextlib.asynccontextmanager
async def telling(component: Component) -> AsyncIterator[Told]:
    told = Told()
    told.attach(component)
    task = asyncio.create_task(component._tell())
    try:
        yield told
    finally:
        task.cancel()
        await asyncio.wait((task,))
        if component._sending is not None:
            component._sending.cancel()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - conditions of all kinds
            await asyncio.sleep(0.002)


def test_what_changes_in_between_is_told_together() -> None:
    async def main() -> None:
        component = Counter()
        async with telling(component) as told:
            for _ in range(50):
                component.number += 1
                component.changed("n")
            await until(lambda: bool(told.published))
            assert told.published == [b"n 50 49"]
            assert (component.coalesced, component.confirmed) == (49, ["n"])
            began = asyncio.get_running_loop().time()
            for _ in range(40):
                component.number += 1
                component.changed("n")
                await asyncio.sleep(INTERVAL_S / 10)
            await asyncio.sleep(ROUND_S)
            took = asyncio.get_running_loop().time() - began
            assert 2 <= len(told.published) <= 2 + took / INTERVAL_S
            assert told.published[-1].startswith(b"n 90 ")
            assert component.coalesced + len(told.published) == 90

    run(main())


def test_nothing_to_tell_is_not_told() -> None:
    async def main() -> None:
        component = Counter()
        async with telling(component) as told:
            component.changed("n")
            await asyncio.sleep(ROUND_S)
            assert not told.published
            assert not component.confirmed

    run(main())


def test_one_publication_is_under_way() -> None:
    async def main() -> None:
        component = Counter()
        async with telling(component) as told:
            told.answers.clear()
            for _ in range(20):
                component.number += 1
                component.changed("n")
                await asyncio.sleep(INTERVAL_S / 2)
            assert len(told.published) == 1
            assert not component.confirmed
            told.answers.set()
            await until(lambda: component.confirmed == ["n", "n"])
            assert told.published[1].startswith(b"n 20 ")
            assert component.coalesced == 18
            assert told.most_under_way == 1

    run(main())


def test_without_a_majority_the_subscribers_here_are_told() -> None:
    async def main() -> None:
        component = Counter()
        async with telling(component) as told:
            told.answers.clear()
            component.number = 1
            component.changed("n")
            await until(lambda: bool(told.published))
            component.set_ordered(False)
            await until(lambda: bool(told.notified))
            assert told.notified == [b"n 1 0"]  # what is under way may not come for long
            assert component.confirmed == ["n"]
            component.number = 2
            component.changed("n")
            await until(lambda: len(told.notified) == 2)
            component.set_ordered(True)
            component.number = 3
            component.changed("n")
            await asyncio.sleep(ROUND_S)
            assert told.published == [b"n 1 0"]  # the one before is still under way
            told.answers.set()
            await until(lambda: len(told.published) == 2)
            assert told.published[1] == b"n 3 0"
            assert told.most_under_way == 1

    run(main())


# --- the reporter -------------------------------------------------------------------------------------------

LO = Interface(1, "lo", 65536, InterfaceState(7), (Address.of("127.0.0.1", 8),))
ETH = Interface(2, "eth0", 1500, InterfaceState.UP | InterfaceState.CARRIER, (Address.of("10.0.0.1", 24),))
BOTH = LinkState.HEARS | LinkState.HEARD


class World:
    """What a reporter finds."""

    def __init__(self) -> None:
        self.those: tuple[Interface, ...] = (LO, ETH)
        self.heard = {2: BOTH, 3: BOTH}
        self.votes = {1: 1, 2: 1, 3: 1}
        self.turn = True

    def interfaces(self) -> tuple[Interface, ...]:
        return self.those

    def links(self, all_pairs: bool) -> tuple[Link, ...]:
        own = tuple(Link(1, other, 0, state) for other, state in self.heard.items())
        return (*own, Link(2, 3, 0, BOTH), Link(2, 1, 0, BOTH)) if all_pairs else own

    def table(self) -> dict[int, int]:
        return self.votes

    def reports_eligibility(self) -> bool:
        return self.turn


class Heard:
    """As much of an Event as a reporter looks at."""

    def __init__(
        self, data: bytes, topic: str = "oc.membership", flags: RecordFlags = RecordFlags.NONE
    ) -> None:
        self.data, self.topic, self.flags = data, topic, flags
        self.local = bool(flags & RecordFlags.LOCAL)


def membership(code: MembershipCode, joined: tuple[int, ...] = (), **named: Any) -> Any:
    nodes = tuple(Node(node, 1) for node in joined)
    return Heard(MembershipEvent(code, 1, nodes, nodes).encode(), **named)


@contextlib.asynccontextmanager
async def reporting() -> AsyncIterator[tuple[ConnectivityReporter, World, Told]]:
    """A reporter that has told everything once."""
    world = World()
    reporter = ConnectivityReporter(socket.socket, 1, world, interval_s=INTERVAL_S)
    async with telling(reporter) as told:
        reporter._client = object()  # type: ignore[assignment]
        await reporter.on_start()
        work = asyncio.create_task(reporter.work())
        try:
            await until(lambda: len(told.published) == 3)
            await asyncio.sleep(ROUND_S)
            assert [one.code.name for one in opened(told.published)] == ["INTERFACE", "ELIGIBLE", "CONNECT"]
            assert not told.notified
            told.published.clear()
            yield reporter, world, told
        finally:
            work.cancel()
            await asyncio.wait((work,))


def opened(those: list[bytes]) -> list[ConnectivityEvent]:
    return [ConnectivityEvent.decode(data) for data in those]


def test_an_interface_that_flaps_is_told_though_it_is_as_before() -> None:
    async def main() -> None:
        async with reporting() as (reporter, world, told):
            for state in (InterfaceState.UP, ETH.state) * 3:
                world.those = (LO, ETH._replace(state=state))
                reporter.look_at_interfaces()
                reporter.look_at_interfaces()  # the kernel says one thing in several messages
            await until(lambda: bool(told.published))
            await asyncio.sleep(ROUND_S)
            (event,) = opened(told.published)
            assert (event.interfaces, event.coalesced) == ((LO, ETH), 5)

    run(main())


def test_changes_are_marked_against_what_was_told_last() -> None:
    async def main() -> None:
        async with reporting() as (_, world, told):
            world.heard = {2: LinkState.NONE, 3: BOTH}
            await until(lambda: bool(told.published))
            world.votes = {1: 1, 2: 1, 3: 1, 4: 1}
            await until(lambda: len(told.published) == 2)
            links, eligible = opened(told.published)
            assert [(one.heard, one.change) for one in links.links] == [(2, Change.FAILED), (3, Change.NONE)]
            assert [(one.node_id, one.change) for one in eligible.eligible][2:] == [
                (3, Change.NONE),
                (4, Change.ADDED),
            ]
            await asyncio.sleep(ROUND_S)
            assert len(told.published) == 2

    run(main())


def test_the_sequencer_alone_tells_the_table() -> None:
    async def main() -> None:
        async with reporting() as (reporter, world, told):
            world.turn = False
            world.votes = {1: 1}
            await asyncio.sleep(ROUND_S)
            assert not told.published
            other = ConnectivityEvent(ConnectivityCode.ELIGIBLE, 2, eligible=(Eligible(1, 1), Eligible(2, 1)))
            await reporter.on_event(Heard(other.encode(), "oc.connectivity"))  # type: ignore[arg-type]
            world.turn = True  # the sequencer before has told nobody: that is made up for
            await until(lambda: bool(told.published))
            (event,) = opened(told.published)
            assert event.eligible == (Eligible(1, 1), Eligible(2, 0, Change.REMOVED))

    run(main())


def test_nothing_that_others_publish_ends_the_reporter() -> None:
    async def main() -> None:
        async with reporting() as (reporter, world, told):
            for topic in ("oc.membership", "oc.connectivity"):
                await reporter.on_event(Heard(b"no event", topic))  # type: ignore[arg-type]
            absurd = ConnectivityEvent(
                ConnectivityCode.ELIGIBLE, 2, eligible=tuple(Eligible(node, 1) for node in range(1, 7000))
            )
            await reporter.on_event(Heard(absurd.encode(), "oc.connectivity"))  # type: ignore[arg-type]
            world.votes = {1: 1, 2: 1, 3: 1, 4: 1}
            await until(lambda: bool(told.published))
            (event,) = opened(told.published)
            assert len(event.eligible) == 4

    run(main())


def test_newcomers_are_told_everything_again() -> None:
    async def main() -> None:
        async with reporting() as (reporter, _, told):
            await reporter.on_event(membership(MembershipCode.NEW_MEMBERSHIP, (1,)))
            await reporter.on_event(
                membership(MembershipCode.NEW_MEMBERSHIP, (3,), flags=RecordFlags.RETAINED)
            )
            await asyncio.sleep(ROUND_S)
            assert not told.published
            await reporter.on_event(membership(MembershipCode.NEW_MEMBERSHIP, (3,)))
            await until(lambda: len(told.published) == 3)
            assert not any(event.changed for event in opened(told.published))

    run(main())


def test_a_minority_hears_what_its_node_knows_of_all() -> None:
    async def main() -> None:
        async with reporting() as (reporter, world, told):
            world.heard = {2: BOTH, 3: LinkState.NONE}
            await reporter.on_event(membership(MembershipCode.NOT_PRIMARY))
            await until(lambda: len(told.notified) == 2)
            interfaces, links = opened(told.notified)
            assert interfaces.interfaces == (LO, ETH)
            assert [(one[:2], one.established) for one in links.links] == [
                ((1, 2), True), ((1, 3), False), ((2, 3), True), ((2, 1), True),
            ]  # fmt: skip
            await reporter.on_event(membership(MembershipCode.PRIMARY_RESTORED))
            await until(lambda: len(told.published) >= 3)
            assert {one.code for one in opened(told.published)} == set(ConnectivityCode) - {
                ConnectivityCode.INVALID
            }

    run(main())


# --- with an agent ------------------------------------------------------------------------------------------


class Life(Component):
    topic = "oc.connectivity"

    def __init__(self, socket: str) -> None:
        super().__init__(socket)
        self.lived: list[str] = []

    def check(self, data: bytes) -> object:
        if data == b"worse":
            raise Malformed("worse than that")
        return data

    async def on_start(self) -> None:
        self.lived.append("start")

    async def on_lost(self, reason: str) -> None:
        self.lived.append(f"lost: {reason}")


def test_a_component_starts_is_refused_and_stops() -> None:
    with LoopbackCluster(1) as cluster:

        async def main() -> None:
            component = Life(cluster.socket(1))
            with pytest.raises(NotConnected):
                await component.publish(b"early")
            running = asyncio.create_task(component.run())
            await until(lambda: component.lived == ["start"])
            assert component.connection
            with pytest.raises(InvalidArgument, match="worse than that"):
                await component.publish(b"worse")
            receipt = await component.publish(b"anything")  # the agent has that component built in
            with pytest.raises(NotPermitted, match="built"):
                await receipt
            with pytest.raises(NotPermitted, match="built"):
                await component.notify(b"anything")
            component.stop()
            await running
            assert component.lived == ["start", "lost: "]
            assert not component.connection

        run(main())


def test_what_a_hook_raises_ends_the_component() -> None:
    class Wrong(Life):
        async def work(self) -> None:
            raise ZeroDivisionError

    with LoopbackCluster(1) as cluster:

        async def main() -> None:
            component = Wrong(cluster.socket(1))
            with pytest.raises(ZeroDivisionError):
                await component.run()
            assert not component.connection

        run(main())


def test_a_component_waits_for_its_agent() -> None:
    async def main() -> None:
        component = Life("/nowhere/agent.sock")
        running = asyncio.create_task(component.run())
        await asyncio.sleep(0.1)
        assert not running.done()
        component.stop()
        await running
        assert component.lived == []

    run(main())
    assert issubclass(AgentUnreachable, OSError)


def test_the_end_of_the_example_is_seen_and_its_successor_goes_on() -> None:
    """The program of docs/publishers.md, killed and started again while the membership changes."""
    with (
        ExternalCluster(2, timing={"suspicion_ms": 500, "heartbeat_ms": 100}) as cluster,
        cluster.connect(1) as client,
    ):
        assert cluster.wait_present(1)["pid"] == cluster.components[1].pid
        with client.subscribe("oc.membership") as events:
            first = events.get(timeout=5)
            assert first is not None
            cluster.kill_component(1)
            said = cluster.wait_present(1, present=False)
            assert said["unplaced"] == 0
            assert "component is gone" in cluster.status(1)["warnings"][-1]
            assert '"it is gone' in cluster.log(1).read_text()
            cluster.stop_agent(2)
            assert events.get(timeout=2) is None
            cluster.start_component(1)
            after = events.get(timeout=10)
            assert after is not None
            assert (after.seq, after.m_sequence) == (first.seq + 1, first.m_sequence + 1)
            left = MembershipEvent.decode(after.data)
            assert [node.node_id for node in left.left] == [2]
        cluster.wait_present(1)
