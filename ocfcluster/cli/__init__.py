"""The command line: ``ocfcluster agent | topic | publish | subscribe | status | members | group | node |
reload | keygen | key | limits | shutdown | bootstrap | recover | rejoin | demo | conformance | sim``.

Each command is a thin shell over the public Python API. Modules of commands import what they run inside the command,
so that ``ocfcluster --help`` and shell completion do not load the agent. Exit codes are listed in ``exits.py``.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from ocfcluster.cli.exits import exit_code, explain

__all__ = ["main"]

DEBUG_VARIABLE = "OCFCLUSTER_DEBUG"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits with its code; ``arguments`` defaults to those of the process.

    Whatever goes wrong ends in one line on stderr. ``OCFCLUSTER_DEBUG=1`` shows the traceback instead.
    """
    _open_standard_streams()
    from ocfcluster.cli.app import app

    try:
        app(args=None if arguments is None else list(arguments), prog_name="ocfcluster")
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # of a help text, which typer prints
            raise SystemExit(0) from None
        raise
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        print(f"ocfcluster: {explain(error)}", file=sys.stderr)
        raise SystemExit(exit_code(error)) from None
    raise SystemExit(0)


def _open_standard_streams() -> None:
    """A stream that the caller closed leads nowhere: else a socket would get its number, and be printed into.

    What the encoding of an output lacks is printed escaped, unless ``PYTHONIOENCODING`` says how: events hold any
    character, and one must not end what prints them.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115 - until the process ends
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")
