"""The data plane (docs/protocol.md): from packets to deliveries, the same on every member, from epoch to epoch.

A burst of inputs changes what is known; ``end_burst`` then does everything that follows from it, once: send, order,
hold, acknowledge, commit, deliver. Nothing here costs per event, and sending and delivering cost per buffer and run.

``freeze`` stops all of that but asking and answering, until ``install`` begins the next epoch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from ocfcluster import limits
from ocfcluster.errors import MalformedDatagram, MalformedRun
from ocfcluster.protocol.asking import Asker
from ocfcluster.protocol.auditor import Auditor
from ocfcluster.protocol.effects import Deliver, Item
from ocfcluster.protocol.gaps import Source
from ocfcluster.protocol.node_table import TABLE_OPERANDS, NodeTable
from ocfcluster.protocol.order_log import Entry, HeldRun, OrderLog
from ocfcluster.protocol.origins import Origins
from ocfcluster.protocol.outbox import Outbox
from ocfcluster.protocol.peers import Peer, PeerTable
from ocfcluster.protocol.retransmit import Retransmitter
from ocfcluster.protocol.sequencer import OrderClock, Sequencer
from ocfcluster.protocol.settings import Configuration, Settings
from ocfcluster.protocol.state import ReplicatedState
from ocfcluster.protocol.store import NO_LIMIT, Store
from ocfcluster.protocol.streams import OriginStream, OutgoingStream
from ocfcluster.protocol.topic_disk import TopicDisk
from ocfcluster.protocol.validity import REACHED
from ocfcluster.wire import control
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.datagram import Extent, Heartbeat, MessageFlags, Order
from ocfcluster.wire.run import STAGED_KINDS, TOPIC_KINDS, read_header

_FULL: Final = int(MessageFlags.FULL)  # as numbers: an enum's operators cost more than the rest of an ACK
_COPY: Final = int(MessageFlags.COPY)
_LEARNING: Final = int(MessageFlags.LEARNING)
_ORDER_ROOM: Final = limits.CLEAR_HEADER_BYTES + wire.ORDER.size + limits.SEAL_BYTES
_NACK_ROOM: Final = limits.CLEAR_HEADER_BYTES + wire.NACK.size + limits.SEAL_BYTES


class DataPlane:
    """One node's data plane: of a member, or of a learner, which holds and asks and says nothing yet."""

    def __init__(
        self,
        configuration: Configuration,
        settings: Settings,
        outbox: Outbox,
        peers: PeerTable,
        store: Store,
        state: ReplicatedState,
        log: OrderLog,
        streams: list[OriginStream],
        delivered: int,
        stable: int,
        joined: Callable[[], None],
    ) -> None:
        """``log`` and ``streams`` are what there is of the order so far, ``state`` what is applied of it: up to
        ``delivered``. ``joined`` is called when the view that admits this node is delivered, before anything else is.
        ``install`` or ``learn`` follows at once."""
        self._settings = settings
        self._outbox = outbox
        self._peers = peers
        self._joined = joined
        self._tells = False  # programs are told what is delivered
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
        self._node_id = settings.node_id
        own = OriginStream(settings.node_id, settings.incarnation, self._run_limit_bytes, own=True)
        self.origins = Origins(own, streams, self._run_limit_bytes)
        self._topic_disk = TopicDisk(store, state.topics)
        self.log = log
        self.state = state
        self.auditor = Auditor(delivered)
        self.staged_table = NodeTable(configuration)  # as commands that are held, not delivered yet, make it
        self.position = log.held  # where this node began: nothing before it is its own
        self.commit = delivered
        self.stable = self._freed = stable
        self._delivered = delivered  # index up to which runs were delivered
        # (held, commit, stable) when _deliver last looked at what follows from them
        self._marks_seen = (-1, -1, -1)
        self._touched: dict[Source, OriginStream] = {}  # origins that got packets in this burst
        self._in_flight: deque[tuple[int, int]] = deque()  # (last packet, bytes), sent and not committed
        self._in_flight_bytes = 0
        self.full = False
        self.counters: dict[str, int] = {
            "delivered_runs": 0,
            "nacks_answered": 0,
            "packets_beyond_backlog": 0,
        }
        self._measure(configuration)
        self._outgoing = OutgoingStream(self._packet_bytes, wire.packets_per_buffer(self._packet_bytes))
        self._retransmitter = Retransmitter(outbox, self._order_entries)
        self._asker = Asker(outbox, peers, settings.node_id, self._nack_ranges, configuration)
        self._clock = OrderClock()

    def _measure(self, configuration: Configuration) -> None:
        """What fits a datagram on the smallest link of the epoch."""
        payload = configuration.mtu - self._settings.ip_overhead_bytes
        self._packet_bytes = wire.packet_bytes(configuration.mtu, self._settings.ip_overhead_bytes)
        self._order_entries = (payload - _ORDER_ROOM) // wire.ORDER_ENTRY.size
        self._nack_ranges = min(limits.NACK_RANGES, (payload - _NACK_ROOM) // wire.NACK_RANGE.size)

    # --- epochs -----------------------------------------------------------------------------------------------------

    def install(self, configuration: Configuration, now: int) -> None:
        """Begin the epoch of ``configuration``: what was ordered behind its base never was. Nothing behind the base
        may be held."""
        self.log.install(configuration)
        self.commit = max(
            self.commit, configuration.base + 1
        )  # the view was decided: committed with its base
        self._enter(configuration, now)
        self.staged_table = NodeTable(configuration)
        # The view, if its base is held: frozen in this burst, this node would else count as one that has nothing.
        self._hold(now)

    def learn(self, configuration: Configuration, now: int) -> None:
        """Go on in a running epoch with what a snapshot brought."""
        self._enter(configuration, now)
        self.staged_table.votes = dict(self.state.node_table.votes)
        self.staged_table.wanted_sequencer = self.state.node_table.wanted_sequencer
        self._topic_disk.require(self.log.held)
        for held in self.log.runs:
            if held.run[4] in STAGED_KINDS:
                self._stage(held)

    def _enter(self, configuration: Configuration, now: int) -> None:
        settings = self._settings
        self.configuration = configuration
        self._epoch = configuration.epoch
        self.is_member = configuration.member(settings.node_id, settings.incarnation) is not None
        self.frozen = False
        self._marks_seen = (-1, -1, -1)
        self._fetch = 0  # up to here this node may hold although it is frozen, or no member
        self._end = NO_LIMIT  # the base of the next epoch, once that is decided
        self._frozen_log = 0  # what the log held when it froze
        self._frozen_held = 0  # what this node counted for then
        self.resigned = False
        self._measure(configuration)
        self._outgoing.resize(self._packet_bytes, wire.packets_per_buffer(self._packet_bytes))
        self._retransmitter.resize(self._order_entries)
        self._asker.install(configuration, self._nack_ranges)
        self.origins.enter(configuration)
        self.origins.forget_departed(self.log)
        # Holes of the epochs before, too: nothing more comes from an origin that is gone, so nothing else notes them.
        self._touched = {key: stream for key, stream in self.origins.streams.items() if stream.has_gap}
        self.auditor.forget_others()

        self._window = min(settings.window_bytes, limits.FLOW_FLOOR_BYTES) // len(configuration.members)
        self._open_at = now  # when the window was last seen open
        self._window_counter = 0  # of the datagram that the window came in: an older one does not undo it
        votes = {member.node_id: member.votes for member in configuration.members}
        self._is_sequencer = self.is_member and configuration.sequencer == settings.node_id
        pair = votes.get(settings.node_id, 0) + votes[configuration.sequencer]
        # The sequencer holds what it ordered: where it and this member are a commit quorum, holding is committing.
        self._short_cut = self.is_member and not self._is_sequencer and pair * 2 > sum(votes.values())
        self._uses_short_cuts = not self._agreed and all(
            (votes[configuration.sequencer] + votes[member.node_id]) * 2 > sum(votes.values())
            for member in configuration.members
            if member.node_id != configuration.sequencer
        )
        self._sequencer_peer: Peer | None = None
        self._sequencer = Sequencer(configuration, settings, self._packet_bytes, self.stable, now)
        self._clock.enter(max(configuration.order_time, self.log.last_order_time), now)
        self._acknowledged = min(self.log.held, configuration.base + 1)
        self._announced_commit = configuration.base + 1
        self._announced_window = self._window
        self._announce_bytes = 0  # ordered since commit was last announced
        self._must_acknowledge = False
        self._progress_at = now  # when something this node waits for last moved
        self.committed_at = now  # when commit last moved, or had nothing to move to
        self._probe_ns = limits.PROBE_NS
        self.probe = False  # the node sends a heartbeat now: what was said last may have been lost

    def freeze(self) -> None:
        """Promised to another ballot: nothing is ordered, acknowledged or cut short in this epoch any more."""
        if not self.frozen:
            self.frozen = True
            self._marks_seen = (-1, -1, -1)
            self._frozen_held = self._acknowledgeable()
            self._frozen_log = self.log.held

    def end(self, following: Configuration | None) -> None:
        """What follows this epoch is decided and on its way to the disk: nothing behind its base may be held any more,
        whoever is to have it, and a member that has promised nothing orders nothing. None: a new history follows, and
        of this one nothing goes to the disk."""
        self.freeze()
        self._end = self.log.held if following is None else following.base
        if following is None:
            self._topic_disk.end()

    def fetch(self, upto: int, source: int) -> None:
        """Take entries up to ``upto`` although frozen: the base of a proposed view. ``source``: who has them."""
        if self.frozen or not self.is_member:
            self._fetch = max(self._fetch, upto)
            self._asker.first = source
            self.log.claimed(upto)

    def holds(self, base: int) -> bool:
        """Whether everything up to ``base`` is held here, and its topics are on disk."""
        return self.log.held >= base and self._topic_disk.limit >= base

    @property
    def _limit(self) -> int:
        """The highest index that this node may hold now. Commit never goes back, and what is behind it may: a learner,
        whom nobody counts, holds no more than that."""
        if self.frozen:
            return min(self._end, max(self._frozen_log, self._fetch))
        return NO_LIMIT if self.is_member else max(self.commit, self._fetch)

    @property
    def synced(self) -> bool:
        """Whether this member counts: it holds the base of its epoch."""
        return self.log.held > self.configuration.base

    # --- inputs -----------------------------------------------------------------------------------------------------

    def attach(self, peer: Peer) -> None:
        """A peer that is a member was met: remember its stream with it, so that its DATA finds it at once."""
        origin = self.origins.present.get(peer.node_id)
        peer.origin = None
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

    def on_packets(self, origin: OriginStream, extent: Extent) -> bool:
        """Whether anything can follow at the end of the burst: not from packets that came in their order, have
        none to wait for them, and are another node's to be ordered."""
        if origin.kept_bytes + len(extent.data) > self._kept_limit_bytes:
            self.counters["packets_beyond_backlog"] += extent.count
            return False
        if not origin.add(extent):
            return False
        if (
            not origin.has_gap
            and not self.log.unheld
            and not self.log.has_gap
            and not self._is_sequencer
            and not self._must_acknowledge
            and self._asker.next_due() is None
        ):
            return False
        self._touched[origin.node_id, origin.incarnation] = origin
        return True

    def on_retransmit(self, datagram: bytes) -> None:
        node_id, incarnation, extent = wire.decode_retransmit(datagram)
        origin = self.origins.streams.get((node_id, incarnation))
        if origin is None or origin.own:
            return  # of one that has left meanwhile
        self.on_packets(origin, extent)

    def on_order(self, peer: Peer, datagram: bytes, counter: int) -> None:
        order = wire.decode_order(datagram)
        origins = self.origins.present
        if order.epoch != self._epoch:
            self._on_old_order(order)
            return
        if self._is_sequencer:
            return
        if not order.flags & _COPY:
            if peer.node_id != self.configuration.sequencer:
                raise MalformedDatagram("ORDER from a member that is not the sequencer")
            if self.frozen:
                return
            self._learn(counter, order.commit, order.stable, order.window)
            self.log.claimed(order.first_index - 1)
        if order.entries and order.first_index > self.configuration.base + 1:
            self._take_entries(order, origins, self._limit if self.frozen else NO_LIMIT)

    def _on_old_order(self, order: Order) -> None:
        """Entries of an epoch before: those up to the end of that epoch are still true."""
        origins = self.origins.of_epoch(order.epoch)
        end = self.configuration.ends_at(order.epoch)
        if origins is not None and order.entries and order.epoch < self._epoch and order.first_index <= end:
            self._take_entries(order, origins, end)

    def _take_entries(self, order: Order, origins: dict[int, OriginStream], limit: int) -> None:
        if order.order_time >= REACHED:
            raise MalformedDatagram("ORDER of a time that nothing can follow")
        entries: list[Entry] = []
        index = order.first_index
        for node_id, count, first_packet in order.entries:
            origin = origins.get(node_id)
            if origin is None or not count:
                raise MalformedDatagram("ORDER of packets of no member")
            if index + count - 1 > limit:
                count = limit + 1 - index
                if count <= 0:
                    break
            entries.append(Entry(index, count, origin, first_packet, order.order_time, order.epoch))
            self._touched[node_id, origin.incarnation] = origin
            index += count
        if entries:
            self.log.add(entries)

    def on_ack(self, peer: Peer, datagram: bytes) -> None:
        flags, epoch, held = wire.decode_ack(datagram)
        if epoch == self._epoch and self._is_sequencer and not self.frozen:
            self._sequencer.hears(peer.node_id, held, bool(flags & _FULL), self.log.next_index - 1)

    def on_nack(self, peer: Peer, datagram: bytes, now: int) -> None:
        epoch, ranges = wire.decode_nack(datagram)
        if epoch != self._epoch:
            return
        self.counters["nacks_answered"] += 1
        room = limits.RETRANSMIT_BYTES
        before = self._retransmitter.packets
        for wanted in ranges:
            if wanted.node_id == 0:
                room -= self._retransmitter.entries_asked(self.log, wanted, peer.address, room)
                continue
            origin = self.origins.streams.get((wanted.node_id, wanted.incarnation))
            if origin is not None and room > 0:
                room -= self._retransmitter.packets_asked(
                    origin, wanted, peer.node_id, peer.address, room, now
                )
        self._sequencer.retransmitted(self._retransmitter.packets - before)

    def on_heartbeat(self, peer: Peer, beat: Heartbeat, counter: int) -> None:
        """What a node in this epoch says in a heartbeat; the newest of it only."""
        if beat.epoch != self._epoch:
            return
        origin = peer.origin
        if origin is None:
            if beat.flags & _LEARNING and beat.held and self._is_sequencer:
                self._sequencer.learner_holds(peer.node_id, peer.incarnation, beat.held)
            return
        # Bounded: a claim far ahead of what is there cannot make this node ask without end.
        origin.highest = max(
            origin.highest, min(beat.last_packet, origin.contiguous + limits.OUT_OF_ORDER_ENTRIES)
        )
        if origin.has_gap:
            self._touched[origin.node_id, origin.incarnation] = origin
        self._sequencer.granted(peer.node_id, beat.granted)
        if self.frozen:
            return
        if self._is_sequencer:
            self._sequencer.hears(peer.node_id, beat.held, bool(beat.flags & _FULL), self.log.next_index - 1)
        elif peer.node_id == self.configuration.sequencer:
            self._learn(counter, beat.commit, beat.stable, beat.window)
            self.log.claimed(beat.last_index)
            if beat.commit < self._acknowledgeable():
                self._must_acknowledge = True  # the ACK was lost, or waited for company

    def lose_learner(self, node_id: int, incarnation: int) -> None:
        """It is not heard any more: nothing is kept for it."""
        self._sequencer.learner_gone(node_id, incarnation)

    def give_up_learners(self, now: int) -> list[int]:
        """Learners (node_ids) that have kept the backlog full for too long: nothing is kept for them now."""
        return self._sequencer.give_up_learners(now)

    def _learn(self, counter: int, commit: int, stable: int, window: int) -> None:
        if commit >= REACHED:
            raise MalformedDatagram("commit of an index that nothing can follow")
        if commit > self.commit:
            self.commit = commit
        if stable > self.stable and not self.frozen:  # what it has promised to serve it keeps
            self.stable = max(self.stable, min(stable, self.commit))
        if counter > self._window_counter:
            self._window_counter = counter
            self._window = window

    # --- the end of a burst -----------------------------------------------------------------------------------------

    def end_burst(self, now: int) -> Iterator[None]:
        """Everything that follows from a burst of inputs; pauses where there are effects that others wait for."""
        outbox = self._outbox
        if self.frozen or not self.is_member:
            self._hold(now)
            self._deliver(now)
            self._note_gaps(now)
            return
        outgoing = self._outgoing
        log = self.log
        ordered = False  # and with it said what the window is
        while True:
            if outgoing.pending_bytes > 0:
                self._send_own(now)
            if self._is_sequencer:
                ordered = self._order(now)
            if outbox.effects:
                yield
            self._hold(now)
            # Others may wait for the acknowledgement, unless it is this node's own publication that the short cut
            # delivers: then its publisher and its subscribers wait.
            if not (self._is_sequencer or (self._short_cut and self._in_flight)) and (
                log.held > self._acknowledged or self._must_acknowledge
            ):
                self._acknowledge()
            self._deliver(now)
            if outbox.effects:
                yield
            if outgoing.pending_bytes and self._can_send():
                continue
            if not self._is_sequencer:
                break
            self._announce(now, ordered)
            if not outgoing.pending_bytes or not self._can_send():  # the window may have opened
                break
        if not self._is_sequencer and (log.held > self._acknowledged or self._must_acknowledge):
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
            self.origins.own.add(extent)
            self._outbox.multicast_data(extent)
            sent += 1

    def _order(self, now: int) -> bool:
        """Whether there was something to order."""
        if self.resigned:
            return False
        entries = self._sequencer.order(self.origins.present, self.log, self._clock, now)
        if not entries:
            return False
        order_time = entries[0].order_time
        if self.log.next_index - 1 == self.commit:  # nothing was waited for until now
            self._progress_at = self.committed_at = now
            self._probe_ns = limits.PROBE_NS
        self.log.add(entries)
        for entry in entries:
            self._announce_bytes += entry.count * self._packet_bytes
        rest = iter(entries)
        while batch := list(islice(rest, self._order_entries)):
            self._send_order(batch[0].first_index, order_time, batch, now)
        return True

    def _send_order(self, first_index: int, order_time: int, batch: list[Entry], now: int) -> None:
        self._window = self._sequencer.window(self.origins, self._peers, self.full, now)
        self._announced_commit = self.commit
        self._announced_window = self._window
        self._outbox.multicast(
            wire.encode_order(
                Order(
                    0, self._epoch, self._window, first_index, order_time, self.commit,
                    self.stable, [(entry.origin.node_id, entry.count, entry.first_packet) for entry in batch],
                )
            )
        )  # fmt: skip

    def _hold(self, now: int) -> None:
        log = self.log
        if (log.unheld or log.views) and log.advance(self._limit):
            if not self._is_sequencer and log.last_order_time > self.configuration.order_time:
                self._clock.follow(log.last_order_time, now)
            if log.staged_runs:
                for held in log.staged_runs:
                    self._stage(held)
                log.staged_runs.clear()
            self._topic_disk.before_uncommitted(self.commit)  # forgets the old ones where nobody else asks
        if self._topic_disk.pending:
            self._topic_disk.flush(everything=log.held >= max(self.commit, self._fetch))
        if self._is_sequencer and not self.frozen:
            sequencer = self._sequencer
            sequencer.keeps(log.held, self._acknowledgeable(), log.next_index - 1)
            if sequencer.count():
                self._progress_at = self.committed_at = now
                self._probe_ns = limits.PROBE_NS
                self.commit = max(self.commit, sequencer.commit)
            if sequencer.stable > self.stable:
                self.stable = sequencer.stable

    def _stage(self, held: HeldRun) -> None:
        if held.run[4] in TOPIC_KINDS:
            self._topic_disk.stage(held.index, held.run, self.configuration.limits)
            return
        try:
            operand = control.read_operand(held.run, read_header(held.run))
        except MalformedRun:
            return
        if isinstance(operand, TABLE_OPERANDS) and held.index > self.configuration.base:
            self.staged_table.apply(operand)  # up to its base a configuration has counted them already

    def _acknowledgeable(self) -> int:
        """Held, but not past a topic change that is not on this node's disk."""
        return min(self.log.held, self._topic_disk.limit)

    def _deliverable(self) -> int:
        held = self.log.held
        if self.frozen or not self.is_member:
            return max(self._delivered, min(held, self.commit))
        if self._agreed:
            return held
        if self._is_sequencer:
            return min(held, self.commit)
        border = self._topic_disk.before_uncommitted(self.commit)
        if self._short_cut and held > self.commit:
            return max(min(held, border), self.commit)
        return min(held, self.commit)

    def _deliver(self, now: int) -> None:
        marks = (self.log.held, self.commit, self.stable)
        if marks == self._marks_seen:
            return  # nothing else makes more of it deliverable, or free, but freezing and another epoch
        self._marks_seen = marks
        upto = self._deliverable()
        if upto > self._delivered:
            self._delivered = upto
            self._release(upto if not self._agreed else min(upto, self.commit), now)
            runs = self.log.runs
            items: list[Item] = []
            apply = self.state.apply
            auditor = self.auditor
            while runs and runs[0].index <= upto:
                index, order_time, origin, run, view = runs.popleft()
                if index > auditor.next_index:
                    auditor.passed(index, self.state.chain)
                if origin is not None:
                    apply(run, origin.node_id, origin.incarnation, order_time, origin.own, items)
                    self.counters["delivered_runs"] += 1
                elif view is not None:
                    items = self._deliver_view(view, items)
            if items and self._tells:
                self._outbox.effects.append(Deliver(items))
        elif self._agreed:
            self._release(min(self._delivered, self.commit), now)
        # What is stable but not delivered here yet is still needed only as assembled runs, which are kept apart.
        free = min(self.stable, self.log.held)
        if free > self._freed:
            self._freed = free
            self.log.free(free)
            self.origins.forget_departed(self.log)

    def _deliver_view(self, view: Configuration, items: list[Item]) -> list[Item]:
        """The view takes its place. A node that it admits tells nothing of what was before."""
        if not self._tells and view.member(self._node_id, self._settings.incarnation) is not None:
            self._tells = True
            self._joined()
            items = []
        self.state.view(view, items)
        self.auditor.take(view.base + 1, self.state.chain)
        return items

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

    def _announce(self, now: int, ordered: bool) -> None:
        """Tell commit, stable and window at once where somebody waits for them; else they ride on what follows.
        ``ordered``: the window was said in this burst, and is looked at once more only where it was closed;
        one that has closed since is told with the next burst."""
        if not (ordered and self._window):
            self._window = self._sequencer.window(self.origins, self._peers, self.full, now)
        commit_moved = self.commit > self._announced_commit
        if (self._window == 0) != (self._announced_window == 0) or (commit_moved and self._tells_commit()):
            if commit_moved:
                self._announce_bytes = 0
            self._send_order(self.log.next_index, self._clock.read(now), [], now)

    def _tells_commit(self) -> bool:
        """Whether somebody waits to be told of commit, or much was ordered since it was."""
        return (
            not self._uses_short_cuts
            or self._announce_bytes >= max(self._packet_bytes, min(self._window // 4, limits.ANNOUNCE_BYTES))
            or self._topic_disk.before_uncommitted(self._announced_commit) < self.commit
        )

    def set_full(self, full: bool) -> None:
        if full != self.full:
            self.full = full
            self._must_acknowledge = not self._is_sequencer

    # --- time -------------------------------------------------------------------------------------------------------

    def _note_gaps(self, now: int) -> None:
        self._asker.note(self._touched, self.origins.streams, self.log, now)
        if self._touched:
            self._touched.clear()

    def next_timer(self) -> int:
        due = self._asker.next_due()
        probe = self._progress_at + self._probe_ns if self._waits else NO_LIMIT
        return probe if due is None or probe < due else due

    @property
    def _waits(self) -> bool:
        """Whether this node waits for an answer to what it said last."""
        if self._outbox.silent or self.frozen:
            return False
        return bool(self._in_flight) or (self._is_sequencer and self.log.next_index - 1 > self.commit)

    def timer(self, now: int, wall_ns: int) -> None:
        if self._is_sequencer:
            self._clock.slew(now, wall_ns)
        asked = self._asker.ask(now)
        if self._is_sequencer:
            self._sequencer.retransmitted(asked)
        if self._waits and now >= self._progress_at + self._probe_ns:
            self._progress_at = now
            self._probe_ns = min(self._probe_ns * 2, limits.HEARTBEAT_NS)
            self.probe = True

    # --- for heartbeats and people ----------------------------------------------------------------------------------

    @property
    def window(self) -> int:
        return self._window

    @property
    def acknowledged(self) -> int:
        """What this node has held and, for topic changes, on disk: what it counts for. A learner counts for nothing: it
        says what it still needs, whatever its disk does."""
        if not self.is_member:
            return self.log.held
        return self._frozen_held if self.frozen else self._acknowledgeable()

    @property
    def uncommitted(self) -> bool:
        """Whether this node, the sequencer, waits for others to hold what it has ordered."""
        return self._is_sequencer and self.log.next_index - 1 > self.commit

    def lags(self, node_id: int) -> bool:
        """Whether the window is closed, and this member is the one it waits for."""
        return self._sequencer.lags(node_id)

    def standing_of(self, node_id: int) -> int:
        """How far a member has got, where getting on is an excuse: not while the backlog is full."""
        return 0 if self._sequencer.backlog_full else self._sequencer.held(node_id)

    @property
    def learners(self) -> dict[tuple[int, int], int]:
        """Who is to join, and what it holds; known to the sequencer."""
        return self._sequencer.learners.held

    @property
    def caught_up(self) -> bool:
        """Whether a learner holds about all that is committed, and what it began with is, its topics on disk; and can
        get the rest."""
        near = self.position <= self.commit <= self._acknowledgeable() + limits.JOIN_LAG_PACKETS
        return near and self.stable <= self.log.held and self._topic_disk.limit >= self.position

    def register_learner(self, node_id: int, incarnation: int, held: int) -> None:
        self._sequencer.learner_holds(node_id, incarnation, held)

    def order_time(self, now: int) -> int:
        """What the sequencer would order at now, as well as this node knows."""
        return self._clock.read(now)

    @property
    def last_packet(self) -> int:
        return self._outgoing.next_packet - 1

    @property
    def node_id(self) -> int:
        return self._node_id

    @property
    def freed(self) -> int:
        """Nothing up to it is kept to serve others."""
        return self._freed

    def backlogged(self, now: int) -> bool:
        """Whether the window has been closed for longer than a slow subscriber may close it, or a member that keeps
        the backlog full may stay where the others can do without it."""
        if self._window:
            self._open_at = now
        return now - self._open_at >= limits.BACKLOG_GRACE_NS

    @property
    def delivered(self) -> int:
        return self._delivered

    @property
    def is_sequencer(self) -> bool:
        return self._is_sequencer

    def status(self) -> dict[str, object]:
        """Plain values for ``ocfcluster status``."""
        members = list(self.origins.present.values())
        return {
            "held": self.log.held, "commit": self.commit, "stable": self.stable, "delivered": self._delivered,
            "window_bytes": self._window, "window_closed_because": self._sequencer.closed_because,
            "in_flight_bytes": self._in_flight_bytes, "pending_bytes": self._outgoing.pending_bytes,
            "kept_bytes": self.origins.kept_bytes,
            "ahead_bytes": sum(origin.ahead_bytes for origin in members),
            "unfinished_bytes": sum(origin.assembler.unfinished_bytes for origin in members),
            "broken_streams": sum(1 for origin in members if origin.assembler.broken),
            "runs_held": len(self.log.runs), "entries_kept": self.log.entries_kept,
            "packets_retransmitted": self._retransmitter.packets, "orders_refused": self.log.refused,
            **self._asker.counters, **self.counters,
        }  # fmt: skip
