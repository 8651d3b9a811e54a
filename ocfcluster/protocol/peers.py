"""Other nodes: who was heard when, where each can be reached, and which datagrams of each were taken already."""

from __future__ import annotations

from ocfcluster import limits
from ocfcluster.protocol.effects import Address
from ocfcluster.protocol.streams import OriginStream
from ocfcluster.wire.datagram import Heartbeat


class ReplayWindow:
    """Takes each counter of a sender once; what lies REPLAY_WINDOW behind the highest is not taken at all."""

    __slots__ = ("_highest", "_missing")

    def __init__(self) -> None:
        self._highest = 0
        self._missing: set[int] = set()  # never iterated in an order that matters

    def accept(self, first: int, count: int = 1) -> bool:
        """Whether all of ``count`` counters from ``first`` on are new; they are taken then."""
        highest = self._highest
        if first > highest:
            if first > highest + 1:
                self._missing.update(range(max(highest + 1, first - limits.REPLAY_WINDOW), first))
                if len(self._missing) > limits.REPLAY_WINDOW:
                    self._prune(first)
            self._highest = first + count - 1
            return True
        if count == 1:
            if first in self._missing and first > highest - limits.REPLAY_WINDOW:
                self._missing.discard(first)
                return True
            return False
        counters = range(first, first + count)
        if first > highest - limits.REPLAY_WINDOW and self._missing.issuperset(counters):
            self._missing.difference_update(counters)
            return True
        return False

    def _prune(self, newest: int) -> None:
        oldest = newest - limits.REPLAY_WINDOW
        self._missing = {counter for counter in self._missing if counter > oldest}


class Peer:
    """One incarnation of another node."""

    __slots__ = (
        "node_id",
        "incarnation",
        "address",
        "last_heard",
        "replay",
        "beat",
        "origin",
        "beat_counter",
        "asked_configuration_at",
    )

    def __init__(self, node_id: int, incarnation: int, address: Address, now: int) -> None:
        self.node_id = node_id
        self.incarnation = incarnation
        self.address = address
        self.last_heard = now
        self.replay = ReplayWindow()
        self.beat: Heartbeat | None = None  # the newest
        self.beat_counter = 0
        self.origin: OriginStream | None = None  # its stream, where it is a member
        self.asked_configuration_at = 0


class PeerTable:
    """Incarnations heard, by (node_id, incarnation); bounded, the longest silent go first."""

    __slots__ = ("_peers", "_suspicion_ns")

    def __init__(self, suspicion_ns: int) -> None:
        self._peers: dict[tuple[int, int], Peer] = {}
        self._suspicion_ns = suspicion_ns

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
        """Incarnations heard within the suspicion time, by node_id."""
        oldest = now - self._suspicion_ns
        live = [peer for peer in self._peers.values() if peer.last_heard > oldest]
        live.sort(key=lambda peer: (peer.node_id, peer.incarnation))
        return live
