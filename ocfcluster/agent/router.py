"""From the node's deliveries to subscribers and publishers: per run one record header, per outcome one receipt."""

from __future__ import annotations

import errno
from typing import Final

from ocfcluster.agent.clients import Client
from ocfcluster.agent.current import CurrentConnectivity
from ocfcluster.agent.groups import Groups
from ocfcluster.agent.local import LocalTopics
from ocfcluster.agent.metrics import Counters
from ocfcluster.agent.requests import Requests
from ocfcluster.agent.views import Views
from ocfcluster.ipc.delivery import Hub
from ocfcluster.limits import RECORD_HEADER_BYTES
from ocfcluster.protocol.effects import Delivery, Directed, GroupChange, Item, Outcome, TopicChange, View
from ocfcluster.wire.frames import RECORD_HEADER, RecordFlags, RecordKind
from ocfcluster.wire.run import RunHeader, RunKind

_RUN: Final = int(RecordKind.RUN)
_LOCAL: Final = int(RecordFlags.LOCAL)
_VOID: Final = int(RunKind.VOID)


class Router:
    """Hands out what was delivered. ``touched`` collects clients that have output after the burst."""

    __slots__ = (
        "touched", "views", "_current", "_hub", "_owners", "_requests", "_local", "_groups", "_counters", "_pack",
    )  # fmt: skip

    def __init__(
        self, hub: Hub, owners: dict[int, Client], requests: Requests, local: LocalTopics, groups: Groups,
        counters: Counters, views: Views, current: CurrentConnectivity,
    ) -> None:  # fmt: skip
        self.touched: list[Client] = []
        self.views = views
        self._current = current
        self._hub = hub
        self._owners = owners
        self._requests = requests
        self._local = local
        self._groups = groups
        self._counters = counters
        self._pack = RECORD_HEADER.pack

    def deliver(self, items: list[Item]) -> None:
        """Carry out a Deliver effect. Costs the same per run whatever the run holds."""
        hub = self._hub
        by_topic = hub.by_topic
        counters = self._counters
        pack = self._pack
        for item in items:
            kind = type(item)
            if kind is Delivery:
                (
                    run, topic_id, count, skip, seq, ev_id, node_id, incarnation, m_sequence, order_time,
                ) = item  # type: ignore[misc]  # fmt: skip
                fresh = count - skip
                counters.runs_delivered += 1
                counters.events_delivered += fresh
                counters.runs_delivered_bytes += len(run)
                if topic_id in by_topic:
                    header = pack(
                        RECORD_HEADER_BYTES + len(run), _RUN, 0, 0, skip, node_id, incarnation, m_sequence,
                        seq, ev_id, order_time,
                    )  # fmt: skip
                    hub.deliver(topic_id, header, run, seq, seq + fresh - 1)
            elif isinstance(item, Outcome):
                self._outcome(item)
            elif isinstance(item, TopicChange):
                self._topic_change(item)
            elif isinstance(item, View):
                counters.views += 1
                self._current.view(item)
                self.views.deliver(item)
            elif isinstance(item, GroupChange):
                self._groups.changed(item)
            elif isinstance(item, Directed):
                self._groups.directed(item)

    def _outcome(self, outcome: Outcome) -> None:
        kind, producer, first_number, count, error, seq, ev_id, _ = outcome
        if kind > _VOID:
            self._requests.outcome(outcome)
            return
        client = self._owners.get(producer)
        if client is None or client.gone:
            return
        if error == errno.EBADF:  # it was never one, or the order has forgotten it
            del self._owners[producer]
            client.producers.discard(producer)
        self._counters.receipts += 1
        client.session.receipt(producer, first_number, count, error, seq, ev_id)
        if not client.dirty:
            client.dirty = True
            self.touched.append(client)

    def _topic_change(self, change: TopicChange) -> None:
        topic_id = change.topic.topic_id
        if change.removed:
            local = change.topic.local
            last_seq = self._local.last_seq.get(topic_id, 0) if local else change.last_seq
            self._hub.topic_removed(topic_id, last_seq)
            self._local.forget_topic(topic_id)
        elif change.topic.local:
            self._local.settle(change.topic)
        self._requests.permissions.topic_changed(change)

    def deliver_local(
        self, run: bytes, header: RunHeader, skip: int, seq: int, ev_id: int,
        node_id: int, incarnation: int, m_sequence: int,
    ) -> None:  # fmt: skip
        """Events of a local topic, numbered by this agent."""
        self._counters.events_delivered += header.count - skip
        now = self._local.clock()
        self._local.delivered(
            Delivery(
                run, header.topic_id, header.count, skip, seq, ev_id, node_id, incarnation, m_sequence, now
            )
        )  # fmt: skip
        if header.topic_id in self._hub.by_topic:
            record = self._pack(
                RECORD_HEADER_BYTES + len(run), _RUN, _LOCAL, 0, skip, node_id, incarnation, m_sequence,
                seq, ev_id, now,
            )  # fmt: skip
            self._hub.deliver(header.topic_id, record, run, seq, seq + header.count - skip - 1)
