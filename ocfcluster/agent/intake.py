"""From clients to the node: publications are checked here and go on untouched, or enter the stream as void runs.

Round robin over the clients that have something, one run each, as long as the node has room. What is no publication
is handed on at once, but for requests that must not overtake the publications before them.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from ocfcluster.agent.clients import Client
from ocfcluster.agent.local import LocalTopics
from ocfcluster.agent.local_news import TOPIC as LOCAL_NEWS
from ocfcluster.agent.metrics import Counters
from ocfcluster.agent.node_api import NodeApi
from ocfcluster.agent.producer_tokens import ProducerTokens
from ocfcluster.errors import Malformed
from ocfcluster.ipc.session import Incoming, Stage
from ocfcluster.limits import (
    INTAKE_BYTES,
    PRODUCERS_PER_NODE,
    QUEUED_ITEM_OVERHEAD_BYTES,
    REQUESTS_AT_ONCE,
    RUN_BYTES,
    WINDOW_BYTES,
)
from ocfcluster.protocol.effects import Topic
from ocfcluster.protocol.state import FIRST_TOPIC_ID
from ocfcluster.wire.frames import LOCAL_ID, Answer, Producer, Request
from ocfcluster.wire.properties import decode_properties
from ocfcluster.wire.run import RunHeader, RunKind, check_run, run_properties, void_run

_PUBLICATION: Final = int(RunKind.PUBLICATION)
# What waits behind the publications that came before it on the connection; everything else may overtake them, so
# that a client whose publications wait for room can still unsubscribe what holds them up.
ORDERED: Final = frozenset(
    int(kind)
    for kind in (
        Request.BARRIER, Request.CLOSE_PRODUCER, Request.GOODBYE, Request.TOPIC_CREATE, Request.TOPIC_REMOVE,
        Request.TOPIC_ALTER, Request.GROUP_JOIN, Request.GROUP_LEAVE,
    )
)  # fmt: skip


class Shell(Protocol):
    """What the intake asks of the agent."""

    def handle(self, client: Client, request: Incoming) -> None:
        """Answer a request that is no publication."""

    def door(self, client: Client, topic_id: int, run: bytes, header: RunHeader) -> int:
        """The errno with which a run for a reserved topic is refused, or 0."""

    def deliver_local(self, run: bytes, header: RunHeader, skip: int, seq: int, ev_id: int) -> None:
        """Give an event of a local topic to its subscribers."""

    def fail(self, client: Client, reason: str) -> None:
        """The client broke the protocol."""

    def publish_refusal(self, client: Client, topic: Topic) -> int:
        """0, an errno, or -1 while the names of those who may publish are looked up: then ``names_answered`` is called.

        What it permits is in ``client.publishes`` until the topic is altered.
        """

    def group_topic(self, topic_id: int) -> Topic | None:
        """The topic of a group that is in use; None: there is no such."""

    def client_done(self, client: Client) -> None:
        """The connection is gone, and all that came on it has gone on."""

    def watch_client_readable(self, client: Client, watch: bool) -> None: ...
    def go_on_later(self, client: Client) -> None:
        """Call ``Intake.go_on`` for it once the loop has turned."""

    def touch(self, client: Client) -> None:
        """The client's session has output."""


def _cost(request: Incoming | bytes) -> int:
    """Bytes of memory that a request takes which waits behind publications."""
    return 0 if isinstance(request, bytes) else QUEUED_ITEM_OVERHEAD_BYTES + len(request.body)


