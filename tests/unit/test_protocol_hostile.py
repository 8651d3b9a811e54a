"""Hostile and overloaded members: whatever a datagram says, nothing raises and nothing grows without bound."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocfcluster import limits
from ocfcluster.protocol import messages
from ocfcluster.protocol.detector import history_numbers
from ocfcluster.protocol.effects import Multicast, Send, State
from ocfcluster.protocol.messages import (
    HELD,
    LOST,
    UNSYNCED,
    Accept,
    Accepted,
    Message,
    Prepare,
    Promise,
    Reject,
    Sync,
    Synced,
)
from ocfcluster.protocol.settings import Ballot, Configuration, Limits
from ocfcluster.protocol.streams import OriginStream
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.datagram import Extent, Heartbeat, MessageFlags, MessageType, Order, Range
from tests.unit.protocol_world import SECOND_NS, World, datagram, publication, traffic

EVIL = 4
BIG = st.sampled_from([0, 1, 2, 3, 5, 2**16, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1])
BIG32 = st.sampled_from([0, 1, 2, 3, 4, 5, 2**16, 2**31 - 1, 2**32 - 2, 2**32 - 1])
EPOCHS = st.sampled_from([1, 1, 1, 1, 0, 2, 2**32 - 1])
FLAGS = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 31, 32, 64, 128, 192, 255])


def four(**settings: Any) -> World:
    """Nodes 1 (the sequencer), 2 and 3 are honest; 4 sends what a test makes up."""
    world = World(4, **settings).form()
    traffic(world, [1, 2, EVIL], 3)
    return world


@cache
def honest() -> Configuration:
    """The configuration of ``four()``: the same in each of its worlds."""
    configuration = four().nodes[1].configuration
    assert configuration is not None
    return configuration


def heartbeat(**fields: Any) -> bytes:
    history = history_numbers(honest().cluster_id)
    beat = Heartbeat(0, 1, 0, 4 << 20, 1500, *history, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2004, [])
    return wire.encode_heartbeat(beat._replace(**fields))


def bounded(world: World) -> None:
    """Everything that others can fill is within its bounds on every node."""
    for node in world.nodes.values():
        assert len(node.peers._peers) <= 2 * limits.NODES
        assert len(node._store._waiting) < 32
        assert len(node.recovery.proposer._promises) <= limits.NODES
        assert len(node.recovery.initiative.readmission._left) <= limits.NODES
        plane: Any = node.plane
        if plane is None:
            continue
        assert len(plane.log._ahead) <= limits.OUT_OF_ORDER_ORDERS
        assert len(plane.log.views) <= limits.VIEWS_UNHELD
        assert len(plane.origins._by_epoch) <= limits.EPOCHS_REMEMBERED
        assert len(plane.origins.streams) <= limits.NODES * (limits.EPOCHS_REMEMBERED + 1)
        assert len(plane._asker._gaps.open) <= len(plane.origins.streams) + 1
        assert len(plane._sequencer._granted) <= len(plane.origins.present) + 1  # its own
        assert len(plane._sequencer._full_members) <= len(plane.origins.present)
        assert len(plane.learners) <= limits.NODES
        assert len(plane.auditor._checkpoints) <= limits.AUDIT_CHECKPOINTS
        assert len(plane.auditor._others) <= limits.NODES
        assert len(plane._retransmitter._recent) <= limits.OUT_OF_ORDER_ENTRIES
        for origin in plane.origins.streams.values():
            assert origin.ahead_bytes <= limits.OUT_OF_ORDER_BYTES
            assert len(origin._ahead) == len(origin._ahead_firsts) <= limits.OUT_OF_ORDER_ENTRIES


# --- messages of an epoch change: well-formed nonsense ----------------------------------------------------------------

NUMBERS = BIG | st.sampled_from([-1, -(2**63), 2**61, 2**62, 4, 1001, 1004, 2004])
NODES = st.sampled_from([1, 2, 3, 4, 9, 0, 2**32 - 1])
BALLOTS = st.builds(
    Ballot, st.sampled_from([1, 1, 2, 3, 7, 0, 2**32 - 3, 2**32 - 2, 2**32 - 1, 2**64 - 1, -1]), NODES,
    st.sampled_from([1001, 1002, 1003, 1004, 1004, 0, 2**64 - 1]),
)  # fmt: skip


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    """Often one that might follow ``honest()``, often with a field or two that cannot be."""
    good = honest()
    kept = [one for one in good.members if draw(st.booleans())] or good.members[:1]
    epoch = draw(st.sampled_from([2, 2, 2, 3, 1, 2**32 - 1]))
    base = draw(st.sampled_from([0, 1, 5, 20, 30, 2**40, 2**62 - 1]))
    fields: dict[str, Any] = {
        "epoch": epoch, "base": base, "epochs": [(1, 0), (epoch, base)], "members": kept, "m_sequence": 2,
        "sequencer": kept[0].node_id, "tie_breaker": kept[-1].node_id,
    }  # fmt: skip
    if draw(st.booleans()):
        fields |= draw(st.fixed_dictionaries({}, optional={
            "cluster_id": st.sampled_from(["", "0" * 32, "f" * 32, "x"]),
            "supersedes": st.sampled_from([[good.cluster_id], ["0" * 32] * 9]),
            "base": NUMBERS, "order_time": NUMBERS, "epoch": NUMBERS, "mtu": NUMBERS, "m_sequence": NUMBERS,
            "sequencer": NODES, "tie_breaker": NODES, "topics_digest": NUMBERS,
            "table": st.dictionaries(NODES, NUMBERS, max_size=4), "epochs": st.just([]),
            "members": st.lists(st.sampled_from(good.members), max_size=3),
            "limits": st.builds(Limits, NUMBERS, NUMBERS, NUMBERS, NUMBERS),
        }))  # fmt: skip
    return msgspec.structs.replace(good, **fields)


def structure(kind: MessageType, epoch: int, message: msgspec.Struct) -> bytes:
    return wire.encode_structure(kind, epoch & 0xFFFF_FFFF, message)


@st.composite
def epoch_messages(draw: st.DrawFn) -> bytes:
    """INSTALL to ACCEPTED, most of them about what follows ``honest()``."""
    kind = MessageType(draw(st.integers(MessageType.INSTALL, MessageType.ACCEPTED)))
    some = draw(st.just(honest()) | configurations())
    if kind is MessageType.INSTALL:
        return structure(kind, some.epoch, some)
    epoch = draw(st.sampled_from([1, 1, 1, 0, 2, 2**32 - 1]))
    cluster_id = draw(st.sampled_from([honest().cluster_id] * 4 + ["", "0" * 32, "x" * 500]))
    ballot = draw(BALLOTS)
    about = (cluster_id, epoch, ballot)
    maybe = draw(st.none() | st.just(some))
    message: Message
    match kind:
        case MessageType.PREPARE:
            acceptors = draw(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=3))
            message = Prepare(*about, draw(st.none() | st.just(some)), acceptors, draw(NUMBERS))
        case MessageType.PROMISE:
            message = Promise(
                *about, draw(st.just(2004) | NUMBERS), draw(st.sampled_from([HELD, HELD, UNSYNCED, LOST, 9, -1])),
                draw(NUMBERS), draw(NUMBERS), draw(st.none() | BALLOTS), maybe,
                draw(st.none() | st.dictionaries(NODES, NUMBERS, max_size=4)), draw(NUMBERS), draw(st.booleans()),
                draw(NUMBERS), draw(NUMBERS),
            )  # fmt: skip
        case MessageType.REJECT:
            message = Reject(*about, draw(BALLOTS))
        case MessageType.SYNC:
            message = Sync(*about, some, draw(NUMBERS))
        case MessageType.SYNCED:
            message = Synced(*about)
        case MessageType.ACCEPT:
            message = Accept(*about, some)
        case _:
            message = Accepted(*about, draw(st.just(2004) | NUMBERS))
    return structure(kind, epoch, message)


# --- any message of a member ------------------------------------------------------------------------------------------

ENTRIES = st.lists(st.tuples(st.sampled_from([0, 1, 2, 3, 4, 9]), BIG32, BIG), max_size=4)
BODIES = (
    st.builds(
        lambda *fields: wire.encode_order(Order(*fields)), FLAGS, EPOCHS, BIG32, BIG, BIG, BIG, BIG, ENTRIES
    )
    | st.builds(wire.encode_ack, FLAGS, EPOCHS, BIG)
    | st.builds(
        lambda epoch, ranges: wire.encode_nack(epoch, [Range(*one) for one in ranges]),
        EPOCHS,
        st.lists(st.tuples(st.sampled_from([0, 1, 2, 4, 9]), BIG32, st.sampled_from([0, 1001, 1004]), BIG), max_size=5),
    )
    | st.builds(
        lambda number, data: wire.DATA_HEAD + number.to_bytes(8, "little") + data, BIG, st.binary(max_size=80)
    )
    | st.builds(
        lambda node_id, number, data: wire.retransmit_head(node_id, 1000 + node_id)
        + number.to_bytes(8, "little") + data,
        st.sampled_from([1, 2, 3, 4, 9]), BIG, st.binary(max_size=80),
    )
    | st.builds(wire.encode_config_request, BIG32)
    | st.builds(
        lambda flags, small, big, heard: wire.encode_heartbeat(
            Heartbeat(flags, *small, *big[:3], small[0], *big[3:], heard)  # type: ignore[call-arg]
        ),
        FLAGS, st.tuples(BIG32, BIG32, BIG32, BIG32), st.tuples(*[BIG] * 13),
        st.lists(st.tuples(BIG32, BIG), max_size=3),
    )
    | st.builds(
        lambda kind, noise: bytes([kind]) + noise, st.integers(0, 17), st.binary(max_size=120)
    )
    | st.builds(
        lambda flags, history, promised, heard: heartbeat(
            flags=flags, history_time=history[0], history_random=history[1], promised_round=promised[0],
            promised_node=promised[1], promised_incarnation=promised[2], heard=heard,
        ),
        FLAGS, st.deferred(lambda: st.just(history_numbers(honest().cluster_id))), st.tuples(BIG, BIG, BIG),
        st.lists(st.tuples(BIG32, BIG), max_size=3),
    )
)  # fmt: skip
EVERYTHING = BODIES | epoch_messages()


@settings(max_examples=150)
@given(bodies=st.lists(EVERYTHING, min_size=1, max_size=25), members=st.booleans(), at_once=st.booleans())
def test_nothing_that_a_member_says_makes_a_node_raise(
    bodies: list[bytes], members: bool, at_once: bool
) -> None:
    world = four()
    sender = EVIL if members else 1  # also the sequencer itself
    for body in bodies:
        world.inject([node_id for node_id in world.nodes if node_id != sender], world.forge(sender, body))
        if not at_once:
            world.run(20_000_000)
    world.run(SECOND_NS // 2)
    bounded(world)


@settings(max_examples=150)
@given(
    bodies=st.lists(EVERYTHING, min_size=1, max_size=25), pause_ns=st.sampled_from([0, 3_000_000, 60_000_000])
)
def test_no_answer_makes_an_honest_proposer_raise(bodies: list[bytes], pause_ns: int) -> None:
    world = four()
    world.kill(3)
    world.paused = {EVIL}  # what it says is made up here
    world.until(lambda: world.nodes[1].recovery.proposer.active)
    for body in bodies:
        world.inject([1, 2], world.forge(EVIL, body))
        if pause_ns:
            world.run(pause_ns)
    world.run(SECOND_NS)
    bounded(world)


@settings(max_examples=60)
@given(bodies=st.lists(EVERYTHING, min_size=1, max_size=15), wiped=st.booleans())
def test_nothing_that_is_said_to_a_node_that_comes_back_makes_it_raise(
    bodies: list[bytes], wiped: bool
) -> None:
    world = four()
    world.kill(3)
    world.restart(3, wiped=wiped)
    for body in bodies:
        world.run(10_000_000)
        world.inject([3], world.forge(EVIL, body))
    world.run(SECOND_NS)
    bounded(world)


@settings(max_examples=60)
@given(
    kinds=st.lists(st.sampled_from([1, 3, 4, 6, 7]), min_size=1, max_size=10),
    seed=st.integers(0, 2**32),
    flips=st.integers(0, 3),
)
def test_broken_messages_of_a_member_leave_the_others_order_alone(
    kinds: list[int], seed: int, flips: int
) -> None:
    """Not RETRANSMIT, ORDER and what changes epochs: members trust each other's bytes, which a key and not a check
    protects."""
    world, chance = four(), random.Random(seed)
    good = {
        MessageType.DATA: wire.DATA_HEAD + (50).to_bytes(8, "little") + bytes(60),
        MessageType.ACK: wire.encode_ack(0, 1, 5),
        MessageType.NACK: wire.encode_nack(1, [Range(1, 5, 1001, 1), Range(0, 5, 0, 2)]),
        MessageType.HEARTBEAT: heartbeat(),
        MessageType.CONFIG_REQUEST: wire.encode_config_request(0),
    }
    for kind in kinds:
        body = bytearray(good[MessageType(kind)])
        for _ in range(flips):
            at = chance.randrange(1, len(body))
            body[at] ^= 1 << chance.randrange(8)
        whole = world.forge(
            EVIL, bytes(body) if flips else bytes([kind]) + chance.randbytes(chance.randrange(200))
        )
        world.inject([1, 2, 3], whole)
    world.paused = {EVIL}  # which lacks what was sent in its name
    traffic(world, [1, 2, 3], 4)
    world.agree([1, 2, 3])
    bounded(world)


@settings(max_examples=60)
@given(
    bodies=st.lists(EVERYTHING, min_size=1, max_size=25),
    who=st.sampled_from([(EVIL, 77), (1, 78), (9, 9), (0, 0), (2**32 - 1, 2**64 - 1)]),
    counter=BIG,
)
def test_strangers_change_nothing(bodies: list[bytes], who: tuple[int, int], counter: int) -> None:
    world = four()
    for number, body in enumerate([heartbeat(), *bodies]):
        # A later configuration of this history is believed, whoever brings it: what is not sealed can be forged.
        if body[:1] in (bytes([MessageType.INSTALL]), bytes([MessageType.PREPARE])):
            continue
        one = datagram(body, min(counter + number, 2**64 - 1), *who, history=world.history())
        world.inject([1, 2, 3], one)
        world.inject([1, 2, 3], datagram(body, counter, 2, 1002, "another", world.history()))
    traffic(world, [1, 2, 3, EVIL], 3)
    world.agree()
    assert all(world.plane(node_id).log.refused == 0 for node_id in world.nodes)


def test_who_proposes_speaks_for_itself_and_asks_before_it_tells() -> None:
    world = four()
    about = (honest().cluster_id, 1)
    value = msgspec.structs.replace(honest(), epoch=2, base=50, epochs=[(1, 0), (2, 50)])
    for number, ballot in enumerate((Ballot(1, 1, 1001), Ballot(1, EVIL, 77), Ballot(1, EVIL, 1000 + EVIL))):
        for message in (Prepare(*about, ballot, honest(), [], 0), Sync(*about, ballot, value, 1)):
            world.inject([2], datagram(heartbeat(), 3 * number + 1, EVIL, 77))
            world.inject([2], datagram(messages.encode(message), 3 * number + 2, EVIL, 77))
        world.inject([2], world.forge(EVIL, messages.encode(Accept(*about, ballot, value))))
        assert world.nodes[2].recovery.promised is None
        assert not world.plane(2).frozen
    promised = Ballot(1, 1, 1001)
    world.inject([2], world.forge(1, messages.encode(Prepare(*about, promised, honest(), [], 0))))
    before = world.nodes[2].counters["malformed"]
    world.inject([2], world.forge(EVIL, messages.encode(Accept(*about, promised, value))))
    record = world.nodes[2].recovery.acceptor.record(world.nodes[2].recovery.instance)
    assert record is not None
    assert (record.promised, record.accepted) == (
        promised,
        None,
    )  # to node 1: another may not go on in its name
    assert world.nodes[2].counters["malformed"] == before + 1
    traffic(world, [1, 2, 3], 3)
    world.agree()


def test_a_member_whose_stream_is_broken_keeps_nobody_else_from_publishing() -> None:
    world = four()
    begin = world.plane(1).origins.present[EVIL].contiguous + 1
    for number in range(begin, begin + 5):
        body = wire.DATA_HEAD + number.to_bytes(8, "little") + b"\xff" * 70
        world.inject([1, 2, 3], world.forge(EVIL, body))
    world.paused = {EVIL}  # which lacks what was sent in its name
    traffic(world, [1, 2, 3], 10)
    world.agree([1, 2, 3])
    assert [
        world.nodes[node_id].status(world.now)["data_plane"]["broken_streams"] for node_id in (1, 2, 3)
    ] == [1] * 3


# --- single attacks ---------------------------------------------------------------------------------------------------


def test_order_entries_far_ahead_take_no_room_and_are_not_asked_for_for_ever() -> None:
    world = four()
    node, log = world.nodes[2], world.plane(2).log
    begin = log.next_index
    for number in range(limits.OUT_OF_ORDER_ORDERS + 10):
        entries = [(1, 2**32 - 1, 1)]
        body = wire.encode_order(Order(MessageFlags.COPY, 1, 0, 2**64 - 1 - number, 0, 0, 0, entries))
        world.inject([2], world.forge(EVIL, body))
    assert len(log._ahead) == 0
    assert log.highest <= begin + limits.OUT_OF_ORDER_ENTRIES
    body = wire.encode_order(Order(0, 1, 0, 2**64 - 1, 0, 0, 0, []))
    world.inject([2], world.forge(1, body))
    assert log.highest <= begin + limits.OUT_OF_ORDER_ENTRIES
    assert node.state is State.ACTIVE


def test_claims_in_heartbeats_are_bounded() -> None:
    world = four()
    before = world.plane(2).origins.present[EVIL].contiguous
    world.inject(
        [2], world.forge(EVIL, heartbeat(last_packet=2**64 - 1, last_index=2**64 - 1, held=2**64 - 1))
    )
    assert world.plane(2).origins.present[EVIL].highest == before + limits.OUT_OF_ORDER_ENTRIES
    assert world.plane(2).log.highest < 2**20
    world.inject([1], world.forge(EVIL, heartbeat(held=2**64 - 1)))
    assert world.plane(1).commit < 2**20


def nack(world: World, ranges: list[Range]) -> list[Send | Multicast]:
    """What node 1 sends at once when node 2 asks."""
    node, whole = world.nodes[1], world.forge(2, wire.encode_nack(1, ranges))
    node.datagram(whole, len(whole), ("net", 2), world.now)
    return [effect for effect in node.take_effects() if isinstance(effect, Send | Multicast)]


def test_one_request_for_everything_is_answered_within_bounds() -> None:
    world = four(suspicion_ns=60 * SECOND_NS)
    world.paused = {3}  # nothing becomes stable: all is kept
    topic_id, producer = world.topic("much"), world.producer(1)
    for number in range(400):
        world.publish(1, publication(topic_id, producer, number + 1, [b"x" * 1000]))
        if number % 20 == 0:
            world.run(2_000_000)
    world.run(50_000_000)
    assert world.plane(1).log.entries_kept > 300
    sent = nack(world, [Range(0, 2**32 - 1, 0, 1)] * limits.NACK_RANGES)
    assert (
        limits.RETRANSMIT_BYTES * 3 // 4
        < sum(len(effect.buffer) for effect in sent)
        <= limits.RETRANSMIT_BYTES
    )
    sent = nack(world, [Range(1, 2**32 - 1, 1001, 1 + number) for number in range(limits.NACK_RANGES)])
    assert sent
    assert sum(len(effect.buffer) for effect in sent) <= limits.RETRANSMIT_BYTES + limits.SEGMENT_BUFFER_BYTES


def test_a_member_that_ignores_the_window_fills_no_memory() -> None:
    world = World(3, backlog_bytes=1 << 20, window_bytes=1 << 20, suspicion_ns=60 * SECOND_NS).form()
    world.paused = {3}  # nothing becomes stable
    origin = world.plane(2).origins.present[1]
    begin = origin.contiguous + 1
    size = 1400
    for number in range(200):
        first = begin + number * 44
        buffer, segment = wire.encode_packets(
            world.nodes[1].outbox.prefix,
            10**6 + number * 44,
            wire.DATA_HEAD,
            Extent(first, 44, size, bytes(44 * size)),
        )
        world.inject([2], buffer, segment)
    run_limit = world.plane(2)._run_limit_bytes
    assert origin.kept_bytes + origin.ahead_bytes <= (3 << 20) + limits.CONTROL_RESERVE_BYTES + run_limit


def quickly(work: Callable[[], object], seconds: float) -> None:
    began = time.process_time()
    work()
    assert time.process_time() - began < seconds


def test_closing_a_hole_before_many_packets_takes_no_quadratic_time() -> None:
    def close(count: int) -> float:
        origin = OriginStream(1, 1, limits.RUN_BYTES)
        for number in range(2, count + 1):
            origin.add(Extent(number, 1, 1, b"x"))
        began = time.process_time()
        origin.add(Extent(1, 1, 1, b"x"))
        assert origin.contiguous == count
        return time.process_time() - began

    close(1000)
    assert close(limits.OUT_OF_ORDER_ENTRIES) < 0.5


def test_requests_for_packets_behind_a_hole_take_no_walk_over_all_of_them() -> None:
    origin = OriginStream(1, 1, limits.RUN_BYTES)
    for number in range(2, limits.OUT_OF_ORDER_ENTRIES):
        origin.add(Extent(number, 1, 1, b"x"))
    last = limits.OUT_OF_ORDER_ENTRIES - 1

    def ask() -> None:
        for _ in range(200):
            assert [one.first for one in origin.find(last, 5)] == [last]

    quickly(ask, 0.5)


@pytest.mark.parametrize("kind", ["prepare", "accept"])
def test_what_waits_for_a_slow_disk_does_not_pile_up(kind: str) -> None:
    world = four(persist_ns=2_000_000)
    world.persist_ns = 3600 * SECOND_NS
    about = (honest().cluster_id, 1)
    value = msgspec.structs.replace(honest(), epoch=2, base=50, epochs=[(1, 0), (2, 50)])
    message: Message = Prepare(*about, Ballot(1, 1, 1001), honest(), [], 0)
    world.inject([2], world.forge(1, messages.encode(message)))
    for number in range(1, 400):
        ballot = Ballot(number // 2 + 1, 1, 1001)  # each twice
        if kind == "prepare":
            message = Prepare(*about, ballot, honest(), [], 0)
        else:
            message = Accept(*about, ballot, value)
        world.inject([2], world.forge(1, messages.encode(message)))
    assert len(world.nodes[2]._store._waiting) <= 2
    assert world.nodes[2].recovery.promised == Ballot(200, 1, 1001)


# --- configurations that cannot be ------------------------------------------------------------------------------------


def changed(configuration: Configuration, **fields: Any) -> Configuration:
    return msgspec.structs.replace(configuration, **fields)


def test_configurations_that_cannot_be_are_not_installed() -> None:
    good = World(3).form().nodes[1].configuration
    assert good is not None
    members = good.members
    second = members[1]

    def member(**fields: Any) -> list[Any]:
        return [members[0], msgspec.structs.replace(second, **fields), members[2]]

    impossible = [
        {"epoch": 0}, {"base": -1}, {"base": 2**64 - 1}, {"order_time": -1}, {"order_time": 2**64 - 1},
        {"m_sequence": -1}, {"m_sequence": 2**64 - 1}, {"m_sequence": 0},
        {"mtu": 0}, {"mtu": -1}, {"mtu": 9001}, {"sequencer": 9}, {"tie_breaker": 9}, {"version": 2},
        {"cluster_id": ""}, {"cluster_id": "g" * 32}, {"delivery": "never"}, {"members": []},
        {"table": {1: 1}}, {"members": members[:2] + members[1:2]}, {"members": members[1:]},
        {"members": member(votes=0)}, {"members": member(votes=-5)}, {"members": member(votes=2**40)},
        {"members": [*members[:2], msgspec.structs.replace(members[2], incarnation=-1)]},
        {"members": [*members[:2], msgspec.structs.replace(members[2], node_id=2**40)]},
        {"members": [*members[:2], msgspec.structs.replace(members[2], node_id=-3)]},
        {"members": [*members[:2], msgspec.structs.replace(members[2], node_id=9)]},
    ]  # fmt: skip
    for number, fields in enumerate([*impossible, {}]):
        world = World(3)
        world.inject([2], datagram(heartbeat(epoch=0), 1, 1, 1001))
        configuration = changed(good, **fields)
        body = messages.encode_install(configuration)
        world.inject([2], datagram(body, 2, 1, 1001))
        world.paused = {1, 3}
        world.run(SECOND_NS // 4)
        expected = State.FORMING if number < len(impossible) else State.ACTIVE
        assert world.nodes[2].state is expected, fields


@settings(max_examples=150)
@given(data=st.data())
def test_no_configuration_makes_a_node_raise(data: st.DataObject) -> None:
    world = World(2)
    good = World(2).form().nodes[1].configuration
    assert good is not None
    fields = msgspec.to_builtins(good)
    integers = st.integers(-(2**63), 2**64 - 1) | st.integers(-3, 3)
    for _ in range(data.draw(st.integers(1, 3))):
        where = fields
        at = data.draw(st.integers(0, len(where) - 1))
        if isinstance(where[at], list) and where[at] and data.draw(st.booleans()):
            where, at = where[at], data.draw(st.integers(0, len(where[at]) - 1))
            if isinstance(where[at], list) and data.draw(st.booleans()):
                where, at = where[at], data.draw(st.integers(0, len(where[at]) - 1))
        where[at] = data.draw(integers | st.sampled_from([None, "", [], {}, True, "0" * 32, 1.5]))
    epoch = fields[2] if isinstance(fields[2], int) and 0 <= fields[2] < 2**32 else 1
    body = wire.STRUCTURE.pack(MessageType.INSTALL, 0, 0, epoch) + msgspec.msgpack.encode(fields)
    world.inject([2], datagram(heartbeat(), 1, 1, 1001))
    world.inject([2], datagram(body, 2, 1, 1001))
    world.paused = {1}
    world.run(SECOND_NS // 3)
    if world.nodes[2].state is State.ACTIVE:
        world.nodes[2].publish(publication(16, 1, 1, [b"x"]))
        world.settle(2)
        world.run(SECOND_NS // 3)


@pytest.mark.parametrize("granted", [0, 1])
def test_a_claim_of_no_receive_buffer_stops_nobody(granted: int) -> None:
    world = four()
    world.inject([1], world.forge(EVIL, heartbeat(granted=granted)))
    traffic(world, [1, 2], 10)
    world.agree()


def test_a_clock_beyond_all_numbers_begins_a_history_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken battery: 2^62 ns are the year 2116."""
    monkeypatch.setattr("tests.unit.protocol_world.WALL_NS", 2**63)
    world = World(3).form()
    assert world.members(1) == [1, 2, 3]
    traffic(world, [1, 2, 3], 3)
    world.kill(1)  # the order goes on from clock to clock, and there is room for it
    world.until(lambda: world.members(2) == [2, 3])
    traffic(world, [2, 3], 3)


def test_a_new_history_begins_with_the_time_of_day_whatever_the_old_one_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.unit.protocol_world.WALL_NS", 2**61)
    world = World(3).form()
    first = world.nodes[1].configuration
    assert first is not None
    assert first.order_time >= 2**61
    monkeypatch.setattr("tests.unit.protocol_world.WALL_NS", 2**60)  # the clock was set right
    for node_id in world.nodes:
        world.kill(node_id)
    for node_id in world.nodes:
        world.restart(node_id)
    world.until(lambda: world.members(1) == [1, 2, 3] and world.nodes[1].configuration != first)
    second = world.nodes[1].configuration
    assert second is not None
    assert second.cluster_id != first.cluster_id
    assert second.order_time < 2**61
