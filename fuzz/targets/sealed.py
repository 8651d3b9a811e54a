"""Sealed datagrams as they come from the network: whatever opens was sealed by who has the key.

An input is a segment size u16, a switch u8, and the buffer. With an odd switch each datagram's clear header is made
one of this cluster, so that it comes as far as the cipher.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Final

from fuzz.target import Target
from fuzz.targets import datagrams
from ocfcluster.limits import KEYS, OPENERS
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.keys import ClusterKey
from ocfcluster.wire.sealing import SEALED, Opener, Sealer

CLUSTER: Final = "fuzz"
NODE, INCARNATION = 2, 0x1002
OWN: Final = ClusterKey(bytes(range(32)))
OTHER: Final = ClusterKey(bytes(range(100, 132)))
LEAD_BYTES: Final = 3
_HEADER: Final = wire.clear_prefix(wire.cluster_hash(CLUSTER), NODE, INCARNATION)


@cache
def sealed() -> dict[bytes, bytes]:
    """Buffers in the clear, each of which opens, and how they are sealed."""
    sealer = Sealer(CLUSTER, NODE, INCARNATION, OWN)
    made = {}
    counter = 1
    for buffer, segment in datagrams.buffers():
        clear, counter = numbered(buffer, segment, counter)
        made[clear] = segment.to_bytes(2, "little") + sealer.seal(clear, segment)
    return made


def numbered(buffer: bytes, segment: int, counter: int) -> tuple[bytes, int]:
    """The datagrams of a buffer with counters from ``counter`` on, and the next one."""
    parts = []
    for one in wire.split(buffer, segment):
        parts.append(_HEADER + counter.to_bytes(8, "little") + one[wire.BODY :])
        counter += 1
    return b"".join(parts), counter


@cache
def authentic() -> frozenset[bytes]:
    """All that may open: single datagrams in the clear."""
    found: set[bytes] = set()
    for clear, packed in sealed().items():
        found.update(wire.split(clear, int.from_bytes(packed[:2], "little")))
    return frozenset(found)


def check(data: bytes) -> None:
    segment, switch, buffer = int.from_bytes(data[:2], "little"), data[2:3], data[LEAD_BYTES:]
    if not buffer:
        return
    segment = min(max(segment, wire.BODY), len(buffer))
    if switch and switch[0] & 1:
        buffer = addressed(buffer, segment, switch[0])
    opener = Opener(CLUSTER, [OWN])
    for _ in range(2):  # once as a stranger's, once (where something opened) as a known sender's
        for opened, size in opener.open(buffer, segment):
            assert authentic().issuperset(wire.split(opened, size)), (
                "a datagram that nobody sealed has opened"
            )
    assert sum(opener.counters.values()) <= 2 * (len(buffer) // segment + 1)
    assert len(opener._known) <= OPENERS
    assert all(0 < len(report.key_ids) <= KEYS for report in opener.reports)
    opener.take_refusal()


def addressed(buffer: bytes, segment: int, switch: int) -> bytes:
    flags = SEALED | (switch & 2) | OWN.hint << 2
    header = _HEADER[:3] + bytes([flags]) + _HEADER[4:]
    return b"".join(header + one[wire.PREFIX_BYTES :] for one in wire.split(buffer, segment))


def seeds() -> Iterator[bytes]:
    for packed in sealed().values():
        segment = int.from_bytes(packed[:2], "little") + 16
        for switch in (0, 1):
            yield segment.to_bytes(2, "little") + bytes([switch]) + packed[2:]
    report = Sealer(CLUSTER, 3, 0x1003, OWN).report([OWN.id, OTHER.id])
    yield len(report).to_bytes(2, "little") + b"\0" + report
    foreign = Sealer(CLUSTER, NODE, INCARNATION, OTHER).seal(*next(datagrams.buffers()))
    yield len(foreign).to_bytes(2, "little") + b"\0" + foreign


TARGET: Final = Target(check, seeds, ("wire/sealing.py",), most_bytes=2048)
