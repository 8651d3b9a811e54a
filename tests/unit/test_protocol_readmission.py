"""A node with a bad link comes back ever later, up to a bound, and once is no habit."""

from __future__ import annotations

from ocfcluster import limits
from ocfcluster.protocol.readmission import Readmission

SECOND = limits.SECOND_NS


def may(one: Readmission, node_id: int, now: int, heard_since: int = 0) -> bool:
    return one.may_enter(node_id, heard_since, now)


def test_who_never_left_may_enter_and_who_left_once_too() -> None:
    one = Readmission(SECOND)
    assert may(one, 3, 0)
    one.left(3, 5 * SECOND)
    assert may(one, 3, 5 * SECOND)


def test_who_leaves_again_waits_and_longer_each_time() -> None:
    one = Readmission(SECOND)
    waits = []
    now = 100 * SECOND
    for times in range(1, 8):
        one.left(3, now)
        wait = next(wait for wait in range(30) if may(one, 3, now + wait * SECOND))
        waits.append(wait)
        now += (wait + 1) * SECOND
        assert times <= len(waits)
    assert waits == [0, 2, 4, 8, 10, 10, 10]
    assert limits.READMISSION_MAX_NS == 10 * SECOND


def test_the_wait_is_for_a_link_that_is_heard() -> None:
    one = Readmission(SECOND)
    for _ in range(2):
        one.left(3, 100 * SECOND)
    assert may(one, 3, 102 * SECOND, heard_since=0)
    assert not may(one, 3, 102 * SECOND, heard_since=101 * SECOND)
    assert may(one, 3, 103 * SECOND, heard_since=101 * SECOND)
    assert may(one, 4, 100 * SECOND, heard_since=100 * SECOND)  # another node


def test_a_long_good_time_is_forgiven() -> None:
    one = Readmission(SECOND)
    for _ in range(6):
        one.left(3, 100 * SECOND)
    later = 100 * SECOND + 2 * limits.READMISSION_MAX_NS
    assert not may(one, 3, 101 * SECOND)
    assert may(one, 3, later + 1, heard_since=later)
    one.left(3, later + 1)  # and the count begins anew
    assert may(one, 3, later + 2)


def test_it_is_bounded() -> None:
    one = Readmission(SECOND)
    for node_id in range(1, 5 * limits.NODES):
        one.left(node_id, 0)
    assert len(one._left) == limits.NODES
