"""The agent: one event loop that wires network, node, clients and disk together.

A burst goes one way: read what a socket has, feed the node, ``end_burst`` once, carry out its effects in order,
write one message per subscriber and one per publisher. Nothing on that way waits, and nothing is done per event.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import structlog

from ocfcluster.agent.absent import AbsentNetworks
from ocfcluster.agent.components import LAST_WORD_S, Components
from ocfcluster.agent.config import AgentConfig, TopicSetting
from ocfcluster.agent.connections import Connections
from ocfcluster.agent.event_sockets import EventSockets
from ocfcluster.agent.external_views import ExternalViews
from ocfcluster.agent.hooks import Hooks, Teller
from ocfcluster.agent.intake import Intake
from ocfcluster.agent.keys import KeyRing, NoKeys
from ocfcluster.agent.links import connections, links, networks_document
from ocfcluster.agent.listener import Listener
from ocfcluster.agent.local import LocalTopics
from ocfcluster.agent.local_news import tell as tell_local
from ocfcluster.agent.metrics import Counters
from ocfcluster.agent.name_service import NameService
from ocfcluster.agent.names import scope_is_local
from ocfcluster.agent.network import paths
from ocfcluster.agent.node_api import NodeApi
from ocfcluster.agent.producer_tokens import ProducerTokens
from ocfcluster.agent.reload import Reloading, configured_topics
from ocfcluster.agent.requests import Requests
from ocfcluster.agent.router import Router
from ocfcluster.agent.snapshots import Snapshots
from ocfcluster.agent.state_dir import RecordWriter, StateDirectory
from ocfcluster.agent.status import status_document
from ocfcluster.agent.stuck import StuckWatch
from ocfcluster.agent.views import Views
from ocfcluster.components.connectivity import Link as Connection
from ocfcluster.ipc.delivery import Hub
from ocfcluster.limits import (
    MILLISECOND_NS,
    RECEIVE_BURST,
)
from ocfcluster.net.redundant import Link
from ocfcluster.net.transport import Transport
from ocfcluster.protocol.effects import (
    Deliver,
    Effect,
    Fault,
    FetchSnapshot,
    Forget,
    HistoryLost,
    Multicast,
    News,
    Notification,
    Outcome,
    Persist,
    Send,
    State,
    StateChange,
    Stop,
    Topic,
)
from ocfcluster.protocol.operator import OperatorCommand
from ocfcluster.wire import control
from ocfcluster.wire.frames import Answer, NoticeCode, Shutdown

_GOOD_NEWS: Final = ("member_joined", "epoch")
_FAREWELL_S: Final = 0.5  # for clients to take the news of a shutdown

NodeFactory = Callable[[int, int], NodeApi]
log = structlog.get_logger("ocfcluster.agent")


class Agent:
    """One incarnation of a node, in one event loop. Made by ``main``; ``run`` serves until the end.

    The transport, the state directory, the listener and ``snapshots`` (they listen for nodes that fetch the state) are
    the agent's from here on: it closes them.
    """

    def __init__(
        self,
        config: AgentConfig,
        make_node: NodeFactory,
        transport: Transport,
        state_dir: StateDirectory,
        listener: Listener | None,
        *,
        incarnation: int,
        snapshots: Sequence[socket.socket] = (),
        warnings: list[str] | None = None,
        keys: KeyRing | None = None,
    ) -> None:
        self.config = config
        self.incarnation = incarnation
        self.transport = transport
        self.keys = keys or NoKeys()
        self.traffic = self.keys.seal(transport, config.cluster.name, config.node.id, incarnation)
        self.state_dir = state_dir
        self.listener = listener
        self.socket_path = "" if listener is None else listener.path
        self.warnings = list(warnings or [])
        self.counters = Counters()
        self.started_at = time.monotonic_ns()
        self.node = make_node(self.started_at, time.time_ns())
        self.event_sockets = EventSockets(self)
        self.hub = Hub(self.event_sockets)
        self.connections = Connections(self)
        self.clients = self.connections.clients
        self.local = LocalTopics()
        self.hooks: Hooks | None = None  # the process's, told how this incarnation fares
        self.teller: Teller = Teller(self)
        self.reloading: Reloading = Reloading(self)
        self.absent = AbsentNetworks(self)
        self.names = NameService(self.running_loop, self._names_answered)
        tokens = ProducerTokens(state_dir.secret, state_dir.secret_is_new, incarnation, self.cluster_id)
        self.intake = Intake(self.node, self.local, self.connections, self.counters, tokens)
        self.requests = Requests(self)
        self.groups = self.requests.groups
        self.components = Components(self)
        external = config.components.membership == "external"
        self.router = Router(
            self.hub, self.intake.owners, self.requests, self.local, self.groups, self.counters,
            (ExternalViews if external else Views)(self.hub, self.local), self.components.current,
        )  # fmt: skip
        self.router.views.on_view = partial(self.teller.tell, "primary", "a view with this node is in force")
        self.stuck = StuckWatch(self.hub, self.clients, self._tell_local)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0
        self.snapshots = Snapshots(
            self, snapshots, partial(paths, transport), self.counters, self.keys.sealing
        )
        self._writer = RecordWriter(state_dir, self._persisted)
        self.disk_error = ""  # why the last write of the state directory failed; empty: it did not
        self._stopping: asyncio.Event | None = None
        self._stop_reason = ""
        self._leaving = ""  # why this node has asked to leave
        self.evicted = ""  # why the cluster went on without this incarnation, which has ended it
        self.forgets = False  # an operator has it begin again as a stranger, whatever is configured
        self.evictions = 0  # of this node's incarnations before, in this process
        self.evicted_because = ""  # the last of them
        self.failure: BaseException | None = None  # a mistake in the agent itself, which has ended it
        self.topics_asked = False  # those of the configuration are made
        self.closed = False
        self._watched: list[int] = []

    # --- life -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until ``stop``, or until the node has left or is evicted; then end in order."""
        loop = self._loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_mistake)
        self._stopping = asyncio.Event()
        if self._stop_reason:
            self._stopping.set()
        self.watch_network(self.transport)
        if self.listener is not None:
            loop.add_reader(self.listener.socket.fileno(), self.connections.arrived)
        self.snapshots.start(loop)
        self.absent.start()
        try:
            self.settle(time.monotonic_ns())
            self.components.start(loop)
            await self._stopping.wait()
            await self._end()
        finally:
            await self.components.end(loop)
            self._close()
            await self.snapshots.ended()

    def watch_network(self, transport: Transport) -> None:
        """Read what comes by ``transport``, this agent's or a part of it."""
        for descriptor in transport.filenos():
            self.running_loop().add_reader(descriptor, self.on_network)
            self._watched.append(descriptor)

    def _unwatch_network(self) -> None:
        for descriptor in self._watched:
            self.running_loop().remove_reader(descriptor)
        self._watched.clear()

    def leave(self, reason: str) -> None:
        """Ask the others to go on without this node, and serve until they do (the node bounds that); then end in
        order. Asked again: end at once."""
        if self._leaving or self._loop is None:
            self.stop(reason)
            return
        self._leaving = reason
        log.info("leaving", reason=reason)
        self.components.stop()
        now = time.monotonic_ns()
        self.node.leave(now)
        self.settle(now)

    def stop(self, reason: str) -> None:
        """End in order, without a word to the other nodes; ``run`` returns when that is done."""
        self._stop_reason = self._stop_reason or reason
        if self._stopping is not None:
            self._stopping.set()

    def _on_mistake(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback raised: what it had begun is half done, so the agent must not go on as a member of the order."""
        error = context.get("exception")
        if self.failure is not None:
            log.debug(
                "internal error", error=context.get("message", ""), exc_info=error
            )  # it follows from the first
            return
        # Before it is logged, which may fail as well where memory has run out.
        self.failure = error or RuntimeError(context.get("message", ""))
        self._unwatch_network()
        if isinstance(error, MemoryError):
            self.stop("the agent failed: out of memory")
            log.critical("out of memory", text="this node ends: what it had begun is half done")
        else:
            self.stop("the agent failed: internal error")
            log.critical("internal error", error=context.get("message", ""), exc_info=error)

    async def _end(self) -> None:
        log.info("stopping", reason=self._stop_reason)
        now = time.monotonic_ns()
        self._stop_listening()
        if self.failure is None:
            self.catch_up()
        until = now + int(LAST_WORD_S * 1e9)
        while self.components.last_word_due and time.monotonic_ns() < until:  # noqa: ASYNC110 - as below
            await asyncio.sleep(0.01)
        self.hub.shut_down(self._stop_reason, now)
        for client in list(self.clients.values()):
            client.session.answer(0, Answer.SHUTDOWN, Shutdown(self._stop_reason))
            client.write()
        self.hub.flush(now)
        until = now + int(_FAREWELL_S * 1e9)
        while self._unsaid() and time.monotonic_ns() < until:  # noqa: ASYNC110 - the kernel sets no event
            await asyncio.sleep(0.01)

    def _unsaid(self) -> bool:
        """Whether some client has not taken what it was told."""
        return any(client.session.output_bytes for client in self.clients.values()) or any(
            subscription.queue for subscription in self.hub.subscriptions()
        )

    def _close(self) -> None:
        self.closed = True
        self.reloading.close()
        self.absent.close()
        if self._timer is not None:
            self._timer.cancel()
        self._unwatch_network()
        self._stop_listening()
        for client in list(self.clients.values()):
            self.connections.client_lost(client, "")
        self.names.close()
        self.requests.forget_history()  # what was asked of the order, and the sockets lent for it
        self.snapshots.close()
        self.transport.close()
        self._writer.close()
        if self.forgets:
            try:
                self.state_dir.forget()
            except OSError as error:
                log.error("the state directory could not be emptied: empty it by hand", error=error.strerror)
        self.state_dir.close()

    def _stop_listening(self) -> None:
        listener, self.listener = self.listener, None
        if listener is not None:
            self.running_loop().remove_reader(listener.socket.fileno())
            listener.close()

    def running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise RuntimeError("the agent does not run")
        return self._loop

    # --- bursts -----------------------------------------------------------------------------------------------

    def on_network(self) -> None:
        """Datagrams have come: one burst of them."""
        received = self.traffic.receive(RECEIVE_BURST)
        if not received:
            return  # taken already when the transport's other descriptor was readable
        now = time.monotonic_ns()
        self.counters.bursts += 1
        self.counters.buffers_received += len(received)
        datagram = self.node.datagram
        follows = False
        for buffer, segment, address in received:
            if datagram(buffer, segment, address, now):
                follows = True
        if follows:
            self.settle(now)

    def settle(self, now: int) -> None:
        """After inputs: take in what has room, let the node work off the burst, carry out its effects, write.

        Publications go in before ``end_burst``, so that what came together leaves together.
        """
        if self.failure is not None:
            return  # what its parts hold does not fit together any more: nothing follows from it
        node = self.node
        intake = self.intake
        while True:
            if intake.waiting:
                intake.pump()
            for _ in node.end_burst_in_steps(now):
                self._carry_out(node.take_effects(), now)
            self._carry_out(node.take_effects(), now)
            if not intake.waiting or node.room() <= 0:
                break
        self.hub.flush(now)
        touched = self.router.touched
        while touched:
            self.router.touched = []
            for client in touched:
                client.write()
            touched = self.router.touched
        self._arm(now)

    def catch_up(self) -> None:
        """Carry out what the node has decided already, so that its state is the one of what was delivered."""
        if self.failure is not None:
            return  # as in settle
        now = time.monotonic_ns()
        self.node.end_burst(now)
        self._carry_out(self.node.take_effects(), now)

    def _carry_out(self, effects: list[Effect], now: int) -> None:
        for effect in effects:
            kind = type(effect)
            if kind is Deliver:
                self.router.deliver(effect.items)  # type: ignore[union-attr]
                self.hub.flush(now)  # before what is sent next: somebody here may wait for just this
            elif kind is Multicast:
                self.counters.buffers_sent += 1
                self.traffic.multicast(effect.buffer, effect.segment)  # type: ignore[union-attr]
            elif kind is Send:
                self.counters.buffers_sent += 1
                self.traffic.send(effect.address, effect.buffer, effect.segment)  # type: ignore[union-attr]
            else:
                self._carry_rare(effect, now)
        if self.requests.deferred:
            self.requests.run_deferred()

    def _carry_rare(self, effect: Effect, now: int) -> None:
        if isinstance(effect, Persist):
            self._persist(effect)
        elif isinstance(effect, StateChange):
            self._state_changed(effect)
        elif isinstance(effect, FetchSnapshot):
            self.snapshots.fetch(effect)
        elif isinstance(effect, Stop):
            self.stop(effect.reason)
        elif isinstance(effect, Forget):
            self.forgets = True
        elif isinstance(effect, Notification):
            log.warning("primary", told=effect.code.value, m_sequence=effect.m_sequence)
            self.router.views.notify(effect, self.config.node.id, self.incarnation)
            self.teller.notified(effect)
            if self.router.views.primary:
                self.components.current.primary()
        elif isinstance(effect, HistoryLost):
            self._history_lost(effect, now)
        elif isinstance(effect, Fault):
            self.counters.faults += 1
            log.error("fault", code=effect.code, text=effect.text)
        elif isinstance(effect, News):
            self._news(effect)

    def _arm(self, now: int) -> None:
        """Have the timer ring when the node or the hub wants it; a later ring that is armed already is moved."""
        if self.node.state is State.STOPPED:
            return
        due = self.node.next_timer()
        deadline = self.hub.deadline()
        if deadline is not None and deadline < due:
            due = deadline
        if self._timer is not None:
            if self._timer_at <= due:
                return
            self._timer.cancel()
        self._timer_at = due
        self._timer = self.running_loop().call_later(max(0, due - now) / 1e9, self.on_timer)

    def on_timer(self) -> None:
        self._timer = None
        now = time.monotonic_ns()
        if now >= self.node.next_timer():
            self.node.timer(now, time.time_ns())
        self.settle(now)

    # --- disk -------------------------------------------------------------------------------------------------

    def _persist(self, effect: Persist) -> None:
        self.counters.persists += 1
        self._writer.write(effect.token, effect.record, self.running_loop())

    def _persisted(self, token: int, error: OSError | None) -> None:
        text = "" if error is None else error.strerror or str(error)
        if error is not None:
            self.counters.persists_failed += 1
        if text != self.disk_error:  # the node tries again and again
            self.disk_error = text
            path = str(self.state_dir.path)
            if text:
                log.error("the state directory cannot be written", path=path, error=text)
            else:
                log.info("the state directory can be written again", path=path)
        now = time.monotonic_ns()
        self.node.persisted(token, error is None, now)
        self.settle(now)

    # --- the node ---------------------------------------------------------------------------------------------

    def control(self, operand: control.Operand, behind: bool) -> int:
        return self.node.control(operand, behind)

    def operator(self, command: OperatorCommand) -> str:
        return self.node.operator(command, time.monotonic_ns())

    def give_snapshot(self, request: bytes) -> Callable[[], list[bytes]] | None:
        if self.failure is not None:
            return None
        now = time.monotonic_ns()
        making = self.node.give_snapshot(request, now)
        self.settle(now)
        return making

    def snapshot_fetched(self, token: int, snapshot: object) -> None:
        now = time.monotonic_ns()
        self.node.snapshot_fetched(token, snapshot, now)
        self.settle(now)

    def cluster_id(self) -> str:
        configuration = self.node.configuration
        return "" if configuration is None else configuration.cluster_id

    def who_hears(self, all_pairs: bool) -> tuple[Connection, ...]:
        """Whom this node hears, per node and network, and whether it is heard; with ``all_pairs`` also what it knows
        of the others."""
        suspicion_ns = self.config.timing.suspicion_ms * MILLISECOND_NS
        return connections(
            self.config, self.node.links(all_pairs), self.links(), suspicion_ns, time.monotonic_ns()
        )

    def cluster_addresses(self) -> list[str]:
        """The addresses over which this node talks to the others, by network."""
        return [
            str(one["address"][0]) for one in networks_document(self.config, self.transport) if one["address"]
        ]

    def event_bytes(self) -> int:
        configuration = self.node.configuration
        return self.config.limits.event_bytes if configuration is None else configuration.limits.event_bytes

    def last_seq(self, topic: Topic) -> int:
        """Of the topic's last event, 0 where there is none."""
        if topic.local:
            return self.local.last_seq.get(topic.topic_id, 0)
        return self.node.last_seq(topic.topic_id)

    def _state_changed(self, change: StateChange) -> None:
        log.info("state", state=change.state.value, reason=change.reason)
        if change.state is State.STOPPED:
            self.stop(self._leaving or change.reason)
        elif change.state is State.EVICTED:
            self.evicted = change.reason or "it was not heard"
            self.router.views.evicted(self.config.node.id, self.incarnation)
            self.teller.tell("evicted", self.evicted)
            self.stop(f"evicted, the cluster goes on without this node: {self.evicted}")
        elif change.state is State.ACTIVE:
            self.intake.inherit()
            self.requests.formed()
        if change.state is State.ACTIVE and not self.topics_asked:
            self.topics_asked = True
            for topic in configured_topics(self.config).values():
                self.create_topic(topic)

    def _history_lost(self, lost: HistoryLost, now: int) -> None:
        """Programs know another history than the one that comes now: their subscriptions end, and they connect anew."""
        reason = f"the history {lost.superseded} has ended, {lost.cluster_id} goes on"
        log.warning("history", text=reason)
        self.hub.shut_down(reason, now, NoticeCode.HISTORY_LOST)
        self.router.views.forget()
        self.components.current.forget()
        self.intake.forget_history()
        self.requests.forget_history()
        self.local.forget_history()
        self.topics_asked = False
        for client in list(self.clients.values()):
            client.session.fail(errno.ENOTCONN, reason)
            self.connections.touch(client)

    def _news(self, news: News) -> None:
        (log.info if news.code in _GOOD_NEWS else log.warning)("cluster", code=news.code, text=news.text)
        if news.code == "node_table":  # stays true until an operator corrects the file
            self.warnings.append(news.text)

    def create_topic(self, topic: TopicSetting) -> None:
        name, local = topic.name, scope_is_local(topic.name, topic.scope == "local")

        def then(outcome: Outcome) -> None:
            if outcome.error:
                known = self.node.topics.get(name)
                why = os.strerror(outcome.error)
                if outcome.error == errno.EEXIST:
                    same_scope = known is not None and known.local == local
                    other = "other settings, which `ocfcluster topic alter` changes"
                    why = f"it exists with {other if same_scope else 'the other scope'}"
                text = f"topic {name!r} of the configuration was not created: {why}"
                self.warnings.append(text)
                log.warning("topic", text=text)

        self.requests.command(None, control.TopicCreate(name, local, topic.settings()), then)

    def status(self) -> dict[str, Any]:
        return status_document(self)

    def links(self) -> list[Link]:
        """When each other node was last heard on each network (``agent.links``)."""
        return links(self.config, self.node, self.transport)

    # --- connections ------------------------------------------------------------------------------------------

    def _names_answered(self) -> None:
        """Look-ups have ended, and those who waited for them were told."""
        self.intake.names_answered()
        self.settle(time.monotonic_ns())

    # --- what the parts ask of the loop -----------------------------------------------------------------------

    def _tell_local(self, document: Mapping[str, Any], properties: Mapping[str, str]) -> None:
        """An event on ``oc.local``."""
        tell_local(self.hub, self.local, (self.config.node.id, self.incarnation), document, properties)


def new_incarnation() -> int:
    """Random, never 0: this start of this node."""
    return secrets.randbits(64) or 1
