"""Configurations coming into force: which one is taken, on disk first, and what then becomes of the data plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocfcluster import limits
from ocfcluster.errors import MalformedDatagram
from ocfcluster.protocol import messages
from ocfcluster.protocol.data_plane import DataPlane
from ocfcluster.protocol.detector import Detector
from ocfcluster.protocol.effects import HistoryLost, State
from ocfcluster.protocol.order_log import OrderLog
from ocfcluster.protocol.peers import Peer
from ocfcluster.protocol.settings import Configuration, Settings
from ocfcluster.protocol.snapshot import Restored
from ocfcluster.protocol.state import ReplicatedState, TopicTable
from ocfcluster.protocol.store import Store
from ocfcluster.wire.datagram import Heartbeat, MessageFlags

if TYPE_CHECKING:
    from ocfcluster.protocol.node import Node

_NO_MEMBER = int(MessageFlags.FORMING | MessageFlags.LEARNING | MessageFlags.LEAVING)


class Installation:
    """Installs configurations in a node; one at a time is on its way to disk."""

    __slots__ = (
        "_departed",
        "_detector",
        "_early",
        "_foreign_told",
        "_node",
        "_settings",
        "_store",
        "foreign",
        "under_way",
    )

    def __init__(self, node: Node, settings: Settings, store: Store, detector: Detector) -> None:
        self._node = node
        self._settings = settings
        self._store = store
        self._detector = detector
        self.under_way = False  # a configuration is on its way to disk
        self._early: list[tuple[Peer, bytes, int]] = []  # ORDERs that came meanwhile, with their counters
        self._departed: set[tuple[int, int]] = set()  # members of the epoch before that are none now
        self.foreign = ""  # another history that is heard, and that this node cannot follow by itself
        self._foreign_told: set[str] = set()  # bounded: histories that anybody may make up would fill the log

    def take(self, configuration: Configuration, now: int) -> None:
        """A configuration that was decided, from whomever: take it where it is newer than the one in force."""
        node = self._node
        mine, plane, own = node.configuration, node.plane, self._settings
        if self.under_way or node.state in (State.STOPPED, State.EVICTED):
            return
        if mine is not None and configuration.cluster_id == mine.cluster_id:
            if configuration.epoch <= mine.epoch:
                return
        elif mine is not None:
            if configuration.cluster_id in mine.supersedes:
                return
            if mine.cluster_id not in configuration.supersedes:
                self._hear_foreign(configuration)
                return
        member = configuration.member(own.node_id, own.incarnation) is not None
        if plane is not None and mine is not None and plane.is_member and not member:
            if node.leaving and configuration.cluster_id == mine.cluster_id:
                return  # it has let this node go
            node.evict(f"epoch {configuration.epoch} is without this node")
            return
        if plane is not None and mine is not None and configuration.cluster_id == mine.cluster_id:
            follows = (
                configuration.epoch == mine.epoch + 1
                and plane.log.held <= configuration.base
                and len(plane.log.views) < limits.VIEWS_UNHELD
            )
            if not follows and member:
                node.evict(f"epoch {configuration.epoch} cannot follow what this node holds")
                return
            if not follows:
                self.drop_plane()
        elif plane is None and member and configuration.base > 0:
            node.evict(f"epoch {configuration.epoch} began before this node had its state")
            return
        self._persist(configuration, now)

    def _persist(self, configuration: Configuration, now: int) -> None:
        """C_e goes to disk before anything is sent in e, and with it the votes on what came before are forgotten."""
        self.under_way = True
        record = self._store.record
        history = record.configuration.cluster_id if record.configuration is not None else ""
        paxos = record.paxos
        if paxos is not None and (paxos.cluster_id, paxos.epoch) != (
            configuration.cluster_id,
            configuration.epoch,
        ):
            paxos = None
        plane = self._node.plane
        if plane is not None:
            plane.end(configuration if history == configuration.cluster_id else None)
        index = record.topics_index if history == configuration.cluster_id else 0
        if record.configuration is not None and index > configuration.ends_at(record.configuration.epoch):
            index = 0  # a change that was held and never was, or nobody knows: who is sure goes before
        self._store.change(configuration=configuration, paxos=paxos, topics_index=index)
        self._store.when_durable(lambda when: self._install(configuration, when), now)

    def _install(self, configuration: Configuration, now: int) -> None:
        node = self._node
        before, node.configuration = node.configuration, configuration
        self.under_way = False
        own = self._settings
        member = configuration.member(own.node_id, own.incarnation) is not None
        node.enter_history()
        if before is not None and before.cluster_id != configuration.cluster_id:
            self._early.clear()
            if node.plane is not None and node.plane.is_member:
                node.lose_history(HistoryLost(configuration.cluster_id, before.cluster_id))
            node.plane = None
        if node.plane is not None:
            node.plane.install(configuration, now)
        elif member:
            record = self._store.record
            topics = TopicTable.of(record.topics, record.next_topic_id)
            if configuration.topics_digest and topics.digest != configuration.topics_digest:
                node.evict("the topics that the new history begins with did not come in time")
                return
            state = ReplicatedState(configuration, topics)
            node.plane = DataPlane(
                configuration,
                own,
                node.outbox,
                node.peers,
                self._store,
                state,
                OrderLog(0),
                [],
                0,
                0,
                node.joined,
            )
            node.plane.install(configuration, now)
        self._detector.installed_at = now
        node.silence(configuration.table)
        if before is not None and before.cluster_id == configuration.cluster_id:
            for one in before.members:
                # Its link was bad, if it spoke until now: whoever has died or was told to stop does not.
                gone = configuration.member(one.node_id, one.incarnation) is None
                peer = node.peers.get(one.node_id, one.incarnation)
                left = peer is None or peer.beat is None or bool(peer.beat.flags & MessageFlags.LEAVING)
                newest = self._detector.present(one.node_id)
                speaks = peer is not None and peer.last_heard > now - self._settings.suspicion_ns
                if gone and not left and speaks and (newest is None or newest is peer):
                    node.recovery.initiative.readmission.left(one.node_id, now)
            self._departed = {
                (one.node_id, one.incarnation)
                for one in before.members
                if configuration.member(one.node_id, one.incarnation) is None
            }
        node.recovery.installed(now)
        if node.plane is not None and node.recovery.promised is not None:
            node.plane.freeze()  # it has promised what follows this epoch before it was in it
        self._attach()
        self._take_early()
        self._detector.update(now)
        node.suspects = False
        node.reconsider()
        node.beat_soon()
        self._tell_view(before, configuration)

    def set_aside(self, peer: Peer, datagram: bytes, counter: int) -> None:
        """An ORDER while this node's disk is at work: the next sequencer may be ahead, and orders already. Without it
        this node would have to find out and ask, and a view of two would wait for it."""
        if len(self._early) < limits.EARLY_ORDERS:
            self._early.append((peer, datagram, counter))

    def _take_early(self) -> None:
        early, self._early = self._early, []
        plane = self._node.plane
        for peer, datagram, counter in early:
            if plane is not None and peer.origin is not None:
                try:
                    plane.on_order(peer, datagram, counter)
                except MalformedDatagram as error:
                    self._node.count_malformed(peer, error, self._node.now)

    def hear_departed(self, peer: Peer, beat: Heartbeat, now: int) -> None:
        """A member that was left out speaks as if it were one: it was not dead, its link was bad."""
        key = (peer.node_id, peer.incarnation)
        if key in self._departed and not beat.flags & _NO_MEMBER:
            self._departed.discard(key)
            self._node.recovery.initiative.readmission.left(peer.node_id, now)

    def learn(self, restored: Restored, now: int) -> None:
        """Go on with what a snapshot brought, as a learner."""
        node = self._node
        configuration = node.configuration
        if configuration is None:
            return
        node.plane = DataPlane(
            configuration, self._settings, node.outbox, node.peers, self._store, restored.state,
            restored.log, restored.streams, restored.delivered, restored.stable, node.joined,
        )  # fmt: skip
        node.plane.learn(configuration, now)
        self._attach()
        node.to(State.LEARNING, f"has the state of epoch {configuration.epoch}, and catches up")
        node.beat_soon()

    def drop_plane(self) -> None:
        """A learner's state is of no use any more: it begins anew."""
        node = self._node
        node.plane = None
        for peer in node.peers.all():
            peer.origin = None
        node.to(State.FORMING, "the state it had fetched is out of date")

    def _attach(self) -> None:
        if self._node.plane is not None:
            for peer in self._node.peers.all():
                self._node.plane.attach(peer)

    def _tell_view(self, before: Configuration | None, configuration: Configuration) -> None:
        node = self._node
        known = [] if before is None else [(one.node_id, one.incarnation) for one in before.members]
        for one in configuration.members:
            if (one.node_id, one.incarnation) not in known and known:
                node.say_news("member_joined", f"node {one.node_id} is a member")
        for node_id, incarnation in known:
            if configuration.member(node_id, incarnation) is None:
                node.say_news("member_left", f"node {node_id} is no member any more")
        node.say_news(
            "epoch", f"epoch {configuration.epoch} with {len(configuration.members)} members; "
            f"sequencer: node {configuration.sequencer}"
        )  # fmt: skip

    def _hear_foreign(self, configuration: Configuration) -> None:
        """Another history of this cluster's name, that neither supersedes this one nor is superseded by it."""
        self.foreign = configuration.cluster_id
        if self.foreign not in self._foreign_told and len(self._foreign_told) < limits.HISTORIES_REMEMBERED:
            self._foreign_told.add(self.foreign)
            self._node.say_fault(
                "foreign_history",
                f"another history of this cluster is heard ({configuration.cluster_id}, epoch {configuration.epoch}, "
                f"nodes {sorted(configuration.table)}); `ocfcluster rejoin` gives up this node's and joins it",
            )

    def tell(self, node_id: int) -> None:
        """Send the configuration in force to a node that is behind."""
        node = self._node
        peer = self._detector.present(node_id)
        if peer is not None and node.configuration is not None:
            node.outbox.send(peer.address, messages.encode_install(node.configuration))
