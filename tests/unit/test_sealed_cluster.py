"""Real agents that seal: a rotation under load, a wrong key, a join, no secret anywhere, and no privilege."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import free_port
from tests.keyed import KeyedLoopback, command, new_key, rotate, rotate_under_load, until, write_keys

TOPICS = ["red", "blue"]
NODES = (1, 2, 3)
NOBODY = 65_534


@pytest.mark.timeout(180)
def test_a_rotation_under_load_loses_nothing_and_nobody(tmp_path: Path) -> None:
    with KeyedLoopback(3, topics=TOPICS) as cluster:
        key_id = rotate_under_load(cluster, TOPICS, tmp_path)
        # An agent that starts again has the new key from its file alone.
        cluster.stop_agent(2)
        cluster.start_agent(2)
        cluster.wait_active()
        assert cluster.sealing(2)["accepts"] == [key_id]


@pytest.fixture
def cluster() -> Iterator[KeyedLoopback]:
    with KeyedLoopback(3, topics=["news"]) as started:
        yield started


@pytest.mark.timeout(120)
def test_a_node_with_another_key_is_not_heard_and_says_why(cluster: KeyedLoopback) -> None:
    cluster.stop_agent(3)
    other = new_key(cluster.key)
    write_keys(cluster.key_file(3), other)
    cluster.start_agent(3)
    until(lambda: "seal_unknown_key" in cluster.dropped(1))
    until(lambda: "seal_unknown_key" in cluster.dropped(3))
    for i in (1, 3):
        until(lambda i=i: "is not in this node's key file" in cluster.log(i).read_text())  # type: ignore[misc]
    assert cluster.status(3)["state"] == "forming"
    assert [member["node_id"] for member in cluster.status(1)["members"]] == [1, 2]
    with cluster.connect(1) as client:
        client.publish("news", b"the others go on").wait(10.0)
    cluster.stop_agent(3)
    write_keys(cluster.key_file(3), cluster.key)
    cluster.start_agent(3)
    cluster.wait_active()


@pytest.mark.timeout(120)
def test_no_secret_is_in_anything_that_is_written_or_shown(cluster: KeyedLoopback, tmp_path: Path) -> None:
    new = new_key(cluster.key)
    rotate(cluster, write_keys(tmp_path / "new", new))
    cluster.stop_agent(2, kill=True)  # and its state comes by TCP
    with cluster.connect(1) as client:
        for number in range(100):
            client.publish("news", b"%d" % number)
        client.publish("news", b"last").wait(10.0)
    cluster.start_agent(2)
    cluster.wait_active()
    shown: dict[str, bytes] = {}
    for i in NODES:
        proc = Path(f"/proc/{cluster.agent(i).pid}")
        for name in ("cmdline", "environ", "comm"):
            shown[f"{i} {name}"] = (proc / name).read_bytes()
        shown[f"{i} status"] = json.dumps(cluster.status(i)).encode()
        for argv in (["status", "--prometheus"], ["key", "status"], ["key", "load"], ["key", "use", new.id]):
            done = command("--socket", cluster.socket(i), *argv)
            shown[f"{i} {argv}"] = (done.stdout + done.stderr).encode()
        archive = tmp_path / f"{i}.tar.gz"
        config = cluster.directory / f"{i}.toml"
        done = command("--socket", cluster.socket(i), "collect", str(archive), "--config", str(config))
        assert done.returncode == 0, done.stderr
        with tarfile.open(archive) as opened:
            for member in opened:
                inside = opened.extractfile(member)
                shown[f"{i} {member.name}"] = b"" if inside is None else inside.read()
    for path in cluster.directory.rglob("*"):
        if path.is_file() and path.suffix != ".key":
            shown[str(path)] = path.read_bytes()
    assert len(shown) > 30
    for key in (cluster.key, new):
        for form in (
            key.encoded().encode(),
            key._secret,
            key._secret.hex().encode(),
            key._root,
            key._root.hex().encode(),
        ):
            for where, data in shown.items():
                assert form not in data, f"a secret is in {where}"
                assert form[:16] not in data, f"half a secret is in {where}"
    assert any(new.id.encode() in data for data in shown.values()), "ids are shown"


class Unprivileged(KeyedLoopback):
    """Agents of a user that may nothing."""

    def start_agent(self, i: int) -> None:
        os.chown(self.directory, NOBODY, NOBODY)
        super().start_agent(i)

    def popen(self, i: int, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        if "agent" in argv:
            os.chown(self.key_file(i), NOBODY, NOBODY)
            caps = ["--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all", "--no-new-privs"]
            argv = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *caps, *argv]
        return super().popen(i, argv, **options)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become nobody")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("transport", ["multicast", "unicast"])
def test_an_agent_needs_no_privilege(transport: str) -> None:
    network: dict[str, Any] = {"transport": transport}
    made = Unprivileged(3, topics=["news"], network=network)
    if transport == "unicast":
        ports = {i: free_port() for i in NODES}
        made = UnprivilegedUnicast(ports)
    with made as cluster:
        for i in NODES:
            status = Path(f"/proc/{cluster.agent(i).pid}/status").read_text()
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert fields["Uid"].split() == [str(NOBODY)] * 4
            assert [int(fields[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")] == [
                0
            ] * 5
        with cluster.connect(1) as publisher, cluster.connect(3) as subscriber:
            subscription = subscriber.subscribe("news")
            publisher.publish("news", b"hello").wait(10.0)
            event = subscription.get(timeout=10.0)
            assert event is not None
            assert event.data == b"hello"
        cluster.stop_agent(2, kill=True)
        cluster.start_agent(2)
        cluster.wait_active()


class UnprivilegedUnicast(Unprivileged):
    def __init__(self, ports: dict[int, int]) -> None:
        super().__init__(3, topics=["news"])
        self._ports = ports

    def configuration(self, i: int) -> dict[str, Any]:
        document = super().configuration(i)
        peers = [f"127.0.0.1:{port}" for port in self._ports.values()]
        document["network"] = {
            "transport": "unicast", "interface": "127.0.0.1", "port": self._ports[i], "peers": peers,
        }  # fmt: skip
        return document
