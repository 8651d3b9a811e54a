"""One measurement: the programs of a work item on the hosts of a system that is up, and what they report."""

from __future__ import annotations

import time
from typing import Any, Final

from bench.compare.peers.peer import Peer, PeerError, Program
from bench.compare.work import HOSTS, Latency, Throughput
from bench.worker import WARM_UP_SAMPLES

REPORT_S: Final = 60.0
SETTLE_S: Final = 0.2  # that there is a subscriber comes to a publisher's daemon a little later
GROWTH: Final = 6  # from one attempt to find the number of events to the next
ENOUGH_S: Final = 0.4  # an attempt that took so long says how many events are needed
MOST_BYTES: Final = 2 * 10**9  # of one measurement

Result = dict[str, Any]


def throughput(peer: Peer, work: Throughput, events: int) -> Result:
    """Rates at the subscribers, and CPU time, of ``events`` events. Raises PeerError."""
    nodes = peer.hosts.numbers
    publishing = list(nodes) if work.publishers == HOSTS else [peer.publisher_host()]
    share = events // len(publishing)
    total = share * len(publishing)
    programs: list[Program] = []

    def start(i: int, role: str, *numbers: int) -> Program:
        programs.append(peer.program(i, role, *numbers, work.event_bytes, way=work.way))
        return programs[-1]

    try:
        if peer.member:
            subscribers = [start(i, "member", total, share if i in publishing else 0) for i in nodes]
            publishers = [subscribers[i - 1] for i in publishing]
        else:
            subscribers = [start(i, "subscribe", total) for i in nodes]
            publishers = [start(i, "publish", share) for i in publishing]
        for program in programs:
            program.wait_ready()
        time.sleep(SETTLE_S)
        before = peer.cpu_s()
        for program in publishers:
            program.go()
        reports = {id(program): program.report(REPORT_S) for program in programs}
        after = peer.cpu_s()
    finally:
        for program in programs:
            program.end()
    taken = [reports[id(program)] for program in subscribers]
    rates = [one["events"] / max(1e-6, one["last"] - one["first"]) for one in taken]
    lost = sum(one.get("lost", 0) for one in taken)
    cpu_s = sum(one["cpu_s"] for one in reports.values()) + sum(after[i] - before[i] for i in after)
    return {
        "events": total,
        "seconds": max(one["last"] - one["first"] for one in taken),
        "events_per_s": min(rates),
        "mb_per_s": min(rates) * work.event_bytes / 1e6,
        "each_events_per_s": rates,
        "lost_share": lost / (total * len(taken)),
        "cpu_s_per_million": cpu_s / max(1, total * len(taken) - lost) * 1e6,
        "daemons_cpu_s": {str(i): round(after[i] - before[i], 2) for i in after},
        "programs_cpu_s": [round(one["cpu_s"], 3) for one in reports.values()],
    }


def latency(peer: Peer, work: Latency) -> Result:
    """µs from publish to delivery, while the other hosts take the events, too. Raises PeerError."""
    host = peer.publisher_host()
    others = [i for i in peer.hosts.numbers if i != host]
    events = WARM_UP_SAMPLES + work.samples
    take = (events, 0, work.event_bytes) if peer.member else (events, work.event_bytes)
    programs: list[Program] = []
    try:
        programs += [peer.program(i, "member" if peer.member else "subscribe", *take) for i in others]
        programs.append(peer.program(host, "latency", WARM_UP_SAMPLES, work.samples, work.event_bytes))
        for program in programs:
            program.wait_ready()
        time.sleep(SETTLE_S)
        programs[-1].go()
        *taken, report = [program.report(REPORT_S) for program in programs]
    finally:
        for program in programs:
            program.end()
    lost = sum(one.get("lost", 0) for one in taken)
    return report | {"lost_share": lost / (events * len(taken))}


def how_many(peer: Peer, work: Throughput, seconds: float) -> int:
    """Events that take about so long here: by attempts with more and more of them. Raises PeerError."""
    events, most = work.probe, MOST_BYTES // work.event_bytes
    while True:
        result = throughput(peer, work, events)
        if result["lost_share"] > 0.5 and result["events_per_s"] <= 0:
            raise PeerError(f"{peer.name} delivered next to nothing")
        if result["seconds"] >= ENOUGH_S or events >= most:
            return max(work.probe // 10, min(most, int(seconds * result["events_per_s"])))
        events = min(most, events * GROWTH)
