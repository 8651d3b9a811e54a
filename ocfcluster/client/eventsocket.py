"""One subscription's descriptor and what waits behind it.

The library makes a SOCK_SEQPACKET pair, keeps both ends and lends one to each agent in turn. The other end is the
subscription's descriptor. It is *truthful*, readable exactly while something waits to be taken, because a frame is
peeked at, and taken off the socket only with its last event; only the pieces of a run that is too large for one frame
make it readable before there is an event. Where something waits in memory instead (old frames
after the agent's end, notices of the library), a *bell* stands in for it: a frame without records that the library
itself put into the socket. After the end the bell stays, so that whoever polls gets to know.

Every method takes the socket's own lock; none takes another lock inside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from ocfcluster.client.events import Event, Notice, NoticeCode, Run, RunMeta
from ocfcluster.client.pieces import Pieces
from ocfcluster.client.subscription_state import SubscriptionState
from ocfcluster.errors import ClientError, InvalidArgument, MalformedFrame, NotConnected
from ocfcluster.limits import (
    EVENT_SOCKET_SEND_BYTES,
    FRAME_BYTES,
    FRAME_HEADER_BYTES,
    RECORD_HEADER_BYTES,
    RUN_COUNT,
    RUN_HEADER_BYTES,
)
from ocfcluster.wire.frames import EVENT_HEADER, LOCAL_ID, RECORD_HEADER, RecordKind
from ocfcluster.wire.run import CHECKED_FROM, HEADER, LENGTHS_TABLE

HIGH_DESCRIPTOR: Final = 1024  # from here on select() cannot go, so the lent end takes no room from programs
LAST_TURN: Final = 1 << 64  # behind all turns of a connection
_SEQ_MOST: Final = (1 << 64) - 1
_PEEK: Final = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_RUN: Final = int(RecordKind.RUN)
_PART: Final = int(RecordKind.PART)
_LAST: Final = int(RecordKind.LAST)


class Frame(NamedTuple):
    """One message of the agent, opened. ``key`` orders the frames of all callback subscriptions of a client."""

    key: tuple[int, int]  # generation of the connection, turn
    runs: list[Run]


class EventSocket:
    """The events of one subscription, from the agent's frames to Event objects."""

    __slots__ = (
        "state", "resume", "lock", "generation", "closed", "final", "early", "drainer", "damaged", "_reader", "_writer",
        "_memory", "_bell", "_rung", "_frame", "_on_socket", "_at", "_run", "_events", "_left", "_ended", "_waiters",
        "_told", "_notices", "_last", "_pieces",
    )  # fmt: skip

    def __init__(self, state: SubscriptionState, resume: bool) -> None:
        self.state = state
        self.resume = resume
        self.lock = threading.Lock()
        self.generation = 1  # of connections
        self.closed = False
        self.final = False  # a final notice has been seen, so the next agent is not asked to go on
        # Connection and turn of the next frame, while the answer that says whose it is has not been read.
        self.early: tuple[int, int] | None = None
        self.drainer = 0  # the thread that took the last frame
        self.damaged = 0  # runs whose bytes did not agree with their checksum
        self._reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._writer = _move_up(writer)
        self._writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, EVENT_SOCKET_SEND_BYTES)
        state.lend = self._writer.fileno()
        self._memory: deque[Frame] = deque()
        self._bell = 0
        self._rung = False
        self._frame: Frame | None = None
        self._on_socket = False  # whether the current frame is still at the head of the socket
        self._at = 0  # index of the current run in the frame
        self._run: Run | None = None
        self._events: Iterator[Event] | None = None  # of the current run, once they are asked for one by one
        self._left = 0  # events of the current run not taken yet
        self._ended: ClientError | None = None
        self._waiters = 0
        self._told = False  # the agent itself announced its end
        self._notices = 0
        self._last: Run | None = None  # the subscription ends with it
        self._pieces = Pieces()  # of a large run that is on its way

    def fileno(self) -> int:
        """The descriptor; the same as long as the subscription lives. Raises InvalidArgument once it is closed."""
        if self.closed:
            raise InvalidArgument("the subscription is closed")
        return self._reader.fileno()

    # --- taking -------------------------------------------------------------------------------------------------

    def take_event(self) -> Event | None:
        """The next event, or None. Raises NotConnected behind a final notice, InvalidArgument once closed."""
        with self.lock:
            left = self._left
            if left > 1:
                self._left = left - 1
                return next(self._events or self._make_events())
            if not left:
                if not self._load():
                    return None
                left = self._left
            event = next(self._events or self._make_events())
            self._left = left - 1
            if left == 1:
                self._finish_run()
            return event

    def take_run(self) -> Run | None:
        """What is left of the current run, or the next one, or None. Raises as ``take_event``."""
        with self.lock:
            if not self._left and not self._load():
                return None
            run = self._run
            assert run is not None  # noqa: S101 - for the type checker
            whole = 1 if run.notice is not None else len(run)
            run = run.rest(whole - self._left)
            self._left = 0
            self._finish_run()
            return run

    def head(self) -> tuple[int, int] | None:
        """The key of the frame whose event is next, or None. Raises as ``take_event``."""
        with self.lock:
            if not self._left and not self._load():
                return None
            assert self._frame is not None  # noqa: S101 - for the type checker
            return self._frame.key

    def is_inside(self, key: tuple[int, int]) -> bool:
        """Whether the next event is one of the frame with this key."""
        frame = self._frame
        return frame is not None and frame.key == key

    def begin(self) -> tuple[Iterator[Event], int]:
        """For dispatching: the current run's events, how many are left. ``advance`` says how many were taken."""
        with self.lock:
            return self._events or self._make_events(), self._left

    def advance(self, taken: int) -> None:
        with self.lock:
            if taken and self._left:
                self._left -= taken

    def _finish_run(self) -> None:
        """The last event of the current run was taken: go to the next run, or take the frame off the socket."""
        frame, run = self._frame, self._run
        assert frame is not None  # noqa: S101 - for the type checker
        assert run is not None  # noqa: S101 - for the type checker
        notice = run.notice
        if notice is not None and notice.final:
            self._end(NotConnected(notice.reason or f"the subscription ended ({notice.name})"))
            return
        if run is self._last:
            self._end(NotConnected("the node was evicted from the cluster"))
            return
        self._at += 1
        if self._at < len(frame.runs):
            self._enter(frame.runs[self._at])
            return
        self._drop_frame()

    def _drop_frame(self) -> None:
        self._frame = None
        self._run = None
        if self._on_socket:
            self._discard()
            self._on_socket = False
        if self._rung and not self._memory and self._ended is None:
            self._hush()

    def _make_events(self) -> Iterator[Event]:
        run = self._run
        events = self._events = iter(()) if run is None else run.events()
        return events

    def _enter(self, run: Run) -> None:
        self._run = run
        self._events = None
        self._left = 1 if run.notice is not None else len(run)

    def _load(self) -> bool:
        """Make the next frame the current one. False where there is none."""
        if self.closed:
            raise InvalidArgument("the subscription is closed")
        self.early = None
        while True:
            if self._memory:
                frame = self._memory.popleft()
            elif self._ended is not None:
                raise NotConnected(self._ended.strerror or "the subscription ended")
            else:
                peeked = self._peek()
                if peeked is None:
                    return False
                frame = peeked
                self._on_socket = True
            self._frame = frame
            if frame.runs:
                self._at = 0
                self._enter(frame.runs[0])
                self.drainer = threading.get_ident()
                return True
            self._drop_frame()

    def _peek(self) -> Frame | None:
        """The frame at the head of the socket, left there; what does not count any more is removed."""
        while True:
            try:
                message = self._reader.recv(FRAME_BYTES, _PEEK)
            except BlockingIOError:
                return None
            connection = EVENT_HEADER.unpack_from(message)[0] if len(message) >= FRAME_HEADER_BYTES else 0
            if connection == self.state.connection and connection:
                return self._open(message)
            if connection and not self.state.connection:
                self.early = (connection, EVENT_HEADER.unpack_from(message)[2])
                return None
            self._discard()  # a bell that has been heard, or late frames of a connection that was lost
            if connection == 0:
                self._rung = False

    def _discard(self) -> None:
        """Take the message at the head of the socket off it."""
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(1, socket.MSG_DONTWAIT)

    # --- opening frames -----------------------------------------------------------------------------------------

    def _open(self, message: bytes) -> Frame:
        """A frame with a piece of a run that is not whole yet has no runs."""
        _, _, turn, records, _ = EVENT_HEADER.unpack_from(message)
        runs: list[Run] = []
        at = FRAME_HEADER_BYTES
        try:
            for _ in range(records):
                length, kind, flags, piece, skip, *numbers = RECORD_HEADER.unpack_from(message, at)
                meta = RunMeta(skip, flags, *numbers)
                begin = at + RECORD_HEADER_BYTES
                at += length
                if length < RECORD_HEADER_BYTES or at > len(message):
                    raise MalformedFrame("a record that is longer than its frame")
                if kind == _PART:
                    whole = self._pieces.add(piece, memoryview(message)[begin:at])
                    if whole is not None:
                        runs.append(self._open_run(whole, 0, len(whole), meta))
                    continue
                self._pieces.give_up()
                if kind == _RUN:
                    runs.append(self._open_run(message, begin, at - begin, meta))
                elif kind == _LAST:
                    runs.append(self._open_last(message, begin, at - begin, meta))
                else:
                    runs.append(self._open_notice(message[begin:at], meta))
        except (MalformedFrame, struct.error) as error:
            self.damaged += 1
            runs.append(
                self.notice_run(Notice(NoticeCode.GAP, reason=f"the agent's frame is damaged: {error}"))
            )
        return Frame((self.generation, turn), runs)

    def _open_run(self, buffer: bytes, base: int, size: int, meta: RunMeta) -> Run:
        if size < RUN_HEADER_BYTES:
            raise MalformedFrame("a run shorter than its header")
        header = HEADER.unpack_from(buffer, base)
        length, _, heads, _, checksum, topic_id, count, *_, event_length, properties_length = header
        state = self.state
        topic = state.names.get(topic_id, "")
        counts = meta.skip < count <= RUN_COUNT
        last = meta.seq + count - meta.skip - 1 if counts else meta.seq
        if last > _SEQ_MOST:
            raise MalformedFrame("a run with numbers beyond 64 bits")
        if topic_id in state.positions:
            state.positions[topic_id] = last
        whole = length == size and heads == 1 and counts
        if whole:
            rest = size - RUN_HEADER_BYTES - properties_length
            whole = rest >= 4 * count if event_length == LENGTHS_TABLE else rest == event_length * count
        if whole:
            with memoryview(buffer) as view, view[base + CHECKED_FROM : base + size] as checked:
                whole = xxh3_64_intdigest(checked) == checksum
        if whole:
            return Run(topic, buffer, base, header, meta, state.cluster_id)
        self.damaged += 1
        reason = "the run's bytes do not agree with its checksum"
        return Run.of_notice(Notice(NoticeCode.GAP, topic, meta.seq, last, reason), meta)

    def _open_last(self, message: bytes, base: int, size: int, meta: RunMeta) -> Run:
        """An event that says itself that this agent's node was evicted: nobody need tell of the agent's end."""
        run = self._open_run(message, base, size, meta)
        self._told = True
        if not self.resume:
            self._last = run
        return run

    def _open_notice(self, data: bytes, meta: RunMeta) -> Run:
        notice = Notice.decode(data)
        if notice.code is NoticeCode.HISTORY_LOST and not notice.last_seq:
            last_seq = max(self.state.positions.values(), default=0)
            notice = Notice(notice.code, notice.topic, 0, last_seq, notice.reason, notice.final)
        if notice.code is NoticeCode.SHUTDOWN:
            self._told = True
            if self.resume:
                notice = Notice(notice.code, notice.topic, reason=notice.reason)
        if notice.code is NoticeCode.TOPIC_REMOVED and not notice.final:
            self.state.drop(notice.topic)
        if notice.code is NoticeCode.GAP:
            self.state.miss(notice.topic, notice.last_seq)
        self.final = self.final or notice.final
        return Run.of_notice(notice, meta)

    def notice_run(self, notice: Notice) -> Run:
        """A notice of the library's own."""
        self._notices += 1
        state = self.state
        seq = next(iter(state.positions.values()), 0) if len(state.positions) == 1 else 0
        topic = state.topics[0] if not notice.topic and len(state.topics) == 1 else notice.topic
        if topic != notice.topic:
            notice = Notice(
                notice.code, topic, notice.first_seq, notice.last_seq, notice.reason, notice.final
            )
        return Run.of_notice(notice, RunMeta(0, 0, 0, 0, 0, seq, LOCAL_ID | self._notices, 0))

    # --- the agent goes and comes -------------------------------------------------------------------------------

    def lose(self, notice: Notice) -> bool:
        """The agent is gone: what it wrote moves into memory, then ``notice``. Whether to go on with another agent."""
        with self.lock:
            if self.closed or self._ended is not None:
                return False
            self._move_to_memory()
            self.state.connection = 0
            if self.final:
                return False
            if not self.state.started:  # it begins with the next agent
                return True
            if not (self._told and notice.code in (NoticeCode.SHUTDOWN, NoticeCode.AGENT_LOST)):
                self._memory.append(Frame((self.generation, LAST_TURN), [self.notice_run(notice)]))
                self.final = notice.final
            self._told = False
            self._ring_if_needed()
            return not self.final

    def resumed(self, notices: list[Notice], generation: int, connection: int) -> None:
        """An agent goes on with the subscription on ``connection``, or it ends: the last notice is final then."""
        with self.lock:
            if self.closed or self._ended is not None:
                return
            self.generation = generation
            self.state.connection = connection  # under the lock: no frame of it may overtake the notices
            for notice in notices:
                self._memory.append(Frame((generation, 0), [self.notice_run(notice)]))
                self.final = self.final or notice.final
            self._ring_if_needed()

    def _move_to_memory(self) -> None:
        """Everything in the socket goes to memory, behind a new bell, so that the descriptor stays readable."""
        rung = self._ring() if self._on_socket or self._readable() else False
        if self._on_socket:
            self._discard()
            self._on_socket = False
        while True:
            try:
                message = self._reader.recv(FRAME_BYTES, _PEEK)
            except BlockingIOError:
                break
            connection, _, turn, _, _ = EVENT_HEADER.unpack_from(message)
            if connection == 0 and rung and turn == self._bell:
                break
            self._discard()
            if connection and connection == self.state.connection:
                frame = self._open(message)
                if frame.runs:
                    self._memory.append(frame)
            rung = rung or self._ring()
        self._pieces.give_up()
        self._rung = rung
        if rung and not self._memory and self._frame is None:
            self._hush()

    def _readable(self) -> bool:
        try:
            self._reader.recv(1, _PEEK)
        except BlockingIOError:
            return False
        return True

    def _ring_if_needed(self) -> None:
        if not self._rung and not self._on_socket and (self._memory or self._frame is not None):
            self._ring()

    def _ring(self) -> bool:
        """Put a bell into the socket. False where it is full: then it is readable anyway."""
        self._bell += 1
        try:
            self._writer.send(EVENT_HEADER.pack(0, 0, self._bell, 0, 0), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        self._rung = True
        return True

    def _hush(self) -> None:
        """Take the bell off the head of the socket, if it has got there: nothing waits in memory any more."""
        try:
            header = self._reader.recv(FRAME_HEADER_BYTES, _PEEK)
        except BlockingIOError:
            self._rung = False
            return
        if EVENT_HEADER.unpack_from(header)[0] == 0:
            self._discard()
            self._rung = False

    # --- the end ------------------------------------------------------------------------------------------------

    def _end(self, error: ClientError) -> None:
        """Behind the final notice: readable for ever, and every call says why."""
        self._ended = error
        self._frame = None
        self._run = None
        self._left = 0
        self._on_socket = False
        self._memory.clear()
        self._pieces.give_up()
        if not self._ring():
            while self._readable():
                self._discard()
            self._ring()

    @property
    def ended(self) -> bool:
        """Whether the final notice was taken."""
        return self._ended is not None

    def enter_wait(self) -> int:
        """A thread is about to poll the descriptor, which stays open until ``leave_wait``. Raises InvalidArgument."""
        with self.lock:
            if self.closed:
                raise InvalidArgument("the subscription is closed")
            self._waiters += 1
            return self._reader.fileno()

    def leave_wait(self) -> None:
        with self.lock:
            self._waiters -= 1
            if self.closed and not self._waiters:
                self._close_sockets()

    def close(self) -> None:
        """No event after this. Threads that wait are woken; the last of them closes the descriptors."""
        with self.lock:
            if self.closed:
                return
            self.closed = True
            self._left = 0
            self._frame = None
            self._memory.clear()
            self._pieces.give_up()
            if not self._waiters:
                self._close_sockets()
            else:
                self._ring()

    def _close_sockets(self) -> None:
        self.state.lend = -1
        self._reader.close()
        self._writer.close()

    def abandon_in_child(self) -> None:
        """After a fork: this process's copies go, without a word to anybody, whatever lock was held."""
        self.lock = threading.Lock()
        self.closed = True
        self._left = 0
        self._frame = None
        self._memory.clear()
        self._pieces.give_up()
        self._close_sockets()


def _move_up(end: socket.socket) -> socket.socket:
    """The same socket above what select() can watch, where the process's limit allows."""
    try:
        descriptor = fcntl.fcntl(end.fileno(), fcntl.F_DUPFD_CLOEXEC, HIGH_DESCRIPTOR)
    except OSError:
        return end
    end.close()
    return socket.socket(fileno=descriptor)
