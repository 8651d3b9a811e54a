"""Snapshots: what a running member hands to a node that joins, and what that node makes of it.

A snapshot stands at a position of the order, the giver's ``held``: the state as delivered, the runs held behind that,
what there is of unfinished runs, and the log from stable on, with its packets, so that the new member can serve others
as soon as it counts. It begins with ``header bytes u32``, then the Header as MessagePack, then all bytes that the
header names, back to back.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgspec

from ocfcluster.errors import MalformedSnapshot
from ocfcluster.protocol.order_log import Entry, HeldRun, OrderLog
from ocfcluster.protocol.settings import Configuration, TopicRow
from ocfcluster.protocol.state import ReplicatedState, StateImage, restored_state, state_image
from ocfcluster.protocol.streams import OriginStream
from ocfcluster.wire.datagram import Extent

_LENGTH: Final = struct.Struct("<I")


class Request(msgspec.Struct, array_like=True, frozen=True):
    """What a joiner asks for: the state of this epoch, or (``topics``) only the giver's topic table on disk."""

    cluster: int  # hash of the cluster's name
    node_id: int
    incarnation: int
    cluster_id: str
    epoch: int
    topics: bool


class StreamImage(msgspec.Struct, array_like=True, frozen=True):
    node_id: int
    incarnation: int
    last_packet: int  # of it, within the position
    partial: int  # bytes of the run it has begun
    broken: str
    extents: list[tuple[int, int, int, int]]  # first packet, count, packet size, bytes


class Header(msgspec.Struct, array_like=True, frozen=True):
    configuration: Configuration
    position: int
    delivered: int
    stable: int
    last_order_time: int
    state: StateImage
    runs: list[tuple[int, int, int, int, int]]  # index, order_time, node_id, incarnation, bytes
    streams: list[StreamImage]
    entries: list[
        tuple[int, int, int, int, int, int, int]
    ]  # first index, count, node_id, incarnation, packet, time, e


class Topics(msgspec.Struct, array_like=True, frozen=True):
    """A topic table on disk, and how far in the order it reaches."""

    rows: list[TopicRow]
    next_topic_id: int
    topics_index: int


class Restored:
    """What a snapshot was made of."""

    __slots__ = ("configuration", "delivered", "log", "stable", "state", "streams")

    def __init__(
        self, header: Header, state: ReplicatedState, log: OrderLog, streams: list[OriginStream]
    ) -> None:
        self.configuration = header.configuration
        self.delivered = header.delivered
        self.stable = header.stable
        self.state = state
        self.log = log
        self.streams = streams


def take_snapshot(
    configuration: Configuration,
    state: ReplicatedState,
    log: OrderLog,
    streams: list[OriginStream],
    delivered: int,
    stable: int,
) -> list[bytes]:
    """The snapshot at ``log.held`` as buffers that are never changed afterwards. Costs a reference per buffer kept,
    and the encoding of the state."""
    blobs: list[bytes] = []
    runs = []
    for index, order_time, origin, run, _ in log.runs:
        if origin is not None:
            runs.append((index, order_time, origin.node_id, origin.incarnation, len(run)))
            blobs.append(run)
    unheld = log.positions()
    entries = list(log.kept(log.held))
    first: dict[OriginStream, int] = {}
    for entry in entries:
        first.setdefault(entry.origin, entry.first_packet)
    images = []
    for stream in streams:
        last = unheld.get(stream, stream.logged)
        partial = stream.assembler.unfinished
        extents = list(stream.find(first[stream], last + 1 - first[stream])) if stream in first else []
        images.append(
            StreamImage(
                stream.node_id, stream.incarnation, last, len(partial), stream.assembler.broken,
                [(one.first, one.count, one.size, len(one.data)) for one in extents],
            )
        )  # fmt: skip
        blobs.append(partial)
        blobs += [one.data for one in extents]
    header = Header(
        configuration, log.held, delivered, stable, log.last_order_time, state_image(state), runs, images,
        [
            (
                one.first_index, one.count, one.origin.node_id, one.origin.incarnation, one.first_packet,
                one.order_time, one.epoch,
            )
            for one in entries
        ],
    )  # fmt: skip
    encoded = msgspec.msgpack.encode(header)
    return [_LENGTH.pack(len(encoded)) + encoded, *[blob for blob in blobs if blob]]


def restore(snapshot: bytes, run_limit_bytes: int) -> Restored:
    """Raises MalformedSnapshot for everything that is none."""
    header, at = _read(snapshot, Header)
    view = memoryview(snapshot)

    def take(size: int) -> bytes:
        nonlocal at
        if size < 0 or at + size > len(snapshot):
            raise MalformedSnapshot("it ends before what it names")
        at += size
        return bytes(view[at - size : at])

    try:
        state = restored_state(header.state)
        streams: dict[tuple[int, int], OriginStream] = {
            (image.node_id, image.incarnation): OriginStream(
                image.node_id, image.incarnation, run_limit_bytes
            )
            for image in header.streams
        }
        log = OrderLog(header.position)
        log.last_order_time = header.last_order_time
        for index, order_time, node_id, incarnation, size in header.runs:
            log.runs.append(HeldRun(index, order_time, streams[node_id, incarnation], take(size)))
        for image in header.streams:
            stream = streams[image.node_id, image.incarnation]
            stream.begin_behind(image.last_packet, take(image.partial), image.broken)
            stream.adopt(
                [Extent(first, count, size, take(length)) for first, count, size, length in image.extents]
            )
        log.adopt(
            [
                Entry(first, count, streams[node_id, incarnation], packet, order_time, epoch)
                for first, count, node_id, incarnation, packet, order_time, epoch in header.entries
            ]
        )
    except (KeyError, ValueError, TypeError) as error:
        raise MalformedSnapshot(f"its parts do not fit each other: {error!r}") from None
    if at != len(snapshot):
        raise MalformedSnapshot(f"{len(snapshot) - at} bytes follow it")
    return Restored(header, state, log, list(streams.values()))


def encode_topics(rows: list[TopicRow], next_topic_id: int, topics_index: int) -> bytes:
    encoded = msgspec.msgpack.encode(Topics(rows, next_topic_id, topics_index))
    return _LENGTH.pack(len(encoded)) + encoded


def decode_topics(snapshot: bytes) -> Topics:
    """Raises MalformedSnapshot."""
    topics: Topics = _read(snapshot, Topics)[0]
    return topics


def encode_request(request: Request) -> bytes:
    return msgspec.msgpack.encode(request)


def decode_request(request: bytes) -> Request:
    """Raises MalformedSnapshot."""
    try:
        return msgspec.msgpack.decode(request, type=Request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedSnapshot(f"request: {error}") from None


def _read(snapshot: bytes, kind: type[Any]) -> tuple[Any, int]:
    if len(snapshot) < _LENGTH.size:
        raise MalformedSnapshot(f"it has {len(snapshot)} bytes")
    end = _LENGTH.size + _LENGTH.unpack_from(snapshot)[0]
    if end > len(snapshot):
        raise MalformedSnapshot("its header is cut off")
    try:
        return msgspec.msgpack.decode(memoryview(snapshot)[_LENGTH.size : end], type=kind), end
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedSnapshot(f"its header cannot be read: {error}") from None
