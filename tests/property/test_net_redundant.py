"""The duplicate filter, against what it is for: of each datagram one copy passes, whole and in place, whatever the
networks do to them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocfcluster.limits import REPLAY_WINDOW
from ocfcluster.net import redundant
from ocfcluster.net.redundant import OURS_BYTES, SENDERS, DuplicateFilter
from ocfcluster.net.transport import Received
from ocfcluster.wire.datagram import CLEAR, CLEAR_HEADER_BYTES, MAGIC, VERSION, clear_prefix
from ocfcluster.wire.replay import ReplayWindow

CLUSTER = 0x1234_5678
OURS = clear_prefix(CLUSTER, 1, 2)[:OURS_BYTES]
SOURCES = [("10.0.0.1", 1), ("10.1.0.1", 1), ("10.2.0.1", 1)]


def datagram(counter: int, size: int, node: int = 5, incarnation: int = 77, cluster: int = CLUSTER) -> bytes:
    head = CLEAR.pack(MAGIC, VERSION, 0, cluster, node, 0, incarnation, counter)
    return head + bytes([counter % 251]) * (size - len(head))


def buffer(counters: list[int], size: int, last: int, **sender: int) -> tuple[bytes, int]:
    """Datagrams of ``size``, the last of ``last``."""
    ones = [datagram(counter, size, **sender) for counter in counters[:-1]]
    return b"".join([*ones, datagram(counters[-1], last, **sender)]), size if ones else last


def split(received: list[Received]) -> list[bytes]:
    return [data[at : at + segment] for data, segment, _ in received for at in range(0, len(data), segment)]


@st.composite
def journeys(draw: st.DrawFn) -> tuple[dict[int, bytes], list[tuple[int, Received]]]:
    """All datagrams by counter, and the buffers in which copies of them arrive, by network."""
    size = draw(st.integers(CLEAR_HEADER_BYTES, 80))
    first = draw(st.integers(1, 5000))
    sends: list[list[int]] = []
    for _ in range(draw(st.integers(1, 8))):
        many = draw(st.integers(1, 64))
        sends.append(list(range(first, first + many)))
        first += many + draw(st.sampled_from([0, 0, 1, 70]))
    every: dict[int, bytes] = {}
    arrivals: list[tuple[int, int, Received]] = []
    for number, counters in enumerate(sends):
        last = draw(st.integers(CLEAR_HEADER_BYTES, size))
        whole, segment = buffer(counters, size, last)
        pieces = split([(whole, segment, SOURCES[0])])
        every.update(zip(counters, pieces, strict=True))
        for network, source in enumerate(SOURCES):
            lost = draw(st.sets(st.sampled_from(counters), max_size=5))
            cuts = draw(st.sets(st.sampled_from(counters), max_size=2))
            when = number + draw(st.integers(0, 3)) * network
            piece: list[bytes] = []
            for counter, one in zip(counters, pieces, strict=True):
                if piece and (counter in cuts or len(one) > len(piece[0]) or len(piece[-1]) < len(piece[0])):
                    arrivals.append((when, network, (b"".join(piece), len(piece[0]), source)))
                    piece = []
                if counter not in lost:
                    piece.append(one)
            if piece:
                arrivals.append((when, network, (b"".join(piece), len(piece[0]), source)))
    arrivals.sort(key=lambda one: one[0])
    return every, [(network, received) for _, network, received in arrivals]


@given(journeys())
def test_of_each_datagram_the_first_copy_passes_and_no_other(
    journey: tuple[dict[int, bytes], list[tuple[int, Received]]],
) -> None:
    every, arrivals = journey
    duplicates = DuplicateFilter(OURS, len(SOURCES))
    seen: set[bytes] = set()
    copies = 0
    for now, (network, received) in enumerate(arrivals, 1):
        passed: list[Received] = []
        duplicates.admit(received, network, now, passed)
        ones = split([received])
        copies += len(ones)
        assert split(passed) == [one for one in ones if one not in seen]  # in its order, and nothing cut
        assert all(source == received[2] for _, _, source in passed)
        seen.update(ones)
    assert seen <= set(every.values())
    assert duplicates.dropped == copies - len(seen)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 70)), max_size=40))
def test_each_sender_is_counted_by_itself(arrivals: list[tuple[int, int]]) -> None:
    duplicates = DuplicateFilter(OURS, 2)
    seen: set[tuple[int, int]] = set()
    for sender, counter in arrivals:
        passed: list[Received] = []
        one = datagram(counter, 40, sender + 1, sender + 100)
        duplicates.admit((one, 40, SOURCES[0]), 0, 1, passed)
        assert bool(passed) == ((sender, counter) not in seen)
        seen.add((sender, counter))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 9)), min_size=2, max_size=20))
def test_a_buffer_of_several_senders_is_taken_apart(ones: list[tuple[int, int]]) -> None:
    duplicates = DuplicateFilter(OURS, 1)
    whole = b"".join(datagram(counter, 40, 1, 100 + sender) for sender, counter in ones)
    passed: list[Received] = []
    duplicates.admit((whole, 40, SOURCES[0]), 0, 1, passed)
    assert split(passed) == list(dict.fromkeys(split([(whole, 40, SOURCES[0])])))


def test_an_older_version_that_is_spoken_is_ours_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """While nodes are upgraded they speak an older version than the newest build's own."""
    monkeypatch.setattr(redundant, "VERSION", VERSION + 1)
    duplicates = DuplicateFilter(OURS, 1)
    for version, passes in ((VERSION, 1), (VERSION + 1, 1), (VERSION + 2, 2)):
        one = clear_prefix(CLUSTER, 1, 100 + version, version=version) + b"\1" + bytes(39)
        passed: list[Received] = []
        for _ in range(2):
            duplicates.admit((one, len(one), SOURCES[0]), 0, 1, passed)
        assert len(passed) == passes


