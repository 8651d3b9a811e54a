"""A world one of whose members lies: what it sends is made of what is really said, with some of the numbers changed.

It has the key, and a real node's place in the cluster. So its lies come when they matter: in the middle of an epoch
change, to a node that joins, in the answer to a question.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any, Final

import msgspec
from xxhash import xxh3_64_intdigest

from ocfcluster.protocol.effects import FetchSnapshot, State
from ocfcluster.wire import control
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.datagram import MessageType
from ocfcluster.wire.group import LeaveReason
from ocfcluster.wire.run import RUN_HEADER_BYTES, RunKind, build_run
from ocfcluster.wire.topics import Retention, TopicSettings
from tests.unit.protocol_world import CLUSTER, SECOND_NS, World, datagram, publication

_HEARD: Final = 300  # of what others say it remembers so much, to say it in its own name
_STEPS_AT_ONCE: Final = 10_000
_U32: Final = 2**32 - 1
_U64: Final = 2**64 - 1
_ABSURD: Final = (
    0, 1, 2, 3, 4, 5, 63, 64, 65, 255, 256, 2**16, 2**31, _U32 - 1, _U32, 2**32, 2**62 - 1, 2**62, 2**63 - 1, 2**63,
    _U64 - 1, _U64, -1, -(2**63),
)  # fmt: skip
_HEADS: Final = {
    MessageType.DATA: (wire.DATA, None), MessageType.ORDER: (wire.ORDER, wire.ORDER_ENTRY),
    MessageType.ACK: (wire.ACK, None), MessageType.NACK: (wire.NACK, wire.NACK_RANGE),
    MessageType.RETRANSMIT: (wire.RETRANSMIT, None), MessageType.HEARTBEAT: (wire.HEARTBEAT, wire.HEARD),
    MessageType.CONFIG_REQUEST: (wire.CONFIG_REQUEST, None),
}  # fmt: skip
_SNAPSHOT_HEAD: Final = struct.Struct("<IQ")
_TOPICS: Final = ("t", "kept", "u", "v")
_GROUPS: Final = ("group:a", "group:b")


class LyingWorld(World):
    """Nodes 1 to 4, ``liar`` among them. ``rate``: how much of what it says is changed."""

    def __init__(self, seed: int) -> None:
        super().__init__(4, seed=seed, loss=0.01 if seed % 3 == 0 else 0.0)
        self.liar = 1 + self.random.randrange(4)  # node 1 is the first sequencer
        self.rate = 0.0
        self.forgers = self.random.random() < 0.5  # it speaks in the name of others, too
        self._heard: deque[bytes] = deque(maxlen=_HEARD)
        self._numbers: deque[int] = deque(_ABSURD, maxlen=_HEARD)
        self.lies = 0
        self._at = (0, 0)  # the time, and how many steps it has stood still

    def step(self) -> None:
        super().step()
        before, steps = self._at
        self._at = (self.now, steps + 1 if before == self.now else 0)
        assert steps < _STEPS_AT_ONCE, f"a timer rings without end: {self.status()}"

    def status(self) -> dict[int, object]:
        return {node_id: node.status(self.now) for node_id, node in self.nodes.items()}

    # --- what goes out ------------------------------------------------------------------------------------------

    def _send(self, source: int, target: int, buffer: bytes, segment: int) -> None:
        if self.rate and self.random.random() < 0.2:
            self._heard.append(bytes(next(wire.split(buffer, segment))[wire.BODY :]))
        if source != self.liar or self.random.random() >= self.rate:
            super()._send(source, target, buffer, segment)
            return
        for piece in wire.split(buffer, segment):
            if self.random.random() < 0.3:
                super()._send(source, target, piece, len(piece))  # the truth as well
            self._lie(target, piece[wire.BODY :])

    def _lie(self, target: int, body: bytes) -> None:
        self.lies += 1
        whole = self.forge(self.liar, self.twisted(body))
        if self.forgers and self.random.random() < 0.1:
            whole = self._as_another(whole[wire.BODY :])
        super()._send(self.liar, target, whole, len(whole))

    def _as_another(self, body: bytes) -> bytes:
        """In the name of another node, or of an incarnation that there never was."""
        node_id = self.random.choice([1, 2, 3, 4, 5, 9, _U32])
        known = self.settings.get(node_id)
        incarnation = (
            known.incarnation if known is not None and self.random.random() < 0.5 else self._absurd() & _U64
        )
        counter = self.random.choice([self.random.randrange(1, 10**6), _U64, 1])
        return datagram(body, counter, node_id, incarnation, CLUSTER, self.history())

    def make_up(self) -> None:
        """Something that nobody has asked for, to one node or to all."""
        if not self._heard or self.liar in self.dead:
            return
        body = self.random.choice(self._heard)
        for target in self.nodes:
            if target != self.liar and self.random.random() < 0.7:
                self._lie(target, body)

    def _fetch(self, node_id: int, effect: FetchSnapshot) -> None:
        giver = self.nodes.get(int(effect.address[1]))
        if giver is None or giver.settings.node_id != self.liar or not self.rate:
            if giver is not None:
                super()._fetch(node_id, effect)
            return
        request = effect.request
        if self.random.random() < 0.3:
            request = msgspec.msgpack.encode(self._twist(msgspec.msgpack.decode(request)))
        making = giver.give_snapshot(request, self.now)
        self.settle(self.liar)
        answer = None if making is None else effect.read(self._twisted_snapshot(b"".join(making())))
        taker = self.nodes[node_id]

        def arrive() -> None:
            if node_id not in self.dead and self.nodes[node_id] is taker:
                taker.snapshot_fetched(effect.token, answer, self.now)
                self.settle(node_id)

        self.later(self.snapshot_ns, arrive)

    # --- how it lies --------------------------------------------------------------------------------------------

    def twisted(self, body: bytes) -> bytes:
        """A body of the same form that says something else."""
        kind = body[0] if body else 0
        for _ in range(self.random.choice([0, 1, 1, 1, 2, 4])):
            body = self._twisted_once(body, kind)
        return body or b"\x00"

    def _twisted_once(self, body: bytes, kind: int) -> bytes:
        if kind in _HEADS:
            head, line = _HEADS[MessageType(kind)]
            if len(body) < head.size:
                return body
            rest = body[head.size :]
            fields = list(head.unpack_from(body))
            if line is not None and rest and len(rest) % line.size == 0 and self.random.random() < 0.5:
                lines = [list(one) for one in line.iter_unpack(rest)]
                lines = self._twist(lines)[:80]
                if all(
                    isinstance(one, list) and len(one) == len(line.unpack(bytes(line.size))) for one in lines
                ):
                    rest = b"".join(_pack(line, one) for one in lines)
                    fields[2] = len(lines)
                return _pack(head, fields) + rest
            at = self.random.randrange(1, len(fields))
            fields[at] = self._number(fields[at])
            return _pack(head, fields) + rest
        if MessageType.INSTALL <= kind <= MessageType.ACCEPTED:
            try:
                message = msgspec.msgpack.decode(body[wire.STRUCTURE.size :])
            except msgspec.DecodeError:
                return body
            message = self._twist(message)
            place = 2 if kind == MessageType.INSTALL else 1
            epoch = message[place] if isinstance(message, list) and len(message) > place else 1
            epoch = epoch & _U32 if isinstance(epoch, int) else 1
            return wire.STRUCTURE.pack(kind, 0, 0, epoch) + msgspec.msgpack.encode(message)
        return body

    def _twisted_snapshot(self, snapshot: bytes) -> bytes:
        length, _ = _SNAPSHOT_HEAD.unpack_from(snapshot)
        end = _SNAPSHOT_HEAD.size + length
        header = msgspec.msgpack.decode(snapshot[_SNAPSHOT_HEAD.size : end])
        for _ in range(self.random.choice([0, 1, 1, 2, 3])):
            header = self._twist(header)
        encoded = msgspec.msgpack.encode(header)
        blobs = bytearray(snapshot[end:])
        if blobs and self.random.random() < 0.3:
            at = self.random.randrange(len(blobs))
            blobs[at] ^= 1 << self.random.randrange(8)
        rest = encoded + bytes(blobs)
        return _SNAPSHOT_HEAD.pack(len(encoded), xxh3_64_intdigest(rest)) + rest

    def _twist(self, value: Any) -> Any:
        """Changed in one place, somewhere within it."""
        chance = self.random
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            return self._number(value)
        if isinstance(value, str):
            return chance.choice(["", value[1:], value + "x", "0" * 32, value[::-1], "é" * 200])
        if isinstance(value, list) and value:
            how = chance.randrange(12)
            at = chance.randrange(len(value))
            if how == 0:
                return value[:at] + value[at + 1 :]
            if how == 1:
                return [*value, value[at]]
            if how == 2:
                return chance.sample(value, len(value))
            return [*value[:at], self._twist(value[at]), *value[at + 1 :]]
        if isinstance(value, dict) and value:
            key = chance.choice(sorted(value))
            if chance.random() < 0.3:
                return {self._number(one) if one == key else one: what for one, what in value.items()}
            return {**value, key: self._twist(value[key])}
        return chance.choice([None, 0, [], "", {}, self._absurd(), [self._absurd()] * 3])

    def _number(self, number: int) -> int:
        self._numbers.append(number)
        if self.random.random() < 0.5:
            number += self.random.choice([1, -1, 2, -2, 64, -64, 1000])
            return max(-(2**63), min(number, _U64))
        return self._absurd()

    def _absurd(self) -> int:
        """Something absurd, or true of something else."""
        if self.random.random() < 0.5:
            return self.random.choice(_ABSURD)
        return self.random.choice(self._numbers)

    # --- what it has ordered ------------------------------------------------------------------------------------

    def hand_in(self, node_id: int) -> None:
        """A run of the liar: of any kind, in anybody's name."""
        node, chance = self.nodes[node_id], self.random
        if node_id in self.dead or node.state is not State.ACTIVE or node.plane is None:
            return
        producers = list(node.plane.state.producers) or [0]
        kind = chance.randrange(6)
        if kind < 2:
            events = [bytes(chance.randrange(200))] * chance.randrange(1, 5)
            number = chance.choice([0, 1, 2, 4, 2**32, 2**63, _U64 - 1])
            topic = chance.choice([16, 17, 18, 1, 2, 0, 2**31, 2**31 + 1, _U32])
            run = publication(topic, chance.choice([*producers, 0, 2**63]), number, events)
        elif kind == 2:
            run = build_run(
                RunKind(chance.choice(list(RunKind))), 0, 0, self._absurd() & _U64, [self._operand_bytes()]
            )
        else:
            try:
                run = control.control_run(self.operand(producers), self._absurd() & _U64)
            except ValueError:
                return
        node.plane.control(run)
        self.settle(node_id)

    def _operand_bytes(self) -> bytes:
        operand = msgspec.msgpack.encode(self._twist(msgspec.to_builtins(self.operand([1]))))
        return operand[: RUN_HEADER_BYTES * 100]

    def operand(self, producers: list[int]) -> control.Operand:
        chance = self.random
        node_id = chance.choice([1, 2, 3, 4, 5, self.liar])
        name = chance.choice(_TOPICS)
        group = chance.choice([*_GROUPS, f"group:{chance.randrange(10**6)}"])
        kept = TopicSettings(
            retention=Retention(events=chance.choice([0, 1, 3, 50]), bytes=chance.choice([0, 300]))
        )
        return chance.choice([
            control.Open(), control.Close(chance.choice(producers)), control.TopicCreate(name, False),
            control.TopicCreate(name, False, kept), control.TopicAlter(name, kept), control.TopicRemove(name),
            control.TopicCreate(f"{chance.random()}", False), control.Barrier(), control.GroupOpen(group),
            control.GroupJoin(group, 7), control.GroupJoin(_GROUPS[0], 7),
            control.GroupLeave(group, chance.choice([1, 2, 5, 9, 2**62]), LeaveReason.LEFT),
            control.NodeVotes(node_id, chance.choice([0, 1, 1, 2, 255])), control.Sequence(node_id),
            control.NodeAdd(node_id, 1), control.NodeRemove(5),
        ])  # fmt: skip


