"""Mistakes in how an epoch change is voted on: promises, quorums, what promises allow, and what a disk remembers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import msgspec

from ocfcluster.protocol import judgement
from ocfcluster.protocol.acceptor import Acceptor
from ocfcluster.protocol.detector import Detector
from ocfcluster.protocol.formation import Formation
from ocfcluster.protocol.judgement import Evidence, Judgement, NewHistory, Wait
from ocfcluster.protocol.messages import HELD, LOST, UNSYNCED
from ocfcluster.protocol.proposer import Phase, Proposer
from ocfcluster.protocol.quorum import Quorums
from ocfcluster.protocol.recovery import Recovery
from ocfcluster.protocol.sequencer import Sequencer
from ocfcluster.protocol.settings import Ballot, Configuration, PaxosRecord, Settings
from ocfcluster.protocol.store import Store
from tests.simulation.mutants_base import SAFETY, Mutant, Patches, around

# --- what is said, and what is on disk by then ------------------------------------------------------------------------


def _said_before_the_disk(kind: str) -> Callable[[], Patches]:
    def early(original: Any, self: Acceptor, what: str, to: Any, answer: Any, now: int) -> None:
        if what == kind:
            answer()
        else:
            original(self, what, to, answer, now)

    return lambda: [around(Acceptor, "_when_durable", early)]


def _forgotten_at_start(forget: Callable[[PaxosRecord], PaxosRecord | None]) -> Callable[[], Patches]:
    def init(original: Any, self: Store, encoded: bytes) -> None:
        original(self, encoded)
        if self.record.paxos is not None:
            self.record = msgspec.structs.replace(self.record, paxos=forget(self.record.paxos))

    return lambda: [around(Store, "__init__", init)]


def _accepted_forgotten_at_the_next_promise() -> Patches:
    def promise(original: Any, self: Acceptor, instance: Any, ballot: Ballot, record: Any) -> None:
        original(self, instance, ballot, None)

    return [around(Acceptor, "_promise", promise)]


def _lower_ballots_accepted() -> Patches:
    def on_accept(original: Any, self: Acceptor, accept: Any, reply: Any, now: int) -> bool:
        record = self.record(accept.instance)
        if record is not None and accept.ballot < record.promised:
            self._store.change(paxos=msgspec.structs.replace(record, promised=accept.ballot))
        return bool(original(self, accept, reply, now))

    return [around(Acceptor, "on_accept", on_accept)]


def _promises_without_freezing() -> Patches:
    return [patch.object(Recovery, "_freeze", lambda self: None)]


def _standing_changed(change: Callable[[Recovery, Any], Any]) -> Callable[[], Patches]:
    def promise(original: Any, self: Recovery, record: PaxosRecord, ballot: Ballot) -> Any:
        return change(self, original(self, record, ballot))

    return lambda: [around(Recovery, "_promise", promise)]


def _unsynced_says_held(recovery: Recovery, promise: Any) -> Any:
    return msgspec.structs.replace(promise, standing=HELD) if promise.standing == UNSYNCED else promise


def _restarted_says_held(recovery: Recovery, promise: Any) -> Any:
    configuration = recovery._node.configuration
    if promise.standing != LOST or configuration is None:
        return promise
    return msgspec.structs.replace(promise, standing=HELD, held=configuration.base + 1)


# --- quorums ----------------------------------------------------------------------------------------------------------


def _recovery_ignores_votes() -> Patches:
    def init(original: Any, self: Quorums, configuration: Configuration) -> None:
        original(self, configuration)
        self._votes = dict.fromkeys(self._votes, 1)
        self._total = len(self._votes)

    return [around(Quorums, "__init__", init)]


def _commit_ignores_votes() -> Patches:
    def init(original: Any, self: Sequencer, *arguments: Any) -> None:
        original(self, *arguments)
        self._votes = dict.fromkeys(self._votes, 1)
        self._quorum_votes = len(self._votes) // 2 + 1

    return [around(Sequencer, "__init__", init)]


def _tie_breaker_ignored() -> Patches:
    return [patch.object(Quorums, "decision", lambda self, nodes: 2 * self.votes(nodes) >= self._total)]


def _primacy_not_checked() -> Patches:
    names = ("judgement", "initiative", "recovery", "node_table")
    return [patch(f"ocfcluster.protocol.{name}.is_primary", lambda table, nodes: True) for name in names]


def _strangers_promise() -> Patches:
    return [patch.object(Proposer, "_promised", property(lambda self: set(self._promises)))]


def _strangers_vote() -> Patches:
    """A wiped disk votes for the node whose it is."""
    return [
        patch.object(
            Configuration,
            "acceptor",
            lambda self, node_id, store_id: any(one.node_id == node_id for one in self.members),
        ),
        patch.object(
            Detector,
            "voices",
            lambda self, configuration: {
                one.node_id: peer
                for one in configuration.members
                if (peer := self.present(one.node_id)) is not None and peer.beat is not None
            },
        ),
        *_strangers_promise(),
        around(Proposer, "on_accepted", _accepted_by_anybody),
    ]


def _accepted_by_anybody(original: Any, self: Proposer, node_id: int, accepted: Any, now: int) -> None:
    store_id = self._acceptors.get(node_id, accepted.store_id)
    original(self, node_id, msgspec.structs.replace(accepted, store_id=store_id), now)


def _bootstrap_without_all() -> Patches:
    def decide(original: Any, self: Formation, heard: Any, without: Any) -> Any:
        settings = self._settings
        if settings.bootstrap == "all":
            named = {peer.node_id for peer in heard} | {settings.node_id}
            without = without | (set(self._table) - named)
        return original(self, heard, without)

    return [around(Formation, "decide", decide)]


# --- what promises allow ----------------------------------------------------------------------------------------------


def _judged_otherwise(change: Callable[[Evidence, Judgement], Judgement]) -> Callable[[], Patches]:
    def init(original: Any, self: Proposer, settings: Settings, ground: Any) -> None:
        original(self, settings, ground, lambda evidence: change(evidence, judgement.judge(evidence)))

    return lambda: [around(Proposer, "__init__", init)]


def _memory_rule_ignored() -> Patches:
    return [
        patch.object(
            judgement,
            "memory_holds",
            lambda configuration, promises: any(one.standing == HELD for one in promises.values()),
        )
    ]


def _silent_sequencer_forgotten() -> Patches:
    """The memory rule counts who has lost what it held, and not who is silent."""

    def holds(configuration: Configuration, promises: dict[int, Any]) -> bool:
        standing = [one.standing for one in promises.values()]
        lost = {node for node, one in promises.items() if one.standing == LOST}
        return HELD in standing and not Quorums(configuration).commit(lost)

    return [patch.object(judgement, "memory_holds", holds)]


def _found(counted: Callable[[Configuration, dict[int, Any], Ballot, Configuration], set[int]]) -> Patches:
    """The rule for a value found accepted, with another set of those that may have decided it."""

    def accepted_value(configuration: Configuration, promises: dict[int, Any]) -> Configuration | None:
        reports = sorted(
            ((one.accepted_ballot, node) for node, one in promises.items() if one.accepted is not None),
            reverse=True,
        )
        for ballot, node in reports:
            value = promises[node].accepted
            if Quorums(configuration).decision(counted(configuration, promises, ballot, value)):
                return value  # type: ignore[no-any-return]
        return None

    return [patch.object(judgement, "accepted_value", accepted_value)]


def _silent(configuration: Configuration, promises: dict[int, Any]) -> set[int]:
    return {one.node_id for one in configuration.members} - set(promises)


def _found_values_ignored() -> Patches:
    return [patch.object(judgement, "accepted_value", lambda configuration, promises: None)]


def _found_by_ballot() -> Patches:
    return _found(
        lambda configuration, promises, ballot, value: (
            {node for node, one in promises.items() if one.accepted_ballot == ballot}
            | _silent(configuration, promises)
        )
    )


def _found_by_reporters() -> Patches:
    return _found(
        lambda configuration, promises, ballot, value: {
            node for node, one in promises.items() if one.accepted == value
        }
    )


def _cut_too_low() -> Patches:
    original = judgement.next_configuration

    def lower(
        configuration: Any, members: Any, joining: Any, table: Any, sequencer: int, base: int, at: int
    ) -> Any:
        low = max(configuration.base + 1, base - 1)
        return original(configuration, members, joining, table, sequencer, low, at)

    return [patch.object(judgement, "next_configuration", lower)]


def _cut_by_the_lowest() -> Patches:
    """The cut is the least that a promiser holds."""
    original = judgement.new_view

    def new_view(evidence: Evidence) -> Judgement:
        result = original(evidence)
        if not isinstance(result, judgement.Propose):
            return result
        value = result.value
        base = min(one.held for one in evidence.promises.values() if one.standing == HELD)
        epochs = [*value.epochs[:-1], (value.epoch, base)]
        return judgement.Propose(msgspec.structs.replace(value, base=base, epochs=epochs), result.source)

    return [patch.object(judgement, "new_view", new_view)]


def _waits(evidence: Evidence, judged: Judgement) -> bool:
    """Whether what is missing is memory, and nothing else."""
    found = judgement.accepted_value(evidence.configuration, evidence.promises)
    return isinstance(judged, Wait) and found is None and bool(evidence.promises)


def _history_ended_too_soon(evidence: Evidence, judged: Judgement) -> Judgement:
    lost = [node for node, one in evidence.promises.items() if one.standing == LOST]
    if _waits(evidence, judged) and (lost or evidence.strangers):
        return NewHistory(max(evidence.promises, key=lambda node: evidence.promises[node].topics_index))
    return judged


def _topics_of_the_lowest(evidence: Evidence, judged: Judgement) -> Judgement:
    if isinstance(judged, NewHistory):
        return NewHistory(min(evidence.promises, key=lambda node: evidence.promises[node].topics_index))
    return judged


def _accept_without_sync() -> Patches:
    def sync(original: Any, self: Proposer, value: Any, source: int, now: int, *, finishing: bool) -> None:
        original(self, value, source, now, finishing=finishing)
        if self.phase is Phase.SYNCING:
            self._accept(now)

    return [around(Proposer, "_sync", sync)]


def _sequencer_need_not_be_ready() -> Patches:
    """ACCEPT goes out as soon as one member of the next view has confirmed, whoever it is."""

    def consider(self: Proposer, now: int) -> None:
        if self._value is not None and self._confirmed:
            self._accept(now)

    return [patch.object(Proposer, "_consider_synced", consider)]


def _decided_by_one() -> Patches:
    """A value is decided as soon as its proposer has accepted it."""

    def consider(original: Any, self: Proposer, now: int) -> None:
        if self._value is not None and self._settings.node_id in self._accepted:
            self.phase = Phase.IDLE
            self._ground.decided(self._value, now)

    return [around(Proposer, "_consider_accepted", consider)]


DECISIONS = ("votes", "memory rule", "one primary", "configuration", "history")
RECOVERY = (*DECISIONS, *SAFETY, "agreement", "virtual synchrony", "views", "receipts")

VOTES = (
    Mutant(
        "promise before the disk",
        "a PROMISE is sent before it is on disk",
        RECOVERY,
        _said_before_the_disk("promise"),
    ),
    Mutant(
        "accepted before the disk",
        "ACCEPTED is sent before it is on disk",
        RECOVERY,
        _said_before_the_disk("accepted"),
    ),
    Mutant(
        "promise forgotten",
        "a restart forgets its promise",
        DECISIONS,
        _forgotten_at_start(lambda vote: None),
    ),
    Mutant(
        "accepted value forgotten",
        "a restart forgets what it has accepted",
        DECISIONS,
        _forgotten_at_start(lambda vote: PaxosRecord(vote.cluster_id, vote.epoch, vote.promised)),
    ),
    Mutant(
        "accepted value overwritten",
        "the next promise forgets what was accepted",
        DECISIONS,
        _accepted_forgotten_at_the_next_promise,
    ),
    Mutant("lower ballots accepted", "ACCEPT below the promise is taken", DECISIONS, _lower_ballots_accepted),
    Mutant(
        "promise without freezing",
        "a promiser goes on in its epoch",
        (*RECOVERY, "frozen", "exception"),
        _promises_without_freezing,
    ),
    Mutant(
        "unsynced promises held",
        "a member below the base says in its promise that it held it",
        (*RECOVERY, "liveness", "exception"),
        _standing_changed(_unsynced_says_held),
    ),
    Mutant(
        "restarted promises held",
        "a restarted node says that it holds the base",
        (*RECOVERY, "liveness", "exception"),
        _standing_changed(_restarted_says_held),
    ),
    Mutant("recovery ignores votes", "decisions count nodes, not votes", RECOVERY, _recovery_ignores_votes),
    Mutant("commit ignores votes", "commit counts nodes, not votes", SAFETY, _commit_ignores_votes),
    Mutant("tie-breaker ignored", "either half decides", RECOVERY, _tie_breaker_ignored),
    Mutant(
        "primacy not checked",
        "a view needs no half of the table",
        (*RECOVERY, "liveness"),
        _primacy_not_checked,
    ),
    Mutant(
        "strangers promise", "a wiped disk's answer is a promise", (*RECOVERY, "liveness"), _strangers_promise
    ),
    Mutant("strangers vote", "a wiped disk votes", RECOVERY, _strangers_vote),
    Mutant("bootstrap without all", "who is heard forms a cluster", RECOVERY, _bootstrap_without_all),
    Mutant("memory rule ignored", "one that held is enough", RECOVERY, _memory_rule_ignored),
    Mutant(
        "the silent remember",
        "the memory rule counts only who says lost",
        RECOVERY,
        _silent_sequencer_forgotten,
    ),
    Mutant("found value ignored", "what was accepted is not finished", DECISIONS, _found_values_ignored),
    Mutant("found by ballot", "reporters of a value are counted by ballot", DECISIONS, _found_by_ballot),
    Mutant("found by reporters", "who did not promise is not counted", DECISIONS, _found_by_reporters),
    Mutant(
        "cut too low",
        "the cut is one below the highest held",
        (*RECOVERY, "cut", "liveness", "exception"),
        _cut_too_low,
    ),
    Mutant(
        "cut by the lowest",
        "the cut is the least that is held",
        (*RECOVERY, "cut", "liveness"),
        _cut_by_the_lowest,
    ),
    Mutant(
        "history ended too soon",
        "one lost memory ends the history",
        ("history",),
        _judged_otherwise(_history_ended_too_soon),
    ),
    Mutant(
        "topics of the lowest",
        "a new history begins with the oldest topic table",
        ("durable topics", "topics", "liveness"),
        _judged_otherwise(_topics_of_the_lowest),
    ),
    Mutant(
        "ACCEPT without SYNC", "nobody needs to hold the cut", (*RECOVERY, "liveness"), _accept_without_sync
    ),
    Mutant(
        "ACCEPT after one SYNCED",
        "one member that holds the cut is enough",
        (*RECOVERY, "liveness"),
        _sequencer_need_not_be_ready,
    ),
    Mutant("decided by one", "the proposer's own vote decides", RECOVERY, _decided_by_one),
)
