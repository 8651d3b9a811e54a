"""Joining: a node that is no member fetches the state of the running cluster, and goes on with the order from there.

It takes the snapshot from the sequencer, which from then on keeps what the learner still needs. The node then holds
what is committed, says that it is ready, and the sequencer admits it by an epoch change: nobody waits for a transfer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocfcluster import limits
from ocfcluster.errors import MalformedSnapshot
from ocfcluster.protocol.data_plane import DataPlane
from ocfcluster.protocol.detector import Detector, in_epoch
from ocfcluster.protocol.effects import FetchSnapshot
from ocfcluster.protocol.settings import Configuration, Settings
from ocfcluster.protocol.snapshot import Request, Restored, Topics, encode_request, read_topics, reading_state
from ocfcluster.protocol.state import topics_digest
from ocfcluster.protocol.store import Store
from ocfcluster.wire.datagram import MessageFlags

if TYPE_CHECKING:
    from ocfcluster.protocol.node import Node


class Joiner:
    """Fetches snapshots, one at a time."""

    __slots__ = (
        "counters", "_node", "_settings", "_store", "_detector", "_token", "_fetching", "_giver", "_not_before",
        "_held", "_held_at", "_digest", "_cluster",
    )  # fmt: skip

    def __init__(
        self, node: Node, settings: Settings, store: Store, detector: Detector, cluster: int
    ) -> None:
        self._node = node
        self._settings = settings
        self._store = store
        self._detector = detector
        self._cluster = cluster
        self._token = 0
        self._fetching: Request | None = None
        self._giver = 0  # whom it is fetched from (a node_id)
        self._not_before = 0
        self._held = 0
        self._held_at = 0
        self._digest = 0  # of the topics that are wanted
        self.counters = {"snapshots_fetched": 0, "snapshots_failed": 0}

    @property
    def fetching(self) -> bool:
        return self._fetching is not None

    def consider(self, now: int) -> None:
        """Where this node is no member of a running cluster: fetch its state from the sequencer."""
        node = self._node
        configuration = node.configuration
        if configuration is None or node.installation.under_way:
            return
        plane = node.plane
        if plane is not None:
            if not plane.is_member and self._stuck(plane, now):
                node.installation.drop_plane()
            return
        if self._settings.node_id not in configuration.table:
            return
        giver = self._detector.present(configuration.sequencer)
        if giver is None or giver.beat is None or not in_epoch(giver.beat, configuration):
            return
        if giver.beat.flags & (MessageFlags.SUSPECTS | MessageFlags.FORMING | MessageFlags.LEARNING):
            return
        self.fetch_state(configuration.sequencer, now)

    def _stuck(self, plane: DataPlane, now: int) -> bool:
        """Whether what this learner still needs does not come any more."""
        if plane.log.held != self._held or plane.log.held >= plane.commit:
            self._held, self._held_at = plane.log.held, now
        return now - self._held_at > 2 * self._settings.sync_timeout_ns

    def fetch_state(self, giver: int, now: int) -> None:
        """The state of the epoch in force, from ``giver`` (a node_id)."""
        configuration = self._node.configuration
        if configuration is not None:
            self._fetch(giver, configuration, topics=False, now=now)

    def fetch_topics(self, giver: int, digest: int, now: int) -> None:
        """The topics that a new history begins with, which ``giver`` has on disk."""
        configuration = self._node.configuration
        if configuration is not None and digest:
            self._digest = digest
            self._fetch(giver, configuration, topics=True, now=now)

    def _fetch(self, giver: int, configuration: Configuration, *, topics: bool, now: int) -> None:
        own = self._settings
        request = Request(
            self._cluster, own.node_id, own.incarnation, configuration.cluster_id, configuration.epoch, topics
        )
        peer = self._detector.present(giver)
        if peer is None or now < self._not_before or self._fetching == request:
            return
        self._token += 1
        self._fetching = request
        self._giver = giver
        most = configuration.limits.event_bytes + limits.RUN_HEADER_BYTES + limits.PROPERTIES_BYTES
        read = read_topics if topics else reading_state(max(most, limits.RUN_BYTES))
        self._node.outbox.effects.append(
            FetchSnapshot(self._token, peer.address, encode_request(request), read)
        )

    def fetched(self, token: int, snapshot: object, now: int) -> None:
        """The answer to FetchSnapshot: what its ``read`` returned; None: nothing whole came."""
        request = self._fetching
        if token != self._token or request is None:
            return
        self._fetching = None
        self._not_before = now + limits.HEARTBEAT_NS
        if snapshot is None:
            self.counters["snapshots_failed"] += 1
            return
        if isinstance(snapshot, Topics):
            self._take_topics(request, snapshot)
        elif isinstance(snapshot, Restored):
            self._take_state(request, snapshot, now)
        elif isinstance(snapshot, MalformedSnapshot):
            self.counters["snapshots_failed"] += 1
            text = (
                f"the snapshot of the cluster's state that node {self._giver} gave cannot be read: {snapshot}"
            )
            self._node.say_fault("snapshot", text)

    def _take_topics(self, request: Request, topics: Topics) -> None:
        if topics_digest(topics.rows, topics.next_topic_id) != self._digest:
            self.counters["snapshots_failed"] += 1
            return  # its own are no worse, and they may be wanted yet
        # Their place is one of the history that they were asked in. Where the next one is on its way to the disk, or
        # there, they are what that begins with.
        known = self._store.record.configuration
        index = topics.topics_index if known is not None and known.cluster_id == request.cluster_id else 0
        self._store.change(topics=topics.rows, next_topic_id=topics.next_topic_id, topics_index=index)
        self.counters["snapshots_fetched"] += 1

    def _take_state(self, request: Request, restored: Restored, now: int) -> None:
        node = self._node
        configuration = node.configuration
        if configuration is None or node.plane is not None or node.installation.under_way:
            return
        if (configuration.cluster_id, configuration.epoch) != (request.cluster_id, request.epoch):
            return  # the cluster went on meanwhile
        if restored.configuration != configuration:
            return
        self.counters["snapshots_fetched"] += 1
        self._held, self._held_at = restored.log.held, now
        node.installation.learn(restored, now)
