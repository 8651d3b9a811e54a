"""Datagrams in the clear: a buffer of them, each split off and read by its kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fuzz.target import Target, well_formed
from ocfcluster.limits import SEGMENT_COUNT
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.datagram import BODY, Extent, Heartbeat, MessageFlags, MessageType, Order, Range

PREFIX: Final = wire.clear_prefix(wire.cluster_hash("fuzz"), 2, 0x1002, 0xABCD)
LEAD_BYTES: Final = 2  # of an input: the segment size


def check(data: bytes) -> None:
    segment = int.from_bytes(data[:LEAD_BYTES], "little")
    buffer = data[LEAD_BYTES:]
    if len(buffer) > segment > 0:
        read_buffer(buffer, segment)
    for one in list(wire.split(buffer, max(segment, BODY // 2)))[: 2 * SEGMENT_COUNT]:
        if len(one) > BODY:
            read_body(one)


def read_buffer(buffer: bytes, segment: int) -> None:
    """What is taken as one buffer of DATA is just what a sender would pack."""
    found = wire.decode_data_buffer(buffer, segment)
    if found is None:
        return
    counter, extent, end = found
    assert 0 < extent.count <= SEGMENT_COUNT + 1
    again, size = wire.encode_packets(buffer[: wire.PREFIX_BYTES], counter, wire.DATA_HEAD, extent)
    assert again == buffer[:end]
    assert size == segment
    for skip in {0, extent.count // 2, extent.count - 1}:
        assert extent.part(skip, 1).first == extent.first + skip


def read_body(datagram: bytes) -> None:
    """One datagram with its clear header."""
    head = datagram[:BODY]
    kind = datagram[BODY]
    if kind == MessageType.DATA:
        well_formed(wire.decode_data, datagram)
    elif kind == MessageType.RETRANSMIT:
        found = well_formed(wire.decode_retransmit, datagram)
        if found is not None:
            node_id, incarnation, extent = found
            again, _ = wire.encode_packets(head[:24], 0, wire.retransmit_head(node_id, incarnation), extent)
            assert wire.decode_retransmit(again) == found
    elif kind == MessageType.ORDER:
        order = well_formed(wire.decode_order, datagram)
        assert order is None or head + wire.encode_order(order) == datagram
    elif kind == MessageType.ACK:
        ack = well_formed(wire.decode_ack, datagram)
        assert ack is None or wire.decode_ack(head + wire.encode_ack(*ack)) == ack
    elif kind == MessageType.NACK:
        nack = well_formed(wire.decode_nack, datagram)
        assert nack is None or wire.decode_nack(head + wire.encode_nack(*nack)) == nack
    elif kind == MessageType.HEARTBEAT:
        beat = well_formed(wire.decode_heartbeat, datagram)
        assert beat is None or wire.decode_heartbeat(head + wire.encode_heartbeat(beat)) == beat
    elif kind == MessageType.CONFIG_REQUEST:
        well_formed(wire.decode_config_request, datagram)
    else:
        well_formed(wire.decode_structure, datagram)


def bodies() -> Iterator[bytes]:
    """One of each kind, and the edges of those with lists."""
    beat = Heartbeat(0, 3, 9, 4 << 20, 1500, 1, 2, 5, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, [])
    yield wire.DATA.pack(MessageType.DATA, 0, 0, 7) + b"stream"
    yield wire.RETRANSMIT.pack(MessageType.RETRANSMIT, 0, 0, 3, 0x1003, 7) + b"stream"
    yield wire.encode_order(Order(0, 3, 1 << 20, 10, 11, 9, 8, []))
    yield wire.encode_order(Order(MessageFlags.COPY, 3, 0, 10, 11, 9, 8, [(2, 5, 1), (3, 1, 6)]))
    yield wire.encode_ack(MessageFlags.FULL, 3, 12)
    yield wire.encode_nack(3, [Range(2, 5, 0x1002, 1), Range(0, 64, 0, 12)])
    yield wire.encode_heartbeat(beat)
    yield wire.encode_heartbeat(beat._replace(flags=MessageFlags.PADDED, heard=[(1, 2), (3, 4)]), 300)
    yield wire.encode_config_request(3)
    yield wire.STRUCTURE.pack(MessageType.REJECT, 0, 0, 3) + b"\x90"


def buffers() -> Iterator[tuple[bytes, int]]:
    """Buffers and their segment sizes: of one datagram, and of several."""
    for number, body in enumerate(bodies(), 1):
        one = PREFIX + number.to_bytes(8, "little") + body
        yield one, len(one)
    for count, size, rest in ((3, 8, 8), (4, 8, 3), (64, 4, 4)):
        extent = Extent(5, count, size, bytes((count - 1) * size + rest))
        yield wire.encode_packets(PREFIX, 9, wire.DATA_HEAD, extent)
    packets, segment = wire.encode_packets(PREFIX, 9, wire.DATA_HEAD, Extent(5, 3, 40, bytes(120)))
    yield packets + PREFIX + (12).to_bytes(8, "little") + wire.encode_ack(0, 3, 12), segment


def seeds() -> Iterator[bytes]:
    for buffer, segment in buffers():
        yield segment.to_bytes(LEAD_BYTES, "little") + buffer


TARGET: Final = Target(check, seeds, ("wire/datagram.py",), most_bytes=4096)
