"""UDP multicast, IPv4 and IPv6: the default transport.

Two sockets. One is bound to (group, port), shared with other agents of the machine, and receives what is multicast
on the chosen interface and only there. The other is bound to the interface's address, sends everything and receives
unicast, so the source address of any datagram is where its sender can be answered.

Both are tied to the interface by its index, which is another one when the interface is made anew: a container that is
connected to its network again, a device that was plugged out. The kernel says when interfaces change, and then both are
tied to the one that has the address now.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import select
import socket
import struct
from contextlib import ExitStack
from typing import Final, Literal

from ocfcluster import limits
from ocfcluster.errors import ConfigurationError, SetupError
from ocfcluster.net import offload, udp
from ocfcluster.net.changes import InterfaceChanges
from ocfcluster.net.interfaces import Interface, list_interfaces
from ocfcluster.net.own_filter import attach_own_filter
from ocfcluster.net.transport import Address, Received, count, usable_mtu

_IP_MULTICAST_ALL: Final = 49
_IPV6_MULTICAST_ALL: Final = 29
_MREQN = struct.Struct("@4s4si")  # group, address, interface index
_MREQ6 = struct.Struct("@16sI")  # group, interface index

Loop = bool | Literal["auto"]


class MulticastTransport:
    """A ``Transport`` over one multicast group on one interface.

    ``unicast_port``  where this node is sent to directly; 0: any free port
    ``ttl``           routers that multicast may pass, plus one
    ``loop``          whether other agents on this machine hear this one: True, False, or "auto": only on a loopback
                      interface (where the kernel loops whatever it is told)
    ``own_prefix``    (payload offset, bytes) that all datagrams of this node have and nobody else's: those that come
                      back are dropped, by the kernel where it can
    ``mtu``           None: the interface's, at most ``limits.MTU_MAXIMUM``
    ``segmentation``  False: plain sends and receives even where the kernel can do more

    ConfigurationError: the group is not multicast or of another family. SetupError: what the machine lacks.
    """

    __slots__ = (
        "_changes",
        "_changes_fileno",
        "_group",
        "_group_name",
        "_index",
        "_look_again",
        "_multicast",
        "_multicast_fileno",
        "_poller",
        "_receiving",
        "_send",
        "_sending",
        "_unicast",
        "_unicast_fileno",
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
        group: str,
        port: int,
        *,
        unicast_port: int = 0,
        ttl: int = 1,
        loop: Loop = "auto",
        own_prefix: tuple[int, bytes] | None = None,
        mtu: int | None = None,
        segmentation: bool = True,
        receive_buffer_bytes: int = limits.RECEIVE_BUFFER_BYTES,
    ) -> None:
        _check_group(group, interface)
        self.counters: dict[str, int] = {}
        self.warnings: list[str] = []
        self.mtu = usable_mtu(interface.name, interface.mtu, mtu)
        self.ip_overhead_bytes = udp.ip_overhead_bytes(interface.family)
        self._group = udp.socket_address(interface.family, group, port, interface.index)

        with ExitStack() as opened:  # closes what is open already where a later step fails
            receiving = opened.enter_context(udp.open_socket(interface.family))
            granted = udp.grow_receive_buffer(receiving, receive_buffer_bytes, self.warnings)
            self._prepare_receiving(receiving, interface, group)
            refused = own_prefix is not None and not attach_own_filter(receiving, *own_prefix)
            sending = opened.enter_context(udp.open_socket(interface.family))
            granted = min(granted, udp.grow_receive_buffer(sending, receive_buffer_bytes, self.warnings))
            looped = interface.is_loopback if loop == "auto" else loop
            self._prepare_sending(sending, interface, unicast_port, ttl, looped)
            _check_route(interface, self._group)
            if segmentation:
                offload.enable_gro(receiving)
                offload.enable_gro(sending)
            self._changes = _watch_interfaces()
            if self._changes is not None:
                opened.callback(self._changes.close)
            self._poller = opened.enter_context(select.epoll())
            opened.pop_all()
        if refused:
            count(self.counters, "own_filter_refused")
        self.receive_buffer_bytes = granted
        self._multicast = udp.UdpSocket(receiving, self.counters, own=own_prefix if refused else None)
        self._unicast = udp.UdpSocket(sending, self.counters, segmenting=segmentation)
        self._look_again = False  # interfaces have changed, and could not be looked at
        self._group_name = group
        self._index = interface.index
        self._receiving = receiving
        self._sending = sending
        self._changes_fileno = self._changes.fileno() if self._changes is not None else -1
        if self._changes_fileno >= 0:
            self._poller.register(self._changes_fileno, select.EPOLLIN)
        self._multicast_fileno = receiving.fileno()
        self._unicast_fileno = sending.fileno()
        self._poller.register(self._multicast_fileno, select.EPOLLIN)
        self._poller.register(self._unicast_fileno, select.EPOLLIN)
        self._send = self._unicast.send
        self.address = self._unicast.address

    @property
    def segmenting(self) -> bool:
        """Whether buffers still go out in one system call."""
        return self._unicast.segmenting

    def filenos(self) -> list[int]:
        watched = [self._changes_fileno] if self._changes_fileno >= 0 else []
        return [self._multicast.fileno(), self._unicast.fileno(), *watched]

    def receive(self, limit: int) -> list[Received]:
        received: list[Received] = []
        if self._poller.closed:
            return received
        # Asking which have something costs 0.4 µs; reading one that has nothing costs 1.9 µs.
        ready = [fileno for fileno, _ in self._poller.poll(0)]
        if self._changes_fileno in ready or self._look_again:
            self._interfaces_changed()
        if self._unicast_fileno in ready:
            # What is sent to this node alone (acknowledgements, requests) is little and urgent, and yet may not
            # keep the rest out.
            share = limit if len(ready) == 1 else max(1, limit // 2)
            self._unicast.receive(share, received)
        if self._multicast_fileno in ready:
            self._multicast.receive(limit - len(received), received)
        return received

    def multicast(self, buffer: bytes, segment: int) -> None:
        self._send(buffer, segment, self._group)

    def send(self, address: Address, buffer: bytes, segment: int) -> None:
        self._send(buffer, segment, address)

    def close(self) -> None:
        self._poller.close()
        if self._changes is not None:
            self._changes.close()
        self._multicast.close()
        self._unicast.close()

    def _interfaces_changed(self) -> None:
        """Where the interface with this node's address is another one than before, join the group there."""
        if self._changes is None:
            return
        self._changes.read()
        family, address = self._sending.family, self._unicast.address[0].partition("%")[0]
        try:
            interfaces = list_interfaces()
        except OSError:  # no descriptor is left to ask with
            self._look_again = True
            return
        self._look_again = False
        found = [one for one in interfaces if one.family == family and one.address == address]
        if not found or found[0].index == self._index:
            return
        interface = found[0]
        try:
            with contextlib.suppress(OSError):  # it is gone, and yet one of the few that a socket may have
                _leave(self._receiving, family, self._group_name, self._index)
            if family == socket.AF_INET6:
                self._bind_to_device(self._receiving, interface)
            _join(self._receiving, interface, self._group_name)
            _send_multicast_by(self._sending, interface)
        except (OSError, SetupError):
            count(self.counters, "rejoin_failed")  # the next change is the next chance
            return
        self._index = interface.index
        self._group = udp.socket_address(family, self._group_name, self._group[1], interface.index)
        count(self.counters, "rejoined")

    def _prepare_receiving(self, receiving: socket.socket, interface: Interface, group: str) -> None:
        receiving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Without this the socket would also get what others on this machine joined on other interfaces.
        if interface.family == socket.AF_INET:
            receiving.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
        else:
            # For IPv6 the kernel then compares groups, and not the interfaces they were joined on.
            receiving.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL, 0)
            self._bind_to_device(receiving, interface)
        udp.bind(receiving, self._group, "network.port")
        _join(receiving, interface, group)

    def _bind_to_device(self, receiving: socket.socket, interface: Interface) -> None:
        try:
            receiving.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.name.encode())
        except PermissionError:  # before Linux 5.7 it takes CAP_NET_RAW
            self.warnings.append(
                f"this kernel does not let the agent listen on interface {interface.name} alone: use a group that "
                "nobody uses on this machine's other interfaces, or give the agent CAP_NET_RAW"
            )
        except OSError as error:
            raise SetupError(
                f"cannot listen on interface {interface.name}: {error.strerror} (ip link show dev {interface.name})"
            ) from error

    def _prepare_sending(
        self, sending: socket.socket, interface: Interface, unicast_port: int, ttl: int, loop: bool
    ) -> None:
        udp.grow_send_buffer(sending)
        if interface.family == socket.AF_INET:
            sending.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, ttl)
            sending.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, int(loop))
        else:
            sending.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, ttl)
            sending.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, int(loop))
        _send_multicast_by(sending, interface)
        own = udp.socket_address(interface.family, interface.address, unicast_port, interface.scope)
        udp.bind(sending, own, "network.unicast_port")


