"""What nodes say in their datagrams, compared with their disks and with what they have promised.

These rules are the protocol's, not the user's: breaking one harms nobody until several faults come together, which
chance seldom brings about. So they are looked at where they are broken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocfcluster.protocol import messages
from ocfcluster.protocol.messages import HELD, LOST, UNSYNCED, Accept, Accepted, Message, Promise, Sync
from ocfcluster.protocol.settings import Ballot, Configuration
from ocfcluster.simulator import observe
from ocfcluster.simulator.trace import Violation
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.datagram import BODY, MessageFlags, MessageType

if TYPE_CHECKING:
    from ocfcluster.simulator.shell import Shell
    from ocfcluster.simulator.world import World

_VOTES: Final = (MessageType.PROMISE, MessageType.ACCEPTED, MessageType.SYNC, MessageType.ACCEPT)
_COUNTED: Final = (MessageType.ORDER, MessageType.ACK, MessageType.HEARTBEAT)
_LOOKED_AT: Final = frozenset(map(int, (*_VOTES, *_COUNTED)))
_NO_MEMBER: Final = int(MessageFlags.FORMING | MessageFlags.LEARNING)


class Frozen:
    """One incarnation since its first promise in an epoch. ``held`` -1: not said yet."""

    __slots__ = ("epoch", "held")

    def __init__(self, epoch: tuple[str, int]) -> None:
        self.epoch = epoch
        self.held = -1


class Said:
    """Sees every datagram before it is sent."""

    __slots__ = ("_frozen", "_heard", "_on_disk", "_standings", "_world")

    def __init__(self, world: World) -> None:
        self._world = world
        self._frozen: dict[tuple[int, int], Frozen] = {}  # by node_id and incarnation
        self._heard: dict[tuple[int, int], set[tuple[int, int]]] = {}  # as it said last, likewise
        self._on_disk: dict[int, tuple[str, int]] = {}  # node_id → configuration known to be there
        self._standings: dict[tuple[messages.Instance, Ballot], dict[int, int]] = {}  # of those who promised

    def look(self, shell: Shell, buffer: bytes, segment: int) -> None:
        """A node sends this. Raises Violation."""
        for begin in range(0, len(buffer), segment or len(buffer)):
            if buffer[begin + BODY] in _LOOKED_AT:
                self._look(shell, buffer[begin : begin + segment] if segment else buffer)

    def _look(self, shell: Shell, datagram: bytes) -> None:
        kind = MessageType(datagram[BODY])
        if kind in _VOTES:
            message = messages.decode(datagram, kind)
            if isinstance(message, Sync | Accept):
                self._look_at_proposal(shell, message)
            elif isinstance(message, Promise | Accepted):
                self._look_at_vote(shell, message)
        elif kind is MessageType.HEARTBEAT:
            self._look_at_heartbeat(shell, wire.decode_heartbeat(datagram))
        elif kind is MessageType.ACK:
            self._look_at_work(shell, wire.decode_ack(datagram)[1], "acknowledges")
        else:
            order = wire.decode_order(datagram)
            if order.entries and not order.flags & MessageFlags.COPY:
                self._look_at_work(shell, order.epoch, "orders")

    # --- votes --------------------------------------------------------------------------------------------------

    def _configuration(self, vote: Message) -> Configuration | None:
        """C_e of the instance that a message is about."""
        history = self._world.checker.histories.get(vote.cluster_id)
        return history.configurations.get(vote.epoch) if history is not None else None

    def _look_at_proposal(self, shell: Shell, proposal: Sync | Accept) -> None:
        """Nothing is proposed without the promises of a decision quorum, and nothing new is voted on unless a commit
        quorum of it, its sequencer among them, has its base."""
        checker, value = self._world.checker, proposal.configuration
        previous = self._configuration(proposal)
        if previous is None or checker.operators:
            return
        what = f"node {shell.node_id} proposes {value} under {proposal.ballot}"
        if not checker.votes.have_promised(*proposal.instance, proposal.ballot, previous):
            raise Violation("votes", f"{what}, which no decision quorum has promised to")
        other = checker.votes.may_be_decided(*proposal.instance, proposal.ballot, value, previous)
        if other is not None:
            raise Violation("votes", f"{what}, and this may have been decided: {other}")
        if value.cluster_id != proposal.cluster_id or checker.votes.is_accepted(*proposal.instance, value):
            return  # it begins with nothing, or was confirmed once
        self._look_at_memory(shell, proposal, previous, what)
        if not isinstance(proposal, Accept):
            return
        ready = [member for member in value.members if checker.memory.has_held(member, value.base)]
        votes = 2 * sum(member.votes for member in ready)
        if votes <= sum(member.votes for member in value.members) or value.sequencer not in [
            member.node_id for member in ready
        ]:
            raise Violation(
                "votes", f"{what}, of which only nodes {[one.node_id for one in ready]} hold the base"
            )

    def _look_at_memory(
        self, shell: Shell, proposal: Sync | Accept, previous: Configuration, what: str
    ) -> None:
        """Who promised must be sure to know all that was committed."""
        standings = dict(self._standings.get((proposal.instance, proposal.ballot), {}))
        if self._is_member_of(shell, previous):  # what it says to itself is not heard
            held = observe.held_index(shell.node) > previous.base
            standings[shell.node_id] = HELD if held else UNSYNCED
        gone = [member for member in previous.members if standings.get(member.node_id, LOST) == LOST]
        votes = sum(member.votes for member in gone)
        enough = 2 * votes <= sum(member.votes for member in previous.members)
        if HELD not in standings.values() or (standings.get(previous.sequencer) != HELD and not enough):
            raise Violation("memory rule", f"{what}, of those who promised: {standings}")

    def _look_at_standing(self, shell: Shell, promise: Promise, previous: Configuration) -> None:
        """What a promise says of its sender's memory."""
        standings = self._standings.setdefault((promise.instance, promise.ballot), {})
        # A node that has restarted answers the same ballot again, with less: what it said first is still true, and the
        # proposer may not have heard the second.
        standings[shell.node_id] = min(promise.standing, standings.get(shell.node_id, LOST))
        if promise.standing == LOST:
            return
        held, member = observe.held_index(shell.node), self._is_member_of(shell, previous)
        if not member or promise.held > held or (promise.standing == HELD and promise.held <= previous.base):
            raise Violation(
                "votes",
                f"node {shell.node_id}, {'a' if member else 'no'} member of epoch {previous.epoch} with base "
                f"{previous.base}, holds up to {held}, and promises {promise}",
            )

    def _look_at_vote(self, shell: Shell, vote: Promise | Accepted) -> None:
        """No vote is sent that is not on its disk."""
        host = self._world.hosts[shell.node_id]
        previous = self._configuration(vote)
        if isinstance(vote, Promise) and previous is not None:
            self._look_at_standing(shell, vote, previous)
        if previous is not None and not previous.acceptor(shell.node_id, vote.store_id):
            return  # a wiped disk, which says so
        if not observe.remembers(
            host.disk.durable, vote.instance, vote.ballot, accepted=isinstance(vote, Accepted)
        ):
            raise Violation(
                "votes", f"node {shell.node_id} says {type(vote).__name__} {vote.ballot}, not on its disk"
            )
        key, epoch = self._place(shell)
        if (vote.cluster_id, vote.epoch) == epoch and self._is_member_of(shell, shell.node.configuration):
            self._freeze(key, epoch)

    # --- frozen -------------------------------------------------------------------------------------------------

    def _place(self, shell: Shell) -> tuple[tuple[int, int], tuple[str, int]]:
        configuration: Configuration | None = shell.node.configuration
        epoch = ("", 0) if configuration is None else (configuration.cluster_id, configuration.epoch)
        return (shell.node_id, shell.settings.incarnation), epoch

    def _is_member_of(self, shell: Shell, configuration: Configuration | None) -> bool:
        return (
            configuration is not None
            and configuration.member(shell.node_id, shell.settings.incarnation) is not None
        )

    def _freeze(self, key: tuple[int, int], epoch: tuple[str, int]) -> Frozen:
        frozen = self._frozen.get(key)
        if frozen is None or frozen.epoch != epoch:
            frozen = self._frozen[key] = Frozen(epoch)
        return frozen

    def _look_at_work(self, shell: Shell, epoch: int, what: str) -> None:
        """Who has promised does nothing more in its epoch."""
        key, place = self._place(shell)
        frozen = self._frozen.get(key)
        if frozen is not None and frozen.epoch == place and epoch == place[1]:
            raise Violation("frozen", f"node {shell.node_id} {what} in epoch {epoch} after its promise")

    def _look_at_heartbeat(self, shell: Shell, beat: wire.Heartbeat) -> None:
        key, place = self._place(shell)
        self._look_at_sleeper(shell, key, beat)
        if beat.epoch == place[1] and self._on_disk.get(shell.node_id) != place:
            self._look_at_disk(shell, place)
        if beat.flags & _NO_MEMBER or beat.epoch != place[1] or not beat.promised_round:
            return
        frozen = self._freeze(key, place)
        if frozen.held < 0:
            frozen.held = beat.held
        elif beat.held > frozen.held:
            raise Violation(
                "frozen",
                f"node {shell.node_id} counts for {beat.held} in epoch {beat.epoch}, "
                f"and for {frozen.held} when it promised",
            )

    def _look_at_disk(self, shell: Shell, place: tuple[str, int]) -> None:
        """A configuration is on disk before anything is said in its epoch."""
        record = self._world.hosts[shell.node_id].disk.durable
        found = observe.read_record(record).configuration if record else None
        known = ("", 0) if found is None else (found.cluster_id, found.epoch)
        if known != place:
            raise Violation(
                "configuration", f"node {shell.node_id} is in {place}, and has {known} on its disk"
            )
        self._on_disk[shell.node_id] = place

    # --- who slept ----------------------------------------------------------------------------------------------

    def _look_at_sleeper(self, shell: Shell, key: tuple[int, int], beat: wire.Heartbeat) -> None:
        """A node that was stopped for a while does not take the others for gone when it goes on."""
        before = self._heard.get(key, set())
        heard = self._heard[key] = set(beat.heard)
        suspicion = shell.settings.suspicion_ns
        slept = shell.woke_at - shell.paused_at
        if slept < suspicion or not 0 <= self._world.now - shell.woke_at < suspicion // 2:
            return
        present = {node_id for node_id, _ in heard}
        for node_id, incarnation in sorted(before):
            if node_id not in present:
                raise Violation(
                    "suspicion",
                    f"node {shell.node_id} slept for {slept // 1_000_000} ms, and takes node {node_id} "
                    f"({incarnation:#x}) for gone",
                )
