"""Tables of a run, from the document that is written as JSON: one per axis."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

Result = dict[str, Any]


def rounds_of(result: Result, figure: str) -> list[float]:
    """That figure of each round."""
    return [one[figure] for one in result.get("rounds", ())]


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
    """A heading, and what a result says under it."""

    heading: str
    cell: Callable[[Result], str]


def _memory(kind: str) -> Callable[[Result], str]:
    def cell(result: Result) -> str:
        idle, loaded = result["idle"][kind], result["loaded"][kind]
        return f"{idle:.0f}, {loaded:.0f}"

    return cell


def _at(*path: str) -> Callable[[Result], str]:
    def cell(result: Result) -> str:
        value: Any = result
        for name in path:
            value = value.get(name, {})
        return short(value) if value != {} else ""

    return cell


AGENTS = (
    Column("k events/s", lambda result: spread(rounds_of(result, "events_per_s"), 1e-3)),
    Column("MB/s", lambda result: spread(rounds_of(result, "mb_per_s"))),
    Column("k deliveries/s", lambda result: spread(rounds_of(result, "deliveries_per_s"), 1e-3)),
    Column("CPU s per million", lambda result: spread(rounds_of(result, "cpu_s_per_million"))),
    Column("left out %", lambda result: spread(rounds_of(result, "left_out_percent"))),
    Column("p50 µs", _at("latency", "p50_us")),
    Column("p99 µs", _at("latency", "p99_us")),
    Column("RSS idle, loaded", _memory("rss_mib")),
    Column("PSS idle, loaded", _memory("pss_mib")),
)
SIMULATED = (
    Column("sent per lone event", _at("lone", "sent")),
    Column("B", _at("lone", "bytes_sent")),
    Column("received per node", _at("lone", "received_per_node")),
    Column("by the sequencer", _at("lone", "received_by_sequencer")),
    Column("sent per event of many", _at("bulk", "sent")),
    Column("B over its 1024", _at("bulk", "bytes_over_payload")),
    Column("received per node ", _at("bulk", "received_per_node")),
    Column("idle, received per s", _at("idle", "received")),
    Column("kill ms", _at("kill_ms")),
    Column("messages per node", _at("kill_received_per_node")),
    Column("join ms", _at("join_ms")),
    Column("pause ms", _at("join_pause_ms")),
)


def columns_of(points: list[dict[str, Any]]) -> tuple[Column, ...]:
    """The columns of an axis: its points are agents' or simulated ones."""
    return SIMULATED if points and "mtu" in points[0]["point"] else AGENTS


def cells(result: Result, columns: tuple[Column, ...]) -> list[str]:
    """The row of a result; of one that failed or was refused all are empty."""
    if "error" in result or "refused" in result:
        return [""] * len(columns)
    return [column.cell(result) for column in columns]


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
            table.add_row(point["label"], *cells(point["result"], columns))
        console.print(table)
        for point in axis["points"]:
            reason = point["result"].get("refused") or point["result"].get("error")
            if reason:
                console.print(f"{point['label']}: {reason}", markup=False)
        fit = {point["point"]["mtu"]: point["result"] for point in axis["points"] if simulated}
        for mtu, result in fit.items():
            if "fit_one_datagram" in result:
                console.print(
                    f"mtu {mtu}: a configuration of {result['fit_one_datagram']} nodes fits one datagram, "
                    f"and {result['nodes_most']} nodes are the most in any case"
                )