@given(st.binary(max_size=200), st.integers(1, 300))
def test_what_is_nobodys_passes_for_the_node_to_count(data: bytes, segment: int) -> None:
    duplicates = DuplicateFilter(OURS, 1)
    passed: list[Received] = []
    for _ in range(2):
        duplicates.admit((data, segment, SOURCES[0]), 0, 1, passed)
    if data[:OURS_BYTES] != OURS:
        assert passed == [(data, segment, SOURCES[0])] * 2
        assert duplicates.senders() == []
    other = datagram(1, 40, cluster=CLUSTER + 1)
    passed.clear()
    for _ in range(2):
        duplicates.admit((other, 40, SOURCES[0]), 0, 1, passed)
    assert len(passed) == 2


@given(st.integers(CLEAR_HEADER_BYTES, 60), st.binary(min_size=1, max_size=200))
def test_ours_and_broken_neither_raises_nor_passes_twice(size: int, tail: bytes) -> None:
    duplicates = DuplicateFilter(OURS, 1)
    whole = datagram(1, size) + datagram(2, size) + tail
    for segment in (1, 7, CLEAR_HEADER_BYTES, size, size + 1, len(whole), 2 * len(whole)):
        duplicates.admit((whole, segment, SOURCES[0]), 0, 1, [])


def test_memory_is_bounded_and_the_longest_silent_is_forgotten() -> None:
    gone: list[int] = []
    duplicates = DuplicateFilter(OURS, 1, lambda sender: gone.append(sender.incarnation))
    for incarnation in range(1, SENDERS + 11):
        duplicates.admit((datagram(1, 40, 1, incarnation), 40, SOURCES[0]), 0, incarnation, [])
        duplicates.admit((datagram(incarnation + 1, 40, 1, 1), 40, SOURCES[0]), 0, incarnation, [])
    assert len(duplicates.senders()) == SENDERS
    assert 1 in {sender.incarnation for sender in duplicates.senders()}
    assert set(range(2, 12)) <= set(gone)


@given(st.lists(st.tuples(st.integers(1, 3 * REPLAY_WINDOW), st.integers(1, 64)), max_size=30))
def test_taken_says_what_accept_would_refuse(asked: list[tuple[int, int]]) -> None:
    window = ReplayWindow()
    taken: set[int] = set()
    highest = 0
    for first, count in asked:
        gone = highest - REPLAY_WINDOW
        expected = all(one in taken or one <= gone for one in range(first, first + count))
        assert window.taken(first, count) == expected
        if window.accept(first, count):
            taken.update(range(first, first + count))
            highest = max(taken)
