"""What the demo does with its cluster: publishers and subscribers in threads, and an agent that dies meanwhile."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import ocfcluster
from ocfcluster.client.events import Event
from ocfcluster.components.membership import TOPIC as MEMBERSHIP
from ocfcluster.components.membership import MembershipCode, MembershipEvent
from ocfcluster.errors import OcfError

Anyone = TypeVar("Anyone")
TOPICS = ("orders", "prices", "alarms")
PACE_S = (
    3.0  # all of a publisher's events take at least so long, so that it goes on while the sequencer is dead
)
BEGIN = 0.25  # share of the events that is delivered when the sequencer is killed
HELD_BACK = 0.8  # a publisher goes on beyond this share when the killed agent is back
LOOK_S = 0.01


class Publisher(NamedTuple):
    """One publishing program of the demo."""

    name: str
    node: int
    topic: str


PUBLISHERS = (
    Publisher("ana", 1, "orders"), Publisher("bob", 2, "orders"), Publisher("cyn", 3, "orders"),
    Publisher("dan", 3, "prices"), Publisher("eve", 2, "alarms"),
)  # fmt: skip


class Seen(NamedTuple):
    """One event as a subscriber got it; ``data`` of a change of the membership is what it says, in words."""

    topic: str
    seq: int
    ev_id: int
    data: bytes


class Gap(NamedTuple):
    """What a subscriber was told that it does not get."""

    topic: str
    first_seq: int
    last_seq: int


class Work(NamedTuple):
    """What was published, what receipts said, and what each node's subscriber got, in its order."""

    published: dict[Publisher, list[bytes]]
    receipts: dict[bytes, tuple[int, int]]  # data → seq, ev_id
    seen: dict[int, list[Seen]]  # node → events
    gaps: dict[int, list[Gap]]  # node → what it was told to lack
    killed: int  # node whose agent was killed
    pause_s: float  # from then to the next event on the others
    seconds: float


class Cluster(Protocol):
    """The agents, as the demo treats them."""

    def socket_path(self, node: int) -> str: ...
    def sequencer(self) -> int: ...
    def kill(self, node: int) -> None: ...
    def start(self, node: int) -> None: ...


def run_work(
    cluster: Cluster, nodes: Sequence[int], events: int, timeout_s: float, say: Callable[[str], None]
) -> Work:
    """``events`` per publisher, all publishers at once, one subscriber per node. Meanwhile the sequencer's agent is
    killed, and started again when the others have gone on. Raises what a thread raised, and OcfError when the time
    is up."""
    with ocfcluster.connect(cluster.socket_path(nodes[0]), name="demo", resume=False) as client:
        for topic in TOPICS:
            client.create_topic(topic)
    return _Workload(cluster, nodes, events, timeout_s, say).run()


