"""S1-S3: one order everywhere, and a definite start."""

from __future__ import annotations

import threading
from collections import Counter

from ocfcluster import ocf
from ocfcluster.client import Client, Event, Subscription
from ocfcluster.conformance.context import (
    PATIENCE_MS,
    PATIENCE_S,
    Background,
    Context,
    expect,
    expect_equal,
    must,
    take,
)
from ocfcluster.conformance.registry import obligation

Place = tuple[str, int, int, bytes]


def _publish_all(clients: list[Client], topics: list[str], each: int) -> Counter[tuple[str, bytes]]:
    """Every client publishes ``each`` events round the topics, all at once; what was published."""

    def publish(number: int, client: Client) -> None:
        for count in range(each):
            client.publish(topics[(number + count) % len(topics)], b"%d.%d" % (number, count))
        client.flush(2 * PATIENCE_S)

    tasks = [Background(publish, number, client) for number, client in enumerate(clients)]
    for task in tasks:
        task.result("a publisher", 2 * PATIENCE_S)
    return Counter(
        (topics[(number + count) % len(topics)], b"%d.%d" % (number, count))
        for number in range(len(clients))
        for count in range(each)
    )


def _places(subscription: Subscription, count: int) -> list[Place]:
    return [(event.topic, event.seq, event.ev_id, event.data) for event in take(subscription, count)]


def _expect_one_order(orders: list[list[Place]], published: Counter[tuple[str, bytes]], each: int) -> None:
    first = orders[0]
    expect_equal(
        Counter((topic, data) for topic, _, _, data in first), published, "events, each exactly once"
    )
    for number, other in enumerate(orders[1:], start=2):
        for place, (mine, its) in enumerate(zip(first, other, strict=True)):
            expect_equal(its, mine, f"place {place} at subscriber {number}")
    for publisher in {data.split(b".")[0] for _, _, _, data in first}:
        counts = [int(data.split(b".")[1]) for _, _, _, data in first if data.split(b".")[0] == publisher]
        expect_equal(counts, list(range(each)), "the events of one publisher, in its order")


@obligation("S1")
def one_order_for_all_subscribers(context: Context) -> None:
    """Subscribers to several topics get the events of all publishers in the same order, each exactly once."""
    topics = [context.topic() for _ in range(3)]
    subscriptions = [context.client().subscribe(topics) for _ in range(3)]
    published = _publish_all([context.client() for _ in range(3)], topics, 400)
    _expect_one_order([_places(each, published.total()) for each in subscriptions], published, 400)
    for subscription in subscriptions:
        expect_equal(subscription.get(timeout=0.05), None, "what came besides")


@obligation("S1")
def one_order_on_every_node(context: Context) -> None:
    """Subscribers on every node get the events of publishers on every node in the same order, each exactly once."""
    sockets = [context.socket, *context.other_sockets()]
    topics = [context.topic() for _ in range(3)]
    subscriptions = [context.client(socket).subscribe(topics) for socket in sockets]
    published = _publish_all([context.client(socket) for socket in sockets], topics, 600)
    _expect_one_order([_places(each, published.total()) for each in subscriptions], published, 600)
    for subscription in subscriptions:
        expect_equal(subscription.get(timeout=0.05), None, "what came besides")


@obligation("S1")
def one_order_for_callbacks_on_every_node(context: Context) -> None:
    """Callbacks on separate subscriptions see the topics interleaved as the subscribers of other nodes do."""
    other = context.client(context.other_sockets()[0])
    topics = [context.topic() for _ in range(2)]
    elsewhere = other.subscribe(topics)
    seen: list[Place] = []
    total = 400

    def on_event(event: Event) -> None:
        seen.append((event.topic, event.seq, event.ev_id, event.data))
        ocf.oc_ev_event_done(event)
        if len(seen) == total:
            for ed in eds:
                ocf.oc_ev_unsubscribe(ed)

    eds = [ocf.oc_ev_subscribe(topic, on_event) for topic in topics]
    task = Background(ocf.oc_ev_handle_events)
    _publish_all([context.client(), other], topics, total // 2)
    task.result("handle_events", 2 * PATIENCE_S)
    expect_equal(seen, _places(elsewhere, total), "the order of callbacks")


@obligation("S2")
def an_agent_delivers_locally(context: Context) -> None:
    """What is published at an agent is delivered to subscribers of that agent."""
    client, topic = context.client(), context.topic()
    subscription = client.subscribe(topic)
    client.publish(topic, b"x").wait(PATIENCE_S)
    event = take(subscription, 1)[0]
    expect_equal((event.data, event.node_id), (b"x", client.node_id), "data and node")


@obligation("S2")
def every_node_delivers(context: Context) -> None:
    """Agents have sockets and node ids of their own, and each delivers what is published at any."""
    clients = [context.client(), *map(context.client, context.other_sockets())]
    nodes = [client.node_id for client in clients]
    expect_equal(len(set(nodes)), len(nodes), f"different node ids among {nodes}")
    topic = context.topic()
    subscriptions = [client.subscribe(topic) for client in clients]
    for client in clients:
        client.publish(topic, b"%d" % client.node_id).wait(PATIENCE_S)
    for subscription in subscriptions:
        seen = [(event.node_id, event.data) for event in take(subscription, len(nodes))]
        expect_equal(seen, [(node, b"%d" % node) for node in nodes], "what a node delivered")


@obligation("S3")
def the_start_is_known(context: Context) -> None:
    """While others publish, a new subscription's first event has the seq it was told, and none is missed after it."""
    client, topic = context.client(), context.topic()
    publisher = context.client()
    stop = threading.Event()

    def publish() -> None:
        number = 0
        while not stop.is_set():
            publisher.publish(topic, b"%d" % number)
            number += 1
            if number % 100 == 0:
                publisher.flush(PATIENCE_S)

    task = Background(publish)
    try:
        for _ in range(10):
            with client.subscribe(topic) as subscription:
                start = subscription.starts[0]
                seqs = [event.seq for event in take(subscription, 30)]
            expect_equal(start.topic, topic, "the topic of the start")
            expect_equal(seqs, list(range(start.next_seq, start.next_seq + 30)), "seq from the start on")
    finally:
        stop.set()
        task.result("the publisher")


@obligation("S3")
def the_start_is_now(context: Context) -> None:
    """What was delivered before the subscription does not come; the first event after it does."""
    topic = context.topic()
    for _ in range(3):
        ocf.oc_ev_publish(topic, b"before").wait()
    ed = ocf.oc_ev_subscribe(topic, None)
    ocf.oc_ev_publish(topic, b"after").wait()
    event = must(ocf.oc_ev_get_event(ed, PATIENCE_MS), "the event after the subscription")
    expect_equal((event.seq, event.data), (4, b"after"), "seq and data of the first event")
    expect(ocf.oc_ev_get_event(ed, 0) is None, "a second event came")


@obligation("S3")
def starts_of_several_topics(context: Context) -> None:
    """A subscription to several topics knows its start in each."""
    client = context.client()
    topics = [context.topic() for _ in range(3)]
    for number, topic in enumerate(topics):
        if number:
            client.publish_many(topic, [b"x"] * number).wait(PATIENCE_S)
    with client.subscribe(topics) as subscription:
        starts = {start.topic: start.next_seq for start in subscription.starts}
        expect_equal(starts, {topic: number + 1 for number, topic in enumerate(topics)}, "starts")
        for topic in topics:
            client.publish(topic, b"y")
        seqs = {event.topic: event.seq for event in take(subscription, 3)}
        expect_equal(seqs, starts, "seq of the first events")
