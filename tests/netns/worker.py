"""Programs of the tests with several hosts: publishers and recording subscribers, each a process of its own.

``publish`` publishes numbered events of a known content, batches in turn to each of its topics, and writes what it was
told. ``load`` does the same with single events, at a rate, until it is told to stop by SIGTERM. ``subscribe`` writes
a trace of all it gets, with its ``oc.membership``. All print one JSON object at their end, ``load`` and ``subscribe``
"ready" when they have begun.
"""

from __future__ import annotations

import argparse
import json
import random
import select
import signal
import struct
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import ocfcluster
from ocfcluster.components.membership import TOPIC as MEMBERSHIP
from ocfcluster.errors import ClientError, WouldBlock
from tests.netns.traces import Answer, Began, Writer, line_of

NUMBER: Final = struct.Struct(
    "<IQ"
)  # what an event begins with: its publisher, and its number there (from 0)
FILLER: Final = bytes(range(256))
LAST: Final = b"the last event"  # whoever records gets it and has all
FLUSH_S: Final = 60.0  # for what is unanswered when a load ends
BURST: Final = 12  # events of a load at once, at most


def payload(publisher: int, number: int, size: int) -> bytes:
    """The data of a publisher's event: its name, then bytes that depend on both."""
    start = (publisher * 31 + number) % 256
    filler = FILLER[start:] + FILLER[:start]
    return (NUMBER.pack(publisher, number) + filler * (1 + size // 256))[:size]


def batches(options: argparse.Namespace) -> Iterator[list[bytes]]:
    for first in range(0, options.count, options.batch):
        last = min(options.count, first + options.batch)
        yield [payload(options.publisher, number, options.size) for number in range(first, last)]


def answer(index: int, receipt: ocfcluster.Receipt, timeout: float) -> Answer:
    """What a publisher was told."""
    try:
        told = receipt.wait(timeout)
    except ClientError as error:
        return Answer(index, len(receipt), "", 0, 0, f"{type(error).__name__}: {error}")
    return Answer(index, told.count, told.topic, told.seq, told.ev_id, "")


def publish(options: argparse.Namespace) -> None:
    prepared = list(batches(options))
    with ocfcluster.connect(options.socket, name=f"publisher-{options.publisher}", resume=False) as client:
        began = time.monotonic()
        receipts = []
        for place, batch in enumerate(prepared):
            receipts.append(client.publish_many(options.topics[place % len(options.topics)], batch))
        client.flush()
        seconds = time.monotonic() - began
        with Writer(options.answers) as answers:
            for place, receipt in enumerate(receipts):
                answers.write(answer(place * options.batch, receipt, 0.0))
    print(json.dumps({"published": options.count, "seconds": round(seconds, 3)}), flush=True)


def load(options: argparse.Namespace) -> None:
    """Goes on across everything that happens to its agent. Events in bursts, so that there are runs of many."""
    chance = random.Random(options.publisher)
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: told.append(number))
    receipts: list[ocfcluster.Receipt] = []
    waited = 0.0
    with ocfcluster.connect(options.socket, name=f"publisher-{options.publisher}") as client:
        print("ready", flush=True)
        due = time.monotonic()
        while not told:
            burst = chance.randint(1, BURST)
            topic = chance.choice(options.topics)
            for _ in range(burst):
                began = time.monotonic()
                receipt = one(client, topic, payload(options.publisher, len(receipts), options.size), told)
                waited = max(waited, time.monotonic() - began)
                if receipt is None:
                    break
                receipts.append(receipt)
            due = max(due + burst / options.rate, time.monotonic() - 0.1)
            time.sleep(max(0.0, due - time.monotonic()))
        flushed = True
        try:
            client.flush(FLUSH_S)
        except WouldBlock:
            flushed = False
        with Writer(options.answers) as answers:
            for index, receipt in enumerate(receipts):
                answers.write(answer(index, receipt, 0.0))
    print(
        json.dumps({"published": len(receipts), "flushed": flushed, "longest_wait_s": round(waited, 3)}),
        flush=True,
    )


def one(client: ocfcluster.Client, topic: str, data: bytes, told: list[int]) -> ocfcluster.Receipt | None:
    """Publish, however long it takes; None where the end comes before there is room."""
    while not told:
        try:
            return client.publish(topic, data, timeout=0.2)
        except WouldBlock:
            pass
    return None


def subscribe(options: argparse.Namespace) -> None:
    """Records until the event LAST has come; with ``--no-resume`` a notice that is final is the end, too."""
    events: Counter[str] = Counter()
    notices: Counter[str] = Counter()
    complete = False
    with (
        Writer(options.trace) as trace,
        ocfcluster.connect(options.socket, name="recorder", resume=options.resume) as client,
        client.subscribe([*options.topics, MEMBERSHIP]) as subscription,
    ):
        trace.write(
            Began(time.monotonic_ns(), {start.topic: start.next_seq for start in subscription.starts})
        )
        print("ready", flush=True)
        runs = subscription.runs()
        while not complete:
            if not select.select([subscription.fileno()], [], [], options.idle)[0]:
                notices[f"nothing came for {options.idle:g} s"] += 1
                break
            run = next(runs, None)
            if run is None:
                break
            trace.write(line_of(run, time.monotonic_ns()))
            if run.notice is not None:
                notices[run.notice.name] += 1
                continue
            events[run.topic] += len(run)
            complete = len(run) == 1 and next(iter(run)) == LAST
    print(json.dumps({"events": events, "notices": notices, "complete": complete}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Programs of the tests with several hosts.")
    commands = parser.add_subparsers(required=True)
    for name, function in (("publish", publish), ("load", load), ("subscribe", subscribe)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        command.add_argument("--socket", required=True)
        command.add_argument("--topics", required=True, type=lambda text: text.split(","))
        if function is subscribe:
            command.add_argument("--trace", type=Path, required=True)
            command.add_argument("--idle", type=float, default=30.0, help="seconds without anything: give up")
            command.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True)
        else:
            command.add_argument("--publisher", type=int, required=True)
            command.add_argument(
                "--answers", type=Path, required=True, help="where to write what it was told"
            )
            command.add_argument("--size", type=int, default=64, help="bytes of an event")
        if function is publish:
            command.add_argument("--count", type=int, required=True, help="events")
            command.add_argument("--batch", type=int, default=500, help="events of one publish_many")
        elif function is load:
            command.add_argument("--rate", type=float, default=400.0, help="events per second")
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
