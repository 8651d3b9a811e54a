"""A client's control connection, sans-IO: bytes in, bytes out, and what outlives a connection.

Contract with the shell (``connection.py`` for threads, ``aio.py`` for asyncio):

- ``connected()`` when a socket is connected; ``receive()`` what it gave; ``lost()`` when it ended.
- After each call write what ``outgoing`` holds, in order, each descriptor beside the first byte of its entry, and
  work off ``take_effects()``.
- One thread at a time.

Life of a session::

    OFFLINE --connected--> GREETING --WELCOME--> READY --lost--> OFFLINE (resume) or ENDED
                                                                 close() from anywhere: ENDED
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from ocfcluster.client.arguments import check_name
from ocfcluster.client.events import Notice, NoticeCode
from ocfcluster.client.memberships import Memberships
from ocfcluster.client.pending import Pending
from ocfcluster.client.producer import PRODUCER_LOST, Batch, Producer
from ocfcluster.client.starting import FROM_NOW_ON, Earlier
from ocfcluster.client.subscription_state import SubscriptionState
from ocfcluster.errors import (
    ClientError,
    MalformedFrame,
    NotConnected,
    NotPermitted,
    OutcomeUnknown,
    UnknownTopic,
    client_error,
)
from ocfcluster.limits import (
    CONTROL_OUTPUT_BYTES,
    LENT_SOCKETS_UNANSWERED,
    REQUESTS_UNANSWERED,
)
from ocfcluster.wire import frames
from ocfcluster.wire.frames import CONTROL_HEADER, LOCAL_PROTOCOL_VERSION, RECEIPT, Answer, Request

HEADER_BYTES: Final = CONTROL_HEADER.size
# Not asked again on the next connection: a cluster that was just started again must not be stopped again, a topic that
# was made again must not be removed again, and what a component had to say belongs to the agent that it said it to.
_ONCE: Final = frozenset({Request.ADMINISTER, Request.REPORT, Request.TOPIC_REMOVE})
_BODIES_NONE: Final = frozenset({int(Answer.DONE)})  # kinds without a body
_OWN_ANSWER: Final = {
    Request.OPEN_PRODUCER: Answer.PRODUCER, Request.SUBSCRIBE: Answer.SUBSCRIBED, Request.STATUS: Answer.STATUS,
    Request.TOPIC_LIST: Answer.TOPICS, Request.TOPIC_RESOLVE: Answer.TOPIC,
    Request.TOPIC_ACCESS: Answer.TOPIC_ACCESS,
    Request.GROUP_JOIN: Answer.GROUP,
    Request.GROUP_SHOW: Answer.GROUP, Request.GROUP_LIST: Answer.GROUPS,
}  # fmt: skip


class Stage(Enum):
    OFFLINE = "offline"  # no connection; the shell tries again
    GREETING = "greeting"  # HELLO is out
    READY = "ready"
    ENDED = "ended"  # closed, or lost without resume


class Outgoing(NamedTuple):
    """Bytes to write, and the descriptor to send with the first of them (-1: none)."""

    buffer: bytes | memoryview
    descriptor: int


@dataclass(slots=True, frozen=True)
class Lost:
    """The connection ended. Every started subscription must be told: ``notice`` (final without resume)."""

    notice: Notice


@dataclass(slots=True, frozen=True)
class Resumed:
    """A subscription goes on on a new connection, after ``notices``; with a final one among them it ends."""

    subscription: SubscriptionState
    notices: list[Notice]
    connection: int  # whose frames are good from now on; 0: none


Effect = Lost | Resumed


class Session:
    """One client as its agents see it."""

    __slots__ = (
        "stage", "welcome", "cluster_id", "full", "outgoing", "resume", "producers", "subscriptions", "topics",
        "memberships", "refusal", "shutdown_reason", "_library", "_name", "_buffer", "_effects", "_queue", "_in_flight",
        "_lent", "_next_request", "_next_subscription", "_clock_ns", "_said", "_resumes_first", "_history_unknown",
    )  # fmt: skip

    def __init__(self, *, library: str, name: str, resume: bool, clock_ns: Callable[[], int]) -> None:
        """``clock_ns`` gives the wall clock, for the publish time of runs."""
        self.stage = Stage.OFFLINE
        self.welcome: frames.Welcome | None = None
        self.cluster_id = ""
        self.full: frozenset[int] = frozenset()
        self.outgoing: deque[Outgoing] = deque()
        self.resume = resume
        self.producers: list[Producer] = []
        self.subscriptions: dict[int, SubscriptionState] = {}
        self.topics: dict[str, frames.Topic] = {}  # resolved names
        self.memberships = Memberships()
        self.refusal = ""  # why the agent did not welcome this client, by its own word
        self.shutdown_reason = ""
        self._library = library
        self._name = check_name(name)
        self._buffer = bytearray()
        self._effects: list[Effect] = []
        self._queue: deque[Pending] = deque()
        self._in_flight: dict[int, Pending] = {}
        self._lent = 0
        self._next_request = 1
        self._next_subscription = 1
        self._clock_ns = clock_ns
        self._said = ""  # by the agent, before it hung up
        self._resumes_first = False  # on a new connection, until all subscriptions are asked for again
        self._history_unknown = False  # the agent has no history yet: what belongs to the last one waits

    @property
    def event_bytes(self) -> int:
        """Of the cluster's largest event, by the last agent's word. There has been one."""
        assert self.welcome is not None  # noqa: S101 - for the type checker
        return self.welcome.event_bytes

    # --- the connection's life ----------------------------------------------------------------------------------

    def connected(self) -> None:
        self.stage = Stage.GREETING
        hello = frames.Hello(LOCAL_PROTOCOL_VERSION, self._library, self._name)
        self._put(frames.control_frame(Request.HELLO, 0, hello))

    def lost(self, reason: str) -> None:
        """The connection ended. Nothing that was written on it counts as received, or as not received."""
        was = self.stage
        if was in (Stage.OFFLINE, Stage.ENDED):
            return
        self.outgoing.clear()
        self._buffer.clear()
        self._lent = 0
        self.full = frozenset()
        reason = self.shutdown_reason or self._said or reason
        if was is Stage.READY:
            code = NoticeCode.SHUTDOWN if self.shutdown_reason else NoticeCode.AGENT_LOST
            self._effects.append(Lost(Notice(code, reason=reason, final=not self.resume)))
        self.shutdown_reason = self._said = ""
        if not self.resume:
            self.end(reason)
            return
        self.stage = Stage.OFFLINE
        self.memberships.lost()
        sent, unsent = list(self._in_flight.values()), list(self._queue)
        self._in_flight.clear()
        self._queue = deque(pending for pending in (*sent, *unsent) if _outlives(pending))
        for pending in sent:
            if pending.kind in _ONCE:
                text = f"the command may or may not have been carried out: {reason}"
                pending.finish(None, OutcomeUnknown(text))
        for pending in unsent:
            if pending.kind not in _ONCE:
                continue
            if was is Stage.READY:  # it was meant for the agent that is gone
                pending.finish(None, NotConnected(f"the command was not carried out: {reason}"))
            else:
                self._queue.append(pending)

    def end(self, reason: str) -> None:
        """Nothing more will come: everything that waits fails."""
        self.stage = Stage.ENDED
        waiting = [*self._in_flight.values(), *self._queue]
        self._in_flight.clear()
        self._queue.clear()
        for pending in waiting:
            pending.finish(None, NotConnected(reason))
        self.memberships.ended(NotConnected(reason))
        for producer in self.producers:
            producer.opening = False
            if producer.unanswered:
                producer.abandon(OutcomeUnknown(f"publications were unanswered: {reason}"))
            producer.give_up_gathering(NotConnected(reason))

    def goodbye(self) -> None:
        """An orderly end: the agent closes what this client has."""
        if self.stage is Stage.READY:
            self._put(frames.control_frame(Request.GOODBYE))

    def take_effects(self) -> list[Effect]:
        effects = self._effects
        if effects:
            self._effects = []
        return effects

    # --- out ----------------------------------------------------------------------------------------------------

    def _put(self, buffer: bytes, descriptor: int = -1) -> None:
        self.outgoing.append(Outgoing(buffer, descriptor))

    def request(
        self,
        kind: Request,
        body: frames.Body | None = None,
        *,
        subscription: SubscriptionState | None = None,
        on_done: Callable[[], None] | None = None,
    ) -> Pending:
        """Ask; the answer comes in the Pending. Raises NotConnected once the session has ended."""
        if self.stage is Stage.ENDED:
            raise NotConnected("the connection to the agent has ended")
        pending = Pending(kind, body, subscription)
        if on_done is not None:
            pending.on_done.append(on_done)
        self._queue.append(pending)
        if self.stage is Stage.READY:
            self._send_queue()
        return pending

    def withdraw(self, pending: Pending) -> None:
        """Nobody waits for the answer: what was not written yet never is, and nothing goes to another agent."""
        if pending.done or pending.withdrawn:
            return
        pending.withdrawn = True
        if pending in self._queue:
            self._queue.remove(pending)
        else:
            self._take_out(pending)
        if self.stage is Stage.READY:
            self._send_queue()

    def _take_out(self, pending: Pending) -> None:
        """Take a request out of ``outgoing``, unless its first bytes have been written."""
        for index, one in enumerate(self.outgoing):
            if one.buffer is pending.frame:
                del self.outgoing[index]
                del self._in_flight[CONTROL_HEADER.unpack_from(pending.frame)[4]]
                if pending.kind is Request.SUBSCRIBE:
                    self._lent -= 1
                return

    def _send_queue(self) -> None:
        queue = self._queue
        while queue and len(self._in_flight) < REQUESTS_UNANSWERED:
            pending = queue[0]
            descriptor = -1
            if pending.kind is Request.SUBSCRIBE:
                if self._lent >= LENT_SOCKETS_UNANSWERED:
                    break
                assert pending.subscription is not None  # noqa: S101 - for the type checker
                self._lent += 1
                descriptor = pending.subscription.lend
            queue.popleft()
            request_id = self._next_request
            self._next_request = request_id % 0xFFFF_FFFF + 1
            self._in_flight[request_id] = pending
            pending.frame = frames.control_frame(pending.kind, request_id, pending.body)
            self._put(pending.frame, descriptor)
        # Publications wait until every subscription is asked for again: a client must not miss its own events.
        if self._resumes_first and not self._history_unknown and not any(map(_is_resume, queue)):
            self._resumes_first = False
            self._resend()

    # --- publishing ---------------------------------------------------------------------------------------------

    def add_producer(self, local: bool) -> Producer:
        producer = Producer(local)
        self.producers.append(producer)
        return producer

    def open(self, producer: Producer) -> None:
        """See that the producer has an id, now or later; what is queued on it goes out then."""
        if producer.id or producer.opening or self.stage is Stage.ENDED:
            return
        producer.opening = True
        producer.refusal = None
        pending = self.request(Request.OPEN_PRODUCER, frames.OpenProducer(producer.local))
        pending.on_done.append(lambda: self._opened(producer, pending))

    def _opened(self, producer: Producer, pending: Pending) -> None:
        producer.opening = False
        if isinstance(pending.answer, frames.Producer):
            producer.opened(pending.answer, self._clock_ns())
            if self.stage is Stage.READY and not self._resumes_first:
                for batch in producer.unanswered:
                    if not batch.done:
                        self._publish(batch)
        else:
            producer.refusal = pending.error or NotConnected("the producer was not opened")
            producer.abandon(producer.refusal)
        if producer.closing:
            self._give_back(producer)

    def publish(self, producer: Producer, batch: Batch) -> None:
        """Send a batch that was just queued on its producer, as soon as there is a connection and an id."""
        if self.stage is Stage.READY and producer.id:
            if not self._resumes_first:
                self._publish(batch)
        elif self.stage is Stage.ENDED:
            producer.abandon(NotConnected("the connection to the agent has ended"))
        else:
            self.open(producer)

    def _publish(self, batch: Batch) -> None:
        batch.sends += 1
        if self.memberships.stale:
            self.memberships.stamp(batch)
        self._put(CONTROL_HEADER.pack(len(batch.run), Request.PUBLISH, 0, 0, 0))
        self._put(batch.run)

    def close_producer(self, producer: Producer) -> None:
        """Nothing more is published on it. It is given back as soon as all that was is answered."""
        batch = producer.close_gathering(self._clock_ns())
        if batch is not None:
            self.publish(producer, batch)
        producer.closing = True
        self._give_back(producer)

    def _give_back(self, producer: Producer) -> None:
        """Let a closing producer go, if nothing is left to be heard of it, or to be told to the next agent."""
        away = self.stage in (Stage.OFFLINE, Stage.GREETING)
        if producer.unanswered or producer.opening or (producer.id and away):
            return
        self.producers.remove(producer)
        if producer.id and self.stage is Stage.READY:
            self.request(Request.CLOSE_PRODUCER, frames.Producer(producer.id, producer.token))

    # --- subscribing --------------------------------------------------------------------------------------------

    def new_subscription(
        self,
        topics: list[str],
        callback: bool,
        encoded_filter: bytes = b"",
        on_slow: int = 0,
        earlier: Earlier = FROM_NOW_ON,
    ) -> SubscriptionState:
        state = SubscriptionState(self._next_subscription, topics, callback, encoded_filter, on_slow, earlier)
        self._next_subscription += 1
        return state

    def subscribe(self, state: SubscriptionState) -> Pending:
        pending = self.request(Request.SUBSCRIBE, state.request(), subscription=state)
        pending.on_done.append(lambda: self._subscribed(state, pending))
        return pending

    def _subscribed(self, state: SubscriptionState, pending: Pending) -> None:
        if isinstance(pending.answer, frames.Subscribed) and self.welcome is not None:
            if pending.withdrawn:
                self._tell_unsubscribed(state)
                return
            self.subscriptions[state.id] = state
            state.accept(pending.answer, self.welcome.incarnation)
            state.connection = self.welcome.connection

    def unsubscribe(self, state: SubscriptionState) -> Pending | None:
        """It is no more, whatever its agents say. To be called before the descriptor that it lends is closed.

        None where there is nothing to wait for: no agent has it, or one that may is told when it answers SUBSCRIBE.
        """
        self.subscriptions.pop(state.id, None)
        for pending in (*self._in_flight.values(), *self._queue):
            if pending.subscription is state:
                self.withdraw(pending)
                return None
        if self.stage is not Stage.READY or not state.started:
            return None
        return self._tell_unsubscribed(state)

    def _tell_unsubscribed(self, state: SubscriptionState) -> Pending:
        return self.request(Request.UNSUBSCRIBE, frames.Unsubscribe(state.id))

    def _resubscribe(self, state: SubscriptionState) -> None:
        incarnation = self.welcome.incarnation if self.welcome is not None else 0
        pending = Pending(Request.SUBSCRIBE, state.request(incarnation), state)
        pending.on_done.append(lambda: self._resubscribed(state, pending))
        self._queue.append(pending)

    def _resubscribed(self, state: SubscriptionState, pending: Pending) -> None:
        error = pending.error
        answer = pending.answer
        if pending.withdrawn:
            if isinstance(answer, frames.Subscribed) and not answer.history_lost:
                self._tell_unsubscribed(state)
            return
        if state.id not in self.subscriptions or self.stage is Stage.ENDED:
            return
        if error is not None or not isinstance(answer, frames.Subscribed):
            code = NoticeCode.TOPIC_REMOVED if isinstance(error, UnknownTopic) else NoticeCode.AGENT_LOST
            if isinstance(error, NotPermitted):
                code = NoticeCode.NOT_PERMITTED
            reason = error.strerror if error is not None and error.strerror else "not subscribed again"
            self._end_subscription(state, Notice(code, reason=reason, final=True))
            return
        if answer.history_lost:
            reason = f"the history {state.cluster_id} ended"
            last = max(state.positions.values(), default=0)
            self._end_subscription(state, Notice(NoticeCode.HISTORY_LOST, "", 0, last, reason, True))
            return
        assert self.welcome is not None  # noqa: S101 - for the type checker
        perhaps = "; some or all of these may be events that the filter leaves out" if state.filter else ""
        gaps = [
            Notice(
                NoticeCode.GAP, start.topic, start.gap_from, start.next_seq - 1,
                (start.gap_reason or "the agent was away") + perhaps,
            )
            for start in answer.starts if start.gap_from
        ]  # fmt: skip
        there = {start.topic_id for start in answer.starts}
        removed = [state.names[topic_id] for topic_id in state.positions if topic_id not in there]
        for topic in removed:
            state.drop(topic)
        state.accept(answer, self.welcome.incarnation)
        reason = "the topic was removed while the agent was away"
        gone = [Notice(NoticeCode.TOPIC_REMOVED, topic, reason=reason) for topic in removed]
        notices = [*gone, *gaps, Notice(NoticeCode.RESUMED)]
        self._effects.append(Resumed(state, notices, self.welcome.connection))

    def _end_subscription(self, state: SubscriptionState, notice: Notice) -> None:
        self.subscriptions.pop(state.id, None)
        self._effects.append(Resumed(state, [notice], 0))

    # --- in -----------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take in what the socket gave. Raises MalformedFrame, after which the connection is lost."""
        buffer: bytes | bytearray
        if self._buffer:
            self._buffer += data
            buffer = self._buffer
        else:
            buffer = data
        at = 0
        size = len(buffer)
        with memoryview(buffer) as view:
            while size - at >= HEADER_BYTES:
                length, kind, _, _, request_id = CONTROL_HEADER.unpack_from(view, at)
                if length > CONTROL_OUTPUT_BYTES:
                    raise MalformedFrame(f"the agent sent a frame of {length} bytes")
                end = at + HEADER_BYTES + length
                if end > size:
                    break
                with view[at + HEADER_BYTES : end] as body:
                    if kind == Answer.RECEIPTS:
                        self._receipts(body)
                    else:
                        self._frame(kind, request_id, body)
                at = end
        if buffer is self._buffer:
            del self._buffer[:at]
        elif at < size:
            self._buffer += data[at:]

    def _receipts(self, body: memoryview) -> None:
        if len(body) % RECEIPT.size:
            raise MalformedFrame(f"{len(body)} bytes are no whole number of receipts")
        by_id = {producer.id: producer for producer in self.producers if producer.id}
        for producer_id, first, count, code, seq, ev_id in RECEIPT.iter_unpack(body):
            producer = by_id.get(producer_id)
            if producer is None:
                continue
            if code in PRODUCER_LOST:
                if producer.id and producer.unanswered and producer.unanswered[0].number:
                    producer.forgotten()
                    self.open(producer)
                by_id.pop(producer_id)
                continue
            if code == errno.EINVAL:
                self._forget_topics()
            producer.answered(first, count, code, seq, ev_id)
            if producer.closing and not producer.unanswered:
                by_id.pop(producer_id)
                self._give_back(producer)

    def _forget_topics(self) -> None:
        self.topics.clear()  # one of them was removed, perhaps made again: ask before the next publication

    def _frame(self, kind: int, request_id: int, view: memoryview) -> None:
        try:
            answer = Answer(kind)
        except ValueError:
            raise MalformedFrame(f"the agent sent a frame of kind {kind}") from None
        body = None if kind in _BODIES_NONE else frames.read_body(kind, view)
        if answer is Answer.WELCOME:
            assert isinstance(body, frames.Welcome)  # noqa: S101 - for the type checker
            self._welcomed(body)
        elif answer is Answer.FULL:
            assert isinstance(body, frames.Full)  # noqa: S101
            self.full = frozenset(body.subscriptions)
        elif answer is Answer.REFUSED:
            assert isinstance(body, frames.Refused)  # noqa: S101
            for producer in self.producers:
                if producer.id == body.producer:
                    producer.explained(body.first_number, body.message)
        elif answer is Answer.PRODUCER and not request_id:
            assert isinstance(body, frames.Producer)  # noqa: S101
            for producer in self.producers:
                if producer.id == body.producer:
                    producer.token = body.token
        elif answer is Answer.LEFT_OUT:
            assert isinstance(body, frames.LeftOut)  # noqa: S101
            state = self.subscriptions.get(body.subscription)
            if state is not None:
                state.left_out.update((one.topic_id, one.seq) for one in body.positions)
        elif answer is Answer.SHUTDOWN:
            assert isinstance(body, frames.Shutdown)  # noqa: S101
            self.shutdown_reason = body.reason or "the agent ended in order"
        else:
            self._answered(answer, request_id, body)

    def _answered(self, answer: Answer, request_id: int, body: frames.Body | None) -> None:
        pending = self._in_flight.pop(request_id, None)
        if pending is None:
            if isinstance(body, frames.Error):
                self._said = body.message  # about the connection itself; the agent hangs up next
                if self.stage is Stage.GREETING:
                    self.refusal = body.message
                    raise MalformedFrame(f"the agent refused the connection: {body.message}")
                return
            raise MalformedFrame(f"the agent answered request {request_id}, which is not under way")
        if pending.kind is Request.SUBSCRIBE:
            self._lent -= 1
        if isinstance(body, frames.Error):
            pending.finish(None, _error_of(pending.kind, body))
        elif answer is _OWN_ANSWER.get(pending.kind, answer):
            if isinstance(pending.body, frames.TopicResolve) and isinstance(body, frames.Topic):
                self.topics[pending.body.topic] = body  # now, while it is of this history
            pending.finish(body, None)
        else:
            raise MalformedFrame(f"the agent answered {pending.kind.name} with {answer.name}")
        self._send_queue()

    def _welcomed(self, welcome: frames.Welcome) -> None:
        if welcome.version != LOCAL_PROTOCOL_VERSION:
            raise MalformedFrame(
                f"the agent speaks version {welcome.version}, this library {LOCAL_PROTOCOL_VERSION}"
            )
        before = self.welcome
        told_again = self.stage is Stage.READY  # the agent has found its history meanwhile
        self.welcome = welcome
        self.stage = Stage.READY
        if welcome.cluster_id and welcome.cluster_id != self.cluster_id:
            if self.cluster_id:
                self._history_ended()
            self.cluster_id = welcome.cluster_id
        if before is not None and before.incarnation != welcome.incarnation:
            for producer in self.producers:
                if producer.is_of_agent():
                    producer.agent_ended()
        if told_again and not self._history_unknown:
            return
        # Producers and positions mean something in their own history only: another client may have the same numbers
        # in the next one. While the agent does not know its history, they wait for it to be told.
        self._history_unknown = bool(self.cluster_id) and not welcome.cluster_id
        self._resumes_first = True
        if not self._history_unknown:
            for state in self.subscriptions.values():
                self._resubscribe(state)
            self.memberships.ask_again(self._ask_once)
        self._send_queue()

    def _ask_once(self, pending: Pending) -> None:
        """Ask on this connection, unless that is done."""
        if pending not in self._queue and pending not in self._in_flight.values():
            self._queue.append(pending)

    def _resend(self) -> None:
        """Everything unanswered, in order, on a new connection."""
        event_bytes = self.event_bytes
        for producer in list(self.producers):
            if any(batch.is_of_larger_than(event_bytes) for batch in producer.unanswered):
                text = f"the cluster takes events of at most {event_bytes} bytes now"
                producer.abandon(OutcomeUnknown(text))
            if producer.id:
                if producer.token:
                    body = frames.Producer(producer.id, producer.token)
                    self._put(frames.control_frame(Request.RESUME_PRODUCER, 0, body))
                for batch in producer.unanswered:
                    if not batch.done:
                        self._publish(batch)
            elif producer.unanswered:
                self.open(producer)
            if producer.closing:
                self._give_back(producer)

    def _history_ended(self) -> None:
        self.topics.clear()
        self.memberships.history_ended(NotConnected(f"the history {self.cluster_id} ended, with its groups"))
        for producer in self.producers:
            error = OutcomeUnknown(f"the history {self.cluster_id} ended")
            producer.abandon(error)
            producer.give_up_gathering(error)  # its topic's number may be another topic's in the next one


def _is_resume(pending: Pending) -> bool:
    return (
        pending.kind is Request.SUBSCRIBE
        and pending.subscription is not None
        and pending.subscription.started
    )


def _outlives(pending: Pending) -> bool:
    """Whether a request goes to the next agent. What belongs to memberships and started subscriptions is asked for
    anew there, where it is wanted still."""
    return (
        not pending.withdrawn
        and pending.kind not in (*_ONCE, Request.GROUP_JOIN, Request.GROUP_LEAVE)
        and not _is_resume(pending)
    )


def _error_of(kind: Request, body: frames.Error) -> ClientError:
    named = kind in (
        Request.SUBSCRIBE,
        Request.TOPIC_RESOLVE,
        Request.TOPIC_REMOVE,
        Request.TOPIC_ALTER,
        Request.TOPIC_ACCESS,
    )
    if named and body.errno == errno.EINVAL:
        return UnknownTopic(body.message)
    return client_error(body.errno, body.message)
