"""Epoch changes: whom this node supports, what it answers, and what its proposer has to know (docs/protocol.md).

One procedure for suspicion, leave, join, restart and formation. The parts: ``Detector`` knows who hears whom,
``Initiative`` says when it is time, ``Acceptor`` votes, ``Proposer`` leads an attempt, ``judgement`` says what promises
allow; this module joins them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ocfcluster import limits
from ocfcluster.errors import MalformedDatagram
from ocfcluster.protocol import messages
from ocfcluster.protocol.acceptor import Acceptor
from ocfcluster.protocol.detector import Detector
from ocfcluster.protocol.formation import Formation, new_cluster_id
from ocfcluster.protocol.initiative import Initiative
from ocfcluster.protocol.judgement import Evidence
from ocfcluster.protocol.messages import (
    BOOTSTRAP,
    HELD,
    LOST,
    UNSYNCED,
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
from ocfcluster.protocol.proposer import Proposer
from ocfcluster.protocol.quorum import is_primary
from ocfcluster.protocol.settings import Ballot, Configuration, Member, PaxosRecord, Settings, TopicRow
from ocfcluster.protocol.state import topics_digest
from ocfcluster.protocol.store import Store
from ocfcluster.protocol.validity import ballot_fault, configuration_fault, promise_fault
from ocfcluster.wire.datagram import MessageFlags

if TYPE_CHECKING:
    from ocfcluster.protocol.node import Node

_LEAVING: Final = int(MessageFlags.LEAVING)

Reply = Callable[[Message], None]


class Recovery:
    """The node's part in every epoch change: its vote, what it holds, and what its proposer asks of it."""

    __slots__ = (
        "acceptor", "proposer", "formation", "initiative", "counters", "promised_at",
        "_node", "_settings", "_store", "_detector", "_pending_sync", "_digest",
    )  # fmt: skip

    def __init__(self, node: Node, settings: Settings, store: Store, detector: Detector, now: int) -> None:
        self._node = node
        self._settings = settings
        self._store = store
        self._detector = detector
        self.acceptor = Acceptor(store, settings.store_id)
        self.proposer = Proposer(settings, self)
        self.formation = Formation(settings, node.spoken)
        self.initiative = Initiative(node, self, settings, detector)
        self.counters = {"prepares_ignored": 0, "attempts": 0}
        self.promised_at = now  # when this node last promised to another ballot
        self._pending_sync: tuple[Sync, Reply] | None = None
        self._digest: tuple[list[TopicRow] | None, int] = (None, 0)  # of which rows, and their digest

    @property
    def instance(self) -> Instance:
        configuration = self._node.configuration
        return BOOTSTRAP if configuration is None else Instance(configuration.cluster_id, configuration.epoch)

    @property
    def promised(self) -> Ballot | None:
        """What is promised for what follows the configuration in force."""
        return self.acceptor.promised(self.instance)

    def installed(self, now: int) -> None:
        """A configuration was installed: what was under way about the one before is over."""
        self.proposer.abandon()
        self._pending_sync = None
        self.promised_at = now
        self.initiative.installed()

    # --- messages ---------------------------------------------------------------------------------------------------

    def say(self, message: Message) -> None:
        """To all nodes, this one included."""
        node = self._node
        node.outbox.multicast(messages.encode(message))
        own = self._settings
        self.take(message, own.node_id, own.incarnation, self._say_to_self, node.now)

    def _say_to_self(self, message: Message) -> None:
        own = self._settings
        self.take(message, own.node_id, own.incarnation, self._say_to_self, self._node.now)

    def take(self, message: Message, node_id: int, incarnation: int, reply: Reply, now: int) -> None:
        """A message of an epoch change. Raises MalformedDatagram."""
        if ballot_fault(message.ballot):
            raise MalformedDatagram("a ballot that cannot be")
        proposes = isinstance(message, Prepare | Sync | Accept)
        if proposes and (message.ballot.node_id, message.ballot.incarnation) != (node_id, incarnation):
            raise MalformedDatagram("a ballot of another node")
        if isinstance(message, Prepare):
            self._on_prepare(message, node_id, incarnation, reply, now)
        elif isinstance(message, Promise):
            fault = promise_fault(message)
            if fault:
                raise MalformedDatagram(f"PROMISE that cannot be: {fault}")
            self.proposer.on_promise(node_id, incarnation, message, now)
        elif isinstance(message, Reject):
            if not ballot_fault(message.promised):
                self.proposer.on_reject(message, now)
        elif isinstance(message, Sync):
            self._on_sync(message, reply, now)
        elif isinstance(message, Synced):
            self.proposer.on_synced(node_id, incarnation, message, now)
        elif isinstance(message, Accept):
            self._on_accept(message, reply, now)
        elif isinstance(message, Accepted):
            self.proposer.on_accepted(node_id, message, now)

    def _is_about_now(self, message: Message, carried: Configuration | None, node_id: int, now: int) -> bool:
        """Whether it is about what follows the configuration in force. Who is behind is told, or learns here."""
        node = self._node
        if node.installation.under_way:
            return False
        if message.instance == self.instance:
            return True
        mine = node.configuration
        if mine is not None and (
            message.instance == BOOTSTRAP
            or message.cluster_id in mine.supersedes
            or (message.cluster_id == mine.cluster_id and message.epoch < mine.epoch)
        ):
            node.installation.tell(node_id)
        elif carried is not None:
            node.installation.take(carried, now)
        return False

    def _on_prepare(self, prepare: Prepare, node_id: int, incarnation: int, reply: Reply, now: int) -> None:
        carried = prepare.configuration
        if carried is not None and (
            configuration_fault(carried) or (carried.cluster_id, carried.epoch) != prepare.instance
        ):
            raise MalformedDatagram("PREPARE with a configuration that cannot be")
        if not self._is_about_now(prepare, carried, node_id, now):
            return
        settings = self._settings
        configuration = self._node.configuration
        if configuration is None:
            named = (settings.node_id, settings.store_id) in prepare.acceptors
            if not named or prepare.table_hash != self.formation.hash:
                self.counters["prepares_ignored"] += 1
                return
        elif not self._detector.is_acceptor(configuration):
            if any(one.node_id == settings.node_id for one in configuration.members):
                reply(self._promise(PaxosRecord(*prepare.instance, prepare.ballot), prepare.ballot))
            return  # a stranger's disk: it promises nothing, and says that what this node held is lost
        elif not self._supports(configuration, node_id, incarnation):
            self.counters["prepares_ignored"] += 1
            return
        before = self.promised

        def promise(record: PaxosRecord) -> Promise:
            return self._promise(record, prepare.ballot)

        if self.acceptor.on_prepare(prepare, reply, promise, now):
            if before != prepare.ballot:
                self.promised_at = now
                self._pending_sync = None
            self._freeze()

    def _freeze(self) -> None:
        plane = self._node.plane
        if plane is not None and plane.is_member and not plane.frozen:
            plane.freeze()
            self._node.beat_soon()

    def _supports(self, configuration: Configuration, node_id: int, incarnation: int) -> bool:
        """Whether, by what this node knows itself, the proposer is to be listened to: it would find enough promises,
        and the sequencer is gone for a decision quorum, or it is the sequencer."""
        own = self._settings
        if (node_id, incarnation) == (own.node_id, own.incarnation) or self.initiative.forced:
            return True
        detector = self._detector
        if detector.promised_elsewhere(configuration, self.promised is not None):
            return True
        if not detector.connected(configuration, node_id):
            return False
        sequencer = configuration.member(node_id, incarnation)
        if sequencer is not None and node_id == configuration.sequencer:
            return True
        return detector.abandoned(configuration, self._node.suspects)

    def _promise(self, record: PaxosRecord, ballot: Ballot) -> Promise:
        plane = self._node.plane
        standing, held, order_time = LOST, 0, 0
        table, wanted, resigned, freed = None, 0, False, 0
        if plane is not None and plane.is_member:
            standing = HELD if plane.synced else UNSYNCED
            held = plane.log.held
            order_time = plane.order_time(self._node.now)
            staged = plane.staged_table
            table = staged.votes if staged.votes != plane.configuration.table else None
            wanted = staged.wanted_sequencer
            resigned = plane.resigned
            freed = plane.stable
        return Promise(
            record.cluster_id, record.epoch, ballot, self._settings.store_id, standing, held, order_time,
            record.accepted_ballot, record.accepted, table, wanted, resigned,
            self._store.record.topics_index, self.topics_digest(), freed,
        )  # fmt: skip

    def topics_digest(self) -> int:
        record = self._store.record
        if self._digest[0] is not record.topics:
            self._digest = (record.topics, topics_digest(record.topics, record.next_topic_id))
        return self._digest[1]

    def _on_accept(self, accept: Accept, reply: Reply, now: int) -> None:
        if configuration_fault(accept.configuration):
            raise MalformedDatagram("ACCEPT of a configuration that cannot be")
        if not self._is_about_now(accept, None, accept.ballot.node_id, now):
            return
        if self.acceptor.record(self.instance) is None:
            return  # it has promised nothing to anybody: who proposes asks first
        configuration = self._node.configuration
        if configuration is not None and not self._detector.is_acceptor(configuration):
            return
        if self.acceptor.on_accept(accept, reply, now):
            self._freeze()

    # --- SYNC -------------------------------------------------------------------------------------------------------

    def _on_sync(self, sync: Sync, reply: Reply, now: int) -> None:
        own = self._settings
        if configuration_fault(sync.configuration):
            raise MalformedDatagram("SYNC to a configuration that cannot be")
        if not self._is_about_now(sync, None, sync.ballot.node_id, now):
            return
        configuration = self._node.configuration
        if configuration is None or sync.configuration.member(own.node_id, own.incarnation) is None:
            return
        promised = self.promised
        if self._detector.is_acceptor(configuration):
            if promised is not None and sync.ballot < promised:
                reply(Reject(*sync.instance, sync.ballot, promised))
                return
            if promised != sync.ballot:
                return  # who has not promised has not frozen: what it holds may still move
        self._pending_sync = (sync, reply)
        self.try_sync(now)

    def try_sync(self, now: int) -> None:
        """Say SYNCED as soon as the base of the proposed view is held, with its topics on disk."""
        if self._pending_sync is None:
            return
        node = self._node
        sync, reply = self._pending_sync
        value, configuration = sync.configuration, node.configuration
        if configuration is None:
            return
        done = Synced(*sync.instance, sync.ballot)
        if value.cluster_id != configuration.cluster_id:
            if self.topics_digest() == value.topics_digest:
                self._pending_sync = None
                self._store.when_durable(lambda _: reply(done), now, key="synced")
            else:
                node.joiner.fetch_topics(sync.source, value.topics_digest, now)
            return
        plane = node.plane
        if plane is None:
            giver = value.sequencer if value.sequencer != self._settings.node_id else sync.source
            node.joiner.fetch_state(giver, now)
            return
        plane.fetch(value.base, sync.source)
        if plane.holds(value.base):
            self._pending_sync = None
            reply(done)

    # --- what the proposer asks -------------------------------------------------------------------------------------

    def expected(self) -> set[int]:
        configuration = self._node.configuration
        if configuration is None:
            return set()
        own = self._settings.node_id
        nodes = {one for one in self._detector.voices(configuration) if self._detector.linked(own, one)}
        return nodes | ({own} if self._detector.is_acceptor(configuration) else set())

    def yields(self, rival: Ballot, now: int) -> bool:
        return self.initiative.yields(rival, now)

    def evidence(self, promises: dict[int, Promise], incarnations: dict[int, int], now: int) -> Evidence:
        configuration = self._node.configuration
        if configuration is None:
            raise RuntimeError("a bootstrap has no evidence")
        plane = self._node.plane
        last = plane.order_time(now) if plane is not None else 0
        leaving = {one.node_id for one in configuration.members if self.initiative.is_leaving(one.node_id)}
        return Evidence(
            configuration=configuration,
            promises=promises,
            incarnations=incarnations,
            strangers=set(),
            linked=self._detector.linked,
            leaving=leaving,
            unwanted=self.initiative.lagging(now),
            candidates=self.initiative.candidates(
                configuration, now, max([one.freed for one in promises.values()], default=0)
            ),
            order_time=max(configuration.order_time, last),
        )

    def first_value(self, incarnations: dict[int, int], now: int) -> Configuration:
        mtus = [self._settings.mtu]
        for node_id, incarnation in incarnations.items():
            peer = self._node.peers.get(node_id, incarnation)
            if peer is not None and peer.beat is not None:
                mtus.append(max(peer.beat.mtu, limits.MTU_MINIMUM))
        return self.formation.first_configuration(
            incarnations, self.proposer.acceptors, min(mtus), self._node.wall_clock
        )

    def new_history(
        self, promises: dict[int, Promise], incarnations: dict[int, int], topics_digest: int, now: int
    ) -> Configuration | None:
        """A history that begins anew, with the topics that the old one had: of who has promised, and everybody else of
        the table that is heard. None where they would be no primary."""
        configuration, own = self._node.configuration, self._settings
        if configuration is None:
            raise RuntimeError("a new history supersedes an old one")
        table = configuration.table
        members, mtus = [], [own.mtu]
        for node_id in sorted(promises):
            if node_id in table:
                store_id = promises[node_id].store_id
                members.append(Member(1, node_id, incarnations[node_id], store_id, table[node_id]))
        for peer in self._detector.heard:
            beat = peer.beat
            if beat is None or peer.node_id not in table or self._detector.present(peer.node_id) is not peer:
                continue
            mtus.append(max(beat.mtu, limits.MTU_MINIMUM))
            if peer.node_id in promises or beat.flags & _LEAVING:
                continue
            if self._detector.linked(own.node_id, peer.node_id):
                members.append(Member(1, peer.node_id, peer.incarnation, beat.store_id, table[peer.node_id]))
        if self.initiative.forced and own.node_id not in promises and own.node_id in table:
            members.append(Member(1, own.node_id, own.incarnation, own.store_id, table[own.node_id]))
        ids = [one.node_id for one in members]
        if own.node_id not in ids or not any(one.votes for one in members):
            return None
        if not (self.initiative.forced or own.last_man_standing or is_primary(table, ids)):
            return None
        members.sort()
        supersedes = [*configuration.supersedes, configuration.cluster_id][-limits.HISTORIES_REMEMBERED :]
        time_ns = max(1, self._node.wall_clock)  # whatever time the old one had come to believe in
        return Configuration(
            cluster_id=new_cluster_id(own, self._node.wall_clock, supersedes),
            supersedes=supersedes,
            epoch=1,
            base=0,
            table=table,
            members=members,
            sequencer=own.node_id,
            tie_breaker=next((one.node_id for one in members if one.votes), own.node_id),
            delivery=own.delivery,
            last_man_standing=own.last_man_standing,
            version=configuration.version,
            mtu=min(mtus),
            limits=own.limits,
            m_sequence=1,
            epochs=[(1, 0)],
            order_time=time_ns,
            topics_digest=topics_digest,
        )

    def decided(self, value: Configuration, now: int) -> None:
        self._node.outbox.multicast(messages.encode_install(value))
        self._node.installation.take(value, now)
