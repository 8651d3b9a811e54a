"""A16: topics are made, listed and removed; each has a scope."""

from __future__ import annotations

import errno

from ocfcluster import ocf
from ocfcluster.client import NoticeCode
from ocfcluster.conformance.context import (
    PATIENCE_MS,
    PATIENCE_S,
    QUIET_S,
    Context,
    expect,
    expect_equal,
    expect_errno,
    must,
    readable,
    take,
)
from ocfcluster.conformance.registry import obligation


@obligation("A16")
def created_listed_removed(context: Context) -> None:
    """Topics are created, listed with their scope, and removed; a removed one is unknown."""
    names = {context.new_name(): "global", context.new_name(): "local"}
    for name, scope in names.items():
        ocf.oc_ev_topic_create(name, scope)
    listed = {topic.name: topic.scope for topic in ocf.oc_ev_topic_list()}
    expect_equal({name: listed.get(name) for name in names}, names, "scopes in the list")
    for name in names:
        ocf.oc_ev_topic_remove(name)
        expect_errno(errno.EINVAL, "subscribe to a removed topic", ocf.oc_ev_subscribe, name, None)
        expect_errno(errno.EINVAL, "remove it again", ocf.oc_ev_topic_remove, name)
    expect(not names.keys() & {topic.name for topic in ocf.oc_ev_topic_list()}, "a removed topic is listed")


@obligation("A16")
def creation_is_idempotent(context: Context) -> None:
    """Creating a topic again with the same scope changes nothing; with another scope: EEXIST."""
    client = context.client()
    name = context.topic()
    client.publish(name, b"x").wait(PATIENCE_S)
    before = client.topic(name)
    ocf.oc_ev_topic_create(name, "global")
    after = client.topic(name)
    expect_equal((after.topic_id, after.last_seq), (before.topic_id, 1), "topic id and last seq")
    expect_errno(errno.EEXIST, "create with another scope", ocf.oc_ev_topic_create, name, "local")


@obligation("A16")
def removal_ends_subscriptions(context: Context) -> None:
    """Removing a topic ends its subscriptions with a notice; then ENOTCONN, with the descriptor readable."""
    topic = context.topic()
    ed = ocf.oc_ev_subscribe(topic, None)
    ocf.oc_ev_publish(topic, b"x").wait()
    context.client().remove_topic(topic)
    event = must(ocf.oc_ev_get_event(ed, PATIENCE_MS), "the event before the removal")
    expect_equal(event.data, b"x", "data")
    ocf.oc_ev_event_done(event)
    told = must(ocf.oc_ev_get_event(ed, PATIENCE_MS), "the notice")
    notice = must(told.notice, "the notice within the event")
    expect_equal((notice.code, notice.topic, notice.final), (NoticeCode.TOPIC_REMOVED, topic, True), "notice")
    ocf.oc_ev_event_done(told)
    expect_errno(errno.ENOTCONN, "get_event after the end", ocf.oc_ev_get_event, ed, 100)
    expect(readable(ocf.oc_ev_get_fd(ed)), "the descriptor of an ended subscription is not readable")
    ocf.oc_ev_unsubscribe(ed)


@obligation("A16")
def made_again_is_another(context: Context) -> None:
    """A topic removed and made again is another one: its id differs, its seq starts at 1."""
    client = context.client()
    name = context.topic()
    client.publish_many(name, [b"x"] * 3).wait(PATIENCE_S)
    before = client.topic(name)
    client.remove_topic(name)
    client.create_topic(name)
    after = client.topic(name)
    expect(before.topic_id != after.topic_id, f"both have the id {after.topic_id}")
    expect_equal(client.publish(name, b"y").wait(PATIENCE_S).seq, 1, "the first seq of the new topic")


@obligation("A16")
def local_events_are_delivered_here(context: Context) -> None:
    """A local topic delivers on its own node, with seq 1, 2, 3, …, and its events say that they are local."""
    client = context.client()
    topic = context.topic("local")
    subscription = client.subscribe(topic)
    receipts = [client.publish(topic, b"%d" % number) for number in range(5)]
    events = take(subscription, 5)
    expect_equal([event.data for event in events], [b"%d" % number for number in range(5)], "data")
    expect_equal([event.seq for event in events], [1, 2, 3, 4, 5], "seq")
    expect(all(event.local for event in events), "an event of a local topic does not say so")
    places = [(receipt.wait(PATIENCE_S).seq, receipt.wait(PATIENCE_S).ev_id) for receipt in receipts]
    expect_equal(places, [(event.seq, event.ev_id) for event in events], "receipts")


@obligation("A16")
def local_events_never_leave(context: Context) -> None:
    """A local topic exists on every node, but its events stay where they are published."""
    others = [context.client(socket) for socket in context.other_sockets()]
    local, general = context.topic("local"), context.topic()
    subscriptions = [client.subscribe([local, general]) for client in others]
    client = context.client()
    client.publish(local, b"stays").wait(PATIENCE_S)
    client.publish(general, b"goes").wait(PATIENCE_S)
    for subscription in subscriptions:
        expect_equal(take(subscription, 1)[0].data, b"goes", "what another node got")
        expect_equal(subscription.get(timeout=QUIET_S), None, "what another node got besides")
    for client in others:
        expect_equal(client.topic(local).scope, "local", "scope on another node")


@obligation("A16")
def creation_is_ordered(context: Context) -> None:
    """All nodes have a topic from the same point on: published at once after creation, its events reach them all."""
    others = [context.client(socket) for socket in context.other_sockets()]
    client = context.client()
    for _ in range(5):
        name = context.new_name()
        client.create_topic(name)
        subscriptions = [other.subscribe(name) for other in others]
        client.publish(name, b"x").wait(PATIENCE_S)
        ids = {other.topic(name).topic_id for other in others} | {client.topic(name).topic_id}
        expect_equal(len(ids), 1, "different ids of one topic")
        for subscription in subscriptions:
            expect_equal(take(subscription, 1)[0].seq, 1, "seq of the first event")
            subscription.close()
