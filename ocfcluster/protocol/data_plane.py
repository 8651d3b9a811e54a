"""The data plane of one epoch (docs/protocol.md): from packets to deliveries, the same on every member.

A burst of inputs changes what is known; ``end_burst`` then does everything that follows from it, once: send, order,
hold, acknowledge, commit, deliver. Nothing here costs per event, and sending and delivering cost per buffer and run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Final

from ocfcluster import limits
from ocfcluster.errors import MalformedDatagram
from ocfcluster.protocol.effects import Address, Deliver
from ocfcluster.protocol.flow import Flow
from ocfcluster.protocol.gaps import GapAsker
from ocfcluster.protocol.order_log import Entry, OrderLog
from ocfcluster.protocol.outbox import Outbox
from ocfcluster.protocol.peers import Peer, PeerTable
from ocfcluster.protocol.retransmit import Retransmitter
from ocfcluster.protocol.sequencer import OrderClock, Sequencer
from ocfcluster.protocol.settings import Configuration, Settings
from ocfcluster.protocol.state import Item, ReplicatedState
from ocfcluster.protocol.streams import OriginStream, OutgoingStream
from ocfcluster.protocol.topic_disk import NO_LIMIT, TopicDisk
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.datagram import Extent, Heartbeat, MessageFlags, Order, Range

_FULL: Final = int(MessageFlags.FULL)  # as numbers: an enum's operators cost more than the rest of an ACK
_COPY: Final = int(MessageFlags.COPY)
_ORDER_ROOM: Final = limits.CLEAR_HEADER_BYTES + wire.ORDER.size + limits.SEAL_BYTES
_NACK_ROOM: Final = limits.CLEAR_HEADER_BYTES + wire.NACK.size + limits.SEAL_BYTES


class DataPlane:
    """One member's data plane in one epoch."""

    def __init__(
        self,
        configuration: Configuration,
        settings: Settings,
        outbox: Outbox,
        peers: PeerTable,
        topic_disk: TopicDisk,
        now: int,
        wall_ns: int,
    ) -> None:
        self.configuration = configuration
        self._epoch = configuration.epoch
        self._outbox = outbox
        self._peers = peers
        self._topic_disk = topic_disk
        self._agreed = configuration.delivery == "agreed"
        run_limit = configuration.limits.event_bytes + limits.RUN_HEADER_BYTES + limits.PROPERTIES_BYTES
        self._run_limit_bytes = max(run_limit, limits.RUN_BYTES)
        # More than this no origin has kept that obeys the window; one that does not costs no more either.
        self._kept_limit_bytes = (
            settings.backlog_bytes
            + 2 * settings.window_bytes
            + limits.CONTROL_RESERVE_BYTES
            + self._run_limit_bytes
        )
        self.origins: dict[int, OriginStream] = {}
        for member in configuration.members:
            own = member.node_id == settings.node_id
            self.origins[member.node_id] = OriginStream(
                member.node_id, member.incarnation, self._run_limit_bytes, own
            )
        self._me = self.origins[settings.node_id]
        for node_id in (settings.node_id, configuration.sequencer):
            self.origins[node_id].urgent = True
        self._node_id = settings.node_id
        self.log = OrderLog(configuration.base)
        self.state = ReplicatedState(configuration)
        self.commit = self.stable = configuration.base + 1
        self._freed = configuration.base + 1
        self._delivered = configuration.base + 1  # index up to which runs were delivered

        payload = configuration.mtu - settings.ip_overhead_bytes
        size = wire.packet_bytes(configuration.mtu, settings.ip_overhead_bytes)
        self._packet_bytes = size
        self._order_entries = (payload - _ORDER_ROOM) // wire.ORDER_ENTRY.size
        self._nack_ranges = min(limits.NACK_RANGES, (payload - _NACK_ROOM) // wire.NACK_RANGE.size)
        self._outgoing = OutgoingStream(size, wire.packets_per_buffer(size))
        self._in_flight: deque[tuple[int, int]] = deque()  # (last packet, bytes), sent and not committed
        self._in_flight_bytes = 0
        self._window = min(settings.window_bytes, limits.FLOW_FLOOR_BYTES) // len(configuration.members)
        self._window_counter = 0  # of the datagram that the window came in: an older one does not undo it
        self._retransmitter = Retransmitter(outbox, self._order_entries)
        self._gaps = GapAsker()
        self._touched: dict[int, OriginStream] = {}  # origins that got packets in this burst

        votes = {member.node_id: member.votes for member in configuration.members}
        self._is_sequencer = configuration.sequencer == settings.node_id
        pair = votes[settings.node_id] + votes[configuration.sequencer]
        # The sequencer holds what it ordered: where it and this member are a commit quorum, holding is committing.
        self._short_cut = not self._is_sequencer and pair * 2 > sum(votes.values())
        self._uses_short_cuts = not self._agreed and all(
            (votes[configuration.sequencer] + votes[member.node_id]) * 2 > sum(votes.values())
            for member in configuration.members
            if member.node_id != configuration.sequencer
        )
        self._sequencer_peer: Peer | None = None
        self._flow = Flow(settings.window_bytes, settings.backlog_bytes, size, now)
        self._sequencer = Sequencer(configuration, settings.node_id, self._flow)
        self._clock = OrderClock(configuration.order_time, now, wall_ns)
        self._granted: dict[int, int] = {settings.node_id: settings.receive_buffer_bytes}
        self._flow.set_receive_buffer(settings.receive_buffer_bytes)
        self.full = False
        self._acknowledged = configuration.base + 1
        self._announced_commit = self._announced_stable = configuration.base + 1
        self._announced_window = self._window
        self._announce_bytes = 0  # ordered since commit was last announced
        self._must_acknowledge = False
        self._progress_at = now  # when something this node waits for last moved
        self._probe_ns = limits.PROBE_NS
        self.probe = False  # the node sends a heartbeat now: what was said last may have been lost
        self.counters: dict[str, int] = {
            "delivered_runs": 0, "nacks_sent": 0, "nacks_answered": 0, "packets_asked": 0,
            "packets_beyond_backlog": 0,
        }  # fmt: skip

    # --- inputs -----------------------------------------------------------------------------------------------------

    def attach(self, peer: Peer) -> None:
        """A peer that is a member was met: remember its stream with it, so that its DATA finds it at once."""
        origin = self.origins.get(peer.node_id)
        if origin is not None and origin.incarnation == peer.incarnation and not origin.own:
            peer.origin = origin
            if peer.node_id == self.configuration.sequencer:
                self._sequencer_peer = peer

    def publish(self, run: bytes) -> None:
        self._outgoing.push(run)

    def control(self, run: bytes) -> None:
        self._outgoing.push_control(run)

    @property
    def controls_waiting(self) -> int:
        return self._outgoing.controls_waiting

    def room(self) -> int:
        """Bytes that publishers may add: a window's worth waits at most, but always one largest run."""
        return max(limits.WINDOW_BYTES, self._run_limit_bytes) - self._outgoing.pending_bytes

    def on_packets(self, origin: OriginStream, extent: Extent) -> None:
        if origin.kept_bytes + len(extent.data) > self._kept_limit_bytes:
            self.counters["packets_beyond_backlog"] += extent.count
        elif origin.add(extent):
            self._touched[origin.node_id] = origin

    def on_retransmit(self, datagram: bytes) -> None:
        node_id, incarnation, extent = wire.decode_retransmit(datagram)
        origin = self.origins.get(node_id)
        if origin is None or origin.incarnation != incarnation or origin.own:
            raise MalformedDatagram("RETRANSMIT of no other member's packet")
        self.on_packets(origin, extent)

    def on_order(self, peer: Peer, datagram: bytes, counter: int) -> None:
        order = wire.decode_order(datagram)
        if order.epoch != self._epoch or self._is_sequencer:
            return
        if not order.flags & _COPY:
            if peer.node_id != self.configuration.sequencer:
                raise MalformedDatagram("ORDER from a member that is not the sequencer")
            self._learn(counter, order.commit, order.stable, order.window)
            self.log.claimed(order.first_index - 1)
        if not order.entries:
            return
        entries: list[Entry] = []
        index = order.first_index
        for node_id, count, first_packet in order.entries:
            origin = self.origins.get(node_id)
            if origin is None or not count:
                raise MalformedDatagram("ORDER of packets of no member")
            entries.append(Entry(index, count, origin, first_packet, order.order_time))
            self._touched[node_id] = origin
            index += count
        self.log.add(entries)

    def on_ack(self, peer: Peer, datagram: bytes) -> None:
        flags, epoch, held = wire.decode_ack(datagram)
        if epoch == self._epoch and self._is_sequencer:
            self._hear_held(peer.node_id, held, flags)

    def on_nack(self, peer: Peer, datagram: bytes, now: int) -> None:
        epoch, ranges = wire.decode_nack(datagram)
        if epoch != self._epoch:
            return
        self.counters["nacks_answered"] += 1
        room = limits.RETRANSMIT_BYTES
        before = self._retransmitter.packets
        for wanted in ranges:
            if wanted.node_id == 0:
                room -= self._retransmitter.entries_asked(self.log, self._epoch, wanted, peer.address, room)
                continue
            origin = self.origins.get(wanted.node_id)
            if origin is not None and origin.incarnation == wanted.incarnation and room > 0:
                room -= self._retransmitter.packets_asked(
                    origin, wanted, peer.node_id, peer.address, room, now
                )
        self._flow.retransmitted(self._retransmitter.packets - before)

    def on_heartbeat(self, peer: Peer, beat: Heartbeat, counter: int) -> None:
        """What a member of this epoch says in a heartbeat; the newest of it only."""
        origin = peer.origin
        if origin is None or beat.epoch != self._epoch:
            return
        # Bounded: a claim far ahead of what is there cannot make this node ask without end.
        origin.highest = max(
            origin.highest, min(beat.last_packet, origin.contiguous + limits.OUT_OF_ORDER_ENTRIES)
        )
        if origin.has_gap:
            self._touched[origin.node_id] = origin
        # No agent starts with less, so less is no reason to throttle everybody.
        granted = max(beat.granted, limits.RECEIVE_BUFFER_FLOOR_BYTES)
        if self._granted.get(peer.node_id) != granted:
            self._granted[peer.node_id] = granted
            self._flow.set_receive_buffer(min(self._granted.values()))
        if self._is_sequencer:
            self._hear_held(peer.node_id, beat.held, beat.flags)
        elif peer.node_id == self.configuration.sequencer:
            self._learn(counter, beat.commit, beat.stable, beat.window)
            self.log.claimed(beat.last_index)
            if beat.commit < self._acknowledgeable():
                self._must_acknowledge = True  # the ACK was lost, or waited for company

    def _learn(self, counter: int, commit: int, stable: int, window: int) -> None:
        self.commit = max(self.commit, commit)
        self.stable = max(self.stable, min(stable, self.commit))
        if counter > self._window_counter:
            self._window_counter = counter
            self._window = window

    def _hear_held(self, node_id: int, held: int, flags: int) -> None:
        self._sequencer.full_members[node_id] = bool(flags & _FULL)
        self._sequencer.acknowledged(node_id, held, self.log.next_index - 1)

    # --- the end of a burst -----------------------------------------------------------------------------------------

    def end_burst(self, now: int) -> Iterator[None]:
        """Everything that follows from a burst of inputs; pauses where there are effects that others wait for."""
        outbox = self._outbox
        while True:
            self._send_own(now)
            if self._is_sequencer:
                self._order(now)
            if outbox.effects:
                yield
            self._hold(now)
            # Others may wait for the acknowledgement, unless it is this node's own publication that the short cut
            # delivers: then its publisher and its subscribers wait.
            if not self._is_sequencer and not (self._short_cut and self._in_flight):
                self._acknowledge()
            self._deliver(now)
            if outbox.effects:
                yield
            if not self._can_send():
                break
        if self._is_sequencer:
            self._announce(now)
        else:
            self._acknowledge()
        self._note_gaps(now)

    def _can_send(self) -> bool:
        return self._outgoing.pending_bytes > 0 and (
            self._in_flight_bytes < self._window or (self._outgoing.must_send and self._control_room())
        )

    def _control_room(self) -> bool:
        return self._in_flight_bytes < self._window + limits.CONTROL_RESERVE_BYTES

    def _send_own(self, now: int) -> None:
        """Packets of what waits, while the window has room; idle, that is at once."""
        sent = 0
        while self._can_send() and sent < limits.SEND_BURST:
            extent = self._outgoing.next_extent(self._in_flight_bytes < self._window)
            if extent is None:
                break
            if not self._in_flight:
                self._progress_at = now
                self._probe_ns = limits.PROBE_NS
            self._in_flight.append((extent.last, len(extent.data)))
            self._in_flight_bytes += len(extent.data)
            self._me.add(extent)
            self._outbox.multicast_data(extent)
            sent += 1

    def _order(self, now: int) -> None:
        order_time = self._clock.read(now)
        entries = self._sequencer.order(self.origins, self.log, order_time)
        if not entries:
            return
        if self.log.next_index - 1 == self.commit:  # nothing was waited for until now
            self._progress_at = now
            self._probe_ns = limits.PROBE_NS
        self.log.add(entries)
        for entry in entries:
            self._flow.ordered(entry.origin.node_id, entry.count, now)
            self._announce_bytes += entry.count * self._packet_bytes
        rest = iter(entries)
        while batch := list(islice(rest, self._order_entries)):
            self._send_order(batch[0].first_index, order_time, batch, now)

    def _send_order(self, first_index: int, order_time: int, batch: list[Entry], now: int) -> None:
        self._window = self._work_out_window(now)
        self._announced_commit = self.commit
        self._announced_stable = self.stable
        self._announced_window = self._window
        self._outbox.multicast(
            wire.encode_order(
                Order(
                    0, self._epoch, self._window, first_index, order_time, self.commit,
                    self.stable, [(entry.origin.node_id, entry.count, entry.first_packet) for entry in batch],
                )
            )
        )  # fmt: skip

    def _work_out_window(self, now: int) -> int:
        backlog = sum([origin.kept_bytes for origin in self.origins.values()])
        lag = self._sequencer.lag(self.origins) * self._packet_bytes
        if lag > self._flow.least_lag_bytes:  # else it closes nothing, whoever it is
            lag = self._sequencer.lag(self._responsive(now)) * self._packet_bytes
        full = self.full or True in self._sequencer.full_members.values()
        return self._flow.window(now, backlog, lag, full)

    def _responsive(self, now: int) -> list[int]:
        oldest = now - limits.RESPONSIVE_NS
        return [
            node_id
            for node_id, origin in self.origins.items()
            if not origin.own
            and (peer := self._peers.get(node_id, origin.incarnation)) is not None
            and peer.last_heard > oldest
        ]

    def _hold(self, now: int) -> None:
        if self.log.advance() and self.log.topic_runs:
            for held in self.log.topic_runs:
                self._topic_disk.stage(held.index, held.run, self.configuration.limits)
            self.log.topic_runs.clear()
            self._topic_disk.before_uncommitted(self.commit)  # forgets the old ones where nobody else asks
        if self._is_sequencer:
            self._sequencer.acknowledged(self._node_id, self._acknowledgeable(), self.log.next_index - 1)
            if self._sequencer.count():
                self._progress_at = now
                self._probe_ns = limits.PROBE_NS
                self.commit = max(self.commit, self._sequencer.commit)
            self.stable = max(self.stable, self._sequencer.stable)

    def _acknowledgeable(self) -> int:
        """Held, but not past a topic change that is not on this node's disk."""
        return min(self.log.held, self._topic_disk.limit)

    def _deliverable(self) -> int:
        held = self.log.held
        if self._agreed:
            return held
        if self._is_sequencer:
            return min(held, self.commit)
        border = self._topic_disk.before_uncommitted(self.commit)
        if self._short_cut and held > self.commit:
            return max(min(held, border), self.commit)
        return min(held, self.commit)

    def _deliver(self, now: int) -> None:
        upto = self._deliverable()
        if upto > self._delivered:
            self._delivered = upto
            self._release(upto if not self._agreed else min(upto, self.commit), now)
            runs = self.log.runs
            items: list[Item] = []
            apply = self.state.apply
            while runs and runs[0].index <= upto:
                _, order_time, origin, run = runs.popleft()
                apply(run, origin.node_id, origin.incarnation, order_time, origin.own, items)
                self.counters["delivered_runs"] += 1
            if items:
                self._outbox.effects.append(Deliver(items))
        elif self._agreed:
            self._release(min(self._delivered, self.commit), now)
        # What is stable but not delivered here yet is still needed only as assembled runs, which are kept apart.
        free = min(self.stable, self.log.held)
        if free > self._freed:
            self._freed = free
            self.log.free(free)

    def _release(self, committed: int, now: int) -> None:
        """Own packets at indexes up to ``committed`` no longer count against the window."""
        own = self.log.own
        packet = 0
        while own and own[0][0] <= committed:
            packet = own.popleft()[1]
        in_flight = self._in_flight
        while in_flight and in_flight[0][0] <= packet:
            self._in_flight_bytes -= in_flight.popleft()[1]
            self._progress_at = now
            self._probe_ns = limits.PROBE_NS

    def _acknowledge(self) -> None:
        held = self._acknowledgeable()
        if held > self._acknowledged or self._must_acknowledge:
            if not self._must_acknowledge and self._can_wait(held):
                return
            self._acknowledged = max(held, self._acknowledged)
            self._must_acknowledge = False
            if self._sequencer_peer is not None:
                flags = _FULL if self.full else 0
                self._outbox.send(
                    self._sequencer_peer.address, wire.encode_ack(flags, self._epoch, self._acknowledged)
                )

    def _can_wait(self, held: int) -> bool:
        """Whether nobody waits for this acknowledgement: where every member has the short cut, the sequencer and the
        origin of what was ordered commit it between them, and others may let theirs ride on a later one, on the
        next heartbeat at the latest."""
        return (
            self._uses_short_cuts
            and self.log.urgent <= self._acknowledged
            and (held - self._acknowledged) * self._packet_bytes < limits.ACKNOWLEDGE_BYTES
        )

    def _announce(self, now: int) -> None:
        """Tell commit, stable and window at once where somebody waits for them; else they ride on what follows."""
        window = self._work_out_window(now)
        opened_or_closed = (window == 0) != (self._announced_window == 0)
        commit_moved = self.commit > self._announced_commit
        waits = (
            not self._uses_short_cuts
            or self._topic_disk.before_uncommitted(self._announced_commit) < self.commit
        )
        much = self._announce_bytes >= max(self._packet_bytes, min(window // 4, limits.ANNOUNCE_BYTES))
        if opened_or_closed or (commit_moved and (waits or much)):
            if commit_moved:
                self._announce_bytes = 0
            self._send_order(self.log.next_index, self._clock.read(now), [], now)
        self._window = window

    def set_full(self, full: bool) -> None:
        if full != self.full:
            self.full = full
            self._must_acknowledge = not self._is_sequencer

    # --- time -------------------------------------------------------------------------------------------------------

    def _note_gaps(self, now: int) -> None:
        for node_id, origin in self._touched.items():
            self._gaps.note(node_id, origin, now)
        self._touched.clear()
        if self.log.has_gap or self._gaps.next_due() is not None:
            self._gaps.note(0, self.log, now)
            for node_id, origin in self.origins.items():
                self._gaps.note(node_id, origin, now)

    def next_timer(self) -> int:
        due = self._gaps.next_due()
        probe = self._progress_at + self._probe_ns if self._waits else NO_LIMIT
        return probe if due is None or probe < due else due

    @property
    def _waits(self) -> bool:
        """Whether this node waits for an answer to what it said last."""
        if self._outbox.silent:
            return False
        return bool(self._in_flight) or (self._is_sequencer and self.log.next_index - 1 > self.commit)

    def timer(self, now: int, wall_ns: int) -> None:
        if self._is_sequencer:
            self._clock.slew(now, wall_ns)
        for node_id, tries, ranges in self._gaps.due(now, self._nack_ranges * limits.NACK_DATAGRAMS):
            self._ask(node_id, tries, ranges)
        if self._waits and now >= self._progress_at + self._probe_ns:
            self._progress_at = now
            self._probe_ns = min(self._probe_ns * 2, limits.HEARTBEAT_NS)
            self.probe = True

    def _ask(self, node_id: int, tries: int, ranges: list[Range]) -> None:
        address = self._whom_to_ask(node_id, tries)
        if address is None:
            return
        self.counters["packets_asked"] += sum(one.count for one in ranges)
        if self._is_sequencer and node_id:
            self._flow.retransmitted(sum(one.count for one in ranges))
        for begin in range(0, len(ranges), self._nack_ranges):
            self.counters["nacks_sent"] += 1
            part = ranges[begin : begin + self._nack_ranges]
            self._outbox.send(address, wire.encode_nack(self._epoch, part))

    def _whom_to_ask(self, node_id: int, tries: int) -> Address | None:
        """The origin or the sequencer first, then every other member in turn."""
        first = node_id or self.configuration.sequencer
        candidates = [first, self.configuration.sequencer]
        candidates += [member.node_id for member in self.configuration.members]
        others = list(dict.fromkeys(node for node in candidates if node != self._node_id))
        for step in range(len(others)):
            node = others[(tries // 2 + step) % len(others)]
            peer = self._peers.get(node, self.origins[node].incarnation)
            if peer is not None:
                return peer.address
        return None

    # --- for heartbeats and people ----------------------------------------------------------------------------------

    @property
    def window(self) -> int:
        return self._window

    @property
    def acknowledged(self) -> int:
        """What this node has held and, for topic changes, on disk: what it counts for."""
        return self._acknowledgeable()

    @property
    def last_packet(self) -> int:
        return self._outgoing.next_packet - 1

    @property
    def delivered(self) -> int:
        return self._delivered

    @property
    def is_sequencer(self) -> bool:
        return self._is_sequencer

    def status(self) -> dict[str, object]:
        """Plain values for ``ocfcluster status``."""
        return {
            "held": self.log.held, "commit": self.commit, "stable": self.stable, "delivered": self._delivered,
            "window_bytes": self._window, "window_closed_because": self._flow.closed_because,
            "in_flight_bytes": self._in_flight_bytes, "pending_bytes": self._outgoing.pending_bytes,
            "kept_bytes": sum(origin.kept_bytes for origin in self.origins.values()),
            "ahead_bytes": sum(origin.ahead_bytes for origin in self.origins.values()),
            "unfinished_bytes": sum(origin.assembler.unfinished_bytes for origin in self.origins.values()),
            "broken_streams": sum(1 for origin in self.origins.values() if origin.assembler.broken),
            "runs_held": len(self.log.runs), "entries_kept": self.log.entries_kept,
            "packets_retransmitted": self._retransmitter.packets, "orders_refused": self.log.refused,
            **self.counters,
        }  # fmt: skip
