"""What a filter costs the agent: a run that it leaves out, against one that is written to a subscriber.

``python -m bench.filters`` takes some three seconds. It feeds the hub of an agent with runs of one event of 64 bytes,
one after the other and each a burst of its own, to subscribers with real event sockets, and prints microseconds of
CPU time per run and subscriber. ``--json`` for programs.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from collections.abc import Callable

from ocfcluster.ipc.delivery import Hub
from ocfcluster.ipc.subscription import Subscription
from ocfcluster.limits import RECORD_HEADER_BYTES
from ocfcluster.wire.filter import Predicate
from ocfcluster.wire.filter_text import parse_filter
from ocfcluster.wire.frames import RECORD_HEADER, OnSlow, RecordKind
from ocfcluster.wire.properties import encode_properties
from ocfcluster.wire.run import RunKind, build_run

SECONDS = 0.4  # for each figure
ROUND = 100  # runs between two looks at the clock; as many messages fit an event socket
TOPIC = 16
TEXT = 'severity == "high" and not present(test) and zone startswith "eu-"'


class Nobody:
    """The hub's shell: nothing that happens here needs one."""

    def watch_writable(self, subscription: Subscription, watch: bool) -> None:
        raise RuntimeError("the event socket was full")

    def full_changed(self, full: bool) -> None: ...
    def own_full_changed(self, connection: int, full: list[int]) -> None: ...
    def subscription_broken(self, subscription: Subscription) -> None:
        raise RuntimeError("the event socket broke")

    def left_out(self, subscription: Subscription, positions: dict[int, int]) -> None: ...
    def tick(self, now: int) -> None: ...


def measure(text: str, properties: list[dict[str, str]], subscribers: int) -> float:
    """CPU microseconds per run and subscriber; the time to take what came is not counted."""
    hub = Hub(Nobody())
    line = hub.open_line(1)
    ends = []
    for number in range(subscribers):
        own, lent = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        lent.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 212_992)
        ends += [own, lent]
        predicate = Predicate(parse_filter(text)) if text else None
        hub.add(line, number, lent, {TOPIC: "t"}, False, OnSlow.BLOCK, predicate)
    runs = [
        build_run(RunKind.PUBLICATION, TOPIC, 1, 1, [bytes(64)], properties=encode_properties(one))
        for one in properties
    ]
    seq = 0
    spent = 0
    done = 0
    deadline = time.perf_counter() + SECONDS
    while time.perf_counter() < deadline:
        begun = time.process_time_ns()
        for _ in range(ROUND):
            seq += 1
            run = runs[seq % len(runs)]
            header = RECORD_HEADER.pack(
                RECORD_HEADER_BYTES + len(run), RecordKind.RUN, 0, 0, 0, 1, 1, 1, seq, seq, 0
            )
            hub.deliver(TOPIC, header, run, seq, seq)
            hub.flush(1)
        spent += time.process_time_ns() - begun
        done += ROUND
        for own in ends[::2]:
            _drain(own)
    for end in ends:
        end.close()
    return spent / done / subscribers / 1000


def _drain(own: socket.socket) -> None:
    try:
        while True:
            own.recv(1, socket.MSG_DONTWAIT)
    except BlockingIOError:
        pass


HIGH = {"severity": "high", "zone": "eu-1", "host": "a"}
LOW = {"severity": "low", "zone": "eu-1", "host": "a"}
CASES: dict[str, Callable[[], float]] = {
    "written, no filter": lambda: measure("", [HIGH], 1),
    "written, filter": lambda: measure(TEXT, [HIGH], 1),
    "left out": lambda: measure(TEXT, [LOW], 1),
    "left out, properties differ each time": lambda: measure(
        TEXT, [LOW | {"number": str(number)} for number in range(1000)], 1
    ),
    "written, no filter, 20 subscribers": lambda: measure("", [HIGH], 20),
    "left out, 20 subscribers": lambda: measure(TEXT, [LOW], 20),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.filters", description="What a filter costs the agent."
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    figures = {name: round(case(), 2) for name, case in CASES.items()}
    load = os.getloadavg()[0]
    if arguments.json:
        json.dump({"us_per_run_and_subscriber": figures, "load": load}, sys.stdout)
        print()
    else:
        print(f"CPU microseconds per run and subscriber (load average {load:.1f})")
        for name, figure in figures.items():
            print(f"{figure:8.2f}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
