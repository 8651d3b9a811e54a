"""Traces of real clusters: what a subscriber got, what a publisher was told, as lines that the oracle reads.

A subscriber's trace is its subscription from the first item to the last, one line each: where it began, runs, events
of ``oc.membership``, notices. A publisher's is one line per answered call. Digests stand for data.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

import msgspec
from xxhash import xxh3_64_intdigest

from ocfcluster.client.events import Run
from ocfcluster.components.membership import TOPIC as MEMBERSHIP
from ocfcluster.components.membership import MembershipEvent
from ocfcluster.wire.frames import RecordFlags


class Began(msgspec.Struct, frozen=True, array_like=True, tag="began"):
    """The subscription stands: the seq of each topic's first event."""

    time_ns: int
    next_seq: dict[str, int]


class Got(msgspec.Struct, frozen=True, array_like=True, tag="run"):
    """Consecutive events of one publisher."""

    time_ns: int  # CLOCK_MONOTONIC, which all hosts on one machine share
    topic: str
    seq: int  # of the first, as ev_id and number
    ev_id: int
    node_id: int
    incarnation: int
    m_sequence: int
    order_time: int
    producer: int
    number: int
    digests: tuple[int, ...]  # xxh3-64 of each event's data


class Membership(msgspec.Struct, frozen=True, array_like=True, tag="membership"):
    """An event of ``oc.membership``."""

    time_ns: int
    code: str  # name of a MembershipCode
    seq: int
    ev_id: int
    m_sequence: int
    order_time: int
    members: tuple[tuple[int, int], ...]  # (node_id, born_on), as in the next two
    joined: tuple[tuple[int, int], ...]
    left: tuple[tuple[int, int], ...]
    local: bool
    retained: bool


class Told(msgspec.Struct, frozen=True, array_like=True, tag="notice"):
    """A notice."""

    time_ns: int
    name: str
    topic: str
    first_seq: int
    last_seq: int
    reason: str
    final: bool


class Answer(msgspec.Struct, frozen=True, array_like=True, tag="answer"):
    """What became of ``count`` publications of one call, of which the first is the publisher's ``index``-th."""

    index: int
    count: int
    topic: str
    seq: int  # of the first; 0 where there is an error
    ev_id: int
    error: str  # "": delivered


Line = Began | Got | Membership | Told | Answer
_decoder: Final = msgspec.json.Decoder(Line)
_encoder: Final = msgspec.json.Encoder()


class Writer:
    """Writes a trace; every line is in the file before the next one."""

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("wb", buffering=0)

    def write(self, line: Line) -> None:
        self._file.write(_encoder.encode(line) + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def line_of(run: Run, time_ns: int) -> Line:
    """What a subscription gave, as a line."""
    notice = run.notice
    if notice is not None:
        return Told(
            time_ns, notice.name, notice.topic, notice.first_seq, notice.last_seq, notice.reason, notice.final
        )
    if run.topic == MEMBERSHIP:
        event = MembershipEvent.decode(next(iter(run)))
        return Membership(
            time_ns, event.code.name, run.seq, run.ev_id, run.m_sequence, run.order_time_ns,
            event.members, event.joined, event.left, run.local, bool(run.flags & RecordFlags.RETAINED),
        )  # fmt: skip
    return Got(
        time_ns, run.topic, run.seq, run.ev_id, run.node_id, run.incarnation, run.m_sequence, run.order_time_ns,
        run.producer, run.first_number, tuple(map(xxh3_64_intdigest, run)),
    )  # fmt: skip


def read(path: Path) -> Iterator[Line]:
    """The lines of a trace. A last line that its writer did not live to end is left out."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield _decoder.decode(line)
