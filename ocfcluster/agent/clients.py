"""One connected client: its socket around the sans-IO session."""

from __future__ import annotations

import errno
import os
import socket
from asyncio import TimerHandle
from collections import deque
from typing import Final, Protocol

from ocfcluster.errors import MalformedFrame
from ocfcluster.ipc.memberships import Memberships
from ocfcluster.ipc.peer import Peer
from ocfcluster.ipc.session import NO_DESCRIPTOR, Incoming, Session, Stage
from ocfcluster.ipc.subscription import Line
from ocfcluster.limits import CONTROL_SOCKET_SEND_BYTES
from ocfcluster.protocol.effects import Topic

READ_BYTES: Final = (
    2 * CONTROL_SOCKET_SEND_BYTES
)  # Linux grants twice what is asked: one read empties a socket
_DESCRIPTORS: Final = 64  # in one read; the kernel never gives those of two sends at once
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_DESCRIPTORS * 4)
# As numbers: to ask an enum for one of its flags costs as much as a small read.
_READ_FLAGS: Final = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_SEND_FLAGS: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_CUT: Final = int(socket.MSG_CTRUNC)


class Poller(Protocol):
    """What a client asks of the agent's loop."""

    def watch_client_writable(self, client: Client, watch: bool) -> None: ...
    def client_lost(self, client: Client, reason: str) -> None: ...


class Client:
    """A connection, what it owns, and what of its requests is not worked off yet."""

    __slots__ = (
        "poller", "socket", "session", "connection", "peer", "pidfd", "name", "library", "line", "producers",
        "inbox", "inbox_bytes", "waiting", "reading", "writing", "dirty", "gone", "closing", "publishes",
        "memberships", "greeting", "commands",
    )  # fmt: skip

    def __init__(
        self,
        poller: Poller,
        connected: socket.socket,
        connection: int,
        peer: Peer,
        line: Line,
        event_bytes: int,
    ) -> None:
        self.poller = poller
        self.socket = connected
        self.session = Session(event_bytes)
        self.connection = connection
        self.peer = peer
        self.pidfd = -1
        self.name = ""
        self.library = ""
        self.line = line
        self.producers: set[int] = set()
        self.inbox: deque[Incoming | bytes] = deque()  # publications, and what must not overtake them
        self.inbox_bytes = 0
        self.waiting = False  # in the intake's round
        self.reading = False  # the loop watches for input
        self.writing = False  # the loop watches for room
        self.dirty = False  # output to be written when the burst is over
        self.gone = False  # its socket is closed; what it published before may still wait
        self.closing = False  # to be closed once its output is written
        self.publishes: dict[int, Topic] = {}  # topics, as they stand, that it may publish to
        self.greeting: TimerHandle | None = None  # rings when HELLO has not come in time
        self.memberships: Memberships | None = None  # in groups, once it has asked for one
        self.commands: set[int] = set()  # tokens of what it has asked of the order and is not answered yet

    def read(self, buffer: memoryview) -> int:
        """Read once into the shared ``buffer`` and parse: bytes read, 0 if there are none now, -1 at the end.

        Raises MalformedFrame: the reason is in the output.
        """
        try:
            size, ancillary, flags, _ = self.socket.recvmsg_into([buffer], _ANCILLARY_BYTES, _READ_FLAGS)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            return -1
        if not size:
            return -1
        if ancillary:
            descriptors = _descriptors(ancillary)
            self.session.receive(buffer[:size], descriptors)
            if flags & _CUT:
                text = "descriptors were lost on the way: too many in one message"
                self.session.fail(errno.EMFILE, text)
                raise MalformedFrame(text)
        elif flags & _CUT:  # one was lent, and the agent has no number left for it
            self.session.receive(buffer[:size], [NO_DESCRIPTOR])
        else:
            self.session.receive(buffer[:size])
        return size

    def write(self) -> None:
        """Write what the session has to say, as far as the socket takes it."""
        self.dirty = False
        if self.gone:
            return
        session = self.session
        if session.overflowed:
            self.poller.client_lost(self, "it does not read its answers")
            return
        while True:
            buffers = session.output()
            if not buffers:
                break
            try:
                size = self.socket.sendmsg(buffers, [], _SEND_FLAGS)
            except (BlockingIOError, InterruptedError):
                if session.stage is Stage.FAILED:
                    self.poller.client_lost(self, "it broke the protocol, and does not read why")
                else:
                    self.poller.watch_client_writable(self, True)
                return
            except OSError as error:
                self.poller.client_lost(self, error.strerror or "the connection broke")
                return
            session.sent(size)
        if self.writing:
            self.poller.watch_client_writable(self, False)
        if self.closing or session.stage is Stage.FAILED:
            self.poller.client_lost(self, "it was told why" if session.stage is Stage.FAILED else "")

    def greeted(self) -> None:
        """It has said HELLO, or is gone."""
        if self.greeting is not None:
            self.greeting.cancel()
            self.greeting = None

    def release(self) -> None:
        """Close all descriptors; the loop watches none of them any more."""
        self.gone = True
        self.greeted()
        self.socket.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        abandoned = self.session.abandoned_descriptors()
        for descriptor in abandoned:
            os.close(descriptor)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(data) - len(data) % 4
            found += memoryview(data[:whole]).cast("i").tolist()
    return found
