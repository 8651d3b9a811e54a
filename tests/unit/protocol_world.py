"""A small world for tests of ``protocol.Node``: nodes in memory, one clock, seeded loss, delay and duplication."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ocfcluster.protocol import Node
from ocfcluster.protocol.effects import (
    Deliver,
    Delivery,
    Effect,
    Fault,
    FetchSnapshot,
    HistoryLost,
    Multicast,
    News,
    Notification,
    Outcome,
    Persist,
    Send,
    State,
    StateChange,
    Stop,
    TopicChange,
    View,
)
from ocfcluster.protocol.settings import Configuration, Limits, Member, Settings
from ocfcluster.wire import control
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.run import RunKind, build_run

START_NS = 10**9
WALL_NS = 1_700_000_000 * 10**9
SECOND_NS = 10**9
CLUSTER = "test"
EVIL_SOURCE = ("evil", 666)


def settings_of(node_id: int, table: dict[int, int], **other: Any) -> Settings:
    """Settings whose incarnation and store are told from other numbers at a glance."""
    values: dict[str, Any] = {
        "cluster_name": CLUSTER, "node_id": node_id, "incarnation": 1000 + node_id, "store_id": 2000 + node_id,
        "seed": node_id, "table": table, "receive_buffer_bytes": 4 << 20,
    }  # fmt: skip
    return Settings(**{**values, **other})


def configuration_of(members: dict[int, int] | list[Member], **other: Any) -> Configuration:
    """Epoch 1 of ``members`` (node_id → votes): incarnations and stores as ``settings_of`` gives them."""
    if isinstance(members, dict):
        members = [
            Member(1, node_id, 1000 + node_id, 2000 + node_id, votes) for node_id, votes in members.items()
        ]
    values: dict[str, Any] = {
        "cluster_id": "0" * 31 + "1", "supersedes": [], "epoch": 1, "base": 0,
        "table": {one.node_id: one.votes for one in members}, "members": members, "sequencer": members[0].node_id,
        "tie_breaker": members[0].node_id, "delivery": "safe", "last_man_standing": False, "version": wire.VERSION,
        "mtu": 1500, "limits": Limits(), "m_sequence": 1, "epochs": [(1, 0)], "order_time": 1,
    }  # fmt: skip
    return Configuration(**{**values, **other})


def datagram(
    body: bytes, counter: int, node_id: int, incarnation: int, cluster: str = CLUSTER, history: int = 0
) -> bytes:
    """A datagram with a valid clear header."""
    prefix = wire.clear_prefix(wire.cluster_hash(cluster), node_id, incarnation, history)
    return prefix + counter.to_bytes(8, "little") + body


def publication(topic_id: int, producer: int, first_number: int, events: Sequence[bytes]) -> bytes:
    return build_run(RunKind.PUBLICATION, topic_id, producer, first_number, events)


class World:
    """Nodes 1 to n. ``votes`` gives other tables; ``settings`` go to all nodes."""

    def __init__(
        self,
        nodes: int = 3,
        *,
        seed: int = 1,
        loss: float = 0.0,
        duplicate: float = 0.0,
        delay_ns: tuple[int, int] = (50_000, 300_000),
        votes: dict[int, int] | None = None,
        persist_ns: int = 2_000_000,
        **settings: Any,
    ) -> None:
        self.random = random.Random(seed)
        self.now = START_NS
        self.loss = loss
        self.duplicate = duplicate
        self.delay_ns = delay_ns
        self.persist_ns = persist_ns
        self.persist_fails: set[int] = set()
        self.cut: set[tuple[int, int]] = set()  # directed links that carry nothing
        self.paused: set[int] = set()  # nodes that neither receive nor tick; what is sent to them is lost
        table = votes or dict.fromkeys(range(1, nodes + 1), 1)
        self.settings = {node_id: settings_of(node_id, table, **settings) for node_id in table}
        self.nodes = {node_id: Node(self.settings[node_id], self.now, WALL_NS) for node_id in table}
        self.dead: set[int] = set()  # stopped, or killed
        self.disks: dict[int, bytes] = dict.fromkeys(table, b"")
        self.notices: dict[int, list[Notification | HistoryLost]] = {node_id: [] for node_id in table}
        self.snapshot_ns = 5_000_000
        self.log: dict[int, list[Delivery | TopicChange | View]] = {node_id: [] for node_id in table}
        self._counts = dict.fromkeys(table, 0)
        self.outcomes: dict[int, list[Outcome]] = {node_id: [] for node_id in table}
        self.news: dict[int, list[str]] = {node_id: [] for node_id in table}
        self.faults: dict[int, list[Fault]] = {node_id: [] for node_id in table}
        self.persists: dict[int, list[Persist]] = {node_id: [] for node_id in table}
        self.wire: list[tuple[int, int, bytes]] = []  # (from, to, datagram) where ``record`` is set
        self.record = False
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0

    # --- time and links ---------------------------------------------------------------------------------------------

    def later(self, delay_ns: int, action: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._queue, (self.now + delay_ns, self._sequence, action))

    def carry(self, node_id: int) -> None:
        """Carry out what a node asks for."""
        node = self.nodes[node_id]
        for effect in node.take_effects():
            if isinstance(effect, Multicast):
                for other in self.nodes:
                    if other != node_id:
                        self._send(node_id, other, effect.buffer, effect.segment)
            elif isinstance(effect, Send):
                self._send(node_id, int(effect.address[1]), effect.buffer, effect.segment)
            elif isinstance(effect, Deliver):
                self._deliver(node_id, effect)
            elif isinstance(effect, Persist):
                self.persists[node_id].append(effect)
                self._persist(node_id, effect)
            elif isinstance(effect, FetchSnapshot):
                self._fetch(node_id, effect)
            else:
                self._tell(node_id, effect)

    def _deliver(self, node_id: int, effect: Deliver) -> None:
        for item in effect.items:
            if isinstance(item, Outcome):
                self.outcomes[node_id].append(item)
            else:
                self.log[node_id].append(item)
                if isinstance(item, Delivery):
                    self._counts[node_id] += item.count - item.skip

    def _tell(self, node_id: int, effect: Effect) -> None:
        """What a node says of itself."""
        if isinstance(effect, Fault):
            self.faults[node_id].append(effect)
        elif isinstance(effect, News):
            self.news[node_id].append(effect.text)
        elif isinstance(effect, Notification | HistoryLost):
            self.notices[node_id].append(effect)
        elif isinstance(effect, StateChange):
            if effect.state is State.EVICTED:
                self.later(200_000_000, lambda: self.restart(node_id))
            if effect.state in (State.EVICTED, State.STOPPED):
                self.dead.add(node_id)
        else:
            assert isinstance(effect, Stop)

    def _persist(self, node_id: int, effect: Persist) -> None:
        node = self.nodes[node_id]

        def done() -> None:
            if node_id in self.dead or self.nodes[node_id] is not node:
                return
            ok = node_id not in self.persist_fails
            if ok:
                self.disks[node_id] = effect.record
            node.persisted(effect.token, ok, self.now)
            self.settle(node_id)

        self.later(self.persist_ns, done)

    def _fetch(self, node_id: int, effect: FetchSnapshot) -> None:
        giver, taker = int(effect.address[1]), self.nodes[node_id]

        def done() -> None:
            if node_id in self.dead or self.nodes[node_id] is not taker:
                return
            blocked = giver in self.dead or giver in self.paused or (giver, node_id) in self.cut
            making = None if blocked else self.nodes[giver].give_snapshot(effect.request, self.now)
            if not blocked:
                self.settle(giver)
            read = None if making is None else effect.read(b"".join(making()))
            taker.snapshot_fetched(effect.token, read, self.now)
            self.settle(node_id)

        self.later(self.snapshot_ns, done)

    def kill(self, *node_ids: int) -> None:
        self.dead.update(node_ids)

    def restart(self, node_id: int, *, wiped: bool = False) -> None:
        """A new incarnation on the same disk, or on an empty one."""
        old = self.settings[node_id]
        store_id = old.store_id + 10_000 if wiped else old.store_id
        if wiped:
            self.disks[node_id] = b""
        new = replace(
            old,
            incarnation=old.incarnation + 1000,
            store_id=store_id,
            record=self.disks[node_id],
            seed=old.seed + 1000,
        )
        self.settings[node_id] = new
        self.nodes[node_id] = Node(new, self.now, WALL_NS + self.now - START_NS)
        self.dead.discard(node_id)
        self.log[node_id] = []
        self.outcomes[node_id] = []  # another incarnation counts its tokens anew
        self._counts[node_id] = 0
        self.settle(node_id)

    def members(self, node_id: int) -> list[int]:
        """node_ids of the view that this node has installed."""
        configuration = self.nodes[node_id].configuration
        return [one.node_id for one in configuration.members] if configuration is not None else []

    def _send(self, source: int, target: int, buffer: bytes, segment: int) -> None:
        if target not in self.nodes or (source, target) in self.cut:
            return
        pieces = list(wire.split(buffer, segment))
        if self.record:
            self.wire += [(source, target, piece) for piece in pieces]
        pieces = [piece for piece in pieces if self.random.random() >= self.loss]
        if not pieces:
            return
        whole = b"".join(pieces)

        def arrive() -> None:
            self.receive(target, whole, min(segment, len(whole)), ("net", source))

        times = 2 if self.random.random() < self.duplicate else 1
        for _ in range(times):
            self.later(self.random.randint(*self.delay_ns), arrive)

    def receive(self, target: int, buffer: bytes, segment: int, source: tuple[str, int]) -> None:
        if target not in self.paused and target not in self.dead:
            self.nodes[target].datagram(buffer, segment, source, self.now)
            self.settle(target)

    def settle(self, node_id: int) -> None:
        self.nodes[node_id].end_burst(self.now)
        self.carry(node_id)

    def step(self) -> None:
        """The next thing that happens: an arrival, a write that ends, or a timer."""
        awake = [
            (node.next_timer(), node_id)
            for node_id, node in self.nodes.items()
            if node_id not in self.paused and node_id not in self.dead
        ]
        due, node_id = min(awake, default=(2**63, 0))
        if self._queue and self._queue[0][0] <= due:
            self.now, _, action = heapq.heappop(self._queue)
            action()
            return
        assert due < 2**62, "nothing will ever happen"
        self.now = max(self.now, due)
        self.nodes[node_id].timer(self.now, WALL_NS + self.now - START_NS)
        self.settle(node_id)

    def until(self, done: Callable[[], bool], within_ns: int = 60 * SECOND_NS) -> None:
        end = self.now + within_ns
        while not done():
            assert self.now < end, "not in time: " + repr(
                {node_id: node.status(self.now) for node_id, node in self.nodes.items()}
            )
            self.step()

    def run(self, duration_ns: int) -> None:
        end = self.now + duration_ns
        self.later(duration_ns, lambda: None)
        while self.now < end:
            self.step()

    # --- what tests do ----------------------------------------------------------------------------------------------

    def form(self) -> World:
        self.until(lambda: all(node.state is State.ACTIVE for node in self.nodes.values()))
        return self

    def control(self, node_id: int, operand: control.Operand) -> Outcome:
        """Have a control run ordered; its outcome."""
        token = self.nodes[node_id].control(operand)
        self.settle(node_id)
        found: list[Outcome] = []

        def answered() -> bool:
            found[:] = [
                one for one in self.outcomes[node_id] if one.producer == 0 and one.first_number == token
            ]
            return bool(found)

        self.until(answered)
        return found[0]

    def topic(self, name: str = "t", node_id: int = 1) -> int:
        outcome = self.control(node_id, control.TopicCreate(name, False))
        assert outcome.error == 0
        return outcome.value

    def producer(self, node_id: int) -> int:
        outcome = self.control(node_id, control.Open())
        assert outcome.error == 0
        return outcome.value

    def publish(self, node_id: int, run: bytes) -> None:
        self.nodes[node_id].publish(run)
        self.settle(node_id)

    def deliveries(self, node_id: int) -> list[Delivery]:
        return [item for item in self.log[node_id] if isinstance(item, Delivery)]

    def count(self, node_id: int) -> int:
        """Publications delivered on a node."""
        return self._counts[node_id]

    def plane(self, node_id: int) -> Any:
        """The node's data plane, to look inside."""
        return self.nodes[node_id].plane

    def inject(self, targets: Sequence[int], buffer: bytes, segment: int = 0) -> None:
        """Bytes from outside arrive at some nodes now."""
        for target in targets:
            self.receive(target, buffer, segment or len(buffer), EVIL_SOURCE)

    def forge(self, node_id: int, body: bytes) -> bytes:
        """A datagram with ``body`` as the member itself would send it, under its next counter."""
        made: bytes = self.nodes[node_id].outbox._datagram(body)
        return made

    def history(self) -> int:
        """As clear headers of node 1 have it."""
        configuration = self.nodes[1].configuration
        return wire.history_tag(configuration.cluster_id if configuration is not None else "")

    def agree(self, nodes: Sequence[int] | None = None) -> None:
        """All (or ``nodes``) have delivered the same; seq and ev_id count without a hole."""
        ids = list(nodes or self.nodes)
        first = self.log[ids[0]]
        for other in ids[1:]:
            assert self.log[other] == first
        seqs: dict[int, int] = {}
        ev_id = 0
        for one in first:
            if isinstance(one, View):
                ev_id += one.ev_id > 0
            if isinstance(one, Delivery):
                fresh = one.count - one.skip
                assert (one.seq, one.ev_id) == (seqs.get(one.topic_id, 0) + 1, ev_id + 1)
                seqs[one.topic_id] = one.seq + fresh - 1
                ev_id += fresh


def traffic(
    world: World, senders: Sequence[int], runs: int, events: int = 3, size: int = 40
) -> dict[int, int]:
    """``runs`` runs from each sender to one new topic, delivered everywhere; the senders' producer ids."""
    topic_id = world.topic(f"topic {world.now}", senders[0])
    producers = {node_id: world.producer(node_id) for node_id in senders}
    before = {node_id: world.count(node_id) for node_id in world.nodes}
    for number in range(runs):
        for node_id in senders:
            run = publication(
                topic_id, producers[node_id], 1 + number * events, [bytes([number % 256]) * size] * events
            )
            world.publish(node_id, run)
        for _ in range(world.random.randrange(4)):
            world.step()
    total = runs * events * len(senders)
    awake = [node_id for node_id in world.nodes if node_id not in world.paused | world.dead]
    world.until(lambda: all(world.count(node_id) >= before[node_id] + total for node_id in awake))
    return producers
