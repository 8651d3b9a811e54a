"""What honest programs have left while others do harm: ``python -m bench.attacks [--rounds N] [--only KIND ...]``.

Three agents with a key in network namespaces (needs root). An honest publisher on node 2 and a subscriber on node 1
measure in turns without and with an attack: how long one event takes, publish to get, and how many events of 1 KiB a
second arrive. Attacks are those of ``tests.attackers``: on the network from a fourth host without the key, or by
programs beside node 1's agent. docs/security.md has the table, and says what it means.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from ocfcluster.client import Client, Subscription
from tests.attackers import KINDS, TOPIC
from tests.capabilities import CAPABILITIES
from tests.netns.attacked import NODES, Attacked
from tests.netns.hosts import Hosts

MEASURED_S: Final = 1.5  # of each: latency, then rate
EVENT_BYTES: Final = 1024
BATCH: Final = 50
UNTAKEN: Final = 1000  # events on their way at once
WHOLE_S: Final = 30.0


@dataclass
class Measured:
    """Medians are of all rounds."""

    latency_ms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    @property
    def middle_ms(self) -> float:
        return statistics.median(self.latency_ms)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


@dataclass
class Row:
    kind: str
    calm: Measured = field(default_factory=Measured)
    attacked: Measured = field(default_factory=Measured)
    done_per_s: float = 0.0
    memory_mib: float = 0.0  # by which the first agent grew, at most
    whole_after_s: float = 0.0
    epochs: int = 0


def measure(publisher: Client, subscriber: Client, into: Measured) -> None:
    with subscriber.subscribe(TOPIC) as events:
        end = time.monotonic() + MEASURED_S
        while time.monotonic() < end:
            into.latency_ms.append(one_event_ms(publisher, events))
        began, sent, got = time.monotonic(), 0, 0
        while time.monotonic() < began + MEASURED_S:
            while sent - got < UNTAKEN:
                publisher.publish_many(TOPIC, [b"x" * EVENT_BYTES] * BATCH)
                sent += BATCH
            taken(events.get(timeout=60))
            got += 1
        into.rates.append(got / (time.monotonic() - began))
        while got < sent:
            taken(events.get(timeout=60))
            got += 1


def taken(event: Any) -> None:
    if event is None or event.notice is not None:
        raise RuntimeError(f"an honest event is missing: {event}")


def attack(cluster: Attacked, publisher: Client, subscriber: Client, row: Row) -> None:
    """One round: without, with, and until it is over."""
    measure(publisher, subscriber, row.calm)
    before, epoch = cluster.memory_bytes(1), cluster.status(1)["epoch"]
    seconds = 2 * MEASURED_S + 0.5
    attacker = cluster.attack(row.kind, seconds)
    measure(publisher, subscriber, row.attacked)
    row.memory_mib = max(row.memory_mib, (cluster.memory_bytes(1) - before) / (1 << 20))
    report, _ = attacker.communicate(timeout=120)
    row.done_per_s = max(json.loads(report).values()) / seconds
    ended = time.monotonic()
    with subscriber.subscribe(TOPIC) as events:
        while statistics.median(one_event_ms(publisher, events) for _ in range(20)) > 3 * row.calm.middle_ms:
            if time.monotonic() > ended + WHOLE_S:
                raise RuntimeError(f"{row.kind}: it is over, and events are as slow as before")
    row.whole_after_s = max(row.whole_after_s, time.monotonic() - ended)
    row.epochs += cluster.status(1)["epoch"] - epoch


def one_event_ms(publisher: Client, events: Subscription) -> float:
    began = time.monotonic()
    publisher.publish(TOPIC, b"x" * 64).wait(60)
    taken(events.get(timeout=60))
    return (time.monotonic() - began) * 1e3


def rows(kinds: list[str], rounds: int) -> Iterator[Row]:
    with ExitStack() as stack:
        hosts = stack.enter_context(Hosts(len(NODES) + 1))
        cluster = stack.enter_context(Attacked(hosts))
        publisher, subscriber = (
            stack.enter_context(cluster.connect(2)),
            stack.enter_context(cluster.connect(1)),
        )
        measure(publisher, subscriber, Measured())  # warm
        for kind in kinds:
            row = Row(kind)
            for _ in range(rounds):
                attack(cluster, publisher, subscriber, row)
            yield row


def show(found: list[Row]) -> None:
    table = Table("attack", "done a second", "one event, ms", "attacked", "ratio", "events/s", "attacked", "ratio",
                  "memory, MiB", "calm after, s", "view changes")  # fmt: skip
    for row in found:
        calm, attacked = row.calm, row.attacked
        table.add_row(
            row.kind, f"{row.done_per_s:,.0f}", f"{calm.middle_ms:.2f}", f"{attacked.middle_ms:.2f}",
            f"{attacked.middle_ms / calm.middle_ms:.1f}", f"{calm.rate:,.0f}", f"{attacked.rate:,.0f}",
            f"{attacked.rate / calm.rate:.2f}", f"{row.memory_mib:+.0f}", f"{row.whole_after_s:.1f}", str(row.epochs),
        )  # fmt: skip
    Console(width=150).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    missing = CAPABILITIES["netns"]()
    if missing:
        print(f"bench.attacks: {missing}", file=sys.stderr)
        return 3
    show(list(rows(options.only, options.rounds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
