"""A program of a measurement for Zenoh (see ``bench.compare.peers.peer``), run by the peers' own Python.

    python zenoh_client.py ADDRESS subscribe EVENTS EVENT_BYTES
    python zenoh_client.py ADDRESS publish EVENTS EVENT_BYTES
    python zenoh_client.py ADDRESS latency WARM_UP SAMPLES EVENT_BYTES

A sample of latency is half of the way to another host and back: what a process has published itself it would be
handed at once, without the network. A subscriber answers what comes under ``ask``.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from typing import Any

import zenoh  # type: ignore[import-not-found]  # in the virtual environment of the peers

HOSTS = 3
IDLE_S = 5.0
MEASURED, ASK, ANSWER = "bench/measured", "bench/ask", "bench/answer"


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def ready() -> float:
    """CPU seconds until now."""
    print("ready", flush=True)
    return cpu_seconds()


def publisher(session: Any, key: str, *, express: bool) -> Any:
    """One that waits where there is no room, and sends at once (``express``) or in batches."""
    return session.declare_publisher(
        key,
        congestion_control=zenoh.CongestionControl.BLOCK,
        reliability=zenoh.Reliability.RELIABLE,
        express=express,
    )


def wait_peers(session: Any, count: int) -> None:
    while len(session.info.peers_zid()) < count:
        time.sleep(0.01)


def subscribe(session: Any, events: int) -> None:
    taken = 0
    first = last = 0.0
    done = threading.Event()
    answers = publisher(session, ANSWER, express=True)

    def count() -> None:
        nonlocal taken, first, last
        taken += 1
        if taken == 1:
            first = time.monotonic()
        elif taken == events:
            last = time.monotonic()
            done.set()

    def on_measured(_sample: Any) -> None:
        count()

    def on_ask(sample: Any) -> None:
        answers.put(sample.payload)
        count()

    session.declare_subscriber(MEASURED, on_measured)
    session.declare_subscriber(ASK, on_ask)
    begun = ready()
    before = -1
    while not done.wait(IDLE_S):
        if taken and taken == before:
            last = time.monotonic() - IDLE_S
            break
        before = taken
    report = {"events": taken - 1, "first": first, "last": last, "lost": events - taken}
    print(json.dumps(report | {"cpu_s": cpu_seconds() - begun}), flush=True)
    time.sleep(0.2)  # whoever asked last has its answer


def publish(session: Any, events: int, event_bytes: int) -> None:
    data = b"x" * event_bytes
    wait_peers(session, HOSTS)
    with publisher(session, MEASURED, express=False) as measured:
        begun = ready()
        sys.stdin.readline()
        first = time.monotonic()
        for _ in range(events):
            measured.put(data)
        report = {"events": events, "first": first, "last": time.monotonic()}
        print(json.dumps(report | {"cpu_s": cpu_seconds() - begun}), flush=True)
        sys.stdin.readline()  # what is still to be sent is lost with the session


def latency(session: Any, warm_up: int, samples: int, event_bytes: int) -> None:
    data = b"x" * event_bytes
    answers = session.declare_subscriber(ANSWER)
    asks = publisher(session, ASK, express=True)
    wait_peers(session, HOSTS - 1)
    ready()
    sys.stdin.readline()
    begun = 0.0
    seconds = []
    for index in range(warm_up + samples):
        if index == warm_up:
            begun = cpu_seconds()
        start = time.perf_counter()
        asks.put(data)
        answers.recv()  # the first counts; the others are awaited, so that the next is alone
        seconds.append((time.perf_counter() - start) / 2)
        for _ in range(HOSTS - 2):
            answers.recv()
    used = cpu_seconds() - begun
    ordered = sorted(seconds[warm_up:])
    report = {
        "samples": samples,
        "min_us": ordered[0] * 1e6,
        "p50_us": ordered[samples // 2] * 1e6,
        "p99_us": ordered[samples * 99 // 100] * 1e6,
        "max_us": ordered[-1] * 1e6,
        "cpu_s": used,
    }
    print(json.dumps(report), flush=True)


def main() -> None:
    address, role, *numbers = sys.argv[1:]
    config = zenoh.Config()
    config.insert_json5("listen/endpoints", json.dumps([f"tcp/{address}:0"]))
    with zenoh.open(config) as session:
        if role == "subscribe":
            subscribe(session, int(numbers[0]))
        elif role == "publish":
            publish(session, *map(int, numbers))
        else:
            latency(session, *map(int, numbers))


if __name__ == "__main__":
    main()
