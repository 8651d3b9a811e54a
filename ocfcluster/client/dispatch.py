"""Callbacks in the one cluster order, across all callback subscriptions of a client.

Every frame of a callback subscription carries its turn, and the agent writes turn n only when every smaller one is
in some socket. So after a look at turn n one more look at the sockets that were empty finds every smaller turn, and
where n is the next one after the last dispatched no further look is needed at all.

A frame may be in its socket before the answer to SUBSCRIBE has been read, without which it cannot be opened. Its turn
can be read, and larger ones of the same connection wait for it. They do not wait for long: an agent writes a frame only
behind the SUBSCRIBE that it accepts, so the answer is on its way on that connection, or the connection ends, and what
was early on it is dropped. A subscription that is asked for, and has no frame yet, holds up nobody.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable
from itertools import islice

from ocfcluster.client.events import Event
from ocfcluster.client.eventsocket import EventSocket
from ocfcluster.errors import ClientError, InvalidArgument, NoSubscription, NotConnected, WouldDeadlock
from ocfcluster.limits import HANDLE_EVENT_NS, SECOND_NS
from ocfcluster.wire import frames

Callback = Callable[[Event], object]


def out_of_line(event_socket: EventSocket, out: bool, event: Event | None) -> frames.OutOfLine:
    """What the agent is told of a callback subscription: whether ``event`` of it is not done."""
    topic, seq = (event.topic, event.seq) if event is not None and event.notice is None else ("", 0)
    return frames.OutOfLine(event_socket.state.id, out, topic, seq)


class Entry:
    """One callback subscription."""

    __slots__ = (
        "dispatcher", "socket", "callback", "manual", "starting", "key", "held", "blocked", "ended", "removed",
    )  # fmt: skip

    def __init__(
        self, dispatcher: Dispatcher, event_socket: EventSocket, callback: Callback, manual: bool
    ) -> None:
        self.dispatcher = dispatcher
        self.socket = event_socket
        self.callback = callback
        self.manual = manual  # the program says when an event is done
        self.starting = (
            not event_socket.state.started
        )  # it has its place in the order, and no callback runs yet
        self.key: tuple[int, int] | None = None  # of the frame whose events are next
        self.held: Event | None = None  # given out and not done
        self.blocked = False  # the agent was told that nothing waits for this one
        self.ended: ClientError | None = None
        self.removed = False


class Dispatcher:
    """Runs callbacks; one thread at a time, any thread.

    ``out_of_line`` tells the agent who holds up nobody; ``pump`` waits a moment for answers on the control connection.
    """

    def __init__(
        self, out_of_line: Callable[[EventSocket, bool, Event | None], None], pump: Callable[[], None]
    ) -> None:
        self._out_of_line = out_of_line
        self._pump = pump
        self._entries: dict[EventSocket, Entry] = {}
        self._dispatching = threading.Lock()
        self._thread = 0  # that dispatches
        self._state = threading.Lock()  # of entries' held and blocked, and of what wakes
        self._last = (0, 0)  # key dispatched last
        self._wake = -1
        self._polls = 0  # threads that wait in run
        self._closed = False

    # --- entries ------------------------------------------------------------------------------------------------

    def add(self, event_socket: EventSocket, callback: Callback, manual: bool = False) -> None:
        """Before the agent is asked for the subscription; then callbacks run from ``start`` on. Or later: at once."""
        self._entries[event_socket] = Entry(self, event_socket, callback, manual)
        self.wake()

    def start(self, event_socket: EventSocket) -> None:
        entry = self._entries.get(event_socket)
        if entry is not None:
            entry.starting = False
            self.wake()

    def remove(self, event_socket: EventSocket) -> None:
        entry = self._entries.pop(event_socket, None)
        if entry is not None:
            entry.removed = True
            self.wake()

    def replace(self, event_socket: EventSocket, callback: Callback) -> None:
        """Another callback from the next event on. Raises InvalidArgument where there is none to replace."""
        entry = self._entries.get(event_socket)
        if entry is None:
            raise InvalidArgument("the subscription has no callback")
        entry.callback = callback

    def __len__(self) -> int:
        return len(self._entries)

    def wake(self) -> None:
        """Have the thread that waits in ``run`` look again."""
        if self._polls:
            with self._state:
                if self._wake >= 0:
                    os.eventfd_write(self._wake, 1)

    def done(self, entry: Entry, event: Event) -> None:
        """The program is done with an event that ``manual`` gave out. Raises InvalidArgument if it was before."""
        with self._state:
            if event.held is not entry:
                raise InvalidArgument("the event is done already")
            event.held = None
            entry.held = None
            blocked, entry.blocked = entry.blocked, False
        if blocked:
            if not entry.removed and entry.ended is None:
                self._out_of_line(entry.socket, False, None)
            self.wake()

    # --- dispatching --------------------------------------------------------------------------------------------

    def dispatch(self, only: EventSocket | None = None, deadline: float | None = None) -> bool | None:
        """Run the callbacks of the next frame. False where nothing is pending (of ``only``: on that one).

        None where something is, but waits for an answer on the control connection. At ``deadline`` (monotonic) it stops
        behind the event that it is at; the next call goes on there. Never waits itself. Raises WouldDeadlock inside a
        callback, NotConnected where ``only`` has ended.
        """
        me = threading.get_ident()
        if self._thread == me:
            raise WouldDeadlock("this thread is in a callback already")
        with self._dispatching:
            self._thread = me
            try:
                if only is not None:
                    pending = self.is_pending(only)
                    if not pending:
                        return pending
                entries = list(self._entries.values())
                entry = self._choose(entries)
                if entry is None:
                    return None if self._early(entries) else False
                if entry.starting:
                    return None
                self._run_frame(entry, deadline)
                return True
            finally:
                self._thread = 0

    def handle(self, event_socket: EventSocket) -> None:
        """Dispatch what is pending on one subscription, smaller turns of the others first. Never waits for events.

        What comes meanwhile is dispatched too, but not for ever: a stream of events does not keep the caller. Nor does
        an agent that has written an event, and does not come to say whose it is.
        """
        until = time.monotonic() + HANDLE_EVENT_NS / SECOND_NS
        while True:
            ran = self.dispatch(event_socket)
            if ran is False or time.monotonic() >= until:
                return
            if ran is None:
                self._pump()

    def is_pending(self, event_socket: EventSocket) -> bool | None:
        """Whether ``dispatch`` has something to do for one subscription; None where that waits for an answer.

        Raises InvalidArgument where it is closed or has no callback, NotConnected where it has ended.
        """
        entry = self._entries.get(event_socket)
        if entry is None:
            raise InvalidArgument("the subscription is closed or has no callback")
        self._look(entry)
        if entry.ended is not None:
            raise entry.ended
        if entry.held is not None:
            return False
        if entry.key is None:
            return None if event_socket.early else False
        return True

    def _look(self, entry: Entry) -> None:
        if entry.key is None and entry.ended is None and not entry.removed:
            try:
                entry.key = entry.socket.head()
            except NotConnected as error:
                entry.ended = error
            except InvalidArgument:
                entry.removed = True

    def _best(self, entries: list[Entry]) -> Entry | None:
        best: Entry | None = None
        for entry in entries:
            key = entry.key
            if key is None or entry.held is not None or entry.removed:
                continue
            if best is None or best.key is None or key < best.key:
                best = entry
        return best

    def _early(self, entries: list[Entry]) -> list[tuple[int, int]]:
        """Connections and turns of frames that cannot be opened yet. Every entry has been looked at."""
        return [
            entry.socket.early
            for entry in entries
            if entry.key is None
            and entry.socket.early is not None
            and entry.held is None
            and entry.ended is None
            and not entry.removed
        ]

    def _choose(self, entries: list[Entry]) -> Entry | None:
        """Whose frame is next in the order, as far as that is known. ``entries`` follow what others add meanwhile."""
        best = self._best(entries)
        generation, turn = self._last
        if best is not None and best.key == (generation, turn + 1):
            return best
        for _ in range(2 if best is None else 1):
            entries[:] = self._entries.values()
            for entry in entries:
                self._look(entry)
            best = self._best(entries)
            if best is None or best.key == (generation, turn + 1):
                return best
        return None if best is None or self._is_behind(best, self._early(entries)) else best

    @staticmethod
    def _is_behind(entry: Entry, early: list[tuple[int, int]]) -> bool:
        """Whether a smaller turn of the connection that it is on waits to be opened."""
        if not early or entry.key is None:
            return False
        generation, turn = entry.key
        event_socket = entry.socket
        if generation != event_socket.generation:
            return False
        connection = event_socket.state.connection  # 0 once that one has ended: nobody waits for it then
        return any(its == connection and one < turn for its, one in early)

    def _run_frame(self, entry: Entry, deadline: float | None) -> None:
        key = entry.key
        assert key is not None  # noqa: S101 - it was chosen for it
        if key > self._last:
            self._last = key
        event_socket = entry.socket
        try:
            if entry.manual:
                self._run_manual(entry, key, deadline)
            else:
                self._run_plain(entry, key, deadline)
        finally:
            if not event_socket.is_inside(key):
                entry.key = None

    def _run_plain(self, entry: Entry, key: tuple[int, int], deadline: float | None) -> None:
        event_socket = entry.socket
        while event_socket.is_inside(key):
            events, left = event_socket.begin()
            callback = entry.callback
            taken = 0
            if left > 1:
                try:
                    for event in islice(events, left - 1):
                        taken += 1
                        callback(event)
                        if entry.removed or (deadline is not None and time.monotonic() >= deadline):
                            return
                finally:
                    event_socket.advance(taken)
            last = self._take(event_socket)
            if last is not None:
                callback(last)
            if entry.removed or (deadline is not None and time.monotonic() >= deadline):
                return

    def _run_manual(self, entry: Entry, key: tuple[int, int], deadline: float | None) -> None:
        event_socket = entry.socket
        while event_socket.is_inside(key) and not entry.removed:
            event = self._take(event_socket)
            if event is None:
                return
            entry.held = event
            event.held = entry
            try:
                entry.callback(event)
            finally:
                if entry.held is not None:
                    with self._state:  # event_done of another thread may come at any moment
                        entry.blocked = self._is_held(entry)
                if entry.blocked:
                    self._out_of_line(event_socket, True, event)
            if entry.blocked:
                return
            if deadline is not None and time.monotonic() >= deadline:
                return

    @staticmethod
    def _take(event_socket: EventSocket) -> Event | None:
        """The next event of the current frame; None where another thread has closed the subscription."""
        try:
            return event_socket.take_event()
        except InvalidArgument:
            return None

    @staticmethod
    def _is_held(entry: Entry) -> bool:
        return entry.held is not None and not entry.removed

    # --- waiting ------------------------------------------------------------------------------------------------

    def run(self, timeout: float | None = None) -> None:
        """Serve callbacks until no callback subscription is left, at most ``timeout`` seconds and one more callback.

        Raises NoSubscription where there is none to begin with, NotConnected where all that are left have ended.
        """
        if not self._entries:
            raise NoSubscription("there is no subscription with a callback")
        ended = self.serve(None if timeout is None else time.monotonic() + timeout)
        if ended is not None:
            raise NotConnected(ended.strerror or "every subscription has ended")

    def serve(self, deadline: float | None = None) -> ClientError | None:
        """Until no callback subscription is left, or ``deadline``. Why they have ended, where all have."""
        while self._entries:
            ran = self.dispatch(deadline=deadline)
            entries = [] if ran else list(self._entries.values())
            ended = [entry.ended for entry in entries if entry.ended is not None]
            if entries and len(ended) == len(entries):
                return ended[0]
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            if ran is None:
                self._pump()
            elif not ran:
                self._wait(entries, left)
        return None

    def _wait(self, entries: list[Entry], left: float | None) -> None:
        with self._state:
            if self._wake < 0:
                self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._polls += 1
        waited: list[Entry] = []
        try:
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            for entry in entries:
                if entry.held is None and entry.ended is None and not entry.removed:
                    with contextlib.suppress(InvalidArgument):
                        poll.register(entry.socket.enter_wait(), select.POLLIN)
                        waited.append(entry)
            if list(self._entries.values()) != entries:
                return  # somebody else changed them since
            poll.poll(None if left is None else left * 1000)
        finally:
            for entry in waited:
                entry.socket.leave_wait()
            with self._state:
                self._polls -= 1
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
                self._close_wake()

    def close(self) -> None:
        """The descriptor goes, with the last thread that waits at it."""
        with self._state:
            self._closed = True
            self._close_wake()

    def _close_wake(self) -> None:
        if self._closed and not self._polls and self._wake >= 0:
            os.close(self._wake)
            self._wake = -1

    def abandon_in_child(self) -> None:
        self._entries.clear()
        self._dispatching = threading.Lock()
        self._state = threading.Lock()
        self._thread = 0
        self._polls = 0
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1
