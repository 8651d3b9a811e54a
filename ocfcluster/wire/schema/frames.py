"""Frames between an agent and its programs."""

from __future__ import annotations

from typing import Final

from construct import (
    Array,
    Check,
    GreedyRange,
    Int8ul,
    Int16ul,
    Int32ul,
    Int64ul,
    Struct,
    Tell,
    this,
)

from ocfcluster.errors import MalformedFrame
from ocfcluster.limits import (
    FRAME_BYTES,
    RECORD_HEADER_BYTES,
)
from ocfcluster.wire.frames import RecordKind
from ocfcluster.wire.schema.format import Format, Rule, between, octets

CONTROL_FRAME: Final = Format(
    "control frame",
    MalformedFrame,
    "length" / Int32ul,  # of the body
    "kind" / Int8ul,  # frames.Request, frames.Answer
    "reserved_8" / Int8ul,
    "reserved_16" / Int16ul,
    "request_id" / Int32ul,
    *octets("body", this.length),
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
    between("kind", RecordKind.RUN, RecordKind.LAST),
    "flags" / Int8ul,
    "piece" / Int16ul,  # of PART: its number, from 0
    "skip" / Int32ul,
    "node_id" / Int32ul,
    "incarnation" / Int64ul,
    "m_sequence" / Int64ul,
    "seq" / Int64ul,
    "ev_id" / Int64ul,
    "order_time" / Int64ul,
    *octets("body", this.length - RECORD_HEADER_BYTES),
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
    Rule(lambda frame: frame.count == 1 or all(one.kind != RecordKind.PART for one in frame.records)),
    "end" / Tell,
    Check(this.end <= FRAME_BYTES),
)
