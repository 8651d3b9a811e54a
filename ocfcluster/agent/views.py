"""What subscribers of ``oc.membership`` get: each view at its place in the order, the current one for whoever comes
later, and what this node says about itself outside the order."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

from ocfcluster.agent.local import LocalTopics
from ocfcluster.components.membership import MembershipCode, MembershipEvent
from ocfcluster.ipc.delivery import Hub
from ocfcluster.ipc.subscription import Subscription
from ocfcluster.limits import RECORD_HEADER_BYTES
from ocfcluster.protocol.effects import Notification, NotificationCode, View
from ocfcluster.protocol.state import MEMBERSHIP_TOPIC
from ocfcluster.wire.frames import RECORD_HEADER, RecordFlags, RecordKind
from ocfcluster.wire.run import RunKind, build_run

TOPIC_ID: Final = MEMBERSHIP_TOPIC.topic_id


class Told(NamedTuple):
    """An event of the topic, as it was told first."""

    run: bytes
    kind: RecordKind
    flags: RecordFlags
    node_id: int  # 0: the cluster itself
    incarnation: int
    m_sequence: int
    seq: int
    ev_id: int
    order_time: int

    def header(self, more: RecordFlags = RecordFlags.NONE) -> bytes:
        """Its record header, with ``more`` flags."""
        return RECORD_HEADER.pack(
            RECORD_HEADER_BYTES + len(self.run), self.kind, self.flags | more, 0, 0, self.node_id, self.incarnation,
            self.m_sequence, self.seq, self.ev_id, self.order_time,
        )  # fmt: skip


class Place(NamedTuple):
    """Of a view in the order: what its event is told under."""

    seq: int
    ev_id: int
    m_sequence: int
    order_time: int


class Views:
    """The current view of the history that this node's programs know; ``begun`` once there is one.

    ``primary`` is what programs were told: whether this node belongs to those that make progress. ``on_view`` is called
    after each view that is an event.
    """

    __slots__ = ("on_view", "primary", "_hub", "_local", "_current", "_event", "_since")

    def __init__(self, hub: Hub, local: LocalTopics) -> None:
        self.primary = True
        self.on_view: Callable[[], None] = lambda: None
        self._hub = hub
        self._local = local
        self._current: Told | None = None
        self._event = MembershipEvent(MembershipCode.INVALID, 0)
        self._since: Told | None = None  # the last local notification since the current view

    @property
    def begun(self) -> bool:
        """Whether there was a view in this history."""
        return self._current is not None

    @property
    def m_sequence(self) -> int:
        """Of the current view; 0 where there was none."""
        return self._event.m_sequence

    def deliver(self, view: View) -> None:
        """A view, at its place in the order. Where its members stayed the same it is no event."""
        if not view.seq:
            return
        configuration = view.configuration
        self.primary = True
        place = Place(view.seq, view.ev_id, configuration.m_sequence, configuration.order_time)
        self._place(place, MembershipEvent.of_view(view))
        self.on_view()

    def _place(self, place: Place, event: MembershipEvent) -> None:
        """Tell ``event`` at its place; from here on it is the current one."""
        seq, ev_id, m_sequence, order_time = place
        self._event = event
        self._current = told = Told(
            _run(event, seq, order_time), RecordKind.RUN, RecordFlags.NONE, 0, 0, m_sequence, seq, ev_id, order_time,
        )  # fmt: skip
        self._since = None
        if TOPIC_ID in self._hub.by_topic:
            self._hub.deliver(TOPIC_ID, told.header(), told.run, seq, seq)

    def notify(self, notification: Notification, node_id: int, incarnation: int) -> None:
        """NOT_PRIMARY or PRIMARY_RESTORED, to the subscribers here alone; it uses up no seq."""
        if self._current is None:
            return  # there is nobody yet who was told anything
        self.primary = notification.code is not NotificationCode.NOT_PRIMARY
        code = MembershipCode[notification.code.name]
        event = MembershipEvent(code, notification.m_sequence, self._event.members)
        self._tell(event, notification.seq, node_id, incarnation)

    def _tell(self, event: MembershipEvent, seq: int, node_id: int, incarnation: int) -> None:
        """``event`` to the subscribers here, and to those that come before the next view."""
        told = self._since = self._local_event(event, seq, RecordKind.RUN, node_id, incarnation)
        for subscription in list(self._hub.by_topic.get(TOPIC_ID, ())):
            self._give(subscription, told)

    def evicted(self, node_id: int, incarnation: int) -> None:
        """The cluster goes on without this incarnation: EVICTED is the last event of every subscription here."""
        if self._current is None:
            return
        self._end(MembershipEvent(MembershipCode.EVICTED, self._event.m_sequence), node_id, incarnation)

    def _end(self, event: MembershipEvent, node_id: int, incarnation: int) -> None:
        """``event`` as the last one of every subscription here."""
        if self._current is None:
            return
        told = self._local_event(event, self._current.seq, RecordKind.LAST, node_id, incarnation)
        for subscription in list(self._hub.by_topic.get(TOPIC_ID, ())):
            self._give(subscription, told)

    def forget(self) -> None:
        """The history has ended: there is no view until the next one's first."""
        self._current = self._since = None
        self.primary = True

    # --- who comes later --------------------------------------------------------------------------------------

    def start(self, position: int | None) -> tuple[int, int]:
        """Where a subscription begins that has taken events up to ``position`` (None: none): the seq of its first
        event, and the first seq that it cannot be given any more (0: none)."""
        return self._start(0 if self._current is None else self._current.seq, position)

    @staticmethod
    def _start(seq: int, position: int | None) -> tuple[int, int]:
        """``start`` where the event that comes at once, or first, has ``seq`` (0: none is known)."""
        if position is None:
            return max(1, seq), 0
        if position >= seq:
            return seq + 1, 0
        return seq, position + 1 if position + 1 < seq else 0

    def begin(self, subscription: Subscription, position: int | None) -> None:
        """Give a new subscription the membership as it is now, unless it has it: the current view's event, and that
        this is no primary. One that goes on also hears that it is one again: it may have missed that."""
        current, since = self._current, self._since
        if current is None:
            return
        known = position is not None and position >= current.seq
        if not known:
            self._give(subscription, current, RecordFlags.RETAINED)
        if since is not None and (known or not self.primary):
            self._give(subscription, since, RecordFlags.RETAINED)

    def _give(self, subscription: Subscription, told: Told, more: RecordFlags = RecordFlags.NONE) -> None:
        last = told.kind is RecordKind.LAST
        self._hub.give(subscription, TOPIC_ID, told.header(more), told.run, told.seq, last)

    def _local_event(
        self, event: MembershipEvent, seq: int, kind: RecordKind, node_id: int, incarnation: int
    ) -> Told:
        now = time.time_ns()
        return Told(
            _run(event, seq, now), kind, RecordFlags.LOCAL, node_id, incarnation, event.m_sequence,
            seq, self._local.take_ev_id(), now,
        )  # fmt: skip


def _run(event: MembershipEvent, seq: int, time_ns: int) -> bytes:
    return build_run(RunKind.PUBLICATION, TOPIC_ID, 0, seq, [event.encode()], time_ns=time_ns)
