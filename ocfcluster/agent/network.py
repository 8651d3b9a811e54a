"""From the configuration to an open transport, and whether it may leave the machine."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import ExitStack

from ocfcluster.agent.config import AgentConfig, RedundantNetwork
from ocfcluster.errors import ConfigurationError, SetupError
from ocfcluster.limits import LISTEN_TRIES
from ocfcluster.net.interfaces import Interface, find_interface
from ocfcluster.net.memory import MemoryHub, MemoryTransport
from ocfcluster.net.multicast import MulticastTransport
from ocfcluster.net.redundant import OURS_BYTES, Absent, RedundantTransport
from ocfcluster.net.tcp import PortTaken, listen_at
from ocfcluster.net.transport import Address, Transport
from ocfcluster.net.unicast import UnicastTransport, resolve_peers
from ocfcluster.wire.datagram import INCARNATION_AT, clear_prefix, cluster_hash

_DEFAULT_PORT = 5405


def open_network(config: AgentConfig, incarnation: int) -> tuple[Transport, list[socket.socket], list[str]]:
    """The transport; TCP sockets that listen under the same address and port number, one per network, for nodes that
    fetch this one's state; and what an operator should be warned of.

    Of several networks one is enough: what cannot be opened is Absent, and to be tried again (``open_one``).

    Raises ConfigurationError, SetupError.
    """
    if config.transport() == "memory":
        return MemoryHub().transport(), [], []
    networks = config.network.all()
    opened: list[tuple[str, Transport]] = []
    listening: list[socket.socket] = []
    warnings: list[str] = []
    absent: list[SetupError] = []
    with ExitStack() as undo:
        for network in networks:
            try:
                transport, listens, more = open_one(config, network, incarnation)
            except SetupError as error:
                if len(networks) == 1:
                    raise
                absent.append(error)
                opened.append((network.name, Absent(str(error))))
                continue
            undo.callback(transport.close)
            undo.callback(listens.close)
            opened.append((network.name, transport))
            listening.append(listens)
            warnings += more
        if len(absent) == len(networks):
            raise absent[0]
        undo.pop_all()
    if len(opened) == 1:
        return opened[0][1], listening, warnings
    return RedundantTransport(opened, _prefix(config, incarnation)[:OURS_BYTES]), listening, warnings


def paths(transport: Transport, address: Address) -> list[tuple[Address, Address]]:
    """By which (own address, other address) the node at ``address`` can be reached; the best one first."""
    if isinstance(transport, RedundantTransport):
        return transport.paths(address)
    if isinstance(transport, MemoryTransport):
        return []
    return [(transport.address, address)]


def set_peers(transport: Transport, peers: list[list[Address]]) -> None:
    """Replace whom each network's unicast fan-out reaches."""
    ones = transport.transports if isinstance(transport, RedundantTransport) else [transport]
    for one, addresses in zip(ones, peers, strict=True):
        if isinstance(one, UnicastTransport):
            one.set_peers(addresses)


def peer_addresses(config: AgentConfig) -> list[list[Address]]:
    """The configured peers of each network, resolved: names may take a while. Raises ConfigurationError, SetupError."""
    return [
        resolve_peers(one.peers, _family(config, one), one.port or _DEFAULT_PORT)
        for one in config.network.all()
    ]


def families(config: AgentConfig) -> list[int]:
    """The address family of each network."""
    return [_family(config, one) for one in config.network.all()]


def open_one(
    config: AgentConfig, network: RedundantNetwork, incarnation: int
) -> tuple[Transport, socket.socket, list[str]]:
    """One network, as ``open_network`` has them. Raises ConfigurationError, SetupError: with its name, if there are
    several."""
    try:
        return _open_one(config, network, incarnation)
    except (ConfigurationError, SetupError) as error:
        if not config.network.networks:
            raise
        raise type(error)(f"network {network.name!r}: {error}") from error


def _open_one(
    config: AgentConfig, network: RedundantNetwork, incarnation: int
) -> tuple[Transport, socket.socket, list[str]]:
    setting = "network.port" if config.transport() == "unicast" else "network.unicast_port"
    for tries_left in reversed(range(LISTEN_TRIES)):
        transport, warnings = _open_transport(config, network, incarnation)
        try:
            return transport, listen_at(transport.address, setting), warnings
        except PortTaken:
            transport.close()
            if not tries_left or config.transport() == "unicast" or network.unicast_port:
                raise  # else another free port may be free for both
        except BaseException:
            transport.close()
            raise
    raise AssertionError("the last try has raised")


def _open_transport(
    config: AgentConfig, network: RedundantNetwork, incarnation: int
) -> tuple[Transport, list[str]]:
    family = _family(config, network)
    port = network.port or _DEFAULT_PORT
    interface = find_interface(network.interface, family)
    warnings = _check_security(config, interface)
    transport: Transport
    if config.transport() == "unicast":
        peers = resolve_peers(network.peers, interface.family, port)
        transport = UnicastTransport(
            interface, port, peers, mtu=network.mtu, segmentation=config.network.segmentation,
            receive_buffer_bytes=config.limits.receive_buffer_bytes,
        )  # fmt: skip
    else:
        transport = MulticastTransport(
            interface, network.group, port, unicast_port=network.unicast_port, ttl=config.network.ttl,
            loop=config.network.loop, mtu=network.mtu, segmentation=config.network.segmentation,
            own_prefix=(INCARNATION_AT, _prefix(config, incarnation)[INCARNATION_AT:]),
            receive_buffer_bytes=config.limits.receive_buffer_bytes,
        )  # fmt: skip
    return transport, [*warnings, *transport.warnings]


def _prefix(config: AgentConfig, incarnation: int) -> bytes:
    return clear_prefix(cluster_hash(config.cluster.name), config.node.id, incarnation)


def _family(config: AgentConfig, network: RedundantNetwork) -> int:
    if config.transport() == "multicast":
        version = ipaddress.ip_address(network.group).version
        return socket.AF_INET6 if version == 6 else socket.AF_INET
    six = any(peer.startswith("[") or peer.count(":") > 1 for peer in network.peers)
    return socket.AF_INET6 if six else socket.AF_INET


def _check_security(config: AgentConfig, interface: Interface) -> list[str]:
    if interface.is_loopback or config.security.key_file:
        return []
    if not config.security.insecure:
        raise ConfigurationError(
            f"security.key_file: is missing, and interface {interface.name} ({interface.address}) is not loopback: "
            "make a key with `ocfcluster keygen FILE`, copy it to every node, and name it as security.key_file; "
            'or use network.interface = "lo"; or, if everybody on that network may read and forge what nodes say '
            "to each other, set security.insecure = true (--insecure)"
        )
    warning = (
        f"INSECURE: datagrams on {interface.name} ({interface.address}) are neither encrypted nor authenticated; "
        "whoever reaches that network can read and forge events"
    )
    return [warning]
