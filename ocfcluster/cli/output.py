"""What commands print: JSON lines, tables, and events made safe for a terminal."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from ocfcluster.errors import OcfError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ocfcluster.client.events import Event
    from ocfcluster.components.connectivity import ConnectivityEvent, Interface, Link
    from ocfcluster.components.membership import MembershipEvent
    from ocfcluster.wire.group import GroupEvent

GROUP_PREFIX = "group:"
MEMBERSHIP_TOPIC = "oc.membership"
CONNECTIVITY_TOPIC = "oc.connectivity"
PLAIN_WIDTH = 200  # columns of a table that does not go to a terminal: nothing is cut in a pipe


@contextmanager
def _writing() -> Iterator[None]:
    """A reader that went away ends the command quietly; raises OcfError where stdout takes no more."""
    try:
        yield
    except BrokenPipeError:
        _stdout_to_nowhere()
        raise typer.Exit(0) from None
    except OSError as error:
        _stdout_to_nowhere()
        raise OcfError(f"standard output: {error.strerror or error}") from None


def print_line(text: str) -> None:
    """One line on stdout, flushed. A reader that went away ends the command quietly."""
    with _writing():
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def _stdout_to_nowhere() -> None:
    """Keeps the interpreter's last flush from failing, which would print a traceback."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def print_bytes(data: bytes) -> None:
    """``data`` and a newline on stdout as they are, flushed."""
    with _writing():
        sys.stdout.flush()
        sys.stdout.buffer.write(data + b"\n")
        sys.stdout.buffer.flush()


def print_json(document: Any) -> None:
    """One JSON document on one line: what a terminal would obey, or stdout's encoding may lack, as JSON escapes it."""
    unicode = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    text = json.dumps(document, ensure_ascii=not unicode, separators=(",", ":"), default=str)
    if not text.isprintable():  # json escapes the controls below U+0020 alone
        text = "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
        text = text.replace("\x7f", "\\u007f")  # the one of ASCII that json leaves
    print_line(text)


def tell(text: str) -> None:
    """A remark for the person at the terminal: on stderr, so that stdout holds results alone."""
    print(f"ocfcluster: {text}", file=sys.stderr, flush=True)


def console() -> Console:
    """A console on stdout: the terminal's width, or wide enough to cut nothing."""
    from rich.console import Console

    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(highlight=False, width=PLAIN_WIDTH, no_color=True)


def redraws() -> bool:
    """Whether stdout is a terminal that can draw over what it showed before."""
    return sys.stdout.isatty() and not console().is_dumb_terminal


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> Table:
    """A plain table; the columns named in ``right`` hold numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        made.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    return made


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()
) -> None:
    """Prints ``table``; trailing blanks are cut where it does not go to a terminal."""
    show(table(headings, rows, right=right))


def show(renderable: Any) -> None:
    """Prints a rich object."""
    target = console()
    with _writing():
        if sys.stdout.isatty():
            target.print(renderable)
            return
        with target.capture() as captured:  # which writes as well
            target.print(renderable)
    for line in captured.get().strip("\n").splitlines():
        print_line(line.rstrip())


def readable(data: bytes, limit: int = 0) -> str:
    """``data`` on one line of a terminal: printable text as it is, everything else escaped."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = "0x" + data.hex()
    text = printable(text)
    return text if not limit or len(text) <= limit else text[: limit - 1] + "…"


