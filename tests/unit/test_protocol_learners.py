"""Learners as the sequencer knows them: bounded, and given up where the backlog is full with what is kept for them."""

from __future__ import annotations

from ocfcluster import limits
from ocfcluster.limits import LEARNER_GRACE_NS, LEARNER_REFUSED_MAX_NS, LEARNER_REFUSED_NS
from ocfcluster.protocol.learners import Learners


def test_a_learner_is_given_up_where_the_backlog_is_full_because_of_it() -> None:
    one = Learners(0)
    assert one.holds(3, 33, 10)
    assert one.holds(4, 44, 50)
    assert one.give_up(False, 50, 1) == []
    assert one.give_up(True, 50, 2) == []
    assert one.give_up(True, 50, 1 + LEARNER_GRACE_NS) == []
    assert one.give_up(True, 50, 2 + LEARNER_GRACE_NS) == [3]
    assert list(one.held) == [(4, 44)]  # it has all that members have
    assert not one.holds(3, 33, 11)
    assert not one.holds(3, 34, 11)  # nor what the node has become


def test_time_begins_anew_when_the_backlog_was_not_full() -> None:
    one = Learners(0)
    one.holds(3, 33, 10)
    one.give_up(True, 50, 0)
    one.give_up(False, 50, LEARNER_GRACE_NS - 1)
    assert one.give_up(True, 50, LEARNER_GRACE_NS) == []
    assert one.give_up(True, 50, 2 * LEARNER_GRACE_NS) == [3]


def test_who_was_given_up_waits_longer_each_time() -> None:
    one = Learners(0)
    now = 0
    waits = []
    for _ in range(6):
        assert one.holds(3, 33, 10)
        one.give_up(True, 50, now)
        now += LEARNER_GRACE_NS
        assert one.give_up(True, 50, now) == [3]
        began = now
        while not one.holds(3, 33, 10):
            now += limits.SECOND_NS
            one.give_up(False, 50, now)
        one.gone(3, 33)
        waits.append(now - began)
    assert waits[:3] == [LEARNER_REFUSED_NS, 2 * LEARNER_REFUSED_NS, 4 * LEARNER_REFUSED_NS]
    assert waits[-1] == LEARNER_REFUSED_MAX_NS


def test_both_tables_are_bounded() -> None:
    one = Learners(0)
    taken = [node_id for node_id in range(limits.NODES + 5) if one.holds(node_id, 1, 5)]
    assert len(taken) == limits.NODES
    one.give_up(True, 50, 0)
    assert one.give_up(True, 50, LEARNER_GRACE_NS) == taken
    for node_id in range(1000, 1005):
        one.holds(node_id, 1, 5)
    one.give_up(True, 50, LEARNER_GRACE_NS)
    one.give_up(True, 50, 2 * LEARNER_GRACE_NS)
    assert len(one._refused) == limits.NODES
