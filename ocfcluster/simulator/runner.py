"""One seed from its plan to its verdict: safety under faults first, then, once they have stopped, progress."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import IO, Final

from ocfcluster.limits import MILLISECOND_NS, SECOND_NS
from ocfcluster.protocol.effects import TopicChange
from ocfcluster.simulator import observe
from ocfcluster.simulator.clients import ClientProgram
from ocfcluster.simulator.network import Link
from ocfcluster.simulator.plan import FaultPlan, Plan, make_plan
from ocfcluster.simulator.programs import Publisher, Rogue, TopicMaker
from ocfcluster.simulator.trace import Trace, Violation
from ocfcluster.simulator.world import World

LOOK_NS: Final = 50 * MILLISECOND_NS  # between two looks whether all is done
STALL_NS: Final = 15 * SECOND_NS  # nothing delivered for so long after the faults stopped: stuck
LONGEST_NS: Final = 300 * SECOND_NS
QUIET_NS: Final = SECOND_NS  # after the end: nothing may come any more, and buffers empty
AFTER_LOSS_NS: Final = 3 * SECOND_NS  # watched on where no progress is promised
TAIL_LINES: Final = 60


@dataclass(slots=True)
class Result:
    """What became of one seed."""

    seed: int
    steps: int
    simulated_ns: int
    events: int
    receipts: int
    faults: Counter[str]
    latencies_ns: list[int]
    trace_hash: str
    plan: str
    rule: str = ""  # the violated promise, empty if all were kept
    violation: str = ""
    tail: list[str] = field(default_factory=list)
    trace_lines: Counter[str] = field(default_factory=Counter)


class Simulation:
    """The world of one plan, with its programs and faults."""

    __slots__ = ("_faults", "_random", "clients", "makers", "plan", "publishers", "world")

    def __init__(self, plan: Plan, out: IO[str] | None = None) -> None:
        self.plan = plan
        self.world = World(plan.seed, plan.delivery, out)
        self._random: Random = self.world.random("faults")
        self._faults: Counter[str] = Counter()
        world = self.world
        world.network.echo = plan.echo
        world.calm_after = plan.calm_ns
        for host in plan.hosts:
            world.add_host(host, plan.link)
        for ends, profile in plan.links.items():
            world.network.links[ends] = Link(profile)
        self.makers = [
            TopicMaker(
                world,
                plan.topic_maker,
                plan.topics,
                plan.topic_changes,
                plan.topic_pause_ns,
                plan.topic_removing,
            )
        ]
        self.publishers = [Publisher(world, profile) for profile in plan.publishers]
        self.clients = [ClientProgram(world, client) for client in plan.clients]
        if plan.rogue:
            Rogue(world, plan.rogue, actions=20, start_ns=0, pause_ns=30 * MILLISECOND_NS)
        for fault in plan.faults:
            world.at(fault.begin_ns, self._begin, fault)
            world.at(fault.end_ns, self._end, fault)

    def run(self) -> None:
        """Raises Violation."""
        world = self.world
        world.run_until(self.plan.calm_ns)
        self._calm()
        if self.progress_promised:
            self._run_to_completion()
        else:
            world.run_until(world.now + AFTER_LOSS_NS)
        for host in world.hosts.values():
            world.checker.check_bounds(host)
            world.checker.check_replays(host)

    @property
    def programs(self) -> list[Publisher | ClientProgram]:
        return [*self.publishers, *self.clients]

    def close(self) -> None:
        """Gives back what the operating system was asked for (memory of large events)."""
        for client in self.clients:
            client.close()

    @property
    def fault_counts(self) -> Counter[str]:
        overruns = Counter(overrun=sum(host.overruns for host in self.world.hosts.values()))
        return self._faults + self.world.network.faults + self.world.checker.faults + overruns

    @property
    def progress_promised(self) -> bool:
        """Whether the cluster must come back by itself: its sequencer lives, and more than half of the votes."""
        hosts = self.world.hosts
        if not self.plan.killed:
            return True
        configuration = next(
            (host.node.configuration for host in hosts.values() if host.node.configuration), None
        )
        if configuration is None or not hosts[configuration.sequencer].alive:
            return False
        alive = sum(member.votes for member in configuration.members if hosts[member.node_id].alive)
        return 2 * alive > sum(member.votes for member in configuration.members)

    @property
    def finished(self) -> bool:
        checker = self.world.checker
        return (
            all(program.finished for program in self.programs)
            and all(maker.finished for maker in self.makers)
            and next(checker.undelivered(), None) is None
        )

    def _run_to_completion(self) -> None:
        world = self.world
        checker = world.checker
        begin = last_progress = world.now
        seen = -1
        while not self.finished:
            world.run_until(world.now + LOOK_NS)
            progress = sum(host.cursor for host in world.hosts.values()) + checker.receipts
            if progress != seen:
                seen, last_progress = progress, world.now
            if world.now - last_progress > STALL_NS or world.now - begin > LONGEST_NS:
                raise Violation("liveness", self._why_unfinished())
        length = len(checker.sequence)
        self._run_to_rest()
        # What a node sent before it died may still be found at another one: nobody waits for it, but it may come.
        late = [
            item
            for item in checker.sequence[length:]
            if isinstance(item, TopicChange) or world.hosts[item.node_id].alive
        ]
        if late:
            raise Violation("creation", f"{len(late)} items came after everything was answered")

    def _run_to_rest(self) -> None:
        """Nothing is published any more: repeats on their way end without effect, and buffers empty."""
        world = self.world
        deadline = world.now + LONGEST_NS
        world.run_until(world.now + QUIET_NS)
        if self.plan.killed:
            return  # the dead never acknowledge: what they have not is kept for them
        while leftovers := self._leftovers():
            if world.now > deadline:
                raise Violation(
                    "buffers", f"at rest for {LONGEST_NS / SECOND_NS:.0f} s: {'; '.join(leftovers)}"
                )
            world.run_until(world.now + QUIET_NS)

    def _leftovers(self) -> list[str]:
        return [
            f"node {host.node_id}: {text}"
            for host in self.world.hosts.values()
            for text in observe.leftovers(host.node, host.clock())
        ]

    def _why_unfinished(self) -> str:
        reasons = [program.describe() for program in self.programs if not program.finished]
        reasons += list(self.world.checker.undelivered())[:8]
        states = ", ".join(
            f"{host.node_id}: {observe.summary(host.node, host.clock())}"
            for host in self.world.hosts.values()
        )
        return f"stuck {STALL_NS / SECOND_NS:.0f} s after the faults stopped: {'; '.join(reasons)}. Nodes: {states}"

    # --- faults -------------------------------------------------------------------------------------------------

    def _begin(self, fault: FaultPlan) -> None:
        world = self.world
        self._faults[fault.kind] += 1
        world.trace.add(world.now, 0, "fault", f"{fault.kind} {list(fault.nodes)} {list(fault.others)}")
        if fault.kind == "partition":
            world.network.cut(set(fault.nodes), set(fault.others))
            world.network.cut(set(fault.others), set(fault.nodes))
        elif fault.kind == "one way":
            world.network.cut(set(fault.nodes), set(fault.others))
        for node_id in fault.nodes:
            host = world.hosts.get(node_id)
            if host is None:
                continue  # not switched on yet
            if fault.kind == "pause":
                host.pause()
            elif fault.kind == "kill":
                host.kill()
            elif fault.kind == "disk hangs":
                host.disk.hang()
            elif fault.kind == "disk fails":
                host.disk.profile.failing = 0.5
            elif fault.kind == "subscriber stops":
                host.subscriber.stop()
            elif fault.kind == "wall jump":
                host.wall_jump_ns += self._random.randint(-7200, 7200) * SECOND_NS

    def _end(self, fault: FaultPlan) -> None:
        world = self.world
        if fault.kind in ("kill", "wall jump"):
            return
        world.trace.add(world.now, 0, "healed", f"{fault.kind} {list(fault.nodes)}")
        world.network.cut(set(fault.nodes), set(fault.others), cut=False)
        world.network.cut(set(fault.others), set(fault.nodes), cut=False)
        for node_id in fault.nodes:
            host = world.hosts.get(node_id)
            if host is None or not host.alive:
                continue
            if fault.kind == "pause":
                host.resume()
            elif fault.kind == "disk hangs":
                host.disk.release()
            elif fault.kind == "disk fails":
                host.disk.profile.failing = 0.0
            elif fault.kind == "subscriber stops":
                host.subscriber.catch_up()

    def _calm(self) -> None:
        world = self.world
        world.trace.add(world.now, 0, "calm", "all faults stop")
        world.network.calm()
        for host in world.hosts.values():
            if not host.alive:
                continue
            host.disk.profile.failing = 0.0
            host.disk.release()
            host.subscriber.catch_up()
            if host.paused:
                host.resume()


def run_seed(seed: int, nodes: int | None = None, out: IO[str] | None = None) -> Result:
    """Runs one seed; a violation is in the result, with the end of the trace."""
    plan = make_plan(seed, nodes)
    simulation = Simulation(plan, out)
    rule = violation = ""
    try:
        simulation.run()
    except Violation as broken:
        rule, violation = broken.rule, broken.text
    except Exception as error:  # noqa: BLE001 - whatever the protocol raises is a finding
        rule, violation = "exception", _where(error)
    finally:
        simulation.close()
    return _result(simulation, rule, violation)


def _result(simulation: Simulation, rule: str, violation: str) -> Result:
    world = simulation.world
    trace: Trace = world.trace
    return Result(
        seed=simulation.plan.seed,
        steps=world.steps,
        simulated_ns=world.now,
        events=world.checker.events,
        receipts=world.checker.receipts,
        faults=simulation.fault_counts,
        latencies_ns=world.checker.commit_latencies,
        trace_hash=trace.hexdigest(),
        plan=simulation.plan.describe(),
        rule=rule,
        violation=violation,
        tail=list(trace.tail(TAIL_LINES)) if rule else [],
        trace_lines=trace.counts,
    )


def _where(error: Exception) -> str:
    """The error and the innermost places it passed."""
    places = []
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        places.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{step.tb_lineno} {code.co_name}")
        step = step.tb_next
    return f"{type(error).__name__}: {error} (in {' > '.join(places[-5:])})"
