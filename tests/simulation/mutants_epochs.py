"""Mistakes in how a node goes from epoch to epoch: frozen, installing, joining with a snapshot, suspecting."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import msgspec

from ocfcluster.protocol import judgement, snapshot
from ocfcluster.protocol.data_plane import DataPlane
from ocfcluster.protocol.detector import Detector
from ocfcluster.protocol.effects import HistoryLost
from ocfcluster.protocol.installation import Installation
from ocfcluster.protocol.order_log import OrderLog
from ocfcluster.protocol.peers import PeerTable
from ocfcluster.protocol.primacy import Primacy
from ocfcluster.protocol.quorum import Quorums
from ocfcluster.protocol.sequencer import Sequencer
from ocfcluster.protocol.settings import Configuration, Member
from ocfcluster.protocol.state import ReplicatedState
from ocfcluster.protocol.store import NO_LIMIT, Store
from ocfcluster.protocol.streams import Assembler, OriginStream
from ocfcluster.simulator.shell import Shell
from ocfcluster.wire.datagram import decode_ack
from tests.simulation.mutants_base import ORDER, SAFETY, Mutant, Patches, around
from tests.simulation.mutants_votes import RECOVERY

# --- frozen -----------------------------------------------------------------------------------------------------------


def _orders_taken_after_a_promise() -> Patches:
    def on_order(original: Any, self: DataPlane, *arguments: Any) -> None:
        frozen, self.frozen = self.frozen, False
        try:
            original(self, *arguments)
        finally:
            self.frozen = frozen

    def limit(value: int, self: DataPlane) -> int:
        return NO_LIMIT if self.frozen else value

    return [around(DataPlane, "on_order", on_order), around(DataPlane, "_limit", limit)]


def _acks_after_a_promise() -> Patches:
    """A frozen member goes on to acknowledge what it holds, and to count."""

    def end_burst(original: Any, self: DataPlane, now: int) -> Any:
        yield from original(self, now)
        if self.frozen and self.is_member and not self._is_sequencer:
            self._acknowledge()

    return [
        around(DataPlane, "end_burst", end_burst),
        *_orders_taken_after_a_promise(),
        *_fetched_counts(),
    ]


def _fetched_counts() -> Patches:
    return [patch.object(DataPlane, "acknowledged", property(lambda self: self._acknowledgeable()))]


def _sequencer_never_freezes() -> Patches:
    """The sequencer promises, and goes on to order and to commit."""

    def freeze(original: Any, self: DataPlane) -> None:
        if not self._is_sequencer:
            original(self)

    return [around(DataPlane, "freeze", freeze)]


def _resigns_silently() -> Patches:
    def alive(original: Any, self: Detector, configuration: Configuration, resigned: bool, now: int) -> bool:
        return bool(original(self, configuration, False, now))

    return [around(Detector, "sequencer_alive", alive)]


def _short_cut_of_half() -> Patches:
    """The short cut where the sequencer and a member are no more than half."""

    def enter(original: Any, self: DataPlane, configuration: Configuration, *arguments: Any) -> None:
        original(self, configuration, *arguments)
        votes = {member.node_id: member.votes for member in configuration.members}
        pair = votes.get(self._node_id, 0) + votes[configuration.sequencer]
        if self.is_member and not self._is_sequencer and pair * 2 == sum(votes.values()):
            self._short_cut = True

    return [around(DataPlane, "_enter", enter)]


def _unsynced_counts_for_commit() -> Patches:
    """The sequencer takes a member that has not got the base yet for one that holds what itself holds."""

    def on_ack(original: Any, self: DataPlane, peer: Any, datagram: bytes) -> None:
        _, epoch, held = decode_ack(datagram)
        if (
            epoch == self._epoch
            and self._is_sequencer
            and held <= self.configuration.base
            and not self.frozen
        ):
            self._sequencer.acknowledged(peer.node_id, self.log.held, self.log.next_index - 1)
        original(self, peer, datagram)

    def on_heartbeat(original: Any, self: DataPlane, peer: Any, beat: Any, counter: int) -> None:
        if beat.held <= self.configuration.base and peer.origin is not None and self._is_sequencer:
            beat = beat._replace(held=self.log.held)
        original(self, peer, beat, counter)

    return [around(DataPlane, "on_ack", on_ack), around(DataPlane, "on_heartbeat", on_heartbeat)]


def _base_need_not_be_held() -> Patches:
    return [patch.object(DataPlane, "holds", lambda self, base: True)]


# --- installing -------------------------------------------------------------------------------------------------------


def _installed_twice() -> Patches:
    def install(original: Any, self: DataPlane, *arguments: Any) -> None:
        original(self, *arguments)
        original(self, *arguments)

    return [around(DataPlane, "install", install)]


def _cut_not_cut() -> Patches:
    """What was ordered behind the base stays in the log."""
    return [patch.object(OrderLog, "_cut_off", lambda self, base: None)]


def _votes_forgotten_before_the_configuration() -> Patches:
    """Two writes instead of one: the votes on what follows an epoch are cleared, then what follows is written."""

    def persist(original: Any, self: Installation, configuration: Configuration, now: int) -> None:
        self.under_way = True
        self._store.change(paxos=None)
        self._store.when_durable(lambda when: original(self, configuration, when), now)

    return [around(Installation, "_persist", persist)]


def _installed_before_the_disk() -> Patches:
    def persist(original: Any, self: Installation, configuration: Configuration, now: int) -> None:
        with patch.object(Store, "when_durable", lambda self, then, now, key="": then(now)):
            original(self, configuration, now)

    return [around(Installation, "_persist", persist)]


def _eviction_not_noticed() -> Patches:
    def take(original: Any, self: Installation, configuration: Configuration, now: int) -> None:
        own, plane = self._settings, self._node.plane
        member = configuration.member(own.node_id, own.incarnation) is not None
        if plane is None or not plane.is_member or member:
            original(self, configuration, now)

    return [around(Installation, "take", take)]


def _history_lost_untold() -> Patches:
    def install(original: Any, self: Installation, *arguments: Any) -> None:
        original(self, *arguments)
        effects = self._node.outbox.effects
        effects[:] = [effect for effect in effects if not isinstance(effect, HistoryLost)]

    return [around(Installation, "_install", install)]


def _departed_runs_stay() -> Patches:
    """What a member that left has sent, and nobody has ordered, is not forgotten."""
    return [patch.object(OriginStream, "depart", lambda self: None)]


def _base_counts_for_all() -> Patches:
    """A new sequencer takes every member to hold the base."""

    def init(
        original: Any,
        self: Sequencer,
        configuration: Configuration,
        settings: Any,
        packet_bytes: int,
        stable: int,
        now: int,
    ) -> None:
        original(self, configuration, settings, packet_bytes, configuration.base, now)

    return [around(Sequencer, "__init__", init)]


def _next_view(change: Callable[[Configuration, Configuration], Configuration]) -> Callable[[], Patches]:
    """``change(C_e, C_e+1)`` in the place of what follows."""
    original = judgement.next_configuration

    def changed(configuration: Configuration, *arguments: Any) -> Configuration:
        return change(configuration, original(configuration, *arguments))

    return lambda: [patch.object(judgement, "next_configuration", changed)]


def _restart_is_no_change(old: Configuration, new: Configuration) -> Configuration:
    if [one.node_id for one in old.members] != [one.node_id for one in new.members]:
        return new
    members = [msgspec.structs.replace(one, born_on=min(one.born_on, old.m_sequence)) for one in new.members]
    return msgspec.structs.replace(new, m_sequence=old.m_sequence, members=members)


def _born_again(old: Configuration, new: Configuration) -> Configuration:
    members = [
        Member(new.m_sequence, one.node_id, one.incarnation, one.store_id, one.votes) for one in new.members
    ]
    return msgspec.structs.replace(new, members=sorted(members))


def _time_begins_anew(old: Configuration, new: Configuration) -> Configuration:
    return msgspec.structs.replace(new, order_time=old.order_time)


# --- what is replicated -----------------------------------------------------------------------------------------------


def _at_each_view(change: Callable[[ReplicatedState], None]) -> Callable[[], Patches]:
    def view(original: Any, self: ReplicatedState, configuration: Configuration, items: Any) -> None:
        original(self, configuration, items)
        change(self)

    return lambda: [around(ReplicatedState, "view", view)]


def _outcomes_forgotten(state: ReplicatedState) -> None:
    for producer in state.producers.values():
        producer.outcomes.clear()


def _producers_forgotten(state: ReplicatedState) -> None:
    state.producers.clear()
    state._per_node.clear()


def _ev_id_begins_anew(state: ReplicatedState) -> None:
    state.ev_id = 0


def _restored(change: Callable[[ReplicatedState], None]) -> Callable[[], Patches]:
    """``change`` of the state that a snapshot brought."""
    original = snapshot.restored_state

    def restored(image: Any) -> ReplicatedState:
        state = original(image)
        change(state)
        return state

    return lambda: [patch.object(snapshot, "restored_state", restored)]


def _last_runs_forgotten(state: ReplicatedState) -> None:
    for producer in state.producers.values():
        if producer.outcomes:
            producer.next_number = producer.outcomes[-1][0]


def _topic_counters_forgotten(state: ReplicatedState) -> None:
    state.last_seq = dict.fromkeys(state.last_seq, 0)


# --- snapshots --------------------------------------------------------------------------------------------------------


def _no_unfinished_runs() -> Patches:
    return [patch.object(Assembler, "unfinished", property(lambda self: b""))]


def _no_pending_runs() -> Patches:
    original = snapshot.take_snapshot

    def take(configuration: Any, state: Any, log: OrderLog, *arguments: Any) -> snapshot.Making:
        runs, log.runs = log.runs, deque()
        try:
            return original(configuration, state, log, *arguments)
        finally:
            log.runs = runs

    return [patch("ocfcluster.protocol.node.take_snapshot", take)]


def _wrong_next_packet() -> Patches:
    def begin_behind(original: Any, self: OriginStream, packet: int, partial: bytes, broken: str) -> None:
        original(self, max(0, packet - 1), partial, broken)

    return [around(OriginStream, "begin_behind", begin_behind)]


def _learner_beyond_the_cut() -> Patches:
    """A learner holds whatever is ordered, and keeps it where the epoch is cut below."""

    def limit(value: int, self: DataPlane) -> int:
        return value if self.is_member else NO_LIMIT

    def take(original: Any, self: Installation, configuration: Configuration, now: int) -> None:
        plane = self._node.plane
        if plane is not None and not plane.is_member and plane.log.held > configuration.base:
            mine = plane.configuration
            if (mine.cluster_id, mine.epoch + 1) == (configuration.cluster_id, configuration.epoch):
                plane.log.held = configuration.base
        original(self, configuration, now)

    return [around(DataPlane, "_limit", limit), around(Installation, "take", take)]


# --- incarnations and suspicion ---------------------------------------------------------------------------------------


def _same_incarnation_after_restart() -> Patches:
    def init(original: Any, self: Shell, world: Any, host: Any, settings: Any, random: Any) -> None:
        first = host.profile.settings.incarnation
        original(self, world, host, replace(settings, incarnation=first), random)

    return [around(Shell, "__init__", init)]


def _sleeper_suspects() -> Patches:
    return [patch.object(PeerTable, "count_as_heard", lambda self, now: None)]


def _restart_unnoticed() -> Patches:
    """Whoever speaks for a node keeps its incarnations before alive."""

    def heard(original: Any, self: PeerTable, now: int) -> Any:
        newest: dict[int, Any] = {}
        for peer in self.all():
            if peer.node_id not in newest or peer.last_heard > newest[peer.node_id].last_heard:
                newest[peer.node_id] = peer
        for peer in self.all():
            peer.last_heard = newest[peer.node_id].last_heard
            peer.last_large = newest[peer.node_id].last_large
        return original(self, now)

    return [around(PeerTable, "heard", heard)]


def _restored_when_heard() -> Patches:
    """A node that hears enough others again says that it is primary again: it may have been evicted."""

    def in_reach(
        original: Any, self: Primacy, configuration: Any, plane: Any, detector: Any, *more: Any
    ) -> bool:
        if self.primary:
            return bool(original(self, configuration, plane, detector, *more))
        heard = [one.node_id for one in configuration.members if detector.hears(one.node_id, one.incarnation)]
        return Quorums(configuration).commit([*heard, plane.node_id])

    return [around(Primacy, "_in_reach", in_reach), patch.object(Primacy, "woke", lambda self, now: None)]


def _missed_installs_stay_missed() -> Patches:
    """Who is behind is not told the configuration in force."""
    return [patch.object(Installation, "tell", lambda self, node_id: None)]


def _answered_by_a_joiner() -> Patches:
    """Repeats that a snapshot brought the outcomes of are answered with EIO."""

    def change(state: ReplicatedState) -> None:
        for producer in state.producers.values():
            producer.outcomes.extend([(0, 0, errno.EIO, 0, 0)] * (producer.outcomes.maxlen or 0))

    return _restored(change)()


EPOCHS = (
    Mutant(
        "ACKs after a promise", "a frozen member acknowledges", (*RECOVERY, "frozen"), _acks_after_a_promise
    ),
    Mutant("fetched counts", "what is fetched while frozen counts", ("frozen",), _fetched_counts),
    Mutant(
        "sequencer never freezes",
        "the sequencer goes on after its promise",
        (*RECOVERY, "frozen", "exception"),
        _sequencer_never_freezes,
    ),
    Mutant(
        "resigns silently", "a sequencer that resigned keeps its protection", ("liveness",), _resigns_silently
    ),
    Mutant("short cut of half", "2 of 4 votes deliver by the short cut", SAFETY, _short_cut_of_half),
    Mutant(
        "unsynced counts",
        "a member below the base counts for commit",
        (*RECOVERY, "stable"),  # what it did not hold is also freed for it
        _unsynced_counts_for_commit,
    ),
    Mutant(
        "SYNCED without the base",
        "members confirm a cut that they do not hold",
        (*RECOVERY, "liveness"),
        _base_need_not_be_held,
    ),
    Mutant("installed twice", "a view takes two places", (*ORDER, "exception", "views"), _installed_twice),
    Mutant(
        "nothing is cut off",
        "orders behind the base stay",
        (*ORDER, "exception", "views", "order time"),
        _cut_not_cut,
    ),
    Mutant(
        "votes cleared first",
        "votes are cleared in a write before the configuration",
        RECOVERY,
        _votes_forgotten_before_the_configuration,
    ),
    Mutant(
        "installed before the disk",
        "an epoch begins before it is on disk",
        RECOVERY,
        _installed_before_the_disk,
    ),
    Mutant("eviction not noticed", "who is left out goes on", (*RECOVERY, "liveness"), _eviction_not_noticed),
    Mutant(
        "history_lost untold", "programs do not hear of a new history", ("history",), _history_lost_untold
    ),
    Mutant(
        "departed runs stay",
        "packets of who left are kept for ever",
        ("buffers", "liveness", "agreement"),
        _departed_runs_stay,
    ),
    Mutant(
        "base counts for all",
        "a new sequencer frees what a member below the base needs",
        ("liveness", "stable"),
        _base_counts_for_all,
    ),
    Mutant("restart is no change", "m_sequence stays", ("views",), _next_view(_restart_is_no_change)),
    Mutant("born again", "born_on of who stays moves", ("views",), _next_view(_born_again)),
    Mutant(
        "time begins anew", "a view's order_time goes back", ("order time",), _next_view(_time_begins_anew)
    ),
    Mutant(
        "outcomes lost at a view",
        "repeats across an epoch change get EIO",
        ("receipts",),
        _at_each_view(_outcomes_forgotten),
    ),
    Mutant(
        "producers lost at a view",
        "producers do not outlive their epoch",
        ("receipts", "liveness"),
        _at_each_view(_producers_forgotten),
    ),
    Mutant("ev_id lost at a view", "ev_id begins anew", ("ev_id",), _at_each_view(_ev_id_begins_anew)),
    Mutant(
        "repeats after a snapshot",
        "a joiner does not know the last run of each producer",
        ("agreement", "exactly once", "fifo", "receipts", "seq", "ev_id"),
        _restored(_last_runs_forgotten),
    ),
    Mutant(
        "snapshot without producers",
        "a joiner knows no producer",
        ("agreement", "receipts", "liveness"),
        _restored(_producers_forgotten),
    ),
    Mutant(
        "snapshot without outcomes",
        "a joiner answers repeats with EIO",
        ("receipts",),
        _answered_by_a_joiner,
    ),
    Mutant(
        "snapshot without counters",
        "a joiner numbers from 1",
        ("agreement", "seq", "receipts", "liveness"),  # what topics keep does not fit: it is refused
        _restored(_topic_counters_forgotten),
    ),
    Mutant(
        "snapshot without begun runs",
        "a run that has begun is not in it",
        (*ORDER, "receipts", "exception"),
        _no_unfinished_runs,
    ),
    Mutant(
        "snapshot without pending runs",
        "what is held and not delivered is not in it",
        (*ORDER, "receipts", "exception", "virtual synchrony"),
        _no_pending_runs,
    ),
    Mutant(
        "snapshot with wrong packets",
        "each origin goes on one packet early",
        (*ORDER, "receipts", "buffers", "exception"),
        _wrong_next_packet,
    ),
    Mutant(
        "learner beyond the cut",
        "a learner keeps what was ordered behind a cut",
        (*RECOVERY, *ORDER, "exception"),
        _learner_beyond_the_cut,
    ),
    Mutant(
        "same incarnation again",
        "a restart keeps its incarnation",
        (*RECOVERY, *ORDER, "replay", "exception", "membership"),
        _same_incarnation_after_restart,
    ),
    Mutant("sleeper suspects all", "who slept suspects everybody", ("suspicion",), _sleeper_suspects),
    Mutant("restart unnoticed", "a restart keeps its former self alive", ("liveness",), _restart_unnoticed),
    Mutant(
        "restored when heard",
        "PRIMARY_RESTORED before it is known",
        ("notifications",),
        _restored_when_heard,
    ),
    Mutant("missed INSTALL", "who is behind is not told", ("liveness",), _missed_installs_stay_missed),
)
