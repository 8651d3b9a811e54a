"""When this node starts an epoch change, or a bootstrap, and when it leaves that to another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xxhash import xxh3_64_intdigest

from ocfcluster import limits
from ocfcluster.protocol.detector import Detector, in_epoch
from ocfcluster.protocol.effects import State
from ocfcluster.protocol.judgement import Candidate
from ocfcluster.protocol.messages import BOOTSTRAP
from ocfcluster.protocol.quorum import Quorums, is_primary
from ocfcluster.protocol.readmission import Readmission
from ocfcluster.protocol.settings import Ballot, Configuration, Member, Settings
from ocfcluster.protocol.store import NO_LIMIT
from ocfcluster.wire.datagram import MessageFlags

if TYPE_CHECKING:
    from ocfcluster.protocol.node import Node
    from ocfcluster.protocol.recovery import Recovery

_FORMING: Final = int(MessageFlags.FORMING)
_LEARNING: Final = int(MessageFlags.LEARNING)
_LEAVING: Final = int(MessageFlags.LEAVING)
_READY: Final = int(MessageFlags.READY)


class Initiative:
    """``consider`` is called whenever something has changed: who is heard, what they say, or the time."""

    __slots__ = (
        "readmission", "leaving", "forced", "without", "_node", "_recovery", "_settings", "_detector", "_may_since",
        "_ready_since", "_lagging_since", "_deaf_since", "_attempt_after", "_propose_at", "_draws", "_waiting_since",
        "_back_since",
    )  # fmt: skip

    def __init__(self, node: Node, recovery: Recovery, settings: Settings, detector: Detector) -> None:
        self._node = node
        self._recovery = recovery
        self._settings = settings
        self._detector = detector
        self.readmission = Readmission(settings.suspicion_ns)
        self.leaving = False  # this node has been told to stop
        self.forced = False  # an operator has said to go on without who is missing
        self.without: set[int] = set()  # nodes that an operator's bootstrap does without
        self._may_since = 0  # since when this node might propose, if nobody older did
        self._ready_since = 0  # since when somebody is ready to join
        self._lagging_since: dict[int, tuple[int, int]] = {}  # node_id → since when, and how far it had got
        self._deaf_since: dict[int, int] = {}  # members that are heard and do not hear this node
        self._attempt_after = 0
        self._propose_at = NO_LIMIT  # when it is this node's turn, if nobody else has begun
        self._draws = 0  # of chance
        self._back_since = 0  # since when members that have restarted are waited for
        self._waiting_since = 0  # since when a node that came back has found too few of the others

    def installed(self) -> None:
        """A configuration was installed: the reasons for the last change are gone."""
        self._may_since = self._ready_since = self._back_since = 0
        self._lagging_since = {}
        self._deaf_since = {}
        self._attempt_after = 0
        configuration = self._node.configuration
        if self._node.plane is not None or (configuration and self._detector.voices(configuration)):
            self.forced = False  # else what was accepted before is finished, and has lost its members, too

    def force(self) -> str:
        """Go on without who is missing: empty, or why this node cannot. An attempt that still waits is over."""
        configuration = self._node.configuration
        if configuration is not None and not self._detector.is_acceptor(configuration):
            voices = sorted(self._detector.voices(configuration))
            if voices:
                return f"this node's disk has no vote on what follows: say it to node {voices[0]}, whose disk has one"
        if not self.forced:
            self.forced = True
            self._recovery.proposer.abandon()
            self._attempt_after = 0
        return ""

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
        if self.forced and node.state is State.ACTIVE and node.primary:
            self.forced = False  # it goes on without: said later, it would end a history that is well
        self._consider_waiting(configuration, now)
        if self._recovery.proposer.active or now < self._attempt_after:
            if plane is not None and plane.is_sequencer:
                self._consider_resigning(configuration, now)
            return
        if not self._detector.is_acceptor(configuration):
            if self.forced and not self._detector.voices(configuration):
                self._declare_new_history(now)
            return
        if plane is not None and plane.is_sequencer and not plane.resigned:
            reason = "an operator has said so" if self.forced else self._reason_to_change(configuration, now)
            if reason and (self.forced or self._detector.connected(configuration, self._settings.node_id)):
                self._begin(configuration, reason, now)
                return
            self._consider_resigning(configuration, now)
        elif self._may_propose(configuration, now):
            self._begin(configuration, "the sequencer is gone", now)

    def _consider_waiting(self, configuration: Configuration, now: int) -> None:
        """A node that came back and finds too few of the others: after ``new_history_after``, where that is set, it
        goes on without them. One that holds the order in memory never does: it may only be cut off."""
        after = self._settings.new_history_after_ns
        if not after or self._node.plane is not None or not self._node.suspects:
            self._waiting_since = 0
            return
        self._waiting_since = self._waiting_since or now
        if now - self._waiting_since >= after and not self.forced and not self.force():
            self._node.say_news(
                "new_history", "the others did not come back in time: this node goes on without them"
            )

    def _consider_bootstrap(self, now: int) -> None:
        proposer = self._recovery.proposer
        acceptors = self._recovery.formation.decide(self._detector.heard, self.without)
        if acceptors is None or now < self._attempt_after:
            return
        if proposer.active and (acceptors == proposer.acceptors or not proposer.preparing):
            return  # else one of them has lost its disk since: its successor is asked
        self._attempt_after = now + limits.PREPARE_MAX_NS
        self._recovery.counters["attempts"] += 1
        promised = self._recovery.promised
        self._recovery.proposer.begin(
            BOOTSTRAP, (promised.round if promised else 0) + 1, now,
            configuration=None, acceptors=acceptors, table_hash=self._recovery.formation.hash, reason="bootstrap",
        )  # fmt: skip

    def _begin(self, configuration: Configuration, reason: str, now: int) -> None:
        self._recovery.counters["attempts"] += 1
        self._attempt_after = now + limits.PREPARE_MAX_NS
        rounds = [self._recovery.promised.round] if self._recovery.promised else [0]
        rounds += [
            peer.beat.promised_round
            for peer in self._detector.heard
            if peer.beat is not None and in_epoch(peer.beat, configuration)
        ]
        self._recovery.proposer.begin(
            self._recovery.instance, max(rounds) + 1, now,
            configuration=configuration,
            acceptors={member.node_id: member.store_id for member in configuration.members},
            forced=self.forced, reason=reason,
        )  # fmt: skip

    def _declare_new_history(self, now: int) -> None:
        """An operator has said to go on, and no disk is there that may vote on it: there is nobody to ask."""
        value = self._recovery.new_history({}, {}, self._recovery.topics_digest(), now)
        if value is not None:
            self._recovery.decided(value, now)

    def _may_propose(self, configuration: Configuration, now: int) -> bool:
        """Whether the sequencer is gone, and this node is the one to say so: the oldest that may goes first."""
        own, detector = self._settings.node_id, self._detector
        may = self.forced or (
            self._node.suspects
            and detector.connected(configuration, own)
            and detector.abandoned(configuration, suspects=True)
            and self._could_be_primary(configuration)
        )
        promised = self._recovery.promised
        if may and promised is not None and promised.node_id != own:
            # Somebody is at it: only when it is gone itself, hears too few, or gets nowhere.
            leader = detector.present(promised.node_id)
            working = (
                leader is not None
                and leader.incarnation == promised.incarnation
                and detector.connected(configuration, promised.node_id)
            )
            if working and now - self._recovery.promised_at < 2 * self._settings.sync_timeout_ns:
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
        nodes = [peer.node_id for peer in self._detector.heard if not self.is_leaving(peer.node_id)]
        if not self.leaving:
            nodes.append(self._settings.node_id)
        return is_primary(table, [node for node in nodes if node in table])

    def rest_would_be_primary(self, configuration: Configuration) -> bool:
        """Whether the members that are heard, without this node, may go on as a view."""
        rest = [
            one.node_id
            for one in configuration.members
            if one.node_id != self._settings.node_id
            and self._detector.hears(one.node_id, one.incarnation)
            and not self.is_leaving(one.node_id)
        ]
        return bool(rest) and (
            configuration.last_man_standing or is_primary(self._table(configuration), rest)
        )

    def _table(self, configuration: Configuration) -> dict[int, int]:
        plane = self._node.plane
        return plane.staged_table.votes if plane is not None and plane.is_member else configuration.table

    def is_leaving(self, node_id: int) -> bool:
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
            if self.is_leaving(node_id):
                gone.add(node_id)
                reasons.append(f"node {node_id} leaves")
            elif node_id == self._settings.node_id:
                continue
            elif not detector.hears(node_id, member.incarnation):
                peer = node.peers.get(node_id, member.incarnation)
                if settled or peer is not None:
                    gone.add(node_id)
                    reasons.append(f"node {node_id} is not heard any more")
            elif settled and self._is_deaf(member, now):
                gone.add(node_id)
                reasons.append(f"node {node_id} does not hear the sequencer")
        coming_back = self._are_coming_back(configuration, gone, now)
        joining = self._ready_joiners(configuration, now)
        lagging = self.lagging(now)
        if lagging and self._would_be_primary(configuration, gone | lagging, lagging, joining):
            gone |= lagging
            reasons += [f"node {node_id} keeps the backlog full" for node_id in sorted(lagging)]
        reasons += [f"node {node_id} joins" for node_id in joining]
        if plane.state.node_table.changed:
            reasons.append("the node table or the sequencer was changed by command")
        if plane.frozen or self._frozen_members(configuration):
            reasons.append("members are frozen by another proposal")
        if plane.frozen and now - self._recovery.promised_at < self._settings.sync_timeout_ns // 4:
            return ""  # somebody else is at it
        if not reasons or (coming_back and len(reasons) == len(gone)):
            return ""
        if not self._would_be_primary(configuration, gone, gone & lagging, joining):
            return ""
        return "; ".join(reasons)

    def _are_coming_back(self, configuration: Configuration, gone: set[int], now: int) -> bool:
        """Whether all who are gone have restarted, and the order goes on without them: their new incarnations are
        waited for, so that a restart is one view with the node in ``out`` and in ``in``."""
        if not gone:
            self._back_since = 0
            return False
        for member in configuration.members:
            newest = self._detector.present(member.node_id)
            restarted = newest is not None and newest.incarnation != member.incarnation
            if member.node_id in gone and (self.is_leaving(member.node_id) or not restarted):
                return False
        left = {member.node_id for member in configuration.members} - gone
        self._back_since = self._back_since or now
        waited = now - self._back_since >= limits.JOIN_WAIT_NS
        return not waited and Quorums(configuration).commit(left)

    def _would_be_primary(
        self, configuration: Configuration, gone: set[int], lagging: set[int], joining: list[int]
    ) -> bool:
        """Whether a view without the members ``gone`` may go on. Those of them that are heard may come back in it, but
        for the ``lagging``; not before they are ready, where the order goes on without them."""
        table, plane = self._table(configuration), self._node.plane
        left = [one.node_id for one in configuration.members if one.node_id not in gone]
        staying = left + joining
        restarted = []
        if plane is None or plane.frozen or not Quorums(configuration).commit(left):
            restarted = [
                peer.node_id
                for peer in self._detector.heard
                if peer.node_id in gone - lagging and not self.is_leaving(peer.node_id)
            ]
        present = [one for one in {*staying, *restarted} if one in table]
        return bool(present) and (configuration.last_man_standing or is_primary(table, present))

    def _is_deaf(self, member: Member, now: int) -> bool:
        """Whether a member that is heard does not hear this node, and has had time to: when a link heals, heartbeats
        cross each other."""
        node_id = member.node_id
        if self._detector.member_linked(node_id, member.incarnation):
            self._deaf_since.pop(node_id, None)
            return False
        since = self._deaf_since.setdefault(node_id, now)
        return now - since >= self._settings.suspicion_ns // 4

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
        since = {}
        for one in sorted(late):
            standing = plane.standing_of(one)
            before = self._lagging_since.get(one)
            since[one] = before if before is not None and before[1] == standing else (now, standing)
        self._lagging_since = since
        return {one for one, (when, _) in since.items() if now - when >= limits.BACKLOG_GRACE_NS}

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
        table = self._table(configuration)
        members = {one.node_id for one in configuration.members}
        ready = [
            one.node_id
            for one in self.candidates(configuration, now)
            if one.ready
            and one.node_id in table
            and self._detector.linked(self._settings.node_id, one.node_id)
        ]
        # Who is heard and no member is on its way: a learner, or one that is about to hear that it was left out.
        others = (
            {peer.node_id for peer in self._detector.heard if peer.node_id in table} - members - set(ready)
        )
        if not ready:
            self._ready_since = 0
            return []
        self._ready_since = self._ready_since or now
        return ready if not others or now >= self._ready_since + limits.JOIN_WAIT_NS else []

    def candidates(self, configuration: Configuration, now: int, freed: int = 0) -> list[Candidate]:
        """Nodes that are heard and no members. Who lacks what is freed already, here or (``freed``) by those who have
        promised, is not ready: nobody could serve it."""
        found = []
        own, plane = self._settings, self._node.plane
        freed = max(freed, plane.stable if plane is not None else 0)
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
            if any(
                one.node_id == peer.node_id and self._detector.hears(one.node_id, one.incarnation)
                for one in configuration.members
            ):
                continue  # the member with this id still speaks: it lets no other in
            ready = bool(beat.flags & _READY) and in_epoch(beat, configuration) and beat.held >= freed
            good = self.readmission.may_enter(peer.node_id, peer.first_heard, now)
            found.append(Candidate(peer.node_id, peer.incarnation, beat.store_id, beat.mtu, ready and good))
        if configuration.member(own.node_id, own.incarnation) is None:
            ready = plane is not None and plane.caught_up and plane.log.held >= freed
            found.append(Candidate(own.node_id, own.incarnation, own.store_id, own.mtu, ready))
        return sorted(found, key=lambda one: one.node_id)

    def _consider_resigning(self, configuration: Configuration, now: int) -> None:
        """A sequencer that cannot commit says so: that ends its protection."""
        plane = self._node.plane
        if plane is None or plane.resigned:
            return
        settled = now - self._detector.installed_at >= self._settings.suspicion_ns
        in_reach = {
            one.node_id
            for one in configuration.members
            if one.node_id == self._settings.node_id
            or (self._detector.hears(one.node_id, one.incarnation) and not self._is_deaf(one, now))
        }
        # Frozen, commit stands still by itself; but one that hears too few must not protect itself from the others.
        stuck = not plane.frozen and plane.uncommitted and now - plane.committed_at >= limits.RESIGN_NS
        if (settled and not Quorums(configuration).commit(in_reach)) or stuck:
            plane.resigned = True
            self._node.say_news("resigned", "this sequencer cannot commit, and gives up its work")
            self._node.beat_soon()

    def next_timer(self) -> int:
        return min(self._recovery.proposer.next_timer(), self._propose_at)

    def yields(self, rival: Ballot, now: int) -> bool:
        """The sequencer that is alive gives way to nobody; others do for a time that is longer the younger they are,
        and never twice the same, so that two of them do not go on outbidding each other."""
        node = self._node
        configuration = node.configuration
        if rival.node_id == self._settings.node_id:
            return False
        if configuration is None:  # the lower of two that would bootstrap goes first, while it is there
            present = self._detector.present(rival.node_id)
            lower = rival.node_id < self._settings.node_id
            if not lower or present is None or present.incarnation != rival.incarnation:
                return False
            self._attempt_after = now + limits.PREPARE_MAX_NS
            return True
        plane = node.plane
        if plane is not None and plane.is_sequencer and not plane.resigned:
            return False
        self._draws += 1
        chance = xxh3_64_intdigest(f"{self._settings.seed} {self._draws}".encode()) % limits.PROPOSE_RANK_NS
        rank = self._rank(configuration) + 1
        self._attempt_after = now + rank * limits.PROPOSE_RANK_NS + chance
        return True
