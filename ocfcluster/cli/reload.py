"""``ocfcluster reload``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ocfcluster.cli import options, output
from ocfcluster.cli.exits import Exit

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT_S = 30.0  # a name server may be asked for peers

_WHEN = {"now": "at run time", "restart": "with a restart", "command": "by a command"}


def run(
    context: typer.Context,
    check: Annotated[
        bool, typer.Option("--check", help="Only say what would change, what needs a restart, what is wrong.")
    ] = False,
    socket: options.Socket = None,
    json: options.Json = False,
) -> None:
    """Have the agent read its configuration file again, as SIGHUP does: all of it, or nothing where it cannot be.

    Leaves with 0 if the file is taken (with --check: would be), with 2 if it is wrong, with 5 if a change in it needs a
    restart.

    Example: ocfcluster reload --check
    """
    with options.connect(context, socket, orders=False) as client:
        document = client.admin.reload(check=check, timeout=TIMEOUT_S)
    if json:
        output.print_json(document)
    else:
        _print(document, check=check)
    if document["error"]:
        raise typer.Exit(int(Exit.USAGE))
    if not document["works"]:
        raise typer.Exit(int(Exit.REFUSED))


def _print(document: Mapping[str, Any], *, check: bool) -> None:
    changes = document["changes"]
    if changes:
        output.print_table(
            ("key", "before", "after", "changes", ""),
            (
                (one["key"], _value(one["before"]), _value(one["after"]), _WHEN[one["when"]], one["note"])
                for one in changes
            ),
        )
    if document["works"]:
        said = "nothing differs" if not changes else "all of this can change" if check else "done"
        output.print_line(f"{document['file']}: {said}")
    else:
        text = f"{document['file']}: {document['reason']}"
        output.tell(text if check else f"nothing has changed: {text}")


def _value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_value(one)}" for key, one in value.items()) + "}"
    return str(value)
