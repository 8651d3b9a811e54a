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
from ocfcluster.simulator.faults import FaultProfile
from ocfcluster.simulator.host import HostProfile
from ocfcluster.simulator.members import MemberProfile
from ocfcluster.simulator.network import MICROSECOND_NS, LinkProfile
from ocfcluster.simulator.programs import PublisherProfile
from ocfcluster.simulator.subscriber import SubscriberProfile
from ocfcluster.wire.topics import Access, Retention, TopicSettings

CLUSTER_SIZES: Final = (1, 2, 2, 3, 3, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 7, 9)
GROUP_NAMES: Final = ("group:workers", "group:lock")
RETAINING: Final = 0.3  # of all seeds keep something of their topics
GRANTING: Final = 0.3  # of all seeds have topics that not everybody may use
PRINCIPALS: Final = ("*", "user:root", "user:somebody", "uid:1000", "group:operators", "gid:7")
TOPIC_NAMES: Final = ("orders", "alarms", "audit", "status", "local notes")


# Kinds of faults with their weights; a seed leaves some of them out.
FAULT_KINDS: Final = (
    ("crash", 5.0),
    ("crash some", 1.2),
    ("trap", 4.0),
    ("pause node", 2.5),
    ("leave", 1.5),
    ("partition", 3.0),
    ("one way", 2.5),
    ("flap", 1.0),
    ("lose kind", 3.0),
    ("disk hangs", 1.0),
    ("disk fails", 1.0),
    ("subscriber stops", 1.0),
    ("wall jump", 0.7),
    ("streams break", 1.5),
    ("power cut", 0.3),
)


@dataclass(slots=True)
class Plan:
    """Everything random about a run that is not decided on the way."""

    seed: int
    delivery: str
    echo: bool
    hosts: list[HostProfile]
    link: LinkProfile
    links: dict[tuple[int, int], LinkProfile]  # those that differ
    stream_bytes_per_second: int
    publishers: list[PublisherProfile]
    clients: list[ClientProfile]
    members: list[MemberProfile]  # programs in groups
    topics: tuple[str, ...]
    topic_maker: int
    topic_changes: int
    topic_pause_ns: int
    topic_removing: float
    settings: dict[str, TopicSettings]  # of topics that are made with others than usual
    retains: bool  # topics keep something
    grants: bool  # topics say who may use them
    alterations: int  # of settings
    rogue: int  # node_id, 0: none
    administrator: int  # node_id, 0: none
    votes_change: bool
    faults: FaultProfile
    calm_ns: int  # when all faults have stopped

    def describe(self) -> str:
        settings = self.hosts[0].settings
        late = sum(host.start_ns > SECOND_NS for host in self.hosts)
        return (
            f"{len(self.hosts)} nodes ({late} of them late), votes {list(settings.table.values())}, "
            f"{self.delivery} delivery, bootstrap by {settings.bootstrap}, mtu {settings.mtu}, "
            f"window {settings.window_bytes}, backlog {settings.backlog_bytes}, "
            f"suspicion {settings.suspicion_ns // MILLISECOND_NS} ms, loss {self.link.loss:.0%}, "
            f"reorder {self.link.reorder:.0%}, duplication {self.link.duplication:.0%}, "
            f"{len(self.publishers)} publishers, {len(self.settings)} topics have settings of their own, "
            f"calm at {self.calm_ns // MILLISECOND_NS} ms, "
            f"a fault every {self.faults.pause_ns // MILLISECOND_NS} ms"
        )


