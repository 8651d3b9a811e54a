"""The typer application: its global options and the commands under it."""

from __future__ import annotations

from typing import Annotated

import typer

from ocfcluster.cli import (
    agent,
    collect,
    conformance,
    connectivity,
    demo,
    group,
    keys,
    limits,
    members,
    node,
    options,
    publish,
    reload,
    simulate,
    status,
    subscribe,
    topic,
)

HELP = """
A cluster-wide event broker: what is published on one node reaches programs on every node in one order.

The agent is found by --socket, else by OCFCLUSTER_SOCKET, else where an agent of this user listens.

Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 machine set-up, 4 no agent, 5 refused, 6 evicted,
130 interrupted.

Example: ocfcluster status --watch
"""

app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from ocfcluster import __version__

        typer.echo(f"ocfcluster {__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    socket: options.Socket = None,
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Keeps the global options for the commands (``options.socket_path`` reads them)."""
    context.obj = {"socket": socket}


app.command("agent")(agent.run)
app.add_typer(topic.app, name="topic")
app.command("publish")(publish.run)
app.command("subscribe")(subscribe.run)
app.command("status")(status.show_status)
app.command("members")(members.show_members)
app.command("reload")(reload.run)
app.command("connectivity")(connectivity.show_connectivity)
app.add_typer(group.app, name="group")
app.add_typer(node.app, name="node")
app.command("shutdown")(node.shutdown)
app.command("bootstrap")(node.bootstrap)
app.command("recover")(node.recover)
app.command("rejoin")(node.rejoin)
app.command("collect")(collect.run)
app.command("keygen")(keys.keygen)
app.add_typer(keys.app, name="key")
app.command("limits")(limits.run)
app.command("demo")(demo.run)
app.command("conformance")(conformance.run)
app.command(
    "sim",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)(simulate.run)
app.info.help = HELP
