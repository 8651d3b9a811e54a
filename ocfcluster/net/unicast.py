"""UDP unicast fan-out: for networks that carry no multicast. Each buffer is sent once per peer."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Final

from ocfcluster import limits
from ocfcluster.errors import ConfigurationError, SetupError
from ocfcluster.net import offload, udp
from ocfcluster.net.interfaces import Interface
from ocfcluster.net.transport import Address, Received, usable_mtu

_PORT_DIGITS: Final = 5


def resolve_peers(peers: Sequence[str], family: int, default_port: int) -> list[Address]:
    """Socket addresses of "host", "host:port", "[IPv6]:port" or a bare IPv6 address, in the order given.

    Blocks for name lookups. ConfigurationError: not of that form. SetupError: a name that is not found.
    """
    return [_resolve_peer(peer, family, default_port) for peer in peers]


def _resolve_peer(peer: str, family: int, default_port: int) -> Address:
    host, port = _split_peer(peer, default_port)
    try:
        found = socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:  # the latter: a label that no name can have
        family_name = "IPv4" if family == socket.AF_INET else "IPv6"
        raise SetupError(
            f"network.peers: {peer!r} has no {family_name} address ({getattr(error, 'strerror', error)}): "
            "correct it, give an address, or add the name to DNS or /etc/hosts"
        ) from error
    address: Address = found[0][4]  # type: ignore[assignment]  # typeshed allows for other families
    return address


def _split_peer(peer: str, default_port: int) -> tuple[str, int]:
    if peer.startswith("["):
        host, bracket, rest = peer[1:].partition("]")
        well_formed = bracket == "]" and (rest == "" or rest.startswith(":"))
        port_text = rest[1:] if rest else str(default_port)
    elif peer.count(":") == 1:
        host, _, port_text = peer.partition(":")
        well_formed = True
    else:
        host, port_text, well_formed = peer, str(default_port), True
    if not (well_formed and host and port_text.isascii() and port_text.isdigit()):
        raise ConfigurationError(
            f'network.peers: {peer!r} is not of the form "host:port" or "[IPv6 address]:port"'
        )
    if len(port_text) > _PORT_DIGITS or not 0 < int(port_text) < 65_536:
        raise ConfigurationError(f"network.peers: {peer!r:.80}: a port is a number from 1 to 65535")
    return host, int(port_text)


class UnicastTransport:
    """A ``Transport`` with one socket; ``multicast`` sends to each of ``peers`` but this node itself.

    ``peers`` may hold this node's own address, so that all nodes can share one list. ``port`` 0: any free port.
    ``mtu`` and ``segmentation`` as in MulticastTransport. SetupError: what the machine lacks.
    """

    __slots__ = (
        "_peers",
        "_send",
        "_socket",
        "address",
        "counters",
        "ip_overhead_bytes",
        "mtu",
        "receive_buffer_bytes",
        "warnings",
    )

    def __init__(
        self,
        interface: Interface,
        port: int,
        peers: Sequence[Address],
        *,
        mtu: int | None = None,
        segmentation: bool = True,
        receive_buffer_bytes: int = limits.RECEIVE_BUFFER_BYTES,
    ) -> None:
        self.counters: dict[str, int] = {}
        self.warnings: list[str] = []
        self.mtu = usable_mtu(interface.name, interface.mtu, mtu)
        self.ip_overhead_bytes = udp.ip_overhead_bytes(interface.family)
        opened = udp.open_socket(interface.family)
        try:
            self.receive_buffer_bytes = udp.grow_receive_buffer(opened, receive_buffer_bytes, self.warnings)
            udp.grow_send_buffer(opened)
            udp.bind(
                opened,
                udp.socket_address(interface.family, interface.address, port, interface.scope),
                "network.port",
            )
            if segmentation:
                offload.enable_gro(opened)
        except BaseException:
            opened.close()
            raise
        self._socket = udp.UdpSocket(opened, self.counters, segmenting=segmentation)
        self._send = self._socket.send
        self.address = self._socket.address
        self._peers: tuple[Address, ...] = ()
        self.set_peers(peers)

    @property
    def segmenting(self) -> bool:
        """Whether buffers still go out in one system call."""
        return self._socket.segmenting

    def set_peers(self, peers: Sequence[Address]) -> None:
        """Replace whom ``multicast`` reaches: each address once, this node's own left out."""
        self._peers = tuple(peer for peer in dict.fromkeys(peers) if peer != self.address)

    def filenos(self) -> list[int]:
        return [self._socket.fileno()]

    def receive(self, limit: int) -> list[Received]:
        received: list[Received] = []
        self._socket.receive(limit, received)
        return received

    def multicast(self, buffer: bytes, segment: int) -> None:
        send = self._send
        for peer in self._peers:
            send(buffer, segment, peer)

    def send(self, address: Address, buffer: bytes, segment: int) -> None:
        self._send(buffer, segment, address)

    def close(self) -> None:
        self._socket.close()
