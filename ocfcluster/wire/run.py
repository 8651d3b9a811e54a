"""Runs: consecutive publications of one producer to one topic, the unit that agents route and number.

A client builds a run, agents carry it untouched, the subscribing client opens it. An agent reads the 64-byte
header and never looks at a single event: first ``seq`` and ``ev_id`` are its own, the rest follow by counting.

Layout, little-endian (the normative declaration is ``schema.RUN``)::

     0  length u32             whole run with this header
     4  kind u8                RunKind
     5  heads u8               1; room for runs that mix topics, with an index byte per event
     6  flags u16              0
     8  checksum u64           xxh3-64 of all bytes from offset 16 to the end
    16  topic_id u32
    20  count u32              publications in the run, at least 1
    24  producer u64           the position of the producer's OPEN in the order
    32  first_number u64       publish number of the first; the rest follow by counting
    40  re_id u64              of every publication in the run (publications that differ go into another run)
    48  time_ns u64            publish time of the run, wall clock
    56  event_length u32       bytes of each event, or LENGTHS_TABLE
    60  properties_length u32  bytes of encoded properties, shared by all
    64  [lengths u32 × count]  only with LENGTHS_TABLE
        [properties] [data, back to back]
"""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Iterator, Sequence
from enum import IntEnum
from itertools import accumulate
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from ocfcluster.errors import MalformedRun
from ocfcluster.limits import PROPERTIES_BYTES, RUN_COUNT, RUN_HEADER_BYTES

Buffer = bytes | bytearray | memoryview

HEADER: Final = struct.Struct("<IBBHQIIQQQQII")
_CHECKED: Final = struct.Struct("<IIQQQQII")  # the header from offset 16 on
_PREFIX: Final = struct.Struct("<IBBHQ")
_PROPERTIES_AT: Final = struct.Struct("<20xI32xII")  # count, event_length, properties_length
CHECKED_FROM: Final = _PREFIX.size
LENGTHS_TABLE: Final = 0xFFFF_FFFF
NUMBER_MAXIMUM: Final = 2**64 - 1  # the number behind a run's last one must fit a u64, too
ERRNO_MAXIMUM: Final = 4095  # as the kernel has it

if (HEADER.size, CHECKED_FROM) != (RUN_HEADER_BYTES, 16):
    raise RuntimeError("run.py: the header is no longer what its format says")


class RunKind(IntEnum):
    """What a run is. Kinds other than PUBLICATION carry their operands in their data (``wire/control.py``)."""

    PUBLICATION = 1
    VOID = 2  # publications refused at the origin's door: their numbers are used up; re_id holds the errno
    OPEN = 3  # a new producer; its id is the position of this run in the order
    CLOSE = 4
    TOPIC_CREATE = 5
    TOPIC_REMOVE = 6
    BARRIER = 7  # orders nothing; its delivery tells the origin that it has caught up
    NODE_ADD = 8  # 8 to 11: what is to be different in the next configuration
    NODE_REMOVE = 9
    NODE_VOTES = 10
    SEQUENCE = 11
    SHUTDOWN = 12
    TOPIC_ALTER = 13
    GROUP_OPEN = 14  # a group is wanted: it has a topic id from here on
    GROUP_JOIN = 15
    GROUP_LEAVE = 16


TOPIC_KINDS: Final = (RunKind.TOPIC_CREATE, RunKind.TOPIC_REMOVE, RunKind.TOPIC_ALTER)
TABLE_KINDS: Final = (RunKind.NODE_ADD, RunKind.NODE_REMOVE, RunKind.NODE_VOTES, RunKind.SEQUENCE)
STAGED_KINDS: Final = (*TOPIC_KINDS, *TABLE_KINDS)  # they act when they are held, before they are delivered
_KINDS: Final = frozenset(int(kind) for kind in RunKind)
_PUBLICATION: Final = int(RunKind.PUBLICATION)


class RunHeader(NamedTuple):
    """The header of a run, field for field."""

    length: int
    kind: int
    heads: int
    flags: int
    checksum: int
    topic_id: int
    count: int  # type: ignore[assignment]  # of publications; hides tuple.count
    producer: int
    first_number: int
    re_id: int
    time_ns: int
    event_length: int
    properties_length: int


def build_run(
    kind: int,
    topic_id: int,
    producer: int,
    first_number: int,
    events: Sequence[Buffer],
    *,
    re_id: int = 0,
    time_ns: int = 0,
    properties: bytes = b"",
) -> bytes:
    """One run of ``events`` (1 to RUN_COUNT of them), checksum and all. The caller keeps it within RUN_BYTES."""
    count = len(events)
    lengths = list(map(len, events))
    event_length = lengths[0]
    if lengths.count(event_length) == count:
        table = b""
        event_bytes = event_length * count
    else:
        event_length = LENGTHS_TABLE
        table = struct.pack(f"<{count}I", *lengths)
        event_bytes = sum(lengths)
    checked = b"".join(
        (
            _CHECKED.pack(
                topic_id, count, producer, first_number, re_id, time_ns, event_length, len(properties)
            ),
            table,
            properties,
            *events,
        )
    )
    if len(checked) != _CHECKED.size + len(table) + len(properties) + event_bytes:
        # Some view counts items that are not bytes: its len() is not what it puts into the run.
        return build_run(
            kind, topic_id, producer, first_number, list(map(bytes, events)),
            re_id=re_id, time_ns=time_ns, properties=properties,
        )  # fmt: skip
    return _with_prefix(kind, checked)


def _with_prefix(kind: int, checked: bytes) -> bytes:
    prefix = _PREFIX.pack(CHECKED_FROM + len(checked), kind, 1, 0, xxh3_64_intdigest(checked))
    return prefix + checked


