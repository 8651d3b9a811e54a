"""A7: the descriptor tells the truth."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import time
from typing import Any

from ocfcluster import ocf
from ocfcluster.conformance.context import (
    PATIENCE_MS,
    PATIENCE_S,
    QUIET_S,
    Context,
    expect,
    expect_equal,
    must,
    readable,
    settles,
)
from ocfcluster.conformance.registry import obligation


def _noted(event: Any) -> None:
    ocf.oc_ev_event_done(event)


@obligation("A7")
def one_descriptor_for_ever(context: Context) -> None:
    """get_fd gives a real descriptor, the same at every call, for both kinds of subscription."""
    topic = context.topic()
    descriptors = []
    for function in (None, _noted):
        ed = ocf.oc_ev_subscribe(topic, function)
        descriptor = ocf.oc_ev_get_fd(ed)
        os.fstat(descriptor)
        expect_equal(ocf.oc_ev_get_fd(ed), descriptor, "get_fd a second time")
        ocf.oc_ev_publish(topic, b"x").wait()
        expect_equal(ocf.oc_ev_get_fd(ed), descriptor, "get_fd while an event waits")
        descriptors.append(descriptor)
    expect(descriptors[0] != descriptors[1], "two subscriptions share a descriptor")


@obligation("A7")
def readable_exactly_while_events_wait(context: Context) -> None:
    """A pull descriptor is readable from the first to the last event that waits, and then no more."""
    topic = context.topic()
    ed = ocf.oc_ev_subscribe(topic, None)
    descriptor = ocf.oc_ev_get_fd(ed)
    expect(not readable(descriptor, QUIET_S), "it is readable before anything was published")
    publisher = context.client()
    for size, count in ((5, 100), (20_000, 12), (300_000, 2)):  # one run, several frames, beyond a frame
        publisher.publish_many(topic, [b"x" * size] * count).wait()
        for number in range(count):
            expect(
                readable(descriptor, PATIENCE_S),
                f"it is not readable while event {number + 1} of {count} waits",
            )
            event = must(
                ocf.oc_ev_get_event(ed, 0), f"event {number + 1} of {count}, with a readable descriptor,"
            )
            ocf.oc_ev_event_done(event)
        expect(not readable(descriptor, QUIET_S), f"it is readable after the last of {count} events")
        expect_equal(
            ocf.oc_ev_get_event(ed, 0), None, "what a poll finds when the descriptor is not readable"
        )


@obligation("A7")
def callback_descriptor_is_truthful(context: Context) -> None:
    """A callback descriptor is readable also while the next event waits for event_done of the one before."""
    topic = context.topic()
    seen: list[Any] = []
    ed = ocf.oc_ev_subscribe(topic, seen.append)
    descriptor = ocf.oc_ev_get_fd(ed)
    context.client().publish_many(topic, [b"1", b"2"]).wait()
    expect(readable(descriptor, PATIENCE_S), "it is not readable while events wait")
    ocf.oc_ev_handle_event(ed)
    expect_equal(len(seen), 1, "callbacks before the first event is done")
    expect(
        readable(descriptor), "it is not readable while the second event waits for the first one's event_done"
    )
    ocf.oc_ev_event_done(seen[0])
    expect(readable(descriptor), "it is not readable while the second event waits")
    ocf.oc_ev_handle_event(ed)
    expect_equal([event.data for event in seen], [b"1", b"2"], "what the callbacks got")
    expect(not readable(descriptor, QUIET_S), "it is readable though nothing waits to be taken")
    ocf.oc_ev_event_done(seen[1])
    expect(not readable(descriptor, QUIET_S), "it is readable after the last event is done")


@obligation("A7")
def level_triggered_loop_neither_spins_nor_sleeps(context: Context) -> None:
    """A loop around epoll that takes one event per wake-up gets every event, with as many wake-ups as events."""
    topic = context.topic()
    ed = ocf.oc_ev_subscribe(topic, None)
    total, wake_ups, taken = 500, 0, 0
    context.client().publish_many(topic, [b"x"] * total)
    with select.epoll() as poller:
        poller.register(ocf.oc_ev_get_fd(ed), select.EPOLLIN)
        deadline = time.monotonic() + PATIENCE_S
        while taken < total:
            expect(
                bool(poller.poll(PATIENCE_S)) and time.monotonic() < deadline,
                f"asleep after {taken} of {total}",
            )
            wake_ups += 1
            event = ocf.oc_ev_get_event(ed, 0)
            if event is not None:
                taken += 1
                ocf.oc_ev_event_done(event)
        expect_equal(poller.poll(QUIET_S), [], "epoll after the last event")
    expect_equal(wake_ups, total, "wake-ups")


@obligation("A7")
def signal_on_arrival(context: Context) -> None:
    """F_SETOWN and F_SETSIG turn an arrival into a signal."""
    topic = context.topic()
    arrived: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _frame: arrived.append(number))
    ed = ocf.oc_ev_subscribe(topic, None)
    descriptor = ocf.oc_ev_get_fd(ed)
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGUSR1)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)
    ocf.oc_ev_publish(topic, b"x").wait()
    expect(settles(lambda: bool(arrived)), "no signal came with the event")
    expect(ocf.oc_ev_get_event(ed, PATIENCE_MS) is not None, "the event did not come")
