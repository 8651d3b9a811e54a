"""Replicated state: topics, producers, repeats, and that it is bounded."""

from __future__ import annotations

import errno

import pytest

from ocfcluster import limits
from ocfcluster.protocol.effects import Delivery, Outcome, Topic, TopicChange
from ocfcluster.protocol.retention import KeptTopic
from ocfcluster.protocol.settings import Limits
from ocfcluster.protocol.state import FIRST_TOPIC_ID, Item, ReplicatedState, restored_state, state_image
from ocfcluster.wire import control
from ocfcluster.wire.run import RunKind, build_run, check_run, void_run
from ocfcluster.wire.topics import Retention, TopicSettings
from tests.unit.protocol_world import configuration_of, publication

TIME = 12_345


def viewed(state: ReplicatedState) -> ReplicatedState:
    """The state in its first view: only such a one has an image."""
    state.view(configuration_of({1: 1}), [])
    return state


class Applied:
    """A state, and what each run gave as (deliveries and changes, outcomes)."""

    def __init__(self, **bounds: int) -> None:
        self.state = ReplicatedState(configuration_of({1: 1}, limits=Limits(**bounds)))
        self.state.m_sequence = 3
        self._token = 0

    def run(self, run: bytes, node_id: int = 1, own: bool = True) -> list[Item]:
        check_run(run)
        items: list[Item] = []
        self.state.apply(run, node_id, 100 + node_id, TIME, own, items)
        return items

    def control(self, operand: control.Operand, node_id: int = 1, own: bool = True) -> tuple[int, int]:
        """(errno, value)"""
        self._token += 1
        items = self.run(control.control_run(operand, self._token), node_id, own)
        if not own:
            assert not any(isinstance(item, Outcome) for item in items)
            return 0, 0
        outcome = items[-1]
        assert isinstance(outcome, Outcome)
        assert (outcome.first_number, outcome.producer) == (self._token, 0)
        return outcome.error, outcome.value

    def topic(self, name: str = "t", local: bool = False) -> int:
        error, value = self.control(control.TopicCreate(name, local))
        assert error == 0
        return value

    def producer(self, node_id: int = 1) -> int:
        error, value = self.control(control.Open(), node_id)
        assert error == 0
        return value


def refusal(items: list[Item]) -> int:
    [outcome] = items
    assert isinstance(outcome, Outcome)
    return outcome.error


# --- topics -----------------------------------------------------------------------------------------------------------


def test_a_topic_gets_the_next_id_and_is_made_once() -> None:
    one = Applied()
    items = one.run(control.control_run(control.TopicCreate("a", False), 77))
    assert items == [
        TopicChange(Topic(FIRST_TOPIC_ID, "a", False), removed=False),
        Outcome(RunKind.TOPIC_CREATE, 0, 77, 1, 0, 0, 0, FIRST_TOPIC_ID),
    ]
    assert one.control(control.TopicCreate("a", False)) == (0, FIRST_TOPIC_ID)
    assert one.control(control.TopicCreate("a", True)) == (errno.EEXIST, FIRST_TOPIC_ID)
    assert one.control(control.TopicCreate("b", True)) == (0, FIRST_TOPIC_ID + 1)


def test_settings_are_altered_in_the_order() -> None:
    one = Applied()
    kept = TopicSettings(Retention(events=5))
    topic_id = one.topic("a")
    [change, outcome] = one.run(control.control_run(control.TopicAlter("a", kept), 78))
    altered = Topic(topic_id, "a", False, kept)
    assert change == TopicChange(altered, removed=False, altered=True, before=TopicSettings())
    assert outcome == Outcome(RunKind.TOPIC_ALTER, 0, 78, 1, 0, 0, 0, topic_id)
    assert len(one.run(control.control_run(control.TopicAlter("a", kept), 79))) == 1  # no change
    assert one.control(control.TopicCreate("a", False)) == (0, topic_id)
    assert one.control(control.TopicCreate("a", False, kept)) == (0, topic_id)
    other = TopicSettings(Retention(seconds=5))
    assert one.control(control.TopicCreate("a", False, other)) == (errno.EEXIST, topic_id)
    assert one.control(control.TopicAlter("b", kept)) == (errno.EINVAL, 0)
    assert one.control(control.TopicAlter("oc.membership", kept))[0] == errno.EPERM
    restored = restored_state(state_image(viewed(one.state)))
    assert restored.topics.by_name["a"].settings == kept
    assert restored.last_seq == one.state.last_seq


