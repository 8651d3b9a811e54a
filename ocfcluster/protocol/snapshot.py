"""Snapshots: what a running member hands to a node that joins, and what that node makes of it.

A snapshot stands at a position of the order, the giver's ``held``: the state as delivered, the runs held behind that,
what there is of unfinished runs, and the log from stable on, with its packets, so that the new member can serve others
as soon as it counts. It begins with ``header bytes u32, checksum u64`` (xxh3-64 of all that follows), then the Header
as MessagePack, then all bytes that the header names, back to back.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import msgspec
from xxhash import xxh3_64, xxh3_64_intdigest

from ocfcluster import limits
from ocfcluster.errors import MalformedRun, MalformedSnapshot
from ocfcluster.protocol.order_log import Entry, HeldRun, OrderLog
from ocfcluster.protocol.retention import RetainedImage, Taken
from ocfcluster.protocol.settings import U32, U64, Configuration, Counted, TopicRow
from ocfcluster.protocol.state import ReplicatedState, StateImage, restored_state, state_image, topics_fault
from ocfcluster.protocol.streams import OriginStream
from ocfcluster.protocol.validity import configuration_fault
from ocfcluster.wire.datagram import Extent
from ocfcluster.wire.run import check_run

_HEAD: Final = struct.Struct("<IQ")
# Both take a third of a second and more where much is kept, and may be called in any thread: they touch nothing of the
# node. What puts the buffers of a snapshot together; and what reads one, where a fault is told as what comes out.
Making = Callable[[], list[bytes]]
Reading = Callable[[bytes], "Restored | Topics | MalformedSnapshot"]
Run = tuple[Counted, Counted, U32, U64, U32]  # index, order_time, node_id, incarnation, bytes
Piece = tuple[Counted, U32, U32, U32]  # first packet, count, packet size, bytes
Line = tuple[
    Counted, U32, U32, U64, Counted, Counted, U32
]  # first index, count, node_id, incarnation, packet, time, e


class Request(msgspec.Struct, array_like=True, frozen=True):
    """What a joiner asks for: the state of this epoch, or (``topics``) only the giver's topic table on disk."""

    cluster: int  # hash of the cluster's name
    node_id: int
    incarnation: int
    cluster_id: str
    epoch: int
    topics: bool


class StreamImage(msgspec.Struct, array_like=True, frozen=True):
    node_id: U32
    incarnation: U64
    last_packet: Counted  # of it, within the position
    partial: U32  # bytes of the run it has begun
    broken: str
    extents: list[Piece]


class Header(msgspec.Struct, array_like=True, frozen=True):
    configuration: Configuration
    position: Counted
    delivered: Counted
    stable: Counted
    last_order_time: Counted
    state: StateImage
    runs: list[Run]
    streams: list[StreamImage]
    entries: list[Line]


class Topics(msgspec.Struct, array_like=True, frozen=True):
    """A topic table on disk, and how far in the order it reaches."""

    rows: list[TopicRow]
    next_topic_id: U32
    topics_index: Counted


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
) -> Making:
    """The snapshot at ``log.held``: what makes its buffers, whatever happens here meanwhile. Taking it costs a
    reference per buffer kept."""
    kept = state.retained.taken()
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
        begun = stream.assembler.unfinished
        extents = list(stream.find(first[stream], last + 1 - first[stream])) if stream in first else []
        images.append(
            StreamImage(
                stream.node_id, stream.incarnation, last, len(begun), stream.assembler.broken,
                [(one.first, one.count, one.size, len(one.data)) for one in extents],
            )
        )  # fmt: skip
        blobs.append(begun)
        blobs += [one.data for one in extents]
    header = Header(
        configuration, log.held, delivered, stable, log.last_order_time, state_image(state, RetainedImage()), runs,
        images,
        [
            (
                one.first_index, one.count, one.origin.node_id, one.origin.incarnation, one.first_packet,
                one.order_time, one.epoch,
            )
            for one in entries
        ],
    )  # fmt: skip
    return partial(_made, header, kept, blobs)


def _made(header: Header, kept: Taken, blobs: list[bytes]) -> list[bytes]:
    state = msgspec.structs.replace(header.state, retained=kept.image())
    whole = msgspec.structs.replace(header, state=state)
    return _seal(whole, [blob for blob in (*kept.blobs(), *blobs) if blob])


def reading_state(run_limit_bytes: int) -> Reading:
    """``restore``, for whatever thread."""

    def read(snapshot: bytes) -> Restored | MalformedSnapshot:
        try:
            return restore(snapshot, run_limit_bytes)
        except MalformedSnapshot as error:
            return error

    return read


def read_topics(snapshot: bytes) -> Topics | MalformedSnapshot:
    """``decode_topics``, for whatever thread."""
    try:
        return decode_topics(snapshot)
    except MalformedSnapshot as error:
        return error


