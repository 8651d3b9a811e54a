"""What scenario scripts are made of: rules that lose datagrams, programs that publish, and words for the transcript."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from ocfcluster.errors import Malformed
from ocfcluster.ipc.memberships import Memberships
from ocfcluster.protocol.effects import GroupChange, HistoryLost, Notification, Outcome, State, StateChange
from ocfcluster.simulator.describe import message_type
from ocfcluster.simulator.history import History
from ocfcluster.simulator.host import Host
from ocfcluster.simulator.network import Network
from ocfcluster.simulator.shell import Connection
from ocfcluster.wire import control
from ocfcluster.wire.datagram import MessageType
from ocfcluster.wire.group import GroupEvent, LeaveReason, is_group
from ocfcluster.wire.run import RunKind, build_run

if TYPE_CHECKING:
    from ocfcluster.simulator.scenario import Scenario

SHOWN_TEXT: Final = 24  # characters of an event's data

Loses = Callable[[bytes], bool]
Nodes = int | Sequence[int]


class Rule:
    """Loses datagrams while it is in force, and counts them."""

    __slots__ = ("_destinations", "_kinds", "_loses", "_most", "_sources", "lost", "what")

    def __init__(
        self,
        kinds: tuple[MessageType, ...],
        sources: list[int],
        destinations: list[int],
        loses: Loses | None,
        most: int = 0,
    ) -> None:
        self._kinds = kinds
        self._sources = sources
        self._destinations = destinations
        self._loses = loses
        self._most = most  # datagrams to lose, 0: all
        self.lost = 0
        self.what = ""

    def __call__(self, source: int, destination: int, datagram: bytes) -> bool:
        if self._most and self.lost >= self._most:
            return False
        if self._sources and source not in self._sources:
            return False
        if self._destinations and destination not in self._destinations:
            return False
        if self._kinds and message_type(datagram) not in self._kinds:
            return False
        if self._loses is not None and not self._loses(datagram):
            return False
        self.lost += 1
        return True


class LateRule(Rule):
    """Datagrams of these kinds take so much longer."""

    __slots__ = ("_delay_ns", "_network")

    def __init__(
        self,
        network: Network,
        kinds: tuple[MessageType, ...],
        sources: list[int],
        destinations: list[int],
        delay_ns: int,
    ) -> None:
        super().__init__(kinds, sources, destinations, None)
        self._network = network
        self._delay_ns = delay_ns

    def __call__(self, source: int, destination: int, datagram: bytes) -> bool:
        if not super().__call__(source, destination, datagram):
            return False
        self._network.late(source, destination, datagram, self._delay_ns)
        return True


class Unanswered(NamedTuple):
    """A run that its program keeps until it is answered."""

    first: int
    datas: list[bytes]
    topic_id: int


class ScriptPublisher:
    """A program that publishes what the script says, and does what the client library does when its agent goes: it
    connects to the next one, sends again what is unanswered, and opens a new producer in a new history."""

    __slots__ = (
        "_history",
        "_host",
        "_line",
        "_name",
        "_scenario",
        "_unanswered",
        "next_number",
        "producer",
        "unknown",
    )

    def __init__(self, scenario: Scenario, host: Host, name: str) -> None:
        self._scenario = scenario
        self._host = host
        self._name = name
        self._line: Connection | None = None
        self._history: History | None = None
        self._unanswered: deque[Unanswered] = deque()
        self.producer = 0
        self.next_number = 1
        self.unknown = 0  # publications whose outcome nobody can say
        self._connect()
        scenario.wait_for(lambda: self.producer != 0, f"a producer for {name} on node {host.node_id}")

    @property
    def unanswered(self) -> int:
        """Publications that wait for their receipt."""
        return sum(len(run.datas) for run in self._unanswered)

    def publish(self, topic: str, *texts: str | bytes, quiet: bool = False) -> None:
        """One run of these events; ``quiet`` leaves it out of the transcript. Goes out when there is an agent."""
        datas = [text.encode() if isinstance(text, str) else text for text in texts]
        node = self._host.running.node
        known = node.groups.by_name[topic].topic if is_group(topic) else node.topics[topic]
        topic_id = known.topic_id
        if not quiet:
            what = ", ".join(message_words(data) if is_group(topic) else short(data) for data in datas)
            self._scenario.say(f"{self._name} on node {self._host.node_id} publishes to {topic}: {what}")
        run = Unanswered(self.next_number, datas, topic_id)
        self.next_number += len(datas)
        if self._history is None:
            raise LookupError("a publisher without a producer")
        for place, data in enumerate(datas):
            self._scenario.world.checker.published(
                self._history, self._host.node_id, self.producer, run.first + place, topic_id, data
            )
        self._unanswered.append(run)
        if self._line is not None and self._line.open:
            self._send(self._line, run)

    def _send(self, line: Connection, run: Unanswered) -> None:
        line.publish(build_run(RunKind.PUBLICATION, run.topic_id, self.producer, run.first, run.datas))

    def look(self) -> None:
        """Connects again where the connection is lost."""
        if self._line is None or not self._line.open:
            self._connect()

    def _connect(self) -> None:
        self._line = line = self._host.connect(self._receipt)
        if line is None:
            return
        if self.producer and line.history is not self._history:
            self.unknown += self.unanswered
            self._give_up()
        if not self.producer:
            line.control(control.Open(), self._opened)
        elif self._unanswered:
            self._scenario.say(
                f"{self._name} on node {self._host.node_id} resends {self.unanswered} unanswered"
            )
            for run in self._unanswered:
                self._send(line, run)

    def _give_up(self) -> None:
        history = self._history
        for run in self._unanswered:
            for place in range(len(run.datas)):
                if history is not None:
                    history.publications[self.producer, run.first + place].unknown = True
        self._unanswered.clear()
        self.producer = 0

    def _opened(self, outcome: Outcome) -> None:
        if not outcome.error and self._line is not None and self._line.open:
            self.producer = outcome.value
            self.next_number = 1
            self._history = self._line.history

    def _receipt(self, outcome: Outcome) -> None:
        if outcome.producer != self.producer:
            return
        self._scenario.receipts[self._host.node_id].append(outcome)
        end = outcome.first_number + outcome.count
        while self._unanswered and self._unanswered[0].first < end:
            run = self._unanswered.popleft()
            if run.first + len(run.datas) > end:
                left = end - run.first
                self._unanswered.appendleft(Unanswered(end, run.datas[left:], run.topic_id))
                break


def nodes_of(given: Nodes) -> list[int]:
    return [given] if isinstance(given, int) else list(given)


def listed(given: Nodes) -> str:
    return ", ".join(f"node {node}" for node in sorted(nodes_of(given)))


def wish(value: object) -> str:
    if isinstance(value, State):
        return value.value
    if isinstance(value, tuple | list):
        return " ".join(map(str, value))
    return str(value)


def numbers_text(first: int, count: int) -> str:
    return f"{first}" if count == 1 else f"{first}-{first + count - 1}"


def notice_text(notice: Notification | HistoryLost | StateChange) -> str:
    """What a node tells its programs about itself, or how it ended."""
    if isinstance(notice, Notification):
        return f"says {notice.code.value} (m_sequence {notice.m_sequence})"
    if isinstance(notice, HistoryLost):
        return "says that its history has ended"
    return f"is {notice.state.value}: {notice.reason}"


def short(data: bytes) -> str:
    text = data.decode(errors="replace")
    return text if len(text) <= SHOWN_TEXT else f"{text[:8]}… of {len(data)} B"


class ScriptMember:
    """A program that is a member of a group, until it leaves, dies, or loses its agent."""

    __slots__ = ("_group", "_line", "_memberships", "_name", "_node", "_scenario", "member")

    def __init__(self, scenario: Scenario, host: Host, group: str, name: str) -> None:
        self._scenario = scenario
        self._node = host.node_id
        self._group = group
        self._name = name
        self.member = 0
        line = host.connect()
        if line is None:
            raise LookupError(f"nobody serves programs on node {host.node_id}")
        self._line = line
        self._memberships = Memberships(
            lambda operand, then: line.control(operand, lambda outcome: then(outcome.error, outcome.value)), 0
        )
        errors: list[int] = []

        def joined(error: int, member: int) -> None:
            errors.append(error)
            self.member = member

        self._memberships.join(group, joined)
        scenario.wait_for(lambda: bool(errors), f"the JOIN of {name}")
        text = f": errno {errors[0]}" if errors[0] else f" as member {self.member}"
        scenario.say(f"{name} on node {host.node_id} joins {group}{text}")

    def leaves(self) -> None:
        """In order; the LEAVE is on its way when this returns."""
        self._scenario.say(f"{self._name} on node {self._node} leaves {self._group}")
        self._memberships.leave(self._group, _ignore)

    def dies(self) -> None:
        """Its agent sees it."""
        self._scenario.say(f"{self._name} on node {self._node} dies")
        self._memberships.end(LeaveReason.DIED)


def _ignore(error: int, member: int) -> None:
    """Nobody waits for the answer."""
    del error, member


def change_words(change: GroupChange) -> str:
    """A JOIN or LEAVE in a transcript: who, and who is left."""
    moves = " ".join([f"+{one.member}" for one in change.joined] + [f"-{one.member}" for one in change.left])
    why = f" {LeaveReason(change.reason).name.lower()}" if change.reason else ""
    return f"[{moves}{why}: {' '.join(str(one.member) for one in change.members)}]"


def message_words(data: bytes) -> str:
    """A message in a group, in a transcript."""
    try:
        opened = GroupEvent.decode(data)
    except Malformed:
        return short(data)
    return f"{opened.code.name.lower()} from {opened.member or 'no member'} {short(opened.data)}"
