"""Who is enough: commit and decision quorums of a view, and primacy by the node table."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocfcluster.protocol.quorum import Quorums, is_primary
from tests.unit.protocol_world import configuration_of


@pytest.mark.parametrize(
    ("votes", "nodes", "commit", "decision"),
    [
        ({1: 1}, {1}, True, True),
        ({1: 1}, set(), False, False),
        ({1: 1, 2: 1}, {1}, False, True),  # half, with the tie-breaker
        ({1: 1, 2: 1}, {2}, False, False),
        ({1: 1, 2: 1}, {1, 2}, True, True),
        ({1: 1, 2: 1, 3: 1}, {2, 3}, True, True),
        ({1: 1, 2: 1, 3: 1}, {1}, False, False),
        ({1: 1, 2: 1, 3: 1, 4: 1}, {1, 4}, False, True),
        ({1: 1, 2: 1, 3: 1, 4: 1}, {2, 3}, False, False),
        ({1: 1, 2: 1, 3: 1, 4: 1}, {2, 3, 4}, True, True),
        ({1: 1, 2: 3}, {2}, True, True),  # votes count, not heads
        ({1: 1, 2: 3}, {1}, False, False),
        ({1: 0, 2: 1}, {1}, False, False),
        ({1: 1, 2: 1}, {2, 9, 10}, False, False),  # who is no member has no vote
    ],
)
def test_quorums_by_votes(votes: dict[int, int], nodes: set[int], commit: bool, decision: bool) -> None:
    quorums = Quorums(configuration_of(votes))
    assert quorums.commit(nodes) is commit
    assert quorums.decision(nodes) is decision


def test_a_node_named_twice_counts_once() -> None:
    assert not Quorums(configuration_of({1: 1, 2: 1, 3: 1})).commit([2, 2])
    assert not is_primary({1: 1, 2: 1, 3: 1, 4: 1}, [2, 2])


def test_the_tie_breaker_is_the_configurations() -> None:
    quorums = Quorums(configuration_of({1: 1, 2: 1}, tie_breaker=2))
    assert (quorums.decision({1}), quorums.decision({2})) == (False, True)


@given(votes=st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any), data=st.data())
def test_quorums_meet(votes: list[int], data: st.DataObject) -> None:
    """Any commit quorum meets any decision quorum, and any two decision quorums meet."""
    table = dict(enumerate(votes, 1))
    breaker = data.draw(st.sampled_from([node for node, many in table.items() if many]))
    quorums = Quorums(configuration_of(table, tie_breaker=breaker))
    subsets = list(map(set, chain.from_iterable(combinations(table, size) for size in range(len(table) + 1))))
    for one in subsets:
        assert quorums.decision(one) or not quorums.commit(one)
        if quorums.decision(one):
            for other in subsets:
                if quorums.decision(other) or quorums.commit(other):
                    assert one & other


@pytest.mark.parametrize(
    ("table", "nodes", "primary"),
    [
        ({1: 1, 2: 1, 3: 1}, [1, 2], True),
        ({1: 1, 2: 1, 3: 1}, [1], False),
        ({1: 1, 2: 1}, [2], True),  # half: the decision quorum that makes it excludes the other half
        ({1: 1, 2: 1, 3: 1, 4: 1}, [3, 4], True),
        ({1: 5, 2: 1, 3: 1}, [2, 3], False),
        ({1: 5, 2: 1, 3: 1}, [1], True),
        ({1: 1, 2: 1, 3: 1}, [1, 8, 9], False),
    ],
)
def test_primary_is_half_of_the_tables_votes(table: dict[int, int], nodes: list[int], primary: bool) -> None:
    assert is_primary(table, nodes) is primary
