"""A member that lies, with the key and a place of its own: it may stall the others, and nothing more."""

from __future__ import annotations

import msgspec
import pytest

from ocfcluster import limits
from ocfcluster.protocol import messages
from ocfcluster.protocol.effects import State
from ocfcluster.wire import control
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.datagram import MessageFlags, Order
from tests.unit.lying_member import play
from tests.unit.protocol_world import SECOND_NS, World, publication, traffic
from tests.unit.test_protocol_hostile import EVIL, bounded, four, heartbeat, honest

SEEDS = 40
SEEDS_LONG = 4000


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_lie_of_a_member_makes_a_node_raise_spin_or_grow(seed: int) -> None:
    """One that fails again and again: ``play(seed)``. Whatever a node raises would end its agent."""
    bounded(play(seed))


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_no_lie_of_many_members_makes_a_node_raise_spin_or_grow() -> None:
    for seed in range(SEEDS, SEEDS_LONG):
        bounded(play(seed))


# --- what those seeds have found --------------------------------------------------------------------------------------


def test_a_sequencer_that_tells_a_commit_beyond_all_numbers_makes_no_promise_fail() -> None:
    world = four()
    before = world.plane(2).commit
    for number in (2**63, 2**64 - 1):
        order = Order(0, 1, 2**20, world.plane(2).log.next_index, 1, number, number, [])
        world.inject([2, 3, EVIL], world.forge(1, wire.encode_order(order)))
        beat = heartbeat(commit=number, stable=number, store_id=2001)
        world.inject([2, 3, EVIL], world.forge(1, beat))
    assert world.plane(2).commit == before
    world.kill(1)
    world.until(lambda: world.members(2) == [2, 3, 4])
    traffic(world, [2, 3], 3)


@pytest.mark.parametrize("flags", [0, int(MessageFlags.COPY)])
def test_an_order_of_a_time_that_nothing_can_follow_is_not_taken(flags: int) -> None:
    world = four()
    world.paused = {1}
    log = world.plane(2).log
    begin, packet = log.next_index, world.plane(2).origins.present[2].logged + 1
    world.nodes[2].control(control.Barrier())
    world.settle(2)
    world.run(2_000_000)
    order = Order(flags, 1, 2**20, begin, 2**63, 0, 0, [(2, 1, packet)])
    world.inject([2, 3, EVIL], world.forge(1 if not flags else EVIL, wire.encode_order(order)))
    assert log.next_index == begin
    world.kill(1)
    world.until(lambda: world.members(2) == [2, 3, 4])
    traffic(world, [2, 3], 3)


def test_who_counts_on_from_the_end_of_what_is_allowed_finds_no_fault_with_itself() -> None:
    world = four()
    base = world.plane(1).log.held
    fields = {"epoch": 2, "base": base, "epochs": [(1, 0), (2, base)], "order_time": 2**62 - 1}
    value = msgspec.structs.replace(honest(), **fields)
    world.inject([1, 2, 3], world.forge(EVIL, messages.encode_install(value)))
    world.run(20_000_000)
    assert world.nodes[1].configuration == value
    world.nodes[1].control(control.Barrier())
    world.settle(1)
    world.run(20_000_000)
    assert (
        min(world.plane(node).log.last_order_time for node in (1, 2, 3)) >= 2**62
    )  # the others take it, too
    world.kill(EVIL)
    world.run(3 * SECOND_NS)  # the others cannot go on from there; none of them fails
    assert world.nodes[1].recovery.counters["attempts"]


def test_views_without_what_is_before_them_do_not_pile_up() -> None:
    """Invented ones, each a good successor of the one before, with a base that never comes."""
    world = World(4, suspicion_ns=60 * SECOND_NS).form()
    world.paused = {1, 3, EVIL}
    value = world.nodes[2].configuration
    assert value is not None
    for number in range(3 * limits.VIEWS_UNHELD):
        base, epoch = 1000 + number, value.epoch + 1
        epochs = [*value.epochs, (epoch, base)][-limits.EPOCHS_REMEMBERED :]
        value = msgspec.structs.replace(value, epoch=epoch, base=base, epochs=epochs)
        if world.nodes[2].state is State.EVICTED:
            break
        world.inject([2], world.forge(EVIL, messages.encode_install(value)))
        world.run(5_000_000)
        assert len(world.plane(2).log.views) <= limits.VIEWS_UNHELD
    assert world.nodes[2].state is State.EVICTED


