"""``ocfcluster conformance``: the obligations of the OCF drafts, checked against a live agent."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from ocfcluster.cli import options, output
from ocfcluster.cli.exits import Exit


def run(
    context: typer.Context,
    only: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="Obligations to check, as A1 or S1.", show_default="all"),
    ] = None,
    others: Annotated[
        list[str] | None,
        typer.Option(
            "--other",
            metavar="PATH",
            help="Socket of an agent of another node of the same cluster, for what"
            " takes several nodes; may be repeated.",
        ),
    ] = None,
    json: options.Json = False,
    socket: options.Socket = None,
) -> None:
    """Check a running agent, and the client library, against the obligations of the OCF event drafts.

    It makes topics of its own (conformance-...) and removes them; those of a check that is interrupted may stay.
    Exit code 1 where something does not hold.

    Example: ocfcluster conformance A1 S3 --socket /run/ocfcluster/agent.sock
    """
    from ocfcluster.conformance import Verdict, known_obligations, run

    chosen = [name.upper() for name in only or []]
    unknown = sorted(set(chosen) - set(known_obligations()))
    if unknown:
        raise typer.BadParameter(
            f"no obligation {', '.join(unknown)}; there are {', '.join(known_obligations())}"
        )
    path = options.socket_path(context, socket)
    with options.connect(context, socket):
        pass  # an agent that is not there is one error, not one per obligation
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # ends the child in which a check hangs, as Ctrl-C does
    results = run(path, others=tuple(others or ()), only=chosen or None)
    if json:
        for result in results:
            output.print_json(result.document())
    else:
        words = {Verdict.HELD: "held", Verdict.BROKEN: "BROKEN", Verdict.NOT_RUN: "not run"}
        rows = ((one.obligation, words[one.verdict], one.check, one.detail) for one in results)
        output.print_table(("id", "result", "check", "detail"), rows)
        counts = {verdict: sum(one.verdict is verdict for one in results) for verdict in Verdict}
        output.print_line(", ".join(f"{count} {words[verdict]}" for verdict, count in counts.items()))
    if any(result.verdict is Verdict.BROKEN for result in results):
        raise typer.Exit(Exit.FAILED)
