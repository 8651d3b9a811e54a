"""The proposer of an epoch change: PREPARE, judge the promises, SYNC, ACCEPT; then the value is decided.

One attempt has one ballot. Rounds rise only on REJECT, or when a phase has made no progress for ``sync_timeout``.
The proposer's own acceptor is asked like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol

from ocfcluster import limits
from ocfcluster.protocol.judgement import Evidence, Finish, Judgement, NewHistory, Propose, judge
from ocfcluster.protocol.messages import (
    LOST,
    Accept,
    Accepted,
    Instance,
    Message,
    Prepare,
    Promise,
    Reject,
    Sync,
)
from ocfcluster.protocol.quorum import Quorums, is_primary
from ocfcluster.protocol.settings import Ballot, Configuration, Settings
from ocfcluster.protocol.validity import ballot_fault


class Phase(Enum):
    IDLE = "idle"
    PREPARING = "preparing"
    SYNCING = "syncing"
    ACCEPTING = "accepting"


class Ground(Protocol):
    """What a proposer needs of its node."""

    def say(self, message: Message) -> None:
        """To all nodes, this one included."""

    def evidence(self, promises: dict[int, Promise], incarnations: dict[int, int], now: int) -> Evidence: ...
    def expected(self) -> set[int]:
        """Acceptors that are heard, this node included: their answer is worth a short wait."""

    def yields(self, rival: Ballot, now: int) -> bool:
        """Whether this node gives way for a while to the one that has the higher ballot."""

    def first_value(self, incarnations: dict[int, int], now: int) -> Configuration:
        """The configuration to propose in a bootstrap, of those who have promised."""

    def new_history(
        self, promises: dict[int, Promise], incarnations: dict[int, int], topics_digest: int, now: int
    ) -> Configuration | None:
        """A history that begins anew; None where those that are there would be no primary."""

    def decided(self, value: Configuration, now: int) -> None: ...


class Proposer:
    __slots__ = (
        "phase", "instance", "ballot", "waiting_for", "reason", "_settings", "_ground", "_configuration", "_acceptors",
        "_table_hash", "_promises", "_incarnations", "_accepted", "_confirmed", "_value", "_source", "_finishing",
        "_forced", "_not_again", "_resend_at", "_interval", "_waiting_since", "_enough_at", "_progress_at", "_judge",
        "_rang_at",
    )  # fmt: skip

    def __init__(
        self, settings: Settings, ground: Ground, judgement: Callable[[Evidence], Judgement] = judge
    ) -> None:
        self._settings = settings
        self._ground = ground
        self._judge = judgement
        self.phase = Phase.IDLE
        self.instance = Instance("", 0)
        self.ballot = Ballot(0, settings.node_id, settings.incarnation)
        self.waiting_for = ""
        self.reason = ""
        self._not_again: set[int] = set()
        self._configuration: Configuration | None = None
        self._acceptors: dict[int, int] = {}
        self._table_hash = 0
        self._forced = False
        self._waiting_since = 0  # when an attempt about this instance first found too little to go on with
        self._reset(0)

    def _reset(self, now: int) -> None:
        self._promises: dict[int, Promise] = {}
        self._incarnations: dict[int, int] = {}
        self._accepted: set[int] = set()
        self._confirmed: set[int] = set()
        self._value: Configuration | None = None
        self._source = 0
        self._finishing = False
        self._progress_at = now
        self._enough_at = 0
        self._rang_at = 0
        self._again(now)

    def _again(self, now: int) -> None:
        self._interval = limits.PREPARE_FIRST_NS
        self._resend_at = now

    @property
    def acceptors(self) -> dict[int, int]:
        """node_id → store_id of those that decide."""
        return self._acceptors

    def promised_for(self, value: Configuration) -> set[int]:
        """Whose promises ``value`` was judged by; none where this is not what was proposed last."""
        return self._promised if self._value == value else set()

    @property
    def preparing(self) -> bool:
        return self.phase is Phase.PREPARING

    @property
    def active(self) -> bool:
        return self.phase is not Phase.IDLE

    # --- attempts ---------------------------------------------------------------------------------------------------

    def begin(
        self,
        instance: Instance,
        round_: int,
        now: int,
        *,
        configuration: Configuration | None,
        acceptors: dict[int, int],
        table_hash: int = 0,
        forced: bool = False,
        reason: str = "",
    ) -> None:
        """Start an attempt. ``acceptors``: node_id → store_id. ``configuration`` is C_e, None for a bootstrap."""
        if instance != self.instance:
            self._not_again = set()
            self._waiting_since = 0
        self.instance = instance
        self.ballot = Ballot(round_, self._settings.node_id, self._settings.incarnation)
        self._configuration = configuration
        self._acceptors = acceptors
        self._table_hash = table_hash
        self._forced = forced
        self.reason = reason
        self.waiting_for = ""
        self._reset(now)
        self._prepare(now)

    def _prepare(self, now: int) -> None:
        if ballot_fault(self.ballot):
            self.abandon()  # no honest node counts so far: somebody has said so
            return
        self.phase = Phase.PREPARING
        self.timer(now)

    def abandon(self) -> None:
        self.phase = Phase.IDLE
        self.waiting_for = ""

    def _next_round(self, above: int, now: int) -> None:
        self.ballot = self.ballot._replace(round=max(self.ballot.round, above) + 1)
        self._reset(now)
        self._prepare(now)

    # --- answers ----------------------------------------------------------------------------------------------------

    def on_promise(self, node_id: int, incarnation: int, promise: Promise, now: int) -> None:
        if self.phase is not Phase.PREPARING or not self._mine(promise) or node_id not in self._acceptors:
            return
        self._promises[node_id] = promise
        self._incarnations[node_id] = incarnation
        self._consider(now)

    def on_reject(self, reject: Reject, now: int) -> None:
        if self.active and self._mine(reject) and reject.promised > self.ballot:
            if self._ground.yields(reject.promised, now):
                self.abandon()
            else:
                self._next_round(reject.promised.round, now)

    def on_synced(self, node_id: int, incarnation: int, message: Message, now: int) -> None:
        value = self._value
        if self.phase is not Phase.SYNCING or not self._mine(message) or value is None:
            return
        if value.member(node_id, incarnation) is not None and node_id not in self._confirmed:
            self._confirmed.add(node_id)
            self._progress_at = now
            self._consider_synced(now)

    def on_accepted(self, node_id: int, accepted: Accepted, now: int) -> None:
        if self.phase is not Phase.ACCEPTING or not self._mine(accepted):
            return
        if self._acceptors.get(node_id) == accepted.store_id:
            self._accepted.add(node_id)
            self._consider_accepted(now)

    def _mine(self, message: Message) -> bool:
        return message.instance == self.instance and message.ballot == self.ballot

    # --- phases -----------------------------------------------------------------------------------------------------

    def _consider(self, now: int) -> None:
        """Judge the promises as soon as they are enough, and those expected are in or were waited for."""
        promised = self._promised
        if self._configuration is None:
            if promised == set(self._acceptors):
                self._propose_first(now)
            return
        if not (self._forced and promised) and not Quorums(self._configuration).decision(promised):
            return
        self._enough_at = self._enough_at or now
        if (
            not self._ground.expected() <= set(self._promises)
            and now < self._enough_at + limits.PROMISE_WAIT_NS
        ):
            return
        promises = {node: self._promises[node] for node in sorted(promised)}
        evidence = self._ground.evidence(promises, self._incarnations, now)
        evidence.strangers = {node for node in self._promises if node not in promised}
        evidence.forced = self._forced
        # Counted over all attempts: nodes that wait take turns, and each turn is a new one.
        since = self._waiting_since or now
        evidence.waited = now - since >= self._settings.history_wait_ns
        evidence.not_again = self._not_again
        judgement = self._judge(evidence)
        if isinstance(judgement, Finish):
            self._sync(judgement.value, self._settings.node_id, now, finishing=True)
        elif isinstance(judgement, Propose):
            if self._leaves_out(evidence, judgement.value) and now < self._enough_at + limits.PROMISE_WAIT_NS:
                return  # where links have just healed heartbeats cross: a moment later it may not have to
            self._sync(judgement.value, judgement.source, now, finishing=False)
        elif isinstance(judgement, NewHistory):
            digest = promises[judgement.source].topics_digest
            value = self._ground.new_history(promises, self._incarnations, digest, now)
            if value is None:
                self.waiting_for = "half of the node table's votes, to begin a new history"
            else:
                self._sync(value, judgement.source, now, finishing=False)
        else:
            self.waiting_for = judgement.reason
            self._waiting_since = since
            self._not_again = set()

    def _leaves_out(self, evidence: Evidence, value: Configuration) -> bool:
        """Whether a member that has promised would go for its link."""
        return any(
            promise.standing != LOST
            and value.member(node, self._incarnations[node]) is None
            and node not in evidence.leaving
            and node not in evidence.unwanted
            for node, promise in evidence.promises.items()
        )

    @property
    def _promised(self) -> set[int]:
        """Who promised: the answers of strangers are no promises."""
        return {node for node, one in self._promises.items() if one.store_id == self._acceptors[node]}

    def _propose_first(self, now: int) -> None:
        """A bootstrap: what was accepted before is finished; there is nothing to fetch."""
        found = [
            (one.accepted_ballot, one.accepted)
            for one in self._promises.values()
            if one.accepted_ballot is not None and one.accepted is not None
        ]
        found.sort(key=lambda report: report[0], reverse=True)
        self._value = found[0][1] if found else self._ground.first_value(self._incarnations, now)
        self._accept(now)

    def _sync(self, value: Configuration, source: int, now: int, *, finishing: bool) -> None:
        self.phase = Phase.SYNCING
        self.waiting_for = ""
        self._value, self._source, self._finishing = value, source, finishing
        self._confirmed = set()
        self._progress_at = now
        self._enough_at = 0
        self._again(now)
        self._speak(now)

    def _consider_synced(self, now: int) -> None:
        value = self._value
        if value is None or value.sequencer not in self._confirmed:
            return
        if not Quorums(value).commit(self._confirmed) or self._lacks_joiners(value):
            return
        self._enough_at = self._enough_at or now
        everybody = {member.node_id for member in value.members} <= self._confirmed
        if everybody or now >= self._enough_at + limits.PROMISE_WAIT_NS:
            self._accept(now)

    def _lacks_joiners(self, value: Configuration) -> bool:
        """Whether the view would be no primary without joiners that have not got their state yet: it would let them
        in only to lose them again."""
        before = self._configuration
        if (
            before is None
            or self._finishing
            or value.cluster_id != before.cluster_id
            or value.last_man_standing
        ):
            return False
        ready = [
            one.node_id
            for one in value.members
            if one.node_id in self._confirmed or before.member(one.node_id, one.incarnation) is not None
        ]
        return not is_primary(value.table, ready)

    def _accept(self, now: int) -> None:
        self.phase = Phase.ACCEPTING
        self._accepted = set()
        self._progress_at = now
        self._again(now)
        self._speak(now)

    def _consider_accepted(self, now: int) -> None:
        value = self._value
        if value is None:
            return
        if self._configuration is None:
            enough = self._accepted >= set(self._acceptors)
        else:
            enough = Quorums(self._configuration).decision(self._accepted)
            if self._forced:
                enough = enough or self._accepted >= self._promised
        if enough:
            self.phase = Phase.IDLE
            self._ground.decided(value, now)

    # --- time -------------------------------------------------------------------------------------------------------

    def next_timer(self) -> int:
        if self.phase is Phase.IDLE:
            return 2**62
        waited = self._enough_at + limits.PROMISE_WAIT_NS
        if self._enough_at and self.phase is not Phase.ACCEPTING and self._rang_at < waited:
            return min(self._resend_at, waited)
        return self._resend_at  # nothing new but by what others say, or by saying it again

    def timer(self, now: int) -> None:
        """Say again what is not answered; give up a phase that stands still."""
        self._rang_at = now
        if self.phase is Phase.PREPARING:
            self._consider(now)
        elif self.phase is Phase.SYNCING:
            self._consider_synced(now)
        stands_still = now - self._progress_at >= self._settings.sync_timeout_ns
        if stands_still and self.phase in (Phase.SYNCING, Phase.ACCEPTING):
            self._give_up_phase(now)
            return
        if self.active and now >= self._resend_at:
            self._speak(now)

    def _give_up_phase(self, now: int) -> None:
        """No progress: finish without SYNC what was confirmed once, else begin again without the joiners that were
        not ready."""
        value = self._value
        if self.phase is Phase.SYNCING and value is not None:
            if self._finishing:
                self._accept(now)
                return
            members = self._configuration.members if self._configuration is not None else []
            known = {(one.node_id, one.incarnation) for one in members}
            self._not_again |= {
                one.node_id
                for one in value.members
                if one.node_id not in self._confirmed and (one.node_id, one.incarnation) not in known
            }
        self._next_round(self.ballot.round, now)

    def _speak(self, now: int) -> None:
        self._resend_at = now + self._interval
        self._interval = min(self._interval * 2, limits.PREPARE_MAX_NS)
        value = self._value
        if self.phase is Phase.PREPARING:
            acceptors = sorted(self._acceptors.items()) if self._configuration is None else []
            self._ground.say(
                Prepare(*self.instance, self.ballot, self._configuration, acceptors, self._table_hash)
            )
        elif self.phase is Phase.SYNCING and value is not None:
            self._ground.say(Sync(*self.instance, self.ballot, value, self._source))
        elif self.phase is Phase.ACCEPTING and value is not None:
            self._ground.say(Accept(*self.instance, self.ballot, value))
