"""Between a node and its transport: what goes out is sealed, and what does not open never comes in. The node sees
neither
tags nor keys.

Each buffer is sealed once, whatever the transport does with it (several networks, several peers). Where the transport
drops second copies by itself, it opens before it takes a datagram for a first one. Once a second a key report goes out
beside the traffic, so that every node knows which keys the others have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from ocfcluster import limits
from ocfcluster.limits import SEAL_BYTES
from ocfcluster.net.redundant import RedundantTransport
from ocfcluster.net.transport import Address, Received, Transport
from ocfcluster.wire.datagram import VERSION_AT
from ocfcluster.wire.keys import ClusterKey
from ocfcluster.wire.sealing import Opener, Sealer

_SENDERS: Final = 2 * limits.NODES  # incarnations whose keys are remembered; the longest silent go first
_TELL_NS: Final = 10 * limits.SECOND_NS  # between two complaints


class PeerKeys(NamedTuple):
    """What an incarnation of another node has said of its keys."""

    key_ids: tuple[str, ...]  # the one that it seals with first
    heard_at: int  # monotonic ns


class SealedTraffic:
    """Sends and receives by ``transport``, which stays its owner's.

    ``keys``: the first one seals, all of them open. ``complain``: told why something did not open and where it came
    from, every ten seconds at most.
    """

    __slots__ = (
        "peer_keys", "_complain", "_complained_at", "_keys", "_opener", "_opens_itself", "_own", "_reported_at",
        "_sealer", "_transport",
    )  # fmt: skip

    def __init__(
        self,
        transport: Transport,
        cluster: str,
        node_id: int,
        incarnation: int,
        keys: Sequence[ClusterKey],
        complain: Callable[[str, Address], None],
    ) -> None:
        self.peer_keys: dict[tuple[int, int], PeerKeys] = {}  # (node_id, incarnation) → what it said last
        self._transport = transport
        self._own = (node_id, incarnation)
        self._keys = list(keys)
        self._sealer = Sealer(cluster, node_id, incarnation, keys[0])
        self._opener = Opener(cluster, keys)
        self._complain = complain
        now = time.monotonic_ns()
        self._complained_at = now - _TELL_NS
        self._reported_at = now - limits.KEY_REPORT_NS
        self._opens_itself = isinstance(transport, RedundantTransport)
        if isinstance(transport, RedundantTransport):
            transport.open_with(self._open)

    @property
    def counters(self) -> dict[str, int]:
        """Datagrams dropped, by reason (``wire.sealing.OUTCOMES``)."""
        return dict(self._opener.counters)

    def use(self, keys: Sequence[ClusterKey]) -> None:
        """Seal with the first of these from here on, and open with any of them; the others are told with the next
        multicast."""
        self._keys = list(keys)
        self._sealer.use(keys[0])
        self._opener.accept(keys)
        self._reported_at = time.monotonic_ns() - limits.KEY_REPORT_NS

    # --- the traffic ------------------------------------------------------------------------------------------------

    def multicast(self, buffer: bytes, segment: int) -> None:
        self._transport.multicast(self._sealer.seal(buffer, segment), segment + SEAL_BYTES)
        if len(buffer) <= segment:  # heartbeats are among these: often enough, and never between packets
            now = time.monotonic_ns()
            if now - self._reported_at >= limits.KEY_REPORT_NS:
                self._report(now, buffer[VERSION_AT])

    def send(self, address: Address, buffer: bytes, segment: int) -> None:
        self._transport.send(address, self._sealer.seal(buffer, segment), segment + SEAL_BYTES)

    def receive(self, limit: int) -> list[Received]:
        """As of any transport; what does not open is not among it."""
        arrived = self._transport.receive(limit)
        if self._opens_itself:
            return arrived
        received: list[Received] = []
        for one in arrived:
            received += self._open(one)
        return received

    def _open(self, received: Received) -> list[Received]:
        buffer, segment, source = received
        opener = self._opener
        opened = opener.open(buffer, segment)
        if opener.reports:  # also where the kernel has put one behind other datagrams of its sender
            self._take_reports()
        elif not opened:
            self._on_refused(source)
        return [(piece, size, source) for piece, size in opened]

    # --- key reports ------------------------------------------------------------------------------------------------

    def _report(self, now: int, version: int) -> None:
        self._reported_at = now
        datagram = self._sealer.report([key.id for key in self._keys], version)
        self._transport.multicast(datagram, len(datagram))

    def _take_reports(self) -> None:
        now = time.monotonic_ns()
        reports, self._opener.reports = self._opener.reports, []
        for node_id, incarnation, key_ids in reports:
            sender = (node_id, incarnation)
            if sender == self._own:
                continue
            if sender not in self.peer_keys and len(self.peer_keys) >= _SENDERS:
                del self.peer_keys[min(self.peer_keys, key=lambda one: self.peer_keys[one].heard_at)]
            self.peer_keys[sender] = PeerKeys(key_ids, now)

    def _on_refused(self, source: Address) -> None:
        refusal = self._opener.take_refusal()
        now = time.monotonic_ns()
        if refusal and now - self._complained_at >= _TELL_NS:
            self._complained_at = now
            self._complain(refusal, source)
