"""Runs: what a hostile client or a careless caller could do with them."""

from __future__ import annotations

import array
import errno
import struct
import sys

import pytest

from ocfcluster.errors import MalformedRun
from ocfcluster.limits import PROPERTIES_BYTES, RUN_COUNT, RUN_HEADER_BYTES
from ocfcluster.wire import run as wire_run
from ocfcluster.wire.properties import encode_properties
from ocfcluster.wire.run import (
    HEADER,
    LENGTHS_TABLE,
    RunKind,
    build_run,
    check_run,
    event_bounds,
    read_header,
    run_events,
    run_properties,
    verify_checksum,
    void_run,
)


def changed(run: bytes, **fields: int) -> bytes:
    """``run`` with other values in its header."""
    return HEADER.pack(*read_header(run)._replace(**fields)) + run[HEADER.size :]


def publication(events: list[bytes], first_number: int = 1, **more: object) -> bytes:
    return build_run(RunKind.PUBLICATION, 16, 7, first_number, events, **more)  # type: ignore[arg-type]


def test_layout_of_a_run_byte_by_byte() -> None:
    run = build_run(
        RunKind.PUBLICATION, 0x10, 0x20, 0x30, [b"ab", b"", b"c"], re_id=0x40, time_ns=0x50, properties=b"PP"
    )
    assert len(run) == 64 + 12 + 2 + 3
    assert run[0:8] == struct.pack("<IBBH", len(run), 1, 1, 0)
    assert run[16:64] == struct.pack("<IIQQQQII", 0x10, 3, 0x20, 0x30, 0x40, 0x50, LENGTHS_TABLE, 2)
    assert run[64:] == struct.pack("<3I", 2, 0, 1) + b"PP" + b"abc"


def test_events_of_equal_length_have_no_table() -> None:
    run = publication([b"ab", b"cd"])
    header = check_run(run)
    assert header.event_length == 2
    assert run[64:] == b"abcd"
    assert list(event_bounds(run, header)) == [64, 66, 68]


def test_properties_come_back_with_and_without_a_table() -> None:
    encoded = encode_properties({"k": "v"})
    for events in ([b"a", b"b"], [b"a", b"bb"], [b""]):
        run = publication(events, properties=encoded)
        header = check_run(run)
        assert run_properties(run, header) == encoded
        assert list(run_events(run, header)) == events


def test_properties_beyond_their_bound_are_refused_at_the_door() -> None:
    assert check_run(publication([b"x"], properties=bytes(PROPERTIES_BYTES)))
    with pytest.raises(MalformedRun, match="properties"):
        check_run(publication([b"x"], properties=bytes(PROPERTIES_BYTES + 1)))


@pytest.mark.parametrize("count", [1, 2, RUN_COUNT])
def test_publish_numbers_never_pass_64_bits(count: int) -> None:
    last_allowed = 2**64 - 1 - count
    assert check_run(publication([b""] * count, first_number=last_allowed))
    with pytest.raises(MalformedRun, match="number"):
        check_run(publication([b""] * count, first_number=last_allowed + 1))


def test_void_run_uses_up_the_numbers_of_the_refused_one() -> None:
    refused = check_run(publication([b"abc", b"d"], first_number=5, time_ns=9, properties=b"??"))
    run = void_run(refused, errno.EPERM)
    header = check_run(run)
    assert verify_checksum(run)
    assert (header.kind, header.topic_id, header.producer) == (RunKind.VOID, 16, 7)
    assert (header.first_number, header.count, header.re_id, header.time_ns) == (5, 2, errno.EPERM, 9)
    assert len(run) == RUN_HEADER_BYTES
    assert run == build_run(RunKind.VOID, 16, 7, 5, [b"", b""], re_id=errno.EPERM, time_ns=9)


def test_void_run_always_has_a_reason() -> None:
    assert read_header(void_run(check_run(publication([b""])), 0)).re_id == errno.EIO


def test_void_run_handles_no_event_however_many_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    header = check_run(publication([b""] * RUN_COUNT))
    monkeypatch.setattr(wire_run, "build_run", None)  # would walk a list of count entries
    assert check_run(void_run(header, errno.EINVAL)).count == RUN_COUNT


@pytest.mark.parametrize("reason", [0, 4096, 2**32 + 1, 2**64 - 1])
def test_void_run_with_a_reason_that_is_no_errno_is_refused(reason: int) -> None:
    with pytest.raises(MalformedRun, match="void"):
        check_run(build_run(RunKind.VOID, 16, 7, 1, [b""], re_id=reason))


