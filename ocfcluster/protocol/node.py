"""The node: its states, its timers, and the way of a datagram through it. See the package's docstring for the
contract with its caller."""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Final

from ocfcluster import limits
from ocfcluster.errors import ConfigurationError, MalformedDatagram, MalformedSnapshot, StateDirectoryError
from ocfcluster.protocol import messages, report
from ocfcluster.protocol.data_plane import DataPlane
from ocfcluster.protocol.departure import may_stop
from ocfcluster.protocol.detector import Detector, history_numbers, in_epoch
from ocfcluster.protocol.effects import (
    Address,
    Deliver,
    Effect,
    Fault,
    Forget,
    HistoryLost,
    News,
    Outcome,
    State,
    StateChange,
    Stop,
    Topic,
)
from ocfcluster.protocol.groups import GroupTable
from ocfcluster.protocol.heartbeats import Heartbeats
from ocfcluster.protocol.installation import Installation
from ocfcluster.protocol.joining import Joiner
from ocfcluster.protocol.namesake import Namesake
from ocfcluster.protocol.node_table import payload_bytes, structure_bytes
from ocfcluster.protocol.operator import BootstrapWithout, NewHistory, OperatorCommand, Rejoin
from ocfcluster.protocol.outbox import Outbox
from ocfcluster.protocol.peers import Peer, PeerTable
from ocfcluster.protocol.primacy import Primacy
from ocfcluster.protocol.quorum import is_primary
from ocfcluster.protocol.recovery import Recovery
from ocfcluster.protocol.retention import Retained
from ocfcluster.protocol.settings import Ballot, Configuration, Settings, Timing
from ocfcluster.protocol.snapshot import Making, decode_request, encode_topics, take_snapshot
from ocfcluster.protocol.spoken import Spoken
from ocfcluster.protocol.state import TopicTable, record_fault
from ocfcluster.protocol.store import Store
from ocfcluster.protocol.validity import LATEST_WALL_CLOCK, ballot_fault, configuration_fault
from ocfcluster.wire import control
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.control import Operand
from ocfcluster.wire.datagram import BODY, Heartbeat, MessageFlags, MessageType

# They take away, or are taken away by, what publications before them need.
_BEHIND = control.Close | control.TopicRemove | control.GroupJoin | control.GroupLeave
# They give up what a program had, and cannot be left undone: they wait where others are refused.
_FAREWELLS = control.Close | control.GroupLeave
_NO_TOPICS = TopicTable()
_NO_GROUPS = GroupTable()
_NOTHING = Retained()
_GONE: Final = (State.STOPPED, State.EVICTED)
# As numbers: a member of an enum costs more to look up than the rest of a comparison.
_DATA: Final = int(MessageType.DATA)
_ORDER: Final = int(MessageType.ORDER)
_ACK: Final = int(MessageType.ACK)
_NACK: Final = int(MessageType.NACK)
_RETRANSMIT: Final = int(MessageType.RETRANSMIT)
_HEARTBEAT: Final = int(MessageType.HEARTBEAT)


