"""A client's part in groups, sans-IO: what it asks for on each connection, and what it is by that.

A membership ends with its connection. A client that resumes joins again on the next one, as another member: the others
see LEAVE and JOIN. What it said as the member that it was, and what is not answered yet, goes out again as said by no
member: the order may have a LEAVE before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ocfcluster.client.pending import Pending
from ocfcluster.client.producer import Batch, change_events
from ocfcluster.errors import ClientError, NotConnected
from ocfcluster.wire import frames
from ocfcluster.wire.frames import Request
from ocfcluster.wire.group import is_group, said_by


@dataclass(slots=True, eq=False)
class Membership:
    """This client's part in one group."""

    topic: str
    member: int = 0  # 0: not at the moment
    wanted: bool = True  # it is to be a member, on each connection
    refusal: ClientError | None = None  # why it is none
    joining: Pending | None = None
    leaving: Pending | None = None


class Memberships:
    """All of a client's. ``stale``: a membership has ended, and publications that are still to be sent may name it."""

    __slots__ = ("stale", "_by_topic", "_leaving")

    def __init__(self) -> None:
        self.stale = False
        self._by_topic: dict[str, Membership] = {}
        self._leaving: list[Pending] = []  # of memberships that may have been replaced already

    def get(self, topic: str) -> Membership | None:
        return self._by_topic.get(topic)

    def member(self, topic: str) -> int:
        """The id of this client's member of the group; 0: it has none at the moment."""
        membership = self._by_topic.get(topic)
        return 0 if membership is None else membership.member

    def join(self, topic: str, ask: Callable[[Request, frames.Body], Pending]) -> Membership:
        """Be a member from now on. It is one as soon as ``member`` is set, or is none where ``refusal`` is."""
        membership = self._by_topic.get(topic)
        if membership is None or not membership.wanted:
            membership = self._by_topic[topic] = Membership(topic)
        if not membership.member and membership.joining is None:
            membership.refusal = None
            self._watch(membership, ask(Request.GROUP_JOIN, frames.GroupName(topic)))
        return membership

    def _watch(self, membership: Membership, pending: Pending) -> None:
        membership.joining = pending
        pending.on_done.append(lambda: self._joined(membership, pending))

    def _joined(self, membership: Membership, pending: Pending) -> None:
        if membership.joining is not pending:
            return
        membership.joining = None
        if isinstance(pending.answer, frames.Group):
            # Where it is being left already, what is said now comes behind the LEAVE.
            membership.member = pending.answer.member if membership.wanted else 0
        else:
            membership.refusal = pending.error
            self._forget(membership)

    def leave(self, topic: str, ask: Callable[[Request, frames.Body], Pending]) -> Pending | None:
        """Be a member no more; None where nobody needs to be told: there is no member, or no connection with it."""
        membership = self._by_topic.get(topic)
        if membership is None:
            return None
        membership.wanted = False
        if membership.leaving is not None:
            return membership.leaving
        if membership.joining is None and not membership.member:
            self._forget(membership)
            return None
        pending = membership.leaving = ask(Request.GROUP_LEAVE, frames.GroupName(topic))
        self._leaving.append(pending)
        member, membership.member = membership.member, 0  # what is said from here on comes behind the LEAVE
        self.stale = True
        pending.on_done.append(lambda: self._left(membership, pending, member))
        return pending

    def _left(self, membership: Membership, pending: Pending, member: int) -> None:
        membership.leaving = None
        self._leaving.remove(pending)
        if pending.error is None:
            self._end(membership, NotConnected(f"{membership.topic!r} was left before it was joined"))
        elif self._by_topic.get(membership.topic) is membership:
            membership.member, membership.wanted = member, True

    def _forget(self, membership: Membership) -> None:
        membership.member = 0
        if self._by_topic.get(membership.topic) is membership:
            del self._by_topic[membership.topic]

    # --- connections come and go ----------------------------------------------------------------------------------

    def lost(self) -> None:
        """The connection is lost, and all that was a member by it."""
        for pending in list(self._leaving):
            pending.finish(None, None)
        for membership in list(self._by_topic.values()):
            self.stale = self.stale or bool(membership.member)
            membership.member = 0

    def _end(self, membership: Membership, error: ClientError) -> None:
        joining, membership.joining = membership.joining, None
        membership.refusal = error
        self._forget(membership)
        if joining is not None and not joining.done:
            joining.finish(None, error)

    def ask_again(self, put: Callable[[Pending], object]) -> None:
        """On a new connection: join what is wanted."""
        for membership in self._by_topic.values():
            pending = membership.joining
            if pending is None:
                pending = Pending(Request.GROUP_JOIN, frames.GroupName(membership.topic), None)
                self._watch(membership, pending)
            put(pending)

    def history_ended(self, error: ClientError) -> None:
        """The groups of this history are no more. What was asked for and not answered is asked in the next one."""
        for membership in list(self._by_topic.values()):
            if membership.joining is None:
                self._end(membership, error)

    def ended(self, error: ClientError) -> None:
        """Nothing more will come."""
        for membership in list(self._by_topic.values()):
            self._end(membership, error)

    def stamp(self, batch: Batch) -> None:
        """What a member that is none any more says in it, is said by the one that this client is now, or by none."""
        if is_group(batch.topic):
            member = self.member(batch.topic)
            change_events(batch, lambda data: said_by(data, member))
