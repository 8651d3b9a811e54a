"""Programs of ``bench.failover``: a publisher of single events at a steady rate, and a subscriber that stamps arrivals.

    python -m bench.beat publish SOCKET TOPIC INTERVAL_MS
    python -m bench.beat subscribe SOCKET TOPIC FILE

The subscriber writes 16 bytes for each event: nanoseconds of CLOCK_MONOTONIC, and its ev_id, or 0 for a change of the
membership. Both print "ready" and go on until SIGTERM, across whatever happens to their agent.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
import time
from typing import Final

import ocfcluster
from ocfcluster.components.membership import TOPIC as MEMBERSHIP
from ocfcluster.errors import WouldBlock

STAMP: Final = struct.Struct("<qq")
EVENT: Final = b"x" * 64


def publish(socket: str, topic: str, interval_ms: str) -> None:
    interval = float(interval_ms) / 1000
    with ocfcluster.connect(socket, name="beat") as client:
        client.publish(topic, EVENT).wait()
        print("ready", flush=True)
        due = time.monotonic()
        while True:
            try:
                client.publish(topic, EVENT, timeout=10.0)
            except WouldBlock:
                continue
            due = max(due + interval, time.monotonic() - interval)  # what was missed is not made up for
            time.sleep(max(0.0, due - time.monotonic()))


def subscribe(socket: str, topic: str, file: str) -> None:
    stamps = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
    clock = time.monotonic_ns
    with ocfcluster.connect(socket, name="stamps") as client, client.subscribe([topic, MEMBERSHIP]) as runs:
        print("ready", flush=True)
        for run in runs.runs():
            now = clock()
            if run.notice is None:
                os.write(stamps, STAMP.pack(now, 0 if run.topic == MEMBERSHIP else run.ev_id))


def _end(_number: int, _frame: object) -> None:
    os._exit(0)  # nothing to put away, and no time is to be lost with what is unanswered


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    {"publish": publish, "subscribe": subscribe}[sys.argv[1]](*sys.argv[2:])
