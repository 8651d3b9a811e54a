"""A program of the benchmark: subscriber, publisher, or both in turn for latency. ``bench.load`` starts it in a host.

It prints ``ready`` when it is connected (and subscribed), a publisher then waits for a line on standard input, and
at the end it prints one JSON object. CPU seconds are its own (user and system, all threads), without its start.

    python -m bench.worker subscribe SOCKET TOPIC WAY EVENTS
    python -m bench.worker publish SOCKET TOPIC WAY EVENTS EVENT_BYTES
    python -m bench.worker latency SOCKET|FILE.toml TOPIC SAMPLES EVENT_BYTES
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final

import ocfcluster
from ocfcluster.embedded import EmbeddedAgent

PUBLISH_MANY_BYTES: Final = 512 * 1024  # of events in one publish_many
PUBLISH_MANY_EVENTS: Final = 8192
WARM_UP_SAMPLES: Final = 300
GET_TIMEOUT_S: Final = 5.0


class Lost(Exception):
    """Something else came than what was published."""


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def say(**report: Any) -> None:
    print(json.dumps(report), flush=True)


# --- subscribing ------------------------------------------------------------------------------------------------
# Each way returns: events counted in the time measured, and its first and last moment (monotonic clock).


def take_runs(socket: str, topic: str, events: int) -> tuple[int, float, float]:
    """``Subscription.runs()``: whole runs; of each the first event's data is looked at."""
    with ocfcluster.connect(socket) as client, client.subscribe(topic) as subscription:
        print("ready", flush=True)
        count = before = 0
        first = 0.0
        for run in subscription.runs():
            if run.notice is not None:
                raise Lost(repr(run.notice))
            next(iter(run))
            count += len(run)
            if not first:
                first = time.monotonic()
                before = count
            if count >= events:
                break
        return count - before, first, time.monotonic()


def take_data(socket: str, topic: str, events: int) -> tuple[int, float, float]:
    """``Subscription.runs()``, and of each run the bytes of each event."""
    with ocfcluster.connect(socket) as client, client.subscribe(topic) as subscription:
        print("ready", flush=True)
        count = before = 0
        first = 0.0
        for run in subscription.runs():
            if run.notice is not None:
                raise Lost(repr(run.notice))
            for _data in run:
                count += 1
            if not first:
                first = time.monotonic()
                before = count
            if count >= events:
                break
        return count - before, first, time.monotonic()


def take_events(socket: str, topic: str, events: int) -> tuple[int, float, float]:
    """``for event in subscription``: an Event object each."""
    with ocfcluster.connect(socket) as client, client.subscribe(topic) as subscription:
        print("ready", flush=True)
        begin = event = next(subscription)
        first = time.monotonic()
        for event in islice(subscription, events - 1):  # noqa: B007 - the last one is looked at
            pass
        last = time.monotonic()
        if event.seq - begin.seq != events - 1 or event.notice is not None:
            raise Lost(f"{begin!r} to {event!r}")
        return events - 1, first, last


def take_by_callback(socket: str, topic: str, events: int) -> tuple[int, float, float]:
    """The OCF API: a callback that calls ``oc_ev_event_done``, run by ``oc_ev_handle_events``."""
    os.environ["OCFCLUSTER_SOCKET"] = socket
    from ocfcluster import ocf

    count = 0
    moments: list[float] = []

    def on_event(event: Any) -> None:
        nonlocal count
        count += 1
        ocf.oc_ev_event_done(event)
        if count in (1, events):
            moments.append(time.monotonic())

    descriptor = ocf.oc_ev_subscribe(topic, on_event)
    print("ready", flush=True)
    while count < events:
        ocf.oc_ev_handle_event(descriptor)
    ocf.oc_ev_unsubscribe(descriptor)
    return events - 1, moments[0], moments[-1]


def subscribe(socket: str, topic: str, way: str, events: str) -> None:
    ways: dict[str, Callable[[str, str, int], tuple[int, float, float]]] = {
        "runs": take_runs,
        "data": take_data,
        "events": take_events,
        "ocf": take_by_callback,
    }
    begun = cpu_seconds()
    count, first, last = ways[way](socket, topic, int(events))
    say(events=count, first=first, last=last, cpu_s=cpu_seconds() - begun)


# --- publishing -------------------------------------------------------------------------------------------------


def publish(socket: str, topic: str, way: str, events: str, event_bytes: str) -> None:
    count, size = int(events), int(event_bytes)
    data = b"x" * size
    with ocfcluster.connect(socket) as client, client.publisher(topic) as publisher:
        publisher.publish_many([b""], topic=f"{topic}.warm").wait()  # opens the producer
        print("ready", flush=True)
        sys.stdin.readline()
        begun = cpu_seconds()
        first = time.monotonic()
        if way == "many":
            each = max(1, min(PUBLISH_MANY_EVENTS, PUBLISH_MANY_BYTES // max(1, size), count))
            batch = [data] * each
            for _ in range(count // each):
                publisher.publish_many(batch)
            if count % each:
                publisher.publish_many(batch[: count % each])
        else:
            for _ in range(count):
                publisher.publish(data)
        publisher.flush()
        say(events=count, first=first, last=time.monotonic(), cpu_s=cpu_seconds() - begun)


@contextmanager
def client_of(place: str) -> Iterator[ocfcluster.Client]:
    """Of the agent at a socket, or, for a configuration file, of an agent in this process."""
    if not place.endswith(".toml"):
        with ocfcluster.connect(place) as client:
            yield client
        return
    with EmbeddedAgent(place) as agent, agent.connect() as client:
        while client.status()["state"] != "active":
            time.sleep(0.05)
        yield client


def latency(place: str, topic: str, samples: str, event_bytes: str) -> None:
    """``publish`` to ``get`` in one thread, one event at a time; µs."""
    data = b"x" * int(event_bytes)
    taken: list[float] = []
    clock = time.perf_counter
    with client_of(place) as client, client.subscribe(topic) as subscription:
        print("ready", flush=True)
        sys.stdin.readline()
        begun = 0.0
        for index in range(WARM_UP_SAMPLES + int(samples)):
            if index == WARM_UP_SAMPLES:
                begun = cpu_seconds()
            start = clock()
            client.publish(topic, data)
            event = subscription.get(GET_TIMEOUT_S)
            taken.append(clock() - start)
            if event is None:
                raise Lost("an event has not come")
        cpu_s = cpu_seconds() - begun
    taken = sorted(taken[WARM_UP_SAMPLES:])
    say(
        samples=len(taken),
        min_us=taken[0] * 1e6,
        p50_us=taken[len(taken) // 2] * 1e6,
        p99_us=taken[len(taken) * 99 // 100] * 1e6,
        max_us=taken[-1] * 1e6,
        cpu_s=cpu_s,
    )


if __name__ == "__main__":
    {"subscribe": subscribe, "publish": publish, "latency": latency}[sys.argv[1]](*sys.argv[2:])
