"""``ocfcluster group list | members | cast | join``."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any, Final

import typer

from ocfcluster.cli import options, output
from ocfcluster.errors import ClientError

LEAVE_S: Final = 2.0  # at most, when a member is told to end

app = typer.Typer(
    help="Groups of processes: who is in them, and what they say to each other. A group needs no creation."
    " Example: ocfcluster group members workers --watch",
    no_args_is_help=True,
)

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of the group, without group:.", show_default=False)
]


@app.command("list")
def list_groups(context: typer.Context, socket: options.Socket = None, json: options.Json = False) -> None:
    """List the groups that are in use, with how many members each has.

    One without members stays in the list until others need its place.

    Example: ocfcluster group list --json
    """
    with options.connect(context, socket, orders=False) as client:
        groups = client.groups()
    if json:
        output.print_json([{"group": one.name, **one._asdict()} for one in groups])
    else:
        headings = ("group", "members", "last seq", "id")
        rows = [(output.printable(one.name), one.members, one.last_seq, one.topic_id) for one in groups]
        output.print_table(headings, rows, right=headings[1:])


@app.command()
def members(
    context: typer.Context,
    name: Name,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Who is in the group, then each change, until Ctrl-C.")
    ] = False,
    socket: options.Socket = None,
    json: options.Json = False,
) -> None:
    """List the members of a group, oldest first: each with its id, its node and its process there.

    With --watch one line per change: who joined (in), who left (out) and why, and the members from then on.

    Example: ocfcluster group members workers --watch --json
    """
    if watch:
        _watch(context, name, socket, json)
        return
    with options.connect(context, socket, orders=False) as client:
        found = client.group(name).members()
    if json:
        output.print_json([one._asdict() for one in found])
    elif not found:
        output.tell(f"nobody is in the group {output.printable(name)}")
    else:
        headings = ("member", "node id", "pid")
        output.print_table(headings, found, right=headings)


def _watch(context: typer.Context, name: str, socket: str | None, json: bool) -> None:
    with (
        options.connect(context, socket, resume=True) as client,
        client.group(name).subscribe() as subscription,
    ):
        for event in subscription:
            if event.notice is not None or output.group_document(event).get("members") is not None:
                _show(event, json)


@app.command()
def cast(
    context: typer.Context,
    name: Name,
    data: Annotated[str, typer.Argument(metavar="DATA", help="What to say.", show_default=False)],
    ask: Annotated[
        float,
        typer.Option(
            "--ask", min=0, metavar="SECONDS",
            help="Wait so long for a reply from each member; exit code 1 where one is missing.",
        ),
    ] = 0.0,
    socket: options.Socket = None,
    json: options.Json = False,
) -> None:  # fmt: skip
    """Say something to all members and observers of a group, without becoming a member.

    With --ask the replies are printed as they stand when the last possible one has come: each member has replied or
    left.

    Example: ocfcluster group cast workers "how much is left?" --ask 5
    """
    with options.connect(context, socket) as client:
        group = client.group(name)
        if ask:
            _ask(group, data.encode(), ask, json)
            return
        published = group.cast(data.encode()).wait()
    if json:
        output.print_json({"group": group.name, "seq": published.seq, "ev_id": published.ev_id})
    else:
        output.tell(f"cast to {output.printable(group.name)} under seq {published.seq}")


def _ask(group: Any, data: bytes, seconds: float, json: bool) -> None:
    result = group.request(data, seconds)
    if json:
        output.print_json(
            {
                "ev_id": result.ev_id, "complete": result.complete, "interrupted": result.interrupted,
                "replies": [{**one.member._asdict(), **output.data_fields(one.data)} for one in result.replies],
                "left": [one._asdict() for one in result.left],
                "missing": [one._asdict() for one in result.missing],
            }
        )  # fmt: skip
    else:
        for one in result.replies:
            output.print_line(
                f"{one.member.member} on node {one.member.node_id}: {output.readable(one.data)}"
            )
        for one in result.left:
            output.tell(f"member {one.member} left without a reply")
        for one in result.missing:
            output.tell(f"no reply from member {one.member} on node {one.node_id} in {seconds:g} s")
        if result.interrupted:
            output.tell(f"replies may be missing: {result.interrupted}")
    if not result.complete:
        raise typer.Exit(1)


@app.command()
def join(
    context: typer.Context, name: Name, socket: options.Socket = None, json: options.Json = False
) -> None:
    """Be a member of a group until Ctrl-C, and print its events: who is in it, joins, leaves, and what is said.

    After a restart of the agent it joins again, as another member.

    Example: ocfcluster group join workers
    """
    with options.connect(context, socket, resume=True) as client:
        group = client.group(name)
        with group.subscribe() as subscription:
            group.join()
            output.tell(f"joined {output.printable(group.name)} as member {group.member}")
            try:
                for event in subscription:
                    _show(event, json)
            finally:
                # Where nothing is ordered it would wait: the agent takes the member away when the connection ends.
                with suppress(ClientError):
                    group.leave(timeout=LEAVE_S)


def _show(event: Any, json: bool) -> None:
    if json:
        output.print_json(output.event_document(event))
    elif event.notice is not None:
        output.print_line(output.event_line(event))
    else:
        output.print_line(f"{event.seq} {output.group_text(event)}")
