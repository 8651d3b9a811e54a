"""Schedules that come down to one rule, asked of the code that decides: which promises allow what, and who is enough.

Nodes are letters in the names and numbers in the code: A is 1.
"""

from __future__ import annotations

import msgspec
import pytest

from ocfcluster.limits import SECOND_NS
from ocfcluster.protocol import judgement
from ocfcluster.protocol.acceptor import Acceptor
from ocfcluster.protocol.effects import Persist
from ocfcluster.protocol.formation import table_hash
from ocfcluster.protocol.judgement import (
    Candidate,
    Evidence,
    Finish,
    NewHistory,
    Propose,
    Wait,
    judge,
    memory_holds,
)
from ocfcluster.protocol.messages import (
    BOOTSTRAP,
    HELD,
    LOST,
    UNSYNCED,
    Accept,
    Accepted,
    Message,
    Prepare,
    Promise,
    Reject,
)
from ocfcluster.protocol.proposer import Phase, Proposer
from ocfcluster.protocol.quorum import Quorums, is_primary
from ocfcluster.protocol.settings import Ballot, Configuration, Limits, Member, PaxosRecord, Settings
from ocfcluster.protocol.store import Store
from tests.unit.protocol_world import World

HISTORY = "0" * 31 + "1"
HIGH = Ballot(9, 9, 9)


def configuration(
    members: list[int], *, epoch: int = 1, base: int = 0, table: dict[int, int] | None = None
) -> Configuration:  # fmt: skip
    """Incarnations are 100 + node_id, stores 300 + node_id."""
    table = table or dict.fromkeys(members, 1)
    values: dict[str, object] = {
        "cluster_id": HISTORY, "supersedes": [], "epoch": epoch, "base": base, "table": table,
        "members": [Member(1, n, 100 + n, 300 + n, table[n]) for n in members],
        "sequencer": members[0], "tie_breaker": next(n for n in members if table[n]), "delivery": "safe",
        "last_man_standing": False, "version": 1, "mtu": 1500, "limits": Limits(), "m_sequence": epoch,
        "epochs": [(epoch, base)], "order_time": 1,
    }  # fmt: skip
    return Configuration(**values)  # type: ignore[arg-type]


def promise(
    node: int, standing: int = HELD, held: int = 9, *, of: Configuration, ballot: Ballot = HIGH,
    accepted: tuple[Ballot, Configuration] | None = None, **other: object,
) -> Promise:  # fmt: skip
    found = accepted or (None, None)
    values: dict[str, object] = {"table": None, "wanted_sequencer": 0, "resigned": False, **other}
    return Promise(
        of.cluster_id, of.epoch, ballot, 300 + node, standing, held, 1, *found, values["table"],
        values["wanted_sequencer"], values["resigned"], values.get("topics_index", 0), 0,
    )  # type: ignore[arg-type]  # fmt: skip


def evidence(of: Configuration, promises: dict[int, Promise], **other: object) -> Evidence:
    values: dict[str, object] = {
        "configuration": of, "promises": promises, "incarnations": {n: 100 + n for n in promises},
        "strangers": set(), "linked": lambda one, another: True, "leaving": set(), "unwanted": set(),
        "candidates": [], "order_time": 1,
    }  # fmt: skip
    return Evidence(**{**values, **other})  # type: ignore[arg-type]


# --- who is enough --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "votes", [{1: 1, 2: 1}, {1: 1, 2: 1, 3: 1, 4: 1}, {1: 2, 2: 1, 3: 1}, {1: 0, 2: 3, 3: 3}]
)
def test_quorums_meet(votes):
    """Any commit quorum meets any decision quorum, and any two of those meet; so two halves never both go on."""
    quorums = Quorums(configuration(sorted(votes), table=votes))
    subsets = [
        {node for place, node in enumerate(sorted(votes)) if mask >> place & 1}
        for mask in range(2 ** len(votes))
    ]
    for one in subsets:
        for other in subsets:
            if quorums.decision(one) and (quorums.decision(other) or quorums.commit(other)):
                assert one & other


