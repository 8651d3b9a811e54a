"""Throughput and latency of three hosts in network namespaces on a bridge: a table, and JSON of all that was measured.

    python -m bench.run [--only NAME,...] [--rounds N] [--quick] [--sealed] [--json FILE]

Needs root (network namespaces). ``docs/performance.md`` says what the figures mean and what they were.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench.load import PUBLISHING, SUBSCRIBING, TOPICS, Latency, Load, Throughput, Workload, workloads
from ocfcluster import __version__
from tests.keyed import KeyedCluster
from tests.netns.cluster import Cluster
from tests.netns.hosts import Hosts

HOSTS: Final = 3
ROUNDS: Final = 5
QUICK_ROUNDS: Final = 2
SHORT: Final = {"elsewhere": "1, elsewhere", "sequencer": "1, sequencer", "all": "3"}
WHERE: Final = {
    "elsewhere": "1, not on the sequencer's host",
    "sequencer": "1, on the sequencer's host",
    "all": "3",
}


def main() -> int:
    arguments = _parse()
    chosen = [one for one in workloads(arguments.quick) if _matches(one.name, arguments.only)]
    if not chosen:
        names = ", ".join(one.name for one in workloads(False))
        print(f"nothing is called {arguments.only}; there are {names}", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("network namespaces need root: run this with sudo", file=sys.stderr)
        return 3
    rounds = arguments.rounds or (QUICK_ROUNDS if arguments.quick else ROUNDS)
    console = Console(stderr=True)
    document: dict[str, Any] = {"environment": environment(arguments), "rounds": rounds, "workloads": {}}
    results: dict[str, list[dict[str, Any]]] = {one.name: [] for one in chosen}
    with (
        Hosts(HOSTS, link="bridge", mtu=arguments.mtu) as hosts,
        (KeyedCluster if arguments.sealed else Cluster)(
            hosts, delivery=arguments.delivery, topics=TOPICS, node={"event_loop": arguments.event_loop}
        ) as cluster,
    ):
        load = Load(cluster)
        document["environment"]["sequencer"] = load.sequencer
        # Round by round, so that a noisy minute touches all workloads and not all rounds of one. Progress is lines
        # and no spinner: that would use the processors that are measured.
        for number in range(1, rounds + 1):
            for workload in chosen:
                result = load.measure(workload)
                results[workload.name].append(result)
                console.print(
                    f"[dim]{number}/{rounds}[/] {workload.name:18} {_line(result)}",
                    highlight=False,
                    soft_wrap=True,
                )
    document["environment"]["load_average_after"] = os.getloadavg()
    for workload in chosen:
        document["workloads"][workload.name] = {"what": describe(workload), "rounds": results[workload.name]}
    _show(chosen, results, rounds)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.run", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default="*", help="names of workloads, with * and ?, separated by commas")
    parser.add_argument("--rounds", type=int, default=0, help=f"of each workload (default {ROUNDS})")
    parser.add_argument("--quick", action="store_true", help=f"a fifth of the events, {QUICK_ROUNDS} rounds")
    parser.add_argument("--json", metavar="FILE", help="write all measurements and the environment there")
    parser.add_argument("--delivery", choices=("safe", "agreed"), default="safe")
    parser.add_argument(
        "--event-loop", choices=("asyncio", "uvloop"), default="asyncio", help="of the agents"
    )
    parser.add_argument("--sealed", action="store_true", help="the agents have a key")
    parser.add_argument("--mtu", type=int, default=1500, help="of the hosts' interfaces")
    return parser.parse_args()


def _matches(name: str, patterns: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern.strip()) for pattern in patterns.split(","))


def environment(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on besides the code."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "version": __version__,
        "commit": _commit(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "uvloop_installed": find_spec("uvloop") is not None,
        "event_loop": arguments.event_loop,
        "rmem_max": int(Path("/proc/sys/net/core/rmem_max").read_text("ascii")),
        "delivery": arguments.delivery,
        "sealed": getattr(arguments, "sealed", False),
        "mtu": arguments.mtu,
        "hosts": HOSTS,
        "load_average_before": os.getloadavg(),
    }


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return done.stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return ""


def describe(workload: Workload) -> dict[str, Any]:
    if isinstance(workload, Latency):
        return {"publisher": WHERE[workload.publisher], "samples": workload.samples, "api": "publish to get"}
    return {
        "publishers": WHERE[workload.publishers],
        "event_bytes": workload.event_bytes,
        "events": workload.events,
        "subscriber_api": SUBSCRIBING[workload.take],
        "publisher_api": PUBLISHING[workload.publish],
    }


def _line(result: dict[str, Any]) -> str:
    if "p50_us" in result:
        return f"p50 {result['p50_us']:.0f} µs, p99 {result['p99_us']:.0f} µs"
    each = " ".join(f"{rate / 1000:.0f}" for rate in result["each_events_per_s"])
    return (
        f"{result['events_per_s'] / 1000:7.1f} k/s {result['mb_per_s']:6.1f} MB/s  (each {each} k/s), "
        f"{result['cpu_s_per_million']:.2f} CPU s per million"
    )


def _spread(values: list[float], digits: int) -> str:
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def _show(chosen: list[Workload], results: dict[str, list[dict[str, Any]]], rounds: int) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    throughput = [one for one in chosen if isinstance(one, Throughput)]
    if throughput:
        table = Table(
            title=f"Delivered at the slowest of {HOSTS} subscribers, median (min-max) of {rounds} rounds"
        )
        for heading in ("workload", "publishers", "API of publisher and subscriber"):
            table.add_column(heading)
        for heading in ("bytes", "k events/s", "MB/s", "CPU s per million"):
            table.add_column(heading, justify="right")
        for one in throughput:
            measured = results[one.name]
            table.add_row(
                one.name,
                SHORT[one.publishers],
                f"{PUBLISHING[one.publish]}; {SUBSCRIBING[one.take]}",
                str(one.event_bytes),
                _spread([result["events_per_s"] / 1000 for result in measured], 1),
                _spread([result["mb_per_s"] for result in measured], 0),
                _spread([result["cpu_s_per_million"] for result in measured], 2),
            )
        console.print(table)
    latency = [one for one in chosen if isinstance(one, Latency)]
    if latency:
        table = Table(
            title=f"One event of 64 B at a time, publish to get in one process, µs: median of {rounds} rounds"
        )
        for heading in ("workload", "publisher"):
            table.add_column(heading)
        for heading in ("p50", "p99", "samples"):
            table.add_column(heading, justify="right")
        for one in latency:
            measured = results[one.name]
            table.add_row(
                one.name,
                WHERE[one.publisher],
                _spread([result["p50_us"] for result in measured], 0),
                _spread([result["p99_us"] for result in measured], 0),
                str(one.samples),
            )
        console.print(table)


if __name__ == "__main__":
    sys.exit(main())
