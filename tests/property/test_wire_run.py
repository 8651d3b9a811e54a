"""Runs: codec ≡ declaration, every damage, and that runs give back what was put in."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocfcluster.errors import MalformedRun
from ocfcluster.limits import RUN_COUNT
from ocfcluster.wire.control import (
    Barrier,
    Close,
    Open,
    TopicCreate,
    TopicRemove,
    control_run,
    read_operand,
)
from ocfcluster.wire.properties import encode_properties
from ocfcluster.wire.run import (
    CHECKED_FROM,
    LENGTHS_TABLE,
    RunHeader,
    RunKind,
    build_run,
    check_run,
    event_bounds,
    largest_event,
    read_header,
    run_events,
    run_properties,
    verify_checksum,
    void_run,
)
from ocfcluster.wire.schema.events import RUN
from tests.property.wire_helpers import (
    PROPERTY_TABLES,
    TOPIC_NAMES,
    U32,
    U64,
    damaged,
    damages,
    flipped,
    taken,
)

EVENTS = st.lists(st.binary(max_size=20), min_size=1, max_size=12) | st.builds(
    lambda event, count: [event] * count, st.binary(max_size=20), st.integers(1, 12)
)
NUMBERS = st.integers(0, 2**64 - 1 - 13)


@st.composite
def publications(draw: st.DrawFn) -> bytes:
    return build_run(
        RunKind.PUBLICATION, draw(U32), draw(U64), draw(NUMBERS), draw(EVENTS),
        re_id=draw(U64), time_ns=draw(U64), properties=encode_properties(draw(PROPERTY_TABLES)),
    )  # fmt: skip


OPERANDS = (
    st.just(Open())
    | st.just(Barrier())
    | st.builds(Close, U64)
    | st.builds(TopicCreate, TOPIC_NAMES, st.booleans())
    | st.builds(TopicRemove, TOPIC_NAMES)
)
CONTROLS = st.builds(control_run, OPERANDS, NUMBERS, U64)
VOIDS = st.builds(
    lambda run, reason: void_run(read_header(run), reason), publications(), st.integers(1, 4095)
)
RUNS = publications() | CONTROLS | VOIDS
EXAMPLES = [
    build_run(RunKind.PUBLICATION, 16, 7, 1, [b"abc", b"", b"d"], properties=encode_properties({"k": "v"})),
    build_run(RunKind.PUBLICATION, 16, 7, 2**40, [b"ab", b"cd"], re_id=3, time_ns=4),
    build_run(RunKind.PUBLICATION, 16, 7, 1, [b"", b"", b""]),
    void_run(read_header(build_run(RunKind.PUBLICATION, 16, 7, 1, [b"x", b"yy"])), 1),
    control_run(TopicCreate("tëst", True), 9, 1),
    control_run(Close(7), 1),
]


def declared(data: bytes, compiled: bool) -> RunHeader:
    fields = RUN.parse(data, compiled=compiled)
    return RunHeader(**{name: fields[name] for name in RunHeader._fields})


def declared_events(fields: Any) -> list[bytes]:
    lengths = fields.lengths or [fields.event_length] * fields.count
    events, at = [], 0
    for length in lengths:
        events.append(fields.data[at : at + length])
        at += length
    return events


@given(EVENTS, U32, U64, NUMBERS, U64, U64, PROPERTY_TABLES)
def test_run_gives_back_what_was_put_in(
    events: list[bytes],
    topic_id: int,
    producer: int,
    first: int,
    re_id: int,
    time_ns: int,
    table: dict[str, str],
) -> None:
    encoded = encode_properties(table)
    run = build_run(
        RunKind.PUBLICATION,
        topic_id,
        producer,
        first,
        events,
        re_id=re_id,
        time_ns=time_ns,
        properties=encoded,
    )
    header = check_run(run)
    assert (header.topic_id, header.producer, header.first_number) == (topic_id, producer, first)
    assert (header.re_id, header.time_ns, header.count) == (re_id, time_ns, len(events))
    assert (header.event_length == LENGTHS_TABLE) == (len(set(map(len, events))) > 1)
    assert list(run_events(run, header)) == events
    assert run_properties(run, header) == encoded
    assert largest_event(run) == max(map(len, events))
    assert verify_checksum(run)
    bounds = event_bounds(run, header)
    assert len(bounds) == len(events) + 1
    assert bounds[-1] == len(run)


@settings(max_examples=20)
@given(st.integers(1, RUN_COUNT), st.integers(0, 3), st.booleans())
def test_runs_of_many_events(count: int, length: int, mixed: bool) -> None:
    events = [b"x" * length] * count
    if mixed:
        events[-1] = b"y" * (length + 1)
    run = build_run(RunKind.PUBLICATION, 16, 7, 1, events)
    assert list(run_events(run, check_run(run))) == events


@given(publications(), st.integers(0, 4095))
def test_void_run_stands_for_the_refused_one(run: bytes, reason: int) -> None:
    refused = check_run(run)
    void = void_run(refused, reason)
    header = check_run(void)
    assert verify_checksum(void)
    assert header.kind == RunKind.VOID
    assert header.re_id == (reason or 5)
    for name in ("topic_id", "producer", "first_number", "count", "time_ns"):
        assert getattr(header, name) == getattr(refused, name)
    assert list(run_events(void, header)) == [b""] * refused.count


@given(OPERANDS, NUMBERS)
def test_operand_comes_back(operand: Any, token: int) -> None:
    run = control_run(operand, token)
    assert read_operand(run, check_run(run)) == operand


@pytest.mark.parametrize("compiled", [False, True])
@given(run=RUNS)
def test_codec_equals_declaration(run: bytes, compiled: bool) -> None:
    fields = RUN.parse(run, compiled=compiled)
    header = check_run(run)
    assert declared(run, compiled) == header
    assert declared_events(fields) == list(run_events(run, header))
    assert fields.properties == run_properties(run, header)
    assert RUN.build(fields, compiled=compiled) == run


def agree_about(data: bytes) -> RunHeader | None:
    header: RunHeader | None = taken(check_run, data, MalformedRun)
    assert header == taken(lambda one: declared(one, False), data, MalformedRun)
    assert header == taken(lambda one: declared(one, True), data, MalformedRun)
    return header


@pytest.mark.parametrize("run", EXAMPLES)
def test_every_damage_is_malformed_or_another_run_of_its_length(run: bytes) -> None:
    for data in damages(run):
        header = agree_about(data)
        if header is not None:
            assert len(data) == header.length == len(run)
            assert len(list(run_events(data, header))) == header.count
            assert run_properties(data, header) is not None


@settings(max_examples=300)
@given(damaged(RUNS) | st.binary(max_size=100))
def test_codec_and_declaration_take_the_same_bytes(data: bytes) -> None:
    header = agree_about(data)
    if header is not None:
        assert len(list(run_events(data, header))) == header.count


@pytest.mark.parametrize("run", EXAMPLES)
def test_checksum_shows_every_flip(run: bytes) -> None:
    assert verify_checksum(run)
    for bit in range(8 * CHECKED_FROM, 8 * len(run)):
        assert not verify_checksum(flipped(run, bit)), f"bit {bit}"


@settings(max_examples=50)
@given(RUNS, st.data())
def test_checksum_shows_flips_in_any_run(run: bytes, data: st.DataObject) -> None:
    bit = data.draw(st.integers(8 * CHECKED_FROM, 8 * len(run) - 1))
    assert not verify_checksum(flipped(run, bit))


@pytest.mark.parametrize("run", EXAMPLES[4:])
def test_damaged_operands_are_malformed_or_other_operands(run: bytes) -> None:
    for data in damages(run):
        header = taken(check_run, data, MalformedRun)
        if header is None or header.kind in {RunKind.PUBLICATION, RunKind.VOID}:
            continue
        operand = taken(lambda one, header=header: read_operand(one, header), data, MalformedRun)
        if operand is not None:
            assert control_run(operand, header.first_number, header.time_ns)[64:] == data[64:]


@given(st.sampled_from([kind for kind in RunKind if kind > RunKind.VOID]), st.binary(max_size=40))
def test_any_bytes_as_an_operand(kind: RunKind, data: bytes) -> None:
    run = build_run(kind, 0, 0, 1, [data])
    operand = taken(lambda one: read_operand(one, check_run(one)), run, MalformedRun)
    if operand is not None:
        assert control_run(operand, 1) == run
