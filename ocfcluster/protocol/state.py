"""The replicated state: topics, their counters, groups, and producers. A function of the ordered log and C_e alone.

Every node applies the same runs in the same order, so it holds the same state at the same position. Nothing here may
depend on anything else: no clock, no node's own settings, no iteration over sets.
"""

from __future__ import annotations

import errno
import struct
from collections import deque
from typing import Final

import msgspec
from xxhash import xxh3_64_intdigest

from ocfcluster import limits
from ocfcluster.errors import MalformedRun, MalformedSnapshot
from ocfcluster.limits import RUN_HEADER_BYTES
from ocfcluster.protocol.effects import Delivery, Directed, Item, Outcome, Topic, TopicChange, View
from ocfcluster.protocol.group_commands import GROUP_OPERANDS, carry_out, depart
from ocfcluster.protocol.groups import FIRST_GROUP_ID, GroupImage, GroupTable, Process
from ocfcluster.protocol.node_table import TABLE_OPERANDS, NodeTable
from ocfcluster.protocol.retention import Retained, RetainedImage
from ocfcluster.protocol.settings import U32, U64, Configuration, Counted, Limits, Record, TopicRow
from ocfcluster.protocol.validity import configuration_fault, is_table, vote_fault
from ocfcluster.wire import control
from ocfcluster.wire.run import HEADER, RunHeader, RunKind, largest_event
from ocfcluster.wire.topics import DEFAULT_SETTINGS, TopicSettings, settings_fault

_VOID: Final = int(RunKind.VOID)  # a number: an enum's members cost more to look up
FIRST_TOPIC_ID: Final = 16  # ids below are pre-created topics
MEMBERSHIP_TOPIC: Final = Topic(1, "oc.membership", False)
CONNECTIVITY_TOPIC: Final = Topic(2, "oc.connectivity", False)
PRE_CREATED: Final = (MEMBERSHIP_TOPIC, CONNECTIVITY_TOPIC)
_LINK: Final = struct.Struct(
    "<QIQIQQ"
)  # of the auditor's chain: position, origin, incarnation, skip, seq, ev_id


