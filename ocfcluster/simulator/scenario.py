"""Scripts that read like the schedule they stand for, with a transcript that is compared with what was expected.

A scenario runs in a world without chance: links with one delay, disks with one speed, no faults but those asked for.
The checker watches it like any other run. ::

    scenario = Scenario(nodes=3)
    scenario.form()
    scenario.create_topic("t")
    publisher = scenario.publisher(node=2)
    lost = scenario.drop(MessageType.ACK, to=1)
    publisher.publish("t", "one")
    scenario.run(ms=20)
    scenario.show()
    print(scenario.transcript)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from ocfcluster.limits import MILLISECOND_NS, SECOND_NS
from ocfcluster.protocol.effects import Delivery, Outcome, State, TopicChange
from ocfcluster.protocol.settings import Settings
from ocfcluster.simulator import observe
from ocfcluster.simulator.describe import message_type
from ocfcluster.simulator.disk import DiskProfile
from ocfcluster.simulator.host import Host, HostProfile
from ocfcluster.simulator.network import LinkProfile
from ocfcluster.simulator.world import World
from ocfcluster.wire import control
from ocfcluster.wire.datagram import MessageType
from ocfcluster.wire.run import RunKind, build_run, read_header, run_events

PATIENCE_NS: Final = 20 * SECOND_NS
SHOWN_TEXT: Final = 24  # characters of an event's data

Loses = Callable[[bytes], bool]


class Rule:
    """Loses datagrams while it is in force, and counts them."""

    __slots__ = ("_destinations", "_kinds", "_loses", "_sources", "lost", "what")

    def __init__(
        self, kinds: tuple[MessageType, ...], sources: set[int], destinations: set[int], loses: Loses | None
    ) -> None:
        self._kinds = kinds
        self._sources = sources
        self._destinations = destinations
        self._loses = loses
        self.lost = 0
        self.what = ""

    def __call__(self, source: int, destination: int, datagram: bytes) -> bool:
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


class ScriptPublisher:
    """A program that publishes what the script says."""

    __slots__ = ("_host", "_name", "_scenario", "next_number", "producer")

    def __init__(self, scenario: Scenario, host: Host, name: str) -> None:
        self._scenario = scenario
        self._host = host
        self._name = name
        self.next_number = 1
        self.producer = scenario.command(host.node_id, control.Open()).value

    def publish(self, topic: str, *texts: str | bytes, quiet: bool = False) -> None:
        """One run of these events; ``quiet`` leaves it out of the transcript."""
        datas = [text.encode() if isinstance(text, str) else text for text in texts]
        topic_id = self._host.node.topics[topic].topic_id
        checker = self._scenario.world.checker
        for place, data in enumerate(datas):
            checker.published(self._host.node_id, self.producer, self.next_number + place, topic_id, data)
        run = build_run(RunKind.PUBLICATION, topic_id, self.producer, self.next_number, datas)
        self.next_number += len(datas)
        if not quiet:
            what = ", ".join(_short(data) for data in datas)
            self._scenario.say(f"{self._name} on node {self._host.node_id} publishes to {topic}: {what}")
        self._host.publish(run)


class Scenario:
    """A small world, told what to do step by step. ``settings`` are fields of Settings for all nodes."""

    __slots__ = ("_lines", "_shown", "_shown_receipts", "receipts", "world")

    def __init__(self, nodes: int = 3, delivery: str = "safe", seed: int = 1, **settings: Any) -> None:
        self.world = World(seed, delivery)
        self.receipts: dict[int, list[Outcome]] = {}
        self._lines: list[str] = []
        self._shown: dict[int, int] = {}
        self._shown_receipts: dict[int, int] = {}
        base = Settings(
            cluster_name="scenario",
            node_id=0,
            incarnation=0,
            store_id=0,
            seed=seed,
            table=dict.fromkeys(range(1, nodes + 1), 1),
            delivery=delivery,
            **settings,
        )
        link = LinkProfile(jitter_ns=0, splitting=0.0)
        for node_id in range(1, nodes + 1):
            own = replace(base, node_id=node_id, incarnation=100 + node_id, store_id=200 + node_id)
            disk = DiskProfile(fastest_ns=MILLISECOND_NS, slowest_ns=MILLISECOND_NS)
            self.world.add_host(HostProfile(own, wake_ns=1, late_timer_ns=1, disk=disk), link)

    # --- the script ---------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """A line of the transcript."""
        self._lines.append(f"> {text}")

    @property
    def transcript(self) -> str:
        return "\n".join(self._lines) + "\n"

    @property
    def sequencer(self) -> int:
        configuration = self.host(1).node.configuration
        if configuration is None:
            raise LookupError("the cluster is not formed")
        return configuration.sequencer

    def host(self, node_id: int) -> Host:
        return self.world.hosts[node_id]

    def run(self, ms: float) -> None:
        """Lets time pass."""
        self.world.run_until(self.world.now + int(ms * MILLISECOND_NS))

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Lets time pass until ``condition``. Raises TimeoutError."""
        deadline = self.world.now + PATIENCE_NS
        while not condition():
            if self.world.now > deadline:
                raise TimeoutError(f"{what} did not happen within {PATIENCE_NS / SECOND_NS:.0f} simulated s")
            self.run(ms=1)

    def form(self) -> None:
        """All nodes become active."""
        hosts = self.world.hosts
        self.run(ms=1)
        self.wait_for(lambda: all(host.state is State.ACTIVE for host in hosts.values()), "formation")
        for node_id, host in hosts.items():
            self.receipts[node_id] = []
            host.on_receipts(self.receipts[node_id].append)
            self._shown[node_id] = host.cursor
            self._shown_receipts[node_id] = 0
        self.say(f"{len(hosts)} nodes form; sequencer: node {self.sequencer}")

    def command(self, node_id: int, operand: control.Operand) -> Outcome:
        """An ordered command of a program on this node, and its outcome."""
        answers: list[Outcome] = []
        self.host(node_id).control(operand, answers.append)
        self.wait_for(lambda: bool(answers), f"the answer to {operand}")
        return answers[0]

    def ask(self, node_id: int, operand: control.Operand, answers: list[Outcome]) -> None:
        """As ``command``, without waiting: the outcome is appended to ``answers``."""
        self.host(node_id).control(operand, answers.append)

    def create_topic(self, name: str, node: int = 1) -> None:
        """A topic that all nodes know when this returns."""
        self.command(node, control.TopicCreate(name, False))
        hosts = self.world.hosts.values()
        self.wait_for(lambda: all(name in host.node.topics for host in hosts if host.alive), f"topic {name}")
        for node_id, host in self.world.hosts.items():
            self._shown[node_id] = host.cursor
        self.say(f"topic {name} is created")

    def publisher(self, node: int, name: str = "a program") -> ScriptPublisher:
        return ScriptPublisher(self, self.host(node), name)

    def drop(
        self,
        *kinds: MessageType,
        source: int | tuple[int, ...] = (),
        to: int | tuple[int, ...] = (),
        loses: Loses | None = None,
    ) -> Rule:
        """From now on datagrams of these kinds (none named: all) are lost; ``loses`` picks some of them."""
        rule = Rule(kinds, _nodes(source), _nodes(to), loses)
        self.world.network.drops.append(rule)
        what = " and ".join(kind.name for kind in kinds) or "everything"
        ends = (f" from {_listed(source)}" if source != () else "") + (
            f" to {_listed(to)}" if to != () else ""
        )
        rule.what = f"{what}{ends}"
        self.say(f"from now on {rule.what} is lost" + (" (some of it)" if loses else ""))
        return rule

    def heal(self, rule: Rule) -> None:
        self.world.network.drops.remove(rule)
        self.say(f"{rule.what} arrives again")

    def kill(self, node_id: int) -> None:
        self.host(node_id).kill()
        self.say(f"node {node_id} dies")

    def hang_disk(self, node_id: int) -> None:
        self.host(node_id).disk.hang()
        self.say(f"the disk of node {node_id} hangs")

    def release_disk(self, node_id: int) -> None:
        self.host(node_id).disk.release()
        self.say(f"the disk of node {node_id} goes on")

    # --- what is seen -------------------------------------------------------------------------------------------

    def delivered(self, node_id: int) -> list[str]:
        """What the node delivered since the last ``show``: events as ``topic:seq=data``, topic changes in words."""
        host = self.host(node_id)
        items = self.world.checker.sequence[self._shown[node_id] : host.cursor]
        return [text for item in items for text in _texts(item, host)]

    def show(self, *nodes: int) -> None:
        """For each node: what it delivered, and the receipts it gave, since this was asked last."""
        for node_id in nodes or tuple(self.world.hosts):
            host = self.host(node_id)
            delivered = self.delivered(node_id)
            self._shown[node_id] = host.cursor
            receipts = self.receipts[node_id][self._shown_receipts[node_id] :]
            self._shown_receipts[node_id] = len(self.receipts[node_id])
            state = "" if host.alive else " (dead)"
            text = ", ".join(delivered) or "nothing"
            self._lines.append(f"  node {node_id}{state} delivered {text}")
            for outcome in receipts:
                numbers = _numbers(outcome.first_number, outcome.count)
                what = (
                    f"errno {outcome.error}"
                    if outcome.error
                    else f"seq {_numbers(outcome.seq, outcome.count)}"
                )
                self._lines.append(f"  node {node_id}{state} answered number {numbers}: {what}")

    def show_held(self, since: int) -> None:
        """How far each node holds the order, counted from index ``since``."""
        held = [
            f"node {node_id}: {observe.held_index(host.node) - since}"
            for node_id, host in self.world.hosts.items()
        ]
        self._lines.append(f"  held more than before: {', '.join(held)}")

    @property
    def held(self) -> int:
        """The lowest index that all nodes hold."""
        return min(observe.held_index(host.node) for host in self.world.hosts.values())


def _nodes(given: int | tuple[int, ...]) -> set[int]:
    return {given} if isinstance(given, int) else set(given)


def _listed(given: int | tuple[int, ...]) -> str:
    return ", ".join(f"node {node}" for node in sorted(_nodes(given)))


def _numbers(first: int, count: int) -> str:
    return f"{first}" if count == 1 else f"{first}-{first + count - 1}"


def _short(data: bytes) -> str:
    text = data.decode(errors="replace")
    return text if len(text) <= SHOWN_TEXT else f"{text[:8]}… of {len(data)} B"


def _texts(item: Delivery | TopicChange, host: Host) -> list[str]:
    if isinstance(item, TopicChange):
        return [f"topic {item.topic.name} {'removed' if item.removed else 'created'}"]
    topic = host.node.topic_by_id(item.topic_id)
    name = topic.name if topic is not None else f"topic {item.topic_id}"
    datas = list(run_events(item.run, read_header(item.run)))[item.skip :]
    return [f"{name}:{item.seq + place}={_short(data)}" for place, data in enumerate(datas)]
