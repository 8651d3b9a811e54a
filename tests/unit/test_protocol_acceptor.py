"""The acceptor: what it has promised and accepted is on disk before it says so, and lower ballots are refused."""

from __future__ import annotations

import msgspec
import pytest

from ocfcluster.protocol.acceptor import Acceptor
from ocfcluster.protocol.effects import Effect, Persist
from ocfcluster.protocol.messages import (
    LOST,
    Accept,
    Accepted,
    Instance,
    Message,
    Prepare,
    Promise,
    Reject,
)
from ocfcluster.protocol.settings import Ballot, PaxosRecord, Record
from ocfcluster.protocol.store import Store
from tests.unit.protocol_world import configuration_of

INSTANCE = Instance("0" * 32, 4)
VALUE, OTHER = configuration_of({1: 1}), configuration_of({1: 1, 2: 1})
ONE, TWO, THREE = Ballot(1, 9, 9), Ballot(2, 1, 1), Ballot(2, 1, 2)


class Disk:
    """An acceptor, its store, and the answers it has given."""

    def __init__(self, encoded: bytes = b"") -> None:
        self.store = Store(encoded)
        self.acceptor = Acceptor(self.store, 77)
        self.replies: list[Message] = []
        self.record = encoded

    def prepare(self, ballot: Ballot, instance: Instance = INSTANCE) -> bool:
        message = Prepare(*instance, ballot, None, [], 0)

        def promise(record: PaxosRecord) -> Promise:
            return Promise(
                *instance,
                ballot,
                77,
                LOST,
                0,
                0,
                record.accepted_ballot,
                record.accepted,
                None,
                0,
                False,
                0,
                1,
            )

        return self.acceptor.on_prepare(message, self.replies.append, promise, 0)

    def accept(self, ballot: Ballot, value: object = VALUE, instance: Instance = INSTANCE) -> bool:
        return self.acceptor.on_accept(Accept(*instance, ballot, value), self.replies.append, 0)  # type: ignore[arg-type]

    def write(self, ok: bool = True) -> Record:
        """Have what is staged written."""
        effects: list[Effect] = []
        self.store.write(effects, 2**60)
        [effect] = effects
        assert isinstance(effect, Persist)
        self.store.written(effect.token, ok, 0)
        if ok:
            self.record = effect.record
        return msgspec.msgpack.decode(effect.record, type=Record)

    def taken(self) -> list[Message]:
        replies = list(self.replies)
        self.replies.clear()
        return replies


def test_a_promise_is_on_disk_before_it_is_given() -> None:
    one = Disk()
    assert one.prepare(ONE)
    assert one.taken() == []
    one.write(ok=False)
    assert one.taken() == []
    assert one.write().paxos == PaxosRecord(*INSTANCE, ONE)
    [promise] = one.taken()
    assert isinstance(promise, Promise)
    assert (promise.ballot, promise.accepted) == (ONE, None)


def test_an_equal_ballot_is_answered_again_and_written_once() -> None:
    one = Disk()
    one.prepare(ONE)
    one.prepare(ONE)  # said again while the first is being written
    one.write()
    assert len(one.taken()) == 1
    version = one.store.version
    assert one.prepare(ONE)
    assert len(one.taken()) == 1
    assert one.store.version == version


@pytest.mark.parametrize("higher", [TWO, Ballot(1, 10, 1), Ballot(1, 9, 10)])
def test_a_higher_ballot_is_promised_and_a_lower_one_refused_by_name(higher: Ballot) -> None:
    one = Disk()
    one.prepare(ONE)
    one.write()
    one.taken()
    assert one.prepare(higher)
    assert not one.prepare(ONE)  # refused at once: what it is refused for need not be on disk
    assert one.taken() == [Reject(*INSTANCE, ONE, higher)]
    one.write()
    [promise] = one.taken()
    assert promise.ballot == higher
    assert not one.accept(ONE)
    assert one.taken() == [Reject(*INSTANCE, ONE, higher)]
    assert one.acceptor.promised(INSTANCE) == higher


def test_a_promise_that_was_overtaken_while_it_was_written_is_not_given() -> None:
    one = Disk()
    one.prepare(ONE)
    one.prepare(TWO)
    one.write()
    assert [reply.ballot for reply in one.taken()] == [TWO]


def test_what_is_accepted_is_on_disk_before_it_is_said_and_the_next_promise_has_it() -> None:
    one = Disk()
    one.prepare(ONE)
    one.write()
    one.taken()
    assert one.accept(ONE)
    assert one.taken() == []
    assert one.write().paxos == PaxosRecord(*INSTANCE, ONE, ONE, VALUE)
    assert one.taken() == [Accepted(*INSTANCE, ONE, 77)]
    one.prepare(TWO)
    assert one.write().paxos == PaxosRecord(*INSTANCE, TWO, ONE, VALUE)
    [promise] = one.taken()
    assert isinstance(promise, Promise)
    assert (promise.accepted_ballot, promise.accepted) == (ONE, VALUE)
    assert one.accept(TWO, OTHER)
    one.write()
    assert one.acceptor.record(INSTANCE) == PaxosRecord(*INSTANCE, TWO, TWO, OTHER)


def test_accepting_without_a_promise_promises() -> None:
    one = Disk()
    assert one.accept(TWO)
    one.write()
    assert one.taken() == [Accepted(*INSTANCE, TWO, 77)]
    assert not one.prepare(ONE)
    assert one.taken() == [Reject(*INSTANCE, ONE, TWO)]


def test_accepting_again_is_answered_again() -> None:
    one = Disk()
    one.accept(TWO)
    one.accept(TWO)
    one.write()
    assert one.taken() == [Accepted(*INSTANCE, TWO, 77)]
    version = one.store.version
    assert one.accept(TWO)
    assert one.taken() == [Accepted(*INSTANCE, TWO, 77)]
    assert one.store.version == version


def test_what_was_accepted_and_overtaken_while_it_was_written_is_not_said() -> None:
    one = Disk()
    one.accept(ONE)
    one.accept(TWO, OTHER)
    one.write()
    assert one.taken() == [Accepted(*INSTANCE, TWO, 77)]


def test_it_remembers_over_a_restart() -> None:
    one = Disk()
    one.prepare(ONE)
    one.accept(TWO)
    one.write()
    again = Disk(one.record)
    assert not again.prepare(ONE)
    assert again.acceptor.promised(INSTANCE) == TWO
    assert again.prepare(THREE)
    again.write()
    [reject, promise] = again.taken()
    assert isinstance(reject, Reject)
    assert isinstance(promise, Promise)
    assert (promise.accepted_ballot, promise.accepted) == (TWO, VALUE)


@pytest.mark.parametrize("other", [Instance(INSTANCE.cluster_id, 5), Instance("1" * 32, 4), Instance("", 0)])
def test_instances_have_nothing_to_do_with_each_other(other: Instance) -> None:
    one = Disk()
    one.accept(TWO)
    assert one.acceptor.record(other) is None
    assert one.acceptor.promised(other) is None
    assert one.prepare(ONE, other)
    one.write()
    assert one.acceptor.promised(other) == ONE
    [promise] = one.taken()  # and not that it accepted: what it did so for is over
    assert isinstance(promise, Promise)
    assert promise.accepted is None
