"""The connections of this node's programs: who is let in, what comes on them, and their end.

What is read goes to the intake, which asks this for what it needs of the others (its ``Shell``); each client has it
watched by the loop (its ``Poller``).
"""

from __future__ import annotations

import errno
import socket
import time
from typing import TYPE_CHECKING, Any, Final

import structlog

from ocfcluster.agent.clients import READ_BYTES, Client
from ocfcluster.agent.listener import Listener
from ocfcluster.errors import MalformedFrame
from ocfcluster.ipc.peer import open_pidfd, peer_credentials
from ocfcluster.ipc.session import Incoming
from ocfcluster.limits import CLIENTS, GREETING_NS, REQUESTS_AT_ONCE, SECOND_NS, TOLD_AGAIN_NS
from ocfcluster.protocol.effects import Topic
from ocfcluster.wire.frames import Answer, Error, control_frame
from ocfcluster.wire.group import LeaveReason
from ocfcluster.wire.run import RunHeader

if TYPE_CHECKING:
    from ocfcluster.agent.daemon import Agent

_ACCEPTS: Final = 16  # connections taken at once, so that a storm of them does not hold up the order
_ACCEPT_PAUSE_S: Final = 0.2  # after the system has run out of descriptors

log = structlog.get_logger("ocfcluster.agent")


