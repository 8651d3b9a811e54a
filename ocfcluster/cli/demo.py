"""``ocfcluster demo``: one order on every node, though the sequencer is killed; shown and checked."""

from __future__ import annotations

import logging
import signal
import time
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ocfcluster.cli import options, output
from ocfcluster.cli.exits import Exit

if TYPE_CHECKING:
    from rich.console import Console

    from ocfcluster.cli.demo_check import Check
    from ocfcluster.cli.demo_work import Work

AROUND = 3  # rows shown before and behind each change of the membership
ACTIVE_TIMEOUT_S = 20.0
WORK_TIMEOUT_S = 60.0
WIDTH = 80


def run(
    events: Annotated[
        int, typer.Option(min=10, max=100_000, help="Events of each of the five publishers.")
    ] = 1000,
    json: options.Json = False,
) -> None:
    """Show a cluster at work: three agents on this machine, five publishers, a subscriber on every node.

    While they publish, the agent that orders is killed, and started again. All nodes must have got the same events in
    the same order under the same seq, nothing lost and nothing twice: checked over every event. Nothing stays behind;
    where something fails the logs do, and their place is said.

    Example: ocfcluster demo --json
    """
    from ocfcluster.cli.demo_check import check
    from ocfcluster.cli.demo_cluster import NODES, DemoCluster
    from ocfcluster.cli.demo_work import run_work

    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    # Its clients leave publications unanswered where it is interrupted, which nobody wants to know of then; whatever
    # fails otherwise is raised, and the check looks at each receipt.
    logging.getLogger("ocfcluster.client").setLevel(logging.ERROR)
    say = _Teller(quiet=json)
    cluster = DemoCluster()
    began = time.monotonic()
    try:
        with cluster:
            say(f"Starting three agents on loopback multicast, in {cluster.directory}")
            cluster.wait_active(ACTIVE_TIMEOUT_S)
            say(
                f"They found each other within {time.monotonic() - began:.1f} s. Now five programs publish at once."
            )
            work = run_work(cluster, NODES, events, WORK_TIMEOUT_S, say)
            checks = check(work)
            cluster.keep = not all(one.ok for one in checks)
    except (KeyboardInterrupt, SystemExit):
        cluster.discard()
        raise
    except Exception:
        output.tell(f"the demo failed; the agents' logs are in {cluster.directory}")
        raise
    if json:
        output.print_json(_document(work, checks, time.monotonic() - began))
    else:
        _show(say.console, work, checks)
    if cluster.keep:
        output.tell(f"the demo found a violation; the agents' logs are in {cluster.directory}")
        raise typer.Exit(Exit.FAILED)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


class _Teller:
    """Steps for people on stdout; nothing with ``--json``."""

    __slots__ = ("_quiet", "console")

    def __init__(self, *, quiet: bool) -> None:
        from rich.console import Console

        made = output.console()
        self.console = made if made.is_terminal else Console(width=WIDTH, no_color=True, highlight=False)
        self._quiet = quiet

    def __call__(self, text: str) -> None:
        if not self._quiet:
            self.console.print(text, soft_wrap=True)


def _show(console: Console, work: Work, checks: list[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    from ocfcluster.cli.demo_check import excerpt
    from ocfcluster.components.membership import TOPIC as MEMBERSHIP

    nodes = sorted(work.seen)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("place", justify="right")
    for node in nodes:
        table.add_column(f"node {node}")
    for stretch in excerpt(work, AROUND):
        for row in stretch:
            cells = []
            for seen in row.nodes.values():
                if seen is None:
                    cells.append(Text("(missed)"))
                elif seen.topic == MEMBERSHIP:
                    cells.append(Text(seen.data.decode(), style="bold"))
                else:
                    cells.append(Text(f"{seen.topic} {seen.seq:>4} {output.readable(seen.data)}"))
            if len({one for one in row.nodes.values() if one is not None}) > 1:
                for cell in cells:
                    cell.stylize("bold red")
            table.add_row(str(row.place), *cells)
        table.add_row("...")
    total = sum(map(len, work.published.values()))
    console.print()
    console.print("What each node's subscriber got then, side by side (topic, seq, event):\n")
    console.print(table)
    console.print()
    for one in checks:
        mark = "[green]ok  [/]" if one.ok else "[bold red]FAIL[/]"
        console.print(f"{mark} {one.name} ({one.detail})")
    console.print()
    sentence = (
        f"{total} events of {len(work.published)} publishers on {len(nodes)} nodes, {work.seconds:.1f} s:"
    )
    verdict = "one order on every node." if all(one.ok for one in checks) else "the nodes do NOT agree."
    console.print(f"{sentence} {verdict}")


def _document(work: Work, checks: list[Check], seconds: float) -> dict[str, Any]:
    from ocfcluster.cli.demo_check import excerpt

    return {
        "ok": all(one.ok for one in checks),
        "nodes": sorted(work.seen),
        "events": sum(map(len, work.published.values())),
        "publishers": [publisher._asdict() for publisher in work.published],
        "killed": work.killed,
        "pause_s": round(work.pause_s, 3),
        "gaps": {str(node): [gap._asdict() for gap in gaps] for node, gaps in work.gaps.items()},
        "checks": [one._asdict() for one in checks],
        "excerpt": [
            {
                "place": row.place,
                "nodes": {
                    str(node): _plain(seen._asdict()) if seen else None for node, seen in row.nodes.items()
                },
            }
            for stretch in excerpt(work, AROUND)
            for row in stretch
        ],
        "seconds": round(seconds, 3),
    }


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    data = fields.pop("data")
    return {**fields, **output.data_fields(data)}
