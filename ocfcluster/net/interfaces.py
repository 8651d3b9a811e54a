"""Network interfaces: what exists, and which one a selector means.

The only module that imports ``netifaces`` (the distribution ``netifaces-plus``). What netifaces does not tell
(flags, mtu) comes from the kernel by ioctl, which unlike /sys follows the network namespace of the process.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import netifaces

from ocfcluster.errors import SetupError

_SIOCGIFFLAGS: Final = 0x8913
_SIOCGIFMTU: Final = 0x8921
_IFF_UP: Final = 0x1
_IFF_LOOPBACK: Final = 0x8
_IFF_RUNNING: Final = 0x40
_IFF_MULTICAST: Final = 0x1000
_IFREQ_SHORT = struct.Struct("@16sH22x")
_IFREQ_INT = struct.Struct("@16si20x")

_FAMILY_NAMES: Final = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}


@dataclass(slots=True, frozen=True)
class Interface:
    """One address of one network interface."""

    name: str
    address: str  # numeric, without a scope ("%eth0")
    family: int  # socket.AF_INET or socket.AF_INET6
    prefix_length: int
    mtu: int  # bytes of an IP packet
    index: int
    is_loopback: bool
    is_up: bool = True
    is_multicast: bool = True  # the link can carry multicast; loopback says no, yet can

    @property
    def scope(self) -> int:
        """The scope id that a socket address of this interface needs: its index for IPv6 link-local, else 0."""
        return (
            self.index
            if ipaddress.ip_address(self.address).is_link_local and self.family == socket.AF_INET6
            else 0
        )


@dataclass(slots=True, frozen=True)
class Device:
    """One network interface, with whatever addresses it has, also none."""

    name: str
    index: int
    mtu: int
    is_up: bool  # as an administrator wants it
    has_carrier: bool  # the kernel finds it operational
    is_loopback: bool
    is_multicast: bool
    addresses: tuple[tuple[str, int], ...]  # numeric, without a scope; prefix length


def list_devices() -> list[Device]:
    """Every interface by index, fresh at each call; one that goes away meanwhile is left out. Raises OSError where
    there is no descriptor to ask with."""
    found: list[Device] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        for name in netifaces.interfaces():
            try:
                found.append(_device(name, query))
            except (OSError, ValueError) as error:
                _went_away(error)
    return sorted(found, key=lambda device: (device.index, device.name))


def _went_away(error: OSError | ValueError) -> None:
    """An interface that was listed is not there any more, or is an alias label without an index: that is no fault. What
    could not be asked is, and says nothing about what is there."""
    if isinstance(error, OSError) and error.errno in (
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOBUFS,
    ):
        raise error


def _device(name: str, query: socket.socket) -> Device:
    index = socket.if_nametoindex(name)
    flags = _ioctl_number(query, _SIOCGIFFLAGS, name, _IFREQ_SHORT)
    return Device(
        name=name,
        index=index,
        mtu=_ioctl_number(query, _SIOCGIFMTU, name, _IFREQ_INT),
        is_up=bool(flags & _IFF_UP),
        has_carrier=bool(flags & _IFF_RUNNING),
        is_loopback=bool(flags & _IFF_LOOPBACK),
        is_multicast=bool(flags & _IFF_MULTICAST),
        addresses=tuple(
            (entry["addr"].partition("%")[0], _prefix_length(entry.get("netmask"), family))
            for family, key in ((socket.AF_INET, netifaces.AF_INET), (socket.AF_INET6, netifaces.AF_INET6))
            for entry in netifaces.ifaddresses(name).get(key, [])
        ),
    )


def list_interfaces() -> list[Interface]:
    """Every IPv4 and IPv6 address of every interface, in the kernel's order; fresh at each call. Raises OSError where
    there is no descriptor to ask with."""
    found: list[Interface] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        for name in netifaces.interfaces():
            try:
                found += _addresses_of(name, query)
            except (OSError, ValueError) as error:
                _went_away(error)
    return found


def _addresses_of(name: str, query: socket.socket) -> list[Interface]:
    index = socket.if_nametoindex(name)
    flags = _ioctl_number(query, _SIOCGIFFLAGS, name, _IFREQ_SHORT)
    mtu = _ioctl_number(query, _SIOCGIFMTU, name, _IFREQ_INT)
    addresses = netifaces.ifaddresses(name)
    return [
        Interface(
            name=name,
            address=entry["addr"].partition("%")[0],
            family=family,
            prefix_length=_prefix_length(entry.get("netmask"), family),
            mtu=mtu,
            index=index,
            is_loopback=bool(flags & _IFF_LOOPBACK),
            is_up=bool(flags & _IFF_UP),
            is_multicast=bool(flags & _IFF_MULTICAST),
        )
        for family, key in ((socket.AF_INET, netifaces.AF_INET), (socket.AF_INET6, netifaces.AF_INET6))
        for entry in addresses.get(key, [])
    ]


def find_interface(selector: str, family: int) -> Interface:
    """The interface that ``selector`` means: a name ("eth0"), an address, or a network in CIDR ("10.0.0.0/24").

    ``family`` is socket.AF_INET or AF_INET6. SetupError lists what there is and says what to do: nothing matches,
    a CIDR matches several interfaces, or the interface is down.
    """
    return choose_interface(list_interfaces(), selector, family)


def choose_interface(interfaces: Sequence[Interface], selector: str, family: int) -> Interface:
    """``find_interface`` among the given ones. By name an IPv6 link-local address is the last choice."""
    candidates = [interface for interface in interfaces if interface.family == family]
    matching = _matching(candidates, selector, family)
    if not matching:
        raise SetupError(_not_found(interfaces, selector, family))
    if len({interface.index for interface in matching}) > 1:
        names = ", ".join(f"{interface.name} ({interface.address})" for interface in matching)
        raise SetupError(
            f"network.interface = {selector!r} matches several interfaces: {names}; give a name or an address"
        )
    chosen = min(matching, key=lambda interface: interface.scope != 0)  # stable: the first one not link-local
    if not chosen.is_up:
        raise SetupError(f"interface {chosen.name} is down: ip link set dev {chosen.name} up")
    return chosen


def _matching(candidates: Sequence[Interface], selector: str, family: int) -> list[Interface]:
    by_name = [interface for interface in candidates if interface.name == selector]
    if by_name:
        return by_name
    address, _, zone = selector.partition("%")
    try:
        wanted = ipaddress.ip_address(address)
    except ValueError:
        pass
    else:
        return [
            interface
            for interface in candidates
            if ipaddress.ip_address(interface.address) == wanted and zone in ("", interface.name)
        ]
    try:
        network = ipaddress.ip_network(selector, strict=False)
    except ValueError:
        return []
    if "/" not in selector or (network.version == 4) != (family == socket.AF_INET):
        return []
    return [interface for interface in candidates if ipaddress.ip_address(interface.address) in network]


def _not_found(interfaces: Sequence[Interface], selector: str, family: int) -> str:
    family_name = _FAMILY_NAMES.get(socket.AddressFamily(family), str(family))
    same_name = [interface for interface in interfaces if interface.name == selector]
    if same_name:
        problem = f"interface {selector} has no {family_name} address"
        advice = f"give it one (ip address add ADDRESS/PREFIX dev {selector}) or choose another interface"
    else:
        problem = f"no interface matches network.interface = {selector!r} with {family_name}"
        advice = (
            "set it to one of these names, to an address or to a network in CIDR, or create the interface"
        )
    existing = ", ".join(
        f"{interface.name} ({interface.address}/{interface.prefix_length})"
        for interface in interfaces
        if interface.family == family
    )
    return f"{problem}; there are: {existing or 'none with ' + family_name}; {advice}"


def _ioctl_number(query: socket.socket, request: int, name: str, layout: struct.Struct) -> int:
    encoded = name.encode()
    answer = fcntl.ioctl(query.fileno(), request, layout.pack(encoded, 0))
    number: int = layout.unpack(answer)[1]
    return number


def _prefix_length(netmask: str | None, family: int) -> int:
    """From "255.255.255.0", "ffff:ffff::" or "ffff:ffff::/32"; a missing mask is that of a single address."""
    if netmask is None:
        return 32 if family == socket.AF_INET else 128
    mask, _, length = netmask.partition("/")
    if length:
        return int(length)
    return int(ipaddress.ip_address(mask)).bit_count()
