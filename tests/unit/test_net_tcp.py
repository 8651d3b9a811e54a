"""TCP beside UDP: one number for both, and what is said where it is taken."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from ocfcluster.agent import network
from ocfcluster.agent.config import AgentConfig, Cluster, Network
from ocfcluster.agent.network import open_network
from ocfcluster.errors import SetupError
from ocfcluster.net.tcp import PortTaken, any_port_of, listen_at


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def config(**options: object) -> AgentConfig:
    return AgentConfig(cluster=Cluster(nodes=[1, 2]), network=Network(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("group", ["239.192.77.1", "ff15::4d01"])
def test_multicast_listens_under_the_number_of_its_unicast_socket(opened: ExitStack, group: str) -> None:
    try:
        transport, listens, _ = open_network(config(group=group), 7)
    except SetupError as error:
        pytest.skip(str(error))
    opened.callback(transport.close)
    (listening,) = listens
    opened.enter_context(listening)
    assert listening.getsockname() == transport.address
    connected = opened.enter_context(socket.socket(listening.family))
    connected.connect(transport.address)
    accepted, source = listening.accept()
    accepted.close()
    assert source[0] == transport.address[0]


def test_unicast_listens_under_its_own_port(opened: ExitStack) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    transport, listens, _ = open_network(config(transport="unicast", port=port, peers=["127.0.0.1:1"]), 7)
    opened.callback(transport.close)
    (listening,) = listens
    opened.enter_context(listening)
    assert listening.getsockname() == ("127.0.0.1", port)


def test_memory_has_nobody_to_listen_for() -> None:
    transport, listening, _ = open_network(AgentConfig(), 7)
    transport.close()
    assert listening == []


def test_a_number_that_is_taken_is_another_one_where_any_will_do(
    opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def listen(address: object, setting: str) -> socket.socket:
        taken.append(address[1])  # type: ignore[index]
        if len(taken) < 3:
            raise PortTaken("taken")
        return listen_at(address, setting)  # type: ignore[arg-type]

    monkeypatch.setattr(network, "listen_at", listen)
    transport, listening, _ = open_network(config(), 7)
    opened.callback(transport.close)
    opened.enter_context(listening[0])
    assert len(taken) == 3


@pytest.mark.parametrize("kind", ["multicast", "unicast"])
def test_a_number_that_was_chosen_is_an_error(
    opened: ExitStack, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    tries: list[object] = []

    def listen(address: Any, setting: str) -> socket.socket:
        tries.append(address)
        return listen_at(address, setting)

    monkeypatch.setattr(network, "listen_at", listen)
    other = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
    port = other.getsockname()[1]
    options: dict[str, object] = (
        {"unicast_port": port}
        if kind == "multicast"
        else {"transport": kind, "port": port, "peers": ["127.0.0.1:1"]}
    )
    setting = "network.unicast_port" if kind == "multicast" else "network.port"
    with pytest.raises(PortTaken, match=rf"TCP port {port}.*{setting}"):
        open_network(config(**options), 7)
    assert len(tries) == 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(("127.0.0.1", port))  # the transport is closed


def test_an_address_that_is_not_here() -> None:
    with pytest.raises(SetupError, match=r"cannot listen on TCP port 5405 of 192\.0\.2\.1"):
        listen_at(("192.0.2.1", 5405), "network.port")


def test_a_port_is_free_again_at_once_after_connections(opened: ExitStack) -> None:
    first = listen_at(("127.0.0.1", 0), "network.port")
    address = first.getsockname()
    with socket.create_connection(address):
        accepted, _ = first.accept()
        accepted.close()  # the end that closes first is the one that lingers
    first.close()
    opened.enter_context(listen_at(address, "network.port"))


def test_the_same_host_with_any_port() -> None:
    assert any_port_of(("10.0.0.1", 5)) == ("10.0.0.1", 0)
    assert any_port_of(("fe80::1", 5, 0, 3)) == ("fe80::1", 0, 0, 3)
