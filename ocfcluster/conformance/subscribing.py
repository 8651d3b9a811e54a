"""A1-A4 and A10: subscriptions come, are refused, and end."""

from __future__ import annotations

import errno
import threading
import time
from typing import Any

import ocfcluster
from ocfcluster import ocf
from ocfcluster.client import Event
from ocfcluster.conformance.context import (
    PATIENCE_MS,
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
from ocfcluster.limits import TOPIC_NAME_BYTES

BAD_NAMES = ("", "a\0b", "x" * (TOPIC_NAME_BYTES + 1), "é" * (TOPIC_NAME_BYTES // 2 + 1))


@obligation("A1")
def descriptors_are_distinct(context: Context) -> None:
    """Each subscription has an event descriptor of its own, an int from 0 on, also of the same topic."""
    one, two = context.topic(), context.topic()
    eds: list[Any] = [ocf.oc_ev_subscribe(topic, None) for topic in (one, two, one)]
    expect(all(isinstance(ed, int) and ed >= 0 for ed in eds), f"descriptors are {eds}")
    expect_equal(len(set(eds)), len(eds), "different descriptors")


@obligation("A1")
def subscriptions_are_independent(context: Context) -> None:
    """Two subscriptions of one topic each get every event; one to another topic gets none of them."""
    one, two = context.topic(), context.topic()
    first, second, other = (ocf.oc_ev_subscribe(topic, None) for topic in (one, one, two))
    ocf.oc_ev_publish(one, b"x").wait()
    for ed in (first, second):
        event = must(ocf.oc_ev_get_event(ed, PATIENCE_MS), "the event")
        expect_equal((event.topic, event.data), (one, b"x"), "topic and data")
        ocf.oc_ev_event_done(event)
    ocf.oc_ev_unsubscribe(first)
    ocf.oc_ev_publish(one, b"y").wait()
    event = must(ocf.oc_ev_get_event(second, PATIENCE_MS), "the event after the other unsubscribed")
    expect_equal(event.data, b"y", "data")
    expect_equal(ocf.oc_ev_get_event(other, 0), None, "an event of a topic not subscribed to")


@obligation("A2")
def unknown_topic_is_refused(context: Context) -> None:
    """Subscribing to an unknown topic gives EINVAL and does not create it."""
    name = context.new_name()
    expect_errno(errno.EINVAL, "subscribe to an unknown topic", ocf.oc_ev_subscribe, name, None)
    known = [topic.name for topic in context.client().topics()]
    expect(name not in known, "subscribing has created the topic")
    expect_errno(errno.EINVAL, "subscribe once more", ocf.oc_ev_subscribe, name, None)


@obligation("A2")
def bad_names_are_refused(context: Context) -> None:
    """A name that is empty, too long or has a NUL gives EINVAL; the longest one is good."""
    for name in BAD_NAMES:
        what = f"a topic name of {len(name.encode())} bytes"
        expect_errno(errno.EINVAL, f"subscribe with {what}", ocf.oc_ev_subscribe, name, None)
        expect_errno(errno.EINVAL, f"create with {what}", ocf.oc_ev_topic_create, name)
    longest = context.new_name().ljust(TOPIC_NAME_BYTES, "x")
    ocf.oc_ev_topic_create(longest)
    try:
        ocf.oc_ev_unsubscribe(ocf.oc_ev_subscribe(longest, None))
    finally:
        ocf.oc_ev_topic_remove(longest)


@obligation("A2")
def topic_answered_elsewhere_is_known(context: Context) -> None:
    """A topic whose creation was answered on another node is known at once here."""
    creators = [context.client(other) for other in context.other_sockets()]
    for round_number in range(10):
        name = context.new_name()
        creators[round_number % len(creators)].create_topic(name)
        ocf.oc_ev_unsubscribe(ocf.oc_ev_subscribe(name, None))


@obligation("A3")
def reserved_topics_are_not_permitted(context: Context) -> None:
    """Creating, removing and publishing to reserved topics gives EPERM."""
    client = context.client()
    expect_errno(errno.EPERM, "create oc.x", ocf.oc_ev_topic_create, "oc.conformance")
    expect_errno(errno.EPERM, "remove oc.membership", ocf.oc_ev_topic_remove, "oc.membership")

    def publish() -> None:
        client.publish("oc.membership", b"forged").wait(5.0)

    expect_errno(errno.EPERM, "publish to oc.membership", publish)


@obligation("A3")
def no_agent_is_said(context: Context) -> None:
    """Without an agent: ECONNREFUSED, and the message names the socket that was tried."""
    path = f"{context.socket}.nobody"

    def connect() -> None:
        ocfcluster.connect(path, timeout=0.2).close()

    error = expect_errno(errno.ECONNREFUSED, "connect where nobody listens", connect)
    expect(path in str(error), f"the message does not name the socket: {error}")


@obligation("A4")
def callback_descriptors_are_not_pulled(context: Context) -> None:
    """get_event on a callback descriptor gives EEXIST, also while an event waits."""
    topic = context.topic()
    ed = ocf.oc_ev_subscribe(topic, ocf.oc_ev_event_done)
    expect_errno(errno.EEXIST, "get_event on a callback ed", ocf.oc_ev_get_event, ed, 0)
    ocf.oc_ev_publish(topic, b"x").wait()
    expect_errno(errno.EEXIST, "get_event on a callback ed", ocf.oc_ev_get_event, ed, 100)


@obligation("A4")
def callbacks_and_pulls_deliver(context: Context) -> None:
    """With a function events come by callback, without one by get_event."""
    topic = context.topic()
    called: list[bytes] = []

    def on_event(event: Event) -> None:
        called.append(event.data)
        ocf.oc_ev_event_done(event)

    callback = ocf.oc_ev_subscribe(topic, on_event)
    pull = ocf.oc_ev_subscribe(topic, None)
    ocf.oc_ev_publish(topic, b"x").wait()
    event = must(ocf.oc_ev_get_event(pull, PATIENCE_MS), "the pulled event")
    expect_equal(event.data, b"x", "data of the pulled event")
    expect_equal(called, [], "callbacks before anybody handles events")

    def dispatch() -> bool:
        ocf.oc_ev_handle_event(callback)
        return bool(called)

    expect(settles(dispatch), "the callback was not called")
    expect_equal(called, [b"x"], "what the callback got")


@obligation("A10")
def unsubscribe_ends_delivery(context: Context) -> None:
    """No event after unsubscribe returns; queued ones are dropped, outstanding ones stay valid until done."""
    topic = context.topic()
    ed = ocf.oc_ev_subscribe(topic, None)
    ocf.oc_ev_publish(topic, b"first")
    ocf.oc_ev_publish(topic, b"queued").wait()
    event = must(ocf.oc_ev_get_event(ed, PATIENCE_MS), "the first event")
    ocf.oc_ev_unsubscribe(ed)
    ocf.oc_ev_publish(topic, b"late").wait()
    expect_errno(errno.EINVAL, "get_event after unsubscribe", ocf.oc_ev_get_event, ed, 100)
    expect_equal((event.topic, event.data), (topic, b"first"), "the outstanding event")
    ocf.oc_ev_event_done(event)
    expect_errno(errno.EINVAL, "done twice", ocf.oc_ev_event_done, event)


@obligation("A10")
def unsubscribe_within_a_callback(context: Context) -> None:
    """Unsubscribe in a callback is allowed: no further callback, and the event is valid until done."""
    topic = context.topic()
    seen: list[Event] = []

    def on_event(event: Event) -> None:
        seen.append(event)
        ocf.oc_ev_unsubscribe(ed)

    ed = ocf.oc_ev_subscribe(topic, on_event)
    receipts = [ocf.oc_ev_publish(topic, b"x") for _ in range(5)]
    receipts[-1].wait()
    task = Background(ocf.oc_ev_handle_events)
    expect(settles(lambda: bool(seen)), "the callback was not called")
    event = seen[0]
    time.sleep(QUIET_S)
    expect_equal(event.data, b"x", "data of the outstanding event")
    ocf.oc_ev_event_done(event)
    expect_equal(task.result("handle_events"), 0, "handle_events after the last subscription went")
    expect_equal(len(seen), 1, "callbacks")


@obligation("A10")
def unsubscribe_from_another_thread(context: Context) -> None:
    """A get_event that waits in another thread returns when its descriptor is unsubscribed."""
    ed = ocf.oc_ev_subscribe(context.topic(), None)
    entered = threading.Event()

    def wait() -> object:
        entered.set()
        try:
            return ocf.oc_ev_get_event(ed, -1)
        except OSError as error:
            return error.errno

    waiting = Background(wait)
    entered.wait(5.0)
    time.sleep(0.05)
    ocf.oc_ev_unsubscribe(ed)
    result = waiting.result("get_event on a descriptor that was unsubscribed")
    expect(result in (None, errno.EINVAL), f"the waiting get_event gave {result!r}")


@obligation("A10")
def unknown_descriptors_are_refused(context: Context) -> None:
    """An unknown descriptor gives EINVAL in every call that takes one."""
    used = ocf.oc_ev_subscribe(context.topic(), None)
    ocf.oc_ev_unsubscribe(used)
    for ed in (used, -1, 1 << 20):
        expect_errno(errno.EINVAL, f"unsubscribe({ed})", ocf.oc_ev_unsubscribe, ed)
        expect_errno(errno.EINVAL, f"get_fd({ed})", ocf.oc_ev_get_fd, ed)
        expect_errno(errno.EINVAL, f"get_event({ed})", ocf.oc_ev_get_event, ed, 0)
        expect_errno(errno.EINVAL, f"handle_event({ed})", ocf.oc_ev_handle_event, ed)
        expect_errno(errno.EINVAL, f"set_on_event({ed})", ocf.oc_ev_set_on_event, ed, None)
        expect_errno(errno.EINVAL, f"is_my_nodeid({ed})", ocf.oc_ev_is_my_nodeid, ed, 1)
