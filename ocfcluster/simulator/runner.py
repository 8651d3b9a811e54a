"""One seed from its plan to its verdict: safety under faults first, then, once they have stopped, progress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import IO, Final

from ocfcluster.limits import MILLISECOND_NS, SECOND_NS
from ocfcluster.protocol.effects import Delivery, State
from ocfcluster.protocol.operator import NewHistory
from ocfcluster.simulator import observe
from ocfcluster.simulator.clients import ClientProgram
from ocfcluster.simulator.faults import Faults
from ocfcluster.simulator.members import MemberProgram, expected_members
from ocfcluster.simulator.network import Link
from ocfcluster.simulator.plan import Plan, make_plan, some_access, some_retention
from ocfcluster.simulator.programs import Administrator, Publisher, Rogue, TopicAlterer, TopicMaker
from ocfcluster.simulator.trace import Trace, Violation
from ocfcluster.simulator.votes import is_decision
from ocfcluster.simulator.world import World

LOOK_NS: Final = 50 * MILLISECOND_NS  # between two looks whether all is done
STALL_NS: Final = 30 * SECOND_NS  # nothing moved for so long after the faults stopped: stuck
STALL_STEPS: Final = 150_000  # or for so many steps: going round in circles
LONGEST_NS: Final = 150 * SECOND_NS
OPERATOR_NS: Final = 8 * SECOND_NS  # an operator looks so often after the faults have stopped
QUIET_NS: Final = SECOND_NS  # after the end: nothing may come any more, and buffers empty
REST_NS: Final = 60 * SECOND_NS
TAIL_LINES: Final = 80
COUNTS: Final = (3, 10, 200)  # epochs, faults, events: a seed with so many counts


@dataclass(slots=True)
class Result:
    """What became of one seed."""

    seed: int
    steps: int
    simulated_ns: int
    events: int
    receipts: int
    unknown: int  # publications whose outcome nobody can say
    epochs: int
    views: int
    histories: int
    evictions: int
    snapshots: int
    operators: int
    unseen: int
    recovery_ns: int  # from the end of the faults until everything was as it must be
    incidents: Counter[str]  # faults that were made
    noise: Counter[str]  # what became of datagrams and writes, and what nodes reported
    latencies_ns: list[int]
    trace_hash: str
    plan: str
    rule: str = ""  # the violated promise, empty if all were kept
    violation: str = ""
    tail: list[str] = field(default_factory=list)
    trace_lines: Counter[str] = field(default_factory=Counter)

    @property
    def counts(self) -> bool:
        """Whether enough happened for the seed to have tested something."""
        epochs, faults, events = COUNTS
        return self.epochs >= epochs and self.incidents.total() >= faults and self.events >= events


class Simulation:
    """The world of one plan, with its programs and faults."""

    __slots__ = ("_recovered_at", "clients", "faults", "makers", "members", "plan", "publishers", "world")

    def __init__(self, plan: Plan, out: IO[str] | None = None) -> None:
        self.plan = plan
        self.world = World(plan.seed, plan.delivery, out)
        self._recovered_at = 0
        world = self.world
        world.network.echo = plan.echo
        world.calm_after = plan.calm_ns
        world.streams.bytes_per_second = plan.stream_bytes_per_second
        world.streams.usual_bytes_per_second = plan.stream_bytes_per_second
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
                plan.settings,
            )
        ]
        self.publishers = [Publisher(world, profile) for profile in plan.publishers]
        self.members = [MemberProgram(world, member) for member in plan.members]
        self.clients = [*(ClientProgram(world, client) for client in plan.clients), *self.members]
        if plan.alterations:
            pause_ns = plan.calm_ns // (plan.alterations + 1)
            TopicAlterer(
                world,
                plan.topic_maker,
                tuple(plan.settings),
                plan.alterations,
                pause_ns,
                some_retention if plan.retains else None,
                some_access if plan.grants else None,
            )
        if plan.rogue:
            Rogue(world, plan.rogue, actions=20, start_ns=0, pause_ns=plan.calm_ns // 20)
        if plan.administrator:
            Administrator(world, plan.administrator, 6, plan.calm_ns // 6, plan.votes_change)
        self.faults = Faults(world, plan.faults)

    def run(self) -> None:
        """Raises Violation."""
        world = self.world
        world.run_until(self.plan.calm_ns)
        world.trace.add(world.now, 0, "calm", "all faults stop")
        self.faults.calm()
        self._run_to_completion()
        for host in world.hosts.values():
            if host.shell is not None:
                world.checker.check_bounds(host.shell)
                world.checker.check_replays(host.shell)
        for client in self.clients:
            client.finish()

    @property
    def programs(self) -> list[Publisher | ClientProgram | TopicMaker]:
        return [*self.publishers, *self.clients, *self.makers]

    @property
    def recovery_ns(self) -> int:
        return max(0, self._recovered_at - self.plan.calm_ns)

    def close(self) -> None:
        """Gives back what the operating system was asked for (memory of large events)."""
        for client in self.clients:
            client.close()

    @property
    def noise(self) -> Counter[str]:
        world = self.world
        overruns = Counter(overrun=sum(host.overruns for host in world.hosts.values()))
        return world.network.faults + world.checker.faults + world.streams.faults + overruns

    # --- the end ------------------------------------------------------------------------------------------------

    def _run_to_completion(self) -> None:
        world = self.world
        begin = last_progress = world.now
        seen = (-1, -1, -1)
        steps = world.steps + STALL_STEPS
        next_operator = begin + OPERATOR_NS
        while not self.finished:
            world.run_until(world.now + LOOK_NS)
            progress = (
                sum(host.cursor for host in world.hosts.values()) + world.checker.receipts.confirmed,
                world.checker.epochs,
                world.streams.moved,  # a large state on a slow line takes longer than anything may stand still
            )
            if progress != seen:
                seen, last_progress = progress, world.now
                steps = max(steps, world.steps + STALL_STEPS)
            if world.now >= next_operator:
                next_operator = world.now + OPERATOR_NS
                self._operate()
            stuck = world.now - last_progress > STALL_NS or world.steps > steps
            if stuck or world.now - begin > LONGEST_NS:
                raise Violation("liveness", self._why_unfinished(world.now - begin))
        self._recovered_at = world.now
        lengths = {history.cluster_id: history.length for history in world.checker.histories.values()}
        self._run_to_rest()
        self._check_answers()
        current = world.checker.current
        if current is not None and not self._anything_unknown():
            late = list(islice(current.items(), lengths.get(current.cluster_id, 0), None))
            if any(isinstance(item, Delivery) for item in late):
                raise Violation("creation", f"{len(late)} items came after everything was answered")

    def _operate(self) -> None:
        """An operator gives up a history whose disks are lost. Needed for nothing else."""
        world = self.world
        history = world.checker.current
        if history is None or not history.configurations:
            return
        # The last one that anybody has, of whatever history: where the disks of all who had a later one are lost, those
        # who accepted it cannot know that it was decided.
        known = [
            shell.node.configuration
            for host in world.hosts.values()
            if (shell := host.shell) is not None and shell.node.configuration is not None
        ]
        age = {cluster_id: place for place, cluster_id in enumerate(world.checker.histories)}
        configuration = max(
            known,
            key=lambda one: (age.get(one.cluster_id, -1), one.epoch),
            default=history.last_configuration,
        )
        if is_decision(configuration, world.checker.memory.disks_left(configuration)):
            return
        # Who is told must have a disk that counts; where it refuses or does not help, another one is told.
        left = [node_id for node_id, _ in world.checker.memory.disks_left(configuration)]
        candidates = left + [node_id for node_id in world.hosts if node_id not in left]
        first = world.checker.operators % len(candidates)
        for node_id in candidates[first:] + candidates[:first]:
            shell = world.hosts[node_id].shell
            if shell is not None:
                world.checker.operator_acts()
                refused = shell.operate(NewHistory())
                world.trace.add(world.now, node_id, "operator", f"new history: {refused or 'taken'}")
                if not refused:
                    return

    @property
    def finished(self) -> bool:
        return next(self._unfinished(), None) is None

    def _unfinished(self) -> Iterator[str]:
        """What is not yet as it must be at the end."""
        for program in self.programs:
            if not program.finished:
                yield program.describe()
        shells = []
        for host in self.world.hosts.values():
            if host.retired:
                continue
            shell = host.shell
            if shell is None or shell.state is not State.ACTIVE or not observe.is_primary(shell.node):
                yield f"node {host.node_id} is {host.state.value}"
            else:
                shells.append(shell)
        yield from self.world.checker.behind()
        yield from self._ghosts()
        members = sorted((shell.node_id, shell.settings.incarnation) for shell in shells)
        for shell in shells:
            configuration = shell.node.configuration
            if configuration is None or members != sorted(
                (member.node_id, member.incarnation) for member in configuration.members
            ):
                yield f"node {shell.node_id} has other members than those that are up"

    def _ghosts(self) -> Iterator[str]:
        """Members of groups whose programs are not there any more, and programs that are missing there."""
        expected = expected_members(self.members)
        for host in self.world.hosts.values():
            if host.shell is None:
                continue
            for name, members in observe.group_members(host.shell.node).items():
                if members != expected.get(name, set()):
                    wanted = sorted(expected.get(name, set()))
                    yield f"members of {name} on node {host.node_id}: {sorted(members)}, to be {wanted}"

    def _why_unfinished(self, passed_ns: int) -> str:
        reasons = list(islice(self._unfinished(), 12))
        states = "; ".join(
            f"node {host.node_id}: "
            + (observe.summary(host.shell.node, host.clock()) if host.shell else "down")
            for host in self.world.hosts.values()
        )
        return f"stuck {passed_ns / SECOND_NS:.0f} s after the faults stopped. {states}. Not done: {'; '.join(reasons)}"

    def _anything_unknown(self) -> bool:
        return any(
            publication.unknown
            for history in self.world.checker.histories.values()
            for publication in history.publications.values()
        )

    def _check_answers(self) -> None:
        """Everything published was delivered or refused, or its publisher knows that nobody can say."""
        checker = self.world.checker
        checker.finish_judging()
        for text in checker.unplaced():
            raise Violation("receipts", text)
        for history in checker.histories.values():
            for (producer, number), publication in history.publications.items():
                answered = publication.receipted or publication.error or publication.unknown
                if not answered and not self.world.hosts[publication.origin].retired:
                    raise Violation("liveness", f"producer {producer}'s number {number} was never answered")

    def _run_to_rest(self) -> None:
        """Nothing is published any more: repeats on their way end without effect, and buffers empty."""
        world = self.world
        deadline = world.now + REST_NS
        world.run_until(world.now + QUIET_NS)
        while leftovers := self._leftovers():
            if world.now > deadline:
                raise Violation("buffers", f"at rest for {REST_NS / SECOND_NS:.0f} s: {'; '.join(leftovers)}")
            world.run_until(world.now + QUIET_NS)

    def _leftovers(self) -> list[str]:
        return [
            f"node {host.node_id}: {text}"
            for host in self.world.hosts.values()
            if host.shell is not None
            for text in observe.leftovers(host.shell.node, host.clock())
        ]


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
    checker = world.checker
    trace: Trace = world.trace
    programs: list[Publisher | ClientProgram] = [*simulation.publishers, *simulation.clients]
    return Result(
        seed=simulation.plan.seed,
        steps=world.steps,
        simulated_ns=world.now,
        events=checker.events,
        receipts=checker.receipts.confirmed,
        unknown=sum(program.unknown for program in programs),
        epochs=checker.epochs,
        views=checker.views,
        histories=len(checker.histories),
        evictions=checker.evictions,
        snapshots=world.streams.given,
        operators=checker.operators,
        unseen=checker.unseen,
        recovery_ns=simulation.recovery_ns,
        incidents=simulation.faults.counts,
        noise=simulation.noise,
        latencies_ns=checker.receipts.latencies,
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
