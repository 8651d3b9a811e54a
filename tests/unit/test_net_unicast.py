from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ocfcluster.errors import ConfigurationError, SetupError
from ocfcluster.net.transport import Address
from ocfcluster.net.unicast import UnicastTransport, resolve_peers
from tests.unit.net_support import all_datagrams, loopback, numbered_buffer, receive_datagrams, split

V4, V6 = socket.AF_INET, socket.AF_INET6
NODES = 3


def has_ipv6() -> bool:
    try:
        with socket.socket(V6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture(
    params=[V4, pytest.param(V6, marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6"))],
    ids=["ipv4", "ipv6"],
)
def nodes(request: pytest.FixtureRequest) -> Iterator[list[UnicastTransport]]:
    made = [UnicastTransport(loopback(request.param), 0, []) for _ in range(NODES)]
    shared: list[Address] = [node.address for node in made]
    for node in made:
        node.set_peers([*shared, shared[0]])  # a list with a repeated line
    yield made
    for node in made:
        node.close()


def test_a_multicast_goes_once_to_every_peer_but_not_to_itself(nodes: list[UnicastTransport]) -> None:
    nodes[1].multicast(b"to all", 6)
    for node in (nodes[0], nodes[2]):
        assert receive_datagrams(node, 2, 0.1) == [(b"to all", 6, nodes[1].address)]
    assert nodes[1].receive(10) == []
    assert nodes[1].counters == {}


def test_an_answer_goes_to_the_source(nodes: list[UnicastTransport]) -> None:
    nodes[0].multicast(b"who is there", 12)
    _, _, source = receive_datagrams(nodes[2], 1)[0]
    nodes[2].send(source, b"me", 2)
    assert receive_datagrams(nodes[0], 1) == [(b"me", 2, nodes[2].address)]
    assert receive_datagrams(nodes[1], 2, 0.05) == [(b"who is there", 12, nodes[0].address)]


def test_buffers_of_many_datagrams_arrive_with_and_without_segmentation(
    nodes: list[UnicastTransport],
) -> None:
    buffer = numbered_buffer(30, 1400, 9)
    nodes[0].multicast(buffer, 1400)
    nodes[0]._socket._segmenting = False
    nodes[0].multicast(buffer, 1400)
    for node in nodes[1:]:
        assert all_datagrams(receive_datagrams(node, 60)) == split(buffer, 1400) * 2


def test_a_peer_that_is_not_there_hurts_nobody(nodes: list[UnicastTransport]) -> None:
    absent = nodes[2].address
    nodes[2].close()
    for _ in range(3):
        nodes[0].multicast(b"x", 1)
    assert receive_datagrams(nodes[1], 3) == [(b"x", 1, nodes[0].address)] * 3
    assert nodes[0].receive(10) == []
    assert absent not in {nodes[0].address, nodes[1].address}


def test_a_port_in_use_is_refused(nodes: list[UnicastTransport]) -> None:
    address = nodes[0].address
    with pytest.raises(
        SetupError, match=rf"UDP port {address[1]} of {address[0]} is in use .* change network\.port"
    ):
        UnicastTransport(loopback(V4 if len(address) == 2 else V6), address[1], [])


def test_an_address_that_is_not_here_is_refused() -> None:
    with pytest.raises(SetupError, match=r"192\.0\.2\.200 is not on this machine"):
        UnicastTransport(replace(loopback(), address="192.0.2.200"), 0, [])


def test_the_mtu_and_its_overhead(nodes: list[UnicastTransport]) -> None:
    assert {(node.mtu, node.ip_overhead_bytes) for node in nodes} <= {(1500, 28), (1500, 48)}
    assert len(nodes[0].filenos()) == 1


@pytest.mark.parametrize(
    ("peer", "family", "address"),
    [
        ("10.0.0.2", V4, ("10.0.0.2", 5405)),
        ("10.0.0.2:7", V4, ("10.0.0.2", 7)),
        ("fd00::2", V6, ("fd00::2", 5405, 0, 0)),
        ("[fd00::2]", V6, ("fd00::2", 5405, 0, 0)),
        ("[fd00::2]:7", V6, ("fd00::2", 7, 0, 0)),
        ("localhost:7", V4, ("127.0.0.1", 7)),
    ],
)
def test_peers_are_resolved(peer: str, family: int, address: Address) -> None:
    assert resolve_peers([peer], family, 5405) == [address]


@pytest.mark.parametrize(
    "peer",
    [
        "",
        ":7",
        "host:",
        "host:x",
        "[fd00::2",
        "[fd00::2]7",
        "[]:7",
        "h:²",
    ],
)
def test_ill_formed_peers_are_refused(peer: str) -> None:
    with pytest.raises(ConfigurationError, match=r"network\.peers: .* is not of the form"):
        resolve_peers([peer], V4, 5405)


@pytest.mark.parametrize("peer", ["host:0", "host:65536", "[fd00::2]:99999", "h:" + "1" * 5000])
def test_ports_that_none_can_be_are_refused(peer: str) -> None:
    with pytest.raises(ConfigurationError, match=r"network\.peers: .* 1 to 65535"):
        resolve_peers([peer], V4, 5405)


@pytest.mark.parametrize("peer", ["node..example", ".host", "x" * 64 + ".example"])
def test_a_name_that_none_can_be_is_refused(peer: str) -> None:
    with pytest.raises(SetupError, match=r"network\.peers: .* has no IPv4 address \(.*label"):
        resolve_peers([peer], V4, 5405)


def test_a_peer_without_an_address_of_the_family_is_refused() -> None:
    with pytest.raises(SetupError, match=r"network\.peers: '10\.0\.0\.2:7' has no IPv6 address .*/etc/hosts"):
        resolve_peers(["10.0.0.2:7"], V6, 5405)