def _pack(form: struct.Struct, fields: list[Any]) -> bytes:
    """With each number cut to what its field takes."""
    codes = [code for code in form.format if code.isalpha()]
    sizes = [(1 << 8 * struct.calcsize("<" + code)) - 1 for code in codes]
    numbers = [field if isinstance(field, int) else 0 for field in fields]
    return form.pack(*[number & size for number, size in zip(numbers, sizes, strict=True)])


def play(seed: int, turns: int = 40) -> LyingWorld:
    """One game: honest work, faults and lies, in turns. Whatever a node raises comes out of here."""
    world = LyingWorld(seed)
    chance = world.random
    world.form()
    world.topic("t")
    producers = {node_id: world.producer(node_id) for node_id in world.nodes}
    world.rate = chance.choice([0.02, 0.1, 0.5])
    numbers = dict.fromkeys(world.nodes, 1)
    for _ in range(turns):
        node_id = 1 + chance.randrange(4)
        turn = chance.randrange(14)
        if turn < 5:
            node = world.nodes[node_id]
            if node_id not in world.dead and node.room() > 0:
                world.publish(
                    node_id, publication(16, producers[node_id], numbers[node_id], [b"x" * 500] * 3)
                )
                numbers[node_id] += 3
        elif turn < 8:
            for _ in range(chance.randrange(1, 6)):
                world.hand_in(world.liar)
        elif turn < 11:
            for _ in range(chance.randrange(1, 30)):
                world.make_up()
        elif turn == 11:
            world.kill(node_id)
        elif turn == 12:
            dead = sorted(world.dead)
            if dead:
                world.restart(chance.choice(dead), wiped=chance.random() < 0.2)
        else:
            world.paused = {node_id} if chance.random() < 0.5 else set()
        if len(world.dead) == len(world.nodes):
            world.restart(node_id)
        world.run(chance.choice([1, 20, 100, 700]) * SECOND_NS // 1000)
    return world
