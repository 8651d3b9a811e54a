"""Datagrams between agents: clear header, body, and the fast codecs of both.

Every datagram is a clear header of 32 bytes and a body; SEAL_BYTES at its end are left free for an AEAD tag, so that
sealing changes no size that anything else depends on. Little-endian; the normative declaration is in ``schema/``.

Clear header::

     0  magic u16        MAGIC
     2  version u8       protocol version
     3  flags u8         0 (1: sealed, later)
     4  cluster u32      low half of xxh3-64 of the cluster's name
     8  node_id u32      of the sender
    12  reserved u32     0
    16  incarnation u64  of the sender
    24  counter u64      of the datagram, per incarnation, from 1; a receiver takes each once

The body begins with ``type u8, flags u8, count u16``; what follows is beside each encoder.

Up to 64 DATA packets travel as one buffer (UDP_SEGMENT/UDP_GRO). Such a buffer is packed and unpacked with a constant
number of calls, whatever it holds, and becomes an *extent*: first packet number, count, bytes per packet, bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum, IntFlag
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest

from ocfcluster.errors import MalformedDatagram
from ocfcluster.limits import CLEAR_HEADER_BYTES, SEAL_BYTES, SEGMENT_BUFFER_BYTES, SEGMENT_COUNT

MAGIC: Final = 0x0CF1
VERSION: Final = 1  # the newest that this build speaks
OLDEST_VERSION: Final = 1  # with the next version it stays, so that nodes can be upgraded one at a time

CLEAR: Final = struct.Struct("<HBBIIIQQ")
PREFIX_BYTES: Final = 24  # of the clear header: equal in all datagrams of one incarnation in one history
VERSION_AT: Final = 2  # in the clear header, one byte
HISTORY_AT: Final = 12  # in the clear header, up to the incarnation
INCARNATION_AT: Final = 16  # in the clear header, up to PREFIX_BYTES: no other node has it
DATA: Final = struct.Struct("<BBHQ")  # type, flags, 0, packet number; then the packet's stream bytes
RETRANSMIT: Final = struct.Struct(
    "<BBHIQQ"
)  # type, flags, 0, origin node_id, origin incarnation, packet number
ORDER: Final = struct.Struct("<BBHIIQQQQ")
ORDER_ENTRY: Final = struct.Struct("<IIQ")  # origin node_id, count, first packet
ACK: Final = struct.Struct("<BBHIQ")  # type, flags, 0, epoch, held
NACK: Final = struct.Struct("<BBHI")  # type, flags, ranges, epoch
NACK_RANGE: Final = struct.Struct("<IIQQ")  # origin node_id (0: order entries), count, incarnation, first
HEARTBEAT: Final = struct.Struct("<BBHIIIIQQQQQQQQQQQQQQ")
HEARD: Final = struct.Struct("<IIQ")  # node_id, 0, incarnation
STRUCTURE: Final = struct.Struct("<BBHI")  # type, flags, 0, epoch; then a structure as MessagePack
CONFIG_REQUEST: Final = struct.Struct("<BBHI")  # type, 0, 0, epoch that the asker has installed

BODY: Final = CLEAR_HEADER_BYTES
PACKET_OVERHEAD_BYTES: Final = (
    CLEAR_HEADER_BYTES + RETRANSMIT.size + SEAL_BYTES
)  # of the larger of its two carriers


class MessageType(IntEnum):
    DATA = 1
    ORDER = 2
    ACK = 3
    NACK = 4
    RETRANSMIT = 5
    HEARTBEAT = 6
    CONFIG_REQUEST = 7
    INSTALL = 8
    PREPARE = 9  # 9 to 15: an epoch change (protocol/messages.py)
    PROMISE = 10
    REJECT = 11
    SYNC = 12
    SYNCED = 13
    ACCEPT = 14
    ACCEPTED = 15


class MessageFlags(IntFlag):
    NONE = 0
    FULL = 1  # ACK, HEARTBEAT: a local subscriber of the sender is full
    COPY = 2  # ORDER: a retransmitted entry; commit, stable and window are not to be read
    FORMING = 4  # HEARTBEAT: the sender has no configuration
    LEAVING = 8  # HEARTBEAT: the sender stops in order
    PADDED = 16  # HEARTBEAT: filled up to the mtu
    SUSPECTS = 32  # HEARTBEAT: the sender does not count its sequencer as alive; the sequencer's own: it has resigned
    LEARNING = 64  # HEARTBEAT: the sender is no member, and fetches the state to become one
    READY = 128  # HEARTBEAT: it has it


class Extent(NamedTuple):
    """Consecutive packets of one origin: every packet has ``size`` bytes but the last, which has the rest."""

    first: int
    count: int  # type: ignore[assignment]  # hides tuple.count
    size: int
    data: bytes

    @property
    def last(self) -> int:
        return self.first + self.count - 1

    def part(self, skip: int, count: int) -> Extent:
        """``count`` packets from the ``skip``-th on."""
        if skip == 0 and count == self.count:
            return self
        begin = skip * self.size
        return Extent(self.first + skip, count, self.size, self.data[begin : begin + count * self.size])


class Order(NamedTuple):
    """ORDER: indexes from ``first_index`` on for packets, one after the other; without entries an announcement."""

    flags: int
    epoch: int
    window: int  # bytes an origin may have uncommitted; 0: closed
    first_index: int
    order_time: int
    commit: int
    stable: int
    entries: list[tuple[int, int, int]]  # node_id, count, first packet


class Range(NamedTuple):
    """A range asked for: packets of an origin, or order entries where ``node_id`` is 0."""

    node_id: int
    count: int  # type: ignore[assignment]  # hides tuple.count
    incarnation: int
    first: int


class Heartbeat(NamedTuple):
    """HEARTBEAT: what a node knows and whom it hears."""

    flags: int
    epoch: int
    window: int
    granted: int  # receive buffer, bytes
    mtu: int
    history_time: int  # the cluster_id, as two numbers; 0, 0 while forming
    history_random: int
    table_hash: int  # of the node table and all that must agree before a bootstrap
    promised_round: int  # the ballot promised for what follows this epoch; 0 while there is none
    promised_node: int
    promised_incarnation: int
    last_packet: int
    last_index: int
    held: int
    commit: int
    stable: int
    auditor_index: int  # the order auditor's checkpoint; 0 while there is none
    auditor_chain: int
    store_id: int  # with node_id: the acceptor that the sender is
    heard: list[tuple[int, int]]  # node_id, incarnation


def cluster_hash(name: str) -> int:
    """The clear header's ``cluster`` field for a cluster of this name."""
    return xxh3_64_intdigest(name.encode()) & 0xFFFF_FFFF


