"""``ocfcluster members``: who belongs to the cluster, and with ``--watch`` how that changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ocfcluster.cli import options, output

if TYPE_CHECKING:
    from ocfcluster.client.events import Event


def show_members(
    context: typer.Context,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="The membership as it is, then each change, until Ctrl-C.")
    ] = False,
    json: options.Json = False,
    socket: options.Socket = None,
) -> None:
    """List the members of the cluster as this agent sees them, oldest first.

    With --watch one line per event of oc.membership: the generation, the members, who joined (in) and who left (out);
    and whether this node can still reach the others. It outlives a restart of the agent.

    Example: ocfcluster members --watch --json
    """
    if watch:
        _watch(context, json, socket)
        return
    with options.connect(context, socket, orders=False) as client:
        status = client.status()
    members = [plain(member) for member in status.get("members", [])]
    if json:
        output.print_json(members)
    elif not members:
        output.tell(f"no members yet: waiting for {status.get('waiting_for') or 'the cluster to form'}")
    else:
        headings, rows = member_table(members)
        output.print_table(headings, rows, right=headings)


def _watch(context: typer.Context, json: bool, socket: str | None) -> None:
    from ocfcluster.components.membership import TOPIC

    with (
        options.connect(context, socket, resume=True) as client,
        client.subscribe(TOPIC) as subscription,
    ):
        for event in subscription:
            if json:
                output.print_json(document(event))
            else:
                output.print_line(line(event))


def line(event: Event) -> str:
    """An event of oc.membership, or a notice, for people."""
    if event.notice is not None:
        return output.event_line(event)
    return output.membership_text(event.data)


def document(event: Event) -> dict[str, Any]:
    """An event of oc.membership as plain values, or a notice with the key ``notice``."""
    from ocfcluster.wire.frames import RecordFlags

    if event.notice is not None:
        return output.event_document(event)
    return {
        **output.membership_document(event.data),
        "seq": event.seq, "ev_id": event.ev_id, "local": event.local,
        "retained": RecordFlags.RETAINED in event.flags,
    }  # fmt: skip


def plain(member: Any) -> dict[str, Any]:
    """A member as a table of its fields, whatever kind of record it is."""
    if isinstance(member, Mapping):
        return dict(member)
    if hasattr(member, "_asdict"):
        return dict(member._asdict())
    return {name: getattr(member, name) for name in getattr(member, "__slots__", ()) or vars(member)}


def member_table(members: list[dict[str, Any]]) -> tuple[list[str], list[list[object]]]:
    """Headings and rows: every field that any member has."""
    names = list(dict.fromkeys(name for member in members for name in member))
    return [name.replace("_", " ") for name in names], [
        [member.get(name, "") for name in names] for member in members
    ]
