"""What a seed means: the cluster, its network and machines, the load, and the faults with their times."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Final

from ocfcluster import limits
from ocfcluster.limits import KIB, MIB, MILLISECOND_NS, SECOND_NS
from ocfcluster.protocol.settings import Limits, Settings
from ocfcluster.simulator.clients import ClientProfile
from ocfcluster.simulator.disk import DiskProfile
from ocfcluster.simulator.host import HostProfile
from ocfcluster.simulator.network import MICROSECOND_NS, LinkProfile
from ocfcluster.simulator.programs import PublisherProfile
from ocfcluster.simulator.subscriber import SubscriberProfile

CLUSTER_SIZES: Final = (1, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 6, 7, 9)
TOPIC_NAMES: Final = ("orders", "alarms", "audit", "status", "local notes")


@dataclass(slots=True, frozen=True)
class FaultPlan:
    """One fault: ``kind`` names a method of Faults, from ``begin_ns`` until ``end_ns``."""

    kind: str
    begin_ns: int
    end_ns: int
    nodes: tuple[int, ...]
    others: tuple[int, ...] = ()


@dataclass(slots=True)
class Plan:
    """Everything random about a run that is not decided on the way."""

    seed: int
    delivery: str
    echo: bool
    hosts: list[HostProfile]
    link: LinkProfile
    links: dict[tuple[int, int], LinkProfile]  # those that differ
    publishers: list[PublisherProfile]
    clients: list[ClientProfile]
    topics: tuple[str, ...]
    topic_maker: int
    topic_changes: int
    topic_pause_ns: int
    topic_removing: float
    rogue: int  # node_id, 0: none
    faults: list[FaultPlan]
    calm_ns: int  # when all faults have stopped

    @property
    def killed(self) -> set[int]:
        return {node for fault in self.faults if fault.kind == "kill" for node in fault.nodes}

    def describe(self) -> str:
        settings = self.hosts[0].settings
        faults = (
            ", ".join(f"{fault.kind}{list(fault.nodes)}" for fault in self.faults)
            or "no faults but the links'"
        )
        return (
            f"{len(self.hosts)} nodes, {self.delivery} delivery, mtu {settings.mtu}, window {settings.window_bytes}, "
            f"backlog {settings.backlog_bytes}, loss {self.link.loss:.0%}, reorder {self.link.reorder:.0%}, "
            f"duplication {self.link.duplication:.0%}, {len(self.publishers)} publishers, {faults}"
        )


def make_plan(seed: int, nodes: int | None = None) -> Plan:
    """The plan of ``seed``; ``nodes`` fixes the size of the cluster (1 to 9) and leaves the rest to the seed."""
    random = Random(f"{seed}/plan")
    size = random.choice(CLUSTER_SIZES)
    if nodes is not None:
        size = nodes
    node_ids = _node_ids(random, size)
    delivery = random.choice(("safe", "safe", "safe", "agreed"))
    calm_ns = random.randint(800, 2500) * MILLISECOND_NS
    kill = size > 1 and random.random() < 0.12
    faults = _faults(random, node_ids, calm_ns, kill)
    hosts = _hosts(random, node_ids, delivery, kill)
    link = _link(random)
    topics = TOPIC_NAMES[: random.randint(1, len(TOPIC_NAMES))]
    return Plan(
        seed=seed,
        delivery=delivery,
        echo=random.random() < 0.3,
        hosts=hosts,
        link=link,
        links={(a, b): _link(random) for a in node_ids for b in node_ids if a != b and random.random() < 0.1},
        publishers=_publishers(random, node_ids, topics, hosts[0].settings, calm_ns),
        clients=_clients(random, node_ids, topics, calm_ns),
        topics=topics,
        topic_maker=random.choice(node_ids),
        topic_changes=random.choice((0, 0, 3, 12)),
        topic_pause_ns=random.randint(20, 150) * MILLISECOND_NS,
        topic_removing=0.5,
        rogue=random.choice(node_ids) if random.random() < 0.3 else 0,
        faults=faults,
        calm_ns=calm_ns,
    )


def _node_ids(random: Random, size: int) -> list[int]:
    if random.random() < 0.8:
        return list(range(1, size + 1))
    return sorted(random.sample(range(1, 250), size))


def _hosts(random: Random, node_ids: list[int], delivery: str, kill: bool) -> list[HostProfile]:
    votes = [1] * len(node_ids)
    if random.random() < 0.15:
        votes = [random.randint(1, 3) for _ in node_ids]
    window = random.choice((limits.WINDOW_BYTES, MIB, 128 * KIB, 32 * KIB, 8 * KIB))
    # After a kill nothing becomes stable any more: what is published must fit the backlog for an end to be reached.
    backlog = limits.BACKLOG_BYTES if kill else random.choice((limits.BACKLOG_BYTES, 4 * MIB, 512 * KIB))
    event = min(random.choice((limits.EVENT_BYTES_DEFAULT, 256 * KIB, 64 * KIB)), backlog // 4)
    base = Settings(
        cluster_name="simulated",
        node_id=0,
        incarnation=0,
        store_id=0,
        seed=0,
        table=dict(zip(node_ids, votes, strict=True)),
        delivery=delivery,
        mtu=random.choice(
            (limits.MTU_MINIMUM if len(votes) < 4 else 1280, 1280, 1500, 1500, 1500, limits.MTU_MAXIMUM)
        ),
        receive_buffer_bytes=random.choice((limits.RECEIVE_BUFFER_BYTES, limits.RECEIVE_BUFFER_FLOOR_BYTES)),
        limits=Limits(event_bytes=event),
        window_bytes=window,
        backlog_bytes=backlog,
    )
    together = random.random() < 0.5
    slow_disks = random.random() < 0.25
    return [
        HostProfile(
            settings=replace(
                base,
                node_id=node_id,
                incarnation=random.getrandbits(63) | 1,
                store_id=random.getrandbits(63) | 1,
                seed=random.getrandbits(32),
            ),
            clock_offset_ns=random.randrange(1_000_000 * SECOND_NS),
            drift_ppm=random.choice((0, 0, random.randint(-200, 200), random.randint(-2000, 2000))),
            wall_offset_ns=random.choice((0, 0, random.randint(-3600, 3600) * SECOND_NS)),
            start_ns=0 if together else random.randrange(300 * MILLISECOND_NS),
            wake_ns=random.choice((2, 20, 20, 500)) * MICROSECOND_NS,
            burst=random.choice((1, 4, 32)),
            disk=DiskProfile(slowest_ns=(200 if slow_disks else 2) * MILLISECOND_NS),
            subscriber=_subscriber(random),
        )
        for node_id in node_ids
    ]


def _subscriber(random: Random) -> SubscriberProfile:
    if random.random() < 0.85:
        return SubscriberProfile()
    return SubscriberProfile(random.choice((100, 500, 5000)) * KIB, random.choice((4, 32, 128)) * KIB)


def _link(random: Random) -> LinkProfile:
    return LinkProfile(
        delay_ns=random.choice((20, 50, 50, 200, 2000)) * MICROSECOND_NS,
        jitter_ns=random.choice((10, 30, 300, 2000)) * MICROSECOND_NS,
        loss=random.choice((0.0, 0.0, 0.01, 0.05, 0.2)),
        duplication=random.choice((0.0, 0.0, 0.02, 0.2)),
        duplicate_delay_ns=random.choice((1, 20, 200)) * MILLISECOND_NS,
        reorder=random.choice((0.0, 0.0, 0.05, 0.4)),
        reorder_delay_ns=random.choice((1, 4, 30)) * MILLISECOND_NS,
        splitting=random.choice((0.0, 0.3, 1.0)),
        garbage=random.choice((0.0, 0.0, 0.01)),
    )


def _publishers(
    random: Random, node_ids: list[int], topics: tuple[str, ...], settings: Settings, calm_ns: int
) -> list[PublisherProfile]:
    large_run = random.random() < 0.2
    profiles = []
    for number in range(random.choice((1, 2, 3, 3, 4, 6))):
        events = random.randint(10, 120)
        pause_ns = calm_ns // (2 * events)
        profiles.append(
            PublisherProfile(
                name=f"p{number}",
                node_id=random.choice(node_ids),
                events=events,
                topics=tuple(random.sample(topics, random.randint(1, len(topics)))),
                start_ns=random.randrange(200 * MILLISECOND_NS),
                pause_ns=pause_ns * random.choice((1, 1, 4)),
                batch=random.choice((1, 1, 4, 30)),
                size_bytes=random.choice((10, 60, 300, 1400)),
                largest_bytes=min(settings.limits.event_bytes, MIB if random.random() < 0.05 else 100 * KIB),
                large=(0.1 if large_run else 0.02),
                resend=random.choice((0.0, 0.0, 0.1, 0.4)),
                re_ids=random.choice(((0,), (0,), (0, 0, 7))),
                void=random.choice((0.0, 0.0, 0.05)),
                reopen=random.choice((0.0, 0.0, 0.1)),
            )
        )
    return profiles


def _clients(
    random: Random, node_ids: list[int], topics: tuple[str, ...], calm_ns: int
) -> list[ClientProfile]:
    return [
        ClientProfile(
            name=f"c{number}",
            node_id=random.choice(node_ids),
            events=random.choice((0, 20, 60)),
            topics=topics,
            subscribes=random.choice(topics),
            pause_ns=calm_ns // random.randint(40, 120),
            lost=random.choice((0.0, 0.02, 0.1)),
        )
        for number in range(random.choice((0, 1, 1, 2)))
    ]


def _faults(random: Random, node_ids: list[int], calm_ns: int, kill: bool) -> list[FaultPlan]:
    faults = []
    kinds = ("partition", "one way", "pause", "disk hangs", "subscriber stops", "wall jump", "disk fails")
    for _ in range(random.choice((0, 1, 2, 3))):
        begin = random.randrange(calm_ns)
        end = min(calm_ns, begin + random.randint(1, 800) * MILLISECOND_NS)
        some = random.sample(node_ids, random.randint(1, max(1, len(node_ids) - 1)))
        kind = random.choice(kinds)
        if kind in ("partition", "one way"):
            rest = tuple(node for node in node_ids if node not in some)
            faults.append(FaultPlan(kind, begin, end, tuple(some), rest))
        else:
            faults.append(FaultPlan(kind, begin, end, tuple(some[:2])))
    if kill:
        victims = tuple(random.sample(node_ids, random.randint(1, max(1, (len(node_ids) - 1) // 2))))
        faults.append(FaultPlan("kill", random.randrange(calm_ns // 4, calm_ns), calm_ns, victims))
    return faults
