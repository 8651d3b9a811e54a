"""The node table as ordered commands change it: alike everywhere, and never to what could not go on."""

from __future__ import annotations

import errno

import msgspec
import pytest

from ocfcluster import limits
from ocfcluster.protocol.messages import Promise
from ocfcluster.protocol.node_table import NodeTable, payload_bytes, structure_bytes
from ocfcluster.protocol.settings import Ballot, Limits, Member
from ocfcluster.wire import control
from ocfcluster.wire.control import NodeAdd, NodeRemove, NodeVotes, Sequence
from ocfcluster.wire.datagram import STRUCTURE
from tests.unit.protocol_world import configuration_of

THREE = {1: 1, 2: 1, 3: 1}


@pytest.mark.parametrize(
    ("operand", "code", "votes"),
    [
        (NodeAdd(4, 1), 0, {1: 1, 2: 1, 3: 1, 4: 1}),
        (NodeAdd(3, 1), 0, THREE),  # it is there: nothing changes
        (NodeAdd(3, 2), errno.EEXIST, THREE),
        (NodeRemove(3), 0, {1: 1, 2: 1}),
        (NodeRemove(4), errno.EINVAL, THREE),
        (NodeVotes(2, 0), 0, {1: 1, 2: 0, 3: 1}),
        (NodeVotes(2, 9), 0, {1: 1, 2: 9, 3: 1}),
        (NodeVotes(4, 1), errno.EINVAL, THREE),
        (Sequence(2), 0, THREE),
        (Sequence(4), errno.EINVAL, THREE),
        (control.Barrier(), errno.EINVAL, THREE),
    ],
)
def test_commands(operand: control.Operand, code: int, votes: dict[int, int]) -> None:
    table = NodeTable(configuration_of(THREE))
    assert table.apply(operand) == code
    assert table.votes == votes
    wanted = operand.node_id if isinstance(operand, Sequence) and not code else 0
    assert table.wanted_sequencer == wanted
    assert table.changed == (votes != THREE or wanted == 2)


def test_the_present_sequencer_is_no_change() -> None:
    table = NodeTable(configuration_of(THREE))
    assert table.apply(Sequence(1)) == 0
    assert not table.changed


@pytest.mark.parametrize("operand", [NodeVotes(3, 5), NodeAdd(4, 3), NodeRemove(2)])
def test_a_change_that_would_end_primacy_is_refused(operand: control.Operand) -> None:
    """Nodes 1 and 2 are members, 3 is not there."""
    configuration = configuration_of({1: 1, 2: 1}, table=THREE)
    table = NodeTable(configuration)
    expected = 0 if isinstance(operand, NodeRemove) else errno.EBUSY  # 1 of 1 and 3: half
    assert table.apply(operand) == expected
    lone = NodeTable(msgspec.structs.replace(configuration, last_man_standing=True))
    assert lone.apply(operand) == 0


@pytest.mark.parametrize("last_man_standing", [False, True])
def test_no_command_leaves_a_view_without_votes_or_members(last_man_standing: bool) -> None:
    table = NodeTable(configuration_of({1: 1, 2: 0}, last_man_standing=last_man_standing))
    assert table.apply(NodeVotes(1, 0)) == errno.EBUSY
    assert table.apply(NodeRemove(1)) == errno.EBUSY
    assert table.apply(NodeRemove(2)) == 0
    assert table.apply(NodeRemove(1)) == errno.EBUSY
    assert table.votes == {1: 1}


def test_commands_build_on_each_other_and_keep_the_table_sorted() -> None:
    table = NodeTable(configuration_of(THREE))
    for operand in (NodeAdd(9, 1), NodeAdd(5, 1), NodeRemove(3), NodeVotes(1, 2)):
        assert table.apply(operand) == 0
    assert list(table.votes.items()) == [(1, 2), (2, 1), (5, 1), (9, 1)]


def test_a_table_that_fits_no_datagram_is_refused_in_time() -> None:
    many = dict.fromkeys(range(1, 65), 1)
    assert NodeTable(configuration_of(many, mtu=9000)).apply(NodeAdd(99, 1)) == errno.ENOMEM  # limits.NODES
    table = NodeTable(configuration_of(THREE, mtu=1500, last_man_standing=True))
    added = 0
    while table.apply(NodeAdd(100 + added, 0)) == 0:
        added += 1
    assert table.apply(NodeAdd(999, 0)) == errno.ENOMEM
    assert 10 < added < limits.NODES
    room = payload_bytes(1500, 48)
    assert structure_bytes(table.votes, Limits()) <= room
    assert structure_bytes({**table.votes, 999: 0}, Limits()) > room


@pytest.mark.parametrize("nodes", [1, 3, 17, 64])
def test_the_largest_message_fits_what_is_reckoned_for_it(nodes: int) -> None:
    """A PROMISE that carries another table and an accepted configuration, with all numbers as large as can be."""
    most, numbers = 2**62 - 1, 2**32 - 1
    table = {numbers - node: limits.VOTES_MOST for node in range(nodes)}
    members = [Member(numbers, node, 2**64 - 1, 2**64 - 1, limits.VOTES_MOST) for node in sorted(table)]
    largest = configuration_of(
        members, cluster_id="f" * 32, supersedes=["f" * 32] * limits.HISTORIES_REMEMBERED, epoch=numbers, base=most,
        delivery="agreed", mtu=9000, m_sequence=numbers, epochs=[(numbers, most)] * limits.EPOCHS_REMEMBERED,
        order_time=most, topics_digest=2**64 - 1,
        limits=Limits(limits.EVENT_BYTES_CEILING, limits.TOPICS, limits.PRODUCERS_PER_NODE, 256),
    )  # fmt: skip
    ballot = Ballot(numbers, numbers, 2**64 - 1)
    promise = Promise(
        "f" * 32,
        numbers,
        ballot,
        2**64 - 1,
        2,
        most,
        most,
        ballot,
        largest,
        table,
        numbers,
        True,
        most,
        2**64 - 1,
    )
    size = STRUCTURE.size + len(msgspec.msgpack.encode(promise))
    assert size <= structure_bytes(table, largest.limits)
