"""The demo's check finds what it is there to find, its display fits a terminal, and it runs."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable

import pytest
from rich.console import Console

from ocfcluster.cli import main
from ocfcluster.cli.demo import _show
from ocfcluster.cli.demo_check import Check, check, excerpt
from ocfcluster.cli.demo_cluster import DemoCluster
from ocfcluster.cli.demo_work import PUBLISHERS, Gap, Seen, Work
from ocfcluster.components.membership import TOPIC as MEMBERSHIP

NODES = (1, 2, 3)
KILLED = 1
EVENTS = 20
VIEWS = {0: b"view 1: nodes 1 2 3", 6: b"view 2: nodes 2 3", 14: b"view 3: nodes 2 3 1"}
AWAY = range(6, 16)  # rounds of events that node 1's subscriber misses


def a_run() -> Work:
    """What a good run leaves: the publishers' events in turn, alike on every node, but that node 1 was away."""
    published = {
        publisher: [f"{publisher.name} #{number}".encode() for number in range(1, EVENTS + 1)]
        for publisher in PUBLISHERS
    }
    order: list[Seen] = []
    seqs: dict[str, int] = {}
    missed: list[Seen] = []

    def add(topic: str, data: bytes) -> None:
        seqs[topic] = seqs.get(topic, 0) + 1
        order.append(Seen(topic, seqs[topic], len(order) + 1, data))
        # Whoever comes later gets the membership as it is.
        if number in AWAY and not (topic == MEMBERSHIP and number == 14):
            missed.append(order[-1])

    for number in range(EVENTS):
        if number in VIEWS:
            add(MEMBERSHIP, VIEWS[number])
        for publisher in PUBLISHERS:
            add(publisher.topic, published[publisher][number])
    receipts = {event.data: (event.seq, event.ev_id) for event in order if event.topic != MEMBERSHIP}
    seen = {node: [event for event in order if node != KILLED or event not in missed] for node in NODES}
    gaps: dict[int, list[Gap]] = {node: [] for node in NODES}
    for topic in seqs:
        lacks = [event.seq for event in missed if event.topic == topic]
        gaps[KILLED].append(Gap(topic, lacks[0], lacks[-1]))
    return Work(published, receipts, seen, gaps, KILLED, 1.1, 4.0)


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
    seen[3], seen[4] = seen[4], seen[3]


def swap_two_events_everywhere(work: Work) -> None:
    for seen in work.seen.values():
        first, second = seen[1], seen[6]  # of the same publisher
        seen[1], seen[6] = first._replace(data=second.data), second._replace(data=first.data)


def skip_a_seq_everywhere(work: Work) -> None:
    for seen in work.seen.values():
        seen[-1] = seen[-1]._replace(seq=seen[-1].seq + 1)


def use_an_ev_id_twice(work: Work) -> None:
    for seen in work.seen.values():
        seen[4] = seen[4]._replace(ev_id=seen[3].ev_id)


def change_data(work: Work) -> None:
    work.seen[3][1] = work.seen[3][1]._replace(data=b"forged")


def lie_in_a_receipt(work: Work) -> None:
    work.receipts[b"ana #1"] = (2, 1)


def leave_a_receipt_out(work: Work) -> None:
    del work.receipts[b"ana #1"]


def lose_one_where_the_agent_died(work: Work) -> None:
    work.seen[KILLED].pop(2)


def repeat_one_where_the_agent_died(work: Work) -> None:
    work.seen[KILLED].append(work.seen[KILLED][-1])


def number_anew_where_the_agent_died(work: Work) -> None:
    work.seen[KILLED][-1] = work.seen[KILLED][-1]._replace(seq=1)


def tell_of_no_gap(work: Work) -> None:
    work.gaps[KILLED].clear()


def tell_of_a_gap_that_is_too_long(work: Work) -> None:
    gap = work.gaps[KILLED][1]
    work.gaps[KILLED][1] = gap._replace(first_seq=gap.first_seq - 1)


def stay_away(work: Work) -> None:
    """Node 1's subscriber is told that it misses all that came after."""
    del work.seen[KILLED][40:]
    for topic, seq in {event.topic: event.seq for event in work.seen[KILLED]}.items():
        work.gaps[KILLED].append(Gap(topic, seq + 1, 1 << 30))


def miss_something_where_the_agent_lived(work: Work) -> None:
    work.gaps[2].append(Gap("orders", 1, 1))


def never_leave(work: Work) -> None:
    for seen in work.seen.values():
        for at, event in enumerate(seen):
            if event.data == VIEWS[6]:
                seen[at] = event._replace(data=b"view 2: nodes 1 2 3")


