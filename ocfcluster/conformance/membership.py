"""M1-M4: membership events."""

from __future__ import annotations

import errno
import os
import struct
import time
from typing import Any, NamedTuple

from ocfcluster import ocf
from ocfcluster.client import Client, Event, NoticeCode, Subscription
from ocfcluster.conformance.context import (
    PATIENCE_MS,
    PATIENCE_S,
    QUIET_S,
    Background,
    Cluster,
    Context,
    expect,
    expect_equal,
    expect_errno,
    must,
    take,
)
from ocfcluster.conformance.registry import obligation
from ocfcluster.wire.frames import LOCAL_ID, RecordFlags

TOPIC = "oc.membership"
ALIAS = "__OC_EV_MEMB_CLASS"
CHANGE_S = 12.0  # for the cluster to notice, agree and tell
CLUSTER_LIMIT_S = 90.0  # of checks that start three agents and wait for such changes
SUSPICION_MS = 500
LONG_SUSPICION_MS = 8000  # in which an agent is started again

# Written out a second time on purpose, from docs/formats.md: what a C program would read.
HEAD = struct.Struct("<8I")  # event, m_sequence, n_member, memb_idx, n_out, out_idx, n_in, in_idx
NODE = struct.Struct("<II")  # node_id, node_born_on
MEMB_CLASS = 2
NEW_MEMBERSHIP, NOT_PRIMARY, PRIMARY_RESTORED, EVICTED = (MEMB_CLASS << 22 | number for number in range(1, 5))


class Read(NamedTuple):
    """What the struct in an event's data says."""

    event: int
    m_sequence: int
    members: list[tuple[int, int]]
    out: list[tuple[int, int]]
    joined: list[tuple[int, int]]


def _read(event: Event) -> Read:
    data = event.data
    expect(len(data) >= HEAD.size and not (len(data) - HEAD.size) % NODE.size, f"{len(data)} bytes of data")
    code, m_sequence, *places = HEAD.unpack_from(data)
    array: list[tuple[int, int]] = list(NODE.iter_unpack(data[HEAD.size :]))
    lists = []
    for count, at in zip(places[::2], places[1::2], strict=True):
        expect(at + count <= len(array), f"a list of {count} from {at} on in an array of {len(array)}")
        lists.append(array[at : at + count])
    return Read(code, m_sequence, *lists)


def _next(subscription: Subscription, within_s: float = CHANGE_S) -> Event:
    event = must(subscription.get(timeout=within_s), "the next membership event")
    expect(event.notice is None, f"a notice came instead of a membership event: {event.notice}")
    return event


def _ids(nodes: list[tuple[int, int]]) -> list[int]:
    return [node_id for node_id, _ in nodes]


def _place(event: Event) -> tuple[int, int, int, bytes]:
    return event.seq, event.ev_id, event.m_sequence, event.data


def _current(client: Client) -> Event:
    with client.subscribe(TOPIC) as subscription:
        return _next(subscription, PATIENCE_S)


# --- M1: the data -------------------------------------------------------------------------------------------------


@obligation("M1")
def fields_of_the_drafts_struct(context: Context) -> None:
    """Event code, m_sequence, counts and indexes of members, out and in, then the array, each list contiguous."""
    client = context.client()
    event = _current(client)
    read = _read(event)
    expect_equal(
        (read.event >> 22, read.event & (1 << 22) - 1), (MEMB_CLASS, 1), "class and event of the code"
    )
    expect_equal(read.m_sequence, event.m_sequence, "m_sequence in the data")
    expect(client.node_id in _ids(read.members), f"the local node is not among the members {read.members}")
    expect(all(one in read.members for one in read.joined), f"{read.joined} came in to {read.members}")
    born = [born_on for _, born_on in read.joined]
    expect(all(one == read.m_sequence for one in born), f"born in {born}, in m_sequence {read.m_sequence}")
    out = [born_on for _, born_on in read.out]
    expect(all(one < read.m_sequence for one in out), f"out, born in {out}, of m_sequence {read.m_sequence}")
    array = (len(event.data) - HEAD.size) // NODE.size
    expect_equal(array, len(set(read.members) | set(read.out)), "entries of the array, a union")


@obligation("M1")
def membership_is_declared_with_construct(context: Context) -> None:
    """The declaration in construct reads the data of an event, and builds the same bytes."""
    from ocfcluster.wire.schema import components as schema

    data = _current(context.client()).data
    expect_equal(
        schema.MEMBERSHIP.build(schema.MEMBERSHIP.parse(data)), data, "the data built by the declaration"
    )


