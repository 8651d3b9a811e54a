"""A5, A6, A8 and A9: how events are taken."""

from __future__ import annotations

import errno
import random
import threading
import time
from typing import Any

from ocfcluster import ocf
from ocfcluster.conformance.context import (
    PATIENCE_MS,
    PATIENCE_S,
    QUIET_S,
    Background,
    Context,
    expect,
    expect_equal,
    expect_errno,
    must,
    settles,
)
from ocfcluster.conformance.registry import obligation

LAST = b"last"


@obligation("A5")
def nothing_to_handle(context: Context) -> None:
    """handle_events without a callback subscription gives ENOENT, also with a pull subscription."""
    expect_errno(errno.ENOENT, "handle_events without a subscription", ocf.oc_ev_handle_events)
    ocf.oc_ev_subscribe(context.topic(), None)
    expect_errno(errno.ENOENT, "handle_events with a pull subscription", ocf.oc_ev_handle_events)


@obligation("A5")
def one_order_for_all_callbacks(context: Context) -> None:
    """handle_events serves all callback subscriptions in the one order across topics, then returns 0."""
    topics = [context.topic() for _ in range(4)]
    seen: list[tuple[str, bytes]] = []
    eds: list[int] = []

    def on_event(event: Any) -> None:
        seen.append((event.topic, event.data))
        ocf.oc_ev_event_done(event)
        if event.data == LAST:
            for ed in eds:
                ocf.oc_ev_unsubscribe(ed)

    eds += [ocf.oc_ev_subscribe(topic, on_event) for topic in topics]
    pull = ocf.oc_ev_subscribe(topics[0], None)
    chance = random.Random(1)
    sent = [(chance.choice(topics), b"%d" % number) for number in range(2000)] + [(topics[0], LAST)]
    receipts = [ocf.oc_ev_publish(topic, data) for topic, data in sent]
    receipts[-1].wait()
    expect_equal(Background(ocf.oc_ev_handle_events).result("handle_events"), 0, "what handle_events gave")
    expect_equal(seen, sent, "the order across topics")
    expect(ocf.oc_ev_get_event(pull, 0) is not None, "the pull subscription did not outlive the callbacks")


@obligation("A5")
def changes_inside_callbacks_take_effect(context: Context) -> None:
    """A subscription made in a callback is served, one dropped there no more."""
    outer, inner = context.topic(), context.topic()
    seen: list[str] = []
    made: list[int] = []

    def on_inner(event: Any) -> None:
        seen.append("inner")
        ocf.oc_ev_event_done(event)
        ocf.oc_ev_unsubscribe(made[0])

    def on_outer(event: Any) -> None:
        seen.append("outer")
        ocf.oc_ev_event_done(event)
        made.append(ocf.oc_ev_subscribe(inner, on_inner))
        ocf.oc_ev_unsubscribe(ed)
        ocf.oc_ev_publish(outer, b"to nobody")
        ocf.oc_ev_publish(inner, b"x")

    ed = ocf.oc_ev_subscribe(outer, on_outer)
    ocf.oc_ev_publish(outer, b"x").wait()
    expect_equal(Background(ocf.oc_ev_handle_events).result("handle_events"), 0, "what handle_events gave")
    expect_equal(seen, ["outer", "inner"], "callbacks")


@obligation("A5")
def many_threads_may_handle(context: Context) -> None:
    """A subscription that comes while handle_events waits is served too."""
    first, second = context.topic(), context.topic()
    seen: list[str] = []

    def on_event(event: Any) -> None:
        seen.append(event.topic)
        ocf.oc_ev_event_done(event)

    eds = [ocf.oc_ev_subscribe(first, on_event)]
    task = Background(ocf.oc_ev_handle_events)
    time.sleep(0.05)
    eds.append(ocf.oc_ev_subscribe(second, on_event))
    ocf.oc_ev_publish(second, b"x").wait()
    expect(settles(lambda: seen == [second]), f"callbacks of a subscription made meanwhile: {seen}")
    for ed in eds:
        ocf.oc_ev_unsubscribe(ed)
    expect_equal(task.result("handle_events after the last unsubscribe"), 0, "what handle_events gave")


@obligation("A6")
def timeouts(context: Context) -> None:
    """get_event: 0 polls, a time in milliseconds is kept; nothing in time gives None."""
    ed = ocf.oc_ev_subscribe(context.topic(), None)
    began = time.monotonic()
    expect_equal(ocf.oc_ev_get_event(ed, 0), None, "get_event(0) with nothing there")
    polled_s = time.monotonic() - began
    expect(polled_s < 0.1, f"a poll took {polled_s:.3f} s")
    began = time.monotonic()
    expect_equal(ocf.oc_ev_get_event(ed, 200), None, "get_event(200) with nothing there")
    waited_s = time.monotonic() - began
    expect(0.19 < waited_s < 1.5, f"get_event(200) took {waited_s:.3f} s")


