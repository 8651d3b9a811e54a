"""Eclipse Cyclone DDS: reliable, all kept until acknowledged, small writes sent together; a client in C."""

from __future__ import annotations

from pathlib import Path

from bench.compare.install import BUILD, CLIENTS, compile_c, run
from bench.compare.peers.peer import Peer
from tests.netns.hosts import Hosts


class CycloneDDS(Peer):
    name = "cyclonedds"
    title = "Cyclone DDS"
    guarantee = (
        "reliable: each publisher's order, none among publishers; publishers wait for a slow subscriber"
    )
    total_order = False
    api = "dds_write with batches, dds_take of a reader's loans (C)"
    waits_for = "half of the way to another host and back"
    debian = ("cyclonedds-dev", "cyclonedds-tools")
    needs = (("usr/include/dds/dds.h", "cyclonedds-dev"), ("usr/bin/idlc", "cyclonedds-tools"))
    tools = (("gcc", "gcc libc6-dev"),)

    def __init__(self) -> None:
        super().__init__()
        self._client = ""

    def build(self) -> None:
        made = BUILD / "idl"
        made.mkdir(parents=True, exist_ok=True)
        argv = [self._compiler(), "-l", "c", "-o", str(made), str(CLIENTS / "cyclonedds.idl")]
        run(argv, LD_LIBRARY_PATH=self.tree.libraries)
        self._client = str(compile_c("cyclonedds", "ddsc", tree=self.tree, generated=[made / "cyclonedds.c"]))

    def version(self) -> str:
        return run([self._compiler(), "-v"], LD_LIBRARY_PATH=self.tree.libraries).strip()

    def start(self, hosts: Hosts, directory: Path) -> None:
        """There is nothing to start: it is a library."""
        self._hosts = hosts

    def command(self, i: int, role: str) -> list[str]:
        return [self._client, role]

    def _compiler(self) -> str:
        return str(self.tree.find("usr/bin/idlc") or "idlc")
