"""Several networks as one transport: same packets on each, one copy in, answers on all."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from ocfcluster.agent.config import AgentConfig, Cluster, Network, RedundantNetwork
from ocfcluster.agent.links import links, links_document, networks_document
from ocfcluster.agent.network import open_network, paths, set_peers
from ocfcluster.errors import ConfigurationError, SetupError
from ocfcluster.net.memory import MemoryHub, MemoryTransport
from ocfcluster.net.redundant import OURS_BYTES, Link, RedundantTransport
from ocfcluster.net.transport import Received
from ocfcluster.wire.datagram import DATA_HEAD, Extent, clear_prefix, cluster_hash, encode_packets
from tests.unit.fake_node import FakeNode
from tests.unit.net_support import all_datagrams, random_group, random_port, receive_datagrams, split

CLUSTER = 7
NETWORKS = ("red", "blue")


def packets(node: int, counter: int, count: int = 1, size: int = 100) -> tuple[bytes, int]:
    """A buffer of one incarnation of ``node``: 100 + node."""
    prefix = clear_prefix(CLUSTER, node, 100 + node)
    return encode_packets(prefix, counter, DATA_HEAD, Extent(counter, count, size, bytes(count * size)))


class Node:
    """A node with two networks in memory."""

    def __init__(self, number: int, hubs: list[MemoryHub], **options: int) -> None:
        self.number = number
        self.ends = [hub.transport(**options) for hub in hubs]
        ours = clear_prefix(CLUSTER, number, 100 + number)[:OURS_BYTES]
        self.transport = RedundantTransport(list(zip(NETWORKS, self.ends, strict=True)), ours)
        self.counter = 1

    def multicast(self, count: int = 1) -> bytes:
        buffer, segment = packets(self.number, self.counter, count)
        self.counter += count
        self.transport.multicast(buffer, segment)
        return buffer

    def send(self, to: Received) -> bytes:
        buffer, segment = packets(self.number, self.counter)
        self.counter += 1
        self.transport.send(to[2], buffer, segment)
        return buffer


@pytest.fixture
def hubs() -> list[MemoryHub]:
    return [MemoryHub(), MemoryHub()]


@pytest.fixture
def nodes(hubs: list[MemoryHub]) -> list[Node]:
    made = [Node(number, hubs) for number in (1, 2, 3)]
    # Addresses of the two hubs must differ, as those of networks do.
    for node in made:
        node.ends[1].address = ("blue", node.number)
        hubs[1]._transports = {end.address: end for end in (one.ends[1] for one in made)}
    return made


def arrived(end: MemoryTransport) -> list[bytes]:
    return [buffer for buffer, _, _ in end.receive(100)]


def test_a_multicast_goes_out_on_each_network_and_comes_in_once(nodes: list[Node]) -> None:
    one, two, three = nodes
    sent = one.multicast(5)
    assert [buffer for buffer, _, _ in two.transport.receive(10)] == [sent]
    assert two.transport.receive(10) == []
    assert two.transport.counters == {"duplicates_dropped": 5}
    assert arrived(three.ends[0]) == arrived(three.ends[1]) == [sent]
    assert one.transport.receive(10) == []


def test_what_one_network_lost_comes_by_the_other(nodes: list[Node], hubs: list[MemoryHub]) -> None:
    one, two, _ = nodes
    buffer, segment = packets(1, 1, 8)
    ones = split(buffer, segment)
    kept = b"".join(ones[:3])
    two.ends[0].accept(kept, segment, 3, one.ends[0].address)
    two.ends[1].accept(buffer, segment, 8, one.ends[1].address)
    assert sorted(all_datagrams(two.transport.receive(10))) == sorted(ones)


def test_an_answer_goes_out_on_every_network_where_its_receiver_was_heard(nodes: list[Node]) -> None:
    one, two, _ = nodes
    one.multicast()
    (received,) = two.transport.receive(10)
    sent = two.send(received)
    assert arrived(one.ends[0]) == arrived(one.ends[1]) == [sent]


def test_a_cut_network_needs_nobody_to_notice_it(nodes: list[Node]) -> None:
    one, two, _ = nodes
    one.multicast()
    (received,) = two.transport.receive(10)
    one.ends[0].close()  # nothing reaches it there any more
    sent = two.send(received)  # the address that the core knows may be the one of the dead network
    assert arrived(one.ends[1]) == [sent]
    sent = one.multicast()
    assert [buffer for buffer, _, _ in two.transport.receive(10)] == [sent]


def test_an_address_that_was_never_heard_is_tried_where_it_can_be(nodes: list[Node]) -> None:
    one, two, _ = nodes
    buffer, segment = packets(1, 1)
    one.transport.send(two.ends[1].address, buffer, segment)
    assert arrived(two.ends[1]) == [buffer]
    with pytest.raises(ValueError, match="segments"):
        one.transport.send(("memory", 99), bytes(65 * 10), 10)


def test_a_restarted_node_is_reached_by_its_addresses_though_its_last_incarnation_had_them(
    nodes: list[Node],
) -> None:
    one, two, _ = nodes
    one.multicast()
    (received,) = two.transport.receive(10)
    again = encode_packets(clear_prefix(CLUSTER, 1, 999), 1, DATA_HEAD, Extent(1, 1, 9, bytes(9)))
    one.transport.multicast(*again)
    assert len(two.transport.receive(10)) == 1
    for sender in two.transport._filter.senders():
        if sender.incarnation == 101:  # the old one is forgotten
            sender.addresses = [None, None]
            two.transport._moved(sender)
    sent = two.send(received)
    assert arrived(one.ends[0]) == arrived(one.ends[1]) == [sent]
    assert two.transport.paths(received[2])[0][1] in (one.ends[0].address, one.ends[1].address)


def test_two_networks_that_are_one_do_not_flap(nodes: list[Node]) -> None:
    one, two, _ = nodes
    moves: list[int] = []
    moved = two.transport._filter._moved
    two.transport._filter._moved = lambda sender: (moves.append(1), moved(sender))[1]  # type: ignore[misc,func-returns-value]
    for counter in range(1, 9):
        buffer, segment = packets(1, counter)
        for end in two.ends:
            for source in one.ends:
                end.accept(buffer, segment, 1, source.address)
        assert len(two.transport.receive(10)) == 1
    assert len(moves) <= 3  # until both addresses are known


def test_no_network_keeps_the_others_from_being_read(nodes: list[Node]) -> None:
    one, two, three = nodes
    for counter in range(1, 101):
        two.ends[0].accept(*packets(1, counter), 1, one.ends[0].address)
    two.ends[1].accept(*packets(3, 1), 1, three.ends[1].address)
    received = two.transport.receive(32)
    assert len(received) == 17
    assert sum(source == three.ends[1].address for _, _, source in received) == 1


def test_sizes_are_the_smallest_and_counters_the_sums(hubs: list[MemoryHub]) -> None:
    ends = [hubs[0].transport(mtu=1500, receive_buffer_bytes=10), hubs[1].transport(mtu=9000)]
    ends[0].warnings.append("small")
    ends[0].counters["send_dropped"] = 2
    ends[1].counters["send_dropped"] = 3
    made = RedundantTransport(list(zip(NETWORKS, ends, strict=True)), b"")
    assert (made.mtu, made.receive_buffer_bytes, made.warnings) == (1500, 10, ["small"])
    assert made.counters == {"duplicates_dropped": 0, "send_dropped": 5}
    assert made.address == ends[0].address
    assert made.filenos() == [*ends[0].filenos(), *ends[1].filenos()]
    made.close()
    assert made.filenos() == [-1, -1]


def test_links_say_who_was_heard_where(nodes: list[Node]) -> None:
    config = AgentConfig(
        cluster=Cluster(nodes=[1, 2, 3]),
        network=Network(networks=[RedundantNetwork("eth1", "red"), RedundantNetwork("eth2", "blue")]),
    )
    one, two, three = nodes
    one.multicast()
    three.ends[0].close()
    three.multicast()
    two.transport.receive(10)
    found = links(config, FakeNode(), two.transport)
    assert [(link.node_id, link.network) for link in found] == [(1, "red"), (1, "blue"), (3, "blue")]
    assert {link.heard_at for link in found} == {found[0].heard_at}
    paths_to_one = paths(two.transport, one.ends[1].address)
    assert set(paths_to_one) == {
        (two.ends[0].address, one.ends[0].address),
        (two.ends[1].address, one.ends[1].address),
    }
    document = links_document(found, 1000, found[0].heard_at + 999)
    assert [one["heard"] for one in document] == [True, True, True]
    assert not links_document(found, 1000, found[0].heard_at + 1000)[0]["heard"]
    assert [one["name"] for one in networks_document(config, two.transport)] == ["red", "blue"]


def test_links_of_a_restarted_node_are_those_of_its_newest_incarnation() -> None:
    class Heard(FakeNode):
        def heard(self) -> list[tuple[int, int, object, int]]:  # type: ignore[override]
            return [(2, 8, ("10.0.0.2", 1), 50), (2, 9, ("10.0.0.2", 1), 70), (1, 5, ("10.0.0.1", 1), 60)]

    config = AgentConfig(cluster=Cluster(nodes=[1, 2, 3]), network=Network(interface="eth1"))
    found = links(config, Heard(), MemoryHub().transport())
    assert found == [
        Link(1, 5, "eth1", ("10.0.0.1", 1), 60),
        Link(2, 9, "eth1", ("10.0.0.2", 1), 70),
    ]


# --- from the configuration -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["multicast", "unicast"])
def test_two_networks_on_loopback(kind: str) -> None:
    ports = [random_port() for _ in range(4)]
    groups = [random_group(), random_group()]

    def config(node: int) -> AgentConfig:
        networks = [
            RedundantNetwork("lo", name, groups[place], ports[place])
            if kind == "multicast"
            else RedundantNetwork(
                "lo", name, "", ports[2 * place + node - 1],
                peers=[f"127.0.0.1:{port}" for port in ports[2 * place : 2 * place + 2]],
            )
            for place, name in enumerate(NETWORKS)
        ]  # fmt: skip
        return AgentConfig(
            cluster=Cluster(nodes=[1, 2]),
            network=Network(transport=kind, networks=networks),  # type: ignore[arg-type]
        )

    with ExitStack() as opened:
        made = []
        for node in (1, 2):
            transport, listening, _ = open_network(config(node), 100 + node)
            opened.callback(transport.close)
            for one in listening:
                opened.enter_context(one)
            assert isinstance(transport, RedundantTransport)
            assert [one.getsockname() for one in listening] == [one.address for one in transport.transports]
            made.append(transport)
        prefix = clear_prefix(cluster_hash("ocfcluster"), 1, 101)
        buffer, segment = encode_packets(prefix, 1, DATA_HEAD, Extent(1, 20, 1000, bytes(20_000)))
        made[0].multicast(buffer, segment)
        received = receive_datagrams(made[1], 20)
        received += receive_datagrams(made[1], 1, 0.1)
        assert sorted(all_datagrams(received)) == sorted(split(buffer, segment))
        assert made[1].counters["duplicates_dropped"] == 20
        assert [(link.node_id, link.network) for link in made[1].links()] == [(1, "red"), (1, "blue")]
        prefix = clear_prefix(cluster_hash("ocfcluster"), 2, 102)
        buffer, segment = encode_packets(prefix, 1, DATA_HEAD, Extent(1, 1, 100, bytes(100)))
        made[1].send(received[0][2], buffer, segment)
        assert all_datagrams(receive_datagrams(made[0], 2, 0.2)) == [buffer]
        assert made[0].counters["duplicates_dropped"] == 1
        if kind == "unicast":
            set_peers(made[0], [[], []])
            made[0].multicast(b"nobody", 6)
            assert receive_datagrams(made[1], 1, 0.05) == []


def missing(*interfaces: str) -> AgentConfig:
    networks = [
        RedundantNetwork(interface, f"{interface}-{number}", random_group(), random_port())
        for number, interface in enumerate(interfaces)
    ]
    return AgentConfig(cluster=Cluster(nodes=[1, 2]), network=Network(networks=networks))


def test_one_network_is_enough_to_start_and_the_other_may_come_later() -> None:
    config = missing("nosuch0", "lo")
    with ExitStack() as opened:
        transport, listening, _ = open_network(config, 7)
        opened.callback(transport.close)
        opened.enter_context(listening[0])
        assert isinstance(transport, RedundantTransport)
        (absent,) = transport.absent().values()
        assert "network 'nosuch0-0'" in absent.error
        assert "nosuch0" in networks_document(config, transport)[0]["error"]
        assert transport.address == transport.transports[1].address == listening[0].getsockname()
        assert transport.mtu == transport.transports[1].mtu
        assert transport.receive(10) == []
        transport.multicast(b"x", 1)
        hub = MemoryHub()
        late, other = hub.transport(mtu=1300), hub.transport()
        mtu = transport.mtu
        transport.attach(0, late)
        assert transport.absent() == {}
        assert transport.mtu == mtu
        transport.multicast(b"y", 1)
        assert arrived(other) == [b"y"]
        with pytest.raises(RuntimeError, match="already"):
            transport.attach(0, late)
        other.close()


def test_where_no_network_is_there_it_is_said_and_nothing_stays_open() -> None:
    with pytest.raises(SetupError, match=r"network 'nosuch0-0': .*nosuch0"):
        open_network(missing("nosuch0", "nosuch1"), 7)


def test_a_mistake_in_the_configuration_is_none_of_the_machines() -> None:
    networks = [
        RedundantNetwork("lo", "good", "", random_port(), peers=["127.0.0.1:1"]),
        RedundantNetwork("lo", "bad", "", random_port(), peers=["127.0.0.1:x"]),
    ]
    network = Network(networks=networks, transport="unicast")
    with pytest.raises(ConfigurationError, match="network 'bad'"):
        open_network(AgentConfig(cluster=Cluster(nodes=[1, 2]), network=network), 7)
