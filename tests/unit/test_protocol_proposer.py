"""The proposer, phase by phase: what it says, when it says it again, what is enough, and when it begins anew."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from ocfcluster import limits
from ocfcluster.protocol.judgement import Evidence, Finish, NewHistory, Propose, Wait
from ocfcluster.protocol.messages import (
    BOOTSTRAP,
    HELD,
    Accept,
    Accepted,
    Instance,
    Message,
    Prepare,
    Promise,
    Reject,
    Sync,
    Synced,
)
from ocfcluster.protocol.proposer import Phase, Proposer
from ocfcluster.protocol.settings import Ballot, Configuration
from tests.unit.protocol_world import configuration_of, settings_of

MS = 1_000_000
SECOND = 1000 * MS
OLD = configuration_of({1: 1, 2: 1, 3: 1})
NEXT = msgspec.structs.replace(OLD, epoch=2, base=9, epochs=[(1, 0), (2, 9)])
INSTANCE = Instance(OLD.cluster_id, 1)
TABLE = {1: 1, 2: 1, 3: 1}


class Lab:
    """A proposer on node 1, and what stands in for its node. ``judgement`` is what the judge says."""

    def __init__(self, **settings: Any) -> None:
        self.now = 1000 * SECOND
        self.said: list[Message] = []
        self.decisions: list[Configuration] = []
        self.expects: set[int] = set()
        self.gives_way = False
        self.judgement: Any = Propose(NEXT, 2)
        self.judged: list[Evidence] = []
        self.history: Configuration | None = None
        self.first: list[dict[int, int]] = []
        self.proposer = Proposer(settings_of(1, TABLE, **settings), self, self._judge)

    def begin(self, **other: Any) -> Lab:
        values: dict[str, Any] = {
            "configuration": OLD,
            "acceptors": {1: 2001, 2: 2002, 3: 2003},
            "reason": "test",
        }
        self.proposer.begin(INSTANCE, 4, self.now, **{**values, **other})
        return self

    def _judge(self, evidence: Evidence) -> Any:
        self.judged.append(replace(evidence, not_again=set(evidence.not_again)))
        return self.judgement

    # What a proposer asks of its node.

    def say(self, message: Message) -> None:
        self.said.append(message)

    def expected(self) -> set[int]:
        return self.expects

    def yields(self, rival: Ballot, now: int) -> bool:
        return self.gives_way

    def evidence(self, promises: dict[int, Promise], incarnations: dict[int, int], now: int) -> Evidence:
        return Evidence(OLD, promises, incarnations, set(), lambda one, other: True, set(), set(), [], 0)

    def first_value(self, incarnations: dict[int, int], now: int) -> Configuration:
        self.first.append(dict(incarnations))
        return NEXT

    def new_history(self, *_: Any) -> Configuration | None:
        return self.history

    def decided(self, value: Configuration, now: int) -> None:
        self.decisions.append(value)

    # What happens.

    @property
    def about(self) -> tuple[str, int, Ballot]:
        return (*self.proposer.instance, self.proposer.ballot)

    def promise(self, *nodes: int, **fields: Any) -> None:
        for node in nodes:
            values: dict[str, Any] = {
                "store_id": 2000 + node, "standing": HELD, "held": 5, "order_time": 1, "accepted_ballot": None,
                "accepted": None, "table": None, "wanted_sequencer": 0, "resigned": False, "topics_index": 0,
                "topics_digest": 1,
            }  # fmt: skip
            self.proposer.on_promise(
                node, 1000 + node, Promise(*self.about, **{**values, **fields}), self.now
            )

    def synced(self, *nodes: int) -> None:
        for node in nodes:
            self.proposer.on_synced(node, 1000 + node, Synced(*self.about), self.now)

    def accept(self, *nodes: int) -> None:
        for node in nodes:
            self.proposer.on_accepted(node, Accepted(*self.about, 2000 + node), self.now)

    def wait(self, duration: int) -> None:
        """Time passes, with a timer whenever one is due."""
        end = self.now + duration
        while (due := self.proposer.next_timer()) <= end:
            assert due >= self.now
            self.now = due
            self.proposer.timer(self.now)
        self.now = end

    def kinds(self) -> list[type]:
        said, self.said = self.said, []
        return [type(one) for one in said]

    def to_syncing(self) -> Lab:
        self.begin().promise(1, 2, 3)
        assert self.proposer.phase is Phase.SYNCING
        self.said.clear()
        return self

    def to_accepting(self) -> Lab:
        self.to_syncing().synced(1, 2, 3)
        assert self.proposer.phase is Phase.ACCEPTING
        self.said.clear()
        return self


def test_the_way_from_prepare_to_decided() -> None:
    lab = Lab().begin()
    assert lab.proposer.active
    assert lab.said == [Prepare(*INSTANCE, Ballot(4, 1, 1001), OLD, [], 0)]
    lab.promise(1, 2)
    assert lab.said[1:] == [Sync(*INSTANCE, Ballot(4, 1, 1001), NEXT, 2)]
    lab.synced(1, 2, 3)
    assert lab.said[2:] == [Accept(*INSTANCE, Ballot(4, 1, 1001), NEXT)]
    lab.accept(3)
    assert lab.decisions == []
    lab.accept(1)
    assert lab.decisions == [NEXT]
    assert lab.proposer.phase is Phase.IDLE
    assert lab.proposer.next_timer() >= 2**62
    lab.accept(2)
    assert lab.decisions == [NEXT]  # once


# --- promises ---------------------------------------------------------------------------------------------------------


def test_nothing_is_judged_before_a_decision_quorum_has_promised() -> None:
    lab = Lab().begin()
    lab.promise(2)
    lab.promise(2)  # twice is once
    assert lab.judged == []
    lab.promise(3)
    [evidence] = lab.judged
    assert set(evidence.promises) == {2, 3}
    assert (evidence.strangers, evidence.forced, evidence.waited) == (set(), False, False)
    assert evidence.incarnations == {2: 1002, 3: 1003}


def test_those_that_are_heard_are_waited_for_but_not_for_ever() -> None:
    lab = Lab().begin()
    lab.expects = {1, 2, 3}
    lab.promise(1, 2)
    lab.wait(limits.PROMISE_WAIT_NS - 1)
    assert lab.judged == []
    lab.wait(1)
    assert len(lab.judged) == 1
    again = Lab().begin()
    again.expects = {1, 2, 3}
    again.promise(1, 2, 3)
    assert len(again.judged) == 1  # all are in: at once


def test_a_strangers_disk_promises_nothing() -> None:
    lab = Lab().begin()
    lab.promise(1)
    lab.promise(2, store_id=99)
    assert lab.judged == []
    lab.promise(3)
    [evidence] = lab.judged
    assert (set(evidence.promises), evidence.strangers) == ({1, 3}, {2})


@pytest.mark.parametrize(
    "about",
    [
        (OLD.cluster_id, 1, Ballot(3, 1, 1001)),
        (OLD.cluster_id, 1, Ballot(4, 2, 1001)),
        (OLD.cluster_id, 2, Ballot(4, 1, 1001)),
        ("1" * 32, 1, Ballot(4, 1, 1001)),
    ],
)
def test_answers_to_others_say_nothing(about: tuple[str, int, Ballot]) -> None:
    for lab in (Lab().begin(), Lab().to_syncing(), Lab().to_accepting()):
        phase = lab.proposer.phase
        for node in (1, 2, 3):
            promise = Promise(*about, 2000 + node, HELD, 5, 1, None, None, None, 0, False, 0, 1)
            lab.proposer.on_promise(node, 1000 + node, promise, lab.now)
            lab.proposer.on_synced(node, 1000 + node, Synced(*about), lab.now)
            lab.proposer.on_accepted(node, Accepted(*about, 2000 + node), lab.now)
        lab.proposer.on_reject(Reject(*about, Ballot(9, 9, 9)), lab.now)
        assert (lab.proposer.phase, lab.proposer.ballot.round, lab.decisions) == (phase, 4, [])


def test_who_is_no_acceptor_promises_nothing() -> None:
    lab = Lab().begin()
    lab.promise(1, 8, 9)
    assert lab.judged == []


def test_it_says_prepare_again_ever_more_seldom() -> None:
    lab = Lab().begin()
    times = []
    for _ in range(10):
        lab.said.clear()
        lab.wait(lab.proposer.next_timer() - lab.now)
        times += [lab.now] * len(lab.said)
    gaps = [(after - before) // MS for before, after in pairwise(times)]
    assert gaps == sorted(gaps)
    assert gaps[0] <= 2 * limits.PREPARE_FIRST_NS // MS
    assert gaps[-1] == limits.PREPARE_MAX_NS // MS
    assert lab.proposer.ballot.round == 4  # it outbids nobody by waiting


def test_where_the_judge_waits_it_goes_on_asking_and_judges_again() -> None:
    lab = Lab()
    lab.judgement = Wait("node 3")
    lab.begin().promise(1, 2)
    assert (lab.proposer.phase, lab.proposer.waiting_for) == (Phase.PREPARING, "node 3")
    lab.wait(SECOND)
    assert set(lab.kinds()) == {Prepare}
    assert 3 < len(lab.judged) < 50  # as often as it asks, not in a loop
    lab.judgement = Propose(NEXT, 1)
    lab.promise(3)
    assert (lab.proposer.phase, lab.proposer.waiting_for) == (Phase.SYNCING, "")


def test_the_judge_is_told_when_it_has_waited_long_enough_for_a_history() -> None:
    lab = Lab(history_wait_ns=5 * SECOND)
    lab.judgement = Wait("all")
    lab.begin().promise(1, 2)
    lab.wait(5 * SECOND - 400 * MS)
    assert not any(one.waited for one in lab.judged)
    lab.wait(SECOND)
    assert lab.judged[-1].waited


def test_waiting_for_a_history_counts_from_the_beginning_and_not_from_the_last_round() -> None:
    lab = Lab(history_wait_ns=5 * SECOND)
    lab.judgement = Wait("all")
    lab.begin().promise(1, 2)
    lab.wait(3 * SECOND)
    lab.proposer.on_reject(Reject(*lab.about, Ballot(7, 2, 1002)), lab.now)
    lab.promise(1, 2)
    lab.wait(2 * SECOND + 400 * MS)
    assert lab.judged[-1].waited


# --- reject -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepared", ["begin", "to_syncing", "to_accepting"])
def test_a_reject_raises_the_round_above_what_was_promised(prepared: str) -> None:
    lab = getattr(Lab(), prepared)()
    lab.said.clear()
    lab.proposer.on_reject(Reject(*lab.about, Ballot(7, 2, 1002)), lab.now)
    assert lab.proposer.ballot == Ballot(8, 1, 1001)
    assert lab.kinds() == [Prepare]
    lab.promise(1)  # promises of the round before do not count
    assert len(lab.judged) == (0 if prepared == "begin" else 1)


def test_a_reject_by_a_lower_ballot_says_nothing() -> None:
    lab = Lab().begin()
    lab.proposer.on_reject(Reject(*lab.about, Ballot(4, 1, 1000)), lab.now)
    lab.proposer.on_reject(Reject(*lab.about, lab.proposer.ballot), lab.now)
    assert lab.proposer.ballot.round == 4


def test_who_gives_way_stops() -> None:
    lab = Lab().begin()
    lab.gives_way = True
    lab.proposer.on_reject(Reject(*lab.about, Ballot(7, 2, 1002)), lab.now)
    assert not lab.proposer.active
    lab.said.clear()
    lab.wait(10 * SECOND)
    assert lab.said == []


def test_a_round_at_the_end_of_its_field_is_the_end_of_it() -> None:
    lab = Lab().begin()
    lab.proposer.on_reject(Reject(*lab.about, Ballot(2**32 - 2, 2, 1002)), lab.now)
    assert not lab.proposer.active


# --- SYNC -------------------------------------------------------------------------------------------------------------


def test_accept_waits_for_a_commit_quorum_of_the_next_view_with_its_sequencer() -> None:
    lab = Lab().to_syncing()
    lab.synced(2, 3)
    lab.wait(limits.PROMISE_WAIT_NS * 3)
    assert lab.proposer.phase is Phase.SYNCING  # node 1, the sequencer, has not confirmed
    lab.synced(1)
    assert lab.proposer.phase is Phase.ACCEPTING


def test_accept_waits_a_moment_for_all_members() -> None:
    lab = Lab().to_syncing()
    lab.synced(1)
    lab.wait(limits.PROMISE_WAIT_NS * 3)
    assert lab.proposer.phase is Phase.SYNCING  # one of three
    lab.synced(2)
    lab.wait(limits.PROMISE_WAIT_NS - 1)
    assert lab.proposer.phase is Phase.SYNCING
    lab.wait(1)
    assert lab.proposer.phase is Phase.ACCEPTING


def test_another_incarnation_confirms_nothing() -> None:
    lab = Lab().to_syncing()
    for node in (1, 2, 3):
        lab.proposer.on_synced(node, 5000, Synced(*lab.about), lab.now)
    lab.wait(SECOND)
    assert lab.proposer.phase is Phase.SYNCING


def test_sync_without_progress_begins_again_with_a_higher_round() -> None:
    lab = Lab().to_syncing()
    lab.wait(limits.SYNC_TIMEOUT_NS - MS)
    lab.synced(1)  # progress
    lab.wait(limits.SYNC_TIMEOUT_NS - MS)
    assert (lab.proposer.phase, lab.proposer.ballot.round) == (Phase.SYNCING, 4)
    assert set(lab.kinds()) == {Sync}
    lab.synced(1)  # again: no progress
    lab.wait(limits.PREPARE_MAX_NS + MS)
    assert (lab.proposer.phase, lab.proposer.ballot.round) == (Phase.PREPARING, 5)
    assert lab.kinds()[-1] is Prepare


def test_joiners_that_did_not_get_ready_are_left_out_the_next_time() -> None:
    joiner = msgspec.structs.replace(OLD.members[2], incarnation=7777, born_on=2)
    members = [*OLD.members[:2], joiner]
    lab = Lab()
    lab.judgement = Propose(msgspec.structs.replace(NEXT, members=members, m_sequence=2), 1)
    lab.begin().promise(1, 2)
    lab.synced(1)
    lab.wait(limits.SYNC_TIMEOUT_NS + limits.PREPARE_MAX_NS)
    lab.promise(1, 2)
    assert lab.judged[0].not_again == set()
    assert lab.judged[1].not_again == {3}  # and not node 2, a member


def test_where_it_must_wait_joiners_get_another_chance() -> None:
    joiner = msgspec.structs.replace(OLD.members[2], incarnation=7777, born_on=2)
    lab = Lab()
    lab.judgement = Propose(
        msgspec.structs.replace(NEXT, members=[*OLD.members[:2], joiner], m_sequence=2), 1
    )
    lab.begin().promise(1, 2)
    lab.wait(limits.SYNC_TIMEOUT_NS + limits.PREPARE_MAX_NS)
    lab.judgement = Wait("node 3")
    lab.promise(1, 2)
    assert lab.judged[-1].not_again == {3}
    lab.wait(SECOND)
    assert lab.judged[-1].not_again == set()


def test_what_is_finished_is_synced_as_far_as_can_be_and_then_accepted() -> None:
    lab = Lab()
    lab.judgement = Finish(NEXT)
    lab.begin().promise(1, 2)
    assert lab.said[-1] == Sync(*lab.about, NEXT, 1)
    lab.wait(limits.SYNC_TIMEOUT_NS + limits.PREPARE_MAX_NS)
    assert (lab.proposer.phase, lab.proposer.ballot.round) == (Phase.ACCEPTING, 4)


# --- ACCEPT -----------------------------------------------------------------------------------------------------------


def test_accepted_counts_the_old_configurations_votes_and_disks() -> None:
    lab = Lab().to_accepting()
    lab.accept(1, 1, 9)
    lab.proposer.on_accepted(2, Accepted(*lab.about, 99), lab.now)  # another disk
    assert lab.decisions == []
    lab.accept(2)
    assert lab.decisions == [NEXT]


def test_accept_without_an_answer_is_said_again_and_at_last_begun_anew() -> None:
    lab = Lab().to_accepting()
    lab.accept(3)
    lab.wait(limits.SYNC_TIMEOUT_NS + limits.PREPARE_MAX_NS)
    kinds = lab.kinds()
    assert kinds.count(Accept) > 3
    assert (lab.proposer.phase, lab.proposer.ballot.round) == (Phase.PREPARING, 5)


def test_half_with_the_tie_breaker_decides() -> None:
    lab = Lab()
    pair = configuration_of({1: 1, 2: 1})
    lab.begin(configuration=pair, acceptors={1: 2001, 2: 2002}).promise(1)
    lab.synced(1, 2, 3)
    lab.accept(2)
    assert lab.decisions == []
    lab.accept(1)
    assert lab.decisions == [NEXT]


# --- bootstrap, new history, an operator's word -----------------------------------------------------------------------


def bootstrap(lab: Lab) -> Lab:
    acceptors = {1: 2001, 2: 2002, 3: 2003}
    lab.proposer.begin(BOOTSTRAP, 1, lab.now, configuration=None, acceptors=acceptors, table_hash=42)
    return lab


def test_a_bootstrap_wants_everybody_and_has_nothing_to_fetch() -> None:
    lab = bootstrap(Lab())
    assert lab.said == [Prepare("", 0, Ballot(1, 1, 1001), None, [(1, 2001), (2, 2002), (3, 2003)], 42)]
    lab.promise(1, 2)
    lab.wait(SECOND)
    assert lab.proposer.phase is Phase.PREPARING
    lab.promise(3)
    assert lab.first == [{1: 1001, 2: 1002, 3: 1003}]
    assert lab.said[-1] == Accept(*lab.about, NEXT)
    lab.accept(1, 2)
    assert lab.decisions == []
    lab.accept(3)
    assert lab.decisions == [NEXT]


def test_a_bootstrap_finishes_what_was_accepted_under_the_highest_ballot() -> None:
    lab = bootstrap(Lab())
    other = msgspec.structs.replace(NEXT, base=77)
    lab.promise(1)
    lab.promise(2, accepted_ballot=Ballot(1, 3, 3), accepted=other)
    lab.promise(3, accepted_ballot=Ballot(1, 2, 2), accepted=OLD)
    assert lab.said[-1] == Accept(*lab.about, other)
    assert lab.first == []


def test_a_new_history_is_synced_and_accepted_like_any_value() -> None:
    lab = Lab()
    lab.judgement = NewHistory(2)
    lab.begin().promise(1, 2)
    assert lab.proposer.phase is Phase.PREPARING
    assert "half of the node table" in lab.proposer.waiting_for
    lab.history = NEXT
    lab.promise(3)
    assert lab.said[-1] == Sync(*lab.about, NEXT, 2)


def test_an_operators_word_makes_those_who_promised_enough() -> None:
    lab = Lab().begin(forced=True)
    lab.promise(3)
    [evidence] = lab.judged
    assert evidence.forced
    lab.synced(1, 2, 3)
    lab.accept(3)
    assert lab.decisions == [NEXT]


def test_another_attempt_begins_with_nothing_of_the_one_before() -> None:
    joiner = msgspec.structs.replace(OLD.members[2], incarnation=7777, born_on=2)
    lab = Lab()
    lab.judgement = Propose(
        msgspec.structs.replace(NEXT, members=[*OLD.members[:2], joiner], m_sequence=2), 1
    )
    lab.begin().promise(1, 2)
    lab.wait(limits.SYNC_TIMEOUT_NS + limits.PREPARE_MAX_NS)  # node 3 did not get ready
    lab.judgement = Wait("node 2")
    lab.promise(1, 2)
    lab.judgement = Finish(NEXT)
    lab.proposer.begin(
        Instance(OLD.cluster_id, 2), 1, lab.now, configuration=OLD, acceptors={1: 2001, 2: 2002}
    )
    assert lab.proposer.waiting_for == ""
    lab.promise(1, 2)
    assert lab.judged[-1].not_again == set()
    lab.judgement = Wait("node 2")
    lab.begin().promise(1, 2)
    assert lab.proposer.waiting_for == "node 2"
    lab.proposer.abandon()
    assert lab.proposer.waiting_for == ""


def test_an_abandoned_attempt_is_over() -> None:
    lab = Lab().to_accepting()
    lab.proposer.abandon()
    lab.accept(1, 2, 3)
    lab.wait(10 * SECOND)
    assert (lab.decisions, lab.said, lab.proposer.active) == ([], [], False)
