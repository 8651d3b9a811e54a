"""Formation: who must be there before the first configuration of a cluster can be decided, and what it says.

While it has no configuration a node says so in its heartbeats, with a hash of what must be equal everywhere and the
incarnations it hears. As soon as every node of the table is heard, agrees, and hears the others, the lowest node_id
proposes; each of them must promise and accept. An operator may leave out nodes that have never been members
(``ocfcluster bootstrap --without``), and ``bootstrap = "majority"`` is content with more than half of the votes.
A node without a table (development) forms alone, at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from xxhash import xxh3_64_intdigest

from ocfcluster import limits
from ocfcluster.protocol.peers import Peer
from ocfcluster.protocol.settings import Configuration, Member, Settings
from ocfcluster.protocol.spoken import Spoken
from ocfcluster.wire.datagram import Heartbeat, MessageFlags, history_tag


def table_hash(settings: Settings, version: int) -> int:
    """Hash of what all nodes of a table must have alike before a bootstrap, the version that they speak included."""
    alike = (
        sorted(settings.table.items()), settings.delivery, settings.limits, settings.last_man_standing, version,
    )  # fmt: skip
    return xxh3_64_intdigest(msgspec.msgpack.encode(alike))


def new_cluster_id(settings: Settings, wall_ns: int, supersedes: Sequence[str] = ()) -> str:
    """Creation time and a random number: smaller is older. Datagrams tell it from those that it supersedes."""
    time_ns = max(1, wall_ns)
    tags = {0, *map(history_tag, supersedes)}
    while True:
        entropy = xxh3_64_intdigest(f"{settings.seed} {settings.incarnation} {time_ns}".encode())
        cluster_id = f"{time_ns & (2**64 - 1):016x}{entropy:016x}"
        if history_tag(cluster_id) not in tags:
            return cluster_id
        time_ns += 1


class Formation:
    """Decides when a first configuration can be proposed, and says what it waits for."""

    __slots__ = ("_settings", "_spoken", "_table", "_hash", "_hash_version", "waiting_for")

    def __init__(self, settings: Settings, spoken: Spoken) -> None:
        self._settings = settings
        self._spoken = spoken
        self._table = settings.table or {settings.node_id: 1}
        self._hash_version = spoken.version
        self._hash = table_hash(settings, spoken.version)
        self.waiting_for = "other nodes"

    @property
    def hash(self) -> int:
        if self._hash_version != self._spoken.version:
            self._hash_version = self._spoken.version
            self._hash = table_hash(self._settings, self._hash_version)
        return self._hash

    def decide(self, heard: list[Peer], without: set[int]) -> dict[int, int] | None:
        """The acceptors of the bootstrap, node_id → store_id, where this node may propose it now."""
        settings, table = self._settings, self._table
        present = {peer.node_id: peer for peer in heard if peer.node_id in table}
        wanted = {node: votes for node, votes in table.items() if node not in without or node in present}
        missing = [node for node in wanted if node != settings.node_id and node not in present]
        if missing and settings.bootstrap == "majority":
            wanted = {node: votes for node, votes in wanted.items() if node not in missing}
            if 2 * sum(wanted.values()) > sum(table.values()):
                missing = []
        if missing:
            self.waiting_for = f"nodes {_listed(missing)}"
            return None
        if not self._agree(wanted, heard, present):
            return None
        if settings.node_id != min(wanted):
            self.waiting_for = f"node {min(wanted)} to propose the first configuration"
            return None
        self.waiting_for = "the others to accept the first configuration"
        acceptors = {settings.node_id: settings.store_id}
        for node, peer in present.items():
            if peer.beat is not None:
                acceptors[node] = peer.beat.store_id
        return acceptors

    def first_configuration(
        self, incarnations: dict[int, int], acceptors: dict[int, int], mtu: int, wall_ns: int
    ) -> Configuration:
        """The first configuration, of the acceptors (node_id → store_id) in the incarnations that promised."""
        settings, table = self._settings, self._table
        members = sorted(
            Member(1, node, incarnation, acceptors[node], table[node])
            for node, incarnation in incarnations.items()
        )
        return Configuration(
            cluster_id=new_cluster_id(settings, wall_ns),
            supersedes=[],
            epoch=1,
            base=0,
            table=table,
            members=members,
            sequencer=members[0].node_id,
            tie_breaker=next((one.node_id for one in members if one.votes), members[0].node_id),
            delivery=settings.delivery,
            last_man_standing=settings.last_man_standing,
            version=self._spoken.version,
            mtu=mtu,
            limits=settings.limits,
            m_sequence=1,
            epochs=[(1, 0)],
            order_time=max(1, wall_ns),
        )

    def _agree(self, wanted: dict[int, int], heard: list[Peer], present: dict[int, Peer]) -> bool:
        """Whether all that are wanted are heard once, agree, and hear all others."""
        settings = self._settings
        twice = [
            peer.node_id for peer in heard if peer.node_id in wanted and present[peer.node_id] is not peer
        ]
        if twice or any(peer.node_id == settings.node_id for peer in heard):
            self.waiting_for = (
                f"only one of the nodes that call themselves {_listed(twice or [settings.node_id])}"
            )
            return False
        alive = {(node, present[node].incarnation) for node in wanted if node != settings.node_id}
        alive.add((settings.node_id, settings.incarnation))
        for node in sorted(wanted):
            peer = present.get(node)
            if peer is None:
                continue  # this node itself
            beat: Heartbeat | None = peer.beat
            if beat is None:
                self.waiting_for = f"the first heartbeat of node {node}"
                return False
            if not beat.flags & MessageFlags.FORMING or beat.epoch:
                self.waiting_for = f"what node {node} knows of the cluster"
                return False
            if beat.table_hash != self.hash:
                self.waiting_for = (
                    f"node {node} to have the same nodes, delivery, limits and version in its configuration"
                )
                return False
            if beat.mtu < limits.MTU_MINIMUM:
                self.waiting_for = (
                    f"node {node} to have an mtu of {limits.MTU_MINIMUM} at least, not {beat.mtu}"
                )
                return False
            if not alive <= {*beat.heard, (node, peer.incarnation)}:
                self.waiting_for = f"node {node} to hear all other nodes"
                return False
        return True


def _listed(nodes: list[int]) -> str:
    return ", ".join(str(node) for node in sorted(set(nodes)))
