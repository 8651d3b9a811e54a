"""``ocfcluster topic create | list | show | remove``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ocfcluster.cli import options, output

if TYPE_CHECKING:
    from ocfcluster.client import TopicInfo

app = typer.Typer(
    help="Create, list, show and remove topics. Example: ocfcluster topic create orders",
    no_args_is_help=True,
)

_HEADINGS = ("topic", "id", "scope", "last seq", "subscribers here", "also called")


def _document(topic: TopicInfo) -> dict[str, Any]:
    return {
        "topic": topic.name, "topic_id": topic.topic_id, "scope": topic.scope, "last_seq": topic.last_seq,
        "subscribers": topic.subscribers, "aliases": list(topic.aliases),
    }  # fmt: skip


def _row(topic: TopicInfo) -> tuple[object, ...]:
    aliases = ", ".join(topic.aliases)
    return (
        output.printable(topic.name),
        topic.topic_id,
        topic.scope,
        topic.last_seq,
        topic.subscribers,
        aliases,
    )


@app.command()
def create(
    context: typer.Context,
    topic: options.TopicName,
    local: Annotated[
        bool, typer.Option("--local", help="Events stay on the node where they are published.")
    ] = False,
    socket: options.Socket = None,
    json: options.Json = False,
) -> None:
    """Create a topic on all nodes, at one place in the cluster's order.

    Creating it again with the same scope changes nothing and succeeds.

    Example: ocfcluster topic create orders
    """
    with options.connect(context, socket) as client:
        client.create_topic(topic, scope="local" if local else "global")
        made = client.topic(topic)
    if json:
        output.print_json(_document(made))
    else:
        output.print_line(f"topic {output.printable(made.name)} ({made.scope}) has id {made.topic_id}")


@app.command("list")
def list_topics(context: typer.Context, socket: options.Socket = None, json: options.Json = False) -> None:
    """List the topics.

    Example: ocfcluster topic list
    """
    with options.connect(context, socket, orders=False) as client:
        topics = sorted(client.topics(), key=lambda topic: topic.name)
        waiting_for = options.waiting_for(client)
    if waiting_for:
        output.tell(f"the cluster is not formed yet, its topics are not all known: waiting for {waiting_for}")
    if json:
        output.print_json([_document(topic) for topic in topics])
    else:
        output.print_table(_HEADINGS, map(_row, topics), right=("id", "last seq", "subscribers here"))


@app.command()
def show(
    context: typer.Context,
    topic: options.TopicName,
    socket: options.Socket = None,
    json: options.Json = False,
) -> None:
    """Show one topic.

    Example: ocfcluster topic show orders
    """
    with options.connect(context, socket) as client:
        found = client.topic(topic)
    if json:
        output.print_json(_document(found))
        return
    for heading, value in zip(_HEADINGS, _row(found), strict=True):
        if value != "":
            output.print_line(f"{heading + ':':18}{value}")


@app.command()
def remove(context: typer.Context, topic: options.TopicName, socket: options.Socket = None) -> None:
    """Remove a topic on all nodes; its subscriptions end with a notice.

    A topic made again under the same name is another topic.

    Example: ocfcluster topic remove orders
    """
    with options.connect(context, socket) as client:
        client.remove_topic(topic)
    output.print_line(f"topic {output.printable(topic)} is removed")
