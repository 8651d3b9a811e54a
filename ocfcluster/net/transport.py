"""The one interface of all transports, and what they share.

A **buffer** is one datagram, or several of ``segment`` bytes each back to back, the last of which may be shorter;
at most ``limits.SEGMENT_COUNT`` datagrams and ``limits.SEGMENT_BUFFER_BYTES`` bytes, and never empty. Transports
keep the datagrams of a buffer together where the kernel can (UDP_SEGMENT, UDP_GRO), and where it cannot the same
datagrams arrive one by one.

Nothing here blocks and nothing is sent twice: what the kernel does not take at once is counted and dropped, and
the protocol asks for it again.
"""

from __future__ import annotations

from typing import Protocol

from ocfcluster import limits
from ocfcluster.errors import SetupError

# (host, port) for IPv4, (host, port, flow, scope) for IPv6; hosts are numeric. Memory: ("memory", number).
Address = tuple[str, int] | tuple[str, int, int, int]

# buffer, its segment size in bytes (its length where it is one datagram), and where it came from
Received = tuple[bytes, int, Address]


class Transport(Protocol):
    """Carries buffers between the nodes of a cluster. Used from one thread.

    ``address``               where other nodes can ``send`` to this one: the source address of all it sends
    ``mtu``                   bytes of an IP packet that passes whole, with IP and UDP headers
    ``ip_overhead_bytes``     of those, the IP and UDP headers
    ``receive_buffer_bytes``  granted by the kernel, in the units of ``net.core.rmem_max``
    ``warnings``              for the operator, in sentences; filled by the constructor
    ``counters``              counts by name, see below; a name is there from its first count on

    Counters: ``send_<ERRNO>`` failed sends, ``send_dropped`` datagrams that were not sent, ``send_fallback``
    segmented sends that were done plainly instead, ``receive_<ERRNO>`` failed reads, ``receive_truncated`` and
    ``receive_empty`` datagrams dropped, ``own_dropped`` own buffers that came back, ``own_filter_refused``,
    ``receive_dropped`` (memory only: the kernel's drops are seen as gaps).
    """

    @property
    def address(self) -> Address: ...
    @property
    def mtu(self) -> int: ...
    @property
    def ip_overhead_bytes(self) -> int: ...
    @property
    def receive_buffer_bytes(self) -> int: ...
    @property
    def warnings(self) -> list[str]: ...
    @property
    def counters(self) -> dict[str, int]: ...

    def filenos(self) -> list[int]:
        """Descriptors to poll for reading; any of them being readable means ``receive`` has something to do."""

    def receive(self, limit: int) -> list[Received]:
        """Up to ``limit`` buffers that have arrived, oldest first per socket; fewer: there are no more now.

        Never blocks and never raises for what the network did: that is counted.
        """

    def multicast(self, buffer: bytes, segment: int) -> None:
        """Send to every other node. ValueError: more segments than a buffer may have."""

    def send(self, address: Address, buffer: bytes, segment: int) -> None:
        """Send to one node. ValueError: more segments than a buffer may have."""

    def close(self) -> None:
        """Close all descriptors (take them out of the poller first); afterwards nothing is sent or received."""


def count(counters: dict[str, int], name: str, times: int = 1) -> None:
    """Add to one of a transport's counters."""
    counters[name] = counters.get(name, 0) + times


def datagram_count(length: int, segment: int) -> int:
    """Datagrams in a buffer of ``length`` bytes. ValueError: more than ``limits.SEGMENT_COUNT``, or segment < 1."""
    if segment < 1:
        raise ValueError(f"segment of {segment} bytes")
    count = -(-length // segment)
    if count > limits.SEGMENT_COUNT:
        raise ValueError(f"{count} segments in one buffer; {limits.SEGMENT_COUNT} is the most")
    return count


def usable_mtu(interface_name: str, interface_mtu: int, configured_mtu: int | None) -> int:
    """The mtu to work with: the configured one, else the interface's, at most ``limits.MTU_MAXIMUM``.

    SetupError where the configured mtu does not fit the interface, or the interface is below the least allowed.
    """
    if interface_mtu < limits.MTU_MINIMUM:
        raise SetupError(
            f"interface {interface_name} has an mtu of {interface_mtu}; at least {limits.MTU_MINIMUM} is needed: "
            f"ip link set dev {interface_name} mtu 1500"
        )
    if configured_mtu is None:
        return min(interface_mtu, limits.MTU_MAXIMUM)
    if not limits.MTU_MINIMUM <= configured_mtu <= limits.MTU_MAXIMUM:
        raise SetupError(
            f"network.mtu = {configured_mtu} is outside {limits.MTU_MINIMUM} to {limits.MTU_MAXIMUM}"
        )
    if configured_mtu > interface_mtu:
        raise SetupError(
            f"network.mtu = {configured_mtu} does not pass interface {interface_name}, whose mtu is "
            f"{interface_mtu}: lower network.mtu, or ip link set dev {interface_name} mtu {configured_mtu}"
        )
    return configured_mtu
