"""What promises allow: Paxos' rule counted by value, the memory rule, and the next view, case by case."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, combinations
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocfcluster import limits
from ocfcluster.protocol.judgement import (
    Candidate,
    Evidence,
    Finish,
    NewHistory,
    Propose,
    Wait,
    accepted_value,
    judge,
    memory_holds,
)
from ocfcluster.protocol.messages import HELD, LOST, UNSYNCED, Promise
from ocfcluster.protocol.quorum import Quorums, is_primary
from ocfcluster.protocol.settings import Ballot, Configuration
from ocfcluster.protocol.validity import configuration_fault
from tests.unit.protocol_world import configuration_of

THREE = configuration_of({1: 1, 2: 1, 3: 1})
FOUR = configuration_of(dict.fromkeys(range(1, 5), 1))
FIVE = configuration_of(dict.fromkeys(range(1, 6), 1))
H, U, L = HELD, UNSYNCED, LOST


def value(number: int, configuration: Configuration = THREE) -> Configuration:
    """Different values that might follow."""
    return msgspec.structs.replace(
        configuration, epoch=2, base=number, epochs=[*configuration.epochs, (2, number)]
    )


def promise(node_id: int, standing: int = HELD, held: int = 10, **other: Any) -> Promise:
    fields: dict[str, Any] = {
        "cluster_id": THREE.cluster_id, "epoch": 1, "ballot": Ballot(9, 1, 1001), "store_id": 2000 + node_id,
        "standing": standing, "held": held, "order_time": 100, "accepted_ballot": None, "accepted": None,
        "table": None, "wanted_sequencer": 0, "resigned": False, "topics_index": 0, "topics_digest": 1,
    }  # fmt: skip
    return Promise(**{**fields, **other})


def accepted(node_id: int, round_: int, what: Configuration, standing: int = HELD) -> Promise:
    return promise(node_id, standing, accepted_ballot=Ballot(round_, 1, 1001), accepted=what)


def evidence(*promises: Promise, configuration: Configuration = THREE, **other: Any) -> Evidence:
    """Promises of nodes as their store_ids tell them; everybody hears everybody."""
    by_node = {one.store_id - 2000: one for one in promises}
    fields: dict[str, Any] = {
        "configuration": configuration, "promises": by_node,
        "incarnations": {node: 1000 + node for node in by_node}, "strangers": set(), "linked": lambda one, other: True,
        "leaving": set(), "unwanted": set(), "candidates": [], "order_time": 50,
    }  # fmt: skip
    return Evidence(**{**fields, **other})


def proposed(given_: Evidence) -> Configuration:
    judgement = judge(given_)
    assert isinstance(judgement, Propose), judgement
    assert configuration_fault(judgement.value) == ""
    return judgement.value


def ids(configuration: Configuration) -> list[int]:
    return [one.node_id for one in configuration.members]


# --- what was accepted before -----------------------------------------------------------------------------------------

A, B = value(11), value(12)


@pytest.mark.parametrize(
    ("configuration", "reports", "expected"),
    [
        # node → (round, value) of what it accepted; None: it promised and accepted nothing. Others did not promise.
        (THREE, {1: None, 2: None}, None),
        (THREE, {1: (3, A), 2: None}, A),  # with the silent one it may be a quorum
        (THREE, {1: (3, A), 2: None, 3: None}, None),  # it was not, nor will it ever be
        (THREE, {1: (3, A), 2: (3, A), 3: None}, A),
        (THREE, {1: (3, A), 2: (4, B)}, B),  # the highest ballot first
        (THREE, {1: (3, A), 2: (4, B), 3: None}, None),
        (
            THREE,
            {1: (3, A), 2: (3, A), 3: (4, B)},
            A,
        ),  # B was accepted by one and can never be; A may have been
        (THREE, {1: (2, A), 2: (5, A), 3: (4, B)}, A),  # counted by value, whatever the ballot
        (FOUR, {1: (3, A), 2: None, 3: None, 4: None}, None),
        (FOUR, {1: (3, A), 2: (3, A), 3: None, 4: None}, A),  # half, with the tie-breaker
        (FOUR, {1: None, 2: (3, A), 3: (3, A), 4: None}, None),  # half, without it
        (FOUR, {1: None, 2: (3, A), 3: None}, None),  # 2 and 4 are half without the tie-breaker
        (FOUR, {2: (3, A), 3: None, 4: None}, A),  # 1 may have accepted it: half with the tie-breaker
        (FIVE, {1: (3, A), 2: None, 3: None}, A),
        (FIVE, {1: (3, A), 2: None, 3: None, 4: None}, None),
        (FIVE, {1: (3, A), 2: (4, B), 3: (4, B), 4: (3, A)}, B),  # either may be: the higher ballot
        (FIVE, {1: (3, A), 2: (4, B), 3: (3, A), 4: None, 5: None}, None),
    ],
)
def test_a_value_that_may_have_been_decided_is_finished(
    configuration: Configuration,
    reports: dict[int, tuple[int, Configuration] | None],
    expected: Configuration | None,
) -> None:
    promises = {
        node: accepted(node, *report) if report is not None else promise(node)
        for node, report in reports.items()
    }
    assert accepted_value(configuration, promises) == expected
    judgement = judge(evidence(*promises.values(), configuration=configuration))
    if expected is None:
        assert isinstance(judgement, Propose)
    else:
        assert judgement == Finish(expected)


def test_a_value_is_finished_even_where_memory_would_not_allow_a_new_one() -> None:
    lost = [accepted(2, 3, A, standing=LOST), promise(3, LOST)]
    assert judge(evidence(*lost)) == Finish(A)


@pytest.mark.parametrize(
    ("restarted", "strangers", "waited", "expected"),
    [
        (set(), set(), False, Finish(A)),
        ({2}, set(), False, Finish(A)),  # one of its three members
        ({2, 3}, set(), False, Wait),  # most of them: node 1 might still answer, with what it holds
        ({2}, {1}, False, Finish(A)),  # all of C_e has answered, be it as strangers
        ({2, 3}, set(), True, Finish(A)),
    ],
)
def test_a_value_whose_members_lost_their_memory_waits_for_the_rest(
    restarted: set[int], strangers: set[int], waited: bool, expected: Any
) -> None:
    given_ = evidence(accepted(2, 3, A), promise(3), strangers=strangers, waited=waited)
    for node in restarted:
        given_.incarnations[node] += 1000
    judgement = judge(given_)
    assert isinstance(judgement, Wait) if expected is Wait else judgement == expected


def voters(data: st.DataObject, nodes: int) -> Configuration:
    """Of members with 0 to 2 votes each; the first, which is the tie-breaker, has one."""
    votes = {node: data.draw(st.integers(0, 2)) for node in range(1, nodes + 1)}
    return configuration_of({**votes, 1: votes[1] or 1})


def enough(data: st.DataObject, nodes: int, is_enough: Callable[[set[int]], bool]) -> set[int]:
    """Some set of nodes that is enough."""
    every = chain.from_iterable(combinations(range(1, nodes + 1), size) for size in range(nodes + 1))
    return data.draw(st.sampled_from([one for one in map(set, every) if is_enough(one)]))


@given(data=st.data(), nodes=st.integers(1, 5))
def test_what_a_quorum_has_accepted_is_found_by_every_quorum(data: st.DataObject, nodes: int) -> None:
    """The theorem that Paxos rests on, for promises of any decision quorum: a decided value is found unless a higher
    ballot has the same one."""
    configuration = voters(data, nodes)
    quorums = Quorums(configuration)
    accepters = enough(data, nodes, quorums.decision)
    promisers = enough(data, nodes, quorums.decision)
    # Before A was decided under ballot 5 others may have accepted B under lower ballots.
    earlier = data.draw(st.sets(st.integers(1, nodes)))
    promises = {}
    for node in sorted(promisers):
        if node in accepters:
            promises[node] = accepted(node, 5, A)
        elif node in earlier:
            promises[node] = accepted(node, data.draw(st.integers(1, 4)), B)
        else:
            promises[node] = promise(node)
    assert accepted_value(configuration, promises) == A


# --- the memory rule --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configuration", "standings", "holds"),
    [
        (THREE, {1: H, 2: H, 3: H}, True),
        (THREE, {1: H}, True),  # the sequencer holds all that it ordered
        (THREE, {2: H, 3: H}, True),  # the sequencer alone committed nothing
        (THREE, {2: H}, False),  # 1 and 3 may have
        (THREE, {2: H, 1: L, 3: L}, False),
        (THREE, {2: H, 3: L}, False),  # 1 and 3 may have committed; 3 has lost what it held
        (THREE, {1: H, 2: L, 3: L}, True),
        (THREE, {2: H, 3: U}, True),  # 3 never counted: 1 alone committed nothing
        (THREE, {2: U, 3: U}, False),  # nobody holds the base
        (THREE, {1: L, 2: L, 3: L}, False),
        (THREE, {}, False),
        (FOUR, {2: H, 3: H}, True),  # 1 and 4 are half: no commit quorum
        (FOUR, {2: H, 3: L}, False),
        (FIVE, {2: H, 3: H}, False),
        (FIVE, {2: H, 3: H, 4: U}, True),
        (FIVE, {2: H, 3: H, 4: L}, False),
    ],
)
def test_the_memory_rule(configuration: Configuration, standings: dict[int, int], holds: bool) -> None:
    promises = {node: promise(node, standing) for node, standing in standings.items()}
    assert memory_holds(configuration, promises) is holds
    judgement = judge(evidence(*promises.values(), configuration=configuration, waited=False))
    assert isinstance(judgement, Propose | Wait | NewHistory)
    if not holds:
        assert not isinstance(judgement, Propose)


@given(data=st.data(), nodes=st.integers(1, 5))
def test_where_the_memory_rule_holds_the_highest_held_covers_what_was_committed(
    data: st.DataObject, nodes: int
) -> None:
    """Whatever commit quorum held an index (the sequencer among it: it holds what it ordered), some promise knows."""
    configuration = voters(data, nodes)
    quorums = Quorums(configuration)
    holders = enough(data, nodes, lambda some: quorums.commit(some) and configuration.sequencer in some)
    unsynced = data.draw(st.sets(st.integers(1, nodes))) - holders
    promises = {}
    for node in sorted(data.draw(st.sets(st.integers(1, nodes)))):
        lost = data.draw(st.booleans())
        standing = LOST if lost else UNSYNCED if node in unsynced else HELD
        promises[node] = promise(node, standing, held=100 if node in holders else 50)
    if memory_holds(configuration, promises):
        assert max(one.held for one in promises.values() if one.standing == HELD) == 100


@pytest.mark.parametrize(
    ("promises", "strangers", "waited", "forced", "expected"),
    [
        ({1: L, 2: L, 3: L}, set(), False, False, NewHistory),  # all have answered: it is gone
        ({2: L, 3: L}, set(), False, False, Wait),  # node 1 may have it
        ({2: L, 3: L}, set(), True, False, NewHistory),
        ({2: L}, {3}, True, False, NewHistory),  # a stranger's disk is a lost memory, too
        ({2: L}, {1, 3}, False, False, NewHistory),
        ({2: L, 3: U}, set(), True, False, Wait),  # one who lost it is no commit quorum
        (
            {1: L, 2: U, 3: U},
            set(),
            False,
            False,
            NewHistory,
        ),  # all have answered, and nobody ever held the base
        ({1: U, 2: U}, {3}, False, False, NewHistory),
        ({1: U, 2: U, 3: U}, set(), False, False, NewHistory),
        ({2: U, 3: U}, set(), True, False, Wait),  # node 1 may hold it
        ({2: H, 3: L}, set(), True, False, Wait),
        ({2: H, 3: L}, set(), False, True, NewHistory),  # an operator has said so
        ({}, {1, 2, 3}, False, False, Wait),  # nobody who was a member: nobody may declare it
    ],
)
def test_a_history_is_given_up_only_when_its_memory_is_gone(
    promises: dict[int, int], strangers: set[int], waited: bool, forced: bool, expected: type
) -> None:
    given_ = evidence(
        *(promise(node, standing) for node, standing in promises.items()),
        strangers=strangers, waited=waited, forced=forced,
    )  # fmt: skip
    assert isinstance(judge(given_), expected)


def test_an_operators_word_stands_for_the_others_loss_and_not_for_their_votes() -> None:
    """The half with the tie-breaker may have gone on in this history before it lost its disk."""
    half = configuration_of({1: 2, 2: 2}, sequencer=1, tie_breaker=1)
    alone = evidence(promise(2), configuration=half, strangers={1}, forced=True)
    assert judge(alone) == NewHistory(2)
    confirmed = evidence(accepted(2, 3, value(4, half)), configuration=half, strangers={1}, forced=True)
    assert judge(confirmed) == NewHistory(2)
    assert isinstance(judge(evidence(promise(1), configuration=half, forced=True)), Propose)


def test_a_new_history_begins_with_the_topics_of_the_highest_position() -> None:
    given_ = evidence(
        promise(1, LOST, topics_index=5), promise(2, LOST, topics_index=9), promise(3, LOST, topics_index=9)
    )
    assert judge(given_) == NewHistory(2)


def test_the_topics_of_the_history_before_do_not_come_back() -> None:
    """Who was left out when this history began has its old table, and says that it reaches as far as the new one."""
    began = msgspec.structs.replace(THREE, topics_digest=8)
    old = promise(1, LOST, topics_digest=7)
    as_it_began = promise(2, LOST, topics_digest=8)
    assert judge(evidence(old, as_it_began, promise(3), configuration=began, forced=True)) == NewHistory(2)
    changed = promise(3, LOST, topics_digest=9, topics_index=4)
    assert judge(evidence(old, as_it_began, changed, configuration=began, forced=True)) == NewHistory(3)
    assert judge(evidence(old, changed, configuration=THREE, forced=True)) == NewHistory(3)
    assert judge(evidence(old, as_it_began, configuration=THREE, forced=True)) == NewHistory(1)


def test_who_is_waited_for_is_named() -> None:
    judgement = judge(evidence(promise(2, HELD), promise(3, LOST)))
    assert isinstance(judgement, Wait)
    assert "nodes 1" in judgement.reason


# --- a new view -------------------------------------------------------------------------------------------------------


def test_the_cut_is_the_highest_that_is_held_and_its_holder_is_the_source() -> None:
    judgement = judge(evidence(promise(1, held=10), promise(2, held=17), promise(3, held=12)))
    assert isinstance(judgement, Propose)
    assert (judgement.source, judgement.value.base) == (2, 17)
    assert judgement.value.epochs == [(1, 0), (2, 17)]


def test_an_unsynced_members_held_is_no_cut() -> None:
    judgement = judge(evidence(promise(1, held=10), promise(2, UNSYNCED, held=90)))
    assert isinstance(judgement, Propose)
    assert (judgement.source, judgement.value.base) == (1, 10)


def test_of_equals_the_sequencer_is_the_source() -> None:
    configuration = msgspec.structs.replace(THREE, sequencer=2)
    judgement = judge(evidence(promise(1), promise(2), promise(3), configuration=configuration))
    assert isinstance(judgement, Propose)
    assert judgement.source == 2


def test_order_time_does_not_go_back() -> None:
    assert proposed(evidence(promise(1, order_time=100), promise(2, order_time=170))).order_time == 170
    assert proposed(evidence(promise(1), promise(2), order_time=900)).order_time == 900


def test_the_generation_moves_with_the_members_alone() -> None:
    same = proposed(evidence(promise(1), promise(2), promise(3)))
    assert (same.m_sequence, [one.born_on for one in same.members]) == (1, [1, 1, 1])
    less = proposed(evidence(promise(1), promise(2)))
    assert (less.m_sequence, ids(less)) == (2, [1, 2])
    assert [one.born_on for one in less.members] == [1, 1]


@pytest.mark.parametrize(
    ("promises", "wanted", "resigned", "sequencer"),
    [
        ({1: H, 2: H, 3: H}, 0, set(), 1),  # it stays
        ({2: H, 3: H}, 0, set(), 2),  # else the oldest
        ({1: H, 2: H, 3: H}, 0, {1}, 2),  # who has resigned comes last
        ({1: H, 2: U, 3: H}, 0, {1}, 3),
        ({1: H, 2: U}, 0, {1}, 1),  # better than one who does not hold the base of its own epoch
        ({1: H, 2: H, 3: H}, 3, set(), 3),  # as commanded
        ({1: H, 2: H}, 3, set(), 1),  # it is not there
        ({2: U, 3: H}, 0, set(), 3),
    ],
)
def test_who_becomes_the_sequencer(
    promises: dict[int, int], wanted: int, resigned: set[int], sequencer: int
) -> None:
    given_ = evidence(
        *(
            promise(node, standing, wanted_sequencer=wanted, resigned=node in resigned)
            for node, standing in promises.items()
        )
    )
    assert proposed(given_).sequencer == sequencer


@pytest.mark.parametrize(
    ("sequencer", "resigned", "expected"), [(3, set(), 3), (3, {3}, 1), (2, {1}, 2), (1, {1, 2}, 3)]
)
def test_the_present_sequencer_stays_though_it_is_not_the_oldest(
    sequencer: int, resigned: set[int], expected: int
) -> None:
    configuration = msgspec.structs.replace(THREE, sequencer=sequencer)
    everybody = [promise(node, resigned=node in resigned) for node in (1, 2, 3)]
    assert proposed(evidence(*everybody, configuration=configuration)).sequencer == expected


def test_a_star_without_votes_is_passed_over() -> None:
    configuration = configuration_of({1: 0, 2: 1, 3: 0}, last_man_standing=True, tie_breaker=2)
    everybody = [promise(node) for node in (1, 2, 3)]
    view = proposed(evidence(*everybody, configuration=configuration, linked=links((1, 2))))
    assert (view.sequencer, ids(view)) == (2, [2, 3])


def links(*pairs: tuple[int, int]) -> Any:
    """Everybody is linked but these."""
    return lambda one, other: (one, other) not in pairs and (other, one) not in pairs


def test_members_are_those_linked_with_the_sequencer() -> None:
    """A star is enough: 2 and 3 do not hear each other."""
    everybody = [promise(node) for node in (1, 2, 3)]
    assert ids(proposed(evidence(*everybody, linked=links((2, 3))))) == [1, 2, 3]
    assert ids(proposed(evidence(*everybody, linked=links((1, 3))))) == [1, 2]


def test_a_sequencer_whose_star_is_not_primary_gives_way_to_one_whose_is() -> None:
    given_ = evidence(*(promise(node) for node in range(1, 6)), configuration=FIVE,
                      linked=links((1, 2), (1, 3), (1, 4)))  # fmt: skip
    view = proposed(given_)
    assert (view.sequencer, ids(view)) == (2, [2, 3, 4, 5])


def test_no_view_that_is_not_primary_is_proposed() -> None:
    given_ = evidence(promise(1), promise(2), configuration=FIVE)
    given_.promises[3] = promise(3, LOST)
    judgement = judge(given_)
    assert isinstance(judgement, Wait)
    assert "3, 4, 5" in judgement.reason
    alone = msgspec.structs.replace(FIVE, last_man_standing=True)
    assert ids(proposed(evidence(*given_.promises.values(), configuration=alone))) == [1, 2]


def test_the_leaving_and_the_unwanted_are_left_out() -> None:
    everybody = [promise(node) for node in (1, 2, 3)]
    assert ids(proposed(evidence(*everybody, leaving={1}))) == [2, 3]
    assert proposed(evidence(*everybody, leaving={1})).sequencer == 2
    assert ids(proposed(evidence(*everybody, unwanted={3}))) == [1, 2]


def test_the_unwanted_stay_where_there_would_be_no_view_without_them() -> None:
    given_ = evidence(promise(1), promise(2), promise(3), configuration=FIVE, unwanted={3})
    assert ids(proposed(given_)) == [1, 2, 3]
    given_.promises[4] = promise(4)
    assert ids(proposed(given_)) == [1, 2, 4]


def test_restarted_nodes_are_no_members_until_they_join() -> None:
    given_ = evidence(promise(1), promise(2), promise(3, LOST))
    assert ids(proposed(given_)) == [1, 2]
    given_.candidates = [Candidate(3, 2003, 2003, 1500, ready=False)]
    assert ids(proposed(given_)) == [1, 2]
    given_.candidates = [Candidate(3, 2003, 2003, 1400, ready=True)]
    view = proposed(given_)
    assert [(one.node_id, one.incarnation, one.born_on) for one in view.members] == [
        (1, 1001, 1), (2, 1002, 1), (3, 2003, 2),
    ]  # fmt: skip
    assert (view.m_sequence, view.mtu) == (2, 1400)


def test_who_is_not_ready_joins_where_the_view_would_else_not_be_primary() -> None:
    candidates = [Candidate(node, 2000 + node, 2000 + node, 1500, ready=False) for node in (3, 4, 5)]
    given_ = evidence(
        promise(1), promise(3, LOST), promise(4, LOST), configuration=FIVE, candidates=candidates
    )
    view = proposed(given_)
    assert ids(view) == [1, 3, 4]  # as many as it takes, and no more
    given_.not_again = {3}
    assert ids(proposed(given_)) == [1, 4, 5]
    given_.leaving = {4}
    assert isinstance(judge(given_), Wait)


@pytest.mark.parametrize(
    ("other", "members"),
    [
        ({}, [1, 2, 3, 4]),
        ({"table": {1: 1, 2: 1, 3: 1}}, [1, 2, 3]),  # not in the node table
        ({"linked": links((1, 4))}, [1, 2, 3]),
        ({"not_again": {4}}, [1, 2, 3]),
        ({"leaving": {4}}, [1, 2, 3]),
    ],
)
def test_who_may_join(other: dict[str, Any], members: list[int]) -> None:
    table = other.pop("table", {1: 1, 2: 1, 3: 1, 4: 1})
    configuration = msgspec.structs.replace(THREE, table=table)
    candidates = [Candidate(4, 1004, 2004, 1500, ready=True)]
    everybody = [promise(node) for node in (1, 2, 3)]
    view = proposed(evidence(*everybody, configuration=configuration, candidates=candidates, **other))
    assert ids(view) == members


def test_a_table_that_commands_have_changed_is_the_next_views() -> None:
    """The commands that the highest held covers count, not what others know."""
    table = {1: 2, 2: 1, 4: 1}
    given_ = evidence(
        promise(1, held=30, table=table), promise(2, held=20, table={1: 1}), promise(3, held=20)
    )
    view = proposed(given_)
    assert (view.table, ids(view), [one.votes for one in view.members]) == (table, [1, 2], [2, 1])


def test_no_view_is_without_votes() -> None:
    configuration = configuration_of({1: 1, 2: 0, 3: 0}, last_man_standing=True, sequencer=2, tie_breaker=1)
    given_ = evidence(promise(2), promise(3), configuration=configuration, forced=True)
    assert isinstance(judge(given_), Wait | NewHistory)


def test_the_list_of_epochs_is_bounded() -> None:
    configuration = msgspec.structs.replace(
        THREE, epoch=limits.EPOCHS_REMEMBERED, base=9,
        epochs=[(epoch, epoch) for epoch in range(1, limits.EPOCHS_REMEMBERED)] + [(limits.EPOCHS_REMEMBERED, 9)],
    )  # fmt: skip
    view = proposed(evidence(promise(1), promise(2), configuration=configuration))
    assert len(view.epochs) == limits.EPOCHS_REMEMBERED
    assert view.epochs[-1] == (view.epoch, view.base)


def test_numbers_at_their_end_are_waited_with_and_not_proposed() -> None:
    configuration = msgspec.structs.replace(THREE, epoch=2**32 - 1, epochs=[(2**32 - 1, 0)])
    assert configuration_fault(configuration) == ""
    assert isinstance(judge(evidence(promise(1), promise(2), configuration=configuration)), Wait)


@given(data=st.data(), nodes=st.integers(1, 5))
def test_every_new_view_keeps_its_promises(data: st.DataObject, nodes: int) -> None:
    configuration = msgspec.structs.replace(voters(data, nodes), last_man_standing=data.draw(st.booleans()))
    chosen = data.draw(st.sets(st.integers(1, nodes), min_size=1))
    promises = [
        promise(node, data.draw(st.sampled_from([H, H, H, U, L])), data.draw(st.integers(1, 50)),
                resigned=data.draw(st.booleans()))
        for node in sorted(chosen)
    ]  # fmt: skip
    cut = data.draw(st.sets(st.tuples(st.integers(1, nodes), st.integers(1, nodes)), max_size=5))
    leaving = data.draw(st.sets(st.integers(1, nodes), max_size=1))
    candidates = [
        Candidate(one.store_id - 2000, 5000, one.store_id, 1500, ready=data.draw(st.booleans()))
        for one in promises if one.standing == L
    ]  # fmt: skip
    given_ = evidence(
        *promises, configuration=configuration, linked=links(*cut), leaving=leaving, candidates=candidates
    )
    judgement = judge(given_)
    if not isinstance(judgement, Propose):
        return
    view = judgement.value
    assert memory_holds(configuration, given_.promises)
    assert configuration_fault(view) == ""
    assert view.base == max(one.held for one in promises if one.standing == H)
    assert given_.promises[judgement.source].held == view.base
    assert configuration.last_man_standing or is_primary(configuration.table, ids(view))
    assert not leaving & set(ids(view))
    assert all(
        one.node_id == view.sequencer or given_.linked(view.sequencer, one.node_id) for one in view.members
    )
    for one in view.members:
        stayed = one.incarnation == 1000 + one.node_id
        promised = given_.promises.get(one.node_id)  # None: absent, and only who was a member stays so
        assert stayed if promised is None else promised.standing != L or not stayed
        assert one.born_on == (1 if stayed else view.m_sequence)
    assert (view.m_sequence == 1) == (
        {(one.node_id, one.incarnation) for one in view.members}
        == {(one.node_id, one.incarnation) for one in configuration.members}
    )
