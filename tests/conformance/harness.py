"""Agents whose lives a check controls: the suite's ``Harness`` over single-node loopback clusters."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
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


class OwnCluster:
    """Several agents, to be ended and paused."""

    def __init__(self, cluster: LoopbackCluster) -> None:
        self._cluster = cluster
        self.socket = cluster.socket

    def kill(self, i: int) -> None:
        self._cluster.stop_agent(i, kill=True)

    def start(self, i: int) -> None:
        self._cluster.start_agent(i)

    def pause(self, i: int) -> None:
        self._cluster.agent(i).send_signal(signal.SIGSTOP)

    def go_on(self, i: int) -> None:
        self._cluster.agent(i).send_signal(signal.SIGCONT)


class LoopbackHarness:
    """Makes a fresh one for each check that asks; ``cluster`` makes a cluster of so many nodes."""

    def __init__(self, cluster: Callable[..., LoopbackCluster] = LoopbackCluster) -> None:
        self._cluster = cluster

    @contextmanager
    def new_cluster(
        self, nodes: int, suspicion_ms: int, components: Mapping[str, str] | None = None
    ) -> Iterator[OwnCluster]:
        timing = {"suspicion_ms": suspicion_ms, "heartbeat_ms": min(100, suspicion_ms // 5)}
        config = {"timing": timing, **({"components": components} if components else {})}
        with self._cluster(nodes, **config) as cluster:
            own = OwnCluster(cluster)
            try:
                yield own
            finally:
                for i in cluster.nodes:
                    own.go_on(i)

    @contextmanager
    def new_agent(self) -> Iterator[OwnAgent]:
        with self._cluster(1) as cluster:
            yield OwnAgent(cluster)
