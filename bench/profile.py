"""Where the time goes: one workload of the benchmark under cProfile, in the agents, a subscriber and the publisher.

    python -m bench.profile [WORKLOAD] [--lines N]

cProfile makes each call dearer, so shares say more than seconds, and the rates of such a run mean nothing.
Time in which a process waits is shown as such and is no part of the shares.
"""

from __future__ import annotations

import argparse
import os
import pstats
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench.load import TOPICS, Latency, Load, workloads
from bench.run import HOSTS
from tests.netns.cluster import Cluster
from tests.netns.hosts import Hosts

SETTLE_S: Final = 0.2
WAITING: Final = ("'poll' of 'select.", "{built-in method time.sleep}", "'acquire' of '_thread.", "readline")


class ProfiledCluster(Cluster):
    """Every agent runs under cProfile; ``profile(i)`` is where its statistics are when it has ended."""

    def profile(self, i: int) -> Path:
        return self.directory / f"agent-{i}.pstats"

    def popen(self, i: int, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        if list(argv[1:4]) == ["-m", "ocfcluster", "agent"]:
            argv = [argv[0], "-m", "bench.profiled", str(self.profile(i)), *argv[2:]]
        return super().popen(i, argv, **options)


class ProfiledLoad(Load):
    """Tells all processes to begin with their profiles when the load begins."""

    def all_ready(self, programs: list[subprocess.Popen[str]]) -> None:
        for process in (*programs, *map(self.cluster.agent, self.cluster.nodes)):
            process.send_signal(signal.SIGUSR1)
        time.sleep(SETTLE_S)


def main() -> int:
    known = {one.name: one for one in workloads(True)}
    parser = argparse.ArgumentParser(
        prog="bench.profile", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("workload", nargs="?", default="elsewhere-1024", choices=known)
    parser.add_argument("--lines", type=int, default=14, help="functions shown of each process")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("network namespaces need root: run this with sudo", file=sys.stderr)
        return 3
    workload = known[arguments.workload]
    console = Console(width=None if sys.stdout.isatty() else 130)
    with tempfile.TemporaryDirectory() as directory:
        worker = {
            role: [sys.executable, "-m", "bench.profiled", f"{directory}/{role}.pstats", "bench.worker"]
            for role in ("publish", "subscribe", "latency")
        }
        with Hosts(HOSTS, link="bridge") as hosts:
            cluster = ProfiledCluster(hosts, topics=TOPICS)
            with cluster:
                load = ProfiledLoad(cluster, worker)
                load.measure(workload)
                there = load.hosts_of(
                    workload.publisher if isinstance(workload, Latency) else workload.publishers
                )[0]
                cluster.stop()
                tables = [(f"agent of the publisher's host ({there})", cluster.profile(there))]
                if there != load.sequencer:
                    tables.append(
                        (f"agent of the sequencer ({load.sequencer})", cluster.profile(load.sequencer))
                    )
                for title, file in tables:
                    console.print(_table(f"{workload.name}: {title}", file, arguments.lines))
        for role in worker:
            file = Path(directory, f"{role}.pstats")
            if file.exists():
                console.print(_table(f"{workload.name}: {role}", file, arguments.lines))
    return 0


def _table(title: str, file: Path, lines: int) -> Table:
    """The functions with the most time of their own, without waiting."""
    statistics: dict[tuple[str, int, str], tuple[int, int, float, float, Any]] = pstats.Stats(str(file)).stats  # type: ignore[attr-defined]
    waiting = busy = 0.0
    rows = []
    for (path, line, name), (_, calls, own, _, _) in statistics.items():
        if any(text in name for text in WAITING):
            waiting += own
        else:
            busy += own
            rows.append((own, calls, _place(path, line, name)))
    table = Table(title=f"{title}: busy {busy:.2f} s, waiting {waiting:.2f} s")
    table.add_column("share", justify="right")
    table.add_column("µs each", justify="right")
    table.add_column("calls", justify="right")
    table.add_column("function")
    for own, calls, place in sorted(rows, reverse=True)[:lines]:
        table.add_row(f"{own / busy:.1%}", f"{own / calls * 1e6:.1f}", str(calls), place)
    return table


def _place(path: str, line: int, name: str) -> str:
    if path == "~":
        return name.strip("<>{}")
    _, found, below = path.rpartition("/ocfcluster/")
    return f"{below if found else Path(path).name}:{line} {name}"


if __name__ == "__main__":
    sys.exit(main())
