"""Scripts that read like the schedule they stand for, with a transcript that is compared with what was expected.

A scenario runs in a world without chance: links with one delay, disks with one speed, no faults but those asked for.
The checker watches it like any other run: a broken promise raises Violation. ::

    scenario = Scenario(nodes=5)  # fields of Settings for all: delivery="agreed", suspicion_ns=..., ...
    scenario.form()  # all nodes come up and form; late=(4, 5) in Scenario(...) leaves machines switched off
    scenario.create_topic("t")
    publisher = scenario.publisher(node=2)  # a program; it reconnects, and resends what is unanswered
    publisher.publish("t", "one", "two")
    scenario.run(ms=20)  # time passes
    scenario.show()  # what each node delivered, views among it, and answered, since it was shown last
    member = scenario.member(2, "group:g")  # a program that has joined; member.dies(), member.leaves()

What can go wrong, each a line of the transcript:

    scenario.crash(1)  # kill -9; scenario.crash(1, 2): at the same moment; power_cut(): all
    scenario.crash_at(3, MessageType.ACCEPTED)  # dies before it sends its next one (skip=1: the one after it;
    #                                             more=2: two effects later; Persist instead: before its next write)
    scenario.restart(1)  # with its disk, as a new incarnation; wiped=True: with an empty disk, as a stranger
    scenario.start(4)  # a late machine is switched on
    scenario.pause(2); scenario.resume(2)  # SIGSTOP and SIGCONT
    scenario.leave(3)  # told to stop in order; it ends by itself once the others go on without it
    scenario.cut(1, to=2); scenario.join(1, to=2)  # one direction; (1, 2) or several nodes at either end
    scenario.partition((1, 2), (3, 4, 5)); scenario.heal_all()  # sides that do not hear each other
    rule = scenario.drop(MessageType.INSTALL, source=1, to=(2, 3)); scenario.heal(rule)
    scenario.drop_once(MessageType.INSTALL, to=3)  # only the next one; times=2: the next two
    scenario.hang_disk(2); scenario.release_disk(2); scenario.fill_disk(2); scenario.empty_disk(2)
    scenario.break_streams(); scenario.mend_streams()  # snapshots do not arrive
    scenario.slow_streams(bytes_per_second=20_000); scenario.lossy(0.01)  # every link; chance comes from the seed
    scenario.late(MessageType.INSTALL, to=3, ms=300)  # takes so much longer; ended by heal
    scenario.set_clock(1, seconds=3600)  # its wall clock leaps
    scenario.configure(3, votes=..., mtu=1400)  # what the file on node 3 says from its next start on
    scenario.operator(2, NewHistory())  # what an operator tells a waiting node; the reason of a refusal
    scenario.order(2, control.NodeAdd(4, 1))  # a program's ordered command; 0 or an errno

What is waited for, and seen:

    scenario.wait_until(view=(1, 2, 3), on=(1, 2))  # the members of the view that these nodes (none named: all that
    #   are up) delivered last; also epoch=..., sequencer=..., state=State.FORMING, primary=False, history="new"
    #   (another one than when this was called), delivered=5 (items since the last show), any function: what=lambda: ...
    scenario.show(1, 2)  # these nodes
    scenario.show_states()  # state, epoch, members, sequencer, what it waits for
    scenario.histories  # cluster_ids in the order in which they began

Everything waits for at most PATIENCE_NS of simulated time, then raises TimeoutError with the states of all nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from ocfcluster.limits import MILLISECOND_NS, SECOND_NS
from ocfcluster.protocol.effects import (
    Effect,
    Outcome,
    State,
)
from ocfcluster.protocol.operator import OperatorCommand
from ocfcluster.protocol.settings import Settings
from ocfcluster.simulator import observe
from ocfcluster.simulator.disk import DiskProfile
from ocfcluster.simulator.faults import Trap
from ocfcluster.simulator.host import NEVER_NS, HostProfile
from ocfcluster.simulator.network import LinkProfile
from ocfcluster.simulator.script import (
    LateRule,
    Loses,
    Nodes,
    Rule,
    ScriptMember,
    ScriptPublisher,
    listed,
    nodes_of,
    wish,
)
from ocfcluster.simulator.transcript import Transcript
from ocfcluster.simulator.world import World
from ocfcluster.wire import control
from ocfcluster.wire.datagram import MessageType

PATIENCE_NS: Final = 60 * SECOND_NS
LOOK_NS: Final = MILLISECOND_NS


class Scenario(Transcript):
    """A small world, told what to do step by step. ``settings`` are fields of Settings for all nodes; ``votes`` of
    single nodes; ``late`` nodes are switched off until ``start``."""

    __slots__ = ("_late", "_publishers", "_random")

    def __init__(
        self,
        nodes: int = 3,
        delivery: str = "safe",
        seed: int = 1,
        *,
        votes: dict[int, int] | None = None,
        late: Sequence[int] = (),
        **settings: Any,
    ) -> None:
        super().__init__(World(seed, delivery))
        self._publishers: list[ScriptPublisher] = []
        self._late = list(late)
        self._random = self.world.random("scenario")
        base = Settings(
            cluster_name="scenario",
            node_id=0,
            incarnation=0,
            store_id=0,
            seed=seed,
            table={node_id: (votes or {}).get(node_id, 1) for node_id in range(1, nodes + 1)},
            delivery=delivery,
            **settings,
        )
        link = LinkProfile(jitter_ns=0, splitting=0.0)
        for node_id in range(1, nodes + 1):
            own = replace(base, node_id=node_id, incarnation=100 + node_id, store_id=200 + node_id)
            disk = DiskProfile(fastest_ns=MILLISECOND_NS, slowest_ns=MILLISECOND_NS)
            start = NEVER_NS if node_id in self._late else 0
            self.world.add_host(HostProfile(own, start_ns=start, wake_ns=1, late_timer_ns=1, disk=disk), link)
            self.begin(node_id)

    # --- time ---------------------------------------------------------------------------------------------------

    def run(self, ms: float) -> None:
        """Lets time pass."""
        end = self.world.now + int(ms * MILLISECOND_NS)
        while self.world.now < end:
            self.world.run_until(min(end, self.world.now + LOOK_NS))
            for publisher in self._publishers:
                publisher.look()

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Lets time pass until ``condition``. Raises TimeoutError."""
        deadline = self.world.now + PATIENCE_NS
        while not condition():
            if self.world.now > deadline:
                states = "; ".join(
                    f"node {node_id}: {self.state_text(node_id)}" for node_id in self.world.hosts
                )
                raise TimeoutError(
                    f"{what} did not happen within {PATIENCE_NS / SECOND_NS:.0f} simulated s: {states}"
                )
            self.run(ms=1)

    def wait_until(
        self,
        *,
        view: Nodes | None = None,
        on: Nodes = (),
        epoch: int | None = None,
        sequencer: int | None = None,
        state: State | None = None,
        primary: bool | None = None,
        history: str = "",
        delivered: int = 0,
        what: Callable[[], bool] | None = None,
    ) -> None:
        """Lets time pass until all of this is so on all these nodes (none named: all that are up now), and says so."""
        before = self.histories[-1:]
        wanted = nodes_of(on)

        def holds(node_id: int) -> bool:
            host = self.host(node_id)
            shell = host.shell
            if shell is None:
                return state is State.STOPPED and view is None
            if state is not None and shell.state is not state:
                return False
            if primary is not None and observe.is_primary(shell.node) is not primary:
                return False
            if len(host.delivered) - self._shown[node_id] < delivered:
                return False
            if history and (shell.cursor is None or [shell.cursor.history.cluster_id] == before):
                return False
            configuration = shell.cursor.segment.view.configuration if shell.cursor is not None else None
            if configuration is None:
                return view is None and epoch is None and sequencer is None
            return (
                (
                    view is None
                    or sorted(member.node_id for member in configuration.members) == sorted(nodes_of(view))
                )
                and (epoch is None or configuration.epoch == epoch)
                and (sequencer is None or configuration.sequencer == sequencer)
            )

        def all_hold() -> bool:
            nodes = wanted or [
                node_id for node_id, host in self.world.hosts.items() if host.shell is not None
            ]
            return bool(nodes) and all(holds(node_id) for node_id in nodes) and (what is None or what())

        wishes = {
            "view": view, "epoch": epoch, "sequencer": sequencer, "state": state, "primary": primary,
            "history": history or None, "delivered": delivered or None,
        }  # fmt: skip
        text = ", ".join(f"{name} {wish(value)}" for name, value in wishes.items() if value is not None)
        where = f" on {listed(wanted)}" if wanted else ""
        self.wait_for(all_hold, f"{text or 'what was asked'}{where}")
        if text:
            self.say(f"now {text}{where}")

    # --- life ---------------------------------------------------------------------------------------------------

    @property
    def sequencer(self) -> int:
        """Of the newest configuration that a node which is up is in."""
        configurations = [
            host.shell.node.configuration for host in self.world.hosts.values() if host.shell is not None
        ]
        known = [configuration for configuration in configurations if configuration is not None]
        if not known:
            raise LookupError("the cluster is not formed")
        return max(known, key=lambda one: (one.cluster_id, one.epoch)).sequencer

    def form(self) -> None:
        """All nodes that are switched on become active."""
        self.run(ms=1)
        hosts = [host for host in self.world.hosts.values() if host.shell is not None]
        self.wait_for(lambda: all(host.state is State.ACTIVE for host in hosts), "formation")
        for node_id, host in self.world.hosts.items():
            self._shown[node_id] = len(host.delivered)
        self.say(f"{len(hosts)} nodes form; sequencer: node {self.sequencer}")

    def start(self, *node_ids: int) -> None:
        """Late machines are switched on."""
        for node_id in node_ids:
            self.say(f"node {node_id} is switched on")
            self.host(node_id).boot()

    def crash(self, *node_ids: int) -> None:
        """They die where they stand."""
        self.say(f"{listed(node_ids)} {'dies' if len(node_ids) == 1 else 'die'}")
        for node_id in node_ids:
            self.host(node_id).crash()

    def kill(self, node_id: int) -> None:
        """As ``crash``."""
        self.crash(node_id)

    def power_cut(self) -> None:
        self.say("power cut: all nodes die")
        for host in self.world.hosts.values():
            host.crash("power cut")

    def crash_at(self, node_id: int, kind: MessageType | type[Effect], skip: int = 0, more: int = 0) -> None:
        """The node dies before it sends its next message of this kind, or makes that effect."""
        name = kind.__name__ if isinstance(kind, type) else kind.name
        self.say(f"node {node_id} will die at its next {name}" + (f" but {skip}" if skip else ""))
        self.host(node_id).running.trap = Trap(kind, skip, more)

    def restart(self, *node_ids: int, wiped: bool = False) -> None:
        """Machines that are down come up again, at the same moment."""
        how = "with an empty disk" if wiped else "with its disk" if len(node_ids) == 1 else "with their disks"
        self.say(f"{listed(node_ids)} {'comes' if len(node_ids) == 1 else 'come'} back {how}")
        for node_id in node_ids:
            host = self.host(node_id)
            if wiped:
                self.world.checker.wipes += 1
                host.wipe(host.store_id + 1000)
            host.boot()

    def pause(self, *node_ids: int) -> None:
        self.say(f"{listed(node_ids)} stopped (SIGSTOP)")
        for node_id in node_ids:
            self.host(node_id).pause()

    def resume(self, *node_ids: int) -> None:
        self.say(f"{listed(node_ids)} goes on (SIGCONT)")
        for node_id in node_ids:
            self.host(node_id).resume()

    def leave(self, *node_ids: int) -> None:
        self.say(f"{listed(node_ids)} told to leave")
        for node_id in node_ids:
            self.host(node_id).leave()

    def operator(self, node_id: int, command: OperatorCommand) -> str:
        """What an operator tells a node that waits; why it was refused, or empty."""
        self.world.checker.operator_acts()
        refused = self.host(node_id).running.operate(command)
        self.say(
            f"an operator tells node {node_id}: {command}" + (f"; refused: {refused}" if refused else "")
        )
        return refused

    def configure(self, node_id: int, **settings: Any) -> None:
        """The file on this node says something else from its next start on (fields of Settings)."""
        profile = self.host(node_id).profile
        profile.settings = replace(profile.settings, **settings)
        texts = ", ".join(f"{name} = {value}" for name, value in settings.items())
        self.say(f"the file on node {node_id} says {texts}")

    def set_clock(self, node_id: int, seconds: float) -> None:
        """The node's wall clock leaps."""
        self.host(node_id).wall_jump_ns += int(seconds * SECOND_NS)
        self.say(f"the wall clock of node {node_id} leaps by {seconds} s")

    # --- programs -----------------------------------------------------------------------------------------------

    def command(self, node_id: int, operand: control.Operand) -> Outcome:
        """An ordered command of a program on this node, and its outcome."""
        answers: list[Outcome] = []
        self.ask(node_id, operand, answers)
        self.wait_for(lambda: bool(answers), f"the answer to {operand}")
        return answers[0]

    def ask(self, node_id: int, operand: control.Operand, answers: list[Outcome]) -> None:
        """As ``command``, without waiting: the outcome is appended to ``answers``."""
        line = self.host(node_id).connect()
        if line is None:
            raise LookupError(f"nobody serves programs on node {node_id}")
        line.control(operand, answers.append)

    def order(self, node_id: int, operand: control.Operand) -> int:
        """As ``command``, as a line of the transcript; 0 or an errno."""
        error = self.command(node_id, operand).error
        self.say(f"a program on node {node_id} orders {operand}" + (f": errno {error}" if error else ""))
        return error

    def create_topic(self, name: str, node: int = 1) -> None:
        """A topic that all nodes know when this returns."""
        self.command(node, control.TopicCreate(name, False))
        hosts = self.world.hosts.values()
        self.wait_for(
            lambda: all(name in host.shell.node.topics for host in hosts if host.shell), f"topic {name}"
        )
        for node_id, host in self.world.hosts.items():
            self._shown[node_id] = len(host.delivered)
        self.say(f"topic {name} is created")

    def publisher(self, node: int, name: str = "a program") -> ScriptPublisher:
        publisher = ScriptPublisher(self, self.host(node), name)
        self._publishers.append(publisher)
        return publisher

    def member(self, node: int, group: str, name: str = "a process") -> ScriptMember:
        """A program on this node that has joined the group."""
        return ScriptMember(self, self.host(node), group, name)

    # --- network and disks --------------------------------------------------------------------------------------

    def drop(
        self,
        *kinds: MessageType,
        source: Nodes = (),
        to: Nodes = (),
        loses: Loses | None = None,
    ) -> Rule:
        """From now on datagrams of these kinds (none named: all) are lost; ``loses`` picks some of them."""
        rule = self._rule(kinds, source, to, loses, 0)
        self.say(f"from now on {rule.what} is lost" + (" (some of it)" if loses else ""))
        return rule

    def drop_once(
        self,
        *kinds: MessageType,
        source: Nodes = (),
        to: Nodes = (),
        loses: Loses | None = None,
        times: int = 1,
    ) -> Rule:
        """The next datagram like that, or the next ``times``, is lost; a multicast counts once per receiver."""
        rule = self._rule(kinds, source, to, loses, times)
        self.say(f"the next {rule.what} is lost" if times == 1 else f"the next {times} {rule.what} are lost")
        return rule

    def _rule(
        self, kinds: tuple[MessageType, ...], source: Nodes, to: Nodes, loses: Loses | None, most: int
    ) -> Rule:
        rule = Rule(kinds, nodes_of(source), nodes_of(to), loses, most)
        self.world.network.drops.append(rule)
        rule.what = self._what(kinds, source, to)
        return rule

    @staticmethod
    def _what(kinds: tuple[MessageType, ...], source: Nodes, to: Nodes) -> str:
        what = " and ".join(kind.name for kind in kinds) or "everything"
        ends = (f" from {listed(source)}" if source != () else "") + (f" to {listed(to)}" if to != () else "")
        return f"{what}{ends}"

    def late(self, *kinds: MessageType, ms: float, source: Nodes = (), to: Nodes = ()) -> Rule:
        """From now on datagrams of these kinds take so much longer."""
        delay_ns = int(ms * MILLISECOND_NS)
        rule = LateRule(self.world.network, kinds, nodes_of(source), nodes_of(to), delay_ns)
        self.world.network.drops.append(rule)
        rule.what = self._what(kinds, source, to)
        self.say(f"from now on {rule.what} takes {ms} ms")
        return rule

    def heal(self, rule: Rule) -> None:
        self.world.network.drops.remove(rule)
        self.say(f"{rule.what} arrives again")

    def cut(self, source: Nodes, to: Nodes) -> None:
        """Nothing goes from ``source`` to ``to`` any more, streams included; the other direction stays."""
        self.world.network.cut(nodes_of(source), nodes_of(to))
        self.say(f"{listed(to)} does not hear {listed(source)} any more")

    def join(self, source: Nodes, to: Nodes) -> None:
        """Ends a ``cut``."""
        self.world.network.cut(nodes_of(source), nodes_of(to), cut=False)
        self.say(f"{listed(to)} hears {listed(source)} again")

    def partition(self, *sides: Nodes) -> None:
        """Sides that do not hear each other. Ended by ``heal_all``."""
        for one in sides:
            for other in sides:
                if one is not other:
                    self.world.network.cut(nodes_of(one), nodes_of(other))
        self.say("partition: " + " | ".join(" ".join(map(str, nodes_of(side))) for side in sides))

    def heal_all(self) -> None:
        """All cuts, partitions and drops end."""
        self.world.network.calm()
        self.say("the network is whole again")

    def hang_disk(self, node_id: int) -> None:
        self.host(node_id).disk.hang()
        self.say(f"the disk of node {node_id} hangs")

    def release_disk(self, node_id: int) -> None:
        self.host(node_id).disk.release()
        self.say(f"the disk of node {node_id} goes on")

    def fill_disk(self, node_id: int) -> None:
        self.host(node_id).disk.profile.failing = 1.0
        self.say(f"the disk of node {node_id} is full")

    def empty_disk(self, node_id: int) -> None:
        self.host(node_id).disk.profile.failing = 0.0
        self.say(f"the disk of node {node_id} has room again")

    def break_streams(self) -> None:
        """Snapshots on their way break from now on."""
        self.world.calm_after = 1 << 62
        self.world.streams.breaking = 1.0
        self.say("snapshots do not arrive any more")

    def mend_streams(self) -> None:
        self.world.streams.breaking = 0.0
        self.say("snapshots arrive again")

    def slow_streams(self, bytes_per_second: int) -> None:
        self.world.streams.bytes_per_second = bytes_per_second
        self.say(f"snapshots take their time: {bytes_per_second} B/s")

    def lossy(self, loss: float) -> None:
        """Every link loses so much of what it carries; ended by ``heal_all``."""
        for link in self.world.network.links.values():
            link.profile = replace(link.profile, loss=loss)
        self.say(f"every link loses {loss:.0%}")
