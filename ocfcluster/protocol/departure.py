"""Leaving in order: a node that was told to stop serves on until the others go on without it."""

from __future__ import annotations

from ocfcluster.protocol.data_plane import DataPlane
from ocfcluster.protocol.detector import Detector, history_numbers
from ocfcluster.protocol.initiative import Initiative
from ocfcluster.wire.datagram import MessageFlags

_NO_MEMBER = MessageFlags.FORMING | MessageFlags.LEARNING


def may_stop(plane: DataPlane | None, detector: Detector, initiative: Initiative) -> str:
    """Why a leaving node may stop now: a quorum of the next view reports it, or nobody is there to let it go; empty:
    not yet."""
    if plane is None or not plane.is_member:
        return "asked to stop"
    configuration = plane.configuration
    history = history_numbers(configuration.cluster_id)  # each has epochs of its own
    later = [
        peer.node_id
        for peer in detector.heard
        if peer.beat is not None
        and (peer.beat.history_time, peer.beat.history_random) == history
        and peer.beat.epoch > configuration.epoch
        and not peer.beat.flags & _NO_MEMBER
    ]
    rest = [one for one in configuration.members if one.node_id != plane.node_id]
    if not rest:
        return "asked to stop; it was the last member"
    if 2 * len(later) > len(rest):
        return "asked to stop; the others go on"
    if not initiative.rest_would_be_primary(configuration):
        return "asked to stop; the others will wait for it: they are too few without it"
    return ""
