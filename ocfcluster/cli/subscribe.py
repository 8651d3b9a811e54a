"""``ocfcluster subscribe``: events to stdout, one per line."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ocfcluster.cli import options, output
from ocfcluster.cli.exits import Exit
from ocfcluster.errors import ClientError, FilterError, WouldBlock

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocfcluster.client import Client, Subscription
    from ocfcluster.client.events import Event
    from ocfcluster.wire.filter import Filter

POLICIES = ("block", "drop_oldest", "disconnect")
STATUS_TIMEOUT_S = 0.5  # for what to say of a subscription that did not come: --timeout has passed already


def run(
    context: typer.Context,
    topics: Annotated[
        list[str], typer.Argument(metavar="TOPIC...", help="One or more topics.", show_default=False)
    ],
    count: Annotated[
        int | None, typer.Option(min=1, help="End after so many events.", show_default=False)
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            min=0,
            help="End after so many seconds, waiting for the subscription included; exit code 1 where it does"
            " not stand by then, or --count is not reached. 0: never.",
        ),
    ] = 0.0,
    from_seq: Annotated[
        int | None,
        typer.Option(min=1, help="Begin with this seq, as far as the topic keeps it.", show_default=False),
    ] = None,
    from_last: Annotated[
        int | None,
        typer.Option(
            min=0, help="Begin with the last so many events that each topic keeps.", show_default=False
        ),
    ] = None,
    retained: Annotated[
        bool, typer.Option("--retained", help="Begin with all events that each topic keeps.")
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="The data alone, as it is, with a newline behind it.")
    ] = False,
    filter: Annotated[  # noqa: A002 - the option's name
        str | None,
        typer.Option(
            metavar="EXPR",
            help='Only events whose properties EXPR lets through: KEY == "VALUE", !=, startswith, present(KEY),'
            " from_node(N), and, or, not, parentheses. The agent leaves the others out.",
            show_default=False,
        ),
    ] = None,
    on_slow: Annotated[
        str,
        typer.Option(
            metavar="POLICY",
            help="If this command does not keep up: block (publishers wait, for a bounded time), drop_oldest"
            " (with a notice) or disconnect.",
        ),
    ] = "block",
    json: options.Json = False,
    socket: options.Socket = None,
) -> None:
    """Print the events of topics as they come, from now on: topic, seq and data, one event per line.

    With --from-seq, --from-last or --retained what the topics keep comes first; what was asked for by seq and is not
    kept any more is told as a gap.

    With --json each line is one object: topic, seq, ev_id, re_id, node_id, incarnation, m_sequence, time_ns, local,
    properties, and data (or data_base64 where it is no UTF-8 text); notices and gaps have the key "notice".
    The starting point of each topic goes to stderr once the subscription stands. It outlives a restart of the agent.

    Example: ocfcluster subscribe orders prices --count 10 --json --retained
    Example: ocfcluster subscribe alarms --filter 'severity == "high" and not present(test)'
    """
    if (from_seq is not None) + (from_last is not None) + retained > 1:
        raise typer.BadParameter("give one of --from-seq, --from-last and --retained")
    if raw and json:
        raise typer.BadParameter("give --raw or --json, not both")
    asked: dict[str, Any] = {
        "from_seq": None if from_seq is None else dict.fromkeys(topics, from_seq),
        "from_last": from_last,
        "retained": retained,
        "filter": None if filter is None else _parsed(filter),
        "on_slow": on_slow,
    }
    if on_slow not in POLICIES:
        raise typer.BadParameter(f"it is {', '.join(POLICIES)}", param_hint="--on-slow")
    deadline = time.monotonic() + timeout if timeout else None
    with (
        options.connect(context, socket, resume=True) as client,
        _subscribe(client, topics, asked, timeout, deadline) as subscription,
    ):
        for start in subscription.starts:
            output.tell(f"subscribed to {output.printable(start.topic)} from seq {start.next_seq} on")
        taken = _follow(subscription, count, deadline, _printer(json, raw))
    if count is not None and taken < count:
        output.tell(f"only {taken} of {count} events came")
        raise typer.Exit(Exit.FAILED)


def _parsed(text: str) -> Filter:
    """The filter; where it cannot be read, a usage error that points at the place."""
    from ocfcluster.wire.filter_text import parse_filter

    try:
        return parse_filter(text)
    except FilterError as error:
        typer.echo(error.pointer(), err=True)
        raise typer.BadParameter(error.strerror or "", param_hint="--filter") from None


def _subscribe(
    client: Client, topics: list[str], asked: dict[str, Any], timeout: float, deadline: float | None
) -> Subscription:
    """The subscription; where it does not stand by ``deadline``, one line and exit code 1."""
    try:
        return client.subscribe(
            topics, timeout=None if deadline is None else max(0.0, deadline - time.monotonic()), **asked
        )
    except WouldBlock:
        try:
            waiting_for = client.status(timeout=STATUS_TIMEOUT_S).get("waiting_for")
        except ClientError:  # the agent went away in the meantime
            waiting_for = "the agent"
        output.tell(
            f"not subscribed within {timeout:g} s: waiting for {waiting_for or 'the agent to answer'}"
        )
        raise typer.Exit(Exit.FAILED) from None


def _printer(json: bool, raw: bool) -> Callable[[Event], None]:
    if json:
        return lambda event: output.print_json(output.event_document(event))
    if raw:
        return _print_raw
    return lambda event: output.print_line(output.event_line(event))


def _print_raw(event: Event) -> None:
    if event.notice is None:
        output.print_bytes(bytes(event.data))
    else:
        output.tell(output.notice_text(event))


def _follow(
    subscription: Subscription, count: int | None, deadline: float | None, printer: Callable[[Event], None]
) -> int:
    """Prints events until ``count``, ``deadline`` or a final notice; the number of events printed."""
    taken = 0
    while count is None or taken < count:
        event = subscription.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        if event is None:
            break
        printer(event)
        if event.notice is None:
            taken += 1
        elif event.notice.final:
            break
    return taken
