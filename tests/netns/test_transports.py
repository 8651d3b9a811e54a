"""One order over each transport: IPv6 multicast, unicast of both families; also with five nodes and agreed delivery."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.netns.cluster import Cluster
from tests.netns.hosts import Hosts
from tests.netns.oracle import check
from tests.netns.programs import COMPONENTS, Programs

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]

TOPICS = ["red", "blue"]
EVENTS = 10_000  # of each publisher
PORT = 5405


@dataclass(frozen=True)
class Way:
    """A transport, and what else is unlike the default."""

    name: str
    family: Literal[4, 6] = 4
    unicast: bool = False
    nodes: int = 3
    loss_percent: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)

    def network(self, hosts: Hosts) -> dict[str, Any]:
        if not self.unicast:
            return {"group": "ff15::77" if self.family == 6 else "239.192.77.1"}
        addresses = [hosts.address(i, self.family) for i in hosts.numbers]
        peers = [f"[{one}]:{PORT}" if self.family == 6 else f"{one}:{PORT}" for one in addresses]
        return {"transport": "unicast", "peers": peers, "port": PORT}


WAYS = [
    Way("multicast-6", family=6),
    Way("unicast-4", unicast=True),
    Way("unicast-6", family=6, unicast=True),
    Way("no-offload", options={"network": {"segmentation": False}}),
    Way("five-nodes", nodes=5),
    Way("five-nodes-agreed", nodes=5, options={"delivery": "agreed"}),
    Way("jumbo", options={"network": {"mtu": 9000}}),
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_every_transport_carries_one_order(way: Way, tmp_path: Path) -> None:
    mtu = way.options.get("network", {}).get("mtu", 1500)
    with Hosts(way.nodes, mtu=mtu) as hosts:
        options = dict(way.options)
        network = way.network(hosts) | options.pop("network", {})
        with (
            Cluster(hosts, topics=TOPICS, network=network, components=COMPONENTS, **options) as cluster,
            Programs(cluster, TOPICS, tmp_path) as programs,
        ):
            hosts.set_loss(way.loss_percent)
            programs.subscribe(resume=False)
            programs.publish(EVENTS)
            published = programs.published()
            assert [one["published"] for one in published.values()] == [EVENTS] * way.nodes
            programs.mark_the_end(1)
            for document in programs.received().values():
                assert document["notices"] == {}
            verdict = check(programs.traces, TOPICS, programs.known(), programs.answers)
            assert verdict.events == EVENTS * way.nodes + 1
