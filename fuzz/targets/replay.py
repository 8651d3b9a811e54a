"""Counters of datagrams, as they come by two networks: each is taken once, by the window and by the filter.

An input is a script of buffers: network u8, segments u8, counter u64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fuzz.target import Script, Target
from ocfcluster import limits
from ocfcluster.net.redundant import OURS_BYTES, SENDERS, DuplicateFilter
from ocfcluster.net.transport import Received
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.datagram import Extent
from ocfcluster.wire.replay import ReplayWindow

_PREFIX: Final = wire.clear_prefix(wire.cluster_hash("fuzz"), 2, 0x1002)
_MOST_STEPS: Final = 6


def check(data: bytes) -> None:
    script = Script(data)
    window = ReplayWindow()
    passing = DuplicateFilter(_PREFIX[:OURS_BYTES], 2)
    taken: set[int] = set()
    passed: set[int] = set()
    highest = 0
    for step in range(_MOST_STEPS):
        if not script:
            break
        network, segments, first = (
            script.number() & 1,
            script.number() % limits.SEGMENT_COUNT + 1,
            script.number(8),
        )
        first = min(first or 1, 2**64 - 1 - segments)
        counters = set(range(first, first + segments))
        if window.accept(first, segments):
            assert not counters & taken, "a counter was taken twice"
            taken |= counters
        elif not counters & taken:
            # Only a range that is too far behind, or that ends above what came, is refused though it is new.
            assert first <= highest < first + segments or first <= highest - limits.REPLAY_WINDOW
        highest = max(highest, first + segments - 1 if counters <= taken else 0)
        assert not window.taken(first, segments) or all(
            one in taken or one <= highest - limits.REPLAY_WINDOW for one in counters
        )
        admitted(passing, buffer(first, segments), network, step, passed)
    assert len(window._missing) <= 2 * (limits.REPLAY_WINDOW // 1024 + 1) + 2
    assert len(passing.senders()) <= SENDERS


def admitted(passing: DuplicateFilter, received: Received, network: int, now: int, passed: set[int]) -> None:
    found: list[Received] = []
    passing.admit(received, network, now, found)
    for piece, segment, _ in found:
        for one in wire.split(piece, segment):
            counter = int.from_bytes(one[wire.PREFIX_BYTES : wire.BODY], "little")
            assert counter not in passed, "a datagram has passed twice"
            passed.add(counter)


def buffer(first: int, segments: int) -> Received:
    made, segment = wire.encode_packets(
        _PREFIX, first, wire.DATA_HEAD, Extent(1, segments, 4, bytes(4 * segments))
    )
    return made, segment, ("10.0.0.2", 5405)


def seeds() -> Iterator[bytes]:
    def steps(*those: tuple[int, int, int]) -> bytes:
        return b"".join(
            bytes([network, segments - 1]) + first.to_bytes(8, "little") for network, segments, first in those
        )

    yield steps((0, 1, 1), (1, 1, 1), (0, 64, 2), (1, 64, 2), (1, 3, 65))
    yield steps((0, 4, 10), (1, 8, 8), (0, 1, 70_000), (1, 1, 4_465), (0, 1, 4_464), (1, 64, 40))
    yield steps((0, 1, 10), (0, 1, 5), (1, 1, 5), (0, 2, 6), (1, 2, 7))
    yield steps((0, 1, 2**64 - 70), (1, 64, 2**64 - 65), (0, 1, 5))


TARGET: Final = Target(check, seeds, ("wire/replay.py", "net/redundant.py"), most_bytes=60)
