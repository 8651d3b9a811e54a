"""Tables of a comparison, from the document that is written as JSON."""

from __future__ import annotations

import statistics
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.compare.ratios import figures
from bench.compare.work import COMPARISONS, OURS


def show(document: dict[str, Any], *, promises: bool = True) -> None:
    """Ratios, figures, and what each system promises (unless that is not asked for), on standard output."""
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    ours = escape(document["systems"][OURS]["title"])
    # Titles of tables would be broken to the tables' widths.
    console.print(f"[italic]{ours} over each, median (min-max) of {document['rounds']} rounds[/]")
    console.print(_ratios(document))
    console.print(
        "[italic]Medians: k events/s at the slowest subscriber; µs; CPU s per million deliveries[/]"
    )
    console.print(_figures(document))
    for system in document["systems"].values() if promises else ():
        console.print(
            f"[bold]{escape(system['title'])}[/] ({escape(system['version'])})\n"
            f"  promises: {system['guarantee']}\n  API: {system['api']}\n  latency: {system['latency']}"
        )
    for name, works in document["raw"].items():
        for work, rounds in works.items():
            failed = [one["error"].partition("\n")[0] for one in rounds if "error" in one]
            if failed:
                console.print(
                    f"{name} failed at {work} in {len(failed)} of the rounds: {failed[-1]}", markup=False
                )
    for name, reason in document["skipped"].items():
        console.print(f"{name} was skipped: {reason}", markup=False)


def _ratios(document: dict[str, Any]) -> Table:
    table = Table()
    table.add_column("figure")
    table.add_column("better is")
    for peer in document["spreads"]:
        table.add_column(peer, justify="right")
    for one in COMPARISONS:
        cells = [_spread(each.get(one.name)) for each in document["spreads"].values()]
        if any(cells):
            table.add_row(one.name, "more" if one.more_is_better else "less", *cells)
    return table


def _spread(value: dict[str, float] | None) -> str:
    if value is None:
        return ""
    return f"{value['median']:.3g} ({value['min']:.3g}-{value['max']:.3g})"


def _figures(document: dict[str, Any]) -> Table:
    table = Table()
    table.add_column("figure")
    for name in document["raw"]:
        table.add_column(name, justify="right")
    for one in COMPARISONS:
        cells = []
        for name, works in document["raw"].items():
            values = figures(works.get(one.ours if name == OURS else one.theirs, ()), one.figure)
            if name != OURS and one.ours != one.theirs:
                values = []
            scale = 1e-3 if one.figure == "events_per_s" else 1
            cells.append(f"{statistics.median(values) * scale:.4g}" if values else "")
        if any(cells):
            table.add_row(one.name, *cells)
    return table