def make_plan(seed: int, nodes: int | None = None) -> Plan:
    """The plan of ``seed``; ``nodes`` fixes the size of the cluster (1 to 9) and leaves the rest to the seed."""
    random = Random(f"{seed}/plan")
    size = random.choice(CLUSTER_SIZES)
    if nodes is not None:
        size = nodes
    node_ids = _node_ids(random, size)
    delivery = random.choice(("safe", "safe", "safe", "agreed"))
    calm_ns = random.randint(4500, 7500) * MILLISECOND_NS
    hosts = _hosts(random, node_ids, delivery, calm_ns)
    faults = _faults(random, size, calm_ns, wipes=hosts[0].settings.bootstrap == "all")
    link = _link(random)
    topics = TOPIC_NAMES[: random.randint(1, len(TOPIC_NAMES))]
    keeping = Random(f"{seed}/retention")  # its own: what other seeds mean is older than this
    keeps = keeping.random() < RETAINING
    granting = Random(f"{seed}/access")
    plan = Plan(
        seed=seed,
        delivery=delivery,
        echo=random.random() < 0.3,
        hosts=hosts,
        link=link,
        links={(a, b): _link(random) for a in node_ids for b in node_ids if a != b and random.random() < 0.1},
        stream_bytes_per_second=random.choice((500 * KIB, 5 * MIB, 100 * MIB)),
        publishers=_publishers(random, node_ids, topics, hosts[0].settings, calm_ns),
        clients=_clients(random, node_ids, topics, calm_ns),
        members=_members(Random(f"{seed}/members"), node_ids, calm_ns),
        topics=topics,
        topic_maker=random.choice(node_ids),
        topic_changes=random.choice((0, 0, 3, 12)),
        topic_pause_ns=random.randint(50, 500) * MILLISECOND_NS,
        topic_removing=0.5,
        settings={},
        retains=keeps,
        grants=granting.random() < GRANTING,
        alterations=0,
        rogue=random.choice(node_ids) if random.random() < 0.3 else 0,
        administrator=random.choice(node_ids) if random.random() < 0.3 else 0,
        votes_change=random.random() < 0.3,
        faults=faults,
        calm_ns=calm_ns,
    )
    if keeps:
        kept = {name: some_retention(keeping) for name in topics if keeping.random() < 0.8}
        plan.settings = {name: TopicSettings(retention) for name, retention in kept.items()}
        plan.retains = bool(kept)
        plan.alterations = keeping.choice((0, 4, 10)) if kept else 0
        for client in plan.clients:
            client.begins = keeping.choice(("", "retained", "from_last", "from_seq", "from_seq"))
        for number in range(keeping.randint(1, 2)):
            client = _clients(keeping, node_ids, topics, calm_ns, (1,))[0]
            plan.clients.append(replace(client, name=f"k{number}", begins="from_seq", lost=0.1))
    if plan.grants:
        for name in topics:
            retention = plan.settings.get(name, TopicSettings()).retention
            plan.settings[name] = TopicSettings(retention, some_access(granting))
        plan.alterations = max(plan.alterations, granting.choice((4, 10, 20)))
    return plan


def some_retention(random: Random) -> Retention:
    """Bounds small enough that they are met."""
    return Retention(
        events=random.choice((0, 1, 20, 100, 100)),
        bytes=random.choice((0, 0, 2000, 20_000)),
        seconds=random.choice((0, 0, 0, 1, 3)),
    )


def some_access(random: Random) -> Access:
    """Lists of principals: any, for the programs here are the agents' own user, who may do everything."""
    return Access(
        *(
            tuple(random.sample(PRINCIPALS, random.randint(0, 3)))
            for _ in range(len(Access.__struct_fields__))
        )
    )


def _faults(random: Random, size: int, calm_ns: int, *, wipes: bool) -> FaultProfile:
    """Some kinds of faults, often enough for several in a run, and seldom enough that something works between."""
    quiet = random.random() < 0.06  # the data plane by itself
    kinds = tuple((kind, weight) for kind, weight in FAULT_KINDS if random.random() < 0.75)
    if size == 1:
        alone = ("crash", "trap", "pause node", "disk hangs", "disk fails", "subscriber stops", "power cut")
        kinds = tuple((kind, weight) for kind, weight in kinds if kind in alone)
    return FaultProfile(
        calm_ns=calm_ns,
        first_ns=random.choice((0, 300, 800)) * MILLISECOND_NS,
        pause_ns=random.choice((150, 250, 400)) * MILLISECOND_NS,
        longest_ns=random.choice((200, 600, 1500)) * MILLISECOND_NS,
        kinds=() if quiet else kinds,
        wipes=wipes and random.random() < 0.4,
        together=random.choice((0.0, 0.1, 0.4)),
    )


def _node_ids(random: Random, size: int) -> list[int]:
    if random.random() < 0.8:
        return list(range(1, size + 1))
    return sorted(random.sample(range(1, 250), size))


