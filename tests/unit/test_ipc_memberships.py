"""The memberships of one connection: one per group, all of them ended with it, whatever was on its way."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from ocfcluster.ipc import memberships
from ocfcluster.ipc.memberships import Memberships
from ocfcluster.wire.control import GroupJoin, GroupLeave, Operand
from ocfcluster.wire.group import LeaveReason

LEFT, DIED = LeaveReason.LEFT, LeaveReason.DIED


class Order:
    """What was commanded; ``answer`` gives the oldest command its place."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Operand, Callable[[int, int], None]]] = []
        self.told: list[tuple[Any, ...]] = []
        self.memberships = Memberships(lambda operand, then: self.waiting.append((operand, then)), 42)

    def answer(self, error: int = 0, value: int = 0) -> Operand:
        operand, then = self.waiting.pop(0)
        then(error, value)
        return operand

    def then(self, word: str) -> Callable[[int, int], None]:
        return lambda error, value: self.told.append((word, error, value))

    def joined(self, name: str, member: int) -> None:
        self.memberships.join(name, self.then("join"))
        assert self.answer(0, member) == GroupJoin(name, 42)


def test_join_and_leave():
    order = Order()
    order.joined("group:a", 7)
    assert order.memberships.member("group:a") == 7
    assert order.memberships.owns(7)
    order.memberships.leave("group:a", order.then("leave"))
    assert order.memberships.member("group:a") == 0
    assert order.memberships.owns(7)  # until the order says otherwise
    assert order.answer() == GroupLeave("group:a", 7, LEFT)
    assert not order.memberships.owns(7)
    assert order.told == [("join", 0, 7), ("leave", 0, 0)]


def test_once_per_group():
    order = Order()
    order.memberships.join("group:a", order.then("first"))
    order.memberships.join("group:a", order.then("second"))
    order.answer(0, 7)
    order.memberships.join("group:a", order.then("third"))
    assert order.told == [("second", errno.EALREADY, 0), ("first", 0, 7), ("third", errno.EALREADY, 7)]
    assert order.waiting == []


def test_a_member_that_leaves_may_join_again_at_once():
    order = Order()
    order.joined("group:a", 7)
    order.memberships.leave("group:a", order.then("leave"))
    order.memberships.join("group:a", order.then("again"))
    assert [type(operand) for operand, _ in order.waiting] == [GroupLeave, GroupJoin]
    order.answer()
    order.answer(0, 9)
    assert order.memberships.member("group:a") == 9


def test_who_is_none_cannot_leave():
    order = Order()
    order.memberships.leave("group:a", order.then("leave"))
    order.memberships.join("group:a", order.then("join"))
    order.memberships.leave("group:a", order.then("too early"))
    assert order.told == [("leave", errno.EINVAL, 0), ("too early", errno.EINVAL, 0)]


def test_a_refused_join_leaves_nothing():
    order = Order()
    order.memberships.join("group:a", order.then("join"))
    order.answer(errno.ENOMEM)
    assert order.told == [("join", errno.ENOMEM, 0)]
    order.memberships.end(DIED)
    assert order.waiting == []


def test_a_refused_leave_leaves_a_member():
    order = Order()
    order.joined("group:a", 7)
    order.memberships.leave("group:a", order.then("leave"))
    order.answer(errno.ENOMEM)
    assert order.memberships.member("group:a") == 7
    order.memberships.end(DIED)
    assert order.answer() == GroupLeave("group:a", 7, DIED)


def test_a_leave_that_is_refused_behind_the_end_is_asked_for_again():
    order = Order()
    order.joined("group:a", 7)
    order.memberships.leave("group:a", order.then("leave"))
    order.memberships.end(DIED)
    assert order.answer(errno.ENOMEM) == GroupLeave("group:a", 7, LEFT)
    assert order.answer() == GroupLeave("group:a", 7, DIED)
    assert order.waiting == []


def test_a_leave_that_is_refused_behind_another_join_is_asked_for_again():
    order = Order()
    order.joined("group:a", 7)
    order.memberships.leave("group:a", order.then("leave"))
    order.memberships.join("group:a", order.then("join"))
    order.answer(errno.ENOMEM)
    order.answer(0, 8)
    assert order.memberships.member("group:a") == 8
    assert order.memberships.owns(7)
    assert order.answer() == GroupLeave("group:a", 7, LEFT)
    assert not order.memberships.owns(7)


def test_the_end_takes_all_of_them_away_once():
    order = Order()
    order.joined("group:a", 7)
    order.joined("group:b", 8)
    order.memberships.end(LEFT)
    order.memberships.end(DIED)
    assert [order.answer(), order.answer()] == [
        GroupLeave("group:a", 7, LEFT), GroupLeave("group:b", 8, LEFT),
    ]  # fmt: skip
    assert order.waiting == []


def test_a_join_that_comes_behind_the_end_is_taken_back():
    order = Order()
    order.memberships.join("group:a", order.then("join"))
    order.memberships.end(DIED)
    assert len(order.waiting) == 1
    order.answer(0, 7)
    assert order.answer() == GroupLeave("group:a", 7, DIED)
    assert order.told == [("join", 0, 7)]


def test_the_leave_of_the_dead_is_asked_for_until_it_is_taken():
    order = Order()
    order.joined("group:a", 7)
    order.memberships.end(DIED)
    for _ in range(3):
        assert order.answer(errno.ENOMEM) == GroupLeave("group:a", 7, DIED)
    order.answer()
    assert order.waiting == []


def test_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memberships, "MEMBERSHIPS_PER_NODE", 1)
    order = Order()
    order.joined("group:a", 7)
    order.memberships.join("group:b", order.then("one too many"))
    assert order.told[-1] == ("one too many", errno.ENOMEM, 0)
