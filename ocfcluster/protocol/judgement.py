"""What the promises of an epoch change allow: pure functions of the promises and the configuration they are about.

Single-decree Paxos decides, per epoch, what follows it; beside Paxos' own rule stands the *memory rule*: the log is in
memory, so a new view may only be made of promises that are sure to know all that was committed (docs/protocol.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ocfcluster import limits
from ocfcluster.protocol.messages import HELD, LOST, UNSYNCED, Promise
from ocfcluster.protocol.quorum import Quorums, is_primary
from ocfcluster.protocol.settings import Configuration, Member
from ocfcluster.protocol.validity import configuration_fault

Linked = Callable[[int, int], bool]  # (node_id, node_id) → both hear each other


@dataclass(slots=True)
class Candidate:
    """A node that may become a member although it is none of C_e: a learner that is ready, or one that must do."""

    node_id: int
    incarnation: int
    store_id: int
    mtu: int
    ready: bool


@dataclass(slots=True)
class Evidence:
    """What a proposer knows when it has promises enough.

    ``promises`` are of acceptors of C_e, by node_id; ``strangers`` answered for a node of C_e with another disk: they
    promise nothing, and what that node held is lost.
    """

    configuration: Configuration
    promises: dict[int, Promise]
    incarnations: dict[int, int]  # of those who promised
    strangers: set[int]
    linked: Linked
    leaving: set[int]
    unwanted: set[int]  # members that are to go: too far behind, for too long
    candidates: list[Candidate]
    order_time: int  # not before
    forced: bool = False  # an operator has said to go on without the others
    waited: bool = False  # for the rest of C_e, long enough
    not_again: set[int] = field(default_factory=set)  # joiners that did not get ready in time


@dataclass(slots=True, frozen=True)
class Finish:
    """A value that was accepted before, and may have been decided: it is finished unchanged."""

    value: Configuration


@dataclass(slots=True, frozen=True)
class Propose:
    """A new view; ``source`` holds its base."""

    value: Configuration
    source: int


@dataclass(slots=True, frozen=True)
class NewHistory:
    """Too many have lost their memory: a new history may be declared; ``source`` has the topics it begins with."""

    source: int


@dataclass(slots=True, frozen=True)
class Wait:
    reason: str


Judgement = Finish | Propose | NewHistory | Wait


def judge(evidence: Evidence) -> Judgement:
    """What may be proposed. The promises are a decision quorum already (or forced)."""
    quorums = Quorums(evidence.configuration)
    # An operator's word stands for the others' loss, not for their votes: the history may have gone on with them.
    if quorums.decision(set(evidence.promises)):
        found = accepted_value(evidence.configuration, evidence.promises)
        if found is not None:
            return _finish(evidence, found)
        if memory_holds(evidence.configuration, evidence.promises):
            view = new_view(evidence)
            if not (evidence.forced and isinstance(view, Wait)):
                return view
    lost = {
        node for node, promise in evidence.promises.items() if promise.standing == LOST
    } | evidence.strangers
    answered = _all_answered(evidence)
    # Where everybody has answered and nobody held the base, there is none to wait for: those that never were synced
    # have not got it, either.
    nowhere = answered and all(one.standing != HELD for one in evidence.promises.values())
    if evidence.forced or nowhere or (quorums.commit(lost) and (answered or evidence.waited)):
        source = max(
            evidence.promises,
            key=lambda node: (*_topics_known(evidence.promises[node], evidence.configuration), -node),
            default=0,
        )
        return NewHistory(source) if source else Wait("nobody who was a member")
    silent = [
        one.node_id
        for one in evidence.configuration.members
        if one.node_id not in evidence.promises and one.node_id not in evidence.strangers
    ]
    names = ", ".join(str(node) for node in silent) or "a node that did not lose what it held"
    return Wait(f"nodes {names}: without them, what was delivered might be lost")


def _topics_known(promise: Promise, configuration: Configuration) -> tuple[int, bool]:
    """How far the topics on a promiser's disk reach. Those of a history that has begun without its promiser are of the
    history before, however far they reached there."""
    began = configuration.topics_digest
    return promise.topics_index, promise.topics_index > 0 or began in (0, promise.topics_digest)


def _finish(evidence: Evidence, value: Configuration) -> Judgement:
    """A view most of whose members have lost their memory meanwhile is finished only once nobody else may answer:
    it would be the end of its history."""
    gone = {
        one.node_id
        for one in value.members
        if one.node_id in evidence.strangers
        or evidence.incarnations.get(one.node_id, one.incarnation) != one.incarnation
    }
    if Quorums(value).commit(gone) and not (_all_answered(evidence) or evidence.waited or evidence.forced):
        return Wait("the rest of the configuration: what was accepted has lost most of its members")
    return Finish(value)


def _all_answered(evidence: Evidence) -> bool:
    answered = evidence.strangers | set(evidence.promises)
    return all(one.node_id in answered for one in evidence.configuration.members)


def accepted_value(configuration: Configuration, promises: dict[int, Promise]) -> Configuration | None:
    """The value that must be finished: of the highest ballot reported, unless it cannot have been decided.

    Reporters are counted by value, whatever ballot each reports it under: those that report this value and those that
    did not promise, together no decision quorum, can neither have decided it nor decide it any more.
    """
    quorums = Quorums(configuration)
    silent = {one.node_id for one in configuration.members if one.node_id not in promises}
    reports = [
        (promise.accepted_ballot, node, promise.accepted)
        for node, promise in promises.items()
        if promise.accepted_ballot is not None and promise.accepted is not None
    ]
    reports.sort(key=lambda report: (report[0], report[1]), reverse=True)
    for _, _, value in reports:
        reporters = {node for _, node, other in reports if other == value}
        if quorums.decision(reporters | silent):
            return value
    return None


def memory_holds(configuration: Configuration, promises: dict[int, Promise]) -> bool:
    """Whether the highest ``held`` among the promises covers all that was committed: somebody held the base, and the
    sequencer, which holds all that it ordered, did; or those that promised neither ``held`` nor that they never
    counted are together too few to have committed anything without one of the others."""
    held = {node for node, promise in promises.items() if promise.standing == HELD}
    if not held:
        return False
    if configuration.sequencer in held:
        return True
    unsynced = {node for node, promise in promises.items() if promise.standing == UNSYNCED}
    gone = {one.node_id for one in configuration.members} - held - unsynced
    return not Quorums(configuration).commit(gone)


def new_view(evidence: Evidence) -> Judgement:
    """The next configuration, by who is linked with whom. The unwanted stay where there would else be none; and where
    no view of those who are here may be, the absent.

    A view that has lost a member goes on without it while the rest may commit, also as no half of the table; bound by
    a promise it would go on no more.
    """
    judgement: Judgement = Wait("")
    for with_absent in (False, True):
        for unwanted in (evidence.unwanted, set()) if evidence.unwanted else (set(),):
            judgement = _view_without(evidence, unwanted, with_absent)
            if not isinstance(judgement, Wait):
                return judgement
    return judgement


def _view_without(evidence: Evidence, unwanted: set[int], with_absent: bool) -> Judgement:
    configuration, promises = evidence.configuration, evidence.promises
    source = max(
        (node for node, promise in promises.items() if promise.standing == HELD),
        key=lambda node: (promises[node].held, node == configuration.sequencer, -node),
    )
    best = promises[source]
    table = dict(best.table) if best.table is not None else configuration.table
    continuing = [
        one
        for one in configuration.members
        if one.node_id in promises
        and promises[one.node_id].standing != LOST
        and one.node_id in table
        and one.node_id not in evidence.leaving
        and one.node_id not in unwanted
    ]
    absent = [
        one
        for one in configuration.members
        if with_absent
        and one not in continuing
        and one.node_id in table
        and one.node_id not in evidence.strangers | evidence.leaving | unwanted
    ]
    if with_absent and evidence.forced and configuration.sequencer in [one.node_id for one in continuing]:
        return Wait("the view would be the one that an operator has given up")
    order_time = max([evidence.order_time, *(promise.order_time for promise in promises.values())])
    refused = "nobody is left that may go on"
    for sequencer in _sequencers(evidence, continuing, best.wanted_sequencer):
        members = [one for one in continuing if _in_star(evidence, sequencer, one.node_id)]
        joining = _joiners(evidence, sequencer, members, table)
        here = [one.node_id for one in members] + [one.node_id for one in joining]
        members += [one for one in absent if one.node_id not in here]
        ids = {*here, *(one.node_id for one in members)}
        if not configuration.last_man_standing and not is_primary(table, ids):
            refused = f"half of the node table's votes: nodes {_listed(set(table) - ids)} are missing"
            continue
        if not sum(table[node] for node in ids):
            refused = "a node with a vote"
            continue
        value = next_configuration(
            configuration, members, joining, table, sequencer.node_id, best.held, order_time
        )
        if with_absent and not Quorums(value).commit(here):
            refused = (
                f"nodes {_listed(ids - set(here))}: those that are here could confirm nothing without them"
            )
            continue
        fault = configuration_fault(value)
        return Propose(value, source) if not fault else Wait(f"numbers that can be counted on: {fault}")
    return Wait(refused)


def _sequencers(evidence: Evidence, continuing: list[Member], wanted: int) -> list[Member]:
    """Who may be the next sequencer, best first: it holds the base of its epoch, so it can get the rest."""
    configuration = evidence.configuration

    def rank(member: Member) -> tuple[int, int, int]:
        promise = evidence.promises[member.node_id]
        present = member.node_id == configuration.sequencer and not promise.resigned
        place = 0 if member.node_id == wanted else 1 if present else 2
        return (
            promise.standing != HELD,
            3 if promise.resigned else place,
            configuration.members.index(member),
        )

    return sorted(continuing, key=rank)


def _in_star(evidence: Evidence, sequencer: Member, node_id: int) -> bool:
    return node_id == sequencer.node_id or evidence.linked(sequencer.node_id, node_id)


def _joiners(
    evidence: Evidence, sequencer: Member, members: list[Member], table: dict[int, int]
) -> list[Candidate]:
    """Learners that are ready; and, where the view would else be no primary, as many others as it takes."""
    present = {one.node_id for one in members}
    possible = [
        one
        for one in evidence.candidates
        if one.node_id in table
        and one.node_id not in present
        and one.node_id not in evidence.leaving
        and one.node_id not in evidence.not_again
        and evidence.linked(sequencer.node_id, one.node_id)
    ]
    joining = [one for one in possible if one.ready]
    for one in possible:
        if is_primary(table, present | {other.node_id for other in joining}):
            break
        if not one.ready:
            joining.append(one)
    return joining


def next_configuration(
    configuration: Configuration,
    members: Iterable[Member],
    joining: list[Candidate],
    table: dict[int, int],
    sequencer: int,
    base: int,
    order_time: int,
) -> Configuration:
    """C_{e+1} of the same history."""
    stay = [
        Member(one.born_on, one.node_id, one.incarnation, one.store_id, table[one.node_id]) for one in members
    ]
    same = not joining and {one.node_id for one in stay} == {one.node_id for one in configuration.members}
    m_sequence = configuration.m_sequence if same else configuration.m_sequence + 1
    stay += [
        Member(m_sequence, one.node_id, one.incarnation, one.store_id, table[one.node_id]) for one in joining
    ]
    stay.sort()
    return Configuration(
        cluster_id=configuration.cluster_id,
        supersedes=configuration.supersedes,
        epoch=configuration.epoch + 1,
        base=base,
        table=table,
        members=stay,
        sequencer=sequencer,
        tie_breaker=next((one.node_id for one in stay if one.votes), stay[0].node_id),
        delivery=configuration.delivery,
        last_man_standing=configuration.last_man_standing,
        version=configuration.version,
        mtu=min([configuration.mtu, *(one.mtu for one in joining)]),
        limits=configuration.limits,
        m_sequence=m_sequence,
        epochs=[*configuration.epochs, (configuration.epoch + 1, base)][-limits.EPOCHS_REMEMBERED :],
        order_time=order_time,
    )


def _listed(nodes: Iterable[int]) -> str:
    return ", ".join(str(node) for node in sorted(nodes))
