"""A15: publications, their receipts, and flow control that reaches the caller."""

from __future__ import annotations

import errno
import time

from ocfcluster import ocf
from ocfcluster.conformance.context import (
    PATIENCE_MS,
    Background,
    Context,
    expect,
    expect_equal,
    expect_errno,
    must,
    take,
)
from ocfcluster.conformance.registry import obligation

ENOUGH_BYTES = 512 * 1024 * 1024  # more than any agent keeps for a subscriber that takes nothing


@obligation("A15")
def receipts_tell_the_place(context: Context) -> None:
    """wait() gives the seq and ev_id under which the event is then delivered."""
    topic = context.topic()
    ed = ocf.oc_ev_subscribe(topic, None)
    for number in range(20):
        published = ocf.oc_ev_publish(topic, b"%d" % number).wait()
        event = must(ocf.oc_ev_get_event(ed, PATIENCE_MS), "the event")
        expect_equal(
            (published.seq, published.ev_id), (event.seq, event.ev_id), "seq and ev_id of the receipt"
        )
        expect_equal(event.data, b"%d" % number, "data")
        ocf.oc_ev_event_done(event)


@obligation("A15")
def receipts_of_a_burst(context: Context) -> None:
    """Receipts of a pipelined burst each tell their own event's place, in publishing order."""
    topic = context.topic()
    client = context.client()
    subscription = client.subscribe(topic)
    receipts = [client.publish(topic, b"%d" % number) for number in range(3000)]
    client.flush(10.0)
    expect(all(receipt.done() for receipt in receipts), "a receipt is open after flush")
    events = take(subscription, len(receipts))
    expect_equal([event.data for event in events], [b"%d" % number for number in range(3000)], "data")
    places = [(receipt.wait().seq, receipt.wait().ev_id) for receipt in receipts]
    expect_equal(places, [(event.seq, event.ev_id) for event in events], "seq and ev_id of the receipts")


@obligation("A15")
def reply_ids_are_wide(context: Context) -> None:
    """re_id takes 64-bit ids; 0 means none."""
    topic = context.topic()
    ed = ocf.oc_ev_subscribe(topic, None)
    for re_id in (0, 1, 2**31, 2**40 + 5, 2**63 - 1):
        ocf.oc_ev_publish(topic, b"x", re_id=re_id)
        event = must(ocf.oc_ev_get_event(ed, PATIENCE_MS), "the event")
        expect_equal(event.re_id, re_id, "re_id")


@obligation("A15")
def too_large_is_refused(context: Context) -> None:
    """An event beyond the largest gives EMSGSIZE at once; the largest one goes through, and what follows too."""
    topic = context.topic()
    client = context.client()
    largest = client.event_bytes
    ed = ocf.oc_ev_subscribe(topic, None)
    expect_errno(errno.EMSGSIZE, "publish of one byte too many", ocf.oc_ev_publish, topic, bytes(largest + 1))
    ocf.oc_ev_publish(topic, b"m" * largest).wait(10.0)
    event = must(ocf.oc_ev_get_event(ed, PATIENCE_MS), "the largest event")
    expect(event.data == b"m" * largest, "the largest event is not what was published")
    ocf.oc_ev_publish(topic, b"small").wait(10.0)
    expect_equal(must(ocf.oc_ev_get_event(ed, PATIENCE_MS), "the next event").data, b"small", "data")


@obligation("A15")
def refused_publications_say_why(context: Context) -> None:
    """A publication to an unknown topic fails with EINVAL, and what was published behind it goes through."""
    topic, unknown = context.topic(), context.new_name()
    ed = ocf.oc_ev_subscribe(topic, None)

    def publish() -> None:
        ocf.oc_ev_publish(unknown, b"lost").wait()

    expect_errno(errno.EINVAL, "publish to an unknown topic", publish)
    ocf.oc_ev_publish(topic, b"after").wait(10.0)
    event = must(ocf.oc_ev_get_event(ed, PATIENCE_MS), "the event published after the refused one")
    expect_equal((event.seq, event.data), (1, b"after"), "seq and data")


@obligation("A15", time_limit_s=60.0)
def no_room_is_said_in_time(context: Context) -> None:
    """With a subscriber that takes nothing publish blocks, and with a timeout gives EAGAIN after it."""
    topic = context.topic()
    full = context.client().subscribe(topic)
    publisher = context.client()
    chunk = bytes(min(publisher.event_bytes, 1 << 20))

    def publish_until_refused() -> tuple[int, float]:
        for _ in range(ENOUGH_BYTES // len(chunk)):
            began = time.monotonic()
            try:
                publisher.publish(topic, chunk, timeout=0.3)
            except OSError as error:
                return error.errno or 0, time.monotonic() - began
        return 0, 0.0

    code, waited_s = Background(publish_until_refused).result("publish with a timeout", 50.0)
    expect_equal(errno.errorcode.get(code), "EAGAIN", "errno of publish without room")
    expect(0.25 < waited_s < 3.0, f"EAGAIN after {waited_s:.2f} s instead of 0.3 s")
    full.close()
    publisher.publish(topic, b"x", timeout=10.0).wait(10.0)


@obligation("A15", time_limit_s=60.0)
def waiting_for_oneself_is_refused(context: Context) -> None:
    """publish fails with EDEADLK at once where it would wait for a subscription that this very thread drains."""
    topic = context.topic()
    client = context.client()
    subscription = client.subscribe(topic)
    client.publish(topic, b"first").wait(10.0)
    chunk = bytes(min(client.event_bytes, 1 << 20))

    def drain_one_then_publish() -> int:
        take(subscription, 1)
        for _ in range(ENOUGH_BYTES // len(chunk)):
            try:
                client.publish(topic, chunk)
            except OSError as error:
                return error.errno or 0
        return 0

    code = Background(drain_one_then_publish).result("publish into a full subscription of its own", 50.0)
    expect_equal(code, errno.EDEADLK, "errno of publish that waits for its own thread")
    subscription.close()


@obligation("A15")
def user_properties_travel(context: Context) -> None:
    """Properties given to publish come with the event, also where neighbours have others."""
    topic = context.topic()
    ed = ocf.oc_ev_subscribe(topic, None)
    tables = [{"n": str(number), "Zürich": "ja"} if number % 3 else None for number in range(30)]
    for table in tables:
        ocf.oc_ev_publish(topic, b"x", properties=table)
    for table in tables:
        event = must(ocf.oc_ev_get_event(ed, PATIENCE_MS), "an event with properties")
        expect_equal(dict(event.properties), table or {}, "properties")
