"""G1: groups of processes, which need no creation; who is in them, and what their members say to each other."""

from __future__ import annotations

import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ocfcluster import ocf
from ocfcluster.client import Client, Event, Group, Subscription, open_event
from ocfcluster.components.groups import GroupCode, GroupEvent, LeaveReason
from ocfcluster.components.membership import MembershipCode, MembershipEvent
from ocfcluster.conformance.context import (
    PATIENCE_S,
    QUIET_S,
    Context,
    expect,
    expect_equal,
    expect_errno,
    must,
    take,
)
from ocfcluster.conformance.registry import obligation

SUSPICION_MS = 300
MEMBER = """
import sys, ocfcluster
group = ocfcluster.connect(sys.argv[1]).group(sys.argv[2]).join()
group.cast(b"last").wait()
print(group.member, flush=True)
sys.stdin.read()
"""


def _name() -> str:
    return f"conformance-{secrets.token_hex(6)}"


def _take(subscription: Subscription, count: int) -> list[GroupEvent]:
    return [open_event(event) for event in take(subscription, count)]


@obligation("G1")
def a_group_needs_no_creation(context: Context) -> None:
    """Any name is a group: it is observed, cast to and joined as it is, and is no topic in the list."""
    client = context.client()
    observed, joined, cast = _name(), _name(), _name()
    with client.subscribe(f"group:{observed}") as events:
        client.group(cast).cast(b"x").wait(PATIENCE_S)
        expect(client.group(joined).join(PATIENCE_S).member, "joining gave no id")
        client.group(observed).cast(b"y").wait(PATIENCE_S)
        expect_equal([one.data for one in _take(events, 2)], [b"", b"y"], "what the observer got")
    names = {f"group:{name}" for name in (observed, joined, cast)}
    expect(not names & {topic.name for topic in client.topics()}, "groups among the topics")
    client.group(joined).leave()


@obligation("G1")
def events_carry_the_drafts_codes(context: Context) -> None:
    """JOIN, CAST, REPLY and LEAVE with the drafts' codes, under seq 1, 2, 3, …; a reply names what it answers."""
    client = context.client()
    name = _name()
    with client.subscribe(f"group:{name}") as subscription:
        group = client.group(name).join(PATIENCE_S)
        group.cast(b"question").wait(PATIENCE_S)
        events = take(subscription, 3)[1:]
        group.reply(events[1], b"answer").wait(PATIENCE_S)
        group.leave(PATIENCE_S)
        events += take(subscription, 2)
    codes = [int.from_bytes(event.data[:4], "little") for event in events]
    wanted = [ocf.OC_EV_GS_JOIN, ocf.OC_EV_GS_CAST, ocf.OC_EV_GS_REPLY, ocf.OC_EV_GS_LEAVE]
    expect_equal(codes, wanted, "event codes")
    expect_equal({ocf.OC_EV_GET_CLASS(code) for code in codes}, {3}, "class of the codes")
    expect_equal([event.seq for event in events], [1, 2, 3, 4], "seq")
    expect_equal([event.re_id for event in events], [0, 0, events[1].ev_id, 0], "re_id")
    opened = [open_event(event) for event in events]
    expect_equal({one.member for one in opened}, {events[0].ev_id}, "who it was: the ev_id of the JOIN")
    expect_equal([one.data for one in opened[1:3]], [b"question", b"answer"], "what was said")


@obligation("G1")
def every_change_tells_the_members(context: Context) -> None:
    """Each JOIN and LEAVE carries the members from there on, oldest first; so does what a new observer gets at once."""
    clients = [context.client() for _ in range(3)]
    name = _name()
    with clients[0].subscribe(f"group:{name}") as subscription:
        members = [client.group(name).join(PATIENCE_S).member for client in clients]
        clients[1].group(name).leave(PATIENCE_S)
        told = [[one.member for one in event.members] for event in _take(subscription, 5)]
    expect_equal(
        told, [[], members[:1], members[:2], members, [members[0], members[2]]], "members in the events"
    )
    with clients[1].subscribe(f"group:{name}") as later:
        (event,) = take(later, 1)
        opened = open_event(event)
        expect_equal(opened.code, GroupCode.MEMBERS, "the first event of a new observer")
        expect_equal([one.member for one in opened.members], [members[0], members[2]], "members told at once")
        expect(event.local, "what a new observer is told does not say that it is local")


@obligation("G1")
def the_same_on_every_node(context: Context) -> None:
    """Joins, leaves and casts of several nodes come in one order, with the same members, on every node."""
    clients = [context.client(socket) for socket in (context.socket, *context.other_sockets())]
    name = _name()
    subscriptions = [client.subscribe(f"group:{name}") for client in clients]
    groups = [client.group(name) for client in clients]
    for group in groups:
        group.join(PATIENCE_S)
        group.cast(b"here").wait(PATIENCE_S)
    for group in groups[1:]:
        group.leave(PATIENCE_S)
    count = 3 * len(groups) - 1
    seen = [
        [(event.seq, event.ev_id, event.data) for event in take(one, 1 + count)[1:]] for one in subscriptions
    ]
    for other in seen[1:]:
        expect_equal(other, seen[0], "events of another node")
    for subscription in subscriptions:
        subscription.close()


