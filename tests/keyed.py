"""Clusters whose nodes have keys: a key file for each node, and the commands of a rotation."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ocfcluster.wire.keys import KEY_BYTES, ClusterKey, key_text
from tests.cluster import ROOT, BaseCluster, LoopbackCluster
from tests.netns.cluster import Cluster
from tests.netns.oracle import check
from tests.netns.programs import Programs

RATE: Final = 200.0  # events per second of each publisher


def new_key(*others: ClusterKey) -> ClusterKey:
    """A key that goes into a file with ``others``."""
    while True:
        key = ClusterKey(secrets.token_bytes(KEY_BYTES))
        if all(key.hint != other.hint for other in others):
            return key


def write_keys(file: Path, *keys: ClusterKey) -> Path:
    file.write_text(key_text(keys), "ascii")
    file.chmod(0o600)
    return file


def command(*argv: str) -> subprocess.CompletedProcess[str]:
    """``ocfcluster`` with these arguments."""
    return subprocess.run(
        [sys.executable, "-m", "ocfcluster", *argv], capture_output=True, text=True, timeout=60, cwd=ROOT
    )


class Keyed(BaseCluster):
    """Mixed into a cluster: node i seals with what is in ``key_file(i)``, at first ``key``."""

    key: ClusterKey

    def key_file(self, i: int) -> Path:
        return self.directory / f"{i}.key"

    def configuration(self, i: int) -> dict[str, Any]:
        document = super().configuration(i)
        document["security"] = {"key_file": str(self.key_file(i))}
        document["components"] = {
            "connectivity": "external"
        }  # the oracle of a rotation knows events and views alone
        return document

    def start_agent(self, i: int) -> None:
        if not hasattr(self, "key"):
            self.key = new_key()
        if not self.key_file(i).exists():
            write_keys(self.key_file(i), self.key)
        super().start_agent(i)

    def sealing(self, i: int) -> dict[str, Any]:
        return dict(self.status(i)["sealing"])

    def dropped(self, i: int) -> dict[str, int]:
        """What node ``i`` did not open, by reason."""
        counters = self.status(i)["network_counters"]
        return {name: times for name, times in counters.items() if name.startswith("seal_") and times}

    def change(self, i: int, *argv: str, code: int = 0) -> Any:
        """``ocfcluster key`` with these arguments on node ``i``: what it printed as JSON, or its last words."""
        done = command("--socket", self.socket(i), "key", *argv, "--json")
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if code == 0 else done.stderr


class KeyedLoopback(Keyed, LoopbackCluster):
    pass


class KeyedCluster(Keyed, Cluster):
    pass


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)


def rotate(cluster: Keyed, new_file: Path) -> str:
    """The three commands on every node; the id of the new key."""
    old, nodes = cluster.key.id, cluster.nodes
    refused = cluster.change(nodes[0], "use", "00000000", code=5)
    assert "there is no key" in refused
    key_id = ""
    for i in nodes:
        (key_id,) = cluster.change(i, "add", str(new_file))["key_ids"]
        if i == nodes[0]:
            assert "not said that it has key" in cluster.change(i, "use", key_id, code=5)
    until(lambda: all(key_id in one["key_ids"] for i in nodes for one in cluster.sealing(i)["members"]))
    for i in nodes:
        assert cluster.change(i, "use", key_id)["seals_with"] == key_id
        if i == nodes[0]:
            assert "not said that it seals with another" in cluster.change(i, "drop", old, code=5)
    until(lambda: all(one["key_ids"][0] == key_id for i in nodes for one in cluster.sealing(i)["members"]))
    for i in nodes:
        assert cluster.change(i, "drop", old)["accepts"] == [key_id]
    return key_id


def rotate_under_load(cluster: Keyed, topics: list[str], directory: Path) -> str:
    """A rotation while every node publishes: no event lost, none doubled, one view; the id of the new key."""
    with Programs(cluster, topics, directory) as programs:
        programs.subscribe(resume=False)
        programs.load(RATE)
        before = {i: cluster.status(i) for i in cluster.nodes}
        key_id = rotate(cluster, write_keys(directory / "new", new_key(cluster.key)))
        time.sleep(0.5)
        after = {i: cluster.status(i) for i in cluster.nodes}
        published = programs.published()
        assert all(document["flushed"] for document in published.values()), published
        programs.mark_the_end(1)
        for document in programs.received().values():
            assert document["notices"] == {}
        verdict = check(programs.traces, topics, programs.known(), programs.answers)
    assert verdict.views == 1
    assert verdict.events > 1000
    for i in cluster.nodes:
        assert after[i]["epoch"] == before[i]["epoch"]
        assert after[i]["incarnation"] == before[i]["incarnation"]
        assert after[i]["sealing"]["accepts"] == [key_id]
        assert cluster.dropped(i) == {}
    return key_id
