"""Where the time goes: one workload of the benchmark, with the CPU time of agents, subscriber and publisher by line.

    python -m bench.profile [WORKLOAD] [--lines N] [--events FACTOR] [--functions | --calls]

Shares are of one process's CPU time, in the kernel's calls too (a line that sends has the kernel's work for it, and
on one machine that is the receivers' network stack as well). ``--functions`` shows functions with all that they
called, ``--calls`` what cProfile counts (see ``bench.profiled``).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.load import TOPICS, Latency, Load, Workload, workloads
from bench.run import HOSTS
from tests.netns.cluster import Cluster
from tests.netns.hosts import Hosts

SETTLE_S: Final = 0.2
SOURCE_CHARACTERS: Final = 90


class ProfiledCluster(Cluster):
    """Every agent is profiled; ``profile(i)`` is where what was found is, once it has ended."""

    calls = "0"

    def profile(self, i: int) -> Path:
        return self.directory / f"agent-{i}.json"

    def popen(self, i: int, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        if list(argv[1:4]) == ["-m", "ocfcluster", "agent"]:
            argv = [argv[0], "-m", "bench.profiled", str(self.profile(i)), self.calls, *argv[2:]]
        return super().popen(i, argv, **options)


class ProfiledLoad(Load):
    """Tells all processes to begin with their profiles when the load begins."""

    def all_ready(self, programs: list[subprocess.Popen[str]]) -> None:
        for process in (*programs, *map(self.cluster.agent, self.cluster.nodes)):
            process.send_signal(signal.SIGUSR1)
        time.sleep(SETTLE_S)


def main() -> int:
    arguments = _parse()
    if os.geteuid() != 0:
        print("network namespaces need root: run this with sudo", file=sys.stderr)
        return 3
    workload = _enlarged(arguments.workload, arguments.events)
    console = Console(width=None if sys.stdout.isatty() else 140)
    with tempfile.TemporaryDirectory() as directory:
        calls = "1" if arguments.calls else "0"
        worker = {
            role: [sys.executable, "-m", "bench.profiled", f"{directory}/{role}.json", calls, "bench.worker"]
            for role in ("publish", "subscribe", "latency")
        }
        found: list[tuple[str, Path]] = []
        with Hosts(HOSTS, link="bridge") as hosts:
            cluster = ProfiledCluster(hosts, topics=TOPICS)
            cluster.calls = calls
            with cluster:
                load = ProfiledLoad(cluster, worker)
                load.measure(workload)
                there = load.hosts_of(
                    workload.publisher if isinstance(workload, Latency) else workload.publishers
                )[0]
                cluster.stop()
                found.append((f"agent of the publisher's host ({there})", cluster.profile(there)))
                if there != load.sequencer:
                    found.append(
                        (f"agent of the sequencer ({load.sequencer})", cluster.profile(load.sequencer))
                    )
                found += [(role, Path(directory, f"{role}.json")) for role in worker]
                for title, file in found:
                    if file.exists():
                        document = json.loads(file.read_text("utf-8"))
                        console.print(_table(f"{workload.name}: {title}", document, arguments))
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.profile", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    names = [one.name for one in workloads(False)]
    parser.add_argument("workload", nargs="?", default="elsewhere-1024", choices=names)
    parser.add_argument("--lines", type=int, default=16, help="shown of each process")
    parser.add_argument("--events", type=float, default=3.0, help="times as many events as the benchmark has")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--functions", action="store_true", help="functions with all that they called")
    how.add_argument("--calls", action="store_true", help="every call, counted by cProfile")
    return parser.parse_args()


def _enlarged(name: str, factor: float) -> Workload:
    workload = next(one for one in workloads(False) if one.name == name)
    if isinstance(workload, Latency):
        return dataclasses.replace(workload, samples=int(workload.samples * factor))
    return dataclasses.replace(workload, events=int(workload.events * factor))


def _table(title: str, document: dict[str, Any], arguments: argparse.Namespace) -> Table:
    if arguments.calls:
        return _calls_table(title, document["calls"], arguments.lines)
    table = Table(title=f"{title}: {document['ticks']} ticks of CPU time")
    table.add_column("share", justify="right")
    table.add_column("where")
    if not arguments.functions:
        table.add_column("what", overflow="ellipsis", no_wrap=True)
    rows = document["functions" if arguments.functions else "lines"]
    if arguments.functions:  # all that run from the first to the last line of the program say nothing
        rows = [row for row in rows if row[0] < 0.95 * document["ticks"]]
    for count, path, line, name, *source in rows[: arguments.lines]:
        cells = [f"{count / max(1, document['ticks']):.1%}", _place(path, line, name)]
        table.add_row(*cells, *(escape(text[:SOURCE_CHARACTERS]) for text in source))
    return table


def _calls_table(title: str, rows: list[list[Any]], lines: int) -> Table:
    total = sum(row[0] for row in rows) or 1.0
    table = Table(title=f"{title}: {total:.2f} s of CPU time, {sum(row[1] for row in rows)} calls")
    for heading in ("share", "µs each", "calls"):
        table.add_column(heading, justify="right")
    table.add_column("function")
    for own, calls, path, line, name in rows[:lines]:
        table.add_row(f"{own / total:.1%}", f"{own / calls * 1e6:.1f}", str(calls), _place(path, line, name))
    return table


def _place(path: str, line: int, name: str) -> str:
    if path == "~":
        return name.strip("<>{}")
    _, found, below = path.rpartition("/ocfcluster/")
    return f"{below if found else Path(path).name}:{line} {name}"


if __name__ == "__main__":
    sys.exit(main())
