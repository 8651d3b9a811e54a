"""The blocking shell around a session: the control connection, and the library's thread.

Who reads the control connection: a thread that waits for an answer does it itself, so that a round trip has no
hand-over between threads; while nobody waits the library's thread does: at once when the connection was quiet, and
then every RECEIPT_TICK_NS until it is quiet again, so that a stream of receipts does not wake a second thread for
each of them. Who writes: whoever has something to say, without ever blocking; what the socket does not take, and
what has gathered when the publishing thread pauses, is written by the library's thread when the agent has taken
what was before.

``lock`` protects everything here and in the session. It is taken before an event socket's own lock, never inside.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from ocfcluster import __version__
from ocfcluster.client.arguments import check_timeout
from ocfcluster.client.controlsocket import ControlSocket, Dial
from ocfcluster.client.dispatch import Callback, Dispatcher, out_of_line
from ocfcluster.client.events import Event, Receipt
from ocfcluster.client.eventsocket import EventSocket
from ocfcluster.client.pending import Pending
from ocfcluster.client.producer import Producer
from ocfcluster.client.session import Lost, Resumed, Session, Stage
from ocfcluster.client.starting import FROM_NOW_ON, Earlier
from ocfcluster.client.subscription_state import SubscriptionState
from ocfcluster.errors import (
    AgentUnreachable,
    ClientError,
    LimitReached,
    MalformedFrame,
    NotConnected,
    OutcomeUnknown,
    WouldBlock,
    WouldDeadlock,
)
from ocfcluster.limits import (
    RECEIPT_QUIET_TICKS,
    RECEIPT_TICK_NS,
    RECONNECT_FIRST_NS,
    RECONNECT_MAX_NS,
    SECOND_NS,
)
from ocfcluster.wire import frames
from ocfcluster.wire.frames import Request

log = logging.getLogger("ocfcluster.client")

LOST: Final = "the agent closed the connection"


class Connection:
    """A session, its sockets and its thread. Everything public is thread-safe."""

    _wake = -1  # also where the constructor refused its arguments: ``__del__`` looks at it

    def __init__(self, path: str, name: str, resume: bool, dial: Dial) -> None:
        self.path = path
        self._dial = dial
        self.resume = resume
        self.lock = threading.Lock()
        self._changed = threading.Condition(self.lock)
        self.session = Session(
            library=f"python {__version__}", name=name, resume=resume, clock_ns=time.time_ns
        )
        self.sockets: dict[int, EventSocket] = {}
        self.dispatcher = Dispatcher(self.out_of_line, self.pump)
        self.control: ControlSocket | None = None
        self.generation = 0  # of connections
        self.closed = False
        self._reading = False  # a waiting thread reads the control connection
        self._waiting = 0  # threads that wait for that one
        self._retired: list[ControlSocket] = []
        self._mask = 0
        self._ticks_left = 0  # > 0: receipts stream in, and are read at _tick_at and not as they come
        self._tick_at = 0.0
        self._back_off_ns = RECONNECT_FIRST_NS
        self._retry_at = 0.0
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._thread: threading.Thread | None = None
        self._unsubscribe_later: deque[EventSocket] = deque()
        self._close_later: float | None = None

    # --- connecting ---------------------------------------------------------------------------------------------

    def open(self, timeout: float | None) -> None:
        """Connect and be welcomed. Raises AgentUnreachable."""
        with self.lock:
            self._connect()
            self._thread = threading.Thread(target=self._run, name="ocfcluster", daemon=True)
            self._thread.start()
            ready = self.wait_until(lambda: self.session.stage is not Stage.GREETING, deadline_of(timeout))
            if ready and self.session.stage is Stage.READY:
                return
            reason = (
                self.session.refusal or "it closed the connection" if ready else "it did not answer in time"
            )
        self.close(flush_timeout=0)
        raise AgentUnreachable(f"the agent at {self.path} does not serve: {reason}")

    def _connect(self) -> None:
        control = ControlSocket(self._dial())
        self.control = control
        self.generation += 1
        # EPOLLOUT at once: what gathered while there was no agent is waiting.
        self._mask = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET
        self._ticks_left = 0
        self._epoll.register(control.fileno(), self._mask)
        self.session.connected()
        self.flush_output()

    def _reconnect(self) -> float | None:
        """Try once; None where it worked, else seconds until the next try."""
        try:
            self._connect()
        except AgentUnreachable:
            wait = self._back_off_ns / SECOND_NS
            self._retry_at = time.monotonic() + wait
            self._back_off_ns = min(2 * self._back_off_ns, RECONNECT_MAX_NS)
            return wait
        return None

    def _lost(self, reason: str) -> None:
        control = self.control
        if control is None:
            return
        self.control = None
        self._retire(control)
        # Who is refused keeps the back-off of who finds nobody: a full agent is not to be stormed.
        refused = self.session.stage is Stage.GREETING
        self._back_off_ns = min(2 * self._back_off_ns, RECONNECT_MAX_NS) if refused else RECONNECT_FIRST_NS
        self._retry_at = time.monotonic() + self._back_off_ns / SECOND_NS
        self.session.lost(reason)
        if self.session.stage is Stage.GREETING:
            self.session.end(reason)
        self._after_input()
        self._wake_thread()

    def _retire(self, control: ControlSocket) -> None:
        with contextlib.suppress(OSError):
            self._epoll.unregister(control.fileno())
        if self._reading:  # its descriptor must not be used again under the thread that polls it
            control.shutdown()
            self._retired.append(control)
        else:
            control.close()

    # --- the library's thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        timeout: float | None = None
        while True:
            events = self._epoll.poll(timeout)
            with self.lock:
                if self.closed:
                    break
                for descriptor, mask in events:
                    if descriptor == self._wake:
                        with contextlib.suppress(BlockingIOError):
                            os.eventfd_read(self._wake)
                    elif self.control is not None and descriptor == self.control.fileno():
                        if mask & ~select.EPOLLOUT and not self._reading:
                            self._read_all()
                            self._tick_from_now_on()
                        if mask & select.EPOLLOUT:
                            self._writable()
                timeout = self._tick(self._tend())
            while self._unsubscribe_later:
                self.unsubscribe(self._unsubscribe_later.popleft(), wait=False)
            if self._close_later is not None:
                self.close(self._close_later)
                break
        self._epoll.close()

    def _tend(self) -> float | None:
        """Reconnect when it is time; seconds until the next try."""
        if self.control is not None or not self.resume or self.session.stage is Stage.ENDED:
            return None
        left = self._retry_at - time.monotonic()
        if left > 0:
            return left
        return self._reconnect()

    def _tick_from_now_on(self) -> None:
        """Receipts begin to stream in: look for them now and then, until nothing has come for some time."""
        self._ticks_left = RECEIPT_QUIET_TICKS
        self._tick_at = time.monotonic() + RECEIPT_TICK_NS / SECOND_NS
        self._watch(self._mask & ~select.EPOLLIN)

    def _tick(self, timeout: float | None) -> float | None:
        """Read where it is time to; seconds until the thread must wake next."""
        if not self._ticks_left or self.control is None:
            return timeout
        now = time.monotonic()
        if now >= self._tick_at:
            self._tick_at = now + RECEIPT_TICK_NS / SECOND_NS
            if self._reading or self._read():
                self._ticks_left = RECEIPT_QUIET_TICKS
                if not self._reading:
                    self._read_all()
            else:
                self._ticks_left -= 1
                if not self._ticks_left:
                    self._watch(self._mask | select.EPOLLIN)
                    return timeout
        left = max(0.0, self._tick_at - now)
        return left if timeout is None else min(left, timeout)

    def _wake_thread(self) -> None:
        with contextlib.suppress(OSError):
            os.eventfd_write(self._wake, 1)

    def __del__(self) -> None:
        if self._wake >= 0:  # only now can nobody write to its number any more
            os.close(self._wake)

    def _watch(self, mask: int) -> None:
        """What the thread looks for besides the end of the connection."""
        mask |= select.EPOLLET
        if self.control is not None and mask != self._mask:
            self._mask = mask
            self._epoll.modify(self.control.fileno(), mask)

    def _read_all(self) -> None:
        while self.control is not None and self._read():
            pass

    def _read(self) -> bool:
        """Read once and work it off. Whether there was anything."""
        control = self.control
        if control is None:
            return False
        data = control.read()
        if data is None:
            return False
        if not data:
            self._lost(LOST)
            return False
        try:
            self.session.receive(data)
        except MalformedFrame as error:
            log.warning("%s", error)
            self._lost(str(error))
            return False
        self._after_input()
        return True

    def _after_input(self) -> None:
        for effect in self.session.take_effects():
            if isinstance(effect, Lost):
                self._tell_lost(effect)
            elif isinstance(effect, Resumed):
                self._tell_resumed(effect)
        if self.session.outgoing:
            self.flush_output()
        if self._waiting:
            self._changed.notify_all()

    def _tell_lost(self, effect: Lost) -> None:
        for subscription_id, event_socket in list(self.sockets.items()):
            if not event_socket.lose(effect.notice):
                self.session.subscriptions.pop(subscription_id, None)

    def _tell_resumed(self, effect: Resumed) -> None:
        event_socket = self.sockets.get(effect.subscription.id)
        if event_socket is not None:
            event_socket.resumed(effect.notices, self.generation, effect.connection)

    # --- writing ------------------------------------------------------------------------------------------------

    def flush_output(self) -> None:
        """Write what the session has to say; the thread writes what does not fit. The lock is held."""
        if self.control is None:
            return
        if not self.control.write(self.session):
            self.arm()

    def arm(self) -> None:
        """Have the thread write when the agent has taken something. The lock is held."""
        if not self._mask & select.EPOLLOUT:
            self._watch(self._mask | select.EPOLLOUT)

    def _writable(self) -> None:
        control = self.control
        if control is None or (self.session.outgoing and not control.write(self.session)):
            return
        gathering = any(producer.gathering for producer in self.session.producers)
        if gathering and control.idle():
            self.flush_gathered()
            gathering = False
        if not gathering and not self.session.outgoing:
            self._watch(self._mask & ~select.EPOLLOUT)

    def flush_gathered(self) -> None:
        """Send what has gathered. The lock is held."""
        for producer in self.session.producers:
            if producer.gathering is not None:
                self.send_gathered(producer)
        self.flush_output()

    def send_gathered(self, producer: Producer) -> None:
        """Put what one producer has gathered into the output. The lock is held."""
        batch = producer.close_gathering(time.time_ns())
        if batch is not None:
            self.session.publish(producer, batch)

    # --- waiting ------------------------------------------------------------------------------------------------

    def wait_until(self, done: Callable[[], bool], deadline: float | None, deadlocks: bool = False) -> bool:
        """Wait for the agent to make ``done`` true; whether it did until ``deadline``. The lock is held.

        With ``deadlocks`` raises WouldDeadlock where the agent waits for a subscription that this thread drains.
        """
        if done():
            return True
        try:
            while not done():
                if deadlocks and self.session.full:
                    self._refuse_deadlock()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                if self._reading or self.control is None:
                    self._waiting += 1
                    try:
                        self._changed.wait(left)
                    finally:
                        self._waiting -= 1
                else:
                    self._read_here(left)
            return True
        finally:
            self._leave()

    def _leave(self) -> None:
        """A thread waits no longer: another one reads the control connection, and the library's behind the last."""
        if self._reading:
            return
        if self._waiting:
            self._changed.notify_all()
        elif not self._ticks_left:
            self._watch(self._mask | select.EPOLLIN)

    def _read_here(self, left: float | None) -> None:
        control = self.control
        assert control is not None  # noqa: S101 - the caller looked
        if self._mask & select.EPOLLIN:
            self._watch(self._mask & ~select.EPOLLIN)
        self._reading = True
        self.lock.release()
        try:
            control.wait_readable(None if left is None else max(0.0, left * 1000))
        finally:
            self.lock.acquire()
            self._reading = False
            for retired in self._retired:
                retired.close()
            self._retired.clear()
            if control is not self.control and self._waiting:
                self._changed.notify_all()
        if control is self.control:
            self._read()

    def _refuse_deadlock(self) -> None:
        me = threading.get_ident()
        for subscription_id in self.session.full:
            event_socket = self.sockets.get(subscription_id)
            if event_socket is not None and event_socket.drainer == me:
                raise WouldDeadlock(
                    f"the cluster waits for subscription {subscription_id}, which this thread drains: "
                    "take its events first"
                )

    def pump(self) -> None:
        """Work off what the agent has said already, and where that was nothing wait a moment for it."""
        with self.lock:
            if not self._reading and self.control is not None and self._read():
                return
            self._waiting += 1
            try:
                self._changed.wait(0.01)
            finally:
                self._waiting -= 1
                self._leave()

    def wait_for_receipt(self, receipt: Receipt, timeout: float | None) -> None:
        """Until the receipt is done. Raises WouldBlock, WouldDeadlock, OutcomeUnknown."""
        deadline = deadline_of(timeout)
        with self.lock:
            self.flush_gathered()
            if not self.wait_until(lambda: receipt.done() or self.closed, deadline, deadlocks=True):
                raise WouldBlock("the cluster has not delivered the publication in the time given")
            if not receipt.done():
                raise OutcomeUnknown("the client was closed while the publication was unanswered")

    def call(self, kind: Request, body: frames.Body | None = None, timeout: float | None = None) -> Any:
        """Ask and wait for the answer. Raises its error; WouldBlock after ``timeout`` seconds."""
        with self.lock:
            return self.call_locked(kind, body, deadline_of(timeout))

    def call_locked(self, kind: Request, body: frames.Body | None, deadline: float | None) -> Any:
        self.check_open()
        pending = self.session.request(kind, body)
        try:
            self.flush_output()
            if not self.wait_until(lambda: pending.done, deadline):
                raise WouldBlock(f"the agent did not answer {kind.name} in the time given")
        finally:
            self.session.withdraw(pending)
        return pending.result()

    def leaves(self, kind: Request, body: frames.Body) -> Pending:
        """A request that comes behind what has gathered. The lock is held."""
        self.flush_gathered()
        return self.session.request(kind, body)

    def check_open(self) -> None:
        if self.closed:
            raise NotConnected("the client is closed")

    # --- subscriptions ------------------------------------------------------------------------------------------

    def subscribe(
        self,
        topics: list[str],
        callback: Callback | None,
        timeout: float | None,
        encoded_filter: bytes = b"",
        on_slow: int = 0,
        earlier: Earlier = FROM_NOW_ON,
        manual: bool = False,
    ) -> EventSocket:
        """A subscription that has started. Raises UnknownTopic, LimitReached, ..."""
        with self.lock:
            self.check_open()
            state = self.session.new_subscription(
                topics, callback is not None, encoded_filter, on_slow, earlier
            )
            try:
                event_socket = EventSocket(state, self.resume)
            except OSError as error:
                raise LimitReached(f"no descriptors for another subscription: {error}") from None
            self.sockets[state.id] = event_socket

            def answered() -> None:
                event_socket.generation = self.generation

            if callback is not None:
                self.dispatcher.add(event_socket, callback, manual=manual)
            try:
                pending = self.session.subscribe(state)
                pending.on_done.insert(0, answered)  # before the session calls its frames good
                self.flush_output()
                if not self.wait_until(lambda: pending.done, deadline_of(timeout)):
                    raise WouldBlock("the agent did not answer SUBSCRIBE in the time given")
                pending.result()
            except BaseException:
                self.dispatcher.remove(event_socket)
                self._drop(state, event_socket)
                raise
            self.dispatcher.start(event_socket)
            return event_socket

    def _drop(self, state: SubscriptionState, event_socket: EventSocket) -> None:
        self.sockets.pop(state.id, None)
        self.session.unsubscribe(state)
        event_socket.close()
        self.flush_output()

    def unsubscribe(self, event_socket: EventSocket, wait: bool = True) -> None:
        """No event after this. The agent is told, and with ``wait`` has stopped."""
        self.dispatcher.remove(event_socket)
        state = event_socket.state
        with self.lock:
            known = self.sockets.pop(state.id, None) is not None and not self.closed
            pending = self.session.unsubscribe(state) if known else None
            event_socket.close()
            self.flush_output()
            if pending is not None and wait:
                self.wait_until(lambda: pending.done, time.monotonic() + 1.0)

    # What the garbage collector calls may run in any thread with any lock held, so it leaves the work to the thread.

    def unsubscribe_later(self, event_socket: EventSocket) -> None:
        self._unsubscribe_later.append(event_socket)
        self._wake_thread()

    def close_later(self, flush_timeout: float) -> None:
        self._close_later = flush_timeout
        self._wake_thread()

    def out_of_line(self, event_socket: EventSocket, out: bool, event: Event | None = None) -> None:
        """Tell the agent that an event of a callback subscription is not done, or is."""
        with self.lock:
            if self.session.stage is Stage.READY:
                body = out_of_line(event_socket, out, event)
                self.session.request(Request.OUT_OF_LINE, body)
                self.flush_output()

    # --- the end ------------------------------------------------------------------------------------------------

    def flush(self, producers: list[Producer] | None, timeout: float | None) -> None:
        """Until everything published so far is answered. Raises WouldBlock, WouldDeadlock."""
        deadline = deadline_of(timeout)
        with self.lock:
            self.flush_gathered()
            watched = [
                batch for producer in producers or self.session.producers for batch in producer.unanswered
            ]

            def done() -> bool:
                while watched and watched[-1].done:
                    watched.pop()
                return not watched or self.closed

            if not self.wait_until(done, deadline, deadlocks=True):
                raise WouldBlock(f"{len(watched)} runs are unanswered after the time given")

    def unanswered(self) -> int:
        return sum(batch.count for producer in self.session.producers for batch in producer.unanswered)

    def close(self, flush_timeout: float) -> None:
        """Flush for at most ``flush_timeout`` seconds, say what is left unanswered, and end in order."""
        if self.closed:
            return
        if flush_timeout > 0 and self.session.stage is Stage.READY:
            with contextlib.suppress(ClientError):
                self.flush(None, flush_timeout)
        with self.lock:
            if self.closed:
                return
            self.closed = True
            left = self.unanswered()
            if left:
                log.warning("closed with %d publications unanswered: their outcome is unknown", left)
            self.session.goodbye()
            control, self.control = self.control, None
            if control is not None:
                control.write(self.session)
                self._retire(control)
            self.session.end("the client was closed")
            self._changed.notify_all()
            sockets = list(self.sockets.values())
            self.sockets.clear()
        for event_socket in sockets:
            self.dispatcher.remove(event_socket)
            event_socket.close()
        self.dispatcher.close()
        self._end_thread()

    def _end_thread(self) -> None:
        thread = self._thread
        if thread is None:
            self._epoll.close()
            return
        self._wake_thread()
        if thread is not threading.current_thread():
            thread.join(1.0)

    def abandon_in_child(self) -> None:
        """After a fork: close this process's copies, tell nobody. Locks may have been held: they are made anew.

        Also of a connection that was closed, or abandoned by the fork before.
        """
        self.lock = threading.Lock()
        self._changed = threading.Condition(self.lock)
        self.closed = True
        self.session.stage = Stage.ENDED
        for control in (self.control, *self._retired):
            if control is not None:
                control.close()
        self.control = None
        self._epoll.close()
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1
        for event_socket in self.sockets.values():
            event_socket.abandon_in_child()
        self.sockets.clear()
        self.dispatcher.abandon_in_child()


def deadline_of(timeout: float | None) -> float | None:
    """On the monotonic clock; None: never. Raises InvalidArgument for what is no number of seconds."""
    return None if timeout is None else time.monotonic() + check_timeout(timeout)