def read_header(buffer: Buffer, offset: int = 0) -> RunHeader:
    """The header at ``offset``; the caller has at least RUN_HEADER_BYTES there."""
    return RunHeader._make(HEADER.unpack_from(buffer, offset))


def check_run(run: Buffer) -> RunHeader:
    """The header of ``run``, after ``verify_run``."""
    return RunHeader._make(verify_run(run))


def verify_run(run: Buffer) -> tuple[int, ...]:
    """Check that kind, count and lengths of ``run`` agree with its bytes exactly; the fields of its header.

    Costs a constant number of calls whatever the run holds (the checksum is the subscriber's to verify).
    Raises MalformedRun.
    """
    size = len(run)
    if size < RUN_HEADER_BYTES:
        raise MalformedRun(f"{size} bytes are too few for a run's header of {RUN_HEADER_BYTES}")
    header: tuple[int, ...] = HEADER.unpack_from(run)
    length, kind, heads, flags, _, _, count, _, first_number, _, _, event_length, properties_length = header
    if length != size:
        raise MalformedRun(f"a run says {length} bytes and has {size}")
    if kind not in _KINDS or heads != 1 or flags != 0:
        raise MalformedRun(f"a run of kind {kind}, {heads} heads and flags {flags:#x} is not of this version")
    if not 1 <= count <= RUN_COUNT:
        raise MalformedRun(f"a run counts {count} events; 1 to {RUN_COUNT} are allowed")
    if first_number + count > NUMBER_MAXIMUM:
        raise MalformedRun(f"a run of {count} events has publish number {first_number}, too near to 2^64")
    if properties_length > PROPERTIES_BYTES:
        raise MalformedRun(f"a run has {properties_length} bytes of properties, more than {PROPERTIES_BYTES}")
    room = size - RUN_HEADER_BYTES - properties_length
    if event_length == LENGTHS_TABLE:
        room -= 4 * count
        if room < 0 or _sum_lengths(run, count) != room:
            raise MalformedRun("the lengths of a run's events do not add up to its data")
    elif room != event_length * count:
        raise MalformedRun("the length of a run's events does not add up to its data")
    if kind != _PUBLICATION:
        _check_special(RunHeader._make(header))
    return header


def _check_special(header: RunHeader) -> None:
    """What ``check_run`` asks of runs that are no publications."""
    if header.kind == RunKind.VOID:
        if header.length != RUN_HEADER_BYTES or header.event_length or not 1 <= header.re_id <= ERRNO_MAXIMUM:
            raise MalformedRun(f"a void run of {header.length} bytes with reason {header.re_id}")
    elif (header.topic_id, header.count, header.producer, header.properties_length) != (0, 1, 0, 0):
        raise MalformedRun(f"a control run of kind {header.kind} that is more than one operand")


def _sum_lengths(run: Buffer, count: int) -> int:
    table = memoryview(run)[RUN_HEADER_BYTES : RUN_HEADER_BYTES + 4 * count]
    if sys.byteorder == "little":
        return sum(table.cast("B").cast("I"))
    return sum(struct.unpack(f"<{count}I", table))


def largest_event(run: Buffer) -> int:
    """Bytes of the largest event of a checked run."""
    fields = HEADER.unpack_from(run)
    count: int = fields[6]
    event_length: int = fields[11]
    if event_length != LENGTHS_TABLE:
        return event_length
    largest: int = max(struct.unpack_from(f"<{count}I", run, RUN_HEADER_BYTES))
    return largest


def verify_checksum(run: Buffer) -> bool:
    """Whether the run is what its publisher's library built."""
    checksum: int = HEADER.unpack_from(run)[4]
    return xxh3_64_intdigest(memoryview(run)[CHECKED_FROM:]) == checksum


def run_properties(run: Buffer, header: RunHeader) -> bytes:
    """The encoded properties of a checked run."""
    start = RUN_HEADER_BYTES + (4 * header.count if header.event_length == LENGTHS_TABLE else 0)
    return bytes(memoryview(run)[start : start + header.properties_length])


def event_bounds(run: Buffer, header: RunHeader) -> Sequence[int]:
    """Offsets into a checked run where its events begin, and behind the last one where it ends: count + 1 numbers."""
    count = header.count
    if header.event_length != LENGTHS_TABLE:
        start = RUN_HEADER_BYTES + header.properties_length
        step = header.event_length
        return range(start, start + step * count + 1, step) if step else [start] * (count + 1)
    start = RUN_HEADER_BYTES + 4 * count + header.properties_length
    lengths = struct.unpack_from(f"<{count}I", run, RUN_HEADER_BYTES)
    return list(accumulate(lengths, initial=start))


def run_events(run: bytes, header: RunHeader) -> Iterator[bytes]:
    """The data of each event of a checked run, in order, decoded as it is asked for."""
    bounds = iter(event_bounds(run, header))
    begin = next(bounds)
    for end in bounds:
        yield run[begin:end]
        begin = end


def void_run(header: RunHeader, reason: int) -> bytes:
    """A run without data that uses up the publish numbers of a refused one; ``reason`` is an errno.

    Costs the same however many events the refused one counts (64 bytes may count RUN_COUNT empty ones).
    """
    checked = _CHECKED.pack(
        header.topic_id, header.count, header.producer, header.first_number,
        reason or errno.EIO, header.time_ns, 0, 0,
    )  # fmt: skip
    return _with_prefix(RunKind.VOID, checked)


def properties_of(run: bytes) -> bytes:
    """``run_properties`` without the header: for filters, once per run and filtered topic."""
    count, event_length, length = _PROPERTIES_AT.unpack_from(run)
    if not length:
        return b""
    start = RUN_HEADER_BYTES + (4 * count if event_length == LENGTHS_TABLE else 0)
    return run[start : start + length]
