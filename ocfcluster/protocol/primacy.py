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


class Primacy:
    __slots__ = ("primary", "_settings", "_well_at", "_m_sequence", "_epoch", "_stuck_since", "_stuck_held")

    def __init__(self, settings: Settings, now: int) -> None:
        self._settings = settings
        self.primary = True
        self._well_at = now  # when a quorum was last in reach
        self._m_sequence = 0  # when NOT_PRIMARY was told
        self._epoch = 0
        self._stuck_since = now
        self._stuck_held = 0

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
            if self._in_reach(configuration, plane, detector, suspects) and not plane.backlogged(now):
                self._well_at = now
            elif now - self._well_at >= self._settings.quorum_lost_after_ns:
                self.primary = False
                self._m_sequence = delivered.m_sequence
                self._tell(NotificationCode.NOT_PRIMARY, plane, outbox)
        elif (
            delivered is configuration
            and not suspects
            and not plane.backlogged(now)
            and self._is_back(configuration, plane, detector)
        ):
            self.primary = True
            self._well_at = now
            self._tell(NotificationCode.PRIMARY_RESTORED, plane, outbox)

    def _in_reach(
        self, configuration: Configuration, plane: DataPlane, detector: Detector, suspects: bool
    ) -> bool:
        """A commit quorum is heard; and where the sequencer is gone, enough to make another view."""
        if suspects and not configuration.last_man_standing:
            heard = {peer.node_id for peer in detector.heard} | {plane.node_id}
            if not is_primary(configuration.table, heard):
                return False
        nodes = [one.node_id for one in configuration.members if detector.hears(one.node_id, one.incarnation)]
        return Quorums(configuration).commit([*nodes, plane.node_id])

    def _is_back(self, configuration: Configuration, plane: DataPlane, detector: Detector) -> bool:
        """A commit quorum that hears us, with its unfrozen sequencer, reports our epoch: hearing others again is not
        enough, they may have gone on without us."""
        back = {} if plane.frozen else {plane.node_id: True}
        for peer in detector.heard:
            if (
                peer.beat is not None
                and in_epoch(peer.beat, configuration)
                and not peer.beat.promised_round
                and configuration.member(peer.node_id, peer.incarnation) is not None
                and detector.member_linked(peer.node_id, peer.incarnation)
            ):
                back[peer.node_id] = True
        return configuration.sequencer in back and Quorums(configuration).commit(back)

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
