"""The same work on ocfcluster and on other systems, alternating, in one run: ratios with their spread.

    python -m bench.compare --install corosync,nats           # once: unpacks them below build/bench
    python -m bench.compare --peers corosync --rounds 5 --json compare.json
    python -m bench.compare                                   # all that are installed
    python -m bench.compare --from compare.json --picture docs/compare.svg

Three hosts (network namespaces on a bridge of their own) for each system, one publisher or three, a subscriber on every
host. Needs root. docs/performance.md says what is measured and what each system promises.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shlex
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from bench.compare.install import InstallError, Tree, make_venv
from bench.compare.measure import Result, how_many, latency, throughput
from bench.compare.peers import PEERS
from bench.compare.peers.ocf import Ocfcluster
from bench.compare.peers.peer import Peer, PeerError
from bench.compare.picture import draw
from bench.compare.ratios import medians, spreads
from bench.compare.report import show
from bench.compare.work import HOSTS, OURS, WORKS, Latency, Throughput, Work
from bench.run import environment
from tests.cluster import ClusterError
from tests.netns.hosts import Hosts

ROUNDS: Final = 5
SECONDS: Final = 2.0
FAILURES: Final = (PeerError, ClusterError, RuntimeError, OSError)


def main() -> int:
    arguments = _parse()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        if arguments.install:
            return _install(_named(arguments.install), console)
        if arguments.source:
            document = json.loads(Path(arguments.source).read_text("utf-8"))
            return _hand_over(document, arguments)
        chosen, works = _named(arguments.peers), _works(arguments.only)
    except (ValueError, OSError) as error:
        console.print(f"bench.compare: {error}", markup=False)
        return 2
    if os.geteuid() != 0:
        console.print("bench.compare: network namespaces need root: run this with sudo")
        return 3
    skipped = {peer.name: ", ".join(peer.missing()) for peer in chosen if peer.missing()}
    for name, missing in skipped.items():
        console.print(f"{name} is skipped, missing: {missing}", markup=False)
    peers = [peer for peer in chosen if peer.name not in skipped]
    if not peers:
        console.print("bench.compare: nothing to compare with")
        return 1
    try:
        document = Comparing([Ocfcluster(), *peers], works, arguments, console).run()
    except (PeerError, ClusterError, InstallError) as error:
        console.print(f"bench.compare: {error}", markup=False)
        return 1
    document["skipped"] |= skipped
    return _hand_over(document, arguments)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(PEERS)
    parser.add_argument(
        "--peers", default="all", metavar="NAME,...", help=f"with which: {names} (default: all)"
    )
    parser.add_argument(
        "--only",
        default="*",
        metavar="WORK,...",
        help=f"of {', '.join(one.name for one in WORKS)}; with * and ?",
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default {ROUNDS}")
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        help=f"that one measurement of a rate takes about (default {SECONDS:g})",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write ratios, all measurements and the environment there"
    )
    parser.add_argument("--picture", metavar="FILE", help="draw the figures there (SVG)")
    parser.add_argument(
        "--from", dest="source", metavar="FILE", help="show the JSON of an earlier run, measure nothing"
    )
    parser.add_argument(
        "--install", metavar="NAME,...", help="download and unpack these peers (or all), and end"
    )
    return parser.parse_args()


def _named(names: str) -> list[Peer]:
    """The peers of a list of names. Raises ValueError on one that there is not."""
    chosen = list(PEERS) if names == "all" else [name.strip() for name in names.split(",")]
    unknown = [name for name in chosen if name not in PEERS]
    if unknown:
        raise ValueError(f"there is no peer {', '.join(unknown)}; there are {', '.join(PEERS)}")
    return [PEERS[name]() for name in chosen]


def _works(patterns: str) -> list[Work]:
    found = [
        one for one in WORKS if any(fnmatch.fnmatchcase(one.name, it.strip()) for it in patterns.split(","))
    ]
    if not found:
        raise ValueError(f"no work is called {patterns}; there are {', '.join(one.name for one in WORKS)}")
    return found


def _install(peers: list[Peer], console: Console) -> int:
    try:
        for peer in peers:
            if peer.debian:
                console.print(f"{peer.name}: unpacking {', '.join(peer.debian)}")
                Tree(peer.name).unpack(peer.debian)
        wheels = [peer.name for peer in peers if peer.pypi]
        if wheels:
            console.print(f"{', '.join(wheels)}: making a virtual environment")
            make_venv()
    except InstallError as error:
        console.print(f"bench.compare: {error}", markup=False)
        return 1
    for peer in peers:
        if missing := peer.missing():
            console.print(f"{peer.name} still misses {', '.join(missing)}", markup=False)
    return 0


def _hand_over(document: dict[str, Any], arguments: argparse.Namespace) -> int:
    show(document)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    if arguments.picture:
        Path(arguments.picture).write_text(draw(document), "utf-8")
    return 0


class Comparing:
    """One run: each system on hosts of its own, all up all the time; work by work, round by round."""

    def __init__(
        self, systems: list[Peer], works: list[Work], arguments: argparse.Namespace, console: Console
    ) -> None:
        self._all = tuple(systems)
        self._systems = list(systems)
        self._works = works
        self._arguments = arguments
        self._console = console
        self._events: dict[tuple[str, str], int] = {}
        self._raw: dict[str, dict[str, list[Result]]] = {}
        self._skipped: dict[str, str] = {}
        self._directories: dict[str, Path] = {}

    def run(self) -> dict[str, Any]:
        """All of it; the document that is written as JSON."""
        settings = argparse.Namespace(event_loop="asyncio", delivery="safe", mtu=1500)
        began = environment(settings)
        began["command"] = shlex.join(["python", "-m", "bench.compare", *sys.argv[1:]])
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
            for number in range(1, self._arguments.rounds + 1):
                for work in self._works:
                    # To and fro, so that it is not always the same one that comes after another.
                    for peer in self._systems[:: 1 if number % 2 else -1]:
                        if self._does(peer, work):
                            self._measure(peer, work, number)
        began["load_average_after"] = os.getloadavg()
        spread = spreads(self._raw, OURS)
        return {
            "environment": began,
            "rounds": self._arguments.rounds,
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
                        events = how_many(peer, work, self._arguments.seconds)
                    except FAILURES as error:
                        self._skip(peer, f"{work.name}: {error}")
                        continue
                    self._events[peer.name, work.name] = events
                    self._console.print(f"[dim]prepare[/] {work.name:10} {peer.name:11} {events} events")

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
        self._console.print(
            f"{number}/{self._arguments.rounds} {work.name:10} {peer.name:11} {text}", markup=False
        )
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


if __name__ == "__main__":
    sys.exit(main())
