"""F1, S4 and what A13 says of the slow: what a subscriber gets of what there is, and what it is told of the rest."""

from __future__ import annotations

import json
import time
from typing import Any

from ocfcluster import Property, from_node, ocf, parse_filter
from ocfcluster.client import Client, Subscription
from ocfcluster.client.events import Event, Notice, NoticeCode
from ocfcluster.components.filters import MembershipFilter
from ocfcluster.components.membership import MembershipCode, MembershipEvent
from ocfcluster.conformance.context import (
    PATIENCE_S,
    QUIET_S,
    Background,
    Context,
    expect,
    expect_equal,
    expect_errno,
    must,
    readable,
    settles,
    take,
)
from ocfcluster.conformance.registry import obligation
from ocfcluster.errors import FilterError
from ocfcluster.limits import SECOND_NS, STUCK_NS, SUBSCRIPTION_TICK_NS

SUSPICION_MS = 600
CHANGE_S = 20.0  # for a restarted node to be back, on a loaded machine
CLUSTER_LIMIT_S = 300.0  # for a check with a cluster of its own
TICK_S = SUBSCRIPTION_TICK_NS / SECOND_NS
STUCK_S = STUCK_NS / SECOND_NS
LARGE = bytes(1 << 19)
MANY = 80  # of them are more than waits for one subscriber
ALARMS: tuple[dict[str, str], ...] = (
    {"severity": "high", "zone": "eu-1"},
    {"severity": "low", "zone": "eu-2"},
    {"severity": "high", "zone": "us-1", "test": ""},
    {},
    {"zone": "eu-1"},
)


@obligation("F1")
def filters_choose_by_property(context: Context) -> None:
    """equal, prefix, present, and, or, not: the agent gives what they let through, built or written, in every way."""
    client = context.client()
    topic = context.topic()
    here = client.node_id
    wanted: list[tuple[Any, set[int]]] = [
        (Property("severity") == "high", {0, 2}),
        (Property("zone").startswith("eu-"), {0, 1, 4}),
        (Property("test").present(), {2}),
        (~Property("severity").present(), {3, 4}),
        ('severity == "high" and not present(test) and zone startswith "eu-"', {0}),
        ('severity == "low" or present(test)', {1, 2}),
        ('severity != "high"', {1, 3, 4}),
        (from_node(here), {0, 1, 2, 3, 4}),
        (~from_node(here), set()),
    ]
    subscriptions = [client.subscribe(topic, filter=one) for one, _ in wanted]
    ed = ocf.oc_ev_subscribe(topic, None, filter='severity == "high"')
    everything = client.subscribe(topic)
    for number, properties in enumerate(ALARMS):
        client.publish(topic, b"%d" % number, properties=properties)
    client.flush(PATIENCE_S)
    take(everything, len(ALARMS))
    for subscription, (given, numbers) in zip(subscriptions, wanted, strict=True):
        events = take(subscription, len(numbers))
        expect_equal({int(event.data) for event in events}, numbers, f"what {given} lets through")
        expect_equal([event.seq - 1 for event in events], sorted(numbers), "their seqs")
        expect_equal(subscription.get(timeout=0), None, f"what came besides through {given}")
    datas = [must(ocf.oc_ev_get_event(ed, 2000), "an event").data for _ in range(2)]
    expect_equal(datas, [b"0", b"2"], "what oc_ev_subscribe's filter lets through")


@obligation("F1")
def what_is_left_out_is_not_written(context: Context) -> None:
    """Events that the filter leaves out never make the descriptor readable, whatever time passes."""
    client = context.client()
    topic = context.topic()
    subscription = client.subscribe(topic, filter='severity == "high"')
    for number in range(300):
        client.publish(topic, b"x", properties={"severity": "low", "number": str(number)})
        if number % 100 == 0:
            client.flush(PATIENCE_S)
            expect(
                not readable(subscription.fileno(), QUIET_S),
                "the descriptor is readable for what is left out",
            )
    client.flush(PATIENCE_S)
    expect(not readable(subscription.fileno(), 1.2 * TICK_S), "the descriptor becomes readable after a time")
    client.publish(topic, b"y", properties={"severity": "high"})
    (event,) = take(subscription, 1)
    expect_equal((event.data, event.seq), (b"y", 301), "data and seq of the event that it lets through")


@obligation("F1")
def a_wrong_filter_is_pointed_at(context: Context) -> None:
    """The text of a filter that cannot be read gives EINVAL, and the error names the place."""
    topic = context.topic()
    client = context.client()
    for text, position in (("severity == high", 12), ('a == "x" and', 12), ("(present(a)", 11), ("", 0)):
        try:
            parse_filter(text)
        except FilterError as error:
            expect_equal(error.position, position, f"the place of the error in {text!r}")
        else:
            expect(False, f"{text!r} is taken for a filter")
    expect_errno(22, "subscribe with a wrong filter", client.subscribe, topic, filter="severity == high")
    expect_errno(22, "oc_ev_subscribe with a wrong filter", ocf.oc_ev_subscribe, topic, None, filter="a")


