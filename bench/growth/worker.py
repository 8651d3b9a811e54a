"""A program of ``bench.growth``: many subscribers, or many publishers, that are told what to do.

It prints ``ready``, then answers each line of standard input with one line, a JSON object, and ends with its input.
Times are seconds of the monotonic clock; ``cpu_s`` is its own, user and system, since the answer before.

    python -m bench.growth.worker subscribe SOCKET TOPICS SUBSCRIBERS
        EVENTS   when each subscriber has taken so many since the last answer: {"rates", "cpu_s", "lost", "last"}
    python -m bench.growth.worker publish SOCKET TOPICS PUBLISHERS BATCH EVENT_BYTES
        SECONDS  publishes for so long, then awaits the receipts: {"events", "first", "cpu_s", "first_use_s"};
                 the last is how long one event to each topic took, before it was ready
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import AsyncExitStack, ExitStack
from itertools import cycle
from typing import Final

import ocfcluster
from bench.worker import Lost, cpu_seconds, say
from ocfcluster.client.aio import AsyncSubscription
from ocfcluster.limits import TOPICS_PER_SUBSCRIPTION

TOPIC: Final = "growth"


def topic_names(count: int) -> list[str]:
    return [f"{TOPIC}.{number}" for number in range(count)]


class Tally:
    """Events that all subscribers of this program have taken or lost; ``reached`` is set when they are ``goal``."""

    __slots__ = ("goal", "reached", "total")

    def __init__(self) -> None:
        self.total = self.goal = 0
        self.reached = asyncio.Event()

    def add(self, events: int) -> None:
        self.total += events
        if self.goal and self.total >= self.goal:
            self.reached.set()

    async def wait_for(self, goal: int) -> None:
        """Until so many are counted; counting begins anew then."""
        self.goal = goal
        self.reached.clear()
        self.add(0)
        await self.reached.wait()
        self.total = self.goal = 0


class Taken:
    """What one subscriber took since the last answer."""

    __slots__ = ("_tally", "before", "count", "first", "last", "lost")

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self.restart()

    def restart(self) -> None:
        self.count = self.before = self.lost = 0
        self.first = self.last = 0.0

    def take(self, events: int) -> None:
        self.last = time.monotonic()
        self.count += events
        if not self.first:
            self.first = self.last
            self.before = self.count
        self._tally.add(events)

    def lose(self, events: int) -> None:
        self.lost += events
        self._tally.add(events)

    @property
    def rate(self) -> float:
        """Events per second from behind the first run to the last."""
        return (self.count - self.before) / max(1e-6, self.last - self.first)


async def follow(subscription: AsyncSubscription, taken: Taken) -> None:
    """Take whole runs, and look at the first event of each. Events that were left out are counted as lost."""
    async for run in subscription.runs():
        if run.notice is not None:
            if run.notice.name != "gap":
                raise Lost(repr(run.notice))
            taken.lose(run.notice.last_seq - run.notice.first_seq + 1)
        else:
            next(iter(run))
            taken.take(len(run))


async def subscribe(socket: str, topics: str, subscribers: str) -> None:
    names = topic_names(int(topics))
    tally = Tally()
    everybody = [Taken(tally) for _ in range(int(subscribers))]
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(ocfcluster.aio.connect(socket))
        group = await stack.enter_async_context(asyncio.TaskGroup())
        tasks = []
        for taken in everybody:
            for part in batched_topics(names):
                subscription = await client.subscribe(part)
                tasks.append(group.create_task(follow(subscription, taken)))
        print("ready", flush=True)
        used = cpu_seconds()
        while line := await lines.readline():
            await tally.wait_for(int(line) * len(everybody))
            now = cpu_seconds()
            say(
                rates=[taken.rate for taken in everybody],
                lost=sum(taken.lost for taken in everybody),
                last=max(taken.last for taken in everybody),
                cpu_s=now - used,
            )
            used = now
            for taken in everybody:
                taken.restart()
        for task in tasks:
            task.cancel()


def batched_topics(names: list[str]) -> list[list[str]]:
    """Parts of as many as one subscription may have."""
    return [
        names[start : start + TOPICS_PER_SUBSCRIPTION]
        for start in range(0, len(names), TOPICS_PER_SUBSCRIPTION)
    ]


def publish(socket: str, topics: str, publishers: str, batch: str, event_bytes: str) -> None:
    datas = [b"x" * int(event_bytes)] * int(batch)
    names = cycle(topic_names(int(topics)))
    with ExitStack() as stack:
        client = stack.enter_context(ocfcluster.connect(socket))
        everybody = [stack.enter_context(client.publisher()) for _ in range(int(publishers))]
        for publisher in everybody:
            publisher.publish_many([b""], topic=f"{TOPIC}.warm").wait()  # opens the producer
        begun = time.monotonic()
        for name in topic_names(int(topics)):  # at its first use a name is asked for
            everybody[0].publish(b"", topic=name)
        everybody[0].flush()
        first_use_s = time.monotonic() - begun
        print("ready", flush=True)
        used = cpu_seconds()
        for line in sys.stdin:
            first = time.monotonic()
            events = 0
            for publisher in cycle(everybody):
                publisher.publish_many(datas, topic=next(names))
                events += len(datas)
                if time.monotonic() - first > float(line):
                    break
            for publisher in everybody:
                publisher.flush()
            now = cpu_seconds()
            say(events=events, first=first, cpu_s=now - used, first_use_s=first_use_s)
            used = now


if __name__ == "__main__":
    if sys.argv[1] == "subscribe":
        asyncio.run(subscribe(*sys.argv[2:]))
    else:
        publish(*sys.argv[2:])
