"""Groups on this node: what programs ask of them, and what subscribers of ``group:NAME`` get.

Who is a member is decided by the order (``protocol.groups``); a connection's part of it is ``ipc.memberships``. Casts
go the way of all publications; here are the events that the cluster itself makes, and messages for one member.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final

from ocfcluster.agent.access import Right
from ocfcluster.agent.clients import Client
from ocfcluster.agent.names import name_fault
from ocfcluster.agent.permissions import Permissions
from ocfcluster.components.groups import members_of, of_change
from ocfcluster.ipc.memberships import Answer as Then
from ocfcluster.ipc.memberships import Memberships
from ocfcluster.ipc.session import Incoming
from ocfcluster.ipc.subscription import Subscription
from ocfcluster.limits import GROUP_MEMBERS, GROUP_PREFIX, GROUPS, MEMBERSHIPS_PER_NODE, RECORD_HEADER_BYTES
from ocfcluster.protocol.effects import Directed, GroupChange, Outcome, Topic
from ocfcluster.protocol.groups import FIRST_GROUP_ID
from ocfcluster.wire import control
from ocfcluster.wire.frames import (
    RECORD_HEADER,
    Answer,
    Body,
    Group,
    GroupName,
    RecordFlags,
    RecordKind,
    Request,
)
from ocfcluster.wire.frames import (
    Groups as GroupList,
)
from ocfcluster.wire.group import GroupMember, LeaveReason, withheld
from ocfcluster.wire.run import RunKind, build_run, read_header, run_events, run_properties

if TYPE_CHECKING:
    from ocfcluster.agent.daemon import Agent

GROUP_REQUESTS: Final = frozenset(
    int(kind) for kind in (Request.GROUP_JOIN, Request.GROUP_LEAVE, Request.GROUP_SHOW, Request.GROUP_LIST)
)
_OBSERVES: Final = (Right.SUBSCRIBE,)
_JOINS: Final = (Right.SUBSCRIBE, Right.PUBLISH)
_NO_TOPIC_ID: Final = 0xFFFF_FFFF  # of a group that is not in use: rights hang on its name
_RUN: Final = int(RecordKind.RUN)


class Groups:
    """The groups as this agent's programs see them."""

    __slots__ = ("_agent", "_permissions", "_command", "_answer", "_refuse", "_joined")

    def __init__(
        self,
        agent: Agent,
        permissions: Permissions,
        command: Callable[[Client | None, control.Operand, Callable[[Outcome], None], bool], int],
        answer: Callable[[Client, int, Answer, Body | None], None],
        refuse: Callable[[Client, int, int, str], None],
    ) -> None:
        self._agent = agent
        self._permissions = permissions
        self._command = command
        self._answer = answer
        self._refuse = refuse
        self._joined: GroupChange | None = None  # the last change that was told

    # --- the door -----------------------------------------------------------------------------------------------

    def _door(
        self,
        client: Client,
        request: Incoming,
        name: str,
        rights: tuple[Right, ...],
        go_on: Callable[[], None],
    ) -> None:
        """``go_on`` if the client has these rights in the group, else refuse; perhaps when names have been looked up.
        Casting and observing are asked for where all publications and subscriptions are (``Permissions``)."""
        topic = Topic(_NO_TOPIC_ID, name, False)
        for right in rights:
            verdict = self._permissions.gate.judge(client.peer, right, topic)
            if verdict is None:
                self._permissions.wait(client, lambda: self._door(client, request, name, rights, go_on))
                return
            if not verdict.allowed:
                text = f"{right.value} in {name!r} is not permitted: {verdict.why}"
                self._refuse(client, request.request_id, errno.EPERM, text)
                return
        go_on()

    def when_rules_are_known(self, client: Client, request: Incoming, go_on: Callable[[], None]) -> None:
        """They come with the first view: until then nobody knows who has which right."""

        def caught_up(outcome: Outcome) -> None:
            if outcome.error:
                self._refuse(client, request.request_id, outcome.error, os.strerror(outcome.error))
            elif not client.gone:
                go_on()

        if self._agent.router.views.begun:
            go_on()
        else:
            self._command(client, control.Barrier(), caught_up, False)

    def topic(self, name: str) -> Topic | None:
        """The topic of a group that is in use."""
        group = self._agent.node.groups.by_name.get(name)
        return None if group is None else group.topic

    def unused(self, names: Iterable[str]) -> list[Topic]:
        """Groups among ``names`` that are not in use, as rights are judged of them."""
        return [
            Topic(_NO_TOPIC_ID, name, False)
            for name in dict.fromkeys(names)
            if _fault(name) == "" and self.topic(name) is None
        ]

    def want(self, client: Client, groups: Iterable[Topic]) -> None:
        """Groups that are ``unused`` will be in use, behind what is ordered now. They may displace others: only for who
        has a right in them."""
        for group in groups:
            self._command(client, control.GroupOpen(group.name), _ignore, False)

    # --- requests -----------------------------------------------------------------------------------------------

    def handle(self, client: Client, request: Incoming, body: Body | None) -> None:
        """Answer one of GROUP_REQUESTS, now or at its place in the order."""
        if request.kind == Request.GROUP_LIST:
            listed = [
                (one.topic.name, one.topic.topic_id, one.last_seq, len(one.members))
                for one in self._agent.node.groups.by_id.values()
            ]
            self._answer(client, request.request_id, Answer.GROUPS, GroupList(listed))
            return
        name = body.topic if isinstance(body, GroupName) else ""
        fault = _fault(name)
        if fault:
            self._refuse(client, request.request_id, errno.EINVAL, fault)
        elif request.kind == Request.GROUP_SHOW:
            self._door(client, request, name, _OBSERVES, lambda: self._show(client, request, name))
        elif request.kind == Request.GROUP_JOIN:
            join = partial(self._join, client, request, name)
            judged = partial(self._door, client, request, name, _JOINS, join)
            self.when_rules_are_known(client, request, judged)
        else:
            self._leave(client, request, name)

    def _show(self, client: Client, request: Incoming, name: str) -> None:
        group = self._agent.node.groups.by_name.get(name)
        member = client.memberships.member(name) if client.memberships is not None else 0
        if group is None:
            shown = Group(name, 0, 0, member, [])
        else:
            shown = Group(name, group.topic.topic_id, group.last_seq, member, _plain(group.present))
        self._answer(client, request.request_id, Answer.GROUP, shown)

    def _join(self, client: Client, request: Incoming, name: str) -> None:
        def then(error: int, member: int) -> None:
            change = self._joined
            if error == errno.EALREADY and member:
                self._show(client, request, name)
            elif error or change is None:
                self._refuse(client, request.request_id, error, f"not joined to {name!r}: {_reason(error)}")
            else:  # the JOIN was told just before this
                joined = Group(name, change.topic.topic_id, change.seq, member, _plain(change.members))
                self._answer(client, request.request_id, Answer.GROUP, joined)

        self._memberships(client).join(name, then)

    def _leave(self, client: Client, request: Incoming, name: str) -> None:
        def then(error: int, _: int) -> None:
            if error:
                text = f"this client is no member of {name!r}" if error == errno.EINVAL else _reason(error)
                self._refuse(client, request.request_id, error, text)
            else:
                self._answer(client, request.request_id, Answer.DONE, None)

        self._memberships(client).leave(name, then)

    def _memberships(self, client: Client) -> Memberships:
        if client.memberships is None:
            client.memberships = Memberships(partial(self._order, client), max(0, client.peer.pid))
        return client.memberships

    def _order(self, client: Client, operand: control.Operand, then: Then) -> None:
        for_whom = (
            None if isinstance(operand, control.GroupLeave) else client
        )  # who is gone has to leave still
        self._command(for_whom, operand, lambda outcome: then(outcome.error, outcome.value), True)

    def end(self, client: Client, reason: LeaveReason) -> None:
        """The connection is over, and all that came on it is in the order, or on its way there before this."""
        if client.memberships is not None:
            client.memberships.end(reason)

    # --- subscribers --------------------------------------------------------------------------------------------

    def changed(self, change: GroupChange) -> None:
        """A JOIN or LEAVE, at its place in the order."""
        self._joined = change
        topic_id = change.topic.topic_id
        hub = self._agent.hub
        if topic_id in hub.by_topic:
            run = build_run(
                RunKind.PUBLICATION, topic_id, 0, change.seq, [of_change(change).encode()],
                time_ns=change.order_time,
            )  # fmt: skip
            header = RECORD_HEADER.pack(
                RECORD_HEADER_BYTES + len(run), _RUN, 0, 0, 0, 0, 0, change.m_sequence, change.seq, change.ev_id,
                change.order_time,
            )  # fmt: skip
            hub.deliver(topic_id, header, run, change.seq, change.seq)

    def directed(self, item: Directed) -> None:
        """A run for one member: whole for its subscriptions, for all others without what is said in it."""
        (
            run, topic_id, count, skip, seq, ev_id, node_id, incarnation, m_sequence, order_time,
        ) = item.delivery  # fmt: skip
        hub = self._agent.hub
        counters = self._agent.counters
        counters.runs_delivered += 1
        counters.events_delivered += count - skip
        counters.runs_delivered_bytes += len(run)
        subscribers = hub.by_topic.get(topic_id, [])
        line = next(
            (
                client.line
                for client in self._agent.clients.values()
                if client.memberships is not None and client.memberships.owns(item.to)
            ),
            None,
        )
        last = seq + count - skip - 1
        for mine in (True, False):
            only = [one for one in subscribers if (one.line is line) is mine]
            if not only:
                continue
            given = run if mine else _withheld(run)
            header = RECORD_HEADER.pack(
                RECORD_HEADER_BYTES + len(given), _RUN, 0, 0, skip, node_id, incarnation, m_sequence,
                seq, ev_id, order_time,
            )  # fmt: skip
            hub.deliver(topic_id, header, given, seq, last, only)

    def begin(self, subscription: Subscription) -> None:
        """Tell a new subscription who is in its groups now: a local notification, behind which their events come."""
        agent = self._agent
        for topic_id in list(subscription.topics):
            group = agent.node.groups.by_id.get(topic_id) if topic_id >= FIRST_GROUP_ID else None
            if group is None:
                continue
            now = time.time_ns()
            data = members_of(group).encode()
            run = build_run(RunKind.PUBLICATION, topic_id, 0, 1, [data], time_ns=now)
            header = RECORD_HEADER.pack(
                RECORD_HEADER_BYTES + len(run), _RUN, RecordFlags.LOCAL | RecordFlags.RETAINED, 0, 0,
                agent.config.node.id, agent.incarnation, agent.router.views.m_sequence, group.last_seq,
                agent.local.take_ev_id(), now,
            )  # fmt: skip
            agent.hub.give(subscription, topic_id, header, run, group.last_seq, False)


def _plain(members: Iterable[GroupMember]) -> list[tuple[int, int, int]]:
    return [(one.member, one.node_id, one.pid) for one in members]


def _withheld(run: bytes) -> bytes:
    """A run of messages for one member as others see it. Costs something per event, as nothing else here does."""
    header = read_header(run)
    return build_run(
        RunKind.PUBLICATION, header.topic_id, header.producer, header.first_number,
        [withheld(data) for data in run_events(run, header)], re_id=header.re_id, time_ns=header.time_ns,
        properties=run_properties(run, header),
    )  # fmt: skip


def _fault(name: str) -> str:
    """Why this is no group's topic; empty: it is one."""
    if name.startswith(GROUP_PREFIX):
        return name_fault(name)
    return f"{name!r:.80} is no group: the topic of a group is {GROUP_PREFIX}NAME"


def _reason(code: int) -> str:
    if code == errno.ENOMEM:
        return (
            f"there may be {GROUP_MEMBERS} members of a group, {MEMBERSHIPS_PER_NODE} memberships on a node, and "
            f"{GROUPS} groups with members"
        )
    return os.strerror(code)


def _ignore(_: object) -> None:
    """For outcomes that nobody waits for."""
