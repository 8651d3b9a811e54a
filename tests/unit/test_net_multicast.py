"""Multicast over loopback, IPv4 and IPv6. Where loopback has no route for IPv6 multicast, see the last test."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from ocfcluster import limits
from ocfcluster.errors import ConfigurationError, SetupError
from ocfcluster.net import multicast, offload, udp
from ocfcluster.net.interfaces import find_interface
from ocfcluster.net.multicast import MulticastTransport
from ocfcluster.net.own_filter import attach_own_filter, own_filter_program
from tests.unit.net_support import (
    all_datagrams,
    datagrams,
    loopback,
    numbered_buffer,
    random_group,
    random_port,
    receive_datagrams,
    split,
)

V4, V6 = socket.AF_INET, socket.AF_INET6
SECOND_INTERFACE = "ocftest0"


def ipv6_multicast_on_loopback() -> bool:
    try:
        multicast._check_route(loopback(V6), ("ff15::1", 9, 0, loopback(V6).index))
    except (SetupError, OSError):
        return False
    return True


def gro_on_loopback() -> bool:
    with udp.open_socket(V4) as opened:
        return offload.can_segment(opened) and offload.enable_gro(opened)


needs_ipv6 = pytest.mark.skipif(
    not ipv6_multicast_on_loopback(), reason="loopback has no route for IPv6 multicast"
)
needs_offload = pytest.mark.skipif(
    not gro_on_loopback(), reason="this kernel has no UDP_SEGMENT or no UDP_GRO"
)
needs_second_interface = pytest.mark.skipif(
    SECOND_INTERFACE not in {name for _, name in socket.if_nameindex()},
    reason="runs in the network namespace of the last test",
)
both_families = pytest.mark.parametrize(
    "family", [V4, pytest.param(V6, marks=needs_ipv6)], ids=["ipv4", "ipv6"]
)


class Network:
    """Makes transports of one random group and port."""

    def __init__(self, family: int) -> None:
        self.interface = loopback(family)
        self.group = random_group(family)
        self.port = random_port()
        self.made: list[MulticastTransport] = []

    def transport(self, **options: Any) -> MulticastTransport:
        transport = MulticastTransport(self.interface, self.group, self.port, **options)
        self.made.append(transport)
        return transport


@pytest.fixture
def network() -> Iterator[Callable[[int], Network]]:
    made: list[Network] = []

    def make(family: int = V4) -> Network:
        made.append(Network(family))
        return made[-1]

    yield make
    for each in made:
        for transport in each.made:
            transport.close()


Make = Callable[..., Network]


@both_families
def test_multicast_reaches_the_others_and_its_source_can_be_answered(network: Make, family: int) -> None:
    net = network(family)
    one, two, three = net.transport(), net.transport(), net.transport()
    one.multicast(b"to all", 6)
    for other in (two, three):
        assert receive_datagrams(other, 1) == [(b"to all", 6, one.address)]
    two.send(one.address, b"to one", 6)
    assert (b"to one", 6, two.address) in receive_datagrams(one, 2)
    assert receive_datagrams(three, 1, 0.05) == []
    assert one.counters == two.counters == {}
    assert one.mtu == 1500
    assert one.ip_overhead_bytes == (28 if family == V4 else 48)
    assert one.receive_buffer_bytes >= limits.RECEIVE_BUFFER_FLOOR_BYTES
    assert len(one.filenos()) == 3  # group, unicast, changes of interfaces


@needs_offload
@both_families
def test_the_datagrams_of_a_buffer_stay_together(network: Make, family: int) -> None:
    net = network(family)
    one, two = net.transport(), net.transport()
    buffer = numbered_buffer(44, 1452, 700)
    one.multicast(buffer, 1452)
    assert receive_datagrams(two, 44) == [(buffer, 1452, one.address)]
    one.send(two.address, buffer, 1452)
    assert receive_datagrams(two, 44) == [(buffer, 1452, one.address)]
    assert one.segmenting


@needs_offload
def test_the_largest_buffers_pass(network: Make) -> None:
    net = network()
    one, two = net.transport(), net.transport()
    for segment, length in (
        (1000, 64_000),
        (1472, 44 * 1472),
        (8972, 7 * 8972),
        (1016, limits.SEGMENT_BUFFER_BYTES),
    ):
        buffer = os.urandom(length)
        one.multicast(buffer, segment)
        assert receive_datagrams(two, length // segment) == [(buffer, segment, one.address)]
    assert one.counters == {}


@both_families
@pytest.mark.parametrize("plain_side", ["sender", "receiver", "both"])
def test_without_offload_the_same_datagrams_arrive(network: Make, family: int, plain_side: str) -> None:
    net = network(family)
    one = net.transport(segmentation=plain_side == "receiver")
    two = net.transport(segmentation=plain_side == "sender")
    buffer = numbered_buffer(20, 1400, 7)
    one.multicast(buffer, 1400)
    one.send(two.address, b"single", 6)
    received = receive_datagrams(two, 21)
    assert sorted(all_datagrams(received)) == sorted([*split(buffer, 1400), b"single"])
    multicast_part = [datagram for datagram in all_datagrams(received) if datagram != b"single"]
    assert multicast_part == split(buffer, 1400)
    if plain_side != "sender":
        assert all(segment == len(data) for data, segment, _ in received)


def test_a_kernel_that_stops_segmenting_loses_nothing(network: Make) -> None:
    net = network()
    one, two = net.transport(), net.transport()

    def refuse(*arguments: object) -> int:
        raise OSError(errno.EIO, "no checksum offload")

    one._unicast._sendmsg = refuse
    buffer = numbered_buffer(10, 1400, 1)
    one.multicast(buffer, 1400)
    one.multicast(buffer, 1400)
    assert all_datagrams(receive_datagrams(two, 20)) == split(buffer, 1400) * 2
    assert one.counters == {"send_EIO": 1, "send_fallback": 1}
    assert not one.segmenting


OWN = bytes(range(1, 17))  # as node_id, reserved and incarnation at offset 8 of a datagram
OTHER = OWN[:-1] + b"\xff"


@both_families
def test_own_datagrams_do_not_come_back(network: Make, family: int) -> None:
    net = network(family)
    one, two = net.transport(own_prefix=(8, OWN)), net.transport(own_prefix=(8, OTHER))
    mine = b"headhead" + OWN + b"from one"
    theirs = b"headhead" + OTHER + b"from two"
    segments = b"".join((mine[:24] + bytes([number]) * 976) for number in range(40))
    for buffer, segment in ((mine, len(mine)), (mine[:24], 24), (segments, 1000)):
        one.multicast(buffer, segment)
    for short in (mine[:23], b"short"):  # too short to carry it: passed on, for the protocol to judge
        one.multicast(short, len(short))
    two.multicast(theirs, len(theirs))
    received = receive_datagrams(one, 3) + receive_datagrams(one, 1, 0.05)
    assert [data for data, _, _ in received] == [mine[:23], b"short", theirs]
    assert receive_datagrams(two, 44)[:2] == [(mine, len(mine), one.address), (mine[:24], 24, one.address)]
    assert one.counters == {}


def test_a_kernel_without_filters_costs_only_the_wake_up(
    network: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multicast, "attach_own_filter", lambda *arguments: False)
    net = network()
    one, two = net.transport(own_prefix=(8, OWN)), net.transport()
    one.multicast(b"headhead" + OWN, 24)
    two.multicast(b"headhead" + OTHER, 24)
    assert [data for data, _, _ in receive_datagrams(one, 1)] == [b"headhead" + OTHER]
    assert one.counters == {"own_filter_refused": 1, "own_dropped": 1}
    assert receive_datagrams(two, 1)[0][0] == b"headhead" + OWN


def run_filter(program: list[tuple[int, int, int, int]], datagram: bytes) -> bool:
    """Whether classic BPF passes a UDP datagram; the four kinds of instruction that the filter uses."""
    packet = bytes(8) + datagram
    accumulator = at = 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        if code == 0x80:
            accumulator = len(packet)
        elif code in {0x20, 0x28, 0x30}:
            size = {0x20: 4, 0x28: 2, 0x30: 1}[code]
            if operand + size > len(packet):
                return False
            accumulator = int.from_bytes(packet[operand : operand + size], "big")
        elif code == 0x15:
            at += if_true if accumulator == operand else if_false
        elif code == 0x35:
            at += if_true if accumulator >= operand else if_false
        else:
            assert code == 0x06
            return operand != 0


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 8, 16, 64])
def test_the_filter_drops_what_is_equal_in_every_byte(length: int) -> None:
    expected = bytes(range(100, 100 + length))
    program = own_filter_program(5, expected)
    assert not run_filter(program, b"12345" + expected)
    assert not run_filter(program, b"abcde" + expected + b"more")
    for position in range(length):
        other = bytearray(b"12345" + expected)
        other[5 + position] ^= 1
        assert run_filter(program, bytes(other))
    for cut in range(5 + length):
        assert run_filter(program, (b"12345" + expected)[:cut])


def test_the_kernel_takes_the_longest_filter_and_only_sane_ones_are_made() -> None:
    with udp.open_socket(V4) as opened:
        assert attach_own_filter(opened, 40, bytes(64))
        for offset, expected in ((0, b""), (0, bytes(65)), (-1, b"x")):
            with pytest.raises(ValueError, match="cannot compare"):
                attach_own_filter(opened, offset, expected)
        opened.setsockopt(socket.SOL_SOCKET, 44, 1)  # SO_LOCK_FILTER
        assert not attach_own_filter(opened, 0, b"x")


def test_loop_and_ttl_are_set_as_told(network: Make) -> None:
    def options(transport: MulticastTransport) -> tuple[int, int]:
        sending = transport._unicast._socket
        return (
            sending.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP),
            sending.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL),
        )

    net = network()
    assert options(net.transport()) == (1, 1)
    assert options(net.transport(loop=False, ttl=3)) == (0, 3)
    net.interface = replace(net.interface, is_loopback=False, is_multicast=True)
    assert options(net.transport()) == (0, 1)
    assert options(net.transport(loop=True)) == (1, 1)


def test_other_groups_of_the_machine_are_not_heard(network: Make) -> None:
    one, other = network(), network()
    other.port = one.port
    transport, stranger = one.transport(), other.transport()
    stranger.multicast(b"not for us", 10)
    assert receive_datagrams(stranger, 1)
    assert receive_datagrams(transport, 1, 0.05) == []


@needs_second_interface
@pytest.mark.parametrize("family", [V4, V6], ids=["ipv4", "ipv6"])
def test_the_same_group_on_another_interface_is_not_heard(network: Make, family: int) -> None:
    """Although others on this machine have joined it there, and both sockets are bound to group and port."""
    here, there = network(family), network(family)
    there.interface = find_interface(SECOND_INTERFACE, family)
    there.group, there.port = here.group, here.port
    transport, stranger, witness = here.transport(), there.transport(loop=True), there.transport(loop=True)
    stranger.multicast(b"not for us", 10)
    assert receive_datagrams(witness, 1) == [(b"not for us", 10, stranger.address)]
    assert receive_datagrams(transport, 1, 0.05) == []


def test_one_call_takes_from_both_sockets_and_no_more_than_asked(network: Make) -> None:
    net = network()
    one, two = net.transport(), net.transport()
    for number in range(20):
        one.multicast(b"m%02d" % number, 3)
        one.send(two.address, b"u%02d" % number, 3)
    receive_datagrams(two, 0)
    first = [data for data, _, _ in two.receive(10)]
    assert first == [b"u%02d" % number for number in range(5)] + [b"m%02d" % number for number in range(5)]
    rest = two.receive(100)
    assert datagrams(rest) == 30
    assert two.receive(100) == []


def test_a_datagram_above_the_mtu_is_an_error_and_not_fragmented(network: Make) -> None:
    net = network()
    one, two = net.transport(), net.transport()
    one.multicast(bytes(65_508), 65_508)
    assert one.counters == {"send_EMSGSIZE": 1, "send_dropped": 1}
    discover = one._unicast._socket.getsockopt(socket.IPPROTO_IP, udp._IP_MTU_DISCOVER)
    assert discover == udp._PMTUDISC_PROBE
    assert receive_datagrams(two, 1, 0.05) == []


def test_an_empty_datagram_from_a_stranger_is_dropped(network: Make) -> None:
    net = network()
    one = net.transport()
    with socket.socket(V4, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"", one.address)
        stranger.sendto(b"x", one.address)
        assert receive_datagrams(one, 1) == [
            (b"x", 1, stranger.getsockname() and ("127.0.0.1", stranger.getsockname()[1]))
        ]
    assert one.counters == {"receive_empty": 1}


def test_a_closed_transport_is_quiet(network: Make) -> None:
    one = network().transport()
    one.close()
    one.close()
    one.multicast(b"x", 1)
    assert one.receive(10) == []
    assert one.counters == {"send_EBADF": 1, "send_dropped": 1}


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("all", "network.group = 'all' is no IP address"),
        ("10.0.0.1", "network.group = '10.0.0.1' is no multicast address: choose one of 239.192.0.0/14"),
        ("ff15::1", r"'ff15::1' and the address of interface lo \(127.0.0.1\) are of different families"),
    ],
)
def test_a_wrong_group_is_refused(group: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        MulticastTransport(loopback(), group, 5405)


def test_an_interface_without_multicast_is_refused() -> None:
    interface = replace(loopback(), name="wg0", is_loopback=False)
    with pytest.raises(SetupError, match=r'wg0 does not carry multicast: ip link set.*transport = "unicast"'):
        MulticastTransport(interface, "239.192.1.1", 5405)


def test_an_interface_that_is_gone_is_refused() -> None:
    interface = replace(loopback(), name="eth7", index=0x7FFF_FFF0)
    with pytest.raises(SetupError, match=r"cannot join 239.192.1.1 on interface eth7: it is gone"):
        MulticastTransport(interface, "239.192.1.1", random_port())


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENODEV])
def test_an_ipv6_socket_that_cannot_keep_to_its_interface(network: Make, code: int) -> None:
    class Unbound(socket.socket):
        __slots__ = ()

        def setsockopt(self, level: int, name: int, value: Any) -> None:  # type: ignore[override]
            if name == socket.SO_BINDTODEVICE:
                raise OSError(code, os.strerror(code))
            super().setsockopt(level, name, value)

    made = network().transport()
    with Unbound(V4, socket.SOCK_DGRAM) as opened:
        if code == errno.EPERM:
            made._bind_to_device(opened, loopback(V6))
            assert "interface lo alone" in made.warnings[0]
            assert "CAP_NET_RAW" in made.warnings[0]
        else:
            with pytest.raises(SetupError, match=r"cannot listen on interface lo: .*ip link show dev lo"):
                made._bind_to_device(opened, loopback(V6))


def test_a_multicast_port_that_another_program_keeps_for_itself_is_refused() -> None:
    group = random_group()
    with socket.socket(V4, socket.SOCK_DGRAM) as other:
        other.bind(("", 0))
        port = other.getsockname()[1]
        with pytest.raises(
            SetupError, match=rf"UDP port {port} of {group} is in use .* change network\.port"
        ):
            MulticastTransport(loopback(), group, port)


def test_a_unicast_port_in_use_is_refused() -> None:
    with socket.socket(V4, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with pytest.raises(
            SetupError, match=rf"UDP port {port} of 127.0.0.1 is in use .*network\.unicast_port"
        ):
            MulticastTransport(loopback(), random_group(), random_port(), unicast_port=port)


@pytest.mark.parametrize(
    ("family", "is_loopback", "command"),
    [
        (V4, True, r"ip route add 239.192.1.1/32 dev lo"),
        (V6, True, r"ip -6 route add local ff15::1/128 dev lo, or use an IPv4 group"),
        (V6, False, r"ip -6 route add multicast ff15::1/128 dev lo table local"),
    ],
)
def test_a_missing_route_names_the_command(
    monkeypatch: pytest.MonkeyPatch, family: int, is_loopback: bool, command: str
) -> None:
    class Unrouted(socket.socket):
        __slots__ = ()

        def connect(self, address: object) -> None:
            raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(udp.socket, "socket", Unrouted)
    interface = replace(loopback(family), is_loopback=is_loopback, is_multicast=True)
    group = "239.192.1.1" if family == V4 else "ff15::1"
    with pytest.raises(
        SetupError, match=rf"no route for multicast to .* on interface lo .*unreachable\): {command}"
    ):
        MulticastTransport(interface, group, random_port())


@pytest.mark.skipif(ipv6_multicast_on_loopback(), reason="loopback has the route")
def test_loopback_without_an_ipv6_route_is_told_by_the_kernel_itself() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    with pytest.raises(
        SetupError, match=r"no route for multicast to ff15::1 .* ip -6 route add local ff15::1/128 dev lo"
    ):
        MulticastTransport(loopback(V6), "ff15::1", random_port())


@pytest.mark.skipif(
    SECOND_INTERFACE in {name for _, name in socket.if_nameindex()}, reason="this is that network namespace"
)
def test_ipv6_and_a_second_interface_in_a_network_namespace_of_its_own() -> None:
    """Runs this file's tests that need a route on loopback or another interface where both may be made."""
    unshare, ip = shutil.which("unshare"), shutil.which("ip")
    if not unshare or not ip:
        pytest.skip("needs unshare and ip")
    own_network = [unshare, "--net"] if os.geteuid() == 0 else [unshare, "--map-root-user", "--net"]
    prepare = " && ".join(
        [
            "ip link set lo up",
            "ip -6 route add local ff00::/8 dev lo",
            f"ip link add {SECOND_INTERFACE} type veth peer name ocftest1",
            f"ip address add 10.77.0.1/24 dev {SECOND_INTERFACE}",
            f"ip -6 address add fd00:77::1/64 dev {SECOND_INTERFACE} nodad",
            f"ip link set {SECOND_INTERFACE} up",
            "ip link set ocftest1 up",
        ]
    )
    if subprocess.run([*own_network, "sh", "-c", prepare], capture_output=True).returncode:
        pytest.skip("needs the right to make a network namespace")
    wanted = "(ipv6 or another_interface) and not namespace and not without_an_ipv6_route"
    tests = f'exec "$0" -m pytest -q -p no:cacheprovider -k "{wanted}" {__file__}'
    done = subprocess.run(
        [*own_network, "sh", "-c", f"{prepare} && {tests}", sys.executable],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_a_change_that_cannot_be_looked_at_is_looked_at_later(
    network: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> list[object]:
        raise OSError(errno.EMFILE, "Too many open files")

    transport = network().transport()
    with monkeypatch.context() as patched:
        patched.setattr(multicast, "list_interfaces", none_left)
        transport._interfaces_changed()
        assert transport._look_again
        transport.receive(1)
        assert transport._look_again
    transport.receive(1)
    assert not transport._look_again
