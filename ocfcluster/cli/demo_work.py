"""What the demo does with its cluster: publishers and subscribers in threads, and the check of what they saw."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

import ocfcluster
from ocfcluster.errors import OcfError

PAUSE_CHANCE, PAUSE_S = 0.1, 0.001  # a little idle, so that the publishers mix in the order
Anyone = TypeVar("Anyone")
TOPICS = ("orders", "prices", "alarms")


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
    """One event as a subscriber got it."""

    topic: str
    seq: int
    ev_id: int
    data: bytes


class Check(NamedTuple):
    """One statement about the run, and whether it held."""

    name: str
    ok: bool
    detail: str


class Work(NamedTuple):
    """What was published, what receipts said, and what each node's subscriber got, in its order."""

    published: dict[Publisher, list[bytes]]
    receipts: dict[bytes, tuple[int, int]]  # data → seq, ev_id
    seen: dict[int, list[Seen]]  # node → events
    seconds: float


def run_work(socket_path: Callable[[int], str], nodes: Sequence[int], events: int, timeout_s: float) -> Work:
    """``events`` per publisher, all publishers at once, one subscriber per node. Raises what a thread raised."""
    with ocfcluster.connect(socket_path(nodes[0]), name="demo", resume=False) as client:
        for topic in TOPICS:
            client.create_topic(topic)
    return _Workload(socket_path, nodes, events, timeout_s).run()


class _Workload:
    """The threads of the demo and what they share."""

    __slots__ = (
        "_deadline",
        "_failures",
        "_published",
        "_receipts",
        "_seen",
        "_socket_path",
        "_subscribed",
        "_total",
    )

    def __init__(
        self, socket_path: Callable[[int], str], nodes: Sequence[int], events: int, timeout_s: float
    ) -> None:
        self._socket_path = socket_path
        self._deadline = time.monotonic() + timeout_s
        self._published = {
            publisher: [f"{publisher.name} #{number}".encode() for number in range(1, events + 1)]
            for publisher in PUBLISHERS
        }
        self._total = events * len(PUBLISHERS)
        self._seen: dict[int, list[Seen]] = {node: [] for node in nodes}
        self._receipts: dict[bytes, tuple[int, int]] = {}
        self._subscribed = threading.Barrier(len(nodes) + 1)
        self._failures: list[Exception] = []

    def run(self) -> Work:
        subscribers = [self._start(self._subscribe, node) for node in self._seen]
        try:
            self._subscribed.wait(self._left_s())
        except threading.BrokenBarrierError:
            raise self._failures[0] if self._failures else OcfError("the subscribers did not start") from None
        began = time.monotonic()
        publishers = [self._start(self._publish, publisher) for publisher in self._published]
        for thread in publishers + subscribers:
            thread.join(self._left_s() + 1.0)
        if self._failures:
            raise self._failures[0]
        return Work(self._published, self._receipts, self._seen, time.monotonic() - began)

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
        into = self._seen[node]
        with (
            ocfcluster.connect(self._socket_path(node), name=f"subscriber {node}", resume=False) as client,
            client.subscribe(list(TOPICS)) as subscription,
        ):
            self._subscribed.wait(self._left_s())
            while len(into) < self._total:
                event = subscription.get(timeout=self._left_s())
                if event is None:
                    return  # the check says what is missing
                if event.notice is not None:
                    raise OcfError(
                        f"the subscriber of node {node} was told: {event.notice.name} {event.notice.reason}"
                    )
                into.append(Seen(event.topic, event.seq, event.ev_id, event.data))

    def _publish(self, publisher: Publisher) -> None:
        chance = random.Random(publisher.name)
        with ocfcluster.connect(
            self._socket_path(publisher.node), name=publisher.name, resume=False
        ) as client:
            waiting = []
            for data in self._published[publisher]:
                waiting.append((data, client.publish(publisher.topic, data)))
                if chance.random() < PAUSE_CHANCE:
                    time.sleep(PAUSE_S)
            for data, receipt in waiting:
                answer = receipt.wait(self._left_s())
                self._receipts[data] = (answer.seq, answer.ev_id)


def check(work: Work) -> list[Check]:
    """Completeness, identity and order over every event; nothing is sampled."""
    nodes = sorted(work.seen)
    total = sum(map(len, work.published.values()))
    first = work.seen[nodes[0]]
    return [
        _check_complete(work, total),
        Check(
            "one order on every node, over all topics",
            all(work.seen[node] == first for node in nodes),
            " ".join(f"{node}:{_digest(work.seen[node])}" for node in nodes),
        ),
        _check_seq(work.seen),
        Check(
            "every ev_id once",
            all(len({event.ev_id for event in seen}) == len(seen) for seen in work.seen.values()),
            f"{len({event.ev_id for event in first})} different",
        ),
        _check_publisher_order(work),
        _check_receipts(work, total),
    ]


def _check_complete(work: Work, total: int) -> Check:
    expected = Counter(
        (publisher.topic, data) for publisher, events in work.published.items() for data in events
    )
    short = [
        f"node {node} has {len(seen)} of {total}"
        for node, seen in sorted(work.seen.items())
        if Counter((event.topic, event.data) for event in seen) != expected
    ]
    return Check("each event exactly once on every node", not short, ", ".join(short) or f"{total} on each")


def _check_seq(seen: Mapping[int, Sequence[Seen]]) -> Check:
    wrong = []
    for node, events in sorted(seen.items()):
        expected = dict.fromkeys(TOPICS, 1)
        for event in events:
            if event.seq != expected[event.topic]:
                wrong.append(f"node {node}: {event.topic} {event.seq} instead of {expected[event.topic]}")
                break
            expected[event.topic] += 1
    return Check("seq counts 1, 2, 3, … in every topic", not wrong, ", ".join(wrong) or "no hole, no repeat")


def _check_publisher_order(work: Work) -> Check:
    wrong = []
    for node, seen in sorted(work.seen.items()):
        for publisher, events in work.published.items():
            prefix = publisher.name.encode() + b" "
            if [event.data for event in seen if event.data.startswith(prefix)] != events:
                wrong.append(f"{publisher.name} on node {node}")
    return Check("each publisher's events in the order it sent them", not wrong, ", ".join(wrong) or "all")


def _check_receipts(work: Work, total: int) -> Check:
    first = next(iter(work.seen.values()))
    same = len(work.receipts) == total and all(
        work.receipts.get(event.data) == (event.seq, event.ev_id) for event in first
    )
    return Check("receipts told the same seq and ev_id", same, f"{len(work.receipts)} receipts")


def _digest(events: Sequence[Seen]) -> str:
    digest = hashlib.sha256()
    for event in events:
        digest.update(f"{event.topic} {event.seq} {event.ev_id} {len(event.data)} ".encode() + event.data)
    return digest.hexdigest()[:8]


def excerpt(work: Work, rows: int) -> list[tuple[int, dict[int, Seen]]]:
    """The stretch of ``rows`` places of the order in which publishers mix most: (place, node → what it has there)."""
    nodes = sorted(work.seen)
    length = min(len(seen) for seen in work.seen.values())
    names = [event.data.split()[0] for event in work.seen[nodes[0]][:length]]
    changes = [int(before != after) for before, after in pairwise(names)]
    best = max(range(max(1, length - rows + 1)), key=lambda at: sum(changes[at : at + rows - 1]), default=0)
    return [
        (place + 1, {node: work.seen[node][place] for node in nodes})
        for place in range(best, min(best + rows, length))
    ]
