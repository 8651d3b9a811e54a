"""The record on disk: one write at a time, what waits for it in order, and failures that lose nothing."""

from __future__ import annotations

import msgspec
import pytest

from ocfcluster import limits
from ocfcluster.errors import StateDirectoryError
from ocfcluster.protocol.effects import Effect, Persist
from ocfcluster.protocol.settings import Record
from ocfcluster.protocol.store import NO_LIMIT, Store, read_record
from ocfcluster.wire.topics import DEFAULT_SETTINGS
from tests.unit.protocol_world import configuration_of


def written(store: Store, now: int = 0) -> tuple[int, Record] | None:
    """What the store has written now: its token, and the record."""
    effects: list[Effect] = []
    store.write(effects, now)
    if not effects:
        return None
    [effect] = effects
    assert isinstance(effect, Persist)
    return effect.token, msgspec.msgpack.decode(effect.record, type=Record)


def begun(store: Store, now: int = 0) -> int:
    found = written(store, now)
    assert found is not None
    return found[0]


def test_it_begins_with_what_was_on_disk_and_writes_nothing_by_itself() -> None:
    assert Store(b"").record == Record(None, [], 0, 0)
    before = Record(configuration_of({1: 1}), [(16, "t", False, DEFAULT_SETTINGS)], 17, 5)
    store = Store(msgspec.msgpack.encode(before))
    assert store.record == before
    assert written(store) is None
    assert store.next_timer() == NO_LIMIT


@pytest.mark.parametrize("encoded", [b"\xc1", b"x", b"\x91" * 2000, b"\x95\xc0\x90\xa0\x00\xc0"])
def test_what_is_no_record_is_refused(encoded: bytes) -> None:
    with pytest.raises(StateDirectoryError):
        Store(encoded)
    assert read_record(b"") is None


def test_changes_that_come_together_are_one_write() -> None:
    store = Store(b"")
    store.change(next_topic_id=17)
    store.change(topics_index=3)
    found = written(store)
    assert found is not None
    assert (found[1].next_topic_id, found[1].topics_index) == (17, 3)
    assert written(store) is None


def test_one_write_at_a_time_and_the_next_has_what_came_meanwhile() -> None:
    store = Store(b"")
    store.change(topics_index=1)
    token = begun(store)
    store.change(topics_index=2)
    store.change(topics_index=3)
    assert written(store) is None
    assert store.durable == 0
    assert store.written(token, True, 0)
    assert store.durable == 1
    found = written(store)
    assert found is not None
    assert found[1].topics_index == 3
    assert store.written(found[0], True, 0)
    assert store.durable == store.version == 3


def test_what_waits_is_called_in_order_once_what_it_waits_for_is_durable() -> None:
    store, called = Store(b""), []
    store.when_durable(lambda now: called.append(("at once", now)), 5)
    store.change(topics_index=1)
    store.when_durable(lambda now: called.append(("first", now)), 6)
    store.when_durable(lambda now: called.append(("second", now)), 6)
    token = begun(store)
    store.change(topics_index=2)
    store.when_durable(lambda now: called.append(("third", now)), 7)
    assert called == [("at once", 5)]
    store.written(token, True, 8)
    assert called[1:] == [("first", 8), ("second", 8)]
    store.written(begun(store), True, 9)
    assert called[3:] == [("third", 9)]


def test_of_those_with_one_key_the_last_waits() -> None:
    store, called = Store(b""), []
    store.change(topics_index=1)
    for name in "abc":
        store.when_durable(lambda _, name=name: called.append(name), 0, key="same")
    store.when_durable(lambda _: called.append("other"), 0, key="other")
    store.when_durable(lambda _: called.append("none"), 0)
    store.when_durable(lambda _: called.append("none again"), 0)
    store.written(begun(store), True, 0)
    assert called == ["c", "other", "none", "none again"]


def test_what_is_called_may_change_the_record_again() -> None:
    store, called = Store(b""), []

    def more(_: int) -> None:
        store.change(topics_index=9)
        store.when_durable(called.append, 0)

    store.change(topics_index=1)
    store.when_durable(more, 0)
    store.written(begun(store), True, 1)
    assert called == []
    store.written(begun(store), True, 2)
    assert called == [2]


def test_a_write_that_fails_is_tried_again_after_a_while_and_what_waits_goes_on_waiting() -> None:
    store, called = Store(b""), []
    store.change(topics_index=1)
    store.when_durable(called.append, 0)
    token = begun(store)
    assert not store.written(token, False, 1000)
    assert (store.failures, store.durable, called) == (1, 0, [])
    due = 1000 + limits.PERSIST_RETRY_NS
    assert store.next_timer() == due
    assert written(store, due - 1) is None
    again = begun(store, due)
    assert store.next_timer() == NO_LIMIT
    assert store.written(token, True, due)  # the first one's answer, late, is none to this one
    assert (store.durable, called) == (0, [])
    assert store.written(again, True, due)
    assert (store.durable, called) == (1, [due])


def test_an_answer_may_put_in_another_of_its_key_while_answers_are_given() -> None:
    store, calls = Store(b""), []

    def first(now: int) -> None:
        calls.append("first")
        store.change(topics_index=3)
        store.when_durable(lambda _: calls.append("newer promise"), now, key="promise")

    store.change(topics_index=1)
    token = begun(store)
    store.change(topics_index=2)
    store.when_durable(first, 0)
    store.when_durable(lambda _: calls.append("promise"), 0, key="promise")
    store.when_durable(lambda _: calls.append("install"), 0)
    for _ in range(3):
        assert store.written(token, True, 0)
        if (found := written(store)) is not None:
            token = found[0]
    assert calls == ["first", "install", "newer promise"]