@obligation("M1")
def the_old_class_string_works(context: Context) -> None:
    """Draft 0.3's class string names the topic, too."""
    by_name = _current(context.client())
    ed = ocf.oc_ev_subscribe(ALIAS, None)
    event = must(ocf.oc_ev_get_event(ed, PATIENCE_MS), "the membership event under the old name")
    expect_equal(_place(event), _place(by_name), "what comes under the old name")
    ocf.oc_ev_event_done(event)


# --- M2: new memberships ------------------------------------------------------------------------------------------


@obligation("M2")
def the_same_membership_on_every_node(context: Context) -> None:
    """All members have the same lists, oldest first, under the same numbers, and are in them themselves."""
    clients = [context.client(), *map(context.client, context.other_sockets())]
    events = [_current(client) for client in clients]
    for event in events[1:]:
        expect_equal(_place(event), _place(events[0]), "the membership event of another node")
    members = _read(events[0]).members
    expect_equal(members, sorted(members, key=lambda node: (node[1], node[0])), "members, oldest first")
    for client in clients:
        expect(
            client.node_id in _ids(members), f"node {client.node_id} is not in its own membership {members}"
        )


@obligation("M2", time_limit_s=CLUSTER_LIMIT_S)
def each_change_is_one_event(context: Context) -> None:
    """A node that goes and comes back: m_sequence and seq go up by one each time, out and in name it, once each."""
    with context.own_cluster(3, SUSPICION_MS) as cluster:
        subscriptions = [context.client(cluster.socket(i)).subscribe(TOPIC) for i in (1, 2)]
        first = [_next(one) for one in subscriptions]
        expect_equal((first[0].m_sequence, first[0].seq), (1, 1), "m_sequence and seq of a new history")
        expect_equal(_read(first[0]).members, [(1, 1), (2, 1), (3, 1)], "the first members")
        cluster.kill(3)
        lost = [_next(one) for one in subscriptions]
        expect_equal(_place(lost[0]), _place(lost[1]), "the event on two nodes")
        read = _read(lost[0])
        expect_equal(
            (read.event, lost[0].seq, read.m_sequence), (NEW_MEMBERSHIP, 2, 2), "code, seq, m_sequence"
        )
        expect_equal(read[2:], ([(1, 1), (2, 1)], [(3, 1)], []), "members, out, in without node 3")
        cluster.start(3)
        back = [_next(one) for one in subscriptions]
        expect_equal(_place(back[0]), _place(back[1]), "the event on two nodes")
        read = _read(back[0])
        expect_equal(
            (read.event, back[0].seq, read.m_sequence), (NEW_MEMBERSHIP, 3, 3), "code, seq, m_sequence"
        )
        expect_equal(read[2:], ([(1, 1), (2, 1), (3, 3)], [], [(3, 3)]), "members, out, in with node 3")
        for one in subscriptions:
            expect_equal(one.get(timeout=QUIET_S), None, "what came besides")
        newcomer = context.client(cluster.socket(3))
        expect_equal(_place(_current(newcomer)), _place(back[0]), "the membership where node 3 came back")


@obligation("M2", time_limit_s=CLUSTER_LIMIT_S)
def a_quick_restart_is_out_and_in(context: Context) -> None:
    """A node that restarts before its loss was noticed is in out and in of one event."""
    with context.own_cluster(3, LONG_SUSPICION_MS) as cluster:
        subscription = context.client(cluster.socket(1)).subscribe(TOPIC)
        _next(subscription)
        cluster.kill(3)
        cluster.start(3)
        read = _read(_next(subscription))
        expect_equal(read.m_sequence, 2, "m_sequence")
        expect_equal(read[2:], ([(1, 1), (2, 1), (3, 2)], [(3, 1)], [(3, 2)]), "members, out, in")
        expect_equal(subscription.get(timeout=QUIET_S), None, "what came besides")


