"""TCP beside a UDP socket, under the same address and port number: for what is too large for datagrams."""

from __future__ import annotations

import errno
import socket
from typing import Final

from ocfcluster.errors import SetupError
from ocfcluster.net.transport import Address

_BACKLOG: Final = 16


class PortTaken(SetupError):
    """Another program has this TCP port, whose UDP port is this node's."""


def family_of(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if len(address) == 2 else socket.AF_INET6


def open_tcp(address: Address) -> socket.socket:
    """A non-blocking TCP socket of the family of ``address``."""
    opened = socket.socket(
        family_of(address), socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    )
    if opened.family == socket.AF_INET6:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return opened


def any_port_of(address: Address) -> Address:
    """The same host, for a socket that may have any port."""
    return (address[0], 0) if len(address) == 2 else (address[0], 0, address[2], address[3])


def listen_at(address: Address, setting: str) -> socket.socket:
    """A listening socket at ``address``. Raises PortTaken or another SetupError, which names ``setting``, a key."""
    opened = open_tcp(address)
    host, port = address[0], address[1]
    try:
        opened.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # connections of an agent before this one
        opened.bind(address)
        opened.listen(_BACKLOG)
    except OSError as error:
        opened.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(
                f"TCP port {port} of {host}, where other nodes fetch this one's state, is in use by another program "
                f"(ss -tlpn 'sport = :{port}' shows it): stop it or change {setting}"
            ) from error
        raise SetupError(f"cannot listen on TCP port {port} of {host}: {error.strerror}") from error
    return opened
