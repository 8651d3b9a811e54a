# ruff: noqa: ASYNC109 - the timeouts are those of the blocking API, and raise its errors
"""Groups, asyncio: as ``client.group``, on the program's loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from ocfcluster.client.aioconnection import Deadline
from ocfcluster.client.arguments import Data, as_bytes, check_timeout
from ocfcluster.client.events import Event
from ocfcluster.client.group import check_group, check_member, checked_speaker, reply_to, with_receiver
from ocfcluster.client.replies import Collector, Replies
from ocfcluster.errors import NotConnected
from ocfcluster.wire import frames
from ocfcluster.wire.frames import Request
from ocfcluster.wire.group import GroupCode, GroupMember, message

if TYPE_CHECKING:
    from typing import Self

    from ocfcluster.client.aio import AsyncClient, AsyncSubscription
    from ocfcluster.client.aiopublisher import AsyncReceipt


class AsyncGroup:
    """One group, as this client sees it. Made by ``AsyncClient.group``. With ``async with``: joins, and leaves."""

    def __init__(self, client: AsyncClient, name: str) -> None:
        self._client = client
        self.topic = check_group(name)

    @property
    def name(self) -> str:
        """Without ``group:``."""
        return self.topic.removeprefix("group:")

    @property
    def member(self) -> int:
        """The id of this client's member, the ``ev_id`` of its JOIN; 0: it is none at the moment."""
        return self._client.connection().session.memberships.member(self.topic)

    async def join(self, timeout: float | None = None) -> Self:
        """Become a member; it is one when this returns. Raises as ``Group.join``."""
        connection = self._client.connection()
        connection.check_open()
        membership = connection.session.memberships.join(self.topic, connection.session.request)
        connection.flush_output()
        await connection.until(
            lambda: bool(membership.member or membership.refusal) or connection.closed, check_timeout(timeout)
        )
        if membership.refusal is not None:
            raise membership.refusal
        connection.check_open()
        return self

    async def leave(self, timeout: float | None = None) -> None:
        """Be a member no more. What this client cast before comes before its LEAVE. Without a membership: nothing."""
        connection = self._client.connection()
        connection.check_open()
        connection.flush_gathered()
        pending = connection.session.memberships.leave(self.topic, connection.session.request)
        connection.flush_output()
        if pending is not None:
            left = pending
            await connection.until(lambda: left.done, check_timeout(timeout), left.on_done)
            left.result()

    async def members(self, timeout: float | None = None) -> list[GroupMember]:
        """The members as this node knows them now, oldest first. As they change: ``subscribe``."""
        answer: frames.Group = await self._client.connection().call(
            Request.GROUP_SHOW, frames.GroupName(self.topic), timeout
        )
        return [GroupMember._make(one) for one in answer.members]

    def subscribe(self, on_event: Callable[[Event], object] | None = None) -> AsyncSubscription:
        """``AsyncClient.subscribe`` to the group's topic: first who is in it now (MEMBERS), then every event."""
        return self._client.subscribe(self.topic, on_event)

    async def cast(
        self,
        data: Data,
        *,
        re_id: int = 0,
        properties: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> AsyncReceipt:
        """Say something to all members and observers. Who is no member may, too."""
        return await self._say(GroupCode.CAST, data, 0, re_id, properties, timeout)

    async def send(
        self,
        member: int | GroupMember,
        data: Data,
        *,
        re_id: int = 0,
        properties: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> AsyncReceipt:
        """Say something to one member: the others see that it was sent, and not what. As ``Group.send``."""
        to = member.member if isinstance(member, GroupMember) else member
        return await self._say(GroupCode.SEND, data, check_member(to), re_id, properties, timeout)

    async def reply(
        self,
        event: Event,
        data: Data,
        *,
        properties: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> AsyncReceipt:
        """Answer ``event``, a CAST or SEND of this group: to all who got it. For members only."""
        to = reply_to(event, self.topic)
        return await self._say(GroupCode.REPLY, data, to, event.ev_id, properties, timeout)

    async def _say(
        self,
        code: GroupCode,
        data: Data,
        to: int,
        re_id: int,
        properties: Mapping[str, str] | None,
        timeout: float | None,
    ) -> AsyncReceipt:
        data = as_bytes(data)
        properties = with_receiver(properties, to)
        deadline = Deadline(check_timeout(timeout))
        connection = self._client.connection()
        membership = connection.session.memberships.get(self.topic)
        if membership is not None and not membership.member and membership.wanted:
            wanted = membership
            await connection.until(
                lambda: bool(wanted.member or wanted.refusal) or connection.closed, deadline.left()
            )
        member = checked_speaker(code, self.member, self.topic)
        return await self._client.publish(
            self.topic, message(code, member, data, to),
            re_id=re_id, properties=properties, timeout=deadline.left(),
        )  # fmt: skip

    async def request(
        self,
        data: Data,
        timeout: float | None = None,
        *,
        properties: Mapping[str, str] | None = None,
    ) -> Replies:
        """Cast ``data`` and collect a reply from each member that it was delivered to, but this client's own.
        As ``Group.request``."""
        deadline = Deadline(check_timeout(timeout))
        async with self.subscribe() as events:
            receipt = await self.cast(data, properties=properties, timeout=deadline.left())
            published = await receipt.wait(deadline.left())
            collector = Collector(published.ev_id)
            with contextlib.suppress(NotConnected):
                while not collector.done:
                    event = await events.get(deadline.left())
                    if event is None:
                        break
                    collector.take(event)
            return collector.result()

    async def __aenter__(self) -> Self:
        return await self.join()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(NotConnected):
            await self.leave()

    def __repr__(self) -> str:
        return f"<AsyncGroup {self.name!r}>"