@obligation("M2", time_limit_s=CLUSTER_LIMIT_S)
def a_new_history_ends_the_subscription(context: Context) -> None:
    """Where most nodes have lost what they held the history ends: so do subscriptions, and m_sequence begins anew."""
    with context.own_cluster(3, SUSPICION_MS) as cluster:
        clients = [context.client(cluster.socket(3), resume=resume) for resume in (False, True)]
        subscriptions = [client.subscribe(TOPIC) for client in clients]
        before, _ = (_next(one) for one in subscriptions)
        for other in (1, 2):  # among them the one that orders
            cluster.kill(other)
        for other in (1, 2):
            cluster.start(other)
        for one in subscriptions:
            last = must(one.get(timeout=2 * CHANGE_S), "the end of the history")
            while last.notice is None:  # that it is no primary
                last = must(one.get(timeout=2 * CHANGE_S), "the end of the history")
            expect_equal(
                (last.notice.code, last.notice.final), (NoticeCode.HISTORY_LOST, True), "how it ends"
            )
            expect_equal(last.notice.last_seq, before.seq, "how far it had got")
        again = _current(context.client(cluster.socket(3)))
        expect_equal((again.m_sequence, again.seq), (1, 1), "m_sequence and seq of the next history")


# --- M3: what a node says about itself ----------------------------------------------------------------------------


def _expect_local(event: Event, code: int, before: Event, what: str) -> None:
    read = _read(event)
    expect_equal((read.event, read.m_sequence), (code, before.m_sequence), f"code and m_sequence of {what}")
    expect_equal(event.seq, before.seq, f"seq of {what}, which uses up none")
    expect(event.local and event.ev_id & LOCAL_ID, f"{what} is not marked local: ev_id {event.ev_id:#x}")


@obligation("M3", time_limit_s=CLUSTER_LIMIT_S)
def a_minority_is_told(context: Context) -> None:
    """NOT_PRIMARY while the others are out of reach, then PRIMARY_RESTORED: local, m_sequence as before."""
    with context.own_cluster(3, SUSPICION_MS) as cluster:
        client = context.client(cluster.socket(1))
        subscription = client.subscribe(TOPIC)
        first = _next(subscription)
        for other in (2, 3):
            cluster.pause(other)
        lost = _next(subscription)
        _expect_local(lost, NOT_PRIMARY, first, "NOT_PRIMARY")
        with client.subscribe(TOPIC) as late:
            expect_equal(_place(_next(late)), _place(first), "the membership that a late subscriber gets")
            _expect_local(_next(late), NOT_PRIMARY, first, "NOT_PRIMARY for a late subscriber")
        for other in (2, 3):
            cluster.go_on(other)
        back = _next(subscription)
        _expect_local(back, PRIMARY_RESTORED, first, "PRIMARY_RESTORED")
        expect(back.ev_id > lost.ev_id, f"ev_id {back.ev_id:#x} after {lost.ev_id:#x}")
        expect_equal(subscription.get(timeout=QUIET_S), None, "what came besides")


def _expect_evicted(ed: int, before: Event) -> None:
    event = must(ocf.oc_ev_get_event(ed, int(1000 * CHANGE_S)), "EVICTED")
    while event.notice is None and _read(event).event == NOT_PRIMARY:  # it may have noticed first
        ocf.oc_ev_event_done(event)
        event = must(ocf.oc_ev_get_event(ed, int(1000 * CHANGE_S)), "EVICTED")
    expect(event.notice is None, f"a notice came instead of EVICTED: {event.notice}")
    _expect_local(event, EVICTED, before, "EVICTED")
    expect_equal(event.data[8:], bytes(24), "counts and indexes of EVICTED, and what is behind them")
    ocf.oc_ev_event_done(event)
    for timeout in (0, -1):
        task = Background(ocf.oc_ev_get_event, ed, timeout)
        expect_errno(errno.ENOTCONN, "get_event behind EVICTED", task.result, "get_event behind EVICTED")


@obligation("M3", time_limit_s=CLUSTER_LIMIT_S)
def evicted_is_the_last_event(context: Context) -> None:
    """A node that the others went on without: EVICTED, and no more; other subscriptions end with a notice of it."""
    with context.own_cluster(3, SUSPICION_MS) as cluster:
        os.environ["OCFCLUSTER_SOCKET"] = cluster.socket(3)
        other = context.client(cluster.socket(1))
        other.create_topic("conformance")
        ed, another = ocf.oc_ev_subscribe(TOPIC, None), ocf.oc_ev_subscribe("conformance", None)
        before = must(ocf.oc_ev_get_event(ed, PATIENCE_MS), "the membership")
        resuming = context.client(cluster.socket(3), resume=True).subscribe(TOPIC)
        _next(resuming)
        _pause_until_it_is_left_out(other, cluster)
        _expect_evicted(ed, before)
        told = must(ocf.oc_ev_get_event(another, PATIENCE_MS), "the notice on another topic")
        notice = must(told.notice, "a notice on another topic")
        expect_equal(
            (notice.code, notice.final), (NoticeCode.SHUTDOWN, True), "the end of another subscription"
        )
        expect("evicted" in notice.reason, f"the reason does not say evicted: {notice.reason}")
        seen = [_words(must(resuming.get(timeout=CHANGE_S), "what comes with resume")) for _ in range(1)]
        while seen[-1] != NEW_MEMBERSHIP:
            seen.append(_words(must(resuming.get(timeout=CHANGE_S), "the membership with the node again")))
        expect(
            EVICTED in seen and NoticeCode.RESUMED in seen[seen.index(EVICTED) :], f"with resume came {seen}"
        )


