"""The memberships of one connection, sans-IO: from a program's requests, and its end, to ordered commands.

A connection has at most one membership per group. It ends with the connection: whatever is in the order by then, or on
its way there, is taken back by a LEAVE, once.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from ocfcluster.limits import MEMBERSHIPS_PER_NODE
from ocfcluster.wire import control
from ocfcluster.wire.group import LeaveReason

Answer = Callable[[int, int], None]  # errno or 0, the member's id
Command = Callable[[control.Operand, Answer], None]
JOINING: Final = 0  # in the place of a member's id: the JOIN is on its way


class Memberships:
    """``command`` puts an operand into the order, behind what the connection published, and calls its argument with
    (errno or 0, value) at its place there."""

    __slots__ = ("_command", "_pid", "_members", "_leaving", "_ended")

    def __init__(self, command: Command, pid: int) -> None:
        self._command = command
        self._pid = pid
        self._members: dict[str, int] = {}  # name → the member's id, or JOINING
        self._leaving: set[int] = set()  # members whose LEAVE is on its way
        self._ended: LeaveReason | None = None

    def __len__(self) -> int:
        return len(self._members)

    def member(self, name: str) -> int:
        """The id of this connection's member of the group ``name``; 0: it has none."""
        return self._members.get(name, 0)

    def owns(self, member: int) -> bool:
        """Whether a member is this connection's, as far as the order has come."""
        return member in self._leaving or member in self._members.values()

    def join(self, name: str, then: Answer) -> None:
        """Become a member. ``then`` is called at the JOIN's place; at once with EALREADY where the connection has asked
        for the same before and has not left since."""
        if name in self._members:
            then(errno.EALREADY, self._members[name])
            return
        if len(self._members) >= MEMBERSHIPS_PER_NODE:
            then(errno.ENOMEM, 0)
            return
        self._members[name] = JOINING

        def joined(error: int, member: int) -> None:
            if error:
                del self._members[name]
            elif self._ended is not None:  # nobody will ever use it
                del self._members[name]
                self._leave(name, member, self._ended)
            else:
                self._members[name] = member
            then(error, member)

        self._command(control.GroupJoin(name, self._pid), joined)

    def leave(self, name: str, then: Answer) -> None:
        """Be a member no more. ``then`` is called at the LEAVE's place; at once with EINVAL where there is none."""
        member = self._members.get(name, JOINING)
        if member == JOINING:
            then(errno.EINVAL, 0)
            return
        del self._members[name]
        self._leaving.add(member)

        def left(error: int, value: int) -> None:
            self._leaving.discard(member)
            if error == errno.ENOMEM:  # too many commands wait: it is a member still
                if self._ended is not None or name in self._members:  # and nobody else can say that it leaves
                    self._leave(name, member, self._ended or LeaveReason.LEFT)
                else:
                    self._members[name] = member
            then(error, value)

        self._command(control.GroupLeave(name, member, LeaveReason.LEFT), left)

    def end(self, reason: LeaveReason) -> None:
        """The connection is over: all its members leave. Called again it does nothing."""
        if self._ended is not None:
            return
        self._ended = reason
        members = dict(self._members)
        for name, member in members.items():
            if member != JOINING:
                del self._members[name]
                self._leave(name, member, reason)

    def _leave(self, name: str, member: int, reason: LeaveReason) -> None:
        """What must come about, whatever the order is busy with."""
        operand = control.GroupLeave(name, member, reason)
        self._leaving.add(member)

        def left(error: int, _: int) -> None:
            if error == errno.ENOMEM:  # too many commands wait
                self._command(operand, left)
            else:
                self._leaving.discard(member)

        self._command(operand, left)
