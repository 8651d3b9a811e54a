"""Eclipse Zenoh: programs that find each other and send to each other over TCP; a client in Python."""

from __future__ import annotations

from pathlib import Path

from bench.compare.install import CLIENTS, VENV, run
from bench.compare.peers.peer import Peer
from tests.netns.hosts import Hosts

PYTHON = VENV / "bin" / "python"


class Zenoh(Peer):
    name = "zenoh"
    title = "Zenoh"
    guarantee = (
        "each publisher's order, over TCP, none among publishers; publishers wait for a slow subscriber"
    )
    total_order = False
    api = "Publisher.put, callback of declare_subscriber (Python, over a library in Rust)"
    waits_for = "half of the way to another host and back"
    pypi = True

    def build(self) -> None:
        """Python is not compiled."""

    def version(self) -> str:
        found = run([str(PYTHON), "-c", "import importlib.metadata as m; print(m.version('eclipse-zenoh'))"])
        return f"eclipse-zenoh {found.strip()}"

    def start(self, hosts: Hosts, directory: Path) -> None:
        """There is nothing to start: it is a library."""
        self._hosts = hosts

    def command(self, i: int, role: str) -> list[str]:
        return [str(PYTHON), str(CLIENTS / "zenoh_client.py"), self.hosts.address(i), role]