@obligation("G1")
def sent_to_one_member(context: Context) -> None:
    """What is sent to a member reaches it in the order, and nobody else; to who is no member: ESRCH."""
    sender, receiver, observer = (context.client() for _ in range(3))
    name = _name()
    to = receiver.group(name).join(PATIENCE_S).member
    group = sender.group(name).join(PATIENCE_S)
    subscriptions = [client.subscribe(f"group:{name}") for client in (receiver, sender, observer)]
    group.send(to, b"secret").wait(PATIENCE_S)
    events = [take(subscription, 2)[1] for subscription in subscriptions]
    expect_equal(open_event(events[0]).data, b"secret", "what the member got")
    for event in events[1:]:
        expect(b"secret" not in event.data, "somebody else got what was sent to one member")
        expect_equal((event.seq, event.ev_id), (events[0].seq, events[0].ev_id), "place in the order")
    receiver.group(name).leave(PATIENCE_S)
    receipt = group.send(to, b"late")
    expect_errno(3, "sending to who has left", receipt.wait, PATIENCE_S)
    for subscription in subscriptions:
        subscription.close()


@obligation("G1")
def a_process_that_dies_leaves(context: Context) -> None:
    """A process that is killed leaves, once, behind what it had said."""
    client = context.client()
    name = _name()
    with client.subscribe(f"group:{name}") as subscription:
        with subprocess.Popen(
            [sys.executable, "-c", MEMBER, context.socket, name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            member = int(process.stdout.readline() or 0)
            process.kill()
        told = _take(subscription, 4)[1:]
        expect_equal([one.code.name for one in told], ["JOIN", "CAST", "LEAVE"], "events")
        expect_equal({one.member for one in told}, {member}, "members in them")
        expect_equal(told[0].joined[0].pid, process.pid, "process of the member")
        expect_equal((told[2].reason, told[2].members), (LeaveReason.DIED, ()), "the LEAVE")
        expect_equal(subscription.get(QUIET_S), None, "what came behind the LEAVE")


@obligation("G1")
def a_node_that_dies_leaves(context: Context) -> None:
    """The members of a node that dies leave right behind the view that is without it, alike on all nodes."""
    name = _name()
    with context.own_cluster(3, SUSPICION_MS) as cluster:
        clients = [context.client(cluster.socket(i)) for i in (1, 2, 3)]
        subscriptions = [client.subscribe(["oc.membership", f"group:{name}"]) for client in clients[:2]]
        stays = clients[0].group(name).join(PATIENCE_S).member
        clients[2].group(name).join(PATIENCE_S)
        cluster.kill(3)
        seen = [take(subscription, 6)[4:] for subscription in subscriptions]
        for view, leave in seen:
            expect_equal(view.topic, "oc.membership", "what came first")
            expect_equal(MembershipEvent.decode(view.data).code, MembershipCode.NEW_MEMBERSHIP, "the view")
            opened = open_event(leave)
            expect_equal((opened.code, opened.reason), (GroupCode.LEAVE, LeaveReason.NODE_LEFT), "the LEAVE")
            expect_equal([one.member for one in opened.members], [stays], "who is left")
            expect_equal(leave.m_sequence, view.m_sequence, "membership generation of the LEAVE")
        expect_equal(_place(seen[1][1]), _place(seen[0][1]), "place of the LEAVE on the other node")


def _place(event: Event) -> tuple[int, int, bytes]:
    return event.seq, event.ev_id, event.data


@obligation("G1")
def requests_end_with_the_last_reply(context: Context) -> None:
    """A request collects a reply from each member of its view, and knows when the last possible one has come."""
    asker, answers, departs = (context.client() for _ in range(3))
    name = _name()
    group = asker.group(name).join(PATIENCE_S)
    with _serving(answers, answers.group(name).join(PATIENCE_S), b"yes"):
        with _serving(departs, departs.group(name).join(PATIENCE_S), b"later", QUIET_S):
            result = group.request(b"?", PATIENCE_S)
        expect_equal([one.data for one in result.replies], [b"yes", b"later"], "replies")
        expect(result.complete, f"not complete: {result.missing}")
        with _serving(departs, departs.group(name).join(PATIENCE_S), None):
            result = group.request(b"?", PATIENCE_S)
        expect_equal([one.data for one in result.replies], [b"yes"], "replies of those that stayed")
        expect_equal((result.complete, len(result.left)), (True, 1), "complete, and how many left")
    silent = group.request(b"?", 2 * QUIET_S)
    expect_equal((silent.complete, len(silent.missing)), (False, 1), "complete, and how many are missing")


@contextmanager
def _serving(client: Client, group: Group, answer: bytes | None, after_s: float = 0.0) -> Iterator[None]:
    """The member answers each cast ``after_s``, or leaves with the first, as long as the block lasts."""
    stop = threading.Event()

    def serve() -> None:
        with client.subscribe(group.topic) as subscription:
            ready.set()
            while not stop.is_set():
                event = subscription.get(0.02)
                if event is None or event.notice is not None:
                    continue
                if open_event(event).code is GroupCode.CAST:
                    if answer is None:
                        group.leave()
                        return
                    time.sleep(after_s)
                    group.reply(event, answer)

    ready = threading.Event()
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    must(ready.wait(PATIENCE_S) or None, "the subscription of a member")
    yield
    stop.set()
    thread.join(PATIENCE_S)
