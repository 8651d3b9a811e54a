"""Groups, blocking: join, leave, cast, send, reply, and requests whose last reply is known.

>>> with client.group("workers") as group, group.subscribe() as events:     # doctest: +SKIP
...     group.cast(b"hello")
...     for event in events:
...         print(open_event(event))
<GroupEvent MEMBERS: members 17>
<GroupEvent CAST: member 17, 5 bytes>

A group needs no creation. Its events are those of the topic ``group:NAME``, to which anybody may subscribe.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from ocfcluster.client.arguments import Data, as_bytes, check_timeout, check_topic
from ocfcluster.client.connection import Connection, deadline_of
from ocfcluster.client.events import Event, Receipt
from ocfcluster.client.replies import Collector, Replies, open_event
from ocfcluster.errors import InvalidArgument, Malformed, NotConnected, WouldBlock
from ocfcluster.wire import frames
from ocfcluster.wire.frames import Request
from ocfcluster.wire.group import RESERVED_KEYS, TO_PROPERTY, GroupCode, GroupMember, group_topic, message

if TYPE_CHECKING:
    from typing import Self

    from ocfcluster.client.client import Client, Subscription

__all__ = ["Collector", "Group", "Replies", "check_group", "open_event"]


class Group:
    """One group, as this client sees it. Made by ``Client.group``; every method is thread-safe.

    A client is at most one member of a group; several Group objects of one name stand for the same membership.
    As a context manager: joins, and leaves at the end.
    """

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self.topic = check_group(name)

    @property
    def name(self) -> str:
        """Without ``group:``."""
        return self.topic.removeprefix("group:")

    # --- membership ---------------------------------------------------------------------------------------------

    @property
    def member(self) -> int:
        """The id of this client's member, the ``ev_id`` of its JOIN; 0: it is none at the moment."""
        return self._client.connection().session.memberships.member(self.topic)

    def join(self, timeout: float | None = None) -> Self:
        """Become a member; it is one when this returns. Nothing changes where it is one already.

        With ``resume`` the client joins again on every later connection, as another member. Raises LimitReached,
        NotPermitted, WouldBlock (it may still become one).
        """
        connection = self._client.connection()
        with connection.lock:
            connection.check_open()
            membership = connection.session.memberships.join(self.topic, connection.session.request)
            connection.flush_output()
            done = connection.wait_until(
                lambda: bool(membership.member or membership.refusal) or connection.closed,
                deadline_of(timeout),
            )
            if membership.refusal is not None:
                raise membership.refusal
            if not done:
                raise WouldBlock(f"not joined to {self.topic!r} in the time given")
            connection.check_open()
        return self

    def leave(self, timeout: float | None = None) -> None:
        """Be a member no more. What this client cast before comes before its LEAVE. Without a membership: nothing."""
        connection = self._client.connection()
        with connection.lock:
            connection.check_open()
            pending = connection.session.memberships.leave(self.topic, connection.leaves)
            connection.flush_output()
            if pending is None:
                return
            if not connection.wait_until(lambda: pending.done, deadline_of(timeout)):
                raise WouldBlock(f"{self.topic!r} was not left in the time given")
            pending.result()

    def members(self, timeout: float | None = None) -> list[GroupMember]:
        """The members as this node knows them now, oldest first. As they change: ``subscribe``."""
        answer: frames.Group = self._client.connection().call(
            Request.GROUP_SHOW, frames.GroupName(self.topic), timeout
        )
        return [GroupMember._make(one) for one in answer.members]

    def subscribe(
        self, on_event: Callable[[Event], object] | None = None, *, timeout: float | None = None
    ) -> Subscription:
        """``Client.subscribe`` to the group's topic: first who is in it now (MEMBERS), then every event."""
        return self._client.subscribe(self.topic, on_event, timeout=timeout)

    # --- messages -----------------------------------------------------------------------------------------------

    def cast(
        self,
        data: Data,
        *,
        re_id: int = 0,
        properties: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """Say something to all members and observers. Who is no member may, too. As ``Client.publish``."""
        return self._say(GroupCode.CAST, data, 0, re_id, properties, timeout)

    def send(
        self,
        member: int | GroupMember,
        data: Data,
        *,
        re_id: int = 0,
        properties: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """Say something to one member: the others see that it was sent, and not what. For members only.

        The receipt raises NoSuchMember where there is no such member at its place in the order.
        """
        to = member.member if isinstance(member, GroupMember) else member
        return self._say(GroupCode.SEND, data, check_member(to), re_id, properties, timeout)

    def reply(
        self,
        event: Event,
        data: Data,
        *,
        properties: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """Answer ``event``, a CAST or SEND of this group: to all who got it. For members only."""
        return self._say(GroupCode.REPLY, data, reply_to(event, self.topic), event.ev_id, properties, timeout)

    def _say(
        self,
        code: GroupCode,
        data: Data,
        to: int,
        re_id: int,
        properties: Mapping[str, str] | None,
        timeout: float | None,
    ) -> Receipt:
        data = as_bytes(data)
        properties = with_receiver(properties, to)
        deadline = deadline_of(timeout)
        member = self._speaker(self._client.connection(), code, deadline)
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        return self._client.publish(
            self.topic, message(code, member, data, to), re_id=re_id, properties=properties, timeout=left
        )

    def _speaker(self, connection: Connection, code: GroupCode, deadline: float | None) -> int:
        """The member who speaks. One that is to be a member again waits until it is."""
        with connection.lock:
            membership = connection.session.memberships.get(self.topic)
            if membership is not None and not membership.member and membership.wanted:
                done = connection.wait_until(
                    lambda: bool(membership.member or membership.refusal) or connection.closed, deadline
                )
                if not done:
                    raise WouldBlock(f"not joined to {self.topic!r} again in the time given")
            return checked_speaker(code, 0 if membership is None else membership.member, self.topic)

    # --- requests -----------------------------------------------------------------------------------------------

    def request(
        self,
        data: Data,
        timeout: float | None = None,
        *,
        properties: Mapping[str, str] | None = None,
    ) -> Replies:
        """Cast ``data`` and collect a reply from each member that it was delivered to, but this client's own.

        Returns when the last possible reply has come (each has replied, or left), or after ``timeout`` seconds, with
        who is ``missing`` then. Raises WouldBlock where the cast itself is not delivered in time.
        """
        check_timeout(timeout)
        deadline = deadline_of(timeout)

        def left() -> float | None:
            return None if deadline is None else max(0.0, deadline - time.monotonic())

        with self.subscribe(timeout=left()) as events:
            receipt = self.cast(data, properties=properties, timeout=left())
            published = receipt.wait(left())
            collector = Collector(published.ev_id)
            with contextlib.suppress(NotConnected):
                while not collector.done:
                    event = events.get(left())
                    if event is None:
                        break
                    collector.take(event)
            return collector.result()

    # --- the end ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self.join()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(NotConnected):
            self.leave()

    def __repr__(self) -> str:
        return f"<Group {self.name!r}>"


# --- what both shells ask of arguments --------------------------------------------------------------------------


def check_group(name: object) -> str:
    """The topic of the group ``name``. Raises InvalidArgument."""
    if not isinstance(name, str):
        raise InvalidArgument(f"a group is named by a str, not {type(name).__name__}")
    topic = check_topic(group_topic(name))
    if topic == "group:":
        raise InvalidArgument("a group needs a name")
    return topic


def check_member(member: object) -> int:
    """The id of a member. Raises InvalidArgument."""
    if not isinstance(member, int) or not 0 < member < 1 << 63:
        raise InvalidArgument(f"a member is named by its id, the ev_id of its JOIN, not {member!r:.80}")
    return member


def with_receiver(properties: Mapping[str, str] | None, to: int) -> Mapping[str, str] | None:
    """A message's properties, with whom it is for. Raises InvalidArgument."""
    if properties is not None and any(str(key).startswith(RESERVED_KEYS) for key in properties):
        raise InvalidArgument(f"properties whose keys begin with {RESERVED_KEYS!r} belong to the cluster")
    if not to:
        return properties
    return {TO_PROPERTY: str(to)} if properties is None else {**properties, TO_PROPERTY: str(to)}


def reply_to(event: object, topic: str) -> int:
    """Whom an answer to ``event`` is for: 0, all; or the sender of what was for this member alone."""
    if not isinstance(event, Event) or event.topic != topic:
        raise InvalidArgument(f"what is answered is an event of {topic!r}")
    try:
        opened = open_event(event)
    except Malformed as error:
        raise InvalidArgument(f"nothing that could be answered: {error}") from None
    if opened.code not in (GroupCode.CAST, GroupCode.SEND, GroupCode.REPLY) or opened.withheld:
        raise InvalidArgument(f"an answer to {opened!r}: only what was said to this client can be answered")
    if opened.to and not opened.member:
        raise InvalidArgument(
            "the member who sent this had left before it was delivered: nobody can be answered"
        )
    return opened.member if opened.to else 0


def checked_speaker(code: GroupCode, member: int, topic: str) -> int:
    """``member``, which may be 0 for casts alone. Raises InvalidArgument."""
    if not member and code is not GroupCode.CAST:
        raise InvalidArgument(f"only members of {topic!r} send and reply: join it first")
    return member