@obligation("F1", time_limit_s=CLUSTER_LIMIT_S)
def a_filter_leaves_no_false_gap(context: Context) -> None:
    """Who goes on after its agent's restart is told of no gap where all that came was left out by its filter."""
    with context.own_cluster(3, SUSPICION_MS) as cluster:
        other = context.client(cluster.socket(1))
        topic = context.new_name()
        other.create_topic(topic)
        subscription = context.client(cluster.socket(3), resume=True).subscribe(
            topic, filter=Property("severity") == "high"
        )
        other.publish(topic, b"first", properties={"severity": "high"}).wait(PATIENCE_S)
        take(subscription, 1)
        for _ in range(50):
            other.publish(topic, b"x")
        other.flush(PATIENCE_S)
        time.sleep(1.5 * TICK_S)  # it is told where it is
        cluster.kill(3)
        cluster.start(3)
        told: list[Notice] = []
        while not told or told[-1].code is not NoticeCode.RESUMED:
            event = must(subscription.get(timeout=CHANGE_S), f"how it goes on after {told}")
            told.append(must(event.notice, "a notice"))
        expect_equal(
            [notice.code for notice in told], [NoticeCode.AGENT_LOST, NoticeCode.RESUMED], "what is told"
        )
        other.publish(topic, b"after", properties={"severity": "high"}).wait(PATIENCE_S)
        (event,) = take(subscription, 1)
        expect_equal((event.data, event.seq), (b"after", 52), "data and seq of the next event")


@obligation("F1")
def membership_events_are_objects(context: Context) -> None:
    """The ready-made filter of oc.membership gives objects, of the codes that were chosen alone."""
    events = context.client().subscribe(MembershipFilter.topic)
    opened = next(MembershipFilter(MembershipCode.NEW_MEMBERSHIP).over(events))
    expect(isinstance(opened, MembershipEvent), f"what it gives is {opened!r}")
    again = must(context.client().subscribe(MembershipFilter.topic).get(timeout=PATIENCE_S), "the membership")
    expect_equal(MembershipFilter(MembershipCode.NOT_PRIMARY).open(again), None, "an event of another code")
    expect_equal(MembershipFilter().open(again), opened, "the event without a choice")


# --- the slow -----------------------------------------------------------------------------------------------------


def _flood(client: Client, topic: str) -> None:
    """More than waits for one subscriber; done when all of it is delivered here."""
    for _ in range(MANY):
        client.publish(topic, LARGE)
    client.flush(2 * PATIENCE_S)


def _rest(subscription: Subscription) -> list[Event]:
    """Everything that comes, up to a final notice, or until nothing comes any more."""
    events: list[Event] = []
    while not events or events[-1].notice is None or not events[-1].notice.final:
        event = subscription.get(timeout=5 * QUIET_S)
        if event is None:
            break
        events.append(event)
    return events


@obligation("S4")
def the_oldest_are_dropped_and_told(context: Context) -> None:
    """drop_oldest: nobody waits for it; the newest come, and each seq comes or lies in a gap told in its place."""
    client = context.client()
    topic = context.topic()
    slow = client.subscribe(topic, on_slow="drop_oldest")
    quick = context.client().subscribe(topic)
    drained = Background(take, quick, MANY)
    begun = time.monotonic()
    _flood(client, topic)
    took_s = time.monotonic() - begun
    drained.result("the quick subscription's events")
    reached = 0
    gaps = 0
    for event in _rest(slow):
        first, last = event.seq, event.seq
        if event.notice is not None:
            notice = event.notice
            expect_equal(
                (notice.code, notice.topic, notice.final), (NoticeCode.GAP, topic, False), "the notice"
            )
            first, last = notice.first_seq, notice.last_seq
            gaps += 1
        expect_equal(first, reached + 1, f"the seq of what comes after {reached}")
        reached = last
    expect_equal(reached, MANY, "the last seq")
    expect(gaps, "nothing was dropped: the check asks for too little")
    expect(took_s < 4.0, f"publishers waited for it: {took_s:.1f} s")


@obligation("A13")
def a_slow_one_ends_with_a_notice(context: Context) -> None:
    """disconnect: what it missed is told, then a notice that it was too slow, and that is the end."""
    client = context.client()
    topic = context.topic()
    slow = client.subscribe(topic, on_slow="disconnect")
    quick = context.client().subscribe(topic)
    drained = Background(take, quick, MANY)
    _flood(client, topic)
    drained.result("the quick subscription's events")
    events = _rest(slow)
    last = must(events[-1].notice if events else None, "the notice at the end")
    expect_equal((last.code, last.final), (NoticeCode.SLOW, True), "the last notice")
    gap = must(events[-2].notice, "the gap before the end")
    expect_equal((gap.code, gap.first_seq), (NoticeCode.GAP, events[-3].seq + 1), "the gap")
    expect_errno(107, "get after the end", slow.get, 0)


@obligation("A13", time_limit_s=90.0)
def a_stuck_callback_is_visible(context: Context) -> None:
    """An event that a program has and does not finish shows in status with pid and age, and is told on oc.local."""
    client = context.client()
    topic = context.topic()
    news = client.subscribe("oc.local", filter='event == "stuck"')
    held: list[Event] = []
    ed = ocf.oc_ev_subscribe(topic, held.append)
    client.publish(topic, b"x").wait(PATIENCE_S)
    expect(settles(lambda: bool(ocf.oc_ev_handle_event(ed) or held)), "the callback was not called")

    def shown() -> list[Any]:
        return [
            one["oldest_outstanding"]
            for one in client.status()["clients"]
            if one["name"].startswith("ocf ") and one["oldest_outstanding"]
        ]

    expect(settles(lambda: bool(shown())), "status does not show the event")
    expect_equal(
        (shown()[0]["topic"], shown()[0]["seq"]), (topic, held[0].seq), "the event that status shows"
    )
    told = must(news.get(timeout=STUCK_S + 3 * TICK_S), "an event on oc.local")
    document = json.loads(told.data)
    expect_equal(
        (document["event"], document["topic"], document["seq"]), ("stuck", topic, 1), "what it tells"
    )
    expect(document["age_ms"] >= 1000 * STUCK_S and document["pid"], f"age and pid: {document}")
    ocf.oc_ev_event_done(held[0])
    expect(settles(lambda: not shown()), "status shows an event that is done")
