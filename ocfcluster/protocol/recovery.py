"""Epoch changes: when this node starts one, whom it supports, and what it answers (docs/protocol.md).

One procedure for suspicion, leave, join, restart and formation. The parts: ``Detector`` knows who hears whom,
``Acceptor`` votes, ``Proposer`` leads an attempt, ``judgement`` says what promises allow; this module feeds them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xxhash import xxh3_64_intdigest

from ocfcluster import limits
from ocfcluster.errors import MalformedDatagram
from ocfcluster.protocol import messages
from ocfcluster.protocol.acceptor import Acceptor
from ocfcluster.protocol.detector import Detector, in_epoch
from ocfcluster.protocol.formation import Formation, new_cluster_id
from ocfcluster.protocol.judgement import Candidate, Evidence
from ocfcluster.protocol.messages import (
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
from ocfcluster.protocol.quorum import Quorums, is_primary
from ocfcluster.protocol.readmission import Readmission
from ocfcluster.protocol.settings import Ballot, Configuration, Member, PaxosRecord, Settings
from ocfcluster.protocol.state import topics_digest
from ocfcluster.protocol.store import NO_LIMIT, Store
from ocfcluster.protocol.validity import ballot_fault, configuration_fault
from ocfcluster.wire.datagram import VERSION, MessageFlags

if TYPE_CHECKING:
    from ocfcluster.protocol.node import Node

BOOTSTRAP: Final = Instance("", 0)
_FORMING: Final = int(MessageFlags.FORMING)
_LEARNING: Final = int(MessageFlags.LEARNING)
_LEAVING: Final = int(MessageFlags.LEAVING)
_READY: Final = int(MessageFlags.READY)

Reply = Callable[[Message], None]


class Recovery:
    """The node's part in every epoch change. ``consider`` is called whenever something has changed."""

    __slots__ = (
        "acceptor", "proposer", "formation", "readmission", "counters", "leaving", "forced", "without",
        "_node", "_settings", "_store", "_detector", "_pending_sync", "_promised_at", "_may_since", "_ready_since",
        "_lagging_since", "_digest", "_attempt_after", "_propose_at", "_draws",
    )  # fmt: skip

    def __init__(self, node: Node, settings: Settings, store: Store, detector: Detector, now: int) -> None:
        self._node = node
        self._settings = settings
        self._store = store
        self._detector = detector
        self.acceptor = Acceptor(store, settings.store_id)
        self.proposer = Proposer(settings, self)
        self.formation = Formation(settings)
        self.readmission = Readmission(settings.suspicion_ns)
        self.leaving = False
        self.forced = False  # an operator has said to go on without who is missing
        self.without: set[int] = set()  # nodes that an operator's bootstrap does without
        self.counters = {"prepares_ignored": 0, "attempts": 0}
        self._pending_sync: tuple[Sync, Reply] | None = None
        self._promised_at = now
        self._may_since = 0
        self._ready_since = 0
        self._lagging_since: dict[int, int] = {}
        self._digest: tuple[int, int] = (-1, 0)
        self._attempt_after = 0
        self._propose_at = NO_LIMIT  # when it is this node's turn, if nobody else has begun
        self._draws = 0  # of chance

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
        self._may_since = self._ready_since = 0
        self._lagging_since = {}
        self._promised_at = now
        self._attempt_after = 0
        self.forced = False

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
        if isinstance(message, Prepare):
            self._on_prepare(message, node_id, incarnation, reply, now)
        elif isinstance(message, Promise):
            if message.accepted is not None and configuration_fault(message.accepted):
                raise MalformedDatagram("PROMISE with a configuration that cannot be")
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
                self._promised_at = now
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
        if (node_id, incarnation) == (own.node_id, own.incarnation) or self.forced:
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
        table, wanted, resigned = None, 0, False
        if plane is not None and plane.is_member:
            standing = HELD if plane.synced else UNSYNCED
            held = plane.log.held
            order_time = plane.log.last_order_time
            staged = plane.staged_table
            table = staged.votes if staged.votes != plane.configuration.table else None
            wanted = staged.wanted_sequencer
            resigned = plane.resigned
        return Promise(
            record.cluster_id, record.epoch, ballot, self._settings.store_id, standing, held, order_time,
            record.accepted_ballot, record.accepted, table, wanted, resigned,
            self._store.record.topics_index, self._topics_digest(),
        )  # fmt: skip

    def _topics_digest(self) -> int:
        record = self._store.record
        if self._digest[0] != id(record.topics):
            self._digest = (id(record.topics), topics_digest(record.topics, record.next_topic_id))
        return self._digest[1]

    def _on_accept(self, accept: Accept, reply: Reply, now: int) -> None:
        if configuration_fault(accept.configuration):
            raise MalformedDatagram("ACCEPT of a configuration that cannot be")
        if not self._is_about_now(accept, None, accept.ballot.node_id, now):
            return
        configuration = self._node.configuration
        if configuration is None:
            if self.acceptor.record(BOOTSTRAP) is None:
                return
        elif not self._detector.is_acceptor(configuration):
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
            if self._topics_digest() == value.topics_digest:
                self._pending_sync = None
                self._store.when_durable(lambda _: reply(done), now)
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

    # --- when to start one ------------------------------------------------------------------------------------------

    def consider(self, now: int) -> None:
        """Start an epoch change, or a bootstrap, where it is this node's turn."""
        node = self._node
        configuration = node.configuration
        self._propose_at = NO_LIMIT
        if node.installation.under_way:
            return
        if configuration is None:
            self._consider_bootstrap(now)
            return
        plane = node.plane
        if plane is not None and plane.is_sequencer:
            self._consider_resigning(configuration, now)
        if self.proposer.active or now < self._attempt_after:
            return
        if not self._detector.is_acceptor(configuration):
            if self.forced and not self._detector.voices(configuration):
                self._declare_new_history(now)
            return
        if plane is not None and plane.is_sequencer and not plane.resigned:
            reason = self._reason_to_change(configuration, now)
            if reason and (self.forced or self._detector.connected(configuration, self._settings.node_id)):
                self._begin(configuration, reason, now)
        elif self._may_propose(configuration, now):
            self._begin(configuration, "the sequencer is gone", now)

    def _consider_bootstrap(self, now: int) -> None:
        if self.proposer.active:
            return
        acceptors = self.formation.decide(self._detector.heard, self.without)
        if acceptors is None or now < self._attempt_after:
            return
        self._attempt_after = now + limits.PREPARE_MAX_NS
        self.counters["attempts"] += 1
        promised = self.promised
        self.proposer.begin(
            BOOTSTRAP, (promised.round if promised else 0) + 1, now,
            configuration=None, acceptors=acceptors, table_hash=self.formation.hash, reason="bootstrap",
        )  # fmt: skip

    def _begin(self, configuration: Configuration, reason: str, now: int) -> None:
        self.counters["attempts"] += 1
        self._attempt_after = now + limits.PREPARE_MAX_NS
        rounds = [self.promised.round] if self.promised else [0]
        rounds += [
            peer.beat.promised_round
            for peer in self._detector.heard
            if peer.beat is not None and in_epoch(peer.beat, configuration)
        ]
        self.proposer.begin(
            self.instance, max(rounds) + 1, now,
            configuration=configuration,
            acceptors={member.node_id: member.store_id for member in configuration.members},
            forced=self.forced, reason=reason,
        )  # fmt: skip

    def _declare_new_history(self, now: int) -> None:
        """An operator has said to go on, and no disk is there that may vote on it: there is nobody to ask."""
        value = self.new_history({}, {}, self._topics_digest(), now)
        if value is not None:
            self.decided(value, now)

    def _may_propose(self, configuration: Configuration, now: int) -> bool:
        """Whether the sequencer is gone, and this node is the one to say so: the oldest that may goes first."""
        own, detector = self._settings.node_id, self._detector
        may = self.forced or (
            self._node.suspects
            and detector.connected(configuration, own)
            and detector.abandoned(configuration, suspects=True)
            and self._could_be_primary(configuration)
        )
        promised = self.promised
        if may and promised is not None and promised.node_id != own:
            # Somebody is at it: only when it is gone itself, or gets nowhere.
            leader = detector.present(promised.node_id)
            working = leader is not None and leader.incarnation == promised.incarnation
            if working and now - self._promised_at < 2 * self._settings.sync_timeout_ns:
                may = False
        if not may:
            self._may_since = 0
            return False
        self._may_since = self._may_since or now
        turn = self._may_since + self._rank(configuration) * limits.PROPOSE_RANK_NS
        if now < turn:
            self._propose_at = turn
        return now >= turn

    def _rank(self, configuration: Configuration) -> int:
        """How many older acceptors may go first."""
        own = self._settings.node_id
        voices = self._detector.voices(configuration)
        rank = 0
        for member in configuration.members:
            if member.node_id == own:
                break
            if member.node_id in voices and self._detector.linked(own, member.node_id):
                rank += 1
        return rank

    def _could_be_primary(self, configuration: Configuration) -> bool:
        """Whether those that are heard could make a primary view: nobody is frozen for one that may not be."""
        if configuration.last_man_standing or self.forced:
            return True
        table = self._table(configuration)
        nodes = [peer.node_id for peer in self._detector.heard if not self._is_leaving(peer.node_id)]
        if not self.leaving:
            nodes.append(self._settings.node_id)
        return is_primary(table, [node for node in nodes if node in table])

    def rest_would_be_primary(self, configuration: Configuration) -> bool:
        """Whether the members that are heard, without this node, may go on as a view."""
        rest = [
            one.node_id
            for one in configuration.members
            if one.node_id != self._settings.node_id and self._detector.hears(one.node_id, one.incarnation)
        ]
        return bool(rest) and (
            configuration.last_man_standing or is_primary(self._table(configuration), rest)
        )

    def _table(self, configuration: Configuration) -> dict[int, int]:
        plane = self._node.plane
        return plane.staged_table.votes if plane is not None and plane.is_member else configuration.table

    def _is_leaving(self, node_id: int) -> bool:
        if node_id == self._settings.node_id:
            return self.leaving
        peer = self._detector.present(node_id)
        return peer is not None and peer.beat is not None and bool(peer.beat.flags & _LEAVING)

    def _reason_to_change(self, configuration: Configuration, now: int) -> str:
        """Why this sequencer wants another view; empty: it does not, or cannot have one that would be primary."""
        node, detector = self._node, self._detector
        plane = node.plane
        if plane is None:
            return ""
        settled = now - detector.installed_at >= self._settings.suspicion_ns
        gone, reasons = set(), []
        for member in configuration.members:
            node_id = member.node_id
            if self._is_leaving(node_id):
                gone.add(node_id)
                reasons.append(f"node {node_id} leaves")
            elif node_id == self._settings.node_id:
                continue
            elif not detector.hears(node_id, member.incarnation):
                peer = node.peers.get(node_id, member.incarnation)
                if settled or peer is not None:
                    gone.add(node_id)
                    reasons.append(f"node {node_id} is not heard any more")
            elif settled and not detector.member_linked(node_id, member.incarnation):
                gone.add(node_id)
                reasons.append(f"node {node_id} does not hear the sequencer")
        for node_id in sorted(self.lagging(now)):
            gone.add(node_id)
            reasons.append(f"node {node_id} keeps the backlog full")
        joining = self._ready_joiners(configuration, now)
        reasons += [f"node {node_id} joins" for node_id in joining]
        if plane.state.node_table.changed:
            reasons.append("the node table or the sequencer was changed by command")
        if plane.frozen or self._frozen_members(configuration):
            reasons.append("members are frozen by another proposal")
        if plane.frozen and now - self._promised_at < self._settings.sync_timeout_ns // 4:
            return ""  # somebody else is at it
        if not reasons:
            return ""
        table = self._table(configuration)
        staying = [one.node_id for one in configuration.members if one.node_id not in gone] + joining
        restarted = [
            peer.node_id
            for peer in detector.heard
            if peer.node_id in gone and not self._is_leaving(peer.node_id)
        ]
        present = [one for one in {*staying, *restarted} if one in table]
        if not present or not (configuration.last_man_standing or is_primary(table, present)):
            return ""
        return "; ".join(reasons)

    def lagging(self, now: int) -> set[int]:
        """Members that have kept the backlog full for too long."""
        plane, configuration = self._node.plane, self._node.configuration
        if plane is None or configuration is None or not plane.is_sequencer:
            return set()
        late = {
            one.node_id
            for one in configuration.members
            if one.node_id != self._settings.node_id and plane.lags(one.node_id)
        }
        self._lagging_since = {one: self._lagging_since.get(one, now) for one in sorted(late)}
        return {one for one, since in self._lagging_since.items() if now - since >= limits.BACKLOG_GRACE_NS}

    def _frozen_members(self, configuration: Configuration) -> bool:
        return any(
            peer.beat is not None
            and in_epoch(peer.beat, configuration)
            and peer.beat.promised_round
            and configuration.member(peer.node_id, peer.incarnation) is not None
            for peer in self._detector.heard
        )

    def _ready_joiners(self, configuration: Configuration, now: int) -> list[int]:
        """Who may be admitted now: ready, over a good link, and together with others that are about to be ready."""
        ready, learning = [], False
        table = self._table(configuration)
        for candidate in self.candidates(configuration, now):
            if candidate.node_id not in table or not self._detector.linked(
                self._settings.node_id, candidate.node_id
            ):
                continue
            if candidate.ready:
                ready.append(candidate.node_id)
            else:
                learning = True
        if not ready:
            self._ready_since = 0
            return []
        self._ready_since = self._ready_since or now
        return ready if not learning or now >= self._ready_since + limits.JOIN_WAIT_NS else []

    def candidates(self, configuration: Configuration, now: int) -> list[Candidate]:
        """Nodes that are heard and no members."""
        found = []
        own = self._settings
        for peer in self._detector.heard:
            beat = peer.beat
            if beat is None or configuration.member(peer.node_id, peer.incarnation) is not None:
                continue
            if (
                not beat.flags & (_FORMING | _LEARNING)
                or beat.flags & _LEAVING
                or beat.mtu < limits.MTU_MINIMUM
            ):
                continue
            if self._detector.present(peer.node_id) is not peer:
                continue
            ready = bool(beat.flags & _READY) and in_epoch(beat, configuration)
            good = self.readmission.may_enter(peer.node_id, peer.first_heard, now)
            found.append(Candidate(peer.node_id, peer.incarnation, beat.store_id, beat.mtu, ready and good))
        if configuration.member(own.node_id, own.incarnation) is None:
            plane = self._node.plane
            ready = plane is not None and plane.caught_up
            found.append(Candidate(own.node_id, own.incarnation, own.store_id, own.mtu, ready))
        return sorted(found, key=lambda one: one.node_id)

    def _consider_resigning(self, configuration: Configuration, now: int) -> None:
        """A sequencer that cannot commit says so: that ends its protection."""
        plane = self._node.plane
        if plane is None or plane.resigned or plane.frozen:
            return
        settled = now - self._detector.installed_at >= self._settings.suspicion_ns
        in_reach = {
            one.node_id
            for one in configuration.members
            if one.node_id == self._settings.node_id
            or self._detector.member_linked(one.node_id, one.incarnation)
        }
        stuck = plane.uncommitted and now - plane.committed_at >= limits.RESIGN_NS
        if (settled and not Quorums(configuration).commit(in_reach)) or stuck:
            plane.resigned = True
            self._node.say_news("resigned", "this sequencer cannot commit, and gives up its work")
            self._node.beat_soon()

    def next_timer(self) -> int:
        return min(self.proposer.next_timer(), self._propose_at)

    # --- what the proposer asks -------------------------------------------------------------------------------------

    def expected(self) -> set[int]:
        configuration = self._node.configuration
        if configuration is None:
            return set()
        own = self._settings.node_id
        nodes = {one for one in self._detector.voices(configuration) if self._detector.linked(own, one)}
        return nodes | ({own} if self._detector.is_acceptor(configuration) else set())

    def yields(self, rival: Ballot, now: int) -> bool:
        """The sequencer that is alive gives way to nobody; others do for a time that is longer the younger they are,
        and never twice the same, so that two of them do not go on outbidding each other."""
        node = self._node
        configuration = node.configuration
        if rival.node_id == self._settings.node_id:
            return False
        plane = node.plane
        if configuration is None or (plane is not None and plane.is_sequencer and not plane.resigned):
            return False
        self._draws += 1
        chance = xxh3_64_intdigest(f"{self._settings.seed} {self._draws}".encode()) % limits.PROPOSE_RANK_NS
        rank = self._rank(configuration) + 1
        self._attempt_after = now + rank * limits.PROPOSE_RANK_NS + chance
        return True

    def evidence(self, promises: dict[int, Promise], incarnations: dict[int, int], now: int) -> Evidence:
        configuration = self._node.configuration
        if configuration is None:
            raise RuntimeError("a bootstrap has no evidence")
        plane = self._node.plane
        last = plane.log.last_order_time if plane is not None else 0
        leaving = {one.node_id for one in configuration.members if self._is_leaving(one.node_id)}
        return Evidence(
            configuration=configuration,
            promises=promises,
            incarnations=incarnations,
            strangers=set(),
            linked=self._detector.linked,
            leaving=leaving,
            unwanted=self.lagging(now),
            candidates=self.candidates(configuration, now),
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
        if self.forced and own.node_id not in promises and own.node_id in table:
            members.append(Member(1, own.node_id, own.incarnation, own.store_id, table[own.node_id]))
        ids = [one.node_id for one in members]
        if own.node_id not in ids or not any(one.votes for one in members):
            return None
        if not (self.forced or own.last_man_standing or is_primary(table, ids)):
            return None
        members.sort()
        time_ns = max(1, self._node.wall_clock, configuration.order_time)
        return Configuration(
            cluster_id=new_cluster_id(own, self._node.wall_clock),
            supersedes=[*configuration.supersedes, configuration.cluster_id][-limits.HISTORIES_REMEMBERED :],
            epoch=1,
            base=0,
            table=table,
            members=members,
            sequencer=own.node_id,
            tie_breaker=next((one.node_id for one in members if one.votes), own.node_id),
            delivery=own.delivery,
            last_man_standing=own.last_man_standing,
            version=VERSION,
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