class TopicTable:
    """Topics by name and id. Ids are never used twice."""

    __slots__ = ("by_name", "by_id", "next_id")

    def __init__(self) -> None:
        self.by_name: dict[str, Topic] = {topic.name: topic for topic in PRE_CREATED}
        self.by_id: dict[int, Topic] = {topic.topic_id: topic for topic in PRE_CREATED}
        self.next_id = FIRST_TOPIC_ID

    @classmethod
    def of(cls, rows: list[TopicRow], next_id: int) -> TopicTable:
        """A table with the topics of ``rows`` beside the pre-created ones."""
        table = cls()
        for row in rows:
            table._put(Topic(*row))
        table.next_id = max(FIRST_TOPIC_ID, next_id)
        return table

    @property
    def rows(self) -> list[TopicRow]:
        """All but the pre-created topics, by id."""
        return [
            (one.topic_id, one.name, one.local, one.settings)
            for one in self.by_id.values()
            if one.topic_id >= FIRST_TOPIC_ID
        ]

    @property
    def digest(self) -> int:
        """Equal where two tables are; never 0."""
        return topics_digest(self.rows, self.next_id)

    def apply(self, operand: control.Operand, bounds: Limits) -> tuple[int, Topic | None, TopicChange | None]:
        """Carry out one ordered command: (errno or 0, the topic it is about, the change it made)."""
        if isinstance(operand, control.TopicCreate):
            return self._create(operand, bounds)
        if isinstance(operand, control.TopicAlter):
            return self._alter(operand.name, operand.settings)
        if isinstance(operand, control.TopicRemove):
            return self._remove(operand.name)
        return errno.EINVAL, None, None

    def _put(self, topic: Topic) -> None:
        self.by_name[topic.name] = self.by_id[topic.topic_id] = topic

    def _create(
        self, wanted: control.TopicCreate, bounds: Limits
    ) -> tuple[int, Topic | None, TopicChange | None]:
        name, settings = wanted.name, wanted.settings
        known = self.by_name.get(name)
        if known is not None:
            as_good = known.local == wanted.local and settings in (known.settings, DEFAULT_SETTINGS)
            return (0 if as_good else errno.EEXIST), known, None
        if not valid_name(name) or (name.startswith(limits.GROUP_PREFIX) and not wanted.local):
            return (
                errno.EINVAL,
                None,
                None,
            )  # what is called like a group carries no events: it says who may use it
        if reserved(name):
            return errno.EPERM, None, None
        if len(self.by_name) >= bounds.topics:
            return errno.ENOMEM, None, None
        topic = Topic(self.next_id, name, wanted.local, settings)
        self.next_id += 1
        self._put(topic)
        return 0, topic, TopicChange(topic, removed=False)

    def _alter(self, name: str, settings: TopicSettings) -> tuple[int, Topic | None, TopicChange | None]:
        topic = self.by_name.get(name)
        if topic is None:
            return errno.EINVAL, None, None
        if topic.topic_id < FIRST_TOPIC_ID:
            return errno.EPERM, topic, None
        if topic.settings == settings:
            return 0, topic, None
        before = topic.settings
        topic = topic._replace(settings=settings)
        self._put(topic)
        return 0, topic, TopicChange(topic, removed=False, altered=True, before=before)

    def _remove(self, name: str) -> tuple[int, Topic | None, TopicChange | None]:
        topic = self.by_name.get(name)
        if topic is None:
            return errno.EINVAL, None, None
        if reserved(name):
            return errno.EPERM, topic, None
        del self.by_name[name]
        del self.by_id[topic.topic_id]
        return 0, topic, TopicChange(topic, removed=True)


def topics_digest(rows: list[TopicRow], next_id: int) -> int:
    """A number that is equal where two topic tables are; never 0."""
    encoded = msgspec.msgpack.encode((sorted(rows), max(FIRST_TOPIC_ID, next_id)))
    return xxh3_64_intdigest(encoded) or 1


def topics_fault(rows: list[TopicRow], next_id: int) -> str:
    """What is wrong with a topic table that came from elsewhere; empty: nothing."""
    ids, names = {row[0] for row in rows}, {row[1] for row in rows}
    good = (
        len(ids) == len(names) == len(rows) <= limits.TOPICS
        and all(FIRST_TOPIC_ID <= one < max(next_id, FIRST_TOPIC_ID) for one in ids)
        and all(valid_name(one) and not reserved(one) for one in names)
        and not any(settings_fault(row[3]) for row in rows)
        and next_id < FIRST_GROUP_ID
    )
    return "" if good else "topics"


def record_fault(record: Record) -> str:
    """What is wrong with what a node finds on its disk; empty: nothing."""
    about, vote = record.configuration, record.paxos
    return (
        (configuration_fault(about) if about is not None else "")
        or topics_fault(record.topics, record.next_topic_id)
        or (vote_fault(vote) if vote is not None else "")
    )


def valid_name(name: str) -> bool:
    """Whether a topic may be called so: 1 to TOPIC_NAME_BYTES bytes of UTF-8 without NUL."""
    try:
        return 0 < len(name.encode()) <= limits.TOPIC_NAME_BYTES and "\0" not in name
    except UnicodeEncodeError:
        return False


def reserved(name: str) -> bool:
    """Whether only the cluster itself makes, removes and publishes to topics of this name."""
    return name.startswith((limits.RESERVED_PREFIX, limits.RESERVED_ALIAS_PREFIX))


