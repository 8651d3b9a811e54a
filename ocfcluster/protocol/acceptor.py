"""The acceptor of an epoch change: promises and accepts, and says so only when it is on disk.

Equal ballots are answered again, lower ones get REJECT. Whether a message is about the present instance, and whether
its proposer is to be listened to, is decided before it comes here.
"""

from __future__ import annotations

from collections.abc import Callable

from ocfcluster.protocol.messages import Accept, Accepted, Instance, Message, Prepare, Promise, Reject
from ocfcluster.protocol.settings import Ballot, PaxosRecord
from ocfcluster.protocol.store import Store

Reply = Callable[[Message], None]


class Acceptor:
    __slots__ = ("_store", "_store_id", "_waiting")

    def __init__(self, store: Store, store_id: int) -> None:
        self._store = store
        self._store_id = store_id
        self._waiting: dict[str, tuple[Instance, Ballot]] = {}  # answers that wait for the disk

    def record(self, instance: Instance) -> PaxosRecord | None:
        """What was promised and accepted in this instance."""
        paxos = self._store.record.paxos
        return paxos if paxos is not None and (paxos.cluster_id, paxos.epoch) == instance else None

    def promised(self, instance: Instance) -> Ballot | None:
        record = self.record(instance)
        return record.promised if record is not None else None

    def on_prepare(
        self, prepare: Prepare, reply: Reply, promise: Callable[[PaxosRecord], Promise], now: int
    ) -> bool:
        """Promise, and answer with ``promise(record)`` once that is durable. False where it was refused."""
        instance, ballot = prepare.instance, prepare.ballot
        record = self.record(instance)
        if record is not None and ballot < record.promised:
            reply(Reject(*instance, ballot, record.promised))
            return False
        if record is None or ballot > record.promised:
            self._promise(instance, ballot, record)

        def answer() -> None:
            present = self.record(instance)
            if present is not None and present.promised == ballot:
                reply(promise(present))

        self._when_durable("promise", (instance, ballot), answer, now)
        return True

    def on_accept(self, accept: Accept, reply: Reply, now: int) -> bool:
        """Accept, and answer once that is durable. False where it was refused."""
        instance, ballot = accept.instance, accept.ballot
        record = self.record(instance)
        if record is not None and ballot < record.promised:
            reply(Reject(*instance, ballot, record.promised))
            return False
        if record is None or record.accepted_ballot != ballot:
            self._store.change(paxos=PaxosRecord(*instance, ballot, ballot, accept.configuration))

        def answer() -> None:
            present = self.record(instance)
            if present is not None and present.accepted_ballot == ballot:
                reply(Accepted(*instance, ballot, self._store_id))

        self._when_durable("accepted", (instance, ballot), answer, now)
        return True

    def _when_durable(
        self, what: str, to: tuple[Instance, Ballot], answer: Callable[[], None], now: int
    ) -> None:
        """Of each kind one answer waits: that to the newest ballot. It is not given twice because it was asked for
        twice."""
        if self._waiting.get(what) == to:
            return
        self._waiting[what] = to

        def written(_: int) -> None:
            del self._waiting[what]
            answer()

        self._store.when_durable(written, now, key=what)

    def _promise(self, instance: Instance, ballot: Ballot, record: PaxosRecord | None) -> None:
        accepted = (record.accepted_ballot, record.accepted) if record is not None else (None, None)
        self._store.change(paxos=PaxosRecord(*instance, ballot, *accepted))