def printable(text: str) -> str:
    """``text`` with everything escaped that a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def data_fields(data: bytes) -> dict[str, str]:
    """``data`` as text where it is UTF-8, else as base64: {"data": ...} or {"data_base64": ...}."""
    try:
        return {"data": data.decode("utf-8")}
    except UnicodeDecodeError:
        return {"data_base64": base64.b64encode(data).decode("ascii")}


def event_document(event: Event) -> dict[str, Any]:
    """An event, or a notice with the key ``notice``, as plain values for JSON."""
    if event.notice is not None:
        notice = event.notice
        return {
            "notice": _notice_name(notice.code), "topic": notice.topic, "first_seq": notice.first_seq,
            "last_seq": notice.last_seq, "reason": notice.reason, "final": notice.final,
        }  # fmt: skip
    return {
        "topic": event.topic, "seq": event.seq, "ev_id": event.ev_id, "re_id": event.re_id,
        "node_id": event.node_id, "incarnation": event.incarnation, "m_sequence": event.m_sequence,
        "time_ns": event.time_ns, "local": event.local, "properties": dict(event.properties),
        **data_fields(bytes(event.data)),
        **({"membership": membership_document(event.data)} if event.topic == MEMBERSHIP_TOPIC else {}),
        **({"connectivity": connectivity_document(event.data)} if event.topic == CONNECTIVITY_TOPIC else {}),
        **({"group": group_document(event)} if event.topic.startswith(GROUP_PREFIX) else {}),
    }  # fmt: skip


def event_line(event: Event) -> str:
    """An event or a notice as one line for people."""
    if event.notice is not None:
        return f"-- {notice_text(event)}"
    data = event.data
    if event.topic.startswith(GROUP_PREFIX):
        text = group_text(event)
    else:
        words = {MEMBERSHIP_TOPIC: membership_text, CONNECTIVITY_TOPIC: connectivity_text}
        text = words.get(event.topic, readable)(bytes(data))
    return f"{printable(event.topic)} {event.seq} {text}"


def membership_text(data: bytes) -> str:
    """The data of an event of oc.membership in words."""
    event = _membership(data)
    if event is None:
        return readable(data)
    parts = [
        " ".join([word, *(str(node.node_id) for node in nodes)])
        for word, nodes in (("members", event.members), ("in", event.joined), ("out", event.left))
        if nodes
    ]
    new = event.code is type(event.code).NEW_MEMBERSHIP
    words = ", ".join(parts) if new else event.code.name.lower().replace("_", " ")
    return f"{event.m_sequence} {words}"


def membership_document(data: bytes) -> dict[str, Any]:
    """The data of an event of oc.membership as plain values."""
    event = _membership(data)
    if event is None:
        return {}
    lists = (("members", event.members), ("in", event.joined), ("out", event.left))
    return {
        "event": event.code.name.lower(), "m_sequence": event.m_sequence,
        **{name: [node._asdict() for node in nodes] for name, nodes in lists},
    }  # fmt: skip


def _membership(data: bytes) -> MembershipEvent | None:
    from ocfcluster.components.membership import MembershipEvent
    from ocfcluster.errors import Malformed

    try:
        return MembershipEvent.decode(bytes(data))
    except Malformed:  # of an agent of a later version, perhaps
        return None


def connectivity_text(data: bytes) -> str:
    """The data of an event of oc.connectivity in words: what has changed, else that it is as before."""
    event = _connectivity(data)
    if event is None:
        return readable(data)
    words = [
        f"{printable(one.name)} {_changes(one.change)}"
        + (
            f" ({', '.join(map(str, one.addresses)) or 'none'})"
            if "addresses" in _changes(one.change)
            else ""
        )
        for one in event.interfaces
        if one.change
    ]
    words += [f"node {one.node_id} {_changes(one.change)}" for one in event.eligible if one.change]
    words += [
        f"{one.hearer}-{one.heard} {_connection(one)}{f' on network {one.network}' if one.network else ''}"
        for one in event.links
        if one.change
    ]
    also = [f"{event.coalesced} more changes"] if event.coalesced else []
    return f"node {event.node_id} {event.code.name.lower()} {', '.join(words + also) or 'as before'}"


def _changes(change: Any) -> str:
    return " ".join(one.name.lower() for one in type(change) if one and one in change)


def _connection(link: Link) -> str:
    if link.established:
        return "established"
    return (
        "lost"
        if link.change & type(link.change).FAILED
        else f"not established ({_changes(link.state) or 'silent'})"
    )


def connectivity_document(data: bytes) -> dict[str, Any]:
    """The data of an event of oc.connectivity as plain values."""
    event = _connectivity(data)
    if event is None:
        return {}
    return {
        "event": event.code.name.lower(), "node_id": event.node_id, "coalesced": event.coalesced,
        **({"interfaces": [interface_document(one) for one in event.interfaces]} if event.interfaces else {}),
        **({"eligible": [
            {"node_id": one.node_id, "votes": one.votes, "change": _changes(one.change)} for one in event.eligible
        ]} if event.eligible else {}),
        **({"links": [link_document(one) for one in event.links]} if event.links else {}),
    }  # fmt: skip


def interface_document(one: Interface) -> dict[str, Any]:
    return {
        "name": one.name, "index": one.index, "mtu": one.mtu, "healthy": one.healthy, "state": _changes(one.state),
        "addresses": list(map(str, one.addresses)), "change": _changes(one.change),
    }  # fmt: skip


def link_document(one: Link) -> dict[str, Any]:
    return {
        "hearer": one.hearer, "heard": one.heard, "network": one.network, "hears": bool(one.state & 1),
        "established": one.established, "change": _changes(one.change),
    }  # fmt: skip


def _connectivity(data: bytes) -> ConnectivityEvent | None:
    from ocfcluster.components.connectivity import ConnectivityEvent
    from ocfcluster.errors import Malformed

    try:
        return ConnectivityEvent.decode(bytes(data))
    except Malformed:  # of an agent of a later version, perhaps
        return None


def group_text(event: Event) -> str:
    """An event of a group in words; what somebody published otherwise as it is."""
    opened = _group_event(event)
    if opened is None:
        return readable(bytes(event.data))
    name = opened.code.name.lower()
    lists = (("members", opened.members), ("in", opened.joined), ("out", opened.left))
    parts = [" ".join([word, *(str(one.member) for one in those)]) for word, those in lists if those]
    if name in ("join", "leave"):
        why = f" ({reason_text(opened.reason)})" if opened.reason else ""
        return f"{name}{why}: {', '.join(parts)}"
    if name == "members":
        return ", ".join(parts) or "no members"
    speaker = f"from {opened.member}" if opened.member else "from no member"
    to = f" to {opened.to}" if opened.to else ""
    answers = f", answers {event.re_id}" if event.re_id else ""
    said = "(not for this subscriber)" if opened.withheld else readable(opened.data)
    return f"{name} {speaker}{to}{answers}: {said}"


def group_document(event: Event) -> dict[str, Any]:
    """An event of a group as plain values."""
    opened = _group_event(event)
    if opened is None:
        return {}
    name = opened.code.name.lower()
    document: dict[str, Any] = {"event": name, "member": opened.member}
    if name in ("join", "leave", "members"):
        lists = (("members", opened.members), ("in", opened.joined), ("out", opened.left))
        if opened.reason:
            document["reason"] = reason_text(opened.reason)
        return {**document, **{word: [one._asdict() for one in those] for word, those in lists}}
    return {**document, "to": opened.to, "withheld": opened.withheld, **data_fields(opened.data)}


def reason_text(reason: int) -> str:
    """Why a member left, in words."""
    from ocfcluster.wire.group import LeaveReason

    try:
        return LeaveReason(reason).name.lower().replace("_", " ")
    except ValueError:
        return f"reason {reason}"


def _group_event(event: Event) -> GroupEvent | None:
    from ocfcluster.client.replies import open_event
    from ocfcluster.errors import Malformed

    try:
        return open_event(event)
    except Malformed:
        return None


def notice_text(event: Event) -> str:
    """What a notice says, in words."""
    notice = event.notice
    assert notice is not None  # noqa: S101 - the callers asked
    words = _notice_name(notice.code)
    if notice.topic:
        words += f" {printable(notice.topic)}"
    if notice.first_seq:
        words += f" {notice.first_seq}-{notice.last_seq}"
    return f"{words}: {notice.reason}" if notice.reason else words


def _notice_name(code: int) -> str:
    from ocfcluster.wire.frames import NoticeCode

    try:
        return NoticeCode(code).name.lower()
    except ValueError:
        return f"notice_{int(code)}"