def skip_a_view(work: Work) -> None:
    for seen in work.seen.values():
        for at, event in enumerate(seen):
            if event.data == VIEWS[14]:
                seen[at] = event._replace(data=b"view 4: nodes 2 3 1")


COMPLETE = "each event exactly once there"
ORDER = "one order on nodes 2 and 3, over all topics"
SAME = "the same on node 1, but for the gap it was told"
SEQ = "seq counts 1, 2, 3, … in every topic"
IDS = "every ev_id once"
PUBLISHER = "each publisher's events in the order it sent them"
RECEIPTS = "receipts told the same seq and ev_id"
VIEW = "node 1 left the membership and came back"


def test_a_good_run_passes() -> None:
    assert [one.name for one in check(a_run())] == [
        ORDER, COMPLETE, SAME, SEQ, IDS, PUBLISHER, RECEIPTS, VIEW,
    ]  # fmt: skip
    assert failed(a_run()) == set()


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lose_one, {COMPLETE, ORDER, SAME, SEQ, PUBLISHER}),
        (lose_the_last, {COMPLETE, ORDER, PUBLISHER}),
        (repeat_one, {COMPLETE, ORDER, SAME, SEQ, IDS, PUBLISHER}),
        (swap_two_topics, {ORDER}),
        (swap_two_events_everywhere, {PUBLISHER, RECEIPTS}),
        (skip_a_seq_everywhere, {SEQ, RECEIPTS}),
        (use_an_ev_id_twice, {IDS, RECEIPTS}),
        (change_data, {COMPLETE, ORDER, PUBLISHER}),
        (lie_in_a_receipt, {RECEIPTS}),
        (leave_a_receipt_out, {RECEIPTS}),
        (lose_one_where_the_agent_died, {SAME}),
        (repeat_one_where_the_agent_died, {SAME, IDS}),
        (number_anew_where_the_agent_died, {SAME}),
        (tell_of_no_gap, {SAME}),
        (tell_of_a_gap_that_is_too_long, {SAME}),
        (stay_away, {SAME}),
        (miss_something_where_the_agent_lived, {COMPLETE}),
        (never_leave, {VIEW}),
        (skip_a_view, {VIEW}),
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


def test_the_excerpt_is_what_each_node_has_about_the_changes() -> None:
    work = a_run()
    stretches = excerpt(work, 2)
    assert [[row.place for row in stretch] for stretch in stretches] == [
        [30, 31, 32, 33, 34],
        [71, 72, 73, 74, 75],
    ]
    for stretch in stretches:
        for row in stretch:
            assert row.nodes[2] == row.nodes[3] == work.seen[2][row.place - 1]
            assert row.nodes[KILLED] in (None, row.nodes[2])
    assert stretches[0][2].nodes[2] == Seen(MEMBERSHIP, 2, 32, VIEWS[6])
    assert stretches[0][2].nodes[KILLED] is None
    assert stretches[1][2].nodes[KILLED] == stretches[1][2].nodes[3]


def test_clients_of_an_interrupted_demo_say_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = io.StringIO()
    library = logging.getLogger("ocfcluster.client")
    handler = logging.StreamHandler(said)

    def interrupted(*_: object) -> None:
        library.warning("closed with 8 publications unanswered: their outcome is unknown")
        raise KeyboardInterrupt

    monkeypatch.setattr("signal.signal", lambda *_: None)
    for name in ("_configure", "_start"):
        monkeypatch.setattr(DemoCluster, name, lambda _: None)
    monkeypatch.setattr(DemoCluster, "wait_active", lambda *_: None)
    monkeypatch.setattr("ocfcluster.cli.demo_work.run_work", interrupted)
    library.addHandler(handler)
    try:
        with pytest.raises(SystemExit) as ended:
            main(["demo", "--json"])
    finally:
        library.removeHandler(handler)
        library.setLevel(logging.NOTSET)
    assert ended.value.code == 130
    assert said.getvalue() == ""
    assert "closed with" not in capsys.readouterr().err


def test_it_runs() -> None:
    """Three agents, of which one is killed and comes back; nothing is sampled, so few events will do."""
    argv = [sys.executable, "-m", "ocfcluster", "demo", "--events", "60", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["ok"]
    assert document["events"] == 300
    assert document["killed"] == 1
    assert [one["name"] for one in document["checks"] if not one["ok"]] == []
    assert {gap["topic"] for gap in document["gaps"]["1"]} >= {MEMBERSHIP}
    assert document["gaps"]["2"] == document["gaps"]["3"] == []