def test_half_of_the_table_is_primary_only_for_those_whom_a_decision_quorum_lets():
    assert is_primary({1: 1, 2: 1, 3: 1, 4: 1}, [1, 2])
    assert not is_primary({1: 1, 2: 1, 3: 1, 4: 1, 5: 1}, [1, 2])
    view = configuration([1, 2, 3], table={1: 1, 2: 1, 3: 1, 4: 1, 5: 1})
    only_two = {node: promise(node, of=view) for node in (1, 2)}
    alone = judge(evidence(view, only_two))
    assert isinstance(alone, Propose)  # 46: two of five may be no view; the absent one stays in it, as before
    assert [one.node_id for one in alone.value.members] == [1, 2, 3]
    lags = configuration([1, 2, 3, 4], table=dict.fromkeys(range(1, 6), 1))
    without_4 = evidence(lags, {node: promise(node, of=lags) for node in (1, 2, 3)})
    without_4.unwanted = {3}
    here = judge(without_4)
    assert isinstance(here, Propose)  # who is here and lags goes before who is absent
    assert [one.node_id for one in here.value.members] == [1, 2, 3]
    stranger = evidence(view, only_two)
    stranger.strangers = {3}
    assert isinstance(judge(stranger), Wait)
    four = configuration([1, 2, 3, 4], table=dict.fromkeys(range(1, 8), 1))
    half = {node: promise(node, of=four) for node in (1, 2)}
    assert isinstance(judge(evidence(four, half)), Wait)  # who are here could confirm nothing in it
    with_a_learner = evidence(view, only_two, candidates=[Candidate(4, 104, 304, 1500, False)])
    judgement = judge(with_a_learner)
    assert isinstance(judgement, Propose)  # 44: as many joiners as it takes
    assert [one.node_id for one in judgement.value.members] == [1, 2, 4]


@pytest.mark.parametrize(
    "other",
    [
        {"table": {1: 1, 2: 1, 3: 3}},
        {"limits": Limits(topics=200)},
        {"delivery": "agreed"},
        {"last_man_standing": True},
    ],
)
def test_files_that_differ_have_another_hash(other):
    """4, 36, 58: what decides replicated state, and who is enough, is compared before a bootstrap."""
    common = {
        "cluster_name": "c",
        "node_id": 1,
        "incarnation": 1,
        "store_id": 1,
        "seed": 1,
        "table": {1: 1, 2: 1, 3: 1},
    }
    assert table_hash(Settings(**common), 1) != table_hash(Settings(**{**common, **other}), 1)
    assert table_hash(Settings(**common), 1) != table_hash(Settings(**common), 2)
    assert table_hash(Settings(**common), 1) == table_hash(
        Settings(**{**common, "node_id": 2, "incarnation": 5, "seed": 7}), 1
    )


# --- what was accepted before ---------------------------------------------------------------------------------------


def test_reporters_are_counted_by_value_whatever_their_ballot():
    """77: A and B accepted X under round 1: decided. X is found, A accepts it again under round 2; all
    promise 3."""
    now = configuration([1, 2, 3])
    value = configuration([1, 2], epoch=2, base=9)
    found = judgement.accepted_value(
        now,
        {
            1: promise(1, of=now, accepted=(Ballot(2, 1, 101), value)),
            2: promise(2, of=now, accepted=(Ballot(1, 1, 101), value)),
            3: promise(3, of=now),
        },
    )
    assert found == value


@pytest.mark.parametrize(
    ("reporters", "silent", "found"),
    [
        ((1,), (), False),  # 61: accepted by A alone, all five promised: it never was decided, nor can it be
        ((1,), (2,), False),
        ((1,), (2, 3), True),  # the silent ones may have accepted it
        ((1, 2), (3,), True),
        ((1, 2, 3), (), True),
    ],
)
def test_a_value_that_cannot_have_been_decided_is_not_found(reporters, silent, found):
    now = configuration([1, 2, 3, 4, 5])
    value = configuration([1, 2, 3], epoch=2, base=9)
    promises = {
        node: promise(node, of=now, accepted=(Ballot(1, 1, 101), value) if node in reporters else None)
        for node in (1, 2, 3, 4, 5)
        if node not in silent
    }
    assert (judgement.accepted_value(now, promises) is not None) is found


def test_of_two_values_the_one_of_the_higher_ballot_is_finished():
    now = configuration([1, 2, 3])
    older, newer = configuration([1, 2], epoch=2, base=8), configuration([2, 3], epoch=2, base=9)
    promises = {
        1: promise(1, of=now, accepted=(Ballot(1, 1, 101), older)),
        2: promise(2, of=now, accepted=(Ballot(2, 2, 102), newer)),
    }
    judgement = judge(evidence(now, promises))
    assert judgement == Finish(newer)


