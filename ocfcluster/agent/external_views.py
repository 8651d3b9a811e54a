"""Views where ``components.membership`` is "external": they go to that component, and what it makes of each is told at
the view's own place."""

from __future__ import annotations

import errno
from collections import deque
from typing import Final

from ocfcluster.agent.local import LocalTopics
from ocfcluster.agent.views import TOPIC_ID as MEMBERSHIP
from ocfcluster.agent.views import Place, Views
from ocfcluster.components.membership import MembershipCode, MembershipEvent
from ocfcluster.components.views import TOPIC, RawEntry
from ocfcluster.ipc.delivery import Hub, Subscription
from ocfcluster.limits import RECORD_HEADER_BYTES, VIEWS_UNPLACED
from ocfcluster.protocol.effects import Notification, NotificationCode, Topic, View
from ocfcluster.wire.frames import RECORD_HEADER, Notice, NoticeCode, RecordFlags, RecordKind
from ocfcluster.wire.run import RunKind, build_run

RAW: Final = Topic(3, TOPIC, True)  # of this agent alone; below the ids that the order gives


class ExternalViews(Views):
    """As Views; but the events are the component's, and until it has placed one there is none."""

    __slots__ = ("_entry", "_unplaced", "_lost", "_state", "_last_word_due")

    def __init__(self, hub: Hub, local: LocalTopics) -> None:
        super().__init__(hub, local)
        self._entry: RawEntry | None = None  # of the last view
        self._unplaced: deque[tuple[Place, RawEntry]] = deque(maxlen=VIEWS_UNPLACED)
        self._lost: tuple[int, int] | None = (
            None  # first and last seq of views that nobody has placed, and nobody will
        )
        self._state: RawEntry | None = None  # what the node last said of itself since that view
        self._last_word_due = False  # the component has still to say that this node was evicted

    @property
    def begun(self) -> bool:
        return self._entry is not None

    @property
    def m_sequence(self) -> int:
        return 0 if self._entry is None else self._entry.m_sequence

    @property
    def unplaced(self) -> int:
        """Views that the component has still to place."""
        return len(self._unplaced)

    @property
    def component(self) -> Subscription | None:
        """The subscription of the component, where there is one."""
        subscribers = self._hub.by_topic.get(RAW.topic_id)
        return subscribers[0] if subscribers else None

    @property
    def last_word_due(self) -> bool:
        return self._last_word_due and self.component is not None

    # --- to the component ---------------------------------------------------------------------------------------

    def deliver(self, view: View) -> None:
        if not view.seq:
            return
        configuration = view.configuration
        self.primary = True
        self._entry = entry = RawEntry.of_view(view)
        self._state = None
        if len(self._unplaced) == VIEWS_UNPLACED:
            seq = self._unplaced[0][0].seq
            self._lost = (seq if self._lost is None else self._lost[0], seq)
        place = Place(view.seq, view.ev_id, configuration.m_sequence, configuration.order_time)
        self._unplaced.append((place, entry))
        self._give_raw(entry)
        self.on_view()

    def notify(self, notification: Notification, node_id: int, incarnation: int) -> None:
        if self._entry is None:
            return
        self.primary = notification.code is not NotificationCode.NOT_PRIMARY
        self._say(
            RawEntry(
                "primary_restored" if self.primary else "not_primary", 0, notification.m_sequence,
                members=self._entry.members,
            )
        )  # fmt: skip

    def evicted(self, node_id: int, incarnation: int) -> None:
        if self._entry is not None:
            self._last_word_due = True
            self._say(RawEntry("evicted", 0, self.m_sequence))

    def _say(self, state: RawEntry) -> None:
        self._state = state
        self._give_raw(state)

    def _give_raw(self, entry: RawEntry) -> None:
        subscription = self.component
        if subscription is None:
            return
        seq = self._local.last_seq[RAW.topic_id] = self._local.last_seq.get(RAW.topic_id, 0) + 1
        run = build_run(RunKind.PUBLICATION, RAW.topic_id, 0, seq, [entry.encode()])
        header = RECORD_HEADER.pack(
            RECORD_HEADER_BYTES + len(run), RecordKind.RUN, RecordFlags.LOCAL, 0, 0, 0, 0, entry.m_sequence, seq,
            self._local.take_ev_id(), 0,
        )  # fmt: skip
        self._hub.give(subscription, RAW.topic_id, header, run, seq, False)

    def begin_raw(self) -> None:
        """The component is there (again): what it has to place, else the last view; and what the node is since."""
        for _, entry in self._unplaced:
            self._give_raw(entry)
        if not self._unplaced and self._entry is not None:
            self._give_raw(self._entry)
        if self._state is not None:
            self._give_raw(self._state)

    # --- from the component -------------------------------------------------------------------------------------

    def report(self, seq: int, data: bytes, node_id: int, incarnation: int) -> tuple[int, str]:
        """What the component says: at the place ``seq``, or of this node (0). An errno and why, or (0, "").

        Raises Malformed.
        """
        event = MembershipEvent.decode(data)
        is_view = event.code is MembershipCode.NEW_MEMBERSHIP
        if is_view != bool(seq):
            return errno.EINVAL, f"{event.code.name} is {'placed at' if is_view else 'told without'} a seq"
        if not seq:
            return self._report_state(event, node_id, incarnation)
        current = self._current
        if current is not None and seq <= current.seq:
            return 0, ""  # told before; the component was away when it was answered
        if not self._unplaced or self._unplaced[0][0].seq != seq:
            due = (
                f"the next is {self._unplaced[0][0].seq}" if self._unplaced else "all views have their events"
            )
            return errno.EINVAL, f"no event belongs at seq {seq} now: {due}"
        place, entry = self._unplaced[0]
        if event.m_sequence != entry.m_sequence:
            return errno.EINVAL, f"m_sequence {event.m_sequence} for the view of {entry.m_sequence}"
        self._unplaced.popleft()
        self._tell_lost()
        self._place(place, event)
        return 0, ""

    def _report_state(self, event: MembershipEvent, node_id: int, incarnation: int) -> tuple[int, str]:
        if event.m_sequence != self.m_sequence:
            return errno.EINVAL, f"m_sequence {event.m_sequence}, and the last view's is {self.m_sequence}"
        current = self._current
        if current is None or self._unplaced:
            return errno.EINVAL, "the view comes first, and its event is not placed yet"
        if self._since is not None and self._since.run.endswith(event.encode()):
            return 0, ""  # told before: the component was away when it was answered
        if event.code is MembershipCode.EVICTED:
            if not self._last_word_due:
                return (
                    errno.EINVAL,
                    "EVICTED is the last event of every subscription, and this node is a member",
                )
            self._last_word_due = False
            self._end(event, node_id, incarnation)
        else:
            self._tell(event, current.seq, node_id, incarnation)
        return 0, ""

    def _tell_lost(self) -> None:
        """Views that were given up are a gap."""
        lost, self._lost = self._lost, None
        if lost is None:
            return
        notice = Notice(
            NoticeCode.GAP, "oc.membership", *lost, "the membership component was away for too long"
        )
        for subscription in list(self._hub.by_topic.get(MEMBERSHIP, ())):
            self._hub.notify(subscription, notice)

    # --- who subscribes -----------------------------------------------------------------------------------------

    def start(self, position: int | None) -> tuple[int, int]:
        if self._current is None and self._unplaced:
            return self._start(self._unplaced[0][0].seq, position)
        return super().start(position)

    def forget(self) -> None:
        super().forget()
        self._entry = self._state = self._lost = None
        self._unplaced.clear()
