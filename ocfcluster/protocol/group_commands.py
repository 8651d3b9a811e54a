"""What ordered commands about groups do, and the views behind which members have gone.

Each change of a group's members is an event of the group's topic, numbered here, at its place in the order.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ocfcluster.protocol.effects import GroupChange, Item, TopicChange
from ocfcluster.protocol.groups import Group, Process
from ocfcluster.wire import control
from ocfcluster.wire.group import GroupMember, LeaveReason

if TYPE_CHECKING:
    from ocfcluster.protocol.state import ReplicatedState

GROUP_OPERANDS = control.GroupOpen | control.GroupJoin | control.GroupLeave


def carry_out(
    state: ReplicatedState,
    operand: control.GroupOpen | control.GroupJoin | control.GroupLeave,
    process: Process,
    order_time: int,
    items: list[Item],
) -> tuple[int, int]:
    """One command of the agent ``process``: (0 or an errno, the group's topic id or the new member's id)."""
    if isinstance(operand, control.GroupLeave):
        return _leave(state, operand, process, order_time, items), 0
    error, group = _open(state, operand.name, items)
    if group is None:
        return error, 0
    if isinstance(operand, control.GroupOpen):
        return 0, group.topic.topic_id
    if state.groups.is_full(group, process[0]):
        return errno.ENOMEM, 0
    return 0, _join(state, group, operand.pid, process, order_time, items)


def depart(state: ReplicatedState, present: set[Process], order_time: int, items: list[Item]) -> None:
    """Behind a view: the members whose agents are not ``present`` leave, one event per group, by topic id."""
    for group, gone in state.groups.departed(present):
        _change(state, group, LeaveReason.NODE_LEFT, (), gone, order_time, items)


def _open(state: ReplicatedState, name: str, items: list[Item]) -> tuple[int, Group | None]:
    before = state.groups.next_id
    error, group, displaced = state.groups.open(name)
    if displaced is not None:
        items.append(TopicChange(displaced.topic, removed=True, last_seq=displaced.last_seq))
    if group is not None and state.groups.next_id != before:
        items.append(TopicChange(group.topic, removed=False))
    return error, group


def _join(
    state: ReplicatedState, group: Group, pid: int, process: Process, order_time: int, items: list[Item]
) -> int:
    node_id, incarnation = process
    member = GroupMember(state.ev_id + 1, node_id, pid)
    state.groups.join(group, member, incarnation)
    _change(state, group, 0, (member,), (), order_time, items)
    return member.member


def _leave(
    state: ReplicatedState, operand: control.GroupLeave, process: Process, order_time: int, items: list[Item]
) -> int:
    found = state.groups.leave(operand.name, operand.member, process)
    if found is None:
        return errno.EINVAL
    group, member = found
    _change(state, group, operand.reason, (), (member,), order_time, items)
    return 0


def _change(
    state: ReplicatedState,
    group: Group,
    reason: int,
    joined: tuple[GroupMember, ...],
    left: tuple[GroupMember, ...],
    order_time: int,
    items: list[Item],
) -> None:
    """The event of a change that the table has taken in."""
    group.last_seq += 1
    state.ev_id += 1
    items.append(
        GroupChange(
            group.topic, group.last_seq, state.ev_id, reason, group.present, joined, left,
            state.m_sequence, order_time,
        )
    )  # fmt: skip
