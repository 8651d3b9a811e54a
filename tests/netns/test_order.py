"""One order on every node: three hosts, three publishers at once, and a network that loses, delays and reorders.

What is checked knows nothing of how it is done: each node's subscriber writes down what it got, and the traces are
compared with each other and with what was published.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.netns.cluster import Cluster
from tests.netns.hosts import Hosts
from tests.netns.traces import check

pytestmark = [pytest.mark.netns, pytest.mark.timeout(300)]

NODES = (1, 2, 3)
TOPICS = ["red", "blue"]
SIZE = 64
EVENTS = 100_000  # of each publisher
WORKER = [sys.executable, "-m", "tests.netns.worker"]
WORK_TIMEOUT_S = 200.0


@dataclass(frozen=True)
class Network:
    """What is wrong with every link (fields of ``switch.Impairment``)."""

    name: str
    wrong: dict[str, Any]
    events: int = EVENTS


NETWORKS = [
    Network("sound", {}),
    Network("loss-1", {"loss": 0.01}),
    Network("loss-5", {"loss": 0.05}),
    Network("loss-20", {"loss": 0.20}),
    Network(
        "unruly",
        {
            "delay_ms": 1.0,
            "jitter_ms": 1.0,
            "reorder": 0.05,
            "reorder_ms": 3.0,
            "duplicate": 0.05,
            "loss": 0.01,
        },
    ),
]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_all_nodes_deliver_the_same_complete_sequence(network: Network, tmp_path: Path) -> None:
    with Hosts(len(NODES), link="switch", seed=1) as hosts, Cluster(hosts, topics=TOPICS) as cluster:
        assert hosts.switch is not None
        hosts.switch.set(**network.wrong)
        traces = {i: tmp_path / f"{i}.trace" for i in NODES}
        total = network.events * len(NODES)
        subscribers = {i: start(cluster, i, "subscribe", count=total, trace=traces[i]) for i in NODES}
        for subscriber in subscribers.values():
            assert subscriber.stdout is not None
            assert subscriber.stdout.readline() == "ready\n"
        publishers = {
            i: start(cluster, i, "publish", count=network.events, publisher=i, size=SIZE) for i in NODES
        }
        published = {i: summary(process) for i, process in publishers.items()}
        received = {i: summary(process) for i, process in subscribers.items()}
        counters = hosts.switch.counters()
        print(f"{network.name}: published {published}, received {received}, switch {counters}")
        # Inside the block, so that a failure keeps the agents' logs.
        for i in NODES:
            assert published[i]["published"] == network.events
            assert received[i]["notices"] == []
        check(traces, TOPICS, SIZE, network.events)
        for row in counters.values():
            assert bool(row["lost"]) == bool(network.wrong.get("loss"))
            assert bool(row["reordered"]) == bool(network.wrong.get("reorder"))
            assert bool(row["duplicated"]) == bool(network.wrong.get("duplicate"))


def start(cluster: Cluster, i: int, command: str, **options: object) -> subprocess.Popen[Any]:
    options |= {"socket": cluster.socket(i), "topics": ",".join(TOPICS)}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    return cluster.popen(i, [*WORKER, command, *arguments], stdout=subprocess.PIPE, text=True)


def summary(process: subprocess.Popen[Any]) -> dict[str, Any]:
    output, _ = process.communicate(timeout=WORK_TIMEOUT_S)
    assert process.returncode == 0, f"a worker left with {process.returncode}"
    document: dict[str, Any] = json.loads(output)
    return document
