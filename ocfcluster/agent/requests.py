"""What a client asks besides publishing: greeting, producers, subscriptions, topics, status, barriers.

What needs the order (producers, topics, barriers) goes into it as a command; the answer is given at its place there.
Where the connection ends before, what still waits here or in the node is withdrawn: nobody wants it any more.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from ocfcluster import __version__
from ocfcluster.agent.administration import Administrator
from ocfcluster.agent.clients import Client
from ocfcluster.agent.groups import GROUP_REQUESTS, Groups
from ocfcluster.agent.keys import change_keys
from ocfcluster.agent.names import name_fault
from ocfcluster.agent.permissions import Permissions
from ocfcluster.agent.starts import Starts, needs_order
from ocfcluster.agent.topics import Topics, reason
from ocfcluster.agent.views import TOPIC_ID as MEMBERSHIP
from ocfcluster.errors import InvalidArgument, Malformed, MalformedFrame
from ocfcluster.ipc.peer import accept_lent
from ocfcluster.ipc.session import NO_DESCRIPTOR, Incoming, Stage
from ocfcluster.ipc.subscription import Held, Subscription
from ocfcluster.limits import CLIENT_NAME_BYTES, TOPICS_PER_SUBSCRIPTION
from ocfcluster.protocol.effects import Outcome
from ocfcluster.protocol.effects import Topic as NodeTopic
from ocfcluster.wire import control
from ocfcluster.wire.filter import Predicate, decode_filter
from ocfcluster.wire.frames import (
    LOCAL_ID,
    LOCAL_PROTOCOL_VERSION,
    Answer,
    Body,
    OnSlow,
    OpenProducer,
    OutOfLine,
    Producer,
    Report,
    Request,
    Status,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Welcome,
    read_body,
)
from ocfcluster.wire.group import LeaveReason, is_group

if TYPE_CHECKING:
    from ocfcluster.agent.daemon import Agent

_NO_BODY: Final = frozenset(
    int(kind)
    for kind in (Request.TOPIC_LIST, Request.STATUS, Request.BARRIER, Request.GOODBYE, Request.GROUP_LIST)
)
# These look at the node's topics and counters, which must be those of what has been delivered.
_LOOKING: Final = frozenset(
    int(kind)
    for kind in (
        Request.SUBSCRIBE,
        Request.TOPIC_RESOLVE,
        Request.TOPIC_LIST,
        Request.TOPIC_ACCESS,
        Request.STATUS,
        Request.GROUP_SHOW,
        Request.GROUP_LIST,
    )
)

# What a connection that has ended still wants: to be no more what it was.
_FAREWELLS: Final = frozenset(
    int(kind) for kind in (Request.CLOSE_PRODUCER, Request.GROUP_LEAVE, Request.GOODBYE)
)
_OPEN_TRIES: Final = 3  # where a node has all the producers that it may have, and some are nobody's
_POLICIES: Final = frozenset(int(policy) for policy in OnSlow)

OnOutcome = Callable[[Outcome], None]


class Requests:
    """Answers requests; ``outcome`` is told what became of the commands it put into the order."""

    __slots__ = (
        "deferred",
        "groups",
        "permissions",
        "topics",
        "_agent",
        "_early",
        "_pending",
        "_lent",
        "_handlers",
    )

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        # What looks at the node's counters waits until all is handed out that the node has delivered.
        self.deferred: list[Callable[[], None]] = []
        self._early: list[Client] = []  # welcomed before there was a history to name
        # token of a command → who is to be asked no more, and what to do at its place in the order
        self._pending: dict[int, tuple[Client | None, OnOutcome]] = {}
        self._lent: dict[int, socket.socket] = {}  # token → of a subscription that waits for that place
        self.permissions = permissions = Permissions(agent, self.command, self._answer, self._refuse)
        self.groups = Groups(agent, permissions, self.command, self._answer, self._refuse)
        self.topics = topics = Topics(
            agent, permissions, self.groups, self.command, self._answer, self._refuse
        )
        administrator = Administrator(
            agent.operator,
            partial(change_keys, agent),
            self.command,
            agent.reloading.ask,
            self._answer,
            self._refuse,
        )
        self._handlers: dict[int, Callable[[Client, Incoming, Body | None], None]] = {
            Request.HELLO: self.on_hello,
            Request.OPEN_PRODUCER: self.on_open_producer,
            Request.CLOSE_PRODUCER: self.on_close_producer,
            Request.RESUME_PRODUCER: self.on_resume_producer,
            Request.SUBSCRIBE: self.on_subscribe,
            Request.UNSUBSCRIBE: self.on_unsubscribe,
            Request.OUT_OF_LINE: self.on_out_of_line,
            Request.TOPIC_RESOLVE: topics.resolve,
            Request.TOPIC_CREATE: permissions.creating(topics.create),
            Request.TOPIC_ALTER: permissions.administering(topics.alter),
            Request.TOPIC_REMOVE: permissions.administering(topics.remove),
            Request.TOPIC_ACCESS: permissions.on_topic_access,
            Request.TOPIC_LIST: topics.list,
            Request.STATUS: self.on_status,
            Request.BARRIER: self.on_barrier,
            Request.REPORT: self.on_report,
            Request.GOODBYE: self.on_goodbye,
            Request.ADMINISTER: permissions.operating(administrator.administer),
        }

    def handle(self, client: Client, request: Incoming) -> None:
        """Answer one request, now or at its place in the order."""
        session = client.session
        ended = client.gone and request.kind not in _FAREWELLS
        if ended or session.stage is Stage.FAILED or session.overflowed:
            _close(request.descriptor)
            return
        self._agent.counters.requests += 1
        self._agent.connections.touch(client)
        if not session.admits(request):
            _close(request.descriptor)
            session.refuse(
                request.request_id, errno.ENOMEM, "too many requests of this client are not answered yet"
            )
            return
        body: Body | None = None
        try:
            if request.kind not in _NO_BODY:
                body = read_body(request.kind, request.body)
            elif request.body:
                raise MalformedFrame(f"a request of kind {request.kind} carries a body")
        except MalformedFrame as error:
            _close(request.descriptor)
            self._agent.connections.fail(client, str(error))
            return
        if request.kind in _LOOKING:
            self._agent.catch_up()
        if request.kind in GROUP_REQUESTS:
            self.groups.handle(client, request, body)
        else:
            self._handlers[request.kind](client, request, body)

    # --- the order --------------------------------------------------------------------------------------------

    def command(
        self, client: Client | None, operand: control.Operand, then: OnOutcome, behind: bool = False
    ) -> int:
        """Put ``operand`` into the order, ``behind`` what waits to be published here; ``then`` is called at its
        place there. What waits for its way into the order is withdrawn when the connection of ``client`` ends; None:
        it never is. Gives the command's token."""
        token = self._agent.control(operand, behind)
        self._pending[token] = client, then
        if client is not None:
            client.commands.add(token)
        return token

    def withdraw(self, client: Client) -> None:
        """The connection has ended: what it asked of the order, and is not on its way there, is forgotten."""
        for token in sorted(client.commands):
            if self._agent.node.withdraw(token):
                self._pending.pop(token, None)
                lent = self._lent.pop(token, None)
                if lent is not None:
                    lent.close()
        client.commands.clear()

    def forget_history(self) -> None:
        """The order has ended that was asked, and all clients with it."""
        self._pending.clear()
        for event_socket in self._lent.values():
            event_socket.close()
        self._lent.clear()

    def outcome(self, outcome: Outcome) -> None:
        """The outcome of a command of this agent."""
        client, then = self._pending.pop(outcome.first_number, (None, _ignore))
        if client is not None:
            client.commands.discard(outcome.first_number)
        then(outcome)

    def run_deferred(self) -> None:
        """Call when everything that the node has delivered so far is handed out."""
        deferred = self.deferred
        self.deferred = []
        for call in deferred:
            call()

    def _answer(self, client: Client, request_id: int, kind: Answer, body: Body | None = None) -> None:
        if not client.gone:
            client.session.answer(request_id, kind, body)
            self._agent.connections.touch(client)

    def _refuse(self, client: Client, request_id: int, code: int, message: str) -> None:
        if not client.gone:
            client.session.refuse(request_id, code, message)
            self._agent.connections.touch(client)

    # --- the connection ---------------------------------------------------------------------------------------

    def on_hello(self, client: Client, request: Incoming, _: Body | None) -> None:
        try:
            hello = client.session.hello(request)
        except MalformedFrame as error:
            self._agent.connections.fail(client, str(error))
            return
        if hello.version != LOCAL_PROTOCOL_VERSION:
            self._agent.connections.fail(
                client,
                f"this agent ({__version__}) speaks version {LOCAL_PROTOCOL_VERSION} of the local protocol, the "
                f"client's library ({hello.library[:CLIENT_NAME_BYTES]}) version {hello.version}",
            )
            return
        client.greeted()
        client.name = hello.name[:CLIENT_NAME_BYTES]
        client.library = hello.library[:CLIENT_NAME_BYTES]
        self._welcome(client, request.request_id)

    def formed(self) -> None:
        """The cluster is formed: who was welcomed before that learns its history."""
        early, self._early = self._early, []
        for client in early:
            self._welcome(client, 0)

    def _welcome(self, client: Client, request_id: int) -> None:
        agent = self._agent
        configuration = agent.node.configuration
        if configuration is None:
            self._early = [one for one in self._early if not one.gone]
            self._early.append(client)
        welcome = Welcome(
            version=LOCAL_PROTOCOL_VERSION,
            library=__version__,
            cluster=agent.config.cluster.name,
            cluster_id=agent.cluster_id(),
            node_id=agent.config.node.id,
            incarnation=agent.incarnation,
            connection=client.connection,
            event_bytes=agent.event_bytes(),
            delivery=agent.config.cluster.delivery if configuration is None else configuration.delivery,
        )
        self._answer(client, request_id, Answer.WELCOME, welcome)

    def on_goodbye(self, client: Client, _request: Incoming, _: Body | None) -> None:
        if client.closing:
            return  # said again
        client.closing = True
        self.groups.end(client, LeaveReason.LEFT)
        for producer in sorted(client.producers - self._agent.intake.closing):
            self._close_producer(producer, _ignore)

    # --- producers --------------------------------------------------------------------------------------------

    def on_open_producer(self, client: Client, request: Incoming, body: Body | None) -> None:
        if isinstance(body, OpenProducer) and body.local:
            producer = self._agent.local.open_producer()
            if not producer and self._agent.intake.close_orphaned_local():
                producer = self._agent.local.open_producer()
            if not producer:
                self._refuse(
                    client, request.request_id, errno.ENOMEM, "too many local producers on this node"
                )
                return
            self._opened(client, request.request_id, producer)
            return

        def then(outcome: Outcome, tries: int = 1) -> None:
            full = outcome.error == errno.ENOMEM
            if full and tries < _OPEN_TRIES and not client.gone and self._make_room():
                # Behind the CLOSE, as all that waits for one is. Another OPEN may have passed it.
                self.command(client, control.Open(), partial(then, tries=tries + 1), behind=True)
            elif outcome.error:
                self._refuse(
                    client, request.request_id, outcome.error, f"no producer: {reason(outcome.error)}"
                )
            elif client.gone:  # nobody will ever use it
                self._close_producer(outcome.value, _ignore)
            else:
                self._opened(client, request.request_id, outcome.value)

        self.command(client, control.Open(), then)

    def _make_room(self) -> bool:
        """Close a producer that nobody has come back to, where there are too many; whether there is room then."""
        if not self._agent.intake.has_all:
            return True  # one was closed meanwhile
        producer = self._agent.intake.longest_orphan()
        if producer:
            self._close_producer(producer, _ignore)
        return bool(producer)

    def _opened(self, client: Client, request_id: int, producer: int) -> None:
        self._agent.intake.own(client, producer)
        token = self._agent.intake.tokens.make(producer)
        self._answer(client, request_id, Answer.PRODUCER, Producer(producer, token))

    def on_resume_producer(self, client: Client, _request: Incoming, body: Body | None) -> None:
        if isinstance(body, Producer):
            self._agent.intake.resume(client, body.producer, body.token)

    def on_close_producer(self, client: Client, request: Incoming, body: Body | None) -> None:
        if not isinstance(body, Producer):
            return
        producer, intake = body.producer, self._agent.intake
        known = producer in client.producers and producer not in intake.closing
        if not known and not intake.resume(client, producer, body.token):
            self._refuse(client, request.request_id, errno.EBADF, f"producer {producer} is not this client's")
            return

        def then(outcome: Outcome) -> None:
            if outcome.error:
                self._refuse(client, request.request_id, outcome.error, reason(outcome.error))
            else:
                self._answer(client, request.request_id, Answer.DONE)

        self._close_producer(producer, then)

    def _close_producer(self, producer: int, then: OnOutcome) -> None:
        if producer & LOCAL_ID:
            self._agent.local.close_producer(producer)
            self._agent.intake.disown(producer)
            then(Outcome(0, producer, 0, 1, 0, 0, 0, 0))
            return

        def closed(outcome: Outcome) -> None:  # its receipts came before this place in the order
            self._agent.intake.closed(producer, outcome.error)
            then(outcome)

        self._agent.intake.closing.add(producer)
        self.command(None, control.Close(producer), closed)

    # --- subscriptions ----------------------------------------------------------------------------------------

    def on_subscribe(self, client: Client, request: Incoming, body: Body | None) -> None:
        try:
            event_socket = accept_lent(request.descriptor)
        except ValueError as error:
            code = errno.EMFILE if request.descriptor == NO_DESCRIPTOR else errno.EINVAL
            self._refuse(client, request.request_id, code, str(error))
            return
        if not isinstance(body, Subscribe):
            event_socket.close()
            return
        predicate, fault = _predicate(body.filter)
        fault = fault if fault[0] else self._subscribe_fault(client, body)
        if fault[0]:
            event_socket.close()
            self._refuse(client, request.request_id, *fault)
            return

        def subscribe(last_try: bool) -> bool:
            cluster_id = self._agent.cluster_id()
            if body.positions and body.cluster_id and body.cluster_id != cluster_id:
                event_socket.close()
                lost = Subscribed(cluster_id, [], history_lost=True)
                self._answer(client, request.request_id, Answer.SUBSCRIBED, lost)
                return True
            known, missing = self.topics.of(body)
            if missing[0] and not last_try:
                return False
            if client.gone:
                event_socket.close()
                return True
            if not last_try and needs_order(self._agent, known, body):
                return False
            refusal = self._subscribe_refusal(client, body, known)
            if refusal is None:
                self.permissions.wait(client, lambda: _ignore(subscribe(True)), event_socket.close)
                return True
            code, text = refusal
            if missing[0] and not (body.positions and known):  # one that goes on does so with what there is
                code, text = missing
            if not code:
                code, text = self._start(client, request.request_id, body, predicate, event_socket, known)
            if code:
                event_socket.close()
                self._refuse(client, request.request_id, code, text)
            return True

        # Before the first view nobody knows where a subscription would begin.
        views = self._agent.router.views
        if not views.begun or not subscribe(not views.primary and not any(map(is_group, body.topics))):
            self._open_groups(client, request, event_socket, body.topics, lambda: subscribe(True))

    def _open_groups(
        self,
        client: Client,
        request: Incoming,
        event_socket: socket.socket,
        topics: list[str],
        subscribe: Callable[[], object],
    ) -> None:
        """Groups among ``topics`` that are not in use will be, for one who may observe them; then ``subscribe``, when
        this agent has caught up with the order."""
        again = partial(self._open_groups, client, request, event_socket, topics, subscribe)
        if client.gone:
            event_socket.close()
            return
        unused = self.groups.unused(topics)
        if unused and not self._agent.router.views.begun:  # their rules come with the first view
            self._subscribe_later(client, request, event_socket, again)
            return
        refusal = self.permissions.subscribe_refusal(client, unused)
        if refusal is None:
            self.permissions.wait(client, again, event_socket.close)
        elif refusal[0]:
            event_socket.close()
            self._refuse(client, request.request_id, *refusal)
        else:
            self.groups.want(client, unused)
            self._subscribe_later(client, request, event_socket, subscribe)

    def _subscribe_later(
        self,
        client: Client,
        request: Incoming,
        event_socket: socket.socket,
        go_on: Callable[[], object],
    ) -> None:
        """``go_on`` with it when this agent has caught up with the order."""

        def caught_up(outcome: Outcome) -> None:
            del self._lent[token]
            if outcome.error:
                event_socket.close()
                self._refuse(client, request.request_id, outcome.error, reason(outcome.error))
            else:
                self.deferred.append(lambda: _ignore(go_on()))

        token = self.command(client, control.Barrier(), caught_up)
        self._lent[token] = event_socket

    def _subscribe_fault(self, client: Client, body: Subscribe) -> tuple[int, str]:
        subscriptions = client.line.subscriptions
        most = self._agent.config.limits.subscriptions_per_client
        if body.subscription in subscriptions:
            return errno.EINVAL, f"subscription {body.subscription} is in use on this connection"
        if len(subscriptions) >= most:
            return errno.ENOMEM, f"a client may have {most} subscriptions (limits.subscriptions_per_client)"
        if body.on_slow not in _POLICIES:
            return errno.EINVAL, f"this agent knows no policy {body.on_slow} for slow subscribers"
        if not body.topics:
            return errno.EINVAL, "a subscription names at least one topic"
        if len(body.topics) > TOPICS_PER_SUBSCRIPTION:
            return errno.ENOMEM, f"a subscription may name {TOPICS_PER_SUBSCRIPTION} topics"
        for name in body.topics:
            fault = name_fault(name)
            if fault:
                return errno.EINVAL, fault
        return 0, ""

    def _subscribe_refusal(
        self, client: Client, body: Subscribe, topics: list[NodeTopic]
    ) -> tuple[int, str] | None:
        """As ``_subscribe_fault`` once more, since others may have come meanwhile; None: a name is being looked up."""
        fault = self._subscribe_fault(client, body)
        if not fault[0]:
            fault = self._agent.components.subscribe_fault(client, {topic.topic_id for topic in topics})
        return fault if fault[0] else self.permissions.subscribe_refusal(client, topics)

    def _start(
        self,
        client: Client,
        request_id: int,
        body: Subscribe,
        predicate: Predicate | None,
        event_socket: socket.socket,
        topics: list[NodeTopic],
    ) -> tuple[int, str]:
        """The subscription starts here and now; else an errno and why."""
        agent = self._agent
        try:
            at = Starts(agent, topics, body)
        except InvalidArgument as error:
            return errno.EINVAL, error.strerror or str(error)
        subscription = agent.hub.add(
            client.line, body.subscription, event_socket, at.names, body.callback, OnSlow(body.on_slow), predicate
        )  # fmt: skip
        self._answer(client, request_id, Answer.SUBSCRIBED, Subscribed(agent.cluster_id(), at.starts))
        for gap in at.gaps:
            agent.hub.notify(subscription, gap)
        if MEMBERSHIP in at.names:
            agent.router.views.begin(subscription, at.membership_position)
        agent.components.begin(subscription, at.positions)
        self.groups.begin(subscription)
        if at.cursors:
            agent.hub.begin_with(subscription, at.cursors, {one.topic_id for one in at.starts if one.local})
        return 0, ""

    def on_unsubscribe(self, client: Client, request: Incoming, body: Body | None) -> None:
        subscription = self._subscription(client, body)
        if subscription is None:
            self._refuse(client, request.request_id, errno.EINVAL, "no such subscription on this connection")
            return
        self._agent.event_sockets.end_subscription(subscription)
        self._answer(client, request.request_id, Answer.DONE)

    def on_out_of_line(self, client: Client, request: Incoming, body: Body | None) -> None:
        subscription = self._subscription(client, body)
        if subscription is None or not subscription.callback or not isinstance(body, OutOfLine):
            self._refuse(client, request.request_id, errno.EINVAL, "no such callback subscription")
            return
        held = Held(body.topic, body.seq, time.monotonic_ns()) if body.out and body.seq else None
        self._agent.hub.set_out_of_line(subscription, body.out, held)
        self._answer(client, request.request_id, Answer.DONE)

    @staticmethod
    def _subscription(client: Client, body: Body | None) -> Subscription | None:
        if not isinstance(body, Unsubscribe | OutOfLine):
            return None
        return client.line.subscriptions.get(body.subscription)

    # --- the rest ---------------------------------------------------------------------------------------------

    def on_status(self, client: Client, request: Incoming, _: Body | None) -> None:
        self._answer(client, request.request_id, Answer.STATUS, Status(self._agent.status()))

    def on_report(self, client: Client, request: Incoming, body: Body | None) -> None:
        if not isinstance(body, Report):
            return
        code, why = self._agent.components.report(client, body)
        if code:
            self._refuse(client, request.request_id, code, why)
        else:
            self._answer(client, request.request_id, Answer.DONE)

    def on_barrier(self, client: Client, request: Incoming, _: Body | None) -> None:
        def then(outcome: Outcome) -> None:
            if outcome.error:
                self._refuse(client, request.request_id, outcome.error, reason(outcome.error))
            else:
                self._answer(client, request.request_id, Answer.DONE)

        self.command(client, control.Barrier(), then, behind=True)


def _predicate(encoded: bytes) -> tuple[Predicate | None, tuple[int, str]]:
    """The filter of a subscription, ready to be asked, and what is wrong with it."""
    try:
        return (Predicate(decode_filter(encoded)) if encoded else None), (0, "")
    except Malformed as error:
        return None, (errno.EINVAL, f"filter: {error}")


def _ignore(_: object) -> None:
    """For callbacks whose result nobody needs."""


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)
