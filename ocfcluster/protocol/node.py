"""The node: its states, its timers, and the way of a datagram through it. See the package's docstring for the
contract with its caller."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import msgspec

from ocfcluster import limits
from ocfcluster.errors import ConfigurationError, MalformedDatagram, StateDirectoryError
from ocfcluster.protocol.data_plane import DataPlane
from ocfcluster.protocol.effects import (
    Address,
    Deliver,
    Effect,
    Fault,
    News,
    Outcome,
    Persist,
    State,
    StateChange,
    Topic,
)
from ocfcluster.protocol.formation import Formation, history_numbers, most_bytes
from ocfcluster.protocol.outbox import Outbox
from ocfcluster.protocol.peers import Peer, PeerTable
from ocfcluster.protocol.settings import Configuration, Record, Settings
from ocfcluster.protocol.state import TopicTable, reserved
from ocfcluster.protocol.topic_disk import TopicDisk
from ocfcluster.wire import control
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.control import Operand
from ocfcluster.wire.datagram import BODY, Heartbeat, MessageFlags, MessageType

_NO_TOPICS = TopicTable()


class Node:
    """One node of a cluster, without sockets or clocks. All times are in nanoseconds."""

    def __init__(self, settings: Settings, now: int, wall_ns: int) -> None:
        """Start to form a cluster. Raises StateDirectoryError where ``settings.record`` is not a record, and
        ConfigurationError for a node table that cannot be."""
        self.settings = settings
        self.state = State.FORMING
        self.configuration: Configuration | None = None
        self._record = _read_record(settings.record)
        self._cluster = wire.cluster_hash(settings.cluster_name)
        prefix = wire.clear_prefix(self._cluster, settings.node_id, settings.incarnation)
        self._outbox = Outbox(prefix)
        self._peers = PeerTable(settings.suspicion_ns)
        self._formation = Formation(settings)
        self._plane: DataPlane | None = None
        self._topic_disk: TopicDisk | None = None
        self._next_token = 1  # of Persist effects
        self._next_control_token = 1
        self._waiting_controls: list[bytes] = []  # control runs that came before the first epoch
        self._installing: tuple[int, Configuration] | None = None  # (token, configuration) on its way to disk
        self._leaving = False
        self._silent: dict[int, str] = {}  # members that are not heard, and who they are
        self._beat_number = 0
        self._next_beat = now
        self._beat_now = False
        self._wall_offset = wall_ns - now
        self._duplicate_told_at = now - limits.SECOND_NS
        self.counters: dict[str, int] = {
            "datagrams": 0, "malformed": 0, "foreign": 0, "wrong_version": 0, "replayed": 0, "strangers": 0,
        }  # fmt: skip
        if settings.table and settings.node_id not in settings.table:
            raise ConfigurationError(f"cluster.nodes: node {settings.node_id} is not in it")
        # What a node hears fits one heartbeat then, too: that takes less of each node.
        most, room = most_bytes(settings), self._payload_bytes(settings.mtu)
        if most > room:
            raise ConfigurationError(
                f"cluster.nodes: with {len(settings.table)} nodes the configuration takes {most} bytes, and a datagram "
                f"where the mtu is {settings.mtu} has room for {room}: use fewer nodes or a network with a larger mtu"
            )

    # --- inputs -----------------------------------------------------------------------------------------------------

    def datagram(self, buffer: bytes, segment: int, source: Address, now: int) -> None:
        """A received buffer of one or more datagrams of ``segment`` bytes. Bad ones are counted and dropped."""
        if len(buffer) > segment and buffer[BODY : BODY + 1] == b"\x01":
            taken = wire.decode_data_buffer(buffer, segment)
            if taken is not None:
                counter, extent, end = taken
                peer = self._sender(buffer, source, now)
                if peer is None:
                    return
                if peer.replay.accept(counter, extent.count):
                    peer.last_heard = now
                    self.counters["datagrams"] += extent.count
                    if self._plane is not None and peer.origin is not None:
                        self._plane.on_packets(peer.origin, extent)
                    if end == len(buffer):
                        return
                    buffer = buffer[end:]
        for one in wire.split(buffer, segment):
            peer = self._sender(one, source, now)
            if peer is None:
                continue
            counter = wire.CLEAR.unpack_from(one)[-1]
            if not peer.replay.accept(counter):
                self.counters["replayed"] += 1
                continue
            peer.last_heard = now
            self.counters["datagrams"] += 1
            try:
                self._take(peer, one, counter, source, now)
            except MalformedDatagram:
                self.counters["malformed"] += 1

    def _sender(self, datagram: bytes, source: Address, now: int) -> Peer | None:
        """Who sent it; None (and counted) where it is nobody of this cluster."""
        if len(datagram) <= BODY:
            self.counters["malformed"] += 1
            return None
        magic, version, flags, cluster, node_id, reserved_, incarnation, _ = wire.CLEAR.unpack_from(datagram)
        if magic != wire.MAGIC or flags or reserved_ or cluster != self._cluster:
            self.counters["foreign"] += 1
            return None
        if version != wire.VERSION:
            self.counters["wrong_version"] += 1
            return None
        peer = self._peers.get(node_id, incarnation)
        if peer is None:
            if node_id == self.settings.node_id:
                if incarnation != self.settings.incarnation:
                    self._tell_duplicate(now)
                return None
            # Only a heartbeat makes a node known: it is what says everything else about it.
            if datagram[BODY] != MessageType.HEARTBEAT or not self._belongs(node_id):
                self.counters["strangers"] += 1
                return None
            try:
                wire.decode_heartbeat(datagram)
            except MalformedDatagram:
                self.counters["malformed"] += 1
                return None
            peer = self._peers.add(node_id, incarnation, source, now)
            if self._plane is not None:
                self._plane.attach(peer)
        return peer

    def _belongs(self, node_id: int) -> bool:
        return node_id in self.settings.table

    def _tell_duplicate(self, now: int) -> None:
        if now - self._duplicate_told_at >= limits.SECOND_NS:
            self._duplicate_told_at = now
            self._outbox.effects.append(
                Fault("duplicate_node_id", f"another agent calls itself node {self.settings.node_id}")
            )

    def _take(self, peer: Peer, datagram: bytes, counter: int, source: Address, now: int) -> None:
        kind = datagram[BODY]
        if kind == MessageType.HEARTBEAT:
            self._on_heartbeat(peer, wire.decode_heartbeat(datagram), counter, source, now)
        elif kind == MessageType.INSTALL:
            self._on_install(datagram)
        elif kind == MessageType.CONFIG_REQUEST:
            self._on_config_request(peer, wire.decode_config_request(datagram))
        elif self._plane is None or peer.origin is None:
            return  # nothing that follows says anything to a node outside an epoch, or of one outside it
        elif kind == MessageType.DATA:
            self._plane.on_packets(peer.origin, wire.decode_data(datagram))
        elif kind == MessageType.ORDER:
            self._plane.on_order(peer, datagram, counter)
        elif kind == MessageType.ACK:
            self._plane.on_ack(peer, datagram)
        elif kind == MessageType.NACK:
            self._plane.on_nack(peer, datagram, now)
        elif kind == MessageType.RETRANSMIT:
            self._plane.on_retransmit(datagram)
        else:
            raise MalformedDatagram(f"message of unknown type {kind}")

    def publish(self, run: bytes) -> None:
        """A checked run (PUBLICATION or VOID) of a local client to a global topic. Only while ACTIVE."""
        if self._plane is None:
            raise RuntimeError("publish() before the node is active: ask room() first")
        self._plane.publish(run)

    def control(self, operand: Operand, behind: bool = False) -> int:
        """An ordered command; its Outcome carries the returned token as ``first_number``.

        Commands pass publications that wait here, and a closed window. Those that would take away what such
        publications need come behind them, and so does any with ``behind``. Where COMMANDS_WAITING wait already,
        the Outcome is ENOMEM.
        """
        waiting = len(self._waiting_controls) if self._plane is None else self._plane.controls_waiting
        if waiting < limits.COMMANDS_WAITING:
            return self._command(operand, behind)
        token = self._next_control_token
        self._next_control_token += 1
        refused = Outcome(control.kind_of(operand), 0, token, 1, errno.ENOMEM, 0, 0, 0)
        self._outbox.effects.append(Deliver([refused]))
        return token

    def _command(self, operand: Operand, behind: bool) -> int:
        token = self._next_control_token
        self._next_control_token += 1
        run = control.control_run(operand, token)
        if self._plane is None:
            self._waiting_controls.append(run)
        elif behind or isinstance(operand, control.Close | control.TopicRemove):
            self._plane.publish(run)
        else:
            self._plane.control(run)
        return token

    def room(self) -> int:
        """Bytes that may still be published before the callers should wait; 0 or less: wait."""
        return 0 if self._plane is None or self._leaving else self._plane.room()

    def set_full(self, full: bool) -> None:
        """Some local subscriber is full, or none is any more."""
        if self._plane is not None:
            self._plane.set_full(full)

    def leave(self, now: int) -> None:
        """Tell the others that this node stops in order. It takes nothing to publish any more."""
        self._leaving = True
        self._beat(now)
        self._to(State.STOPPED, "asked to stop")

    def persisted(self, token: int, ok: bool, now: int) -> None:
        """The answer to a Persist effect."""
        if self.state is State.STOPPED:
            return
        if self._topic_disk is not None and self._topic_disk.written(token, ok, now):
            if not ok:
                self._outbox.effects.append(
                    Fault("persist_failed", "the topic table could not be written; it is tried again")
                )
        elif self._installing is not None and self._installing[0] == token:
            configuration = self._installing[1]
            self._installing = None
            if ok:
                self._install(configuration, now)
            else:
                self._outbox.effects.append(
                    Fault("persist_failed", "the configuration could not be written; it is tried again")
                )

    def timer(self, now: int, wall_ns: int) -> None:
        """Call when ``next_timer`` is reached; calling earlier does no harm."""
        self._wall_offset = wall_ns - now
        if self.state is State.STOPPED:
            return
        if self._plane is not None:
            self._plane.timer(now, wall_ns)
            if self._plane.probe:
                self._plane.probe = False
                self._beat_now = True
        if now >= self._next_beat:
            self._beat_now = True
            if self.configuration is None and self._installing is None:
                self._try_to_form(now)

    def next_timer(self) -> int:
        """When to call ``timer`` next, on the clock of ``now``."""
        if self.state is State.STOPPED:
            return 2**63
        due = self._next_beat
        if self._plane is not None and self._topic_disk is not None:
            due = min(due, self._plane.next_timer(), self._topic_disk.next_timer())
        return due

    def end_burst(self, now: int) -> None:
        """Call after a burst of inputs: does what follows from all of them, once."""
        for _ in self.end_burst_in_steps(now):
            pass

    def end_burst_in_steps(self, now: int) -> Iterator[None]:
        """``end_burst``, pausing where there are effects: a shell that carries them out at once has a packet on its
        way while the rest is worked out. What others wait for comes first."""
        if self._plane is not None and self.state is not State.STOPPED:
            yield from self._plane.end_burst(now)
            if self._topic_disk is not None:
                self._topic_disk.write(self._outbox.effects, now)
        if self._beat_now and self.state is not State.STOPPED:
            self._beat(now)

    def take_effects(self) -> list[Effect]:
        """What is to be done since the last call, in order."""
        effects = self._outbox.effects
        self._outbox.effects = []
        return effects

    # --- formation and installation ---------------------------------------------------------------------------------

    def _try_to_form(self, now: int) -> None:
        previous = self._record.configuration if self._record else None
        configuration = self._formation.decide(self._peers.heard(now), previous, now + self._wall_offset)
        if configuration is not None:
            self._persist_configuration(configuration)

    def _persist_configuration(self, configuration: Configuration) -> None:
        """C_e goes to disk before anything is sent in e. The topics there stay until the new history has them."""
        token = self._token()
        self._installing = (token, configuration)
        record = Record(configuration, *_topics_of(self._record))
        self._outbox.effects.append(Persist(token, msgspec.msgpack.encode(record)))

    def _token(self) -> int:
        token = self._next_token
        self._next_token += 1
        return token

    def _install(self, configuration: Configuration, now: int) -> None:
        self.configuration = configuration
        self._topic_disk = TopicDisk(configuration, self._token, _topics_of(self._record)[0])
        self._plane = DataPlane(
            configuration, self.settings, self._outbox, self._peers, self._topic_disk,
            now, now + self._wall_offset,
        )  # fmt: skip
        self._outbox.silent = len(configuration.members) == 1
        for peer in self._peers.heard(now):
            self._plane.attach(peer)
        if self._plane.is_sequencer:
            self._outbox.multicast(wire.encode_install(configuration.epoch, configuration))
        self._beat_now = True
        self._to(State.ACTIVE, f"epoch {configuration.epoch} with {len(configuration.members)} members")
        for run in self._waiting_controls:
            self._plane.control(run)
        self._waiting_controls = []
        for _, name, local in _topics_of(self._record)[0]:
            if not reserved(name):
                self._command(control.TopicCreate(name, local), behind=False)

    def _on_install(self, datagram: bytes) -> None:
        epoch, encoded = wire.decode_install(datagram)
        try:
            configuration = msgspec.msgpack.decode(encoded, type=Configuration)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise MalformedDatagram("INSTALL without a configuration") from None
        if self.configuration is not None or self._installing is not None or self._leaving:
            return
        if not self._acceptable(configuration) or configuration.epoch != epoch:
            raise MalformedDatagram("INSTALL of a configuration that this node is not a member of")
        self._persist_configuration(configuration)

    def _acceptable(self, configuration: Configuration) -> bool:
        """Whether this start of this node is a member, and the configuration can be what it says."""
        own = (self.settings.node_id, self.settings.incarnation)
        table = self.settings.table or configuration.table
        ids = [member.node_id for member in configuration.members]
        return (
            any((member.node_id, member.incarnation) == own for member in configuration.members)
            and configuration.table == table
            and configuration.sequencer in ids
            and configuration.tie_breaker in ids
            and len(set(ids)) == len(ids) <= limits.NODES
            and all(
                member.votes == table.get(member.node_id)
                and 0 <= member.incarnation < 2**64
                and 0 <= member.store_id < 2**64
                for member in configuration.members
            )
            and configuration.epoch > 0
            and len(configuration.cluster_id) == 32
            and all(digit in "0123456789abcdef" for digit in configuration.cluster_id)
            and all(  # they are counted on from there, and stay within the 64 bits that messages have for them
                0 <= number < 2**62
                for number in (configuration.base, configuration.order_time, configuration.m_sequence - 1)
            )
            and limits.MTU_MINIMUM <= configuration.mtu <= self.settings.mtu
            and configuration.delivery == self.settings.delivery
            and configuration.limits == self.settings.limits
            and configuration.version == wire.VERSION
        )

    def _on_config_request(self, peer: Peer, epoch: int) -> None:
        if self.configuration is not None and epoch < self.configuration.epoch:
            self._outbox.send(peer.address, wire.encode_install(self.configuration.epoch, self.configuration))

    def _to(self, state: State, reason: str) -> None:
        """The one setter of the state: says why."""
        self.state = state
        self._outbox.effects.append(StateChange(state, reason))

    def _payload_bytes(self, mtu: int) -> int:
        """Room for a message in a datagram on links of ``mtu``."""
        return mtu - self.settings.ip_overhead_bytes - limits.SEAL_BYTES - BODY

    # --- heartbeats -------------------------------------------------------------------------------------------------

    def _on_heartbeat(self, peer: Peer, beat: Heartbeat, counter: int, source: Address, now: int) -> None:
        if counter <= peer.beat_counter:
            return  # overtaken by a newer one
        peer.beat_counter = counter
        peer.beat = beat
        peer.address = source
        if self._plane is not None:
            self._plane.on_heartbeat(peer, beat, counter)
        elif (
            beat.epoch > 0
            and self._installing is None
            and now - peer.asked_configuration_at >= self.settings.heartbeat_ns // 2
        ):
            peer.asked_configuration_at = now
            self._outbox.send(source, wire.encode_config_request(0))

    def _watch_members(self, configuration: Configuration, heard: list[tuple[int, int]]) -> None:
        """Tell who fell silent and who is back. Nothing follows from it: membership is fixed."""
        for member in configuration.members:
            node_id, incarnation = member.node_id, member.incarnation
            if node_id == self.settings.node_id:
                continue
            here = (node_id, incarnation) in heard
            if here == (node_id not in self._silent):
                continue
            role = (
                ", the sequencer: nothing is ordered without it" if node_id == configuration.sequencer else ""
            )
            if here:
                del self._silent[node_id]
                self._outbox.effects.append(News("member_heard", f"node {node_id} is heard again"))
            else:
                peer = self._peers.get(node_id, incarnation)
                left = peer is not None and peer.beat is not None and peer.beat.flags & MessageFlags.LEAVING
                why = "has stopped in order" if left else "is not heard any more"
                self._silent[node_id] = f"node {node_id}{role}"
                self._outbox.effects.append(News("member_silent", f"node {node_id} {why}{role}"))

    def _beat(self, now: int) -> None:
        self._beat_now = False
        self._next_beat = now + self.settings.heartbeat_ns
        heard = [(peer.node_id, peer.incarnation) for peer in self._peers.heard(now)]
        if self.configuration is not None:
            self._watch_members(self.configuration, heard)
        settings, plane, configuration = self.settings, self._plane, self.configuration
        mtu = settings.mtu if configuration is None else configuration.mtu
        payload = self._payload_bytes(mtu)
        flags = MessageFlags.NONE
        if plane is None:
            flags |= MessageFlags.FORMING
        elif plane.full:
            flags |= MessageFlags.FULL
        if self._leaving:
            flags |= MessageFlags.LEAVING
        self._beat_number += 1
        padded = self._beat_number % limits.HEARTBEAT_PADDED_EVERY == 0
        if padded:
            flags |= MessageFlags.PADDED
        history = history_numbers(configuration.cluster_id if configuration else "")
        beat = Heartbeat(
            flags=int(flags),
            epoch=configuration.epoch if configuration else 0,
            window=plane.window if plane else 0,
            granted=min(settings.receive_buffer_bytes, 0xFFFF_FFFF),
            mtu=settings.mtu,
            history_time=history[0],
            history_random=history[1],
            table_hash=self._formation.hash,
            promised_round=0,
            promised_node=0,
            promised_incarnation=0,
            last_packet=plane.last_packet if plane else 0,
            last_index=plane.log.next_index - 1 if plane else 0,
            held=plane.acknowledged if plane else 0,
            commit=plane.commit if plane else 0,
            stable=plane.stable if plane else 0,
            auditor_index=0,
            auditor_chain=0,
            store_id=settings.store_id,
            heard=heard[: (payload - wire.HEARTBEAT.size) // wire.HEARD.size],
        )
        self._outbox.multicast(wire.encode_heartbeat(beat, payload if padded else 0))

    # --- what others ask --------------------------------------------------------------------------------------------

    @property
    def topics(self) -> dict[str, Topic]:
        """Topics by name, as delivered here."""
        return (self._plane.state.topics if self._plane else _NO_TOPICS).by_name

    def topic_by_id(self, topic_id: int) -> Topic | None:
        return (self._plane.state.topics if self._plane else _NO_TOPICS).by_id.get(topic_id)

    def last_seq(self, topic_id: int) -> int:
        """The seq of the topic's last delivered event, 0 where there is none."""
        return self._plane.state.last_seq.get(topic_id, 0) if self._plane else 0

    @property
    def waiting_for(self) -> str:
        """What a node that forms waits for, or which members an active one does not hear, in words; else empty."""
        if self.configuration is None:
            return self._formation.waiting_for
        return "; ".join(self._silent[node_id] for node_id in sorted(self._silent))

    def status(self, now: int) -> dict[str, Any]:
        """Plain values for people and programs; docs/operating.md lists the keys."""
        configuration = self.configuration
        heard = {(peer.node_id, peer.incarnation): peer for peer in self._peers.heard(now)}
        members = []
        for member in configuration.members if configuration else ():
            own = member.node_id == self.settings.node_id
            peer = heard.get((member.node_id, member.incarnation))
            age_ms = 0 if own else (now - peer.last_heard) // limits.MILLISECOND_NS if peer else None
            leaving = (
                peer is not None and peer.beat is not None and bool(peer.beat.flags & MessageFlags.LEAVING)
            )
            members.append(
                {
                    "node_id": member.node_id, "incarnation": member.incarnation, "born_on": member.born_on,
                    "votes": member.votes, "heard_ms_ago": age_ms, "leaving": leaving,
                    "sequencer": member.node_id == configuration.sequencer if configuration else False,
                }
            )  # fmt: skip
        return {
            "state": self.state.value,
            "waiting_for": self.waiting_for,
            "cluster": self.settings.cluster_name,
            "cluster_id": configuration.cluster_id if configuration else "",
            "epoch": configuration.epoch if configuration else 0,
            "m_sequence": configuration.m_sequence if configuration else 0,
            "delivery": configuration.delivery if configuration else self.settings.delivery,
            "mtu": configuration.mtu if configuration else self.settings.mtu,
            "node_id": self.settings.node_id,
            "incarnation": self.settings.incarnation,
            "sequencer": configuration.sequencer if configuration else 0,
            "members": members,
            "topics": len(self.topics),
            "producers": len(self._plane.state.producers) if self._plane else 0,
            "data_plane": self._plane.status() if self._plane else {},
            "datagrams": dict(self.counters),
        }


def _read_record(encoded: bytes) -> Record | None:
    if not encoded:
        return None
    try:
        return msgspec.msgpack.decode(encoded, type=Record)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StateDirectoryError(f"the state directory's record cannot be read: {error}") from None


def _topics_of(record: Record | None) -> tuple[list[tuple[int, str, bool]], int, int]:
    return (record.topics, record.next_topic_id, record.topics_index) if record else ([], 0, 0)