def restore(snapshot: bytes, run_limit_bytes: int) -> Restored:
    """Raises MalformedSnapshot for everything that is none."""
    header, at = _read(snapshot, Header)
    _check(header)
    view = memoryview(snapshot)

    def take(size: int) -> bytes:
        nonlocal at
        if at + size > len(snapshot):
            raise MalformedSnapshot("it ends before what it names")
        at += size
        return bytes(view[at - size : at])

    state = restored_state(header.state)
    state.retained.restore(header.state.retained, take, state.last_seq)
    streams: dict[tuple[int, int], OriginStream] = {
        (image.node_id, image.incarnation): OriginStream(image.node_id, image.incarnation, run_limit_bytes)
        for image in header.streams
    }
    log = OrderLog(header.position)
    log.last_order_time = header.last_order_time
    try:
        for index, order_time, node_id, incarnation, size in header.runs:
            run = take(size)
            check_run(run)
            log.runs.append(HeldRun(index, order_time, streams[node_id, incarnation], run))
        for image in header.streams:
            stream = streams[image.node_id, image.incarnation]
            partial = take(image.partial)
            stream.begin_behind(image.last_packet, partial, image.broken)
            if stream.assembler.broken != image.broken or (
                not image.broken and stream.assembler.unfinished_bytes != len(partial)
            ):
                raise MalformedSnapshot("what is said to be a run that was begun is none")
            stream.adopt(
                [Extent(first, count, size, take(length)) for first, count, size, length in image.extents]
            )
        log.adopt(
            [
                Entry(first, count, streams[node_id, incarnation], packet, order_time, epoch)
                for first, count, node_id, incarnation, packet, order_time, epoch in header.entries
            ]
        )
    except KeyError as error:
        raise MalformedSnapshot(f"it has nothing of the origin {error}") from None
    except MalformedRun as error:
        raise MalformedSnapshot(f"a run that waits to be delivered: {error}") from None
    if at != len(snapshot):
        raise MalformedSnapshot(f"{len(snapshot) - at} bytes follow it")
    return Restored(header, state, log, list(streams.values()))


def _check(header: Header) -> None:
    """Whether the numbers of a header can be those of one: what is built on them must not fail."""
    keys = [(image.node_id, image.incarnation) for image in header.streams]
    good = (
        configuration_fault(header.configuration) == ""
        and header.state.configuration == header.configuration
        and header.configuration.base < header.delivered <= header.position
        and header.stable <= header.position
        and len(set(keys)) == len(keys)
        and _ascend([(index, 1) for index, *_ in header.runs], header.delivered, header.position, touch=True)
        and _ascend([(first, count) for first, count, *_ in header.entries], 0, header.position)
    )
    for image in header.streams:
        good = good and _ascend([(first, count) for first, count, *_ in image.extents], 0, image.last_packet)
        for _, count, size, length in image.extents:
            good = good and count <= limits.SEGMENT_COUNT + 1 and 0 < size <= limits.MTU_MAXIMUM
            good = good and (count - 1) * size < length <= count * size
    if not good:
        raise MalformedSnapshot("its numbers do not fit each other")


def _ascend(ranges: list[tuple[int, int]], after: int, most: int, *, touch: bool = False) -> bool:
    """Whether (first, count) follow each other, behind ``after`` and up to ``most``; with ``touch`` the next may begin
    where the one before ends (several runs may end in one packet)."""
    for first, count in ranges:
        if count < 1 or first <= after or first + count - 1 > most:
            return False
        after = first - 1 if touch else first + count - 1
    return True


def encode_topics(rows: list[TopicRow], next_topic_id: int, topics_index: int) -> bytes:
    return b"".join(_seal(Topics(rows, next_topic_id, topics_index), []))


def decode_topics(snapshot: bytes) -> Topics:
    """Raises MalformedSnapshot."""
    topics: Topics
    topics, end = _read(snapshot, Topics)
    if end != len(snapshot) or topics_fault(topics.rows, topics.next_topic_id):
        raise MalformedSnapshot("topics that cannot be")
    return topics


def encode_request(request: Request) -> bytes:
    return msgspec.msgpack.encode(request)


def decode_request(request: bytes) -> Request:
    """Raises MalformedSnapshot."""
    try:
        return msgspec.msgpack.decode(request, type=Request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedSnapshot(f"request: {error}") from None


def _seal(header: msgspec.Struct, blobs: list[bytes]) -> list[bytes]:
    encoded = msgspec.msgpack.encode(header)
    checksum = xxh3_64(encoded)
    for blob in blobs:
        checksum.update(blob)
    return [_HEAD.pack(len(encoded), checksum.intdigest()) + encoded, *blobs]


def _read(snapshot: bytes, kind: type[Any]) -> tuple[Any, int]:
    if len(snapshot) < _HEAD.size:
        raise MalformedSnapshot(f"it has {len(snapshot)} bytes")
    length, checksum = _HEAD.unpack_from(snapshot)
    end = _HEAD.size + length
    if end > len(snapshot) or xxh3_64_intdigest(memoryview(snapshot)[_HEAD.size :]) != checksum:
        raise MalformedSnapshot("it was cut off or damaged on its way")
    try:
        return msgspec.msgpack.decode(memoryview(snapshot)[_HEAD.size : end], type=kind), end
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedSnapshot(f"its header cannot be read: {error}") from None