class Node:
    """One node of a cluster, without sockets or clocks. All times are in nanoseconds."""

    def __init__(self, settings: Settings, now: int, wall_ns: int) -> None:
        """Start to form a cluster, or to come back to one. Raises StateDirectoryError where ``settings.record`` is
        not a record, and ConfigurationError for a node table that cannot be."""
        self.settings = settings
        self.state = State.FORMING
        self.now = now
        self._wall_offset = wall_ns - now
        self._store = Store(settings.record)
        self.configuration: Configuration | None = self._store.record.configuration
        self._cluster = wire.cluster_hash(settings.cluster_name)
        self.outbox = Outbox()
        self.spoken = Spoken(settings)
        if self.configuration is not None and (fault := self.spoken.fault(self.configuration)):
            raise StateDirectoryError(f"the record of node {settings.node_id}: {fault}")
        if fault := record_fault(self._store.record):
            raise StateDirectoryError(
                f"the record of node {settings.node_id} cannot be ({fault}): empty the state directory, with which the "
                "node begins as a stranger and is brought up to date by the others"
            )
        self._history = b""  # as the clear header has it
        self.enter_history()
        self.peers = PeerTable(settings.suspicion_ns, settings.heartbeat_ns)
        self._detector = Detector(settings, self.peers, now)
        self.plane: DataPlane | None = None
        self.recovery = Recovery(self, settings, self._store, self._detector, now)
        self.installation = Installation(self, settings, self._store, self._detector)
        self.joiner = Joiner(self, settings, self._store, self._detector, self._cluster)
        self._primacy = Primacy(settings, now)
        self._heartbeats = Heartbeats(settings, now)
        self.suspects = False  # this node does not count the sequencer as alive
        self._next_control_token = 1
        # token → control run that waits here: to pass what waits to be published, and to go behind it
        self._held: dict[int, bytes] = {}
        self._held_behind: OrderedDict[int, bytes] = OrderedDict()
        self._history_untold = False  # HistoryLost has not been taken yet
        self._reconsider = True  # something has changed that an epoch change may follow from
        self._asked_configuration_at = now - limits.SECOND_NS
        self._namesake = Namesake(settings.suspicion_ns, now)
        self._stranger_told_at = now - limits.SECOND_NS
        self._shut_down_index = 0
        self._shut_down_at = 0  # when the order to stop all was delivered
        self._persist_failing = False
        self.refused = ""  # why this node may not run at all; its state is STOPPED then
        self._leave_by = 0  # when this node stops, whether the others have let it go or not
        self.last_eviction = ""
        self.counters: dict[str, int] = {
            "datagrams": 0, "malformed": 0, "foreign": 0, "wrong_version": 0, "replayed": 0, "strangers": 0,
            "other_history": 0,
        }  # fmt: skip
        table = self.configuration.table if self.configuration is not None else settings.table
        if settings.table and settings.node_id not in settings.table:
            raise ConfigurationError(f"cluster.nodes: node {settings.node_id} is not in it")
        if len(settings.table) > limits.NODES:
            raise ConfigurationError(
                f"cluster.nodes: names {len(settings.table)} nodes; at most {limits.NODES} are supported"
            )
        most = structure_bytes(settings.table or {settings.node_id: 1}, settings.limits)
        room = payload_bytes(settings.mtu, settings.ip_overhead_bytes)
        if most > room:
            raise ConfigurationError(
                f"cluster.nodes: with {len(settings.table)} nodes the configuration takes {most} bytes, and a datagram "
                f"where the mtu is {settings.mtu} has room for {room}: use fewer nodes or a network with a larger mtu"
            )
        if settings.table and table != settings.table:
            self.say_news(
                "node_table",
                f"the file's cluster.nodes differ from the node table in force, which counts: {table}",
            )
        self.silence(table)

    def enter_history(self) -> None:
        """Speak and listen in the history of the configuration in force. Indexes, packet numbers and epochs begin anew
        in each, and an incarnation may live in several: traffic says which one it belongs to."""
        own, configuration = self.settings, self.configuration
        tag = wire.history_tag(configuration.cluster_id if configuration is not None else "")
        self.spoken.enter(configuration)
        self.outbox.prefix = wire.clear_prefix(
            self._cluster, own.node_id, own.incarnation, tag, self.spoken.version
        )
        self._history = self.outbox.prefix[wire.HISTORY_AT : wire.INCARNATION_AT]

    # --- inputs -----------------------------------------------------------------------------------------------------

    def datagram(self, buffer: bytes, segment: int, source: Address, now: int) -> bool:
        """A received buffer of one or more datagrams of ``segment`` bytes. Bad ones are counted and dropped.

        False: nothing can follow from it. A burst of nothing else may do without its ``end_burst``.
        """
        follows = self.plane is not None and self.plane.is_sequencer  # whose window is a matter of time, too
        if len(buffer) > segment and buffer[BODY : BODY + 1] == b"\x01":
            taken = wire.decode_data_buffer(buffer, segment)
            if taken is not None:
                counter, extent, end = taken
                peer = self._sender(buffer, source, now)
                if peer is None:
                    return True
                if peer.replay.accept(counter, extent.count):
                    peer.last_heard = peer.last_large = now
                    self.counters["datagrams"] += extent.count
                    if buffer[wire.HISTORY_AT : wire.INCARNATION_AT] != self._history:
                        self.counters["other_history"] += extent.count
                    elif self.plane is not None and peer.origin is not None:
                        follows |= self.plane.on_packets(peer.origin, extent)
                    if end == len(buffer):
                        return follows or self._heartbeats.wanted
                    buffer = buffer[end:]
        for one in (buffer,) if segment >= len(buffer) else wire.split(buffer, segment):
            peer = self._sender(one, source, now)
            if peer is None:
                follows = True  # it may have been answered
                continue
            counter = wire.CLEAR.unpack_from(one)[-1]
            if not peer.replay.accept(counter):
                self.counters["replayed"] += 1
                continue
            peer.last_heard = now
            self.counters["datagrams"] += 1
            try:
                if self._take(peer, one, counter, source, now):
                    follows = True
            except MalformedDatagram as error:
                self.count_malformed(peer, error, now)
                follows = True
        return follows or self._heartbeats.wanted

    def count_malformed(self, peer: Peer, error: MalformedDatagram, now: int) -> None:
        """It is broken, or lies: whoever looks into it has to know which node it is."""
        self.counters["malformed"] += 1
        peer.malformed += 1
        if now - peer.malformed_told_at >= limits.TOLD_AGAIN_NS:
            peer.malformed_told_at = now
            self.say_news("malformed", f"node {peer.node_id} sends what cannot be: {error}")

    def _sender(self, datagram: bytes, source: Address, now: int) -> Peer | None:
        """Who sent it; None (and counted) where it is nobody of this cluster."""
        if len(datagram) <= BODY:
            self.counters["malformed"] += 1
            return None
        magic, version, flags, cluster, node_id, _, incarnation, _ = wire.CLEAR.unpack_from(datagram)
        if magic != wire.MAGIC or flags or cluster != self._cluster:
            self.counters["foreign"] += 1
            return None
        if version != self.spoken.version and not self._hears_version(version, node_id):
            return None
        peer = self.peers.get(node_id, incarnation)
        if peer is None:
            if node_id == self.settings.node_id:
                if incarnation != self.settings.incarnation:
                    self._hear_namesake(datagram, incarnation, now)
                return None
            # Only a heartbeat makes a node known: it is what says everything else about it.
            if datagram[BODY] != MessageType.HEARTBEAT or not self._belongs(node_id):
                self.counters["strangers"] += 1
                self._tell_stranger(source, now)
                return None
            try:
                wire.decode_heartbeat(datagram)
            except MalformedDatagram:
                self.counters["malformed"] += 1
                return None
            peer = self.peers.add(node_id, incarnation, source, now)
            self._reconsider = True
            if self.plane is not None:
                self.plane.attach(peer)
        return peer

    def _hears_version(self, version: int, node_id: int) -> bool:
        """Another one than this node speaks: whether it is understood."""
        if not self.spoken.understands(version):
            self.counters["wrong_version"] += 1
            if self.spoken.is_news(version):
                self.say_news("newer_version", f"node {node_id} speaks version {version}: upgrade this agent")
            return False
        if self.configuration is None and self._belongs(node_id) and self.spoken.lower(version):
            self.enter_history()
            self._heartbeats.wanted = True
        return True

    def _belongs(self, node_id: int) -> bool:
        configuration = self.configuration
        return (
            node_id in self.settings.table
            or (configuration is not None and node_id in configuration.table)
            or (self.plane is not None and node_id in self.plane.staged_table.votes)
        )

    def _tell_stranger(self, source: Address, now: int) -> None:
        """A node outside the table learns that it is, if not more often than it takes."""
        if self.configuration is not None and now - self._stranger_told_at >= limits.SECOND_NS:
            self._stranger_told_at = now
            self.outbox.send(source, messages.encode_install(self.configuration))

    def _hear_namesake(self, datagram: bytes, incarnation: int, now: int) -> None:
        """Another agent with this node's id: who is a member stays, the newcomer goes."""
        if datagram[BODY] != MessageType.HEARTBEAT:
            return
        try:
            beat = wire.decode_heartbeat(datagram)
        except MalformedDatagram:
            self.counters["malformed"] += 1
            return
        text = f"another agent calls itself node {self.settings.node_id}"
        counter = wire.CLEAR.unpack_from(datagram)[-1]
        newcomer = self._namesake.heard(incarnation, counter, beat, now)
        if self._namesake.tell(now):
            self.say_fault("duplicate_node_id", text)
        if newcomer and (self.plane is None or not self.plane.is_member) and self.state is not State.STOPPED:
            self.refused = f"{text}, and is a member of the cluster: give each node an id of its own"
            self.to(State.STOPPED, self.refused)

    def _take(self, peer: Peer, datagram: bytes, counter: int, source: Address, now: int) -> bool:
        """Whether anything can follow."""
        kind = datagram[BODY]
        if kind == _HEARTBEAT:
            self._on_heartbeat(peer, wire.decode_heartbeat(datagram), counter, source, now)
        elif kind <= _RETRANSMIT:
            if datagram[wire.HISTORY_AT : wire.INCARNATION_AT] != self._history:
                self.counters["other_history"] += 1
                return False
            return self.plane is not None and self._take_traffic(self.plane, peer, datagram, counter, now)
        elif kind == MessageType.INSTALL:
            self._on_install(datagram, now)
        elif kind == MessageType.CONFIG_REQUEST:
            wire.decode_config_request(datagram)
            self.installation.tell(peer.node_id)
        elif kind <= MessageType.ACCEPTED:
            self._on_epoch_change(peer, datagram, kind, now)
        else:
            raise MalformedDatagram(f"message of unknown type {kind}")
        return True

    def _take_traffic(self, plane: DataPlane, peer: Peer, datagram: bytes, counter: int, now: int) -> bool:
        """What belongs to the data plane; whether anything can follow. Who is no member may only ask."""
        kind = datagram[BODY]
        if kind == _NACK:
            plane.on_nack(peer, datagram, now)
        elif peer.origin is None:
            return False
        elif kind == _DATA:
            return plane.on_packets(peer.origin, wire.decode_data(datagram))
        elif kind == _ORDER:
            if self.installation.under_way:
                self.installation.set_aside(peer, datagram, counter)
            plane.on_order(peer, datagram, counter)
        elif kind == _ACK:
            plane.on_ack(peer, datagram)
        elif kind == _RETRANSMIT:
            plane.on_retransmit(datagram)
        else:
            raise MalformedDatagram(f"message of unknown type {kind}")
        return True

    def _on_install(self, datagram: bytes, now: int) -> None:
        configuration = messages.decode_install(datagram)
        fault = configuration_fault(configuration)
        if fault:
            raise MalformedDatagram(f"INSTALL of a configuration that cannot be: {fault}")
        self.now = now
        self.installation.take(configuration, now)

    def _on_epoch_change(self, peer: Peer, datagram: bytes, kind: int, now: int) -> None:
        if self.state in _GONE:
            return
        self.now = now

        def reply(message: messages.Message) -> None:
            self.outbox.send(peer.address, messages.encode(message))

        message = messages.decode(datagram, kind)
        self.recovery.take(message, peer.node_id, peer.incarnation, reply, now)

    def publish(self, run: bytes) -> None:
        """A checked run (PUBLICATION or VOID) of a local client to a global topic. Only while ACTIVE."""
        if self.plane is None or self.state is not State.ACTIVE:
            raise RuntimeError("publish() before the node is active: ask room() first")
        self.plane.publish(run)

    def control(self, operand: Operand, behind: bool = False) -> int:
        """An ordered command; its Outcome carries the returned token as ``first_number``.

        It waits here while nothing is ordered (before the first view, without a majority, while the epoch changes),
        and can be withdrawn so long. Commands pass publications that wait here, and a closed window. Those that would
        take away what such publications need come behind them, and so does any with ``behind``: as publications do,
        they wait for room. Where COMMANDS_WAITING wait already (CLOSE and GROUP_LEAVE: FAREWELLS_WAITING more), the
        Outcome is ENOMEM.
        """
        token = self._next_control_token
        self._next_control_token += 1
        run = control.control_run(operand, token)
        waiting = len(self._held) + len(self._held_behind)
        waiting += self.plane.controls_waiting if self.plane is not None else 0
        most = limits.COMMANDS_WAITING
        if isinstance(operand, _FAREWELLS):
            most += limits.FAREWELLS_WAITING
        if waiting >= most:
            refused = Outcome(control.kind_of(operand), 0, token, 1, errno.ENOMEM, 0, 0, 0)
            self.outbox.effects.append(Deliver([refused]))
            return token
        if behind or isinstance(operand, _BEHIND):
            self._held_behind[token] = run
        else:
            self._held[token] = run
        self._let_go()
        return token

    def withdraw(self, token: int) -> bool:
        """Take back a command that waits here: it has no outcome then. False: it is on its way into the order."""
        held = self._held if token in self._held else self._held_behind
        return held.pop(token, None) is not None

    def _let_go(self) -> None:
        """Commands that waited here go on their way, where there is one."""
        plane = self.plane
        if plane is None or not self._ordering:
            return
        for run in self._held.values():
            plane.control(run)
        self._held.clear()
        behind = self._held_behind
        while behind and plane.room() > 0:  # in the stream they are nobody's any more, and not to be counted
            plane.publish(behind.popitem(last=False)[1])

    @property
    def _may_let_go(self) -> bool:
        """Whether a command waits here that could go on its way."""
        plane = self.plane
        if plane is None or not (self._held or self._held_behind) or not self._ordering:
            return False
        return bool(self._held) or plane.room() > 0

    @property
    def _ordering(self) -> bool:
        """Whether a command would be ordered now, as far as this node knows. A closed window is no obstacle, though
        programs are told NOT_PRIMARY where it stays so."""
        plane = self.plane
        return (
            plane is not None
            and self.state is State.ACTIVE
            and not plane.frozen
            and not self.suspects
            and (self.primary or not plane.window)
        )

    def room(self) -> int:
        """Bytes that may still be published before the callers should wait; 0 or less: wait."""
        plane = self.plane
        if (
            plane is None
            or self.state is not State.ACTIVE
            or plane.frozen
            or self.leaving
            or not self.primary
            or self._history_untold
            or self._held  # what is published behind a command does not pass it
            or self._held_behind
        ):
            return 0
        return plane.room()

    def set_full(self, full: bool) -> None:
        """Some local subscriber is full, or none is any more."""
        if self.plane is not None:
            self.plane.set_full(full)

    def leave(self, now: int) -> None:
        """Ask the others to go on without this node. It takes nothing to publish any more, and serves on until they
        have, at most ``leave_timeout``; then its state is STOPPED."""
        if self.leaving or self.state in _GONE:
            return
        self.now = now
        self.recovery.initiative.leaving = True
        self._leave_by = now + self.settings.leave_timeout_ns
        self._reconsider = True
        self.beat_soon()

    def operator(self, command: OperatorCommand, now: int) -> str:
        """What an operator tells a node that waits; empty, or why it is refused."""
        self.now = now
        self._reconsider = True
        if isinstance(command, BootstrapWithout):
            if self.configuration is not None:
                return "the cluster has been formed already"
            unknown = sorted(set(command.nodes) - set(self.settings.table))
            if unknown:
                return f"nodes {unknown} are not in cluster.nodes"
            if self.settings.node_id in command.nodes:
                return f"this is node {self.settings.node_id} itself"
            rest = set(self.settings.table) - set(command.nodes)
            if not is_primary(self.settings.table, rest):
                return "the others have less than half of the votes: they could form no cluster that goes on"
            first = min(rest)
            if first != self.settings.node_id:
                return f"say it to node {first}: the lowest of the others proposes the first configuration"
            self.recovery.initiative.without = set(command.nodes)
            return ""
        if isinstance(command, NewHistory):
            if self.configuration is None:
                return "this node knows no cluster whose history could be given up"
            if self.state is State.ACTIVE and self.primary:
                return "the cluster runs"
            return self.recovery.initiative.force()
        if isinstance(command, Rejoin):
            if not self.installation.foreign:
                return "no other history of this cluster is heard"
            if self.state is State.ACTIVE:
                return "this node is a member of a running cluster"
            self.outbox.effects.append(Forget())  # as another acceptor, not as one that forgets its promises
            self.evict("an operator has told it to join another history")
        return ""

    def persisted(self, token: int, ok: bool, now: int) -> None:
        """The answer to a Persist effect."""
        if self.state in _GONE:
            return
        self.now = now
        failed = not self._store.written(token, ok, now)
        if failed and not self._persist_failing:
            self.say_fault("persist_failed", "the state directory could not be written; it is tried again")
        self._persist_failing = failed

    def give_snapshot(self, request: bytes, now: int) -> Making | None:
        """The state for a node that joins: what makes the buffers to send one after the other, in whatever thread; None
        where there is none."""
        self.now = now
        try:
            asked = decode_request(request)
        except MalformedSnapshot:
            self.counters["malformed"] += 1
            return None
        record, plane, configuration = self._store.record, self.plane, self.configuration
        if asked.cluster != self._cluster or not self._belongs(asked.node_id) or configuration is None:
            return None
        if asked.topics:
            encoded = encode_topics(record.topics, record.next_topic_id, record.topics_index)
            return lambda: [encoded]
        if plane is None or (asked.cluster_id, asked.epoch) != (
            configuration.cluster_id,
            configuration.epoch,
        ):
            return None
        if not plane.is_member or plane.state.configuration != configuration or self.installation.under_way:
            return None
        if plane.is_sequencer:
            plane.register_learner(asked.node_id, asked.incarnation, plane.log.held)
        streams = list(plane.origins.streams.values())
        return take_snapshot(configuration, plane.state, plane.log, streams, plane.delivered, plane.freed)

    def snapshot_fetched(self, token: int, snapshot: object, now: int) -> None:
        """The answer to a FetchSnapshot effect: what its ``read`` returned, or None."""
        if self.state in _GONE:
            return
        self.now = now
        self.joiner.fetched(token, snapshot, now)
        self.recovery.try_sync(now)
        self._reconsider = True

    # --- time -------------------------------------------------------------------------------------------------------

    def timer(self, now: int, wall_ns: int) -> None:
        """Call when ``next_timer`` is reached; calling earlier does no harm."""
        self._wall_offset = wall_ns - now
        if self.state in _GONE:
            return
        self.now = now
        if now - self._heartbeats.due > self.settings.suspicion_ns // 2:
            self._detector.woke(now)
            self._primacy.woke(now)
            self.peers.count_as_heard(now)  # this node slept: it says nothing of the others
        if self.plane is not None:
            self.plane.timer(now, wall_ns)
            if self.plane.probe:
                self.plane.probe = False
                self.beat_soon()
        if now >= self._heartbeats.due:
            self.beat_soon()
            self._reconsider = True
        if now >= self._detector.next_suspicion:
            self._reconsider = True
        if now >= self.recovery.initiative.next_timer():
            self.recovery.proposer.timer(now)
            self._reconsider = True

    def next_timer(self) -> int:
        """When to call ``timer`` next, on the clock of ``now``."""
        if self.state in _GONE:
            return 2**63
        if self._may_let_go:
            return self.now
        due = min(self._heartbeats.due, self._store.next_timer())
        if self.plane is not None:
            due = min(due, self.plane.next_timer())
        if self._shut_down_at:  # then nothing is considered any more: what it would be for stays due
            return due
        return min(due, self._detector.next_suspicion, self.recovery.initiative.next_timer())

    def end_burst(self, now: int) -> None:
        """Call after a burst of inputs: does what follows from all of them, once."""
        for _ in self.end_burst_in_steps(now):
            pass

    def end_burst_in_steps(self, now: int) -> Iterator[None]:
        """``end_burst``, pausing where there are effects: a shell that carries them out at once has a packet on its
        way while the rest is worked out. What others wait for comes first."""
        if self.state in _GONE:
            return
        self.now = now
        if self._held or self._held_behind:
            self._let_go()
        if self.plane is not None:
            yield from self.plane.end_burst(now)
            self.recovery.try_sync(now)
        if self.plane is not None and self.plane.state.shut_down:
            self._shut_down(self.plane, now)
        else:
            self._shut_down_at = 0  # it was, in a history that has ended
        if self._reconsider and not self._shut_down_at:
            self._consider(now)
        self._store.write(self.outbox.effects, now)
        if self._heartbeats.wanted and self.state not in _GONE:
            self._beat(now)

    def take_effects(self) -> list[Effect]:
        """What is to be done since the last call, in order."""
        effects = self.outbox.effects
        self.outbox.effects = []
        self._history_untold = False
        return effects

    def lose_history(self, lost: HistoryLost) -> None:
        """What programs have handed in belongs to the history that has ended: nothing is taken until they are told."""
        self.outbox.effects.append(lost)
        self._history_untold = True
        self._held.clear()
        self._held_behind.clear()

    def _consider(self, now: int) -> None:
        """Something has changed: who is heard, what they say, or the time."""
        self._reconsider = False
        configuration, plane = self.configuration, self.plane
        self._detector.update(now)
        if configuration is not None:
            resigned = plane is not None and plane.is_sequencer and plane.resigned
            suspected = self.suspects
            self.suspects = not self._detector.sequencer_alive(configuration, resigned, now)
            if self.suspects and not suspected:
                # Before a PREPARE of this node, which the others ignore until they have heard this.
                self._beat(now)
        if self.leaving:
            reason = may_stop(plane, self._detector, self.recovery.initiative)
            if reason or now >= self._leave_by:
                self._beat(now)
                self.to(State.STOPPED, reason or "asked to stop; the others did not let it go in time")
                return
        self.recovery.initiative.consider(now)
        self.joiner.consider(now)
        if plane is not None and plane is self.plane:
            for node_id, incarnation in list(plane.learners):
                if not self._detector.hears(node_id, incarnation):
                    plane.lose_learner(node_id, incarnation)
            for node_id in plane.give_up_learners(now):
                text = f"node {node_id} joins too slowly: the backlog is full with what is kept for it; it has to wait"
                self.say_news("learner_given_up", text)
            self._primacy.consider(plane, self._detector, self.outbox, self.suspects, now)
            if (
                plane.is_member
                and not plane.synced
                and self._primacy.cannot_catch_up(plane, self._detector, now)
            ):
                self.evict("nobody can bring this member up to the base of its epoch any more")
        if self._heartbeats.differs(self._said()):
            self.beat_soon()

    def joined(self) -> None:
        """The view that admits this node is delivered: from here on it is a member for its programs, too."""
        configuration, plane = self.configuration, self.plane
        if configuration is None or plane is None:
            return
        self._primacy.installed(plane, self.now)
        self.to(State.ACTIVE, f"epoch {configuration.epoch} with {len(configuration.members)} members")
        self._let_go()

    def silence(self, table: dict[int, int]) -> None:
        """Where there is no other node, nobody listens."""
        self.outbox.silent = not (set(table) | set(self.settings.table)) - {self.settings.node_id}

    def retime(self, timing: Timing, now: int) -> None:
        """Other times from here on, for what is under way, too. They decide when something is done, never what."""
        self.settings.retime(timing)
        self.peers.retime(timing.suspicion_ns, timing.heartbeat_ns)
        self._detector.retime(timing.suspicion_ns)
        self._namesake.retime(timing.suspicion_ns)
        self.recovery.initiative.readmission.retime(timing.suspicion_ns)
        self._heartbeats.due = min(self._heartbeats.due, now + timing.heartbeat_ns)
        self._reconsider = True

    # --- leaving ----------------------------------------------------------------------------------------------------

    @property
    def leaving(self) -> bool:
        return self.recovery.initiative.leaving

    def _shut_down(self, plane: DataPlane, now: int) -> None:
        """The order to stop all is delivered here: stop when all members have it, and were told of that."""
        if not self._shut_down_at:
            self._shut_down_at = now
            self._shut_down_index = plane.delivered
        waited = now - self._shut_down_at
        told = plane.stable >= self._shut_down_index and waited >= 2 * self.settings.heartbeat_ns
        if self.outbox.silent or told or waited >= self.settings.suspicion_ns:
            self.to(State.STOPPED, "the cluster was told to stop")
            self.outbox.effects.append(Stop("the cluster was told to stop"))

    def evict(self, reason: str) -> None:
        if self.state not in _GONE:
            self.last_eviction = reason
            self.to(State.EVICTED, reason)

    def to(self, state: State, reason: str) -> None:
        """The one setter of the state: says why."""
        self.state = state
        self.outbox.effects.append(StateChange(state, reason))

    def say_news(self, code: str, text: str) -> None:
        self.outbox.effects.append(News(code, text))

    def say_fault(self, code: str, text: str) -> None:
        self.outbox.effects.append(Fault(code, text))

    # --- heartbeats -------------------------------------------------------------------------------------------------

    def reconsider(self) -> None:
        """Something has changed that an epoch change may follow from: look at the end of this burst."""
        self._reconsider = True

    def beat_soon(self) -> None:
        """A heartbeat goes out at the end of this burst."""
        self._heartbeats.wanted = True

    def _on_heartbeat(self, peer: Peer, beat: Heartbeat, counter: int, source: Address, now: int) -> None:
        promised = Ballot(beat.promised_round, beat.promised_node, beat.promised_incarnation)
        if promised.round and ballot_fault(promised):
            raise MalformedDatagram("HEARTBEAT with a ballot that cannot be")
        if counter <= peer.beat_counter:
            return  # overtaken by a newer one
        peer.beat_counter = counter
        peer.beat_at = now
        before, peer.beat = peer.beat, beat
        peer.address = source
        self.installation.hear_departed(peer, beat, now)
        if beat.flags & MessageFlags.PADDED:
            peer.last_large = now
        if before is None or _news(before) != _news(beat):
            self._reconsider = True
        configuration = self.configuration
        if configuration is not None and in_epoch(beat, configuration):
            if self.plane is not None:
                self.plane.on_heartbeat(peer, beat, counter)
                self._audit(self.plane, peer.node_id, beat)
            return
        if not beat.epoch or now - self._asked_configuration_at < self.settings.heartbeat_ns // 4:
            return
        same = configuration is not None and (beat.history_time, beat.history_random) == history_numbers(
            configuration.cluster_id
        )
        if configuration is None or not same or beat.epoch > configuration.epoch:
            self._asked_configuration_at = now
            self.outbox.send(source, wire.encode_config_request(0))

    def _audit(self, plane: DataPlane, node_id: int, beat: Heartbeat) -> None:
        """Compare what was delivered here with what another member has delivered."""
        index, auditor = beat.auditor_index, plane.auditor
        if not plane.is_member or auditor.compare(node_id, index, beat.auditor_chain, plane.commit):
            return
        self.say_fault(
            "order_differs",
            f"node {node_id} has delivered something else than this node up to index {index} of epoch {beat.epoch}: "
            "this must never happen; keep the logs of both",
        )
        if auditor.outvoted(index, plane.configuration, self.settings.node_id):
            self.evict(f"what it has delivered differs from what most others have, at index {index}")

    def _said(self) -> tuple[object, ...]:
        """What others want to know at once when it changes."""
        heard = tuple((peer.node_id, peer.incarnation) for peer in self._detector.heard)
        return (heard, self._flags(), self.recovery.promised)

    def _flags(self) -> int:
        plane, configuration = self.plane, self.configuration
        flags = MessageFlags.NONE
        if plane is not None and plane.full:
            flags |= MessageFlags.FULL
        if plane is None or not plane.is_member:
            flags |= MessageFlags.FORMING if plane is None else MessageFlags.LEARNING
            if plane is not None and plane.caught_up:
                flags |= MessageFlags.READY
        if configuration is not None and self.suspects:
            flags |= MessageFlags.SUSPECTS
        if self.leaving:
            flags |= MessageFlags.LEAVING
        return int(flags)

    def _beat(self, now: int) -> None:
        heard = [(peer.node_id, peer.incarnation) for peer in self._detector.heard]
        self._heartbeats.said = self._said()
        body = self._heartbeats.make(
            self.configuration,
            self.plane,
            self._flags(),
            self.recovery.promised,
            heard,
            self.recovery.formation.hash,
            self.peers.somebody_misses(self.settings.node_id, self.settings.incarnation, now),
            now,
        )
        self.outbox.multicast(body)

    # --- what others ask --------------------------------------------------------------------------------------------

    @property
    def primary(self) -> bool:
        """Whether this node's programs were told nothing else."""
        return self._primacy.primary

    @property
    def wall_clock(self) -> int:
        # A broken one may say any year: no order's clock begins where there is no room left to go on.
        return min(self.now + self._wall_offset, LATEST_WALL_CLOCK)

    @property
    def topics(self) -> dict[str, Topic]:
        """Topics by name, as delivered here."""
        return (self.plane.state.topics if self.plane else _NO_TOPICS).by_name

    def topic_by_id(self, topic_id: int) -> Topic | None:
        return (self.plane.state.topics if self.plane else _NO_TOPICS).by_id.get(topic_id)

    def last_seq(self, topic_id: int) -> int:
        """The seq of the topic's last delivered event, 0 where there is none."""
        return self.plane.state.seq_of(topic_id) if self.plane else 0

    def own_producers(self) -> list[int]:
        """This node's producers as delivered here, of earlier incarnations as well; those first that were met longest
        ago."""
        return self.plane.state.producers_of(self.settings.node_id) if self.plane else []

    @property
    def groups(self) -> GroupTable:
        """Groups and their members, as delivered here."""
        return self.plane.state.groups if self.plane else _NO_GROUPS

    def heard(self) -> list[tuple[int, int, Address, int]]:
        """node_id, incarnation, address and time of the last datagram (ns) of every incarnation that is remembered."""
        return [(one.node_id, one.incarnation, one.address, one.last_heard) for one in self.peers.all()]

    @property
    def retained(self) -> Retained:
        """What is kept of topics, as delivered here; to be looked at, not changed."""
        return self.plane.state.retained if self.plane else _NOTHING

    @property
    def persist_failures(self) -> int:
        return self._store.failures

    @property
    def waiting_for(self) -> str:
        """What this node waits for, in words; empty: nothing."""
        return report.waiting_for(self, self._detector)

    def links(self, all_pairs: bool) -> list[report.LinkReport]:
        """Who hears whom: this node's own row, and with ``all_pairs`` what it knows of the others'."""
        return report.links(self, self._detector, all_pairs)

    def status(self, now: int) -> dict[str, Any]:
        """Plain values for people and programs; docs/operating.md lists the keys."""
        return report.status(self, self._detector, now)


def _news(beat: Heartbeat) -> tuple[object, ...]:
    """What of a heartbeat an epoch change may follow from."""
    return (
        beat.flags & ~int(MessageFlags.PADDED),
        beat.epoch,
        beat.history_random,
        beat.promised_round,
        beat.heard,
    )