@pytest.mark.parametrize(
    ("name", "code"),
    [("oc.mine", errno.EPERM), ("__OC_EV_X", errno.EPERM), ("group:g", errno.EINVAL)],
)
def test_some_names_are_not_for_users(name: str, code: int) -> None:
    one = Applied()
    assert one.control(control.TopicCreate(name, False)) == (code, 0)


def test_only_what_users_made_can_be_removed() -> None:
    one = Applied()
    assert one.control(control.TopicRemove("oc.membership"))[0] == errno.EPERM
    assert one.control(control.TopicRemove("nothing")) == (errno.EINVAL, 0)
    topic_id = one.topic("a")
    assert one.control(control.TopicRemove("a")) == (0, topic_id)
    assert one.topic("a") == topic_id + 1  # ids are never used twice


def test_a_removal_says_how_far_the_topic_had_got() -> None:
    one = Applied()
    topic_id, producer = one.topic("a"), one.producer()
    one.run(publication(topic_id, producer, 1, [b"x"] * 3))
    [change, _] = one.run(control.control_run(control.TopicRemove("a"), 80))
    assert change == TopicChange(Topic(topic_id, "a", False), removed=True, last_seq=3)


def test_topics_are_bounded() -> None:
    one = Applied(topics=4)  # two are there from the start
    one.topic("a")
    one.topic("b")
    assert one.control(control.TopicCreate("c", False)) == (errno.ENOMEM, 0)
    one.control(control.TopicRemove("a"))
    one.topic("c")


def test_a_control_run_that_is_no_operand_is_refused() -> None:
    one = Applied()
    bad = build_run(RunKind.TOPIC_CREATE, 0, 0, 5, [b"\xc1"])
    assert refusal(one.run(bad)) == errno.EINVAL
    assert one.run(bad, own=False) == []
    assert one.control(control.Barrier()) == (0, 0)


# --- publications -----------------------------------------------------------------------------------------------------


def test_a_run_is_numbered_by_topic_and_by_cluster() -> None:
    one = Applied()
    a, b, producer = one.topic("a"), one.topic("b"), one.producer()
    run = publication(a, producer, 1, [b"x"] * 3)
    assert one.run(run) == [
        Delivery(run, a, 3, 0, 1, 1, 1, 101, 3, TIME),
        Outcome(RunKind.PUBLICATION, producer, 1, 3, 0, 1, 1, 0),
    ]
    other = publication(b, producer, 4, [b"y", b"zz"])
    assert one.run(other, own=False) == [Delivery(other, b, 2, 0, 1, 4, 1, 101, 3, TIME)]
    third = publication(a, producer, 6, [b"x"])
    assert one.run(third, own=False) == [Delivery(third, a, 1, 0, 4, 6, 1, 101, 3, TIME)]


def test_a_producer_is_named_by_the_position_of_its_open() -> None:
    one = Applied()
    assert [one.producer(), one.topic("x") and one.producer()] == [1, 3]


def test_a_position_that_is_given_again_in_another_epoch_is_another_producer() -> None:
    one, other = Applied(), Applied()
    for state, epoch in ((one.state, 3), (other.state, 4)):
        state.view(configuration_of({1: 1}, epoch=epoch), [])
    ids = [one.producer(), other.producer()]
    assert [producer % 2**43 for producer in ids] == [1, 1]
    assert [producer >> 43 for producer in ids] == [3, 4]


