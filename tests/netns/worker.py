"""Programs of the order test: a publisher and a recording subscriber, each a process of its own.

``publish`` publishes numbered events of a known content, batches in turn to each of its topics. ``subscribe`` writes a
trace of all it gets, 32 bytes per event. Both print one JSON object at their end; ``subscribe`` prints "ready" once
its subscription stands.
"""

from __future__ import annotations

import argparse
import json
import select
import struct
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from xxhash import xxh3_64_intdigest

import ocfcluster

TRACE: Final = struct.Struct(
    "<QQIIQ"
)  # seq, ev_id, node_id, place of the topic in --topics, xxh3-64 of the data
NUMBER: Final = struct.Struct(
    "<IQ"
)  # what an event begins with: its publisher, and its number there (from 0)
FILLER: Final = bytes(range(256))


def payload(publisher: int, number: int, size: int) -> bytes:
    """The data of a publisher's event: its name, then bytes that depend on both."""
    start = (publisher * 31 + number) % 256
    filler = FILLER[start:] + FILLER[:start]
    return (NUMBER.pack(publisher, number) + filler * (1 + size // 256))[:size]


def batches(options: argparse.Namespace) -> Iterator[list[bytes]]:
    for first in range(0, options.count, options.batch):
        last = min(options.count, first + options.batch)
        yield [payload(options.publisher, number, options.size) for number in range(first, last)]


def publish(options: argparse.Namespace) -> None:
    prepared = list(batches(options))
    with ocfcluster.connect(options.socket, name=f"publisher-{options.publisher}", resume=False) as client:
        began = time.monotonic()
        receipts = []
        for place, batch in enumerate(prepared):
            receipts.append(client.publish_many(options.topics[place % len(options.topics)], batch))
        client.flush()
        seconds = time.monotonic() - began
        answered = sum(receipt.wait().count for receipt in receipts)
    print(json.dumps({"published": answered, "seconds": round(seconds, 3)}), flush=True)


def subscribe(options: argparse.Namespace) -> None:
    place = {topic: number for number, topic in enumerate(options.topics)}
    events: Counter[str] = Counter()
    notices: list[str] = []
    began = time.monotonic()
    with (
        options.trace.open("wb", buffering=1 << 20) as trace,
        ocfcluster.connect(options.socket, name="recorder", resume=False) as client,
        client.subscribe(options.topics) as subscription,
    ):
        print("ready", flush=True)
        runs = subscription.runs()
        while events.total() < options.count:
            if not select.select([subscription.fileno()], [], [], options.idle)[0]:
                notices.append(f"nothing came for {options.idle:g} s")
                break
            run = next(runs)
            if run.notice is not None:
                notices.append(str(run.notice))
                continue
            if not events:
                began = time.monotonic()
            events[run.topic] += len(run)
            seq, ev_id, node, topic = run.seq, run.ev_id, run.node_id, place[run.topic]
            trace.write(
                b"".join(
                    TRACE.pack(seq + index, ev_id + index, node, topic, xxh3_64_intdigest(data))
                    for index, data in enumerate(run)
                )
            )
        seconds = time.monotonic() - began
    print(json.dumps({"events": events, "notices": notices, "seconds": round(seconds, 3)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Programs of the order test.")
    commands = parser.add_subparsers(required=True)
    for name, function in (("publish", publish), ("subscribe", subscribe)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        command.add_argument("--socket", required=True)
        command.add_argument("--topics", required=True, type=lambda text: text.split(","))
        command.add_argument("--count", type=int, required=True, help="events")
        if function is publish:
            command.add_argument("--publisher", type=int, required=True)
            command.add_argument("--size", type=int, default=64, help="bytes of an event")
            command.add_argument("--batch", type=int, default=500, help="events of one publish_many")
        else:
            command.add_argument("--trace", type=Path, required=True)
            command.add_argument("--idle", type=float, default=30.0, help="seconds without anything: give up")
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
