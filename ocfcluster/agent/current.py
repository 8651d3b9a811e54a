"""The current state of ``oc.connectivity``: the last event of each node and kind, for whoever subscribes.

It is gathered by a subscription like any other, whose event socket is an object of this process: so it costs nothing
where other topics are delivered. What came before this node was a member is not in it; those that publish there say
everything again when somebody joins.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from ocfcluster.agent.local import LocalTopics
from ocfcluster.agent.views import Told
from ocfcluster.components.connectivity import ConnectivityCode, ConnectivityEvent
from ocfcluster.errors import Malformed
from ocfcluster.ipc.delivery import Hub, Line, Subscription
from ocfcluster.protocol.effects import View
from ocfcluster.protocol.state import CONNECTIVITY_TOPIC
from ocfcluster.wire.frames import RECORD_HEADER, RecordFlags, RecordKind
from ocfcluster.wire.run import RunKind, build_run, read_header, run_events

TOPIC_ID: Final = CONNECTIVITY_TOPIC.topic_id
OWN_LINE: Final = 0  # connections of programs are numbered from 1

Key = tuple[int, int]  # node_id, code; of ELIGIBLE, which is about all, the node_id is 0


class CurrentConnectivity:
    """Keeps what is current, and gives it to new subscribers. To the hub it is an event socket."""

    __slots__ = ("_hub", "_local", "_last_seq", "_kept", "_since", "_members", "_own")

    def __init__(self, hub: Hub, local: LocalTopics, last_seq: Callable[[int], int]) -> None:
        self._hub = hub
        self._local = local
        self._last_seq = last_seq
        self._kept: dict[Key, Told] = {}
        self._since: dict[int, Told] = {}  # by code: what this node told here alone, while it is no primary
        self._members: set[tuple[int, int]] = set()
        self._own = hub.add(Line(OWN_LINE), 0, self, {TOPIC_ID: CONNECTIVITY_TOPIC.name}, False)

    # --- the hub's event socket ---------------------------------------------------------------------------------

    def sendmsg(self, buffers: list[bytes | memoryview], ancdata: tuple[()] = (), flags: int = 0, /) -> int:
        for header, body in zip(buffers[1::2], buffers[2::2], strict=True):
            _, kind, record_flags, _, skip, node_id, incarnation, m_sequence, seq, ev_id, order_time = (
                RECORD_HEADER.unpack(header)
            )
            if kind != RecordKind.RUN or record_flags:
                continue
            run = read_header(body)
            for number, data in enumerate(run_events(bytes(body), run)):
                if number < skip:
                    continue
                key = _key(data, node_id)
                if key is None:
                    continue
                alone = build_run(
                    RunKind.PUBLICATION, TOPIC_ID, run.producer, run.first_number + number, [data],
                    re_id=run.re_id, time_ns=run.time_ns,
                )  # fmt: skip
                ahead = number - skip
                self._kept[key] = Told(
                    alone, RecordKind.RUN, RecordFlags.NONE, node_id, incarnation, m_sequence, seq + ahead,
                    ev_id + ahead, order_time,
                )  # fmt: skip
        return sum(map(len, buffers))

    def close(self) -> None:
        """Nothing to close."""

    # --- what changes it ----------------------------------------------------------------------------------------

    def view(self, view: View) -> None:
        """A view: what nodes that are no members any more said of themselves is no longer current."""
        self._members = {(one.node_id, one.incarnation) for one in view.configuration.members}
        self._prune()  # not only when somebody subscribes: nodes that come and go would pile up
        self.primary()

    def primary(self) -> None:
        """This node is one of a majority (again): what it has to tell, it tells all."""
        self._since.clear()

    def forget(self) -> None:
        """The history has ended."""
        self._kept.clear()
        self._since.clear()
        self._members.clear()

    def notify(self, data: bytes, node_id: int, incarnation: int, m_sequence: int) -> None:
        """An event for this node's subscribers alone; it uses up no seq."""
        now, seq = time.time_ns(), self._last_seq(TOPIC_ID)
        run = build_run(RunKind.PUBLICATION, TOPIC_ID, 0, max(1, seq), [data], time_ns=now)
        told = Told(
            run, RecordKind.RUN, RecordFlags.LOCAL, node_id, incarnation, m_sequence, seq,
            self._local.take_ev_id(), now,
        )  # fmt: skip
        self._since[int(ConnectivityEvent.decode(data).code)] = told  # the door has looked at it
        for subscription in list(self._hub.by_topic.get(TOPIC_ID, ())):
            if subscription is not self._own:
                self._give(subscription, told)

    # --- who comes later ----------------------------------------------------------------------------------------

    def begin(self, subscription: Subscription, position: int | None) -> None:
        """Give a new subscription what is current, in the order in which it was told, but for what it has had."""
        self._prune()
        for told in sorted(self._kept.values(), key=lambda one: one.seq):
            if position is None or told.seq > position:
                self._give(subscription, told, RecordFlags.RETAINED)
        for _, told in sorted(self._since.items()):
            self._give(subscription, told, RecordFlags.RETAINED)

    def _prune(self) -> None:
        for key, told in list(self._kept.items()):
            if key[0] and (told.node_id, told.incarnation) not in self._members:
                del self._kept[key]

    def _give(self, subscription: Subscription, told: Told, more: RecordFlags = RecordFlags.NONE) -> None:
        self._hub.give(subscription, TOPIC_ID, told.header(more), told.run, told.seq, False)


def _key(data: bytes, publisher: int) -> Key | None:
    """Of an event as its publisher's node has ordered it; None: it is not kept. That node's door has looked at it, but
    with the eyes of its own version, and a member may lie. Each says something of itself alone: so there are no more
    keys than members and codes."""
    try:
        event = ConnectivityEvent.decode(data)
    except Malformed:
        return None
    if event.node_id != publisher:
        return None
    return (0 if event.code is ConnectivityCode.ELIGIBLE else event.node_id), int(event.code)
