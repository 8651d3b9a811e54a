"""``ocfcluster status``."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ocfcluster.cli import options, output
from ocfcluster.cli.output import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WATCH_INTERVAL_S = 1.0


def show_status(
    context: typer.Context,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show it anew every second until Ctrl-C.")
    ] = False,
    json: options.Json = False,
    prometheus: Annotated[
        bool, typer.Option("--prometheus", help="The numbers in Prometheus' text format, for a collector.")
    ] = False,
    socket: options.Socket = None,
) -> None:
    """Show what the agent knows of itself and its cluster.

    Example: ocfcluster status --watch
    """
    if prometheus and (json or watch):
        raise typer.BadParameter("goes with neither --json nor --watch", param_hint="--prometheus")
    with options.connect(context, socket, resume=watch, orders=False) as client:
        if prometheus:
            from ocfcluster.agent.metrics import prometheus_text

            output.print_line(prometheus_text(client.status()).rstrip())
        elif not watch:
            _print(client.status(), json)
        elif not json and output.redraws():
            _watch(client.status)
        else:
            while True:
                _print(client.status(), json)
                if not json:
                    output.print_line("")
                time.sleep(WATCH_INTERVAL_S)


def _print(document: dict[str, Any], json: bool) -> None:
    if json:
        output.print_json(document)
        return
    output.print_table(("key", "value"), flat(document))


def _watch(status: Any) -> None:
    from rich.live import Live

    console = output.console()
    with Live(console=console, auto_refresh=False, screen=False) as live:
        while True:
            live.update(fitting(list(flat(status())), console), refresh=True)
            time.sleep(WATCH_INTERVAL_S)


def fitting(rows: list[tuple[str, str]], console: Console) -> RenderableType:
    """The table of ``rows``, or of as many from the top as fit ``console``, and a line that counts the others."""
    from rich.console import Group
    from rich.text import Text

    def first(shown: int) -> RenderableType:
        made = output.table(("key", "value"), rows[:shown])
        if shown == len(rows):
            return made
        return Group(
            made, Text(f"... {len(rows) - shown} more rows; --json shows all", overflow="crop", no_wrap=True)
        )

    def fits(shown: int) -> bool:
        return len(console.render_lines(first(shown))) <= console.height

    if fits(len(rows)):
        return first(len(rows))
    # Rows that are folded on a narrow terminal take several lines, so heights are measured and not computed.
    return first(max(0, bisect_left(range(len(rows)), True, key=lambda shown: not fits(shown)) - 1))


def flat(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Key and value of every leaf of a nested document; inner keys are joined by dots."""
    for key, value in document.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            for number, item in enumerate(value):
                yield from (
                    flat(item, f"{name}[{number}].")
                    if isinstance(item, Mapping)
                    else [(name, printable(str(item)))]
                )
        elif isinstance(value, list | tuple):
            yield name, printable(", ".join(map(str, value)))
        else:
            yield name, printable(str(value))
