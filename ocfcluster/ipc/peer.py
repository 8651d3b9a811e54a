"""Who is at the other end of a client's connection, and how the agent learns that it has ended."""

from __future__ import annotations

import os
import select
import socket
import struct
from typing import Final, NamedTuple

_SO_PEERPIDFD: Final = 77  # Linux 6.5; Python has no name for it
_SO_PEERGROUPS: Final = 59  # Linux 4.13; nor for this one
_GROUPS_BYTES: Final = 1024  # the most that Python reads of an option: 256 groups
_UCRED: Final = struct.Struct("=iII")  # pid, uid, gid


class Peer(NamedTuple):
    """Credentials of the connecting process when it connected, as the kernel gives them.

    ``pid`` is 0 across pid namespaces. ``groups`` are the supplementary ones; None: the kernel does not tell them, or
    they are more than 256.
    """

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...] | None = ()


def peer_credentials(connection: socket.socket) -> Peer:
    """Raises OSError where the kernel tells nothing."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(raw)
    return Peer(pid, uid, gid, _peer_groups(connection))


def _peer_groups(connection: socket.socket) -> tuple[int, ...] | None:
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError:
        return None
    return tuple(memoryview(raw).cast("I"))


def open_pidfd(connection: socket.socket, peer: Peer) -> int:
    """A descriptor that becomes readable when the connected process ends, or -1 where there is none to be had.

    Where it is -1, the end of the control connection alone tells: a child that inherited that keeps it open.
    """
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4)
        descriptor: int = struct.unpack("=i", raw)[0]
        os.set_inheritable(descriptor, False)
        return descriptor
    except (OSError, struct.error):
        pass  # an older kernel; the process may also be gone already, which the connection's end will tell
    if peer.pid <= 0:
        return -1
    try:
        return os.pidfd_open(peer.pid)
    except OSError:
        return -1


def is_closed(connection: socket.socket) -> bool:
    """Whether the other end has closed already, though the loop has not come to see it yet, or to read what it sent
    before."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


def accept_lent(descriptor: int) -> socket.socket:
    """The event socket that a client lends. Raises ValueError for anything but an AF_UNIX SOCK_SEQPACKET socket,
    and for one that did not arrive.

    ``descriptor`` is the caller's no more: it is in the socket, or closed.
    """
    if descriptor < 0:
        raise ValueError("this agent has no descriptors left (LimitNOFILE, ulimit -n)")
    try:
        lent = socket.socket(fileno=descriptor)
    except OSError as error:
        os.close(descriptor)
        raise ValueError("the lent descriptor is no socket") from error
    if lent.family != socket.AF_UNIX or lent.type != socket.SOCK_SEQPACKET:
        lent.close()
        raise ValueError("the lent descriptor is no AF_UNIX SOCK_SEQPACKET socket")
    lent.set_inheritable(False)
    return lent
