"""The virtual world: one event heap, one clock, hosts, a network between them, and the checker that watches."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random
from typing import IO, Final

from ocfcluster.simulator.checker import Checker
from ocfcluster.simulator.describe import describe_datagrams, describe_run
from ocfcluster.simulator.host import NEVER_NS, Host, HostProfile
from ocfcluster.simulator.network import LinkProfile, Network
from ocfcluster.simulator.streams import Streams
from ocfcluster.simulator.trace import Trace, Violation

STEPS: Final = 3_000_000  # of one run: beyond, something goes round in circles

Action = Callable[..., object]


class World:
    """Everything there is. ``now`` is true time, ns from 0; hosts have clocks of their own."""

    __slots__ = (
        "_heap",
        "_order",
        "calm_after",
        "checker",
        "hosts",
        "network",
        "now",
        "seed",
        "steps",
        "streams",
        "trace",
    )

    def __init__(self, seed: int, delivery: str = "safe", out: IO[str] | None = None) -> None:
        self.seed = seed
        self.now = 0
        self.steps = 0
        self.calm_after = 0  # when the faults stop
        self._heap: list[tuple[int, int, Action, tuple[object, ...]]] = []
        self._order = 0
        self.trace = Trace(describe_datagrams, out)
        self.network = Network(self, self.random("network"))
        self.streams = Streams(self.random("streams"))
        self.hosts: dict[int, Host] = {}
        self.checker = Checker(self, delivery)

    def random(self, purpose: str) -> Random:
        """A source of chance of its own for each purpose, so that one more draw here changes nothing there."""
        return Random(f"{self.seed}/{purpose}")

    def describe_run(self, run: bytes) -> str:
        return describe_run(run)

    def at(self, time: int, action: Action, *arguments: object) -> None:
        """``action(*arguments)`` at ``time``, after all that was planned for that time before."""
        self._order += 1
        heapq.heappush(self._heap, (max(time, self.now), self._order, action, arguments))

    def after(self, delay_ns: int, action: Action, *arguments: object) -> None:
        self.at(self.now + delay_ns, action, *arguments)

    def add_host(self, profile: HostProfile, link: LinkProfile) -> Host:
        """A machine that is switched on at its ``start_ns``, if ever; its links are there at once."""
        node_id = profile.settings.node_id
        self.network.plug_in(node_id, link)
        host = self.hosts[node_id] = Host(self, profile, self.random(f"host {node_id}"))
        if profile.start_ns != NEVER_NS:
            self.at(profile.start_ns, host.boot)
            self.trace.add(self.now, node_id, "planned", f"starts at {profile.start_ns / 1e6:.3f} ms")
        return host

    def run_until(self, time: int) -> None:
        """All that is planned up to ``time``. Raises Violation."""
        heap = self._heap
        while heap and heap[0][0] <= time:
            self.now, _, action, arguments = heapq.heappop(heap)
            self.steps += 1
            action(*arguments)
        if self.steps > STEPS:
            raise Violation("endless", f"more than {STEPS} steps in {self.now / 1e9:.3f} simulated seconds")
        self.now = max(self.now, time)
