# ruff: noqa: ASYNC109 - the timeouts are those of the blocking API, and raise its errors
"""The asyncio shell around a session: no thread, no lock, the loop's readers instead."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from ocfcluster import __version__
from ocfcluster.client.arguments import check_timeout
from ocfcluster.client.connection import LOST
from ocfcluster.client.controlsocket import ControlSocket, Dial
from ocfcluster.client.dispatch import Dispatcher, out_of_line
from ocfcluster.client.events import Event, Receipt
from ocfcluster.client.eventsocket import EventSocket
from ocfcluster.client.pending import Pending
from ocfcluster.client.producer import Producer
from ocfcluster.client.session import Lost, Session, Stage
from ocfcluster.client.starting import FROM_NOW_ON, Earlier
from ocfcluster.errors import (
    AgentUnreachable,
    ClientError,
    LimitReached,
    MalformedFrame,
    NotConnected,
    TooLarge,
    WouldBlock,
)
from ocfcluster.limits import RECONNECT_FIRST_NS, RECONNECT_MAX_NS, SECOND_NS
from ocfcluster.wire import frames
from ocfcluster.wire.frames import Request

log = logging.getLogger("ocfcluster.client")
Taken = TypeVar("Taken")


class AsyncConnection:
    """A session and its sockets, on one loop and in its thread."""

    def __init__(
        self, path: str, name: str, resume: bool, dial: Dial, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.path = path
        self._dial = dial
        self.resume = resume
        self.loop = loop
        self.session = Session(
            library=f"python-asyncio {__version__}", name=name, resume=resume, clock_ns=time.time_ns
        )
        self.sockets: dict[int, EventSocket] = {}
        self.dispatcher = Dispatcher(self.out_of_line, self._readable)
        self.control: ControlSocket | None = None
        self.generation = 0
        self.closed = False
        self._thread = threading.get_ident()
        self._writing = False  # the loop watches for room to write
        self._flush_due = False
        self._watchers: set[asyncio.Future[None]] = set()  # of everything that the agent may change
        self._takers: dict[EventSocket, list[asyncio.Future[None]]] = {}
        self._back_off_ns = RECONNECT_FIRST_NS
        self._retry: asyncio.TimerHandle | None = None

    # --- connecting ---------------------------------------------------------------------------------------------

    async def open(self, timeout: float | None) -> None:
        """Connect and be welcomed. Raises AgentUnreachable; then the caller closes it."""
        self._connect()
        try:
            await self.until(lambda: self.session.stage is not Stage.GREETING, timeout)
            reason = self.session.refusal or "it closed the connection"
        except WouldBlock:
            reason = "it did not answer in time"
        if self.session.stage is not Stage.READY:
            raise AgentUnreachable(f"the agent at {self.path} does not serve: {reason}")

    def _connect(self) -> None:
        control = ControlSocket(self._dial())
        self.control = control
        self.generation += 1
        self.loop.add_reader(control.fileno(), self._readable)
        self.session.connected()
        self.flush_output()

    def _reconnect(self) -> None:
        self._retry = None
        if self.closed or self.control is not None:
            return
        try:
            self._connect()
        except AgentUnreachable:
            self._retry = self.loop.call_later(self._back_off_ns / SECOND_NS, self._reconnect)
            self._back_off_ns = min(2 * self._back_off_ns, RECONNECT_MAX_NS)

    def _readable(self) -> None:
        control = self.control
        data = control.read() if control is not None else None
        if data is None:
            return
        if not data:
            self._lost(LOST)
            return
        try:
            self.session.receive(data)
        except MalformedFrame as error:
            log.warning("%s", error)
            self._lost(str(error))
            return
        self._after_input()

    def _lost(self, reason: str) -> None:
        self._close_control()
        greeting = self.session.stage is Stage.GREETING
        self.session.lost(reason)
        if greeting and self.session.welcome is None:
            self.session.end(reason)
        self._after_input()
        if self.resume and self.session.stage is Stage.OFFLINE and not self.closed:
            # As in Connection: who is refused keeps its back-off.
            self._back_off_ns = (
                min(2 * self._back_off_ns, RECONNECT_MAX_NS) if greeting else RECONNECT_FIRST_NS
            )
            self._retry = self.loop.call_later(self._back_off_ns / SECOND_NS, self._reconnect)

    def _close_control(self) -> None:
        control, self.control = self.control, None
        if control is not None:
            self.loop.remove_reader(control.fileno())
            if self._writing:
                self.loop.remove_writer(control.fileno())
                self._writing = False
            control.close()

    def _after_input(self) -> None:
        for effect in self.session.take_effects():
            if isinstance(effect, Lost):
                for subscription_id, event_socket in list(self.sockets.items()):
                    if not event_socket.lose(effect.notice):
                        self.session.subscriptions.pop(subscription_id, None)
            else:
                resumed = self.sockets.get(effect.subscription.id)
                if resumed is not None:
                    resumed.resumed(effect.notices, self.generation, effect.connection)
        self.flush_output()
        self._tell_watchers()

    def _tell_watchers(self) -> None:
        watchers, self._watchers = self._watchers, set()
        for future in watchers:
            if not future.done():
                future.set_result(None)

    # --- writing ------------------------------------------------------------------------------------------------

    def flush_output(self) -> None:
        """Write what the session has to say; the loop writes what does not fit."""
        control = self.control
        if control is None or not self.session.outgoing:
            return
        if not control.write(self.session):
            if not self._writing:
                self._writing = True
                self.loop.add_writer(control.fileno(), self.flush_output)
        elif self._writing:
            self._writing = False
            self.loop.remove_writer(control.fileno())

    def flush_soon(self) -> None:
        """Send what gathers in this turn of the loop when it is over."""
        if not self._flush_due:
            self._flush_due = True
            self.loop.call_soon(self.flush_gathered)

    def flush_gathered(self) -> None:
        self._flush_due = False
        for producer in self.session.producers:
            batch = producer.close_gathering(time.time_ns())
            if batch is not None:
                self.session.publish(producer, batch)
        self.flush_output()

    # --- waiting ------------------------------------------------------------------------------------------------

    async def until(
        self,
        done: Callable[[], bool],
        timeout: float | None,
        on_done: list[Callable[[], None]] | None = None,
    ) -> None:
        """Until ``done``, which changes when the agent says something, or when ``on_done`` is called.

        Raises WouldBlock after ``timeout`` seconds.
        """
        deadline = None if timeout is None else self.loop.time() + check_timeout(timeout)
        while not done():
            if deadline is not None and self.loop.time() >= deadline:
                raise WouldBlock("not within the time given")
            future: asyncio.Future[None] = self.loop.create_future()
            wake = partial(_set, future)
            if on_done is None or self.closed:
                self._watchers.add(future)
            else:
                on_done.append(wake)
            handle = None if deadline is None else self.loop.call_at(deadline, wake)
            try:
                await future
            finally:
                self._watchers.discard(future)
                if on_done is not None and wake in on_done:  # who waits no longer
                    on_done.remove(wake)
                if handle is not None:
                    handle.cancel()

    async def call(self, kind: Request, body: frames.Body | None, timeout: float | None) -> Any:
        """Ask and wait for the answer. Raises its error; WouldBlock after ``timeout`` seconds."""
        self.check_open()
        if timeout is not None:
            check_timeout(timeout)
        pending = self.session.request(kind, body)
        try:
            self.flush_output()
            await self.until(lambda: pending.done, timeout)
        finally:
            self.session.withdraw(pending)
        return pending.result()

    def check_open(self) -> None:
        if self.closed:
            raise NotConnected("the client is closed")
        if self.session.stage is Stage.ENDED:
            raise NotConnected("the connection to the agent has ended")

    def check_size(self, size: int) -> None:
        event_bytes = self.session.event_bytes
        if size > event_bytes:
            raise TooLarge(f"an event of {size} bytes; the cluster takes at most {event_bytes}")

    def wait_for_receipt(self, receipt: Receipt, timeout: float | None) -> None:
        raise NotImplementedError("await the receipt")

    async def flush(self, producers: list[Producer], timeout: float | None) -> None:
        self.flush_gathered()
        watched = [batch for producer in producers for batch in producer.unanswered]

        def done() -> bool:
            while watched and watched[-1].done:
                watched.pop()
            return not watched or self.closed

        await self.until(done, timeout)

    # --- subscriptions ------------------------------------------------------------------------------------------

    async def subscribe(
        self,
        topics: list[str],
        callback: Callable[[Event], object] | None,
        encoded_filter: bytes = b"",
        on_slow: int = 0,
        earlier: Earlier = FROM_NOW_ON,
    ) -> EventSocket:
        self.check_open()
        state = self.session.new_subscription(topics, callback is not None, encoded_filter, on_slow, earlier)
        try:
            event_socket = EventSocket(state, self.resume)
        except OSError as error:
            raise LimitReached(f"no descriptors for another subscription: {error}") from None
        self.sockets[state.id] = event_socket

        def answered() -> None:
            event_socket.generation = self.generation

        if callback is not None:
            self.dispatcher.add(event_socket, callback)
        try:
            pending = self.session.subscribe(state)
            pending.on_done.insert(0, answered)  # before the session calls its frames good
            self.flush_output()
            await self.until(lambda: pending.done, None)
            pending.result()
        except BaseException:
            self.dispatcher.remove(event_socket)
            self.sockets.pop(state.id, None)
            self.session.unsubscribe(state)
            event_socket.close()
            self.flush_output()
            raise
        if callback is not None:
            self.dispatcher.start(event_socket)
            self.loop.add_reader(event_socket.fileno(), self._dispatch, event_socket)
        return event_socket

    def _dispatch(self, event_socket: EventSocket) -> None:
        """One frame for each call, so that other things get their turn of the loop."""
        try:
            pending = self.dispatcher.is_pending(event_socket)
        except ClientError:  # ended, or closed by a callback before
            if not event_socket.closed:
                self.loop.remove_reader(event_socket.fileno())
            return
        if pending:
            pending = self.dispatcher.dispatch()  # what a callback raises is the loop's exception handler's
        if pending is None:
            self._readable()

    def drop(self, event_socket: EventSocket) -> Pending | None:
        """No event after this. What the agent will answer; None where it need not be told."""
        if event_socket.closed:
            return None
        self.dispatcher.remove(event_socket)
        self.sockets.pop(event_socket.state.id, None)
        pending = self.session.unsubscribe(event_socket.state)
        self._forget(event_socket)
        self.flush_output()
        return pending

    async def unsubscribe(self, event_socket: EventSocket) -> None:
        """No event after this. The agent is told, and has stopped."""
        pending = self.drop(event_socket)
        if pending is not None:
            with contextlib.suppress(WouldBlock):
                await self.until(lambda: pending.done, 1.0)

    def _forget(self, event_socket: EventSocket) -> None:
        if event_socket.closed:
            return
        with contextlib.suppress(RuntimeError):
            self.loop.remove_reader(event_socket.fileno())
        event_socket.close()
        for future in self._takers.pop(event_socket, []):
            _set(future)

    def out_of_line(self, event_socket: EventSocket, out: bool, event: Event | None = None) -> None:
        if self.session.stage is Stage.READY:
            self.session.request(Request.OUT_OF_LINE, out_of_line(event_socket, out, event))
            self.flush_output()

    async def wait_taking(
        self, event_socket: EventSocket, take: Callable[[], Taken | None], timeout: float | None
    ) -> Taken | None:
        """What ``take`` gives as soon as there is something; None after ``timeout`` seconds."""
        deadline = None if timeout is None else self.loop.time() + timeout
        while True:
            if deadline is not None and self.loop.time() >= deadline:
                return None
            if event_socket.early:  # the answer that says whose frame it is comes on the control connection
                await asyncio.sleep(0.001)
            else:
                await self._until_readable(event_socket, deadline)
            taken = take()
            if taken is not None:
                return taken

    async def _until_readable(self, event_socket: EventSocket, deadline: float | None) -> None:
        """Or closed, or until ``deadline``."""
        future: asyncio.Future[None] = self.loop.create_future()
        takers = self._takers.setdefault(event_socket, [])
        if not takers:
            self.loop.add_reader(event_socket.fileno(), self._wake_takers, event_socket)
        takers.append(future)
        handle = self.loop.call_at(deadline, _set, future) if deadline is not None else None
        try:
            await future
        finally:
            if handle is not None:
                handle.cancel()
            if future in takers:
                takers.remove(future)
            if not takers and self._takers.get(event_socket) is takers:
                del self._takers[event_socket]
                if not event_socket.closed:
                    self.loop.remove_reader(event_socket.fileno())

    def _wake_takers(self, event_socket: EventSocket) -> None:
        """Wake the first that waits; the reader stays for the others."""
        takers = self._takers.get(event_socket, [])
        for future in takers:
            if not future.done():
                future.set_result(None)
                takers.remove(future)
                break
        if not takers:
            self._takers.pop(event_socket, None)
            if not event_socket.closed:
                self.loop.remove_reader(event_socket.fileno())

    # --- the end ------------------------------------------------------------------------------------------------

    async def close(self, flush_timeout: float) -> None:
        if self.closed:
            return
        if self.session.stage is Stage.READY:
            with contextlib.suppress(ClientError):
                await self.flush(self.session.producers, flush_timeout)
        self.close_now()

    def close_now(self) -> None:
        """Without waiting for anything."""
        if self.closed:
            return
        self.closed = True
        left = sum(batch.count for producer in self.session.producers for batch in producer.unanswered)
        if left:
            log.warning("closed with %d publications unanswered: their outcome is unknown", left)
        self.session.goodbye()
        if self.control is not None:
            self.control.write(self.session)
        self._close_control()
        if self._retry is not None:
            self._retry.cancel()
        self.session.end("the client was closed")
        for event_socket in list(self.sockets.values()):
            self.dispatcher.remove(event_socket)
            self._forget(event_socket)
        self.sockets.clear()
        self._tell_watchers()

    def abandon_in_child(self) -> None:
        """After a fork: close this process's copies. The loop of the parent is not touched."""
        self.closed = True
        self.session.stage = Stage.ENDED
        if self.control is not None:
            self.control.close()
            self.control = None
        for event_socket in self.sockets.values():
            event_socket.abandon_in_child()
        self.sockets.clear()
        self.dispatcher.abandon_in_child()


class Deadline:
    """Of a call that waits several times."""

    __slots__ = ("_at",)

    def __init__(self, timeout: float | None) -> None:
        self._at = None if timeout is None else time.monotonic() + timeout

    def left(self) -> float | None:
        return None if self._at is None else max(0.0, self._at - time.monotonic())


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
