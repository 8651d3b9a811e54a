"""The demo's own check of what was seen: completeness, identity and order over every event, and what of it to show."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ocfcluster.cli.demo_work import TOPICS, Gap, Seen, Work
from ocfcluster.components.membership import TOPIC as MEMBERSHIP


class Check(NamedTuple):
    """One statement about the run, and whether it held."""

    name: str
    ok: bool
    detail: str


class Row(NamedTuple):
    """A place of the one order, and what each node's subscriber got there; None: nothing, and it was told so."""

    place: int  # from 1
    nodes: dict[int, Seen | None]


def check(work: Work) -> list[Check]:
    """Nothing is sampled."""
    total = sum(map(len, work.published.values()))
    rest = [node for node in sorted(work.seen) if node != work.killed]
    order = work.seen[rest[0]]
    return [
        Check(
            f"one order on nodes {' and '.join(map(str, rest))}, over all topics",
            all(work.seen[node] == order for node in rest),
            " ".join(f"{node}:{_digest(work.seen[node])}" for node in rest),
        ),
        _check_complete(work, rest, total),
        _check_killed(work, order),
        _check_seq(work, rest),
        _check_ev_id(work),
        _check_publisher_order(work, rest),
        _check_receipts(work, order, total),
        _check_views(work, order),
    ]


def _check_complete(work: Work, rest: Sequence[int], total: int) -> Check:
    """Nodes whose agent lived have all of it."""
    expected = Counter(
        (publisher.topic, data) for publisher, events in work.published.items() for data in events
    )
    short = []
    for node in rest:
        events = [event for event in work.seen[node] if event.topic != MEMBERSHIP]
        if Counter((event.topic, event.data) for event in events) != expected or work.gaps[node]:
            short.append(f"node {node} has {len(events)} of {total}")
    return Check("each event exactly once there", not short, ", ".join(short) or f"{total} on each")


def _check_killed(work: Work, order: Sequence[Seen]) -> Check:
    """The node whose agent died has the same, but for the gaps that it was told."""
    expected = [event for event in order if not _is_told(work.gaps[work.killed], event)]
    seen = work.seen[work.killed]
    detail = f"{len(seen)} of {len(order)}"
    back = bool(seen) and bool(order) and seen[-1] == order[-1]
    return Check(
        f"the same on node {work.killed}, but for the gap it was told", seen == expected and back, detail
    )


def _is_told(gaps: Sequence[Gap], event: Seen) -> bool:
    return any(gap.topic == event.topic and gap.first_seq <= event.seq <= gap.last_seq for gap in gaps)


def _check_seq(work: Work, rest: Sequence[int]) -> Check:
    wrong = []
    for node in rest:
        expected = dict.fromkeys([*TOPICS, MEMBERSHIP], 1)
        for event in work.seen[node]:
            if event.seq != expected[event.topic]:
                wrong.append(f"node {node}: {event.topic} {event.seq} instead of {expected[event.topic]}")
                break
            expected[event.topic] += 1
    return Check("seq counts 1, 2, 3, … in every topic", not wrong, ", ".join(wrong) or "no hole, no repeat")


def _check_ev_id(work: Work) -> Check:
    first = max(work.seen.values(), key=len)
    unique = all(len({event.ev_id for event in seen}) == len(seen) for seen in work.seen.values())
    return Check("every ev_id once", unique, f"{len({event.ev_id for event in first})} different")


def _check_publisher_order(work: Work, rest: Sequence[int]) -> Check:
    wrong = []
    for node in rest:
        for publisher, events in work.published.items():
            prefix = publisher.name.encode() + b" "
            if [event.data for event in work.seen[node] if event.data.startswith(prefix)] != events:
                wrong.append(f"{publisher.name} on node {node}")
    return Check("each publisher's events in the order it sent them", not wrong, ", ".join(wrong) or "all")


def _check_receipts(work: Work, order: Sequence[Seen], total: int) -> Check:
    same = len(work.receipts) == total and all(
        work.receipts.get(event.data) == (event.seq, event.ev_id)
        for event in order
        if event.topic != MEMBERSHIP
    )
    return Check("receipts told the same seq and ev_id", same, f"{len(work.receipts)} receipts")


def _check_views(work: Work, order: Sequence[Seen]) -> Check:
    """The node is in, then out, then in again."""
    views = [event.data.decode() for event in order if event.topic == MEMBERSHIP]
    inside = [str(work.killed) in view.partition("nodes ")[2].split() for view in views]
    changes = [one for at, one in enumerate(inside) if not at or one != inside[at - 1]]
    counted = [view.partition(":")[0] for view in views] == [f"view {n}" for n in range(1, len(views) + 1)]
    detail = ", ".join(view.partition("nodes ")[2] for view in views)
    return Check(
        f"node {work.killed} left the membership and came back",
        counted and changes == [True, False, True],
        detail,
    )


def _digest(events: Sequence[Seen]) -> str:
    digest = hashlib.sha256()
    for event in events:
        digest.update(f"{event.topic} {event.seq} {event.ev_id} {len(event.data)} ".encode() + event.data)
    return digest.hexdigest()[:8]


def excerpt(work: Work, around: int) -> list[list[Row]]:
    """The stretches of the order about each change of the membership but the first: ``around`` places on each side.

    They are those of a node whose agent lived; the others have the same there, or were told of a gap. What is wrong
    about that the check says: a place where another node has something else shows what it has by its ev_id.
    """
    rest = [node for node in sorted(work.seen) if node != work.killed]
    order = work.seen[rest[0]]
    by_ev_id = {node: {event.ev_id: event for event in seen} for node, seen in work.seen.items()}
    changes = [at for at, event in enumerate(order) if event.topic == MEMBERSHIP][1:]
    stretches: list[list[Row]] = []
    covered = 0
    for change in changes:
        places = range(max(covered, change - around), min(len(order), change + around + 1))
        covered = places.stop
        rows = [
            Row(at + 1, {node: by_ev_id[node].get(order[at].ev_id) for node in sorted(work.seen)})
            for at in places
        ]
        if rows:
            stretches.append(rows)
    return stretches