def history_tag(cluster_id: str) -> int:
    """The clear header's ``history`` field of a node that is in this history; 0 for none. 32 of its random bits."""
    return int(cluster_id[-8:], 16) if cluster_id else 0


def clear_prefix(
    cluster: int, node_id: int, incarnation: int, history: int = 0, version: int = VERSION
) -> bytes:
    """The first PREFIX_BYTES of all datagrams of one incarnation in one history, and so in one version."""
    return CLEAR.pack(MAGIC, version, 0, cluster, node_id, history, incarnation, 0)[:PREFIX_BYTES]


def packet_bytes(mtu: int, ip_overhead_bytes: int) -> int:
    """Stream bytes of a full packet on links of ``mtu``."""
    return mtu - ip_overhead_bytes - PACKET_OVERHEAD_BYTES


def packets_per_buffer(size: int) -> int:
    """How many full packets of ``size`` stream bytes fit one segmented send."""
    return max(1, min(SEGMENT_COUNT, SEGMENT_BUFFER_BYTES // (size + PACKET_OVERHEAD_BYTES)))


# --- DATA and RETRANSMIT: packed and unpacked by the buffer ---------------------------------------------------------

_COUNTER: Final = struct.Struct("<Q")


@lru_cache(maxsize=512)
def _segments(head_bytes: int, payload_bytes: int, count: int) -> struct.Struct:
    return struct.Struct("<" + f"{PREFIX_BYTES}sQ{head_bytes}sQ{payload_bytes}s" * count)


@lru_cache(maxsize=512)
def _pieces(size: int, count: int) -> struct.Struct:
    return struct.Struct(f"{size}s" * count)


def encode_packets(prefix: bytes, counter: int, head: bytes, extent: Extent) -> tuple[bytes, int]:
    """A buffer of ``extent.count`` datagrams and its segment size in bytes.

    ``counter`` is the first datagram's, the others follow; ``head`` is DATA_HEAD, or ``retransmit_head``.
    """
    first, count, size, data = extent
    rest = len(data) - (count - 1) * size
    overhead = PREFIX_BYTES + 8 + len(head) + 8
    full = count if rest == size else count - 1
    segment = overhead + (size if full else rest)
    parts: list[bytes] = []
    if full:
        fields: list[object] = [prefix] * (5 * full)
        fields[1::5] = range(counter, counter + full)
        fields[2::5] = [head] * full
        fields[3::5] = range(first, first + full)
        fields[4::5] = _pieces(size, full).unpack_from(data) if full > 1 else (data[:size],)
        parts.append(_segments(len(head), size, full).pack(*fields))
    if full < count:
        parts.append(
            b"".join(
                (
                    prefix,
                    _COUNTER.pack(counter + full),
                    head,
                    _COUNTER.pack(first + full),
                    data[full * size :],
                )
            )
        )
    return (parts[0] if len(parts) == 1 else b"".join(parts)), segment


DATA_HEAD: Final = DATA.pack(MessageType.DATA, 0, 0, 0)[:4]


def retransmit_head(node_id: int, incarnation: int) -> bytes:
    """``head`` of ``encode_packets`` for packets of another origin, or sent again."""
    return RETRANSMIT.pack(MessageType.RETRANSMIT, 0, 0, node_id, incarnation, 0)[:-8]


def decode_data_buffer(buffer: bytes, segment: int) -> tuple[int, Extent, int] | None:
    """First counter and extent of the consecutive DATA packets of one sender that a buffer begins with, and where
    they end in it: at its end, or before its last and shorter datagram, which then is something else.

    None where it holds anything else (the caller then takes it datagram by datagram).
    """
    length = len(buffer)
    full, rest = divmod(length, segment)
    payload = segment - BODY - DATA.size
    if payload <= 0 or full == 0 or full > SEGMENT_COUNT:
        return None
    fields = _segments(4, payload, full).unpack_from(buffer)
    counter, first = fields[1], fields[3]
    if (
        fields[0::5].count(fields[0]) != full
        or fields[2::5].count(DATA_HEAD) != full
        or fields[1::5] != tuple(range(counter, counter + full))
        or fields[3::5] != tuple(range(first, first + full))
    ):
        return None
    data = b"".join(fields[4::5]) if full > 1 else fields[4]
    begin = full * segment
    if rest > BODY + DATA.size and buffer[begin + BODY : begin + BODY + 4] == DATA_HEAD:
        if (
            buffer[begin : begin + PREFIX_BYTES] != fields[0]
            or _COUNTER.unpack_from(buffer, begin + PREFIX_BYTES)[0] != counter + full
            or _COUNTER.unpack_from(buffer, begin + BODY + 4)[0] != first + full
        ):
            return None
        return counter, Extent(first, full + 1, payload, data + buffer[begin + BODY + DATA.size :]), length
    return counter, Extent(first, full, payload, data), begin


def split(buffer: bytes, segment: int) -> Iterator[bytes]:
    """The datagrams of a buffer, one by one."""
    if segment <= 0 or segment >= len(buffer):
        yield buffer
        return
    for begin in range(0, len(buffer), segment):
        yield buffer[begin : begin + segment]


# --- the other messages ---------------------------------------------------------------------------------------------


def decode_data(datagram: bytes) -> Extent:
    """The packet of one DATA datagram, as an extent of one. Raises MalformedDatagram."""
    payload = len(datagram) - BODY - DATA.size
    if payload <= 0:
        raise MalformedDatagram("DATA without bytes")
    return Extent(_COUNTER.unpack_from(datagram, BODY + 4)[0], 1, payload, datagram[BODY + DATA.size :])


def decode_retransmit(datagram: bytes) -> tuple[int, int, Extent]:
    """Origin node_id, its incarnation, and the packet as an extent of one. Raises MalformedDatagram."""
    payload = len(datagram) - BODY - RETRANSMIT.size
    if payload <= 0:
        raise MalformedDatagram("RETRANSMIT without bytes")
    _, _, _, node_id, incarnation, number = RETRANSMIT.unpack_from(datagram, BODY)
    return node_id, incarnation, Extent(number, 1, payload, datagram[BODY + RETRANSMIT.size :])


def encode_order(order: Order) -> bytes:
    """Body: ``type u8, flags u8, entries u16, epoch u32, window u32, first_index u64, order_time u64, commit u64,
    stable u64``, then per entry ``node_id u32, count u32, first packet u64``."""
    flags, epoch, window, first_index, order_time, commit, stable, entries = order
    head = ORDER.pack(
        MessageType.ORDER, flags, len(entries), epoch, window, first_index, order_time, commit, stable
    )
    return head + b"".join([ORDER_ENTRY.pack(*entry) for entry in entries])


def decode_order(datagram: bytes) -> Order:
    """Raises MalformedDatagram."""
    _need(datagram, ORDER.size, "ORDER")
    _, flags, count, epoch, window, first_index, order_time, commit, stable = ORDER.unpack_from(
        datagram, BODY
    )
    _exact(datagram, ORDER.size + count * ORDER_ENTRY.size, "ORDER")
    entries = list(ORDER_ENTRY.iter_unpack(datagram[BODY + ORDER.size :]))
    return Order(flags, epoch, window, first_index, order_time, commit, stable, entries)


def encode_ack(flags: int, epoch: int, held: int) -> bytes:
    return ACK.pack(MessageType.ACK, flags, 0, epoch, held)


def decode_ack(datagram: bytes) -> tuple[int, int, int]:
    """Flags, epoch, held. Raises MalformedDatagram."""
    _exact(datagram, ACK.size, "ACK")
    _, flags, _, epoch, held = ACK.unpack_from(datagram, BODY)
    return flags, epoch, held


def encode_nack(epoch: int, ranges: Sequence[Range]) -> bytes:
    """Body: ``type u8, flags u8, ranges u16, epoch u32``, then per range ``node_id u32, count u32, incarnation u64,
    first u64``."""
    return NACK.pack(MessageType.NACK, 0, len(ranges), epoch) + b"".join(
        [NACK_RANGE.pack(*one) for one in ranges]
    )


def decode_nack(datagram: bytes) -> tuple[int, list[Range]]:
    """Epoch and ranges. Raises MalformedDatagram."""
    _need(datagram, NACK.size, "NACK")
    _, _, count, epoch = NACK.unpack_from(datagram, BODY)
    _exact(datagram, NACK.size + count * NACK_RANGE.size, "NACK")
    return epoch, [Range._make(one) for one in NACK_RANGE.iter_unpack(datagram[BODY + NACK.size :])]


def encode_heartbeat(beat: Heartbeat, fill_bytes: int = 0) -> bytes:
    """Body: the fields of Heartbeat in their order behind ``type u8, flags u8, heard u16``, then per node heard
    ``node_id u32, 0 u32, incarnation u64``; zeros up to ``fill_bytes`` of body with PADDED."""
    flags, *fields, heard = beat
    body = HEARTBEAT.pack(MessageType.HEARTBEAT, flags, len(heard), *fields) + b"".join(
        [HEARD.pack(node_id, 0, incarnation) for node_id, incarnation in heard]
    )
    return body + bytes(max(0, fill_bytes - len(body)))


def decode_heartbeat(datagram: bytes) -> Heartbeat:
    """Raises MalformedDatagram."""
    _need(datagram, HEARTBEAT.size, "HEARTBEAT")
    _, flags, count, *fields = HEARTBEAT.unpack_from(datagram, BODY)
    end = BODY + HEARTBEAT.size + count * HEARD.size
    if flags & MessageFlags.PADDED:
        _need(datagram, end - BODY, "HEARTBEAT")
    else:
        _exact(datagram, end - BODY, "HEARTBEAT")
    heard = [
        (node_id, incarnation)
        for node_id, _, incarnation in HEARD.iter_unpack(datagram[BODY + HEARTBEAT.size : end])
    ]
    return Heartbeat._make((flags, *fields, heard))


def encode_structure(kind: MessageType, epoch: int, structure: msgspec.Struct) -> bytes:
    """Body: ``type u8, flags u8, 0 u16, epoch u32``, then the structure as MessagePack."""
    return STRUCTURE.pack(kind, 0, 0, epoch) + msgspec.msgpack.encode(structure)


def decode_structure(datagram: bytes) -> tuple[int, bytes]:
    """Epoch, and the encoded structure. Raises MalformedDatagram."""
    _need(datagram, STRUCTURE.size + 1, "a message with a structure")
    return STRUCTURE.unpack_from(datagram, BODY)[3], datagram[BODY + STRUCTURE.size :]


def encode_config_request(epoch: int) -> bytes:
    return CONFIG_REQUEST.pack(MessageType.CONFIG_REQUEST, 0, 0, epoch)


def decode_config_request(datagram: bytes) -> int:
    """The epoch the asker has. Raises MalformedDatagram."""
    _exact(datagram, CONFIG_REQUEST.size, "CONFIG_REQUEST")
    epoch: int = CONFIG_REQUEST.unpack_from(datagram, BODY)[3]
    return epoch


def _need(datagram: bytes, body_bytes: int, what: str) -> None:
    if len(datagram) < BODY + body_bytes:
        raise MalformedDatagram(f"{what} of {len(datagram)} bytes is too short")


def _exact(datagram: bytes, body_bytes: int, what: str) -> None:
    if len(datagram) != BODY + body_bytes:
        raise MalformedDatagram(f"{what} has {len(datagram)} bytes and says {BODY + body_bytes}")
