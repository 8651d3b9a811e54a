"""ocfcluster itself, this checkout or another revision: an agent on each host, with its defaults."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench import worker
from bench.compare.install import run
from bench.compare.peers.peer import Peer, Program
from bench.compare.work import OURS
from bench.load import TOPIC, TOPICS
from tests.cluster import ROOT, ClusterError
from tests.keyed import Keyed
from tests.netns.cluster import Cluster
from tests.netns.hosts import Hosts

# -P: the folder of a script, which is on the path otherwise, has modules of the names of others.
PYTHON: Final = (sys.executable, "-P")


class Ocfcluster(Peer):
    """The peer of all others. ``way`` is the API of subscribers: a key of ``bench.load.SUBSCRIBING``.

    ``code`` is the directory that holds the package ``ocfcluster``, of which agents and programs are. What programs
    do with it is written in this checkout's ``bench.worker``, so that revisions are measured by the same means.
    ``sealed``: the agents have a key.
    """

    guarantee = "safe: one total order for all, delivered when nodes with more than half of the votes hold it"
    total_order = True
    api = "publish_many; runs(), opened on access (Python)"

    def __init__(
        self, name: str = OURS, title: str = "ocfcluster", code: Path = ROOT, *, sealed: bool = False
    ) -> None:
        self.name = name
        self.title = title
        super().__init__()
        self.code: Final = code
        self.sealed: Final = sealed
        self._cluster: Cluster | None = None

    @property
    def cluster(self) -> Cluster:
        if self._cluster is None:
            raise RuntimeError("the cluster is not started")
        return self._cluster

    def build(self) -> None:
        """It is there already."""

    def version(self) -> str:
        ask = "import ocfcluster; print(ocfcluster.__version__)"
        said = run([*PYTHON, "-c", ask], PYTHONPATH=self.environment()["PYTHONPATH"])
        return f"ocfcluster {said.strip()}"

    def environment(self) -> dict[str, str]:
        path = [str(self.code), os.environ.get("PYTHONPATH", "")]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}

    def start(self, hosts: Hosts, directory: Path) -> None:
        self._hosts = hosts
        self._cluster = (_SealedClusterOf if self.sealed else _ClusterOf)(self, hosts)
        self._cluster.start()

    def stop(self) -> None:
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            try:
                cluster.__exit__(None, None, None)
            except ClusterError as error:  # what was measured until now is not lost for that
                print(f"{self.title} did not end well: {error}", file=sys.stderr)

    def publisher_host(self) -> int:
        sequencer = int(self.cluster.status(1)["sequencer"])
        return next(i for i in self.cluster.nodes if i != sequencer)

    def daemons(self) -> dict[int, int]:
        return {i: self.cluster.agent(i).pid for i in self.cluster.nodes}

    def command(self, i: int, role: str) -> list[str]:
        return [*PYTHON, worker.__file__, role, self.cluster.socket(i), TOPIC]

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


class _ClusterOf(Cluster):
    """A cluster whose agents run ``peer``'s code."""

    def __init__(self, peer: Ocfcluster, hosts: Hosts) -> None:
        super().__init__(hosts, topics=TOPICS)
        self._options = {"cwd": peer.code, "env": peer.environment()}

    def popen(self, i: int, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        return super().popen(i, argv, **{**self._options, **options})


class _SealedClusterOf(Keyed, _ClusterOf):
    """The same, with a key."""
