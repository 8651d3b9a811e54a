"""The systems that ocfcluster is compared with; a newcomer is a module beside this one, and a line here."""

from __future__ import annotations

from typing import Final

from bench.compare.peers.corosync import Corosync
from bench.compare.peers.cyclonedds import CycloneDDS
from bench.compare.peers.floor import Floor
from bench.compare.peers.jgroups import Jgroups
from bench.compare.peers.nats import Nats
from bench.compare.peers.peer import Peer
from bench.compare.peers.zenoh import Zenoh

PEERS: Final[dict[str, type[Peer]]] = {
    peer.name: peer for peer in (Corosync, Jgroups, Nats, Zenoh, CycloneDDS, Floor)
}
