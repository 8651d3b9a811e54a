"""Joining: a snapshot from the sequencer, catching up, and one view that admits; and everything that comes between."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from ocfcluster.errors import MalformedSnapshot
from ocfcluster.protocol.effects import FetchSnapshot, State, View
from ocfcluster.protocol.judgement import Candidate
from ocfcluster.protocol.settings import Ballot, Configuration, PaxosRecord
from ocfcluster.protocol.snapshot import Making, Request, decode_topics, encode_request, encode_topics
from ocfcluster.protocol.state import topics_digest
from ocfcluster.wire import control
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.topics import DEFAULT_SETTINGS
from tests.unit.protocol_world import SECOND_NS, World, publication, traffic

MS = 1_000_000


def configuration(world: World, node_id: int) -> Configuration:
    found = world.nodes[node_id].configuration
    assert found is not None
    return found


def without_three(**settings: object) -> World:
    """Nodes 1 and 2 run; 3 has died and been left out."""
    world = World(3, **settings).form()  # type: ignore[arg-type]
    traffic(world, [1, 2, 3], 3)
    world.kill(3)
    world.until(lambda: world.members(1) == world.members(2) == [1, 2])
    return world


def joined(world: World) -> None:
    world.until(lambda: world.nodes[3].state is State.ACTIVE and world.members(1) == [1, 2, 3])


def meddle(world: World, with_it: Callable[[list[bytes] | None], list[bytes] | None]) -> None:
    """What the sequencer gives goes through ``with_it``."""
    node = world.nodes[1]
    give = node.give_snapshot

    def given(request: bytes, now: int) -> Making | None:
        making = give(request, now)
        parts = with_it(None if making is None else making())
        return None if parts is None else lambda: parts

    node.give_snapshot = given  # type: ignore[method-assign]


def test_a_joiner_tells_nothing_before_the_view_that_admits_it_and_everything_behind_it() -> None:
    world = without_three()
    topic_id, producer = world.topic(), world.producer(1)
    world.restart(3)
    states = []
    number = 0
    while world.nodes[3].state is not State.ACTIVE:
        number += 1
        world.publish(1, publication(topic_id, producer, number, [b"x" * 500]))
        world.run(10 * MS)
        if world.nodes[3].state is not State.ACTIVE:
            assert world.log[3] == []
            assert world.nodes[3].room() == 0
        states.append(world.nodes[3].state)
    assert State.LEARNING in states
    world.until(lambda: world.count(1) == world.count(2) == 27 + number)
    view = world.log[3][0]
    assert isinstance(view, View)
    assert [one.incarnation for one in view.joined] == [2003]
    world.until(lambda: world.log[3] == world.log[1][world.log[1].index(view) :])
    assert world.nodes[3].counters["malformed"] == 0
    assert world.nodes[3].last_seq(topic_id) == number


def test_a_joiner_under_load_and_loss_gets_there() -> None:
    world = without_three(seed=5, loss=0.05, backlog_bytes=1 << 20)
    topic_id, producer = world.topic(), world.producer(2)
    number = 0

    def publish() -> None:
        nonlocal number
        while world.nodes[2].room() > 7 << 20 and number < 400:
            number += 1
            world.publish(2, publication(topic_id, producer, number, [b"x" * 20_000]))
        world.later(5 * MS, publish)

    publish()
    world.run(100 * MS)
    world.restart(3)
    joined(world)
    world.until(lambda: world.count(1) == 427)
    view = world.log[3][0]
    assert isinstance(view, View)
    world.until(lambda: world.log[3] == world.log[1][world.log[1].index(view) :])


@pytest.mark.parametrize("answer", [None, b"", b"x", b"\xff" * 500])
def test_a_snapshot_that_fails_is_fetched_again(answer: bytes | None) -> None:
    world = without_three()
    failures = 3

    def fail(parts: list[bytes] | None) -> list[bytes] | None:
        nonlocal failures
        if parts is None or not failures:
            return parts
        failures -= 1
        return None if answer is None else [answer]

    meddle(world, fail)
    world.restart(3)
    joined(world)
    assert failures == 0
    assert world.nodes[3].joiner.counters == {"snapshots_fetched": 1, "snapshots_failed": 3}
    assert len(world.faults[3]) == (0 if answer is None else 3)


def test_a_snapshot_that_came_too_late_is_of_no_use() -> None:
    world = without_three()
    world.snapshot_ns = 3 * SECOND_NS
    world.restart(3)
    world.run(SECOND_NS)
    world.control(1, control.Sequence(2))  # the epoch ends meanwhile
    world.until(lambda: configuration(world, 1).sequencer == 2)
    world.snapshot_ns = 5 * MS
    world.until(lambda: world.nodes[3].state is State.ACTIVE)
    assert world.members(2) == [1, 2, 3]


def test_the_answer_to_an_earlier_request_is_ignored() -> None:
    world = without_three()
    world.restart(3)
    node = world.nodes[3]
    world.until(lambda: node.joiner.fetching)
    node.snapshot_fetched(99, MalformedSnapshot("another's"), world.now)
    assert node.joiner.fetching
    assert node.joiner.counters["snapshots_failed"] == 0
    joined(world)


def test_a_learner_that_gets_nothing_more_begins_anew() -> None:
    world = without_three()
    world.restart(3)
    world.until(lambda: world.nodes[3].state is State.LEARNING)
    lost = world.plane(3)
    send = world._send

    def deaf(source: int, target: int, buffer: bytes, segment: int) -> None:
        if target != 3 or buffer[wire.BODY] in (6, 7, 8):  # heartbeats and configurations alone
            send(source, target, buffer, segment)

    world._send = deaf  # type: ignore[method-assign]
    world.topic("more")
    world.nodes[1].recovery.initiative.readmission.left(3, world.now)
    world.until(lambda: world.nodes[3].state is State.FORMING or world.plane(3) is not lost, 20 * SECOND_NS)
    world._send = send  # type: ignore[method-assign]
    joined(world)


def test_who_is_not_in_the_node_table_fetches_nothing() -> None:
    world = without_three()
    assert world.control(1, control.NodeRemove(3)).error == 0
    world.until(lambda: 3 not in configuration(world, 1).table)
    world.restart(3)
    world.run(3 * SECOND_NS)
    assert world.nodes[3].state is State.FORMING
    assert not world.nodes[3].joiner.fetching
    assert "added to the node table" in world.nodes[3].waiting_for


# --- giving -----------------------------------------------------------------------------------------------------------


def asked(world: World, giver: int, **fields: object) -> list[bytes] | None:
    current = configuration(world, 1)
    request = Request(wire.cluster_hash("test"), 3, 2003, current.cluster_id, current.epoch, False)
    making = world.nodes[giver].give_snapshot(
        encode_request(msgspec.structs.replace(request, **fields)), world.now
    )
    return None if making is None else making()


def test_who_gives_what() -> None:
    world = without_three()
    assert asked(world, 1) is not None
    assert asked(world, 2) is not None
    assert (3, 2003) in world.plane(1).learners  # what it still needs is kept from now on
    assert world.plane(2).learners == {}
    for fields in ({"cluster": 1}, {"node_id": 9}, {"epoch": 1}, {"cluster_id": "f" * 32}):
        assert asked(world, 1, **fields) is None
    assert world.nodes[1].give_snapshot(b"\xc1", world.now) is None
    assert World(3).nodes[1].give_snapshot(encode_request(Request(0, 1, 1, "", 0, True)), 0) is None
    topics = asked(world, 1, topics=True, epoch=99)
    assert topics is not None
    found = decode_topics(b"".join(topics))
    assert [name for _, name, _, _ in found.rows] == [
        name for name in world.nodes[1].topics if not name.startswith("oc.")
    ]


def test_nothing_is_given_while_an_epoch_is_on_its_way() -> None:
    world = without_three()
    world.persist_ns = 200 * MS
    world.nodes[1].control(control.Sequence(2))
    world.settle(1)
    world.until(lambda: world.nodes[1].installation.under_way)
    assert asked(world, 1) is None


# --- the topics of a new history --------------------------------------------------------------------------------------


def test_a_wiped_node_gets_the_topics_that_a_new_history_begins_with() -> None:
    world = World(3, history_wait_ns=2 * SECOND_NS).form()
    world.topic("kept")
    old = configuration(world, 1).cluster_id
    world.run(SECOND_NS)
    world.kill(1, 2, 3)
    world.restart(1)
    world.restart(2)
    world.restart(3, wiped=True)
    world.until(lambda: all(node.state is State.ACTIVE for node in world.nodes.values()), 30 * SECOND_NS)
    assert {configuration(world, one).supersedes[0] for one in world.nodes} == {old}
    assert all("kept" in node.topics for node in world.nodes.values())


def test_other_topics_than_those_that_are_wanted_are_not_taken() -> None:
    world = World(2).form()
    world.topic("mine")
    world.run(SECOND_NS)
    node = world.nodes[2]
    rows, wanted = node._store.record.topics, [(16, "wanted", False, DEFAULT_SETTINGS)]
    digest = topics_digest(wanted, 17)
    for answer, taken in (([(16, "other", False, DEFAULT_SETTINGS)], rows), (wanted, wanted)):
        node.joiner.fetch_topics(1, digest, world.now)
        [fetch] = [one for one in node.take_effects() if isinstance(one, FetchSnapshot)]
        node.snapshot_fetched(fetch.token, fetch.read(encode_topics(answer, 17, 10**6)), world.now)
        assert node._store.record.topics == taken
        world.now += SECOND_NS


def test_the_place_of_topics_is_one_of_the_history_that_they_were_asked_in() -> None:
    """While they are on their way the new history comes to the disk, in which numbers begin anew."""
    world = World(2).form()
    node = world.nodes[2]
    wanted = [(16, "wanted", False, DEFAULT_SETTINGS)]
    old = configuration(world, 2)
    for known, index in ((old, 304), (msgspec.structs.replace(old, cluster_id="f" * 32), 0)):
        node.joiner.fetch_topics(1, topics_digest(wanted, 17), world.now)
        [fetch] = [one for one in node.take_effects() if isinstance(one, FetchSnapshot)]
        node._store.change(configuration=known)
        node.snapshot_fetched(fetch.token, fetch.read(encode_topics(wanted, 17, 304)), world.now)
        assert (node._store.record.topics, node._store.record.topics_index) == (wanted, index)
        world.now += SECOND_NS


def test_who_lacks_what_another_promiser_has_freed_is_not_ready() -> None:
    """Its proposer may not know yet how far others have freed: they say so with their promises."""
    world = World(3).form()
    world.kill(3)
    world.restart(3)
    initiative = world.nodes[1].recovery.initiative

    def candidate(freed: int = 0) -> Candidate | None:
        configuration = world.nodes[1].configuration
        assert configuration is not None
        return next(
            (one for one in initiative.candidates(configuration, world.now, freed) if one.node_id == 3), None
        )

    world.until(lambda: bool((found := candidate()) and found.ready))
    held = world.plane(3).log.held
    assert [found.ready for freed in (held, held + 1) if (found := candidate(freed))] == [True, False]
    promise = world.nodes[2].recovery._promise(PaxosRecord("", 0, Ballot(1, 1, 1)), Ballot(1, 1, 1))
    assert promise.freed == world.plane(2).stable > 0
