"""The node table as ordered commands change it: a function of the order and the configuration in force."""

from __future__ import annotations

import errno

import msgspec

from ocfcluster import limits
from ocfcluster.protocol.quorum import is_primary
from ocfcluster.protocol.settings import Configuration, Limits, Member
from ocfcluster.wire import control
from ocfcluster.wire.datagram import STRUCTURE

TABLE_OPERANDS = control.NodeAdd | control.NodeRemove | control.NodeVotes | control.Sequence
_IP_OVERHEAD_BYTES = 48  # of IPv6, the larger: the same answer on every node
_BALLOTS_BYTES = 160  # what a PROMISE has beside the configuration that it carries


def structure_bytes(table: dict[int, int], limits_in_force: Limits) -> int:
    """The most that a message with a configuration of this node table takes: it has to fit one datagram."""
    most, numbers = 2**64 - 1, 2**32 - 1
    largest = Configuration(
        cluster_id="f" * 32, supersedes=["f" * 32] * limits.HISTORIES_REMEMBERED, epoch=numbers, base=most,
        table=table, members=[Member(numbers, numbers, most, most, limits.VOTES_MOST) for _ in table],
        sequencer=numbers, tie_breaker=numbers, delivery="agreed", last_man_standing=False, version=numbers,
        mtu=limits.MTU_MAXIMUM, limits=limits_in_force, m_sequence=numbers,
        epochs=[(numbers, most)] * limits.EPOCHS_REMEMBERED, order_time=most, topics_digest=most,
    )  # fmt: skip
    return STRUCTURE.size + len(msgspec.msgpack.encode(largest)) + _BALLOTS_BYTES + 7 * len(table)


def payload_bytes(mtu: int, ip_overhead_bytes: int) -> int:
    """Room for a message's body in a datagram on links of ``mtu``."""
    return mtu - ip_overhead_bytes - limits.SEAL_BYTES - limits.CLEAR_HEADER_BYTES


class NodeTable:
    """The table of the next configuration, and who is to be its sequencer (0: nobody asked)."""

    __slots__ = ("votes", "wanted_sequencer", "_configuration")

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self.votes = dict(configuration.table)
        self.wanted_sequencer = 0

    @property
    def changed(self) -> bool:
        """Whether commands ask for another configuration."""
        return self.votes != self._configuration.table or self.wanted_sequencer not in (
            0,
            self._configuration.sequencer,
        )

    def apply(self, operand: control.Operand) -> int:
        """Carry out one command; 0 or an errno, the same on every node."""
        configuration = self._configuration
        votes = dict(self.votes)
        if isinstance(operand, control.Sequence):
            if all(member.node_id != operand.node_id for member in configuration.members):
                return errno.EINVAL
            self.wanted_sequencer = operand.node_id
            return 0
        if isinstance(operand, control.NodeAdd):
            if operand.node_id in votes:
                return 0 if votes[operand.node_id] == operand.votes else errno.EEXIST
            votes[operand.node_id] = operand.votes
            room = payload_bytes(configuration.mtu, _IP_OVERHEAD_BYTES)
            if len(votes) > limits.NODES or structure_bytes(votes, configuration.limits) > room:
                return errno.ENOMEM
        elif isinstance(operand, control.NodeRemove):
            if votes.pop(operand.node_id, None) is None:
                return errno.EINVAL
        elif isinstance(operand, control.NodeVotes):
            if operand.node_id not in votes:
                return errno.EINVAL
            votes[operand.node_id] = operand.votes
        else:
            return errno.EINVAL
        rest = [member.node_id for member in configuration.members if member.node_id in votes]
        if not rest or not sum(votes.values()) or not sum(votes[node] for node in rest):
            return errno.EBUSY
        if not configuration.last_man_standing and not is_primary(votes, rest):
            return errno.EBUSY
        self.votes = dict(sorted(votes.items()))
        return 0
