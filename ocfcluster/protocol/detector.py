"""The failure detector: whom this node hears, who hears whom, and whether the sequencer counts as alive.

Every HEARTBEAT says whom its sender hears and whether it counts its sequencer as alive, so each node knows without
asking whether it would find promises: a vote before the vote, for free.
"""

from __future__ import annotations

from ocfcluster.protocol.peers import Peer, PeerTable
from ocfcluster.protocol.quorum import Quorums
from ocfcluster.protocol.settings import Configuration, Settings
from ocfcluster.wire.datagram import Heartbeat, MessageFlags

_SUSPECTS = int(MessageFlags.SUSPECTS)


def history_numbers(cluster_id: str) -> tuple[int, int]:
    """A cluster_id as the two numbers that heartbeats carry; (0, 0) for none."""
    return (int(cluster_id[:16], 16), int(cluster_id[16:], 16)) if cluster_id else (0, 0)


class Detector:
    """``update`` takes a picture of what is heard now; everything else is asked of that picture."""

    __slots__ = (
        "_own",
        "_peers",
        "_present",
        "_started",
        "_suspicion_ns",
        "_store_id",
        "heard",
        "installed_at",
        "next_suspicion",
    )

    def __init__(self, settings: Settings, peers: PeerTable, now: int) -> None:
        self._own = (settings.node_id, settings.incarnation)
        self._store_id = settings.store_id
        self._peers = peers
        self._suspicion_ns = settings.suspicion_ns
        self._started = now
        self.installed_at = now  # when the configuration in force was installed
        self.heard: list[Peer] = []
        self.next_suspicion = 2**62  # when the next of those heard becomes silent, if nothing comes of it
        self._present: dict[int, Peer] = {}

    def retime(self, suspicion_ns: int) -> None:
        """Suspect after another time; ``update`` follows."""
        self._suspicion_ns = suspicion_ns

    def update(self, now: int) -> None:
        self.heard = self._peers.heard(now)
        # Worked out here, not after every burst when it is asked for: what is heard until then only moves it on.
        self.next_suspicion = self._suspicion_ns + min(
            [peer.last_heard for peer in self.heard], default=2**62
        )
        self._present = {peer.node_id: peer for peer in self.heard}  # of each the incarnation heard last

    def woke(self, now: int) -> None:
        """This node slept: what others said meanwhile is old, and they get the time of a new view to speak again."""
        self.installed_at = now

    def hears(self, node_id: int, incarnation: int) -> bool:
        return any((peer.node_id, peer.incarnation) == (node_id, incarnation) for peer in self.heard)

    def present(self, node_id: int) -> Peer | None:
        """The newest incarnation of another node that is heard."""
        return self._present.get(node_id)

    # --- links ------------------------------------------------------------------------------------------------------

    def linked(self, one: int, other: int) -> bool:
        """Whether two nodes hear each other, in the incarnations that this node hears of them."""
        if other == self._own[0]:
            one, other = other, one
        peer = self._present.get(other)
        if peer is None or peer.beat is None:
            return False
        if one == self._own[0]:
            return self._own in peer.beat.heard
        first = self._present.get(one)
        return (
            first is not None
            and first.beat is not None
            and (other, peer.incarnation) in first.beat.heard
            and (one, first.incarnation) in peer.beat.heard
        )

    def member_linked(self, node_id: int, incarnation: int) -> bool:
        """Whether this node and that incarnation hear each other."""
        peer = self._peers.get(node_id, incarnation)
        return (
            peer is not None
            and peer.beat is not None
            and self.hears(node_id, incarnation)
            and self._own in peer.beat.heard
        )

    # --- the sequencer ----------------------------------------------------------------------------------------------

    def sequencer_alive(self, configuration: Configuration, resigned: bool, now: int) -> bool:
        """Whether this node counts the sequencer as alive: it is heard in this epoch and has not resigned.

        ``resigned``: where it is this node itself. What could not be heard yet is given the suspicion time.
        """
        member = next(one for one in configuration.members if one.node_id == configuration.sequencer)
        key = (member.node_id, member.incarnation)
        if key == self._own:
            return not resigned
        if member.node_id == self._own[0]:
            return False  # an incarnation of this node before
        peer = self._peers.get(*key)
        newest = self._present.get(member.node_id)
        if newest is not None and newest.incarnation != member.incarnation and not self.hears(*key):
            return False  # it has restarted
        fresh = now - max(self._started, self.installed_at) < self._suspicion_ns
        if peer is None or not self.hears(*key):
            return peer is None and fresh
        beat = peer.beat
        if beat is not None and in_epoch(beat, configuration):
            return not beat.flags & _SUSPECTS
        return fresh

    def suspects(self, voice: Peer, configuration: Configuration) -> bool:
        """Whether that node does not count the sequencer as alive, by its own word."""
        beat = voice.beat
        if beat is None:
            return False
        if in_epoch(beat, configuration):
            return bool(beat.flags & _SUSPECTS)
        sequencer = next(one for one in configuration.members if one.node_id == configuration.sequencer)
        key = (sequencer.node_id, sequencer.incarnation)
        return key not in beat.heard and key != (voice.node_id, voice.incarnation)

    # --- acceptors --------------------------------------------------------------------------------------------------

    def voices(self, configuration: Configuration) -> dict[int, Peer]:
        """Other acceptors of the configuration that are heard, by node_id: with the disk that they had then."""
        found = {}
        for member in configuration.members:
            peer = self._present.get(member.node_id)
            if peer is not None and peer.beat is not None and peer.beat.store_id == member.store_id:
                found[member.node_id] = peer
        return found

    def is_acceptor(self, configuration: Configuration) -> bool:
        return configuration.acceptor(self._own[0], self._store_id)

    def connected(self, configuration: Configuration, proposer: int) -> bool:
        """Whether a decision quorum hears ``proposer`` and is heard by it."""
        voices = self.voices(configuration)
        nodes = {node for node in voices if node != proposer and self.linked(proposer, node)}
        reached = proposer == self._own[0] or self.linked(proposer, self._own[0])
        if reached and self.is_acceptor(configuration):
            nodes.add(self._own[0])
        if proposer in voices:
            nodes.add(proposer)
        return Quorums(configuration).decision(nodes)

    def abandoned(self, configuration: Configuration, suspects: bool) -> bool:
        """Whether a decision quorum does not count the sequencer as alive; ``suspects``: this node does not."""
        nodes = {
            node for node, peer in self.voices(configuration).items() if self.suspects(peer, configuration)
        }
        if suspects and self.is_acceptor(configuration):
            nodes.add(self._own[0])
        return Quorums(configuration).decision(nodes)

    def promised_elsewhere(self, configuration: Configuration, promised: bool) -> bool:
        """Whether a decision quorum has promised to somebody already; ``promised``: this node has."""
        nodes = {
            node
            for node, peer in self.voices(configuration).items()
            if peer.beat is not None and in_epoch(peer.beat, configuration) and peer.beat.promised_round
        }
        if promised and self.is_acceptor(configuration):
            nodes.add(self._own[0])
        return Quorums(configuration).decision(nodes)


def in_epoch(beat: Heartbeat, configuration: Configuration) -> bool:
    """Whether the sender has this configuration in force."""
    return beat.epoch == configuration.epoch and (beat.history_time, beat.history_random) == history_numbers(
        configuration.cluster_id
    )
