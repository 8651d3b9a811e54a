"""Other nodes: who was heard when, where each can be reached, and which datagrams of each were taken already."""

from __future__ import annotations

from collections.abc import Iterator

from ocfcluster import limits
from ocfcluster.protocol.effects import Address
from ocfcluster.protocol.streams import OriginStream
from ocfcluster.wire.datagram import Heartbeat
from ocfcluster.wire.replay import ReplayWindow


class Peer:
    """One incarnation of another node."""

    __slots__ = (
        "node_id",
        "incarnation",
        "malformed",
        "malformed_told_at",
        "address",
        "first_heard",
        "last_heard",
        "last_large",
        "replay",
        "beat",
        "origin",
        "beat_at",
        "beat_counter",
    )

    def __init__(self, node_id: int, incarnation: int, address: Address, now: int) -> None:
        self.node_id = node_id
        self.incarnation = incarnation
        self.malformed = 0  # datagrams of it that cannot be
        self.malformed_told_at = now - limits.TOLD_AGAIN_NS
        self.address = address
        self.first_heard = now
        self.last_heard = now
        self.last_large = now  # a padded heartbeat, or packets: the link takes full datagrams
        self.replay = ReplayWindow()
        self.beat: Heartbeat | None = None  # the newest
        self.beat_counter = 0
        self.beat_at = now  # when it came
        self.origin: OriginStream | None = None  # its stream, where it is a member


class PeerTable:
    """Incarnations heard, by (node_id, incarnation); bounded, the longest silent go first."""

    __slots__ = ("_large_ns", "_peers", "_suspicion_ns")

    def __init__(self, suspicion_ns: int, heartbeat_ns: int) -> None:
        self._peers: dict[tuple[int, int], Peer] = {}
        self.retime(suspicion_ns, heartbeat_ns)

    def retime(self, suspicion_ns: int, heartbeat_ns: int) -> None:
        self._suspicion_ns = suspicion_ns
        # Three padded heartbeats, and the time to notice that the last one is missing.
        self._large_ns = 3 * limits.HEARTBEAT_PADDED_EVERY * heartbeat_ns + suspicion_ns // 2

    def get(self, node_id: int, incarnation: int) -> Peer | None:
        return self._peers.get((node_id, incarnation))

    def add(self, node_id: int, incarnation: int, address: Address, now: int) -> Peer:
        if len(self._peers) >= 2 * limits.NODES:
            # A member's entry holds its stream and replay window: those stay, whatever strangers send.
            idle = [peer for peer in self._peers.values() if peer.origin is None]
            oldest = min(idle, key=lambda peer: (peer.last_heard, peer.node_id, peer.incarnation))
            del self._peers[(oldest.node_id, oldest.incarnation)]
        peer = Peer(node_id, incarnation, address, now)
        self._peers[(node_id, incarnation)] = peer
        return peer

    def heard(self, now: int) -> list[Peer]:
        """Incarnations heard within the suspicion time over links that take full datagrams, by node_id, of each the
        one heard last last; not those that have fallen silent while another incarnation of their node speaks."""
        oldest = now - self._suspicion_ns
        oldest_large = now - self._large_ns
        live = [
            peer
            for peer in self._peers.values()
            if peer.last_heard > oldest and peer.last_large > oldest_large
        ]
        live.sort(key=lambda peer: (peer.node_id, peer.last_heard, peer.incarnation))
        newest = {peer.node_id: peer for peer in live}
        silent = self._suspicion_ns // 4  # while another incarnation of the same node speaks
        return [peer for peer in live if newest[peer.node_id].last_heard - peer.last_heard < silent]

    def somebody_misses(self, node_id: int, incarnation: int, now: int) -> bool:
        """Whether a node whose heartbeats come says that it does not hear this one."""
        oldest = now - self._suspicion_ns
        return any(
            peer.beat is not None and peer.beat_at > oldest and (node_id, incarnation) not in peer.beat.heard
            for peer in self._peers.values()
        )

    def all(self) -> Iterator[Peer]:
        yield from self._peers.values()

    def count_as_heard(self, now: int) -> None:
        """This node slept: what it has not heard meanwhile says nothing about the others."""
        for peer in self._peers.values():
            if peer.last_heard > now - limits.SLEEP_MEMORY_NS:
                peer.last_heard = now
                peer.last_large = now
