"""Agents whose lives a check controls: the suite's ``Harness`` over single-node loopback clusters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.cluster import LoopbackCluster


class OwnAgent:
    """The one agent of a cluster of its own."""

    def __init__(self, cluster: LoopbackCluster) -> None:
        self._cluster = cluster
        self.socket = cluster.socket(1)

    def stop(self) -> None:
        self._cluster.stop_agent(1)

    def kill(self) -> None:
        self._cluster.stop_agent(1, kill=True)

    def restart(self) -> None:
        self._cluster.start_agent(1)
        self._cluster.wait_active()


class LoopbackHarness:
    """Makes a fresh one for each check that asks; ``cluster`` makes a cluster of so many nodes."""

    def __init__(self, cluster: Callable[[int], LoopbackCluster] = LoopbackCluster) -> None:
        self._cluster = cluster

    @contextmanager
    def new_agent(self) -> Iterator[OwnAgent]:
        with self._cluster(1) as cluster:
            yield OwnAgent(cluster)
