"""NATS without persistence: a server on each host, all three routed to each other; a client in C."""

from __future__ import annotations

from pathlib import Path

from bench.compare.install import compile_c, run
from bench.compare.peers.peer import Peer
from tests.netns.hosts import Hosts


class Nats(Peer):
    name = "nats"
    title = "NATS"
    guarantee = "at most once: each publisher's order, over TCP; a subscriber that is too slow is cut off"
    total_order = False
    api = "natsConnection_Publish, callback of natsConnection_Subscribe (C)"
    debian = ("nats-server", "libnats-dev")
    needs = (("usr/sbin/nats-server", "nats-server"), ("usr/include/nats/nats.h", "libnats-dev"))
    tools = (("gcc", "gcc libc6-dev"),)

    def __init__(self) -> None:
        super().__init__()
        self._client = ""

    def build(self) -> None:
        self._client = str(compile_c("nats", "nats", tree=self.tree))

    def version(self) -> str:
        return run([self._server(), "--version"]).strip()

    def start(self, hosts: Hosts, directory: Path) -> None:
        self._hosts = hosts
        routes = {i: f"nats://{hosts.address(i)}:6222" for i in hosts.numbers}
        for i in hosts.numbers:
            others = ",".join(route for j, route in routes.items() if j != i)
            argv = [self._server(), "--addr", hosts.address(i), "--cluster_name", "bench", "--cluster", routes[i],
                    "--routes", others]  # fmt: skip
            self.start_daemon(i, argv, directory)
        self.await_words("Server is ready", directory)
        self.await_words("Route connection created", directory, times=len(hosts.numbers) - 1)

    def command(self, i: int, role: str) -> list[str]:
        return [self._client, f"nats://{self.hosts.address(i)}:4222", role]

    def _server(self) -> str:
        return str(self.tree.find("usr/sbin/nats-server") or "nats-server")
