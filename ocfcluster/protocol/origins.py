"""Which streams there are: of the members of this epoch, and of those gone of which something is still kept."""

from __future__ import annotations

from ocfcluster import limits
from ocfcluster.protocol.gaps import Source
from ocfcluster.protocol.order_log import OrderLog
from ocfcluster.protocol.settings import Configuration
from ocfcluster.protocol.streams import OriginStream


class Origins:
    """``present`` has the members' streams by node_id; ``streams`` all, by (node_id, incarnation)."""

    __slots__ = ("own", "present", "streams", "_base", "_by_epoch", "_run_limit_bytes")

    def __init__(self, own: OriginStream, streams: list[OriginStream], run_limit_bytes: int) -> None:
        self.own = own
        self.streams: dict[Source, OriginStream] = {(one.node_id, one.incarnation): one for one in streams}
        self.present: dict[int, OriginStream] = {}
        self._base = 0
        self._run_limit_bytes = run_limit_bytes
        self._by_epoch: dict[
            int, dict[int, OriginStream]
        ] = {}  # ``present``, of epochs whose entries may be asked

    def enter(self, configuration: Configuration) -> None:
        """The members of another epoch. What the sequencer has not ordered it orders anew."""
        self._base = configuration.base
        self.present = {}
        for member in configuration.members:
            key = (member.node_id, member.incarnation)
            if key == (self.own.node_id, self.own.incarnation):
                stream = self.streams.setdefault(key, self.own)
            else:
                stream = self.streams.get(key) or OriginStream(*key, self._run_limit_bytes)
                self.streams[key] = stream
            stream.urgent = stream is self.own or member.node_id == configuration.sequencer
            stream.ordered = stream.logged
            self.present[member.node_id] = stream
        self._by_epoch[configuration.epoch] = self.present
        while len(self._by_epoch) > limits.EPOCHS_REMEMBERED:
            del self._by_epoch[min(self._by_epoch)]

    def of_epoch(self, epoch: int) -> dict[int, OriginStream] | None:
        """The members' streams of an epoch, by node_id; None where it is not remembered."""
        return self._by_epoch.get(epoch)

    def forget_departed(self, log: OrderLog) -> None:
        """Let go of what nobody needs any more of those that are gone."""
        if len(self.streams) == len(self.present) or log.next_index <= self._base:
            return  # nobody is gone, or what they had to say is not known yet
        for key, stream in list(self.streams.items()):
            if self.present.get(stream.node_id) is not stream:
                stream.depart()
                if stream.idle:
                    del self.streams[key]

    @property
    def kept_bytes(self) -> int:
        """Of the members' packets, for whoever lacks them."""
        return sum([stream.kept_bytes for stream in self.present.values()])

    @property
    def kept_cost_bytes(self) -> int:
        """What they take in memory, about: of small ones that came alone the objects around them take most."""
        cost = 0
        for stream in self.present.values():
            cost += stream.kept_bytes + stream.extents_kept * limits.EXTENT_OVERHEAD_BYTES
        return cost
