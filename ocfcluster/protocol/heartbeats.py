"""When this node says that it is there, and what it says then."""

from __future__ import annotations

from ocfcluster import limits
from ocfcluster.protocol.data_plane import DataPlane
from ocfcluster.protocol.detector import history_numbers
from ocfcluster.protocol.node_table import payload_bytes
from ocfcluster.protocol.settings import Ballot, Configuration, Settings
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.datagram import Heartbeat, MessageFlags


class Heartbeats:
    __slots__ = ("due", "said", "wanted", "_number", "_settings")

    def __init__(self, settings: Settings, now: int) -> None:
        self._settings = settings
        self.due = now  # of the next regular one
        self.wanted = True  # one is to go out at once
        self.said: tuple[object, ...] = ()  # what the last one said of what others want to know at once
        self._number = 0

    def differs(self, said: tuple[object, ...]) -> bool:
        return said != self.said

    def make(
        self,
        configuration: Configuration | None,
        plane: DataPlane | None,
        flags: int,
        promised: Ballot | None,
        heard: list[tuple[int, int]],
        table_hash: int,
        padded: bool,
        now: int,
    ) -> bytes:
        """The body of the next heartbeat; ``padded``: somebody waits for a full datagram of this node."""
        settings = self._settings
        self.wanted = False
        self.due = now + settings.heartbeat_ns
        mtu = settings.mtu if configuration is None else min(settings.mtu, configuration.mtu)
        payload = payload_bytes(mtu, settings.ip_overhead_bytes)
        padded = padded or self._number % limits.HEARTBEAT_PADDED_EVERY == 0
        self._number += 1
        audited = plane.auditor.announced(plane.commit) if plane and plane.is_member else (0, 0)
        history = history_numbers(configuration.cluster_id if configuration else "")
        beat = Heartbeat(
            flags=flags | (int(MessageFlags.PADDED) if padded else 0),
            epoch=configuration.epoch if configuration else 0,
            window=plane.window if plane else 0,
            granted=min(settings.receive_buffer_bytes, 0xFFFF_FFFF),
            mtu=settings.mtu,
            history_time=history[0],
            history_random=history[1],
            table_hash=table_hash,
            promised_round=promised.round if promised else 0,
            promised_node=promised.node_id if promised else 0,
            promised_incarnation=promised.incarnation if promised else 0,
            last_packet=plane.last_packet if plane else 0,
            last_index=plane.log.next_index - 1 if plane else 0,
            held=plane.acknowledged if plane else 0,
            commit=plane.commit if plane else 0,
            stable=plane.stable if plane else 0,
            auditor_index=audited[0],
            auditor_chain=audited[1],
            store_id=settings.store_id,
            heard=heard[: (payload - wire.HEARTBEAT.size) // wire.HEARD.size],
        )
        return wire.encode_heartbeat(beat, payload if padded else 0)