class ProducerEntry:
    """What the order remembers of one producer."""

    __slots__ = ("node_id", "next_number", "outcomes", "last_position")

    def __init__(self, node_id: int, position: int, remembered: int) -> None:
        self.node_id = node_id
        self.next_number = 1
        # (first number, count, errno, seq, ev_id) of its last runs, to answer repeats with
        self.outcomes: deque[tuple[int, int, int, int, int]] = deque(maxlen=remembered)
        self.last_position = position


_POSITION_BITS: Final = 43  # of a producer's id; below the bit that marks the ids of local producers
_EPOCH_MASK: Final = (1 << 20) - 1


class ReplicatedState:
    """Applies runs in their order. ``position`` counts them; with the epoch it is the id of a producer opened there."""

    __slots__ = (
        "_limits", "m_sequence", "topics", "last_seq", "ev_id", "position", "producers", "_per_node",
        "configuration", "node_table", "shut_down", "chain", "groups", "retained", "_kept",
    )  # fmt: skip

    def __init__(self, configuration: Configuration, topics: TopicTable | None = None) -> None:
        """The state of a history at its beginning: nothing but the topics it begins with."""
        self._limits = configuration.limits
        self.configuration: Configuration | None = None  # of the last view applied
        self.node_table = NodeTable(configuration)
        self.shut_down = False  # the whole cluster was told to stop
        self.chain = 0  # of the order auditor: over all that was delivered
        self.m_sequence = 0
        self.topics = topics or TopicTable()
        self.groups = GroupTable()
        self.last_seq: dict[int, int] = dict.fromkeys(self.topics.by_id, 0)
        self.ev_id = 0
        self.position = 0
        self.producers: dict[int, ProducerEntry] = {}
        self._per_node: dict[int, dict[int, ProducerEntry]] = {}  # the same producers, of each node
        self.retained = Retained()
        self._kept = self.retained.topics
        for topic in self.topics.by_id.values():
            self._retain(topic, 0)

    def _retain(self, topic: Topic, order_time: int) -> None:
        """A topic is as its settings say from here on; what is kept of local ones is their agents' business."""
        if not topic.local:
            self.retained.alter(topic.topic_id, topic.settings.retention, order_time)

    def view(self, configuration: Configuration, items: list[Item]) -> None:
        """A view takes its place in the order: an event where the members are others than before."""
        before = self.configuration.members if self.configuration is not None else []
        self.configuration = configuration
        self._limits = configuration.limits
        self.retained.grow_old(configuration.order_time)
        self.node_table = NodeTable(configuration)
        known = {(member.node_id, member.incarnation) for member in before}
        present = {(member.node_id, member.incarnation) for member in configuration.members}
        joined = tuple(one for one in configuration.members if (one.node_id, one.incarnation) not in known)
        left = tuple(one for one in before if (one.node_id, one.incarnation) not in present)
        seq = ev_id = 0
        if configuration.m_sequence != self.m_sequence:
            self.m_sequence = configuration.m_sequence
            self.ev_id += 1
            self.last_seq[MEMBERSHIP_TOPIC.topic_id] += 1
            seq, ev_id = self.last_seq[MEMBERSHIP_TOPIC.topic_id], self.ev_id
        for producer_id in [
            key for key, one in self.producers.items() if one.node_id not in configuration.table
        ]:
            self._close(producer_id)
        items.append(View(configuration, seq, ev_id, joined, left))
        if left:
            depart(self, present, configuration.order_time, items)
        link = _LINK.pack(
            self.position, configuration.epoch, configuration.base, len(joined), seq, self.ev_id
        )
        self.chain = xxh3_64_intdigest(link + configuration.cluster_id.encode(), self.chain)

    def apply(  # noqa: C901 - in one piece: what it called would be paid for each run
        self, run: bytes, node_id: int, incarnation: int, order_time: int, own: bool, items: list[Item]
    ) -> None:
        """Number and deliver one checked run; outcomes are added to ``items`` where the run is this node's own."""
        self.position += 1
        (
            _, kind, _, _, _, topic_id, count, producer_id, first_number, re_id, _, event_length, _,
        ) = HEADER.unpack_from(run)  # fmt: skip
        if kind > _VOID:
            self._control(run, node_id, incarnation, order_time, own, items)
            self.chain = xxh3_64_intdigest(
                _LINK.pack(self.position, node_id, incarnation, kind, 0, self.ev_id), self.chain
            )
            return
        producer = self.producers.get(producer_id)
        if producer is None or producer.node_id != node_id or first_number > producer.next_number:
            if own:
                jump = producer is not None and producer.node_id == node_id
                code = errno.EILSEQ if jump else errno.EBADF
                items.append(Outcome(kind, producer_id, first_number, count, code, 0, 0, 0))
            return
        producer.last_position = self.position
        skip = producer.next_number - first_number
        if skip:
            if own:
                _answer_repeats(producer, kind, producer_id, first_number, min(count, skip), items)
            if skip >= count:
                return
        fresh = count - skip
        number = first_number + skip
        producer.next_number = number + fresh
        if kind == _VOID:
            error = re_id & 0xFFFF or errno.EIO
        else:
            seq = self.last_seq.get(topic_id)
            if seq is None:
                error = self._group_run(
                    run,
                    topic_id,
                    count,
                    skip,
                    number,
                    producer,
                    (node_id, incarnation),
                    order_time,
                    own,
                    items,
                )
                if not error:
                    return
            elif self.topics.by_id[topic_id].local:
                error = errno.EINVAL
            elif event_length <= self._limits.event_bytes or largest_event(run) <= self._limits.event_bytes:
                ev_id = self.ev_id + 1
                self.ev_id += fresh
                self.last_seq[topic_id] = seq + fresh
                producer.outcomes.append((number, fresh, 0, seq + 1, ev_id))
                link = _LINK.pack(self.position, node_id, incarnation, skip, seq + 1, ev_id)
                self.chain = xxh3_64_intdigest(link + run[:RUN_HEADER_BYTES], self.chain)
                delivery = Delivery(
                    run, topic_id, count, skip, seq + 1, ev_id, node_id, incarnation, self.m_sequence, order_time
                )  # fmt: skip
                items.append(delivery)
                if topic_id in self._kept:
                    self.retained.add(delivery)
                if own:
                    items.append(Outcome(kind, producer_id, number, fresh, 0, seq + 1, ev_id, 0))
                return
            else:
                error = errno.EMSGSIZE
        producer.outcomes.append((number, fresh, error, 0, 0))
        if own:
            items.append(Outcome(kind, producer_id, number, fresh, error, 0, 0, 0))

    def seq_of(self, topic_id: int) -> int:
        """The seq of the last event of a topic, or group; 0 where there is none."""
        group = self.groups.by_id.get(topic_id)
        return self.last_seq.get(topic_id, 0) if group is None else group.last_seq

    def _group_run(
        self, run: bytes, topic_id: int, count: int, skip: int, number: int, producer: ProducerEntry,
        process: Process, order_time: int, own: bool, items: list[Item],
    ) -> int:  # fmt: skip
        """Number and deliver a run whose topic is none of the table's, where it is a group; or an errno. As ``apply``
        does it for the others, whose cost is not to depend on groups."""
        group, to, error = self.groups.takes(run, topic_id, self._limits.event_bytes)
        if group is None:
            return error
        fresh = count - skip
        seq, ev_id = group.last_seq + 1, self.ev_id + 1
        group.last_seq += fresh
        self.ev_id += fresh
        producer.outcomes.append((number, fresh, 0, seq, ev_id))
        link = _LINK.pack(self.position, *process, skip, seq, ev_id)
        self.chain = xxh3_64_intdigest(link + run[:RUN_HEADER_BYTES], self.chain)
        delivery = Delivery(run, topic_id, count, skip, seq, ev_id, *process, self.m_sequence, order_time)
        items.append(Directed(delivery, to) if to else delivery)
        if own:
            header = RunHeader._make(HEADER.unpack_from(run))
            items.append(Outcome(header.kind, header.producer, number, fresh, 0, seq, ev_id, 0))
        return 0

    def _control(
        self, run: bytes, node_id: int, incarnation: int, order_time: int, own: bool, items: list[Item]
    ) -> None:
        header = RunHeader._make(HEADER.unpack_from(run))
        value = 0
        self.retained.clock = order_time
        try:
            operand = control.read_operand(run, header)
        except MalformedRun:
            error = errno.EINVAL
        else:
            if isinstance(operand, control.Open):
                error, value = self._open(node_id)
            elif isinstance(operand, control.Close):
                producer = self.producers.get(operand.producer)
                known = producer is not None and producer.node_id == node_id
                error = self._close(operand.producer) if known else errno.EBADF
            elif isinstance(operand, control.Barrier):
                error = 0
            elif isinstance(operand, TABLE_OPERANDS):
                error = self.node_table.apply(operand)
            elif isinstance(operand, control.Shutdown):
                error = 0
                self.shut_down = True
            elif isinstance(operand, GROUP_OPERANDS):
                error, value = carry_out(self, operand, (node_id, incarnation), order_time, items)
            else:
                error, topic, change = self.topics.apply(operand, self._limits)
                value = topic.topic_id if topic else 0
                if change is not None:
                    if change.removed:
                        change = change._replace(last_seq=self.last_seq.pop(change.topic.topic_id))
                        self.retained.forget(change.topic.topic_id)
                    else:
                        self.last_seq.setdefault(change.topic.topic_id, 0)
                        self._retain(change.topic, order_time)
                    items.append(change)
        if own:
            items.append(Outcome(header.kind, header.producer, header.first_number, 1, error, 0, 0, value))

    def _open(self, node_id: int) -> tuple[int, int]:
        own = self._per_node.setdefault(node_id, {})
        if len(own) >= self._limits.producers_per_node:
            self._forget_idle(node_id)
            if len(own) >= self._limits.producers_per_node:
                return errno.ENOMEM, 0
        epoch = self.configuration.epoch if self.configuration is not None else 0
        # With agreed delivery an OPEN may be lost and its position given again, but never in the same epoch.
        producer_id = (epoch & _EPOCH_MASK) << _POSITION_BITS | self.position
        entry = ProducerEntry(node_id, self.position, self._limits.producer_runs)
        self.producers[producer_id] = own[producer_id] = entry
        return 0, producer_id

    def producers_of(self, node_id: int) -> list[int]:
        """The producers of one node, those first that the order has met longest ago."""
        own = self._per_node.get(node_id, {})
        return sorted(own, key=lambda producer_id: own[producer_id].last_position)

    def restore_producer(
        self, producer_id: int, node_id: int, next_number: int, last_position: int,
        outcomes: list[tuple[int, int, int, int, int]],
    ) -> None:  # fmt: skip
        """A producer as a snapshot has it."""
        entry = ProducerEntry(node_id, last_position, self._limits.producer_runs)
        entry.next_number = next_number
        entry.outcomes.extend(outcomes)
        self.producers[producer_id] = entry
        self._per_node.setdefault(node_id, {})[producer_id] = entry

    def _close(self, producer_id: int) -> int:
        producer = self.producers.pop(producer_id, None)
        if producer is None:
            return errno.EBADF
        del self._per_node[producer.node_id][producer_id]
        return 0

    def _forget_idle(self, node_id: int) -> None:
        """Drop producers of this node that the order has not met for PRODUCER_MEMORY_POSITIONS."""
        oldest = self.position - limits.PRODUCER_MEMORY_POSITIONS
        idle = [
            producer_id
            for producer_id, producer in self._per_node[node_id].items()
            if producer.last_position < oldest
        ]
        for producer_id in idle:
            self._close(producer_id)