@pytest.mark.parametrize("run", [
    build_run(RunKind.VOID, 16, 7, 1, [b"x"], re_id=1),
    build_run(RunKind.VOID, 16, 7, 1, [b""], re_id=1, properties=b"p"),
    build_run(RunKind.VOID, 16, 7, 1, [b"", b"x"], re_id=1),
])  # fmt: skip
def test_void_run_with_data_is_refused(run: bytes) -> None:
    with pytest.raises(MalformedRun, match="void"):
        check_run(run)


@pytest.mark.parametrize("run", [
    build_run(RunKind.BARRIER, 0, 0, 1, [b"\x90", b"\x90"]),
    build_run(RunKind.OPEN, 0, 7, 1, [b"\x90"]),
    build_run(RunKind.OPEN, 16, 0, 1, [b"\x90"]),
    build_run(RunKind.CLOSE, 0, 0, 1, [b"\x90"], properties=b"p"),
])  # fmt: skip
def test_control_run_is_one_operand_without_topic_and_producer(run: bytes) -> None:
    with pytest.raises(MalformedRun, match="control"):
        check_run(run)


@pytest.mark.parametrize("fields", [
    {"length": 67}, {"length": 65}, {"kind": 0}, {"kind": 8}, {"heads": 0}, {"heads": 2}, {"flags": 1},
    {"count": 0}, {"count": RUN_COUNT + 1}, {"count": 2**32 - 1}, {"event_length": 3},
    {"event_length": LENGTHS_TABLE}, {"event_length": LENGTHS_TABLE - 1}, {"properties_length": 1},
    {"properties_length": 2**32 - 1},
])  # fmt: skip
def test_header_that_disagrees_with_the_bytes_is_refused(fields: dict[str, int]) -> None:
    run = publication([b"ab"])
    assert check_run(run)
    with pytest.raises(MalformedRun):
        check_run(changed(run, **fields))


def test_lengths_that_wrap_around_are_refused() -> None:
    run = publication([b"aa", b"b"])
    table = struct.pack("<2I", 0xFFFF_FFFF, 4)  # 3 modulo 2^32
    with pytest.raises(MalformedRun):
        check_run(run[:64] + table + run[72:])
    assert check_run(run[:64] + struct.pack("<2I", 3, 0) + run[72:])


def test_huge_count_with_a_table_costs_no_more_than_the_bytes_that_are_there() -> None:
    run = publication([b"aa", b"b"])
    with pytest.raises(MalformedRun):
        check_run(changed(run, count=RUN_COUNT))


@pytest.mark.parametrize("shift", range(8))
def test_runs_are_read_wherever_they_begin(shift: int) -> None:
    run = publication([b"aa", b"b", b""], properties=encode_properties({"k": "v"}))
    view = memoryview(bytes(shift) + run)[shift:]
    header = check_run(view)
    assert header == check_run(run)
    assert verify_checksum(view)
    assert run_properties(view, header) == encode_properties({"k": "v"})
    assert list(event_bounds(view, header)) == list(event_bounds(run, header))


def test_lengths_are_little_endian_on_every_host(monkeypatch: pytest.MonkeyPatch) -> None:
    run = publication([b"a" * 300, b"b"])
    monkeypatch.setattr(sys, "byteorder", "big")
    assert check_run(run).count == 2
    with pytest.raises(MalformedRun):
        check_run(run[:64] + struct.pack(">2I", 300, 1) + run[72:])


def test_events_from_mutable_buffers_are_copied() -> None:
    data = bytearray(b"abc")
    run = publication([data])  # type: ignore[list-item]
    data[:] = b"xyz"
    assert list(run_events(run, check_run(run))) == [b"abc"]


@pytest.mark.parametrize("more", [[], [b"x"]])
def test_views_of_other_items_than_bytes_count_their_bytes(more: list[bytes]) -> None:
    numbers = array.array("I", [1, 2, 3])
    run = publication([memoryview(numbers), *more])  # type: ignore[list-item]
    assert list(run_events(run, check_run(run))) == [numbers.tobytes(), *more]


def test_checksum_covers_all_behind_its_place_and_itself() -> None:
    run = publication([b"aa", b"b"], properties=encode_properties({"k": "v"}))
    assert verify_checksum(run)
    for bit in range(8 * 8, 8 * len(run)):
        flipped = bytearray(run)
        flipped[bit // 8] ^= 1 << bit % 8
        assert not verify_checksum(flipped), f"bit {bit}"


@pytest.mark.parametrize(("events", "largest"), [([b"ab", b"cd"], 2), ([b"a", b"", b"bcd"], 3), ([b""], 0)])
def test_largest_event_is_found_without_opening_the_run(events: list[bytes], largest: int) -> None:
    assert wire_run.largest_event(publication(events)) == largest
