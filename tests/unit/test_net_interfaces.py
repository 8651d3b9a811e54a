from __future__ import annotations

import errno
import socket

import pytest

from ocfcluster.errors import SetupError
from ocfcluster.net import interfaces
from ocfcluster.net.interfaces import (
    Interface,
    choose_interface,
    find_interface,
    list_devices,
    list_interfaces,
)
from ocfcluster.net.transport import usable_mtu

V4, V6 = socket.AF_INET, socket.AF_INET6

MACHINE = [
    Interface("lo", "127.0.0.1", V4, 8, 65_536, 1, True, True, False),
    Interface("lo", "::1", V6, 128, 65_536, 1, True, True, False),
    Interface("eth0", "10.0.0.5", V4, 24, 1500, 2, False),
    Interface("eth0", "10.0.0.6", V4, 24, 1500, 2, False),
    Interface("eth0", "fe80::5", V6, 64, 1500, 2, False),
    Interface("eth0", "fd00::5", V6, 64, 1500, 2, False),
    Interface("eth1", "10.1.0.5", V4, 24, 9000, 3, False),
    Interface("eth2", "10.2.0.5", V4, 24, 1500, 4, False, False),
    Interface("wg0", "fe80::9", V6, 64, 1420, 5, False),
]


@pytest.mark.parametrize(
    ("selector", "family", "address"),
    [
        ("eth0", V4, "10.0.0.5"),
        ("eth0", V6, "fd00::5"),  # not the link-local one, although it comes first
        ("wg0", V6, "fe80::9"),  # unless there is no other
        ("10.0.0.6", V4, "10.0.0.6"),
        ("fd00:0::0005", V6, "fd00::5"),
        ("fe80::5%eth0", V6, "fe80::5"),
        ("10.1.0.0/16", V4, "10.1.0.5"),
        ("10.0.0.0/24", V4, "10.0.0.5"),  # two addresses, one interface
        ("10.0.0.99/24", V4, "10.0.0.5"),
        ("fd00::/8", V6, "fd00::5"),
        ("::1", V6, "::1"),
    ],
)
def test_an_interface_is_chosen_by_name_address_or_network(selector: str, family: int, address: str) -> None:
    assert choose_interface(MACHINE, selector, family).address == address


@pytest.mark.parametrize(
    ("selector", "family"),
    [
        ("eth9", V4),
        ("10.0.0.7", V4),
        ("10.9.0.0/16", V4),
        ("fe80::5%wg0", V6),
        ("10.0.0.5", V6),
        ("fd00::/8", V4),
        ("", V4),
        ("10.0.0.5/33", V4),
    ],
)
def test_a_missing_interface_is_answered_with_what_there_is(selector: str, family: int) -> None:
    with pytest.raises(SetupError) as caught:
        choose_interface(MACHINE, selector, family)
    message = str(caught.value)
    assert repr(selector) in message
    assert ("eth1 (10.1.0.5/24)" if family == V4 else "eth0 (fd00::5/64)") in message
    assert "network.interface" in message
    assert "CIDR" in message


def test_an_interface_without_an_address_of_the_family_says_so() -> None:
    with pytest.raises(SetupError, match=r"eth1 has no IPv6 address.*ip address add"):
        choose_interface(MACHINE, "eth1", V6)


def test_a_machine_without_interfaces_says_so() -> None:
    with pytest.raises(SetupError, match="there are: none with IPv4"):
        choose_interface([], "eth0", V4)


def test_a_network_on_several_interfaces_is_refused() -> None:
    with pytest.raises(SetupError, match=r"several interfaces: eth0 \(10.0.0.5\), .*eth1 \(10.1.0.5\)"):
        choose_interface(MACHINE, "10.0.0.0/8", V4)


def test_an_interface_that_is_down_is_refused() -> None:
    with pytest.raises(SetupError, match="eth2 is down: ip link set dev eth2 up"):
        choose_interface(MACHINE, "eth2", V4)


def test_the_real_loopback_is_found_by_each_kind_of_selector() -> None:
    found = find_interface("lo", V4)
    assert (found.name, found.address, found.prefix_length, found.is_loopback) == ("lo", "127.0.0.1", 8, True)
    assert found.index == socket.if_nametoindex("lo")
    assert found.mtu >= 1500
    assert found.is_up
    assert not found.is_multicast
    assert find_interface("127.0.0.1", V4) == found
    assert find_interface("127.0.0.0/8", V4) == found


def test_an_interface_that_vanishes_while_it_is_read_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces.netifaces, "interfaces", lambda: ["gone0", "lo"])
    assert {interface.name for interface in list_interfaces()} == {"lo"}


@pytest.mark.parametrize(
    ("netmask", "family", "length"),
    [
        ("255.255.240.0", V4, 20),
        ("ffff:ffff:ffff:ffff::", V6, 64),
        ("ffff:ffff::/32", V6, 32),
        (None, V4, 32),
        (None, V6, 128),
    ],
)
def test_netmasks_of_all_forms(netmask: str | None, family: int, length: int) -> None:
    assert interfaces._prefix_length(netmask, family) == length


def test_only_link_local_ipv6_needs_a_scope() -> None:
    assert [interface.scope for interface in MACHINE if interface.name in {"eth0", "wg0"}] == [0, 0, 2, 0, 5]


def test_the_mtu_fits_the_interface_and_the_limits() -> None:
    assert usable_mtu("lo", 65_536, None) == 9000
    assert usable_mtu("eth0", 1500, None) == 1500
    assert usable_mtu("eth0", 1500, 1400) == 1400
    with pytest.raises(SetupError, match=r"mtu = 9000 does not pass interface eth0.*1500"):
        usable_mtu("eth0", 1500, 9000)
    with pytest.raises(SetupError, match=r"network.mtu = 100 is outside 1280 to 9000"):
        usable_mtu("eth0", 1500, 100)
    with pytest.raises(SetupError, match=r"slip0 has an mtu of 296; at least 1280"):
        usable_mtu("slip0", 296, None)


def test_what_cannot_be_asked_is_not_taken_for_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: str) -> dict[int, list[dict[str, str]]]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(interfaces.netifaces, "ifaddresses", none_left)
    for look in (list_interfaces, list_devices):
        with pytest.raises(OSError, match="Too many"):
            look()