# first number, count, errno, seq, ev_id
OutcomeImage = tuple[U64, U32, U32, Counted, Counted]


class StateImage(msgspec.Struct, array_like=True, frozen=True):
    """A ReplicatedState in a snapshot."""

    configuration: Configuration
    votes: dict[int, int]
    wanted_sequencer: U32
    m_sequence: U32
    topics: list[TopicRow]
    next_topic_id: U32
    last_seq: list[tuple[U32, Counted]]
    ev_id: Counted
    position: Counted
    chain: U64
    # (id, node_id, next number, last position, outcomes)
    producers: list[tuple[Counted, U32, U64, Counted, list[OutcomeImage]]]
    groups: list[GroupImage]
    next_group_id: Counted
    retained: RetainedImage  # its runs follow the header


def state_image(state: ReplicatedState, retained: RetainedImage | None = None) -> StateImage:
    """What ``state`` is now, with ``retained`` in the place of what is kept where that is given. Nothing of it changes
    any more. At least one view has been applied."""
    if state.configuration is None:
        raise RuntimeError("a state without a view has no image")
    return StateImage(
        state.configuration, dict(state.node_table.votes), state.node_table.wanted_sequencer, state.m_sequence,
        state.topics.rows, state.topics.next_id, list(state.last_seq.items()), state.ev_id, state.position, state.chain,
        [
            (key, one.node_id, one.next_number, one.last_position, list(one.outcomes))
            for key, one in state.producers.items()
        ],
        state.groups.images, state.groups.next_id,
        state.retained.taken().image() if retained is None else retained,
    )  # fmt: skip