def _check_group(group: str, interface: Interface) -> None:
    try:
        parsed = ipaddress.ip_address(group)
    except ValueError:
        raise ConfigurationError(
            f"network.group = {group!r} is no IP address; 239.192.77.1 would be one"
        ) from None
    if not parsed.is_multicast:
        raise ConfigurationError(
            f"network.group = {group!r} is no multicast address: choose one of 239.192.0.0/14, or ff15::/16 for IPv6"
        )
    if (parsed.version == 4) != (interface.family == socket.AF_INET):
        raise ConfigurationError(
            f"network.group = {group!r} and the address of interface {interface.name} ({interface.address}) are of "
            "different families"
        )
    if not interface.is_multicast and not interface.is_loopback:
        raise SetupError(
            f"interface {interface.name} does not carry multicast: ip link set dev {interface.name} multicast on, "
            'choose another network.interface, or set network.transport = "unicast"'
        )


def _join(receiving: socket.socket, interface: Interface, group: str) -> None:
    packed = ipaddress.ip_address(group).packed
    try:
        if interface.family == socket.AF_INET:
            request = _MREQN.pack(packed, bytes(4), interface.index)
            receiving.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        else:
            receiving.setsockopt(
                socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, _MREQ6.pack(packed, interface.index)
            )
    except OSError as error:
        if error.errno in {errno.ENODEV, errno.EADDRNOTAVAIL}:
            raise SetupError(
                f"cannot join {group} on interface {interface.name}: it is gone, or takes no multicast "
                f"(ip link show dev {interface.name})"
            ) from error
        raise SetupError(f"cannot join {group} on interface {interface.name}: {error.strerror}") from error