class _Workload:
    """The threads of the demo and what they share."""

    def __init__(
        self,
        cluster: Cluster,
        nodes: Sequence[int],
        events: int,
        timeout_s: float,
        say: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._say = say
        self._deadline = time.monotonic() + timeout_s
        self._published = {
            publisher: [f"{publisher.name} #{number}".encode() for number in range(1, events + 1)]
            for publisher in PUBLISHERS
        }
        self._total = events * len(PUBLISHERS)
        self._pace_s = PACE_S / events
        self._seen: dict[int, list[Seen]] = {node: [] for node in nodes}
        self._gaps: dict[int, list[Gap]] = {node: [] for node in nodes}
        self._counts: Counter[int] = Counter()  # events that each subscriber got or was told to lack
        self._receipts: dict[bytes, tuple[int, int]] = {}
        self._subscribed = threading.Barrier(len(nodes) + 1)
        self._back = threading.Event()  # the killed agent's node is a member again
        self._failures: list[Exception] = []

    def run(self) -> Work:
        subscribers = [self._start(self._subscribe, node) for node in self._seen]
        try:
            self._subscribed.wait(self._left_s())
        except threading.BrokenBarrierError:
            raise self._failures[0] if self._failures else OcfError("the subscribers did not start") from None
        began = time.monotonic()
        publishers = [self._start(self._publish, publisher) for publisher in self._published]
        killed, pause_s = self._kill_and_bring_back()
        for thread in publishers + subscribers:
            thread.join(self._left_s() + 1.0)
        if self._failures:
            raise self._failures[0]
        seconds = time.monotonic() - began
        return Work(self._published, self._receipts, self._seen, self._gaps, killed, pause_s, seconds)

    def _kill_and_bring_back(self) -> tuple[int, float]:
        """The node, and how long the others had to wait."""
        node = self._cluster.sequencer()
        rest = [other for other in self._seen if other != node]
        self._until(lambda: self._counts[rest[0]] >= BEGIN * self._total, "a part of the events is delivered")
        views = self._views(rest[0])
        self._cluster.kill(node)
        began = time.monotonic()
        self._say(
            f"\nkill -9 of node {node}, the sequencer, after {self._counts[rest[0]]} events. Publishing goes on."
        )
        self._until(lambda: all(self._views(other) > views for other in rest), "the others go on without it")
        counts = {other: self._counts[other] for other in rest}
        self._until(
            lambda: all(self._counts[other] > min(counts[other], self._total - 1) for other in rest),
            "the others get events again",
        )
        pause_s = time.monotonic() - began
        self._say(
            f"Node{'s' * (len(rest) > 1)} {' and '.join(map(str, rest))} go on {pause_s:.2f} s later: "
            f"{self._last_view(rest[0])}."
        )
        self._cluster.start(node)
        self._until(lambda: self._last_view(rest[0]).split().count(str(node)) > 0, f"node {node} is back")
        self._say(
            f"Its agent is started again: {self._last_view(rest[0])}, {time.monotonic() - began:.2f} s after the kill."
        )
        self._until(
            lambda: self._last_view(node) == self._last_view(rest[0]),
            f"the subscriber of node {node} goes on",
        )
        self._back.set()
        return node, pause_s

    def _views(self, node: int) -> int:
        return sum(event.topic == MEMBERSHIP for event in list(self._seen[node]))

    def _last_view(self, node: int) -> str:
        """What the subscriber of ``node`` was told last of who belongs to the cluster."""
        views = [event.data.decode() for event in list(self._seen[node]) if event.topic == MEMBERSHIP]
        return views[-1] if views else ""

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        while not condition():
            if self._failures:
                raise self._failures[0]
            if not self._left_s():
                raise OcfError(f"the demo waited for this in vain: {what}")
            time.sleep(LOOK_S)

    def _left_s(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _start(self, task: Callable[[Anyone], None], who: Anyone) -> threading.Thread:
        def body() -> None:
            try:
                task(who)
            except Exception as error:  # noqa: BLE001 - raised again by run
                self._failures.append(error)
                self._subscribed.abort()

        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        return thread

    def _subscribe(self, node: int) -> None:
        """Goes on across the end of its agent; what it misses then it is told."""
        with (
            ocfcluster.connect(self._cluster.socket_path(node), name=f"subscriber {node}") as client,
            client.subscribe([*TOPICS, MEMBERSHIP]) as subscription,
        ):
            self._subscribed.wait(self._left_s())
            while self._counts[node] < self._total:
                event = subscription.get(timeout=self._left_s())
                if event is None:
                    return  # the check says what is missing
                self._take(node, event)

    def _take(self, node: int, event: Event) -> None:
        notice = event.notice
        if notice is None:
            data = event.data if event.topic != MEMBERSHIP else membership(event.data)
            if event.topic == MEMBERSHIP and event.local:
                return
            self._seen[node].append(Seen(event.topic, event.seq, event.ev_id, data))
            self._counts[node] += event.topic != MEMBERSHIP
        elif notice.name == "gap":
            self._gaps[node].append(Gap(notice.topic, notice.first_seq, notice.last_seq))
            if notice.topic != MEMBERSHIP:
                self._counts[node] += notice.last_seq - notice.first_seq + 1
        elif notice.final:
            raise OcfError(f"the subscriber of node {node} was told: {notice.name} {notice.reason}")

    def _publish(self, publisher: Publisher) -> None:
        chance = random.Random(publisher.name)
        with ocfcluster.connect(self._cluster.socket_path(publisher.node), name=publisher.name) as client:
            events = self._published[publisher]
            waiting = []
            due = time.monotonic()
            for number, data in enumerate(events):
                if number == int(HELD_BACK * len(events)):
                    self._back.wait(self._left_s())
                waiting.append((data, client.publish(publisher.topic, data)))
                due += self._pace_s * 2 * chance.random()  # unevenly, so that the publishers mix in the order
                time.sleep(max(0.0, due - time.monotonic()))
            for data, receipt in waiting:
                answer = receipt.wait(self._left_s())
                self._receipts[data] = (answer.seq, answer.ev_id)


def membership(data: bytes) -> bytes:
    """What an event of ``oc.membership`` says, in the words of the demo."""
    event = MembershipEvent.decode(data)
    if event.code is not MembershipCode.NEW_MEMBERSHIP:
        return event.code.name.lower().encode()
    return f"view {event.m_sequence}: nodes {' '.join(str(node.node_id) for node in event.members)}".encode()
