"""A minimal agent for tests of the client library: one process, one thread, the real frames.

``Cluster`` is what outlives an agent (topics, producers, counters); a FakeAgent serves it on a socket until it is
stopped, in order or abruptly. Faults are attributes: ``hold_receipts``, ``drop_publish`` and so on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import struct
import threading
import time
from collections import deque
from typing import Any, Self

from ocfcluster.limits import EVENT_BYTES_DEFAULT, RECORD_HEADER_BYTES, RUN_BYTES
from ocfcluster.wire import frames
from ocfcluster.wire.frames import (
    CONTROL_HEADER,
    EVENT_HEADER,
    LOCAL_ID,
    RECEIPT,
    RECORD_HEADER,
    Answer,
    RecordKind,
    Request,
    control_frame,
)
from ocfcluster.wire.run import RunKind, build_run, check_run


class Cluster:
    """The replicated state, as far as a client sees it."""

    def __init__(self, cluster_id: str = "history-1") -> None:
        self.cluster_id = cluster_id
        self.topics: dict[str, frames.Topic] = {}
        self.seq: dict[int, int] = {}
        self.ev_id = 0
        self.next_topic = 16
        self.next_producer = 100
        self.next_number: dict[int, int] = {}
        self.outcomes: dict[tuple[int, int], tuple[int, int, int]] = {}
        self.log: list[bytes] = []
        self.incarnation = 7

    def create(self, name: str, local: bool = False) -> frames.Topic:
        if name not in self.topics:
            self.topics[name] = frames.Topic(name, self.next_topic, local, 0)
            self.seq[self.next_topic] = 0
            self.next_topic += 1
        return self.topics[name]

    def open_producer(self, local: bool) -> int:
        self.next_producer += 1
        producer = self.next_producer | (LOCAL_ID if local else 0)
        self.next_number[producer] = 1
        return producer


class Subscriber:
    def __init__(self, client: Peer, body: frames.Subscribe, end: socket.socket) -> None:
        self.client = client
        self.ended = False
        self.id = body.subscription
        self.callback = body.callback
        self.topic_ids: set[int] = set()
        self.end = end
        self.queue: deque[list[bytes]] = deque()  # header and body of each record
        self.out = False


def _token(producer: int) -> bytes:
    return b"token %d" % producer


class Peer:
    def __init__(self, connection: int, stream: socket.socket) -> None:
        self.connection = connection
        self.stream = stream
        self.buffer = bytearray()
        self.descriptors: deque[int] = deque()
        self.output = bytearray()
        self.subscribers: dict[int, Subscriber] = {}
        self.producers: set[int] = set()
        self.turn = 0
        self.waiting: deque[tuple[Subscriber, list[bytes]]] = deque()  # callback frames, in log order
        self.receipts: list[bytes] = []


class FakeAgent:
    def __init__(self, path: str, cluster: Cluster | None = None) -> None:
        self.path = path
        self.cluster = cluster or Cluster()
        self.event_bytes = EVENT_BYTES_DEFAULT
        self.hold_receipts = False
        self.drop_publish = False
        self.deaf = False  # does not read
        self.refuse: dict[str, int] = {}  # topic: errno of its publications
        self.history_gap = False
        self.out_of_line: list[tuple[int, bool]] = []
        self.administered: list[frames.Administer] = []
        self.connections = 0
        self.runs = 0
        self._peers: dict[int, Peer] = {}
        self._calls: deque[Any] = deque()
        self._selector = selectors.DefaultSelector()
        self._stopped = False
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(16)
        self._listener.setblocking(False)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    # --- control from the test ----------------------------------------------------------------------------------

    def call(self, function: Any) -> Any:
        """Run in the agent's thread."""
        done = threading.Event()
        result: list[Any] = []

        def run() -> None:
            result.append(function())
            done.set()

        self._calls.append(run)
        os.eventfd_write(self._wake, 1)
        assert done.wait(5)
        return result[0]

    def kill(self) -> None:
        """Abruptly: every descriptor is closed, the socket stays in the file system."""
        if self._stopped:
            return
        self._stopped = True
        os.eventfd_write(self._wake, 1)
        self._thread.join(5)
        os.close(self._wake)

    def shutdown(self, reason: str = "maintenance") -> None:
        def tell() -> None:
            for peer in self._peers.values():
                for subscriber in peer.subscribers.values():
                    self.notice(
                        subscriber, frames.Notice(frames.NoticeCode.SHUTDOWN, reason=reason, final=True)
                    )
                self._send(peer, control_frame(Answer.SHUTDOWN, 0, frames.Shutdown(reason)))

        self.call(tell)
        self.kill()

    def set_full(self, subscriptions: list[int]) -> None:
        def tell() -> None:
            for peer in self._peers.values():
                self._send(peer, control_frame(Answer.FULL, 0, frames.Full(subscriptions)))

        self.call(tell)

    def release_receipts(self) -> None:
        def go() -> None:
            self.hold_receipts = False
            for peer in self._peers.values():
                self._send_receipts(peer)

        self.call(go)

    def forget_producers(self) -> None:
        self.call(self.cluster.next_number.clear)

    def remove_topic(self, name: str) -> None:
        def go() -> None:
            topic = self.cluster.topics.pop(name)
            for peer in self._peers.values():
                for subscriber in peer.subscribers.values():
                    self._removed(subscriber, topic)

        self.call(go)

    def _removed(self, subscriber: Subscriber, topic: frames.Topic) -> None:
        if topic.topic_id in subscriber.topic_ids:
            subscriber.topic_ids.discard(topic.topic_id)
            final = not subscriber.topic_ids
            code = frames.NoticeCode.TOPIC_REMOVED
            self.notice(subscriber, frames.Notice(code, topic.topic, reason="removed", final=final))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    # --- the loop -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped:
            # Lent sockets are not polled for room: a short timeout is good enough for a test.
            busy = any(s.queue for p in self._peers.values() for s in p.subscribers.values())
            waiting = any(p.waiting for p in self._peers.values())
            for key, _ in self._selector.select(0.002 if busy or waiting else None):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake)
                elif not self.deaf:
                    self._read(key.data)
            while self._calls:
                self._calls.popleft()()
            for peer in list(self._peers.values()):
                self._write_all(peer)
            if self.deaf:
                time.sleep(0.005)
        for peer in list(self._peers.values()):
            self._close(peer)
        self._listener.close()
        self._selector.close()

    def _accept(self) -> None:
        stream, _ = self._listener.accept()
        stream.setblocking(False)
        self.connections += 1
        peer = Peer(self.connections, stream)
        self._peers[stream.fileno()] = peer
        self._selector.register(stream, selectors.EVENT_READ, peer)

    def _close(self, peer: Peer) -> None:
        self._peers.pop(peer.stream.fileno(), None)
        with contextlib.suppress(KeyError):
            self._selector.unregister(peer.stream)
        peer.stream.close()
        for subscriber in peer.subscribers.values():
            subscriber.end.close()

    def _read(self, peer: Peer) -> None:
        try:
            data, ancillary, _, _ = peer.stream.recvmsg(1 << 20, socket.CMSG_SPACE(4 * 16))
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        for _, _, packed in ancillary:
            peer.descriptors.extend(struct.unpack(f"{len(packed) // 4}i", packed))
        if not data:
            self._close(peer)
            return
        peer.buffer += data
        at = 0
        while len(peer.buffer) - at >= CONTROL_HEADER.size:
            length, kind, _, _, request_id = CONTROL_HEADER.unpack_from(peer.buffer, at)
            end = at + CONTROL_HEADER.size + length
            if end > len(peer.buffer):
                break
            body = bytes(peer.buffer[at + CONTROL_HEADER.size : end])
            at = end
            self._serve(peer, Request(kind), request_id, body)
            if peer.stream.fileno() < 0:
                return
        del peer.buffer[:at]

    def _serve(self, peer: Peer, kind: Request, request_id: int, body: bytes) -> None:
        if kind is Request.PUBLISH:
            self._publish(peer, body)
            return
        if kind is Request.RESUME_PRODUCER:
            resumed: Any = frames.read_body(kind, body)
            if resumed.token == _token(resumed.producer):
                peer.producers.add(resumed.producer)
            return
        if kind is Request.GOODBYE:
            self._close(peer)
            return
        if kind is Request.SUBSCRIBE and not peer.descriptors:
            self._close(peer)
            return
        decoded: Any = frames.read_body(kind, body) if body else None
        try:
            answer, reply = getattr(self, f"_on_{kind.name.lower()}")(peer, decoded)
        except LookupError as error:
            answer, reply = Answer.ERROR, frames.Error(errno.EINVAL, str(error))
        except OSError as error:
            answer, reply = Answer.ERROR, frames.Error(error.errno or errno.EIO, str(error))
        self._send(peer, control_frame(answer, request_id, reply))

    def _send(self, peer: Peer, data: bytes) -> None:
        peer.output += data
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionError):
            sent = peer.stream.send(peer.output)
            del peer.output[:sent]

    # --- requests -----------------------------------------------------------------------------------------------

    def _on_hello(self, peer: Peer, body: frames.Hello) -> Any:
        cluster = self.cluster
        return Answer.WELCOME, frames.Welcome(
            body.version, "fake 1", "test", cluster.cluster_id, 1, cluster.incarnation, peer.connection,
            self.event_bytes, "safe",
        )  # fmt: skip

    def _on_open_producer(self, peer: Peer, body: frames.OpenProducer) -> Any:
        producer = self.cluster.open_producer(body.local)
        peer.producers.add(producer)
        return Answer.PRODUCER, frames.Producer(producer, _token(producer))

    def _on_close_producer(self, peer: Peer, body: frames.Producer) -> Any:
        self.cluster.next_number.pop(body.producer, None)
        return Answer.DONE, None

    def _topic(self, name: str) -> frames.Topic:
        topic = self.cluster.topics.get(name)
        if topic is None:
            raise LookupError(f"no topic {name}")
        seq = self.cluster.seq[topic.topic_id]
        return frames.Topic(topic.topic, topic.topic_id, topic.local, seq)

    def _on_topic_resolve(self, peer: Peer, body: frames.TopicResolve) -> Any:
        return Answer.TOPIC, self._topic(body.topic)

    def _on_topic_create(self, peer: Peer, body: frames.TopicCreate) -> Any:
        old = self.cluster.topics.get(body.topic)
        if old is not None and old.local != body.local:
            raise OSError(errno.EEXIST, "exists with another scope")
        self.cluster.create(body.topic, body.local)
        return Answer.TOPIC, self._topic(body.topic)

    def _on_topic_remove(self, peer: Peer, body: frames.TopicRemove) -> Any:
        self._topic(body.topic)
        self._calls.append(lambda: None)
        topic = self.cluster.topics.pop(body.topic)
        for other in self._peers.values():
            for subscriber in other.subscribers.values():
                self._removed(subscriber, topic)
        return Answer.DONE, None

    def _on_topic_list(self, peer: Peer, body: None) -> Any:
        return Answer.TOPICS, frames.Topics([self._topic(name) for name in self.cluster.topics])

    def _on_status(self, peer: Peer, body: None) -> Any:
        return Answer.STATUS, frames.Status({"node_id": 1, "members": [{"node_id": 1}]})

    def _on_administer(self, peer: Peer, body: frames.Administer) -> Any:
        self.administered.append(body)
        return Answer.DONE, None

    def _on_barrier(self, peer: Peer, body: None) -> Any:
        return Answer.DONE, None

    def _on_out_of_line(self, peer: Peer, body: frames.OutOfLine) -> Any:
        self.out_of_line.append((body.subscription, body.out))
        if body.subscription in peer.subscribers:
            peer.subscribers[body.subscription].out = body.out
        return Answer.DONE, None

    def _on_subscribe(self, peer: Peer, body: frames.Subscribe) -> Any:
        end = socket.socket(fileno=peer.descriptors.popleft())
        assert (end.family, end.type) == (socket.AF_UNIX, socket.SOCK_SEQPACKET)
        end.setblocking(False)
        there = [name for name in body.topics if name in self.cluster.topics]
        try:
            topics = [self._topic(name) for name in (there if body.positions and there else body.topics)]
        except LookupError:
            end.close()
            raise
        if body.positions and body.cluster_id != self.cluster.cluster_id:
            end.close()
            return Answer.SUBSCRIBED, frames.Subscribed(self.cluster.cluster_id, [], True)
        positions = {position.topic_id: position.seq for position in body.positions}
        starts = []
        for topic in topics:
            following = topic.last_seq + 1
            gap = positions.get(topic.topic_id, following - 1) + 1
            starts.append(
                frames.Start(
                    topic.topic, topic.topic_id, following, topic.local, gap if gap < following else 0
                )
            )
        subscriber = Subscriber(peer, body, end)
        subscriber.topic_ids = {topic.topic_id for topic in topics}
        peer.subscribers[body.subscription] = subscriber
        return Answer.SUBSCRIBED, frames.Subscribed(self.cluster.cluster_id, starts)

    def _on_unsubscribe(self, peer: Peer, body: frames.Unsubscribe) -> Any:
        subscriber = peer.subscribers.pop(body.subscription, None)
        if subscriber is not None:
            peer.waiting = deque(item for item in peer.waiting if item[0] is not subscriber)
            subscriber.end.close()
        return Answer.DONE, None

    # --- publications -------------------------------------------------------------------------------------------

    def _publish(self, peer: Peer, run: bytes) -> None:
        if self.drop_publish:
            return
        self.runs += 1
        header = check_run(run)
        cluster = self.cluster
        expected = cluster.next_number.get(header.producer)
        key = (header.producer, header.first_number)
        code = seq = ev_id = 0
        name = next((name for name, t in cluster.topics.items() if t.topic_id == header.topic_id), None)
        if expected is None or header.producer not in peer.producers:
            code = errno.EBADF
        elif key in cluster.outcomes:
            code, seq, ev_id = cluster.outcomes[key]
        elif header.first_number != expected:
            code = errno.EILSEQ
        else:
            cluster.next_number[header.producer] = expected + header.count
            if name is None:
                code = errno.EINVAL
            elif name in self.refuse:
                code = self.refuse[name]
            else:
                seq = cluster.seq[header.topic_id] + 1
                ev_id = cluster.ev_id + 1
                cluster.seq[header.topic_id] += header.count
                cluster.ev_id += header.count
                cluster.log.append(run)
                self.deliver(run, header.topic_id, seq, ev_id)
            cluster.outcomes[key] = (code, seq, ev_id)
        peer.receipts.append(
            RECEIPT.pack(header.producer, header.first_number, header.count, code, seq, ev_id)
        )
        self._send_receipts(peer)

    def _send_receipts(self, peer: Peer) -> None:
        if peer.receipts and not self.hold_receipts:
            body = b"".join(peer.receipts)
            peer.receipts.clear()
            self._send(peer, CONTROL_HEADER.pack(len(body), Answer.RECEIPTS, 0, 0, 0) + body)

    def evict(self, data: bytes, topic: str = "t") -> None:
        """``data`` as the last event of ``topic``; then the agent ends in order."""

        def go() -> None:
            topic_id = self.cluster.topics[topic].topic_id
            run = build_run(RunKind.PUBLICATION, topic_id, 0, 1, [data])
            self.deliver(run, topic_id, self.cluster.seq[topic_id], LOCAL_ID | 1, RecordKind.LAST)
            for peer in self._peers.values():
                for subscriber in peer.subscribers.values():
                    subscriber.ended = topic_id in subscriber.topic_ids

        self.call(go)
        self.shutdown("evicted")

    def end_history(self, reason: str) -> None:
        def go() -> None:
            for peer in self._peers.values():
                for subscriber in peer.subscribers.values():
                    self.notice(
                        subscriber, frames.Notice(frames.NoticeCode.HISTORY_LOST, reason=reason, final=True)
                    )

        self.call(go)
        self.kill()

    def deliver(
        self, run: bytes, topic_id: int, seq: int, ev_id: int, kind: RecordKind = RecordKind.RUN
    ) -> None:
        numbers = (0, 0, 0, 1, self.cluster.incarnation, 1, seq, ev_id, time.time_ns())
        for peer in self._peers.values():
            for subscriber in peer.subscribers.values():
                if topic_id not in subscriber.topic_ids:
                    continue
                records = [
                    [RECORD_HEADER.pack(RECORD_HEADER_BYTES + len(piece), *head), piece]
                    for head, piece in _pieces(run, kind, numbers)
                ]
                if subscriber.callback:
                    assert len(records) == 1
                    peer.waiting.append((subscriber, records[0]))
                else:
                    subscriber.queue += records
                    self._write(subscriber)
            self._write_all(peer)

    def notice(self, subscriber: Subscriber, notice: frames.Notice) -> None:
        if subscriber.ended:
            return
        data = frames.encode_notice(notice)
        head = RECORD_HEADER.pack(
            RECORD_HEADER_BYTES + len(data), RecordKind.NOTICE, 5, 0, 0, 1, 7, 1, 0, LOCAL_ID | 1, 0
        )
        if subscriber.callback:
            subscriber.client.waiting.append((subscriber, [head, data]))
            self._write_all(subscriber.client)
        else:
            subscriber.queue.append([head, data])
            self._write(subscriber)

    def _write_all(self, peer: Peer) -> None:
        while peer.waiting:
            subscriber, record = peer.waiting[0]
            peer.turn += 1
            if not self._frame(subscriber, peer.turn, record):
                peer.turn -= 1
                break
            peer.waiting.popleft()
        for subscriber in peer.subscribers.values():
            self._write(subscriber)
        if peer.output:
            self._send(peer, b"")

    def _write(self, subscriber: Subscriber) -> None:
        while subscriber.queue:
            if not self._frame(subscriber, 0, subscriber.queue[0]):
                return
            subscriber.queue.popleft()

    def _frame(self, subscriber: Subscriber, turn: int, record: list[bytes]) -> bool:
        header = EVENT_HEADER.pack(subscriber.client.connection, subscriber.id, turn, 1, 0)
        try:
            subscriber.end.sendmsg([header, *record], [], socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            pass  # the subscriber is gone; its control connection tells
        return True


def _pieces(run: bytes, kind: RecordKind, numbers: tuple[int, ...]) -> list[tuple[tuple[int, ...], bytes]]:
    """What of the record headers stands behind their length, and the bodies."""
    if len(run) <= RUN_BYTES:
        return [((kind, *numbers), run)]
    flags, _, *rest = numbers
    return [
        ((RecordKind.PART, flags, number, *rest), run[at : at + RUN_BYTES])
        for number, at in enumerate(range(0, len(run), RUN_BYTES))
    ]
