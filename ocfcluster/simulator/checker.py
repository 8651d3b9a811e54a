"""The oracle: what was promised, checked from outside while it happens.

There is one global sequence. The first node to deliver an item extends it, and the item is judged then; every other
node must deliver the same item at the same place. Receipts are compared with what their node has delivered.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from xxhash import xxh3_64_intdigest

from ocfcluster.errors import MalformedRun
from ocfcluster.limits import SECOND_NS, SLOW_SUBSCRIBER_TIMEOUT_NS
from ocfcluster.protocol.effects import Delivery, Fault, Outcome, Topic, TopicChange
from ocfcluster.simulator import observe
from ocfcluster.simulator.trace import Violation
from ocfcluster.wire.run import RunKind, check_run, run_events, verify_checksum

if TYPE_CHECKING:
    from ocfcluster.simulator.host import Host
    from ocfcluster.simulator.world import World

FIRST_OWN_TOPIC: Final = 16
PRE_CREATED: Final = {1: "oc.membership", 2: "oc.connectivity"}
STATUS_EVERY: Final = 64  # bursts of a node between two looks at its status
HONEST_REFUSALS: Final = (
    errno.EINVAL,
    errno.EPERM,
)  # what a correct publisher may be told of one publication
ANSWERED: Final = -1  # instead of the time it was published at
SUBSCRIBERS_ARE_WAITED_FOR_NS: Final = SLOW_SUBSCRIBER_TIMEOUT_NS  # then the subscriber pays, not the cluster
CLOCK_SLACK_NS: Final = 5 * SECOND_NS


class Publication:
    """One event as it was published, and what became of it."""

    __slots__ = (
        "data_digest",
        "error",
        "ev_id",
        "origin",
        "position",
        "published_at",
        "seq",
        "topic_id",
        "void",
    )

    def __init__(self, origin: int, topic_id: int, data: bytes, void: int, published_at: int) -> None:
        self.origin = origin
        self.topic_id = topic_id
        self.data_digest = xxh3_64_intdigest(data)
        self.void = void  # errno, where its agent refused it
        self.published_at = published_at
        self.position = -1  # in the global sequence, once delivered anywhere
        self.seq = 0
        self.ev_id = 0
        self.error = 0  # what its publisher was told, once refused


class TopicState:
    """A topic as the global sequence shows it."""

    __slots__ = ("last_seq", "topic")

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.last_seq = 0


class Checker:
    """Sees every item that every node delivers. ``sequence`` is what the cluster agreed on."""

    __slots__ = (
        "_bursts",
        "_changes",
        "_delivery",
        "_first_order_time",
        "_incarnations",
        "_last_ev_id",
        "_last_number",
        "_names",
        "_next_topic_id",
        "_order_time",
        "_topics",
        "_world",
        "commit_latencies",
        "events",
        "faults",
        "publications",
        "receipts",
        "sequence",
    )

    def __init__(self, world: World, delivery: str) -> None:
        self._world = world
        self._delivery = delivery
        self._topics = {
            number: TopicState(Topic(number, name, local=False)) for number, name in PRE_CREATED.items()
        }
        self._names = {name: number for number, name in PRE_CREATED.items()}
        self._next_topic_id = FIRST_OWN_TOPIC
        self._last_ev_id = 0
        self._order_time = 0  # the last one
        self._first_order_time = 0
        self._last_number: dict[int, int] = {}
        self._incarnations: dict[int, int] = {}
        self._bursts: Counter[int] = Counter()
        self._changes: list[tuple[int, TopicChange]] = []
        self.sequence: list[Delivery | TopicChange] = []
        self.publications: dict[tuple[int, int], Publication] = {}
        self.events = 0  # publications delivered, each counted once
        self.receipts = 0
        self.commit_latencies: list[int] = []  # ns from a publication to its receipt
        self.faults: Counter[str] = Counter()

    # --- what programs tell -------------------------------------------------------------------------------------

    def published(
        self, origin: int, producer: int, number: int, topic_id: int, data: bytes, void: int = 0
    ) -> None:
        """An honest program hands in a publication for the first time."""
        self.publications[producer, number] = Publication(origin, topic_id, data, void, self._world.now)

    def complain(self, rule: str, text: str) -> None:
        """A program got an answer it must not get."""
        raise Violation(rule, text)

    # --- what nodes do ------------------------------------------------------------------------------------------

    def started(self, host: Host) -> None:
        self._incarnations[host.node_id] = host.profile.settings.incarnation

    def state_changed(self, host: Host) -> None:
        """All nodes that have a configuration have the same one."""
        mine = host.node.configuration
        if mine is None:
            return
        for other in self._world.hosts.values():
            theirs = other.node.configuration
            if theirs is not None and theirs.epoch == mine.epoch and theirs != mine:
                raise Violation(
                    "configuration", f"nodes {host.node_id} and {other.node_id} disagree: {mine} and {theirs}"
                )

    def fault(self, host: Host, fault: Fault) -> None:
        """A node says itself that something went wrong: an operator's problem, or a bug."""
        self.faults[fault.code] += 1
        if fault.code in observe.IMPOSSIBLE_FAULTS:
            raise Violation("fault", f"node {host.node_id} reports {fault.code}: {fault.text}")

    def delivered(self, host: Host, item: Delivery | TopicChange | Outcome) -> None:
        """Judge one item. Raises Violation."""
        if isinstance(item, Outcome):
            self._check_outcome(host, item)
            return
        world = self._world
        position = host.cursor
        if position == len(self.sequence):
            if isinstance(item, TopicChange):
                self._extend_topic(item)
                text = f"[{position}] topic {item.topic.topic_id} {'removed' if item.removed else 'created'}"
            else:
                self._extend(host, item, position)
                text = f"[{position}] seq {item.seq} ev_id {item.ev_id}: {world.describe_run(item.run)}"
            self.sequence.append(item)
            world.trace.add(world.now, host.node_id, "deliver", f"{text}, first")
        else:
            known = self.sequence[position]
            if known != item:
                raise Violation(
                    "agreement",
                    f"node {host.node_id} delivers at place {position} {shown(item)}; others had {shown(known)}",
                )
            world.trace.add(world.now, host.node_id, "deliver", f"[{position}]")
        host.cursor = position + 1
        if self._delivery == "safe" and isinstance(item, TopicChange):
            self._check_topic_durable(host, item)

    def after_burst(self, host: Host) -> None:
        """What must hold whenever a node has finished a burst."""
        if self._delivery == "safe":
            self._check_safe(host)
        self._bursts[host.node_id] += 1
        if self._bursts[host.node_id] % STATUS_EVERY == 0:
            self.check_bounds(host)

    def check_bounds(self, host: Host) -> None:
        """The buffers of a node, and what its slowest subscriber was given above its mark."""
        for text in observe.excesses(host.node, host.profile.settings, host.clock(), len(self._world.hosts)):
            raise Violation("bounds", f"node {host.node_id}: {text}")
        subscriber = host.subscriber
        settings = host.profile.settings
        most = subscriber.profile.mark_bytes + observe.on_the_way_bytes(settings, len(self._world.hosts))
        if subscriber.most_bytes > most and self._world.now < SUBSCRIBERS_ARE_WAITED_FOR_NS:
            raise Violation(
                "bounds",
                f"node {host.node_id}'s subscriber was full at {subscriber.profile.mark_bytes} B "
                f"and got up to {subscriber.most_bytes} B; {most} B were promised",
            )

    def check_replays(self, host: Host) -> None:
        """No datagram is taken twice."""
        taken = observe.taken_datagrams(host.node, host.clock())
        if taken > len(host.distinct):
            raise Violation(
                "replay",
                f"node {host.node_id} took {taken} datagrams of the {len(host.distinct)} it was sent",
            )

    # --- the sequence -------------------------------------------------------------------------------------------

    def _extend(self, host: Host, item: Delivery, position: int) -> None:
        """The next run of the one order: is it what was published, and numbered right?"""
        try:
            header = check_run(item.run)
        except MalformedRun as error:
            raise Violation("creation", f"node {host.node_id} delivers a malformed run: {error}") from None
        if (
            header.kind != RunKind.PUBLICATION
            or header.topic_id != item.topic_id
            or header.count != item.count
        ):
            raise Violation("creation", f"{shown(item)} does not say what its run says: {header}")
        if not verify_checksum(item.run):
            raise Violation("creation", f"the checksum of {shown(item)} is wrong")
        if not 0 <= item.skip < item.count:
            raise Violation("numbers", f"{shown(item)} skips {item.skip} of {item.count}")
        self._check_numbers(item)
        if self._incarnations.get(item.node_id) != item.incarnation:
            raise Violation(
                "creation", f"{shown(item)} names incarnation {item.incarnation:#x} of its origin"
            )
        self._check_order_time(item)
        last = self._last_number.get(header.producer, 0)
        for place, data in enumerate(run_events(item.run, header)):
            if place < item.skip:
                continue
            number = header.first_number + place
            publication = self.publications.get((header.producer, number))
            if publication is None or publication.data_digest != xxh3_64_intdigest(data):
                raise Violation("creation", f"{shown(item)}: number {number} was never published like this")
            if (
                publication.topic_id != item.topic_id
                or publication.origin != item.node_id
                or publication.void
            ):
                raise Violation("creation", f"{shown(item)}: number {number} was published otherwise")
            if publication.position >= 0:
                raise Violation("exactly once", f"{shown(item)}: number {number} was delivered before")
            if publication.error:
                raise Violation("exactly once", f"{shown(item)}: number {number} had been refused")
            if number <= last:
                raise Violation("fifo", f"{shown(item)}: number {number} comes after {last}")
            last = number
            publication.position = position
            publication.seq = item.seq + place - item.skip
            publication.ev_id = item.ev_id + place - item.skip
        self._last_number[header.producer] = last
        self.events += item.count - item.skip

    def _check_numbers(self, item: Delivery) -> None:
        fresh = item.count - item.skip
        state = self._topics.get(item.topic_id)
        if state is None or state.topic.local:
            raise Violation("topics", f"{shown(item)} belongs to a topic that is not there at its place")
        if item.seq != state.last_seq + 1:
            raise Violation("seq", f"{shown(item)} follows seq {state.last_seq}")
        if item.ev_id != self._last_ev_id + 1:
            raise Violation("ev_id", f"{shown(item)} follows ev_id {self._last_ev_id}")
        state.last_seq += fresh
        self._last_ev_id += fresh

    def _check_order_time(self, item: Delivery) -> None:
        if item.order_time < self._order_time:
            raise Violation(
                "order time", f"{shown(item)}: {item.order_time} goes back behind {self._order_time}"
            )
        if not self._order_time:
            self._first_order_time = item.order_time
        elif item.order_time - self._first_order_time > 2 * self._world.now + CLOCK_SLACK_NS:
            raise Violation("order time", f"{shown(item)}: {item.order_time} leaps ahead of the clock")
        self._order_time = item.order_time

    def _extend_topic(self, change: TopicChange) -> None:
        topic = change.topic
        if change.removed:
            state = self._topics.pop(topic.topic_id, None)
            if state is None or state.topic != topic:
                raise Violation("topics", f"{topic} is removed and was not there")
            del self._names[topic.name]
            return
        if topic.name in self._names or topic.topic_id != self._next_topic_id:
            raise Violation(
                "topics", f"{topic} is created; next id {self._next_topic_id}, topics {self._names}"
            )
        self._next_topic_id += 1
        self._names[topic.name] = topic.topic_id
        self._topics[topic.topic_id] = TopicState(topic)

    # --- receipts -----------------------------------------------------------------------------------------------

    def _check_outcome(self, host: Host, item: Outcome) -> None:
        self._world.trace.add(
            self._world.now,
            host.node_id,
            "outcome",
            f"producer {item.producer} number {item.first_number} count {item.count} "
            + (f"error {item.error}" if item.error else f"seq {item.seq} value {item.value}"),
        )
        if item.kind not in (RunKind.PUBLICATION, RunKind.VOID):
            return
        for place in range(item.count):
            number = item.first_number + place
            publication = self.publications.get((item.producer, number))
            if publication is None:
                if not item.error:
                    raise Violation(
                        "receipts", f"node {host.node_id} confirms {item}: number {number} is unknown"
                    )
                continue
            if publication.origin != host.node_id:
                raise Violation("receipts", f"node {host.node_id} answers another node's publication: {item}")
            if item.error:
                self._check_refusal(item, number, publication)
            else:
                self._check_receipt(host, item, place, publication)

    def _check_refusal(self, item: Outcome, number: int, publication: Publication) -> None:
        if item.error == errno.EBADF and publication.published_at == ANSWERED:
            return  # a repeat that came behind its producer's end, of what was answered long ago
        if publication.position >= 0:
            raise Violation("receipts", f"number {number} is refused and was delivered: {item}")
        if publication.void and item.error != publication.void:
            raise Violation("receipts", f"number {number} was void with {publication.void}: {item}")
        if item.error not in HONEST_REFUSALS:
            raise Violation("receipts", f"number {number} of an honest publisher is refused: {item}")
        publication.error = item.error
        publication.published_at = ANSWERED

    def _check_receipt(self, host: Host, item: Outcome, place: int, publication: Publication) -> None:
        number = item.first_number + place
        if publication.position < 0 or publication.position >= host.cursor:
            raise Violation(
                "receipts",
                f"node {host.node_id} confirms number {number} before it delivered it itself: {item}",
            )
        if (publication.seq, publication.ev_id) != (item.seq + place, item.ev_id + place):
            raise Violation(
                "receipts",
                f"number {number} was delivered as seq {publication.seq}, ev_id {publication.ev_id}: {item}",
            )
        if publication.published_at != ANSWERED:
            self.receipts += 1
            self.commit_latencies.append(self._world.now - publication.published_at)
            publication.published_at = ANSWERED

    # --- safe delivery ------------------------------------------------------------------------------------------

    def _check_safe(self, host: Host) -> None:
        """Nothing is delivered that is not held by more than half of the votes: also the dead held what they held."""
        configuration = host.node.configuration
        if configuration is None:
            return
        index = observe.delivered_index(host.node)
        if not host.cursor:
            return  # nothing was delivered: the view itself is not
        held = votes = 0
        for member in configuration.members:
            votes += member.votes
            other = self._world.hosts.get(member.node_id)
            if other is not None and observe.held_index(other.node) >= index:
                held += member.votes
        if 2 * held <= votes:
            raise Violation(
                "safe delivery",
                f"node {host.node_id} delivered up to index {index}, which {held} of {votes} votes hold",
            )

    def _check_topic_durable(self, host: Host, change: TopicChange) -> None:
        """A topic change is delivered only once the disks of more than half of the votes have it."""
        configuration = host.node.configuration
        if configuration is None:
            return
        durable = votes = 0
        for member in configuration.members:
            votes += member.votes
            other = self._world.hosts.get(member.node_id)
            if other is not None and observe.is_durable(other.disk.durable, change):
                durable += member.votes
        if 2 * durable <= votes:
            raise Violation(
                "durable topics",
                f"node {host.node_id} delivers {change}, which is on the disks of {durable} of {votes} votes",
            )

    # --- at the end ---------------------------------------------------------------------------------------------

    def undelivered(self) -> Iterator[str]:
        """What is not yet as it must be at the end; nothing is said of nodes that are dead."""
        for host in self._world.hosts.values():
            if host.alive and host.cursor < len(self.sequence):
                yield f"node {host.node_id} delivered {host.cursor} of {len(self.sequence)} items"
        for (producer, number), publication in self.publications.items():
            origin = self._world.hosts[publication.origin]
            if origin.alive and publication.position < 0 and not publication.error:
                yield f"producer {producer}'s number {number} (node {publication.origin}) is not answered"


def shown(item: Delivery | TopicChange) -> str:
    """An item in one line, without its data."""
    if isinstance(item, TopicChange):
        return f"{'removal' if item.removed else 'creation'} of {item.topic}"
    return f"{item._replace(run=item.run[:0])} of {len(item.run)} B"