def restored_state(image: StateImage) -> ReplicatedState:
    """The state that ``image`` was made of, but for the runs that are kept. Raises MalformedSnapshot for what cannot
    be one."""
    configuration = image.configuration
    fault = configuration_fault(configuration) or topics_fault(image.topics, image.next_topic_id)
    state = ReplicatedState(configuration, TopicTable.of(image.topics, image.next_topic_id))
    if fault or not is_table(image.votes) or len(image.last_seq) != len(state.topics.by_id):
        raise MalformedSnapshot(f"a state that cannot be: {fault or 'votes, topics'}")
    state.configuration = configuration
    state.node_table.votes = dict(image.votes)
    state.node_table.wanted_sequencer = image.wanted_sequencer
    state.m_sequence = image.m_sequence
    state.last_seq = dict(image.last_seq)
    state.ev_id = image.ev_id
    state.position = image.position
    state.chain = image.chain
    state.groups = GroupTable.of(image.groups, image.next_group_id)
    for key, node_id, next_number, last_position, outcomes in image.producers:
        state.restore_producer(key, node_id, next_number, last_position, outcomes)
    if state.last_seq.keys() != state.topics.by_id.keys() or len(state.producers) != len(image.producers):
        raise MalformedSnapshot(
            "a state that cannot be: numbers of topics that are not there, or a producer twice"
        )
    return state


def _answer_repeats(
    producer: ProducerEntry, kind: int, producer_id: int, first: int, count: int, items: list[Item]
) -> None:
    """Outcomes of publications that came before, from what the order remembers of them."""
    at, end = first, first + count
    for number, many, error, seq, ev_id in producer.outcomes:
        stop = min(end, number + many)
        if stop <= at:
            continue
        if number > at:  # forgotten: older than anything that may still be unanswered
            items.append(Outcome(kind, producer_id, at, min(number, end) - at, errno.EIO, 0, 0, 0))
            at = min(number, end)
        if at >= end:
            return
        ahead = at - number
        items.append(
            Outcome(
                kind, producer_id, at, stop - at, error,
                seq + ahead if seq else 0, ev_id + ahead if ev_id else 0, 0,
            )
        )  # fmt: skip
        at = stop
    if at < end:
        items.append(Outcome(kind, producer_id, at, end - at, errno.EIO, 0, 0, 0))
