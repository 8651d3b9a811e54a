"""Options that several commands share, and the way from them to a connected client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ocfcluster.cli import output

if TYPE_CHECKING:
    from ocfcluster.client import Client

Socket = Annotated[
    str | None,
    typer.Option(
        "--socket",
        metavar="PATH",
        help="The agent's socket.",
        show_default="OCFCLUSTER_SOCKET, else where an agent of this user listens",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="JSON for programs instead of text for people.")]
TopicName = Annotated[str, typer.Argument(metavar="TOPIC", help="Name of the topic.", show_default=False)]

CONNECT_TIMEOUT_S = 5.0


def socket_path(context: typer.Context, socket: str | None) -> str:
    """The socket to use: the command's own option, else the global one or the environment, else the default."""
    chosen = socket or (context.find_root().obj or {}).get("socket")
    if chosen:
        return str(chosen)
    from ocfcluster.client.locate import default_socket_path

    return default_socket_path()


def connect(
    context: typer.Context, socket: str | None, *, resume: bool = False, orders: bool = True
) -> Client:
    """A connected client. Raises AgentUnreachable.

    ``orders``: the command needs the cluster's order, so a person is told (stderr) what it waits for.
    """
    import ocfcluster

    path = socket_path(context, socket)
    client = ocfcluster.connect(path, name="ocfcluster command", resume=resume, timeout=CONNECT_TIMEOUT_S)
    if orders and (obstacle := _obstacle(client)):
        output.tell(obstacle)
    return client


def _obstacle(client: Client) -> str:
    """Why what needs the cluster's order has to wait, and for what; empty: it has not."""
    status = client.status()
    if client.agent is not None and not client.agent.cluster_id:
        why = "the cluster is not formed yet"
    elif not status.get("primary", True):
        why = "this node is in no majority"
    else:
        return ""
    missing = status.get("waiting_for")
    return f"{why}, this command waits: {missing}" if missing else ""


def waiting_for(client: Client) -> str:
    """What a cluster that is not formed yet waits for; empty where it is formed."""
    if client.agent is None or client.agent.cluster_id:
        return ""
    return str(client.status().get("waiting_for") or "")
