"""S3, S4 and A13: subscriptions that start earlier than now, or go on where they were, and what they miss."""

from __future__ import annotations

import threading
from typing import Any, Final

from ocfcluster import Retention, TopicSettings, ocf
from ocfcluster.client import Client, Event, Notice, NoticeCode, Subscription
from ocfcluster.conformance.context import (
    PATIENCE_MS,
    PATIENCE_S,
    QUIET_S,
    Context,
    expect,
    expect_equal,
    must,
    take,
)
from ocfcluster.conformance.registry import obligation

CLUSTER_LIMIT_S: Final = 90.0
SUSPICION_MS: Final = 600
CHANGE_S: Final = 20.0  # for an agent to be started and to have joined


def _kept_topic(context: Context, events: int, published: int) -> str:
    """A fresh topic that keeps so many events, with so many published: their data are their seqs."""
    client = context.client()
    name = context.new_name()
    client.create_topic(name, settings=TopicSettings(Retention(events=events)))
    if published:
        client.publish_many(name, [b"%d" % seq for seq in range(1, published + 1)]).wait(PATIENCE_S)
    return name


def _gap(subscription: Subscription) -> Notice:
    told = must(subscription.get(timeout=PATIENCE_S), "the gap")
    notice = must(told.notice, f"a notice (instead of seq {told.seq})")
    expect_equal(notice.code, NoticeCode.GAP, "code of the notice")
    expect(notice.reason, "the gap gives no reason")
    expect(not notice.final, "the gap ends the subscription")
    return notice


@obligation("S3")
def the_start_can_be_earlier(context: Context) -> None:
    """With from_seq, from_last or retained what a topic keeps comes first, marked as such, then what is new."""
    topic = _kept_topic(context, 6, 10)
    asked: tuple[dict[str, Any], ...] = (
        {"from_seq": 7},
        {"from_last": 2},
        {"from_last": 99},
        {"retained": True},
        {},
    )
    starts = (7, 9, 5, 5, 11)
    eds = [ocf.oc_ev_subscribe(topic, None, **how) for how in asked]
    ocf.oc_ev_publish(topic, b"11").wait()
    for ed, how, start in zip(eds, asked, starts, strict=True):
        for seq in range(start, 12):
            event = must(ocf.oc_ev_get_event(ed, PATIENCE_MS), f"seq {seq} with {how}")
            expect_equal((event.notice, event.seq, event.data), (None, seq, b"%d" % seq), f"event with {how}")
            expect_equal(event.retained, seq <= 10, f"whether seq {seq} is marked as kept, with {how}")
            ocf.oc_ev_event_done(event)
        expect_equal(ocf.oc_ev_get_event(ed, 0), None, f"what came besides with {how}")


@obligation("S3")
def kept_events_are_what_they_were(context: Context) -> None:
    """A kept event has the numbers, data, properties and origin with which it was delivered."""
    client = context.client()
    topic = _kept_topic(context, 100, 0)
    live = client.subscribe(topic)
    for number in range(5):
        client.publish_many(topic, [b"%d" % number] * 3, re_id=7, properties={"k": str(number)})
    client.flush(PATIENCE_S)

    def image(event: Event) -> tuple[object, ...]:
        return (
            event.seq, event.ev_id, event.re_id, event.data, event.properties, event.node_id, event.incarnation,
            event.m_sequence, event.time_ns, event.order_time_ns,
        )  # fmt: skip

    seen = [image(event) for event in take(live, 15)]
    for start in (1, 5):  # the second within what was published together
        kept = take(client.subscribe(topic, from_seq=start), 16 - start)
        expect_equal([image(event) for event in kept], seen[start - 1 :], f"events from seq {start} on")


