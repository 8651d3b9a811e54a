"""Datagrams between agents, in the clear and sealed."""

from __future__ import annotations

from typing import Any, Final

from construct import (
    Array,
    Bytes,
    Check,
    GreedyBytes,
    Int8ul,
    Int16ul,
    Int32ul,
    Int64ul,
    Struct,
    len_,
    this,
)

from ocfcluster.errors import Malformed, MalformedDatagram
from ocfcluster.limits import (
    KEYS,
    SEAL_BYTES,
)
from ocfcluster.wire.datagram import MAGIC, OLDEST_VERSION, VERSION, MessageFlags, MessageType
from ocfcluster.wire.keys import HINTS
from ocfcluster.wire.schema.format import Format, between
from ocfcluster.wire.sealed_stream import NONCE_BYTES, STREAM_MAGIC, STREAM_VERSION

CLEAR_HEADER: Final = Struct(
    "magic" / Int16ul,
    between("magic", MAGIC, MAGIC),
    "version" / Int8ul,
    between("version", OLDEST_VERSION, VERSION),
    "flags" / Int8ul,
    between("flags", 0, 0),
    "cluster" / Int32ul,
    "node_id" / Int32ul,
    "history" / Int32ul,
    "incarnation" / Int64ul,
    "counter" / Int64ul,
)


def _message(kind: MessageType, *fields: Any) -> Format:
    """A datagram: clear header, type, flags, and a u16 that counts what follows (0 where nothing is counted)."""
    return Format(
        kind.name,
        MalformedDatagram,
        "clear" / CLEAR_HEADER,
        "type" / Int8ul,
        between("type", kind, kind),
        "flags" / Int8ul,
        "count" / Int16ul,
        *fields,
    )


_PAYLOAD: Final = ("payload" / GreedyBytes, Check(len_(this.payload) >= 1))  # the datagram's end is its end

DATA: Final = _message(MessageType.DATA, "number" / Int64ul, *_PAYLOAD)

RETRANSMIT: Final = _message(
    MessageType.RETRANSMIT,
    "node_id" / Int32ul,
    "incarnation" / Int64ul,
    "number" / Int64ul,
    *_PAYLOAD,
)

ORDER: Final = _message(
    MessageType.ORDER,
    "epoch" / Int32ul,
    "window" / Int32ul,
    "first_index" / Int64ul,
    "order_time" / Int64ul,
    "commit" / Int64ul,
    "stable" / Int64ul,
    "entries" / Array(this.count, Struct("node_id" / Int32ul, "count" / Int32ul, "first" / Int64ul)),
)

ACK: Final = _message(MessageType.ACK, "epoch" / Int32ul, "held" / Int64ul)

NACK: Final = _message(
    MessageType.NACK,
    "epoch" / Int32ul,
    "ranges"
    / Array(
        this.count,
        Struct("node_id" / Int32ul, "count" / Int32ul, "incarnation" / Int64ul, "first" / Int64ul),
    ),
)

HEARTBEAT: Final = _message(
    MessageType.HEARTBEAT,
    "epoch" / Int32ul,
    "window" / Int32ul,
    "granted" / Int32ul,
    "mtu" / Int32ul,
    "history_time" / Int64ul,
    "history_random" / Int64ul,
    "table_hash" / Int64ul,
    "promised_round" / Int64ul,
    "promised_node" / Int64ul,
    "promised_incarnation" / Int64ul,
    "last_packet" / Int64ul,
    "last_index" / Int64ul,
    "held" / Int64ul,
    "commit" / Int64ul,
    "stable" / Int64ul,
    "auditor_index" / Int64ul,
    "auditor_chain" / Int64ul,
    "store_id" / Int64ul,
    "heard" / Array(this.count, Struct("node_id" / Int32ul, "reserved" / Int32ul, "incarnation" / Int64ul)),
    "padding" / GreedyBytes,
    Check((len_(this.padding) == 0) | ((this.flags & int(MessageFlags.PADDED)) != 0)),
)

CONFIG_REQUEST: Final = _message(MessageType.CONFIG_REQUEST, "epoch" / Int32ul)

# What carries a structure: its payload is one of protocol/settings.py (INSTALL) or protocol/messages.py as MessagePack.
STRUCTURES: Final = {
    kind: _message(kind, "epoch" / Int32ul, *_PAYLOAD)
    for kind in (
        MessageType.INSTALL,
        MessageType.PREPARE,
        MessageType.PROMISE,
        MessageType.REJECT,
        MessageType.SYNC,
        MessageType.SYNCED,
        MessageType.ACCEPT,
        MessageType.ACCEPTED,
    )
}

DATAGRAMS: Final = {
    MessageType.DATA: DATA,
    MessageType.ORDER: ORDER,
    MessageType.ACK: ACK,
    MessageType.NACK: NACK,
    MessageType.RETRANSMIT: RETRANSMIT,
    MessageType.HEARTBEAT: HEARTBEAT,
    MessageType.CONFIG_REQUEST: CONFIG_REQUEST,
    **STRUCTURES,
}

# --- sealing, outside of what nodes say ------------------------------------------------------------------------

SEALED_DATAGRAM: Final = Format(
    "sealed datagram",
    MalformedDatagram,
    "magic" / Int16ul,
    between("magic", MAGIC, MAGIC),
    "version" / Int8ul,
    between("version", OLDEST_VERSION, VERSION),
    "flags" / Int8ul,  # bit 0: 1; bit 1: a key report; bits 2 to 7: the key's id modulo 64
    Check(this.flags % 2 == 1),
    "cluster" / Int32ul,
    "node_id" / Int32ul,
    "history" / Int32ul,
    "incarnation" / Int64ul,
    "counter" / Int64ul,
    "sealed" / GreedyBytes,  # and a tag
    Check(len_(this.sealed) > SEAL_BYTES),
)

KEY_REPORT: Final = Format(
    "key report, when it is opened",
    MalformedDatagram,
    "count" / Int8ul,
    between("count", 1, KEYS),
    "key_ids" / Array(this.count, Int32ul),
)

GREETING: Final = Format(
    "greeting of a sealed connection",
    Malformed,
    "magic" / Int16ul,
    between("magic", STREAM_MAGIC, STREAM_MAGIC),
    "version" / Int8ul,
    between("version", STREAM_VERSION, STREAM_VERSION),
    "hint" / Int8ul,
    between("hint", 0, HINTS - 1),
    "cluster" / Int32ul,
    "nonce" / Bytes(NONCE_BYTES),
)