class Connections:
    """All of one agent; ``clients`` by the number of the connection."""

    __slots__ = ("clients", "_agent", "_last_connection", "_shortage_told_at", "_read_buffer")

    def __init__(self, agent: Agent) -> None:
        self.clients: dict[int, Client] = {}
        self._agent = agent
        self._last_connection = 0
        self._shortage_told_at = agent.started_at - TOLD_AGAIN_NS
        self._read_buffer = memoryview(bytearray(READ_BYTES))

    def arrived(self) -> None:
        """The listener has connections to take."""
        listener = self._agent.listener
        if listener is None:
            return
        for _ in range(_ACCEPTS):
            try:
                connected, _address = listener.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.ECONNABORTED, errno.EINTR):
                    continue
                if self._refuse_without_descriptor(listener, error):
                    continue
                self._agent.running_loop().remove_reader(listener.socket.fileno())
                self._agent.running_loop().call_later(_ACCEPT_PAUSE_S, self._accept_again)
                return
            self.admit(connected)

    def _refuse_without_descriptor(self, listener: Listener, error: OSError) -> bool:
        """There is none left for a program that connects: it is told so by the one that is kept for that."""
        now = time.monotonic_ns()
        if now - self._shortage_told_at >= TOLD_AGAIN_NS:
            self._shortage_told_at = now
            log.warning("no more clients can be taken for now", error=error.strerror)
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            return False
        why = Error(errno.EMFILE, "this agent has no descriptors left (LimitNOFILE, ulimit -n)")
        refused = listener.refuse(control_frame(Answer.ERROR, 0, why))
        self._agent.counters.clients_refused += refused
        return refused

    def _accept_again(self) -> None:
        if self._agent.listener is not None:
            self._agent.running_loop().add_reader(self._agent.listener.socket.fileno(), self.arrived)

    def admit(self, connected: socket.socket, *, own: bool = False) -> Client | None:
        """A program's connection, which is the agent's from here on; None where it is refused. ``own``: the built-in
        component's, which counts for no limit."""
        connected.setblocking(False)
        most = min(CLIENTS, self._agent.config.limits.clients)
        if len(self.clients) - self._agent.components.connected >= most and not own:
            self._agent.counters.clients_refused += 1
            frame = control_frame(
                Answer.ERROR, 0, Error(errno.ENOMEM, f"this agent has its {most} clients (limits.clients)")
            )
            try:
                connected.send(frame, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError:
                pass  # it is refused in any case
            connected.close()
            return None
        try:
            peer = peer_credentials(connected)
        except OSError:
            connected.close()
            return None
        self._agent.counters.clients_accepted += 1
        self._last_connection = connection = self._last_connection % 0xFFFF_FFFF + 1
        client = Client(
            self,
            connected,
            connection,
            peer,
            self._agent.hub.open_line(connection),
            self._agent.event_bytes(),
        )
        self.clients[connection] = client
        client.pidfd = -1 if own else open_pidfd(connected, peer)
        if client.pidfd >= 0:
            self._agent.running_loop().add_reader(client.pidfd, self._on_process_end, client)
        self.watch_client_readable(client, True)
        client.greeting = self._agent.running_loop().call_later(
            GREETING_NS / SECOND_NS, self._ungreeted, client
        )
        return client

    def _ungreeted(self, client: Client) -> None:
        """Whoever connects and says nothing keeps nobody else's place."""
        self.fail(client, f"no HELLO came within {GREETING_NS // SECOND_NS} s")
        self._agent.settle(time.monotonic_ns())

    def _on_process_end(self, client: Client) -> None:
        self.read_to_its_end(client, "its process has ended")
        self._agent.settle(time.monotonic_ns())

    def read_to_its_end(self, client: Client, reason: str) -> None:
        """The connection has ended; what was written on it before that still counts."""
        while self._read(client, READ_BYTES) > 0:
            pass
        self.client_lost(client, reason)

    def on_client(self, client: Client) -> None:
        """A client's socket has something to read: one read, then the burst is over."""
        if self._read(client) < 0:
            self.client_lost(client, "")
        self._agent.settle(time.monotonic_ns())

    def go_on_later(self, client: Client) -> None:
        self._agent.running_loop().call_soon(self._go_on, client)

    def _go_on(self, client: Client) -> None:
        """With what a client has asked in one go, and others were before."""
        self._agent.intake.go_on(client)
        self._agent.settle(time.monotonic_ns())

    def _read(self, client: Client, most: int = REQUESTS_AT_ONCE) -> int:
        """One read, of which ``most`` requests are taken in at once: bytes, 0 if there are none now, -1 at the end of
        the connection."""
        if client.gone:
            return -1
        try:
            size = client.read(self._read_buffer)
        except MalformedFrame as error:
            self._agent.counters.clients_failed += 1
            log.warning("client failed", **self._who(client), error=str(error))
            client.write()
            return -1
        self._agent.intake.arrived(client, most)
        return size

    def fail(self, client: Client, reason: str) -> None:
        """The client broke the protocol: tell it why, then close."""
        if client.gone:
            return
        self._agent.counters.clients_failed += 1
        log.warning("client failed", **self._who(client), error=reason)
        client.session.fail(errno.EPROTO, reason)
        self.touch(client)

    def client_lost(self, client: Client, reason: str) -> None:
        """Close a connection and what hangs on it; its producers stay known."""
        if client.gone:
            return
        loop = self._agent.running_loop()
        if client.reading:
            loop.remove_reader(client.socket.fileno())
            client.reading = False
        if client.writing:
            loop.remove_writer(client.socket.fileno())
            client.writing = False
        if client.pidfd >= 0:
            loop.remove_reader(client.pidfd)
        now = time.monotonic_ns()
        self._agent.components.client_lost(client)
        for subscription in self._agent.hub.close_line(client.line, now):
            subscription.socket.close()
        del self.clients[client.connection]
        client.release()
        self._agent.requests.withdraw(client)
        self._agent.intake.forget_client(client)
        log.debug("client gone", **self._who(client), reason=reason)

    @staticmethod
    def _who(client: Client) -> dict[str, Any]:
        return {
            "connection": client.connection, "name": client.name, "pid": client.peer.pid, "uid": client.peer.uid,
        }  # fmt: skip

    def handle(self, client: Client, request: Incoming) -> None:
        self._agent.requests.handle(client, request)

    def publish_refusal(self, client: Client, topic: Topic) -> int:
        return self._agent.requests.permissions.publish_refusal(client, topic)

    def door(self, client: Client, topic_id: int, run: bytes, header: RunHeader) -> int:
        return self._agent.components.door(client, topic_id, run, header)

    def group_topic(self, topic_id: int) -> Topic | None:
        group = self._agent.node.groups.by_id.get(topic_id)
        return None if group is None else group.topic

    def client_done(self, client: Client) -> None:
        self._agent.groups.end(client, LeaveReason.DIED)

    def deliver_local(self, run: bytes, header: RunHeader, skip: int, seq: int, ev_id: int) -> None:
        agent = self._agent
        agent.router.deliver_local(
            run,
            header,
            skip,
            seq,
            ev_id,
            agent.config.node.id,
            agent.incarnation,
            agent.router.views.m_sequence,
        )

    def touch(self, client: Client) -> None:
        """The client's session has output: write it when the burst is over."""
        if not client.dirty:
            client.dirty = True
            self._agent.router.touched.append(client)

    def watch_client_readable(self, client: Client, watch: bool) -> None:
        if client.gone or client.reading == watch:
            return
        client.reading = watch
        if watch:
            self._agent.running_loop().add_reader(client.socket.fileno(), self.on_client, client)
        else:
            self._agent.running_loop().remove_reader(client.socket.fileno())

    def watch_client_writable(self, client: Client, watch: bool) -> None:
        if client.gone or client.writing == watch:
            return
        client.writing = watch
        if watch:
            self._agent.running_loop().add_writer(client.socket.fileno(), client.write)
        else:
            self._agent.running_loop().remove_writer(client.socket.fileno())