@obligation("A6")
def waiting_ends_with_an_event(context: Context) -> None:
    """A negative timeout waits until an event comes; a long one ends at once with it."""
    topic = context.topic()
    ed = ocf.oc_ev_subscribe(topic, None)
    for timeout in (-1, 60_000):
        waiting = Background(ocf.oc_ev_get_event, ed, timeout)
        time.sleep(QUIET_S)
        expect(waiting.running, f"get_event({timeout}) returned with nothing there")
        ocf.oc_ev_publish(topic, b"x")
        event = must(waiting.result(f"get_event({timeout})"), "the event")
        expect_equal(event.data, b"x", "data")


@obligation("A8")
def events_are_valid_until_done(context: Context) -> None:
    """An event taken in a callback stays valid past its return, while others come by, until it is done."""
    topic, noise = context.topic(), context.topic()
    kept: list[Any] = []
    ed = ocf.oc_ev_subscribe(topic, kept.append)
    other = ocf.oc_ev_subscribe(noise, None)
    ocf.oc_ev_publish(topic, b"keep me" * 1000).wait()
    expect(
        settles(lambda: ocf.oc_ev_handle_event(ed) is not None and bool(kept)), "the callback was not called"
    )
    for _ in range(50):
        ocf.oc_ev_publish(noise, b"z" * 8000)
    for _ in range(50):
        ocf.oc_ev_event_done(must(ocf.oc_ev_get_event(other, PATIENCE_MS), "another event"))
    expect_equal((kept[0].topic, kept[0].data), (topic, b"keep me" * 1000), "the kept event")
    ocf.oc_ev_event_done(kept[0])


@obligation("A8")
def done_once_and_only_for_events(context: Context) -> None:
    """event_done twice, or for what is no outstanding event: EINVAL."""
    topic = context.topic()
    ed = ocf.oc_ev_subscribe(topic, None)
    ocf.oc_ev_publish(topic, b"x").wait()
    event = must(ocf.oc_ev_get_event(ed, PATIENCE_MS), "the event")
    ocf.oc_ev_event_done(event)
    expect_errno(errno.EINVAL, "event_done twice", ocf.oc_ev_event_done, event)
    for stranger in (None, 7, b"event", object()):
        expect_errno(errno.EINVAL, f"event_done({type(stranger).__name__})", ocf.oc_ev_event_done, stranger)


@obligation("A9")
def callbacks_wait_for_done(context: Context) -> None:
    """The next event of a callback descriptor comes only after event_done of the one before."""
    topic = context.topic()
    seen: list[Any] = []
    ed = ocf.oc_ev_subscribe(topic, seen.append)
    receipts = [ocf.oc_ev_publish(topic, b"%d" % number) for number in range(3)]
    receipts[-1].wait()
    task = Background(ocf.oc_ev_handle_events)
    for number in range(3):
        expect(settles(lambda n=number: len(seen) > n), f"event {number} did not come")  # type: ignore[misc]
        time.sleep(QUIET_S)
        expect_equal(len(seen), number + 1, "callbacks before the event was done")
        expect_equal(seen[number].data, b"%d" % number, "data")
        ocf.oc_ev_event_done(seen[number])  # from another thread than the one that handles events
    ocf.oc_ev_unsubscribe(ed)
    task.result("handle_events")


@obligation("A9")
def an_open_event_holds_up_its_own_descriptor_alone(context: Context) -> None:
    """While one callback descriptor waits for event_done, the others go on."""
    held, free = context.topic(), context.topic()
    kept: list[Any] = []
    count = 0
    came = threading.Event()

    def on_free(event: Any) -> None:
        nonlocal count
        ocf.oc_ev_event_done(event)
        count += 1
        if count == 100:
            came.set()

    eds = [ocf.oc_ev_subscribe(held, kept.append), ocf.oc_ev_subscribe(free, on_free)]
    ocf.oc_ev_publish(held, b"x")
    for _ in range(100):
        ocf.oc_ev_publish(held, b"y")
        ocf.oc_ev_publish(free, b"z")
    task = Background(ocf.oc_ev_handle_events)
    expect(came.wait(PATIENCE_S), f"only {count} of 100 events of the other descriptor came")
    expect_equal(len(kept), 1, "callbacks of the descriptor whose event is not done")
    for ed in eds:
        ocf.oc_ev_unsubscribe(ed)
    ocf.oc_ev_event_done(kept[0])
    task.result("handle_events")


@obligation("A9")
def pulled_events_may_be_many(context: Context) -> None:
    """Several pulled events may be outstanding, and be done in any order."""
    topic = context.topic()
    ed = ocf.oc_ev_subscribe(topic, None)
    for number in range(5):
        ocf.oc_ev_publish(topic, b"%d" % number)
    events = [must(ocf.oc_ev_get_event(ed, PATIENCE_MS), f"event {number}") for number in range(5)]
    expect_equal([event.data for event in events], [b"%d" % number for number in range(5)], "data")
    for event in reversed(events):
        ocf.oc_ev_event_done(event)
