"""``ocfcluster sim``: the simulator, which reads its own arguments."""

from __future__ import annotations

import typer

from ocfcluster.errors import ConfigurationError


def run(context: typer.Context) -> None:
    """Run the simulator: many nodes in one process, faults from a seed, order and agreement checked.

    All arguments go to the simulator (its own --help lists them).

    Example: ocfcluster sim --help
    """
    try:
        from ocfcluster.simulator.main import main
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("ocfcluster.simulator"):
            raise
        raise ConfigurationError("this installation has no simulator") from None
    code = main(list(context.args))
    raise typer.Exit(int(code or 0))
