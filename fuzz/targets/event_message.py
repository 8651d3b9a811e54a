"""OCF event messages: one event has one image."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Final

from fuzz.mutation import NUMBERS, damage
from fuzz.target import Target, well_formed
from ocfcluster.wire.event import FIXED, EventMessage, decode_event, encode_event, fold32


def check(data: bytes) -> None:
    found = well_formed(decode_event, data)
    if found is None:
        return
    assert isinstance(found, EventMessage)
    fields = found._asdict()
    assert encode_event(fields.pop("topic"), fields.pop("data"), **fields) == data
    assert decode_event(memoryview(data)) == found


def mutate(data: bytes, random: Random) -> bytes:
    """Numbers changed, and folded anew."""
    if len(data) < FIXED.size or random.random() < 0.5:
        return damage(data, random)
    fields = list(FIXED.unpack_from(data))
    fields[7 + random.randrange(8)] = random.choice(NUMBERS) % 2**32
    rest = damage(data[FIXED.size :], random) if random.random() < 0.5 else data[FIXED.size :]
    fields[0] = FIXED.size + len(rest)
    fields[2:5] = (fold32(fields[7]), fold32(fields[8]), fold32(fields[9]))
    return FIXED.pack(*fields) + rest


def seeds() -> Iterator[bytes]:
    yield encode_event("t", b"data", seq=1, ev_id=2)
    yield encode_event(
        "t" * 255, b"", seq=2**64 - 1, ev_id=2**63 | 5, re_id=7, flags=3, properties={"a": "x", "b": ""}
    )
    yield encode_event(
        "", b"\x90", seq=0, ev_id=2**63, flags=4, time_ns=9, m_sequence=3, node_id=2, incarnation=8
    )


TARGET: Final = Target(check, seeds, ("wire/event.py",), mutate)