def _words(event: Event) -> Any:
    return _read(event).event if event.notice is None else event.notice.code


def _pause_until_it_is_left_out(other: Client, cluster: Cluster) -> None:
    with other.subscribe(TOPIC) as watched:
        _next(watched)
        cluster.pause(3)
        expect_equal(_ids(_read(_next(watched)).out), [3], "who is left out")
    cluster.go_on(3)


# --- M4: from the beginning, and in the order ---------------------------------------------------------------------


@obligation("M4")
def the_current_membership_comes_at_once(context: Context) -> None:
    """A new subscriber gets the membership as it is, retained, under the numbers that it had; then nothing more."""
    client = context.client()
    seen = []
    for _ in range(3):
        with client.subscribe(TOPIC) as subscription:
            event = _next(subscription, PATIENCE_S)
            expect_equal(event.flags, RecordFlags.RETAINED, "flags of the membership that comes at once")
            expect_equal(
                event.seq, subscription.starts[0].next_seq, "its seq, and where the subscription starts"
            )
            expect_equal(subscription.get(timeout=QUIET_S), None, "what came besides")
            seen.append(_place(event))
    expect_equal(seen, seen[:1] * 3, "what three subscribers got")


@obligation("M4")
def the_membership_comes_first_among_topics(context: Context) -> None:
    """In a subscription to several topics the membership comes first, then what is published from then on."""
    client, topic = context.client(), context.topic()
    client.publish(topic, b"before").wait(PATIENCE_S)
    with client.subscribe([topic, TOPIC]) as subscription:
        client.publish(topic, b"after").wait(PATIENCE_S)
        events = take(subscription, 2)
    expect_equal([event.topic for event in events], [TOPIC, topic], "topics in their order")
    expect_equal(events[1].data, b"after", "the first event of the other topic")


@obligation("M4", time_limit_s=CLUSTER_LIMIT_S)
def views_come_before_the_events_in_them(context: Context) -> None:
    """While a node is lost: no event has an m_sequence whose membership event did not come before; callbacks alike."""
    with context.own_cluster(3, SUSPICION_MS) as cluster:
        os.environ["OCFCLUSTER_SOCKET"] = cluster.socket(1)
        client = context.client(cluster.socket(1))
        client.create_topic("conformance")
        pulled = client.subscribe(["conformance", TOPIC])
        called: list[tuple[str, int]] = []

        def on_event(event: Event) -> None:
            called.append((event.topic, event.m_sequence))
            ocf.oc_ev_event_done(event)
            if event.topic == "conformance" and event.m_sequence == 2:
                for ed in eds:
                    ocf.oc_ev_unsubscribe(ed)

        eds = [ocf.oc_ev_subscribe(name, on_event) for name in ("conformance", TOPIC)]
        handling = Background(ocf.oc_ev_handle_events)
        publishing = Background(_publish_until_it_is_told, client, pulled)
        time.sleep(QUIET_S)
        cluster.kill(3)
        seen = publishing.result("publishing over the loss of a node", 2 * CHANGE_S)
        handling.result("handle_events", CHANGE_S)
        for what, places in (("one subscription", seen), ("callbacks", called)):
            known = 0
            for topic, m_sequence in places:
                if topic == TOPIC:
                    known = m_sequence
                expect(
                    m_sequence == known, f"{what}: an event of m_sequence {m_sequence} in membership {known}"
                )


def _publish_until_it_is_told(client: Client, subscription: Subscription) -> list[tuple[str, int]]:
    """Publish until an event of the second membership has come; topics and m_sequences of all that came."""
    seen: list[tuple[str, int]] = []
    deadline = time.monotonic() + CHANGE_S
    while ("conformance", 2) not in seen:
        expect(time.monotonic() < deadline, "no event of the next membership came")
        client.publish("conformance", b"x", timeout=CHANGE_S)
        while (event := subscription.get(timeout=0.002)) is not None:
            seen.append((event.topic, event.m_sequence))
    return seen
