"""ocfcluster itself: an agent on each host, with its defaults."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench.compare.peers.peer import Peer, Program
from bench.compare.work import OURS
from bench.load import TOPIC, TOPICS
from ocfcluster import __version__
from tests.cluster import ClusterError
from tests.netns.cluster import Cluster
from tests.netns.hosts import Hosts


class Ocfcluster(Peer):
    """The peer of all others. ``way`` is the API of subscribers: a key of ``bench.load.SUBSCRIBING``."""

    name = OURS
    title = "ocfcluster"
    guarantee = "safe: one total order for all, delivered when nodes with more than half of the votes hold it"
    total_order = True
    api = "publish_many; runs(), opened on access (Python)"

    def __init__(self) -> None:
        super().__init__()
        self._cluster: Cluster | None = None

    @property
    def cluster(self) -> Cluster:
        if self._cluster is None:
            raise RuntimeError("the cluster is not started")
        return self._cluster

    def build(self) -> None:
        """It is there already."""

    def version(self) -> str:
        return f"ocfcluster {__version__}"

    def start(self, hosts: Hosts, directory: Path) -> None:
        self._hosts = hosts
        self._cluster = Cluster(hosts, topics=TOPICS)
        self._cluster.start()

    def stop(self) -> None:
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            try:
                cluster.__exit__(None, None, None)
            except ClusterError as error:  # what was measured until now is not lost for that
                print(f"ocfcluster did not end well: {error}", file=sys.stderr)

    def publisher_host(self) -> int:
        sequencer = int(self.cluster.status(1)["sequencer"])
        return next(i for i in self.cluster.nodes if i != sequencer)

    def daemons(self) -> dict[int, int]:
        return {i: self.cluster.agent(i).pid for i in self.cluster.nodes}

    def command(self, i: int, role: str) -> list[str]:
        return [sys.executable, "-m", "bench.worker", role, self.cluster.socket(i), TOPIC]

    def program(self, i: int, role: str, *numbers: int, way: str = "") -> Program:
        """``bench.worker`` asks for what to use, not for sizes where it takes events; its warm-up is a constant."""
        if role == "subscribe":
            arguments = [way or "runs", numbers[0]]
        elif role == "publish":
            arguments = ["many", *numbers]
        else:
            arguments = list(numbers[1:])
        argv = [*self.command(i, role), *map(str, arguments)]
        return Program(self.popen(i, argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0))