def _hosts(random: Random, node_ids: list[int], delivery: str, calm_ns: int) -> list[HostProfile]:
    votes = [1] * len(node_ids)
    if random.random() < 0.15:
        votes = [random.randint(1, 3) for _ in node_ids]
    if len(votes) > 1 and 2 * max(votes) > sum(votes):
        # One that is a majority by itself passes through more histories than others remember, and then waits for an
        # operator to join them.
        votes = [1] * len(node_ids)
    window = random.choice((limits.WINDOW_BYTES, MIB, 128 * KIB, 32 * KIB, 8 * KIB))
    backlog = random.choice((limits.BACKLOG_BYTES, limits.BACKLOG_BYTES, 4 * MIB, 512 * KIB))
    event = min(random.choice((limits.EVENT_BYTES_DEFAULT, 256 * KIB, 64 * KIB)), backlog // 4)
    heartbeat_ns = random.choice((40, 60, 100)) * MILLISECOND_NS
    suspicion_ns = heartbeat_ns * random.choice((5, 8, 10))
    base = Settings(
        cluster_name="simulated",
        node_id=0,
        incarnation=0,
        store_id=0,
        seed=0,
        table=dict(zip(node_ids, votes, strict=True)),
        delivery=delivery,
        mtu=random.choice((1280 if len(votes) < 6 else 1500, 1500, 1500, limits.MTU_MAXIMUM)),
        receive_buffer_bytes=random.choice((limits.RECEIVE_BUFFER_BYTES, limits.RECEIVE_BUFFER_FLOOR_BYTES)),
        limits=Limits(event_bytes=event),
        window_bytes=window,
        backlog_bytes=backlog,
        heartbeat_ns=heartbeat_ns,
        suspicion_ns=suspicion_ns,
        sync_timeout_ns=random.choice((300, 600, 2000)) * MILLISECOND_NS,
        leave_timeout_ns=random.choice((500, 2000)) * MILLISECOND_NS,
        quorum_lost_after_ns=suspicion_ns // random.choice((1, 4)),
        history_wait_ns=random.choice((1000, 3000)) * MILLISECOND_NS,
        bootstrap=random.choice(("all", "all", "majority")),
    )
    together = random.random() < 0.6
    late = random.random() < 0.3
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
            start_ns=_start(random, calm_ns, together, late and base.bootstrap == "majority"),
            wake_ns=random.choice((2, 20, 20, 500)) * MICROSECOND_NS,
            burst=random.choice((1, 4, 32)),
            back_off_ns=random.choice((10, 50, 200)) * MILLISECOND_NS,
            disk=DiskProfile(slowest_ns=(200 if slow_disks else 2) * MILLISECOND_NS),
            subscriber=_subscriber(random),
        )
        for node_id in node_ids
    ]


def _start(random: Random, calm_ns: int, together: bool, late: bool) -> int:
    if late and random.random() < 0.3:
        return random.randrange(calm_ns)
    return 0 if together else random.randrange(300 * MILLISECOND_NS)


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
    for number in range(random.choice((3, 3, 4, 4, 5, 7))):
        events = random.randint(120, 300)
        batch = random.choice((1, 3, 6, 30))
        acts = max(8, 2 * events // (1 + batch))
        profiles.append(
            PublisherProfile(
                name=f"p{number}",
                node_id=random.choice(node_ids),
                events=events,
                topics=tuple(random.sample(topics, random.randint(1, len(topics)))),
                start_ns=random.randrange(200 * MILLISECOND_NS),
                pause_ns=calm_ns * random.choice((4, 7, 9)) // (10 * acts),
                batch=batch,
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
    random: Random,
    node_ids: list[int],
    topics: tuple[str, ...],
    calm_ns: int,
    numbers: tuple[int, ...] = (0, 1, 1, 2),
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
        for number in range(random.choice(numbers))
    ]


def _members(random: Random, node_ids: list[int], calm_ns: int) -> list[MemberProfile]:
    """Programs in groups, in some seeds; drawn from a stream of their own, so that the others are what they were."""
    if random.random() > 0.3:
        return []
    return [
        MemberProfile(
            name=f"m{number}",
            node_id=random.choice(node_ids),
            events=random.choice((5, 20, 40)),
            topics=GROUP_NAMES,
            subscribes="",
            pause_ns=calm_ns // random.randint(40, 120),
            lost=random.choice((0.0, 0.02, 0.1)),
            dies=random.choice((0.0, 0.03, 0.1)),
        )
        for number in range(random.randint(2, 6))
    ]
