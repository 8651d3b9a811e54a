"""What is done to containers, and what must follow while it lasts. What must follow after it is ``Drill.settled``."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from integration.cluster import USER, ContainerCluster
from integration.network import Bridge
from tests.netns.faults import LOOK_S, ON_S, SHORT_S, SUSPICION_S, Drill, Fault, Stuck

HOUR_S: Final = 3600.0
# By node: a minute ahead, ten years ahead, three hours behind, and so on.
WRONG_CLOCKS: Final = {i: (60.0, 3652.0 * 24 * HOUR_S, -3 * HOUR_S)[(i - 1) % 3] for i in range(1, 10)}
DISK_BYTES: Final = 65_536  # of a state directory that is to be filled


class ContainerDrill(Drill):
    """Faults on a cluster of containers that works, one after the other."""

    def __init__(self, cluster: ContainerCluster) -> None:
        super().__init__(cluster)
        self.containers = cluster

    @property
    def bridge(self) -> Bridge:
        assert isinstance(self.containers.network, Bridge)
        return self.containers.network

    def minority(self, victim: int) -> list[int]:
        """The victim, and as many others as leave a majority."""
        size = (len(self.containers.nodes) - 1) // 2
        return [victim, *self.others(victim)[: size - 1]]

    def nobody_is_primary(self, nodes: Sequence[int]) -> None:
        """Wait until each of these nodes says so; none has seen a new membership."""
        deadline = time.monotonic() + ON_S
        while any(self.status(i)["primary"] for i in nodes):
            if time.monotonic() > deadline:
                raise Stuck(f"one of {list(nodes)} is primary")
            time.sleep(LOOK_S)
        assert {self.status(i)["m_sequence"] for i in nodes} == {self.views}


def kill(drill: ContainerDrill, victim: int) -> None:
    """docker kill, and docker start when the others have gone on."""
    drill.containers.kill(victim)
    drill.goes_on(drill.others(victim))
    drill.containers.start_agent(victim)


def kill_and_start_at_once(drill: ContainerDrill, victim: int) -> None:
    drill.containers.kill(victim)
    drill.containers.start_agent(victim)


def kill_several(drill: ContainerDrill, victim: int) -> None:
    """As many as may die."""
    dead = drill.minority(victim)
    for i in dead:
        drill.containers.kill(i)
    drill.goes_on(drill.others(*dead))
    for i in dead:
        drill.containers.start_agent(i)


def out_of_memory(drill: ContainerDrill, victim: int) -> None:
    """The kernel kills it, for its container has reached its limit."""
    drill.containers.exhaust_memory(victim)
    drill.goes_on(drill.others(victim))
    drill.containers.start_agent(victim)


def stop(drill: ContainerDrill, victim: int) -> None:
    """docker stop: it leaves with 0, and nobody waits for a suspicion."""
    assert drill.containers.stop_agent(victim) == 0
    drill.goes_on(drill.others(victim))
    drill.containers.start_agent(victim)


def restart(drill: ContainerDrill, victim: int) -> None:
    """docker restart."""
    drill.containers.restart(victim)


def remove(drill: ContainerDrill, victim: int) -> None:
    """docker rm --force, and another container with the same state directory and address."""
    drill.containers.remove(victim)
    drill.goes_on(drill.others(victim))
    drill.containers.start_agent(victim)


def wipe(drill: ContainerDrill, victim: int) -> None:
    """Its disk is lost: it comes back as a stranger, and is brought up to date."""
    drill.containers.kill(victim)
    drill.goes_on(drill.others(victim))
    drill.containers.wipe(victim)
    drill.containers.start_agent(victim)


def pause(drill: ContainerDrill, victim: int) -> None:
    """docker pause for less than the suspicion time: nothing changes."""
    began = time.monotonic()
    drill.containers.pause(victim)
    time.sleep(SHORT_S)
    drill.containers.unpause(victim)
    drill.no_view_changes(began)


def long_pause(drill: ContainerDrill, victim: int) -> None:
    """... for longer: the others go on, and it finds out when it wakes up."""
    drill.containers.pause(victim)
    try:
        drill.goes_on(drill.others(victim))
    finally:
        drill.containers.unpause(victim)


def pause_all(drill: ContainerDrill, victim: int) -> None:
    """All of them, for longer than the suspicion time, the victim first to sleep and last to wake."""
    order = [victim, *drill.others(victim)]
    for i in order:
        drill.containers.pause(i)
    time.sleep(2 * SUSPICION_S)
    for i in reversed(order):
        drill.containers.unpause(i)


def disconnect(drill: ContainerDrill, victim: int) -> None:
    """docker network disconnect and connect: its interface goes, and is another one when it comes back."""
    drill.bridge.disconnect(victim)
    drill.goes_on(drill.others(victim))
    drill.bridge.connect(victim)


def partition(drill: ContainerDrill, victim: int) -> None:
    """The largest minority on one side: 1|2 of three, 2|3 of five."""
    few = drill.minority(victim)
    many = drill.others(*few)
    drill.bridge.partition(few, many)
    drill.goes_on(many)
    time.sleep(2.2 * SUSPICION_S)  # until the few are told that they are not primary
    assert not any(drill.status(i)["primary"] for i in few)
    drill.bridge.heal()


def partition_in_three(drill: ContainerDrill, victim: int) -> None:
    """No side has a majority, and none goes on: 1|1|1 of three, 2|2|1 of five."""
    others = drill.others(victim)
    half = len(others) // 2
    drill.bridge.partition([victim], others[:half], others[half:])
    drill.nobody_is_primary(drill.containers.nodes)
    drill.bridge.heal()


def all_apart(drill: ContainerDrill, victim: int) -> None:
    """Nobody hears anybody: 1|1|1|…"""
    drill.bridge.partition(*([i] for i in drill.containers.nodes))
    drill.nobody_is_primary(drill.containers.nodes)
    drill.bridge.heal()


def deaf(drill: ContainerDrill, victim: int) -> None:
    """One way: the victim hears nobody, and all hear it."""
    drill.bridge.cut((i, victim) for i in drill.others(victim))
    drill.goes_on(drill.others(victim))
    drill.bridge.heal()


def mute(drill: ContainerDrill, victim: int) -> None:
    """The other way: nobody hears it."""
    drill.bridge.cut((victim, i) for i in drill.others(victim))
    drill.goes_on(drill.others(victim))
    drill.bridge.heal()


def lossy(percent: float) -> Fault:
    """That share of what arrives anywhere is lost, for some seconds."""

    def act(drill: ContainerDrill, victim: int) -> None:
        drill.bridge.set_loss(percent)
        time.sleep(3.0)
        drill.bridge.heal()

    return Fault(f"loss_{percent:g}", act, changes=False)


# --- clocks: of nodes that have one of their own (ContainerCluster.clocks) --------------------------------------------


def clock_jumps(drill: ContainerDrill, victim: int) -> None:
    """The wall clock goes hours forth, further back, and to where it was: nothing changes."""
    began, was = time.monotonic(), drill.containers.clocks[victim]
    for hours in (5, -7, 0):
        drill.containers.set_clock(victim, was + hours * HOUR_S)
        time.sleep(SHORT_S)
    drill.no_view_changes(began)


# --- disks: of nodes whose state directory is a ``small_disk`` --------------------------------------------------------


@contextlib.contextmanager
def full(directory: Path) -> Iterator[None]:
    """No byte is free."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """The agent may not write there any more."""
    os.chown(directory, 0, 0)
    try:
        yield
    finally:
        os.chown(directory, USER, USER)


def bad_disk(drill: ContainerDrill, victim: int, wrong: contextlib.AbstractContextManager[None]) -> None:
    """Of three, one cannot write and another one dies: the rest would need the promise of the first, which it may not
    give before it is on disk. So it waits, says why, and goes on by itself when the disk is well again."""
    other = drill.others(victim)[0]
    with wrong:
        drill.containers.kill(other)
        deadline = time.monotonic() + ON_S
        while not drill.status(victim).get("disk_error"):
            if time.monotonic() > deadline:
                raise Stuck(f"node {victim} says nothing of its disk: {drill.status(victim)}")
            time.sleep(LOOK_S)
        drill.nobody_is_primary(drill.others(other))
    drill.goes_on(drill.others(other))
    assert drill.status(victim)["disk_error"] == ""
    drill.containers.start_agent(other)


KILL = Fault("kill", kill)
CLOCK_JUMPS = Fault("clock_jumps", clock_jumps, changes=False)
FAULTS: Final = [
    KILL,
    Fault("kill_and_start_at_once", kill_and_start_at_once),
    Fault("kill_several", kill_several),
    Fault("out_of_memory", out_of_memory),
    Fault("stop", stop),
    Fault("restart", restart),
    Fault("remove", remove),
    Fault("wipe", wipe),
    Fault("pause", pause, changes=False),
    Fault("long_pause", long_pause),
    Fault("pause_all", pause_all, changes=False),
    Fault("disconnect", disconnect),
    Fault("partition", partition),
    Fault("partition_in_three", partition_in_three, changes=False),
    Fault("all_apart", all_apart, changes=False),
    Fault("deaf", deaf),
    Fault("mute", mute),
    *(lossy(percent) for percent in (1.0, 10.0, 30.0)),
]
