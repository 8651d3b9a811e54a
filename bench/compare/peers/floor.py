"""The floor: multicast in C with segmentation offload on both sides, and nothing that makes it reliable."""

from __future__ import annotations

from pathlib import Path

from bench.compare.install import compile_c, run
from bench.compare.peers.peer import Peer
from tests.netns.hosts import Hosts


class Floor(Peer):
    name = "floor"
    title = "Floor (C, no reliability)"
    guarantee = "none: no order among publishers, what is lost stays lost, nobody waits for a slow receiver"
    total_order = False
    api = "sendmmsg with UDP_SEGMENT, recvmmsg with UDP_GRO (C)"
    waits_for = "the first answer of another host: what a majority of three needs at least"
    tools = (("gcc", "gcc libc6-dev"),)

    def __init__(self) -> None:
        super().__init__()
        self._client = ""

    def build(self) -> None:
        self._client = str(compile_c("floor"))

    def version(self) -> str:
        return run(["gcc", "--version"]).splitlines()[0]

    def start(self, hosts: Hosts, directory: Path) -> None:
        self._hosts = hosts

    def command(self, i: int, role: str) -> list[str]:
        return [self._client, self.hosts.address(i), role]
