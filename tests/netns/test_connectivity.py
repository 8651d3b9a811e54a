"""oc.connectivity with real interfaces: up, down, added, removed, addresses, a pulled cable; dead nodes, a minority."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ocfcluster.client import Client, Event, Subscription
from ocfcluster.components.connectivity import (
    Change,
    Connectivity,
    ConnectivityCode,
    ConnectivityEvent,
    Interface,
)
from ocfcluster.wire.frames import RecordFlags
from tests.netns.cluster import Cluster
from tests.netns.hosts import DEVICE, Hosts, command
from tests.netns.networks import NETWORKS, Name, RedundantCluster, TwoNetworks

pytestmark = pytest.mark.netns

TIMING = {"heartbeat_ms": 100, "suspicion_ms": 600, "quorum_lost_after_ms": 600}
TOLD_S = 8.0
QUICK_S = 1.0  # an interface's change is told in: netlink, one interval, the order
FLAPS = 40


class Watch:
    """A subscription, and what is known by it so far."""

    def __init__(self, client: Client) -> None:
        self.subscription: Subscription = client.subscribe("oc.connectivity")
        self.state = Connectivity()
        self.seen: list[ConnectivityEvent] = []

    def until(
        self,
        wanted: Callable[[ConnectivityEvent], bool],
        within_s: float = TOLD_S,
        local: bool | None = False,
    ) -> tuple[Event, ConnectivityEvent]:
        """The first event that is ``wanted``, which all other nodes get (or with ``local`` this one alone)."""
        deadline = time.monotonic() + within_s
        while (event := self.subscription.get(timeout=max(0.0, deadline - time.monotonic()))) is not None:
            assert event.notice is None, event.notice
            told = ConnectivityEvent.decode(event.data)
            self.seen.append(told)
            self.state.take(told)
            if wanted(told) and (local is None or event.local == local):
                return event, told
        raise AssertionError(
            f"not told within {within_s} s; what came:\n" + "\n".join(map(repr, self.seen[-20:]))
        )

    def known(self, wanted: Callable[[Connectivity], bool]) -> None:
        """Until what is known is as ``wanted``, by whatever events."""
        while not wanted(self.state):
            self.until(lambda _: True, local=None)

    def lost(self, hearer: int, heard: int) -> None:
        self.known(lambda state: not state.links[hearer, heard, 0].established)

    def established(self, hearer: int, heard: int) -> None:
        self.known(
            lambda state: (hearer, heard, 0) in state.links and state.links[hearer, heard, 0].established
        )

    def interface(self, node_id: int, name: str, change: Change, within_s: float = TOLD_S) -> Interface:
        """That an interface of a node has changed in this way."""

        def wanted(told: ConnectivityEvent) -> bool:
            return told.node_id == node_id and any(
                one.name == name and change in one.change for one in told.interfaces
            )

        _, told = self.until(wanted, within_s)
        return next(one for one in told.interfaces if one.name == name)

    def link(
        self, hearer: int, heard: int, established: bool, local: bool | None = False
    ) -> tuple[Event, ConnectivityEvent]:
        def wanted(told: ConnectivityEvent) -> bool:
            return told.node_id == hearer and any(
                one[:2] == (hearer, heard) and one.established == established for one in told.links
            )

        return self.until(wanted, local=local)

    def all_is_told(self, nodes: range, networks: int = 1) -> None:
        """Wait until all nodes have reported, and all hear each other."""
        pairs = {(i, j, network) for i in nodes for j in nodes if i != j for network in range(networks)}
        while not (
            set(self.state.interfaces) == set(nodes)
            and {key for key, link in self.state.links.items() if link.established} == pairs
            and set(self.state.eligible) == set(nodes)
        ):
            self.until(lambda _: True, local=None)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with Hosts(3) as made:
        yield made


@pytest.fixture
def cluster(hosts: Hosts) -> Iterator[Cluster]:
    with Cluster(hosts, timing=TIMING) as made:
        yield made


def ip(hosts: Hosts, i: int, words: str) -> None:
    command("ip", "-n", hosts.namespace(i), *words.split())


def addresses(interface: Interface) -> set[str]:
    return {str(one) for one in interface.addresses if not str(one).startswith("fe80")}


def test_interfaces_as_they_come_change_and_go(hosts: Hosts, cluster: Cluster) -> None:
    """Everything that happens to an interface of node 3 is told on node 1, within a moment."""
    with cluster.connect(1) as client:
        watch = Watch(client)
        watch.all_is_told(cluster.nodes)
        (eth0,) = [one for one in watch.state.interfaces[3] if one.name == DEVICE]
        assert eth0.healthy
        assert "10.77.0.3/24" in addresses(eth0)
        assert eth0.state & eth0.state.CLUSTER
        ip(hosts, 3, "link add extra type veth peer name other")
        added = watch.interface(3, "extra", Change.ADDED, QUICK_S)
        assert not added.healthy
        ip(hosts, 3, "link set extra up")
        ip(hosts, 3, "link set other up")
        assert watch.interface(3, "extra", Change.UP, QUICK_S).healthy
        ip(hosts, 3, "address add 192.0.2.1/24 dev extra")
        assert addresses(watch.interface(3, "extra", Change.ADDRESSES, QUICK_S)) == {"192.0.2.1/24"}
        ip(hosts, 3, "address add 192.0.2.9/24 dev other")  # it moves: from one interface to the other
        ip(hosts, 3, "address del 192.0.2.1/24 dev extra")
        watch.until(
            lambda told: (
                {one.name: addresses(one) for one in told.interfaces if one.name in ("extra", "other")}
                == {"extra": set(), "other": {"192.0.2.9/24"}}
            ),
            QUICK_S,
        )
        ip(hosts, 3, "link set other down")  # the far end of its cable
        failed = watch.interface(3, "extra", Change.FAILED, QUICK_S)
        assert failed.state & failed.state.UP
        assert not failed.state & failed.state.CARRIER
        ip(hosts, 3, "link set other up")
        watch.interface(3, "extra", Change.UP, QUICK_S)
        ip(hosts, 3, "link set extra mtu 1400")
        assert watch.interface(3, "extra", Change.OTHER, QUICK_S).mtu == 1400
        ip(hosts, 3, "link delete extra")
        watch.interface(3, "extra", Change.REMOVED, QUICK_S)
        assert {one.name for one in watch.state.interfaces[3]} == {"lo", DEVICE}


def test_flapping_is_told_together(hosts: Hosts, cluster: Cluster) -> None:
    """An interface that goes up and down all the time: some ten reports a second, the rest counted in them."""
    with cluster.connect(1) as client:
        watch = Watch(client)
        watch.all_is_told(cluster.nodes)
        ip(hosts, 2, "link add flapping type veth peer name far")
        ip(hosts, 2, "link set far up")
        watch.interface(2, "flapping", Change.ADDED)
        began, before = time.monotonic(), len(watch.seen)
        lines = "\n".join(f"link set flapping {word}" for _ in range(FLAPS) for word in ("up", "down"))
        for _ in range(5):
            command("ip", "-n", hosts.namespace(2), "-batch", "-", text=lines)
            time.sleep(0.05)
        ip(hosts, 2, "link set flapping up")
        watch.until(lambda told: any(one.name == "flapping" and one.healthy for one in told.interfaces))
        time.sleep(0.5)
        while (event := watch.subscription.get(timeout=0)) is not None:
            watch.seen.append(ConnectivityEvent.decode(event.data))
        took = time.monotonic() - began
        reports = [told for told in watch.seen[before:] if told.code is ConnectivityCode.INTERFACE]
        assert len(reports) <= took / 0.1 + 1, f"{len(reports)} reports in {took:.2f} s"
        said = cluster.status(2)["components"]["connectivity"]
        assert said["coalesced"] >= sum(told.coalesced for told in reports) > 0


def test_a_node_that_dies(hosts: Hosts, cluster: Cluster) -> None:
    """The others have lost it, and it is not current any more; then it is back."""
    with cluster.connect(1) as client:
        watch = Watch(client)
        watch.all_is_told(cluster.nodes)
        cluster.stop_agent(3, kill=True)
        watch.lost(1, 3)
        watch.lost(2, 3)
        deadline = time.monotonic() + TOLD_S
        while _reporters(Watch(client)) != {1, 2}:
            assert time.monotonic() < deadline, "what node 3 said is still current"
        cluster.start_agent(3)
        watch.established(1, 3)
        watch.established(3, 1)
        with cluster.connect(3) as newcomer:
            there = Watch(newcomer)
            there.all_is_told(cluster.nodes)


def _reporters(watch: Watch) -> set[int]:
    """Nodes whose interfaces are current."""
    found = set()
    while (event := watch.subscription.get(timeout=0.1)) is not None and RecordFlags.RETAINED in event.flags:
        told = ConnectivityEvent.decode(event.data)
        found |= {told.node_id} if told.code is ConnectivityCode.INTERFACE else set()
    watch.subscription.close()
    return found


def test_the_cluster_cable_is_pulled(hosts: Hosts, cluster: Cluster) -> None:
    """Node 3 loses its carrier: it tells its own programs, which are alone now; the others tell that it is gone."""
    with cluster.connect(1) as client, cluster.connect(3) as own:
        watch, alone = Watch(client), Watch(own)
        watch.all_is_told(cluster.nodes)
        alone.all_is_told(cluster.nodes)
        hosts.unplug(3)
        watch.lost(1, 3)
        alone.known(lambda state: not next(one for one in state.interfaces[3] if one.name == DEVICE).healthy)
        alone.lost(3, 1)
        hosts.plug(3)
        watch.all_is_told(cluster.nodes)


def test_a_minority_tells_its_own(hosts: Hosts, cluster: Cluster) -> None:
    """Nobody has a majority; what happens on a node is told there alone, then to all when they meet again."""
    with cluster.connect(1) as client, cluster.connect(2) as other:
        watch, elsewhere = Watch(client), Watch(other)
        watch.all_is_told(cluster.nodes)
        elsewhere.all_is_told(cluster.nodes)
        hosts.isolate(*cluster.nodes)
        event, _ = watch.link(1, 2, established=False, local=True)
        ip(hosts, 1, "link add extra type veth peer name far")
        local, told = watch.until(
            lambda told: any(one.name == "extra" for one in told.interfaces), QUICK_S, local=True
        )
        assert local.seq == event.seq
        with cluster.connect(1) as late:
            known = Watch(late)
            known.until(lambda told: any(one.name == "extra" for one in told.interfaces), local=True)
        hosts.heal()
        _, everywhere = elsewhere.until(
            lambda told: told.node_id == 1 and any(one.name == "extra" for one in told.interfaces)
        )
        assert everywhere.interfaces[-1].name == told.interfaces[-1].name
        watch.link(1, 2, established=True)


def test_half_a_connection(hosts: Hosts, cluster: Cluster) -> None:
    """Where only one direction is cut both sides tell that the connection is lost, each what it knows."""
    with cluster.connect(1) as client:
        watch = Watch(client)
        watch.all_is_told(cluster.nodes)
        hosts.cut(2, 3, one_way=True)  # node 3 does not hear node 2
        _, told = watch.link(2, 3, established=False)
        (link,) = [one for one in told.links if one.heard == 3]
        assert link.state == link.state.HEARS


def test_a_paused_node_reports_nothing_false_about_others(cluster: Cluster) -> None:
    """A node that slept for less than the suspicion time does not tell that it has lost everybody."""
    with cluster.connect(1) as client:
        watch = Watch(client)
        watch.all_is_told(cluster.nodes)
        agent = cluster.agent(3)
        agent.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        agent.send_signal(signal.SIGCONT)
        time.sleep(1.0)
        while (event := watch.subscription.get(timeout=0)) is not None:
            told = ConnectivityEvent.decode(event.data)
            assert all(one.established for one in told.links), told


# --- two networks -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")  # each test leaves it as it was
def two() -> Iterator[tuple[TwoNetworks, RedundantCluster]]:
    with TwoNetworks(3) as hosts, RedundantCluster(hosts, timing=TIMING, topics=["news"]) as cluster:
        yield hosts, cluster


def lost(state: Connectivity) -> set[tuple[int, int, int]]:
    """(hearer, heard, network) of all that is not established."""
    return {key for key, link in state.links.items() if not link.established}


def goes_on(cluster: RedundantCluster, epoch: int) -> None:
    """What is published on any node comes on every other one, in the epoch of before."""
    for i in cluster.nodes:
        others = [j for j in cluster.nodes if j != i]
        with (
            cluster.connect(i) as client,
            cluster.connect(others[0]) as one,
            cluster.connect(others[1]) as other,
        ):
            subscriptions = [one.subscribe("news"), other.subscribe("news")]
            client.publish("news", b"still here").wait(QUICK_S)
            for subscription in subscriptions:
                event = subscription.get(timeout=QUICK_S)
                assert event is not None
                assert event.data == b"still here"
    assert {cluster.status(i)["epoch"] for i in cluster.nodes} == {epoch}


def shown(cluster: RedundantCluster) -> list[dict[str, Any]]:
    """The connections as the command line has them on node 2."""
    command = [sys.executable, "-m", "ocfcluster", "connectivity", "--json", "--socket", cluster.socket(2)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout)["links"])


@pytest.mark.parametrize("network", NETWORKS)
def test_which_of_two_networks_is_cut(network: Name, two: tuple[TwoNetworks, RedundantCluster]) -> None:
    """Node 3 loses one cable: its interface, and each connection over it, by network; and nothing else."""
    hosts, cluster = two
    number = list(NETWORKS).index(network)
    gone = {(3, 1, number), (3, 2, number), (1, 3, number), (2, 3, number)}
    with cluster.connect(1) as client:
        watch = Watch(client)
        watch.all_is_told(cluster.nodes, networks=2)
        epoch = cluster.status(1)["epoch"]
        hosts.pull(network, 3)
        watch.interface(3, NETWORKS[network], Change.FAILED, QUICK_S)
        watch.known(lambda state: lost(state) == gone)
        unhealthy = {
            (i, one.name)
            for i, interfaces in watch.state.interfaces.items()
            for one in interfaces
            if one.state & one.state.CLUSTER and not one.healthy
        }
        assert unhealthy == {(3, NETWORKS[network])}
        assert set(watch.state.eligible) == set(cluster.nodes)
        found = {
            (one["hearer"], one["heard"], one["network"]) for one in shown(cluster) if not one["established"]
        }
        assert found == gone
        goes_on(cluster, epoch)
        hosts.put_back(network, 3)
        watch.interface(3, NETWORKS[network], Change.UP)
        watch.all_is_told(cluster.nodes, networks=2)


def test_a_whole_network_is_cut(two: tuple[TwoNetworks, RedundantCluster]) -> None:
    hosts, cluster = two
    with cluster.connect(1) as client:
        watch = Watch(client)
        watch.all_is_told(cluster.nodes, networks=2)
        epoch = cluster.status(1)["epoch"]
        hosts.pull("second")
        every = {(i, j, 1) for i in cluster.nodes for j in cluster.nodes if i != j}
        watch.known(lambda state: lost(state) == every)
        goes_on(cluster, epoch)
        hosts.put_back("second")
        watch.all_is_told(cluster.nodes, networks=2)


def test_half_a_connection_of_one_network(two: tuple[TwoNetworks, RedundantCluster]) -> None:
    """Node 2 hears nothing on one network: it says so, by network. That the others are not heard there is in its row,
    not in theirs: what they know of who hears them is known of the node."""
    hosts, cluster = two
    with cluster.connect(1) as client:
        watch = Watch(client)
        watch.all_is_told(cluster.nodes, networks=2)
        epoch = cluster.status(1)["epoch"]
        hosts.lose("second", 100.0, 2)
        watch.known(lambda state: lost(state) == {(2, 1, 1), (2, 3, 1)})
        goes_on(cluster, epoch)
        hosts.lose("second", 0.0, 2)
        watch.all_is_told(cluster.nodes, networks=2)
