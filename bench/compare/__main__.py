"""The same work on ocfcluster and on other systems, alternating, in one run: ratios with their spread.

    python -m bench.compare --install corosync,nats           # once: unpacks them below build/bench
    python -m bench.compare --peers corosync --rounds 5 --json compare.json
    python -m bench.compare --peers corosync --sealed         # and then both sealed: the section "sealed"
    python -m bench.compare --peers none --sealed             # that alone
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from bench.compare.comparing import Comparing
from bench.compare.install import InstallError, Tree, make_venv
from bench.compare.peers import PEERS
from bench.compare.peers.corosync import CorosyncSealed
from bench.compare.peers.ocf import Ocfcluster
from bench.compare.peers.peer import Peer, PeerError
from bench.compare.picture import draw
from bench.compare.report import show
from bench.compare.work import WORKS, Work
from tests.cluster import ClusterError

ROUNDS: Final = 5
SECONDS: Final = 2.0


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
    sealed = [CorosyncSealed()] if arguments.sealed and not CorosyncSealed().missing() else []
    if arguments.sealed and not sealed:
        console.print("there is no sealed pair without corosync: --install corosync")
    if not peers and not sealed:
        console.print("bench.compare: nothing to compare with")
        return 1

    def compare(ours: Peer, others: Sequence[Peer]) -> dict[str, Any]:
        return Comparing(
            [ours, *others],
            works,
            console,
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            command=shlex.join(["python", "-m", "bench.compare", *sys.argv[1:]]),
        ).run()

    document: dict[str, Any] = {}
    try:
        if peers:
            document = compare(Ocfcluster(), peers)
            document["skipped"] |= skipped
        if sealed:
            document["sealed"] = compare(Ocfcluster(title="ocfcluster, sealed", sealed=True), sealed)
    except (PeerError, ClusterError, InstallError) as error:
        console.print(f"bench.compare: {error}", markup=False)
        return 1
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
        "--sealed", action="store_true", help="the sealed pair as well: ocfcluster and corosync with keys"
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
    if names == "none":
        return []
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
    for one in (document, document.get("sealed", {})):
        if "systems" in one:
            show(one)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    if arguments.picture and "systems" in document:
        Path(arguments.picture).write_text(draw(document), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
