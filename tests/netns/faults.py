"""What is done to a cluster of three hosts in the failover tests, and what must follow while it lasts and after it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from ocfcluster.errors import ClientError
from tests.netns.cluster import Cluster

SUSPICION_S: Final = 1.0
SHORT_S: Final = 0.3 * SUSPICION_S
ON_S: Final = 8.0  # for the others to go on after a fault
BACK_S: Final = 40.0  # for all to be members again: a node with a bad link has to show it good for up to 10 s
LOOK_S: Final = 0.05


class Stuck(AssertionError):
    """The cluster did not do in time what it must; its nodes' words are in the text."""


class Drill:
    """Faults on a cluster that works, one after the other."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.hosts = cluster.hosts
        self.views = 0  # m_sequence before the fault
        self.epoch = 0

    # --- looking ------------------------------------------------------------------------------------------------

    def status(self, i: int) -> dict[str, Any]:
        """What the agent of node ``i`` says; where it does not answer, that."""
        try:
            return self.cluster.status(i)
        except ClientError as error:
            return {
                "state": f"no answer: {error}",
                "epoch": 0,
                "m_sequence": 0,
                "cluster_id": "",
                "primary": False,
            }

    def sequencer(self) -> int:
        return int(self.cluster.status(1)["sequencer"])

    def settled(self) -> dict[int, dict[str, Any]]:
        """Wait until all are members of one epoch, are primary, and each delivers what is ordered now."""
        wanted = len(self.cluster.nodes)
        said = self._until(
            self.cluster.nodes,
            lambda said: (
                len({(one["cluster_id"], one["epoch"]) for one in said.values()}) == 1
                and all(_works(one) and len(one["members"]) == wanted for one in said.values())
            ),
            BACK_S,
            "all are members of one epoch",
        )
        self._all_deliver(self.cluster.nodes, said, BACK_S)
        self.views, self.epoch = said[1]["m_sequence"], said[1]["epoch"]
        return said

    def goes_on(self, nodes: Iterable[int]) -> None:
        """Wait until ``nodes`` are in a later epoch than before the fault, and deliver there."""
        nodes = list(nodes)
        said = self._until(
            nodes,
            lambda said: all(_works(one) and one["epoch"] > self.epoch for one in said.values()),
            ON_S,
            f"nodes {nodes} go on",
        )
        self._all_deliver(nodes, said, ON_S)

    def _all_deliver(self, nodes: Iterable[int], said: dict[int, dict[str, Any]], timeout_s: float) -> None:
        """... what is ordered from here on, at each of ``nodes``."""
        before = max(one["data_plane"]["held"] for one in said.values())
        self._until(
            nodes,
            lambda said: all(
                _works(one) and one["data_plane"]["delivered"] > before + 10 for one in said.values()
            ),
            timeout_s,
            f"nodes {list(nodes)} deliver beyond {before + 10}",
        )

    def _until(
        self,
        nodes: Iterable[int],
        good: Callable[[dict[int, dict[str, Any]]], bool],
        timeout_s: float,
        what: str,
    ) -> dict[int, dict[str, Any]]:
        deadline = time.monotonic() + timeout_s
        while True:
            said = {i: self.status(i) for i in nodes}
            if good(said):
                return said
            if time.monotonic() > deadline:
                keys = (
                    "state",
                    "waiting_for",
                    "primary",
                    "epoch",
                    "sequencer",
                    "frozen",
                    "proposing",
                    "recovery",
                )
                words = {i: {key: one.get(key) for key in keys} for i, one in said.items()}
                planes = {i: one.get("data_plane") for i, one in said.items()}
                raise Stuck(f"not within {timeout_s:g} s: {what}. {words}\n{planes}")
            time.sleep(LOOK_S)

    def others(self, *without: int) -> list[int]:
        return [i for i in self.cluster.nodes if i not in without]

    def no_view_changes(self, began: float) -> None:
        """After what began then and is over now: the membership stays the one of before. Where this machine was so
        busy that it took too long to end it, nothing is asked."""
        took = time.monotonic() - began
        time.sleep(1.5 * SUSPICION_S)
        now = {i: self.status(i)["m_sequence"] for i in self.cluster.nodes}
        assert set(now.values()) == {self.views} or took > 2 * SHORT_S, (
            f"m_sequence {now} instead of {self.views}"
        )


def _works(said: dict[str, Any]) -> bool:
    return (
        said["state"] == "active"
        and bool(said["primary"])
        and not said["waiting_for"]
        and bool(said["data_plane"])
    )


# --- faults -----------------------------------------------------------------------------------------------------------


def kill(drill: Drill, victim: int) -> None:
    """kill -9 of an agent, which is started again when the others have gone on."""
    drill.cluster.stop_agent(victim, kill=True)
    drill.goes_on(drill.others(victim))
    drill.cluster.start_agent(victim)


def kill_and_restart_at_once(drill: Drill, victim: int) -> None:
    """The agent is back before anybody suspects it: another incarnation, without what the first one held."""
    drill.cluster.stop_agent(victim, kill=True)
    drill.cluster.start_agent(victim)


def stop(drill: Drill, victim: int) -> None:
    """SIGTERM: the others go on without waiting for a suspicion."""
    assert drill.cluster.stop_agent(victim) == 0
    drill.goes_on(drill.others(victim))
    drill.cluster.start_agent(victim)


def pause(drill: Drill, victim: int) -> None:
    """SIGSTOP for less than the suspicion time: nothing changes."""
    agent = drill.cluster.agent(victim)
    began = time.monotonic()
    agent.send_signal(signal.SIGSTOP)
    time.sleep(SHORT_S)
    agent.send_signal(signal.SIGCONT)
    drill.no_view_changes(began)


def long_pause(drill: Drill, victim: int) -> None:
    """SIGSTOP for longer: the others go on, and the node finds out when it wakes up."""
    agent = drill.cluster.agent(victim)
    agent.send_signal(signal.SIGSTOP)
    try:
        drill.goes_on(drill.others(victim))
    finally:
        agent.send_signal(signal.SIGCONT)


def link_down(drill: Drill, victim: int) -> None:
    drill.hosts.link_down(victim)
    drill.goes_on(drill.others(victim))
    drill.hosts.link_up(victim)


def unplug(drill: Drill, victim: int) -> None:
    drill.hosts.unplug(victim)
    drill.goes_on(drill.others(victim))
    drill.hosts.plug(victim)


def new_device(drill: Drill, victim: int) -> None:
    """The device is plugged out, and another one in: what was tied to the old one by its index has to be tied anew."""
    drill.hosts.take_device(victim)
    drill.goes_on(drill.others(victim))
    drill.hosts.give_device(victim)


def short_cut(drill: Drill, victim: int) -> None:
    """Cut off for less than the suspicion time."""
    began = time.monotonic()
    drill.hosts.isolate(victim)
    time.sleep(SHORT_S)
    drill.hosts.heal()
    drill.no_view_changes(began)


def partition(drill: Drill, victim: int) -> None:
    """One on this side, two on the other."""
    drill.hosts.isolate(victim)
    drill.goes_on(drill.others(victim))
    time.sleep(2.2 * SUSPICION_S)  # until the one is told that it is not primary
    assert not drill.status(victim)["primary"]
    drill.hosts.heal()


def all_apart(drill: Drill, victim: int) -> None:
    """Nobody goes on; then they do, with the same members."""
    drill.hosts.isolate(*drill.cluster.nodes)
    time.sleep(2.5 * SUSPICION_S)
    for i in drill.cluster.nodes:
        said = drill.status(i)
        assert said["state"] == "active", said["state"]
        assert not said["primary"], f"node {i} is primary alone"
        assert said["m_sequence"] == drill.views
    drill.hosts.heal()


def deaf(drill: Drill, victim: int) -> None:
    """A one-way cut, link by link: the victim hears nobody in the end, and all hear it."""
    for i in drill.others(victim):
        drill.hosts.cut(i, victim, one_way=True)
        time.sleep(0.2 * SUSPICION_S)
    drill.goes_on(drill.others(victim))
    drill.hosts.heal()


def mute(drill: Drill, victim: int) -> None:
    """The other way: nobody hears it, and it hears all."""
    drill.hosts.mute(victim)
    drill.goes_on(drill.others(victim))
    drill.hosts.heal()


def half_deaf(drill: Drill, victim: int) -> None:
    """The link between the victim and the sequencer works one way only: one of the two must go, and two go on.
    (Between two others it would harm nobody: both reach the sequencer.)"""
    sequencer = drill.sequencer()
    other = sequencer if victim != sequencer else drill.others(victim)[0]
    drill.hosts.cut(victim, other, one_way=True)
    deadline = time.monotonic() + ON_S
    while drill.status(drill.others(victim, other)[0])["epoch"] <= drill.epoch:
        if time.monotonic() > deadline:
            raise Stuck(f"nobody was left out though {other} does not hear {victim}")
        time.sleep(LOOK_S)
    time.sleep(SUSPICION_S)
    drill.hosts.heal()


def kill_two(drill: Drill, victim: int) -> None:
    """Two at the same time: the third waits, since what they had delivered may have been with them alone; that it is
    not is known when one of them is back... which has lost its memory. Both have: the history would end. So one of
    the two is only paused, and comes back with what it held."""
    other = drill.others(victim)[0]
    agent = drill.cluster.agent(other)
    agent.send_signal(signal.SIGSTOP)
    drill.cluster.stop_agent(victim, kill=True)
    time.sleep(2.2 * SUSPICION_S)
    assert not drill.status(drill.others(victim, other)[0])["primary"]
    agent.send_signal(signal.SIGCONT)
    drill.goes_on(drill.others(victim))
    drill.cluster.start_agent(victim)


@dataclass(frozen=True)
class Fault:
    """``act`` begins and ends it; then all come back. ``changes``: a change of the membership must follow."""

    name: str
    act: Callable[[Drill, int], None]
    changes: bool = True


FAULTS: Final = [
    Fault("kill", kill),
    Fault("kill_and_restart_at_once", kill_and_restart_at_once),
    Fault("stop", stop),
    Fault("pause", pause, changes=False),
    Fault("long_pause", long_pause),
    Fault("link_down", link_down),
    Fault("unplug", unplug),
    Fault("new_device", new_device),
    Fault("short_cut", short_cut, changes=False),
    Fault("partition", partition),
    Fault("all_apart", all_apart, changes=False),
    Fault("deaf", deaf),
    Fault("mute", mute),
    Fault("half_deaf", half_deaf),
    Fault("kill_two", kill_two),
]
