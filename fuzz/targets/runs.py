"""Runs: checked as an agent does it, cut out of a stream of packets, opened as a subscriber does it.

An input is a switch u8 and one run or several, back to back. With an odd switch length and checksum are made right.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise
from random import Random
from typing import Final

from xxhash import xxh3_64_intdigest

from fuzz.mutation import framed
from fuzz.target import Target, well_formed
from ocfcluster.limits import RUN_COUNT, RUN_HEADER_BYTES
from ocfcluster.protocol.streams import Assembler
from ocfcluster.wire import control
from ocfcluster.wire.properties import encode_properties
from ocfcluster.wire.run import (
    CHECKED_FROM,
    HEADER,
    RunKind,
    build_run,
    check_run,
    event_bounds,
    largest_event,
    properties_of,
    run_events,
    run_properties,
    verify_checksum,
    void_run,
)

LIMIT_BYTES: Final = 1 << 20  # of a run in a stream
_FEW: Final = 100  # events of a run that are looked at one by one


def mended(run: bytes) -> bytes:
    """With its own length and checksum."""
    if len(run) < RUN_HEADER_BYTES:
        return run
    return (
        struct.pack("<I", len(run))
        + run[4:8]
        + struct.pack("<Q", xxh3_64_intdigest(run[CHECKED_FROM:]))
        + run[16:]
    )


def check(data: bytes) -> None:
    run = data[1:]
    if data[:1] and data[0] & 1:
        run = mended(run)
    open_run(run)
    assemble(run, data[0] >> 1 if data else 0)


def open_run(run: bytes) -> None:
    header = well_formed(check_run, run)
    if header is None:
        return
    assert 1 <= header.count <= RUN_COUNT
    bounds = event_bounds(run, header)
    assert len(bounds) == header.count + 1
    assert bounds[-1] == len(run)
    properties = run_properties(run, header)
    assert properties == properties_of(run)
    if header.count < _FEW:
        sizes = [end - begin for begin, end in pairwise(bounds)]
        assert min(sizes) >= 0
        assert largest_event(run) == max(sizes)
        events = list(run_events(run, header))
        assert list(map(len, events)) == sizes
        again = build_run(
            header.kind, header.topic_id, header.producer, header.first_number, events,
            re_id=header.re_id, time_ns=header.time_ns, properties=properties,
        )  # fmt: skip
        assert check_run(again).count == header.count
        assert not verify_checksum(run) or header.event_length == 2**32 - 1 or again == run
    void = void_run(header, 5)
    assert (check_run(void).kind, len(void)) == (RunKind.VOID, RUN_HEADER_BYTES)
    if header.kind > RunKind.VOID:
        operand = well_formed(control.read_operand, run, header)
        assert operand is None or control.control_run(operand, header.first_number)[64:] == run[64:]


def assemble(stream: bytes, cut: int) -> None:
    """The same runs come out however the packets are cut; what is ill-formed ends it at the same place."""
    whole, pieces = Assembler(LIMIT_BYTES), Assembler(LIMIT_BYTES)
    runs = [run for _, run in whole.feed(stream)]
    cut = min(cut, len(stream))
    found = [
        run for piece in (stream[:cut], stream[cut:]) for _, run in (pieces.feed(piece) if piece else [])
    ]
    assert found == runs
    assert pieces.broken == whole.broken
    assert whole.broken or pieces.unfinished == whole.unfinished == stream[sum(map(len, runs)) :]


def mutate(data: bytes, random: Random) -> bytes:
    return _frames(data, random)


_frames: Final = framed(HEADER, 1, whole=True)


def publications() -> Iterator[bytes]:
    yield build_run(RunKind.PUBLICATION, 16, 3, 1, [b"one"])
    yield build_run(RunKind.PUBLICATION, 16, 3, 4, [b"a", b"", b"ccc"], re_id=9, time_ns=8)
    yield build_run(RunKind.PUBLICATION, 16, 3, 7, [b""] * 5, properties=encode_properties({"a": "x"}))
    yield build_run(
        RunKind.PUBLICATION, 16, 3, 2**64 - 3, [b"xy", b"z"], properties=encode_properties({"oc.to": "5"})
    )
    yield build_run(RunKind.PUBLICATION, 16, 3, 1, [b""] * RUN_COUNT)
    yield void_run(check_run(build_run(RunKind.PUBLICATION, 16, 3, 1, [b"one"])), 13)


def seeds() -> Iterator[bytes]:
    made = list(publications())
    for run in made:
        yield b"\1" + run
    yield b"\x40" + b"".join(made[:3])
    yield b"\0" + made[0] + made[1][:70]
    yield b"\1" + control.control_run(control.TopicCreate("t", False), 1)


TARGET: Final = Target(check, seeds, ("wire/run.py", "protocol/streams.py"), mutate)