def test_unknown_producers_and_jumps_are_refused_and_use_up_nothing() -> None:
    one = Applied()
    topic_id, producer = one.topic(), one.producer()
    assert refusal(one.run(publication(topic_id, 999, 1, [b"x"]))) == errno.EBADF
    assert refusal(one.run(publication(topic_id, producer, 2, [b"x"]))) == errno.EILSEQ
    assert one.run(publication(topic_id, producer, 2**63, [b"x"]), own=False) == []
    items = one.run(publication(topic_id, producer, 1, [b"x"]))
    assert isinstance(items[0], Delivery)
    assert items[0].seq == 1


def test_a_repeat_is_answered_from_memory_and_not_delivered_again() -> None:
    one = Applied()
    topic_id, producer = one.topic(), one.producer()
    one.run(publication(topic_id, producer, 1, [b"x"] * 3))
    one.run(publication(topic_id, producer, 4, [b"x"] * 2))
    assert one.run(publication(topic_id, producer, 2, [b"x"] * 4)) == [
        Outcome(RunKind.PUBLICATION, producer, 2, 2, 0, 2, 2, 0),
        Outcome(RunKind.PUBLICATION, producer, 4, 2, 0, 4, 4, 0),
    ]
    assert one.run(publication(topic_id, producer, 1, [b"x"]), own=False) == []
    assert one.state.last_seq[topic_id] == 5


def test_a_run_that_is_new_only_from_its_kth_publication_is_delivered_from_there() -> None:
    one = Applied()
    topic_id, producer = one.topic(), one.producer()
    one.run(publication(topic_id, producer, 1, [b"x"] * 3))
    run = publication(topic_id, producer, 2, [b"x"] * 5)
    assert one.run(run) == [
        Outcome(RunKind.PUBLICATION, producer, 2, 2, 0, 2, 2, 0),
        Delivery(run, topic_id, 5, 2, 4, 4, 1, 101, 3, TIME),
        Outcome(RunKind.PUBLICATION, producer, 4, 3, 0, 4, 4, 0),
    ]


def test_the_memory_of_outcomes_is_bounded_and_says_so() -> None:
    one = Applied(producer_runs=2)
    topic_id, producer = one.topic(), one.producer()
    for number in range(1, 5):
        one.run(publication(topic_id, producer, number, [b"x"]))
    items = one.run(publication(topic_id, producer, 1, [b"x"] * 4))
    assert [(item.first_number, item.count, item.error, item.seq) for item in items if isinstance(item, Outcome)] == [
        (1, 2, errno.EIO, 0), (3, 1, 0, 3), (4, 1, 0, 4),
    ]  # fmt: skip
    items = one.run(publication(topic_id, producer, 1, [b"x"]))
    assert refusal(items) == errno.EIO


def test_void_publications_use_up_their_numbers() -> None:
    one = Applied()
    topic_id, producer = one.topic(), one.producer()
    refused = check_run(publication(topic_id, producer, 1, [b"x"] * 4))
    assert one.run(void_run(refused, errno.EPERM)) == [
        Outcome(RunKind.VOID, producer, 1, 4, errno.EPERM, 0, 0, 0)
    ]
    items = one.run(publication(topic_id, producer, 5, [b"x"]))
    assert isinstance(items[0], Delivery)
    assert (items[0].seq, items[0].ev_id) == (1, 1)
    assert refusal(one.run(publication(topic_id, producer, 2, [b"x"]))) == errno.EPERM


def test_a_removed_topic_refuses_and_the_number_is_used_up() -> None:
    one = Applied()
    topic_id, producer = one.topic(), one.producer()
    one.control(control.TopicRemove("t"))
    assert refusal(one.run(publication(topic_id, producer, 1, [b"x"]))) == errno.EINVAL
    again = one.topic()
    assert refusal(one.run(publication(again, producer, 1, [b"x"]))) == errno.EINVAL  # answered from memory
    items = one.run(publication(again, producer, 2, [b"x"]))
    assert isinstance(items[0], Delivery)


