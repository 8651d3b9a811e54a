"""The demo's check finds what it is there to find, and its display fits a terminal."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from ocfcluster.cli.demo import _show
from ocfcluster.cli.demo_work import PUBLISHERS, Check, Seen, Work, check, excerpt

NODES = (1, 2, 3)
EVENTS = 20


def a_run() -> Work:
    """What a good run leaves: the publishers' events in turn, alike on every node."""
    published = {
        publisher: [f"{publisher.name} #{number}".encode() for number in range(1, EVENTS + 1)]
        for publisher in PUBLISHERS
    }
    order: list[Seen] = []
    seqs: dict[str, int] = {}
    for number in range(EVENTS):
        for publisher in PUBLISHERS:
            seq = seqs[publisher.topic] = seqs.get(publisher.topic, 0) + 1
            order.append(Seen(publisher.topic, seq, len(order) + 1, published[publisher][number]))
    receipts = {event.data: (event.seq, event.ev_id) for event in order}
    return Work(published, receipts, {node: list(order) for node in NODES}, 0.1)


def failed(work: Work) -> set[str]:
    return {one.name for one in check(work) if not one.ok}


def lose_one(work: Work) -> None:
    work.seen[2].pop(7)


def lose_the_last(work: Work) -> None:
    work.seen[3].pop()


def repeat_one(work: Work) -> None:
    work.seen[2].insert(8, work.seen[2][7])


def swap_two_topics(work: Work) -> None:
    seen = work.seen[3]
    seen[2], seen[3] = seen[3], seen[2]


def swap_two_events_everywhere(work: Work) -> None:
    for seen in work.seen.values():
        first, second = seen[0], seen[5]  # of the same publisher
        seen[0], seen[5] = first._replace(data=second.data), second._replace(data=first.data)


def skip_a_seq_everywhere(work: Work) -> None:
    for seen in work.seen.values():
        seen[-1] = seen[-1]._replace(seq=seen[-1].seq + 1)


def use_an_ev_id_twice(work: Work) -> None:
    for seen in work.seen.values():
        seen[4] = seen[4]._replace(ev_id=seen[3].ev_id)


def change_data(work: Work) -> None:
    work.seen[1][0] = work.seen[1][0]._replace(data=b"forged")


def lie_in_a_receipt(work: Work) -> None:
    work.receipts[b"ana #1"] = (2, 1)


def leave_a_receipt_out(work: Work) -> None:
    del work.receipts[b"ana #1"]


COMPLETE = "each event exactly once on every node"
ORDER = "one order on every node, over all topics"
SEQ = "seq counts 1, 2, 3, … in every topic"
IDS = "every ev_id once"
PUBLISHER = "each publisher's events in the order it sent them"
RECEIPTS = "receipts told the same seq and ev_id"


def test_a_good_run_passes() -> None:
    assert [one.name for one in check(a_run())] == [COMPLETE, ORDER, SEQ, IDS, PUBLISHER, RECEIPTS]
    assert failed(a_run()) == set()


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lose_one, {COMPLETE, ORDER, SEQ, PUBLISHER}),
        (lose_the_last, {COMPLETE, ORDER, PUBLISHER}),
        (repeat_one, {COMPLETE, ORDER, SEQ, IDS, PUBLISHER}),
        (swap_two_topics, {ORDER}),
        (swap_two_events_everywhere, {PUBLISHER, RECEIPTS}),
        (skip_a_seq_everywhere, {SEQ, RECEIPTS}),
        (use_an_ev_id_twice, {IDS, RECEIPTS}),
        (change_data, {COMPLETE, ORDER, PUBLISHER, RECEIPTS}),
        (lie_in_a_receipt, {RECEIPTS}),
        (leave_a_receipt_out, {RECEIPTS}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_is_wrong_is_found(spoil: Callable[[Work], None], found: set[str]) -> None:
    work = a_run()
    spoil(work)
    assert failed(work) == found


def shown(work: Work, checks: list[Check]) -> str:
    target = io.StringIO()
    _show(Console(file=target, width=80, no_color=True, highlight=False), work, checks)
    return target.getvalue()


def test_the_display_fits_80_columns() -> None:
    text = shown(a_run(), check(a_run()))
    assert max(map(len, text.splitlines())) <= 80
    assert "one order on every node." in text
    assert "FAIL" not in text


def test_the_display_says_what_failed() -> None:
    work = a_run()
    swap_two_topics(work)
    text = shown(work, check(work))
    assert f"FAIL {ORDER}" in text
    assert "the nodes do NOT agree." in text


def test_the_excerpt_is_what_each_node_has_at_that_place() -> None:
    work = a_run()
    swap_two_topics(work)
    for place, row in excerpt(work, 10):
        assert row == {node: work.seen[node][place - 1] for node in NODES}
