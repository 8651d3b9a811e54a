"""The publisher library: what a component of the cluster stands on, built in or your own.

A *component* publishes what a reserved topic (``oc.``…) says. It runs beside the agent of its node, as root or as the
user whom the agent runs as, and publishes for that node alone. Subclass :class:`Component`, say in ``check`` what the
topic's data has to be, and override the hooks; ``docs/publishers.md`` has a complete one.

There are three ways to publish, and each refuses data that ``check`` does not take, here and at the agent's door:

- ``publish``: an event in the one order of the cluster, on every node. Gives a receipt; waits while the window is full.
- ``notify``: to the subscribers on this node alone, outside of the order. Works also in a minority.
- ``place``: for a topic whose places the order itself gives (``oc.membership``): what stands at one of them.

For state, of which only the newest matters, there is a fourth: ``changed(key)`` asks for it, ``state(key)`` gives it
when it is to go out, and ``told(key)`` confirms it. Between two rounds at least ``interval_s`` pass, at most one
publication is under way, and what changes meanwhile is told together and counted: a flapping source neither floods the
order nor piles up here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import ClassVar, Final

from ocfcluster.client.aio import AsyncClient, AsyncSubscription
from ocfcluster.client.aiopublisher import AsyncReceipt
from ocfcluster.client.arguments import Data, as_bytes
from ocfcluster.client.controlsocket import Dial
from ocfcluster.client.events import Event, Notice
from ocfcluster.client.session import Stage
from ocfcluster.errors import (
    AgentUnreachable,
    InvalidArgument,
    Malformed,
    NotConnected,
    OutcomeUnknown,
    Refused,
    WouldBlock,
)
from ocfcluster.limits import RECONNECT_FIRST_NS, RECONNECT_MAX_NS, REPORT_INTERVAL_NS, SECOND_NS
from ocfcluster.wire import frames
from ocfcluster.wire.frames import Request

log = logging.getLogger("ocfcluster.component")
# What passes: the agent restarts, or has not noticed yet that the component before is gone.
_PASSING: Final = (AgentUnreachable, NotConnected, OutcomeUnknown, Refused, WouldBlock)


class Component:
    """Publishes to ``topic`` for one node, from ``run`` until ``stop``; goes on with the next agent after this one's.

    Everything belongs to the loop in which ``run`` is awaited, the hooks too. While there is no agent, and before
    ``on_start``, nothing can be published (NotConnected).
    """

    topic: ClassVar[str] = ""
    hears: ClassVar[tuple[str, ...]] = ()  # topics whose events come to ``on_event``, in one order

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        *,
        interval_s: float = REPORT_INTERVAL_NS / SECOND_NS,
        dial: Dial | None = None,
    ) -> None:
        """``socket``: the agent's, as of ``connect``. ``dial``: makes the connection to one that has no path."""
        self.interval_s = interval_s
        self.published = (
            0  # receipts of state that came, notifications and places, since the component was made
        )
        self.connection = 0  # number of the connection to the agent, in its status and logs; 0: there is none
        self.coalesced = 0  # changes that were told together with a later one
        self._socket = socket
        self._dial = dial
        self._client: AsyncClient | None = None
        self._stop_wanted = asyncio.Event()
        self._changes: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._ordered = asyncio.Event()
        self._unordered = asyncio.Event()
        self._ordered.set()
        self._sending: asyncio.Task[None] | None = None

    # --- what a component is ------------------------------------------------------------------------------------

    def check(self, data: bytes) -> object:
        """Raise Malformed or ValueError, with what is wrong, unless ``data`` is an event of the topic."""
        raise NotImplementedError

    async def on_start(self) -> None:
        """There is an agent (again), and nothing of this component has been told to it yet."""

    async def on_event(self, event: Event) -> None:
        """An event of the topics in ``hears``."""

    async def on_notice(self, notice: Notice) -> None:
        """What else the subscription was told, a gap say."""

    async def on_lost(self, reason: str) -> None:
        """The agent is gone; ``on_start`` comes when there is one again. What had no receipt may be lost."""

    async def work(self) -> None:
        """Runs beside ``on_event`` while there is an agent; cancelled when it goes. Returning early is no end."""

    def state(self, key: str, coalesced: int) -> bytes | None:
        """What is to be told of ``key`` now; None: nothing. ``coalesced`` changes are told along with the last one."""
        raise NotImplementedError

    def told(self, key: str) -> None:
        """What ``state(key)`` gave last was delivered to the subscribers (all, or those on this node)."""

    # --- life ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until ``stop``. Raises what does not pass by itself: NotPermitted, UnknownTopic, InvalidArgument,
        and whatever a hook raises."""
        back_off_ns = RECONNECT_FIRST_NS
        while not self._stop_wanted.is_set():
            try:
                await self._serve()
                reason = ""
            except _PASSING as error:
                reason = error.strerror or str(error)
            if self._client is not None:
                self._client = None
                back_off_ns = RECONNECT_FIRST_NS
                await self.on_lost(reason)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(back_off_ns / SECOND_NS):
                    await self._stop_wanted.wait()
            back_off_ns = min(2 * back_off_ns, RECONNECT_MAX_NS)

    def stop(self) -> None:
        """End in order: what is under way is answered first, for at most 5 s."""
        self._stop_wanted.set()

    async def _serve(self) -> None:
        """From one connection to its end. Returns where the component is told to stop."""
        client = AsyncClient(self._socket, name=f"component {self.topic}", resume=False, dial=self._dial)
        await client.connect_once()
        welcome = client.connection().session.welcome
        self.connection = 0 if welcome is None else welcome.connection
        tasks: list[asyncio.Task[None]] = []
        orderly = False
        try:
            subscription = await client.subscribe(self.hears) if self.hears else None
            self._client = client
            self._changes.clear()
            self.set_ordered(True)
            await self.on_start()
            loop = asyncio.get_running_loop()
            stopping = loop.create_task(_wait(self._stop_wanted))
            tasks += [stopping, loop.create_task(self._work()), loop.create_task(self._tell())]
            if subscription is not None:
                tasks.append(loop.create_task(self._listen(subscription)))
            else:
                tasks.append(loop.create_task(_until_lost(client)))
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done() and task is not stopping:
                    task.result()  # raises: none of them returns
            orderly = True
        finally:
            self.connection = 0
            if self._sending is not None:
                tasks.append(self._sending)
                self._sending = None
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if orderly:
                await client.close()
            else:
                client.abandon()

    async def _listen(self, subscription: AsyncSubscription) -> None:
        reason = "the subscription has ended"
        async for event in subscription:
            notice = event.notice
            if notice is None:
                await self.on_event(event)
            elif notice.final:
                reason = notice.reason or notice.name
            else:
                await self.on_notice(notice)
        raise NotConnected(reason)

    async def _work(self) -> None:
        await self.work()
        await asyncio.Event().wait()

    # --- publishing ---------------------------------------------------------------------------------------------

    @property
    def client(self) -> AsyncClient:
        """The connection to the agent, for whatever else a component needs. Raises NotConnected."""
        if self._client is None:
            raise NotConnected(f"the component of {self.topic} has no agent")
        return self._client

    def _checked(self, data: Data) -> bytes:
        data = as_bytes(data)
        try:
            self.check(data)
        except (Malformed, ValueError) as error:
            raise InvalidArgument(f"no event of {self.topic}: {error}") from None
        return data

    async def publish(self, data: Data) -> AsyncReceipt:
        """Publish in the order of the cluster. Raises InvalidArgument (no event of the topic), NotConnected; the
        receipt tells what the agent or the cluster refused."""
        return await self.client.publish(self.topic, self._checked(data))

    async def notify(self, data: Data) -> None:
        """Tell the subscribers on this node, with the flag LOCAL and the seq of the topic's last event."""
        await self._report(frames.Report(self.topic, self._checked(data)))

    async def place(self, seq: int, data: Data) -> None:
        """Say what stands at the place ``seq`` of the topic. Places come in their order, each once; one that has its
        event already is left as it is. Raises InvalidArgument."""
        await self._report(frames.Report(self.topic, self._checked(data), seq))

    async def _report(self, report: frames.Report) -> None:
        await self.client.connection().call(Request.REPORT, report, None)
        self.published += 1

    # --- state --------------------------------------------------------------------------------------------------

    @property
    def ordered(self) -> bool:
        """Whether state is published in the order; else it is notified, to this node's subscribers alone."""
        return self._ordered.is_set()

    def set_ordered(self, ordered: bool) -> None:
        """Say that this node is in a majority, or in none: state that is under way then is notified as well."""
        now, before = (self._ordered, self._unordered) if ordered else (self._unordered, self._ordered)
        before.clear()
        now.set()

    def changed(self, key: str, times: int = 1) -> None:
        """The state of ``key`` is another one, ``times`` times since this was said last. With 0 it is asked for
        though it may be the same."""
        self._changes[key] = self._changes.get(key, 0) + times
        self._wake.set()

    async def _tell(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self.interval_s  # by then what is retained has come, and ``state`` can look at it
        while True:
            await self._wake.wait()
            await asyncio.sleep(max(0.0, due - loop.time()))
            due = loop.time() + self.interval_s
            self._wake.clear()
            changes, self._changes = self._changes, {}
            for key, times in changes.items():
                together = max(0, times - 1)
                data = self.state(key, together)
                self.coalesced += together
                if data is None:
                    continue
                if not self.ordered:
                    await self.notify(data)
                elif not await self._send(data):
                    self.changed(key, times)
                    continue
                self.told(key)

    async def _send(self, data: bytes) -> bool:
        """Publish ``data``; False where this node is in no majority before it was delivered (it is, later)."""
        loop = asyncio.get_running_loop()
        unordered = loop.create_task(_wait(self._unordered))
        try:
            while True:
                sending, mine = self._sending, False
                if sending is None:
                    sending, mine = loop.create_task(self._publish_and_wait(data)), True
                    self._sending = sending
                await asyncio.wait((sending, unordered), return_when=asyncio.FIRST_COMPLETED)
                if not sending.done():
                    return False
                self._sending = None
                if mine:
                    sending.result()
                    return True
                if sending.exception() is not None:  # of before; what is told now is newer
                    log.debug("%s: %s", self.topic, sending.exception())
        finally:
            unordered.cancel()

    async def _publish_and_wait(self, data: bytes) -> None:
        await (await self.publish(data))
        self.published += 1


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def _until_lost(client: AsyncClient) -> None:
    connection = client.connection()
    await connection.until(lambda: connection.closed or connection.session.stage is Stage.ENDED, None)
    raise NotConnected("the agent is gone")
