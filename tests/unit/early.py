"""An agent that writes event frames before the answer to SUBSCRIBE, as the real one may, and that can be held there."""

from __future__ import annotations

import threading
from typing import Any

from ocfcluster.wire import frames
from ocfcluster.wire.run import RunKind, build_run
from tests.unit.fake_agent import Cluster, FakeAgent, Peer


class EarlyAgent(FakeAgent):
    """Before it answers the SUBSCRIBE of topic ``late`` it publishes ``b"1"`` there, ``b"2"`` to all ``others``.

    Then ``written`` is set, and it answers when ``answer`` is.
    """

    def __init__(
        self, path: str, cluster: Cluster, late: str, *others: str, publish_late: bool = True
    ) -> None:
        self.publish_late = publish_late
        self.late = late
        self.others = others
        self.written = threading.Event()
        self.answer = threading.Event()
        super().__init__(path, cluster)

    def _on_subscribe(self, peer: Peer, body: frames.Subscribe) -> Any:
        answer = super()._on_subscribe(peer, body)
        if body.topics == [self.late]:
            if self.publish_late:
                self._deliver_now(self.late, b"1")
            for other in self.others:
                self._deliver_now(other, b"2")
            self.written.set()
            self.answer.wait(30)
        return answer

    def _deliver_now(self, name: str, data: bytes) -> None:
        cluster = self.cluster
        topic_id = cluster.topics[name].topic_id
        cluster.seq[topic_id] += 1
        cluster.ev_id += 1
        run = build_run(RunKind.PUBLICATION, topic_id, 0, 1, [data])
        self.deliver(run, topic_id, cluster.seq[topic_id], cluster.ev_id)

    def kill(self) -> None:
        self.answer.set()
        super().kill()
