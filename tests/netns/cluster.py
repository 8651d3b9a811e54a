"""A cluster with a host (network namespace) of its own for every node."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from tests.cluster import ROOT, BaseCluster, Topics, end_with_parent
from tests.netns.hosts import DEVICE, Hosts


class Cluster(BaseCluster):
    """One agent on each of ``hosts``, on multicast over their network; all else as ``BaseCluster``."""

    def __init__(
        self, hosts: Hosts, delivery: str = "safe", topics: Topics = (), **config: Mapping[str, Any]
    ) -> None:
        network = {
            "transport": "multicast",
            "interface": DEVICE,
            "group": "239.192.77.1",
            "port": 5405,
        }
        super().__init__(len(hosts.numbers), network, delivery=delivery, topics=topics, config=config)
        self.hosts = hosts

    def popen(self, i: int, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        return self.hosts.popen(i, argv, preexec_fn=end_with_parent, **{"cwd": ROOT, **options})