def test_local_topics_take_no_ordered_publications() -> None:
    one = Applied()
    topic_id, producer = one.topic(local=True), one.producer()
    assert refusal(one.run(publication(topic_id, producer, 1, [b"x"]))) == errno.EINVAL


def test_events_are_bounded_also_in_a_table_of_lengths() -> None:
    one = Applied(event_bytes=10)
    topic_id, producer = one.topic(), one.producer()
    assert refusal(one.run(publication(topic_id, producer, 1, [b"x" * 11]))) == errno.EMSGSIZE
    assert refusal(one.run(publication(topic_id, producer, 2, [b"", b"x" * 11]))) == errno.EMSGSIZE
    items = one.run(publication(topic_id, producer, 4, [b"", b"x" * 10, b"x" * 10]))
    assert isinstance(items[0], Delivery)


# --- producers --------------------------------------------------------------------------------------------------------


def test_a_closed_producer_is_gone_for_good() -> None:
    one = Applied()
    topic_id, producer = one.topic(), one.producer()
    assert one.control(control.Close(producer)) == (0, 0)
    assert one.control(control.Close(producer))[0] == errno.EBADF
    assert refusal(one.run(publication(topic_id, producer, 1, [b"x"]))) == errno.EBADF
    assert one.producer() != producer


def test_producers_are_bounded_per_node() -> None:
    one = Applied(producers_per_node=2)
    first = one.producer()
    one.producer()
    assert one.control(control.Open()) == (errno.ENOMEM, 0)
    one.producer(node_id=2)
    one.control(control.Close(first))
    one.producer()
    assert one.control(control.Open()) == (errno.ENOMEM, 0)


def test_producers_long_not_met_make_room_for_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PRODUCER_MEMORY_POSITIONS", 5)
    one = Applied(producers_per_node=2)
    topic_id, idle, busy, elsewhere = one.topic(), one.producer(), one.producer(), one.producer(node_id=2)
    for number in range(1, 6):
        one.run(publication(topic_id, busy, number, [b"x"]))
    new = one.producer()
    assert set(one.state.producers) == {busy, new, elsewhere}
    assert refusal(one.run(publication(topic_id, idle, 1, [b"x"]))) == errno.EBADF
    assert one.control(control.Open()) == (errno.ENOMEM, 0)


def test_producers_of_a_node_are_told_by_when_they_were_met() -> None:
    one = Applied()
    topic_id, first, second, elsewhere = one.topic(), one.producer(), one.producer(), one.producer(node_id=2)
    one.run(publication(topic_id, first, 1, [b"x"]))
    assert (one.state.producers_of(1), one.state.producers_of(2)) == ([second, first], [elsewhere])
    one.control(control.Close(second))
    assert (one.state.producers_of(1), one.state.producers_of(3)) == ([first], [])


def test_a_producer_is_of_the_node_that_opened_it() -> None:
    one = Applied()
    topic_id, producer = one.topic(), one.producer()
    assert refusal(one.run(publication(topic_id, producer, 1, [b"x"]), node_id=2)) == errno.EBADF
    assert refusal(one.run(control.control_run(control.Close(producer), 9), node_id=2)) == errno.EBADF
    assert isinstance(one.run(publication(topic_id, producer, 1, [b"x"]))[0], Delivery)


def test_an_alteration_leaves_no_run_without_events() -> None:
    """Who joins reads what is kept, and takes no run that has none."""
    run = publication(16, 7, 1, [b"x" * 100])
    size = len(run) + limits.RETAINED_RUN_OVERHEAD_BYTES
    kept = KeptTopic(Retention(events=9))
    for seq in (1, 2):
        kept.add(Delivery(run, 16, 1, 0, seq, seq, 1, 101, 1, TIME))
    kept.bound(Retention(bytes=size + 1))
    kept.cut(TIME)
    assert [one.seq for one in kept.runs] == [2]
    assert (kept.events, kept.bytes) == (1, size)
