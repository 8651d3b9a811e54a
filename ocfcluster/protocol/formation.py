"""Formation, the plain case: every node of the table has found every other → epoch 1.

While it has no configuration a node says so in its heartbeats, with a hash of what must be equal everywhere and the
incarnations it hears. The lowest node_id of the table makes the configuration as soon as all nodes are heard, agree,
and hear each other. A node without a table (development) forms alone, at once.

This is not the bootstrap of a cluster that loses nodes: nobody votes here, because nobody is missing. Its messages
and records have their room for that already.
"""

from __future__ import annotations

import msgspec
from xxhash import xxh3_64_intdigest

from ocfcluster import limits
from ocfcluster.protocol.peers import Peer
from ocfcluster.protocol.settings import Configuration, Member, Settings
from ocfcluster.wire.datagram import VERSION, Heartbeat, MessageFlags, encode_install


def table_hash(settings: Settings) -> int:
    """Hash of what all nodes of a table must have alike before a bootstrap."""
    alike = (sorted(settings.table.items()), settings.delivery, settings.limits, VERSION)
    return xxh3_64_intdigest(msgspec.msgpack.encode(alike))


def history_numbers(cluster_id: str) -> tuple[int, int]:
    """A cluster_id as the two numbers that heartbeats carry; (0, 0) for none."""
    return (int(cluster_id[:16], 16), int(cluster_id[16:], 16)) if cluster_id else (0, 0)


def most_bytes(settings: Settings) -> int:
    """The most that an INSTALL body of this node table takes: it has to fit one datagram."""
    most, numbers = 2**64 - 1, 2**32 - 1
    table = settings.table or {settings.node_id: 1}
    largest = Configuration(
        cluster_id="f" * 32, supersedes=["f" * 32] * limits.HISTORIES_REMEMBERED, epoch=numbers, base=most,
        table=table, members=[Member(numbers, node, most, most, votes) for node, votes in table.items()],
        sequencer=numbers, tie_breaker=numbers, delivery="agreed", last_man_standing=False, version=VERSION,
        mtu=settings.mtu, limits=settings.limits, m_sequence=numbers, epochs=[(numbers, most)], order_time=most,
    )  # fmt: skip
    return len(encode_install(numbers, largest))


class Formation:
    """Decides when a configuration can be made, and says what it waits for."""

    __slots__ = ("_settings", "_hash", "waiting_for")

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._hash = table_hash(settings)
        self.waiting_for = "other nodes"

    @property
    def hash(self) -> int:
        return self._hash

    def decide(self, heard: list[Peer], previous: Configuration | None, wall_ns: int) -> Configuration | None:
        """The first configuration, where this node may make it now."""
        settings = self._settings
        table = settings.table or {settings.node_id: 1}
        present = {peer.node_id: peer for peer in heard if peer.node_id in table}
        if not self._complete(table, heard, present):
            return None
        if settings.node_id != min(table):
            self.waiting_for = f"node {min(table)} to announce the configuration"
            return None
        members = [
            Member(1, settings.node_id, settings.incarnation, settings.store_id, table[settings.node_id])
        ]
        beats = {}
        for peer in present.values():
            beat = peer.beat
            if beat is None:
                return None
            beats[peer.node_id] = beat
            members.append(Member(1, peer.node_id, peer.incarnation, beat.store_id, table[peer.node_id]))
        members.sort()
        time_ns = max(1, wall_ns)
        entropy = xxh3_64_intdigest(f"{settings.seed} {settings.incarnation} {time_ns}".encode())
        supersedes = [*previous.supersedes, previous.cluster_id] if previous else []
        return Configuration(
            cluster_id=f"{time_ns & (2**64 - 1):016x}{entropy:016x}",
            supersedes=supersedes[-limits.HISTORIES_REMEMBERED :],
            epoch=1,
            base=0,
            table=table,
            members=members,
            sequencer=members[0].node_id,
            tie_breaker=members[0].node_id,
            delivery=settings.delivery,
            last_man_standing=False,
            version=VERSION,
            mtu=min([settings.mtu, *(beat.mtu for beat in beats.values())]),
            limits=settings.limits,
            m_sequence=1,
            epochs=[(1, 0)],
            order_time=time_ns,
        )

    def _complete(self, table: dict[int, int], heard: list[Peer], present: dict[int, Peer]) -> bool:
        """Whether every node of the table is heard once, agrees, and hears all others."""
        settings = self._settings
        missing = [node for node in table if node != settings.node_id and node not in present]
        if missing:
            self.waiting_for = f"nodes {_listed(missing)}"
            return False
        twice = [
            peer.node_id for peer in heard if peer.node_id in table and present[peer.node_id] is not peer
        ]
        if twice or any(peer.node_id == settings.node_id for peer in heard):
            self.waiting_for = (
                f"only one of the nodes that call themselves {_listed(twice or [settings.node_id])}"
            )
            return False
        alive = {(node, peer.incarnation) for node, peer in present.items()}
        alive.add((settings.node_id, settings.incarnation))
        for node, peer in sorted(present.items()):
            beat: Heartbeat | None = peer.beat
            if beat is None:
                self.waiting_for = f"the first heartbeat of node {node}"
                return False
            if not beat.flags & MessageFlags.FORMING:
                self.waiting_for = (
                    f"node {node}, which is in epoch {beat.epoch} of a running cluster that this start of node "
                    f"{settings.node_id} is not a member of: stop all nodes and start them again"
                )
                return False
            if beat.table_hash != self._hash:
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
