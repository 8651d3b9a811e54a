"""The formats, declared with construct. Normative: where a codec disagrees, the codec is wrong.

Nothing here runs on a hot path (a declaration costs 100 times its ``struct`` codec); tests hold the codecs equal to
these declarations, interpreted and compiled, on generated input. docs/formats.md says the same in prose, and which
fields a receiver ignores.

Three properties of construct's compiled parsers decide how a declaration is written: a ``Bytes`` at the end of the
input is silently short, so every one is followed by a comparison of its length; short integers raise ``struct.error``
and not construct's errors, so ``Format`` turns all failures into one; and conditions must be expressions of ``this``,
so those that need a function are a ``Rule``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from itertools import accumulate, pairwise
from typing import Any, Final

from construct import (
    Array,
    Bytes,
    Check,
    CheckError,
    Computed,
    Construct,
    ConstructError,
    GreedyBytes,
    GreedyRange,
    IfThenElse,
    Int8ul,
    Int16ul,
    Int32sl,
    Int32ul,
    Int64ul,
    Optional,
    Struct,
    Tell,
    Terminated,
    len_,
    sum_,
    this,
)

from ocfcluster.errors import Malformed, MalformedDatagram, MalformedFrame, MalformedRun
from ocfcluster.limits import (
    EVENT_BYTES_CEILING,
    FRAME_BYTES,
    INTERFACE_NAME_BYTES,
    KEYS,
    PROPERTIES_BYTES,
    PROPERTY_COUNT,
    PROPERTY_KEY_BYTES,
    PROPERTY_VALUE_BYTES,
    RECORD_HEADER_BYTES,
    RUN_COUNT,
    RUN_HEADER_BYTES,
    SEAL_BYTES,
    TOPIC_NAME_BYTES,
)
from ocfcluster.wire.datagram import MAGIC, OLDEST_VERSION, VERSION, MessageFlags, MessageType
from ocfcluster.wire.event import FIXED, FLAGS_MASK, TOPIC_SLOT_BYTES, fold32
from ocfcluster.wire.frames import RecordFlags, RecordKind
from ocfcluster.wire.keys import HINTS
from ocfcluster.wire.run import ERRNO_MAXIMUM, LENGTHS_TABLE, NUMBER_MAXIMUM, RunKind
from ocfcluster.wire.sealed_stream import NONCE_BYTES, STREAM_MAGIC, STREAM_VERSION


class Rule(Construct):  # type: ignore[misc] # construct has no types
    """A Check whose condition is a function of the fields so far: works in compiled parsers, too."""

    def __init__(self, holds: Callable[[Any], object]) -> None:
        super().__init__()
        self.holds = holds
        self.flagbuildnone = True

    def _parse(self, _stream: Any, context: Any, path: Any) -> None:
        if not self.holds(context):
            raise CheckError("a rule of the format does not hold", path=path)

    def _build(self, _obj: Any, stream: Any, context: Any, path: Any) -> None:
        self._parse(stream, context, path)


class Format:
    """One format: fields that take up the whole of some bytes, no more and no less.

    ``parse`` and ``build`` go through the declaration itself, or through its compiled form with ``compiled=True``;
    both raise this format's kind of Malformed whatever goes wrong.
    """

    __slots__ = ("_compiled", "_declared", "_error", "name")

    def __init__(self, name: str, error: type[Malformed], *fields: Any) -> None:
        self.name = name
        self._error = error
        self._declared = Struct(*fields, Terminated)
        self._compiled: Any = None

    def parse(self, data: bytes, *, compiled: bool = False) -> Any:
        """The fields of ``data``, by name."""
        return self._guarded(self._parser(compiled).parse, data)

    def build(self, fields: Mapping[str, Any], *, compiled: bool = False) -> bytes:
        """The bytes that hold ``fields``, which name every field (computed ones may be left out)."""
        built: bytes = self._guarded(self._parser(compiled).build, fields)
        return built

    def _parser(self, compiled: bool) -> Any:
        if not compiled:
            return self._declared
        if self._compiled is None:
            self._compiled = self._declared.compile()
        return self._compiled

    def _guarded(self, action: Callable[[Any], Any], argument: Any) -> Any:
        try:
            return action(argument)
        except (ConstructError, struct.error, LookupError, TypeError, ValueError, OverflowError) as error:
            raise self._error(f"{self.name}: {type(error).__name__}: {error}") from None


def _octets(name: str, length: Any) -> tuple[Any, Any]:
    """``length`` bytes, compared with what there is. ``length`` is known not to be negative."""
    return name / Bytes(length), Check(len_(this[name]) == length)


def _between(name: str, least: int, most: int) -> Any:
    return Check((this[name] >= int(least)) & (this[name] <= int(most)))  # an enum's repr does not compile


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


# --- properties -----------------------------------------------------------------------------------------------


def _is_interface_name(field: bytes) -> bool:
    name = field.rstrip(b"\0")
    return 0 < len(name) <= INTERFACE_NAME_BYTES and b"\0" not in name and _is_text(name)


def _is_address(one: Any) -> bool:
    size = {4: 4, 6: 16}.get(one.family, 0)
    return bool(size and not one.reserved and one.prefix_length <= 8 * size and not any(one.address[size:]))


def _ascending(context: Any) -> bool:
    keys = [entry.key for entry in context.entries]
    return all(before < key for before, key in pairwise(keys))


PROPERTY: Final = Struct(
    "key_length" / Int8ul,
    _between("key_length", 1, PROPERTY_KEY_BYTES),
    "value_length" / Int16ul,
    _between("value_length", 0, PROPERTY_VALUE_BYTES),
    *_octets("key", this.key_length),
    Rule(lambda entry: _is_text(entry.key) and b"\0" not in entry.key),
    *_octets("value", this.value_length),
    Rule(lambda entry: _is_text(entry.value)),
)

PROPERTIES: Final = Format(
    "properties",
    Malformed,
    "count" / Optional(Int8ul),  # no bytes at all: no properties
    Rule(lambda table: table.count is None or 1 <= table.count <= PROPERTY_COUNT),
    "entries" / IfThenElse(this.count == None, Array(0, PROPERTY), Array(this.count, PROPERTY)),  # noqa: E711
    Rule(_ascending),
    "end" / Tell,
    Check(this.end <= PROPERTIES_BYTES),
)

# --- runs -----------------------------------------------------------------------------------------------------

_IS_VOID: Final = (
    (this.length == RUN_HEADER_BYTES)
    & (this.event_length == 0)
    & (this.re_id >= 1)
    & (this.re_id <= ERRNO_MAXIMUM)
)
_IS_CONTROL: Final = (
    (this.topic_id == 0) & (this.count == 1) & (this.producer == 0) & (this.properties_length == 0)
)

RUN: Final = Format(  # the checksum and the contents of properties are for subscribers to check
    "run",
    MalformedRun,
    "length" / Int32ul,
    "kind" / Int8ul,
    _between("kind", min(RunKind), max(RunKind)),
    "heads" / Int8ul,
    _between("heads", 1, 1),
    "flags" / Int16ul,
    _between("flags", 0, 0),
    "checksum" / Int64ul,
    "topic_id" / Int32ul,
    "count" / Int32ul,
    _between("count", 1, RUN_COUNT),
    "producer" / Int64ul,
    "first_number" / Int64ul,
    Check(this.first_number + this.count <= NUMBER_MAXIMUM),
    "re_id" / Int64ul,
    "time_ns" / Int64ul,
    "event_length" / Int32ul,
    "properties_length" / Int32ul,
    _between("properties_length", 0, PROPERTIES_BYTES),
    "table_count" / Computed(this.count * (this.event_length == LENGTHS_TABLE)),
    "data_length" / Computed(this.length - RUN_HEADER_BYTES - this.properties_length - 4 * this.table_count),
    Check(this.data_length >= 0),
    "lengths" / Array(this.table_count, Int32ul),
    Check(
        ((this.table_count > 0) & (sum_(this.lengths) == this.data_length))
        | ((this.table_count == 0) & (this.event_length * this.count == this.data_length))
    ),
    *_octets("properties", this.properties_length),
    *_octets("data", this.data_length),
    Check((this.kind != int(RunKind.VOID)) | _IS_VOID),
    Check((this.kind <= int(RunKind.VOID)) | _IS_CONTROL),
)

# --- the event message ----------------------------------------------------------------------------------------


def _has_topic(event: Any) -> bool:
    name = event.topic.rstrip(b"\0")
    return (
        len(name) <= TOPIC_NAME_BYTES
        and b"\0" not in name
        and _is_text(name)
        and bool(name or event.flags & RecordFlags.NOTICE)
    )


def _is_folded(event: Any) -> bool:
    whole = (event.ev_id64, event.re_id64, event.seq64)
    return tuple(map(fold32, whole)) == (event.ev_id, event.re_id, event.seq)


EVENT: Final = Format(
    "event message",
    Malformed,
    "size" / Int32sl,
    "offset" / Int32sl,
    "ev_id" / Int32sl,
    "re_id" / Int32sl,
    "seq" / Int32sl,
    *_octets("topic", TOPIC_SLOT_BYTES),
    "flags" / Int32ul,
    _between("flags", 0, FLAGS_MASK),
    "ev_id64" / Int64ul,
    "re_id64" / Int64ul,
    "seq64" / Int64ul,
    "node_id" / Int32ul,
    "properties_length" / Int32ul,
    _between("properties_length", 0, PROPERTIES_BYTES),
    "incarnation" / Int64ul,
    "m_sequence" / Int64ul,
    "time_ns" / Int64ul,
    Check(this.offset == (FIXED.size + this.properties_length + 7) // 8 * 8),
    "data_length" / Computed(this.size - this.offset),
    _between("data_length", 0, EVENT_BYTES_CEILING),
    *_octets("properties", this.properties_length),
    *_octets("filling", this.offset - FIXED.size - this.properties_length),
    *_octets("data", this.data_length),
    Rule(_has_topic),
    Rule(_is_folded),
    Rule(lambda event: not any(event.filling)),
    Rule(lambda event: PROPERTIES.parse(event.properties) is not None),
)

# --- data of events on reserved topics ------------------------------------------------------------------------

MEMBERSHIP_CODES: Final = (2 << 22 | 1, 2 << 22 | 4)  # class 2; NEW_MEMBERSHIP to EVICTED

MEMBERSHIP: Final = Format(
    "membership event",
    Malformed,
    "code" / Int32ul,
    _between("code", *MEMBERSHIP_CODES),
    "m_sequence" / Int32ul,
    "members" / Int32ul,
    "members_at" / Int32ul,  # index into the array
    "left" / Int32ul,
    "left_at" / Int32ul,
    "joined" / Int32ul,
    "joined_at" / Int32ul,
    "array" / GreedyRange(Struct("node_id" / Int32ul, "born_on" / Int32ul)),
    Check(this.members + this.members_at <= len_(this.array)),
    Check(this.left + this.left_at <= len_(this.array)),
    Check(this.joined + this.joined_at <= len_(this.array)),
)

CONNECTIVITY_CODES: Final = (1 << 22 | 1, 1 << 22 | 2, 1 << 22 | 3)  # class 1; INTERFACE, ELIGIBLE, CONNECT
CHANGES: Final = 0x3F  # bits of connectivity.Change

INTERFACES: Final = Format(
    "connectivity event INTERFACE",
    Malformed,
    "code" / Int32ul,
    Check(this.code == CONNECTIVITY_CODES[0]),
    "node_id" / Int32ul,
    Check(this.node_id > 0),
    "count" / Int32ul,
    "coalesced" / Int32ul,
    Check(this.count <= EVENT_BYTES_CEILING // 36),
    "interfaces"
    / Array(
        this.count,
        Struct(
            "index" / Int32ul,
            "mtu" / Int32ul,
            "state" / Int16ul,  # connectivity.InterfaceState
            Check(this.state <= 0x1F),
            "change" / Int16ul,
            Check(this.change <= CHANGES),
            "addresses_at"
            / Int32ul,  # index into the addresses: each interface's are behind the one's before
            "addresses" / Int32ul,
            *_octets("name", 16),
            Rule(lambda one: _is_interface_name(one.name)),
        ),
    ),
    "array"
    / GreedyRange(
        Struct(
            "family" / Int8ul,  # 4 or 6
            "prefix_length" / Int8ul,
            "reserved" / Int16ul,
            *_octets("address", 16),
            Rule(_is_address),
        )
    ),
    Rule(
        lambda event: (
            [one.addresses_at for one in event.interfaces]
            == list(accumulate((one.addresses for one in event.interfaces), initial=0))[:-1]
            and sum(one.addresses for one in event.interfaces) == len(event.array)
        )
    ),
)

ELIGIBLE: Final = Format(
    "connectivity event ELIGIBLE",
    Malformed,
    "code" / Int32ul,
    Check(this.code == CONNECTIVITY_CODES[1]),
    "node_id" / Int32ul,
    Check(this.node_id > 0),
    "count" / Int32ul,
    "coalesced" / Int32ul,
    "array"
    / GreedyRange(
        Struct("node_id" / Int32ul, "votes" / Int16ul, "change" / Int16ul, Check(this.change <= CHANGES))
    ),
    Check(len_(this.array) == this.count),
)

CONNECT: Final = Format(
    "connectivity event CONNECT",
    Malformed,
    "code" / Int32ul,
    Check(this.code == CONNECTIVITY_CODES[2]),
    "node_id" / Int32ul,
    Check(this.node_id > 0),
    "count" / Int32ul,
    "coalesced" / Int32ul,
    "array"
    / GreedyRange(
        Struct(
            "hearer" / Int32ul,
            "heard" / Int32ul,
            "network" / Int16ul,
            "state" / Int8ul,  # connectivity.LinkState
            Check(this.state <= 3),
            "change" / Int8ul,
            Check(this.change <= CHANGES),
        )
    ),
    Check(len_(this.array) == this.count),
)

_GROUP: Final = 3 << 22  # class 3
_GROUP_MESSAGES: Final = (_GROUP | 3, _GROUP | 4, _GROUP | 5)  # CAST, REPLY, SEND

GROUP_MESSAGE: Final = Format(
    "message in a group",
    Malformed,
    "code" / Int32ul,
    Rule(lambda event: event.code in _GROUP_MESSAGES),
    "reason" / Int32ul,  # 1: what was said is for another member
    _between("reason", 0, 1),
    "member" / Int64ul,
    "to" / Int64ul,
    "data" / GreedyBytes,
    Check((this.reason == 0) | (len_(this.data) == 0)),
)

GROUP_CHANGE: Final = Format(
    "change of a group's members",
    Malformed,
    "code" / Int32ul,
    Rule(lambda event: event.code in (_GROUP | 1, _GROUP | 2, _GROUP | 6)),  # JOIN, LEAVE, MEMBERS
    "reason" / Int32ul,
    "member" / Int64ul,
    "to" / Int64ul,
    "members" / Int32ul,
    "members_at" / Int32ul,  # index into the array
    "left" / Int32ul,
    "left_at" / Int32ul,
    "joined" / Int32ul,
    "joined_at" / Int32ul,
    "array" / GreedyRange(Struct("member" / Int64ul, "node_id" / Int32ul, "pid" / Int32ul)),
    Check(this.members + this.members_at <= len_(this.array)),
    Check(this.left + this.left_at <= len_(this.array)),
    Check(this.joined + this.joined_at <= len_(this.array)),
)

# --- frames between an agent and its programs -----------------------------------------------------------------

CONTROL_FRAME: Final = Format(
    "control frame",
    MalformedFrame,
    "length" / Int32ul,  # of the body
    "kind" / Int8ul,  # frames.Request, frames.Answer
    "reserved_8" / Int8ul,
    "reserved_16" / Int16ul,
    "request_id" / Int32ul,
    *_octets("body", this.length),
)

RECEIPT: Final = Struct(
    "producer" / Int64ul,
    "first_number" / Int64ul,
    "count" / Int32ul,
    "errno" / Int32ul,  # 0: delivered
    "seq" / Int64ul,  # of the first
    "ev_id" / Int64ul,  # likewise
)

RECEIPTS: Final = Format("body of RECEIPTS", MalformedFrame, "receipts" / GreedyRange(RECEIPT))

RECORD: Final = Struct(
    "length" / Int32ul,  # of the record with this header
    Check(this.length >= RECORD_HEADER_BYTES),
    "kind" / Int8ul,
    _between("kind", RecordKind.RUN, RecordKind.LAST),
    "flags" / Int8ul,
    "reserved" / Int16ul,
    "skip" / Int32ul,
    "node_id" / Int32ul,
    "incarnation" / Int64ul,
    "m_sequence" / Int64ul,
    "seq" / Int64ul,
    "ev_id" / Int64ul,
    "order_time" / Int64ul,
    *_octets("body", this.length - RECORD_HEADER_BYTES),  # of SHARED: ballast
)

EVENT_FRAME: Final = Format(
    "event frame",
    MalformedFrame,
    "connection" / Int32ul,
    "subscription" / Int32ul,
    "turn" / Int64ul,
    "count" / Int32ul,
    Check(this.count >= 1),
    "reserved" / Int32ul,
    "records" / Array(this.count, RECORD),
    Rule(lambda frame: frame.count == 1 or all(one.kind != RecordKind.SHARED for one in frame.records)),
    "end" / Tell,
    Check(this.end <= FRAME_BYTES),
)

# --- datagrams ------------------------------------------------------------------------------------------------

CLEAR_HEADER: Final = Struct(
    "magic" / Int16ul,
    _between("magic", MAGIC, MAGIC),
    "version" / Int8ul,
    _between("version", OLDEST_VERSION, VERSION),
    "flags" / Int8ul,
    _between("flags", 0, 0),
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
        _between("type", kind, kind),
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
    _between("magic", MAGIC, MAGIC),
    "version" / Int8ul,
    _between("version", OLDEST_VERSION, VERSION),
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
    _between("count", 1, KEYS),
    "key_ids" / Array(this.count, Int32ul),
)

GREETING: Final = Format(
    "greeting of a sealed connection",
    Malformed,
    "magic" / Int16ul,
    _between("magic", STREAM_MAGIC, STREAM_MAGIC),
    "version" / Int8ul,
    _between("version", STREAM_VERSION, STREAM_VERSION),
    "hint" / Int8ul,
    _between("hint", 0, HINTS - 1),
    "cluster" / Int32ul,
    "nonce" / Bytes(NONCE_BYTES),
)