def test_who_falls_silent_while_all_stop_makes_no_timer_ring_without_end() -> None:
    world = World(3).form()
    world.paused = {3}
    world.run(world.settings[1].suspicion_ns - 50_000_000)
    world.control(2, control.Shutdown())
    rings = 0
    while world.nodes[1].state is not State.STOPPED:
        world.step()
        rings += 1
        assert rings < 500


# --- who it was -------------------------------------------------------------------------------------------------------


def test_who_sends_what_cannot_be_is_named() -> None:
    world = four()
    for _ in range(50):
        world.inject([1, 2], world.forge(EVIL, b"\x63 nonsense"))
    told = [text for text in world.news[2] if "cannot be" in text]
    assert told == [f"node {EVIL} sends what cannot be: message of unknown type 99"]
    members = {one["node_id"]: one for one in world.nodes[2].status(world.now)["members"]}
    assert [members[node_id]["malformed"] for node_id in (1, 2, 3, EVIL)] == [0, 0, 0, 50]
    world.run(limits.TOLD_AGAIN_NS)
    world.inject([2], world.forge(EVIL, b"\x63"))
    assert len([text for text in world.news[2] if "cannot be" in text]) == 2


def test_whose_stream_is_broken_is_named() -> None:
    world = four()
    begin = world.plane(1).origins.present[EVIL].contiguous + 1
    body = wire.DATA_HEAD + begin.to_bytes(8, "little") + b"\xff" * 70
    world.inject([1, 2, 3], world.forge(EVIL, body))
    world.paused = {EVIL}
    traffic(world, [1, 2, 3], 3)
    members = {one["node_id"]: one for one in world.nodes[2].status(world.now)["members"]}
    assert [bool(members[node_id]["broken"]) for node_id in (1, 2, 3, EVIL)] == [False, False, False, True]


# --- many of everything -----------------------------------------------------------------------------------------------


def test_thousands_of_incarnations_take_the_place_of_no_member() -> None:
    world = four()
    history = world.history()
    prefix = wire.cluster_hash("test")
    for number in range(3000):
        clear = wire.clear_prefix(prefix, 1 + number % 4, 10**6 + number, history)
        world.inject([2], clear + (1).to_bytes(8, "little") + heartbeat())
    assert len(world.nodes[2].peers._peers) <= 2 * limits.NODES
    traffic(world, [1, 2, 3, EVIL], 3)
    world.agree()
    bounded(world)


def test_producers_topics_groups_and_members_by_the_thousand_end_at_their_limits() -> None:
    world = four()
    node = world.nodes[EVIL]
    for number in range(limits.PRODUCERS_PER_NODE + 300):
        node.plane.control(control.control_run(control.Open(), number))  # type: ignore[union-attr]
    for number in range(limits.GROUPS + 300):
        node.plane.control(control.control_run(control.GroupOpen(f"group:{number}"), number))  # type: ignore[union-attr]
    for number in range(limits.MEMBERSHIPS_PER_NODE + 300):
        name = f"group:{number % 50}"
        node.plane.control(control.control_run(control.GroupJoin(name, 1), number))  # type: ignore[union-attr]
    world.settle(EVIL)
    world.run(3 * SECOND_NS)
    state = world.plane(2).state
    assert sum(one.node_id == EVIL for one in state.producers.values()) == limits.PRODUCERS_PER_NODE
    assert len(state.groups.by_name) == limits.GROUPS
    assert state.groups.memberships == limits.MEMBERSHIPS_PER_NODE
    producer = world.producer(2)  # the others' places are theirs
    world.publish(2, publication(16, producer, 1, [b"x"]))
    world.run(SECOND_NS)
    assert len(world.deliveries(3)) == len(world.deliveries(2)) == 10  # one more than nine of four()
    assert len({world.plane(node_id).state.chain for node_id in world.nodes}) == 1
    bounded(world)


def test_votes_for_what_is_not_asked_change_nothing() -> None:
    """Promises and acceptances by the thousand, for ballots that nobody has: what a node keeps of them is bounded."""
    world = four()
    about = (honest().cluster_id, 1)
    for number in range(1, 2000):
        ballot = messages.Ballot(number, 1 + number % 4, 1001)
        for message in (
            messages.Promise(*about, ballot, 2004, messages.HELD, 2**61, 1, None, None, None, 0, False, 0, 0),
            messages.Accepted(*about, ballot, 2004), messages.Synced(*about, ballot),
            messages.Reject(*about, ballot, messages.Ballot(2**31, 4, 1004)),
        ):  # fmt: skip
            world.inject([1, 2], world.forge(EVIL, messages.encode(message)))
    traffic(world, [1, 2, 3, EVIL], 3)
    world.agree()
    bounded(world)
