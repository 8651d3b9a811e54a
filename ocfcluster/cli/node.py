"""``ocfcluster node add | remove | votes | sequence``, ``shutdown``, ``bootstrap``, ``recover``, ``rejoin``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ocfcluster.cli import options, output
from ocfcluster.limits import NODE_ID_MOST, VOTES_MOST

if TYPE_CHECKING:
    from ocfcluster.client.admin import Admin

app = typer.Typer(
    help="Change the node table, and who orders. Example: ocfcluster node add 4",
    no_args_is_help=True,
)

NodeId = Annotated[
    int, typer.Argument(metavar="ID", min=1, max=NODE_ID_MOST, help="The node's id.", show_default=False)
]


def _administer(
    context: typer.Context, socket: str | None, *, ordered: bool, command: Callable[[Admin], None]
) -> None:
    with options.connect(context, socket, orders=ordered) as client:
        command(client.admin)


def _done(json: bool, text: str, **document: Any) -> None:
    if json:
        output.print_json(document)
    else:
        output.print_line(text)


def _votes(votes: int) -> str:
    return "1 vote" if votes == 1 else f"{votes} votes"


@app.command()
def add(
    context: typer.Context,
    node_id: NodeId,
    votes: Annotated[int, typer.Option("--votes", metavar="N", min=0, max=VOTES_MOST, help="Its votes.")] = 1,
    socket: options.Socket = None,
    json: options.Json = False,
) -> None:
    """Add a node to the node table. It may join from then on: start its agent.

    Example: ocfcluster node add 4
    """
    with options.connect(context, socket, orders=True) as client:
        known = node_id in client.status().get("table", {})
        client.admin.add_node(node_id, votes)
    text = (
        f"node {node_id} is in the node table already, with {_votes(votes)}"
        if known
        else f"node {node_id} is added with {_votes(votes)}; its agent can join now"
    )
    _done(json, text, command="node add", node_id=node_id, votes=votes)


@app.command()
def remove(
    context: typer.Context, node_id: NodeId, socket: options.Socket = None, json: options.Json = False
) -> None:
    """Remove a node from the node table; if it is a member, the others go on without it.

    Refused where the nodes that are there would have no majority then.

    Example: ocfcluster node remove 4
    """
    _administer(context, socket, ordered=True, command=lambda admin: admin.remove_node(node_id))
    _done(json, f"node {node_id} is removed", command="node remove", node_id=node_id)


@app.command()
def votes(
    context: typer.Context,
    node_id: NodeId,
    number: Annotated[
        int,
        typer.Argument(metavar="N", min=0, max=VOTES_MOST, help="Its votes from now on.", show_default=False),
    ],
    socket: options.Socket = None,
    json: options.Json = False,
) -> None:
    """Give a node of the node table other votes.

    Refused where the nodes that are there would have no majority then.

    Example: ocfcluster node votes 4 2
    """
    _administer(context, socket, ordered=True, command=lambda admin: admin.set_votes(node_id, number))
    _done(
        json, f"node {node_id} has {_votes(number)} from now on",
        command="node votes", node_id=node_id, votes=number,
    )  # fmt: skip


@app.command()
def sequence(
    context: typer.Context, node_id: NodeId, socket: options.Socket = None, json: options.Json = False
) -> None:
    """Hand the sequencer's work, which is to order the events, to a member.

    Example: ocfcluster node sequence 2
    """
    _administer(context, socket, ordered=True, command=lambda admin: admin.sequence(node_id))
    _done(json, f"node {node_id} is to order from now on", command="node sequence", node_id=node_id)


def shutdown(context: typer.Context, socket: options.Socket = None, json: options.Json = False) -> None:
    """Stop the agents of all members, at one place in the order. Nothing is evicted, and nobody waits for nobody.

    A single agent is stopped by SIGTERM: the others go on without it.

    Example: ocfcluster shutdown
    """
    _administer(context, socket, ordered=True, command=lambda admin: admin.shutdown())
    _done(json, "the cluster stops", command="shutdown")


def bootstrap(
    context: typer.Context,
    nodes: Annotated[
        list[int],
        typer.Argument(
            metavar="NODE...", min=1, max=NODE_ID_MOST, help="Nodes that are missing.", show_default=False
        ),
    ],
    without: Annotated[bool, typer.Option("--without", help="Form without the nodes that follow.")] = False,
    socket: options.Socket = None,
    json: options.Json = False,
) -> None:
    """Have a cluster that waits to form for the first time form without nodes that are missing.

    Only where these have never been members, and what they have on disk may be forgotten. To be given once, to one
    of the agents that wait.

    Example: ocfcluster bootstrap --without 3
    """
    if not without:
        raise typer.BadParameter("say --without before the nodes that are missing", param_hint="--without")
    _administer(context, socket, ordered=False, command=lambda admin: admin.bootstrap_without(nodes))
    names = ", ".join(map(str, nodes))
    _done(
        json, f"the cluster forms without {'node' if len(nodes) == 1 else 'nodes'} {names}, once all others agree",
        command="bootstrap", without=nodes,
    )  # fmt: skip


def recover(
    context: typer.Context,
    new_history: Annotated[
        bool, typer.Option("--new-history", help="Declare lost what only the missing members had.")
    ] = False,
    socket: options.Socket = None,
    json: options.Json = False,
) -> None:
    """Have a cluster that waits for members which will not come back go on without them, in a new history.

    Numbers begin anew, subscribers are told how far they had got, publications without an answer are unknown.

    Example: ocfcluster recover --new-history
    """
    if not new_history:
        raise typer.BadParameter(
            "say --new-history: what only the missing members had is lost then", param_hint="--new-history"
        )
    _administer(context, socket, ordered=False, command=lambda admin: admin.new_history())
    _done(json, "the cluster goes on in a new history", command="recover", new_history=True)


def rejoin(context: typer.Context, socket: options.Socket = None, json: options.Json = False) -> None:
    """Have an agent that waits in one history give that up, and join the other one that it hears.

    Example: ocfcluster rejoin
    """
    _administer(context, socket, ordered=False, command=lambda admin: admin.rejoin())
    _done(json, "the node gives up its history and joins the one that it hears", command="rejoin")
