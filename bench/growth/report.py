"""Tables of a run, from the document that is written as JSON: one per axis."""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

Rounds = list[dict[str, Any]]


def values(rounds: Rounds, *path: str) -> list[float]:
    """A figure of each round that has it: ``path`` are the keys that lead to it."""
    found: list[float] = []
    for one in rounds:
        value: Any = one
        for key in path:
            value = value.get(key) if value is not None else None
        if value is not None:
            found.append(value)
    return found


def spread(values: list[float], scale: float = 1.0) -> str:
    """median (min-max), each with three digits that count; one value alone; empty: none."""
    if not values:
        return ""
    middle = short(statistics.median(values) * scale)
    if len(values) == 1:
        return middle
    return f"{middle} ({short(min(values) * scale)}-{short(max(values) * scale)})"


def short(value: float) -> str:
    """Three digits that count, and never an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class Column:
    """A heading, and the figure (times ``scale``) under it: its spread, or its median alone where ``plain``."""

    heading: str
    path: tuple[str, ...]
    scale: float = 1.0
    plain: bool = False

    def cell(self, rounds: Rounds) -> str:
        found = values(rounds, *self.path)
        if self.plain and found:
            found = [statistics.median(found)]
        return spread(found, self.scale)


AGENTS = (
    Column("k events/s", ("events_per_s",), 1e-3),
    Column("MB/s", ("mb_per_s",)),
    Column("k deliveries/s", ("deliveries_per_s",), 1e-3, plain=True),
    Column("CPU s per million", ("cpu_s_per_million",)),
    Column("left out %", ("left_out_percent",), plain=True),
    Column("p50 µs", ("p50_us",)),
    Column("p99 µs", ("p99_us",), plain=True),
    Column("RSS idle", ("idle", "rss_mib"), plain=True),
    Column("loaded", ("loaded", "rss_mib"), plain=True),
    Column("PSS idle", ("idle", "pss_mib"), plain=True),
    Column("loaded", ("loaded", "pss_mib"), plain=True),
)
SIMULATED = (
    Column("sent per lone event", ("lone", "sent")),
    Column("B", ("lone", "bytes_sent")),
    Column("received per node", ("lone", "received_per_node")),
    Column("by the sequencer", ("lone", "received_by_sequencer")),
    Column("sent per event of many", ("bulk", "sent")),
    Column("B over its 1024", ("bulk", "bytes_over_payload")),
    Column("received per node", ("bulk", "received_per_node")),
    Column("idle, received per s", ("idle", "received")),
    Column("kill ms", ("kill_ms",)),
    Column("messages per node", ("kill_received_per_node",)),
    Column("join ms", ("join_ms",)),
    Column("pause ms", ("join_pause_ms",)),
)


def columns_of(points: list[dict[str, Any]]) -> tuple[Column, ...]:
    """The columns of an axis: its points are agents' or simulated ones."""
    return SIMULATED if points and "mtu" in points[0]["point"] else AGENTS


def show(document: dict[str, Any]) -> None:
    """A table for each axis on standard output, and why points are missing below it."""
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    for axis in document["axes"].values():
        columns = columns_of(axis["points"])
        simulated = columns is SIMULATED
        title = (
            "counts of datagrams; times of virtual time, a kill's without the suspicion time"
            if simulated
            else f"slowest subscriber, median (min-max) of {document['rounds']} rounds; MiB of the largest agent"
        )
        table = Table(title=f"{axis['what']}: {title}")
        table.add_column(axis["what"])
        for column in columns:
            table.add_column(column.heading, justify="right")
        for point in axis["points"]:
            table.add_row(point["label"], *(column.cell(point["rounds"]) for column in columns))
        console.print(table)
        for point in axis["points"]:
            for one in point["rounds"]:
                if reason := one.get("refused") or one.get("error"):
                    console.print(f"{point['label']}: {reason}", markup=False)
        if simulated:
            _bounds(console, axis["points"])


def _bounds(console: Console, points: list[dict[str, Any]]) -> None:
    fit = {
        point["point"]["mtu"]: (one["fit_one_datagram"], one["nodes_most"])
        for point in points
        for one in point["rounds"]
        if "nodes_most" in one
    }
    for mtu, (nodes, most) in fit.items():
        console.print(
            f"mtu {mtu}: a configuration of {nodes} nodes fits one datagram, and {most} nodes are the most in any case"
        )
