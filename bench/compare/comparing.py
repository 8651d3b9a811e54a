"""Systems side by side: the same work on each, alternating, and the document of all that was measured."""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from bench.compare.install import InstallError
from bench.compare.measure import Result, how_many, latency, throughput
from bench.compare.peers.peer import Peer, PeerError
from bench.compare.ratios import medians, spreads
from bench.compare.work import HOSTS, OURS, Latency, Throughput, Work
from bench.run import environment
from tests.cluster import ClusterError
from tests.netns.hosts import Hosts

FAILURES: Final = (PeerError, ClusterError, RuntimeError, OSError)


class Comparing:
    """One run: each system on hosts of its own, all up all the time; work by work, round by round.

    The first system is the one whose figures are put over those of the others; its name is ``OURS``.
    """

    def __init__(
        self,
        systems: Sequence[Peer],
        works: Sequence[Work],
        console: Console,
        *,
        rounds: int,
        seconds: float,
        command: str,
        limit_s: float = math.inf,
    ) -> None:
        """A measurement of a rate takes about ``seconds``; ``console`` shows progress; ``command`` is for the document.

        No round is begun (but the first) that would end more than ``limit_s`` from now, if it took as long as the last.
        """
        self._all = tuple(systems)
        self._systems = list(systems)
        self._works = works
        self._console = console
        self._rounds = rounds
        self._seconds = seconds
        self._command = command
        self._deadline = time.monotonic() + limit_s
        self._events: dict[tuple[str, str], int] = {}
        self._raw: dict[str, dict[str, list[Result]]] = {}
        self._skipped: dict[str, str] = {}
        self._directories: dict[str, Path] = {}

    def run(self) -> dict[str, Any]:
        """All of it; the document that is written as JSON. Raises PeerError where nothing is left to compare."""
        settings = argparse.Namespace(event_loop="asyncio", delivery="safe", mtu=1500)
        began = environment(settings)
        began["command"] = self._command
        versions = {}
        with ExitStack() as stack:
            self._directories = {
                peer.name: Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ocf-bench-")))
                for peer in self._systems
            }
            for peer in list(self._systems):
                hosts = stack.enter_context(Hosts(HOSTS))
                stack.callback(peer.stop)
                if self._start(peer, hosts):
                    versions[peer.name] = peer.version()
            self._prepare()
            if len(self._systems) < 2 or self._systems[0].name != OURS:
                raise PeerError("nothing is left to compare")
            rounds = self._measure_rounds()
        began["load_average_after"] = os.getloadavg()
        spread = spreads(self._raw, OURS)
        return {
            "environment": began,
            "rounds": rounds,
            "ratios": medians(spread),
            "spreads": spread,
            "systems": {
                peer.name: {
                    "title": peer.title,
                    "version": versions[peer.name],
                    "guarantee": peer.guarantee,
                    "total_order": peer.total_order,
                    "api": peer.api,
                    "latency": peer.waits_for,
                }
                for peer in self._all
                if peer.name in self._raw
            },
            "skipped": self._skipped,
            "raw": self._raw,
        }

    def _start(self, peer: Peer, hosts: Hosts) -> bool:
        """Whether it works; else it is skipped, and the reason kept."""
        self._console.print(f"[dim]starting[/] {peer.name}")
        try:
            peer.build()
            peer.start(hosts, self._directories[peer.name])
        except (InstallError, *FAILURES) as error:
            self._skip(peer, str(error))
            return False
        return True

    def _skip(self, peer: Peer, reason: str) -> None:
        """Go on without it; figures that it has already stay."""
        self._console.print(f"{peer.name} is skipped: {reason}", markup=False)
        self._skipped[peer.name] = reason
        peer.stop()
        self._systems.remove(peer)

    def _does(self, peer: Peer, work: Work) -> bool:
        return isinstance(work, Latency) or not work.way or peer.name == OURS

    def _prepare(self) -> None:
        """Find how many events take as long as wanted, which warms all up as well; nothing of it counts."""
        for work in self._works:
            for peer in list(self._systems):
                if isinstance(work, Throughput) and self._does(peer, work):
                    try:
                        events = how_many(peer, work, self._seconds)
                    except FAILURES as error:
                        self._skip(peer, f"{work.name}: {error}")
                        continue
                    self._events[peer.name, work.name] = events
                    self._console.print(f"[dim]prepare[/] {work.name:10} {peer.name:11} {events} events")

    def _measure_rounds(self) -> int:
        """How many rounds there were."""
        for number in range(1, self._rounds + 1):
            began = time.monotonic()
            for work in self._works:
                # To and fro, so that it is not always the same one that comes after another.
                for peer in self._systems[:: 1 if number % 2 else -1]:
                    if self._does(peer, work):
                        self._measure(peer, work, number)
            now = time.monotonic()
            if now + (now - began) > self._deadline:
                return number
        return self._rounds

    def _measure(self, peer: Peer, work: Work, number: int) -> None:
        try:
            if isinstance(work, Latency):
                result = latency(peer, work)
                text = f"p50 {result['p50_us']:.0f} µs, p99 {result['p99_us']:.0f} µs"
            else:
                result = throughput(peer, work, self._events[peer.name, work.name])
                text = (
                    f"{result['events_per_s'] / 1000:9.1f} k/s {result['mb_per_s']:7.1f} MB/s, "
                    f"{result['cpu_s_per_million']:.2f} CPU s per million"
                )
            if result["lost_share"]:
                text += f", {result['lost_share']:.1%} lost"
        except FAILURES as error:
            result = {"error": str(error)}
            text = f"failed: {error}"
        result |= {"round": number, "at": time.strftime("%H:%M:%S", time.gmtime())}
        self._raw.setdefault(peer.name, {}).setdefault(work.name, []).append(result)
        self._console.print(f"{number}/{self._rounds} {work.name:10} {peer.name:11} {text}", markup=False)
        if "error" in result:
            self._restart(peer)

    def _restart(self, peer: Peer) -> None:
        """After a failure: what it left in the system is not measured. One that does not come again is out."""
        hosts = peer.hosts
        again = self._directories[peer.name] / f"again-{time.monotonic_ns()}"
        again.mkdir()
        try:
            peer.stop()
            peer.start(hosts, again)
        except FAILURES as error:
            self._skip(peer, str(error))