class Intake:
    """Publications on their way in, and who owns which producer."""

    __slots__ = (
        "owners", "tokens", "inbox_bytes", "waiting", "closing", "_here", "_inherited", "_renewed", "_node", "_local",
        "_shell", "_counters", "_orphans", "_global_orphans", "_held", "_turned", "_publish", "_topic_by_id",
    )  # fmt: skip

    def __init__(
        self, node: NodeApi, local: LocalTopics, shell: Shell, counters: Counters, tokens: ProducerTokens
    ) -> None:
        self.owners: dict[int, Client] = {}  # producer → the live connection that uses it
        self.tokens = tokens
        self.inbox_bytes = 0  # of all clients
        self.waiting: deque[Client] = deque()
        self._held: list[Client] = []  # out of the round until names are looked up
        self._turned: list[Client] = []  # out of the round until the loop has turned
        self._node = node
        self._local = local
        self._shell = shell
        self._counters = counters
        # Producers that no connection owns, those first that have had none for longest. Of global ones also some that
        # are none any more: only the order knows.
        self._orphans: dict[int, None] = {}  # local ones
        self._global_orphans: dict[int, None] = {}
        self.closing: set[int] = set()  # global producers whose CLOSE is on its way
        self._here: set[int] = set()  # global producers that were opened or gone on with at this agent
        self._inherited = False
        self._renewed: dict[int, Client] = {}  # gone on with under a token of before: they are to get another
        self._publish: Callable[[bytes], None] = node.publish
        self._topic_by_id = node.topic_by_id

    # --- requests ---------------------------------------------------------------------------------------------

    def arrived(self, client: Client, most: int = REQUESTS_AT_ONCE) -> None:
        """Take what one read of ``client`` brought. Behind ``most`` requests the others have their turn first: the rest
        waits, and nothing more is read, until ``arrived`` is called again."""
        requests = client.session.requests
        inbox = client.inbox
        while requests:
            request = requests.popleft()
            if isinstance(request, bytes):
                size = len(request)
                client.inbox_bytes += size
                self.inbox_bytes += size
                inbox.append(request)
            elif request.kind in ORDERED and inbox:
                self._charge(client, _cost(request))
                inbox.append(request)
            elif most:
                most -= 1
                self._shell.handle(client, request)
            else:
                requests.appendleft(request)
                self._shell.watch_client_readable(client, False)
                self._shell.go_on_later(client)
                break
        if inbox and not client.waiting:
            client.waiting = True
            self.waiting.append(client)

    def pump(self) -> None:
        """Publish what waits while the node has room."""
        waiting = self.waiting
        room = self._node.room()
        while waiting and room > 0:
            client = waiting.popleft()
            inbox = client.inbox
            run = inbox.popleft()
            if isinstance(run, bytes):
                size = len(run)
                client.inbox_bytes -= size
                self.inbox_bytes -= size
                if client.session.stage is not Stage.FAILED:
                    if not self.publication(client, run, size):
                        self._hold(client, run, size)
                        continue
                    room -= size
            else:
                inbox.appendleft(run)
            if inbox and isinstance(inbox[0], Incoming):
                done = self._handle_behind(client)
                # What waits behind publications from here on goes before what comes.
                room = min(room, self._node.room())
                if not done:
                    self._turned.append(client)
                    self._shell.go_on_later(client)
                    continue
            if inbox:
                waiting.append(client)
            else:
                self._worked_off(client)
        if waiting or self._turned:
            self._hold_back()

    def _handle_behind(self, client: Client) -> bool:
        """The requests that are next in the inbox. False: there are more of them than one turn of the loop has."""
        inbox = client.inbox
        for _ in range(REQUESTS_AT_ONCE):
            if not inbox or not isinstance(request := inbox[0], Incoming):
                return True
            self._shell.handle(client, request)  # still in its place: what comes meanwhile stays behind it
            if inbox and inbox[0] is request:  # unless the history has ended with it
                inbox.popleft()
                self._charge(client, -_cost(request))
        return not inbox or not isinstance(inbox[0], Incoming)

    def go_on(self, client: Client) -> None:
        """The loop has turned since ``Shell.go_on_later``: with what ``client`` has asked in one go."""
        if client in self._turned:
            self._turned.remove(client)
            self.waiting.append(client)
        elif not client.gone:
            self.arrived(client)
            self.read_on(client)

    def _charge(self, client: Client, size: int) -> None:
        client.inbox_bytes += size
        self.inbox_bytes += size

    def _hold(self, client: Client, run: bytes, size: int) -> None:
        """Whether ``client`` may publish ``run`` is not known yet: it waits, with what came behind it."""
        client.inbox.appendleft(run)
        self._charge(client, size)
        self._held.append(client)
        self._shell.watch_client_readable(client, False)

    def names_answered(self) -> None:
        """Have those who were held back try again, when ``pump`` is called next."""
        self.waiting.extend(self._held)
        self._held.clear()

    def _worked_off(self, client: Client) -> None:
        client.waiting = False
        if client.gone:
            self.forget_client(client)
        else:
            self.read_on(client)

    def read_on(self, client: Client) -> None:
        """Read a client again of which nothing waits any more."""
        if not (client.reading or client.waiting or client.session.requests):
            self._shell.watch_client_readable(client, True)

    def _hold_back(self) -> None:
        """Stop reading clients whose share of the queue is used up; ``pump`` goes on reading them."""
        share = WINDOW_BYTES if self.inbox_bytes < INTAKE_BYTES else 0
        for client in (*self.waiting, *self._turned):
            if client.inbox_bytes > share and client.reading:
                self._shell.watch_client_readable(client, False)

    # --- publications -----------------------------------------------------------------------------------------

    def publication(self, client: Client, run: bytes, size: int) -> bool:
        """One publication of ``size`` bytes; False: it has to wait for ``names_answered``.

        The number of calls made here does not depend on what the run holds.
        """
        try:
            header = check_run(run)
            if header.properties_length:  # subscribers everywhere will read them
                decode_properties(run_properties(run, header))
        except Malformed as error:
            self._shell.fail(client, str(error))
            return True
        _, kind, _, _, _, topic_id, count, producer, first_number, _, _, _, _ = header
        if kind != _PUBLICATION or not first_number:
            self._shell.fail(client, "programs publish runs of kind PUBLICATION, numbered from 1")
            return True
        if self.owners.get(producer) is not client:
            if not client.gone:
                client.session.receipt(producer, first_number, count, errno.EBADF, 0, 0)
                self._shell.touch(client)
            return True
        topic = self._topic_by_id(topic_id)
        publishes = client.publishes
        if topic is None:
            topic = self._shell.group_topic(topic_id)
        if topic is None:
            refused = errno.EPERM if topic_id == LOCAL_NEWS.topic_id else errno.EINVAL
        elif topic_id in publishes and publishes[topic_id] is topic:
            refused = 0
        else:
            refused = self._refusal(client, topic, run, header)
            if refused < 0:
                return False
        if not refused and size > RUN_BYTES and count > 1:
            refused = errno.EMSGSIZE
        counters = self._counters
        if producer & LOCAL_ID:
            if topic is not None and not topic.local:
                refused = errno.EINVAL
            self._publish_local(client, run, header, refused, topic)
            return True
        if refused or (topic is not None and topic.local):
            counters.runs_refused += 1
            run = void_run(header, refused or errno.EINVAL)
        counters.runs_published += 1
        counters.runs_published_bytes += size
        counters.events_published += count
        self._publish(run)
        return True

    def _refusal(self, client: Client, topic: Topic, run: bytes, header: RunHeader) -> int:
        """As ``Shell.publish_refusal``; runs of reserved topics are looked at, each of them."""
        if topic.topic_id < FIRST_TOPIC_ID:
            return self._shell.door(client, topic.topic_id, run, header)
        return self._shell.publish_refusal(client, topic)

    def _publish_local(
        self, client: Client, run: bytes, header: RunHeader, refused: int, topic: Topic | None
    ) -> None:
        self._counters.runs_local += 1
        if topic is not None and topic.local:
            self._local.settle(topic)
        outcomes, skip, fresh = self._local.publish(header, refused)
        if fresh is not None:
            self._shell.deliver_local(run, header, skip, fresh.seq, fresh.ev_id)
        if client.gone:
            return
        for outcome in outcomes:
            client.session.receipt(
                header.producer,
                outcome.first_number,
                outcome.count,
                outcome.error,
                outcome.seq,
                outcome.ev_id,
            )
        self._shell.touch(client)

    # --- producers --------------------------------------------------------------------------------------------

    def own(self, client: Client, producer: int) -> None:
        """``client`` has opened ``producer``, or goes on with it."""
        self._global_orphans.pop(producer, None)
        before = self.owners.get(producer)
        if before is not None:
            before.producers.discard(producer)
        self.owners[producer] = client
        client.producers.add(producer)
        if not producer & LOCAL_ID:
            self._here.add(producer)

    def disown(self, producer: int) -> None:
        """``producer`` is closed, or was never one."""
        owner = self.owners.pop(producer, None)
        if owner is not None:
            owner.producers.discard(producer)
        self._orphans.pop(producer, None)
        self._global_orphans.pop(producer, None)
        self._here.discard(producer)

    def closed(self, producer: int, error: int) -> None:
        """The CLOSE of a global producer has its outcome."""
        self.closing.discard(producer)
        if error != errno.ENOMEM:
            self.disown(producer)
        elif producer not in self.owners:  # too many commands wait: it has its place still, and nobody
            self._abandon(producer)

    def resume(self, client: Client, producer: int, token: bytes) -> bool:
        """A client that reconnected goes on with a producer of its old connection, whatever became of that. False:
        the token is not the producer's, it is closed or is being closed, or a newer connection has it."""
        owner = self.owners.get(producer)
        if client.gone or producer in self.closing or (owner and owner.connection > client.connection):
            return False
        if producer & LOCAL_ID and not self._local.knows(producer):
            return False
        fits = self.tokens.fits(producer, token)
        if not fits and not self._first_come(producer):
            return False
        if producer in client.producers:
            return True
        if len(client.producers) >= 2 * PRODUCERS_PER_NODE:  # so many global ones, and local ones
            return False
        self.disown(producer)
        self.own(client, producer)
        if not fits:
            self._renewed[producer] = client
            if self._inherited:
                self._renew()
        return True

    def _renew(self) -> None:
        """Give those that went on with a token of another state directory one that is good from here on."""
        for producer, client in self._renewed.items():
            if self.owners.get(producer) is client and not client.gone:
                client.session.answer(0, Answer.PRODUCER, Producer(producer, self.tokens.make(producer)))
                self._shell.touch(client)
        self._renewed.clear()

    def _first_come(self, producer: int) -> bool:
        """Whether ``producer`` goes on with whoever comes first: the state directory is another one than that of the
        agent that gave it its token. Else what a program has on its way could never be said to have been taken."""
        if not self.tokens.secret_is_new or producer & LOCAL_ID or producer in self._here:
            return False
        if not self._inherited:  # what there is, is not known yet
            return len(self._here) < 2 * PRODUCERS_PER_NODE
        return producer in self._node.own_producers()

    def forget_client(self, client: Client) -> None:
        """The connection is gone and what it published has gone on; its producers stay, for it to come back to."""
        if client.waiting:
            return  # not yet: ``pump`` comes back to it
        self._shell.client_done(client)
        for producer in client.producers:
            if self.owners.get(producer) is not client:
                continue
            del self.owners[producer]
            if producer & LOCAL_ID:
                self._orphans[producer] = None  # no more of them than there are local producers
            elif producer not in self.closing:
                self._abandon(producer)

    def _abandon(self, producer: int) -> None:
        """No connection owns a global producer any more."""
        orphans = self._global_orphans
        orphans[producer] = None
        if len(orphans) > 2 * PRODUCERS_PER_NODE:  # at most half of them are producers
            known = set(self._node.own_producers())
            self._global_orphans = {one: None for one in orphans if one in known}
            self._here.intersection_update(known.union(self.owners))

    def inherit(self) -> None:
        """What is delivered is known from here on: who went on with what is no producer has nothing, and producers of
        the agent before this one have no connection where nobody has gone on with them yet."""
        self._inherited = True
        known = self._node.own_producers()
        for producer in {one for one in self.owners if not one & LOCAL_ID}.difference(known):
            self.disown(producer)
        self._renew()
        for producer in known:
            if producer not in self.owners and producer not in self.closing:
                self._global_orphans.setdefault(producer)

    @property
    def has_all(self) -> bool:
        """Whether this node has all the producers that it may have."""
        configuration = self._node.configuration
        most = configuration.limits.producers_per_node if configuration is not None else 0
        return len(self._node.own_producers()) >= most

    def longest_orphan(self) -> int:
        """The producer that has been without a connection for longest, which is an orphan no more; 0: there is none."""
        orphans = self._global_orphans
        there = set(self._node.own_producers())
        while orphans:
            producer = next(iter(orphans))
            del orphans[producer]
            if producer in there:
                return producer
        return 0

    def forget_history(self) -> None:
        """The cluster's history has ended: what waits and all producers belong to it. The caller ends the clients."""
        for client in (*self.waiting, *self._held, *self._turned):
            client.waiting = False
            client.inbox.clear()
            client.inbox_bytes = 0
        self.waiting.clear()
        self._held.clear()
        self._turned.clear()
        self.inbox_bytes = 0
        for owner in self.owners.values():
            owner.producers.clear()
        self.owners.clear()
        self._orphans.clear()
        self._global_orphans.clear()
        self.closing.clear()
        self._here.clear()
        self._renewed.clear()

    def close_orphaned_local(self) -> bool:
        """Close the local producer that has been without a connection for longest; whether there was one."""
        while self._orphans:
            producer = next(iter(self._orphans))
            del self._orphans[producer]
            if self._local.close_producer(producer):
                return True
        return False
