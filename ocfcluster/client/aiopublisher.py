# ruff: noqa: ASYNC109 - the timeouts are those of the blocking API, and raise its errors
"""Publishing with asyncio: in the order of the calls, whatever each has to wait for, and the receipts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Generator, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ocfcluster.client.aioconnection import AsyncConnection, Deadline
from ocfcluster.client.arguments import (
    Data,
    as_bytes,
    as_events,
    as_properties,
    check_re_id,
    check_timeout,
    check_topic,
)
from ocfcluster.client.events import Published, Receipt
from ocfcluster.client.producer import Batch, Producer, largest_of, partly, run_size, split
from ocfcluster.client.session import Stage
from ocfcluster.errors import ClientError, InvalidArgument, NotConnected, OutcomeUnknown, WouldBlock
from ocfcluster.limits import RUN_BYTES
from ocfcluster.wire import frames
from ocfcluster.wire.frames import Request

if TYPE_CHECKING:
    from typing import Self

    from ocfcluster.client.aio import AsyncClient


class AsyncReceipt:
    """What became of the publications of one call: ``await`` it."""

    __slots__ = ("_receipt", "_last", "_connection")

    def __init__(self, receipt: Receipt, last: Batch, connection: AsyncConnection) -> None:
        self._receipt = receipt
        self._last = last
        self._connection = connection

    def __len__(self) -> int:
        return len(self._receipt)

    def done(self) -> bool:
        """Whether the outcome is known."""
        return self._receipt.done()

    def result(self) -> Published:
        """The outcome, which is known. Raises the error with which it was refused."""
        return self._receipt.result()

    async def wait(self, timeout: float | None = None) -> Published:
        """The outcome, after at most ``timeout`` seconds. Raises as ``Receipt.wait``."""
        check_timeout(timeout)
        receipt = self._receipt
        connection = self._connection
        if not receipt.done():
            connection.flush_gathered()
            last = self._last
            await connection.until(lambda: receipt.done() or connection.closed, timeout, last.on_done)
        if not receipt.done():
            raise OutcomeUnknown("the client was closed while the publication was unanswered")
        return receipt.result()

    def __await__(self) -> Generator[Any, None, Published]:
        return self.wait().__await__()


class AsyncPublisher:
    """Publications in one FIFO order. Made by ``AsyncClient.publisher``."""

    def __init__(self, client: AsyncClient, topic: str | None) -> None:
        self._client = client
        self._topic = topic if topic is None else check_topic(topic)
        self._producers: dict[bool, Producer] = {}  # by: for local topics?
        self._closed = False
        # Calls publish in the order in which they were made, whatever each has to wait for: the lock is fair.
        self._order = asyncio.Lock()
        self._in_order = 0  # calls that have the lock, or wait for it

    async def publish(
        self,
        data: Data,
        *,
        topic: str | None = None,
        re_id: int = 0,
        properties: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> AsyncReceipt:
        """Publish one event; waits while the window is full, at most ``timeout`` seconds.

        What is published in one turn of the loop goes into one run, but for the first of an idle client, which goes
        out at once. Raises as the blocking ``publish``, never WouldDeadlock.
        """
        data = as_bytes(data)
        encoded = as_properties(properties)
        check_re_id(re_id)
        check_timeout(timeout)
        connection = self._client.connection()
        if not self._in_order:  # the fast way: nobody is before this call, and it has nothing to wait for
            batch = self._gathering(connection, topic, re_id, encoded, len(data))
            if batch is not None:
                connection.check_size(len(data))
                return AsyncReceipt(Receipt(batch.alone, batch.join(data), 1), batch, connection)
        deadline = Deadline(timeout)
        async with self._turn(deadline):
            info, producer = await self._prepare(connection, topic, deadline)
            connection.check_size(len(data))
            batch = producer.gathering
            if batch is not None and batch.joins(info.topic_id, re_id, encoded, len(data)):
                return AsyncReceipt(Receipt(batch.alone, batch.join(data), 1), batch, connection)
            if batch is not None:
                connection.flush_gathered()
            size = run_size(1, len(data), encoded)
            room = max(size, RUN_BYTES)
            while not producer.has_room(room):
                info, producer = await self._wait_for_room(connection, topic, producer, room, deadline)
                connection.check_size(len(data))
            batch = Batch(connection, info.topic, info.topic_id, re_id, encoded, [data], size)
            producer.gathering = batch
            if size >= RUN_BYTES or not producer.unanswered:
                connection.flush_gathered()
            else:
                connection.flush_soon()
            return AsyncReceipt(Receipt(batch.alone, 0, 1), batch, connection)

    async def publish_many(
        self,
        datas: Iterable[Data],
        *,
        topic: str | None = None,
        re_id: int = 0,
        properties: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> AsyncReceipt:
        """Publish the events of a list, in full runs: the fast way. One receipt for all.

        Errors as those of the blocking ``publish_many``.
        """
        events = as_events(datas)
        encoded = as_properties(properties)
        check_re_id(re_id)
        check_timeout(timeout)
        connection = self._client.connection()
        deadline = Deadline(timeout)
        cuts = split(events, encoded)
        batches: list[Batch] = []
        async with self._turn(deadline):
            info, producer = await self._prepare(connection, topic, deadline)
            largest = largest_of(events, cuts, min(RUN_BYTES, connection.session.event_bytes))
            connection.check_size(largest)
            for begin, end, size in cuts:
                try:
                    while not producer.has_room(size):
                        info, producer = await self._wait_for_room(
                            connection, topic, producer, size, deadline
                        )
                        connection.check_size(largest)
                except ClientError as error:
                    raise partly(error, begin, len(events)) from None
                connection.flush_gathered()
                batch = Batch(connection, info.topic, info.topic_id, re_id, encoded, events[begin:end], size)
                producer.queue(batch, time.time_ns())
                connection.session.publish(producer, batch)
                connection.flush_output()
                batches.append(batch)
        return AsyncReceipt(Receipt(tuple(batches), 0, len(events)), batches[-1], connection)

    @contextlib.asynccontextmanager
    async def _turn(self, deadline: Deadline) -> AsyncIterator[None]:
        """After all calls that were made before. Raises WouldBlock where it is not this one's turn in time."""
        self._in_order += 1
        try:
            try:
                async with asyncio.timeout(deadline.left()):
                    await self._order.acquire()
            except TimeoutError:
                raise WouldBlock("what was to be published before is not out in the time given") from None
            try:
                yield
            finally:
                self._order.release()
        finally:
            self._in_order -= 1

    def _gathering(
        self, connection: AsyncConnection, topic: str | None, re_id: int, encoded: bytes, size: int
    ) -> Batch | None:
        """What gathers and has a place for this publication; None where there is something to look at first."""
        info = connection.session.topics.get(topic if topic is not None else self._topic or "")
        producer = self._producers.get(info.local) if info is not None else None
        if info is None or producer is None or self._closed or connection.closed:
            return None
        batch = producer.gathering
        joins = batch is not None and producer.id and batch.joins(info.topic_id, re_id, encoded, size)
        return batch if joins else None

    async def _prepare(
        self, connection: AsyncConnection, topic: str | None, deadline: Deadline
    ) -> tuple[frames.Topic, Producer]:
        """The topic, and an open producer for its scope, as they are now."""
        name = topic if topic is not None else self._topic
        if name is None:
            raise InvalidArgument("publish needs a topic")
        session = connection.session
        while True:
            if self._closed:
                raise NotConnected("the publisher is closed")
            connection.check_open()
            info = session.topics.get(name)
            if info is None:  # also where the history ended behind the answer
                body = frames.TopicResolve(check_topic(name))
                await connection.call(Request.TOPIC_RESOLVE, body, deadline.left())
                continue
            producer = self._producers.get(info.local)
            if producer is None:
                producer = self._producers[info.local] = session.add_producer(info.local)
            if producer.id:
                return info, producer
            await self._open(connection, producer, deadline)  # whoever waited looks again what the topic is

    async def _open(self, connection: AsyncConnection, producer: Producer, deadline: Deadline) -> None:
        connection.session.open(producer)
        connection.flush_output()
        await connection.until(lambda: bool(producer.id) or not producer.opening, deadline.left())
        if producer.refusal is not None:
            raise producer.refusal

    async def _wait_for_room(
        self,
        connection: AsyncConnection,
        topic: str | None,
        producer: Producer,
        size: int,
        deadline: Deadline,
    ) -> tuple[frames.Topic, Producer]:
        """Until there is room, and then ``_prepare``: the history may have ended meanwhile, and the topic with it."""
        session = connection.session
        await connection.until(
            lambda: producer.has_room(size) or session.stage is Stage.ENDED, deadline.left()
        )
        return await self._prepare(connection, topic, deadline)

    async def flush(self, timeout: float | None = None) -> None:
        """Until everything published here is answered. Raises WouldBlock."""
        await self._client.connection().flush(list(self._producers.values()), timeout)

    async def close(self, timeout: float | None = 5.0) -> None:
        """Flush, and give the producers back. Raises WouldBlock where ``timeout`` seconds did not suffice: what is
        unanswered then goes on, and its receipts come."""
        if self._closed:
            return
        self._closed = True
        try:
            connection = self._client.connection()
        except NotConnected:
            return  # the client was closed before, and flushed
        try:
            await connection.flush(list(self._producers.values()), timeout)
        finally:
            for producer in self._producers.values():
                if producer in connection.session.producers:
                    connection.session.close_producer(producer)
            connection.flush_output()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
