"""The stream socket to the agent: writing what a session has to say, and reading, without ever blocking."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import select
import socket
import struct
import termios
from collections.abc import Callable
from itertools import islice
from typing import Final

from ocfcluster.client.session import Outgoing, Session
from ocfcluster.errors import AgentUnreachable
from ocfcluster.limits import CONTROL_READ_BYTES, CONTROL_SOCKET_SEND_BYTES

_BUFFERS_PER_WRITE: Final = 512  # the kernel takes at most 1024 (IOV_MAX)
_WRITE_BYTES: Final = (
    256 * 1024
)  # listed for one write: what the socket does not take would be listed in vain
_QUEUED: Final = b"\0\0\0\0"


Dial = Callable[[], socket.socket]  # makes a connection to the agent; raises AgentUnreachable


def dial_path(path: str) -> socket.socket:
    """A connection to the agent at ``path``. Raises AgentUnreachable with the path that was tried."""
    try:
        connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise AgentUnreachable(f"no connection to the agent at {path}: {error.strerror}") from None
    connecting.setblocking(False)
    try:
        connecting.connect(path)
    except OSError as error:
        connecting.close()
        if error.errno == errno.EAGAIN:
            text = f"the agent at {path} has more connections waiting than it can take at once: try again"
            raise AgentUnreachable(text) from None
        if error.errno == errno.EACCES:
            text = f"the agent's socket {path} is not for this user: who is in the socket's group may use it"
            raise AgentUnreachable(text) from None
        # Without an errno the path is none that a socket can have (too long), and no agent will ever be there.
        hint = "; start one with `ocfcluster agent`" if error.errno else ""
        raise AgentUnreachable(f"no agent at {path}: {error.strerror or error}{hint}") from None
    return connecting


class ControlSocket:
    """The stream to the agent, never blocking. Both shells use it."""

    __slots__ = ("_socket", "_poll")

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        connected.setblocking(False)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CONTROL_SOCKET_SEND_BYTES)
        self._poll = select.poll()
        self._poll.register(self._socket.fileno(), select.POLLIN)

    def fileno(self) -> int:
        return self._socket.fileno()

    def write(self, session: Session) -> bool:
        """Write what is outgoing. Whether all of it went."""
        outgoing = session.outgoing
        while outgoing:
            buffers: list[bytes | memoryview] = []
            descriptor = outgoing[0].descriptor
            if descriptor >= 0:
                buffers.append(outgoing[0].buffer)
            else:
                size = 0
                for one in islice(outgoing, _BUFFERS_PER_WRITE):
                    if one.descriptor >= 0 or size >= _WRITE_BYTES:
                        break
                    buffers.append(one.buffer)
                    size += len(one.buffer)
            try:
                sent = self._send(buffers, descriptor)
            except BlockingIOError:
                return False
            except OSError:
                # Also where it is not the end yet (a descriptor that cannot be lent): what was not written is missing
                # from the stream, so there is no going on. The reading side meets the end and tells.
                outgoing.clear()
                self.shutdown()
                return True
            while outgoing and sent >= len(outgoing[0].buffer):
                sent -= len(outgoing.popleft().buffer)
            if sent:
                outgoing[0] = Outgoing(memoryview(outgoing[0].buffer)[sent:], -1)
        return True

    def _send(self, buffers: list[bytes | memoryview], descriptor: int) -> int:
        if descriptor >= 0:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))]
            return self._socket.sendmsg(buffers, rights, socket.MSG_DONTWAIT)
        return self._socket.sendmsg(buffers, (), socket.MSG_DONTWAIT)

    def read(self) -> bytes | None:
        """What has come; None: nothing; no bytes: the end."""
        try:
            return self._socket.recv(CONTROL_READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def idle(self) -> bool:
        """Whether the agent has taken everything that was written."""
        queued: int = struct.unpack("i", fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, _QUEUED))[0]
        return queued <= 1  # the kernel holds one for itself while it wakes us

    def wait_readable(self, timeout_ms: float | None) -> None:
        self._poll.poll(timeout_ms)

    def shutdown(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()
