"""Asking for what is missing: NACKs to whom may have it."""

from __future__ import annotations

from ocfcluster import limits
from ocfcluster.protocol.effects import Address
from ocfcluster.protocol.gaps import ORDER, GapAsker, Source
from ocfcluster.protocol.order_log import OrderLog
from ocfcluster.protocol.outbox import Outbox
from ocfcluster.protocol.peers import PeerTable
from ocfcluster.protocol.settings import Configuration
from ocfcluster.protocol.streams import OriginStream
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.datagram import Range


class Asker:
    """Sends NACKs for holes, to one node a round: first who must have it, then everybody else in turn."""

    __slots__ = ("_gaps", "_outbox", "_peers", "_own", "_ranges", "_configuration", "counters", "first")

    def __init__(
        self, outbox: Outbox, peers: PeerTable, own_id: int, ranges: int, configuration: Configuration
    ) -> None:
        """``ranges``: of one NACK datagram."""
        self._gaps = GapAsker()
        self._outbox = outbox
        self._peers = peers
        self._own = own_id
        self._ranges = ranges
        self._configuration = configuration
        self.first = 0  # whom to ask before all others (a node_id); 0: the origin or the sequencer
        self.counters = {"nacks_sent": 0, "packets_asked": 0}

    def install(self, configuration: Configuration, ranges: int) -> None:
        self._configuration = configuration
        self._ranges = ranges
        self._gaps = GapAsker()
        self.first = 0

    def note(
        self,
        touched: dict[Source, OriginStream],
        streams: dict[Source, OriginStream],
        log: OrderLog,
        now: int,
    ) -> None:
        """Holes may have come or closed: in the streams ``touched``, and then in all."""
        gaps = self._gaps
        for key, stream in touched.items():
            if gaps.open or stream.has_gap:
                gaps.note(key, stream, now)
        if gaps.open or log.has_gap:
            gaps.note(ORDER, log, now)
            for key, stream in streams.items():
                gaps.note(key, stream, now)

    def next_due(self) -> int | None:
        return self._gaps.next_due()

    def ask(self, now: int) -> int:
        """Ask what is due; how many packets of origins were asked for."""
        asked = 0
        for key, tries, ranges in self._gaps.due(now, self._ranges * limits.NACK_DATAGRAMS):
            address = self._whom(key, tries)
            if address is None:
                continue
            count = sum(one.count for one in ranges)
            self.counters["packets_asked"] += count
            if key != ORDER:
                asked += count
            for begin in range(0, len(ranges), self._ranges):
                self.counters["nacks_sent"] += 1
                part: list[Range] = ranges[begin : begin + self._ranges]
                self._outbox.send(address, wire.encode_nack(self._configuration.epoch, part))
        return asked

    def _whom(self, key: Source, tries: int) -> Address | None:
        configuration = self._configuration
        candidates = [key[0], configuration.sequencer]
        if self.first:
            candidates.insert(0, self.first)
        incarnations = {member.node_id: member.incarnation for member in configuration.members}
        candidates += incarnations
        others = [node for node in dict.fromkeys(candidates) if node != self._own and node in incarnations]
        if key[0] in incarnations and incarnations[key[0]] != key[1] and key != ORDER:
            others = [node for node in others if node != key[0]] + [key[0]]  # its origin is gone
        for step in range(len(others)):
            node = others[(tries // 2 + step) % len(others)]
            peer = self._peers.get(node, incarnations[node])
            if peer is not None:
                return peer.address
        return None
