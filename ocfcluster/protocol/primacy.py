"""Whether this node is in the part of the cluster that makes progress, and when its programs are told (the drafts'
NOT_PRIMARY and PRIMARY_RESTORED)."""

from __future__ import annotations

from ocfcluster.protocol.data_plane import DataPlane
from ocfcluster.protocol.detector import Detector, in_epoch
from ocfcluster.protocol.effects import Notification, NotificationCode
from ocfcluster.protocol.outbox import Outbox
from ocfcluster.protocol.quorum import Quorums, is_primary
from ocfcluster.protocol.settings import Configuration, Settings
from ocfcluster.protocol.state import MEMBERSHIP_TOPIC

_SUSPICIONS = 5  # that a new view may take where enough are there to make it: proposers may die, too


class Primacy:
    __slots__ = (
        "primary",
        "_settings",
        "_well_at",
        "_m_sequence",
        "_epoch",
        "_awake_since",
        "_stuck_since",
        "_stuck_held",
        "_suspects_since",
        "_frozen_since",
    )

    def __init__(self, settings: Settings, now: int) -> None:
        self._settings = settings
        self.primary = True
        self._well_at = now  # when a quorum was last in reach
        self._m_sequence = 0  # when NOT_PRIMARY was told
        self._epoch = 0
        self._suspects_since = 0  # since when the sequencer does not count as alive
        self._frozen_since = 0  # since when this node is bound to what may follow its epoch
        self._awake_since = now - settings.suspicion_ns
        self._stuck_since = now
        self._stuck_held = 0

    def woke(self, now: int) -> None:
        """This node slept: for the suspicion time what it hears may be what waited in its socket."""
        self._awake_since = now

    def installed(self, plane: DataPlane, now: int) -> None:
        """This node became a member."""
        self.primary = True
        self._well_at = now
        self._epoch = plane.configuration.epoch

    def consider(
        self, plane: DataPlane, detector: Detector, outbox: Outbox, suspects: bool, now: int
    ) -> None:
        """Tell what has changed."""
        configuration = plane.configuration
        delivered = plane.state.configuration  # of the last view that programs were told
        self._frozen_since = (self._frozen_since or now) if plane.frozen else 0
        if not plane.is_member or not self._epoch or delivered is None:
            return
        if delivered.epoch != self._epoch:
            self._epoch = delivered.epoch
            self._well_at = now
            if not self.primary:
                self.primary = True
                if delivered.m_sequence == self._m_sequence:
                    self._tell(NotificationCode.PRIMARY_RESTORED, plane, outbox)
            return
        if self.primary:
            if self._in_reach(configuration, plane, detector, suspects, now) and not plane.backlogged(now):
                self._well_at = now
            elif now - self._well_at >= self._settings.quorum_lost_after_ns:
                self.primary = False
                self._m_sequence = delivered.m_sequence
                self._tell(NotificationCode.NOT_PRIMARY, plane, outbox)
        elif (
            delivered is configuration
            and not plane.frozen
            and not plane.backlogged(now)
            and now - self._awake_since >= self._settings.suspicion_ns
            and self._in_reach(configuration, plane, detector, suspects, now)
        ):
            self.primary = True
            self._well_at = now
            self._tell(NotificationCode.PRIMARY_RESTORED, plane, outbox)

    def _in_reach(
        self, configuration: Configuration, plane: DataPlane, detector: Detector, suspects: bool, now: int
    ) -> bool:
        """Whether the order goes on here, or may soon: hearing others is not enough, they may have gone on without us.

        The sequencer needs a commit quorum that it hears and that hears it, in this epoch and bound to no other
        proposal. A member needs the sequencer likewise, which sees to the rest; where that is gone, enough of the
        others to make another view, which has to come in time."""
        if not suspects:
            self._suspects_since = 0
        else:
            self._suspects_since = self._suspects_since or now
            heard = {peer.node_id for peer in detector.heard} | {plane.node_id}
            enough = configuration.last_man_standing or is_primary(configuration.table, heard)
            in_time = now - self._suspects_since < _SUSPICIONS * self._settings.suspicion_ns
            return self.primary and enough and in_time and detector.connected(configuration, plane.node_id)
        bound_since = max(self._frozen_since, self._awake_since)
        if plane.frozen and now - bound_since >= _SUSPICIONS * self._settings.suspicion_ns:
            return False  # no proposal comes to an end
        there = {plane.node_id}
        oldest = (
            now - self._settings.suspicion_ns
        )  # an older word of an epoch says nothing about the present one
        for peer in detector.heard:
            if (
                peer.beat is not None
                and in_epoch(peer.beat, configuration)
                and (self.primary or (not peer.beat.promised_round and peer.beat_at > oldest))
                and configuration.member(peer.node_id, peer.incarnation) is not None
                and detector.member_linked(peer.node_id, peer.incarnation)
            ):
                there.add(peer.node_id)
        if plane.is_sequencer:
            return Quorums(configuration).commit(there)
        return configuration.sequencer in there

    def _tell(self, code: NotificationCode, plane: DataPlane, outbox: Outbox) -> None:
        seq = plane.state.last_seq[MEMBERSHIP_TOPIC.topic_id]
        outbox.effects.append(Notification(code, plane.state.m_sequence, seq))

    def cannot_catch_up(self, plane: DataPlane, detector: Detector, now: int) -> bool:
        """Whether a member below the base of its epoch gets nowhere although a commit quorum of its members, those of
        this epoch and no later incarnations, is there to serve it."""
        configuration = plane.configuration
        if plane.log.held != self._stuck_held:
            self._stuck_held, self._stuck_since = plane.log.held, now
        if now - self._stuck_since < 2 * self._settings.sync_timeout_ns:
            return False
        answering = [
            peer.node_id
            for peer in detector.heard
            if peer.beat is not None
            and in_epoch(peer.beat, configuration)
            and peer.beat.held > configuration.base
            and configuration.member(peer.node_id, peer.incarnation) is not None
        ]
        return Quorums(configuration).commit(answering)