def test_a_view_that_lost_most_of_its_memory_is_finished_only_when_nobody_else_may_answer():
    """61, 66: those who restarted are a quorum of it; the rest of C_e may know better."""
    now = configuration([1, 2, 3, 4, 5])
    value = configuration([1, 2, 3], epoch=2, base=9)
    accepted = (Ballot(1, 1, 101), value)
    promises = {
        1: promise(1, LOST, of=now, accepted=accepted),
        2: promise(2, LOST, of=now, accepted=accepted),
        4: promise(4, LOST, of=now),
    }
    incarnations = {1: 201, 2: 202, 4: 204}
    assert isinstance(judge(evidence(now, promises, incarnations=incarnations)), Wait)
    assert judge(evidence(now, promises, incarnations=incarnations, waited=True)) == Finish(value)


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("standings", "holds"),
    [
        ({1: HELD}, True),  # the sequencer holds all that it ordered
        ({2: HELD, 3: HELD}, True),
        ({2: HELD}, False),  # A and C may have committed without B
        ({1: LOST, 2: HELD}, False),  # 68
        ({1: LOST, 2: HELD, 3: UNSYNCED}, True),  # 32: C never counted, so A alone is no quorum
        ({1: LOST, 3: UNSYNCED}, False),
        ({1: LOST, 2: LOST, 3: UNSYNCED}, False),
        ({2: LOST, 3: LOST}, False),
    ],
    ids=str,
)
def test_the_memory_rule(standings, holds):
    now = configuration([1, 2, 3])
    assert (
        memory_holds(now, {node: promise(node, standing, of=now) for node, standing in standings.items()})
        is holds
    )


@pytest.mark.parametrize(
    ("standings", "strangers", "waited", "ends"),
    [
        ({1: LOST, 2: LOST, 3: LOST}, (), False, True),  # all answered
        ({1: LOST, 2: LOST}, (), False, False),
        ({1: LOST, 2: LOST}, (), True, True),
        ({1: LOST}, (2,), True, True),  # a wiped disk is lost memory, too
        ({1: LOST, 3: UNSYNCED}, (), True, False),  # 32, 81: B may have everything
        ({1: LOST, 2: LOST, 3: UNSYNCED}, (), True, True),
        ({2: LOST}, (), True, False),  # 34: one of three
    ],
    ids=str,
)
def test_a_history_ends_only_for_memory_that_is_surely_lost(standings, strangers, waited, ends):
    now = configuration([1, 2, 3])
    promises = {node: promise(node, standing, of=now) for node, standing in standings.items()}
    judgement = judge(evidence(now, promises, strangers=set(strangers), waited=waited))
    assert isinstance(judgement, NewHistory if ends else Wait), judgement


def test_of_two_nodes_the_decisive_one_alone_ends_nothing():
    """2, 34: A' is a decision quorum of {A, B}, and one of two is not more than half of the memory."""
    now = configuration([1, 2])
    judgement = judge(evidence(now, {1: promise(1, LOST, of=now)}, incarnations={1: 201}, waited=True))
    assert isinstance(judgement, Wait)


def test_a_new_history_begins_with_the_highest_topic_table():
    """12, 63."""
    now = configuration([1, 2, 3])
    promises = {
        node: promise(node, LOST, of=now, topics_index=index) for node, index in ((1, 4), (2, 7), (3, 5))
    }
    assert judge(evidence(now, promises)) == NewHistory(2)


# --- the next view --------------------------------------------------------------------------------------------------


def test_the_cut_is_the_highest_held_and_its_table_goes_with_it():
    """64: C alone holds the command that gave it three votes."""
    now = configuration([1, 2, 3])
    promises = {2: promise(2, held=8, of=now), 3: promise(3, held=9, of=now, table={1: 1, 2: 1, 3: 3})}
    judgement = judge(evidence(now, promises))
    assert isinstance(judgement, Propose)
    assert (judgement.value.base, judgement.source) == (9, 3)
    assert judgement.value.table == {1: 1, 2: 1, 3: 3}
    assert {one.node_id: one.votes for one in judgement.value.members} == {2: 1, 3: 3}


def test_the_sequencer_stays_unless_it_resigned_before():
    """43, 69: frozen for a change it leads itself, it has not resigned."""
    now = configuration([1, 2, 3])
    for resigned, expected in ((False, 1), (True, 2)):
        promises = {node: promise(node, of=now, resigned=resigned and node == 1) for node in (1, 2, 3)}
        judgement = judge(evidence(now, promises))
        assert isinstance(judgement, Propose)
        assert judgement.value.sequencer == expected
        assert [one.node_id for one in judgement.value.members] == [1, 2, 3]


