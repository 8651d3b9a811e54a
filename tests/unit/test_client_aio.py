"""The asyncio API against the fake agent."""

from __future__ import annotations

import asyncio
import gc
import select
import warnings
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

import ocfcluster
from ocfcluster import errors
from ocfcluster.client.aio import AsyncClient
from ocfcluster.client.events import Event
from ocfcluster.wire.run import read_header
from tests.unit.early import EarlyAgent
from tests.unit.fake_agent import Cluster, FakeAgent


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    cluster = Cluster()
    for name in ("t", "u"):
        cluster.create(name)
    cluster.create("here", local=True)
    with FakeAgent(str(tmp_path / "agent.sock"), cluster) as fake:
        yield fake


def run(agent: FakeAgent, body: Callable[[AsyncClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with ocfcluster.aio.connect(agent.path) as client:
            await asyncio.wait_for(body(client), 10)

    asyncio.run(main())


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("not within the time given")


def test_publish_and_iterate(agent: FakeAgent) -> None:
    async def body(client: AsyncClient) -> None:
        events = await client.subscribe("t")
        assert [(start.topic, start.next_seq) for start in events.starts] == [("t", 1)]
        receipt = await client.publish("t", b"one", properties={"k": "v"})
        published = await receipt
        assert (published.seq, receipt.done()) == (1, True)
        async for event in events:
            assert (event.data, event.properties) == (b"one", {"k": "v"})
            break
        assert await events.get(0) is None
        assert await events.get(0.01) is None
        assert not select.select([events], [], [], 0)[0]
        await events.close()
        with pytest.raises(errors.InvalidArgument):
            await events.get(0)

    run(agent, body)


def test_what_was_cancelled_goes_to_no_other_agent(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.sock")
    cluster = Cluster()
    cluster.create("t")

    async def main() -> None:
        first = FakeAgent(path, cluster)
        async with ocfcluster.aio.connect(path) as client:
            first.kill()
            await asyncio.sleep(0.02)
            for waiting in (client.subscribe("t").start(), client.remove_topic("t")):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(waiting, 0.05)
            with FakeAgent(path, cluster) as agent:
                assert (await (await client.publish("t", b"1")).wait(3)).seq == 1
                assert agent.connections == 1

    asyncio.run(main())


@pytest.mark.parametrize("many", [True, False])
def test_who_waits_for_room_in_a_history_that_ends_publishes_in_the_next(tmp_path: Path, many: bool) -> None:
    path = str(tmp_path / "agent.sock")
    cluster, other = Cluster(), Cluster("history-2")
    cluster.create("t")
    for name in ("other", "t"):  # in it topics have other numbers
        other.create(name)

    async def main() -> None:
        first = FakeAgent(path, cluster)
        first.hold_receipts = True
        published = 0
        async with ocfcluster.aio.connect(path) as client, client.publisher("t") as publisher:

            async def publish() -> None:
                nonlocal published
                for i in range(300):
                    if many:
                        await publisher.publish_many([b"x"])
                    else:
                        await publisher.publish(b"x", re_id=i)  # each a run of its own
                    published += 1

            publishing = asyncio.create_task(publish())
            await asyncio.sleep(0.2)
            assert not publishing.done()
            first.kill()
            with FakeAgent(path, other):
                await asyncio.wait_for(publishing, 5)
                await publisher.flush(5)
        assert {read_header(run).topic_id for run in other.log} == {other.topics["t"].topic_id}

    asyncio.run(main())


def test_iteration_starts_the_subscription(agent: FakeAgent) -> None:
    async def body(client: AsyncClient) -> None:
        async def later() -> None:
            await asyncio.sleep(0.05)
            await client.publish_many("t", [b"1", b"2"])

        task = asyncio.create_task(later())
        got = []
        events = client.subscribe("t")
        async for event in events:
            got.append(event.data)
            if len(got) == 2:
                break
        await events.close()
        await task
        assert got == [b"1", b"2"]
        with pytest.raises(errors.UnknownTopic):
            await anext(client.subscribe("nowhere"))

    run(agent, body)


def test_an_unreferenced_subscription_is_unsubscribed(agent: FakeAgent) -> None:
    async def body(client: AsyncClient) -> None:
        events = await client.subscribe("t")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del events
            gc.collect()
        assert [warning.category for warning in caught] == [ResourceWarning]
        await eventually(lambda: not any(peer.subscribers for peer in agent._peers.values()))
        assert not client.connection().sockets

    run(agent, body)


def test_one_turn_of_the_loop_is_one_run(agent: FakeAgent) -> None:
    async def body(client: AsyncClient) -> None:
        receipts = [await client.publish("t", b"%d" % i) for i in range(1000)]
        assert [(await receipt).seq for receipt in receipts] == list(range(1, 1001))
        assert agent.runs <= 4

    run(agent, body)


def test_runs_and_publish_many(agent: FakeAgent) -> None:
    async def body(client: AsyncClient) -> None:
        async with client.subscribe("t") as events:
            receipt = await client.publish_many("t", [b"%d" % i for i in range(50_000)])
            got: list[bytes] = []
            async for one in events.runs():
                got.extend(one)
                if len(got) == 50_000:
                    break
            assert got == [b"%d" % i for i in range(50_000)]
            assert (await receipt).count == 50_000

    run(agent, body)


def test_the_window(agent: FakeAgent) -> None:
    async def body(client: AsyncClient) -> None:
        await (await client.publish("t", b""))
        agent.hold_receipts = True
        with pytest.raises(errors.WouldBlock):
            await client.publish_many("t", [bytes(60_000)] * 300, timeout=0.1)
        with pytest.raises(errors.WouldBlock):
            await client.flush(0.05)
        task = asyncio.create_task(client.publish("t", b"through"))
        await asyncio.sleep(0.02)
        await asyncio.to_thread(agent.release_receipts)
        assert (await (await task)).seq > 1

    run(agent, body)


def test_a_wait_for_a_receipt_that_ends_too_early_leaves_nothing(agent: FakeAgent) -> None:
    async def body(client: AsyncClient) -> None:
        agent.hold_receipts = True
        receipt = await client.publish("t", b"x")
        for _ in range(3):
            with pytest.raises(errors.WouldBlock):
                await receipt.wait(0.001)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(receipt.wait(), 0.001)
        assert receipt._last.on_done == []
        await asyncio.to_thread(agent.release_receipts)
        assert (await receipt).seq == 1

    run(agent, body)


def test_several_tasks_share_a_subscription(agent: FakeAgent) -> None:
    async def body(client: AsyncClient) -> None:
        events = await client.subscribe("t")
        seen: list[int] = []

        async def take() -> None:
            while (event := await events.get(1)) is not None and event.data != b"end":
                seen.append(event.seq)

        tasks = [asyncio.create_task(take()) for _ in range(3)]
        await asyncio.sleep(0.01)
        for _ in range(100):
            await (await client.publish("t", b"x"))
        await client.publish_many("t", [b"end"] * 3)
        await asyncio.gather(*tasks)
        assert sorted(seen) == list(range(1, 101))
        await events.close()

    run(agent, body)


def test_cancelling_a_get_leaves_the_subscription_usable(agent: FakeAgent) -> None:
    async def body(client: AsyncClient) -> None:
        events = await client.subscribe("t")
        task = asyncio.create_task(events.get())
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(events.get(5), 0.02)
        await client.publish("t", b"x")
        event = await events.get(2)
        assert event is not None
        await events.close()

    run(agent, body)


def test_a_task_that_was_cancelled_may_look_for_events(agent: FakeAgent) -> None:
    async def body(client: AsyncClient) -> None:
        async with client.subscribe("t") as events:

            async def last_words() -> Event | None:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    return await events.get(0.01)
                return None

            task = asyncio.create_task(last_words())
            await asyncio.sleep(0)
            task.cancel()
            assert await task is None

    run(agent, body)


def test_connecting_that_was_cancelled_leaves_no_connection(agent: FakeAgent) -> None:
    async def main() -> None:
        agent.deaf = True
        task = asyncio.create_task(ocfcluster.aio.connect(agent.path).open())
        await eventually(lambda: bool(agent._peers))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        agent.deaf = False
        agent.call(lambda: None)
        await eventually(lambda: not agent._peers)
        assert agent.connections == 1

    asyncio.run(main())


def test_callbacks_in_one_order(agent: FakeAgent) -> None:
    async def body(client: AsyncClient) -> None:
        seen: list[int] = []
        subscriptions = [
            await client.subscribe(name, on_event=lambda event: seen.append(event.ev_id)) for name in "tu"
        ]
        for i in range(200):
            await client.publish("tu"[i % 2], b"")
        await client.flush()
        for _ in range(200):
            if len(seen) == 200:
                break
            await asyncio.sleep(0.005)
        assert seen == list(range(1, 201))
        for one in subscriptions:
            await one.close()

    run(agent, body)


def test_topics_and_errors(agent: FakeAgent) -> None:
    async def body(client: AsyncClient) -> None:
        assert (await client.create_topic("new", "local")).scope == "local"
        assert [topic.name for topic in await client.topics()] == ["here", "new", "t", "u"]
        await (await client.publish("new", b""))
        await client.remove_topic("new")
        with pytest.raises(errors.UnknownTopic):
            await client.topic("new")
        with pytest.raises(errors.TooLarge):
            await client.publish("t", bytes(2 << 20))
        assert await client.members() == [{"node_id": 1}]
        await client.barrier()
        async with client.publisher("t") as publisher:
            await publisher.publish(b"")

    run(agent, body)
    with pytest.raises(errors.AgentUnreachable):
        asyncio.run(_connect("/nowhere/agent.sock"))


async def _connect(path: str) -> None:
    async with ocfcluster.aio.connect(path):
        pass


def test_a_restart_of_the_agent(agent: FakeAgent) -> None:
    async def body(client: AsyncClient) -> None:
        events = await client.subscribe("t")
        await (await client.publish("t", b"1"))
        waiting = asyncio.create_task(_notices(events))
        await asyncio.to_thread(agent.kill)
        receipt = await client.publish("t", b"2")
        with FakeAgent(agent.path, agent.cluster):
            assert (await receipt).seq == 2
            assert await waiting == [b"1", "agent_lost", "resumed", b"2"]
            await client.close()

    run(agent, body)


async def _notices(events: ocfcluster.client.aio.AsyncSubscription) -> list[object]:
    got: list[object] = []
    async for event in events:
        got.append(event.notice.name if event.notice else event.data)
        if event.data == b"2":
            break
    return got


def test_the_end_without_resume(agent: FakeAgent) -> None:
    async def main() -> None:
        async with ocfcluster.aio.connect(agent.path, resume=False) as client:
            events = await client.subscribe("t")
            await asyncio.to_thread(agent.shutdown)
            got: list[Event] = [event async for event in events]
            assert [event.notice.name for event in got if event.notice] == ["shutdown"]
            with pytest.raises(errors.NotConnected):
                await events.get()
            with pytest.raises(errors.NotConnected):
                await client.publish("t", b"")

    asyncio.run(main())


def test_tasks_that_publish_at_once_keep_the_order_of_their_calls(agent: FakeAgent) -> None:
    """From the very first publication on, while the topic is asked for and the producer opened."""

    async def body(client: AsyncClient) -> None:
        events = await client.subscribe(["t", "u"])
        calls: list[bytes] = []

        async def publish(topic: str, i: int) -> None:
            calls.append(b"%d" % i)
            if i % 3:
                await client.publish(topic, calls[-1], timeout=None if i % 2 else 5)
            else:
                await client.publish_many(topic, [calls[-1]])

        async def take(count: int) -> list[bytes]:
            return [event.data for _ in range(count) if (event := await events.get(2)) is not None]

        await asyncio.gather(*[publish("t", i) for i in range(20)])
        await asyncio.gather(*[publish("u" if i in (5, 11) else "t", i) for i in range(20)])
        assert calls == [b"%d" % i for i in range(20)] * 2
        assert await take(40) == calls
        await events.close()

    run(agent, body)


def test_tasks_that_wait_for_room_keep_the_order_of_their_calls(agent: FakeAgent) -> None:
    async def body(client: AsyncClient) -> None:
        await (await client.publish("t", b""))
        events = await client.subscribe("t")
        agent.hold_receipts = True
        large = [b"many"] + [bytes(60_000)] * 200
        tasks = [asyncio.create_task(client.publish_many("t", large))]
        tasks += [asyncio.create_task(client.publish("t", b"%d" % i)) for i in range(5)]
        await asyncio.sleep(0.05)
        with pytest.raises(errors.WouldBlock):  # not before those that wait
            await client.publish("t", b"late", timeout=0.02)
        tasks[2].cancel()
        agent.hold_receipts = False
        await asyncio.to_thread(agent.release_receipts)
        await asyncio.gather(*tasks, return_exceptions=True)
        tasks.append(asyncio.create_task(client.publish("t", b"end")))
        small: list[bytes] = []
        while (event := await events.get(2)) is not None and event.data != b"end":
            if len(event.data) < 10:
                small.append(event.data)
        assert small == [b"many", b"0", b"2", b"3", b"4"]
        assert len(await asyncio.gather(*tasks, return_exceptions=True)) == 7
        await events.close()

    run(agent, body)


def test_a_new_subscription_has_its_place_in_the_order_before_its_answer_is_read(agent: FakeAgent) -> None:
    agent.kill()
    early = EarlyAgent(agent.path, agent.cluster, "u", "t")
    seen: list[bytes] = []
    began: list[list[bytes]] = []

    async def body(client: AsyncClient) -> None:
        async def subscribe() -> None:
            await client.subscribe("u", lambda event: seen.append(event.data))
            began.append(seen.copy())

        first = await client.subscribe("t", lambda event: seen.append(event.data))
        task = asyncio.create_task(subscribe())
        await eventually(lambda: early.written.is_set() and bool(select.select([first], [], [], 0)[0]))
        await asyncio.sleep(0.05)
        assert seen == []
        early.answer.set()
        await task
        await eventually(lambda: len(seen) == 2)
        assert seen == [b"1", b"2"]
        assert began == [[]]  # no callback before the subscription is there

    with early:
        run(early, body)


def test_a_subscription_that_goes_on_keeps_its_place_in_the_order(agent: FakeAgent) -> None:
    seen: list[bytes] = []
    notices: list[str] = []

    def keep(event: Event) -> None:
        if event.notice is None:
            seen.append(event.data)
        else:
            notices.append(event.notice.name)

    async def body(client: AsyncClient) -> None:
        await client.subscribe("t", keep)
        await client.subscribe("u", keep)
        agent.kill()
        with EarlyAgent(agent.path, agent.cluster, "u", "t") as early:
            await eventually(lambda: "resumed" in notices)
            await asyncio.sleep(0.05)
            assert seen == []
            early.answer.set()
            await eventually(lambda: len(seen) == 2)
            assert seen == [b"1", b"2"]

    run(agent, body)


def test_a_callback_that_nobody_would_await_is_refused(agent: FakeAgent) -> None:
    async def body(client: AsyncClient) -> None:
        async def on_event(event: Event) -> None:
            raise AssertionError

        with pytest.raises(errors.InvalidArgument, match="plain function"):
            client.subscribe("t", on_event)

    run(agent, body)


def test_a_publisher_may_end_after_its_client(agent: FakeAgent) -> None:
    async def body(client: AsyncClient) -> None:
        async with client.publisher("t") as publisher:
            receipt = await publisher.publish(b"x")
            await client.close()
        assert (await receipt).seq == 1

    run(agent, body)


def test_what_a_callback_raises_is_told_and_ends_nothing(agent: FakeAgent) -> None:
    """Also where it is an error of the library, which the subscription itself could have raised."""
    seen: list[bytes] = []
    told: list[str] = []

    def picky(event: Event) -> None:
        seen.append(event.data)
        if event.data.startswith(b"bad"):
            raise errors.InvalidArgument(event.data.decode())

    async def body(client: AsyncClient) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context["exception"].strerror))
        for topic in ("t", "u"):
            await client.subscribe(topic, picky)
        for topic, data in (("t", b"bad 1"), ("u", b"bad 2"), ("u", b"3"), ("t", b"4")):
            await (await client.publish(topic, data))
        await eventually(lambda: len(seen) == 4)
        assert seen == [b"bad 1", b"bad 2", b"3", b"4"]
        assert told == ["bad 1", "bad 2"]

    run(agent, body)
