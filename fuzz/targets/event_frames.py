"""Messages on event sockets as a program's library reads them: records, runs, notices, to the last property.

An input is a message; with an odd first byte of its zero field the runs in it get their right checksums.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import islice
from random import Random
from typing import Final

from fuzz.mutation import change_packed, damage, split_frames
from fuzz.target import Target, taken, well_formed
from fuzz.targets.runs import mended, publications
from ocfcluster.client.events import Event, Notice, Run
from ocfcluster.client.eventsocket import EventSocket, Frame
from ocfcluster.client.replies import open_event
from ocfcluster.client.subscription_state import SubscriptionState
from ocfcluster.errors import InvalidArgument, Malformed
from ocfcluster.limits import FRAME_BYTES, RUN_COUNT
from ocfcluster.wire import frames
from ocfcluster.wire.event import decode_event
from ocfcluster.wire.frames import (
    EVENT_HEADER,
    RECORD_HEADER,
    RecordFlags,
    RecordKind,
    Request,
    control_frame,
)

CONNECTION: Final = 5


@cache
def event_socket() -> EventSocket:
    return EventSocket(SubscriptionState(1, ["t", "u"], True), resume=False)


def check(data: bytes) -> None:
    if not EVENT_HEADER.size <= len(data) <= FRAME_BYTES:
        return  # the socket hands out no others
    if data[20] & 1:
        data = with_checksums(data)
    events = event_socket()
    state = events.state
    state.started = True
    state.names = {16: "t", 17: "group:g"}
    state.positions = dict.fromkeys(state.names, 9)
    events.final = events._told = False
    frame = events._open(data)
    assert isinstance(frame, Frame)
    assert len(frame.runs) <= len(data) // RECORD_HEADER.size + 1
    for run in frame.runs[:4]:
        read(run)
    control_frame(Request.SUBSCRIBE, 1, state.request())  # of the next agent, behind what came


def read(run: Run) -> None:
    """As a program does it."""
    repr(run)
    assert len(run) <= RUN_COUNT
    if run.notice is not None:
        assert Notice.decode(run.notice.encode()) == run.notice
    count = 0
    try:
        for event in islice(run.events(), 3):
            look_at(event)
            count += 1
        run.rest(count // 2)
        well_formed(lambda: run.properties)
    except Malformed:
        pass


def look_at(event: Event) -> None:
    repr(event)
    assert isinstance(event.data, bytes)
    assert event.seq >= 0
    assert isinstance(event.retained, bool)
    assert isinstance(event.flags, RecordFlags)
    message = taken((InvalidArgument, Malformed), event.to_bytes)
    assert message is None or decode_event(message).data == event.data
    well_formed(open_event, event)
    assert event.position.next.seq > event.seq


def with_checksums(data: bytes) -> bytes:
    parts = [data[: EVENT_HEADER.size]]
    for head, body in split_frames(data[EVENT_HEADER.size :], RECORD_HEADER, whole=True):
        parts += [head, body[:4] + mended(body)[4:] if head[4] in (RecordKind.RUN, RecordKind.LAST) else body]
    return b"".join(parts)


def mutate(data: bytes, random: Random) -> bytes:
    """One record left out, doubled or changed; the count of records as it is then."""
    lead, records = (
        data[: EVENT_HEADER.size],
        split_frames(data[EVENT_HEADER.size :], RECORD_HEADER, whole=True),
    )
    if not records:
        return damage(data, random)
    at = random.randrange(len(records))
    head, body = records[at]
    match random.randrange(7):
        case 0:
            return damage(data, random)
        case 1:
            del records[at]
        case 2:
            records.insert(at, records[random.randrange(len(records))])
        case 3:
            records[at] = (head[:4] + damage(head[4:], random), body)
        case 4 if head[4] == RecordKind.NOTICE:
            records[at] = (head, change_packed(body, random))
        case _:
            records[at] = (head, damage(body, random))
    framed = b"".join(
        (len(body) + RECORD_HEADER.size).to_bytes(4, "little")
        + (head[4:] + bytes(64))[: RECORD_HEADER.size - 4]
        + body
        for head, body in records
    )
    return lead[:16] + len(records).to_bytes(4, "little") + b"\1" + lead[21:] + framed


def message(*records: tuple[RecordKind, int, int, bytes]) -> bytes:
    """Records as (kind, flags, skip, run or notice)."""
    packed = [
        RECORD_HEADER.pack(
            RECORD_HEADER.size + len(body), kind, flags, 0, skip, 2, 0x1002, 3, 10 + number, 20 + number, 99
        )
        + body
        for number, (kind, flags, skip, body) in enumerate(records)
    ]
    return EVENT_HEADER.pack(CONNECTION, 1, 7, len(packed), 0) + b"".join(packed)


def seeds() -> Iterator[bytes]:
    made = [run for run in publications() if len(run) < FRAME_BYTES]
    for run in made:
        yield message((RecordKind.RUN, RecordFlags.NONE, 0, run))
    yield message(*((RecordKind.RUN, RecordFlags.RETAINED, 0, run) for run in made[:4]))
    yield message((RecordKind.RUN, RecordFlags.LOCAL, 2, made[1]), (RecordKind.LAST, 1, 0, made[0]))
    for notice in (
        frames.Notice(frames.NoticeCode.GAP, "t", 3, 9, "slow"),
        frames.Notice(frames.NoticeCode.SHUTDOWN, reason="bye", final=True),
        frames.Notice(frames.NoticeCode.HISTORY_LOST),
        frames.Notice(99),
    ):
        yield message((RecordKind.NOTICE, RecordFlags.NOTICE, 0, frames.encode_notice(notice)))
    largest = max(publications(), key=len)
    yield message((RecordKind.PART, 0, 0, largest))  # the first piece of a run, and its last
    yield message((RecordKind.PART, 0, 0, largest[: len(largest) // 2]))


TARGET: Final = Target(check, seeds, ("client/eventsocket.py", "client/events.py"), mutate)