def test_the_oldest_without_a_primary_star_is_passed_over():
    """42: B reaches C alone; C reaches everybody."""
    now = configuration([1, 2, 3, 4, 5])
    promises = {node: promise(node, of=now) for node in (2, 3, 4, 5)}

    def linked(one: int, other: int) -> bool:
        return {one, other} not in ({2, 4}, {2, 5})

    judgement = judge(evidence(now, promises, linked=linked))
    assert isinstance(judgement, Propose)
    assert judgement.value.sequencer == 3
    assert [one.node_id for one in judgement.value.members] == [2, 3, 4, 5]


def test_a_member_below_the_base_is_the_last_to_be_the_sequencer():
    now = configuration([1, 2, 3])
    promises = {2: promise(2, UNSYNCED, held=3, of=now), 3: promise(3, of=now)}
    judgement = judge(evidence(now, {1: promise(1, of=now), **promises}, leaving={1}))
    assert isinstance(judgement, Propose)
    assert judgement.value.sequencer == 3


def test_who_was_admitted_last_is_never_the_decisive_one():
    """13: the oldest, not the smallest."""
    now = configuration([2], table={1: 1, 2: 1})
    joiner = Candidate(1, 101, 301, 1500, True)
    judgement = judge(evidence(now, {2: promise(2, of=now)}, candidates=[joiner]))
    assert isinstance(judgement, Propose)
    assert [one.node_id for one in judgement.value.members] == [2, 1]
    assert judgement.value.tie_breaker == 2


# --- one acceptor ---------------------------------------------------------------------------------------------------


class OneAcceptor:
    """An acceptor on a disk that writes when it is told to."""

    def __init__(self, node: int, record: bytes = b"") -> None:
        self.store = Store(record)
        self.acceptor = Acceptor(self.store, 300 + node)
        self.said: list[Message] = []
        self.disk = record

    def write(self) -> None:
        effects: list[object] = []
        self.store.write(effects, 0)  # type: ignore[arg-type]
        for effect in effects:
            assert isinstance(effect, Persist)
            self.disk = effect.record
            self.store.written(effect.token, True, 0)

    def prepare(self, message: Prepare) -> None:
        def answer(record: PaxosRecord) -> Promise:
            return Promise(
                record.cluster_id, record.epoch, message.ballot, self.acceptor._store_id, LOST, 0, 0,
                record.accepted_ballot, record.accepted, None, 0, False, 0, 0,
            )  # fmt: skip

        self.acceptor.on_prepare(message, self.said.append, answer, 0)

    def accept(self, message: Accept) -> None:
        self.acceptor.on_accept(message, self.said.append, 0)


def test_no_vote_before_its_record_is_on_disk():
    now, value = configuration([1, 2, 3]), configuration([1, 2], epoch=2, base=9)
    one = OneAcceptor(1)
    one.prepare(Prepare(HISTORY, 1, Ballot(1, 2, 102), now, [], 0))
    assert not one.said
    one.write()
    assert isinstance(one.said.pop(), Promise)
    one.accept(Accept(HISTORY, 1, Ballot(1, 2, 102), value))
    assert not one.said
    one.write()
    assert isinstance(one.said.pop(), Accepted)


def test_a_restarted_acceptor_keeps_its_word_and_reports_what_it_accepted():
    """80, 27: it is its disk that votes."""
    now, value = configuration([1, 2, 3]), configuration([1, 2], epoch=2, base=9)
    one = OneAcceptor(1)
    one.accept(Accept(HISTORY, 1, Ballot(5, 2, 102), value))
    one.write()
    again = OneAcceptor(1, one.disk)
    again.prepare(Prepare(HISTORY, 1, Ballot(4, 3, 103), now, [], 0))
    assert isinstance(again.said.pop(), Reject)
    again.prepare(Prepare(HISTORY, 1, Ballot(6, 3, 103), now, [], 0))
    again.write()
    said = again.said.pop()
    assert isinstance(said, Promise)
    assert (said.accepted_ballot, said.accepted) == (Ballot(5, 2, 102), value)


# --- one proposer ---------------------------------------------------------------------------------------------------


class Ground:
    """Everything is heard, and nobody gives way."""

    def __init__(self, first: Configuration) -> None:
        self.said: list[Message] = []
        self.first = first
        self.won: list[Configuration] = []

    def say(self, message: Message) -> None:
        self.said.append(message)

    def evidence(self, promises: dict[int, Promise], incarnations: dict[int, int], now: int) -> Evidence:
        raise AssertionError("a bootstrap has no evidence")

    def expected(self) -> set[int]:
        return set()

    def yields(self, rival: Ballot, now: int) -> bool:
        return False

    def first_value(self, incarnations: dict[int, int], now: int) -> Configuration:
        return self.first

    def decided(self, value: Configuration, now: int) -> None:
        self.won.append(value)

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"{name} is not asked in a bootstrap")


