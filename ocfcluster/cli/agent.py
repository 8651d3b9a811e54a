"""``ocfcluster agent``: runs the daemon in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="TOML configuration; without it a single development node.",
            show_default=False,
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Send in the clear, also off loopback: as security.insecure = true."),
    ] = False,
) -> None:
    """Run the agent in the foreground until SIGTERM or Ctrl-C, which end it in order.

    Without --config it is a cluster of one node for development, on loopback alone.

    Example: ocfcluster agent --config /etc/ocfcluster/agent.toml
    """
    if (context.find_root().obj or {}).get("socket"):
        raise typer.BadParameter(
            "is for commands that look for an agent; where this one listens is node.socket of its configuration",
            param_hint="--socket",
        )
    from ocfcluster.agent.main import run_agent

    raise typer.Exit(int(run_agent(config, insecure=insecure) or 0))
