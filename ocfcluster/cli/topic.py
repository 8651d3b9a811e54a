"""``ocfcluster topic create | alter | list | show | remove``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ocfcluster.cli import access, options, output, retention
from ocfcluster.limits import GROUP_PREFIX
from ocfcluster.wire.topics import TopicSettings

if TYPE_CHECKING:
    from ocfcluster.client import TopicInfo

app = typer.Typer(
    help="Create, alter, list, show and remove topics. Example: ocfcluster topic create orders",
    no_args_is_help=True,
)

_HEADINGS = ("topic", "id", "scope", "last seq", "subscribers here", "also called")


def _is_rule(name: str) -> bool:
    """Whether it says who may use groups; such a name is no topic's."""
    return name.startswith(GROUP_PREFIX)


def _scope(topic: TopicInfo) -> str:
    return "rule" if _is_rule(topic.name) else topic.scope


def _document(topic: TopicInfo) -> dict[str, Any]:
    return {
        "topic": topic.name, "topic_id": topic.topic_id, "scope": _scope(topic), "last_seq": topic.last_seq,
        "subscribers": topic.subscribers, "aliases": list(topic.aliases),
        "access": access.lists(topic.settings.access), **retention.document(topic),
    }  # fmt: skip


def _row(topic: TopicInfo) -> tuple[object, ...]:
    aliases = ", ".join(topic.aliases)
    return (
        output.printable(topic.name),
        topic.topic_id,
        _scope(topic),
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
    publish: access.Publish = None,
    subscribe: access.Subscribe = None,
    administer: access.Administer = None,
    retain_events: retention.Events = None,
    retain_bytes: retention.Bytes = None,
    retain_seconds: retention.Seconds = None,
    socket: options.Socket = None,
    json: options.Json = False,
) -> None:
    """Create a topic on all nodes, at one place in the cluster's order.

    Creating it again with the same scope, and the same settings or none, changes nothing and succeeds. With --retain-…
    the newest events are kept, for subscriptions that begin earlier than now. TOPIC may be group:NAME, or
    group:BEGINNING*: then it is no topic, but says who may use these groups.

    Example: ocfcluster topic create orders --publish user:shop --retain-events 1000
    """
    settings = access.altered(TopicSettings(), publish, subscribe, administer)
    settings = retention.altered(settings, retain_events, retain_bytes, retain_seconds)
    with options.connect(context, socket) as client:
        made = client.create_topic(topic, scope="local" if local else "global", settings=settings)
    if json:
        output.print_json(_document(made))
    elif _is_rule(made.name):
        output.print_line(f"{output.printable(made.name)} says who may use these groups")
    else:
        output.print_line(f"topic {output.printable(made.name)} ({made.scope}) has id {made.topic_id}")


@app.command()
def alter(
    context: typer.Context,
    topic: options.TopicName,
    publish: access.Publish = None,
    subscribe: access.Subscribe = None,
    administer: access.Administer = None,
    retain_events: retention.Events = None,
    retain_bytes: retention.Bytes = None,
    retain_seconds: retention.Seconds = None,
    socket: options.Socket = None,
) -> None:
    """Change who may use a topic, or what is kept of it, at one place in the cluster's order.

    What is not named stays as it is.

    Subscriptions of those who may not subscribe any more end there, with a notice.

    Example: ocfcluster topic alter orders --publish user:shop --retain-seconds 3600
    """
    given = (publish, subscribe, administer, retain_events, retain_bytes, retain_seconds)
    if all(one is None for one in given):
        raise typer.BadParameter("nothing to change: name --publish, --subscribe, --administer or --retain-…")
    with options.connect(context, socket) as client:
        settings = access.rule_of(client, topic) if _is_rule(topic) else client.topic(topic).settings
        settings = access.altered(settings, publish, subscribe, administer)
        client.alter_topic(topic, retention.altered(settings, retain_events, retain_bytes, retain_seconds))
    output.print_line(f"topic {output.printable(topic)} is altered")


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
    """Show one topic: what it is, who may publish, subscribe and administer, and what you may.

    Example: ocfcluster topic show orders
    """
    with options.connect(context, socket) as client:
        rights = client.access(topic)
        found = None if _is_rule(topic) else client.topic(topic)
    if json:
        output.print_json({**({} if found is None else _document(found)), **access.document(rights)})
        return
    if found is not None:
        for heading, value in zip(_HEADINGS, _row(found), strict=True):
            if value != "":
                output.print_line(f"{heading + ':':18}{value}")
        for heading, text in retention.rows(found):
            output.print_line(f"{heading + ':':18}{text}")
    for heading, text in access.rows(rights):
        output.print_line(f"{heading + ':':18}{text}")


@app.command()
def remove(context: typer.Context, topic: options.TopicName, socket: options.Socket = None) -> None:
    """Remove a topic on all nodes; its subscriptions end with a notice.

    A topic made again under the same name is another topic.

    Example: ocfcluster topic remove orders
    """
    with options.connect(context, socket) as client:
        client.remove_topic(topic)
    output.print_line(f"topic {output.printable(topic)} is removed")