def bootstrap(node: int, named: list[int], value: Configuration) -> tuple[Proposer, Ground]:
    ground = Ground(value)
    settings = Settings("c", node, 100 + node, 300 + node, 1, table=dict.fromkeys(range(1, 6), 1))
    proposer = Proposer(settings, ground)  # type: ignore[arg-type]
    proposer.begin(BOOTSTRAP, 1, 0, configuration=None, acceptors={n: 300 + n for n in named}, table_hash=1)
    return proposer, ground


def first_promise(
    node: int, ballot: Ballot, accepted: tuple[Ballot, Configuration] | None = None, store: int = 0
) -> Promise:
    found = accepted or (None, None)
    return Promise(*BOOTSTRAP, ballot, store or 300 + node, LOST, 0, 0, *found, None, 0, False, 0, 0)


def test_each_of_those_named_in_a_bootstrap_must_promise_and_accept():
    """79: {A, B, C} named, A and C accept: a majority of them, and not enough."""
    value = configuration([1, 2, 3])
    proposer, ground = bootstrap(1, [1, 2, 3], value)
    for node in (1, 3):
        proposer.on_promise(node, 100 + node, first_promise(node, proposer.ballot), 0)
    assert proposer.phase is Phase.PREPARING
    proposer.on_promise(2, 102, first_promise(2, proposer.ballot), 0)
    assert proposer.phase is Phase.ACCEPTING
    for node in (1, 3):
        proposer.on_accepted(node, Accepted(*BOOTSTRAP, proposer.ballot, 300 + node), 0)
    proposer.timer(SECOND_NS)
    assert not ground.won
    proposer.on_accepted(2, Accepted(*BOOTSTRAP, proposer.ballot, 302), SECOND_NS)
    assert ground.won == [value]


def test_what_one_accepted_in_a_bootstrap_is_finished_by_the_next():
    """78: {A, B, C} named, A and B accepted v1; B names {B, C}: v1 is finished, nothing counts as not
    found."""
    first, second = configuration([1, 2, 3]), configuration([2, 3])
    proposer, ground = bootstrap(2, [2, 3], second)
    proposer.on_promise(2, 102, first_promise(2, proposer.ballot, (Ballot(1, 1, 101), first)), 0)
    proposer.on_promise(3, 103, first_promise(3, proposer.ballot), 0)
    for node in (2, 3):
        proposer.on_accepted(node, Accepted(*BOOTSTRAP, proposer.ballot, 300 + node), 0)
    assert ground.won == [first]


def test_the_answer_of_a_wiped_node_is_no_promise_and_no_vote():
    """80: another store than the one named."""
    value = configuration([1, 2])
    proposer, ground = bootstrap(1, [1, 2], value)
    proposer.on_promise(1, 101, first_promise(1, proposer.ballot), 0)
    proposer.on_promise(2, 202, first_promise(2, proposer.ballot, store=999), 0)
    assert proposer.phase is Phase.PREPARING
    proposer.on_promise(2, 102, first_promise(2, proposer.ballot), 0)
    proposer.on_accepted(1, Accepted(*BOOTSTRAP, proposer.ballot, 301), 0)
    proposer.on_accepted(2, Accepted(*BOOTSTRAP, proposer.ballot, 999), 0)
    assert not ground.won


# --- a vote that outlives an install --------------------------------------------------------------------------------


@pytest.mark.parametrize(("epoch", "kept"), [(1, False), (2, True)])
def test_installing_forgets_only_the_votes_on_what_came_before(epoch, kept):
    """21: a promise about what follows the epoch that is being installed stays."""
    world = World(3).form()
    node = world.nodes[2]
    before = node.configuration
    assert before is not None
    promised, base = Ballot(7, 3, 1003), node.plane.log.held
    node._store.change(paxos=PaxosRecord(before.cluster_id, before.epoch + epoch - 1, promised))
    following = msgspec.structs.replace(
        before, epoch=before.epoch + 1, base=base, epochs=[*before.epochs, (before.epoch + 1, base)]
    )
    node.installation.take(following, world.now)
    world.settle(2)
    world.until(lambda: node.configuration.epoch == following.epoch)
    paxos = node._store.record.paxos
    assert (paxos is not None and paxos.promised == promised) is kept
