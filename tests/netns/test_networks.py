"""Three hosts on two networks: one of them is cut, lossy, or both in turn, and nobody at the other end can tell.

Each test publishes on all three hosts while a network fails, and looks at what subscribers got: every event, none late,
the same views as before. That the failure was real, and is seen, is in the status.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.netns.faults import Drill
from tests.netns.networks import Name, RedundantCluster, TwoNetworks
from tests.netns.oracle import check
from tests.netns.programs import COMPONENTS, Programs
from tests.netns.traces import Got, read

pytestmark = pytest.mark.netns

TOPICS = ["red", "blue"]
NODES = (1, 2, 3)
RATE = 200.0  # events per second of each publisher
HEARTBEAT_S = 0.1
# No event waits longer for the next one than this: two heartbeats, and what this machine itself holds up.
LONGEST_PAUSE_S = 2 * HEARTBEAT_S + 0.25


def links(cluster: RedundantCluster, i: int) -> dict[tuple[int, str], bool]:
    return {(one["node_id"], one["network"]): one["heard"] for one in cluster.status(i)["links"]}


def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)


def dead(cluster: RedundantCluster, network: Name) -> Callable[[], bool]:
    """Every node sees ``network`` silent, and the other one not."""

    def seen() -> bool:
        return all(
            heard == (name != network) for i in NODES for (_, name), heard in links(cluster, i).items()
        )

    return seen


def pauses(trace: Path) -> list[float]:
    """Seconds between events of a subscriber, the longest first."""
    times = [line.time_ns for line in read(trace) if isinstance(line, Got)]
    return sorted(((b - a) / 1e9 for a, b in itertools.pairwise(times)), reverse=True)


@contextmanager
def under_load(
    directory: Path, transport: Literal["multicast", "unicast"] = "multicast"
) -> Iterator[tuple[TwoNetworks, RedundantCluster]]:
    """Load on three hosts; at the end all is well, and was: one view, every event, no pause."""
    with (
        TwoNetworks(3) as hosts,
        RedundantCluster(hosts, transport, topics=TOPICS, components=COMPONENTS) as cluster,
        Programs(cluster, TOPICS, directory) as programs,
    ):
        programs.subscribe(resume=False)
        programs.load(RATE)
        drill = Drill(cluster)
        before = drill.settled()
        time.sleep(1.0)
        yield hosts, cluster
        time.sleep(0.5)
        after = {i: drill.status(i) for i in NODES}
        published = programs.published()
        assert all(document["flushed"] for document in published.values()), published
        programs.mark_the_end(1)
        for document in programs.received().values():
            assert document["notices"] == {}
        verdict = check(programs.traces, TOPICS, programs.known(), programs.answers)
        assert verdict.views == 1
        worst = {node: pauses(trace)[0] for node, trace in programs.traces.items()}
        print(f"published {published}, longest pauses {worst}")
        assert max(worst.values()) < LONGEST_PAUSE_S, worst
        for i in NODES:
            assert after[i]["epoch"] == before[i]["epoch"]
            assert after[i]["evictions"] == 0
            assert after[i]["network_counters"]["duplicates_dropped"] > 100


@pytest.mark.timeout(120)
@pytest.mark.parametrize("transport", ["multicast", "unicast"])
@pytest.mark.parametrize("network", ["first", "second"])
def test_a_dead_network_changes_nothing(
    tmp_path: Path, network: Name, transport: Literal["multicast", "unicast"]
) -> None:
    with under_load(tmp_path, transport) as (hosts, cluster):
        until(lambda: all(all(links(cluster, i).values()) for i in NODES))
        hosts.pull(network)
        until(dead(cluster, network))
        time.sleep(1.0)
        hosts.put_back(network)
        until(lambda: all(all(links(cluster, i).values()) for i in NODES))


@pytest.mark.timeout(120)
def test_a_host_with_one_network_left_is_heard_by_it(tmp_path: Path) -> None:
    with under_load(tmp_path) as (hosts, cluster):
        hosts.pull("first", 1)
        until(lambda: not links(cluster, 2)[1, "first"])
        assert links(cluster, 2)[1, "second"]
        assert links(cluster, 2)[3, "first"]
        hosts.put_back("first", 1)
        until(lambda: all(all(links(cluster, i).values()) for i in NODES))


@pytest.mark.timeout(120)
def test_a_lossy_network_loses_nothing(tmp_path: Path) -> None:
    with under_load(tmp_path) as (hosts, cluster):
        asked = {i: cluster.status(i)["data_plane"]["nacks_sent"] for i in NODES}
        hosts.lose("first", 30.0)
        time.sleep(3.0)
        now = {i: cluster.status(i) for i in NODES}
        hosts.lose("first", 0.0)
        # What the one lost the other has brought before anybody asked.
        assert sum(now[i]["data_plane"]["nacks_sent"] - asked[i] for i in NODES) < 20


@pytest.mark.timeout(120)
def test_one_way_is_enough(tmp_path: Path) -> None:
    """A host that hears nothing on one network goes on sending there: answers come by the other."""
    with under_load(tmp_path) as (hosts, cluster):
        hosts.lose("first", 100.0, 2)
        until(lambda: not links(cluster, 2)[1, "first"])
        assert links(cluster, 1)[2, "first"]
        time.sleep(1.0)
        hosts.lose("first", 0.0, 2)


@pytest.mark.timeout(120)
def test_a_node_joins_by_the_network_that_is_left(tmp_path: Path) -> None:
    """Its state, too, comes by TCP over it."""
    with TwoNetworks(3) as hosts, RedundantCluster(hosts, topics=TOPICS) as cluster:
        cluster.stop_agent(3)
        hosts.pull("first")
        cluster.start_agent(3)
        cluster.wait_active([3], 30.0)
        status: dict[str, Any] = cluster.status(3)
        assert status["counters"]["snapshots_fetched"] == 1
        assert {(one["node_id"], one["network"]) for one in status["links"]} == {(1, "second"), (2, "second")}
        assert [one["name"] for one in status["networks"]] == ["first", "second"]
        hosts.put_back("first")


@pytest.mark.timeout(120)
def test_an_agent_starts_with_the_network_that_is_there_and_takes_the_other_when_it_comes(
    tmp_path: Path,
) -> None:
    with TwoNetworks(3) as hosts, RedundantCluster(hosts, topics=TOPICS) as cluster:
        cluster.stop_agent(3)
        hosts.take_away("first", 3)
        cluster.start_agent(3)
        cluster.wait_active([3], 30.0)
        status = cluster.status(3)
        assert [bool(one["error"]) for one in status["networks"]] == [True, False]
        assert any("a network is missing" in warning for warning in status["warnings"])
        hosts.give_back("first", 3)
        until(lambda: not any(one["error"] for one in cluster.status(3)["networks"]), 15.0)
        until(lambda: all(all(links(cluster, i).values()) for i in NODES))
        until(lambda: len(links(cluster, 3)) == 4)
        assert not any("is missing" in warning for warning in cluster.status(3)["warnings"])
        hosts.pull("second")  # and it works: what is sent, received, and fetched by those who join
        until(dead(cluster, "second"))
        cluster.stop_agent(1)
        cluster.start_agent(1)
        cluster.wait_active([1], 30.0)
        hosts.put_back("second")