@obligation("S3")
def nothing_between_kept_and_new(context: Context) -> None:
    """However much is published meanwhile, new events follow the kept ones without one missed or doubled."""
    topic = _kept_topic(context, 100_000, 2000)
    stop = threading.Event()

    def publish(client: Client) -> None:
        while not stop.is_set():
            client.publish_many(topic, [b"x" * 500] * 20).wait(PATIENCE_S)

    publisher = threading.Thread(target=publish, args=(context.client(),))
    publisher.start()
    try:
        client = context.client()
        for _ in range(10):
            with client.subscribe(topic, retained=True) as subscription:
                seq = 1
                new = 0
                while new < 300:
                    run = must(subscription.get_run(timeout=PATIENCE_S), f"seq {seq}")
                    expect(run.notice is None, f"a notice came instead of seq {seq}: {run.notice}")
                    expect_equal(run.seq, seq, "the next seq")
                    seq += len(run)
                    new += len(run) if not run.events().__next__().retained else 0
    finally:
        stop.set()
        publisher.join(PATIENCE_S)


@obligation("S4")
def what_is_not_kept_is_told(context: Context) -> None:
    """What was asked for with from_seq and is not kept any more is a gap with both its ends and a reason."""
    topic = _kept_topic(context, 3, 10)
    subscription = context.client().subscribe(topic, from_seq=2)
    gap = _gap(subscription)
    expect_equal((gap.topic, gap.first_seq, gap.last_seq), (topic, 2, 7), "topic and ends of the gap")
    expect_equal([event.seq for event in take(subscription, 3)], [8, 9, 10], "what comes after the gap")


@obligation("S4")
def another_topic_of_the_name_is_told(context: Context) -> None:
    """The position of an event of a topic that was removed and made again is a gap: its events are no more."""
    client = context.client()
    topic = _kept_topic(context, 10, 5)
    position = take(client.subscribe(topic, from_last=3), 1)[0].position
    expect_equal(take(client.subscribe(topic, from_seq=position), 1)[0].seq, 3, "the event at the position")
    client.remove_topic(topic)
    client.create_topic(topic, settings=TopicSettings(Retention(events=10)))
    client.publish_many(topic, [b"a", b"b", b"c", b"d"]).wait(PATIENCE_S)
    subscription = client.subscribe(topic, from_seq=position)
    expect_equal(_gap(subscription).first_seq, 3, "where the gap begins")
    expect_equal([event.seq for event in take(subscription, 4)], [1, 2, 3, 4], "events of the new topic")
    expect_equal(subscription.get(timeout=QUIET_S), None, "what came besides")


@obligation("A13", time_limit_s=CLUSTER_LIMIT_S)
def resumed_with_what_is_kept(context: Context) -> None:
    """With resume a subscription goes on where it was after its agent's restart: what came meanwhile was kept."""
    with context.own_cluster(3, SUSPICION_MS) as cluster:
        client = context.client(cluster.socket(1), resume=True)
        client.create_topic("kept", settings=TopicSettings(Retention(events=1000)))
        client.create_topic("some", settings=TopicSettings(Retention(events=2)))
        other = context.client(cluster.socket(2))
        subscriptions = {name: client.subscribe(name) for name in ("kept", "some")}
        for name, subscription in subscriptions.items():
            other.publish(name, b"before").wait(PATIENCE_S)
            expect_equal(take(subscription, 1)[0].data, b"before", "data")
        cluster.kill(1)
        for name in subscriptions:
            other.publish_many(name, [b"meanwhile"] * 5).wait(2 * CHANGE_S)
        cluster.start(1)
        wanted: dict[str, list[object]] = {
            "kept": [NoticeCode.AGENT_LOST, NoticeCode.RESUMED, 2, 3, 4, 5, 6],
            "some": [NoticeCode.AGENT_LOST, (2, 4), NoticeCode.RESUMED, 5, 6],
        }
        for name, subscription in subscriptions.items():
            got: list[object] = []
            while len(got) < len(wanted[name]):
                event = must(subscription.get(timeout=CHANGE_S), f"more than {got}")
                notice = event.notice
                if notice is None:
                    expect(event.retained, f"seq {event.seq} is not marked as kept")
                    got.append(event.seq)
                elif notice.code is NoticeCode.GAP:
                    got.append((notice.first_seq, notice.last_seq))
                else:
                    got.append(notice.code)
            expect_equal(got, wanted[name], f"what the subscription of {name!r} got")
