"""When network interfaces change: the kernel says so over netlink, as it happens.

Only *that* something changed is taken from there; what is now is read by ``interfaces.list_devices``, fresh. So no
message needs to be understood, a lost one (ENOBUFS) costs nothing, and there is one account of what exists.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final

_RTMGRP_LINK: Final = 0x1
_RTMGRP_IPV4_IFADDR: Final = 0x10
_RTMGRP_IPV6_IFADDR: Final = 0x100
_HEADER: Final = struct.Struct("=IHHII")  # of a netlink message: length, type, flags, sequence, sender
_READ_BYTES: Final = 65_536  # one datagram, with whatever messages it has
_READS_AT_ONCE: Final = 64  # so that a storm of changes does not hold up the loop
# New and removed links and addresses; what else comes (a wireless scan's results, say) is no change of those.
_CHANGES: Final = frozenset((16, 17, 20, 21))


class InterfaceChanges:
    """A socket that becomes readable when an interface or an address of this network namespace changes.

    Raises OSError where the system has no netlink or no descriptor left.
    """

    __slots__ = ("_socket",)

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0
        )
        try:
            self._socket.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> int:
        """How many changes have come since the last call; of those that did not fit, one."""
        changes = 0
        for _ in range(_READS_AT_ONCE):
            try:
                data, (sender, _) = self._socket.recvfrom(_READ_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                changes += 1  # more came than the socket holds: that much is known
                continue
            if sender == 0:  # the kernel; other processes may send, too
                changes += _count(data)
        return changes

    def close(self) -> None:
        self._socket.close()


def _count(data: bytes) -> int:
    """Messages about links and addresses in one datagram."""
    found = at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            break
        found += kind in _CHANGES
        at += (length + 3) & ~3
    return found
