"""Deliberate mistakes in what is kept of topics, in who may use them, and in how those who begin earlier get it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from ocfcluster.ipc.delivery import Hub
from ocfcluster.ipc.subscription import Subscription
from ocfcluster.limits import SECOND_NS
from ocfcluster.protocol import snapshot
from ocfcluster.protocol.data_plane import DataPlane
from ocfcluster.protocol.effects import Delivery
from ocfcluster.protocol.retention import Retained, RetainedImage
from ocfcluster.protocol.state import ReplicatedState, StateImage
from ocfcluster.wire.topics import Access
from tests.simulation.mutants_base import Mutant, Patches, around

KEPT = ("retention", "client")


def _by_the_local_clock() -> Patches:
    """The clocks of two nodes differ by 0.7 s for each number between their ids."""
    ahead_ns = 0

    def deliver(original: Callable[..., None], self: DataPlane, now: int) -> None:
        nonlocal ahead_ns
        ahead_ns = self.node_id * 7 * SECOND_NS // 10
        original(self, now)

    def add(original: Callable[..., None], self: Retained, delivery: Delivery) -> None:
        original(self, delivery)
        self.grow_old(delivery.order_time + ahead_ns)

    return [around(DataPlane, "_deliver", deliver), around(Retained, "add", add)]


def _snapshot_without() -> Patches:
    def restore(
        _: Any, self: Retained, image: RetainedImage, take: Callable[[int], bytes], last_seq: Any
    ) -> None:
        self.clock = image.clock
        for _, _, rows in image.topics:
            for row in rows:
                take(row[0])

    return [around(Retained, "restore", restore)]


def _snapshot_without_access() -> Patches:
    def restore(original: Callable[..., ReplicatedState], image: StateImage) -> ReplicatedState:
        rows = [
            (topic_id, name, local, replace(settings, access=Access()))
            for topic_id, name, local, settings in image.topics
        ]
        return original(replace(image, topics=rows))

    return [around(snapshot, "restored_state", restore)]


def _new_events_at_once() -> Patches:
    def put_in_place(
        original: Callable[..., None], self: Hub, topic_id: int, one: Subscription, by: Subscription | None
    ) -> None:
        if by is not None:
            original(self, topic_id, one, by)

    return [around(Hub, "replace", put_in_place)]


RETENTION = (
    Mutant(
        "retention by the local clock",
        "how old a kept event is, each node says by its own clock",
        KEPT,
        _by_the_local_clock,
    ),
    Mutant("snapshot without what is kept", "who joins keeps nothing of before", KEPT, _snapshot_without),
    Mutant(
        "snapshot without permissions",
        "who joins believes that anybody may use each topic",
        (),
        _snapshot_without_access,
    ),
    Mutant(
        "new events at once",
        "who catches up is queued what is published meanwhile, too",
        ("client",),
        _new_events_at_once,
    ),
)
