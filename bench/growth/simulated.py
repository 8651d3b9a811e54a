"""One point in the simulator: what nodes send and receive for an event, and how long a change of the view takes.

Virtual time has no computing in it: links have a delay of 50 µs, writes of the state directory take 1 ms (as in all
scenarios), and everything else takes none. So counts are exact, and times are the rounds of the protocol alone.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

from bench.growth.axes import Simulated
from ocfcluster import limits
from ocfcluster.agent import config
from ocfcluster.errors import ConfigurationError
from ocfcluster.limits import KIB, MILLISECOND_NS, SECOND_NS
from ocfcluster.protocol.effects import Delivery, View
from ocfcluster.protocol.node_table import payload_bytes, structure_bytes
from ocfcluster.protocol.settings import Limits
from ocfcluster.simulator.describe import message_type
from ocfcluster.simulator.host import Host
from ocfcluster.simulator.network import Network
from ocfcluster.simulator.scenario import Scenario
from ocfcluster.simulator.script import ScriptPublisher
from ocfcluster.simulator.world import World
from ocfcluster.wire.datagram import MessageType
from tests.cluster import toml

LONE: Final = 100  # events of 64 B, one each millisecond
LONE_BYTES: Final = 64
RUNS: Final = 100  # of 64 events of 1 KiB, as a publisher's buffer makes them, as fast as they are taken
RUN_EVENTS: Final = 64
RUN_EVENT_BYTES: Final = KIB
LOOK_NS: Final = MILLISECOND_NS // 10
PATIENCE_NS: Final = 30 * SECOND_NS
IP_OVERHEAD_BYTES: Final = 28  # of UDP over IPv4
TOPIC: Final = "growth"
# What there is without a change of the view; all else is for one.
TRAFFIC: Final = (
    MessageType.HEARTBEAT,
    MessageType.DATA,
    MessageType.ORDER,
    MessageType.ACK,
    MessageType.NACK,
    MessageType.RETRANSMIT,
)

Result = dict[str, Any]


class CountingNetwork(Network):
    """Counts what nodes send (a multicast once) and receive, by kind of message."""

    __slots__ = ("bytes_sent", "received", "received_by", "sent")

    def __init__(self, world: World, like: Network) -> None:
        super().__init__(world, Random(0))
        self.node_ids, self.links = like.node_ids, like.links
        self.restart()

    def restart(self) -> None:
        """Count anew."""
        self.sent: Counter[MessageType | None] = Counter()
        self.bytes_sent: Counter[MessageType | None] = Counter()
        self.received: Counter[MessageType | None] = Counter()
        self.received_by: Counter[int] = Counter()  # node → datagrams, without heartbeats

    def multicast(self, source: int, buffer: bytes, segment: int) -> None:
        self._count(buffer, segment)
        super().multicast(source, buffer, segment)

    def send_to_address(self, source: int, address: Any, buffer: bytes, segment: int) -> None:
        self._count(buffer, segment)
        super().send_to_address(source, address, buffer, segment)

    def send(self, source: int, destination: int, buffer: bytes, segment: int) -> None:
        kind, datagrams = message_type(buffer), -(-len(buffer) // segment)
        self.received[kind] += datagrams
        if kind is not MessageType.HEARTBEAT:
            self.received_by[destination] += datagrams
        super().send(source, destination, buffer, segment)

    def _count(self, buffer: bytes, segment: int) -> None:
        kind, datagrams = message_type(buffer), -(-len(buffer) // segment)
        self.sent[kind] += datagrams
        self.bytes_sent[kind] += len(buffer) + datagrams * IP_OVERHEAD_BYTES

    def work(self, counted: Counter[MessageType | None]) -> int:
        """All but heartbeats, which time brings and not events."""
        return counted.total() - counted[MessageType.HEARTBEAT]


def most_nodes(mtu: int) -> int:
    """How many nodes a configuration may have that fits one datagram, whatever else bounds them."""
    room = payload_bytes(mtu, IP_OVERHEAD_BYTES)
    nodes = 1
    while structure_bytes(dict.fromkeys(range(1, nodes + 2), 1), Limits()) <= room:
        nodes += 1
    return nodes


def refusal(point: Simulated) -> str:
    """Why an agent does not start with so many nodes; empty: it does. What the file alone does not say, its protocol
    core says when the scenario is made."""
    document = {
        "cluster": {"name": "growth", "nodes": list(range(1, point.nodes + 1))},
        "node": {"id": 1, "state_dir": "/nowhere"},
        "network": {"interface": "127.0.0.1", "mtu": point.mtu},
        "security": {"insecure": True},
    }
    with tempfile.TemporaryDirectory(prefix="ocf-growth-") as directory:
        file = Path(directory, "agent.toml")
        file.write_text(toml(document), "utf-8")
        try:
            config.load(file)
        except ConfigurationError as error:
            return str(error).removeprefix(f"{file}: ")
    return ""


def measure(point: Simulated, say: Callable[[str], None]) -> Result:
    """Counts per event, and times of a kill and a join; or ``refused`` with the reason, where there is no cluster of
    that size. Raises TimeoutError and Violation, which is a bug."""
    refused = refusal(point)
    if not refused:
        try:
            result = Measuring(point, say).run()
        except ConfigurationError as error:
            refused = str(error)
    if refused:
        say(f"refused: {refused}")
        result = {"refused": refused}
    return result | {"fit_one_datagram": most_nodes(point.mtu), "nodes_most": limits.NODES}


class Measuring:
    """One world, from its formation to a join."""

    def __init__(self, point: Simulated, say: Callable[[str], None]) -> None:
        self._say = say
        self._scenario = Scenario(nodes=point.nodes, mtu=point.mtu)
        self._world = self._scenario.world
        self._network = CountingNetwork(self._world, self._world.network)
        self._world.network = self._network
        self._nodes = point.nodes

    def run(self) -> Result:
        scenario = self._scenario
        scenario.form()
        result: Result = {"formation_ms": self._world.now / MILLISECOND_NS}
        scenario.create_topic(TOPIC)
        sequencer = scenario.sequencer
        publisher = scenario.publisher(node=next(i for i in self._world.hosts if i != sequencer))
        result["idle"] = self._idle()
        result["lone"] = self._lone(publisher)
        self._say(f"lone events: {_text(result['lone'])}")
        result["bulk"] = self._bulk(publisher)
        self._say(f"runs of {RUN_EVENTS}: {_text(result['bulk'])}")
        result |= self._kill(publisher, sequencer)
        result |= self._join(publisher, sequencer)
        self._say(f"kill {result['kill_ms']:.1f} ms, join {result['join_ms']:.1f} ms")
        return result

    def _idle(self) -> Result:
        """A second in which nothing happens, per node."""
        self._network.restart()
        self._scenario.run(ms=1000)
        return {
            "sent": self._network.sent.total() / self._nodes,
            "received": self._network.received.total() / self._nodes,
            "bytes_sent": self._network.bytes_sent.total() / self._nodes,
        }

    def _lone(self, publisher: ScriptPublisher) -> Result:
        self._network.restart()
        for _ in range(LONE):
            publisher.publish(TOPIC, b"x" * LONE_BYTES, quiet=True)
            self._scenario.run(ms=1)
        self._answered(publisher)
        return self._per_event(LONE, LONE_BYTES)

    def _bulk(self, publisher: ScriptPublisher) -> Result:
        self._network.restart()
        for _ in range(RUNS):
            publisher.publish(TOPIC, *[b"x" * RUN_EVENT_BYTES] * RUN_EVENTS, quiet=True)
        self._answered(publisher)
        return self._per_event(RUNS * RUN_EVENTS, RUN_EVENT_BYTES)

    def _answered(self, publisher: ScriptPublisher) -> None:
        """All is delivered and told: also the acknowledgements that nobody waits for."""
        self._scenario.wait_for(lambda: not publisher.unanswered, "the receipts")
        self._scenario.run(ms=20)

    def _per_event(self, events: int, event_bytes: int) -> Result:
        network = self._network
        sent_bytes = network.work(network.bytes_sent)
        return {
            "sent": network.work(network.sent) / events,
            "received_per_node": network.received_by.total() / events / self._nodes,
            "received_by_sequencer": network.received_by[self._scenario.sequencer] / events,
            "bytes_sent": sent_bytes / events,
            "bytes_over_payload": sent_bytes / events / event_bytes,
            "kinds": {
                kind.name: count / events for kind, count in sorted(network.sent.items()) if kind is not None
            },
        }

    def _kill(self, publisher: ScriptPublisher, sequencer: int) -> Result:
        """From the kill of the sequencer to the next event at the last of the others, less the suspicion time."""
        scenario = self._scenario
        self._publish_for(publisher, 20 * MILLISECOND_NS, lambda: False)
        scenario.crash(sequencer)
        others = [host for host in self._world.hosts.values() if host.shell is not None]
        self._network.restart()
        suspicion_ns = others[0].profile.settings.suspicion_ns
        took = self._next_event(publisher, others)
        received = sum(count for kind, count in self._network.received.items() if kind not in TRAFFIC)
        return {
            "kill_ms": (took - suspicion_ns) / MILLISECOND_NS,
            "kill_received_per_node": received / len(others),
        }

    def _join(self, publisher: ScriptPublisher, joiner: int) -> Result:
        """From the start of a node to its first event, and the longest that the others had none meanwhile."""
        hosts = self._world.hosts
        one = next(host for i, host in hosts.items() if i not in (joiner, self._scenario.sequencer))
        self._scenario.restart(joiner)
        pause = Pause(self._world, one)
        begun = self._world.now
        first = len(hosts[joiner].delivered)

        def joined() -> bool:
            pause.look()
            return _has_event(hosts[joiner], first)

        self._publish_for(publisher, PATIENCE_NS, joined)
        if not joined():
            raise TimeoutError(f"node {joiner} is not back after {PATIENCE_NS / SECOND_NS:g} s")
        return {
            "join_ms": (self._world.now - begun) / MILLISECOND_NS,
            "join_pause_ms": pause.longest_ns / MILLISECOND_NS,
        }

    def _next_event(self, publisher: ScriptPublisher, hosts: list[Host]) -> int:
        """ns of virtual time until each of ``hosts`` has delivered an event of a later view than now."""
        begun = self._world.now
        # What was committed when the sequencer died may still come: an event behind the next view counts.
        places = {host.node_id: len(host.delivered) for host in hosts}

        def arrived() -> bool:
            return all(event_behind_view(host.delivered[places[host.node_id] :]) for host in hosts)

        self._publish_for(publisher, PATIENCE_NS, arrived)
        if not arrived():
            raise TimeoutError(f"no event within {PATIENCE_NS / SECOND_NS:g} s of a kill")
        return self._world.now - begun

    def _publish_for(self, publisher: ScriptPublisher, most_ns: int, ended: Callable[[], bool]) -> None:
        """One event each millisecond, until ``ended`` or so long."""
        begun = self._world.now
        while self._world.now < begun + most_ns and not ended():
            if (self._world.now - begun) % MILLISECOND_NS == 0:
                publisher.look()
                publisher.publish(TOPIC, b"x" * LONE_BYTES, quiet=True)
            self._world.run_until(self._world.now + LOOK_NS)


class Pause:
    """The longest time in which a host delivered nothing."""

    def __init__(self, world: World, host: Host) -> None:
        self._world = world
        self._host = host
        self._count = len(host.delivered)
        self._at = world.now
        self.longest_ns = 0

    def look(self) -> None:
        self.longest_ns = max(self.longest_ns, self._world.now - self._at)
        if len(self._host.delivered) != self._count:
            self._count = len(self._host.delivered)
            self._at = self._world.now


def event_behind_view(items: Sequence[object]) -> bool:
    """Whether an event was delivered in a view that is among these items."""
    viewed = False
    for item in items:
        if isinstance(item, View):
            viewed = True
        elif viewed and isinstance(item, Delivery):
            return True
    return False


def _has_event(host: Host, since: int) -> bool:
    return any(isinstance(item, Delivery) for item in host.delivered[since:])


def _text(counts: Result) -> str:
    return (
        f"{counts['sent']:.2f} datagrams, {counts['bytes_sent']:.0f} B sent per event, "
        f"{counts['received_per_node']:.2f} datagrams received per node"
    )
