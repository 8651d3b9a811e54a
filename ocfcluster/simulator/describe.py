"""Datagrams and runs as a reader of a trace wants to see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ocfcluster.errors import Malformed
from ocfcluster.limits import CLEAR_HEADER_BYTES, RUN_HEADER_BYTES
from ocfcluster.protocol import messages
from ocfcluster.protocol.settings import Ballot, Configuration
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.datagram import MessageFlags, MessageType
from ocfcluster.wire.run import RunKind, read_header

ENTRIES_SHOWN: Final = 6


def message_type(datagram: bytes) -> MessageType | None:
    """What a datagram is; None where it is nothing this version knows."""
    if len(datagram) <= CLEAR_HEADER_BYTES or int.from_bytes(datagram[:2], "little") != wire.MAGIC:
        return None
    try:
        return MessageType(datagram[CLEAR_HEADER_BYTES])
    except ValueError:
        return None


def describe_run(run: bytes) -> str:
    """Kind, producer, numbers and size of a run."""
    if len(run) < RUN_HEADER_BYTES:
        return f"{len(run)} B that are no run"
    header = read_header(run)
    try:
        kind = RunKind(header.kind).name.lower()
    except ValueError:
        kind = f"kind {header.kind}"
    last = header.first_number + header.count - 1
    numbers = f"{header.first_number}" if header.count == 1 else f"{header.first_number}-{last}"
    return f"{kind} topic {header.topic_id} producer {header.producer} number {numbers} ({len(run)} B)"


def describe_datagrams(kept: bytes, size: int, segment: int) -> str:
    """The first datagram of a buffer and how many follow; ``kept`` is the buffer's beginning."""
    count = -(-size // segment) if segment else 1
    first = kept[: min(segment, size)] if segment else kept
    kind = message_type(first)
    whole = min(segment, size) <= len(kept)
    return f"{size} B of garbage" if kind is None else _message(kind, first, whole, size, count)


def _message(kind: MessageType, datagram: bytes, whole: bool, size: int, count: int) -> str:
    try:
        if kind is MessageType.DATA:
            first = wire.DATA.unpack_from(datagram, wire.BODY)[3]
            return f"DATA {_numbers(first, count)} ({size} B)"
        if kind is MessageType.RETRANSMIT:
            _, _, _, node_id, _, first = wire.RETRANSMIT.unpack_from(datagram, wire.BODY)
            return f"RETRANSMIT node {node_id}'s {_numbers(first, count)} ({size} B)"
        if not whole:
            return f"{kind.name} ({size} B)"
        if MessageType.PREPARE <= kind <= MessageType.ACCEPTED:
            return _epoch_change(kind, datagram)
        return _DESCRIBE[kind](datagram) if kind in _DESCRIBE else f"{kind.name} ({size} B)"
    except (Malformed, ValueError, IndexError) as error:
        return f"{kind.name}, malformed: {error}"


def _numbers(first: int, count: int) -> str:
    return f"{first}" if count == 1 else f"{first}-{first + count - 1}"


def _flags(flags: int) -> str:
    names = "".join(f" {flag.name}" for flag in MessageFlags if flags & flag)
    return names.lower()


def _order(datagram: bytes) -> str:
    order = wire.decode_order(datagram)
    index = order.first_index
    parts = []
    for node_id, count, first in order.entries[:ENTRIES_SHOWN]:
        parts.append(f"{_numbers(index, count)}=node {node_id}'s {_numbers(first, count)}")
        index += count
    if len(order.entries) > ENTRIES_SHOWN:
        parts.append(f"and {len(order.entries) - ENTRIES_SHOWN} entries")
    entries = ", ".join(parts) or "no entries"
    state = f"commit {order.commit} stable {order.stable} window {order.window}"
    return f"ORDER{_flags(order.flags)} [{entries}] {state}"


def _ack(datagram: bytes) -> str:
    flags, epoch, held = wire.decode_ack(datagram)
    return f"ACK{_flags(flags)} epoch {epoch} held {held}"


def _nack(datagram: bytes) -> str:
    _, ranges = wire.decode_nack(datagram)
    what = ", ".join(
        (f"node {one.node_id}'s " if one.node_id else "order ") + _numbers(one.first, one.count)
        for one in ranges
    )
    return f"NACK [{what}]"


def _heartbeat(datagram: bytes) -> str:
    beat = wire.decode_heartbeat(datagram)
    promised = ""
    if beat.promised_round:
        promised = f" promised {beat.promised_round}/{beat.promised_node}"
    return (
        f"HEARTBEAT{_flags(beat.flags)} epoch {beat.epoch}{promised} packet {beat.last_packet} index {beat.last_index} "
        f"held {beat.held} commit {beat.commit} stable {beat.stable} window {beat.window} "
        f"hears {[node_id for node_id, _ in beat.heard]}"
    )


# --- an epoch change ------------------------------------------------------------------------------------------------


def configuration_text(configuration: Configuration) -> str:
    """A configuration as a reader of a trace wants to see it."""
    members = " ".join(f"{member.node_id}" for member in configuration.members)
    return (
        f"{{epoch {configuration.epoch} of {configuration.cluster_id[-6:]}: members {members}, "
        f"sequencer {configuration.sequencer}, base {configuration.base}, m_sequence {configuration.m_sequence}}}"
    )


def _ballot(ballot: Ballot | None) -> str:
    return "none" if ballot is None else f"{ballot.round}/{ballot.node_id}"


def _instance(message: messages.Message) -> str:
    where = f"epoch {message.epoch} of {message.cluster_id[-6:]}" if message.cluster_id else "bootstrap"
    return f"{where} ballot {_ballot(message.ballot)}"


def _install(datagram: bytes) -> str:
    return f"INSTALL {configuration_text(messages.decode_install(datagram))}"


def _config_request(datagram: bytes) -> str:
    return f"CONFIG_REQUEST epoch {wire.decode_config_request(datagram)}"


def _epoch_change(kind: MessageType, datagram: bytes) -> str:
    message = messages.decode(datagram, kind)
    text = f"{kind.name} {_instance(message)}"
    if isinstance(message, messages.Prepare) and message.acceptors:
        text += f" acceptors {[node_id for node_id, _ in message.acceptors]}"
    elif isinstance(message, messages.Promise):
        text += f" {_STANDING.get(message.standing, '?')} held {message.held}"
        if message.resigned:
            text += " resigned"
        if message.accepted is not None:
            text += f" accepted {_ballot(message.accepted_ballot)} {configuration_text(message.accepted)}"
    elif isinstance(message, messages.Reject):
        text += f" promised {_ballot(message.promised)}"
    elif isinstance(message, messages.Sync | messages.Accept):
        text += f" {configuration_text(message.configuration)}"
    return text


_STANDING: Final = {messages.HELD: "held", messages.UNSYNCED: "unsynced", messages.LOST: "lost"}
_DESCRIBE: Final[dict[MessageType, Callable[[bytes], str]]] = {
    MessageType.ORDER: _order,
    MessageType.ACK: _ack,
    MessageType.NACK: _nack,
    MessageType.HEARTBEAT: _heartbeat,
    MessageType.INSTALL: _install,
    MessageType.CONFIG_REQUEST: lambda datagram: (
        f"CONFIG_REQUEST epoch {wire.decode_config_request(datagram)}"
    ),
}
