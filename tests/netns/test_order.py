"""One order on every node: three hosts, three publishers at once, and a network that loses, delays and reorders.

What is checked knows nothing of how it is done: each node's subscriber writes down what it got, and ``oracle`` judges
the traces.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.netns.cluster import Cluster
from tests.netns.hosts import Hosts
from tests.netns.oracle import check
from tests.netns.programs import COMPONENTS, Programs

pytestmark = [pytest.mark.netns, pytest.mark.timeout(300)]

NODES = (1, 2, 3)
TOPICS = ["red", "blue"]
SIZE = 64
EVENTS = 30_000  # of each publisher


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
    with (
        Hosts(len(NODES), link="switch", seed=1) as hosts,
        Cluster(hosts, topics=TOPICS, components=COMPONENTS) as cluster,
        Programs(cluster, TOPICS, tmp_path, SIZE) as programs,
    ):
        assert hosts.switch is not None
        hosts.switch.set(**network.wrong)
        programs.subscribe(resume=False)
        programs.publish(network.events)
        published = programs.published()
        programs.mark_the_end(1)
        received = programs.received()
        counters = hosts.switch.counters()
        print(f"{network.name}: published {published}, received {received}, switch {counters}")
        # Inside the block, so that a failure keeps the agents' logs.
        for i in NODES:
            assert published[i]["published"] == network.events
            assert received[i]["notices"] == {}
        verdict = check(programs.traces, TOPICS, programs.known(), programs.answers)
        assert verdict.events == len(NODES) * network.events + 1
        for row in counters.values():
            assert bool(row["lost"]) == bool(network.wrong.get("loss"))
            assert bool(row["reordered"]) == bool(network.wrong.get("reorder"))
            assert bool(row["duplicated"]) == bool(network.wrong.get("duplicate"))
