"""What goes wrong during a run, and when: drawn on the way, so that it can look at who is the sequencer by then.

Faults begin at random times until the world calms down; most have an end, all are over then: everybody is up again,
disks are fine, the network is calm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final

from ocfcluster.limits import MILLISECOND_NS, SECOND_NS
from ocfcluster.protocol.effects import Effect, FetchSnapshot, Multicast, Persist, Send
from ocfcluster.simulator.describe import message_type
from ocfcluster.simulator.host import Host
from ocfcluster.wire.datagram import MessageType

if TYPE_CHECKING:
    from ocfcluster.simulator.world import World

EPOCH_CHANGE: Final = tuple(
    MessageType[name]
    for name in ("PREPARE", "PROMISE", "REJECT", "SYNC", "SYNCED", "ACCEPT", "ACCEPTED", "INSTALL")
    if name in MessageType.__members__
)
DATA_PLANE: Final = tuple(
    MessageType[name]
    for name in ("DATA", "ORDER", "ACK", "NACK", "RETRANSMIT", "HEARTBEAT", "CONFIG_REQUEST")
)


@dataclass(slots=True)
class FaultProfile:
    """What may go wrong, and how often."""

    calm_ns: int
    first_ns: int  # nothing before
    pause_ns: int  # mean time from one fault to the next
    longest_ns: int  # of one fault
    kinds: tuple[tuple[str, float], ...]  # with their weights
    wipes: bool  # disks may be lost
    together: float = 0.0  # probability that another fault begins right behind one


class Trap:
    """Ends a process at a chosen effect of its own: before the ``skips``-th of that kind, and ``more`` effects on."""

    __slots__ = ("_kind", "_more", "_skips", "_sprung")

    def __init__(self, kind: MessageType | type[Effect], skips: int, more: int) -> None:
        self._kind = kind
        self._skips = skips
        self._more = more
        self._sprung = False

    def __call__(self, effect: Effect) -> bool:
        if not self._sprung and self._matches(effect):
            self._skips -= 1
            self._sprung = self._skips < 0
        if self._sprung:
            self._more -= 1
        return self._sprung and self._more < 0

    def _matches(self, effect: Effect) -> bool:
        if isinstance(self._kind, type):
            return isinstance(effect, self._kind)
        if not isinstance(effect, Multicast | Send):
            return False
        segment = effect.segment or len(effect.buffer)
        return any(
            message_type(effect.buffer[begin : begin + segment]) is self._kind
            for begin in range(0, len(effect.buffer), segment)
        )


class Faults:
    """Makes the faults of one run."""

    __slots__ = ("_back", "_random", "_undo", "_world", "counts", "profile")

    def __init__(self, world: World, profile: FaultProfile) -> None:
        self._world = world
        self._random: Random = world.random("faults")
        self._undo: dict[int, Callable[[], None]] = {}  # what ends each fault under way
        self._back: dict[int, int] = {}  # node that is down → when it is to come back
        self.profile = profile
        self.counts: Counter[str] = Counter()
        if profile.kinds:
            world.at(profile.first_ns + self._pause(), self._next)

    def _pause(self) -> int:
        return 1 + int(self._random.expovariate(1.0) * self.profile.pause_ns)

    def _next(self) -> None:
        if self._world.now >= self.profile.calm_ns:
            return
        random = self._random
        kinds = [kind for kind, _ in self.profile.kinds]
        weights = [weight for _, weight in self.profile.kinds]
        self._begin(random.choices(kinds, weights)[0])
        delay = 1 if random.random() < self.profile.together else self._pause()
        self._world.after(delay, self._next)

    def _begin(self, kind: str) -> None:
        method: Callable[[], str | None] = getattr(self, f"_{kind.replace(' ', '_')}")
        what = method()
        if what is not None:
            self.counts[kind] += 1
            self._world.trace.add(self._world.now, 0, "fault", f"{kind} {what}")

    def calm(self) -> None:
        """All that is under way ends, and everybody comes up."""
        for undo in list(self._undo.values()):
            undo()
        self._undo.clear()
        world = self._world
        world.network.calm()
        world.streams.breaking = 0.0
        for host in world.hosts.values():
            host.disk.profile.failing = 0.0
            host.disk.release()
            host.subscriber.catch_up()
            host.resume()
            if host.shell is None and not host.retired:
                host.boot_after_writes()

    # --- helpers ------------------------------------------------------------------------------------------------

    def _for_a_while(self, undo: Callable[[], None], longest_ns: int = 0) -> int:
        """``undo`` later; how long it lasts, ns."""
        world = self._world
        longest = longest_ns or self.profile.longest_ns
        lasts = self._random.randint(1, 1 + longest // MILLISECOND_NS) * MILLISECOND_NS
        key = len(self.counts) + world.steps * 16 + len(self._undo)
        while key in self._undo:
            key += 1
        self._undo[key] = undo
        world.after(lasts, self._end, key)
        return lasts

    def _end(self, key: int) -> None:
        undo = self._undo.pop(key, None)
        if undo is not None:
            self._world.trace.add(self._world.now, 0, "healed")
            undo()

    def _up(self) -> list[Host]:
        return [host for host in self._world.hosts.values() if host.shell is not None]

    def _victim(self) -> Host | None:
        """A machine that is up; often the sequencer."""
        up = self._up()
        if not up:
            return None
        if self._random.random() < 0.35:
            for host in up:
                configuration = host.running.node.configuration
                if configuration is not None and configuration.sequencer == host.node_id:
                    return host
        return self._random.choice(up)

    def _some(self, ids: Iterable[int], most: int) -> list[int]:
        """One to ``most`` of these."""
        ids = list(ids)
        return sorted(self._random.sample(ids, self._random.randint(1, max(1, min(most, len(ids))))))

    def _come_back(self, host: Host, longest_ns: int = 0) -> str:
        """A machine that is down comes up again later, perhaps with an empty disk."""
        random = self._random
        longest = longest_ns or 2 * self.profile.longest_ns
        soon = random.random() < 0.4  # before anybody suspects it
        delay = random.randint(1, 150) if soon else random.randint(1, 1 + longest // MILLISECOND_NS)
        wiped = self.profile.wipes and random.random() < 0.12
        if wiped:
            self.counts["wipe"] += 1
            self._world.checker.wipes += 1
            host.wipe(random.getrandbits(63) | 1)
        if random.random() < 0.3:  # the machine was switched off, not only the process
            host.clock_offset_ns = random.randrange(1_000_000 * SECOND_NS)
        self._world.after(delay * MILLISECOND_NS, self._boot, host)
        return f"back in {delay} ms{' with an empty disk' if wiped else ''}"

    def _boot(self, host: Host) -> None:
        if not host.retired:
            host.boot_after_writes()

    # --- processes and machines ---------------------------------------------------------------------------------

    def _crash(self) -> str | None:
        host = self._victim()
        if host is None:
            return None
        host.crash()
        return f"node {host.node_id}, {self._come_back(host)}"

    def _crash_some(self) -> str | None:
        """Several at about the same time."""
        up = self._up()
        if len(up) < 2:
            return None
        texts = []
        most = len(up) - 1 if self._random.random() < 0.35 else max(1, (len(up) - 1) // 2)
        for node_id in self._some([host.node_id for host in up], most):
            host = self._world.hosts[node_id]
            host.crash()
            texts.append(f"node {node_id}, {self._come_back(host)}")
        return "; ".join(texts)

    def _power_cut(self) -> str | None:
        """All at once; their disks stay."""
        up = self._up()
        if not up:
            return None
        wipes, self.profile.wipes = self.profile.wipes, False
        texts = []
        for host in up:
            host.crash("power cut")
            texts.append(f"node {host.node_id}, {self._come_back(host)}")
        self.profile.wipes = wipes
        return "; ".join(texts)

    def _trap(self) -> str | None:
        """Somebody dies in the middle of an epoch change, or while it writes to its disk."""
        host = self._victim()
        if host is None:
            return None
        random = self._random
        kinds: tuple[MessageType | type[Effect], ...] = (*EPOCH_CHANGE, Persist, FetchSnapshot)
        kind = random.choice(kinds)
        shell = host.running
        shell.trap = Trap(kind, random.choice((0, 0, 0, 1, 2)), random.choice((0, 1, 1, 2, 4)))
        self._world.after(random.randint(20, 400) * MILLISECOND_NS, self._look_at_trapped, host)
        name = kind.__name__ if isinstance(kind, type) else kind.name
        return f"node {host.node_id} at {name}"

    def _look_at_trapped(self, host: Host) -> None:
        """Comes back if it has died; else it is still in danger."""
        if host.shell is None:
            if not host.retired:
                self._come_back(host)
        elif host.shell.trap is not None and self._world.now < self.profile.calm_ns:
            self._world.after(200 * MILLISECOND_NS, self._look_at_trapped, host)
        else:
            host.shell.trap = None

    def _pause_node(self) -> str | None:
        host = self._victim()
        if host is None or host.paused:
            return None
        host.pause()
        lasts = self._for_a_while(host.resume, 3 * self.profile.longest_ns // 2)
        return f"node {host.node_id} for {lasts // MILLISECOND_NS} ms"

    def _leave(self) -> str | None:
        host = self._victim()
        if host is None or host.running.leaving:
            return None
        host.leave()
        self._world.after(self._random.randint(50, 2500) * MILLISECOND_NS, self._look_at_left, host)
        return f"node {host.node_id}"

    def _look_at_left(self, host: Host) -> None:
        if host.shell is None:
            self._boot(host)
        elif host.shell.leaving:
            self._world.after(100 * MILLISECOND_NS, self._look_at_left, host)

    # --- disks, subscribers, clocks -----------------------------------------------------------------------------

    def _disk_hangs(self) -> str | None:
        host = self._random.choice(list(self._world.hosts.values()))
        host.disk.hang()
        lasts = self._for_a_while(host.disk.release)
        return f"node {host.node_id} for {lasts // MILLISECOND_NS} ms"

    def _disk_fails(self) -> str | None:
        """Some writes fail, or all do: it is full."""
        host = self._random.choice(list(self._world.hosts.values()))
        profile = host.disk.profile
        profile.failing = self._random.choice((0.3, 0.5, 1.0))

        def mend() -> None:
            profile.failing = 0.0

        lasts = self._for_a_while(mend)
        return f"node {host.node_id}, {profile.failing:.0%} of its writes for {lasts // MILLISECOND_NS} ms"

    def _subscriber_stops(self) -> str | None:
        host = self._random.choice(list(self._world.hosts.values()))
        host.subscriber.stop()
        lasts = self._for_a_while(host.subscriber.catch_up)
        return f"node {host.node_id} for {lasts // MILLISECOND_NS} ms"

    def _wall_jump(self) -> str | None:
        host = self._random.choice(list(self._world.hosts.values()))
        seconds = self._random.randint(-7200, 7200)
        host.wall_jump_ns += seconds * SECOND_NS
        return f"node {host.node_id} by {seconds} s"

    # --- the network --------------------------------------------------------------------------------------------

    def _cut(self, pairs: list[tuple[list[int], list[int]]], lasts_ns: int = 0) -> int:
        network = self._world.network
        for sources, destinations in pairs:
            network.cut(sources, destinations)

        def heal() -> None:
            for sources, destinations in pairs:
                network.cut(sources, destinations, cut=False)

        return self._for_a_while(heal, lasts_ns)

    def _partition(self) -> str | None:
        """Two, three or more sides that do not hear each other."""
        ids = list(self._world.hosts)
        if len(ids) < 2:
            return None
        sides = self._random.choice((2, 2, 2, 3, len(ids), len(ids)))
        groups: list[list[int]] = [[] for _ in range(min(sides, len(ids)))]
        self._random.shuffle(ids)
        for place, node_id in enumerate(ids):
            group = groups[place] if place < len(groups) else self._random.choice(groups)
            group.append(node_id)
        pairs = [(one, other) for one in groups for other in groups if one is not other]
        lasts = self._cut(pairs, 2 * self.profile.longest_ns)
        text = " | ".join(" ".join(map(str, sorted(group))) for group in groups)
        return f"{text} for {lasts // MILLISECOND_NS} ms"

    def _one_way(self) -> str | None:
        """Some are heard by nobody, or hear nobody, or a single link is gone in one direction or both."""
        ids = list(self._world.hosts)
        if len(ids) < 2:
            return None
        some = self._some(ids, len(ids) - 1)
        rest = [node_id for node_id in ids if node_id not in some]
        if self._random.random() < 0.5:
            some, rest = [self._random.choice(some)], [self._random.choice(rest)]
        pairs = [(some, rest)]
        if self._random.random() < 0.3 and len(some) == len(rest) == 1:
            pairs.append((rest, some))
        lasts = self._cut(pairs, 2 * self.profile.longest_ns)
        return f"{pairs} for {lasts // MILLISECOND_NS} ms"

    def _flap(self) -> str | None:
        """A machine's links come and go."""
        ids = list(self._world.hosts)
        if len(ids) < 2:
            return None
        node_id = self._random.choice(ids)
        rest = [other for other in ids if other != node_id]
        times = self._random.randint(2, 6)
        period = self._random.randint(20, 700) * MILLISECOND_NS
        for time in range(times):
            self._world.after(time * 2 * period, self._flap_once, node_id, rest, period)
        return f"node {node_id}, {times} times {period // MILLISECOND_NS} ms"

    def _flap_once(self, node_id: int, rest: list[int], period: int) -> None:
        if self._world.now < self.profile.calm_ns:
            self._cut([([node_id], rest), (rest, [node_id])], period)

    def _lose_kind(self) -> str | None:
        """Messages of chosen kinds are lost, on their way from or to some."""
        random = self._random
        kinds = self._some(EPOCH_CHANGE if random.random() < 0.7 else DATA_PLANE, 2)
        ids = list(self._world.hosts)
        some = self._some(ids, len(ids)) if random.random() < 0.6 else ids
        incoming = random.random() < 0.5
        probability = random.choice((0.3, 0.7, 1.0))
        chance = self._world.random(f"lost kinds {self._world.steps}")

        def rule(source: int, destination: int, datagram: bytes) -> bool:
            end = destination if incoming else source
            return end in some and message_type(datagram) in kinds and chance.random() < probability

        drops = self._world.network.drops
        drops.append(rule)

        def heal() -> None:
            if rule in drops:
                drops.remove(rule)

        lasts = self._for_a_while(heal)
        names = " and ".join(MessageType(kind).name for kind in kinds)
        direction = "to" if incoming else "from"
        return f"{probability:.0%} of {names} {direction} {some} for {lasts // MILLISECOND_NS} ms"

    def _streams_break(self) -> str | None:
        """Snapshots on their way do not arrive, or crawl."""
        streams = self._world.streams
        before = streams.usual_bytes_per_second  # and not what another such fault has left for now
        streams.breaking = self._random.choice((0.3, 1.0))
        streams.bytes_per_second = self._random.choice((before, before // 20 + 1000))

        def mend() -> None:
            streams.breaking = 0.0
            streams.bytes_per_second = before

        lasts = self._for_a_while(mend)
        return f"for {lasts // MILLISECOND_NS} ms"
