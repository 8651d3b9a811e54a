"""``ocfcluster limits``: every bound, with what it stops, as ``ocfcluster/limits.py`` has it."""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Iterator
from typing import Annotated, Any, Final, NamedTuple

import typer

from ocfcluster import limits
from ocfcluster.cli import options, output

# Limits that a configuration may set, mostly downwards, and its key.
CONFIGURED: Final = {
    "EVENT_BYTES_DEFAULT": "limits.event_bytes", "TOPICS": "limits.topics",
    "PRODUCERS_PER_NODE": "limits.producers_per_node", "CLIENTS": "limits.clients",
    "SUBSCRIPTIONS_PER_CLIENT": "limits.subscriptions_per_client", "WINDOW_BYTES": "limits.window_bytes",
    "BACKLOG_BYTES": "limits.backlog_bytes", "RECEIVE_BUFFER_BYTES": "limits.receive_buffer_bytes",
    "HEARTBEAT_NS": "timing.heartbeat_ms", "SUSPICION_NS": "timing.suspicion_ms",
    "SYNC_TIMEOUT_NS": "timing.sync_timeout_ms", "LEAVE_TIMEOUT_NS": "timing.leave_timeout_ms",
    "QUORUM_LOST_AFTER_NS": "timing.quorum_lost_after_ms", "HISTORY_WAIT_NS": "timing.history_wait_ms",
    "HOOK_NS": "hooks.timeout_ms",
}  # fmt: skip
_UNITS: Final = ("KIB", "MIB", "MILLISECOND_NS", "SECOND_NS")  # what values are written with
_SECTION: Final = re.compile(r"^# --- (.+?) -+$")


class Limit(NamedTuple):
    """One bound. ``value`` is in the unit that its name has, else a count or a text."""

    section: str
    name: str
    value: int | str
    reason: str
    key: str  # of the configuration; empty: it is fixed

    def shown(self) -> str:
        """The value as one reads it."""
        if isinstance(self.value, str):
            return self.value
        for unit_of_name, units in (
            ("BYTES", ((limits.MIB, "MiB"), (limits.KIB, "KiB"), (1, "bytes"))),
            ("NS", ((limits.SECOND_NS, "s"), (limits.MILLISECOND_NS, "ms"), (1, "ns"))),
        ):
            if unit_of_name in self.name.split("_"):
                size, unit = next(one for one in units if self.value % one[0] == 0 or one[0] == 1)
                return f"{self.value // size} {unit}"
        return str(self.value)

    def document(self) -> dict[str, Any]:
        return self._asdict()


def all_limits() -> list[Limit]:
    """Every limit, in the order of the source, which is where the reasons stand."""
    return list(_read(inspect.getsource(limits)))


def _read(source: str) -> Iterator[Limit]:
    comments = {
        token.start[0]: token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    sections = {line: found[1] for line, text in comments.items() if (found := _SECTION.match(text))}
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        name = node.target.id
        if name in _UNITS:
            continue
        section = next((sections[line] for line in sorted(sections, reverse=True) if line < node.lineno), "")
        own = [
            comments[line]
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
            if line in comments
        ]
        above: list[str] = []
        line = node.lineno - 1
        while (
            not own and line in comments and line not in sections and lines[line - 1].lstrip().startswith("#")
        ):
            above.insert(0, comments[line])
            line -= 1
        reason = " ".join(text.lstrip("# ") for text in (own or above))
        yield Limit(section, name, getattr(limits, name), reason, CONFIGURED.get(name, ""))


_BEGINNING: Final = """\
# Limits

Every bound, and the overload or attack that it stops: what `ocfcluster limits` prints, written from its source by
`OCFCLUSTER_REWRITE=1 pytest tests/unit/test_cli_limits.py`. A key in the last column is one of the
[configuration](configuration.md) that goes over the value.
"""
_HEADING: Final = "\n## {}\n\n| limit | value | why | key |\n|---|---|---|---|\n"


def markdown() -> str:
    """docs/limits.md."""
    parts = [_BEGINNING]
    section = ""
    for one in all_limits():
        if one.section != section:
            section = one.section
            parts.append(_HEADING.format(section[0].upper() + section[1:]))
        reason = one.reason.replace("|", "\\|")
        key = f"`{one.key}`" if one.key else ""
        parts.append(f"| `{one.name}` | {one.shown()} | {reason} | {key} |\n")
    return "".join(parts)


def run(
    name: Annotated[
        str,
        typer.Argument(
            metavar="WORD", help="Only those whose name, key or reason has it.", show_default=False
        ),
    ] = "",
    json: options.Json = False,
) -> None:
    """Show every bound of this version with its reason, and the key of the configuration that sets it.

    Example: ocfcluster limits clients
    """
    wanted = name.lower()
    found = [one for one in all_limits() if wanted in f"{one.name} {one.key} {one.reason}".lower()]
    if json:
        output.print_json([one.document() for one in found])
        return
    output.print_table(
        ("limit", "value", "key", "why"), ((one.name, one.shown(), one.key, one.reason) for one in found)
    )