def _leave(receiving: socket.socket, family: int, group: str, index: int) -> None:
    packed = ipaddress.ip_address(group).packed
    if family == socket.AF_INET:
        receiving.setsockopt(
            socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP, _MREQN.pack(packed, bytes(4), index)
        )
    else:
        receiving.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_LEAVE_GROUP, _MREQ6.pack(packed, index))


def _watch_interfaces() -> InterfaceChanges | None:
    try:
        return InterfaceChanges()
    except OSError:
        return None  # a sandbox without netlink: as it is found at the start it stays


def _send_multicast_by(sending: socket.socket, interface: Interface) -> None:
    if interface.family == socket.AF_INET:
        request = _MREQN.pack(bytes(4), socket.inet_aton(interface.address), interface.index)
        sending.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, request)
    else:
        sending.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, interface.index)


def _check_route(interface: Interface, group: Address) -> None:
    """Look the group's route up by connecting a socket, which sends nothing; SetupError where there is none."""
    with udp.open_socket(interface.family) as probe:
        _send_multicast_by(probe, interface)
        try:
            probe.connect(group)
        except OSError as error:
            raise SetupError(
                f"no route for multicast to {group[0]} on interface {interface.name} ({error.strerror}): "
                f"{_route_advice(interface, group[0])}"
            ) from error


def _route_advice(interface: Interface, group: str) -> str:
    if interface.family == socket.AF_INET:
        return f"ip route add {group}/32 dev {interface.name}"
    if interface.is_loopback:  # a plain route on loopback becomes one that rejects
        return f"ip -6 route add local {group}/128 dev {interface.name}, or use an IPv4 group"
    return f"ip -6 route add multicast {group}/128 dev {interface.name} table local"
