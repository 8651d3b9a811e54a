"""Properties, runs, and the event message."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

from construct import (
    Array,
    Check,
    Computed,
    IfThenElse,
    Int8ul,
    Int16ul,
    Int32sl,
    Int32ul,
    Int64ul,
    Optional,
    Struct,
    Tell,
    sum_,
    this,
)

from ocfcluster.errors import Malformed, MalformedRun
from ocfcluster.limits import (
    EVENT_BYTES_CEILING,
    PROPERTIES_BYTES,
    PROPERTY_COUNT,
    PROPERTY_KEY_BYTES,
    PROPERTY_VALUE_BYTES,
    RUN_COUNT,
    RUN_HEADER_BYTES,
    TOPIC_NAME_BYTES,
)
from ocfcluster.wire.event import FIXED, FLAGS_MASK, TOPIC_SLOT_BYTES, fold32
from ocfcluster.wire.frames import RecordFlags
from ocfcluster.wire.run import ERRNO_MAXIMUM, LENGTHS_TABLE, NUMBER_MAXIMUM, RunKind
from ocfcluster.wire.schema.format import Format, Rule, between, is_text, octets

# --- properties -----------------------------------------------------------------------------------------------


def _ascending(context: Any) -> bool:
    keys = [entry.key for entry in context.entries]
    return all(before < key for before, key in pairwise(keys))


PROPERTY: Final = Struct(
    "key_length" / Int8ul,
    between("key_length", 1, PROPERTY_KEY_BYTES),
    "value_length" / Int16ul,
    between("value_length", 0, PROPERTY_VALUE_BYTES),
    *octets("key", this.key_length),
    Rule(lambda entry: is_text(entry.key) and b"\0" not in entry.key),
    *octets("value", this.value_length),
    Rule(lambda entry: is_text(entry.value)),
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
    between("kind", min(RunKind), max(RunKind)),
    "heads" / Int8ul,
    between("heads", 1, 1),
    "flags" / Int16ul,
    between("flags", 0, 0),
    "checksum" / Int64ul,
    "topic_id" / Int32ul,
    "count" / Int32ul,
    between("count", 1, RUN_COUNT),
    "producer" / Int64ul,
    "first_number" / Int64ul,
    Check(this.first_number + this.count <= NUMBER_MAXIMUM),
    "re_id" / Int64ul,
    "time_ns" / Int64ul,
    "event_length" / Int32ul,
    "properties_length" / Int32ul,
    between("properties_length", 0, PROPERTIES_BYTES),
    "table_count" / Computed(this.count * (this.event_length == LENGTHS_TABLE)),
    "data_length" / Computed(this.length - RUN_HEADER_BYTES - this.properties_length - 4 * this.table_count),
    Check(this.data_length >= 0),
    "lengths" / Array(this.table_count, Int32ul),
    Check(
        ((this.table_count > 0) & (sum_(this.lengths) == this.data_length))
        | ((this.table_count == 0) & (this.event_length * this.count == this.data_length))
    ),
    *octets("properties", this.properties_length),
    *octets("data", this.data_length),
    Check((this.kind != int(RunKind.VOID)) | _IS_VOID),
    Check((this.kind <= int(RunKind.VOID)) | _IS_CONTROL),
)

# --- the event message ----------------------------------------------------------------------------------------


def _has_topic(event: Any) -> bool:
    name = event.topic.rstrip(b"\0")
    return (
        len(name) <= TOPIC_NAME_BYTES
        and b"\0" not in name
        and is_text(name)
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
    *octets("topic", TOPIC_SLOT_BYTES),
    "flags" / Int32ul,
    between("flags", 0, FLAGS_MASK),
    "ev_id64" / Int64ul,
    "re_id64" / Int64ul,
    "seq64" / Int64ul,
    "node_id" / Int32ul,
    "properties_length" / Int32ul,
    between("properties_length", 0, PROPERTIES_BYTES),
    "incarnation" / Int64ul,
    "m_sequence" / Int64ul,
    "time_ns" / Int64ul,
    Check(this.offset == (FIXED.size + this.properties_length + 7) // 8 * 8),
    "data_length" / Computed(this.size - this.offset),
    between("data_length", 0, EVENT_BYTES_CEILING),
    *octets("properties", this.properties_length),
    *octets("filling", this.offset - FIXED.size - this.properties_length),
    *octets("data", this.data_length),
    Rule(_has_topic),
    Rule(_is_folded),
    Rule(lambda event: not any(event.filling)),
    Rule(lambda event: PROPERTIES.parse(event.properties) is not None),
)
