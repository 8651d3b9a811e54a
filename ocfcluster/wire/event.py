"""The OCF event message: one event as a program may keep it, pass it on, or read it in C.

Not what travels: between nodes and on local sockets events go in runs. A library makes this image when asked to.
Little-endian; fields are aligned to their size and the topic has a slot of fixed size (its longest name and a
NUL), so that on a little-endian machine a C struct is the same, every field at a fixed place and the topic a C
string. The normative declaration is ``schema.EVENT``; docs/formats.md has the C struct::

      0  size i32              the whole message
      4  offset i32            where the data begins
      8  ev_id i32             ev_id64 folded, see fold32
     12  re_id i32             re_id64 folded; 0: none
     16  seq i32               seq64 folded
     20  topic char[256]       UTF-8, ended by NUL and filled with NUL; empty only with the flag NOTICE
    276  flags u32             frames.RecordFlags: LOCAL 1, RETAINED 2, NOTICE 4; others 0
    280  ev_id64 u64           the id itself; bit 63: of this node only
    288  re_id64 u64
    296  seq64 u64
    304  node_id u32           the publisher's node ...
    308  properties_length u32 bytes of user properties, without the filling
    312  incarnation u64       ... and its incarnation
    320  m_sequence u64        membership generation at the event's place in the order
    328  time_ns u64           publish time, wall clock, since 1970
    336  user properties       as in wire/properties.py; then 0 to 7 NULs up to a multiple of 8
    offset  data
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

from ocfcluster.errors import InvalidArgument, Malformed, TooLarge
from ocfcluster.limits import EVENT_BYTES_CEILING, PROPERTIES_BYTES, TOPIC_NAME_BYTES
from ocfcluster.wire.frames import RecordFlags
from ocfcluster.wire.properties import decode_properties, encode_properties
from ocfcluster.wire.run import Buffer

TOPIC_SLOT_BYTES: Final = TOPIC_NAME_BYTES + 1
FIXED: Final = struct.Struct(f"<5i{TOPIC_SLOT_BYTES}sIQQQIIQQQ")
DATA_ALIGNMENT: Final = 8
FLAGS_MASK: Final = int(RecordFlags.LOCAL | RecordFlags.RETAINED | RecordFlags.NOTICE)
_CYCLE: Final = 2**31 - 1

assert FIXED.size == 336  # noqa: S101 - fixed by the format itself


def fold32(number: int) -> int:
    """``number`` as OCF's positive int32: 1, 2, ..., 2^31 - 1, 1, ... Zero (no re_id) stays zero."""
    return (number - 1) % _CYCLE + 1 if number else 0


class EventMessage(NamedTuple):
    """A decoded event message; ``seq``, ``ev_id`` and ``re_id`` are the 64-bit ones."""

    topic: str
    data: bytes
    seq: int
    ev_id: int
    re_id: int
    node_id: int
    incarnation: int
    m_sequence: int
    time_ns: int
    flags: int
    properties: dict[str, str]


def encode_event(
    topic: str,
    data: Buffer,
    *,
    seq: int,
    ev_id: int,
    re_id: int = 0,
    node_id: int = 0,
    incarnation: int = 0,
    m_sequence: int = 0,
    time_ns: int = 0,
    flags: int = 0,
    properties: Mapping[str, str] | None = None,
) -> bytes:
    """The event message of one event. Raises InvalidArgument; TooLarge beyond EVENT_BYTES_CEILING bytes of data."""
    name = _encode_topic(topic, flags)
    body = bytes(data)
    if len(body) > EVENT_BYTES_CEILING:
        raise TooLarge(f"{len(body)} bytes of data; an event message carries at most {EVENT_BYTES_CEILING}")
    if flags & ~FLAGS_MASK:
        raise InvalidArgument(f"flags {flags:#x}: only the bits {FLAGS_MASK:#x} are allowed")
    table = encode_properties(properties or {})
    offset = _data_offset(len(table))
    try:
        fixed = FIXED.pack(
            offset + len(body), offset, fold32(ev_id), fold32(re_id), fold32(seq), name, flags,
            ev_id, re_id, seq, node_id, len(table), incarnation, m_sequence, time_ns,
        )  # fmt: skip
    except struct.error as error:
        raise InvalidArgument(f"a number does not fit its field: {error}") from None
    return b"".join((fixed, table, bytes(offset - FIXED.size - len(table)), body))


def _encode_topic(topic: str, flags: int) -> bytes:
    try:
        name = topic.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"topic {topic!r:.80}: only text that UTF-8 has is allowed") from None
    if len(name) > TOPIC_NAME_BYTES or 0 in name or not (name or flags & RecordFlags.NOTICE):
        raise InvalidArgument(
            f"topic {topic!r:.80}: 1 to {TOPIC_NAME_BYTES} bytes of UTF-8 without NUL are allowed"
        )
    return name


def _data_offset(properties_length: int) -> int:
    return -(-(FIXED.size + properties_length) // DATA_ALIGNMENT) * DATA_ALIGNMENT


def decode_event(buffer: bytes | memoryview) -> EventMessage:
    """The event in ``buffer``, which is one message and no more.

    Raises Malformed for anything that encode_event does not make.
    """
    length = len(buffer)
    if length < FIXED.size:
        raise Malformed(f"{length} bytes are too few for an event message of at least {FIXED.size}")
    size, offset, ev_id32, re_id32, seq32, slot, flags, ev_id, re_id, seq, *rest = FIXED.unpack_from(buffer)
    node_id, properties_length, incarnation, m_sequence, time_ns = rest
    if size != length:
        raise Malformed(f"an event message says {size} bytes and has {length}")
    if properties_length > PROPERTIES_BYTES or offset != _data_offset(properties_length) or offset > size:
        raise Malformed(f"an event message with data at {offset} and {properties_length} bytes of properties")
    if size - offset > EVENT_BYTES_CEILING:
        raise Malformed(
            f"an event message with {size - offset} bytes of data; at most {EVENT_BYTES_CEILING} are allowed"
        )
    if (ev_id32, re_id32, seq32) != (fold32(ev_id), fold32(re_id), fold32(seq)):
        raise Malformed("the 32-bit numbers of an event message are not its 64-bit ones folded")
    if flags & ~FLAGS_MASK:
        raise Malformed(f"an event message with flags {flags:#x}, not all of this version")
    end = FIXED.size + properties_length
    if any(buffer[end:offset]):
        raise Malformed("the filling of an event message is not zero")
    return EventMessage(
        topic=_decode_topic(slot, flags), data=bytes(buffer[offset:]), seq=seq, ev_id=ev_id, re_id=re_id,
        node_id=node_id, incarnation=incarnation, m_sequence=m_sequence, time_ns=time_ns, flags=flags,
        properties=decode_properties(buffer[FIXED.size : end]),
    )  # fmt: skip


def _decode_topic(slot: bytes, flags: int) -> str:
    name = slot.rstrip(b"\0")
    if len(name) == len(slot) or 0 in name or not (name or flags & RecordFlags.NOTICE):
        raise Malformed("the topic of an event message is empty, not ended by NUL, or not filled with NUL")
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise Malformed("the topic of an event message is not UTF-8") from None
