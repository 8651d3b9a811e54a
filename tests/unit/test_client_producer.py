"""Numbering, runs and receipts of a producer, without any agent."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocfcluster.client.events import Receipt
from ocfcluster.client.producer import Batch, Producer, largest_of, run_size, split
from ocfcluster.errors import NotPermitted, OutcomeUnknown
from ocfcluster.limits import PRODUCER_RUNS_UNANSWERED, RUN_BYTES, RUN_COUNT
from ocfcluster.wire.frames import Producer as Opened
from ocfcluster.wire.run import check_run, read_header, run_events


class Nobody:
    def wait_for_receipt(self, receipt: Any, timeout: float | None) -> None:
        raise AssertionError


def batch(*events: bytes) -> Batch:
    return Batch(Nobody(), "t", 16, 0, b"", list(events), run_size(len(events), sum(map(len, events)), b""))


def opened() -> Producer:
    producer = Producer(local=False)
    producer.opened(Opened(100), 0)
    return producer


def test_numbers_follow_each_other_from_one() -> None:
    producer = opened()
    for events in ((b"a",), (b"b", b"c"), (b"d",)):
        producer.queue(batch(*events), 5)
    headers = [read_header(one.run) for one in producer.unanswered]
    assert [(header.first_number, header.count) for header in headers] == [(1, 1), (2, 2), (4, 1)]
    assert {header.producer for header in headers} == {100}


def test_numbers_are_given_when_the_producer_opens() -> None:
    producer = Producer(local=False)
    producer.queue(batch(b"a", b"b"), 1)
    producer.queue(batch(b"c"), 1)
    assert all(not one.run for one in producer.unanswered)
    producer.opened(Opened(7), 2)
    assert [one.number for one in producer.unanswered] == [1, 3]


def test_receipts_match_by_number_also_when_several_runs_share_one() -> None:
    producer = opened()
    batches = [batch(b"a"), batch(b"b", b"c"), batch(b"d")]
    for one in batches:
        producer.queue(one, 0)
    assert producer.answered(1, 3, 0, 50, 500)
    assert [one.done for one in batches] == [True, True, False]
    assert Receipt(batches[1].alone, 1, 1).result()[1:3] == (52, 502)
    assert producer.answered(4, 1, errno.EPERM, 0, 0)
    with pytest.raises(NotPermitted):
        Receipt(batches[2].alone, 0, 1).result()
    assert not producer.unanswered
    assert producer.unanswered_bytes == 0
    assert not producer.answered(4, 1, 0, 9, 9)  # a repeat says nothing new


def test_a_run_that_is_answered_in_parts() -> None:
    producer = opened()
    one = batch(b"a", b"b", b"c")
    producer.queue(one, 0)
    receipts = [Receipt(one.alone, index, 1) for index in range(3)]
    assert not producer.answered(1, 1, 0, 10, 100)
    assert [receipt.done() for receipt in receipts] == [True, False, False]
    assert not producer.answered(1, 1, 0, 10, 100)
    assert producer.answered(2, 2, 0, 20, 200)
    assert [receipt.result().seq for receipt in receipts] == [10, 20, 21]


def test_the_window_counts_runs_and_bytes() -> None:
    producer = opened()
    for _ in range(PRODUCER_RUNS_UNANSWERED):
        assert producer.has_room(100)
        producer.queue(batch(b""), 0)
    assert not producer.has_room(100)
    producer.answered(1, 1, 0, 1, 1)
    assert producer.has_room(100)
    large = opened()
    assert large.has_room(64 << 20)  # one largest event always may, alone
    large.queue(batch(bytes(9 << 20)), 0)
    assert not large.has_room(1)


def test_what_gathers_has_a_place_among_the_unanswered() -> None:
    """Each node keeps so many outcomes for a producer, and no more: what is sent again is answered from them."""
    producer = opened()
    for _ in range(PRODUCER_RUNS_UNANSWERED - 1):
        producer.queue(batch(b"x"), 0)
    assert producer.has_room(100)
    producer.gathering = batch(b"y")
    assert not producer.has_room(100)


def test_a_forgotten_producer_numbers_anew_what_cannot_have_been_taken() -> None:
    producer = opened()
    producer.queue(batch(b"a"), 0)
    producer.answered(1, 1, 0, 1, 1)
    producer.queue(batch(b"b"), 0)
    producer.unanswered[0].sends = 1
    producer.forgotten()
    producer.opened(Opened(200), 0)
    header = check_run(producer.unanswered[0].run)
    assert (header.producer, header.first_number) == (200, 1)
    assert list(run_events(producer.unanswered[0].run, header)) == [b"b"]


def test_a_forgotten_producer_fails_what_was_sent_twice_and_that_alone() -> None:
    producer = opened()
    one, other = batch(b"b"), batch(b"c", b"d")
    producer.queue(one, 0)
    producer.queue(other, 0)
    one.sends, other.sends = 2, 1
    producer.forgotten()
    with pytest.raises(OutcomeUnknown):
        Receipt(one.alone, 0, 1).result()
    assert list(producer.unanswered) == [other]
    assert producer.unanswered_bytes == other.size
    producer.opened(Opened(200), 0)
    assert (other.number, other.sends) == (1, 0)


@given(
    st.lists(st.sampled_from([0, 1, 64, 1000, 30_000, 65_000, 70_000]), min_size=1, max_size=200),
    st.sampled_from([b"", bytes(3000)]),
)
def test_cuts_are_whole_full_and_within_bounds(lengths: list[int], properties: bytes) -> None:
    datas = [bytes(length) for length in lengths]
    cuts = split(datas, properties)
    assert [begin for begin, _, _ in cuts] == [0, *(end for _, end, _ in cuts[:-1])]
    assert cuts[-1][1] == len(datas)
    for begin, end, size in cuts:
        assert end - begin == 1 or size <= RUN_BYTES
        assert 1 <= end - begin <= RUN_COUNT
        assert size >= 64 + len(properties) + sum(lengths[begin:end])
        if end < len(datas) and end - begin < RUN_COUNT:  # the next one would not have fitted
            assert size + lengths[end] + 4 * (end - begin + 1) > RUN_BYTES


def test_many_empty_events_are_cut_by_count() -> None:
    assert [end - begin for begin, end, _ in split([b""] * 70_000, b"")] == [32_768, 32_768, 4_464]


@given(
    st.lists(st.sampled_from([0, 1, 1000, 1001, 70_000, 100_000]), min_size=1, max_size=200),
    st.sampled_from([0, 1000, 80_000, 1 << 20]),
)
def test_an_event_that_is_too_large_is_found_among_others(lengths: list[int], most: int) -> None:
    datas = [bytes(length) for length in lengths]
    found = largest_of(datas, split(datas, b""), most)
    assert found == max(lengths) if max(lengths) > most else found <= most
