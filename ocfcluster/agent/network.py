"""From the configuration to an open transport, and whether it may leave the machine."""

from __future__ import annotations

import ipaddress
import socket

from ocfcluster.agent.config import AgentConfig
from ocfcluster.errors import ConfigurationError
from ocfcluster.limits import LISTEN_TRIES
from ocfcluster.net.interfaces import Interface, find_interface
from ocfcluster.net.memory import MemoryHub
from ocfcluster.net.multicast import MulticastTransport
from ocfcluster.net.tcp import PortTaken, listen_at
from ocfcluster.net.transport import Transport
from ocfcluster.net.unicast import UnicastTransport, resolve_peers
from ocfcluster.wire.datagram import INCARNATION_AT, clear_prefix, cluster_hash

_LOOPBACK_INTERFACE = "lo"


def open_network(config: AgentConfig, incarnation: int) -> tuple[Transport, socket.socket | None, list[str]]:
    """The transport; a TCP socket that listens under the same address and port number, for nodes that fetch this
    one's state (None: there is no network); and what an operator should be warned of.

    Raises ConfigurationError, SetupError.
    """
    setting = "network.port" if config.transport() == "unicast" else "network.unicast_port"
    for tries_left in reversed(range(LISTEN_TRIES)):
        transport, warnings = open_transport(config, incarnation)
        if config.transport() == "memory":
            return transport, None, warnings
        try:
            return transport, listen_at(transport.address, setting), warnings
        except PortTaken:
            transport.close()
            if not tries_left or config.transport() == "unicast" or config.network.unicast_port:
                raise  # else another free port may be free for both
        except BaseException:
            transport.close()
            raise
    raise AssertionError("the last try has raised")


def open_transport(config: AgentConfig, incarnation: int) -> tuple[Transport, list[str]]:
    """The transport, and what an operator should be warned of. Raises ConfigurationError, SetupError."""
    kind = config.transport()
    if kind == "memory":
        return MemoryHub().transport(), []
    network = config.network
    interface = find_interface(network.interface or _LOOPBACK_INTERFACE, _family(config))
    warnings = _check_security(config, interface)
    transport: Transport
    if kind == "unicast":
        peers = resolve_peers(network.peers, interface.family, network.port)
        transport = UnicastTransport(
            interface, network.port, peers, mtu=network.mtu, segmentation=network.segmentation,
            receive_buffer_bytes=config.limits.receive_buffer_bytes,
        )  # fmt: skip
    else:
        prefix = clear_prefix(cluster_hash(config.cluster.name), config.node.id, incarnation)
        transport = MulticastTransport(
            interface, network.group, network.port, unicast_port=network.unicast_port, ttl=network.ttl,
            loop=network.loop, own_prefix=(INCARNATION_AT, prefix[INCARNATION_AT:]), mtu=network.mtu,
            segmentation=network.segmentation,
            receive_buffer_bytes=config.limits.receive_buffer_bytes,
        )  # fmt: skip
    return transport, [*warnings, *transport.warnings]


def _family(config: AgentConfig) -> int:
    network = config.network
    if config.transport() == "multicast":
        version = ipaddress.ip_address(network.group).version
        return socket.AF_INET6 if version == 6 else socket.AF_INET
    six = any(peer.startswith("[") or peer.count(":") > 1 for peer in network.peers)
    return socket.AF_INET6 if six else socket.AF_INET


def _check_security(config: AgentConfig, interface: Interface) -> list[str]:
    if interface.is_loopback:
        return []
    if not config.security.insecure:
        raise ConfigurationError(
            f"security.insecure: interface {interface.name} ({interface.address}) is not loopback, and datagrams are "
            "neither encrypted nor authenticated: set security.insecure = true if everybody on that network may read "
            'and forge them, or use network.interface = "lo"'
        )
    warning = (
        f"INSECURE: datagrams on {interface.name} ({interface.address}) are neither encrypted nor authenticated; "
        "whoever reaches that network can read and forge events"
    )
    return [warning]
